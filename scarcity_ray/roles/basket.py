"""One basket: its members, what they sent, their local states, and the latest aggregate of them.

A client's local state is its latest row. It outlives the buffer: gossip moves it towards what it receives,
and Layer 1 aggregates the local states of the clients that have buffered updates. Without Layer 2 it is what
the client trains on from, and an update that waits does not age: no global model moves away from it.

An aggregate is *fresh* until it enters a release, a newer one supersedes it, or a client behind it moves to
another basket (its values must not reach one release twice). One that was handed in to a session may be in a
release until the session's end says that it is not; if that word never comes, it is never used again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.buffer import (
    BufferedUpdate,
    ClientUpdates,
    Receipt,
    Rejection,
    UpdateBuffer,
    basket_due,
    read_row,
)
from scarcity_ray.buffer.signing import update_message
from scarcity_ray.config import AggregationMethod
from scarcity_ray.gossip import GossipCarry, GossipProtocol
from scarcity_ray.layers.layer1 import Layer1Aggregator
from scarcity_ray.layers.meta_parameters import mean_reports
from scarcity_ray.layers.models import BasketModel
from scarcity_ray.plan import BasketFacts, FederationPlan
from scarcity_ray.privacy.noise import NoiseSource
from scarcity_ray.robust import clip_vector, row_norm
from scarcity_ray.roles.messages import (
    ActivityReport,
    BasketReport,
    ClientActivity,
    ConductReport,
    Layer1Outcome,
    Member,
)
from scarcity_ray.roles.standings import Standing, Standings
from scarcity_ray.roles.submission import Submission
from scarcity_ray.secagg import IdentityKeyPair, SessionGuard

Row = NDArray[np.float32]

MISCONDUCT = frozenset(
    {Rejection.WRONG_SHAPE, Rejection.NOT_FINITE, Rejection.NOT_NUMERIC, Rejection.BAD_SIGNATURE}
)
"""Rejections that anybody can check and that an honest client never earns."""


@dataclass(frozen=True, eq=False)
class MemberCarry:
    """All that goes with a client to another basket."""

    client_id: str
    updates: ClientUpdates
    gossip: GossipCarry
    state: Row | None
    meta: NDArray[np.float64] | None
    standing: Standing | None


@dataclass
class _Counters:
    """What the basket has seen since it was opened."""

    withdrawn: int = 0
    layer1_aggregations: int = 0
    superseded: int = 0
    discarded: int = 0
    messages_delivered: int = 0
    sessions_refused: int = 0


class Basket:
    """A basket as a plain object; `roles.basket_host.BasketHost` holds several of them in one actor.

    Args:
        basket_id: Its id.
        domain_id: Its domain.
        plan: The federation's numbers.
        federation_id: What updates are signed for.
        noise: Where gossip's noise comes from.
        round_id: Current round.

    Attributes:
        clip_norm: To which rows are clipped as they are formed.
    """

    def __init__(
        self,
        basket_id: str,
        domain_id: str,
        plan: FederationPlan,
        federation_id: str,
        noise: NoiseSource,
        round_id: int,
    ) -> None:
        config = plan.config
        self.basket_id = basket_id
        self.domain_id = domain_id
        self.identity = IdentityKeyPair.generate()
        self.guard = SessionGuard(federation_id)
        self.members: dict[str, Member] = {}
        self.model: BasketModel | None = None
        self.clip_norm = config.layer1.clip_norm
        self._plan = plan
        self._noise = noise
        self._federation_id = federation_id
        self._buffer = UpdateBuffer(config.buffer, config.vector_dim, round_id=round_id)
        self._gossip = GossipProtocol(
            config.gossip, plan.gossip, basket_id=basket_id, noise=noise, seed=config.seed
        )
        self._states: dict[str, Row] = {}
        self._meta: dict[str, NDArray[np.float64]] = {}
        self._contributors: frozenset[str] = frozenset()
        self._fresh = False
        self._handed_in: BasketModel | None = None
        self._last_layer1: float | None = None
        self._counters = _Counters()
        self._standings = Standings(by_agreement=config.expose_basket_models)
        self._last_active: float | None = None

    @property
    def fresh_model(self) -> BasketModel | None:
        """The aggregate that the next release may use."""
        return self.model if self._fresh and self.model is not self._handed_in else None

    def admit(self, member: Member) -> None:
        """Take in a client, or what is new about one that is here."""
        self.members[member.client_id] = member
        self._standings.admit(member.client_id, member.trust)

    def known_members(self) -> tuple[Member, ...]:
        """The members, sorted, each with the trust that it has here."""
        trust = self._standings.trust
        return tuple(replace(member, trust=trust(c)) for c, member in sorted(self.members.items()))

    def dismiss(self, client_id: str) -> int:
        """Let a client go; its buffered updates are withdrawn, counted and returned as a number."""
        if self.members.pop(client_id, None) is None:
            return 0
        withdrawn = self._buffer.withdraw(client_id)
        self._counters.withdrawn += withdrawn
        self._gossip.drop_client(client_id)
        self._states.pop(client_id, None)
        self._meta.pop(client_id, None)
        return withdrawn

    def take(self, client_id: str) -> MemberCarry:
        """Hand over a client that moves; a fresh aggregate that holds it is discarded.

        A client that left and now comes back elsewhere has no state any more, but what it released and which
        updates it sent in this round still follow it.
        """
        self.members.pop(client_id, None)
        self._discard_model_of(client_id)
        return MemberCarry(
            client_id,
            self._buffer.take_client(client_id),
            self._gossip.take_client(client_id),
            self._states.pop(client_id, None),
            self._meta.pop(client_id, None),
            self._standings.take(client_id),
        )

    def put(self, carry: MemberCarry) -> None:
        """Take over what belongs to a member that moved here."""
        self._buffer.put_client(carry.updates, self.basket_id)
        self._gossip.put_client(carry.gossip)
        if carry.state is not None:
            self._states[carry.client_id] = np.array(carry.state, np.float32)
        if carry.meta is not None:
            self._meta[carry.client_id] = carry.meta
        if carry.standing is not None:
            self._standings.put(carry.client_id, carry.standing)

    def submit(self, submission: Submission, read_only: bool, now: float) -> Receipt:
        """Judge one update; an accepted one is buffered and becomes the client's local state.

        One of an unknown client is not counted here: the driver finds out first whether it moved.
        """
        client_id = submission.client_id
        member = self.members.get(client_id)
        round_id = self._buffer.round_id if submission.round_id is None else submission.round_id
        number = int(round_id) if isinstance(round_id, int | np.integer) else -1
        if member is None:
            return Receipt(False, Rejection.UNKNOWN_CLIENT, None, number)
        reason = self._refusal(member, submission, number, read_only)
        if reason is not None:
            self._buffer.count_rejection(reason)
        else:
            reason = self._buffer.offer(client_id, self.basket_id, submission.update, round_id, now=now)
        if reason is None:
            self._accept(submission, now)
        elif reason in MISCONDUCT:
            self._standings.refuse(client_id)
        return Receipt(reason is None, reason, self.basket_id, number)

    def local_state(self, client_id: str) -> Row | None:
        """A copy of a member's local state; None before its first update."""
        state = self._states.get(client_id) if client_id in self.members else None
        return None if state is None else state.copy()

    def due(self, now: float) -> str | None:
        """What makes Layer 1 due, or None."""
        last = self._last_layer1
        if last is None:
            last = min((update.timestamp for update in self.buffered()), default=now)
        reason = basket_due(
            self._plan.config.buffer,
            len(self._buffer.clients(self.basket_id)),
            now - last,
            n_active=len(self.members),
            least=self._plan.least_rows(len(self.members)),
            oldest_staleness=self._buffer.oldest_staleness(self.basket_id),
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
        updates = self._buffer.get_basket_updates(self.basket_id)
        votes = Counter(update.client_id for update in updates)
        weighted = self._plan.config.layer1.aggregation_method is AggregationMethod.WEIGHTED
        model = aggregator.aggregate(
            [self._states[client] for client in clients],
            [float(votes[client]) for client in clients] if weighted else None,
            basket_id=self.basket_id,
            client_ids=clients,
            num_members=members,
            round_id=self._buffer.round_id,
            timestamp=now,
            meta=mean_reports(
                [self._meta.get(client, self._no_report) for client in clients], len(self._no_report)
            ),
            bucketing_seed=self._bucketing_seed(),
            raw_norms=self._raw_norms(clients),
            report=self._plan.config.expose_basket_models,
        )
        self._standings.agree({c: place.agreement for c, place in model.placings.items()})
        self._buffer.pop_basket_updates(self.basket_id)
        for client in clients:
            self._meta.pop(client, None)
        self._counters.superseded += self.fresh_model is not None
        self._counters.layer1_aggregations += 1
        self.model, self._fresh = model, True
        self._contributors = frozenset(clients)
        self._last_layer1 = self._last_active = now
        return Layer1Outcome(self.basket_id, True, reason, len(clients), least)

    def hand_in(self, model: BasketModel | None) -> None:
        """Note that `model` goes into a session: no other may use it before this one has ended."""
        self._handed_in = model

    def take_back(self, model: BasketModel | None) -> None:
        """Note that the session which `model` was handed in to has ended without it."""
        if model is self._handed_in:
            self._handed_in = None

    def spend(self, model: BasketModel | None) -> None:
        """Note that `model` has entered a release (or may have): it never enters another."""
        if model is not None and model is self.model:
            self._fresh = False

    def count_refused_session(self) -> None:
        """Count a session that this basket did not join."""
        self._counters.sessions_refused += 1

    def gossip_begin(self, round_id: int, now: float) -> tuple[str, ...]:
        """Clients whose drift test must be charged before it is made."""
        ids = tuple(sorted(self._states))
        states = [self._states[c] for c in ids]
        return self._gossip.begin(ids, states, round_id, now, num_members=len(self.members))

    def gossip_test(self, allowed: Sequence[str]) -> tuple[str, ...]:
        """Clients that want to push, whose vector must be charged before it is noised."""
        return self._gossip.test_drift(allowed)

    def gossip_exchange(self, allowed: Sequence[str], now: float) -> int:
        """Noise, deliver and mix; the messages that were delivered."""
        states = [self._states[c] for c in sorted(self._states)]
        outcome = self._gossip.exchange(allowed, self.members, now, out=states)
        self._counters.messages_delivered += outcome.delivered
        if outcome.delivered:
            self._last_active = now
        return outcome.delivered

    def advance_round(self, round_id: int) -> None:
        """Move to a later round.

        The rows of clients whose updates still wait are formed again with the weight of their new staleness;
        what gossip had mixed into them was meant against an older global model.
        """
        self._buffer.advance_round(round_id)
        self._gossip.advance_round(round_id)
        for client_id in self._buffer.clients(self.basket_id) if self._plan.config.layer2.enabled else ():
            self._set_state(client_id)

    def report(self) -> BasketReport:
        """Counts and public facts."""
        model = self.fresh_model
        members = len(self.members)
        stats = self._buffer.get_stats()
        return BasketReport(
            facts=model.facts(self.domain_id, members)
            if model is not None
            else BasketFacts(self.basket_id, self.domain_id, members),
            num_buffered=self._buffer.num_updates(self.basket_id),
            least_rows=self._plan.least_rows(members),
            rejections={reason: count for reason, count in stats["rejections"].items() if count},
            withdrawn=self._counters.withdrawn,
            layer1_aggregations=self._counters.layer1_aggregations,
            superseded=self._counters.superseded,
            discarded=self._counters.discarded,
            messages_delivered=self._counters.messages_delivered,
            sessions_refused=self._counters.sessions_refused,
            gossip=dict(self._gossip.get_stats()),
        )

    def take_activity(self) -> ActivityReport:
        """What was seen since this was last asked."""
        baskets = {self.basket_id: self._last_active} if self._last_active is not None else {}
        self._last_active = None
        return ActivityReport(self._standings.tell(self.members), baskets)

    def conduct(self) -> ConductReport:
        """How the members stand to the aggregates."""
        placings = {} if self.model is None else self.model.placings
        return ConductReport(
            {client: self._standings.trust(client) for client in sorted(self.members)},
            tuple(sorted(client for client, place in placings.items() if place.agreement == 0.0)),
        )

    def buffered(self) -> tuple[BufferedUpdate, ...]:
        """The buffered updates, by client."""
        return self._buffer.get_basket_updates(self.basket_id)

    def _bucketing_seed(self) -> int:
        """A seed that no client can foresee: who knows how rows are dealt out can fill buckets at will."""
        if "bucketing" not in self._plan.config.layer1.pre:
            return 0
        made = self._counters.layer1_aggregations
        draw = self._noise.standard_normal(4, f"bucketing/{self.basket_id}/{made}")
        return int.from_bytes(hashlib.sha256(draw.tobytes()).digest()[:7], "little")

    @property
    def _no_report(self) -> NDArray[np.float64]:
        return np.zeros(len(self._plan.config.meta_parameters))

    def _accept(self, submission: Submission, now: float) -> None:
        client_id = submission.client_id
        self._set_state(client_id)
        if submission.meta is not None:
            self._meta[client_id] = np.array(submission.meta, np.float64)
        self._standings.accept(client_id, now)
        self._last_active = now

    def _set_state(self, client_id: str) -> None:
        vote = self._buffer.row if self._plan.config.layer2.enabled else self._buffer.newest
        row = vote(self.basket_id, client_id)
        self._states[client_id] = clip_vector(row, self.clip_norm)

    def _raw_norms(self, clients: Sequence[str]) -> list[float] | None:
        """Norms of the clients' rows before clipping and gossip, where the clip norm follows them."""
        if not self._plan.config.layer2.adaptive_clipping:
            return None
        return [row_norm(self._buffer.row(self.basket_id, client)) for client in clients]

    def _discard_model_of(self, client_id: str) -> None:
        if self._fresh and client_id in self._contributors:
            self._fresh = False
            self._counters.discarded += 1

    def _refusal(
        self, member: Member, submission: Submission, round_id: int, read_only: bool
    ) -> Rejection | None:
        """Why the update is refused before the buffer looks at it."""
        if read_only:
            return Rejection.READ_ONLY
        if isinstance(submission.update, Rejection):
            return submission.update
        return None if self._signed(member, submission, round_id) else Rejection.BAD_SIGNATURE

    def _signed(self, member: Member, submission: Submission, round_id: int) -> bool:
        if member.public_key is None:
            return True
        row = read_row(submission.update, self._plan.config.vector_dim)
        if isinstance(row, Rejection):
            return True
        message = update_message(self._federation_id, member.client_id, round_id, row)
        signature = submission.signature
        return isinstance(signature, bytes) and IdentityKeyPair.verify_with(
            member.public_key, message, signature
        )


def merged_activity(reports: Sequence[ActivityReport]) -> ActivityReport:
    """One report of all baskets of an actor; a client is in one of them."""
    clients: dict[str, ClientActivity] = {}
    baskets: dict[str, float] = {}
    for report in reports:
        clients.update(report.clients)
        baskets.update(report.baskets)
    return ActivityReport(clients, baskets)


__all__ = ["Basket", "MemberCarry", "merged_activity"]
