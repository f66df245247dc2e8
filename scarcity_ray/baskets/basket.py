"""One basket: its members, what they sent, their local states, and the latest aggregate of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest

import numpy as np

from scarcity_ray.baskets.client_memory import ClientMemory
from scarcity_ray.baskets.kept import BasketState
from scarcity_ray.baskets.latest_aggregate import LatestAggregate
from scarcity_ray.baskets.local_state import LocalStates, MetaReport, Row
from scarcity_ray.baskets.receipt_book import ReceiptBook, split
from scarcity_ray.baskets.reports import (
    NAMED,
    ActivityReport,
    Backlog,
    BasketReport,
    ClippingReport,
    Layer1Outcome,
    Member,
    ReputationReport,
)
from scarcity_ray.baskets.reputation import MISCONDUCT, Reputation, Reputations
from scarcity_ray.baskets.retained import RetainedAggregate, settings_of
from scarcity_ray.baskets.submission import Receipt, Submission, is_signed, message_as_sent, message_of
from scarcity_ray.baskets.unsaved import Accepted, BasketCounts, Unsaved
from scarcity_ray.baskets.update_buffer import BasketBuffer, ClientUpdates, JudgedUpdate, ReplayKey
from scarcity_ray.config import AggregationMethod
from scarcity_ray.directory.records import FIRST_TRUST
from scarcity_ray.errors import RuleFailed
from scarcity_ray.gossip import GossipMigration, GossipProtocol
from scarcity_ray.layers.layer1 import Layer1Aggregator, Layer1Input
from scarcity_ray.layers.meta_parameters import encode_report
from scarcity_ray.layers.models import BasketModel
from scarcity_ray.layers.triggers import TriggerReason, basket_due
from scarcity_ray.plan import BasketFacts, FederationPlan
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.secagg import IdentityKeyPair, SessionGuard
from scarcity_ray.updates import FloatRow, Rejection, SigningScope, read_row
from scarcity_ray_client.receipts import CountedRoot, Fate, ReceiptBatch, ReceiptStatement, row_commitment


@dataclass(frozen=True, eq=False)
class ClientMigration:
    """The state that a client takes along to another basket.

    Attributes:
        updates: Its buffered updates, and the keys of all accepted ones.
        meta: Its report of meta-parameters that is in no aggregate yet.
        momentum: Of its noised rows; None without any.
        reputation: None if it has the trust of a new client.
    """

    client_id: str
    updates: ClientUpdates
    gossip: GossipMigration
    local_state: Row | None
    meta: MetaReport | None
    reputation: Reputation | None
    momentum: Row | None = None


@dataclass(frozen=True)
class ReceiptScope:
    """What an update's receipt says beside the update: a salt (32 bytes) and the ledger's head."""

    salt: bytes
    ledger_head: str


class Basket:
    """A basket as a plain object; `actors.basket.BasketHost` holds several of them in one actor.

    Attributes:
        identity: Its key in secure aggregation.
        guard: Refuses sessions that repeat.
        members: Its clients by id.
        left_out: Clients that are at ceilings of their own: they belong here, and count nowhere.
        scope: The federation, its run and the budget period that clients sign their updates for.
        unsaved: Changes for the basket's journal; None where there is none.
        retained: With ``retain_rounds``, aggregates of which nothing is stored yet.
    """

    def __init__(
        self,
        basket_id: str,
        domain_id: str,
        plan: FederationPlan,
        federation_id: str,
        noise: NoiseSource,
        round_id: int,
        run: int = 0,
        budget_period: int = 0,
        book: ReceiptBook | None = None,
    ) -> None:
        config = plan.config
        self.basket_id = basket_id
        self.domain_id = domain_id
        self.identity = IdentityKeyPair.generate()
        self.guard = SessionGuard(federation_id)
        self.members: dict[str, Member] = {}
        self.left_out: dict[str, Member] = {}
        self._plan = plan
        self._noise = noise
        self.scope = SigningScope(federation_id, budget_period, run)
        waiting = config.buffer
        if plan.person_clip_norm is not None and plan.site_noise is None:
            # Of two updates of one content a round takes one: whether both count would follow from the data.
            waiting = replace(waiting, participation_cap=1)
        self._buffer = BasketBuffer(waiting, config.vector_dim, basket_id, round_id=round_id)
        self._gossip = GossipProtocol(
            config.gossip, plan.gossip, basket_id=basket_id, noise=noise, seed=config.seed
        )
        self.states = LocalStates(config, self._buffer)
        self.latest = LatestAggregate(self._settle_model)
        self._book = book
        self._issued: list[tuple[JudgedUpdate, bytes]] = []
        self._last_layer1: float | None = None
        self._sessions_refused = 0
        self._reputations = Reputations(by_agreement=config.expose_basket_models)
        self._last_active: float | None = None
        self._clipping: ClippingReport | None = None
        self._rule_failures = 0
        self._failure = ""
        self.unsaved: Unsaved | None = None
        self.retained: list[RetainedAggregate] = []

    def admit(self, member: Member) -> None:
        """Add a client with its memory, or update a member."""
        here = self.left_out if member.client_id in self.left_out else self.members
        here[member.client_id] = replace(member, memory=None)
        offences = {} if member.memory is None else member.memory.offences
        self._reputations.admit(member.client_id, member.trust, offences)
        if self.unsaved is not None and member.trust != FIRST_TRUST:
            self.unsaved.clients.add(member.client_id)
        if member.memory is not None:
            remembered = ClientUpdates(member.client_id, (), member.memory.accepted)
            self._buffer.put_client(remembered)
            if self.unsaved is not None:
                self.unsaved.arrived.append(remembered)
                self.unsaved.clients.add(member.client_id)
            self._gossip.put_client(GossipMigration(member.client_id, member.memory.gossip, None))

    def known_members(self) -> tuple[Member, ...]:
        """The members, sorted, each with its current trust."""
        trust = self._reputations.trust
        everybody = {**self.members, **self.left_out}
        return tuple(replace(member, trust=trust(c)) for c, member in sorted(everybody.items()))

    def leave_out(self, client_ids: Collection[str]) -> None:
        """Count the members among these clients, who are at ceilings of their own, no longer.

        No further release is charged to them. So what they have buffered is withdrawn, and a fresh aggregate
        that contains one of them is discarded. Where releases cost nothing, a row was charged as it was sent,
        and a member stays until all its rows are in an aggregate.
        """
        is_charged_later = self._plan.reserved.mu_release > 0.0
        waiting = () if is_charged_later else self._buffer.clients()
        for client_id in sorted(self.members.keys() & set(client_ids) - set(waiting)):
            self.left_out[client_id] = self.members.pop(client_id)
            if is_charged_later:
                self._settle(self._buffer.receipts(client_id), Fate.WITHDRAWN)
                self._buffer.withdraw(client_id)
                if self.unsaved is not None:
                    self.unsaved.gone.add(client_id)
            self.states.forget(client_id)
        # Whoever is no member any more may be in it, too, where it came back with a journal.
        for client_id in client_ids if is_charged_later else ():
            self.latest.discard_if_of(client_id)

    def dismiss(self, client_id: str) -> ClientMemory | None:
        """Remove a client; what must be remembered of it, or None if it is no member.

        Its buffered updates are withdrawn. A fresh aggregate that contains it is discarded, since the client
        may be in another one by the next release.
        """
        member = self.members.pop(client_id, None) or self.left_out.pop(client_id, None)
        if member is None:
            return None
        self._settle(self._buffer.receipts(client_id), Fate.WITHDRAWN)
        self._buffer.withdraw(client_id)
        self.latest.discard_if_of(client_id)
        self.states.forget(client_id)
        reputation = self._reputations.take(client_id) or Reputation()
        if self.unsaved is not None:
            self.unsaved.gone.add(client_id)
        return ClientMemory(
            client_id,
            trust=reputation.trust,
            offences=reputation.offences,
            accepted=self._buffer.take_client(client_id).accepted,
            gossip=self._gossip.take_client(client_id).state.without_vectors(),
        )

    def take(self, client_id: str) -> ClientMigration:
        """Remove a client that moves, with its state; a fresh aggregate that contains it is discarded."""
        self.members.pop(client_id, None)
        self.left_out.pop(client_id, None)
        self.latest.discard_if_of(client_id)
        state, meta, momentum = self.states.take(client_id)
        return ClientMigration(
            client_id,
            self._buffer.take_client(client_id),
            self._gossip.take_client(client_id),
            state,
            meta,
            self._reputations.take(client_id),
            momentum,
        )

    def put(self, moved: ClientMigration) -> None:
        """Add the state of a member that moved here."""
        self._buffer.put_client(moved.updates)
        self._gossip.put_client(moved.gossip)
        self.states.put(moved.client_id, moved.local_state, moved.meta, moved.momentum)
        if moved.reputation is not None:
            self._reputations.put(moved.client_id, moved.reputation)
        if self.unsaved is not None:
            self.unsaved.arrived.append(moved.updates)
            self.unsaved.clients.add(moved.client_id)

    def carried(self, client_id: str) -> ClientMigration:
        """What a client would take along, but for its updates; it stays."""
        return ClientMigration(
            client_id,
            ClientUpdates(client_id, (), ()),
            self._gossip.state_of(client_id),
            self.states.get(client_id),
            self.states.report_of(client_id),
            self._reputations.get(client_id),
            self.states.momentum(client_id),
        )

    def kept(self) -> BasketState:
        """What a snapshot keeps; nothing changes here.

        Updates that wait are lost where no journal has them, so their keys are not kept: clients may send
        them again.
        """
        buffer, latest, clients = self._buffer, self.latest, []
        has_states = self._plan.gossip_share > 0.0 or not self._plan.config.layer2.enabled
        for client_id in sorted({**self.members, **self.left_out}):
            lost = buffer.waiting_keys(client_id)
            accepted = tuple(k for k in buffer.keys_of(client_id) if (k.round_id, k.digest) not in lost)
            carried = replace(self.carried(client_id), meta=None)
            if not has_states:
                carried = replace(carried, local_state=None)
            clients.append(replace(carried, updates=ClientUpdates(client_id, (), accepted)))
        return BasketState(
            tuple(clients),
            self._gossip.kept(),
            latest.model,
            latest.made,
            latest.superseded,
            latest.discarded,
            self._rule_failures,
            self._last_layer1,
            self._clipping,
        )

    def restore(self, state: BasketState) -> None:
        """Take over what belongs to the basket as a whole, where no journal has it."""
        self.latest.show(state.model, state.made, state.superseded, state.discarded)
        self._rule_failures, self._last_layer1 = state.rule_failures, state.last_layer1
        self._clipping = state.clipping

    @property
    def gossip(self) -> GossipProtocol:
        """Its gossip, of which the journal has the clients' states alone."""
        return self._gossip

    def submit(
        self,
        submission: Submission,
        read_only: bool,
        now: float,
        row: FloatRow | Rejection | None = None,
        receipt: ReceiptScope | None = None,
    ) -> Receipt:
        """Judge one update; an accepted one is buffered and becomes the client's local state.

        One of an unknown client is not counted here: the driver first looks up whether the client moved.

        Args:
            row: The result of `read_row` on the update, if the caller has it.
            receipt: With receipts, what goes into the one for it; `sign_receipts` signs it.
        """
        member = self.members.get(submission.client_id)
        round_id = self._buffer.round_id if submission.round_id is None else submission.round_id
        number = int(round_id) if isinstance(round_id, int | np.integer) else -1
        judged: JudgedUpdate | Rejection
        if submission.client_id in self.left_out:
            judged = Rejection.AT_CEILING
        elif member is None:
            return Receipt(False, Rejection.UNKNOWN_CLIENT, None, number)
        else:
            judged = Rejection.READ_ONLY if read_only else self._judge(member, submission, row)
        if isinstance(judged, Rejection):
            self._buffer.rejections[judged] += 1
            return Receipt(False, judged, self.basket_id, number)
        meta = submission.meta
        report = None if meta is None else encode_report(meta, self._plan.config.meta_parameters)
        if receipt is not None:
            judged = replace(judged, receipt=self._statement(judged, receipt).key)
            self._issued.append((judged, receipt.salt))
        self.accept(Accepted(judged, report, now))
        if self.unsaved is not None:
            self.unsaved.accepted.append(Accepted(judged, report, now))
        return Receipt(True, None, self.basket_id, number)

    def sign_receipts(self, ledger_head: str) -> ReceiptBatch | None:
        """The receipts for all that was accepted since the last call, in order; None for nothing."""
        issued, self._issued = self._issued, []
        if not issued:
            return None
        batch = ReceiptBatch(
            self._receipt_scope(ledger_head),
            tuple(judged.round_id for judged, _ in issued),
            tuple(judged.client_id for judged, _ in issued),
            b"".join(salt for _, salt in issued),
            b"".join(judged.digest for judged, _ in issued),
        )
        return batch.signed(self.identity, [judged.receipt for judged, _ in issued])

    def counted_root(self, session_id: str, round_id: int) -> CountedRoot | None:
        """What is published with a release of the fresh aggregate; None without one or without receipts."""
        fresh = self.latest.fresh
        if self._book is None or fresh is None:
            return None
        federation_id, run = self.scope.federation_id, self.scope.run
        root = self._book.root_of(fresh)
        return CountedRoot(
            federation_id, run, self.basket_id, session_id, round_id, root, manifest=fresh.manifest
        ).signed(self.identity)

    def fate_here(self, receipt: bytes) -> Fate | None:
        """Whether the update waits, or is in the latest aggregate."""
        if receipt in self._buffer.receipts():
            return Fate.WAITING
        model, latest = self.latest.model, self.latest
        is_fresh = model is not None and (latest.fresh is not None or latest.handed_in_for != "")
        return (
            Fate.AGGREGATED if model is not None and is_fresh and receipt in split(model.receipts) else None
        )

    def drop(self) -> None:
        """Note that what waits here, and the fresh aggregate, are dropped with the basket."""
        self._settle(self._buffer.receipts(), Fate.DROPPED)
        if self.latest.fresh is not None:
            self._settle_model(self.latest.fresh, Fate.DROPPED)

    def _receipt_scope(self, ledger_head: str) -> tuple[str, int, str, str]:
        return self.scope.federation_id, self.scope.run, self.basket_id, ledger_head

    def _statement(self, judged: JudgedUpdate, receipt: ReceiptScope) -> ReceiptStatement:
        federation_id, run, basket_id, ledger_head = self._receipt_scope(receipt.ledger_head)
        commitment = row_commitment(receipt.salt, judged.digest)
        return ReceiptStatement(
            federation_id, run, judged.round_id, judged.client_id, basket_id, ledger_head, commitment
        )

    def _settle(self, receipts: Sequence[bytes], fate: Fate) -> None:
        if self._book is not None:
            self._book.settle(b"".join(receipts), fate, self._buffer.round_id)

    def _settle_model(self, model: BasketModel, fate: Fate) -> None:
        if self._book is not None:
            self._book.settle_model(model, fate, self._buffer.round_id)

    def accepted_for(self, round_id: int) -> tuple[str, ...]:
        """Members of which an update for the round was accepted, sorted."""
        keys_of = self._buffer.keys_of
        return tuple(c for c in sorted(self.members) if any(k.round_id == round_id for k in keys_of(c)))

    def accept(self, accepted: Accepted) -> None:
        """Buffer an update that was judged, and make it its client's local state."""
        judged, report, time = accepted
        self._buffer.accept(judged, now=time)
        self.states.form(judged.client_id, report)
        self._reputations.accept(judged.client_id, time)
        self._last_active = time

    def waiting(self) -> Counter[str]:
        """How many buffered updates each client has."""
        return Counter({c: len(self._buffer.examples(c)) for c in self._buffer.clients()})

    @property
    def num_buffered(self) -> int:
        """How many updates wait."""
        return self._buffer.num_updates

    def refuse(self, reason: Rejection) -> Receipt:
        """Count an update that its actor refuses: there is no room, or the journal cannot be written."""
        self._buffer.rejections[reason] += 1
        return Receipt(False, reason, self.basket_id, self.round_id)

    def remember(self, key: ReplayKey) -> None:
        """Note an update that was accepted before and waits no more."""
        self._buffer.put_client(ClientUpdates(key.client_id, (), (key,)))

    @property
    def round_id(self) -> int:
        """The round that it is in."""
        return self._buffer.round_id

    def forms_anew(self, client_id: str, round_id: int) -> bool:
        """Whether a client's local state of `round_id` was formed again from its updates since."""
        is_later = self._plan.config.layer2.enabled and round_id < self._buffer.round_id
        return is_later and client_id in self._buffer.clients()

    def counts(self, number: int) -> BasketCounts:
        """The counts for its journal, whose last batch has the `number`."""
        return BasketCounts(
            number,
            self.domain_id,
            dict(self._buffer.counts),
            {str(reason): count for reason, count in self._buffer.rejections.items()},
            self.latest.made,
            self.latest.superseded,
            self.latest.discarded,
            self._last_layer1,
            self._rule_failures,
            self._sessions_refused,
            self._gossip.get_stats()["pending"],
        )

    def settle(self, counts: BasketCounts | None, since: Mapping[str, int]) -> None:
        """End the making again of a basket from its journal.

        Args:
            counts: Its last ones there, if any.
            since: Updates accepted after these.
        """
        buffer, latest = self._buffer, self.latest
        buffer.advance_round(buffer.round_id)
        buffer.counts = Counter(since)
        self.take_activity()
        if counts is None:
            return
        buffer.counts += Counter(counts.updates)
        buffer.rejections = Counter({Rejection(why): n for why, n in counts.rejections.items()})
        latest.made, latest.superseded, latest.discarded = counts.made, counts.superseded, counts.discarded
        self._last_layer1 = counts.last_layer1
        self._rule_failures, self._sessions_refused = counts.rule_failures, counts.sessions_refused

    def local_state(self, client_id: str) -> Row | None:
        """A copy of a member's local state; None before its first update."""
        state = self.states.get(client_id) if client_id in self.members else None
        return None if state is None else state.copy()

    def backlog(self, now: float, able: frozenset[str] | None = None) -> Backlog:
        """What the basket has for its next aggregate, and which members are missing.

        Args:
            able: Clients whose budget has room for another row; None where rows cost nothing.
        """
        senders = set(self._buffer.clients())
        return Backlog(
            basket_id=self.basket_id,
            domain_id=self.domain_id,
            num_members=len(self.members),
            num_senders=len(senders),
            absent=tuple(nsmallest(NAMED, self.members.keys() - senders)),
            staleness=self._buffer.oldest_staleness(),
            seconds=self._waiting_seconds(now),
            fresh=self.latest.fresh is not None,
            failure=self._failure,
            num_left_out=len(self.left_out),
            left_out=tuple(nsmallest(NAMED, self.left_out)),
            num_able=None if able is None else len(senders | (self.members.keys() & able)),
        )

    def _waiting_seconds(self, now: float) -> float:
        """Seconds since it last aggregated, or else since its first update; a clock may be set back."""
        since = self._buffer.oldest_timestamp() if self._last_layer1 is None else self._last_layer1
        return 0.0 if since is None else abs(now - since)

    def due(self, now: float, *, submitting: bool = False) -> TriggerReason | None:
        """What makes Layer 1 due, or None; `submitting` says that the round's gossip is still to come."""
        return basket_due(
            self._plan.config.buffer,
            self._buffer.num_clients,
            self._waiting_seconds(now),
            n_active=len(self.members),
            least=self._plan.least_rows(len(self.members)),
            oldest_staleness=self._buffer.oldest_staleness(),
            gossip_to_come=submitting and self._plan.waits_for_gossip,
        )

    def layer1(self, aggregator: Layer1Aggregator, force: bool, now: float) -> Layer1Outcome:
        """Aggregate the local states of the clients with buffered updates, if it is due or forced."""
        clients = self._buffer.clients()
        members = len(self.members)
        least = self._plan.least_rows(members)
        reason = "forced" if force else self.due(now)
        if len(clients) < least or reason is None:
            waits = f"{len(clients)} of {members} members have updates, the rule needs {least}"
            return Layer1Outcome(self.basket_id, False, waits, len(clients), least)
        given = Layer1Input(
            self.states.rows(clients),
            self._weights(clients),
            clients,
            members,
            self.states.raw_norms(clients),
            self.states.mean_meta(clients),
            self._num_persons(clients),
            basket_id=self.basket_id,
            round_id=self._buffer.round_id,
            timestamp=now,
        )
        seed = aggregator.seed(self._noise, f"{self.basket_id}/{self.latest.made + self._rule_failures}")
        exposed = self._plan.config.expose_basket_models
        try:
            model = aggregator.aggregate_basket(given, seed=seed, report=exposed)
        except RuleFailed as failed:
            self._rule_failures += 1
            if self.unsaved is not None:
                self.unsaved.has_counted = True
            said = str(failed) if exposed else str(RuleFailed(failed.rule, failed.why))
            self._failure = f"{self.basket_id}: {said}"
            return Layer1Outcome(
                self.basket_id, False, self._failure, len(clients), least, failure=self._failure
            )
        self._failure = ""
        self._reputations.agree({c: place.agreement for c, place in model.placings.items()})
        if self._plan.config.retain_rounds:
            self.retained.append(self._retain(model, aggregator, seed))
            model = replace(model, manifest=self.retained[-1].digest)
        self.states.keep_momenta(clients)
        model = replace(model, receipts=b"".join(sorted(self._buffer.receipts())))
        self._buffer.pop()
        self._clipping = self.states.clipping(clients)
        self.states.forget_reports(clients)
        self.latest.replace(model, clients)
        self._last_layer1 = self._last_active = now
        if self.unsaved is not None:
            self.unsaved.has_consumed = True
            self.unsaved.clients.update(clients)
        return Layer1Outcome(self.basket_id, True, str(reason), len(clients), least, self._clipping)

    def _retain(self, model: BasketModel, aggregator: Layer1Aggregator, seed: int) -> RetainedAggregate:
        """What the rule ran on, which is about to leave the buffer."""
        clients = self._buffer.clients()
        momenta = {c: row for c in clients if (row := self.states.momentum(c)) is not None}
        return RetainedAggregate(
            self.scope.federation_id,
            self.scope.run,
            self.basket_id,
            self.latest.made + 1,
            model.round_id,
            settings_of(self._plan.config, aggregator.config.clip_norm),
            model.n_members,
            model.num_byzantine,
            seed,
            clients,
            self._buffer.updates(),
            momenta,
            tuple(row.copy() for row in self.states.rows(clients)),
            None if (weights := self._weights(clients)) is None else tuple(map(float, weights)),
            model.aggregate,
        ).with_manifest()

    def count_refused_session(self) -> None:
        """Count a session that this basket did not join."""
        self._sessions_refused += 1

    def gossip_begin(self, round_id: int, now: float) -> tuple[str, ...]:
        """Clients whose drift test must be charged before it is made."""
        ids = self.states.ids()
        states, norms = self.states.rows(ids), self.states.lengths(ids)
        return self._gossip.begin(ids, states, round_id, now, num_members=len(self.members), norms=norms)

    def gossip_test(self, allowed: Sequence[str]) -> tuple[str, ...]:
        """Clients that want to push, whose vector must be charged before it is noised."""
        return self._gossip.test_drift(allowed)

    def gossip_exchange(self, allowed: Sequence[str], now: float) -> int:
        """Noise, deliver and mix; the number of delivered messages."""
        states = self.states.rows_to_mix(self.states.ids())
        delivered = self._gossip.exchange(allowed, self.members, now, out=states).delivered
        if delivered:
            self._last_active = now
        if self.unsaved is not None:
            self.unsaved.clients.update(self.states.ids())
        return delivered

    def advance_round(self, round_id: int) -> None:
        """Move to a later round."""
        self._buffer.advance_round(round_id)
        self._gossip.advance_round(round_id)
        self.states.age()

    def facts(self) -> BasketFacts:
        """What is public about its part in a release made now."""
        model, members = self.latest.fresh, len(self.members)
        if model is None:
            return BasketFacts(self.basket_id, self.domain_id, members)
        return model.facts(self.domain_id, members)

    def report(self) -> BasketReport:
        """Counts and public facts."""
        gossip = self._gossip.get_stats()
        return BasketReport(
            facts=self.facts(),
            num_buffered=self._buffer.num_updates,
            least_rows=self._plan.least_rows(len(self.members)),
            rejections={str(why): count for why in Rejection if (count := self._buffer.rejections[why])},
            withdrawn=self._buffer.counts["withdrawn"],
            layer1_aggregations=self.latest.made,
            superseded=self.latest.superseded,
            discarded=self.latest.discarded,
            messages_delivered=gossip["delivered"],
            sessions_refused=self._sessions_refused,
            rule_failures=self._rule_failures,
            gossip=gossip,
        )

    def take_activity(self) -> ActivityReport:
        """Activity of clients and basket since the last call."""
        baskets = {self.basket_id: self._last_active} if self._last_active is not None else {}
        self._last_active = None
        return ActivityReport(self._reputations.tell(), baskets)

    def reputation(self) -> ReputationReport:
        """Trust of the members, and outliers of the latest aggregate."""
        placings = {} if self.latest.model is None else self.latest.model.placings
        trust = [self._reputations.trust(client_id) for client_id in self.members] or [FIRST_TRUST]
        return ReputationReport(
            sum(trust) / len(trust),
            min(trust),
            tuple(sorted(client for client, place in placings.items() if place.agreement == 0.0)),
            self._clipping,
        )

    def _judge(
        self, member: Member, submission: Submission, row: FloatRow | Rejection | None
    ) -> JudgedUpdate | Rejection:
        """The update if it can be accepted now, or why not.

        A client with a key must have signed it. A malformed update lowers a client's trust only if the client
        has signed it: anybody could send one in the client's name.
        """
        buffer, meta = self._buffer, submission.meta
        if row is None:
            row = read_row(submission.update, self._plan.config.vector_dim)
        judged = buffer.judge(
            member.client_id,
            row,
            submission.round_id,
            sequence=submission.sequence,
            num_examples=submission.num_examples,
        )
        if isinstance(judged, Rejection):
            if judged in MISCONDUCT and member.public_key is not None and submission.signature is not None:
                self._hold_against(member.public_key, submission)
            return judged
        if member.public_key is not None:
            message = message_of(judged, meta, self.scope, is_joined=submission.is_joined)
            if not is_signed(member.public_key, message, submission.signature):
                return Rejection.BAD_SIGNATURE
        if self._plan.person_clip_norm is not None:
            # Kept with the update: what is registered later says nothing of the persons behind this one.
            judged = replace(judged, num_examples=_count_of(member, judged.num_examples))
            if not self._plan.has_enough_persons(judged.num_examples):
                return Rejection.TOO_FEW_PERSONS
        return buffer.refusal(judged) or judged

    def _hold_against(self, public_key: bytes, submission: Submission) -> None:
        """Lower the client's trust if it has signed this malformed update for an open round."""
        asked = submission.round_id
        round_id = self._buffer.round_id if asked is None else asked
        if not isinstance(round_id, int | np.integer) or not self._buffer.is_open(int(round_id)):
            return
        message = message_as_sent(submission, int(round_id), self.scope)
        if message is not None and is_signed(public_key, message, submission.signature):
            settings = self._plan.config.buffer
            if self.unsaved is not None:
                self.unsaved.clients.add(submission.client_id)
            self._reputations.offend(
                submission.client_id,
                int(round_id),
                message,
                since=self._buffer.round_id - settings.max_staleness,
                most=settings.participation_cap,
            )

    def _weights(self, clients: Sequence[str]) -> list[float] | None:
        """The clients' weights by their numbers of examples; None for rules without weights."""
        if self._plan.config.layer1.aggregation_method is not AggregationMethod.WEIGHTED:
            return None
        told = (self._buffer.num_examples(client) for client in clients)
        return [
            self._plan.row_weight(self.members[client].num_examples if number is None else number)
            for client, number in zip(clients, told, strict=True)
        ]

    def _num_persons(self, clients: Sequence[str]) -> list[int] | None:
        """Persons behind each client's row, the fewest of its updates; None where the client is the unit."""
        if self._plan.person_clip_norm is None:
            return None
        return [min(number or 1 for number in self._buffer.examples(client)) for client in clients]


def _count_of(member: Member, stated: int | None) -> int | None:
    """Persons behind an update, which a client with a key must have signed: else others could say for it."""
    return member.num_examples if stated is None and member.public_key is None else stated
