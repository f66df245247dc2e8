"""The split's properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcity_ray.errors import ConfigError
from scarcity_ray.workloads.population import (
    baskets_in_order,
    domain_shares,
    make_population,
    split_by_domain,
)

LABELS = np.random.default_rng(0).integers(0, 10, size=1348)
FEATURES = np.random.default_rng(1).standard_normal((1348, 3)).astype(np.float32)


def _population(seed=0, num_clients=220, skew=1.0, byzantine_share=0.2):
    return make_population(
        FEATURES,
        LABELS,
        domain_sizes=(num_clients // 4,) * 4,
        skew=skew,
        byzantine_share=byzantine_share,
        seed=seed,
    )


@given(seed=st.integers(0, 1000), domains=st.integers(1, 6), skew=st.floats(0.2, 10))
@settings(max_examples=40, deadline=None)
def test_every_class_is_used_up_and_domains_are_of_like_size(seed, domains, skew):
    parts = split_by_domain(LABELS, domains, skew, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(LABELS)))
    shares = domain_shares(LABELS, domains, skew, seed)
    assert np.allclose(shares.sum(axis=0), np.bincount(LABELS))
    assert max(map(len, parts)) - min(map(len, parts)) <= 0.05 * len(LABELS)


def test_every_example_has_one_client():
    population = _population()
    held = population.present.astype(bool)
    assert int(held.sum()) == len(LABELS)
    rows = population.features[held][:, :-1]
    order = np.lexsort(rows.T)
    expected = FEATURES[np.lexsort(FEATURES.T)]
    assert np.array_equal(rows[order], expected)
    assert np.array_equal(np.bincount(population.labels[held]), np.bincount(LABELS))


def test_padding_is_empty_and_the_bias_is_one():
    population = _population()
    held = population.present.astype(bool)
    assert (population.features[held][:, -1] == 1).all()
    assert (population.features[~held] == 0).all()


def test_clients_of_a_domain_hold_like_numbers():
    population = _population()
    counts = population.present.sum(axis=1)
    for domain in set(population.domains):
        inside = counts[[d == domain for d in population.domains]]
        assert inside.max() - inside.min() <= 1


@given(seed=st.integers(0, 1000), share=st.floats(0, 0.9))
@settings(max_examples=10, deadline=None)
def test_the_byzantine_number_is_exact(seed, share):
    population = _population(seed=seed, byzantine_share=share)
    assert int(population.byzantine.sum()) == round(share * 220)


def test_some_baskets_hold_more_than_f_attackers():
    population = _population()
    baskets = baskets_in_order(population.domains, 11)
    attackers = np.bincount(baskets, weights=population.byzantine)
    assert (attackers > 2).any()


def _label_distance(population, groups) -> float:
    held = population.present.astype(bool)
    overall = np.bincount(population.labels[held], minlength=10) / held.sum()
    total = 0.0
    for group in np.unique(groups):
        inside = held & (groups == group)[:, None]
        total += np.abs(np.bincount(population.labels[inside], minlength=10) / inside.sum() - overall).sum()
    return total / len(np.unique(groups))


def test_domains_differ_and_a_small_skew_makes_them_differ_more():
    distances = []
    for skew in (0.2, 1.0, 100.0):
        population = _population(skew=skew)
        distances.append(_label_distance(population, np.array([int(d[-1]) for d in population.domains])))
    assert distances[0] > distances[1] > 4 * distances[2]


def test_baskets_of_a_domain_resemble_each_other():
    population = _population(skew=0.3)
    domains = np.array([int(d[-1]) for d in population.domains])
    baskets = baskets_in_order(population.domains, 11)
    one = domains == 0
    inside = [
        population.labels[(baskets == b)][population.present[baskets == b] > 0] for b in set(baskets[one])
    ]
    shares = np.array([np.bincount(labels, minlength=10) / len(labels) for labels in inside])
    other = population.labels[~one][population.present[~one] > 0]
    gap = np.abs(shares.mean(axis=0) - np.bincount(other, minlength=10) / len(other)).sum()
    assert np.abs(shares - shares.mean(axis=0)).sum(axis=1).mean() < gap


def test_the_seed_decides():
    first, again, other = _population(1), _population(1), _population(2)
    assert first.client_ids == again.client_ids
    assert np.array_equal(first.features, again.features)
    assert not np.array_equal(first.byzantine, other.byzantine)


def test_baskets_fill_in_order():
    domains = ("a", "b", "a", "a", "b", "a", "a")
    assert baskets_in_order(domains, 2).tolist() == [0, 1, 0, 2, 1, 2, 3]


def test_too_few_examples_are_an_error():
    with pytest.raises(ConfigError, match=r"workload\.clients: 1400 is not accepted"):
        _population(num_clients=1400)
