"""SIGTERM and Ctrl-C within a release: what is charged is finished and stored, then the process ends.

`ray job stop` sends SIGTERM, and SIGKILL three seconds later. A release that was charged and is not stored
is lost with its charge. So an interruption waits for a release under way, a few seconds at most; what else is
under way can be done again (docs/resume.md). It then does what it would have done: what the process has set
for the signal, be it Python's own, Ray's (which ends a driver by `SystemExit`) or a handler of the user's.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar

GRACE_SECONDS = 2.5
"""How long an interruption waits; below the three seconds of ``RAY_JOB_STOP_WAIT_TIME_S``."""
INTERRUPTING = signal.SIGINT, signal.SIGTERM


@contextmanager
def finishing() -> Iterator[None]:
    """A block that is not interrupted by SIGTERM and Ctrl-C, unless it takes longer than `GRACE_SECONDS`.

    A second signal does not wait. Only Python's main thread hears signals: in others nothing changes.
    """
    if _Waiting.is_on or threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting = _Waiting()
    try:
        yield
    finally:
        waiting.end()


class _Waiting:
    """Handlers in the place of the process's own, until the block is done."""

    is_on: ClassVar[bool] = False

    def __init__(self) -> None:
        own = {number: signal.getsignal(number) for number in INTERRUPTING}
        # One that is ignored stays so; None is one that was not set from Python.
        self._own = {n: handler for n, handler in own.items() if handler not in (None, signal.SIG_IGN)}
        self._came = 0
        self._alarm = signal.getsignal(signal.SIGALRM)
        for number in self._own:
            signal.signal(number, self.hear)
        _Waiting.is_on = True

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The first signal is kept for the end of the block; the second, or the grace's end, ends it."""
        if self._came:
            self.end()
            return
        self._came = number
        signal.signal(signal.SIGALRM, self.hear)
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    def end(self) -> None:
        """Give the process's own handlers back, and to them what came."""
        came, self._came, _Waiting.is_on = self._came, 0, False
        for number, handler in self._own.items():
            signal.signal(number, handler)
        self._own = {}
        if came:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            if self._alarm is not None:
                signal.signal(signal.SIGALRM, self._alarm)
            signal.raise_signal(came)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal's handler: `KeyboardInterrupt`, as Ctrl-C."""
    raise KeyboardInterrupt
