"""Basket actors that ask for a GPU: how many there are, what is refused, and that models are the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig, UsageError
from scarcity_ray.config import load
from scarcity_ray.errors import ActorLost
from scarcity_ray.robust.tensors.detection import copied_to
from scarcity_ray.runtime import RoleSpec
from scarcity_ray.runtime.local import LocalRuntime
from tests.federation.test_same_bytes import DIMENSION, play


class OnCluster(LocalRuntime):
    """As many CPUs and GPUs as a cluster's nodes would say."""

    default_basket_actors = 16

    def __init__(self, gpus: float) -> None:
        super().__init__()
        self.gpus = gpus
        self.asked: list[float] = []

    def start(self, specs: Sequence[RoleSpec], *, card: object = None) -> None:
        """Note what the roles ask for, and start them."""
        self.asked += [spec.gpus for spec in specs if spec.gpus]
        super().start(specs, card=card)


def opened(
    place: LocalRuntime, each: float, folder: Path, monkeypatch: Any, **runtime: Any
) -> HierarchicalFederation:
    monkeypatch.setattr("scarcity_ray.federation.hierarchical.open_runtime", lambda *_: place)
    content = {"runtime": {"gpus_per_actor": each, **runtime}, "ledger_path": str(folder / "ledger.sqlite")}
    return HierarchicalFederation(load(HierarchicalFederationConfig, content), runtime="local")


@pytest.mark.parametrize(("gpus", "each", "actors"), [(2, 0.3, 6), (1, 0.1, 10), (3, 1.0, 3), (40, 1.0, 16)])
def test_each_basket_actor_asks_for_a_gpu_and_there_are_as_many_as_the_gpus_hold(
    gpus: float, each: float, actors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scarcity_ray.actors.basket.own_gpu", lambda: "cpu")
    place = OnCluster(gpus)
    with opened(place, each, tmp_path, monkeypatch):
        assert place.asked == [each] * actors
        assert sum(name.startswith("basket:") for name in place.names()) == actors


def test_gpus_are_left_for_the_actors_of_placed_domains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scarcity_ray.actors.basket.own_gpu", lambda: "cpu")
    place, labels = OnCluster(4.0), {"region": "eu"}
    with opened(place, 1.0, tmp_path, monkeypatch, placement={"a": labels, "b": labels}) as fed:
        fed.register_clients([("one", "a"), ("two", "b"), ("three", "c")])
        assert place.asked == [1.0] * 4


def test_a_cluster_without_a_gpu_is_refused_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = OnCluster(0.0)
    with pytest.raises(
        UsageError, match=r"gpus_per_actor is 0\.5, and the cluster has no GPU: .*--num-gpus 1"
    ):
        opened(place, 0.5, tmp_path, monkeypatch)
    assert place.names() == ()
    assert list(tmp_path.iterdir()) == []


def test_a_process_without_a_gpu_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = LocalRuntime()
    with pytest.raises(ActorLost, match=r"install a PyTorch with CUDA|need torch; install it") as lost:
        opened(place, 0.5, tmp_path, monkeypatch)
    assert not lost.value.retryable
    assert place.names() == ()


def test_a_rule_from_outside_has_the_gpu_to_itself(open_federation: Any) -> None:
    layer1 = {"aggregation_method": "tests.robust.rules.test_plugin:Acts", "rule_args": {"act": "mean"}}
    fed = open_federation({"layer1": layer1, "runtime": {"gpus_per_actor": 1.0}}, runtime="local")
    fed.register_clients([(f"c{i}", "a") for i in range(4)])
    assert all(fed.submit_updates([f"c{i}" for i in range(4)], np.ones((4, 64), np.float32)))


def test_a_basket_whose_gpu_fails_waits_with_its_updates_and_tries_again(
    open_federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'scarcity-ray[test-torch]'")
    monkeypatch.setattr("scarcity_ray.actors.basket.own_gpu", lambda: "cpu")
    content = {"auto_aggregate": False, "runtime": {"gpus_per_actor": 1.0}, "gossip_budget_share": 0.0}
    fed = open_federation(content, runtime="local")
    clients = [f"c{i}" for i in range(5)]
    fed.register_clients([(client, "a") for client in clients])
    assert all(fed.submit_updates(clients, np.ones((5, 64), np.float32)))
    with monkeypatch.context() as failing:
        full = Mock(side_effect=RuntimeError("CUDA out of memory"))
        failing.setattr("scarcity_ray.layers.layer1.copied_to", full)
        with pytest.warns(UserWarning, match=r"rule krum: cpu failed on 5 rows of 64 numbers"):
            fed.force_aggregate()
    assert fed.get_stats()["n_rule_failures"] == 1
    assert fed.get_basket_model("a") is None
    fed.force_aggregate()
    assert np.linalg.norm(fed.get_basket_model("a")) == pytest.approx(1.0)


@pytest.mark.parametrize(("method", "adaptive"), [("krum", False), ("trimmed_mean", True)])
def test_a_federation_hears_the_same_with_layer1_on_a_device(
    method: str, adaptive: bool, open_federation: Any, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is the CPU here, with the kernels of a GPU; gossip, trust, clipping and releases follow."""
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'scarcity-ray[test-torch]'")
    monkeypatch.setattr("scarcity_ray.actors.basket.own_gpu", lambda: "cpu")
    copied = Mock(wraps=copied_to)
    monkeypatch.setattr("scarcity_ray.layers.layer1.copied_to", copied)
    heard = []
    for gpus in (0.0, 0.5):
        own_clock = type(clock)()
        fed = open_federation(
            {
                "vector_dim": DIMENSION,
                "auto_aggregate": False,
                "gossip": {"peers_per_round": 3, "local_dp_epsilon": 2.0},
                "gossip_budget_share": 0.5,
                "layer1": {"aggregation_method": method, "byzantine_fraction": 0.1},
                "layer2": {"adaptive_clipping": adaptive, "central_dp_epsilon": 8.0},
                "runtime": {"gpus_per_actor": gpus},
                "total_epsilon": 50.0,
            },
            runtime="local",
            clock=own_clock,
        )
        heard.append(play(fed, own_clock))
        assert fed.get_stats()["n_layer2_aggregations"] >= 2
        trust = [entry["trust"] for entry in fed.get_stats()["basket_stats"].values() if "trust" in entry]
        heard[-1].append(repr(trust).encode())
        fed.close()
        assert (copied.call_count > 0) == (gpus > 0.0)
    for here, there in zip(*heard, strict=True):
        if here != there:
            name, size = here[: -4 * DIMENSION], 4 * DIMENSION
            assert there[: -4 * DIMENSION] == name
            one, other = (np.frombuffer(part[-size:], np.float32) for part in (here, there))
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
