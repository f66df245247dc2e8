"""Predicted seconds: how they grow, and what they are made of. No clock is asked, but for the probes' own."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig, load
from scarcity_ray.forecast import MEASURED, Forecast, Rates, RoundSeconds, probe, round_seconds, scaled
from scarcity_ray.forecast.cost_model import BELONGS, REFERENCE, Probes, layer1_seconds

RULES = [method.value for method in AggregationMethod]
NONE = Rates(**dict.fromkeys(asdict(MEASURED), 0.0))


def config(method: str = "trimmed_mean", d: int = 1000, **more: Any) -> HierarchicalFederationConfig:
    layer1 = {"aggregation_method": method, "byzantine_fraction": 0.0, **more.pop("layer1", {})}
    gossip = {"local_dp_epsilon": 1.0, **more.pop("gossip", {})}
    layer2 = {"central_dp_epsilon": 1.0, **more.pop("layer2", {})}
    settings = {"vector_dim": d, "total_epsilon": 1e4, "layer1": layer1, "gossip": gossip, "layer2": layer2}
    basket = {"min_clients": 3, "max_clients": 2000}
    return load(HierarchicalFederationConfig, {**settings, "basket": basket, **more})


def seconds(given: HierarchicalFederationConfig, sizes: tuple[int, ...]) -> RoundSeconds:
    return round_seconds(Forecast(given, sizes, 1))


@given(
    method=st.sampled_from(RULES),
    d=st.integers(10, 10**6),
    size=st.integers(5, 200),
    baskets=st.integers(2, 12),
    peers=st.integers(1, 8),
)
def test_seconds_grow_with_every_count(method: str, d: int, size: int, baskets: int, peers: int) -> None:
    def of(d: int, size: int, baskets: int, peers: int) -> dict[str, float]:
        given = config(method, d, gossip={"peers_per_round": peers}, gossip_budget_share=0.2)
        return asdict(seconds(given, (size,) * baskets))

    base = of(d, size, baskets, peers)
    assert all(value > 0 for value in base.values())
    for more, grows in (
        (of(2 * d, size, baskets, peers), set(base)),
        (of(d, 2 * size, baskets, peers), {"updates", "gossip", "layer1"}),
        (of(d, size, 2 * baskets, peers), {"updates", "gossip", "layer1", "secure_sum"}),
        (of(d, size, baskets, peers + 1), {"gossip"} if peers < size - 1 else set()),
    ):
        for name, value in base.items():
            assert more[name] > value if name in grows else more[name] == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("method", ["krum", "multi_krum", "bulyan", "geometric_median", "mda"])
def test_distances_cost_n_squared_d(method: str) -> None:
    only = replace(NONE, gram_term=MEASURED.gram_term)
    first, wider, longer = (
        layer1_seconds(config(method, d), n, only) for n, d in ((50, 1000), (500, 1000), (50, 10_000))
    )
    assert first == pytest.approx(50 * 50 * 1000 * MEASURED.gram_term)
    assert wider == pytest.approx(100 * first)
    assert longer == pytest.approx(10 * first)
    assert layer1_seconds(config("median", 1000), 50, only) == 0.0


@pytest.mark.parametrize("method", ["median", "trimmed_mean", "meamed", "bulyan"])
def test_columns_cost_n_d_log_n(method: str) -> None:
    only = replace(NONE, sort_term=MEASURED.sort_term)
    first, wider = (layer1_seconds(config(method), n, only) for n in (32, 1024))
    assert first == pytest.approx(32 * 1000 * 5 * MEASURED.sort_term)
    assert wider == pytest.approx(64 * first)
    assert layer1_seconds(config("mean"), 32, only) == 0.0


def test_a_pre_aggregation_costs_distances_and_before_columns_mixed_rows() -> None:
    for method, costs in (("mean", False), ("median", True)):
        given = config(method, layer1={"pre": ["nnm"]})
        assert layer1_seconds(given, 20, replace(NONE, gram_term=1.0)) == 20 * 20 * 1000
        assert layer1_seconds(given, 20, replace(NONE, mix_term=1.0)) == 20 * 20 * 1000 * costs


def test_masks_go_with_pairs_and_noise_with_who_draws_it() -> None:
    sizes = (5,) * 10
    of = {
        name: asdict(round_seconds(Forecast(given, sizes, 1), replace(NONE, **{rate: 1.0})))
        for name, given, rate in (
            ("masks", config(), "mask_element"),
            ("plain", config(layer2={"use_secure_aggregation": False}), "mask_element"),
            ("pairs", config(), "pair"),
            ("noise", config(gossip_budget_share=0.0), "noise_sample"),
            ("gossip", config(gossip_budget_share=0.3), "noise_sample"),
            ("discrete", config(layer2={"noise": "discrete_gaussian"}), "discrete_sample"),
            ("shares", config(layer2={"noise": "distributed_discrete_gaussian"}), "discrete_sample"),
            ("sparse", config(), "pair"),
        )
    }
    assert of["masks"]["secure_sum"] == (10 * 9 + 10 + 10) * 1000
    assert of["plain"]["secure_sum"] == 0
    assert of["pairs"]["secure_sum"] == 90
    assert (of["noise"]["release"], of["noise"]["gossip"]) == (1000, 0)
    assert of["gossip"]["gossip"] == 50 * 1000
    assert of["discrete"]["release"] == 1000
    assert (of["shares"]["secure_sum"], of["shares"]["release"]) == (10 * 1000, 0)


def test_above_64_baskets_a_party_costs_its_degree_not_their_number() -> None:
    pairs = replace(NONE, pair=1.0)
    many, more = (round_seconds(Forecast(config(), (3,) * b, 1), pairs).secure_sum / b for b in (100, 400))
    assert many < 99 / 2
    assert more < 399 / 2


def test_without_noise_none_is_drawn_and_without_layer2_nothing_is_summed() -> None:
    quiet = config(total_epsilon=math.inf, layer2={"central_dp_epsilon": math.inf})
    assert round_seconds(Forecast(quiet, (5, 5), 1), replace(NONE, noise_sample=1.0)).release == 0.0
    alone = seconds(config(layer2={"enabled": False}), (5, 5))
    assert (alone.secure_sum, alone.release) == (0.0, 0.0)
    assert alone.gossip > 0
    assert alone.on_one_core == pytest.approx(alone.updates + alone.gossip + alone.layer1)


def test_a_machine_like_the_reference_has_the_measured_rates() -> None:
    same = scaled(REFERENCE)
    assert asdict(same) == pytest.approx(asdict(MEASURED))


@pytest.mark.parametrize("name", [field.name for field in fields(Probes)])
def test_a_slower_probe_makes_only_its_own_rates_greater(name: str) -> None:
    slower = asdict(scaled(replace(REFERENCE, **{name: 3 * getattr(REFERENCE, name)})))
    for rate, value in asdict(MEASURED).items():
        assert slower[rate] == pytest.approx(value * (3 if rate in BELONGS[name] else 1))


def test_every_rate_belongs_to_one_probe() -> None:
    assert sorted(itertools.chain.from_iterable(BELONGS.values())) == sorted(asdict(MEASURED))
    assert list(BELONGS) == [field.name for field in fields(Probes)]


def test_probes_take_the_fastest_of_the_clocks_intervals() -> None:
    ticks = itertools.accumulate(itertools.cycle([0.0, 5.0, 0.0, 2.0, 0.0, 7.0]))
    assert set(asdict(probe(lambda: next(ticks))).values()) == {2.0}
