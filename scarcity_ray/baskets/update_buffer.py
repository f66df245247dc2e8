"""Updates that wait for Layer 1, basket by basket, and the judgement of those that arrive."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scarcity_ray.baskets.least import Least
from scarcity_ray.baskets.replay import ReplayGuard, ReplayKey
from scarcity_ray.baskets.update import BufferedUpdate, FloatRow, Rejection, content_digest, read_row
from scarcity_ray.config import BufferConfig
from scarcity_ray.errors import UsageError
from scarcity_ray.updates import GREATEST


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


@dataclass(frozen=True, eq=False, slots=True)
class JudgedUpdate:
    """An update in good form, for a round that is open: all of it that must be kept if it is accepted.

    Attributes:
        client_id: Who sent it.
        update: Finite float32 (d,), read-only, the basket's own.
        round_id: The round that it was sent for.
        digest: `content_digest` of it.
        sequence: The client's own number for it; None: the client does not count.
        num_examples: Examples that the client says are behind it; None: it does not say.
    """

    client_id: str
    update: FloatRow
    round_id: int
    digest: bytes
    sequence: int | None = None
    num_examples: int | None = None

    @property
    def key(self) -> ReplayKey:
        """What it is remembered by."""
        return ReplayKey(self.client_id, self.round_id, self.digest, self.sequence)


def staleness_weight(staleness: int) -> float:
    """s(tau) = (1 + tau)^-1/2, the weight of an update tau rounds old (Nguyen et al., FedBuff, 2022).

    >>> staleness_weight(3)
    0.5
    """
    return float((1.0 + staleness) ** -0.5)


class UpdateBuffer:
    """Buffers the accepted updates of any number of baskets.

    An arriving update is judged in this order: `not_numeric`, `wrong_shape`, `not_finite` (see `read_row`; a
    round or sequence number that is no integer, or a number of examples that is no positive one, is
    `not_numeric`), `future_round` (after the buffer's round), `too_stale` (more than `max_staleness` rounds
    before it, or negative), `replayed`, `sequence_used` (the client gave that number to another update of the
    round), `participation_cap`. The reasons that need to know clients, keys or budgets are the caller's to
    give, and to report with `count_rejection`; who must look at a signature does so between `judge`, which
    knows the round and the content, and `refusal`, which asks what was accepted before.

    Guarantees:
        - No message raises; every refusal is counted under one reason.
        - An update has been accepted exactly if it is counted, counts against its client's cap, is a replay
          from now on, and was buffered.
        - An accepted update leaves exactly once: popped, withdrawn, or taken to another basket.
        - A replay stays a replay after its update was popped.
        - The participation cap counts accepted updates, also popped and withdrawn ones.
        - A row never exceeds the largest norm of the updates behind it.
        - The buffer keeps its own copy: what a client does to its array afterwards changes nothing.
        - Nothing that happens once an update or a client looks at the others that wait: counts, the oldest
          round and the oldest time are kept up with every change.

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
        self._baskets: dict[str, _Waiting] = {}
        self._rejections: Counter[Rejection] = Counter()
        self._counts: Counter[str] = Counter()

    def add(
        self, client_id: str, basket_id: str, update: object, round_id: object = None, *, now: float
    ) -> bool:
        """`offer`, for callers that need no reason: True if the update was accepted."""
        return self.offer(client_id, basket_id, update, round_id, now=now) is None

    def offer(
        self,
        client_id: str,
        basket_id: str,
        update: object,
        round_id: object = None,
        *,
        now: float,
        sequence: object = None,
        num_examples: object = None,
    ) -> Rejection | None:
        """Accept an update (None), or count and return why not.

        Args:
            client_id: Who sent it; the caller knows that it is a member of the basket.
            basket_id: Where it goes.
            update: Anything; a finite real (d,) vector is accepted.
            round_id: The round that it was made for; None is the buffer's round.
            now: Seconds.
            sequence: The client's own number for it, if it counts.
            num_examples: Examples behind it, if the client says.
        """
        row = read_row(update, self.vector_dim)
        judged = self.judge(client_id, row, round_id, sequence=sequence, num_examples=num_examples)
        reason = judged if isinstance(judged, Rejection) else self.refusal(judged)
        if reason is not None:
            self.count_rejection(reason)
        elif isinstance(judged, JudgedUpdate):
            self.accept(judged, basket_id, now=now)
        return reason

    def judge(
        self,
        client_id: str,
        row: FloatRow | Rejection,
        round_id: object = None,
        *,
        sequence: object = None,
        num_examples: object = None,
    ) -> JudgedUpdate | Rejection:
        """The update if it is in good form and its round is open, or why not. Changes nothing.

        Args:
            client_id: Who sent it.
            row: What `read_row` made of it; kept as it is.
            round_id: The round that it was made for; None is the buffer's round.
            sequence: The client's own number for it, if it counts.
            num_examples: Examples behind it, if the client says.
        """
        if isinstance(row, Rejection):
            return row
        number = self.round_id if round_id is None else _integer(round_id)
        if (
            number is None
            or (sequence is not None and not _fits(sequence, 0))
            or (num_examples is not None and not _fits(num_examples, 1))
        ):
            return Rejection.NOT_NUMERIC
        if number > self.round_id:
            return Rejection.FUTURE_ROUND
        if not self.is_open(number):
            return Rejection.TOO_STALE
        return JudgedUpdate(
            client_id, row, number, content_digest(row), _integer(sequence), _integer(num_examples)
        )

    def is_open(self, round_id: int) -> bool:
        """Whether updates for a round are still taken."""
        return 0 <= round_id <= self.round_id and not self._is_stale(round_id)

    def refusal(self, judged: JudgedUpdate) -> Rejection | None:
        """Why an update cannot be accepted after those that were; None if it can. Changes nothing."""
        if not self._guard.check(judged.key):
            return Rejection.REPLAYED
        if self._guard.has_used(judged.client_id, judged.round_id, judged.sequence):
            return Rejection.SEQUENCE_USED
        if self._guard.count(judged.client_id, judged.round_id) >= self.config.participation_cap:
            return Rejection.PARTICIPATION_CAP
        return None

    def accept(self, judged: JudgedUpdate, basket_id: str, *, now: float) -> None:
        """Accept an update: here alone, and this is what *accepted* means.

        The update was judged and nothing speaks against it (`judge`, `refusal`). From now on it counts
        against its client's participation cap and is a replay if it comes again, with its sequence number
        used; and it waits in the buffer, from which it leaves for exactly one aggregate, unless its client
        withdraws it. Whoever tells a client "accepted" (a receipt, a journal, a gateway) tells that this
        was done, and what must be written down to do it again is `judged`, the basket and the time.

        Args:
            judged: What `judge` gave and `refusal` has nothing against.
            basket_id: Where it waits.
            now: Seconds.
        """
        self._guard.mark(judged.key)
        staleness = self.round_id - judged.round_id
        self._waiting(basket_id).add(
            BufferedUpdate(
                judged.client_id,
                basket_id,
                judged.update,
                judged.round_id,
                now,
                staleness=staleness,
                num_examples=judged.num_examples,
            )
        )
        self._counts["accepted"] += 1

    def count_rejection(self, reason: Rejection) -> None:
        """Count an update that was refused before it came here."""
        self._rejections[reason] += 1

    def clients(self, basket_id: str) -> tuple[str, ...]:
        """Clients with buffered updates, sorted: one vote each."""
        return tuple(sorted(self._clients(basket_id)))

    def num_clients(self, basket_id: str) -> int:
        """How many clients have buffered updates."""
        return len(self._clients(basket_id))

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
        if len(entries) == 1 and entries[0].round_id >= current:
            return entries[0].update + np.float32(0.0)  # the sum of one term, bit by bit
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

    def num_examples(self, basket_id: str, client_id: str) -> int | None:
        """What a client's newest buffered update that says so says of its examples; None if none does."""
        told = (entry.num_examples for entry in reversed(self._entries(basket_id, client_id)))
        return next((number for number in told if number is not None), None)

    def get_basket_updates(self, basket_id: str) -> tuple[BufferedUpdate, ...]:
        """A basket's buffered updates, by client id, then in order of arrival."""
        clients = self._clients(basket_id)
        return tuple(self._aged(entry) for client_id in sorted(clients) for entry in clients[client_id])

    def pop_basket_updates(self, basket_id: str) -> tuple[BufferedUpdate, ...]:
        """What `get_basket_updates` returns, and remove it: it has gone into an aggregate."""
        updates = self.get_basket_updates(basket_id)
        self._baskets.pop(basket_id, None)
        self._counts["popped"] += len(updates)
        return updates

    def num_updates(self, basket_id: str) -> int:
        """Buffered updates of a basket."""
        return self._baskets[basket_id].count if basket_id in self._baskets else 0

    def oldest_staleness(self, basket_id: str) -> int:
        """Rounds that the oldest buffered update of a basket lies back; 0 if there is none."""
        oldest = self._baskets[basket_id].rounds.least() if basket_id in self._baskets else None
        return 0 if oldest is None else self.round_id - oldest

    def oldest_timestamp(self, basket_id: str) -> float | None:
        """When the oldest buffered update of a basket was accepted, in seconds; None if there is none."""
        return self._baskets[basket_id].times.least() if basket_id in self._baskets else None

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
            self._waiting(basket_id).add(replace(entry, basket_id=basket_id))
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

    def _clients(self, basket_id: str) -> Mapping[str, list[BufferedUpdate]]:
        return self._baskets[basket_id].clients if basket_id in self._baskets else {}

    def _waiting(self, basket_id: str) -> _Waiting:
        if basket_id not in self._baskets:
            self._baskets[basket_id] = _Waiting()
        return self._baskets[basket_id]

    def _entries(self, basket_id: str, client_id: str) -> list[BufferedUpdate]:
        entries = self._clients(basket_id).get(client_id)
        if not entries:
            raise UsageError(f"client {client_id!r} has no buffered update in basket {basket_id!r}")
        return entries

    def _is_stale(self, round_id: int) -> bool:
        return self.round_id - round_id > self.config.max_staleness

    def _aged(self, entry: BufferedUpdate) -> BufferedUpdate:
        return replace(entry, staleness=self.round_id - entry.round_id)

    def _remove(self, client_id: str) -> tuple[BufferedUpdate, ...]:
        removed: list[BufferedUpdate] = []
        for basket_id in [name for name, waiting in self._baskets.items() if client_id in waiting.clients]:
            removed += map(self._aged, self._baskets[basket_id].remove(client_id))
            if not self._baskets[basket_id].clients:
                del self._baskets[basket_id]
        return tuple(removed)


class _Waiting:
    """What one basket has buffered, and what is asked of it at every update."""

    def __init__(self) -> None:
        self.clients: dict[str, list[BufferedUpdate]] = {}
        self.count = 0
        self.rounds: Least[int] = Least()
        self.times: Least[float] = Least()

    def add(self, entry: BufferedUpdate) -> None:
        self.clients.setdefault(entry.client_id, []).append(entry)
        self.count += 1
        self.rounds.add(entry.round_id)
        self.times.add(entry.timestamp)

    def remove(self, client_id: str) -> list[BufferedUpdate]:
        entries = self.clients.pop(client_id)
        self.count -= len(entries)
        for entry in entries:
            self.rounds.remove(entry.round_id)
            self.times.remove(entry.timestamp)
        return entries


_COUNTS = ("accepted", "popped", "withdrawn", "taken", "put")


def _integer(value: object) -> int | None:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        return None
    return operator.index(value)


def _fits(value: object, least: int) -> bool:
    number = _integer(value)
    return number is not None and least <= number <= GREATEST


__all__ = ["ClientUpdates", "JudgedUpdate", "UpdateBuffer", "staleness_weight"]
