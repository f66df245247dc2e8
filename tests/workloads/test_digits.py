"""The data set and its projection."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.fft import dctn

from scarcity_ray.errors import UsageError
from scarcity_ray.workloads.digits import frequencies, load_digits, projection


def test_the_projection_is_scipys_cosine_transform_cut_to_low_frequencies():
    image = np.random.default_rng(0).random((8, 8))
    transformed = dctn(image, norm="ortho")
    expected = [transformed[pair] for pair in frequencies(24)]
    assert np.allclose(image.ravel() @ projection(24), expected)
    assert np.allclose(projection(64).T @ projection(64), np.eye(64))


def test_frequencies_come_lowest_first_and_once():
    assert frequencies(4) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(set(frequencies(64))) == 64


def test_every_digit_is_in_one_part_and_the_seed_decides_which():
    pytest.importorskip("sklearn")
    first, again, other = (load_digits(8, 0.25, seed) for seed in (1, 1, 2))
    assert len(first.train_labels) + len(first.test_labels) == 1797
    assert first.train_features.shape == (1348, 8)
    assert first.train_features.dtype == np.float32
    assert np.array_equal(first.test_labels, again.test_labels)
    assert not np.array_equal(first.test_labels, other.test_labels)
    counts = np.bincount(first.train_labels) + np.bincount(first.test_labels)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_without_scikit_learn_the_error_holds_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'scarcity-ray\[quickstart\]'"):
        load_digits(8, 0.25, 0)
