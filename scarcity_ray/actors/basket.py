"""The basket actor: it holds a share of the federation's baskets, with their keys.

It calls the accountant and no other role, so no two roles ever wait for each other.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from scarcity_ray.actors.basket_keeper import BasketKeeper
from scarcity_ray.actors.charging import BasketCharges, charged_gossip
from scarcity_ray.actors.layer1_tasks import blocks_where_faster
from scarcity_ray.actors.messages import Admission, BasketPlace, Fault, Order, Overtaken, SlotState, closed
from scarcity_ray.actors.migration import ActorKey, MigrationDesk, SealedBox
from scarcity_ray.actors.names import basket_actor
from scarcity_ray.actors.recovery import HostState
from scarcity_ray.actors.secure_parties import Answers, PartyKnowledge, SecureParties
from scarcity_ray.actors.session_terms import LastRelease, SessionTerms
from scarcity_ray.actors.signed_facts import Occasion, SignedFacts
from scarcity_ray.actors.unattended_signing import Statement
from scarcity_ray.baskets import Receipt, Rejection
from scarcity_ray.baskets.basket import Basket, ReceiptScope
from scarcity_ray.baskets.buffer_room import BufferRoom
from scarcity_ray.baskets.client_memory import ClientMemories, ClientMemory
from scarcity_ray.baskets.journalled import BasketJournal
from scarcity_ray.baskets.local_state import Row
from scarcity_ray.baskets.receipt_book import ReceiptBook
from scarcity_ray.baskets.reports import (
    ActivityReport,
    Backlog,
    BasketReport,
    Layer1Outcome,
    Member,
    ReputationReport,
)
from scarcity_ray.baskets.reputation import merged_activity
from scarcity_ray.baskets.submission import SubmissionBatch
from scarcity_ray.baskets.unsaved import Unsaved
from scarcity_ray.directory.records import OrderNumber
from scarcity_ray.errors import ProtocolViolation, StorageError, UsageError
from scarcity_ray.layers.layer1 import Layer1Aggregator
from scarcity_ray.layers.models import BasketModel, GlobalMetaModel
from scarcity_ray.plan import BasketFacts, FederationPlan
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.robust import PluginRule
from scarcity_ray.robust.tensors.detection import own_gpu
from scarcity_ray.runtime.collector import collector_paused
from scarcity_ray.runtime.rpc import Compute, IdempotencyKey, Peers, Role, query
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
from scarcity_ray.storage.journal import JournalPlace, open_journal
from scarcity_ray.storage.sealing import Sealing, read_key
from scarcity_ray.storage.snapshots import Snapshots
from scarcity_ray.updates import read_rows
from scarcity_ray_client.receipts import SALT_BYTES, ReceiptBatch, ReceiptProof

logger = logging.getLogger("scarcity_ray")


@dataclass(frozen=True, eq=False)
class SubmissionResult:
    """The answer to a batch of updates: a receipt for each, in order, and baskets whose Layer 1 is due.

    Attributes:
        signed: With ``receipts: true``, each basket's signed receipts, for those accepted, in order.
        last_fault: The id of the last fault that the actor knows: what that took was accepted before this.
    """

    receipts: tuple[Receipt, ...]
    due: tuple[str, ...] = ()
    signed: Mapping[str, ReceiptBatch] = field(default_factory=dict)
    last_fault: str | None = None

    def with_signed(self) -> Iterator[Receipt]:
        """The receipts, each with the signed one, if there is one."""
        places = Counter[str]()
        for receipt in self.receipts:
            batch = self.signed.get(receipt.basket_id or "") if receipt.accepted else None
            if batch is None or receipt.basket_id is None:
                yield receipt
            else:
                place = places[receipt.basket_id]
                yield Receipt(True, None, receipt.basket_id, receipt.round_id, batch, place)
                places[receipt.basket_id] += 1


@dataclass(frozen=True)
class Regained:
    """What a restarted basket actor has from its journal.

    Attributes:
        updates: Accepted updates that wait for an aggregate.
        aggregates: Fresh aggregates.
        withdrawn: Updates of clients that left while it was dead, by client.
        dropped: Updates of baskets that closed while it was dead, by client.
        messages: Of gossip, that had not reached a client and are lost.
        set_aside: Where the journal of another run is, which this one does not continue; empty if there was
            none.
        is_new: Whether there was no journal that this run continues.
        may_lack: See `Journal.may_lack`.
    """

    updates: int = 0
    aggregates: int = 0
    withdrawn: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    messages: int = 0
    set_aside: str = ""
    is_new: bool = False
    may_lack: bool = False


class BasketHost(Role):
    """Several baskets as a role.

    With a journal, all that a call has changed is on the disk before the call is answered
    (`baskets.journalled`). What cannot be written is undone: the baskets are made again from the journal, as
    after a death, and the call fails; updates are refused as `not_stored`.

    Guarantees:
        an_acknowledged_update_outlives_the_actor: Killed between its acknowledgement and its aggregate.
        an_aggregate_outlives_the_actor_without_the_updates_in_it: Killed between aggregate and release.
        a_call_answered_before_a_death_is_answered_again: An update is not called a replay of itself.
        what_was_handed_in_is_settled_after_a_death: An aggregate that a session may have released is used
            again only if the accountant voids that session's charge.
        what_is_spent_is_on_the_disk_before_a_share_leaves
        what_cannot_be_stored_is_refused_and_undone

    Args:
        slot: Its number among the basket actors.
        state: What the directory knows of it, such as its members, if it is restarted.
        latest: The last release, if it is restarted.
        actors_key: Shared by all basket actors (`actors.migration`).
        run: The random number of the federation's opening, which clients sign their updates for.
        journal: Where its journal lies; None: it has none.
        kept: Where it keeps snapshots of its baskets, for what no journal has of an earlier life.

    Raises:
        StorageError: If there is a journal and it cannot be used.
        UsageError: If ``runtime.gpus_per_actor`` asks for a GPU and PyTorch finds none.
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
        journal: JournalPlace | None = None,
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
        uses_gpu = plan.config.runtime.gpus_per_actor > 0.0 and not isinstance(plan.rule, PluginRule)
        self._device = own_gpu() if uses_gpu else None
        self._baskets: dict[str, Basket] = {}
        self._charges = BasketCharges(slot, peers)
        self._last = LastRelease(plan, latest)
        self._book = ReceiptBook() if plan.config.receipts else None
        self._secure = SecureParties(plan, federation_id, self._baskets, noise, self._charges, self._last)
        self._migration = MigrationDesk(os.urandom(32) if actors_key is None else actors_key)
        self._closed: BasketReport | None = None
        self._farewells: dict[str, bytes] = {}
        state = state or SlotState((), (), OrderNumber())
        self._number = state.number
        self._order = state.order
        self._memories = ClientMemories(state.memories)
        self._room = BufferRoom(plan.config)
        self._faults = {fault.fault_id: fault for fault in state.faults}
        self._clip()
        self._journal: BasketJournal | None = None
        self._syncs_updates = True
        self._is_to_undo = False
        self.regained = Regained()
        if journal is not None:
            keeps_states = plan.gossip_share > 0.0 or not plan.config.layer2.enabled
            key = read_key(journal.key_path) if journal.key_path else None
            file = open_journal(journal, federation_id, slot, run)
            sealing = Sealing(key, f"scarcity_ray journal/{federation_id}/{slot}")
            self._journal = BasketJournal(file, keeps_states, sealing)
            self._syncs_updates = journal.syncs_updates
        try:
            if self._journal is not None:
                self.regained = self._regain(state, self._journal)
                self.regained = replace(
                    self.regained, set_aside=file.set_aside, is_new=file.is_new, may_lack=file.may_lack
                )
                if not (state.admissions or file.set_aside or self._journal.baskets()):
                    self.note_told()
            self.admit(state.admissions)
            self._keeper = BasketKeeper(kept, slot, has_journal=journal is not None)
            self._keeper.restore(self._baskets, () if self._journal is None else self._journal.baskets())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the journal, so that a successor in this process may open it."""
        if self._journal is not None:
            self._journal.close()

    @query
    def has_snapshot(self) -> bool:
        """Whether it was started with a snapshot of its baskets."""
        return self._keeper.has_found

    @query
    def what_was_regained(self) -> Regained:
        """What it has from its journal since it was started."""
        return self.regained

    def note_told(self) -> None:
        """Note that the user was told what was regained and what was not."""
        if self._journal is not None:
            self._journal.told()

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
                    self._keep("memory", member.client_id, None)
                basket.admit(member)
            basket.leave_out(self._charges.left_out)
        self._save()
        return {a.place.basket_id: self._baskets[a.place.basket_id].identity.public_bytes for a in admissions}

    def dismiss(self, basket_id: str, client_id: str, order: Order) -> ClientMemory | Overtaken | None:
        """Remove a client; what must be remembered of it, which is kept here too."""
        if (overtaken := self._overtaken(order)) is not None:
            return overtaken
        basket = self._baskets.get(basket_id)
        memory = basket.dismiss(client_id) if basket is not None else None
        if memory is not None:
            self._memories.note([replace(memory, slot=self._slot, number=order.number)])
            self._keep("memory", client_id, self._memories.get(client_id))
            self._save()
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
        opened = self._migration.put(self._baskets, basket_id, boxes, order.operation_id)
        self._room.recount()
        for client_id in self._migration.arrived:
            self._keep("arrived", client_id, order.operation_id)
        self._save()
        return opened

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
        if self._journal is not None:
            self._journal.forget(basket_id)
            self._keep("closed", "", self._closed)
            self._save()
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
            oldest = round_id - self._plan.config.buffer.max_staleness
            self._memories.forget_before(oldest, now)
            if self._book is not None:
                self._book.forget_before(round_id - self._plan.config.retention.receipt_rounds)
            if self._journal is not None:
                for client_id in self._journal.names("memory"):
                    if self._memories.get(client_id) is None:
                        self._keep("memory", client_id, None)
                for caller in self._journal.names("answer"):
                    if not self.remembers(caller):
                        self._keep("answer", caller, None)
                self._journal.forget_before(oldest)
                self._save()
            self._keeper.keep(self._baskets)
            if self._plan.config.retain_rounds:
                self._keeper.forget_rows_before(round_id - self._plan.config.retain_rounds)
        return None

    # Updates, Layer 1 and gossip.

    def submit(self, baskets: Sequence[str], batch: SubmissionBatch, now: float) -> SubmissionResult:
        """Judge a batch of updates, each for the basket at the same position.

        An update for a basket that is not here is answered as one of an unknown client, so that the driver
        locates the client again.
        """
        self._secure.tick(now)
        read_only = self._read_only and self._is_spent(now)
        receipts = []
        config = self._plan.config
        if batch.has_reports:
            batch = batch.with_reports_apart(config.vector_dim, list(config.meta_parameters))
        rows = read_rows(batch.rows, config.vector_dim)
        salts = os.urandom(SALT_BYTES * len(baskets)) if config.receipts else b""
        head = self._charges.ledger_head or self._last.ledger_head
        room = self._room.take(self._baskets.values(), len(baskets))
        for index, basket_id in enumerate(baskets):
            basket = self._baskets.get(basket_id)
            if basket is None:
                receipts.append(Receipt(False, Rejection.UNKNOWN_CLIENT, None, self._round_id))
            elif not room and not read_only:
                receipts.append(basket.refuse(Rejection.BUSY))
            else:
                salt = salts[index * SALT_BYTES : (index + 1) * SALT_BYTES]
                scope = ReceiptScope(salt, head) if salt else None
                receipts.append(basket.submit(batch[index], read_only, now, rows[index], scope))
                room -= receipts[-1].accepted
        here = sorted(set(baskets) & set(self._baskets))
        due = (b for b in here if self._baskets[b].due(now, submitting=True) is not None)
        signed = {}
        if config.receipts:
            signed = {b: told for b in here if (told := self._baskets[b].sign_receipts(head)) is not None}
        result = SubmissionResult(tuple(receipts), tuple(due), signed, next(reversed(self._faults), None))
        if self._journal is None:
            return result
        if self._call is not None:
            self._keep("answer", self._call.caller, (self._call.number, *_told(result)))
        try:
            self._save(sync=self._syncs_updates)
        except StorageError as failure:
            logger.error("%s refuses updates: %s", basket_actor(self._slot), failure)
            return SubmissionResult(tuple(map(self._not_stored, receipts)))
        return result

    def run_layer1(
        self, basket_ids: Sequence[str] | None, force: bool, now: float
    ) -> tuple[Layer1Outcome, ...]:
        """Layer 1 in the given baskets (all by default) that are due, or that have enough if forced."""
        self._secure.tick(now)
        if self._read_only and self._is_spent(now):
            return ()
        self.leave_out(now)
        chosen = sorted(self._baskets if basket_ids is None else set(basket_ids) & set(self._baskets))
        outcomes = tuple(self._baskets[b].layer1(self._aggregator, force, now) for b in chosen)
        self._keeper.retain(self._baskets, self._round_id)
        self._save()
        return outcomes

    def run_gossip(self, now: float, once: str = "") -> dict[str, int]:
        """One gossip round in every basket; delivered messages by basket. See `charged_gossip`.

        Args:
            now: Seconds since the epoch.
            once: A name of the caller's; the last run of this name is not done again, also after a restart
                of the whole federation.
        """
        self._secure.tick(now)
        if once and self._keeper.last_gossip.name == once:
            return dict(self._keeper.last_gossip.delivered)
        if self._plan.gossip_share == 0.0 or (self._read_only and self._is_spent(now)):
            return dict.fromkeys(sorted(self._baskets), 0)
        self.leave_out(now)
        sent = charged_gossip(self._baskets, self._plan.gossip, self._charges, self._round_id, now)
        self._read_only = self._charges.read_only_reason != ""
        self._save()
        self._keeper.keep_gossip(self._baskets, once, sent)
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
        """The public facts of each party that is here, for Layer 2's trigger; an earlier session is over."""
        self._secure.tick(now)
        self._secure.abandon()
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

    def mask(self, session_id: str, inboxes: Mapping[str, Inbox]) -> Answers[MaskedInput]:
        """Phase 3: each party's masked contribution; from here on its aggregate may be in the sum."""
        with self._saved_or_no_part():
            return self._secure.mask(session_id, inboxes)

    def confirm(
        self, session_id: str, parties: Sequence[str], survivors: tuple[str, ...]
    ) -> Answers[Confirmation]:
        """Phase 4: each party's signature on the survivors."""
        return self._secure.each(session_id, parties, lambda attempt, p: attempt.confirm(p, survivors))

    def unmask(
        self, session_id: str, parties: Sequence[str], confirmations: tuple[Confirmation, ...], now: float
    ) -> Answers[UnmaskShares]:
        """Phase 5: each party's shares, once the release is charged; from here on its aggregate is spent."""
        with self._saved_or_no_part():
            return self._secure.unmask(session_id, parties, confirmations, now)

    def contribute(self, terms: SessionTerms, parties: Sequence[str]) -> Answers[tuple[str, NDArray[Any]]]:
        """The unmasked contributions, if secure aggregation is off."""
        with self._saved_or_no_part():
            return self._secure.contribute(terms, parties)

    def end_session(self, session_id: str, spent: Sequence[str]) -> None:
        """Wipe a session's keys; `spent` are the parties whose aggregates may have been released."""
        self._secure.end(session_id, spent)
        self._save()

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
    def accepted_for(self, round_id: int) -> tuple[str, ...]:
        """Members of which an update for the round was accepted."""
        return tuple(c for _, basket in sorted(self._baskets.items()) for c in basket.accepted_for(round_id))

    @query
    def prove(self, receipts: Sequence[bytes]) -> tuple[ReceiptProof, ...]:
        """What is known here of updates, by the keys of their receipts, which only their clients know.

        Raises:
            UsageError: Without ``receipts: true``.
        """
        if self._book is None:
            raise UsageError("there are no receipts: configure receipts: true")
        fates = [next(filter(None, (b.fate_here(r) for b in self._baskets.values())), None) for r in receipts]
        return tuple(self._book.prove(r, fate) for r, fate in zip(receipts, fates, strict=True))

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

    def note_faults(self, faults: Sequence[Fault]) -> None:
        """Keep faults for a restarted directory, each once."""
        for fault in faults:
            self._faults.setdefault(fault.fault_id, fault)

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
            tuple(self._faults.values()),
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

    def _keep(self, kind: str, name: str, value: object) -> None:
        if self._journal is not None:
            self._journal.keep(kind, name, value)

    def _save(self, *, sync: bool = True) -> None:
        """Write what has changed to the journal, if there is one.

        Raises:
            StorageError: If it cannot be written; what has changed since the last time is undone.
        """
        if self._journal is None:
            return
        if self._is_to_undo:
            self._undo(self._journal)
            raise StorageError("the journal failed before, and what it lacked is undone now: call again")
        if self._book is not None:
            for name, settled in self._book.unsaved.items():
                self._keep("settled", name, settled)
            self._book.unsaved = {}
        try:
            self._journal.save(self._baskets.values(), sync=sync)
        except StorageError:
            self._undo(self._journal)
            raise

    @contextmanager
    def _saved_or_no_part(self) -> Iterator[None]:
        """What is answered to a session is in the journal before; else the actor takes no part in it."""
        yield
        try:
            self._save()
        except StorageError as failure:
            raise ProtocolViolation(f"{basket_actor(self._slot)}: {failure}") from failure

    def _not_stored(self, receipt: Receipt) -> Receipt:
        """The receipt for an update whose batch could not be written."""
        if not receipt.accepted:
            return receipt
        if receipt.basket_id is not None:
            self._baskets[receipt.basket_id].refuse(Rejection.NOT_STORED)
        return replace(receipt, accepted=False, reason=Rejection.NOT_STORED)

    def _regain(self, state: SlotState, journal: BasketJournal) -> Regained:
        """Make a dead actor's baskets again; who left them meanwhile is withdrawn and remembered."""
        closing = None if state.order is None else state.order.closing
        homes = {a.place.basket_id: a for a in state.admissions}
        if closing is not None and closing.slot == self._slot:
            movers = () if state.order is None else state.order.homes
            homes[closing.basket_id] = Admission(
                closing, tuple(Member(client_id, closing.domain_id) for client_id in movers)
            )
        self._memories.note(m for m in journal.kept("memory").values() if isinstance(m, ClientMemory))
        if state.order is not None:
            self._migration.arrived = _arrived(journal, state.order.operation_id)
        self._closed = journal.kept("closed").get("")
        if self._book is not None:
            self._book.restore(journal.kept("settled"))
        for caller, told in journal.kept("answer").items():
            number, *rest = told
            self.recall(IdempotencyKey(caller, number), _result(*rest))
        withdrawn, dropped, updates, aggregates, messages = Counter[str](), Counter[str](), 0, 0, 0
        for basket_id in journal.baskets():
            admission = homes.get(basket_id)
            counts = journal.counts(basket_id)
            place = BasketPlace(basket_id, "" if counts is None else counts.domain_id, self._slot)
            basket = self._open(place if admission is None else admission.place)
            clients = journal.restore(basket)
            if admission is None:
                dropped.update(basket.waiting())
                basket.drop()
                del self._baskets[basket_id]
                journal.forget(basket_id)
                continue
            members = {member.client_id for member in admission.members}
            for client_id in sorted(clients - members):
                withdrawn[client_id] += basket.waiting()[client_id]
                basket.admit(Member(client_id, basket.domain_id))
                memory = basket.dismiss(client_id)
                if memory is not None:
                    self._memories.note([replace(memory, slot=self._slot, number=state.number)])
                    self._keep("memory", client_id, self._memories.get(client_id))
            if closing is not None and basket_id == closing.basket_id:
                for member in admission.members:
                    basket.admit(member)
            messages += 0 if counts is None else counts.messages
            updates += basket.waiting().total()
            aggregates += basket.latest.fresh is not None
        self._secure.take_up()
        return Regained(updates, aggregates, dict(+withdrawn), dict(+dropped), messages)

    def _undo(self, journal: BasketJournal) -> None:
        """Make the baskets again as the journal has them, in the place of what could not be written.

        If it cannot be read either, that is done before anything else is written.
        """
        self._is_to_undo = True
        if self._book is not None:
            self._book.restore(journal.kept("settled"))
        for basket_id, failed in list(self._baskets.items()):
            basket = self._open(BasketPlace(basket_id, failed.domain_id, self._slot))
            basket.identity, basket.guard, basket.scope = failed.identity, failed.guard, failed.scope
            members = {**failed.members, **failed.left_out}
            for member in members.values():
                basket.admit(member)
            for client_id in journal.restore(basket) - members.keys():
                basket.take(client_id)
            basket.unsaved = Unsaved()
            basket.leave_out(failed.left_out)
        self._migration.arrived &= _arrived(journal, "" if self._order is None else self._order.operation_id)
        self._secure.take_up()
        self._is_to_undo = False

    def _is_spent(self, now: float) -> bool:
        """Whether the budget is spent still: a renewal may not have been told here."""
        self._read_only = self._charges.is_spent(now)
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
        self._aggregator = Layer1Aggregator(
            self._last.plan.config.layer1, blocks_of=self._blocks_of, device=self._device
        )
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
            self._book,
        )
        basket.states.clip_norm = self._last.clip_norm
        basket.unsaved = None if self._journal is None else Unsaved()
        self._baskets[place.basket_id] = basket
        return basket


def _arrived(journal: BasketJournal, operation_id: str) -> set[str]:
    """The clients whose state the journal has from this operation; it names earlier ones, too."""
    return {client_id for client_id, of in journal.kept("arrived").items() if of == operation_id}


def _told(result: SubmissionResult) -> tuple[Any, ...]:
    """A result in plain types, for the journal."""
    told = [
        (r.accepted, None if r.reason is None else str(r.reason), r.basket_id, r.round_id)
        for r in result.receipts
    ]
    same = told[0] if told and all(one == told[0] for one in told) else None
    return (len(told) if same else 0, same, () if same else tuple(told), result.due, dict(result.signed))


def _result(
    number: int,
    same: tuple[Any, ...] | None,
    told: Sequence[tuple[Any, ...]],
    due: Any,
    signed: Mapping[str, ReceiptBatch] | None = None,
) -> Any:
    """The result of which `_told` made this."""
    receipts = [
        Receipt(accepted, None if reason is None else Rejection(reason), basket_id, round_id)
        for accepted, reason, basket_id, round_id in ([same] * number if same else told)
    ]
    return SubmissionResult(tuple(receipts), tuple(due), signed or {})
