"""What `plan --recommend` chooses, and whether training agrees with what it expects."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.lab.choosing_sweep import RULES, Cell, named, run
from scarcity_ray.config import HierarchicalFederationConfig, Layer2Config
from scarcity_ray.errors import ConfigError
from scarcity_ray.forecast.choosing import (
    HELD_OFF,
    NOTHING,
    Likeness,
    Verdict,
    drawn_rows,
    measured,
    preference,
    recommend,
)
from scarcity_ray.forecast.remedies import with_persons


def federation(epsilon=8.0, dimension=10):
    return HierarchicalFederationConfig(
        vector_dim=dimension,
        total_epsilon=epsilon,
        gossip_budget_share=0.0,
        layer2=Layer2Config(central_dp_epsilon=epsilon),
    )


def asked(config=None, clients=24, attackers=4, **given):
    return recommend(config or federation(), clients=clients, attackers=attackers, rounds=10, **given)


def test_the_chosen_setting_has_the_highest_ratio_of_all_that_were_tried():
    found = asked(likeness=Likeness.ALIKE)
    assert found.chosen is not None
    assert found.chosen.ratio == max(choice.ratio for choice in found.by_rule)
    assert sum(found.chosen.sizes) == 24
    assert found.chosen.federation.layer1.num_byzantine == found.chosen.num_byzantine > 0


def test_without_attackers_the_mean_is_chosen():
    found = asked(attackers=0)
    assert found.chosen is not None
    assert (found.chosen.name, found.chosen.num_byzantine, found.chosen.back_door) == ("mean", 0, 0.0)


@pytest.mark.long
def test_a_setting_that_holds_off_back_doors_has_a_rule_that_does():
    found = asked(clients=40, attackers=4, likeness=Likeness.ALIKE, back_doors=True)
    assert found.chosen is not None
    assert found.chosen.name != "mean"
    assert found.chosen.back_door <= HELD_OFF * 4 / 40


def test_where_noise_drowns_every_rule_nothing_teaches():
    found = asked(federation(epsilon=1.0, dimension=100_000), attackers=0)
    assert found.verdict is Verdict.NOTHING
    assert all(choice.ratio < NOTHING for choice in found.by_rule)


@pytest.mark.long
def test_where_noise_drowns_clients_the_persons_that_would_teach_are_counted():
    drowned = asked(federation(epsilon=1.0, dimension=1000))
    assert drowned.verdict in (Verdict.LITTLE, Verdict.NOTHING)
    verdicts = [
        asked(with_persons(federation(epsilon=1.0, dimension=1000), drowned.min_persons - fewer)).verdict
        for fewer in (0, 1)
    ]
    assert verdicts == [Verdict.TEACHES, Verdict.LITTLE]
    assert asked().min_persons is None


def test_attackers_who_outweigh_the_honest_mean_are_told_apart_from_noise():
    found = asked(federation(epsilon=math.inf), clients=20, attackers=9)
    assert found.verdict is Verdict.OUTWEIGHED
    assert all(choice.signal_norm <= 0.0 for choice in found.by_rule)


def test_the_ratio_does_not_depend_on_the_number_of_rounds():
    ratios = [
        recommend(federation(), clients=24, attackers=0, rounds=rounds).by_rule[0].ratio for rounds in (5, 80)
    ]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-3)


@pytest.mark.parametrize(("clients", "attackers"), [(20, 10), (20, -1), (5, 0)])
def test_what_cannot_be_is_refused(clients, attackers):
    with pytest.raises(ConfigError):
        asked(clients=clients, attackers=attackers)


@pytest.mark.parametrize("likeness", Likeness)
def test_drawn_rows_are_as_long_as_the_clip_norm_and_silent_in_the_last_coordinate(likeness):
    rows = drawn_rows(10, likeness, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)
    assert not rows[:, -1].any()


def test_the_mean_moves_as_far_as_its_honest_rows_outweigh_the_turned_ones():
    moved, planted = measured("mean", (), 50, 0, 10, Likeness.ALIKE)
    assert moved == pytest.approx(0.8 * 0.9 - 0.2, abs=0.02)
    assert planted == pytest.approx(0.2, abs=1e-3)


def test_trimmed_mean_lets_no_back_door_through_and_loses_clients_of_unlike_kinds():
    assert measured("trimmed_mean", (), 20, 4, 4, Likeness.ALIKE)[1] == pytest.approx(0.0, abs=1e-6)
    assert measured("trimmed_mean", (), 20, 4, 4, Likeness.UNLIKE)[0] < 0.1


@pytest.mark.parametrize(
    ("cell", "better", "worse"),
    [
        (Cell(40, 4, 8.0, 0.2, Likeness.ALIKE), "mean", "geometric_median"),
        (Cell(40, 4, math.inf, 0.2, Likeness.UNLIKE), "mean", "trimmed_mean"),
    ],
)
def test_training_agrees_with_what_is_expected_of_two_rules(cell, better, worse):
    found = {
        result.rule: result
        for result in run(cell, rules=[rule for rule in RULES if named(rule) in (better, worse)])
    }
    assert preference(*found[better].expected) > preference(*found[worse].expected)
    assert found[better].accuracy > found[worse].accuracy + 0.1
