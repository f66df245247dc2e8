"""Basket actors killed within secure aggregation: dropouts are recovered, or nothing is released."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray.errors import ActorLost, LedgerMissing
from scarcity_ray.roles.basket_host import BasketHost
from scarcity_ray.runtime import assembly

pytestmark = pytest.mark.ray


def host_that_waits_to_be_killed(folder: Path) -> type[BasketHost]:
    """A basket actor that stops in a phase once ``folder/<phase>-<slot>`` is there, and says who it is."""

    class Host(BasketHost):
        def _wait(self, phase: str) -> None:
            switch = folder / f"{phase}-{self._slot}"
            if switch.exists():
                switch.rename(folder / f"{os.getpid()}.pid")
                time.sleep(120.0)

        def session_mask(self, *args: Any) -> Any:
            self._wait("mask")
            return super().session_mask(*args)

        def session_unmask(self, *args: Any) -> Any:
            self._wait("unmask")
            return super().session_unmask(*args)

    return Host


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("switches")


@pytest.fixture(scope="module")
def harness(ray_cluster: None, folder: Path, open_harnesses: Callable[..., Any]) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "BasketHost", host_that_waits_to_be_killed(folder))
        yield open_harnesses("ray")


def kill_in(harness: Any, folder: Path, phase: str, victims: int) -> Any:
    """Force a release while a thread kills `victims` basket actors as they stop in `phase`."""
    for slot in range(victims):
        (folder / f"{phase}-{slot}").touch()

    def kill_them() -> None:
        dead: set[Path] = set()
        while len(dead) < victims:
            for said in set(folder.glob("*.pid")) - dead:
                os.kill(int(said.stem), signal.SIGKILL)
                dead.add(said)
            time.sleep(0.01)
        for said in dead:
            said.unlink()

    killer = threading.Thread(target=kill_them, daemon=True)
    killer.start()
    model = harness.fed.force_aggregate()
    killer.join(timeout=30.0)
    assert not killer.is_alive()
    return model


def charged(harness: Any) -> list[str]:
    with sqlite3.connect(f"file:{harness.ledger}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT charge_id FROM ledger WHERE charge_id LIKE 'layer2/%'")
        return [charge for (charge,) in rows]


@pytest.mark.parametrize("phase", ["mask", "unmask"])
def test_a_dropout_above_the_threshold_is_recovered(harness: Any, folder: Path, phase: str) -> None:
    assert all(harness.submit(1))
    before = len(charged(harness))
    model = kill_in(harness, folder, phase, victims=1)
    assert model is not None
    assert np.isfinite(model).all()
    meta = harness.fed.get_global_meta_model()
    assert meta.n_baskets == (3 if phase == "mask" else 4)
    assert len(charged(harness)) == before + 1
    assert harness.fed.force_aggregate() is None, "what was released is never released again"
    assert "basket:0 died" in harness.fed.get_stats()["faults"][-1]
    harness.fed.advance_round()


def test_below_the_threshold_it_aborts_for_nothing_and_is_retried(harness: Any, folder: Path) -> None:
    harness.submit(2)
    before, version = len(charged(harness)), harness.fed.get_stats()["n_layer2_aggregations"]
    assert kill_in(harness, folder, "mask", victims=2) is None
    assert len(charged(harness)) == before
    assert harness.fed.get_stats()["n_layer2_aborts"] > 0
    assert sum(harness.submit(2)) == 6, "the survivors kept theirs"
    assert harness.fed.force_aggregate() is not None
    assert harness.fed.get_global_meta_model().n_baskets == 4
    assert harness.fed.get_global_meta_model().version == version + 1
    assert len(charged(harness)) == before + 1
    harness.fed.advance_round()


def test_an_abort_after_the_charge_wastes_it_and_releases_nothing(harness: Any, folder: Path) -> None:
    harness.submit(3)
    before, version = len(charged(harness)), harness.fed.get_stats()["n_layer2_aggregations"]
    assert kill_in(harness, folder, "unmask", victims=2) is None
    assert len(charged(harness)) == before + 1
    assert harness.fed.force_aggregate() is None, "what was asked for is never used again"
    harness.fed.advance_round()
    assert all(harness.submit(4))
    assert harness.fed.force_aggregate() is not None
    assert harness.fed.get_global_meta_model().version == version + 1
    assert len(charged(harness)) == before + 2


def test_an_accountant_whose_node_is_gone_is_lost_for_good(harness: Any) -> None:
    parts = harness.fed._session.assembly
    here = parts.identity
    parts.identity = replace(here, ledger_node="ab" * 28)
    harness.kill("accountant")
    for _ in range(2):
        with pytest.raises(ActorLost, match="not in the cluster") as lost:
            harness.fed.get_privacy_budget()
        assert (lost.value.role, lost.value.retryable) == ("accountant", False)
    parts.identity = here
    assert harness.fed.get_privacy_budget()[0] > 0.0


def test_a_missing_ledger_is_an_error_never_a_fresh_budget(harness: Any) -> None:
    harness.kill("accountant")
    for file in harness.ledger.parent.glob(f"{harness.ledger.name}*"):
        file.unlink()
    for _ in range(2):
        with pytest.raises(LedgerMissing):
            harness.fed.get_privacy_budget()
    harness.submit(5)
    with pytest.raises(LedgerMissing):
        harness.fed.force_aggregate()
    assert not harness.ledger.exists()
