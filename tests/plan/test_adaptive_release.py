"""Adaptive clipping in the plan: what one client moves jointly, what a release costs, and where C may go."""

from __future__ import annotations

import math
from itertools import pairwise

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scarcity_ray.config import (
    AggregationMethod,
    BasketConfig,
    HierarchicalFederationConfig,
    Layer1Config,
    Layer2Config,
)
from scarcity_ray.errors import ConfigError
from scarcity_ray.layers.layer1 import Layer1Aggregator, Layer1Input
from scarcity_ray.layers.layer2 import contribution
from scarcity_ray.layers.meta_parameters import encode_report, mean_reports
from scarcity_ray.plan import NOISE_TAIL, BasketFacts, FederationPlan, make_plan
from scarcity_ray.privacy import epsilon_of_mu
from scarcity_ray.privacy.adaptive_clipping import BIT_SHARE
from scarcity_ray.robust import clip_rows, row_norms
from scarcity_ray.secagg.fixed_point import to_signed

RANGES = {"rate": (0.0, 1.0)}
LEAST = {"krum": 2, "multi_krum": 2, "bulyan": 4, "centered_clipping": 10}
EXTRA = {"krum": 3, "multi_krum": 3, "bulyan": 3}


def federation(method="mean", *, f=0, dimension=3, meta=False, radius=None, **layer2):
    return FederationPlan(
        HierarchicalFederationConfig(
            vector_dim=dimension,
            layer1=Layer1Config(
                aggregation_method=method, num_byzantine=f, min_updates=1, clipping_radius=radius
            ),
            layer2=Layer2Config(adaptive_clipping=True, **layer2),
            meta_parameters=RANGES if meta else {},
        )
    )


def contributed(plan, sent, earlier, rows_at, now, reports, others=1):
    """Basket a's integers in a release at the clip norm `now`, and that release.

    Its rows were clipped to `earlier` when they were formed, and aggregated at the clip norm `rows_at`.
    """
    norms = row_norms(sent)
    encoded = [encode_report(report, plan.config.meta_parameters) for report in reports]
    model = Layer1Aggregator(plan.at(rows_at).config.layer1).aggregate_basket(
        Layer1Input(
            clip_rows(sent, norms, earlier),
            [3.0, *[1.0] * (len(sent) - 1)] if plan.config.layer1.aggregation_method == "weighted" else None,
            num_members=len(sent),
            meta=mean_reports(encoded, len(plan.config.meta_parameters)),
            raw_norms=norms,
        )
    )
    rest = [BasketFacts(f"b{i}", "", len(sent), len(sent), 0, 0.5) for i in range(others)]
    release = plan.at(now).release([model.facts("", len(sent)), *rest])
    return to_signed(contribution(model, "", release, plan)), release


def moved(plan, sent, replaced, clip_norms=(1.0, 1.0, 1.0), meta=False, others=1):
    """Grid steps between two neighbours' sums, and the bound that the noise is scaled to."""
    other = np.array(sent)
    other[0] = replaced
    told = [[{"rate": value}, *[{}] * (len(sent) - 1)] if meta else [] for value in (0.0, 1.0)]
    first, release = contributed(plan, sent, *clip_norms, told[0], others)
    second, again = contributed(plan, other, *clip_norms, told[1], others)
    assert again == release
    return float(np.linalg.norm((first - second).astype(float))), release.grid_sensitivity([""])


CLIP_NORMS = st.sampled_from([0.05, 0.5, 1.0, 2.0, 20.0])
VALUES = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 20.0, -20.0, 1e-9, 1e8]), st.floats(-3, 3, width=32)
).map(lambda value: float(np.float32(value)))


@pytest.mark.parametrize("method", [m.value for m in AggregationMethod])
@settings(max_examples=settings.default.max_examples // 3)
@given(data=st.data())
def test_no_neighbours_move_update_and_bit_further_than_the_joint_sensitivity(method, data):
    f = data.draw(st.integers(0, 1))
    n = LEAST.get(method, 2) * f + EXTRA.get(method, 1) + data.draw(st.integers(0, 2))
    d = data.draw(st.integers(1, 4))
    meta = data.draw(st.booleans())
    clip_norms = tuple(data.draw(CLIP_NORMS) for _ in range(3))
    ratio = data.draw(st.sampled_from([0.5, 1.0, 7.0]))
    plan = federation(method, f=f, dimension=d, meta=meta, clip_norm=ratio)
    sent = data.draw(hnp.arrays(np.float32, (n, d), elements=VALUES))
    replaced = data.draw(hnp.arrays(np.float32, d, elements=VALUES))
    distance, bound = moved(plan, sent, replaced, clip_norms, meta, others=data.draw(st.integers(0, 3)))
    assert distance <= bound


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("clip_norm", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("method", "f", "n"), [("mean", 0, 6), ("trimmed_mean", 2, 9), ("weighted", 0, 5)])
def test_the_joint_sensitivity_is_reached_within_a_tenth(method, f, n, clip_norm, meta):
    # A row of the clip norm becomes its opposite of twice that norm: update and bit move as far as they can.
    v = clip_norm * np.array([1.0, 0.0, 0.0], np.float32) * np.float32(0.999)
    sent = np.array([v] * n)
    if method == "trimmed_mean":
        sent[1:] = 0.0
        sent[1 : 1 + f], sent[1 + f : 1 + 2 * f] = v, -v
    plan = federation(method, f=f, meta=meta)
    distance, bound = moved(plan, sent, -2 * v, (clip_norm,) * 3, meta)
    assert 0.9 * bound < distance <= bound
    bits = plan.at(clip_norm).release([BasketFacts("", "", n, n, f, 3 / (n + 2))]).bit_radius
    assert (
        bits / n > 0.1 * distance / plan.at(clip_norm).release([BasketFacts("", "", n, n, f, 0.5)]).scale / 2
    )


@pytest.mark.parametrize("method", ["krum", "median", "multi_krum"])
def test_a_hill_climb_over_both_coordinates_does_not_beat_the_bound(method):
    plan = federation(method, f=1)
    rng = np.random.Generator(np.random.PCG64DXSM(5))
    v = np.array([1.0, 0.0, 0.0], np.float32)
    found = (np.where(np.arange(7)[:, None] < 3, v, -v).astype(np.float32) * np.float32(0.999), -2 * v)
    best = 0.0
    for _ in range(60):
        sent = (found[0] + 0.1 * rng.standard_normal((7, 3))).astype(np.float32)
        replaced = (found[1] + 0.2 * rng.standard_normal(3)).astype(np.float32)
        distance, bound = moved(plan, sent, replaced)
        assert distance <= bound
        if distance > best:
            best, found = distance, (sent, replaced)
    assert best > 0.1 * bound


def test_a_bound_without_the_bit_would_be_exceeded():
    sent = np.array([[0.999, 0.0, 0.0]] * 6, np.float32)
    distance, bound = moved(federation(), sent, -2 * sent[0])
    without = bound * math.sqrt(1.0 - BIT_SHARE)
    assert without < distance <= bound


@pytest.mark.long
@pytest.mark.parametrize("rounds", [1, 60])
@pytest.mark.parametrize("rows", [13, 100])
def test_update_and_bit_together_cost_what_the_plan_says_by_dp_accounting(rows, rounds):
    plan = federation("trimmed_mean", f=2, central_dp_epsilon=0.9)
    facts = [BasketFacts(f"b{i}", "", rows, rows, 2) for i in range(20)]
    release = plan.release(facts)
    ids = [f.basket_id for f in facts]
    sigma = release.grid_sigma(ids) / release.scale
    update, bit = plan.sensitivity(facts[0]) / 20, release.bit_radius / rows / 20
    each = dp_accounting.ComposedDpEvent(
        [dp_accounting.GaussianDpEvent(sigma / update), dp_accounting.GaussianDpEvent(sigma / bit)]
    )
    accountant = PLDAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(each, rounds))
    epsilon = epsilon_of_mu(math.sqrt(rounds) * plan.mu_release, 1e-5)
    assert accountant.get_epsilon(1e-5) == pytest.approx(epsilon, rel=2e-3)
    if rounds == 1:
        assert epsilon == pytest.approx(0.9, rel=1e-9)
    # Andrew et al. (2021), theorem 1, in their units, sigma_b on the sum of all bits.
    z, z_d, sigma_b = 2 / plan.mu_release, 2 * sigma / update, sigma / release.bit_radius * 20 * rows
    assert z_d == pytest.approx((z**-2 - (2 * sigma_b) ** -2) ** -0.5, rel=2e-3)


def test_adaptive_clipping_costs_two_percent_of_noise_and_a_coordinate():
    facts = [BasketFacts(f"b{i}", "", 13, 13, 2) for i in range(20)]
    ids = [f.basket_id for f in facts]
    adaptive, fixed = (
        FederationPlan(
            HierarchicalFederationConfig(
                layer1=Layer1Config(aggregation_method="trimmed_mean", num_byzantine=2),
                layer2=Layer2Config(adaptive_clipping=on),
            )
        ).release(facts)
        for on in (True, False)
    )
    factor = adaptive.grid_sigma(ids) / fixed.grid_sigma(ids)
    assert factor == pytest.approx((1.0 - BIT_SHARE) ** -0.5, rel=1e-5)
    assert adaptive.length == fixed.length + 1
    assert fixed.bit_radius == 0.0


@pytest.mark.parametrize("clip_norm", [1e-3, 0.3, 250.0])
def test_a_plan_at_another_clip_norm_is_the_plan_in_another_unit(clip_norm):
    plan = federation("centered_clipping", meta=True, radius=0.25, clip_norm=2.0)
    moved_plan = plan.at(clip_norm)
    layer1, layer2 = moved_plan.config.layer1, moved_plan.config.layer2
    assert (layer1.clip_norm, layer2.clip_norm) == (clip_norm, pytest.approx(2.0 * clip_norm))
    assert layer1.clipping_radius == pytest.approx(0.25 * clip_norm)
    facts = [BasketFacts("a", "", 30, 25), BasketFacts("b", "", 12, 12)]
    here, there = plan.release(facts), moved_plan.release(facts)
    assert there.grid_sigma(["a", "b"]) == pytest.approx(here.grid_sigma(["a", "b"]), rel=1e-9)
    assert there.bit_radius == pytest.approx(here.bit_radius * clip_norm, rel=1e-9)
    assert there.meta_radius == pytest.approx(here.meta_radius * clip_norm, rel=1e-9)
    assert there.weights == here.weights
    assert plan.at(1.0) is plan


def test_rows_of_an_earlier_clip_norm_keep_its_sensitivity_inside_the_new_ball():
    plan = federation("mean", clip_norm=1.0)
    old = BasketFacts("a", "", 8, 8, clip_norm=2.0)
    assert plan.sensitivity(old) == pytest.approx(2 * 2.0 / 8, rel=1e-5)
    assert plan.sensitivity(BasketFacts("a", "", 8, 8)) == pytest.approx(2 / 8, rel=1e-5)
    alone = BasketFacts("a", "", 1, 1, clip_norm=2.0)
    assert plan.sensitivity(alone) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("epsilon", [math.inf, 1.0, 1e-3])
@pytest.mark.parametrize("rows", [1, 13, 10**5, 10**7])
def test_the_bits_and_the_noises_tail_do_not_overflow_the_ring(rows, epsilon):
    plan = federation("krum", central_dp_epsilon=epsilon)
    facts = [BasketFacts(b, "", rows, rows) for b in "abc"]
    release = plan.release(facts)
    sigma = release.grid_sigma(list("abc"))
    reach = release.scale * release.bit_radius / 2 + 2 + NOISE_TAIL * sigma
    assert reach < 2 ** (release.ring_bits - 1)
    assert NOISE_TAIL * sigma <= plan.greatest_noise


@given(shares=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_the_clip_norm_stays_in_its_range_and_moves_by_bounded_steps(shares):
    plan = federation(clip_norm_range=(0.7, 1.2), clip_quantile=0.3, clip_learning_rate=0.4)
    path = [1.0]
    for share in shares:
        path.append(plan.next_clip_norm(path[-1], share))
    assert all(0.7 <= c <= 1.2 for c in path)
    steps = [math.log(after / before) for before, after in pairwise(path)]
    assert all(-0.4 * 0.7 - 1e-9 <= step <= 0.4 * 0.3 + 1e-9 for step in steps)


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("layer2.clip_norm_range", {"layer2": {"clip_norm_range": (2.0, 3.0)}}),
        ("layer2.clip_norm_range", {"layer2": {"clip_norm_range": (3.0, 0.5)}}),
        ("layer2.clip_norm_range", {"layer2": {"clip_norm": 1e15, "clip_norm_range": (1e-3, 1e10)}}),
        ("layer2.clip_quantile", {"layer2": {"clip_quantile": 0.8}}),
        ("layer2.clip_quantile", {"layer2": {"clip_quantile": 0.2}}),
        ("layer2.distribute_to_baskets", {"layer2": {"distribute_to_baskets": False}}),
        ("meta_parameters.clip_norm", {"meta_parameters": {"clip_norm": (0.0, 1.0)}}),
    ],
)
def test_what_adaptation_cannot_work_with_is_refused_by_name(path, changes):
    base = {"basket": BasketConfig(min_clients=10), "layer1": Layer1Config(byzantine_fraction=0.2)}
    layer2 = changes.pop("layer2", {})
    config = HierarchicalFederationConfig(**base, **changes, layer2=layer2)
    make_plan(config)
    adaptive = HierarchicalFederationConfig(**base, **changes, layer2={"adaptive_clipping": True, **layer2})
    with pytest.raises(ConfigError) as refusal:
        make_plan(adaptive)
    assert refusal.value.path == path
