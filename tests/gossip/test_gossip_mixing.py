"""What one round of mixing makes of states and received vectors."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy import optimize, stats

from scarcity_ray.config import AggregationMethod, Layer1Config
from scarcity_ray.gossip import MIXINGS, MixingInput, Received, Spread, default_mixing, mix
from scarcity_ray.gossip.mixing import EXCEED, excess_error, tolerated_lies, trimmed_variance
from scarcity_ray.plan import GossipPlan
from scarcity_ray.robust import aggregate, least_rows


def random(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64DXSM(seed))


def clip_scales(rows: np.ndarray, clip_norm: float) -> np.ndarray:
    return np.minimum(1.0, clip_norm / np.maximum(np.linalg.norm(np.asarray(rows, float), axis=1), 1e-300))


def plan(sigma: float = 0.0, dimension: int = 4, clip_norm: float = 1.0, **layer1: object) -> GossipPlan:
    settings_ = Layer1Config(**{"byzantine_fraction": 0.0, **layer1})
    return GossipPlan(1.0, 1.0, 0.0, sigma, clip_norm, dimension, settings_)


def scene(
    states: np.ndarray,
    vectors: np.ndarray,
    index: list[list[int]],
    numbers: GossipPlan,
    num_members: int = 100,
    spread: Spread | None = None,
) -> MixingInput:
    return MixingInput(
        states=states,
        state_scales=clip_scales(states, numbers.clip_norm),
        received=Received.of(list(vectors), index),
        vector_scales=clip_scales(vectors, numbers.receive_norm),
        spread=spread or Spread(numbers.clip_norm**2, 2 * numbers.clip_norm**2 + numbers.noise_energy),
        plan=numbers,
        num_members=num_members,
        num_rows=num_members,
    )


def mixed(name: str, *args: object, **kwargs: object) -> np.ndarray:
    made = scene(*args, **kwargs)
    out = np.empty_like(made.states)
    mix(name, made, out)
    return out


shapes = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 200), st.integers(0, 2**32))


@given(shapes)
def test_distances_and_sums_are_those_of_the_definition(shape: tuple[int, int, int, int]) -> None:
    n, m, d, seed = shape
    rng = random(seed)
    states = rng.standard_normal((n, d)).astype(np.float32)
    vectors = rng.standard_normal((m, d)).astype(np.float32)
    index = [rng.permutation(m)[: rng.integers(1, m + 1)].tolist() for _ in range(n)]
    received = Received.of(list(vectors), index)
    state_scales, vector_scales = rng.random(n), rng.random(m)
    squared = received.distances(states, state_scales, vector_scales)
    own, shares = rng.random(n), rng.standard_normal(received.index.shape)
    out = states.copy()
    received.combine(out, own, shares, out)
    for i, senders in enumerate(index):
        scaled = vector_scales[senders, None] * vectors[senders].astype(float)
        apart = ((scaled - state_scales[i] * states[i].astype(float)) ** 2).sum(axis=1)
        np.testing.assert_allclose(squared[i, : len(senders)], apart, rtol=1e-4, atol=1e-8)
        assert (squared[i, len(senders) :] == np.inf).all()
        total = own[i] * states[i].astype(float) + shares[i, : len(senders)] @ vectors[senders].astype(float)
        np.testing.assert_allclose(out[i], total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("d", [2047, 2048, 20_001])
@pytest.mark.parametrize("shares", [[[0.25, 0.25], [2.0, 9.0]], [[0.5, 0.0], [0.0, 9.0]]])
def test_long_rows_are_summed_and_compared_as_short_ones(d: int, shares: list[list[float]]) -> None:
    rng = random(3)
    states, vectors = (rng.standard_normal((2, d)).astype(np.float32) for _ in range(2))
    received = Received.of(list(vectors), [[0, 1], [1]])
    out = states.copy()
    received.combine(out, np.array([0.5, 1.0]), np.array(shares), out)
    first = 0.5 * states[0] + shares[0][0] * vectors[0] + shares[0][1] * vectors[1]
    np.testing.assert_allclose(out[0], first, atol=1e-5)
    np.testing.assert_allclose(out[1], states[1] + shares[1][0] * vectors[1], atol=1e-5)
    squared = received.distances(states, np.array([1.0, 0.5]), np.array([0.5, 2.0]))
    scaled = states * [[1.0], [0.5]], vectors * [[0.5], [2.0]]
    expected = [((scaled[0][i] - scaled[1][j]) ** 2).sum() for i, j in ((0, 0), (0, 1), (1, 1))]
    np.testing.assert_allclose(squared.ravel()[:3], expected, rtol=1e-5)
    assert squared[1, 1] == np.inf


def test_noise_aware_mixing_moves_by_the_plans_weight_towards_the_clipped_mean() -> None:
    numbers = plan(sigma=0.25)
    state = np.full((1, 4), 0.5, np.float32)
    vectors = np.array([[0, 0, 0, 0], [1000, 0, 0, 0]], np.float32)
    excess = excess_error(numbers.layer1, 100, 0, 4)
    weight = numbers.mixing_weight(2, excess=excess, num_rows=100)
    mean = np.array([numbers.receive_norm / 2, 0, 0, 0])
    result = mixed("noise_aware", state, vectors, [[0, 1]], numbers)
    np.testing.assert_allclose(result[0], (1 - weight) * state[0] + weight * mean, rtol=1e-6)
    assert state.tolist() == [[0.5] * 4]


def test_average_is_the_plain_mean_of_state_and_received() -> None:
    vectors = np.full((2, 2), 3.0, np.float32)
    result = mixed("average", np.zeros((1, 2), np.float32), vectors, [[0, 1]], plan(1e9, 2))
    assert result.tolist() == [[2, 2]]


@pytest.mark.parametrize("name", ["noise_aware", "clipped_gossip", "nearest_neighbors"])
def test_without_noise_what_is_received_can_be_trusted_fully(name: str) -> None:
    states = np.eye(4, dtype=np.float32)[:3]
    result = mixed(name, states, states, [[1, 2], [0, 2], [0, 1]], plan())
    np.testing.assert_allclose(result, np.full((3, 4), [1 / 3, 1 / 3, 1 / 3, 0]), atol=1e-6)


@given(st.integers(3, 20), st.integers(1, 5), st.floats(0.1, 30), st.integers(0, 2**32))
def test_without_noise_and_liars_the_mean_of_all_states_is_kept(
    n: int, k: int, length: float, seed: int
) -> None:
    k = min(k, n - 1)
    states = (random(seed).standard_normal((n, 6)) * length).astype(np.float32)
    index = [[(i + step) % n for step in range(1, k + 1)] for i in range(n)]
    vectors = states * clip_scales(states, 1.0)[:, None].astype(np.float32)
    for name in ("noise_aware", "clipped_gossip", "nearest_neighbors"):
        result = mixed(name, states, vectors, index, plan(dimension=6))
        np.testing.assert_allclose(result.mean(axis=0), states.mean(axis=0), atol=1e-5 * length)


@pytest.mark.parametrize("name", ["noise_aware", "clipped_gossip", "nearest_neighbors"])
def test_where_noise_hides_the_spread_nobody_moves(name: str) -> None:
    states = random(1).standard_normal((3, 4)).astype(np.float32)
    numbers = plan(sigma=3.0, byzantine_fraction=0.2)
    result = mixed(name, states, states + 3, [[1, 2], [0, 2], [0, 1]], numbers, spread=Spread(0.0, 36.0))
    assert (result == states).all()


def test_the_robust_mixings_are_noise_aware_mixing_where_nobody_lies() -> None:
    rng = random(2)
    states, vectors = (rng.standard_normal((5, 8)).astype(np.float32) for _ in range(2))
    index = [[0, 1, 2], [2], [3, 4], [0, 4], [1, 2, 3, 4]]
    numbers = plan(sigma=0.1, dimension=8)
    plain = mixed("noise_aware", states, vectors, index, numbers)
    for name in ("clipped_gossip", "nearest_neighbors"):
        assert (mixed(name, states, vectors, index, numbers) == plain).all()


@given(
    st.integers(2, 8),
    st.integers(0, 3),
    st.sampled_from([1.0, 1e3, 1e30]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_liars_move_a_clipped_state_by_no_more_than_their_share_of_the_radius(
    k: int, num_lies: int, length: float, noisy: bool, seed: int
) -> None:
    rng = random(seed)
    numbers = plan(sigma=0.2 * noisy, dimension=6, byzantine_fraction=0.3)
    b = tolerated_lies(99, 30, k)
    num_lies = min(num_lies, b, k - 1)
    honest = 0.1 * rng.standard_normal((k, 6)).astype(np.float32)
    state = 0.1 * rng.standard_normal((1, 6)).astype(np.float32)
    told = honest.copy()
    told[:num_lies] = rng.standard_normal((num_lies, 6)) * length
    result = mixed("clipped_gossip", state, told, [list(range(k))], numbers, spread=Spread(0.5, 1e9))
    truth = honest[num_lies:].astype(float) - state
    excess = excess_error(numbers.layer1, 100, 30, 6)
    weight = numbers.mixing_weight(k, spread=0.5, excess=excess, num_rows=100)
    radius = np.sqrt((truth**2).sum() / max(b, 1))
    reach = weight / k * (np.linalg.norm(truth, axis=1).sum() + num_lies * radius)
    assert np.linalg.norm(result - state) <= reach * (1 + 1e-5) + 1e-6


WIDE = Spread(0.01, 1e9)
"""Released vectors that show a spread, and make every distance plausible."""


@given(st.integers(2, 8), st.integers(0, 2**32))
def test_the_b_vectors_furthest_away_do_not_count_in_nearest_neighbour_averaging(k: int, seed: int) -> None:
    rng = random(seed)
    numbers = plan(dimension=6, byzantine_fraction=0.05)
    b = tolerated_lies(99, 5, k)
    state = 0.1 * rng.standard_normal((1, 6)).astype(np.float32)
    told = (rng.standard_normal((k, 6)) * 0.1).astype(np.float32)
    order = np.argsort(((told - state).astype(float) ** 2).sum(axis=1))
    nearest = told[order[: k - b]].astype(float)
    results = []
    for far in (1.0, 1e20):
        told[order[k - b :]] = far * np.sign(told[order[k - b :]])
        results.append(mixed("nearest_neighbors", state, told, [list(range(k))], numbers, spread=WIDE)[0])
    assert (results[0] == results[1]).all()
    moved, towards = results[0] - state[0], nearest.mean(axis=0) - state[0]
    weight = (moved @ towards) / (towards @ towards)
    np.testing.assert_allclose(moved, weight * towards, atol=1e-6)
    assert 0 < weight <= (k - b) / (k - b + 1) + 1e-5


def test_one_message_that_may_be_a_lie_reaches_no_further_than_honest_clients_are_apart() -> None:
    numbers = plan(dimension=64, byzantine_fraction=0.3)
    state, lie = np.zeros((1, 64), np.float32), np.eye(64, dtype=np.float32)[:1]
    assert tolerated_lies(99, 30, 1) == 1
    lengths = [
        float(np.linalg.norm(mixed("clipped_gossip", state, lie, [[0]], numbers, spread=Spread(0.1, apart))))
        for apart in (0.0, 0.2, 0.3, 0.5, 1.0, 2.0)
    ]
    assert lengths[:2] == [0.0, 0.0]
    np.testing.assert_allclose(np.array(lengths[2:]) / lengths[-1], np.sqrt([0.3, 0.5, 1.0, 1.0]), rtol=1e-5)
    assert (mixed("nearest_neighbors", state, lie, [[0]], numbers, spread=Spread(0.1, 1.0)) == state).all()


@pytest.mark.parametrize("name", ["clipped_gossip", "nearest_neighbors"])
def test_a_grossly_implausible_vector_moves_nobody(name: str) -> None:
    numbers = plan(dimension=64, byzantine_fraction=0.2)
    state, usual = np.zeros((1, 64), np.float32), 0.1 * np.eye(64, dtype=np.float32)[:4]
    seen = Spread(0.01, 0.02)
    for lies in (1, 2, 3):
        told = np.concatenate([usual, np.full((lies, 64), -0.2, np.float32)])
        result = mixed(name, state, told, [list(range(4 + lies))], numbers, spread=seen)
        assert (result > 0).any()
        assert (result >= 0).all()


@given(st.integers(1, 200), st.floats(0, 0.5), st.integers(1, 30))
def test_more_lies_than_tolerated_are_as_rare_as_claimed(peers: int, share: float, k: int) -> None:
    k, f = min(k, peers), int(share * peers)
    b = tolerated_lies(peers, f, k)
    law = stats.hypergeom(peers, f, k)
    assert law.sf(b) <= EXCEED + 1e-12
    assert b == 0 or law.sf(b - 1) > EXCEED - 1e-12


def test_the_default_is_robust_whenever_a_byzantine_share_is_configured() -> None:
    assert default_mixing(Layer1Config()) == "clipped_gossip"
    assert default_mixing(Layer1Config(num_byzantine=1, byzantine_fraction=0.0)) == "clipped_gossip"
    assert default_mixing(Layer1Config(num_byzantine=0)) == "noise_aware"
    assert default_mixing(Layer1Config(byzantine_fraction=0.0)) == "noise_aware"
    assert {default_mixing(Layer1Config()), "noise_aware"} <= set(MIXINGS)


@pytest.mark.parametrize("method", list(AggregationMethod))
@pytest.mark.parametrize(("n", "f", "dimension"), [(12, 2, 400), (40, 8, 400), (40, 8, 16)])
def test_no_rule_loses_less_on_gaussian_rows_than_its_excess_says(
    method: AggregationMethod, n: int, f: int, dimension: int
) -> None:
    d, rng, lost = dimension, random(n), []
    if n < least_rows(method, f):
        pytest.skip("too few rows for the rule")
    for _ in range(30):
        rows = rng.standard_normal((n, d)).astype(np.float32)
        result = aggregate(rows, method=method, num_byzantine=f).vector
        lost.append(((result - rows.mean(axis=0, dtype=np.float64)) ** 2).sum() / d)
    excess = excess_error(Layer1Config(aggregation_method=method), n, f, d)
    assert np.mean(lost) >= 0.85 * excess
    loose = method is AggregationMethod.BULYAN or d < 100 or excess == 0.0
    assert loose or np.mean(lost) <= 1.3 * excess + 1e-9


def test_trimmed_variance_agrees_with_simulation() -> None:
    values = np.sort(random(9).standard_normal((20_000, 100)), axis=1)
    for share in (0.1, 0.2, 0.4):
        cut = int(100 * share)
        variance = 100 * values[:, cut : 100 - cut].mean(axis=1).var()
        # the relative standard error of a variance of 20,000 normal means is 1 %
        assert trimmed_variance(share) == pytest.approx(variance, rel=0.06)
    assert trimmed_variance(0.5) == pytest.approx(np.pi / 2)
    assert trimmed_variance(0.4999) == pytest.approx(np.pi / 2, rel=1e-3)


@given(
    k=st.integers(1, 20),
    n=st.integers(2, 1000),
    sigma=st.floats(0, 5),
    spread=st.floats(1e-3, 1),
    excess=st.floats(1e-3, 1),
    bias=st.floats(0, 0.5),
)
def test_the_weight_leaves_layer_1_the_least_expected_error(
    k: int, n: int, sigma: float, spread: float, excess: float, bias: float
) -> None:
    numbers, n = plan(sigma, 8), max(n, k + 1)
    noise = numbers.noise_energy

    def error(w: float) -> float:
        around = spread * ((1 - w) ** 2 + w * w / k) + w * w * noise * (1 / k - 1 / n)
        return excess * around + w * w * (noise / n + bias)

    weight = numbers.mixing_weight(k, spread=spread, excess=excess, num_rows=n, bias=bias)
    if bias >= excess * spread:
        assert weight == 0 or bias == 0
    elif noise or bias:
        best = optimize.minimize_scalar(error, bounds=(0, 1), method="bounded", options={"xatol": 1e-10})
        assert bias > 0 or error(weight) <= best.fun * (1 + 1e-9)
        assert weight <= best.x + 1e-6
        assert error(min(1.0, 2 * weight)) <= error(0.0) * (1 + 1e-9)


@given(st.integers(1, 20), st.floats(1e-3, 1), st.floats(1e-3, 1), st.floats(0, 1))
def test_liars_who_push_along_the_error_do_not_add_to_it(
    k: int, spread: float, excess: float, bias: float
) -> None:
    weight = plan().mixing_weight(k, spread=spread, excess=excess, num_rows=50, bias=bias)
    around = excess * spread * ((1 - weight) ** 2 + weight**2 / k)
    assert math.sqrt(around) + weight * math.sqrt(bias) <= math.sqrt(excess * spread) * (1 + 1e-9)
    assert (weight > 0) == (bias < excess * spread)


def test_a_mean_has_nothing_to_gain_from_noised_vectors() -> None:
    assert plan(1.0).mixing_weight(5, spread=1.0, excess=0.0, num_rows=50) == 0.0
    assert plan(0.0).mixing_weight(5, spread=1.0, excess=0.0, num_rows=50) == pytest.approx(5 / 6)
