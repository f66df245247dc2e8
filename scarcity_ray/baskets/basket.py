"""One basket: its members, what they sent, their local states, and the latest aggregate of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest

import numpy as np

from scarcity_ray.baskets import (
    ClientUpdates,
    JudgedUpdate,
    Receipt,
    Rejection,
    UpdateBuffer,
    basket_due,
)
from scarcity_ray.baskets.client_memory import ClientMemory
from scarcity_ray.baskets.latest_aggregate import LatestAggregate
from scarcity_ray.baskets.local_state import LocalStates, Row, StateCarry
from scarcity_ray.baskets.reports import (
    ActivityReport,
    BasketReport,
    ClippingReport,
    ConductReport,
    Layer1Outcome,
    Member,
)
from scarcity_ray.baskets.reputation import MISCONDUCT, Standing, Standings
from scarcity_ray.baskets.submission import Submission, is_signed, message_as_sent, message_of
from scarcity_ray.baskets.waiting import NAMED, Backlog
from scarcity_ray.config import AggregationMethod
from scarcity_ray.directory.trust import FIRST_TRUST
from scarcity_ray.gossip import GossipCarry, GossipProtocol
from scarcity_ray.layers.layer1 import Layer1Aggregator
from scarcity_ray.layers.meta_parameters import encode_report
from scarcity_ray.plan import BasketFacts, FederationPlan
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.secagg import IdentityKeyPair, SessionGuard
from scarcity_ray.updates import FloatRow, SigningScope, read_row


@dataclass(frozen=True, eq=False)
class MemberCarry:
    """All that goes with a client to another basket."""

    client_id: str
    updates: ClientUpdates
    gossip: GossipCarry
    state: StateCarry
    standing: Standing | None


class Basket:
    """A basket as a plain object; `actors.basket_host.BasketHost` holds several of them in one actor.

    Args:
        basket_id: Its id.
        domain_id: Its domain.
        plan: The federation's numbers.
        federation_id: The federation.
        noise: Where gossip's noise comes from.
        round_id: Current round.
        run: Random, of the federation as it was begun: updates are signed for it.
        budget_period: Updates are signed for it.

    Attributes:
        identity: Its key in secure aggregation.
        guard: Against sessions that repeat.
        members: Its clients by id.
        states: Their local states.
        latest: Its latest aggregate.
        scope: What its clients' signatures are for.
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
    ) -> None:
        config = plan.config
        self.basket_id = basket_id
        self.domain_id = domain_id
        self.identity = IdentityKeyPair.generate()
        self.guard = SessionGuard(federation_id)
        self.members: dict[str, Member] = {}
        self._plan = plan
        self._noise = noise
        self.scope = SigningScope(federation_id, budget_period, run)
        self._buffer = UpdateBuffer(config.buffer, config.vector_dim, round_id=round_id)
        self._gossip = GossipProtocol(
            config.gossip, plan.gossip, basket_id=basket_id, noise=noise, seed=config.seed
        )
        self.states = LocalStates(config, basket_id, self._buffer)
        self.latest = LatestAggregate()
        self._last_layer1: float | None = None
        self._withdrawn = 0
        self._messages_delivered = 0
        self._sessions_refused = 0
        self._standings = Standings(by_agreement=config.expose_basket_models)
        self._last_active: float | None = None
        self._clipping: ClippingReport | None = None

    def admit(self, member: Member) -> None:
        """Take in a client with what is remembered of it, or what is new about one that is here."""
        self.members[member.client_id] = replace(member, memory=None)
        offences = {} if member.memory is None else member.memory.offences
        self._standings.admit(member.client_id, member.trust, offences)
        if member.memory is not None:
            accepted = ClientUpdates(member.client_id, (), member.memory.accepted)
            self._buffer.put_client(accepted, self.basket_id)
            self._gossip.put_client(GossipCarry(member.client_id, member.memory.gossip, None))

    def known_members(self) -> tuple[Member, ...]:
        """The members, sorted, each with the trust that it has here."""
        trust = self._standings.trust
        return tuple(replace(member, trust=trust(c)) for c, member in sorted(self.members.items()))

    def dismiss(self, client_id: str) -> ClientMemory | None:
        """Let a client go; what must be remembered of it, or None if it is not here.

        Its buffered updates are withdrawn, counted, and a fresh aggregate that holds it is discarded: it may
        be in another by the time of the next release.
        """
        if self.members.pop(client_id, None) is None:
            return None
        self._withdrawn += self._buffer.withdraw(client_id)
        self.latest.discard_if_of(client_id)
        self.states.take(client_id)
        standing = self._standings.take(client_id) or Standing()
        accepted = self._buffer.take_client(client_id).accepted
        gossip = self._gossip.take_client(client_id).record.without_vectors()
        return ClientMemory(
            client_id, trust=standing.trust, offences=standing.offences, accepted=accepted, gossip=gossip
        )

    def take(self, client_id: str) -> MemberCarry:
        """Hand over a client that moves; a fresh aggregate that holds it is discarded."""
        self.members.pop(client_id, None)
        self.latest.discard_if_of(client_id)
        return MemberCarry(
            client_id,
            self._buffer.take_client(client_id),
            self._gossip.take_client(client_id),
            self.states.take(client_id),
            self._standings.take(client_id),
        )

    def put(self, carry: MemberCarry) -> None:
        """Take over what belongs to a member that moved here."""
        self._buffer.put_client(carry.updates, self.basket_id)
        self._gossip.put_client(carry.gossip)
        self.states.put(carry.client_id, carry.state)
        if carry.standing is not None:
            self._standings.put(carry.client_id, carry.standing)

    def submit(
        self, submission: Submission, read_only: bool, now: float, row: FloatRow | Rejection | None = None
    ) -> Receipt:
        """Judge one update; an accepted one is buffered and becomes the client's local state.

        One of an unknown client is not counted here: the driver finds out first whether it moved.

        Args:
            submission: The update.
            read_only: Whether the budget is spent.
            now: Seconds.
            row: What `read_row` makes of the update, if somebody has asked already.
        """
        member = self.members.get(submission.client_id)
        round_id = self._buffer.round_id if submission.round_id is None else submission.round_id
        number = int(round_id) if isinstance(round_id, int | np.integer) else -1
        if member is None:
            return Receipt(False, Rejection.UNKNOWN_CLIENT, None, number)
        judged = Rejection.READ_ONLY if read_only else self._judge(member, submission, row)
        if isinstance(judged, Rejection):
            self._buffer.count_rejection(judged)
            return Receipt(False, judged, self.basket_id, number)
        self._accept(judged, submission, now)
        return Receipt(True, None, self.basket_id, number)

    def local_state(self, client_id: str) -> Row | None:
        """A copy of a member's local state; None before its first update."""
        state = self.states.get(client_id) if client_id in self.members else None
        return None if state is None else state.copy()

    def backlog(self, now: float) -> Backlog:
        """What is here for the next aggregate, and who is missing."""
        senders = set(self._buffer.clients(self.basket_id))
        return Backlog(
            basket_id=self.basket_id,
            domain_id=self.domain_id,
            num_members=len(self.members),
            num_senders=len(senders),
            absent=tuple(nsmallest(NAMED, self.members.keys() - senders)),
            staleness=self._buffer.oldest_staleness(self.basket_id),
            seconds=now - self._waits_since(now),
            fresh=self.latest.fresh is not None,
        )

    def _waits_since(self, now: float) -> float:
        """When it last aggregated, or else when its first update came."""
        if self._last_layer1 is not None:
            return self._last_layer1
        oldest = self._buffer.oldest_timestamp(self.basket_id)
        return now if oldest is None else oldest

    def due(self, now: float, *, submitting: bool = False) -> str | None:
        """What makes Layer 1 due, or None; while updates are being submitted gossip is still to come."""
        reason = basket_due(
            self._plan.config.buffer,
            self._buffer.num_clients(self.basket_id),
            now - self._waits_since(now),
            n_active=len(self.members),
            least=self._plan.least_rows(len(self.members)),
            oldest_staleness=self._buffer.oldest_staleness(self.basket_id),
            gossip_to_come=submitting and self._plan.waits_for_gossip,
        )
        return None if reason is None else str(reason)

    def layer1(self, aggregator: Layer1Aggregator, force: bool, now: float) -> Layer1Outcome:
        """Aggregate the local states of the clients with buffered updates, if due (or forced) and enough."""
        clients = self._buffer.clients(self.basket_id)
        members = len(self.members)
        least = self._plan.least_rows(members)
        reason = "forced" if force else self.due(now)
        if len(clients) < least or reason is None:
            waits = f"{len(clients)} of {members} members have updates, the rule needs {least}"
            return Layer1Outcome(self.basket_id, False, waits, len(clients), least)
        model = aggregator.aggregate(
            self.states.rows(clients),
            self._weights(clients),
            basket_id=self.basket_id,
            client_ids=clients,
            num_members=members,
            round_id=self._buffer.round_id,
            timestamp=now,
            meta=self.states.mean_meta(clients),
            bucketing_seed=aggregator.seed(self._noise, f"{self.basket_id}/{self.latest.made}"),
            raw_norms=self.states.raw_norms(clients),
            report=self._plan.config.expose_basket_models,
        )
        self._standings.agree({c: place.agreement for c, place in model.placings.items()})
        self._buffer.pop_basket_updates(self.basket_id)
        self._clipping = self.states.clipping(clients)
        self.states.forget_reports(clients)
        self.latest.replace(model, clients)
        self._last_layer1 = self._last_active = now
        return Layer1Outcome(self.basket_id, True, reason, len(clients), least, self._clipping)

    def count_refused_session(self) -> None:
        """Count a session that this basket did not join."""
        self._sessions_refused += 1

    def gossip_begin(self, round_id: int, now: float) -> tuple[str, ...]:
        """Clients whose drift test must be charged before it is made."""
        ids = self.states.ids()
        states = self.states.rows(ids)
        return self._gossip.begin(ids, states, round_id, now, num_members=len(self.members))

    def gossip_test(self, allowed: Sequence[str]) -> tuple[str, ...]:
        """Clients that want to push, whose vector must be charged before it is noised."""
        return self._gossip.test_drift(allowed)

    def gossip_exchange(self, allowed: Sequence[str], now: float) -> int:
        """Noise, deliver and mix; the messages that were delivered."""
        states = self.states.rows(self.states.ids())
        outcome = self._gossip.exchange(allowed, self.members, now, out=states)
        self._messages_delivered += outcome.delivered
        if outcome.delivered:
            self._last_active = now
        return outcome.delivered

    def advance_round(self, round_id: int) -> None:
        """Move to a later round."""
        self._buffer.advance_round(round_id)
        self._gossip.advance_round(round_id)
        self.states.age()

    def facts(self) -> BasketFacts:
        """What is public about its part in a release, now."""
        model, members = self.latest.fresh, len(self.members)
        if model is None:
            return BasketFacts(self.basket_id, self.domain_id, members)
        return model.facts(self.domain_id, members)

    def report(self) -> BasketReport:
        """Counts and public facts."""
        members = len(self.members)
        stats = self._buffer.get_stats()
        return BasketReport(
            facts=self.facts(),
            num_buffered=self._buffer.num_updates(self.basket_id),
            least_rows=self._plan.least_rows(members),
            rejections={reason: count for reason, count in stats["rejections"].items() if count},
            withdrawn=self._withdrawn,
            layer1_aggregations=self.latest.made,
            superseded=self.latest.superseded,
            discarded=self.latest.discarded,
            messages_delivered=self._messages_delivered,
            sessions_refused=self._sessions_refused,
            gossip=dict(self._gossip.get_stats()),
        )

    def take_activity(self) -> ActivityReport:
        """What was seen since this was last asked."""
        baskets = {self.basket_id: self._last_active} if self._last_active is not None else {}
        self._last_active = None
        return ActivityReport(self._standings.tell(), baskets)

    def conduct(self) -> ConductReport:
        """How the members stand to the aggregates."""
        placings = {} if self.latest.model is None else self.latest.model.placings
        trust = [self._standings.trust(client_id) for client_id in self.members] or [FIRST_TRUST]
        return ConductReport(
            sum(trust) / len(trust),
            min(trust),
            tuple(sorted(client for client, place in placings.items() if place.agreement == 0.0)),
            self._clipping,
        )

    def _judge(
        self, member: Member, submission: Submission, row: FloatRow | Rejection | None
    ) -> JudgedUpdate | Rejection:
        """The update if it can be accepted now, or why not.

        A client with a key must have signed it. What is malformed costs a client's trust only where the
        client has signed that very thing: anybody else may have sent it in the client's name.
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
            message = message_of(judged, meta, self.scope)
            if not is_signed(member.public_key, message, submission.signature):
                return Rejection.BAD_SIGNATURE
        return buffer.refusal(judged) or judged

    def _hold_against(self, public_key: bytes, submission: Submission) -> None:
        """Lower the client's trust if it has signed this malformed update for a round that is open."""
        asked = submission.round_id
        round_id = self._buffer.round_id if asked is None else asked
        if not isinstance(round_id, int | np.integer) or not self._buffer.is_open(int(round_id)):
            return
        message = message_as_sent(submission, int(round_id), self.scope)
        if message is not None and is_signed(public_key, message, submission.signature):
            settings = self._plan.config.buffer
            self._standings.offend(
                submission.client_id,
                int(round_id),
                message,
                since=self._buffer.round_id - settings.max_staleness,
                most=settings.participation_cap,
            )

    def _accept(self, judged: JudgedUpdate, submission: Submission, now: float) -> None:
        """Accept an update (`UpdateBuffer.accept`), and form its client's state of it."""
        self._buffer.accept(judged, self.basket_id, now=now)
        meta = submission.meta
        ranges = self._plan.config.meta_parameters
        self.states.form(judged.client_id, None if meta is None else encode_report(meta, ranges))
        self._standings.accept(judged.client_id, now)
        self._last_active = now

    def _weights(self, clients: Sequence[str]) -> list[float] | None:
        """The clients' weights, of what they say of their examples; None for rules that do not weigh."""
        if self._plan.config.layer1.aggregation_method is not AggregationMethod.WEIGHTED:
            return None
        told = (self._buffer.num_examples(self.basket_id, client) for client in clients)
        return [
            self._plan.row_weight(self.members[client].num_examples if number is None else number)
            for client, number in zip(clients, told, strict=True)
        ]


__all__ = ["Basket", "MemberCarry"]
