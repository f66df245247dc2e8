"""What a site asks of its federation beside uploads: the round's terms, itself, enrolment, another key."""

from __future__ import annotations

import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.names import ACCOUNTANT, DIRECTORY
from scarcity_ray.errors import UsageError
from scarcity_ray.federation.driver import Driver
from scarcity_ray.federation.served_round import OpenRound, Site
from scarcity_ray.federation.site_cohort import register_site
from scarcity_ray.gateway.enrolments import Enrolment
from scarcity_ray.gateway.register import Register
from scarcity_ray.gateway.register_client import RegisterClient
from scarcity_ray.plan.federation import FederationPlan
from scarcity_ray_client import PrivateEvaluation, SiteNoise
from scarcity_ray_client.accounting.modes import Accounting
from scarcity_ray_client.policy import SignedPolicy
from scarcity_ray_client.site_ledger import Head
from scarcity_ray_client.wire import (
    EnrolAnswer,
    EnrolRequest,
    ErrorAnswer,
    ErrorCode,
    KeyRequest,
    MeAnswer,
    ModelFacts,
    RoundAnswer,
    RoundFate,
    RoundState,
)

ROUNDS_TOLD = 20
"""Last rounds that a site is told of."""


@dataclass(frozen=True)
class ServedTerms:
    """What a federation asks of its sites in each round.

    Attributes:
        noise: With which clients noise their rows; None under central noise, and where it is none.
        row_mu: What a row costs its sender; None: it is not stated (`release_mu`).
        min_persons: None where a client is the unit.
        asks_evaluation: Whether sites measure the round's model.
    """

    federation_id: str
    vector_dim: int
    unit: str
    accounting: Accounting
    meta_parameters: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    private_evaluation: PrivateEvaluation | None = None
    noise: SiteNoise | None = None
    row_mu: float | None = None
    min_persons: int | None = None
    asks_evaluation: bool = False

    @classmethod
    def of(
        cls, driver: Driver, private_evaluation: PrivateEvaluation | None, asks_evaluation: bool
    ) -> ServedTerms:
        """The terms of a federation.

        Raises:
            UsageError: For one whose sites cannot know their noise.
        """
        plan, config = driver.supervisor.plan, driver.config
        if not plan.row_schedule.is_constant:
            raise UsageError(
                "privacy.noise_decay below 1 with privacy.noise: site cannot be served: each site would have "
                "to be told the noise of its step; configure privacy.noise_decay: 1"
            )
        noise = plan.site_noise
        is_noised = noise is not None and math.isfinite(noise.mu)
        return cls(
            driver.supervisor.identity.federation_id,
            config.vector_dim,
            config.privacy.unit.value,
            plan.accounting,
            dict(config.meta_parameters),
            private_evaluation,
            noise if is_noised else None,
            noise.mu if is_noised and noise is not None else release_mu(plan),
            config.privacy.min_persons,
            asks_evaluation,
        )

    def round_answer(
        self, opened: OpenRound, model_bytes: int, after: int | None, head: Head | None, now: float
    ) -> RoundAnswer:
        """What a site is told of a round that is open, or waits, or ended.

        Args:
            after: The round that the site has done; open, that one is over for it.
        """
        state, reason = opened.state, opened.reason
        if state is RoundState.OPEN and after is not None and opened.round_id <= after:
            state, reason = RoundState.WAITING, "the next round has not begun"
        model = None
        if opened.model_sha256:
            model = ModelFacts(opened.model_version, opened.round_id, opened.model_sha256, model_bytes)
        return RoundAnswer(
            state,
            reason,
            opened.round_id,
            opened.scope,
            self.vector_dim,
            self.unit,
            self.accounting,
            model,
            None if opened.closes_at is None else max(0.0, opened.closes_at - now),
            self.meta_parameters,
            self.private_evaluation,
            self.noise,
            self.row_mu,
            opened.clip_norm,
            self.min_persons,
            head,
            self.asks_evaluation,
        )


def release_mu(plan: FederationPlan) -> float | None:
    """What a row costs its sender under central noise, by the noise that is configured.

    A release holds a client's rows only if it has sent one since the last that did, so that as many releases
    do as it sent rows, at most. None where that is not all, or no number: with gossip, whose messages are
    charged by themselves, with noise that falls, without Layer 2, and without a claim.
    """
    is_all = plan.config.layer2.enabled and not plan.gossip_share and plan.schedule.is_constant
    return plan.mu_release if is_all and plan.site_noise is None and math.isfinite(plan.mu_release) else None


class SiteDesk:
    """Answers what needs the driver; its methods block, and are called where the driver may be."""

    def __init__(self, driver: Driver, register: RegisterClient) -> None:
        self._driver, self._register = driver, register

    def site_head(self, client_id: str) -> Head | None:
        """How far the accountant knows a site's own ledger."""
        return self._driver.site_heads([client_id]).get(client_id)

    def me(self, site: Enrolment) -> MeAnswer:
        """What is known of the site that asks."""
        client, driver = site.client_id, self._driver
        now = driver.client.now()
        info = driver.client.call(DIRECTORY, Directory.client, client, now)
        epsilon, delta = driver.client.call(ACCOUNTANT, Accountant.remaining, client, now)
        policy = None if site.policy is None else SignedPolicy.from_text(site.policy).policy
        fates = self._register.call(Register.fates, client, ROUNDS_TOLD)
        is_finite = math.isfinite(epsilon)
        return MeAnswer(
            client,
            site.domain_id,
            None if info is None else info.basket_id,
            site.certificate_expires,
            epsilon if is_finite else None,
            delta if is_finite else None,
            None if policy is None else policy.lifetime_epsilon,
            tuple(RoundFate(round_id, fate) for round_id, fate in fates),
        )

    def enrol(self, asked: EnrolRequest) -> EnrolAnswer | ErrorAnswer:
        """Enrol a site: first with the federation, which may refuse it, then in the register."""
        invited = self._register.call(Register.invitation, asked)
        if isinstance(invited, ErrorAnswer):
            return invited
        try:
            policy = None if asked.policy is None else SignedPolicy.from_text(asked.policy)
            site = Site(
                invited.client_id,
                invited.domain_id,
                asked.public_key,
                invited.features,
                asked.num_examples,
                policy,
            )
            if invited.replaces:
                self._unregister(site.client_id)
            try:
                register_site(self._driver, site)
            except UsageError:
                # It may be registered by an enrolment that was never finished, under another key.
                self._unregister(site.client_id)
                register_site(self._driver, site)
        except UsageError as refused:
            return ErrorAnswer(ErrorCode.REFUSED, str(refused))
        return self._register.call(Register.enrol, asked)

    def change_key(self, site: Enrolment, asked: KeyRequest) -> ErrorAnswer | None:
        """Have a site be known by another key; why not, if it is not."""
        client_id, federation_id = site.client_id, self._driver.supervisor.identity.federation_id
        if hmac.compare_digest(site.public_key, asked.public_key):
            return None
        if not asked.is_valid(site.public_key, federation_id, client_id):
            return ErrorAnswer(ErrorCode.WRONG_SIGNATURE, "the new key is not signed by both keys")
        try:
            self._driver.operations.run(Directory.change_key, client_id, asked, self._driver.client.now())
        except UsageError as refused:
            return ErrorAnswer(ErrorCode.REFUSED, str(refused))
        if self._register.call(Register.change_key, client_id, site.public_key, asked.public_key):
            return None
        return ErrorAnswer(ErrorCode.FORBIDDEN, "the key was changed meanwhile")

    def _unregister(self, client_id: str) -> None:
        self._driver.operations.run(Directory.unregister, client_id, self._driver.client.now())
