"""Federations whose drivers may stop anywhere."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.global_aggregator import GlobalAggregator
from scarcity_ray.config import load
from scarcity_ray.layers.models import GlobalMetaModel
from tests.operations.stopping import CLIENTS, SETTINGS, Scene, Silence, releases_of


@pytest.fixture
def ledgers(tmp_path: Path) -> Iterator[Path]:
    """Where hundreds of ledgers may be made: in memory, if this machine has such a folder."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else tmp_path))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def scene_of(clock: Any, ledgers: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Scene]]:
    """``scene_of(**settings)``: a federation with its clients registered, in the place of the one before."""
    charges: dict[tuple[str, str], tuple[str, ...]] = {}
    charge = Accountant.charge_gossip

    @functools.wraps(charge)
    def noted(self: Accountant, charge_id: str, ids: Any, mu: float, now: float, details: Any) -> Any:
        answer = charge(self, charge_id, ids, mu, now, details)
        charges[details["kind"], charge_id] = answer[0]
        return answer

    monkeypatch.setattr(Accountant, "charge_gossip", noted)
    release = GlobalAggregator._release

    def noted_release(self: GlobalAggregator, *args: Any) -> GlobalMetaModel:
        noted = releases_of(self)
        noted.append(release(self, *args))
        return noted[-1]

    monkeypatch.setattr(GlobalAggregator, "_release", noted_release)
    opened: list[HierarchicalFederation] = []

    def scene(**settings: Any) -> Scene:
        charges.clear()
        for fed in opened[-1:]:
            fed.close()
        ledger = ledgers / f"{len(opened)}.sqlite"
        config = load(HierarchicalFederationConfig, {**SETTINGS, "ledger_path": str(ledger), **settings})
        noise = Silence()
        opened.append(HierarchicalFederation(config, runtime="local", clock=clock, noise=noise))
        opened[-1].register_clients(CLIENTS)
        return Scene(opened[-1], noise, clock, charges)

    yield scene
    for fed in opened[-1:]:
        fed.close()
