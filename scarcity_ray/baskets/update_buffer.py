"""Buffers of accepted updates that wait for Layer 1, and the checks on those that arrive.

`BasketBuffer` is one basket's; `UpdateBuffer` holds several by basket id. A `ReplayGuard` remembers what was
accepted before.
"""

from __future__ import annotations

import heapq
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from scarcity_ray.config import BufferConfig
from scarcity_ray.errors import UsageError
from scarcity_ray.updates import GREATEST, FloatRow, Rejection, content_digest, read_row

N = TypeVar("N", int, float)


@dataclass(frozen=True, eq=False)
class BufferedUpdate:
    """An accepted update.

    Attributes:
        update: The buffer's own copy, float32 (d,), read-only.
        round_id: The round that it was sent for.
        timestamp: When it was accepted, in seconds.
        staleness: Rounds between `round_id` and the buffer's round when this was read.
        num_examples: Training examples behind it, if its client says.
        receipt: Key of the receipt for it, 32 bytes; empty without receipts.
    """

    client_id: str
    basket_id: str
    update: FloatRow
    round_id: int
    timestamp: float
    staleness: int
    num_examples: int | None = None
    receipt: bytes = b""


class ReplayKey(NamedTuple):
    """What makes two updates the same: client, round and content.

    Attributes:
        digest: `content_digest` of its float32 row.
        sequence: The client's own number for it within the round, if the client counts.
    """

    client_id: str
    round_id: int
    digest: bytes
    sequence: int | None = None


class ReplayGuard:
    """Remembers the content digests of accepted updates, by round and client, each with the client's number.

    Guarantees:
        A marked key fails the check until its round is cleared, whatever became of the update.
        A marked sequence number is used: no other content of that client and round may have it.
        Memory is bounded: with the buffer's cap, at most cap digests for each client and round, and rounds
            are cleared once their updates are too stale to be accepted at all.
    """

    def __init__(self) -> None:
        self._rounds: dict[int, dict[str, dict[bytes, int | None]]] = {}

    def accepted(self, client_id: str, round_id: int) -> Mapping[bytes, int | None]:
        """The digests of a client's accepted updates for a round, each with its sequence number, if any."""
        return self._rounds.get(round_id, {}).get(client_id, {})

    def check(self, key: ReplayKey) -> bool:
        """True if `key` is new, False if it is a replay, whatever its sequence number."""
        return key.digest not in self.accepted(key.client_id, key.round_id)

    def mark(self, key: ReplayKey) -> None:
        """Remember `key` as accepted."""
        client_id, round_id, digest, sequence = key
        self._rounds.setdefault(round_id, {}).setdefault(client_id, {})[digest] = sequence

    def clear_round(self, round_id: int) -> None:
        """Forget a round."""
        self._rounds.pop(round_id, None)

    def clear_before(self, round_id: int) -> None:
        """Forget all rounds before `round_id`."""
        for old in [known for known in self._rounds if known < round_id]:
            self.clear_round(old)

    def keys_of(self, client_id: str) -> tuple[ReplayKey, ...]:
        """All keys remembered of a client, by round and digest."""
        return tuple(
            ReplayKey(client_id, round_id, digest, sequence)
            for round_id, clients in sorted(self._rounds.items())
            for digest, sequence in sorted(clients.get(client_id, {}).items(), key=lambda item: item[0])
        )


@dataclass(frozen=True, eq=False, slots=True)
class JudgedUpdate:
    """A well-formed update for an open round, as it can be accepted (and journalled).

    Attributes:
        update: Finite float32 (d,), read-only, the basket's own.
        round_id: The round that it was sent for.
        digest: `content_digest` of it.
        sequence: The client's own number for it, if the client counts.
        num_examples: Training examples behind it, if the client says.
        receipt: Key of the receipt for it, 32 bytes; empty without receipts.
    """

    client_id: str
    update: FloatRow
    round_id: int
    digest: bytes
    sequence: int | None = None
    num_examples: int | None = None
    receipt: bytes = b""

    @property
    def key(self) -> ReplayKey:
        """The key of the `ReplayGuard` for it."""
        return ReplayKey(self.client_id, self.round_id, self.digest, self.sequence)


@dataclass(frozen=True, eq=False)
class ClientUpdates:
    """What a client takes along when it moves to another basket; plain data.

    Attributes:
        updates: Its buffered updates, in order of arrival.
        accepted: Keys of all its accepted updates, for replays and the participation cap.
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


class BasketBuffer:
    """Buffers one basket's accepted updates.

    An arriving update is checked in this order: `not_numeric`, `wrong_shape`, `not_finite` (see `read_row`; a
    round or sequence number that is no integer, or a number of examples that is no positive one, is
    `not_numeric`), `future_round` (after the buffer's round), `too_stale` (more than `max_staleness` rounds
    before it, or negative), `replayed`, `sequence_used` (the client gave that number to another update of the
    round), `participation_cap`. `judge` makes the checks before `replayed`, `refusal` the others; a caller
    checks a signature between the two. Rejections that depend on clients, keys or budgets are made by the
    caller, which counts them in `rejections`.

    Guarantees:
        No update makes it raise; every refusal is counted under one reason.
        An accepted update is counted, counts against its client's cap, is a replay from then on, and is
            buffered; any other is none of these.
        an_accepted_update_leaves_exactly_once: Popped, withdrawn, or taken to another basket.
        a_replay_stays_a_replay_after_its_update_was_popped
        the_participation_cap_counts_accepted_updates_also_popped_and_withdrawn_ones
        a_row_never_exceeds_the_largest_norm_of_the_updates_behind_it
        the_buffer_keeps_its_own_copy: What a client does to its array afterwards changes nothing.
        nothing_that_happens_once_an_update_or_a_client_looks_at_the_others_that_wait: Counts, the oldest
            round and the oldest time are kept up to date with every change.

    Args:
        guard: What was accepted, if several buffers share that.

    Attributes:
        counts: Updates since the start: accepted + put = `num_updates` + popped + withdrawn + taken.
        rejections: Refused updates since the start, by reason.
        num_updates: Updates that wait.
        num_clients: Clients whose updates wait.
    """

    def __init__(
        self,
        config: BufferConfig,
        vector_dim: int,
        basket_id: str,
        *,
        round_id: int = 0,
        guard: ReplayGuard | None = None,
    ) -> None:
        self.config = config
        self.vector_dim = vector_dim
        self.basket_id = basket_id
        self.round_id = round_id
        self.counts: Counter[str] = Counter()
        self.rejections: Counter[Rejection] = Counter()
        self._guard = guard or ReplayGuard()
        self.num_updates = 0
        self.num_clients = 0
        self._forget_waiting()

    def offer(
        self,
        client_id: str,
        update: object,
        round_id: object = None,
        *,
        now: float,
        sequence: object = None,
        num_examples: object = None,
    ) -> Rejection | None:
        """Accept an update (None), or count and return why not; `judge` has the arguments.

        Args:
            update: Anything; a finite real (d,) vector is accepted.
        """
        row = read_row(update, self.vector_dim)
        judged = self.judge(client_id, row, round_id, sequence=sequence, num_examples=num_examples)
        reason = judged if isinstance(judged, Rejection) else self.refusal(judged)
        if reason is not None:
            self.rejections[reason] += 1
        elif isinstance(judged, JudgedUpdate):
            self.accept(judged, now=now)
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
        """The update if it is well formed and its round is open, or why not. Changes nothing.

        Args:
            client_id: A member of the basket.
            row: The result of `read_row` on the update; not copied.
            round_id: The round that it was made for; None is the buffer's round.
            sequence: The client's own number for it, if it counts.
            num_examples: Examples behind it, if the client says.
        """
        if isinstance(row, Rejection):
            return row
        number = self.round_id if round_id is None else _integer(round_id)
        counted = None if sequence is None else _integer(sequence, 0)
        stated = None if num_examples is None else _integer(num_examples, 1)
        if (
            number is None
            or (counted is None and sequence is not None)
            or (stated is None and num_examples is not None)
        ):
            return Rejection.NOT_NUMERIC
        if number > self.round_id:
            return Rejection.FUTURE_ROUND
        if number < max(0, self.round_id - self.config.max_staleness):
            return Rejection.TOO_STALE
        return JudgedUpdate(client_id, row, number, content_digest(row), counted, stated)

    def is_open(self, round_id: int) -> bool:
        """Whether updates for a round are still taken."""
        return max(0, self.round_id - self.config.max_staleness) <= round_id <= self.round_id

    def refusal(self, judged: JudgedUpdate) -> Rejection | None:
        """Why an update cannot be accepted after the earlier ones; None if it can. Changes nothing."""
        earlier = self._guard.accepted(judged.client_id, judged.round_id)
        if judged.digest in earlier:
            return Rejection.REPLAYED
        if judged.sequence is not None and judged.sequence in earlier.values():
            return Rejection.SEQUENCE_USED
        if len(earlier) >= self.config.participation_cap:
            return Rejection.PARTICIPATION_CAP
        return None

    def accept(self, judged: JudgedUpdate, *, now: float) -> None:
        """Accept an update that passed `judge` and `refusal`. This is what *accepted* means everywhere.

        From now on the update counts against its client's participation cap, is a replay if it comes again,
        and its sequence number is used. It waits in the buffer for exactly one aggregate, unless its client
        withdraws it. To do it again (from a journal), `judged`, the basket and the time suffice.
        """
        self._guard.mark(judged.key)
        self._wait(
            BufferedUpdate(
                judged.client_id,
                self.basket_id,
                judged.update,
                judged.round_id,
                now,
                staleness=self.round_id - judged.round_id,
                num_examples=judged.num_examples,
                receipt=judged.receipt,
            )
        )
        self.counts["accepted"] += 1

    def clients(self) -> tuple[str, ...]:
        """Clients with buffered updates, sorted: one vote each."""
        return tuple(sorted(self._waiting))

    def row(self, client_id: str) -> FloatRow:
        """A client's one vote: (1/m) sum of s(tau_i) u_i over its m buffered updates, not renormalised.

        Accumulated in float64 in order of arrival and rounded once (FedBuff's staleness weights, Nguyen et
        al. 2022). All weights are at most 1, so the norm never exceeds the largest of the updates'.

        Returns:
            A new float32 array (d,).

        Raises:
            UsageError: If the client has nothing buffered, here and below.
        """
        entries = self._entries(client_id)
        if len(entries) == 1 and entries[0].round_id >= self.round_id:
            return entries[0].update + np.float32(0.0)  # the sum of one term, bit by bit
        total: npt.NDArray[np.float64] = np.zeros(self.vector_dim)
        for entry in entries:
            weight = staleness_weight(max(0, self.round_id - entry.round_id))
            total += weight * entry.update.astype(np.float64)
        return (total / len(entries)).astype(np.float32)

    def newest(self, client_id: str) -> FloatRow:
        """A client's update that was accepted last, float32 (d,)."""
        return self._entries(client_id)[-1].update

    def num_examples(self, client_id: str) -> int | None:
        """The number of examples from a client's newest buffered update that states one, else None."""
        stated = reversed(self.examples(client_id))
        return next((number for number in stated if number is not None), None)

    def examples(self, client_id: str) -> tuple[int | None, ...]:
        """The number of examples of each of a client's buffered updates; None where it states none."""
        return tuple(entry.num_examples for entry in self._entries(client_id))

    def receipts(self, client_id: str | None = None) -> tuple[bytes, ...]:
        """Keys of the receipts for what is buffered of a client (of all, if None)."""
        waiting = self._waiting.values() if client_id is None else [self._waiting.get(client_id, [])]
        return tuple(entry.receipt for entries in waiting for entry in entries if entry.receipt)

    def updates(self) -> tuple[BufferedUpdate, ...]:
        """The buffered updates, by client id, then in order of arrival."""
        return tuple(self._aged(entry) for client_id in self.clients() for entry in self._waiting[client_id])

    def pop(self) -> None:
        """Remove all buffered updates: they have gone into an aggregate."""
        self.counts["popped"] += self.num_updates
        self._forget_waiting()

    def oldest_staleness(self) -> int:
        """Age of the oldest buffered update, in rounds; 0 if there is none."""
        oldest = self._rounds.value
        return 0 if oldest is None else self.round_id - oldest

    def oldest_timestamp(self) -> float | None:
        """When the oldest buffered update was accepted, in seconds; None if there is none."""
        return self._times.value

    def advance_round(self, round_id: int | None = None) -> None:
        """Move to a later round (the next one if None); buffered updates stay, with less weight."""
        self.round_id = _later(self.round_id, round_id)
        self._guard.clear_before(self.round_id - self.config.max_staleness)

    def withdraw(self, client_id: str) -> int:
        """Remove a leaving client's buffered updates, and return how many they were.

        Their keys stay, so that coming back neither replays them nor resets the client's cap.
        """
        withdrawn = len(self._remove(client_id))
        self.counts["withdrawn"] += withdrawn
        return withdrawn

    def take_client(self, client_id: str) -> ClientUpdates:
        """Remove a client's buffered updates; these and its keys, for `put_client` elsewhere."""
        updates = tuple(map(self._aged, self._remove(client_id)))
        self.counts["taken"] += len(updates)
        return ClientUpdates(client_id, updates, self._guard.keys_of(client_id))

    def put_client(self, moved: ClientUpdates) -> None:
        """Add what `take_client` returned elsewhere."""
        for key in moved.accepted:
            if key.round_id >= self.round_id - self.config.max_staleness:
                self._guard.mark(key)
        for entry in moved.updates:
            self._wait(replace(entry, basket_id=self.basket_id))
        self.counts["put"] += len(moved.updates)

    def keys_of(self, client_id: str) -> tuple[ReplayKey, ...]:
        """Keys of all accepted updates that are remembered of a client."""
        return self._guard.keys_of(client_id)

    def waiting_keys(self, client_id: str) -> set[tuple[int, bytes]]:
        """Round and content digest of a client's buffered updates."""
        return {(e.round_id, content_digest(e.update)) for e in self._waiting.get(client_id, ())}

    def _entries(self, client_id: str) -> list[BufferedUpdate]:
        entries = self._waiting.get(client_id)
        if not entries:
            raise UsageError(f"client {client_id!r} has no buffered update in basket {self.basket_id!r}")
        return entries

    def _aged(self, entry: BufferedUpdate) -> BufferedUpdate:
        return replace(entry, staleness=self.round_id - entry.round_id)

    def _wait(self, entry: BufferedUpdate) -> None:
        self._waiting.setdefault(entry.client_id, []).append(entry)
        self.num_updates += 1
        self.num_clients = len(self._waiting)
        self._rounds.add(entry.round_id)
        self._times.add(entry.timestamp)

    def _remove(self, client_id: str) -> list[BufferedUpdate]:
        entries = self._waiting.pop(client_id, [])
        self.num_updates -= len(entries)
        self.num_clients = len(self._waiting)
        for entry in entries:
            self._rounds.remove(entry.round_id)
            self._times.remove(entry.timestamp)
        return entries

    def _forget_waiting(self) -> None:
        self._waiting: dict[str, list[BufferedUpdate]] = {}
        self._rounds, self._times = Least[int](), Least[float]()
        self.num_updates = self.num_clients = 0


class Least(Generic[N]):
    """The least of a changing multiset of numbers, in O(log n) a change.

    Attributes:
        value: The least of the values added and not removed; None if there is none.
    """

    def __init__(self) -> None:
        self.value: N | None = None
        self._counts: dict[N, int] = {}
        self._heap: list[N] = []

    def add(self, value: N) -> None:
        """Add a value once more."""
        count = self._counts.get(value, 0)
        self._counts[value] = count + 1
        if not count:
            heapq.heappush(self._heap, value)
            self.value = self._heap[0]

    def remove(self, value: N) -> None:
        """Remove a value once; its heap entry stays until it comes to the top."""
        self._counts[value] -= 1
        if not self._counts[value]:
            del self._counts[value]
        while self._heap and self._heap[0] not in self._counts:
            heapq.heappop(self._heap)
        self.value = self._heap[0] if self._heap else None


class UpdateBuffer:
    """The buffers of several baskets; in a federation each basket holds its own `BasketBuffer`."""

    def __init__(self, config: BufferConfig, vector_dim: int, *, round_id: int = 0) -> None:
        self.config = config
        self.vector_dim = vector_dim
        self.round_id = round_id
        self._guard = ReplayGuard()
        self._baskets: dict[str, BasketBuffer] = {}

    def add(
        self, client_id: str, basket_id: str, update: object, round_id: object = None, *, now: float
    ) -> bool:
        """Whether an update was accepted into a basket; see `BasketBuffer.offer`."""
        buffer = self._baskets.get(basket_id)
        if buffer is None:
            buffer = self._baskets[basket_id] = BasketBuffer(
                self.config, self.vector_dim, basket_id, round_id=self.round_id, guard=self._guard
            )
        return buffer.offer(client_id, update, round_id, now=now) is None

    def get_basket_updates(self, basket_id: str) -> tuple[BufferedUpdate, ...]:
        """A basket's buffered updates, by client id, then in order of arrival."""
        return self._baskets[basket_id].updates() if basket_id in self._baskets else ()

    def pop_basket_updates(self, basket_id: str) -> tuple[BufferedUpdate, ...]:
        """What `get_basket_updates` returns, and remove it: it has gone into an aggregate."""
        updates = self.get_basket_updates(basket_id)
        if updates:
            self._baskets[basket_id].pop()
        return updates

    def advance_round(self, round_id: int | None = None) -> None:
        """Move to a later round (the next one if None)."""
        self.round_id = _later(self.round_id, round_id)
        for buffer in self._baskets.values():
            buffer.advance_round(self.round_id)

    def get_stats(self) -> dict[str, Any]:
        """Counts since the start, over all baskets: accepted = buffered + popped."""
        buffers = [buffer for _, buffer in sorted(self._baskets.items())]
        rejections = sum((buffer.rejections for buffer in buffers), Counter[Rejection]())
        return {
            "round_id": self.round_id,
            "buffered": sum(buffer.num_updates for buffer in buffers),
            "buffered_by_basket": {b.basket_id: b.num_updates for b in buffers if b.num_updates},
            "accepted": sum(buffer.counts["accepted"] for buffer in buffers),
            "popped": sum(buffer.counts["popped"] for buffer in buffers),
            "rejected": rejections.total(),
            "rejections": {str(reason): rejections[reason] for reason in Rejection},
        }


def _later(current: int, round_id: int | None) -> int:
    later = current + 1 if round_id is None else round_id
    if later < current:
        raise UsageError(f"round {later} lies before the buffer's round {current}")
    return later


def _integer(value: object, least: int | None = None) -> int | None:
    """The value if it is an integer, with a `least` one from there to `GREATEST`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        return None
    number = operator.index(value)
    return number if least is None or least <= number <= GREATEST else None
