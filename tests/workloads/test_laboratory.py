"""Small federations as array programs: who holds what, who attacks, and what training comes to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.lab.laboratory import (
    HONEST_MEAN,
    TEST_SHARE,
    Case,
    Clients,
    byzantine_clients,
    can_run,
    deal_out,
    group_rule,
    train,
    within_guarantee,
)
from scarcity_ray.robust import aggregate
from scarcity_ray.workloads.attacks import AttackConfig, make_attack
from scarcity_ray.workloads.digit_images import NUM_CLASSES, NUM_PIXELS, load_digits

pytest.importorskip("sklearn")
DATA = load_digits(NUM_PIXELS, TEST_SHARE, 0)
DOMAINS = Case("krum", split="domains", num_clients=55, num_byzantine=10, steps=20, clip_norm=2.0)


@pytest.mark.parametrize("split", ["iid", "sorted", "domains"])
def test_every_example_has_one_client_and_clients_hold_like_numbers(split):
    parts = deal_out(replace(DOMAINS, split=split), DATA.train_labels)
    assert sorted(np.concatenate(parts)) == list(range(len(DATA.train_labels)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_sorted_clients_hold_one_or_two_labels_and_domains_hold_mostly_two():
    case = Case("krum", split="sorted")
    assert max(len(set(DATA.train_labels[part])) for part in deal_out(case, DATA.train_labels)) <= 2
    parts = deal_out(DOMAINS, DATA.train_labels)
    for domain in range(5):
        inside = np.concatenate([parts[i] for i in np.flatnonzero(DOMAINS.domains == domain)])
        counts = np.sort(np.bincount(DATA.train_labels[inside], minlength=10))
        assert counts[-2:].sum() >= 0.9 * counts.sum()


@pytest.mark.parametrize("placement", ["random", "even", "packed"])
def test_the_byzantine_number_is_exact_wherever_they_are(placement):
    case = replace(DOMAINS, placement=placement)
    byzantine = byzantine_clients(case)
    each = np.bincount(case.domains[byzantine], minlength=5)
    assert byzantine.sum() == 10
    if placement == "even":
        assert each.tolist() == [2] * 5
    if placement == "packed":
        assert each.tolist() == [10, 0, 0, 0, 0]


def test_gradients_are_those_of_the_mean_cross_entropy():
    case = Case("mean", num_clients=3, num_byzantine=1)
    flip = make_attack(AttackConfig(name="label_flip"))
    byzantine = np.array([False, True, False])
    clients = Clients.of(case, DATA, flip, byzantine)
    model = np.random.default_rng(0).standard_normal(650).astype(np.float32)
    gradients = clients.gradients(model)
    for client, part in enumerate(deal_out(case, DATA.train_labels)):
        features = np.c_[DATA.train_features[part], np.ones(len(part))].astype(np.float64)
        labels = DATA.train_labels[part]
        labels = 9 - labels if byzantine[client] else labels

        def loss(weights, features=features, labels=labels):
            scores = features @ weights.reshape(65, NUM_CLASSES)
            log_sum = np.log(np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1))
            return np.mean(log_sum + scores.max(axis=1) - scores[np.arange(len(labels)), labels])

        direction = np.random.default_rng(client).standard_normal(650)
        moved = (loss(model + 1e-5 * direction) - loss(model - 1e-5 * direction)) / 2e-5
        assert moved == pytest.approx(float(gradients[client] @ direction), rel=1e-4)


def test_the_same_case_gives_the_same_accuracy():
    case = replace(DOMAINS, attack="gaussian", baskets=True)
    first = train(case, DATA)
    assert first == train(case, DATA)
    assert len(first) == 10
    assert first == train(case)


def test_an_unattacked_mean_in_groups_is_the_unattacked_flat_mean():
    flat = replace(DOMAINS, rule="mean", clip_norm=None)
    assert train(flat, DATA) == pytest.approx(train(replace(flat, baskets=True), DATA), abs=0.005)


def test_a_groups_rule_is_clip_rule_clip_with_what_is_left_of_f():
    rng = np.random.default_rng(1)
    rows = 5 * rng.standard_normal((11, 40)).astype(np.float32)
    rows[4] = np.nan
    kept = np.delete(rows, 4, axis=0)
    kept = kept * (2.0 / np.linalg.norm(kept, axis=1, keepdims=True))
    case = replace(DOMAINS, rule="trimmed_mean", baskets=True)
    assert case.group_byzantine == 2
    expected = aggregate(kept, method="trimmed_mean", num_byzantine=1).vector
    assert np.allclose(group_rule(case)(rows), expected, atol=1e-6)
    big = group_rule(replace(case, rule="median"))(np.full((11, 40), 9.0, np.float32))
    assert np.linalg.norm(big) <= 2.0 + 1e-6


def test_a_rule_that_needs_more_rows_does_not_run_and_centred_clipping_is_marked():
    assert can_run(Case("bulyan", num_byzantine=5))
    assert not can_run(Case("bulyan", num_byzantine=7))
    assert can_run(Case("centered_clipping", num_byzantine=7))
    assert not within_guarantee(Case("centered_clipping", num_byzantine=7))
    assert within_guarantee(Case("centered_clipping", num_byzantine=2))
    assert within_guarantee(Case(HONEST_MEAN, num_byzantine=7))


def test_centred_clipping_past_its_theorem_still_bounds_what_a_row_does():
    rule = group_rule(Case("centered_clipping", num_byzantine=7))
    rows = np.zeros((25, 10), np.float32)
    rows[:7] = 1e6
    assert np.linalg.norm(rule(rows)) <= 7 / 25 + 1e-5


def test_the_honest_mean_does_not_see_the_attackers():
    case = Case(HONEST_MEAN, steps=10)
    assert train(case, DATA) == train(replace(case, attack="sign_flip"), DATA)


@pytest.mark.long
def test_krum_loses_unlike_clients_flat_and_keeps_them_in_baskets():
    flat = replace(DOMAINS, attack="ipm", placement="even", steps=60)
    assert train(flat, DATA)[-1] < 0.5
    assert train(replace(flat, baskets=True), DATA)[-1] > 0.85
