"""The mechanisms: right scale accepted, wrong ones rejected (two-sided, false alarm at most 1e-6)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from scarcity_ray.errors import UsageError
from scarcity_ray.privacy import CentralDPMechanism, LocalDPMechanism, SeededNoise, mu_of_gaussian

ALARM = 1e-6


def row_norms(rows):
    peaks = np.max(np.abs(rows), axis=1, keepdims=True)
    return np.linalg.norm(rows / peaks, axis=1, keepdims=True) * peaks


def has_scale(sample, sigma):
    statistic = np.sum((sample / sigma) ** 2)
    return stats.chi2.ppf(ALARM / 2, sample.size) < statistic < stats.chi2.isf(ALARM / 2, sample.size)


@pytest.mark.parametrize("kind", [LocalDPMechanism, CentralDPMechanism])
def test_the_noise_has_the_claimed_scale(kind):
    mechanism = kind(epsilon=2.0, delta=1e-5, sensitivity=0.5)
    assert mechanism.mu == mu_of_gaussian(2.0, 1e-5)
    assert mechanism.sigma == 0.5 / mechanism.mu
    vector = np.linspace(-1, 1, 4000)
    noise = mechanism.add_noise(vector) - vector
    assert has_scale(noise, mechanism.sigma)
    assert not has_scale(noise * 1.5, mechanism.sigma)
    assert not has_scale(noise / 1.5, mechanism.sigma)
    assert stats.kstest(noise / mechanism.sigma, "norm").pvalue > ALARM


def test_rows_are_clipped_before_noise_is_added():
    mechanism = LocalDPMechanism(epsilon=5.0, delta=1e-5, sensitivity=2.0)
    rows = np.random.default_rng(0).standard_normal((5, 2000))
    rows *= np.array([[0.1], [0.9], [1.1], [10.0], [1e300]]) / row_norms(rows)
    released = mechanism.clip_and_noise(rows, 1.0)
    factors = np.minimum(1.0, 1.0 / row_norms(rows))
    assert has_scale((released - rows * factors).ravel(), mechanism.sigma)
    direction = rows / row_norms(rows)
    along = np.sum(released * direction, axis=1)
    # Along a row's own direction the release is normal around its clipped norm.
    allowed = stats.norm.isf(ALARM / 10) * mechanism.sigma
    assert np.all(np.abs(along - [0.1, 0.9, 1.0, 1.0, 1.0]) < allowed)
    unclipped = np.sum(mechanism.add_noise(rows) * direction, axis=1)
    assert not np.all(np.abs(unclipped - [0.1, 0.9, 1.0, 1.0, 1.0]) < allowed)


def test_outputs_lie_on_a_grid_that_the_input_does_not_choose():
    mechanism = CentralDPMechanism(epsilon=1.0, delta=1e-5, sensitivity=1.0)
    grid = 2.0 ** math.floor(math.log2(mechanism.sigma / 1024))
    for vector in (np.full(50, 1e-20), np.full(50, math.pi), np.full(50, 1e6, dtype=np.float32)):
        released = mechanism.add_noise(vector)
        np.testing.assert_array_equal(released, np.rint(released / grid) * grid)


def test_the_grid_hides_the_low_bits_that_plain_floats_betray():
    mechanism = CentralDPMechanism(epsilon=1.0, delta=1e-5, sensitivity=1.0)
    sets = [set(mechanism.add_noise(np.full(20000, x)).tolist()) for x in (0.0, 2.0**-30)]
    # Without the grid hardly a value would be common to both.
    assert len(sets[0] & sets[1]) > 1000


def test_infinite_epsilon_adds_nothing():
    mechanism = LocalDPMechanism(epsilon=math.inf, delta=1e-5, sensitivity=2.0)
    vector = np.array([0.25, -0.125], dtype=np.float32)
    assert mechanism.sigma == 0.0
    np.testing.assert_array_equal(mechanism.add_noise(vector), vector)


def test_the_input_is_neither_changed_nor_shared():
    mechanism = LocalDPMechanism(epsilon=math.inf, delta=1e-5, sensitivity=2.0)
    vector = np.ones(3)
    vector.setflags(write=False)
    released = mechanism.clip_and_noise(vector, 1.0)
    released[0] = 5.0
    np.testing.assert_array_equal(vector, np.ones(3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_dtypes(dtype):
    mechanism = CentralDPMechanism(1.0, 1e-5, 1.0, noise=SeededNoise(1))
    expected = np.float32 if dtype is np.float32 else np.float64
    assert mechanism.add_noise(np.zeros(3, dtype=dtype)).dtype == expected
    assert mechanism.clip_and_noise(np.zeros((2, 3), dtype=dtype), 1.0).dtype == expected


def test_seeded_noise_goes_by_stream():
    mechanism = CentralDPMechanism(1.0, 1e-5, 1.0, noise=SeededNoise(1))
    first, again, other = (mechanism.add_noise(np.zeros(3), stream) for stream in ("a", "a", "b"))
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)


def test_a_local_clip_norm_that_the_sensitivity_does_not_cover_is_refused():
    with pytest.raises(UsageError, match="at most half the sensitivity"):
        LocalDPMechanism(0.5, 1e-5, sensitivity=1.0).clip_and_noise(np.ones(3), 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    mechanism = LocalDPMechanism(0.5, 1e-5, sensitivity=2.0)
    for call in (mechanism.add_noise, lambda v: mechanism.clip_and_noise(v, 1.0)):
        with pytest.raises(UsageError, match="finite"):
            call(np.array([0.0, bad]))


@pytest.mark.parametrize(
    ("epsilon", "delta", "sensitivity"),
    [(0.0, 1e-5, 1.0), (math.nan, 1e-5, 1.0), (1.0, 0.0, 1.0), (1.0, 1e-5, 0.0), (1.0, 1e-5, math.inf)],
)
def test_values_out_of_range_are_refused(epsilon, delta, sensitivity):
    with pytest.raises(UsageError, match="is not accepted"):
        CentralDPMechanism(epsilon, delta, sensitivity)


@pytest.mark.parametrize("value", [None, "1", [1], {}, object(), 1 + 2j, True, math.nan, -1.0, 0.0, 10**400])
def test_what_is_no_number_is_a_usage_error(value):
    for kind in (LocalDPMechanism, CentralDPMechanism):
        for arguments in ((value, 1e-5, 1.0), (1.0, value, 1.0), (1.0, 1e-5, value)):
            with pytest.raises(UsageError, match="is not accepted"):
                kind(*arguments)
        with pytest.raises(UsageError, match="is not accepted"):
            kind(1.0, 1e-5, 1.0).clip_and_noise(np.ones(3), value)


@pytest.mark.parametrize("vector", [None, "abc", {}, [1j, 0.0], [True], [1, "x"], [[1.0], [1.0, 2.0]], ["1"]])
def test_what_is_no_array_of_real_numbers_is_a_usage_error(vector):
    mechanism = LocalDPMechanism(1.0, 1e-5, 2.0)
    for release in (mechanism.add_noise, lambda given: mechanism.clip_and_noise(given, 1.0)):
        with pytest.raises(UsageError, match="vector: "):
            release(vector)
