"""A release's weights, sensitivity and ring: over the very code that makes the sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig, Layer1Config, Layer2Config
from scarcity_ray.layers.layer1 import Layer1Aggregator, Layer1Input
from scarcity_ray.layers.layer2 import contribution
from scarcity_ray.layers.meta_parameters import encode_report, mean_reports
from scarcity_ray.plan import FLOAT32_SLACK, GRID_STEPS, NOISE_TAIL, BasketFacts, FederationPlan
from scarcity_ray.robust import clip_vector
from scarcity_ray.secagg.fixed_point import to_signed

C1, C2 = 1.5, 1.0
METHODS = [m.value for m in AggregationMethod]
RANGES = {"rate": (0.0, 1.0), "decay": (-2.0, 5.0)}


def federation(method="mean", *, dimension=3, meta=False, clip1=C1, clip2=C1, f=1, **layer2):
    return FederationPlan(
        HierarchicalFederationConfig(
            vector_dim=dimension,
            layer1=Layer1Config(aggregation_method=method, num_byzantine=f, clip_norm=clip1, min_updates=1),
            layer2=Layer2Config(clip_norm=clip2, **layer2),
            meta_parameters=RANGES if meta else {},
        )
    )


def facts(basket="a", rows=5, members=5, f=1, domain="d", share=None):
    return BasketFacts(basket, domain, members, rows, f, share)


def encoded(plan, rows, reports=None, weights=None):
    """What basket a gives to the sum, as integers, with its release; basket b is there with other weight."""
    coordinates = [encode_report(report, plan.config.meta_parameters) for report in reports or []]
    model = Layer1Aggregator(plan.config.layer1).aggregate_basket(
        Layer1Input(
            rows,
            weights,
            basket_id="a",
            num_members=len(rows),
            meta=mean_reports(coordinates, len(plan.config.meta_parameters)),
        )
    )
    other = facts("b", rows=2 * len(rows), members=2 * len(rows), f=0)
    release = plan.release([model.facts("d", len(rows)), other])
    return to_signed(contribution(model, "a", release, plan)), release


def moved(plan, rows, replaced, reports=(None, None), weights=None):
    """Distance between the sums of two neighbours, in grid steps, and the bound."""
    other = np.array(rows)
    other[0] = replaced
    padded = [[report, *[{"rate": 0.2}] * (len(rows) - 1)] if report else None for report in reports]
    first, release = encoded(plan, rows, padded[0], weights)
    second, again = encoded(plan, other, padded[1], weights)
    assert again == release
    return float(np.linalg.norm((first - second).astype(float))), release.grid_sensitivity(["a"])


def least(method, f):
    known = {"krum": 2 * f + 3, "multi_krum": 2 * f + 3, "bulyan": 4 * f + 3, "centered_clipping": 10 * f + 1}
    return known.get(method, 2 * f + 1)


VALUES = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, C1, -C1, 1e-9, 1e8, -1e8, 1e-40]), st.floats(-4, 4, width=32)
)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=settings.default.max_examples // 3)
@given(data=st.data())
def test_no_neighbours_sums_lie_further_apart_than_the_noise_is_scaled_to(method, data):
    meta = data.draw(st.booleans())
    f = data.draw(st.integers(0, 2))
    n = data.draw(st.integers(least(method, f), least(method, f) + 3))
    d = data.draw(st.integers(1, 5))
    plan = federation(method, dimension=d, meta=meta, f=f, clip2=data.draw(st.sampled_from([0.5, C1, 40.0])))
    rows = data.draw(hnp.arrays(np.float32, (n, d), elements=VALUES.map(lambda v: float(np.float32(v)))))
    replaced = data.draw(hnp.arrays(np.float32, d, elements=VALUES.map(lambda v: float(np.float32(v)))))
    weights = data.draw(st.lists(st.floats(0.1, 5), min_size=n, max_size=n)) if method == "weighted" else None
    reports = ({"rate": 0.0, "decay": -2.0}, {"rate": 9.0, "decay": 9.0}) if meta else (None, None)
    distance, bound = moved(plan, rows, replaced, reports, weights)
    assert distance <= bound


def camps(n, joined, v):
    """Rows at v or -v, the first `joined` at v."""
    return np.where(np.arange(n)[:, None] < joined, v, -v).astype(np.float32)


def worst_pairs(method, f, n):
    """Rows and what row 0 becomes, such that the rule's result moves as far as its bound says."""
    v = np.array([C1, 0.0, 0.0], np.float32)
    if method == "trimmed_mean":
        rows = np.zeros((n, 3), np.float32)
        rows[1 : 1 + f], rows[1 + f : 1 + 2 * f] = v, -v
        rows[0] = v
        return [(rows, -v)]
    if method in ("mean", "fedavg", "weighted"):
        return [(np.array([v] * n), -v)]
    tries = []
    for joined in range(1, n):
        for spread in (0.0, 1e-3):
            noise = spread * np.random.Generator(np.random.PCG64DXSM(joined)).standard_normal((n, 3))
            rows = (camps(n, joined, v) * 0.999 + noise).astype(np.float32)
            tries.append((rows, -v))
    return tries


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize(
    ("method", "f", "n"),
    [
        ("mean", 0, 6),
        ("fedavg", 0, 1),
        ("weighted", 0, 5),
        ("trimmed_mean", 2, 9),
        ("trimmed_mean", 1, 3),
        ("median", 1, 5),
        ("krum", 1, 5),
        ("krum", 2, 7),
        ("bulyan", 1, 7),
    ],
)
def test_tight_sensitivities_are_reached_within_a_tenth(method, f, n, meta):
    plan = federation(method, meta=meta, f=f)
    weights = [3.0, *[1.0] * (n - 1)] if method == "weighted" else None
    reports = ({"rate": 0.0, "decay": -2.0}, {"rate": 1.0, "decay": 5.0}) if meta else (None, None)
    found = [moved(plan, rows, replaced, reports, weights) for rows, replaced in worst_pairs(method, f, n)]
    assert all(distance <= bound for distance, bound in found)
    assert max(distance / bound for distance, bound in found) > 0.9


@pytest.mark.parametrize("method", ["median", "multi_krum", "bulyan", "krum"])
def test_a_hill_climb_does_not_beat_the_bound(method):
    f, n = 1, 7
    plan = federation(method, f=f)
    rng = np.random.Generator(np.random.PCG64DXSM(3))
    best, found = max(
        ((moved(plan, rows, to)[0], (rows, to)) for rows, to in worst_pairs(method, f, n)), key=lambda t: t[0]
    )
    for _ in range(80):
        rows = (found[0] + 0.1 * rng.standard_normal((n, 3))).astype(np.float32)
        replaced = (found[1] + 0.1 * rng.standard_normal(3)).astype(np.float32)
        distance, bound = moved(plan, rows, replaced)
        assert distance <= bound
        if distance > best:
            best, found = distance, (rows, replaced)


def travelled(plan, rows):
    """The vector that Layer 2 would put on the grid, before weight and grid."""
    model = Layer1Aggregator(plan.config.layer1).aggregate_basket(Layer1Input(rows, num_members=len(rows)))
    return clip_vector(model.aggregate, plan.config.layer2.clip_norm).astype(np.float64)


def test_float32_rounding_stays_within_its_slack_and_needs_it():
    rng = np.random.Generator(np.random.PCG64DXSM(0))
    passed = 0
    for trial in range(300):
        d, n = [(2, 1), (3, 2), (40, 1), (700, 2)][trial % 4]
        clip1 = float(rng.uniform(0.3, 3))
        plan = federation("mean", dimension=d, f=0, clip1=clip1, clip2=clip1 * [1.0, 0.7, 50.0][trial % 3])
        rows = (rng.standard_normal((n, d)) * 10.0 ** rng.integers(-3, 12)).astype(np.float32)
        other = np.array(rows)
        other[0] = -rows[0]
        distance = np.linalg.norm(travelled(plan, rows) - travelled(plan, other))
        exact = min(2 * clip1 / n, 2 * min(clip1, plan.config.layer2.clip_norm))
        radius = min(clip1, plan.config.layer2.clip_norm)
        bound = plan.sensitivity(facts(rows=n, members=n, f=0))
        assert distance <= bound
        assert bound == pytest.approx(exact + FLOAT32_SLACK * (exact + radius), rel=1e-12)
        passed += distance > exact
    assert passed > 5


def test_a_weak_grid_bound_would_be_found():
    # Row 0 tips a mean by exactly half steps in every coordinate: rounding adds nearly a step to each.
    plan = federation("mean", dimension=400, f=0, clip1=1.0, clip2=1.0)
    step = 1 / GRID_STEPS
    rows = np.full((1, 400), 0.4999 * step * 3, np.float32)  # a third of the weight is the basket's
    distance, bound = moved(plan, rows, np.full(400, 0.5001 * step * 3, np.float32))
    exact = np.linalg.norm(np.full(400, 0.0002))
    assert distance > 100 * exact
    assert distance <= bound


def test_every_method_has_a_sensitivity_that_no_basket_exceeds():
    for method in METHODS:
        plan = federation(method, clip1=2.0, clip2=0.5)
        sensitivity = plan.sensitivity(facts(rows=9, members=9, share=0.5))
        assert 0 < sensitivity <= 2 * 0.5 * (1 + 2 * FLOAT32_SLACK)
        assert plan.sensitivity(facts(rows=0)) == 0.0


@given(data=st.data())
def test_weights_are_the_public_shares_of_the_fresh_baskets(data):
    by_size = data.draw(st.booleans())
    trust = data.draw(st.dictionaries(st.sampled_from(["d0", "d1", "x"]), st.sampled_from([0.0, 0.5, 3.0])))
    baskets = [
        facts(
            f"b{i}",
            rows=data.draw(st.integers(0, 9)),
            members=data.draw(st.integers(1, 50)),
            domain=f"d{i % 3}",
        )
        for i in range(data.draw(st.integers(1, 8)))
    ]
    release = federation(weight_by_size=by_size, basket_trust=trust).release(baskets)
    shares = {
        b.basket_id: (b.num_members if by_size else 1) * trust.get(b.domain_id, 1.0) * (b.num_rows > 0)
        for b in baskets
    }
    total = sum(shares.values())
    assert set(release.weights) == set(shares)
    for basket, share in shares.items():
        assert release.weights[basket] == pytest.approx(share / total if total else 0.0, rel=1e-12)
    assert math.fsum(release.weights.values()) == pytest.approx(1.0 if total else 0.0, abs=1e-12)
    ids = sorted(shares)
    survivors = ids[: max(1, len(ids) // 2)]
    assert release.surviving_weight(survivors) == math.fsum(release.weights[b] for b in survivors)
    deltas = [release.weights[b] * release.sensitivities[b] for b in survivors]
    expected = release.scale * max(deltas) + math.sqrt(release.length)
    assert release.grid_sensitivity(survivors) == pytest.approx(expected, rel=1e-12)
    assert release.grid_sigma(survivors) == pytest.approx(expected / release.mu, rel=1e-12)
    assert release.grid_sigma(survivors) <= release.grid_sigma(ids)


def worst_vectors(d):
    one = np.zeros((1, d), np.float32)
    one[0, 0] = 1e9
    return [one, -one, np.full((1, d), 1e9, np.float32), np.full((1, d), -1e9, np.float32)]


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("epsilon", [math.inf, 8.0, 1.0, 0.1, 0.01, 1e-4])
@pytest.mark.parametrize("baskets", [2, 40])
def test_the_worst_vectors_and_the_noises_tail_do_not_overflow_the_ring(epsilon, baskets, meta):
    plan = FederationPlan(
        HierarchicalFederationConfig(
            vector_dim=3,
            layer1=Layer1Config(aggregation_method="mean", min_updates=1),
            layer2=Layer2Config(central_dp_epsilon=epsilon),
            meta_parameters={"rate": (0.0, 1.0)} if meta else {},
        )
    )
    ids = [f"b{i}" for i in range(baskets)]
    release = plan.release([facts(b, rows=1, members=1 + i) for i, b in enumerate(ids)])
    half = 2 ** (release.ring_bits - 1)
    for rows in worst_vectors(3):
        reports = [encode_report({"rate": 5.0} if meta else None, plan.config.meta_parameters)]
        model = Layer1Aggregator(plan.config.layer1).aggregate_basket(
            Layer1Input(rows, meta=mean_reports(reports, 1 if meta else 0))
        )
        parts = [contribution(model, b, release, plan) for b in ids]
        exact = sum(to_signed(part).astype(object) for part in parts)
        assert (to_signed(np.add.reduce(parts, dtype=parts[0].dtype)) == exact).all()
        tail = math.ceil(NOISE_TAIL * release.grid_sigma(ids))
        assert all(-half <= int(total) - tail and int(total) + tail < half for total in exact)


def test_the_ring_has_64_bits_exactly_where_32_leave_no_headroom():
    baskets = [facts("a", rows=5), facts("b", rows=5)]
    seen = {}
    for epsilon in np.geomspace(1e-3, 10, 60):
        plan = federation("krum", clip2=C2, central_dp_epsilon=float(epsilon))
        release = plan.release(baskets)
        reach = GRID_STEPS + 1 + NOISE_TAIL * release.grid_sigma(["a", "b"])
        if not 0.99 < reach / 2**31 < 1.01:
            assert release.ring_bits == (64 if reach >= 2**31 else 32)
            seen[release.ring_bits] = True
    assert set(seen) == {32, 64}
    assert release.scale * C2 == GRID_STEPS


def test_a_release_with_meta_parameters_has_a_coordinate_for_each():
    plan = federation(meta=True, dimension=7)
    release = plan.release([facts()])
    assert release.length == plan.vector_length == 9
    assert release.meta_radius == pytest.approx(C1 / math.sqrt(2))
    assert federation(dimension=7).release([facts()]).length == 7


@pytest.mark.parametrize(("method", "rows", "growth"), [("median", 30, 0.96**-0.5), ("mean", 30, 2**0.5)])
def test_meta_parameters_take_the_room_that_the_rule_leaves_them(method, rows, growth):
    """What a client moves them by, 2 m/n, is a fifth of what it moves the rule by, or as much as a mean."""
    both, alone = (federation(method, meta=meta, f=0).release([facts(rows=rows)]) for meta in (True, False))
    assert both.sensitivities["a"] / alone.sensitivities["a"] == pytest.approx(growth, rel=1e-4)
    norm = both.meta_radius * math.sqrt(2)
    assert norm == pytest.approx(
        max(C1, rows * C1 * math.sqrt(1 / 0.96 - 1)) if method == "median" else C1, rel=1e-4
    )
    assert alone.meta_radius == 0.0
