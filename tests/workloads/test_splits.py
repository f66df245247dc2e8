"""The split's properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.workloads.softmax import PaddedExamples
from scarcity_ray.workloads.splits import domain_shares, split_among_clients, split_by_domain

LABELS = np.random.default_rng(0).integers(0, 10, size=1348)


def _shares(seed=0, num_clients=220, skew=1.0):
    return split_among_clients(LABELS, num_clients, 4, skew, seed)


@given(seed=st.integers(0, 1000), domains=st.integers(1, 6), skew=st.floats(0.2, 10))
def test_every_class_is_used_up_and_domains_are_of_like_size(seed, domains, skew):
    parts = split_by_domain(LABELS, domains, skew, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(LABELS)))
    shares = domain_shares(LABELS, domains, skew, seed)
    assert np.allclose(shares.sum(axis=0), np.bincount(LABELS))
    assert max(map(len, parts)) - min(map(len, parts)) <= 0.05 * len(LABELS)


def test_every_example_has_one_client():
    assert sorted(np.concatenate([share.indices for share in _shares()])) == list(range(len(LABELS)))


def test_padding_is_empty_and_the_bias_is_one():
    features = np.random.default_rng(1).standard_normal((1348, 3)).astype(np.float32)
    parts = [share.indices for share in _shares()]
    examples = PaddedExamples.of(features, LABELS, parts)
    held = examples.present.astype(bool)
    assert held.sum(axis=1).tolist() == [len(part) for part in parts]
    assert (examples.features[held][:, -1] == 1).all()
    assert (examples.features[~held] == 0).all()
    np.testing.assert_array_equal(examples.features[5][held[5]][:, :-1], features[parts[5]])
    np.testing.assert_array_equal(examples.labels[5][held[5]], LABELS[parts[5]])


def test_clients_of_a_domain_hold_like_numbers():
    shares = split_among_clients(LABELS, 221, 4, 1.0, 0)
    for domain in range(4):
        counts = [len(share.indices) for share in shares if share.domain == domain]
        assert max(counts) - min(counts) <= 1
        assert len(counts) == (56 if domain == 0 else 55)


def _label_shares(shares):
    labels = LABELS[np.concatenate([share.indices for share in shares])]
    return np.bincount(labels, minlength=10) / len(labels)


def test_domains_differ_and_a_small_skew_makes_them_differ_more():
    overall, distances = np.bincount(LABELS) / len(LABELS), []
    for skew in (0.2, 1.0, 100.0):
        shares = _shares(skew=skew)
        inside = [_label_shares([s for s in shares if s.domain == domain]) for domain in range(4)]
        distances.append(np.abs(np.array(inside) - overall).sum() / 4)
    assert distances[0] > distances[1] > 4 * distances[2]


def test_clients_of_a_domain_resemble_each_other():
    shares = _shares(skew=0.3)
    one = [share for share in shares if share.domain == 0]
    inside = np.array([_label_shares(one[first : first + 11]) for first in range(0, 55, 11)])
    gap = np.abs(inside.mean(axis=0) - _label_shares([s for s in shares if s.domain != 0])).sum()
    assert np.abs(inside - inside.mean(axis=0)).sum(axis=1).mean() < gap


def test_the_seed_decides():
    first, again, other = _shares(1), _shares(1), _shares(2)
    assert [share.indices.tolist() for share in first] == [share.indices.tolist() for share in again]
    assert [share.indices.tolist() for share in first] != [share.indices.tolist() for share in other]


def test_too_few_examples_are_an_error():
    with pytest.raises(UsageError, match="clients: 1400 is not accepted; fewer: domain 0 has"):
        _shares(num_clients=1400)
