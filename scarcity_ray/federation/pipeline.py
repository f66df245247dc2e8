"""Updates whose receipts come later (docs/drivers.md#receipts-that-come-later)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import numpy as np

from scarcity_ray.actors.basket import SubmissionResult
from scarcity_ray.baskets import Receipt
from scarcity_ray.baskets.reports import NAMED
from scarcity_ray.baskets.submission import SubmissionBatch, joined
from scarcity_ray.errors import ActorLost, UsageError
from scarcity_ray.federation.client import BegunCalls

MOST_WAITING = 256
"""Updates that may wait here for the message before theirs; one more waits in the caller."""
MOST_WAITING_BYTES = 32 * 2**20
"""And how many bytes of theirs; a single update may have more."""
_ENDED = (
    (True, "sent and has no receipt, as the federation was closed: sent again, it is a replay if it arrived"),
    (False, "never sent, as the federation was closed: send it again"),
)
"""What became of an update without a receipt, by whether it was sent."""


@dataclass
class Wave:
    """A batch of updates on its way to its baskets, a message a basket actor.

    Attributes:
        batch: As it was signed.
        sent: The updates that each basket actor is sent, by their places in the batch, and the calls.
        beside: Whether others are made before these are answered.
        receipts: Those that are here, by place.
        due: The baskets that are.
        noted: The last calls whose answers are.
    """

    batch: SubmissionBatch
    sent: tuple[Mapping[int, Sequence[int]], BegunCalls[SubmissionResult]]
    beside: bool = False
    receipts: dict[int, Receipt] = field(default_factory=dict)
    due: set[str] = field(default_factory=set)
    noted: BegunCalls[SubmissionResult] | None = None


Receipts = tuple[list[Receipt], set[str]]
"""Receipts in order, and the baskets that are due."""


class PendingReceipt:
    """The receipt of an update that may still be on its way (`submit_update_async`).

    Attributes:
        was_sent: Whether its message was sent. Where `result` raises and it was not, the update is in no
            basket; where it was, nobody knows, and sent again it is a replay if it had arrived.
    """

    __slots__ = ("_error", "_pipeline", "_receipt", "was_sent")

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.was_sent = False
        self._receipt: Receipt | None = None
        self._error: Exception | None = None

    def done(self) -> bool:
        """Whether `result` would answer at once; waits for nothing."""
        if self._receipt is None and self._error is None:
            self._pipeline.go_on()
        return self._receipt is not None or self._error is not None

    def result(self) -> Receipt:
        """Wait for the receipt.

        Raises:
            ScarcityError: What `offer_update` would have raised; or what an update before this one met, and
                then it can be asked for again.
        """
        while self._receipt is None:
            if self._error is not None:
                raise self._error
            self._pipeline.settle()
        return self._receipt


class Pipeline:
    """Sends updates one behind the other: while a message is on its way, the updates after it are gathered.

    A message carries all that waited when the one before it was answered (as TCP gathers small writes,
    RFC 896), so that no update waits long and a busy actor gets few, large messages. No thread is started:
    answers are looked for when the caller sends, asks for a receipt or calls the federation otherwise.

    Guarantees:
        a_receipt_that_comes_later_is_that_of_a_call_that_waits
        a_wave_is_sent_again_under_its_number: Where an actor or its answer is lost; each update counts once.
        what_waits_is_bounded: By `MOST_WAITING` and `MOST_WAITING_BYTES`; beyond them the caller waits.
        what_has_no_receipt_at_the_end_is_told: Update by update, and whether it was sent.
        receipts_that_came_stay_though_a_release_fails: The error is raised by the call that met it.

    Args:
        begin: Signs a batch, and routes it.
        send: Sends what was not sent of it yet, and waits for no answer.
        receive: Waits for its receipts; done again if it was interrupted.
        follow: Does what is due after receipts, which may change those of updates that were refused.

    Attributes:
        is_used: Whether an update was ever sent so.
    """

    def __init__(
        self,
        begin: Callable[[SubmissionBatch], Wave],
        send: Callable[[Wave], None],
        receive: Callable[[Wave], Receipts],
        follow: Callable[[SubmissionBatch, list[Receipt], set[str]], list[Receipt]],
    ) -> None:
        self._begin, self._transmit, self._receive, self._follow = begin, send, receive, follow
        self.is_used = self._is_closed = False
        self._lock = threading.RLock()
        self._waiting: list[tuple[SubmissionBatch, PendingReceipt]] = []
        self._waiting_bytes = 0
        self._wave: tuple[Wave, Sequence[PendingReceipt]] | None = None

    def offer(self, batch: SubmissionBatch) -> PendingReceipt:
        """Take one update, which is copied; its receipt, which comes later.

        Raises:
            ScarcityError: What updates before it met, and then this one is not taken; or what it met itself.
        """
        row = batch.rows[0]
        batch = replace(batch, rows=(row.copy() if isinstance(row, np.ndarray) else row,))
        size = _size(batch)
        with self._lock:
            if self._is_closed:
                raise UsageError("this federation is closed")
            self.is_used = True
            is_full = self._waiting and self._waiting_bytes + size > MOST_WAITING_BYTES
            if is_full or len(self._waiting) == MOST_WAITING:
                self.settle()
            else:
                self.go_on()
            receipt = PendingReceipt(self)
            self._waiting.append((batch, receipt))
            self._waiting_bytes += size
            if self._wave is None:
                self._send()
        return receipt

    def go_on(self) -> None:
        """Take the receipts that are here, and send what waited for them; waits for nothing else."""
        with self._lock:
            if self._wave is not None:
                self._transmit(self._wave[0])
            if self._wave is None or self._wave[0].sent[1].are_answered():
                self.settle()

    def drain(self) -> None:
        """Send all that waits, and wait for its receipts."""
        with self._lock:
            while self._wave is not None or self._waiting:
                self.settle()

    def close(self) -> None:
        """Send all that waits, wait for its receipts, and take no more updates.

        A message's error does not keep the others from being sent, unless an actor is lost for good.

        Raises:
            ScarcityError: What was met first. Its notes name the updates that have no receipt, and each of
                these says so when it is asked for.
        """
        with self._lock:
            self._is_closed = True
            asked = self._without_receipt()
            first: Exception | None = None
            try:
                while self._wave is not None or self._waiting:
                    try:
                        self.settle()
                    except ActorLost:
                        raise
                    except Exception as error:
                        first = first or error
                if first is not None:
                    raise first
            except BaseException as failure:
                self._give_up(asked, failure)
                raise

    def settle(self) -> None:
        """Wait for the receipts of what is on its way, and send what waited for them."""
        with self._lock:
            if self._wave is not None:
                self._take(*self._wave)
            if self._waiting:
                self._send()

    def _without_receipt(self) -> dict[PendingReceipt, str]:
        """What is on its way and what waits, each named by its client and round."""
        known = [] if self._wave is None else [(self._wave[0].batch, self._wave[1])]
        known += [(batch, [pending]) for batch, pending in self._waiting]
        return {
            pending: client_id if batch.round_id is None else f"{client_id} (round {batch.round_id})"
            for batch, together in known
            for client_id, pending in zip(batch.client_ids, together, strict=True)
        }

    def _give_up(self, asked: Mapping[PendingReceipt, str], failure: BaseException) -> None:
        """Have what has no receipt say so, and tell with the failure what that is."""
        self._wave, self._waiting, self._waiting_bytes = None, [], 0
        for was_sent, what in _ENDED:
            lost = [p for p in asked if p._receipt is None and p.was_sent is was_sent]
            _fail([p for p in lost if p._error is None], UsageError(f"this update was {what}"))
            if lost:
                more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
                failure.add_note(f"{', '.join(asked[p] for p in lost[:NAMED])}{more}: {what}")

    def _take(self, wave: Wave, pending: Sequence[PendingReceipt]) -> None:
        try:
            receipts, due = self._receive(wave)
        except Exception as error:
            _fail(pending, error)
            self._wave = None
            raise
        _answer(pending, receipts)  # First, so that an interruption leaves none without.
        self._wave = None
        _answer(pending, self._follow(wave.batch, receipts, due))

    def _send(self) -> None:
        """Send the updates that wait, up to the first one for another round."""
        # After an interruption, without those that were sent by then.
        self._keep([one for one in self._waiting if one[1]._receipt is None and one[1]._error is None])
        if not self._waiting:
            return
        first = self._waiting[0][0].round_id
        together = list(takewhile(lambda waiting: _is_same(waiting[0].round_id, first), self._waiting))
        number = max(1, len(together))  # NaN is no round, and not the same as itself.
        batches, pending = zip(*self._waiting[:number], strict=True)
        try:
            wave = self._begin(joined(batches))
        except Exception as error:
            _fail(pending, error)
            self._keep(self._waiting[number:])
            raise
        self._wave = wave, pending
        for waiting in pending:
            waiting.was_sent = True
        self._keep(self._waiting[number:])
        self._transmit(wave)

    def _keep(self, waiting: list[tuple[SubmissionBatch, PendingReceipt]]) -> None:
        self._waiting, self._waiting_bytes = waiting, sum(_size(batch) for batch, _ in waiting)


def _size(batch: SubmissionBatch) -> int:
    return sum(row.nbytes for row in batch.rows if isinstance(row, np.ndarray))


def _is_same(round_id: object, other: object) -> bool:
    return type(round_id) is type(other) and round_id == other


def _answer(pending: Sequence[PendingReceipt], receipts: Sequence[Receipt]) -> None:
    for waiting, receipt in zip(pending, receipts, strict=True):
        waiting._receipt = receipt


def _fail(pending: Sequence[PendingReceipt], error: Exception) -> None:
    for waiting in pending:
        waiting._error = error
