"""A person as the unit of privacy: how far one moves the sum, through the code that makes it; refusals."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.actors.signed_facts import implausible
from scarcity_ray.config import HierarchicalFederationConfig, load
from scarcity_ray.errors import ConfigError
from scarcity_ray.forecast import weak_settings
from scarcity_ray.layers.layer1 import Layer1Aggregator, Layer1Input
from scarcity_ray.layers.layer2 import contribution
from scarcity_ray.plan import (
    FLOAT32_SLACK,
    NOISE_TAIL,
    BasketFacts,
    FederationPlan,
    make_plan,
    person_claim,
    persons_of,
)
from scarcity_ray.secagg.fixed_point import to_signed
from scarcity_ray_client.persons import person_mean

C = 1.5


def config(method="mean", *, dimension=3, f=0, **changes):
    given = {
        "vector_dim": dimension,
        "gossip_budget_share": 0.0,
        "layer1": {"aggregation_method": method, "num_byzantine": f, "clip_norm": C, "min_updates": 1},
        "layer2": {"clip_norm": C},
        "privacy": {"unit": "person", "min_persons": 2},
    }
    return load(HierarchicalFederationConfig, {**given, **changes})


def encoded(plan, rows, counts, weights=None):
    """What a basket gives to the sum, in grid steps, and the release; another basket takes part."""
    model = Layer1Aggregator(plan.config.layer1).aggregate_basket(
        Layer1Input(rows, weights, num_members=len(rows), num_persons=counts, basket_id="a")
    )
    release = plan.release([model.facts("", len(rows)), BasketFacts("b", "", 5, 5, num_persons=5000)])
    return to_signed(contribution(model, "a", release, plan)).astype(float), release


PROVED = {"mean": 0, "weighted": 0, "trimmed_mean": 1, "median": 1, "centered_clipping": 0}


@pytest.mark.parametrize("method", [*PROVED, "krum", "geometric_median"])
@given(data=st.data())
def test_no_person_moves_the_sum_further_than_the_noise_is_scaled_to(method, data):
    f = PROVED.get(method, 1)
    n = data.draw(st.integers(2 * f + 3, 2 * f + 5))
    counts = data.draw(st.lists(st.integers(2, 40), min_size=n, max_size=n))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    plan = FederationPlan(config(method, f=f))
    persons = [rng.normal(size=(count, 3)) * rng.choice([0.01, 1.0, 100.0]) for count in counts]
    rows = np.array([person_mean(p, clip_norm=C, min_persons=2).row for p in persons], np.float32)
    site = data.draw(st.integers(0, n - 1))
    persons[site][0] = -persons[site][0] if data.draw(st.booleans()) else 1e9 * rows.sum(axis=0)
    other = rows.copy()
    other[site] = person_mean(persons[site], clip_norm=C, min_persons=2).row
    weights = [plan.row_weight(count) for count in counts] if method == "weighted" else None
    first, release = encoded(plan, rows, counts, weights)
    second, again = encoded(plan, other, counts, weights)
    assert again == release
    assert np.linalg.norm(first - second) <= release.grid_sensitivity(["a"])
    if method in PROVED:
        assert release.sensitivities["a"] < 2 * C / min(counts) * 1.01


def test_rounding_is_added_to_what_a_person_moves_and_never_scaled_with_it():
    """A million persons: the person's own move is no larger than what float32 makes of the rows."""
    count, rng = 2**24, np.random.default_rng(1)
    plan = FederationPlan(config("median", f=1, dimension=400))
    beyond = 0
    for _ in range(20):
        row = rng.standard_normal(400)
        row *= C / np.linalg.norm(row) * (1 - 1e-7)
        moved = row + 2 * C / count * np.eye(400)[0]
        sides = [encoded(plan, np.array([side] * 3, np.float32), [count] * 3) for side in (row, moved)]
        apart = np.linalg.norm(sides[0][0] - sides[1][0])
        release = sides[0][1]
        assert apart <= release.grid_sensitivity(["a"])
        exact = release.scale * release.weights["a"] * 2 * C / count
        beyond += apart > exact * (1 + FLOAT32_SLACK)
    assert beyond > 0, "scaling the bound by 1 + slack would not have covered it"


@pytest.mark.parametrize("dimension", [3, 31, 1000, 1_000_000])
@pytest.mark.parametrize("persons", [2, 500, 10**6])
def test_the_grid_adds_a_hundredth_at_most_and_the_ring_holds_the_sum(dimension, persons):
    plan = make_plan(config(dimension=dimension))
    facts = [BasketFacts(f"b{i}", "", 10, 10, num_persons=persons) for i in range(20)]
    release = plan.release(facts)
    (move,) = {release.weights[b] * release.sensitivities[b] for b in release.weights}
    assert math.sqrt(release.length) <= 0.01 * release.scale * move
    assert math.log2(release.scale * C) == round(math.log2(release.scale * C)), "a power of two"
    assert plan.reach(release) < 2.0 ** (release.ring_bits - 1)
    assert NOISE_TAIL * release.grid_sigma(list(release.weights)) <= plan.greatest_noise < 2.0**53
    assert release.mu == plan.mu_release


def test_a_client_as_the_unit_keeps_its_grid():
    plan = make_plan(load(HierarchicalFederationConfig, {"vector_dim": 1_000_000}))
    assert plan.release([BasketFacts("a", "", 10, 10, 2)]).scale == 2.0**22


@pytest.mark.parametrize("weights", [None, "capped"])
def test_the_number_of_persons_covers_every_row_and_is_the_greatest_that_does(weights):
    for counts in itertools.product((1, 2, 5, 9, 40), repeat=3):
        given = None if weights is None else [float(min(count, 7)) for count in counts]
        shares = [1.0] * 3 if given is None else [w / max(given) for w in given]
        found = persons_of(counts, given)
        worst = max(share / count for share, count in zip(shares, counts, strict=True))
        assert worst <= (1 + 1e-12) / found
        assert worst > (1 - 1e-12) / (found + 1)
    assert persons_of([4, 5], [0.0, 1.0]) == 5


@pytest.mark.parametrize("method", ["mean", "weighted", "trimmed_mean", "median"])
def test_a_false_count_takes_no_protection_from_the_persons_of_others(method):
    """An honest site's own bound, with the weights as they are, is below what the release is scaled to."""
    f = PROVED[method]
    plan = FederationPlan(config(method, f=f, privacy={"unit": "person", "min_persons": 50}))
    honest = [60, 400, 900, 5000]
    for lie in (50, 399, 1000, 10**9):
        counts = [*honest, lie]
        weights = [plan.row_weight(count) for count in counts] if method == "weighted" else None
        shares = np.ones(5) / (5 - 2 * f) if weights is None else np.array(weights) / sum(weights)
        facts = BasketFacts(
            "a",
            "",
            5,
            5,
            f,
            None if weights is None else float(shares.max()),
            None,
            persons_of(counts, weights),
        )
        own = max(share * 2 * C / count for share, count in zip(shares, honest, strict=False))
        assert plan.sensitivity(facts) >= (2 * C / 60 if method == "median" else own)
        assert implausible(replace(facts, basket_id="d_basket_0", domain_id="d"), plan) == ""


def test_facts_state_persons_where_they_are_the_unit_and_only_there():
    plan = make_plan(config(privacy={"unit": "person", "min_persons": 50}))
    facts = BasketFacts("d_basket_0", "d", 9, 7, 0, num_persons=50)
    assert implausible(facts, plan) == ""
    assert "fewer than privacy.min_persons" in implausible(replace(facts, num_persons=49), plan)
    assert "none where one does" in implausible(replace(facts, num_persons=None), plan)
    of_clients = make_plan(config(privacy={}))
    assert "where none belongs" in implausible(facts, of_clients)
    assert implausible(BasketFacts("d_basket_0", "d", 9), plan) == ""


REFUSED = {
    "privacy.min_persons": {"privacy": {"unit": "person"}},
    "privacy.person_clip_norm": {"privacy": {"unit": "record", "min_persons": 5, "person_clip_norm": 1.6}},
    "gossip_budget_share": {"gossip_budget_share": 0.2},
    "layer2.enabled": {"layer2": {"enabled": False, "clip_norm": C}},
    "layer2.adaptive_clipping": {"layer2": {"adaptive_clipping": True, "clip_norm": C}},
    "meta_parameters": {"meta_parameters": {"rate": (0.0, 1.0)}},
}


@pytest.mark.parametrize("path", REFUSED)
def test_what_does_not_shrink_with_the_persons_is_refused_by_name(path):
    with pytest.raises(ConfigError) as refusal:
        make_plan(config(**REFUSED[path]))
    assert refusal.value.path == path


@pytest.mark.parametrize("given", [{"min_persons": 5}, {"person_clip_norm": 0.5}])
def test_a_clients_unit_has_no_settings_of_persons(given):
    with pytest.raises(ConfigError, match=r"privacy\..*null where privacy.unit is client"):
        make_plan(config(privacy=given))


def test_the_plan_counts_on_min_persons_where_no_fact_says_more():
    plan = make_plan(config(privacy={"unit": "person", "min_persons": 50, "person_clip_norm": 0.5}))
    bare, stated = BasketFacts("a", "", 8, 8), BasketFacts("a", "", 8, 8, num_persons=50)
    assert plan.sensitivity(bare) == plan.sensitivity(stated) == pytest.approx(2 * 0.5 / 50 / 8, rel=1e-3)
    more = replace(stated, num_persons=400)
    assert plan.sensitivity(more) == pytest.approx(2 * 0.5 / 400 / 8, rel=4e-3)
    for method in ("krum", "bulyan", "geometric_median"):
        whole = FederationPlan(config(method, privacy={"unit": "person", "min_persons": 50}))
        assert whole.sensitivity(stated) == pytest.approx(2 * C, rel=1e-5)
    behind = config(layer1={"aggregation_method": "mean", "pre": ["nnm"], "clip_norm": C, "num_byzantine": 1})
    assert make_plan(behind).sensitivity(stated) == pytest.approx(2 * C, rel=1e-5)


def test_a_whole_client_and_a_group_are_claimed_no_better_than_they_are():
    """Against the plan's numbers: the noise of a release, and what a client, two rows or ten records move."""
    given = config(
        "mean", privacy={"unit": "record", "min_persons": 100}, total_epsilon=3.0, total_delta=1e-6
    )
    plan = FederationPlan(given)
    claim = person_claim(given, 3.0)
    assert claim is not None
    sigma = plan.sensitivity(BasketFacts("a", "", 5, 5)) / plan.mu_total
    for name, move in (("client", 2 * C / 5), ("ten_records", 10 * 2 * C / 100 / 5)):
        exact = plan.accounting.epsilon_of(move / sigma, 1e-6)
        assert exact * 0.98 < getattr(claim, f"{name}_epsilon") < exact * 1.02
    assert claim.two_clients_epsilon == pytest.approx(plan.accounting.epsilon_of(2 * plan.mu_total, 1e-6))
    assert claim.membership_advantage == pytest.approx(0.2535, abs=2e-3)
    assert claim.true_positives == pytest.approx(0.0466, abs=5e-4)
    krum = replace(given, layer1=replace(given.layer1, aggregation_method="krum"))
    same = person_claim(krum, 3.0)
    assert same is not None
    assert same.client_epsilon == pytest.approx(3.0, rel=1e-3), "Krum's noise hides a whole client"
    assert person_claim(load(HierarchicalFederationConfig, {}), 3.0) is None


@pytest.mark.parametrize(("least", "method"), [(1, "mean"), (5, "median"), (5, "krum")])
def test_ten_records_are_claimed_for_clients_that_have_more_than_the_least(least, method):
    """The noise follows the records that clients have, not the least number that they may have."""
    given = config(method, privacy={"unit": "record", "min_persons": least}, total_epsilon=3.0)
    plan, claim = FederationPlan(given), person_claim(given, 3.0, 1e-6)
    assert claim is not None
    rows = max(5, plan.least_rows(5))
    sigma = plan.sensitivity(BasketFacts("a", "", rows, rows, num_persons=1000))
    sigma /= plan.accounting.mu_of_claim(3.0, 1e-6)
    moved = {"mean": 10 * 2 * C / 1000 / rows, "median": 10 * 2 * C / 1000, "krum": 2 * C}[method]
    exact = plan.accounting.epsilon_of(moved / sigma, 1e-6)
    assert exact * 0.99 < claim.ten_records_epsilon < exact * 1.02


@pytest.mark.parametrize("method", ["mean", "weighted", "trimmed_mean", "median"])
def test_a_whole_client_is_claimed_for_baskets_of_few_rows_and_large_clients(method):
    """With 100,000 persons what float32 adds to the noise is not small, and least where rows are fewest."""
    f, persons = PROVED[method], 100_000
    given = config(method, f=f, privacy={"unit": "person", "min_persons": persons}, total_epsilon=3.0)
    plan, claim = FederationPlan(given), person_claim(given, 3.0, 1e-6)
    assert claim is not None
    mu = plan.accounting.mu_of_claim(3.0, 1e-6)
    for rows in (2 * f + 1, 2 * f + 9):
        share = 1 / rows if method == "weighted" else None
        facts = BasketFacts("a", "", rows, rows, f, share, num_persons=persons)
        moved = 2 * C if method == "median" else 2 * C / (rows - 2 * f)
        exact = plan.accounting.epsilon_of(mu * moved / plan.sensitivity(facts), 1e-6)
        assert claim.client_epsilon >= exact * (1 - 1e-6)


@pytest.mark.parametrize("unit", ["person", "record"])
def test_the_claim_says_unit_mode_and_whom_it_does_not_protect(unit):
    given = config(privacy={"unit": unit, "min_persons": 100})
    claim = person_claim(given, 3.0, 1e-6)
    assert claim is not None
    text = " ".join(claim.sentences())
    for words in (
        f"any one {unit} of one client",
        "Noise is central",
        "4.66 % of those who are",
        f"{claim.two_clients_epsilon:.4g}",
        f"{claim.client_epsilon:.4g}",
        f"mean over its {unit}s",
    ):
        assert words in text
    assert ("A record is not a person" in text) == (unit == "record")


@pytest.mark.parametrize(
    ("layer1", "warned"),
    [
        ({"aggregation_method": "krum"}, True),
        ({"aggregation_method": "mean", "pre": ["nnm"]}, True),
        ({"aggregation_method": "median"}, False),
        ({"aggregation_method": "weighted"}, False),
    ],
)
def test_a_rule_that_gains_nothing_from_the_unit_is_named(layer1, warned):
    given = config(layer1=layer1 | {"num_byzantine": 0}, privacy={"unit": "person", "min_persons": 100})
    found = {warning.code: warning.message for warning in weak_settings(given, 20_000)}
    assert ("unit_without_gain" in found) == warned
    assert "with 2000000 persons" in found["delta_not_small"]
