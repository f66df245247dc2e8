"""SIGTERM between two steps: what is charged is finished and stored, then the process is interrupted.

`ray job stop` sends SIGTERM, and SIGKILL three seconds later. A release that was charged and is not stored
is lost with its charge. So an interruption waits for a release under way, a few seconds at most; what else is
under way can be done again (docs/resume.md).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 2.5
"""How long an interruption waits; below the three seconds of ``RAY_JOB_STOP_WAIT_TIME_S``."""

_depth = 0
_is_pending = False


@contextmanager
def finishing() -> Iterator[None]:
    """A block that `interrupt` does not interrupt, unless it takes longer than `GRACE_SECONDS`."""
    global _depth, _is_pending
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _is_pending and not _depth:
            _is_pending = False
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            raise KeyboardInterrupt


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal's handler: `KeyboardInterrupt` now, or after the block that must be finished.

    A second signal does not wait.
    """
    global _is_pending
    if not _depth or _is_pending:
        _is_pending = False
        raise KeyboardInterrupt
    _is_pending = True
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
