"""The data set and its projection."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.fft import dctn

from scarcity_ray.errors import UsageError
from scarcity_ray.workloads.digits import (
    KERNEL_WIDTH,
    frequencies,
    load_digits,
    projection,
    random_fourier,
)


def test_the_projection_is_scipys_cosine_transform_cut_to_low_frequencies():
    image = np.random.default_rng(0).random((8, 8))
    transformed = dctn(image, norm="ortho")
    expected = [transformed[pair] for pair in frequencies(24)]
    assert np.allclose(image.ravel() @ projection(24), expected)
    assert np.allclose(projection(64).T @ projection(64), np.eye(64))


def test_frequencies_come_lowest_first_and_once():
    assert frequencies(4) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(set(frequencies(64))) == 64


def test_the_products_of_random_features_approach_the_gaussian_kernel():
    rows = np.random.default_rng(0).standard_normal((20, 24)) / 3
    lifted = random_fourier(rows, 50_000)
    distances = np.square(rows[:, None] - rows[None]).sum(axis=2)
    # a product is a mean of 50,000 bounded by 2 in size: Hoeffding, 400 pairs, two-sided, below 1e-10
    assert np.allclose(lifted @ lifted.T, np.exp(-distances / (2 * KERNEL_WIDTH**2)), atol=0.07)
    assert np.array_equal(lifted, random_fourier(rows, 50_000))


def test_random_features_take_the_projected_ones_place():
    pytest.importorskip("sklearn")
    plain, lifted = load_digits(64, 0.25, 1), load_digits(64, 0.25, 1, 100)
    assert lifted.train_features.shape == (1348, 100)
    assert np.array_equal(plain.test_labels, lifted.test_labels)


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
