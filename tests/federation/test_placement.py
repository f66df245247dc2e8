"""A placed domain has basket actors of its own, after deaths too; tests/runtime has the nodes"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load


def settings(folder: Path, **more: object) -> HierarchicalFederationConfig:
    plain: dict[str, Any] = {
        "vector_dim": 4,
        "auto_aggregate": False,
        "ledger_path": str(folder / "ledger.sqlite"),
        "basket": {"max_clients": 3},
        "runtime": {"placement": {"eu": {"region": "eu"}}},
        **more,
    }
    return load(HierarchicalFederationConfig, plain)


def slots_of(federation: HierarchicalFederation, clients: list[tuple[str, str]]) -> dict[str, set[int]]:
    routes = federation._driver.operations.locate([client for client, _ in clients])
    found: dict[str, set[int]] = {}
    for client, domain in clients:
        found.setdefault(domain, set()).add(routes[client][1])
    return found


CLIENTS = [(f"c{i}", "eu" if i % 2 else "us") for i in range(12)]


def test_a_placed_domain_keeps_its_actor_through_deaths_and_a_restore(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = str(tmp_path / "storage")
    config = settings(tmp_path, storage_path=storage)
    words = "basket:1 is placed on nodes with region=eu: not heeded, as all is in this process"
    with HierarchicalFederation(config, runtime="local") as federation:
        federation.register_clients(CLIENTS)
        assert slots_of(federation, CLIENTS) == {"us": {0}, "eu": {1}}
        assert [record.getMessage() for record in caplog.records].count(words) == 1
        for role in ("basket:1", "directory"):
            federation._runtime.kill(role)
            federation.get_stats()
        assert [record.getMessage() for record in caplog.records].count(words) == 2
        more = [("n0", "eu"), ("n1", "us")]
        federation.register_clients(more)
        assert slots_of(federation, [*CLIENTS, *more]) == {"us": {0}, "eu": {1}}
    caplog.clear()
    with HierarchicalFederation.restore(storage, runtime="local") as federation:
        assert words in [record.getMessage() for record in caplog.records]
        assert slots_of(federation, CLIENTS) == {"us": {0}, "eu": {1}}
