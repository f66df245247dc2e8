"""Many callers' questions in one call at a time: what comes while a call is under way goes with the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")

MOST_TOGETHER = 256


class Batches(Generic[Q, A]):
    """Asks where `start` has calls done; a call that is done elsewhere does not block the event loop.

    Args:
        answer: Given questions, the answer to each in order.
        start: Has a call of it done: in a thread, or before it returns (`at_once`).
        size: Bytes of a question; a call has one, or so many as are not above `most_bytes` together.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[A]],
        start: Callable[[Callable[[], Sequence[A]]], Future[Sequence[A]]],
        size: Callable[[Q], int] = lambda question: 0,
        most_bytes: int = 64 * 2**20,
    ) -> None:
        self._answer, self._start, self._size, self._most_bytes = answer, start, size, most_bytes
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._is_asking = self._is_due = False

    def ask(self, question: Q) -> asyncio.Future[A]:
        """The answer, with those of the questions beside it; what its call raises is raised for all."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, future))
        if not (self._is_due or self._is_asking):
            self._is_due = True
            loop.call_soon(self._go_on, loop)  # with what other requests ask in this turn of the loop
        return future

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_due = False
        while self._waiting and not self._is_asking:
            taken = self._take()
            questions = [question for question, _ in taken]
            futures = [future for _, future in taken]
            try:
                call = self._start(lambda asked=questions: self._answer(asked))  # type: ignore[misc]
            except Exception as error:
                call = Future()
                call.set_exception(error)
            if call.done():
                _tell(futures, call)
                continue
            self._is_asking = True

            def ended(call: Future[Sequence[A]], futures: Sequence[asyncio.Future[A]] = futures) -> None:
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(self._ended, loop, futures, call)

            call.add_done_callback(ended)

    def _ended(
        self, loop: asyncio.AbstractEventLoop, futures: Sequence[asyncio.Future[A]], call: Future[Sequence[A]]
    ) -> None:
        self._is_asking = False
        self._go_on(loop)
        _tell(futures, call)

    def _take(self) -> list[tuple[Q, asyncio.Future[A]]]:
        count, num_bytes = 0, 0
        for question, _ in self._waiting[:MOST_TOGETHER]:
            num_bytes += self._size(question)
            if count and num_bytes > self._most_bytes:
                break
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken


def at_once(work: Callable[[], T]) -> Future[T]:
    """Do a call before this returns."""
    done: Future[T] = Future()
    try:
        done.set_result(work())
    except Exception as error:
        done.set_exception(error)
    return done


def _tell(futures: Sequence[asyncio.Future[A]], call: Future[Sequence[A]]) -> None:
    error = asyncio.CancelledError() if call.cancelled() else call.exception()
    answers = [None] * len(futures) if error is not None else call.result()
    for future, answer in zip(futures, answers, strict=True):
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(answer)  # type: ignore[arg-type]
