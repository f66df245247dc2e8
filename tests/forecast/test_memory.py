"""A round that does not fit into memory is refused before anybody trains for it."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray import BasketConfig, HierarchicalFederation, HierarchicalFederationConfig, Layer2Config
from scarcity_ray.config import RuntimeConfig
from scarcity_ray.errors import UsageError
from scarcity_ray.forecast import CallRates, beyond_memory, memory_of_roles
from scarcity_ray.forecast.memory import MODEL_BYTES, ONE_PROCESS_BYTES, ONE_PROCESS_COPIES
from scarcity_ray.runtime.local import LocalRuntime
from scarcity_ray_client import Client, Trained, Workload

GIB = 2.0**30


def config_of(dimension: int, *, check_memory: bool = True) -> HierarchicalFederationConfig:
    return HierarchicalFederationConfig(
        vector_dim=dimension,
        total_epsilon=math.inf,
        gossip_budget_share=0.0,
        basket=BasketConfig(min_clients=3, max_clients=3),
        layer2=Layer2Config(use_secure_aggregation=False, central_dp_epsilon=math.inf),
        runtime=RuntimeConfig(check_memory=check_memory),
    )


@given(
    st.integers(1, 10**8),
    st.integers(9, 500),
    st.integers(1, 8),
    st.lists(st.floats(2.0**20, 2.0**40), min_size=1, max_size=4),
    st.booleans(),
)
def test_a_round_is_refused_only_beyond_all_memory_or_one_role_beyond_a_node(
    dimension: int, clients: int, actors: int, node_bytes: list[float], is_one_process: bool
) -> None:
    config = config_of(dimension)
    roles = memory_of_roles(config, clients, actors, is_one_process=is_one_process)
    total = sum(count * size for count, size in roles.values())
    fits = total <= sum(node_bytes) and all(size <= max(node_bytes) for _, size in roles.values())
    why = beyond_memory(config, clients, actors, node_bytes, is_one_process=is_one_process)
    assert (why == "") is fits


def test_a_refusal_names_each_role_and_what_to_change() -> None:
    why = beyond_memory(config_of(10**8), 60, 2, [8 * GIB])
    assert why.startswith("a round of 60 clients at vector_dim 100,000,000 needs about ")
    for said in ("driver", "directory", "global aggregator", "basket actor", " x 2", "8,192 MiB on 1 nodes"):
        assert said in why
    assert "runtime.check_memory: false" in why


def test_one_process_counts_its_start_once() -> None:
    config, known = config_of(64), CallRates()
    roles = memory_of_roles(config, 30, 2, has_model=False)
    ((count, held),) = memory_of_roles(config, 30, 2, has_model=False, is_one_process=True).values()
    assert count == 1
    apart = sum(number * size for number, size in roles.values())
    starts = known.driver_bytes + 2 * known.single_bytes + 2 * known.actor_bytes
    rows = (known.copies - ONE_PROCESS_COPIES) * 30 * 4 * 64
    assert apart - starts - (held - ONE_PROCESS_BYTES) == pytest.approx(rows)


def test_long_vectors_count_with_what_works_on_them_and_gossip_with_what_it_keeps() -> None:
    known, config = CallRates(), config_of(1000)
    short, long = (memory_of_roles(c, 10, 1)["basket actor"][1] for c in (config_of(999), config))
    assert long - short == pytest.approx(known.actor_work_bytes + known.copies * 10 * 4)
    gossips = replace(config, gossip_budget_share=0.1)
    more = memory_of_roles(gossips, 10, 1)["basket actor"][1] - long
    assert more == pytest.approx(known.gossip_copies * 10 * 4000)


def test_the_model_counts_in_the_driver_and_in_one_process_only_beyond_the_rows_copies() -> None:
    config = config_of(10**6)
    with_model, without = (memory_of_roles(config, 6, 1, has_model=has)["driver"][1] for has in (True, False))
    assert with_model - without == MODEL_BYTES * 1e6
    few, many = (
        [
            memory_of_roles(config, n, 1, has_model=has, is_one_process=True)["this process"][1]
            for has in (True, False)
        ]
        for n in (6, 60)
    )
    assert 0 < few[0] - few[1] < MODEL_BYTES * 1e6
    assert many[0] == many[1]


def test_what_is_not_known_or_releases_nothing_refuses_nothing() -> None:
    assert beyond_memory(config_of(10**8), 60, 2, []) == ""
    assert beyond_memory(config_of(10**8), 2, 2, [1.0]) == ""


def test_rows_count_with_their_copies_and_more_of_them_with_more_clients() -> None:
    few, many = (memory_of_roles(config_of(10**6), n, 1)["basket actor"][1] for n in (10, 100))
    assert few - memory_of_roles(config_of(1), 10, 1)["basket actor"][1] > 10 * 4e6
    assert many - few > 90 * 4e6


class Constant(Workload):
    def clients(self) -> list[Client]:
        return [Client(f"c{i}", "d") for i in range(9)]

    def initial_model(self) -> dict[str, np.ndarray]:
        return {"w": np.zeros(4, np.float32)}

    def train(self, model: dict[str, np.ndarray], client: Client, round_id: int) -> Trained:
        return Trained(delta={"w": np.ones(4, np.float32)})

    def evaluate(self, model: dict[str, np.ndarray]) -> dict[str, float]:
        return {"sum": float(model["w"].sum())}


def test_a_fit_that_does_not_fit_is_refused_and_spends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with HierarchicalFederation(config_of(4), runtime="local") as fed:
        monkeypatch.setattr(LocalRuntime, "node_bytes", lambda self: (2.0**20,))
        with pytest.raises(UsageError, match="needs about"):
            fed.fit(Constant(), rounds=1)
        assert fed.get_stats()["privacy_consumed_epsilon"] == 0.0
    with HierarchicalFederation(config_of(4, check_memory=False), runtime="local") as fed:
        assert len(fed.fit(Constant(), rounds=1).history) == 1


def test_a_federation_whose_smallest_release_does_not_fit_is_refused_as_it_opens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.sqlite"
    config = replace(config_of(10**8), ledger_path=str(ledger))
    monkeypatch.setattr(LocalRuntime, "node_bytes", lambda self: (8 * GIB,))
    with pytest.raises(UsageError, match="a round of 6 clients at vector_dim 100,000,000 needs about"):
        HierarchicalFederation(config, runtime="local")
    assert not ledger.exists()


@pytest.mark.long
@pytest.mark.parametrize(("dimension", "clients"), [(10**6, 9), (2 * 10**6, 18)])
def test_a_round_takes_what_is_predicted_or_somewhat_less(dimension: int, clients: int) -> None:
    script = Path(__file__).with_name("measured_round.py")
    command = [sys.executable, "-W", "ignore", script, str(dimension), str(clients)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured, predicted = map(float, done.stdout.split())
    assert 0.5 * predicted <= measured <= 1.1 * predicted
