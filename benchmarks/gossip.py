"""Gossip: its cost against its noise, its memory, what it does to Layer 1's result, and what it reveals.

``python -m benchmarks gossip [--format json] [--quick] [--peers PYTHON]``. Seconds are processor time of this
thread, the best of several runs. ``--peers`` names an interpreter that has gossipy-dfl or p2pfl (see
`benchmarks._gossip_peers`); what it lacks is reported and skipped.

- *round*: a whole gossip round in which everybody pushes, against drawing the noise of those who push plus
  one read and one write of the states.
- *memory*: peak of a round beyond the states, in copies of the states.
- *mixing*: only the averages of K + 1 vectors a client, against a peer's own merge of the same vectors.
- *error*: distance of Layer 1's result to the honest mean after gossip over that without (root mean square
  over trials; below 1 gossip helped). *consensus*: the disagreement's fall in a round over the graph's rate.
- *decentralised*: accuracy of training by gossip alone over local epsilon, basket by basket, over that of
  clients who do not gossip.
- *epsilon*: what rounds reveal to those who see everything that a client releases, over what naive sums say.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from scarcity_ray.config import (
    AggregationMethod,
    BasketConfig,
    GossipConfig,
    HierarchicalFederationConfig,
    Layer1Config,
    stream,
)
from scarcity_ray.gossip import GossipProtocol, PeerSampler, Received
from scarcity_ray.gossip.passes import draw_block
from scarcity_ray.plan import FederationPlan
from scarcity_ray.privacy.accounting.gaussian_dp import epsilon_of_mu
from scarcity_ray.privacy.sampling.noise import NoiseSource, SeededNoise, SystemNoise
from scarcity_ray.robust import aggregate

Row = dict[str, Any]
EPSILONS = (0.5, 1.0, 4.0, 16.0, math.inf)
SIZES = (10, 100, 1000)
HETEROGENEITY = (0, 1, 3)
PEERS = 5
FLOAT32_DUST = 1e-12
"""Squared distances below this, of states of norm up to 1, are rounding."""


def best_of(times: int, function: Callable[[], Any]) -> float:
    """Processor seconds of the fastest of several calls."""
    best = math.inf
    for _ in range(times):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best


def clients(n: int) -> list[str]:
    return [f"c{i:05}" for i in range(n)]


def population(n: int, d: int, heterogeneity: float, rng: np.random.Generator) -> np.ndarray:
    """States of n clients in four groups: a common centre of norm 1, own deviations of norm 1, and group
    deviations of norm `heterogeneity`, all scaled into the unit ball; float32 (n, d)."""
    centre = rng.standard_normal(d)
    own = rng.standard_normal((n, d)) / math.sqrt(d)
    groups = heterogeneity * rng.standard_normal((4, d)) / math.sqrt(d)
    rows = centre / np.linalg.norm(centre) + own + groups[np.arange(n) % 4]
    return (rows * (0.9 / np.linalg.norm(rows, axis=1).max())).astype(np.float32)


def federation(n: int, d: int, gossip: GossipConfig, layer1: Layer1Config | None = None) -> FederationPlan:
    return FederationPlan(
        HierarchicalFederationConfig(
            vector_dim=d,
            basket=BasketConfig(max_clients=max(100, n)),
            gossip=gossip,
            layer1=layer1 or Layer1Config(),
        )
    )


def whole_round(protocol: GossipProtocol, states: Any, round_id: int, out: Any = None) -> Any:
    ids = clients(len(states))
    asked = protocol.test_drift(protocol.begin(ids, states, round_id, float(round_id)))
    return protocol.exchange(asked, ids, float(round_id), out=out)


def layer1_errors(
    epsilon: float,
    n: int,
    heterogeneity: float,
    *,
    method: AggregationMethod = AggregationMethod.KRUM,
    share: float = 0.2,
    liars: bool = False,
    mixing: Literal["noise_aware", "average", "clipped_gossip", "nearest_neighbors"] | None = None,
    d: int = 64,
    seed: int = 0,
) -> tuple[float, float]:
    """Squared distance of Layer 1's result to the honest mean, without gossip and with one round of it.

    Args:
        epsilon: Local epsilon of a round.
        n: Clients in the basket.
        heterogeneity: As in `population`.
        method: Layer 1's rule.
        share: Byzantine share that the federation reckons with.
        liars: Whether that share lies: all the opposite of the honest mean, at the clip norm.
        mixing: As in `GossipConfig`.
        d: Dimension.
        seed: Of everything.
    """
    rng = stream(seed, "layer1 errors", n, str(heterogeneity))
    states = population(n, d, heterogeneity, rng)
    config = GossipConfig(
        local_dp_epsilon=epsilon, peers_per_round=PEERS, push_drift_threshold=0.0, mixing=mixing
    )
    plan = federation(n, d, config, Layer1Config(aggregation_method=method, byzantine_fraction=share))
    f = plan.num_byzantine(n)
    lying = rng.permutation(n)[: f if liars else 0]
    honest = np.delete(states, lying, axis=0).mean(axis=0, dtype=np.float64)
    states[lying] = -honest / np.linalg.norm(honest)
    protocol = GossipProtocol(config, plan.gossip, "b", SeededNoise(seed), seed=seed)
    after = np.asarray(whole_round(protocol, states, 0).states)

    def error(rows: np.ndarray) -> float:
        return float(((aggregate(rows, method=method, num_byzantine=f).vector - honest) ** 2).sum())

    return error(states), error(after)


def error_ratio(trials: int, *cell: Any, **settings: Any) -> float:
    """Root mean square error of Layer 1 with gossip over that without, over `trials` seeds."""
    errors = np.array([layer1_errors(*cell, seed=seed, **settings) for seed in range(trials)])
    without, with_gossip = errors.mean(axis=0)
    if max(without, with_gossip) < FLOAT32_DUST:
        return 1.0
    return float(math.sqrt(with_gossip / without)) if without else math.inf


def speed(quick: bool) -> Iterator[Row]:
    for n, d in [(1000, 10**3), (100, 10**4)] if quick else [(1000, 10**4), (100, 10**5), (1000, 64)]:
        states = population(n, d, 1.0, stream(0, "speed"))
        floor = floor_seconds(states)
        for label, epsilon in (("noise hides the spread", 0.5), ("everybody moves", 1e7)):
            seconds = round_seconds(states, epsilon)
            yield {
                "name": f"round, {label}",
                "n": n,
                "d": d,
                "seconds": seconds,
                "versus": "noise, a read and a write",
                "ratio": seconds / floor,
            }


def floor_seconds(states: np.ndarray) -> float:
    """Drawing everybody's noise, and one read and one write of the states."""
    source, copy = SystemNoise(draw_block), states.copy()
    n, d = states.shape
    copying = best_of(3, lambda: np.copyto(copy, states))
    return copying + best_of(3, lambda: [source.standard_normal(d, "") for _ in range(n)])


def round_seconds(states: np.ndarray, epsilon: float) -> float:
    """A whole gossip round in which everybody pushes."""
    config = GossipConfig(local_dp_epsilon=epsilon, peers_per_round=PEERS, push_drift_threshold=0.0)
    n, d = states.shape
    plan = replace(federation(n, d, config).gossip, sigma_drift=0.0)
    protocol, rounds = GossipProtocol(config, plan, "b", SystemNoise(draw_block)), itertools.count()
    return best_of(4, lambda: whole_round(protocol, states, next(rounds)))


def memory_copies(n: int, d: int, noise: NoiseSource) -> float:
    """Peak memory of two gossip rounds beyond the states, in copies of the states; the states are mixed in
    place, as a basket does it."""
    states = list(population(n, d, 1.0, stream(0, "memory")))
    config = GossipConfig(local_dp_epsilon=1e7, peers_per_round=PEERS, push_drift_threshold=0.0)
    plan = replace(federation(n, d, config).gossip, sigma_drift=0.0)
    protocol = GossipProtocol(config, plan, "b", noise)
    tracemalloc.start()
    for round_id in range(2):
        whole_round(protocol, states, round_id, out=states)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(peak / (4 * n * d))


def memory(quick: bool) -> Iterator[Row]:
    n, d = 100, 10**5 if quick else 10**6
    start = time.process_time()
    copies = memory_copies(n, d, SeededNoise(0))
    seconds = time.process_time() - start
    yield {"name": "memory of two rounds", "n": n, "d": d, "seconds": seconds} | {
        "versus": "copies of the states",
        "ratio": copies,
    }


def learning(quick: bool) -> Iterator[Row]:
    sizes = SIZES[:2] if quick else SIZES
    for liars, n, heterogeneity, epsilon in itertools.product((False, True), sizes, HETEROGENEITY, EPSILONS):
        trials = max(2, (200 if quick else 2000) // n)
        start = time.process_time()
        ratio = error_ratio(trials, epsilon, n, heterogeneity, liars=liars)
        whose = "error, a fifth lies" if liars else "error"
        yield {
            "name": f"{whose}, epsilon {epsilon}, heterogeneity {heterogeneity}",
            "n": n,
            "d": 64,
            "seconds": (time.process_time() - start) / trials,
            "versus": "without gossip",
            "ratio": ratio,
        }


def consensus(quick: bool) -> Iterator[Row]:
    n, d = 100, 1000
    matrix = np.eye(n)
    for sender, row in enumerate(PeerSampler(10, seed=0, basket_id="b").sample_all(clients(n), PEERS)):
        matrix[row, sender] = 1.0
    squares = np.linalg.svd(matrix / (PEERS + 1) - 1.0 / n)[1] ** 2
    states = stream(0, "consensus").standard_normal((n, d)).astype(np.float32)
    config = GossipConfig(
        local_dp_epsilon=math.inf, peers_per_round=PEERS, clip_norm=1e3, push_drift_threshold=0.0
    )
    plan = federation(n, d, config, Layer1Config(byzantine_fraction=0.0))
    protocol = GossipProtocol(config, plan.gossip, "b", SeededNoise(0))
    start = time.process_time()
    after = np.asarray(whole_round(protocol, states, 0).states)
    seconds = time.process_time() - start
    fall = np.linalg.norm(after - after.mean(axis=0)) / np.linalg.norm(states - states.mean(axis=0))
    yield {
        "name": "consensus",
        "n": n,
        "d": d,
        "seconds": seconds,
        "versus": "the graph's rate",
        "ratio": float(fall / math.sqrt(squares.sum() / (n - 1))),
    }


def leaks(quick: bool) -> Iterator[Row]:
    config = HierarchicalFederationConfig()
    plan = FederationPlan(config)
    mu = math.hypot(plan.gossip.mu_drift, plan.gossip.mu_vector)
    for rounds in (1, 10, int(plan.num_gossip_rounds)):
        start = time.process_time()
        epsilon = epsilon_of_mu(mu * math.sqrt(rounds), config.gossip.local_dp_delta)
        yield {
            "name": f"epsilon {epsilon:.2f} after {rounds} rounds",
            "n": rounds,
            "d": None,
            "seconds": time.process_time() - start,
            "versus": "epsilons added up",
            "ratio": epsilon / (rounds * config.gossip.local_dp_epsilon),
        }


def mixing(quick: bool, python: str = sys.executable) -> Iterator[Row]:
    from benchmarks._gossip_peers import SCRIPTS, peer_seconds

    n, d = 100, 10**4 if quick else 10**5
    states = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    heard = [[(i + j + 1) % n for j in range(PEERS)] for i in range(n)]
    out = np.empty_like(states)
    received = Received.of(list(states), heard)
    equal = np.full(n, 1 / (PEERS + 1)), np.full((n, PEERS), 1 / (PEERS + 1))
    seconds = best_of(5, lambda: received.combine(states, *equal, out))
    for peer in SCRIPTS:
        theirs = peer_seconds(python, peer, n, d, PEERS)
        row = {"name": "mixing", "n": n, "d": d, "seconds": seconds}
        if isinstance(theirs, str):
            yield row | {"versus": f"{peer} {theirs}", "ratio": None}
        else:
            yield row | {"versus": peer, "ratio": seconds / theirs}


def run(form: str, quick: bool, python: str) -> int:
    from benchmarks._gossip_training import decentralised

    parts: Sequence[Iterator[Row]] = (
        speed(quick),
        memory(quick),
        mixing(quick, python),
        consensus(quick),
        leaks(quick),
        decentralised(quick),
        learning(quick),
    )
    for row in itertools.chain(*parts):
        if form == "json":
            print(json.dumps(row), flush=True)
            continue
        size = f"{row['n'] or '':>6} {row['d'] or '':>8}"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.4f}"
        print(
            f"{row['name']:<58} {size} {row['seconds']:>10.6f} s  {ratio:>8} of {row['versus']}",
            flush=True,
        )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer trials")
    parser.add_argument("--peers", default=sys.executable, help="an interpreter with gossipy-dfl or p2pfl")
    arguments = parser.parse_args()
    return run(arguments.format, arguments.quick, arguments.peers)


if __name__ == "__main__":
    raise SystemExit(main())
