"""The released model against a float64 recomputation of everything between clients and release."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

DIMENSION = 12
SIZES = {"a": 11, "b": 7, "c": 13}
LAYER1_CLIP, LAYER2_CLIP = 1.0, 0.8
FRACTION = 0.16
METHODS = ["mean", "fedavg", "weighted", "median", "trimmed_mean", "krum", "multi_krum", "bulyan"]
MOST = 50
"""Examples beyond which a client weighs no more."""
TOLERANCE = 1e-6
"""Some float32 roundings of numbers below 1, and a grid of 2^-22."""


def settings(method: str) -> dict[str, Any]:
    return {
        "vector_dim": DIMENSION,
        "auto_aggregate": False,
        "total_epsilon": math.inf,
        "gossip": {"local_dp_epsilon": math.inf, "push_drift_threshold": 0.0, "peers_per_round": 100},
        "layer1": {
            "aggregation_method": method,
            "byzantine_fraction": FRACTION,
            "clip_norm": LAYER1_CLIP,
            "max_examples": MOST if method == "weighted" else None,
        },
        "layer2": {"central_dp_epsilon": math.inf, "clip_norm": LAYER2_CLIP, "basket_trust": {"b": 1.5}},
    }


def clipped(vector: np.ndarray[Any, Any], norm: float) -> np.ndarray[Any, Any]:
    return vector * min(1.0, norm / max(math.sqrt(float(np.sum(vector**2))), 1e-300))


def krum_scores(rows: np.ndarray[Any, Any], left: list[int], neighbours: int) -> dict[int, float]:
    def distance(i: int, j: int) -> float:
        return float(np.sum((rows[i] - rows[j]) ** 2))

    return {i: sum(sorted(distance(i, j) for j in left if j != i)[:neighbours]) for i in left}


def reference(
    method: str, rows: np.ndarray[Any, Any], weights: np.ndarray[Any, Any], f: int
) -> np.ndarray[Any, Any]:
    """Each rule as its paper defines it."""
    n = len(rows)
    everyone = list(range(n))
    if method in ("mean", "fedavg"):
        return np.mean(rows, axis=0)
    if method == "weighted":
        return np.sum(rows * weights[:, None], axis=0) / weights.sum()
    if method == "median":
        return np.median(rows, axis=0)
    if method == "trimmed_mean":
        return np.mean(np.sort(rows, axis=0)[f : n - f], axis=0)
    if method in ("krum", "multi_krum"):
        scores = krum_scores(rows, everyone, n - f - 2)
        best = sorted(everyone, key=scores.__getitem__)
        return np.mean(rows[best[: 1 if method == "krum" else n - f - 2]], axis=0)
    left, picked = everyone, []
    while len(picked) < n - 2 * f:
        scores = krum_scores(rows, left, max(1, len(left) - f - 2))
        picked.append(min(left, key=scores.__getitem__))
        left = [i for i in left if i != picked[-1]]
    columns = []
    for column in rows[picked].T:
        nearest = sorted(column, key=lambda value: abs(value - np.median(column)))
        columns.append(np.mean(nearest[: n - 4 * f]))
    return np.array(columns)


class Clients:
    """Submits what a seeded crowd sends, and remembers it in float64."""

    def __init__(self, fed: Any, seed: int) -> None:
        self.fed = fed
        self.rng, self.says = np.random.default_rng(seed), np.random.default_rng([seed, 1])
        self.sent: dict[str, list[tuple[int, np.ndarray[Any, Any]]]] = defaultdict(list)
        self.examples: dict[str, int] = {}
        for domain, size in SIZES.items():
            for i in range(size):
                told = [None, 3, 70][i % 3]
                fed.register_client(f"{domain}{i:02d}", domain, num_examples=told)
                self.examples[f"{domain}{i:02d}"] = told or 1

    def submit(self, client: str, round_id: int) -> None:
        vector = self.rng.normal(size=DIMENSION) * self.rng.choice([0.05, 0.3, 20.0])
        told = [None, 20, 10**9][int(self.says.integers(3))]
        assert self.fed.submit_update(client, vector, round_id, num_examples=told)
        self.examples[client] = told or self.examples[client]
        self.sent[client].append((round_id, vector.astype(np.float32).astype(np.float64)))

    def rows(self, domain: str, now: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """One clipped row a client, and its examples as it said last, `MOST` at most."""
        rows, weights = [], []
        for client in sorted(c for c in self.sent if c.startswith(domain)):
            sent = self.sent[client]
            row = sum((1.0 + now - r) ** -0.5 * vector for r, vector in sent) / len(sent)
            rows.append(clipped(np.asarray(row), LAYER1_CLIP))
            weights.append(min(self.examples[client], MOST))
        return np.array(rows), np.array(weights, np.float64)


def expected_release(method: str, rows_of: dict[str, Any]) -> np.ndarray[Any, Any]:
    total, weight_sum = np.zeros(DIMENSION), 0.0
    for domain, (rows, weights) in rows_of.items():
        f = math.floor(FRACTION * SIZES[domain])
        weight = SIZES[domain] * (1.5 if domain == "b" else 1.0)
        aggregate = clipped(reference(method, rows, weights, f), LAYER1_CLIP)
        total += weight * clipped(aggregate, LAYER2_CLIP)
        weight_sum += weight
    return total / weight_sum


@pytest.mark.parametrize("method", METHODS)
def test_the_release_is_the_definition_applied_to_what_was_sent(method: str, open_federation: Any) -> None:
    fed = open_federation(settings(method))
    clients = Clients(fed, seed=METHODS.index(method))
    for round_id in range(3):
        for domain, size in SIZES.items():
            # In the first rounds some clients send twice and some not at all; in the last all but one do.
            senders = clients.rng.permutation(size)[: size - 1 if round_id == 2 else size // 2]
            for i in senders:
                for _ in range(int(clients.rng.integers(1, 3))):
                    clients.submit(f"{domain}{i:02d}", round_id)
        if round_id < 2:
            fed.advance_round()
    model = fed.force_aggregate()
    expected = expected_release(method, {domain: clients.rows(domain, now=2) for domain in SIZES})
    np.testing.assert_allclose(model, expected, rtol=0, atol=TOLERANCE)
    assert float(np.linalg.norm(expected)) > 0.01


@pytest.mark.parametrize("method", ["mean", "krum"])
def test_without_noise_gossip_with_everybody_makes_states_their_mean(
    method: str, open_federation: Any
) -> None:
    config = settings(method)
    config["gossip"]["mixing"] = "average"
    fed = open_federation(config)
    clients = Clients(fed, seed=99)
    for domain, size in SIZES.items():
        for i in range(size):
            clients.submit(f"{domain}{i:02d}", 0)
    delivered = fed.run_gossip_round()
    assert delivered == {domain: size * (size - 1) for domain, size in SIZES.items()}
    model = fed.force_aggregate()
    means = {}
    for domain in SIZES:
        rows, weights = clients.rows(domain, now=0)
        means[domain] = np.tile(rows.mean(axis=0), (len(rows), 1)), weights
    np.testing.assert_allclose(model, expected_release("mean", means), rtol=0, atol=TOLERANCE)


def test_an_aggregate_that_leaves_the_ball_is_clipped_in_both_layers(open_federation: Any) -> None:
    # Rows of norm 1 whose median has norm sqrt(3 / 2): Layer 1 brings it to 1, Layer 2 to 0.8.
    fed = open_federation({**settings("median"), "vector_dim": 3, "basket": {"min_clients": 3}})
    rows = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]) / math.sqrt(2.0)
    for domain in "ac":
        for i, row in enumerate(rows):
            fed.register_client(f"{domain}{i}", domain)
            assert fed.submit_update(f"{domain}{i}", row)
    model = fed.force_aggregate()
    np.testing.assert_allclose(fed.get_basket_model("a"), np.full(3, 1.0 / math.sqrt(3.0)), atol=TOLERANCE)
    np.testing.assert_allclose(model, np.full(3, LAYER2_CLIP / math.sqrt(3.0)), atol=TOLERANCE)
