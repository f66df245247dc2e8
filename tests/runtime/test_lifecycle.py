"""A federation's end: no actor stays behind, and nothing answers afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation
from scarcity_ray.errors import LedgerError, UsageError
from scarcity_ray.privacy.sampling.noise import SeededNoise

AFTERWARDS: dict[str, Callable[[HierarchicalFederation], Any]] = {
    "register_client": lambda f: f.register_client("c", "d"),
    "register_clients": lambda f: f.register_clients([("c", "d")]),
    "unregister_client": lambda f: f.unregister_client("c"),
    "submit_update": lambda f: f.submit_update("c", np.zeros(8)),
    "submit_updates": lambda f: f.submit_updates(["c"], np.zeros((1, 8))),
    "run_gossip_round": lambda f: f.run_gossip_round(),
    "maybe_aggregate": lambda f: f.maybe_aggregate(),
    "force_aggregate": lambda f: f.force_aggregate(),
    "advance_round": lambda f: f.advance_round(),
    "get_global_model": lambda f: f.get_global_model(),
    "get_stats": lambda f: f.get_stats(),
    "get_privacy_budget": lambda f: f.get_privacy_budget(),
    "get_client": lambda f: f.get_client("c"),
    "split_basket": lambda f: f.split_basket("d"),
    "renew_budget": lambda f: f.renew_budget(1.0, 1e-5, operator="o"),
    "map_tasks": lambda f: f.map_tasks(abs, [1]),
    "terminate": lambda f: f.terminate(),
}


def actors() -> list[dict[str, str]]:
    import ray

    return [a for a in ray.util.list_named_actors(all_namespaces=True) if a["name"] == "directory"]


def test_the_with_statement_leaves_no_actor_behind(runtime: str, open_config: Any) -> None:
    before = actors() if runtime == "ray" else []
    with HierarchicalFederation(open_config(), runtime=runtime) as fed:
        fed.register_clients([(f"c{i}", "d") for i in range(6)])
        place = fed._runtime
        assert {"accountant", "directory", "global", "basket:0", "basket:1"} <= set(place.names())
        if runtime == "ray":
            assert len(actors()) == len(before) + 1
    assert place.names() == ()
    if runtime == "ray":
        assert actors() == before
    fed.close()
    for method in AFTERWARDS.values():
        with pytest.raises(UsageError, match="closed"):
            method(fed)
    with pytest.raises(UsageError, match="closed"), fed:
        pytest.fail("a closed federation was entered")


def test_a_start_that_fails_leaves_no_actor_behind(runtime: str, open_config: Any, tmp_path: Path) -> None:
    before = actors() if runtime == "ray" else []
    (tmp_path / "ledger.sqlite").write_bytes(b"this is no ledger" * 100)
    with pytest.raises(LedgerError):
        HierarchicalFederation(open_config(), runtime=runtime)
    if runtime == "ray":
        assert actors() == before


def test_a_federation_is_ended_when_its_driver_raises(runtime: str, open_config: Any) -> None:
    with pytest.raises(KeyError), HierarchicalFederation(open_config(), runtime=runtime) as fed:
        raise KeyError("the driver's own")
    assert fed._runtime.names() == ()


@pytest.mark.ray
def test_two_drivers_see_the_same_federation(ray_cluster: None, open_config: Any) -> None:
    """Also the basket actors that the other has started since."""
    with HierarchicalFederation(open_config(), name="shared", noise=SeededNoise(7)) as owner:
        owner.register_clients([(f"a{i}", "first") for i in range(3)])
        guest = HierarchicalFederation.attach("shared")
        clients = [(f"b{i}", "second") for i in range(6)]
        guest.register_clients(clients)
        guest.submit_updates([c for c, _ in clients], np.ones((6, 8)) / 10)
        assert owner.get_stats()["n_updates_buffered"] == 6
        assert owner.advance_round() == 1
        assert guest.submit_update("b0", np.ones(8) / 20, round_id=1)
        assert all(owner.submit_updates([f"a{i}" for i in range(3)], np.ones((3, 8)) / 10))
        model = owner.force_aggregate()
        assert model is not None
        np.testing.assert_array_equal(guest.get_global_model(), model)
        np.testing.assert_array_equal(guest.maybe_aggregate(), model)
        assert guest.maybe_aggregate() is None
        guest.close()
        assert owner.get_stats()["n_clients"] == 9, "closing an attached federation leaves it running"
        guest = HierarchicalFederation.attach("shared")
        guest.terminate()
        guest.close()
        assert owner._runtime.names() == ()
    assert actors() == []
