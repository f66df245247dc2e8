"""The attacks as pure functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import ConfigError, UsageError
from scarcity_ray.robust import aggregate
from scarcity_ray.workloads.attacks import (
    ATTACKS,
    Attack,
    AttackConfig,
    View,
    alie_strength,
    craft,
    make_attack,
    poisons,
    strongest,
)

OPTIMISED = ["optimised_alie", "optimised_ipm"]


def _scene(seed: int = 0, clients: int = 22, dimension: int = 7):
    rng = np.random.default_rng(seed)
    deltas = rng.standard_normal((clients, dimension)).astype(np.float32)
    byzantine = rng.random(clients) < 0.3
    baskets = np.arange(clients) // 11
    return deltas, byzantine, baskets


def _median(rows):
    return np.median(rows, axis=0).astype(np.float32)


@pytest.mark.parametrize("name", sorted(ATTACKS))
@given(seed=st.integers(0, 10_000), clients=st.integers(1, 33))
def test_honest_rows_stay_as_they_are(name, seed, clients):
    deltas, byzantine, baskets = _scene(seed, clients)
    byzantine[0] = False  # without an honest client there is no honest mean to hide near
    before = deltas.copy()
    sent = craft(AttackConfig(name=name), deltas, byzantine, baskets, np.random.default_rng(1), _median)
    assert np.array_equal(sent[~byzantine], before[~byzantine])
    assert np.array_equal(deltas, before)
    assert sent.shape == deltas.shape
    assert sent.dtype == np.float32


def test_sign_flip_turns_and_scales():
    deltas, byzantine, baskets = _scene()
    sent = craft(AttackConfig(name="sign_flip"), deltas, byzantine, baskets, np.random.default_rng(0))
    assert np.allclose(sent[byzantine], -10 * deltas[byzantine])
    sent = craft(
        AttackConfig(name="sign_flip", scale=2.0), deltas, byzantine, baskets, np.random.default_rng(0)
    )
    assert np.allclose(sent[byzantine], -2 * deltas[byzantine])


@pytest.mark.parametrize(("name", "scale", "sign"), [("alie", 1.5, 1), ("ipm", 0.5, -0.5)])
def test_colluders_use_their_own_baskets_honest_rows(name, scale, sign):
    deltas, byzantine, baskets = _scene()
    sent = craft(AttackConfig(name=name, scale=scale), deltas, byzantine, baskets, np.random.default_rng(0))
    for basket in (0, 1):
        inside = baskets == basket
        honest = deltas[inside & ~byzantine]
        expected = sign * honest.mean(axis=0) - (scale * honest.std(axis=0) if name == "alie" else 0)
        assert np.allclose(sent[inside & byzantine], expected, atol=1e-6)


def test_a_basket_of_liars_alone_uses_the_others():
    deltas, byzantine, baskets = _scene()
    byzantine[:] = baskets == 0
    sent = craft(AttackConfig(name="ipm"), deltas, byzantine, baskets, np.random.default_rng(0))
    assert np.allclose(sent[0], -deltas[11:].mean(axis=0), atol=1e-6)


def test_gaussian_has_the_size_it_says():
    rng = np.random.default_rng(0)
    deltas = rng.standard_normal((40, 5000)).astype(np.float32)
    byzantine = np.arange(40) < 10
    sent = craft(AttackConfig(name="gaussian", scale=3.0), deltas, byzantine, np.zeros(40, int), rng)
    # 50,000 normals: the standard deviation's relative error is 1/sqrt(1e5); six of them, two-sided, 2e-9
    assert abs(sent[byzantine].std() / 3.0 / deltas[~byzantine].std() - 1) < 6 * np.sqrt(1e-5) + 0.01


@pytest.mark.parametrize(("name", "check"), [("nan", np.isnan), ("inf", np.isinf)])
def test_rows_that_are_not_finite_hold_nothing_else(name, check):
    deltas, byzantine, baskets = _scene()
    sent = craft(AttackConfig(name=name), deltas, byzantine, baskets, np.random.default_rng(0))
    assert check(sent[byzantine]).all()


def test_a_scaled_gradient_is_the_honest_one_many_times():
    deltas, byzantine, baskets = _scene()
    attack = AttackConfig(name="scaled_gradient")
    sent = craft(attack, deltas, byzantine, baskets, np.random.default_rng(0))
    assert np.allclose(sent[byzantine], 10 * deltas[byzantine])


def test_mimic_sends_the_honest_row_furthest_along_the_first_principal_direction():
    rng = np.random.default_rng(3)
    honest = rng.standard_normal((9, 40)).astype(np.float32)
    view = View(rng.standard_normal((3, 40)).astype(np.float32), honest, rng)
    sent = make_attack(AttackConfig(name="mimic")).rows(view)
    centred = honest.astype(np.float64) - honest.mean(axis=0)
    direction = np.linalg.svd(centred)[2][0]
    expected = honest[np.argmax(np.abs(centred @ direction))]
    assert np.array_equal(sent, np.tile(expected, (3, 1)))


def test_a_mimic_that_has_learned_stays_with_its_victim():
    rng = np.random.default_rng(4)
    first, second = rng.standard_normal((2, 9, 40)).astype(np.float32)
    own = np.zeros((2, 40), np.float32)
    mimic = make_attack(AttackConfig(name="mimic"))
    learned = mimic.learned(View(own, first, rng))
    victim = int(np.flatnonzero((first == mimic.rows(View(own, first, rng))[0]).all(axis=1))[0])
    assert np.array_equal(learned.rows(View(own, second, rng))[0], second[victim])


def _knowing_view(rule: str, seed: int = 0) -> View:
    rng = np.random.default_rng(seed)
    honest = rng.standard_normal((12, 30)).astype(np.float32) + np.float32(0.3)

    def outcome(sent):
        return aggregate(np.concatenate([honest, sent]), method=rule, num_byzantine=3).vector

    return View(np.zeros((3, 30), np.float32), honest, rng, outcome)


@pytest.mark.parametrize("rule", ["krum", "trimmed_mean", "median", "bulyan", "geometric_median"])
@pytest.mark.parametrize("name", ["alie", "ipm"])
def test_no_strength_on_the_grid_does_more_harm(rule, name):
    view = _knowing_view(rule)
    optimised = make_attack(AttackConfig(name=f"optimised_{name}"))
    found = view.harm(optimised.rows(view))
    for strength in np.geomspace(0.1, 20.0, 10):
        assert found >= view.harm(make_attack(AttackConfig(name=name, scale=float(strength))).rows(view))
    learned = optimised.learned(view)
    assert view.harm(learned.rows(view)) == found


def test_an_optimised_attack_beats_its_papers_fixed_strength_on_a_rule_that_it_knows():
    view = _knowing_view("krum")
    fixed = view.harm(make_attack(AttackConfig(name="ipm")).rows(view))
    assert view.harm(make_attack(AttackConfig(name="optimised_ipm")).rows(view)) > fixed


@pytest.mark.parametrize("name", OPTIMISED)
def test_an_optimised_attack_without_a_rule_is_an_error(name):
    deltas, byzantine, baskets = _scene()
    with pytest.raises(UsageError, match="known rule"):
        craft(AttackConfig(name=name), deltas, byzantine, baskets, np.random.default_rng(0))
    with pytest.raises(TypeError, match="know the rule"):
        View(deltas, deltas, np.random.default_rng(0)).harm(deltas)


def test_a_result_that_is_not_finite_is_the_greatest_harm():
    rows = np.ones((3, 2), np.float32)
    view = View(rows, rows, np.random.default_rng(0), lambda sent: sent[0])
    assert view.harm(np.full_like(rows, np.nan)) == np.inf


@given(peak=st.floats(0.1, 20.0))
def test_the_search_ends_near_the_peak(peak):
    found = strongest(lambda x: -abs(np.log(x / peak)), 20.0)
    assert abs(np.log(found / peak)) <= np.log(20.0 / 0.1) / 9 / 2


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_says_truly_whether_it_colludes(name):
    rng = np.random.default_rng(0)
    own, honest, others = rng.standard_normal((3, 4, 6)).astype(np.float32)
    attack = make_attack(AttackConfig(name=name))
    outcome = _median if attack.knows_rule else None
    first = attack.rows(View(own, honest, np.random.default_rng(1), outcome))
    second = attack.rows(View(own, 3 * others, np.random.default_rng(1), outcome))
    alone = name == "gaussian" or np.array_equal(first, second, equal_nan=True)
    assert attack.colludes != alone


def test_alie_strength_is_the_papers():
    # Baruch et al. 2019, section 4: n = 50, m = 24 -> s = 2, z = Phi^-1(24/26)
    assert alie_strength(50, 24) == pytest.approx(1.426, abs=1e-3)
    assert alie_strength(11, 2) == pytest.approx(0.1397, abs=1e-3)
    assert alie_strength(3, 3 - 1) > 0  # more liars than honest: any z hides
    assert np.isfinite(alie_strength(10, 9))


def test_label_flip_turns_labels_and_sends_what_the_training_gives():
    assert make_attack(AttackConfig(name="label_flip")).labels(np.array([0, 3]), 10).tolist() == [9, 6]
    deltas, byzantine, baskets = _scene()
    assert craft(AttackConfig(name="poison"), deltas, byzantine, baskets, np.random.default_rng(0)) is deltas
    assert [name for name in ATTACKS if poisons(AttackConfig(name=name))] == ["label_flip", "poison"]


def test_an_unknown_attack_is_an_error_that_names_the_choices():
    with pytest.raises(ConfigError, match="sign_flip"):
        AttackConfig(name="sybil")


class Creep(Attack):
    """An attack from outside: the honest mean and a little more, or something that is none."""

    def __init__(self, gives: str = "rows", step: float = 1.0) -> None:
        self.gives, self.step = gives, step

    def rows(self, view):
        if self.gives == "raise":
            raise KeyError("no such client")
        if self.gives == "short":
            return view.own[:, :-1]
        if self.gives == "list":
            return view.own.tolist()
        return view.own.astype(np.float64) + self.step


def test_an_attack_from_outside_is_made_by_its_path_and_its_rows_are_checked():
    path = f"{__name__}:Creep"
    deltas, byzantine = np.zeros((4, 3), np.float32), np.array([True, False, False, False])
    baskets, rng = np.zeros(4, np.int64), np.random.default_rng(0)
    sent = craft(AttackConfig(name=path, args={"step": 2.0}), deltas, byzantine, baskets, rng)
    assert sent.dtype == np.float32
    assert sent[:, 0].tolist() == [2.0, 0.0, 0.0, 0.0]
    for gives, why in (
        ("raise", "raised KeyError"),
        ("short", r"gave float32 \(1, 2\)"),
        ("list", "gave list"),
    ):
        with pytest.raises(UsageError, match=why):
            craft(AttackConfig(name=path, args={"gives": gives}), deltas, byzantine, baskets, rng)
    with pytest.raises(UsageError, match="its attacks: "):
        make_attack(AttackConfig(name="scarcity_ray.workloads.attacks:SignFlop"))
    with pytest.raises(ConfigError, match="say it in args"):
        AttackConfig(name=path, scale=2.0)
    with pytest.raises(ConfigError, match="only an attack from outside"):
        AttackConfig(name="alie", args={"z": 1.0})
