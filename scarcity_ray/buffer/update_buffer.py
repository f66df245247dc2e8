"""Updates that wait for Layer 1, basket by basket, and the judgement of those that arrive."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scarcity_ray.buffer.replay import ReplayGuard, ReplayKey
from scarcity_ray.buffer.update import BufferedUpdate, FloatRow, Rejection, content_digest, read_row
from scarcity_ray.config import BufferConfig
from scarcity_ray.errors import UsageError


@dataclass(frozen=True, eq=False)
class ClientUpdates:
    """What a client takes along when it moves to another basket; plain data.

    Attributes:
        client_id: The client.
        updates: What was buffered, in order of arrival.
        accepted: Keys of all its accepted updates that are still remembered, so that a replay stays a replay
            and the participation cap counts on.
    """

    client_id: str
    updates: tuple[BufferedUpdate, ...]
    accepted: tuple[ReplayKey, ...]


def staleness_weight(staleness: int) -> float:
    """s(tau) = (1 + tau)^-1/2, the weight of an update tau rounds old (Nguyen et al., FedBuff, 2022).

    >>> staleness_weight(3)
    0.5
    """
    return float((1.0 + staleness) ** -0.5)


class UpdateBuffer:
    """Buffers the accepted updates of any number of baskets.

    An arriving update is judged in this order: `not_numeric`, `wrong_shape`, `not_finite` (see `read_row`; a
    round that is no integer is `not_numeric`), `future_round` (after the buffer's round), `too_stale` (more
    than `max_staleness` rounds before it, or negative), `replayed`, `participation_cap`. The reasons that
    need to know clients, keys or budgets are the caller's to give, and to report with `count_rejection`.

    Guarantees:
        - No message raises; every refusal is counted under one reason.
        - An accepted update leaves exactly once: popped, withdrawn, or taken to another basket.
        - A replay stays a replay after its update was popped.
        - The participation cap counts accepted updates, also popped and withdrawn ones.
        - A row never exceeds the largest norm of the updates behind it.
        - The buffer keeps its own copy: what a client does to its array afterwards changes nothing.

    Args:
        config: Staleness and cap.
        vector_dim: Length of an update.
        round_id: The round to start in.
    """

    def __init__(self, config: BufferConfig, vector_dim: int, *, round_id: int = 0) -> None:
        self.config = config
        self.vector_dim = vector_dim
        self.round_id = round_id
        self._guard = ReplayGuard()
        self._baskets: dict[str, dict[str, list[BufferedUpdate]]] = {}
        self._rejections: Counter[Rejection] = Counter()
        self._counts: Counter[str] = Counter()

    def add(
        self, client_id: str, basket_id: str, update: object, round_id: object = None, *, now: float
    ) -> bool:
        """`offer`, for callers that need no reason: True if the update was accepted."""
        return self.offer(client_id, basket_id, update, round_id, now=now) is None

    def offer(
        self, client_id: str, basket_id: str, update: object, round_id: object = None, *, now: float
    ) -> Rejection | None:
        """Accept an update (None), or count and return why not.

        Args:
            client_id: Who sent it; the caller knows that it is a member of the basket.
            basket_id: Where it goes.
            update: Anything; a finite real (d,) vector is accepted.
            round_id: The round that it was made for; None is the buffer's round.
            now: Seconds.
        """
        reason = self._judge(client_id, basket_id, update, round_id, now)
        if reason is not None:
            self.count_rejection(reason)
        return reason

    def count_rejection(self, reason: Rejection) -> None:
        """Count an update that was refused before it came here."""
        self._rejections[reason] += 1

    def clients(self, basket_id: str) -> tuple[str, ...]:
        """Clients with buffered updates, sorted: one vote each."""
        return tuple(sorted(self._baskets.get(basket_id, ())))

    def row(self, basket_id: str, client_id: str, current_round: int | None = None) -> FloatRow:
        """A client's one vote: (1/m) sum of s(tau_i) u_i over its m buffered updates, not renormalised.

        Accumulated in float64 in order of arrival and rounded once (FedBuff's staleness weights, Nguyen et
        al. 2022). All weights are at most 1, so rows only shrink and a clip bound stands.

        Args:
            basket_id: The basket.
            client_id: One of `clients(basket_id)`.
            current_round: The round to count staleness from; None is the buffer's.

        Returns:
            A new float32 array (d,).

        Raises:
            UsageError: If the client has nothing buffered.
        """
        entries = self._entries(basket_id, client_id)
        current = self.round_id if current_round is None else current_round
        total: npt.NDArray[np.float64] = np.zeros(self.vector_dim)
        for entry in entries:
            total += staleness_weight(max(0, current - entry.round_id)) * entry.update.astype(np.float64)
        return (total / len(entries)).astype(np.float32)

    def newest(self, basket_id: str, client_id: str) -> FloatRow:
        """The update of a client that was accepted last, float32 (d,).

        Raises:
            UsageError: If the client has nothing buffered.
        """
        return self._entries(basket_id, client_id)[-1].update

    def get_basket_updates(self, basket_id: str) -> tuple[BufferedUpdate, ...]:
        """A basket's buffered updates, by client id, then in order of arrival."""
        clients = self._baskets.get(basket_id, {})
        return tuple(self._aged(entry) for client_id in sorted(clients) for entry in clients[client_id])

    def pop_basket_updates(self, basket_id: str) -> tuple[BufferedUpdate, ...]:
        """What `get_basket_updates` returns, and remove it: it has gone into an aggregate."""
        updates = self.get_basket_updates(basket_id)
        self._baskets.pop(basket_id, None)
        self._counts["popped"] += len(updates)
        return updates

    def num_updates(self, basket_id: str) -> int:
        """Buffered updates of a basket."""
        return sum(map(len, self._baskets.get(basket_id, {}).values()))

    def oldest_staleness(self, basket_id: str) -> int:
        """Rounds that the oldest buffered update of a basket lies back; 0 if there is none."""
        clients = self._baskets.get(basket_id, {})
        oldest = min((e.round_id for entries in clients.values() for e in entries), default=self.round_id)
        return self.round_id - oldest

    def advance_round(self, round_id: int | None = None) -> None:
        """Move to a later round (the next one if None).

        What is buffered stays, with less weight: an accepted update is dropped by nobody but its client.
        """
        target = self.round_id + 1 if round_id is None else round_id
        if target < self.round_id:
            raise UsageError(f"round {target} lies before the buffer's round {self.round_id}")
        self.round_id = target
        self._guard.clear_before(target - self.config.max_staleness)

    def withdraw(self, client_id: str) -> int:
        """Remove what a leaving client has buffered, and return how many updates that were.

        Its accepted updates stay remembered, so that coming back neither replays them nor resets its cap.
        """
        withdrawn = self._remove(client_id)
        self._counts["withdrawn"] += len(withdrawn)
        return len(withdrawn)

    def take_client(self, client_id: str) -> ClientUpdates:
        """Remove what a client has buffered and remembered here, for `put_client` elsewhere."""
        updates = self._remove(client_id)
        self._counts["taken"] += len(updates)
        return ClientUpdates(client_id, updates, self._guard.keys_of(client_id))

    def put_client(self, carry: ClientUpdates, basket_id: str) -> int:
        """Take in what a client brings to a basket; how many updates are now buffered there."""
        for key in carry.accepted:
            if not self._is_stale(key.round_id):
                self._guard.mark(key)
        for entry in carry.updates:
            moved = replace(entry, basket_id=basket_id)
            self._baskets.setdefault(basket_id, {}).setdefault(carry.client_id, []).append(moved)
        self._counts["put"] += len(carry.updates)
        return len(carry.updates)

    def get_stats(self) -> dict[str, Any]:
        """Counts since the start: accepted + put = buffered + popped + withdrawn + taken."""
        by_basket = {basket_id: self.num_updates(basket_id) for basket_id in sorted(self._baskets)}
        return {
            "round_id": self.round_id,
            "buffered": sum(by_basket.values()),
            "buffered_by_basket": by_basket,
            **{name: self._counts[name] for name in _COUNTS},
            "rejected": sum(self._rejections.values()),
            "rejections": {str(reason): self._rejections[reason] for reason in Rejection},
        }

    def _judge(
        self, client_id: str, basket_id: str, update: object, round_id: object, now: float
    ) -> Rejection | None:
        row = read_row(update, self.vector_dim)
        if isinstance(row, Rejection):
            return row
        number = self.round_id if round_id is None else _round_number(round_id)
        if number is None:
            return Rejection.NOT_NUMERIC
        if number > self.round_id:
            return Rejection.FUTURE_ROUND
        if number < 0 or self._is_stale(number):
            return Rejection.TOO_STALE
        key = ReplayKey(client_id, number, content_digest(row))
        if not self._guard.check(key):
            return Rejection.REPLAYED
        if self._guard.count(client_id, number) >= self.config.participation_cap:
            return Rejection.PARTICIPATION_CAP
        self._guard.mark(key)
        entry = BufferedUpdate(client_id, basket_id, row, number, now, staleness=self.round_id - number)
        self._baskets.setdefault(basket_id, {}).setdefault(client_id, []).append(entry)
        self._counts["accepted"] += 1
        return None

    def _entries(self, basket_id: str, client_id: str) -> list[BufferedUpdate]:
        entries = self._baskets.get(basket_id, {}).get(client_id)
        if not entries:
            raise UsageError(f"client {client_id!r} has no buffered update in basket {basket_id!r}")
        return entries

    def _is_stale(self, round_id: int) -> bool:
        return self.round_id - round_id > self.config.max_staleness

    def _aged(self, entry: BufferedUpdate) -> BufferedUpdate:
        return replace(entry, staleness=self.round_id - entry.round_id)

    def _remove(self, client_id: str) -> tuple[BufferedUpdate, ...]:
        holders = sorted(basket_id for basket_id, clients in self._baskets.items() if client_id in clients)
        removed = []
        for basket_id in holders:
            clients = self._baskets[basket_id]
            removed += [self._aged(entry) for entry in clients.pop(client_id)]
            if not clients:
                del self._baskets[basket_id]
        return tuple(removed)


_COUNTS = ("accepted", "popped", "withdrawn", "taken", "put")


def _round_number(round_id: object) -> int | None:
    if isinstance(round_id, bool | np.bool_) or not isinstance(round_id, int | np.integer):
        return None
    return operator.index(round_id)


__all__ = ["ClientUpdates", "UpdateBuffer", "staleness_weight"]
