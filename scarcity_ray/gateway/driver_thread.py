"""Where a gateway may call the federation's driver: in its own threads, or in the one that runs the rounds.

On Ray a gateway has a driver of its own. The local runtime is one process without threads, whose roles are
all called from where the rounds run: a gateway leaves its calls there, to be done while a round waits.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from scarcity_ray.errors import ActorLost
from scarcity_ray.federation.stopping import finishing

T = TypeVar("T")
FINISHING_SECONDS = 0.1
"""For which one call after the other is done before an interruption is let through."""


class OnDriver(Protocol):
    """Runs a function where the driver may be called, and gives what it gives."""

    def __call__(self, work: Callable[[], T], /) -> T:
        """Run `work`; what it raises is raised."""

    def start(self, work: Callable[[], T], /) -> Future[T]:
        """Have `work` done, one after the other."""


class OwnDriver:
    """For a driver that only one gateway calls: one call at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gateway-driver")

    def __call__(self, work: Callable[[], T], /) -> T:
        """Run `work` in the caller's thread."""
        with self._lock:
            return work()

    def start(self, work: Callable[[], T], /) -> Future[T]:
        """Run `work` in a thread of its own."""
        return self._thread.submit(self, work)


def _do(work: Callable[[], T], done: Future[T]) -> None:
    try:
        done.set_result(work())
    except Exception as error:
        done.set_exception(error)
    except BaseException:
        done.set_exception(ActorLost("driver", "it was interrupted", True))
        raise


class SharedDriver:
    """For a driver that another thread owns, which lets calls be done by `wait`.

    Guarantees:
        whoever_waits_is_answered: Also if the owner is interrupted meanwhile.
    """

    def __init__(self) -> None:
        self._left: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._is_closed = False

    def __call__(self, work: Callable[[], T], /) -> T:
        """Have `work` done by the owner, and wait for it.

        Raises:
            ActorLost: If the owner does nothing more.
        """
        return self.start(work).result()

    def start(self, work: Callable[[], T], /) -> Future[T]:
        """Have `work` done by the owner."""
        done: Future[T] = Future()
        self._left.put((work, done))
        if self._is_closed:
            self.close()
        return done

    def wait(self, seconds: float) -> None:
        """Do what is left here, and what comes in so many seconds."""
        until = time.monotonic() + seconds
        while True:
            try:
                work, done = self._left.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            with finishing():
                begun = time.monotonic()
                while True:
                    _do(work, done)
                    if time.monotonic() - begun > FINISHING_SECONDS:
                        break
                    try:
                        work, done = self._left.get_nowait()
                    except queue.Empty:
                        break

    def close(self) -> None:
        """Refuse whatever is left."""
        self._is_closed = True
        while True:
            try:
                _, done = self._left.get_nowait()
            except queue.Empty:
                return
            done.set_exception(ActorLost("driver", "the federation is closed", False))
