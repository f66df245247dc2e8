"""SIGTERM: what is charged is finished first, for a few seconds; then the process is interrupted."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.actors.global_aggregator import GlobalAggregator
from scarcity_ray.config import load
from scarcity_ray.federation import stopping
from scarcity_ray.federation.stopping import finishing, interrupt
from scarcity_ray.runtime import LocalRuntime
from scarcity_ray_client import Client, Trained, Workload
from tests.operations.stopping import CLIENTS, IDS, ROWS, SETTINGS


class Training(Workload[NDArray[np.float32]]):
    """Trainings of the clients, each of which gives its row."""

    def clients(self) -> list[Client]:
        return [Client(client_id, domain) for client_id, domain in CLIENTS]

    def initial_model(self) -> NDArray[np.float32]:
        return np.zeros(ROWS.shape[1], np.float32)

    def train(
        self, model: NDArray[np.float32], client: Client, round_id: int
    ) -> Trained[NDArray[np.float32]]:
        return Trained(delta=ROWS[IDS.index(client.client_id)].astype(np.float32))

    def evaluate(self, model: NDArray[np.float32]) -> dict[str, float]:
        return {}


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

    alarm = signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inner", "outer"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is alarm, "a process that goes on has its own again"


def test_what_the_process_does_with_the_signal_it_does_afterwards() -> None:
    """Ray ends a driver by `SystemExit`, whatever it is in."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    done: list[str] = []

    @finishing()
    def work() -> None:
        terminate()
        done.append("stored")

    with pytest.raises(SystemExit):
        work()
    assert done == ["stored"]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with finishing():
        terminate()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_a_release_of_any_driver_is_finished_first(tmp_path: Path) -> None:
    config = load(HierarchicalFederationConfig, {**SETTINGS, "ledger_path": str(tmp_path / "l.sqlite")})
    with HierarchicalFederation(config, runtime="local") as fed:
        fed.register_clients(CLIENTS)
        fed.submit_updates(IDS, ROWS)
        run = GlobalAggregator._release

        def stopped(self: GlobalAggregator, *args: Any) -> Any:
            terminate()
            return run(self, *args)

        with (
            mock.patch.object(GlobalAggregator, "_release", stopped),
            pytest.raises(KeyboardInterrupt),
        ):
            fed.force_aggregate()
        assert fed.get_stats()["n_layer2_aggregations"] == 1
        assert fed.maybe_aggregate() is not None


@pytest.mark.parametrize("ends_by", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interrupted_process_cancels_no_training(tmp_path: Path, ends_by: type[BaseException]) -> None:
    """Ray would end it then, before it has closed the federation; any other error leaves no task behind."""
    config = load(HierarchicalFederationConfig, {**SETTINGS, "ledger_path": str(tmp_path / "l.sqlite")})
    tasks = type(LocalRuntime().tasks())
    with (
        HierarchicalFederation(config, runtime="local") as fed,
        mock.patch.object(tasks, "ended", side_effect=ends_by),
        mock.patch.object(tasks, "stop") as stop,
    ):
        with pytest.raises(ends_by):
            fed.fit(Training(), rounds=1)
        assert stop.called is (ends_by is ValueError)


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
