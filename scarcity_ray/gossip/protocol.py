"""One basket's gossip as a state machine; its caller charges the budget between the steps.

::

    ids   = protocol.begin(client_ids, states, round_id, now, num_members=n)   charge ids for a drift test
    ids   = protocol.test_drift(allowed)                                       charge ids for a vector
    result = protocol.exchange(allowed, all_members, now)                      nothing more to charge

No noise is drawn before its charge is allowed. The caller may stop after any step: tests and releases are
remembered, and the next `begin` continues from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scarcity_ray.config import GossipConfig
from scarcity_ray.errors import UsageError
from scarcity_ray.gossip.client_state import GossipMigration, GossipStates
from scarcity_ray.gossip.delivery import Delivery
from scarcity_ray.gossip.materiality import MaterialityDetector
from scarcity_ray.gossip.message import GossipMessage, noised
from scarcity_ray.gossip.mixing import MixingInput, default_mixing, estimate_spread, mix
from scarcity_ray.gossip.neighbour_sums import Received
from scarcity_ray.gossip.peers import PeerSampler
from scarcity_ray.plan import GossipPlan
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.robust.arrays.blocks import Rows
from scarcity_ray.robust.measures.rows import clip_rows, norms_from, row_norms

ROUNDING = 2.0**-22
"""A row is clipped if its norm is above, by this share at least: a clipped one exceeds it by its rounding."""


@dataclass(frozen=True, eq=False)
class GossipOutcome:
    """What one gossip round of a basket did.

    Attributes:
        delivered: Messages that reached a local state.
        sent: Messages put into inboxes, by push or pull.
        expired: Messages that were too old to deliver.
        released: Clients that released a new vector.
        client_ids: The members with a state, as given to `begin`.
        states: Their states after mixing, n float32 rows: a new (n, d) array, or the `out` of `exchange`.
        mixed: Clients that received something.
    """

    delivered: int
    sent: int
    expired: int
    released: tuple[str, ...]
    client_ids: tuple[str, ...]
    states: Rows
    mixed: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ProtocolState:
    """A basket's gossip between two gossip rounds, without the clients' own states.

    Attributes:
        sampler_round: Of the peers' rotation.
        waiting: Messages that wait, by receiver.
        numbers: Messages sent, delivered, expired and dropped, and pulls.
    """

    round_id: int
    sampler_round: int
    waiting: Mapping[str, tuple[GossipMessage, ...]]
    numbers: tuple[int, int, int, int, int]
    counts: Mapping[str, int]


@dataclass
class GossipStep:
    """A gossip round under way.

    Attributes:
        client_ids: Members with a state, sorted.
        norms: (n,) norms of their states.
        to_test: Clients whose drift test is to be charged.
        to_push: Clients whose vector is to be charged.
    """

    client_ids: tuple[str, ...]
    states: Rows
    norms: npt.NDArray[np.float64]
    to_test: frozenset[str]
    to_push: frozenset[str] = frozenset()

    def clipped(self, ids: Collection[str], clip_norm: float) -> Iterator[npt.NDArray[np.float32]]:
        """The clipped states of `ids`, in the order of `client_ids`, one at a time; to be read only."""
        wanted = set(ids)
        for index, client_id in enumerate(self.client_ids):
            if client_id in wanted:
                is_short = self.norms[index] <= clip_norm * (1.0 + ROUNDING)
                one = [self.states[index]]
                yield one[0] if is_short else clip_rows(one, self.norms[index : index + 1], clip_norm)[0]


class GossipProtocol:
    """Gossip within one basket (docs/gossip.md).

    Guarantees:
        a_client_releases_one_vector_a_federation_round: However often gossip runs in it.
        nothing_is_drawn_or_released_for_a_client_that_was_not_allowed
        the_number_of_peers_changes_no_charge
        a_basket_of_one_client_does_nothing: Two clients gossip.
        A client releases at most `max_messages_per_day` vectors in any 24 hours.
        a_client_receives_a_released_vector_at_most_once
        A client that moves or comes back in mid-round does not release twice.
        States that are given are never written to, unless they are given again as `out`.
        The protocol keeps one and a half copies of the states: the released vectors, and the states last
            pushed at half precision.

    Args:
        config: Peers, intervals, limits, mixing; a mixing of None is ``clipped_gossip`` if the plan's Layer 1
            reckons with Byzantine clients, else ``noise_aware``.
        plan: Noise scales, clip norm, Layer 1's rule.
        noise: Source of privacy noise; its streams are named by kind, client and round alone.
        seed: Of the peers' simulation stream.
    """

    def __init__(
        self, config: GossipConfig, plan: GossipPlan, basket_id: str, noise: NoiseSource, *, seed: int = 0
    ) -> None:
        self.config = config
        self.plan = plan
        self.basket_id = basket_id
        self.round_id = 0
        self.mixing = config.mixing or default_mixing(plan.layer1)
        self._noise = noise
        self._detector = MaterialityDetector(config.push_drift_threshold, 2.0 * plan.clip_norm)
        self._clients = GossipStates(basket_id, self._detector)
        sampler = PeerSampler(config.rotation_window, seed=seed, basket_id=basket_id)
        self._delivery = Delivery(sampler, config.peers_per_round, config.pull_interval)
        self._inboxes = self._delivery.inboxes
        self._counts: Counter[str] = Counter()
        self._step: GossipStep | None = None

    def begin(
        self,
        client_ids: Sequence[str],
        states: Rows,
        round_id: int,
        now: float,
        *,
        num_members: int | None = None,
        norms: npt.NDArray[np.float64] | None = None,
    ) -> tuple[str, ...]:
        """Start a gossip round; return whose drift test must be charged now.

        Those are the clients not yet tested in this federation round that are below their daily limit; none
        in a basket of fewer than two members.

        Args:
            client_ids: Members with a local state, sorted.
            states: Their states, n finite float32 rows (d,), kept until `exchange`.
            round_id: The federation round; later than the last one advances this protocol.
            num_members: Members of the basket, with or without a state; the number of states if None.
            norms: (n,) of the states, to float32 rounding, where the caller knows them: states are clipped by
                them before noise is added.

        Raises:
            UsageError: If ids, states or round do not fit.
        """
        self.advance_round(round_id)
        ids, dimension = tuple(client_ids), self.plan.dimension
        if list(ids) != sorted(set(ids)) or [len(row) for row in states] != [dimension] * len(ids):
            raise UsageError(f"gossip needs sorted ids and {len(ids)} rows of length {dimension}")
        norms = row_norms(states) if norms is None else norms
        if not np.isfinite(norms).all():
            raise UsageError(f"states of basket {self.basket_id!r} must be finite")
        self._clients.forget_gone(round_id, now)
        size, untested = max(num_members or 0, len(ids)), []
        for client_id in ids:
            client = self._clients.present(client_id, now)
            if client.tested_round < round_id and size > 1:
                untested.append((client_id, len(client.release_times) >= self.config.max_messages_per_day))
        to_test = tuple(client_id for client_id, is_limited in untested if not is_limited)
        self._counts["rate_limited"] += len(untested) - len(to_test)
        self._step = GossipStep(ids, states, norms, frozenset(to_test))
        return to_test

    def test_drift(self, allowed_ids: Collection[str]) -> tuple[str, ...]:
        """Run the noised materiality test for clients whose charge was allowed.

        Returns:
            Clients that want to push and must be charged for a vector, sorted: those whose test says so, and
            those that earlier in this federation round wanted to and have not released yet.

        Raises:
            UsageError: Before `begin`, or for a client that `begin` did not name.
        """
        step = self._current("test_drift")
        allowed = _allowed("a drift test", allowed_ids, step.to_test)
        step.to_test = frozenset()
        sigma = self.plan.sigma_drift
        noise = np.array([self._draw(1, "drift", client_id, sigma)[0] for client_id in allowed])
        if allowed:
            decisions = self._detector.material(
                allowed, step.clipped(allowed, self.plan.clip_norm), sigma, noise
            )
            for client_id, wants_push in zip(allowed, decisions, strict=True):
                client = self._clients.by_client[client_id]
                client.tested_round, client.wants_push = self.round_id, bool(wants_push)
        self._counts["drift_tests"] += len(allowed)
        known = self._clients.by_client
        wanting = tuple(c for c in step.client_ids if known[c].must_push(self.round_id))
        step.to_push = frozenset(wanting)
        return wanting

    def exchange(
        self,
        allowed_ids: Collection[str],
        all_members: Collection[str],
        now: float,
        *,
        out: Rows | None = None,
    ) -> GossipOutcome:
        """Release the allowed vectors, deliver messages, and mix what each member received into its state.

        A released vector goes to K peers. If gossip runs again in the same federation round, it goes to the
        next K that have not received it. A client that received nothing pulls the round's released vectors of
        up to K peers, at most every `pull_interval` seconds. Both are post-processing and cost no budget. A
        message to a member without a state waits until it has one or the message expires.

        Args:
            allowed_ids: Clients of `test_drift`'s answer whose charge was allowed.
            all_members: All members of the basket, with or without a state.
            out: Where the mixed states go, n float32 rows; may be the states given to `begin`. None: a new
                array.

        Raises:
            UsageError: Before `begin`, or for clients that are not entitled.
        """
        step = self._current("exchange")
        allowed = _allowed("a release", allowed_ids, step.to_push)
        members = sorted(set(all_members))
        if not set(step.client_ids) <= set(members):
            raise UsageError("all_members must hold every client that has a state")
        if out is not None and len(out) != len(step.client_ids):
            raise UsageError(f"out must have a row for each of the {len(step.client_ids)} states")
        self._step = None
        self._inboxes.keep_only(members)
        expired = self._inboxes.expire(self.config.message_ttl, now)
        sent_before = self._inboxes.sent
        for client_id, row in zip(allowed, step.clipped(allowed, self.plan.clip_norm), strict=True):
            self._release(client_id, row, now)
        live = self._clients.live_releases(members, self.round_id, self.config.message_ttl, now)
        if len(members) > 1:
            self._delivery.run(live, self._clients.by_client, members, step.client_ids, now)
        if out is None:
            out = np.empty((len(step.client_ids), self.plan.dimension), np.float32)
        inboxes = [self._inboxes.collect(client_id) for client_id in step.client_ids]
        self._mix(step, inboxes, live, len(members), out)
        return GossipOutcome(
            delivered=sum(map(len, inboxes)),
            sent=self._inboxes.sent - sent_before,
            expired=expired,
            released=allowed,
            client_ids=step.client_ids,
            states=out,
            mixed=tuple(c for c, inbox in zip(step.client_ids, inboxes, strict=True) if inbox),
        )

    def advance_round(self, round_id: int) -> None:
        """Move to a later federation round; drift decisions and releases of earlier ones lapse."""
        if round_id < self.round_id:
            raise UsageError(f"round {round_id} lies before the gossip's round {self.round_id}")
        if round_id > self.round_id:
            self.round_id, self._step = round_id, None

    def drop_client(self, client_id: str) -> int:
        """Drop the pending messages to and from a client that leaves, and return how many they were.

        Its tests and releases are remembered for the round and the day, so that it gains nothing by leaving
        and coming back.
        """
        self._step = None
        self._clients.leave(client_id)
        return self._inboxes.drop(client_id)

    def take_client(self, client_id: str) -> GossipMigration:
        """Drop a client that moves, and return the state that it takes along.

        Works for a client that has left, too, so that its state can follow it when it comes back elsewhere.
        """
        self.drop_client(client_id)
        moved = self._clients.take(client_id)
        moved.state.has_left = False
        return moved

    def state_of(self, client_id: str) -> GossipMigration:
        """What `take_client` would return; the client stays."""
        return self._clients.state_of(client_id)

    def put_client(self, moved: GossipMigration) -> None:
        """Add a client with the state that `take_client` returned elsewhere, or that was remembered of it."""
        self._step = None
        self._clients.put(moved)

    def kept(self) -> ProtocolState:
        """What `restore` needs beside the clients' own states (`state_of`)."""
        inboxes = self._inboxes
        return ProtocolState(
            self.round_id,
            self._delivery.round,
            inboxes.waiting(),
            (inboxes.sent, inboxes.delivered, inboxes.expired, inboxes.dropped, self._delivery.pulls),
            dict(self._counts),
        )

    def restore(self, state: ProtocolState) -> None:
        """Take over what `kept` gave elsewhere; the clients' states come by `put_client`."""
        self.advance_round(state.round_id)
        self._delivery.round = state.sampler_round
        inboxes = self._inboxes
        inboxes.wait(state.waiting)
        inboxes.sent, inboxes.delivered, inboxes.expired, inboxes.dropped, self._delivery.pulls = (
            state.numbers
        )
        self._counts = Counter(state.counts)

    def get_stats(self) -> dict[str, Any]:
        """Counts since the start, and the messages that wait."""
        return {
            "round_id": self.round_id,
            "sent": self._inboxes.sent,
            "delivered": self._inboxes.delivered,
            "expired": self._inboxes.expired,
            "dropped": self._inboxes.dropped,
            "pending": self._inboxes.pending(),
            "pulls": self._delivery.pulls,
            **{name: self._counts[name] for name in ("drift_tests", "releases", "rate_limited")},
        }

    def _mix(
        self,
        step: GossipStep,
        inboxes: Sequence[Sequence[GossipMessage]],
        live: Mapping[str, GossipMessage],
        num_members: int,
        out: Rows,
    ) -> None:
        """Mix each client's inbox into its state, in `out`; the spread is estimated from `live`."""
        for row, state in zip(out, step.states, strict=True):
            if row is not state:
                row[...] = state
        messages = {id(m): m for m in live.values()}
        messages.update((id(m), m) for inbox in inboxes for m in inbox)
        if not messages:
            return
        plan = self.plan
        number = {key: index for index, key in enumerate(messages)}
        vectors = [message.summary_vector for message in messages.values()]
        scales = _clip_scales(norms_from(vectors, plan.receive_norm), plan.receive_norm)
        mixed = [place for place, inbox in enumerate(inboxes) if inbox]
        given = MixingInput(
            states=[out[place] for place in mixed],
            state_scales=_clip_scales(step.norms[mixed], plan.clip_norm),
            received=Received.of(vectors, [[number[id(m)] for m in inboxes[place]] for place in mixed]),
            vector_scales=scales,
            spread=estimate_spread(
                vectors[: len(live)], scales[: len(live)], plan, plan.num_byzantine(num_members)
            ),
            plan=plan,
            num_members=num_members,
            num_rows=len(step.client_ids),
        )
        mix(self.mixing, given, given.states)

    def _current(self, call: str) -> GossipStep:
        if self._step is None:
            raise UsageError(f"{call} needs a round that was begun since members or rounds last changed")
        return self._step

    def _draw(self, shape: int, kind: str, client_id: str, sigma: float) -> npt.NDArray[np.float64]:
        if sigma == 0.0:
            return np.zeros(shape)
        return self._noise.standard_normal(shape, f"gossip/{kind}/{client_id}/{self.round_id}")

    def _release(self, client_id: str, clipped: npt.NDArray[np.float32], now: float) -> None:
        sigma = self.plan.sigma_vector
        noise = self._draw(self.plan.dimension, "vector", client_id, sigma)
        vector = noised(clipped, noise, sigma)
        client = self._clients.by_client[client_id]
        client.note_release(
            GossipMessage(client_id, self.basket_id, vector, client.num_releases, now, self.round_id)
        )
        self._detector.update_state(client_id, clipped)
        self._counts["releases"] += 1


def _allowed(what: str, allowed_ids: Collection[str], entitled: frozenset[str]) -> tuple[str, ...]:
    allowed = tuple(sorted(set(allowed_ids)))
    strangers = set(allowed) - entitled
    if strangers:
        raise UsageError(f"{what} was not asked for by: {', '.join(sorted(strangers))}")
    return allowed


def _clip_scales(norms: npt.NDArray[np.float64], clip_norm: float) -> npt.NDArray[np.float64]:
    scales: npt.NDArray[np.float64] = np.divide(
        clip_norm, norms, out=np.ones_like(norms), where=norms > clip_norm
    )
    return scales
