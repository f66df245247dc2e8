"""Sensitivities, against plain transcriptions of each rule, under hypothesis and adversarial search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scarcity_ray.config import AggregationMethod
from scarcity_ray.errors import TooFewUpdates, UsageError
from scarcity_ray.privacy import rule_sensitivity

C = 1.5


def clip(rows):
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows * np.minimum(1.0, C / np.maximum(norms, 1e-300))


def scores(rows, f):
    """Krum's: the sum of squared distances to the n - f - 2 nearest other rows."""
    squared = ((rows[:, None, :] - rows[None, :, :]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    return np.sort(squared, axis=1)[:, : max(1, len(rows) - f - 2)].sum(axis=1)


def mean(rows, f):
    return rows.mean(axis=0)


def median(rows, f):
    return np.median(rows, axis=0)


def trimmed_mean(rows, f):
    return np.sort(rows, axis=0)[f : len(rows) - f].mean(axis=0)


def krum(rows, f):
    return rows[np.argmin(scores(rows, f))]


def multi_krum(rows, f):
    return rows[np.argsort(scores(rows, f), kind="stable")[: len(rows) - f - 2]].mean(axis=0)


def bulyan(rows, f):
    left, chosen = list(range(len(rows))), []
    theta = len(rows) - 2 * f
    while len(chosen) < theta:
        best = left[int(np.argmin(scores(rows[left], f)))] if len(left) > 1 else left[0]
        chosen.append(best)
        left.remove(best)
    picked = rows[chosen]
    distance = np.abs(picked - np.median(picked, axis=0))
    nearest = np.argsort(distance, axis=0, kind="stable")[: theta - 2 * f]
    return np.take_along_axis(picked, nearest, axis=0).mean(axis=0)


RULES = {
    "mean": mean,
    "fedavg": mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "krum": krum,
    "multi_krum": multi_krum,
    "bulyan": bulyan,
}
LEAST = {"krum": lambda f: 2 * f + 3, "multi_krum": lambda f: 2 * f + 3, "bulyan": lambda f: 4 * f + 3}


def least_rows(name, f):
    return LEAST.get(name, lambda f: 2 * f + 1)(f)


def moved(name, rows, replaced, f):
    """How far the rule's clipped result moves when row 0 becomes `replaced`."""
    other = rows.copy()
    other[0] = replaced
    rule = RULES[name]
    return float(np.linalg.norm(clip(rule(clip(rows), f)) - clip(rule(clip(other), f))))


def bound(name, n, f):
    return rule_sensitivity(name, num_rows=n, num_byzantine=f, clip_norm=C)


VALUES = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 1.5, -1.5, 1e-9, 1e8, -1e8]), st.floats(-4, 4))


@pytest.mark.parametrize("name", sorted(RULES))
@given(data=st.data())
def test_no_pair_of_neighbours_exceeds_the_bound(name, data):
    f = data.draw(st.integers(0, 2))
    n = data.draw(st.integers(least_rows(name, f), least_rows(name, f) + 4))
    d = data.draw(st.integers(1, 4))
    rows = data.draw(hnp.arrays(np.float64, (n, d), elements=VALUES))
    replaced = data.draw(hnp.arrays(np.float64, (d,), elements=VALUES))
    assert moved(name, rows, replaced, f) <= bound(name, n, f) * (1 + 1e-12)


@given(data=st.data())
def test_no_pair_of_neighbours_exceeds_the_bound_of_a_weighted_mean(data):
    n, d = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    rows = clip(data.draw(hnp.arrays(np.float64, (n, d), elements=VALUES)))
    other = rows.copy()
    other[0] = clip(data.draw(hnp.arrays(np.float64, (1, d), elements=VALUES)))[0]
    weights = data.draw(hnp.arrays(np.float64, (n,), elements=st.floats(0.01, 10)))
    shares = weights / weights.sum()
    for name in ("weighted", "fedavg"):
        claimed = rule_sensitivity(
            name, num_rows=n, num_byzantine=0, clip_norm=C, max_row_share=float(shares.max())
        )
        assert np.linalg.norm(shares @ rows - shares @ other) <= claimed * (1 + 1e-12)


def adversarial_pair(name, n, f):
    """Rows built so that row 0 decides; the best of constructions and a hill climb from them."""
    rng = np.random.default_rng(5)
    d = 1 if name in ("mean", "fedavg", "trimmed_mean", "median") else 3
    direction = np.zeros(d)
    direction[0] = C
    best, found = 0.0, None
    for split in range(1, n):
        for spread in (0.0, 1e-6, 0.02):
            # Two camps at v and -v, and f rows of either far side; row 0 joins the one or the other.
            rows = np.where(np.arange(n)[:, None] <= split, direction, -direction) * (1 - 1e-3)
            rows = rows + spread * rng.standard_normal((n, d))
            for start in (direction, -direction, 0.0 * direction):
                rows[0] = start
                for replaced in (-direction, direction):
                    distance = moved(name, rows, replaced, f)
                    if distance > best:
                        best, found = distance, (rows.copy(), replaced)
    if name == "trimmed_mean":
        # Row 0 alone in the middle: f rows at either end, the rest at its two places.
        rows = np.zeros((n, 1))
        rows[1 : 1 + f], rows[1 + f : 1 + 2 * f] = C, -C
        for replaced in np.linspace(-C, C, 9):
            rows[0] = C
            distance = moved(name, rows, np.array([replaced]), f)
            if distance > best:
                best, found = distance, (rows.copy(), np.array([replaced]))
    step = 0.3
    for _ in range(400):
        rows, replaced = found
        trial = rows + step * rng.standard_normal(rows.shape), replaced + step * rng.standard_normal(d)
        distance = moved(name, *trial, f)
        if distance > best:
            best, found = distance, trial
        else:
            step = max(1e-3, step * 0.99)
    return best


@pytest.mark.parametrize("name", ["mean", "fedavg", "trimmed_mean", "median", "krum", "bulyan"])
@pytest.mark.parametrize(("f", "extra"), [(1, 0), (2, 0), (1, 4)])
def test_the_tight_bounds_are_reached_within_a_tenth(name, f, extra):
    n = least_rows(name, f) + (extra if name != "bulyan" else 0)
    if name == "median":
        n |= 1
    reached = adversarial_pair(name, n, f)
    claimed = bound(name, n, f)
    assert 0.9 * claimed <= reached <= claimed * (1 + 1e-12)


def test_the_search_does_not_beat_multi_krums_claim():
    reached = adversarial_pair("multi_krum", 7, 1)
    assert 0.2 * C < reached <= bound("multi_krum", 7, 1)


def test_random_data_alone_would_miss_the_bounds():
    rng = np.random.default_rng(0)
    worst = max(moved("median", rng.standard_normal((5, 3)), rng.standard_normal(3), 1) for _ in range(300))
    assert worst < 0.9 * bound("median", 5, 1)


def test_every_aggregation_method_declares_its_sensitivity():
    for method in AggregationMethod:
        by_member = rule_sensitivity(method, num_rows=11, num_byzantine=2, clip_norm=C)
        assert by_member == rule_sensitivity(method.value, num_rows=11, num_byzantine=2, clip_norm=C)
        assert 0 < by_member <= 2 * C


def test_the_formulas():
    def at(name, **kwargs):
        return rule_sensitivity(name, **{"num_rows": 10, "num_byzantine": 2, "clip_norm": 1.0, **kwargs})

    assert at("mean") == at("fedavg") == 0.2
    assert at("trimmed_mean") == pytest.approx(1 / 3)
    assert at("weighted") == 2.0
    assert at("weighted", max_row_share=0.25) == at("fedavg", max_row_share=0.25) == 0.5
    assert at("median") == at("krum") == at("multi_krum") == at("bulyan") == 2.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "best"},
        {"clip_norm": 0.0},
        {"clip_norm": float("inf")},
        {"num_byzantine": -1},
        {"max_row_share": 0.0},
        {"max_row_share": 1.5},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    given = {"method": "mean", "num_rows": 5, "num_byzantine": 1, "clip_norm": 1.0, **wrong}
    with pytest.raises(UsageError, match="is not accepted"):
        rule_sensitivity(given.pop("method"), **given)


def test_a_rule_that_keeps_no_row_is_refused():
    with pytest.raises(TooFewUpdates, match="at least 5"):
        rule_sensitivity("trimmed_mean", num_rows=4, num_byzantine=2, clip_norm=1.0)
    with pytest.raises(TooFewUpdates):
        rule_sensitivity("mean", num_rows=0, num_byzantine=0, clip_norm=1.0)


def centered_clipping(rows, f):
    """One step around the zero vector, with a radius below the clip norm."""
    norms = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    return (rows * np.minimum(1.0, 1.0 / norms)).mean(axis=0)


LIPSCHITZ = {
    "mean": mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "centered_clipping": centered_clipping,
}


def person_bound(name, n, f, move, **share):
    radius = min(C, 1.0) if name == "centered_clipping" else C
    return rule_sensitivity(name, num_rows=n, num_byzantine=f, clip_norm=radius, row_move=move, **share)


@pytest.mark.parametrize("name", sorted(LIPSCHITZ))
@given(data=st.data())
def test_no_person_moves_a_rule_further_than_its_constant(name, data):
    f, d = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 4))
    n = data.draw(st.integers(2 * f + 1, 2 * f + 5))
    move = data.draw(st.sampled_from([1e-6, 2 * C / 500, 0.1, C, 100.0]))
    rows = data.draw(hnp.arrays(np.float64, (n, d), elements=VALUES))
    towards = data.draw(hnp.arrays(np.float64, (d,), elements=st.floats(-1, 1)))
    other = rows.copy()
    other[0] += move * towards / max(1.0, float(np.linalg.norm(towards)))
    results = [clip(LIPSCHITZ[name](clip(side), f)) for side in (rows, other)]
    assert np.linalg.norm(results[0] - results[1]) <= person_bound(name, n, f, move) * (1 + 1e-9) + 1e-15


@pytest.mark.parametrize("name", sorted(LIPSCHITZ))
def test_the_constants_are_reached(name):
    n, f, move = 9, 2, 1e-3
    rows = np.zeros((n, 2))
    rows[1:5, 0], rows[5:, 0] = 1.0, -1.0
    other = rows.copy()
    other[0, 0] = move
    moved = np.linalg.norm(LIPSCHITZ[name](rows, f) - LIPSCHITZ[name](other, f))
    assert moved == pytest.approx(person_bound(name, n, f, move), rel=1e-9)


@given(data=st.data())
def test_no_person_moves_a_weighted_mean_further_than_its_share(data):
    n = data.draw(st.integers(1, 6))
    counts = np.array(data.draw(st.lists(st.integers(1, 50), min_size=n, max_size=n)))
    weights = np.array(data.draw(st.lists(st.floats(0.01, 10), min_size=n, max_size=n)))
    shares, row = weights / weights.sum(), data.draw(st.integers(0, n - 1))
    bound = 2 * C * float(np.max(shares / counts))
    least = min(counts / shares) * shares.max()
    claimed = person_bound("weighted", n, 0, 2 * C / least, max_row_share=float(shares.max()))
    assert claimed == pytest.approx(bound, rel=1e-12)
    # The mean over the row's persons, of whom one goes from one end of the ball to the other.
    rows = np.zeros((n, 2))
    other = rows.copy()
    rows[row, 0], other[row, 0] = C / counts[row], -C / counts[row]
    assert np.linalg.norm(shares @ rows - shares @ other) <= claimed * (1 + 1e-12)


@pytest.mark.parametrize("name", ["krum", "bulyan", "multi_krum"])
def test_a_rule_without_a_constant_is_moved_far_by_a_small_move(name):
    """Row 0 sits between two camps and tips the scale; the move is one person's of ten thousand."""
    rng, f = np.random.default_rng(2), 1
    n, move, furthest = least_rows(name, f), 2 * C / 10_000, 0.0
    for _ in range(40):
        half = (n - 1) // 2
        rows = np.concatenate(
            [np.zeros((1, 1)), np.full((half, 1), C / 2), np.full((n - 1 - half, 1), -C / 2)]
        )
        rows[1:] += 0.05 * rng.standard_normal((n - 1, 1))
        low, high = -C, C
        ends = [RULES[name](np.concatenate([[[at]], rows[1:]]), f)[0] for at in (low, high)]
        while high - low > move:
            middle = 0.5 * (low + high)
            result = RULES[name](np.concatenate([[[middle]], rows[1:]]), f)[0]
            if abs(result - ends[0]) < abs(result - ends[1]):
                low, ends[0] = middle, result
            else:
                high, ends[1] = middle, result
        furthest = max(furthest, abs(ends[1] - ends[0]))
    assert furthest > 50 * move
    assert person_bound(name, n, f, move) == 2 * C


def test_a_move_out_of_range_is_refused_and_a_wide_one_is_a_clients():
    for move in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="row_move"):
            person_bound("mean", 5, 0, move)
    assert person_bound("mean", 5, 0, 100.0) == bound("mean", 5, 0)
