"""SIGTERM: what is charged is finished first, for a few seconds; then the process is interrupted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from scarcity_ray.federation import stopping
from scarcity_ray.federation.stopping import finishing, interrupt


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, interrupt), signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGALRM, before[1])


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)


def test_it_interrupts_at_once_where_nothing_must_be_finished() -> None:
    with pytest.raises(KeyboardInterrupt):
        terminate()


def test_it_waits_for_the_outermost_block_that_must_be_finished() -> None:
    done: list[str] = []

    def work() -> None:
        with finishing():
            with finishing():
                terminate()
                done.append("inner")
            done.append("outer")
        done.append("after")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inner", "outer"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@finishing()
def hanging(num_signals: int) -> None:
    for _ in range(num_signals):
        terminate()
    time.sleep(5)
    pytest.fail("it went on")


def test_a_second_signal_and_the_end_of_the_grace_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        hanging(2)
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 0.01)
    with pytest.raises(KeyboardInterrupt):
        hanging(1)
