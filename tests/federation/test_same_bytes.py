"""The same calls give the same bytes on Ray and in one process, and as tasks and inline."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from scarcity_ray import AggregationMethod, HierarchicalFederation
from scarcity_ray.actors.layer1_tasks import STORE_SECONDS, TASKS_SECONDS, shared_blocks
from scarcity_ray.config import Layer1Config
from scarcity_ray.layers import Layer1Aggregator
from scarcity_ray.robust import estimated_seconds, get_pre_aggregation, get_rule

DIMENSION = 20
SIZES = {"a": 12, "b": 9, "c": 11}
ROUNDS = 4


def play(fed: HierarchicalFederation, clock: Any) -> list[bytes]:
    """Several rounds with gossip, late and missing clients, and a split; the bytes of every model."""
    rng = np.random.default_rng(3)
    heard: list[bytes] = []
    for domain, size in SIZES.items():
        for i in range(size):
            fed.register_client(f"{domain}{i:02d}", domain, features=rng.normal(size=2))
    for round_id in range(ROUNDS):
        for domain, size in SIZES.items():
            senders = sorted(rng.permutation(size)[: size - round_id % 2].tolist())
            sent_for = [max(0, round_id - int(lag)) for lag in rng.integers(0, 3, len(senders))]
            rows = rng.normal(size=(len(senders), DIMENSION)) * rng.choice(
                [0.1, 1.0, 30.0], (len(senders), 1)
            )
            for i, lag_round, row in zip(senders, sent_for, rows, strict=True):
                receipt = fed.offer_update(f"{domain}{i:02d}", row, lag_round)
                heard.append(repr(receipt).encode())
        heard.append(repr(fed.run_gossip_round()).encode())
        clock.advance(7.0)
        heard.append(repr(fed.run_gossip_round()).encode())
        if round_id == 2:
            heard.append(repr(fed.split_basket("a_basket_0")).encode())
        model = fed.maybe_aggregate() if round_id % 2 else fed.force_aggregate()
        heard.append(b"" if model is None else model.tobytes())
        heard.append(repr(fed.get_meta_params()).encode())
        for entry in fed.get_stats()["basket_stats"].values():
            for basket in sorted(entry["baskets"]):
                own = fed.get_basket_model(basket)
                heard.append(basket.encode() + (b"" if own is None else own.tobytes()))
        heard.append(repr(fed.get_privacy_budget()).encode())
        fed.advance_round()
    heard.append(repr(sorted(fed.get_stats()["rejections"].items())).encode())
    return heard


@pytest.mark.ray
@pytest.mark.parametrize(
    ("method", "adaptive", "noise"),
    [
        ("krum", False, "gaussian"),
        ("bulyan", False, "discrete_gaussian"),
        *(
            pytest.param(method, False, noise, marks=pytest.mark.slow)
            for method, noise in (
                ("bulyan", "distributed_discrete_gaussian"),
                ("trimmed_mean", "discrete_gaussian"),
                ("trimmed_mean", "distributed_discrete_gaussian"),
            )
        ),
        ("trimmed_mean", True, "distributed_discrete_gaussian"),
    ],
)
def test_the_same_calls_give_the_same_bytes_on_both_runtimes(
    method: str, adaptive: bool, noise: str, ray_cluster: None, open_federation: Any, clock: Any
) -> None:
    heard = {}
    for runtime in ("local", "ray"):
        own_clock = type(clock)()
        fed = open_federation(
            {
                "vector_dim": DIMENSION,
                "auto_aggregate": method == "krum",
                "gossip": {"peers_per_round": 3, "local_dp_epsilon": 2.0},
                "gossip_budget_share": 0.5,
                "layer1": {"aggregation_method": method, "byzantine_fraction": 0.1},
                "layer2": {
                    "adaptive_clipping": adaptive,
                    "central_dp_epsilon": 8.0 if adaptive else 1.0,
                    "noise": noise,
                },
                "total_epsilon": 50.0,
            },
            runtime=runtime,
            clock=own_clock,
        )
        heard[runtime] = play(fed, own_clock)
        assert fed.get_stats()["n_layer2_aggregations"] >= 2
        assert fed.get_stats()["n_gossip_messages"] > 0
        fed.close()
    assert heard["local"] == heard["ray"]


@pytest.mark.ray
def test_layer1_as_tasks_gives_the_same_bytes_as_inline(
    ray_cluster: None, open_federation: Any, clock: Any
) -> None:
    clients, dimension = 24, 1_200_001
    one_core = estimated_seconds(get_rule("trimmed_mean"), clients, dimension, [get_pre_aggregation("nnm")])
    assert one_core - STORE_SECONDS * clients * dimension > 2 * TASKS_SECONDS
    models = {}
    for runtime in ("local", "ray"):
        fed = open_federation(
            {
                "vector_dim": dimension,
                "auto_aggregate": False,
                "gossip_budget_share": 0.0,
                "layer1": {"pre": ["nnm"], "aggregation_method": "trimmed_mean"},
            },
            runtime=runtime,
        )
        fed.register_clients([(f"c{i}", "a") for i in range(clients)])
        rows = np.random.default_rng(8).standard_normal((clients, dimension), np.float32) / 500.0
        assert all(fed.submit_updates([f"c{i}" for i in range(clients)], rows))
        fed.force_aggregate()
        models[runtime] = fed.get_basket_model("a")
        if runtime == "ray":
            assert fed._runtime.compute.parallelism >= 2
            assert_rules_are_the_same_as_tasks(fed._runtime.compute, ["bulyan", "trimmed_mean", "weighted"])
        fed.close()
    assert models["local"].tobytes() == models["ray"].tobytes()


class CountingCompute:
    """Counts the tasks that are handed on."""

    def __init__(self, compute: Any) -> None:
        self.compute = compute
        self.parallelism = max(2, compute.parallelism)
        self.tasks = 0

    def put(self, value: object) -> Any:
        return self.compute.put(value)

    def submit(self, function: Any, *args: object) -> Any:
        self.tasks += 1
        return self.compute.submit(function, *args)


def always_shared(compute: Any, rows: Any, seconds: float) -> Any:
    return shared_blocks(compute, rows)


def assert_rules_are_the_same_as_tasks(compute: Any, methods: list[str]) -> None:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((11, 30_000)).astype(np.float32)
    rows[3] *= np.float32(1e6)
    rows[5] = rows[4]
    weights = rng.uniform(0.5, 2.0, 11)
    for method in map(AggregationMethod, methods):
        config = Layer1Config(aggregation_method=method, num_byzantine=1, clip_norm=150.0)
        counting = CountingCompute(compute)
        given = weights if method is AggregationMethod.WEIGHTED else None
        inline = Layer1Aggregator(config).aggregate(rows, given)
        shared = Layer1Aggregator(config, blocks_of=partial(always_shared, counting))
        tasks = shared.aggregate(rows, given)
        assert inline.aggregate.tobytes() == tasks.aggregate.tobytes(), method
        assert inline.selected == tasks.selected
        assert counting.tasks >= 1


@pytest.mark.long
def test_every_rule_is_the_same_as_tasks_in_one_process(open_federation: Any) -> None:
    assert_rules_are_the_same_as_tasks(open_federation({})._runtime.compute, list(AggregationMethod))
