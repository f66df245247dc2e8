"""The basket actor: it holds a share of the federation's baskets, with their keys.

It calls the accountant and no other role, so no two roles ever wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from scarcity_ray.actors.basket_keeper import BasketKeeper
from scarcity_ray.actors.charging import BasketCharges, charged_gossip
from scarcity_ray.actors.layer1_tasks import blocks_where_faster
from scarcity_ray.actors.messages import Admission, BasketPlace, Order, Overtaken, SlotState, closed
from scarcity_ray.actors.migration import ActorKey, MigrationDesk, SealedBox
from scarcity_ray.actors.names import basket_actor
from scarcity_ray.actors.recovery import HostState
from scarcity_ray.actors.secure_parties import Answers, PartyKnowledge, SecureParties
from scarcity_ray.actors.session_terms import LastRelease, SessionTerms
from scarcity_ray.actors.signed_facts import Occasion, SignedFacts
from scarcity_ray.actors.unattended_signing import Statement
from scarcity_ray.baskets import Receipt, Rejection
from scarcity_ray.baskets.basket import Basket
from scarcity_ray.baskets.client_memory import ClientMemories, ClientMemory
from scarcity_ray.baskets.local_state import Row
from scarcity_ray.baskets.reports import (
    ActivityReport,
    Backlog,
    BasketReport,
    Layer1Outcome,
    ReputationReport,
)
from scarcity_ray.baskets.reputation import merged_activity
from scarcity_ray.baskets.submission import SubmissionBatch
from scarcity_ray.directory.records import OrderNumber
from scarcity_ray.errors import UsageError
from scarcity_ray.layers.layer1 import Layer1Aggregator
from scarcity_ray.layers.models import BasketModel, GlobalMetaModel
from scarcity_ray.plan import BasketFacts, FederationPlan
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.runtime.collector import collector_paused
from scarcity_ray.runtime.rpc import Compute, Peers, Role, query
from scarcity_ray.secagg import (
    Advert,
    Confirmation,
    Endorsement,
    Inbox,
    KeyShares,
    MaskedInput,
    Party,
    Roster,
    UnmaskShares,
)
from scarcity_ray.storage.snapshots import Snapshots
from scarcity_ray.updates import read_rows


@dataclass(frozen=True, eq=False)
class SubmissionResult:
    """The answer to a batch of updates: a receipt for each, in order, and baskets whose Layer 1 is due."""

    receipts: tuple[Receipt, ...]
    due: tuple[str, ...] = ()


class BasketHost(Role):
    """Several baskets as a role.

    Args:
        slot: Its number among the basket actors.
        state: What the directory knows of it, such as its members, if it is restarted.
        latest: The last release, if it is restarted.
        actors_key: Shared by all basket actors (`actors.migration`).
        run: The random number of the federation's opening, which clients sign their updates for.
        kept: Where it keeps snapshots of its baskets; what is there of an earlier life is taken over.
    """

    def __init__(
        self,
        slot: int,
        plan: FederationPlan,
        federation_id: str,
        peers: Peers,
        compute: Compute,
        noise: NoiseSource,
        round_id: int = 0,
        read_only: bool = False,
        state: SlotState | None = None,
        latest: GlobalMetaModel | None = None,
        actors_key: bytes | None = None,
        run: int = 0,
        budget_period: int = 0,
        kept: Snapshots | None = None,
    ) -> None:
        super().__init__()
        self._slot = slot
        self._plan = plan
        self._federation_id = federation_id
        self._noise = noise
        self._round_id = round_id
        self._read_only = read_only
        self._run = run
        self._budget_period = budget_period
        self._blocks_of = blocks_where_faster(compute)
        self._baskets: dict[str, Basket] = {}
        self._charges = BasketCharges(slot, peers)
        self._last = LastRelease(plan, latest)
        self._secure = SecureParties(plan, federation_id, self._baskets, noise, self._charges, self._last)
        self._migration = MigrationDesk(os.urandom(32) if actors_key is None else actors_key)
        self._closed: BasketReport | None = None
        self._farewells: dict[str, bytes] = {}
        state = state or SlotState((), (), OrderNumber())
        self._number = state.number
        self._order = state.order
        self._memories = ClientMemories(state.memories)
        self._clip()
        self.admit(state.admissions)
        self._keeper = BasketKeeper(kept, slot, plan.config)
        self._keeper.restore(self._baskets)

    # Membership: steps of the operations that the directory decides, each with the operation's order.

    @collector_paused()
    def admit(
        self, admissions: Sequence[Admission], order: Order | None = None
    ) -> dict[str, bytes] | Overtaken:
        """Open baskets that are not here yet and add members; the baskets' identity keys.

        A member that is here already keeps its state. The actor's own start has no order.
        """
        if (overtaken := self._overtaken(order)) is not None:
            return overtaken
        for admission in admissions:
            basket = self._baskets.get(admission.place.basket_id) or self._open(admission.place)
            for member in admission.members:
                memory = self._memories.pop(member.client_id)
                if memory is not None:
                    member = replace(member, memory=memory.joined_with(member.memory))
                basket.admit(member)
            basket.leave_out(self._charges.left_out)
        return {a.place.basket_id: self._baskets[a.place.basket_id].identity.public_bytes for a in admissions}

    def dismiss(self, basket_id: str, client_id: str, order: Order) -> ClientMemory | Overtaken | None:
        """Remove a client; what must be remembered of it, which is kept here too."""
        if (overtaken := self._overtaken(order)) is not None:
            return overtaken
        basket = self._baskets.get(basket_id)
        memory = basket.dismiss(client_id) if basket is not None else None
        if memory is not None:
            self._memories.note([replace(memory, slot=self._slot, number=order.number)])
        return self._memories.get(client_id)

    @query
    def actor_key(self) -> ActorKey:
        """The key that boxes for this actor are sealed to."""
        return self._migration.key

    def take(
        self, basket_id: str, homes: Mapping[str, tuple[str, ActorKey]], order: Order
    ) -> tuple[SealedBox, ...] | Overtaken:
        """The sealed states of clients that move; a repeated call returns them again.

        Args:
            basket_id: The basket that they leave.
            homes: The basket that each moves to, and the key of the actor there.
            order: The operation's.

        Raises:
            ProtocolViolation: If a key is no actor's.
        """
        if (overtaken := self._overtaken(order)) is not None:
            return overtaken
        return self._migration.take(self._baskets.get(basket_id), homes, order.operation_id)

    def put(self, basket_id: str, boxes: Sequence[SealedBox], order: Order) -> bool | Overtaken:
        """Add the states of clients that were admitted here, once each.

        Returns:
            Whether all boxes could be opened; one that is sealed to this actor's predecessor cannot.
        """
        if (overtaken := self._overtaken(order)) is not None:
            return overtaken
        return self._migration.put(self._baskets, basket_id, boxes, order.operation_id)

    def endorse(self, basket_id: str, parties: Sequence[Party]) -> tuple[Endorsement, ...]:
        """A closing basket's endorsements of the baskets that its clients move to."""
        basket = self._baskets.get(basket_id)
        if basket is None:
            return ()
        vouched = (Endorsement(self._federation_id, basket_id, party) for party in parties)
        return tuple(endorsement.signed(basket.identity) for endorsement in vouched)

    def close_basket(self, basket_id: str, order: Order | None = None) -> ActivityReport | Overtaken:
        """Forget a basket that is no longer live, except for its counts; its last activity."""
        if (overtaken := self._overtaken(order)) is not None:
            return overtaken
        self._migration.forget_left()
        basket = self._baskets.pop(basket_id, None)
        if basket is None:
            return ActivityReport()
        self._closed = basket.report().closed(BasketFacts("", "", 0), self._closed)
        self._farewells[basket_id] = basket.identity.sign(closed(basket_id))
        return basket.take_activity()

    def advance_round(self, round_id: int, now: float, order: Order) -> Overtaken | None:
        """Move to a later round; nothing happens if the actor is there already."""
        if (overtaken := self._overtaken(order)) is not None:
            return overtaken
        if round_id > self._round_id:
            self.leave_out(now)
            self._round_id = round_id
            for basket in self._baskets.values():
                basket.advance_round(round_id)
            self._memories.forget_before(round_id - self._plan.config.buffer.max_staleness, now)
            self._keeper.keep(self._baskets, round_id, is_boundary=True)
        return None

    # Updates, Layer 1 and gossip.

    def submit(self, baskets: Sequence[str], batch: SubmissionBatch, now: float) -> SubmissionResult:
        """Judge a batch of updates, each for the basket at the same position.

        An update for a basket that is not here is answered as one of an unknown client, so that the driver
        locates the client again.
        """
        self._secure.tick(now)
        read_only = self._is_read_only(now)
        receipts = []
        config = self._plan.config
        batch = batch.with_reports_apart(config.vector_dim, list(config.meta_parameters))
        rows = read_rows(batch.rows, config.vector_dim)
        for index, basket_id in enumerate(baskets):
            basket = self._baskets.get(basket_id)
            if basket is None:
                receipts.append(Receipt(False, Rejection.UNKNOWN_CLIENT, None, self._round_id))
            else:
                receipts.append(basket.submit(batch[index], read_only, now, rows[index]))
        here = sorted(set(baskets) & set(self._baskets))
        due = (b for b in here if self._baskets[b].due(now, submitting=True) is not None)
        return SubmissionResult(tuple(receipts), tuple(due))

    def run_layer1(
        self, basket_ids: Sequence[str] | None, force: bool, now: float
    ) -> tuple[Layer1Outcome, ...]:
        """Layer 1 in the given baskets (all by default) that are due, or that have enough if forced."""
        self._secure.tick(now)
        if self._is_read_only(now):
            return ()
        self.leave_out(now)
        chosen = sorted(self._baskets if basket_ids is None else set(basket_ids) & set(self._baskets))
        outcomes = tuple(self._baskets[b].layer1(self._aggregator, force, now) for b in chosen)
        if any(outcome.aggregated for outcome in outcomes):
            self._keeper.keep(self._baskets, self._round_id)
        return outcomes

    def run_gossip(self, now: float) -> dict[str, int]:
        """One gossip round in every basket; delivered messages by basket. See `charged_gossip`."""
        self._secure.tick(now)
        if self._plan.gossip_share == 0.0 or self._is_read_only(now):
            return dict.fromkeys(sorted(self._baskets), 0)
        self.leave_out(now)
        sent = charged_gossip(self._baskets, self._plan.gossip, self._charges, self._round_id, now)
        self._read_only = self._charges.read_only_reason != ""
        self._keeper.keep(self._baskets, self._round_id)
        return sent

    def leave_out(self, now: float) -> None:
        """Leave the clients out that are at ceilings of their own, as the accountant says."""
        self._charges.hear_left_out(now)
        if self._charges.left_out:
            for basket in self._baskets.values():
                basket.leave_out(self._charges.left_out)

    def set_read_only(self, read_only: bool) -> None:
        """Set whether updates, gossip and aggregation are refused."""
        self._read_only = read_only

    def set_budget_period(self, budget_period: int) -> None:
        """Accept only updates that are signed for this budget period, from now on."""
        self._budget_period = budget_period = max(self._budget_period, budget_period)
        for basket in self._baskets.values():
            basket.scope = replace(basket.scope, budget_period=budget_period)

    # Layer 2: rosters and releases from drivers, and the phases of a secure session.

    def know_parties(
        self, rosters: Sequence[Roster], endorsements: Sequence[Endorsement] = (), life: int = 0
    ) -> PartyKnowledge:
        """Pin the next epochs of the roster, oldest first, and learn the endorsements.

        A driver brings them from the directory; the global aggregator, whose sessions are checked against
        them, has no part in it. Until a roster is pinned, no session is joined.

        A roster with a wrong key for one of this actor's baskets is refused and counted, and so is one of a
        directory that died (`life`).
        """
        return self._secure.know(rosters, endorsements, life, self._number)

    def adopt(self, model: GlobalMetaModel) -> None:
        """Adopt a distributed release, unless a later one is here already."""
        if self._last.adopt(model):
            self._clip()

    def facts(self, parties: Sequence[str], now: float) -> dict[str, BasketFacts]:
        """The public facts of each party that is here, for Layer 2's trigger."""
        self._secure.tick(now)
        return {party: self._baskets[party].facts() for party in parties if party in self._baskets}

    def sign_facts(self, occasion: Occasion, parties: Sequence[str]) -> Answers[SignedFacts]:
        """Before a session: the facts that each party that is here signs for this attempt.

        For another roster or last release than this actor's none are signed, and the refusal is counted.
        Who is at a ceiling of its own by now is left out first.
        """
        self.leave_out(self._secure.now)
        return self._secure.sign_facts(occasion, parties)

    def advertise(self, terms: SessionTerms, parties: Sequence[str]) -> Answers[Advert]:
        """Secure aggregation, phase 1: fresh keys for each party that is here.

        A session is refused, and the refusal counted, if it names a basket or a key that is not on the
        roster, is about another last release than the one distributed here, has numbers that do not follow
        from the signed facts, or is so small that the corrupt baskets could read another one.
        """
        return self._secure.advertise(terms, parties)

    def share_keys(
        self, session_id: str, parties: Sequence[str], adverts: tuple[Advert, ...]
    ) -> Answers[KeyShares]:
        """Phase 2: each party's encrypted shares."""
        return self._secure.each(session_id, parties, lambda at, p: at.participants[p].share_keys(adverts))

    def mask(self, session_id: str, party: str, inbox: Inbox) -> MaskedInput | None:
        """Phase 3: one party's masked contribution; from here on its aggregate may be in the sum."""
        return self._secure.mask(session_id, party, inbox)

    def confirm(
        self, session_id: str, parties: Sequence[str], survivors: tuple[str, ...]
    ) -> Answers[Confirmation]:
        """Phase 4: each party's signature on the survivors."""
        return self._secure.each(session_id, parties, lambda attempt, p: attempt.confirm(p, survivors))

    def unmask(
        self, session_id: str, parties: Sequence[str], confirmations: tuple[Confirmation, ...], now: float
    ) -> Answers[UnmaskShares]:
        """Phase 5: each party's shares, once the release is charged; from here on its aggregate is spent."""
        return self._secure.unmask(session_id, parties, confirmations, now)

    def contribute(self, terms: SessionTerms, parties: Sequence[str]) -> Answers[tuple[str, NDArray[Any]]]:
        """The unmasked contributions, if secure aggregation is off."""
        return self._secure.contribute(terms, parties)

    def end_session(self, session_id: str, spent: Sequence[str]) -> None:
        """Wipe a session's keys; `spent` are the parties whose aggregates may have been released."""
        self._secure.end(session_id, spent)

    def abandon_session(self) -> GlobalMetaModel | None:
        """Wipe the keys of a session whose global aggregator died; the last release, for its successor."""
        self._secure.abandon()
        return self._last.model

    # Queries and reports of drivers.

    @query
    def local_states(self, baskets: Sequence[str], client_ids: Sequence[str]) -> dict[str, Row]:
        """The local states of those clients that have one, each in the basket at the same position.

        Raises:
            UsageError: With Layer 2, where clients train on from the global model.
        """
        if self._plan.config.layer2.enabled:
            raise UsageError("local states are for training without Layer 2: layer2.enabled is true")
        found: dict[str, Row] = {}
        for basket_id, client_id in zip(baskets, client_ids, strict=True):
            basket = self._baskets.get(basket_id)
            state = None if basket is None else basket.local_state(client_id)
            if state is not None:
                found[client_id] = state
        return found

    @query
    def basket_model(self, basket_id: str) -> BasketModel | None:
        """A basket's latest aggregate.

        Raises:
            UsageError: With ``expose_basket_models: false``.
        """
        if not self._plan.config.expose_basket_models:
            raise UsageError("basket models lie outside the privacy claim: expose_basket_models is false")
        return self._baskets[basket_id].latest.model if basket_id in self._baskets else None

    @query
    def ledger_heads(self) -> tuple[str, ...]:
        """Hashes that the ledger must contain: its heads in the last answers to this actor."""
        released = "" if self._last.model is None else self._last.model.ledger_head
        return tuple(head for head in (self._charges.ledger_head, released) if head)

    @query
    def reports(self, now: float) -> dict[str, BasketReport]:
        """Counts and public facts of every basket; those of closed baskets under this actor's name."""
        self._secure.tick(now)
        reports = {basket_id: basket.report() for basket_id, basket in sorted(self._baskets.items())}
        return reports if self._closed is None else {basket_actor(self._slot): self._closed, **reports}

    @query
    def backlogs(self, now: float) -> tuple[Backlog, ...]:
        """What every basket has for its next aggregate."""
        able: frozenset[str] | None = None
        if self._plan.site_noise is not None:
            able = self._charges.able_to_send([c for b in self._baskets.values() for c in b.members], now)
        return tuple(basket.backlog(now, able) for _, basket in sorted(self._baskets.items()))

    @query
    def reputations(self) -> dict[str, ReputationReport]:
        """Trust of the members of every basket; empty if basket models are private."""
        if not self._plan.config.expose_basket_models:
            return {}
        return {basket_id: basket.reputation() for basket_id, basket in sorted(self._baskets.items())}

    def take_activity(self) -> ActivityReport:
        """Activity of clients and baskets since the last call."""
        return merged_activity([basket.take_activity() for _, basket in sorted(self._baskets.items())])

    def check_in(self) -> tuple[OrderNumber, dict[str, bytes]]:
        """The lowest order that this actor obeys, and its baskets' identity keys."""
        return self._number, self._secure.own_keys()

    def step_down(self) -> HostState:
        """The actor's state for a restarted directory; orders of the one before are refused from now on."""
        self._number = OrderNumber(self._number.life + 1)
        admissions, proofs = [], {}
        for basket_id, basket in sorted(self._baskets.items()):
            place = BasketPlace(basket_id, basket.domain_id, self._slot, basket.identity.public_bytes)
            admissions.append(Admission(place, basket.known_members()))
            proofs[basket_id] = basket.identity.sign(place.holding())
        chain = self._secure.chain
        return HostState(
            self._round_id,
            self._number,
            self._order,
            tuple(admissions),
            self._memories.all(),
            chain.kept,
            chain.endorsements(),
            proofs,
            self._signed_farewells(),
        )

    @query
    def statement(self) -> Statement:
        """The actor's statement for a driver that signs rosters."""
        return Statement(self._secure.own_keys(), self._signed_farewells(), self._secure.chain.kept)

    def _signed_farewells(self) -> dict[str, bytes]:
        """By each basket that has closed here and is still on the roster, its signature of that."""
        named = self._secure.chain.known()
        self._farewells = {b: sign for b, sign in self._farewells.items() if b in named}
        return dict(self._farewells)

    def _is_read_only(self, now: float) -> bool:
        """Whether the budget is spent; a renewal may not have been told here, so the accountant is asked."""
        self._read_only = self._read_only and self._charges.is_spent(now)
        return self._read_only

    def _overtaken(self, order: Order | None) -> Overtaken | None:
        """The refusal of a call whose operation is over; else note its operation as the current one."""
        if order is None:
            return None
        if order.number < self._number:
            return Overtaken(self._number)
        if self._order is None or order.operation_id != self._order.operation_id:
            self._migration.begin()
        self._number, self._order = order.number, order
        return None

    def _clip(self) -> None:
        self._aggregator = Layer1Aggregator(self._last.plan.config.layer1, blocks_of=self._blocks_of)
        for basket in self._baskets.values():
            basket.states.clip_norm = self._last.clip_norm

    def _open(self, place: BasketPlace) -> Basket:
        basket = Basket(
            place.basket_id,
            place.domain_id,
            self._plan,
            self._federation_id,
            self._noise,
            self._round_id,
            self._run,
            self._budget_period,
        )
        basket.states.clip_norm = self._last.clip_norm
        self._baskets[place.basket_id] = basket
        return basket
