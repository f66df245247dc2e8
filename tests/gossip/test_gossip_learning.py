"""What gossip does to Layer 1's result, over local epsilon, size and heterogeneity; and what it costs."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks._gossip_peers import peer_seconds
from benchmarks._gossip_training import decentralised
from scarcity_ray.config import AggregationMethod
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray.robust import least_rows

ROOT = Path(__file__).parents[2]


def load_benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gossip_benchmark", ROOT / "benchmarks" / "gossip.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load_benchmark()
EPSILONS = (0.5, 1.0, 4.0, 16.0, math.inf)
RULES = ["mean", "median", "trimmed_mean", "krum", "multi_krum", "bulyan"]


def no_worse(ratio: float) -> bool:
    return ratio <= 1.02


@pytest.mark.long
@pytest.mark.parametrize("heterogeneity", [0, 1, 3])
@pytest.mark.parametrize("liars", [False, True])
def test_gossip_helps_where_it_can_and_does_no_harm_where_the_noise_is_large(
    heterogeneity: int, liars: bool
) -> None:
    for n, trials in ((10, 8), (100, 2)):
        for epsilon in EPSILONS:
            ratio = benchmark.error_ratio(trials, epsilon, n, heterogeneity, liars=liars)
            assert no_worse(ratio), (n, epsilon, ratio)
            assert epsilon < math.inf or ratio < 0.75, (n, ratio)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_gossip_helps_where_the_noise_is_well_below_the_spread(share: float) -> None:
    # sigma^2 d is 0.1 C^2 at this epsilon, the spread about 0.5 C^2
    assert benchmark.error_ratio(3, 500.0, 100, 1, d=16, share=share) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("liars", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_gossip_does_no_harm_anywhere_on_the_grid(method: str, liars: bool, share: float) -> None:
    if liars and share == 0.0:
        pytest.skip("nobody reckons with liars")
    for n, trials in ((10, 60), (100, 12), (1000, 3)):
        if n < least_rows(method, int(share * n)):
            continue
        for cell in itertools.product((*EPSILONS, 200.0, 5e3), [n], (0, 1, 3)):
            for d in (16, 64):
                rest = {"method": AggregationMethod(method), "share": share, "liars": liars, "d": d}
                ratio = benchmark.error_ratio(trials, *cell, **rest)
                if not no_worse(ratio):
                    # of 3 trials the error's ratio is itself uncertain by some per cent: look more closely
                    ratio = benchmark.error_ratio(10 * trials, *cell, **rest)
                assert no_worse(ratio), (method, *cell, d, ratio)
                if method == "krum" and cell[0] == math.inf:
                    assert ratio < 0.75, (cell, ratio)


@pytest.mark.long
def test_a_round_needs_less_than_two_copies_of_the_states_beside_them() -> None:
    # above a copy and a half it is blocks and one client's noise, which do not grow with the clients
    n, d = 60, 50_000
    copies = benchmark.memory_copies(n, d, SeededNoise(0))
    blocks = 4 * (1 << 20) / (n * d)
    assert copies <= 1.5 + blocks + 12 / n


def test_noise_is_drawn_for_those_who_push_only(make, noise, gossip) -> None:
    protocol = make(push_drift_threshold=0.5, sigma_vector=0.1)
    gossip(protocol, {"quiet": np.zeros(4), "loud": np.eye(4)[0]})
    assert dict(noise.drawn) == {"gossip/vector/loud/0": 1}


def test_the_benchmark_prints_its_rows() -> None:
    rows = list(benchmark.leaks(True))
    assert rows
    assert all(set(row) == {"name", "n", "d", "seconds", "versus", "ratio"} for row in rows)


@pytest.mark.long
def test_the_benchmark_trains_by_gossip_and_skips_peers_that_are_not_there() -> None:
    rows, peer = list(decentralised(True)), peer_seconds(sys.executable, "p2pfl", 3, 4, 1)
    assert rows
    assert all(set(row) == {"name", "n", "d", "seconds", "versus", "ratio"} for row in rows)
    assert peer.startswith("skipped: ")
