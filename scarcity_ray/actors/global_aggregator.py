"""The global aggregator: the server's side of secure aggregation, and the place where central noise is added.

One release, in order: have each basket state and sign its public facts; run the session until the masked
inputs are in; charge the accountant, durably; only then ask for unmask shares; draw the noise once; release.
An abort before the charge costs nothing, keeps the baskets' aggregates and is retried at the next call, as
another session. Once charged, a session is not repeated, since who has masked cannot know that nobody
unmasks: what fails after that costs the charge and the aggregates. Where noise comes in shares
(``layer2.noise: distributed_discrete_gaussian``) the baskets have added it before they masked, this role adds
none, and what it unmasks may be released as it is.

Guarantees:
    It never holds a basket's plain aggregate while secure aggregation is on.
    The charge is durable before the first unmask request.
    A session below its threshold releases nothing.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scarcity_ray.actors import signed_facts
from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.basket_host import BasketHost
from scarcity_ray.actors.messages import BasketPlace, Layer2Outcome
from scarcity_ray.actors.names import ACCOUNTANT, basket_actor
from scarcity_ray.actors.secure_session import PartyCalls, SecureSession
from scarcity_ray.actors.session_terms import SessionTerms, agreement_hash
from scarcity_ray.actors.signed_facts import Occasion, SignedFacts
from scarcity_ray.errors import ActorLost, ConfigError, SecureAggregationAborted
from scarcity_ray.layers.layer2 import decode_clip_norm, decode_meta, noised_mean
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.layers.triggers import global_due
from scarcity_ray.plan import BasketFacts, FederationPlan, ReleasePlan, SessionShape, session_shape
from scarcity_ray.privacy.ledger.answers import Charge
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.runtime.rpc import Call, Peers, Role, query
from scarcity_ray.secagg import Party, Roster, SessionContext
from scarcity_ray.secagg.transcript import DIGEST_BYTES

SHOWN = 5
"""Latest aborts and violations that the statistics show."""
HISTORY = 16
"""Past global models that are kept."""


class GlobalAggregator(Role):
    """Layer 2 as a role.

    Args:
        plan: The federation's numbers.
        federation_id: The federation.
        peers: The other roles.
        noise: Where the central noise comes from.
        entropy: Where session ids come from.
        latest: The last release, coming back after it was lost.
    """

    def __init__(
        self,
        plan: FederationPlan,
        federation_id: str,
        peers: Peers,
        noise: NoiseSource,
        entropy: Callable[[int], bytes] = os.urandom,
        latest: GlobalMetaModel | None = None,
    ) -> None:
        super().__init__()
        self._plan = plan
        self._federation_id = federation_id
        self._peers = peers
        self._noise = noise
        self._entropy = entropy
        self._models: list[GlobalMetaModel] = [] if latest is None else [latest]
        self._attempt = 0
        self._started_at: float | None = None
        self._aborts: list[str] = []
        self._aborted: str | None = None
        self._violations: list[str] = []

    @query
    def latest(self) -> GlobalMetaModel | None:
        """The last release."""
        return self._models[-1] if self._models else None

    @query
    def ledger_heads(self) -> tuple[str, ...]:
        """Hashes that the ledger must hold: the last release was charged under it."""
        return (self._models[-1].ledger_head,) if self._models else ()

    def history(self) -> tuple[GlobalMetaModel, ...]:
        """The last releases, oldest first."""
        return tuple(self._models)

    @query
    def stats(self) -> dict[str, Any]:
        """Releases, baskets in the last, why sessions ended without one, and since when one is waited for."""
        version = self._models[-1].version if self._models else 0
        return {
            "n_layer2_aggregations": version,
            "n_baskets": self._models[-1].n_baskets if self._models else 0,
            "n_layer2_aborts": len(self._aborts),
            "aborts": self._aborts[-SHOWN:],
            "n_layer2_violations": len(self._violations),
            "violations": self._violations[-SHOWN:],
            "since": self._models[-1].timestamp if self._models else self._started_at,
            "aborted": self._aborted,
        }

    def run(
        self,
        places: Sequence[BasketPlace],
        round_id: int,
        force: bool,
        now: float,
        roster: Roster | None = None,
    ) -> Layer2Outcome:
        """Make a release if one is due.

        Args:
            places: All live baskets.
            round_id: Current round.
            force: Whether to release as soon as there are enough fresh baskets, whatever the triggers say.
            now: Seconds since the epoch.
            roster: The newest roster, which the baskets have pinned; None: all of `places` are registered.

        Raises:
            ActorLost: If the accountant does not answer; nothing was released.
        """
        if self._started_at is None:
            self._started_at = now
        reports, lost = self._reports(places, now)
        fresh = [facts for facts in reports if facts.fresh]
        active = [facts for facts in reports if facts.num_members >= self._plan.config.basket.min_clients]
        last = self._models[-1].timestamp if self._models else self._started_at
        layer2 = self._plan.config.layer2
        reason: str | None = global_due(len(fresh), len(active), now - last, layer2)
        if force and len(fresh) >= layer2.min_baskets:
            reason = "forced"
        if reason is None:
            return Layer2Outcome(
                None, f"{len(fresh)} of {len(active)} active baskets are fresh", lost_roles=lost
            )
        status = Call(Accountant.status, now).send(self._peers, ACCOUNTANT).result()
        if status.read_only:
            return Layer2Outcome(None, status.read_only_reason, read_only=True, lost_roles=lost)
        present = {facts.basket_id for facts in reports}
        parties = sorted(
            (p for p in places if p.basket_id in present and p.identity), key=lambda p: p.basket_id
        )
        waits = self._waits(len(fresh), roster, parties)
        if waits:
            return Layer2Outcome(None, waits, lost_roles=lost)
        return self._release(parties, roster, round_id, str(reason), now, lost)

    def _release(
        self,
        invited: Sequence[BasketPlace],
        roster: Roster | None,
        round_id: int,
        reason: str,
        now: float,
        lost: tuple[str, ...],
    ) -> Layer2Outcome:
        occasion = self._occasion(round_id, roster)
        stated, calls = self._stated(invited, occasion)
        lost = (*lost, *calls.lost_roles)
        parties = [place for place in invited if place.basket_id in stated]
        missing = tuple(place.basket_id for place in invited if place.basket_id not in stated)
        try:
            terms = self._terms(parties, stated, roster, occasion)
        except SecureAggregationAborted as abort:
            return self._abort(abort, lost)
        facts = {party: said.facts for party, said in stated.items()}
        release = terms.release
        least = self._shape(release, roster).least_weighted
        session = SecureSession(terms, parties, self._peers, least)
        try:
            survivors = session.collect()
            counted = [b for b in survivors if release.weights[b] > 0.0]
            charge = self._charge(terms, survivors, now)
            if not charge.allowed:
                return Layer2Outcome(None, charge.reason or "refused", read_only=True, lost_roles=lost)
            ring_sum = session.unmask(now)
        except SecureAggregationAborted as abort:
            return self._abort(abort, (*lost, *session.lost_roles))
        finally:
            session.end()
            self._violations.extend(session.violations)
        vector, sigma = noised_mean(ring_sum, release, survivors, self._noise, f"layer2/{self._version}")
        model = GlobalMetaModel(
            aggregate=vector[: self._plan.config.vector_dim].astype(np.float32),
            n_baskets=len(counted),
            n_clients_total=sum(facts[b].num_rows for b in counted),
            round_id=round_id,
            timestamp=now,
            privacy_spent=charge.epsilon_spent,
            version=self._version,
            noise_sigma=sigma,
            meta_params=decode_meta(vector, self._round_plan),
            ledger_head=charge.head_hash,
            clip_norm=decode_clip_norm(vector, release, self._plan),
        )
        self._models = [*self._models[-HISTORY + 1 :], model]
        self._aborted = None
        dropped = missing + tuple(p.basket_id for p in parties if p.basket_id not in survivors)
        return Layer2Outcome(model, reason, self._spent(now), (*lost, *session.lost_roles), dropped)

    def _waits(self, num_fresh: int, roster: Roster | None, parties: Sequence[BasketPlace]) -> str:
        """Why no session is worth beginning with so many fresh baskets, or nothing."""
        layer2 = self._plan.config.layer2
        if not layer2.use_secure_aggregation:
            return ""
        registered = _registered(roster, [place.basket_id for place in parties])
        return session_shape(layer2, len(registered), registered=len(registered)).too_few(num_fresh)

    def _abort(self, abort: SecureAggregationAborted, lost: tuple[str, ...]) -> Layer2Outcome:
        self._aborts.append(abort.reason)
        self._aborted = abort.reason
        return Layer2Outcome(None, abort.reason, lost_roles=lost, aborted=True)

    def _spent(self, now: float) -> bool:
        """Whether no further release fits; an accountant that is lost now answers before the next one."""
        try:
            return Call(Accountant.status, now).send(self._peers, ACCOUNTANT).result().read_only
        except ActorLost:
            return False

    @property
    def _round_plan(self) -> FederationPlan:
        """The plan at the clip norm that the last release told."""
        told = self._models[-1].clip_norm if self._models else None
        return self._plan if told is None else self._plan.at(told)

    @property
    def _version(self) -> int:
        return self._models[-1].version + 1 if self._models else 1

    def _occasion(self, round_id: int, roster: Roster | None) -> Occasion:
        self._attempt += 1
        told = self._models[-1] if self._models else None
        distributed = self._plan.config.layer2.distribute_to_baskets
        return Occasion(
            federation_id=self._federation_id,
            session_id=self._entropy(16),
            round_id=round_id,
            attempt=self._attempt,
            roster=bytes(DIGEST_BYTES) if roster is None else roster.digest(),
            ledger_head=told.ledger_head if told is not None and distributed else "",
        )

    def _stated(
        self, invited: Sequence[BasketPlace], occasion: Occasion
    ) -> tuple[dict[str, SignedFacts], PartyCalls]:
        """What each party that is invited states of itself; who states nothing valid is left out."""
        calls = PartyCalls(invited, self._peers)
        said = calls.facts(occasion)
        stated: dict[str, SignedFacts] = {}
        for place in invited:
            party = place.basket_id
            if party not in said:
                continue
            refusal = signed_facts.refusal(party, place.identity, said[party], occasion, self._plan)
            if refusal:
                calls.violations.append(refusal)
            else:
                stated[party] = said[party]
        self._violations.extend(calls.violations)
        return stated, calls

    def _terms(
        self,
        parties: Sequence[BasketPlace],
        stated: Mapping[str, SignedFacts],
        roster: Roster | None,
        occasion: Occasion,
    ) -> SessionTerms:
        """What the parties are told, all of which follows from what they have stated.

        Raises:
            SecureAggregationAborted: If no session can begin with them.
        """
        layer2 = self._plan.config.layer2
        latest = self._models[-1].aggregate if self._models else np.zeros(0, np.float32)
        registered = _registered(roster, [place.basket_id for place in parties])
        if len(parties) < layer2.min_baskets:
            raise SecureAggregationAborted(f"{len(parties)} baskets stated their facts for this session")
        try:
            release = self._round_plan.release(
                [stated[place.basket_id].facts for place in parties],
                registered=len(registered),
                unsigned=sum(place.basket_id not in registered for place in parties),
            )
        except ConfigError as error:
            raise SecureAggregationAborted(str(error)) from None
        shape = self._shape(release, roster)
        refusal = shape.refusal(len(parties) - release.num_idle)
        if refusal:
            raise SecureAggregationAborted(refusal)
        context = SessionContext(
            federation_id=self._federation_id,
            session_id=occasion.session_id,
            round_id=occasion.round_id,
            attempt=occasion.attempt,
            model_hash=agreement_hash(latest, release),
            dimension=release.length,
            ring_bits=release.ring_bits,
            threshold=shape.threshold,
            parties=tuple(Party(p.basket_id, p.identity) for p in parties),
            degree=shape.degree,
            share_threshold=shape.share_threshold,
            roster=occasion.roster,
            facts=signed_facts.facts_digest(stated, occasion),
        )
        return SessionTerms(context, release, dict(stated), layer2.use_secure_aggregation)

    def _shape(self, release: ReleasePlan, roster: Roster | None) -> SessionShape:
        """The shape of a session of the release's parties; without masks nobody is hidden."""
        layer2 = self._plan.config.layer2
        if not layer2.use_secure_aggregation:
            layer2 = replace(layer2, assumed_corrupt_fraction=0.0)
        registered = _registered(roster, release.weights)
        return session_shape(
            layer2,
            len(release.weights),
            registered=len(registered),
            idle=release.num_idle,
            unsigned=sum(basket not in registered for basket in release.weights),
        )

    def _charge(self, terms: SessionTerms, survivors: Sequence[str], now: float) -> Charge:
        release, context = terms.release, terms.context
        details = {
            "round": context.round_id,
            "session": terms.session_id,
            "baskets": len(survivors),
            "grid_sensitivity": release.grid_sensitivity(survivors),
            "grid_sigma": release.grid_sigma(survivors),
            "scale": release.scale,
            "clip_norm": release.clip_norm,
        }
        if release.share_sigma:
            details["grid_sensitivity"] = release.grid_sensitivity(list(release.weights))
            details |= {"grid_share_sigma": release.share_sigma, "shares_counted_on": release.num_honest}
        charge = Call(Accountant.charge_release, terms.charge_id, release.mu, now, details)
        return charge.send(self._peers, ACCOUNTANT).result()

    def _reports(
        self, places: Sequence[BasketPlace], now: float
    ) -> tuple[list[BasketFacts], tuple[str, ...]]:
        by_slot: dict[int, list[str]] = defaultdict(list)
        for place in places:
            by_slot[place.slot].append(place.basket_id)
        asked = Call(BasketHost.reports, now)
        calls = {slot: asked.send(self._peers, basket_actor(slot)) for slot in sorted(by_slot)}
        facts: list[BasketFacts] = []
        lost: list[str] = []
        for slot, call in calls.items():
            try:
                reports = call.result()
            except ActorLost:
                lost.append(basket_actor(slot))
                continue
            facts.extend(reports[b].facts for b in by_slot[slot] if b in reports)
        return sorted(facts, key=lambda f: f.basket_id), tuple(lost)


def _registered(roster: Roster | None, parties: Collection[str]) -> Collection[str]:
    return parties if roster is None else roster.keys()
