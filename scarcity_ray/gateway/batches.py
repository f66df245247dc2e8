"""Many callers' questions in one call at a time: what comes while a call is under way goes with the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")

MOST_TOGETHER = 256


class Batches(Generic[Q, A]):
    """Asks in a thread of its own; a call blocks neither the event loop nor another `Batches`.

    Args:
        answer: Given questions, the answer to each in order.
        name: Of the thread.
        size: Bytes of a question; a call has one, or so many as are not above `most_bytes` together.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[A]],
        name: str,
        size: Callable[[Q], int] = lambda question: 0,
        most_bytes: int = 64 * 2**20,
    ) -> None:
        self._answer, self._size, self._most_bytes = answer, size, most_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """The answer, with those of the questions beside it; what its call raises is raised for all."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await future

    def close(self) -> None:
        """End the thread once its call is answered."""
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                taken = self._take()
                try:
                    questions = [question for question, _ in taken]
                    answers = await loop.run_in_executor(self._thread, self._answer, questions)
                except Exception as error:
                    for _, future in taken:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), answer in zip(taken, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
        finally:
            self._task = None

    def _take(self) -> list[tuple[Q, asyncio.Future[A]]]:
        count, num_bytes = 0, 0
        for question, _ in self._waiting[:MOST_TOGETHER]:
            num_bytes += self._size(question)
            if count and num_bytes > self._most_bytes:
                break
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken
