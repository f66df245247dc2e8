"""The global aggregator: the server of secure aggregation, which also adds the central noise.

The phases of one release, in order:

1. *gather facts*: which baskets are fresh; the trigger and the budget decide whether to go on;
2. *pin facts*: each basket signs its facts for this attempt;
3. *agree*: the release's numbers and the session's shape follow from these facts;
4. *advertise*, *share keys*, *mask*, *confirm*: the session until its inputs are in (`secure_session`);
5. *charge*: the accountant records the release durably;
6. *unmask*: only now are unmask shares asked for;
7. *release*: noise is drawn once.

An abort before the charge costs nothing: the baskets keep their aggregates, and the next call tries again in
another session. A failure after the charge costs the charge and the aggregates, since the parties cannot know
that nobody has unmasked. With ``layer2.noise: distributed_discrete_gaussian`` the baskets add noise shares
before they mask, and this role adds no noise.

Guarantees:
    It never holds a basket's plain aggregate while secure aggregation is on.
    The charge is durable before the first unmask request.
    A session below its threshold releases nothing.
    a_release_is_stored_before_it_is_answered: Where the federation has a storage_path.
    what_was_charged_and_is_no_release_is_told: However it came to that, by the next call that asks for one.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.actors import signed_facts
from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.kept import CODEC
from scarcity_ray.actors.messages import BasketPlace
from scarcity_ray.actors.names import ACCOUNTANT, GLOBAL
from scarcity_ray.actors.secure_session import PartyCalls, PlainSession, SecureSession
from scarcity_ray.actors.session_terms import LastRelease, SessionTerms, agreement_hash, session_numbers
from scarcity_ray.actors.signed_facts import Occasion, SignedFacts
from scarcity_ray.errors import ConfigError, ProtocolViolation, SecureAggregationAborted
from scarcity_ray.layers.layer2 import decode_clip_norm, decode_meta, noised_mean, noised_means
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.layers.triggers import global_due
from scarcity_ray.plan import BasketFacts, FederationPlan, ReleasePlan, SessionShape, session_shape
from scarcity_ray.privacy.ledger.answers import Charge
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.privacy.schedule import Step
from scarcity_ray.runtime.rpc import Call, Peers, Role, query
from scarcity_ray.secagg import Party, Roster, SessionContext
from scarcity_ray.secagg.transcript import DIGEST_BYTES
from scarcity_ray.storage.snapshots import Snapshots

RELEASE = "release"
"""The snapshots' name."""
RELEASE_BYTES = 1 << 18
"""Room that a stored release takes beside its vector."""
SHOWN = 5
"""Latest aborts and violations that the statistics show."""


@dataclass(frozen=True, eq=False)
class Layer2Outcome:
    """What Layer 2 did.

    Attributes:
        model: The release, if one was made.
        reason: What triggered it, or why there is none.
        read_only: Whether the budget is spent.
        lost_roles: Basket actors that did not answer.
        dropped: Baskets that took part and dropped out.
        absent: Live baskets that were not invited, as they did not answer.
        aborted: Whether a session ended without a release.
        unpublished: How many releases were charged and never made, by the ledger's head in the last release
            before (empty: there was none).
    """

    model: GlobalMetaModel | None
    reason: str
    read_only: bool = False
    lost_roles: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    aborted: bool = False
    unpublished: Mapping[str, int] = field(default_factory=dict)


class GlobalAggregator(Role):
    """Layer 2 as a role; when it is restarted, `latest` or what is `kept` is the last release.

    Args:
        unpublished: How many releases were charged since and never made, as the ledger says.
    """

    def __init__(
        self,
        plan: FederationPlan,
        federation_id: str,
        peers: Peers,
        noise: NoiseSource,
        entropy: Callable[[int], bytes] = os.urandom,
        latest: GlobalMetaModel | None = None,
        kept: Snapshots | None = None,
        unpublished: int = 0,
    ) -> None:
        super().__init__()
        self._kept = kept
        self._unkept: GlobalMetaModel | None = None
        stored = None if kept is None else kept.read(RELEASE, CODEC)
        if stored is not None and (latest is None or stored.version > latest.version):
            latest = stored
        self._plan = plan
        self._federation_id = federation_id
        self._peers = peers
        self._noise = noise
        self._entropy = entropy
        self._last = LastRelease(plan, latest)
        self._attempt = 0
        self._started_at: float | None = None
        self._aborts: deque[str] = deque(maxlen=SHOWN)
        self._num_aborts = 0
        self._aborted: str | None = None
        self._violations: deque[str] = deque(maxlen=SHOWN)
        self._num_violations = 0
        self._in_doubt: str | None = None
        self._unpublished = Counter({self._last_head: unpublished})

    @query
    def latest(self) -> GlobalMetaModel | None:
        """The last release."""
        return self._last.model

    @query
    def ledger_heads(self) -> tuple[str, ...]:
        """Hashes that the ledger must contain: the head when the last release was charged."""
        return () if self._last.model is None else (self._last.model.ledger_head,)

    @query
    def stats(self) -> dict[str, Any]:
        """Counts of releases, aborts and violations; `since` is when waiting for the next release began."""
        return {
            "n_layer2_aggregations": self._last.version,
            "n_baskets": 0 if self._last.model is None else self._last.model.n_baskets,
            "n_layer2_aborts": self._num_aborts,
            "aborts": list(self._aborts),
            "n_layer2_violations": self._num_violations,
            "violations": list(self._violations),
            "since": self._since,
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
            StorageError: If there is no room for a release, before it is charged; or if one that was made
                cannot be stored, which the next call tries again.
        """
        if self._started_at is None:
            self._started_at = now
        if self._unkept is not None:
            return Layer2Outcome(self._stored(self._unkept), "made before, and stored now")
        self._resolve_doubt(now)
        calls = PartyCalls(places, self._peers)
        try:
            outcome = self._attempt_release(calls, places, round_id, force, now, roster)
        except SecureAggregationAborted as abort:
            self._aborted = abort.reason
            self._aborts.append(abort.reason)
            self._num_aborts += 1
            outcome = Layer2Outcome(None, abort.reason, aborted=True)
        finally:
            self._violations.extend(calls.violations)
            self._num_violations += len(calls.violations)
            self._unpublished = +self._unpublished  # A head whose releases were all published is forgotten.
        return replace(outcome, lost_roles=tuple(calls.lost_roles), unpublished=dict(self._unpublished))

    def _resolve_doubt(self, now: float) -> None:
        """Learn whether a session was charged whose charge got no answer; if not, it never is."""
        if self._in_doubt is not None:
            voiding = Call(Accountant.void_release, self._in_doubt, now, {"asked_by": GLOBAL})
            is_void = voiding.send(self._peers, ACCOUNTANT).result()
            self._in_doubt = None
            self._unpublished[self._last_head] += not is_void

    def _attempt_release(
        self,
        calls: PartyCalls,
        places: Sequence[BasketPlace],
        round_id: int,
        force: bool,
        now: float,
        roster: Roster | None,
    ) -> Layer2Outcome:
        """All phases, in order.

        Raises:
            SecureAggregationAborted: If no session can begin, or too few of its parties stay.
        """
        facts = self._gather_facts(calls, places, now)
        is_due, reason = self._trigger(facts.values(), force, now)
        if not is_due:
            return Layer2Outcome(None, reason)
        if spent := Call(Accountant.read_only_reason, now).send(self._peers, ACCOUNTANT).result():
            return Layer2Outcome(None, spent, read_only=True)
        if self._kept is not None:
            self._kept.check_room(RELEASE_BYTES + 4 * self._plan.config.vector_dim)
        num_left_out = Call(Accountant.leave_out, now).send(self._peers, ACCOUNTANT).result()
        there = [place for place in places if place.basket_id in facts and place.identity]
        invited = sorted(there, key=lambda place: place.basket_id)
        if waits := self._waits(facts.values(), _registered(roster, invited)):
            return Layer2Outcome(None, waits)
        occasion = self._occasion(round_id, roster)
        stated = self._pin_facts(calls, invited, occasion)
        parties = [place for place in invited if place.basket_id in stated]
        release, shape = self._agree(parties, stated, roster, self._step(now))
        terms = self._terms(parties, stated, occasion, release, shape)
        session: SecureSession | PlainSession
        kind = SecureSession if terms.masked else PlainSession
        session = kind(terms, list(stated), calls, shape.least_weighted)
        try:
            survivors = session.collect()
            self._in_doubt = terms.charge_id
            charge = self._charge(terms, survivors, now, num_left_out)
            self._in_doubt = None
            if charge.is_outdated:
                raise SecureAggregationAborted(charge.reason)
            if not charge.allowed:
                return Layer2Outcome(None, charge.reason or "refused", read_only=True)
            since = self._last_head
            self._unpublished[since] += 1
            ring_sum = session.unmask(now)
        finally:
            session.end()
        self._unpublished[since] -= 1
        model = self._release(ring_sum, terms, survivors, charge, now)
        dropped = tuple(p.basket_id for p in invited if p.basket_id not in survivors)
        absent = tuple(sorted(p.basket_id for p in set(places).difference(invited)))
        return Layer2Outcome(model, reason, read_only=charge.is_last, dropped=dropped, absent=absent)

    def _gather_facts(
        self, calls: PartyCalls, places: Sequence[BasketPlace], now: float
    ) -> dict[str, BasketFacts]:
        """The facts of the baskets that answer, for the trigger.

        They are unsigned: a signature is for one attempt, and most calls begin none (`_pin_facts`).
        """
        facts: dict[str, BasketFacts] = {}
        asked = [place.basket_id for place in places]

        def take(party: str, said: Any) -> None:
            if not signed_facts.is_formed(said):
                raise ProtocolViolation(f"the facts of {party!r} are missing or malformed")
            facts[party] = said

        calls.phase(asked, lambda batch: Call(BasketHost.facts, batch, now), take)
        return facts

    def _trigger(self, facts: Collection[BasketFacts], force: bool, now: float) -> tuple[bool, str]:
        """Whether a release is due, and what makes it so, or what it waits for."""
        layer2 = self._plan.config.layer2
        fresh = sum(said.fresh for said in facts)
        active = sum(said.num_members >= self._plan.config.basket.min_clients for said in facts)
        if force and fresh >= layer2.min_baskets:
            return True, "forced"
        since = self._since
        reason = global_due(fresh, active, 0.0 if since is None else abs(now - since), layer2)
        return reason is not None, str(reason or f"{fresh} of {active} active baskets are fresh")

    def _waits(self, facts: Collection[BasketFacts], registered: Collection[str]) -> str:
        """Why too few baskets are fresh to begin a session; empty if there are enough."""
        layer2 = self._plan.config.layer2
        if not layer2.use_secure_aggregation:
            return ""
        shape = session_shape(layer2, len(registered), registered=len(registered))
        return shape.too_few(sum(said.fresh for said in facts))

    def _occasion(self, round_id: int, roster: Roster | None) -> Occasion:
        self._attempt += 1
        return Occasion(
            federation_id=self._federation_id,
            session_id=self._entropy(16),
            round_id=round_id,
            attempt=self._attempt,
            roster=bytes(DIGEST_BYTES) if roster is None else roster.digest(),
            ledger_head=self._last.ledger_head,
        )

    def _pin_facts(
        self, calls: PartyCalls, invited: Sequence[BasketPlace], occasion: Occasion
    ) -> dict[str, SignedFacts]:
        """The signed facts of the invited parties; one without valid facts is left out."""
        stated: dict[str, SignedFacts] = {}
        keys = {place.basket_id: place.identity for place in invited}

        def take(party: str, said: Any) -> None:
            if refusal := signed_facts.refusal(party, keys[party], said, occasion, self._plan):
                raise ProtocolViolation(refusal)
            stated[party] = said

        calls.phase(keys, lambda batch: Call(BasketHost.sign_facts, occasion, batch), take)
        return stated

    def _step(self, now: float) -> Step | None:
        """Where the ledger stands, which a schedule of noise needs to know."""
        if self._plan.schedule.is_constant:
            return None
        return Call(Accountant.step, now).send(self._peers, ACCOUNTANT).result()

    def _agree(
        self,
        parties: Sequence[BasketPlace],
        stated: Mapping[str, SignedFacts],
        roster: Roster | None,
        step: Step | None = None,
    ) -> tuple[ReleasePlan, SessionShape]:
        """The numbers that follow from the parties' facts; each party computes them, too.

        Raises:
            SecureAggregationAborted: If no session can begin with them.
        """
        if len(parties) < self._plan.config.layer2.min_baskets:
            raise SecureAggregationAborted(f"{len(parties)} baskets stated their facts for this session")
        facts = [stated[place.basket_id].facts for place in parties]
        try:
            plan = self._last.plan.at_step(step)
            release, shape = session_numbers(facts, plan, _registered(roster, parties))
        except ConfigError as error:
            raise SecureAggregationAborted(str(error)) from None
        if refusal := shape.refusal(len(parties) - release.num_idle):
            raise SecureAggregationAborted(refusal)
        return release, shape

    def _terms(
        self,
        parties: Sequence[BasketPlace],
        stated: Mapping[str, SignedFacts],
        occasion: Occasion,
        release: ReleasePlan,
        shape: SessionShape,
    ) -> SessionTerms:
        """What the parties are told."""
        context = SessionContext(
            federation_id=self._federation_id,
            session_id=occasion.session_id,
            round_id=occasion.round_id,
            attempt=occasion.attempt,
            model_hash=agreement_hash(self._last.aggregate, release),
            dimension=release.length,
            ring_bits=release.ring_bits,
            threshold=shape.threshold,
            parties=tuple(Party(p.basket_id, p.identity) for p in parties),
            degree=shape.degree,
            share_threshold=shape.share_threshold,
            roster=occasion.roster,
            facts=signed_facts.facts_digest(stated, occasion),
        )
        return SessionTerms(context, release, dict(stated), self._plan.config.layer2.use_secure_aggregation)

    def _charge(self, terms: SessionTerms, survivors: Sequence[str], now: float, num_left_out: int) -> Charge:
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
        if dropped := sorted({party.party_id for party in context.parties} - set(survivors)):
            details["dropped"] = dropped
        if release.step is not None:
            details["step"] = release.step.number
        if release.share_sigma:
            details["grid_sensitivity"] = release.grid_sensitivity(list(release.weights))
            details |= {"grid_share_sigma": release.share_sigma, "shares_counted_on": release.num_honest}
        asked = terms.charge_id, release.mu, now, details, num_left_out, release.step
        charge = Call(Accountant.charge_release, *asked)
        return charge.send(self._peers, ACCOUNTANT).result()

    def _release(
        self,
        ring_sum: NDArray[Any],
        terms: SessionTerms,
        survivors: Sequence[str],
        charge: Charge,
        now: float,
    ) -> GlobalMetaModel:
        """Noise the sum once; the result is public from here on."""
        release = terms.release
        counted = [basket for basket in survivors if release.weights[basket] > 0.0]
        version = self._last.version + 1
        vector, sigma = noised_mean(ring_sum, release, survivors, self._noise, f"layer2/{version}")
        model = GlobalMetaModel(
            aggregate=vector[: self._plan.config.vector_dim].astype(np.float32),
            n_baskets=len(counted),
            n_clients_total=sum(terms.facts[basket].facts.num_rows for basket in counted),
            round_id=terms.context.round_id,
            timestamp=now,
            privacy_spent=charge.epsilon_spent,
            version=version,
            noise_sigma=sigma,
            meta_params=decode_meta(vector, release, self._plan),
            meta_means=noised_means(vector, sigma, release, survivors, self._plan),
            ledger_head=charge.head_hash,
            clip_norm=decode_clip_norm(vector, release, self._plan),
            receipts=tuple(root for b in counted if (root := terms.facts[b].counted) is not None),
        )
        return self._stored(model)

    def _stored(self, model: GlobalMetaModel) -> GlobalMetaModel:
        """A release that is paid for, once it is durable: a restarted role publishes it from its record.

        Raises:
            StorageError: If it cannot be stored; the next call tries again.
        """
        self._unkept = model
        if self._kept is not None:
            self._kept.write(RELEASE, model, CODEC, keep=self._plan.config.retention.releases)
        self._last.model, self._aborted, self._unkept = model, None, None
        return model

    @property
    def _last_head(self) -> str:
        """The ledger's head in the last release; empty before the first."""
        return "" if self._last.model is None else self._last.model.ledger_head

    @property
    def _since(self) -> float | None:
        """When the last release was made, or else the first was asked for."""
        return self._started_at if self._last.model is None else self._last.model.timestamp


def _registered(roster: Roster | None, places: Sequence[BasketPlace]) -> Collection[str]:
    """Ids of the registered baskets."""
    return [place.basket_id for place in places] if roster is None else roster.keys()
