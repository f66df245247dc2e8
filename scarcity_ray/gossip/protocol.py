"""One basket's gossip as a conversation with its caller, who charges the budget between the steps.

::

    ids   = protocol.begin(client_ids, states, round_id, now, num_members=n)   charge ids for a drift test
    ids   = protocol.test_drift(allowed)                                       charge ids for a vector
    result = protocol.exchange(allowed, all_members, now)                      nothing more to charge

Nothing is drawn before its charge is allowed. The caller may stop after any step: what was tested or released
is remembered, and the next `begin` goes on from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from scarcity_ray.config import GossipConfig
from scarcity_ray.errors import UsageError
from scarcity_ray.gossip.client_state import GossipCarry, Members
from scarcity_ray.gossip.delivery import Delivery
from scarcity_ray.gossip.materiality import MaterialityDetector
from scarcity_ray.gossip.message import GossipMessage
from scarcity_ray.gossip.mixing import default_mixing
from scarcity_ray.gossip.peers import PeerSampler
from scarcity_ray.gossip.release import noised
from scarcity_ray.gossip.step import GossipOutcome, GossipStep
from scarcity_ray.plan import GossipPlan
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.robust.arrays.blocks import Rows
from scarcity_ray.robust.measures.rows import row_norms


class GossipProtocol:
    """Gossip within one basket (docs/gossip.md).

    Guarantees:
        - A client releases one vector a federation round, however often gossip runs in it.
        - Nothing is drawn or released for a client that was not allowed.
        - The number of peers changes no charge.
        - A basket of one client does nothing; two clients gossip.
        - A client releases at most `max_messages_per_day` vectors in any 24 hours.
        - A client receives a released vector at most once.
        - A client that moves or comes back in mid-round does not release twice.
        - States that are given are never written to, unless they are given again as `out`.
        - Beside the states, a copy and a half of them is kept: the vectors released, and in half the room the
          states last pushed.

    Args:
        config: Peers, intervals, limits, mixing; a mixing of None is ``clipped_gossip`` if the plan's Layer 1
            reckons with Byzantine clients, else ``noise_aware``.
        plan: Noise scales, clip norm, Layer 1's rule.
        basket_id: The basket.
        noise: Where privacy noise comes from; its streams are named by kind, client and round alone.
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
        self._detector = MaterialityDetector(config.push_drift_threshold)
        self._members = Members(basket_id, self._detector)
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
    ) -> tuple[str, ...]:
        """Start a gossip round; return whose drift test must be charged now.

        Those are the clients not yet tested in this federation round that are below their daily limit; none
        in a basket of fewer than two members.

        Args:
            client_ids: Members with a local state, sorted.
            states: Their states, n finite float32 rows (d,), kept until `exchange`.
            round_id: The federation round; later than the last one advances this protocol.
            now: Seconds.
            num_members: Members of the basket, with or without a state; the number of states if None.

        Raises:
            UsageError: If ids, states or round do not fit.
        """
        self.advance_round(round_id)
        ids, dimension = tuple(client_ids), self.plan.dimension
        if list(ids) != sorted(set(ids)) or [len(row) for row in states] != [dimension] * len(ids):
            raise UsageError(f"gossip needs sorted ids and {len(ids)} rows of length {dimension}")
        norms = row_norms(states)
        if not np.isfinite(norms).all():
            raise UsageError(f"states of basket {self.basket_id!r} must be finite")
        self._members.forget_gone(round_id, now)
        size, untested = max(num_members or 0, len(ids)), []
        for client_id in ids:
            record = self._members.present(client_id, now)
            if record.tested_round < round_id and size > 1:
                untested.append((client_id, len(record.release_times) >= self.config.max_messages_per_day))
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
                record = self._members.records[client_id]
                record.tested_round, record.wants_push = self.round_id, bool(wants_push)
        self._counts["drift_tests"] += len(allowed)
        records = self._members.records
        wanting = tuple(c for c in step.client_ids if records[c].must_push(self.round_id))
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

        A released vector goes to K peers; if gossip runs again in the same federation round it goes, free of
        charge, to the next K that have not had it. A client that got nothing pulls the round's released
        vectors of up to K peers, at most every `pull_interval` seconds: post-processing, also free. What
        waits for a member without a state stays until it has one or the message expires.

        Args:
            allowed_ids: Clients of `test_drift`'s answer whose charge was allowed.
            all_members: All members of the basket, with or without a state.
            now: Seconds.
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
        live = self._members.live_releases(members, self.round_id, self.config.message_ttl, now)
        if len(members) > 1:
            self._delivery.run(live, self._members.records, members, step.client_ids, now)
        if out is None:
            out = np.empty((len(step.client_ids), self.plan.dimension), np.float32)
        inboxes = [self._inboxes.collect(client_id) for client_id in step.client_ids]
        step.mix(inboxes, live, self.mixing, self.plan, len(members), out)
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
        """Go on to a later federation round; drift decisions and releases of earlier ones lapse."""
        if round_id < self.round_id:
            raise UsageError(f"round {round_id} lies before the gossip's round {self.round_id}")
        if round_id > self.round_id:
            self.round_id, self._step = round_id, None

    def drop_client(self, client_id: str) -> int:
        """A client leaves: drop the pending messages to and from it, and return how many they were.

        What it tested and released is remembered while it could matter, so that coming back within the round
        or the day gains nothing.
        """
        self._step = None
        self._members.leave(client_id)
        return self._inboxes.drop(client_id)

    def take_client(self, client_id: str) -> GossipCarry:
        """A client moves away: give what it must take along, and drop its pending messages, counted.

        Works for a client that has left, too, so that its record can follow it when it comes back elsewhere.
        """
        self.drop_client(client_id)
        carry = self._members.take(client_id)
        carry.record.has_left = False
        return carry

    def put_client(self, carry: GossipCarry) -> None:
        """A client moves in with what `take_client` gave elsewhere, or with what was remembered of it."""
        self._step = None
        self._members.put(carry)

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
        record = self._members.records[client_id]
        record.note_release(
            GossipMessage(client_id, self.basket_id, vector, record.num_releases, now, self.round_id)
        )
        self._detector.update_state(client_id, clipped)
        self._counts["releases"] += 1


def _allowed(what: str, allowed_ids: Collection[str], entitled: frozenset[str]) -> tuple[str, ...]:
    allowed = tuple(sorted(set(allowed_ids)))
    strangers = set(allowed) - entitled
    if strangers:
        raise UsageError(f"{what} was not asked for by: {', '.join(sorted(strangers))}")
    return allowed


__all__ = ["GossipOutcome", "GossipProtocol"]
