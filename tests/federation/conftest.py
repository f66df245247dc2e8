"""Federations opened from plain settings, closed at the end of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.privacy.sampling.noise import SeededNoise

Open = Callable[..., HierarchicalFederation]


@pytest.fixture
def open_federation(clock: Callable[[], float], tmp_path: Path) -> Iterator[Open]:
    """``open_federation(settings, **arguments)``; on the local runtime unless the test names another."""
    opened: list[HierarchicalFederation] = []

    def open_one(settings: dict[str, Any], **arguments: Any) -> HierarchicalFederation:
        ledger = tmp_path / f"ledger_{len(opened)}.sqlite"
        config = load(HierarchicalFederationConfig, {"ledger_path": str(ledger), **settings})
        given: dict[str, Any] = {"runtime": "local", "clock": clock, "noise": SeededNoise(7), **arguments}
        opened.append(HierarchicalFederation(config, **given))
        return opened[-1]

    yield open_one
    for federation in opened:
        federation.close()
