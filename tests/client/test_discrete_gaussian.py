"""The discrete Gaussian and rounded noise, two-sided, at a false-alarm rate of at most 1e-6 each."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_mechanism import DiscreteGaussianPrivacyLoss
from scipy import stats

from scarcity_ray.errors import UsageError
from scarcity_ray.privacy import Accounting, SeededNoise, SystemNoise
from scarcity_ray_client.noise.discrete_gaussian import DiscreteGaussian, discrete_gaussian
from scarcity_ray_client.noise.source import rounded_gaussian

ALARM = 1e-6
PINNED = [-1389, -200, -1062, 95]


def edges_for(sigma):
    """Cells of about equal width in sigmas; single integers for small sigma."""
    step = max(1, int(sigma / 8))
    reach = int(5 * sigma / step) + 1
    return np.arange(-reach, reach + 1) * step - step // 2


def exact_cells(sigma, edges):
    """Probabilities of (-inf, e0), [e0, e1), ..., [en, inf)."""
    reach = int(12 * sigma) + 3
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(x.astype(float) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    return np.bincount(np.searchsorted(edges, x, side="right"), weights, len(edges) + 1)


def follows(sample, sigma):
    edges = edges_for(sigma)
    expected = exact_cells(sigma, edges) * sample.size
    observed = np.bincount(np.searchsorted(edges, sample, side="right"), minlength=len(edges) + 1)
    order = np.argsort(expected)
    observed, expected = observed[order], expected[order]
    # The rare cells together, until at least 20 values are expected in them.
    rare = int(np.searchsorted(np.cumsum(expected), 20)) + 1
    observed = np.append(observed[:rare].sum(), observed[rare:])
    expected = np.append(expected[:rare].sum(), expected[rare:])
    p = stats.chi2.sf(np.sum((observed - expected) ** 2 / expected), len(expected) - 1)
    return ALARM / 2 < p < 1 - ALARM / 2


@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.7, 40.0, 255.9, 256.0, 300.0, 5000.0])
def test_the_discrete_gaussian_has_its_law(sigma):
    sample = DiscreteGaussian(sigma).sample(150_000)
    assert follows(sample, sigma)
    assert not follows(sample, sigma * 1.5)
    assert not follows(sample, sigma / 1.5)
    assert not DiscreteGaussian(0.05).sample(1000).any()


def test_a_continuous_gaussian_cut_off_at_integers_is_rejected():
    cut = np.trunc(2.0 * SystemNoise().standard_normal(150_000)).astype(np.int64)
    assert not follows(cut, 2.0)
    assert not follows(cut, float(np.std(cut)))


def bernoulli_exp(gamma, rng):
    """Canonne, Kamath, Steinke (2020), algorithm 1."""
    if gamma <= 1:
        k = 1
        while rng.random() < gamma / k:
            k += 1
        return k % 2 == 1
    return all(bernoulli_exp(Fraction(1), rng) for _ in range(math.floor(gamma))) and bernoulli_exp(
        gamma - math.floor(gamma), rng
    )


def scalar_sample(sigma_squared, rng):
    """Canonne, Kamath, Steinke (2020), algorithms 2 and 3."""
    t = math.isqrt(math.floor(sigma_squared)) + 1
    while True:
        u = rng.randrange(t)
        if not bernoulli_exp(Fraction(u, t), rng):
            continue
        v = 0
        while bernoulli_exp(Fraction(1), rng):
            v += 1
        x, minus = u + t * v, rng.randrange(2)
        if minus and x == 0:
            continue
        if bernoulli_exp((x - sigma_squared / t) ** 2 / (2 * sigma_squared), rng):
            return -x if minus else x


@pytest.mark.long
@pytest.mark.parametrize("sigma", [0.75, 5.0])
def test_the_discrete_gaussian_has_its_law_by_the_scalar_sampler_too(sigma):
    rng = random.Random(3)
    theirs = np.array([scalar_sample(Fraction(sigma) ** 2, rng) for _ in range(8000)])
    ours = DiscreteGaussian(sigma).sample(8000)
    edges = np.arange(-math.ceil(2 * sigma), math.ceil(2 * sigma) + 1)
    table = [np.bincount(np.searchsorted(edges, one), minlength=len(edges) + 1) for one in (theirs, ours)]
    assert stats.chi2_contingency(np.array(table)).pvalue > ALARM


def test_large_scales_look_gaussian():
    for sigma in (1e6, 2.0**40):
        sample = DiscreteGaussian(sigma).sample(100_000)
        assert stats.kstest(sample / sigma, "norm").pvalue > ALARM
        low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], sample.size)
        assert low < np.sum((sample / sigma) ** 2) < high
        # Within a bucket all offsets occur alike.
        width = 2 ** (int(math.log2(sigma)) - 7)
        assert stats.kstest(np.abs(sample) % width / width, "uniform").pvalue > ALARM


@pytest.mark.parametrize("sigma", [0.3, 2.0, 100.0, 700.0])
def test_the_table_is_right_to_its_last_digits(sigma):
    mpmath.mp.dps = 130
    gaussian = DiscreteGaussian(sigma)
    width, bounds = gaussian._width, gaussian._bounds
    weights = [
        mpmath.exp(-((mpmath.mpf(a) * width) ** 2) / (2 * mpmath.mpf(sigma) ** 2)) for a in range(len(bounds))
    ]
    whole = mpmath.fsum(weights)
    # What was left out, relative to the whole.
    following = mpmath.exp(-((mpmath.mpf(len(bounds)) * width) ** 2) / (2 * mpmath.mpf(sigma) ** 2))
    assert following / whole < mpmath.mpf(2) ** -200
    reached = mpmath.mpf(0)
    for weight, bound in zip(weights, bounds, strict=True):
        reached += weight
        assert abs(mpmath.mpf(bound) / mpmath.mpf(2) ** 256 - reached / whole) < mpmath.mpf(2) ** -250


def law_of(gaussian):
    """The probability of each integer >= 0 (one sign), from the sampler's own table and acceptances."""
    width, bounds, one = gaussian._width, gaussian._bounds, mpmath.mpf(2) ** 256
    cells = [(mpmath.mpf(bound) - (bounds[i - 1] if i else 0)) / one for i, bound in enumerate(bounds)]
    weights = [
        cell * (gaussian.acceptance(a * width, b) / one if b else 1)
        for a, cell in enumerate(cells)
        for b in range(width)
    ]
    whole = 2 * mpmath.fsum(weights) - weights[0]
    return [weight / whole for weight in weights]


@pytest.mark.long
@pytest.mark.parametrize(("sigma", "shift"), [(0.6, 1), (3.7, 2), (40.0, 3), (300.0, 1)])
def test_the_sampled_law_is_concentrated_as_claimed(sigma, shift):
    with mpmath.workdps(60):
        law = law_of(DiscreteGaussian(sigma))
        claim = mpmath.mpf(shift) ** 2 / (2 * mpmath.mpf(sigma) ** 2)
        least = mpmath.mpf(10) ** -40
        reach = next(x for x in range(len(law) - 1, 0, -1) if law[x] > least) - shift
        here = [law[abs(x)] for x in range(-reach, reach + 1)]
        there = [law[abs(x - shift)] for x in range(-reach, reach + 1)]
        ratios = [mpmath.log(p) - mpmath.log(q) for p, q in zip(here, there, strict=True)]
        for alpha in (1.25, 2, 2.5, 3, 5):
            moment = mpmath.fsum(q * mpmath.exp(alpha * r) for q, r in zip(there, ratios, strict=True))
            divergence = mpmath.log(moment) / (alpha - 1)
            assert divergence <= alpha * claim * (1 + mpmath.mpf(10) ** -15)
            if alpha in (2, 3) and sigma > 1:
                assert divergence >= alpha * claim * (1 - mpmath.mpf(10) ** -15)


@pytest.mark.parametrize(("sigma", "sensitivity"), [(0.8, 1), (3.0, 2), (25.0, 7)])
def test_its_zcdp_epsilon_is_above_dp_accountings_exact_one(sigma, sensitivity):
    loss = DiscreteGaussianPrivacyLoss(sigma, sensitivity=sensitivity)
    mu = sensitivity / sigma
    for epsilon in (0.0, 0.3, 1.0, 3.0):
        assert Accounting.ZCDP.delta_of(mu, epsilon) >= loss.get_delta_for_epsilon(epsilon) - 1e-12


def test_tiny_scales_give_zeros():
    for sigma in (1e-300, 1e-3, 0.02):
        assert not DiscreteGaussian(sigma).sample(100).any()


def test_seeded_words_give_the_same_sample_anywhere():
    source = SeededNoise(4)
    for sigma in (2.0, 1e6):
        gaussian = DiscreteGaussian(sigma)
        one, two, other = (
            gaussian.sample(40_000, source.uniform_words(stream)) for stream in ("a", "a", "b")
        )
        np.testing.assert_array_equal(one, two)
        assert not np.array_equal(one, other)
        assert follows(one, sigma) if sigma < 100 else stats.kstest(one / sigma, "norm").pvalue > ALARM
    total = np.arange(-3, 3).reshape(2, 3)
    noised = discrete_gaussian(total, 2.0, source, "a")
    np.testing.assert_array_equal(
        noised - total, DiscreteGaussian(2.0).sample((2, 3), source.uniform_words("a"))
    )
    assert discrete_gaussian(total, 0.0, source, "a") is not total
    # Fixed for good: a seed gives these values in every process and version.
    assert DiscreteGaussian(1000.0).sample(4, SeededNoise(1).uniform_words("x")).tolist() == PINNED


def test_undecided_words_are_decided_exactly(monkeypatch):
    gaussian = DiscreteGaussian(3.0)
    for place in (0, 3, 10):
        bound = gaussian._bounds[place]
        first, rest = bound >> 192, bound & ((1 << 192) - 1)
        words = np.array([first], dtype=np.uint64)
        for more, bucket in ((rest - 1, place), (rest, place + 1), (rest + 1, place + 1)):
            monkeypatch.setattr(
                "scarcity_ray_client.noise.discrete_gaussian._more_bits", lambda words, more=more: more
            )
            assert gaussian._buckets(words)[0] == bucket
        assert gaussian._buckets(words - np.uint64(1))[0] == place
        assert gaussian._buckets(words + np.uint64(1))[0] == place + 1


def test_undecided_words_are_decided_exactly_in_the_acceptance_too(monkeypatch):
    gaussian = DiscreteGaussian(1000.0)
    starts, offset = np.array([2000]), np.array([3])
    exact = gaussian.acceptance(2000, 3)
    mpmath.mp.dps = 100
    truth = mpmath.exp(-mpmath.mpf((2 * 2000 + 3) * 3) / (2 * mpmath.mpf(1000) ** 2))
    assert abs(mpmath.mpf(exact) / mpmath.mpf(2) ** 256 - truth) < mpmath.mpf(2) ** -250
    words = np.array([exact >> 192], dtype=np.uint64)
    rest = exact & ((1 << 192) - 1)
    for more, answer in ((rest - 1, True), (rest, False)):
        monkeypatch.setattr(
            "scarcity_ray_client.noise.discrete_gaussian._more_bits", lambda words, more=more: more
        )
        assert gaussian._accepted(starts, offset, words)[0] == answer


def test_samples_never_repeat():
    gaussian = DiscreteGaussian(1e6)
    assert not np.array_equal(gaussian.sample(50), gaussian.sample(50))


@pytest.mark.parametrize("shape", [0, 1, (), (2, 3), 70_000])
def test_shapes(shape):
    drawn = DiscreteGaussian(5.0).sample(shape)
    assert drawn.shape == np.zeros(shape).shape
    assert drawn.dtype == np.int64


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, 2.0**51])
def test_scales_out_of_range_are_refused(sigma):
    with pytest.raises(UsageError, match="is not accepted"):
        DiscreteGaussian(sigma)


def test_rounded_gaussian_has_its_scale():
    total = np.arange(-50_000, 50_000, dtype=np.int64) * 10**12
    released = rounded_gaussian(total, 50.0, SystemNoise(), "x")
    assert released.dtype == np.int64
    noise = released - total
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], noise.size)
    assert low < np.sum(noise**2) / (50.0**2 + 1 / 12) < high
    assert not low < np.sum((1.5 * noise) ** 2) / 50.0**2 < high
    assert not low < np.sum((noise / 1.5) ** 2) / 50.0**2 < high


@pytest.mark.parametrize("sigma", [2047.0, 2048.0, 3.1e6, 2.0**45])
def test_rounded_gaussian_takes_a_grid_that_the_sum_does_not_choose(sigma):
    total = np.random.default_rng(2).integers(-(2**30), 2**30, 50_000)
    released = rounded_gaussian(total, sigma, SeededNoise(6), "s")
    grid = max(1, 2 ** math.floor(math.log2(sigma / 1024)))
    assert not (released % grid).any()
    noised = total + np.rint(sigma * SeededNoise(6).standard_normal(total.shape, "s")).astype(np.int64)
    assert np.abs(released - noised).max() <= grid / 2
    assert stats.kstest((released - total) / sigma, "norm").pvalue > ALARM


@pytest.mark.parametrize("sigma", [50.0, 1e5, 2.0**40, 2.0**58])
@pytest.mark.parametrize("total", [2**63 - 1, 2**63 - 1000, -(2**63), -(2**63) + 1000])
def test_rounded_gaussian_wraps_around_at_the_ends_of_int64(sigma, total):
    released = rounded_gaussian(np.full(1000, total), sigma, SeededNoise(6), "s")
    grid = max(1, 2 ** math.floor(math.log2(sigma / 1024.0)))
    moved = [(int(value) - total + 2**63) % 2**64 - 2**63 for value in released]
    assert max(map(abs, moved)) < 6 * sigma + grid + 2048  # and of float64 there
    assert 0.8 * sigma < np.std(np.array(moved, float)) < 1.2 * sigma + 2048


def test_rounded_gaussian_is_rounding_after_the_mechanism():
    noise = SeededNoise(4)
    total = np.array([[3, -5], [0, 7]], dtype=np.int64)
    expected = np.rint(total + 9.5 * noise.standard_normal((2, 2), "s")).astype(np.int64)
    np.testing.assert_array_equal(rounded_gaussian(total, 9.5, noise, "s"), expected)
    unchanged = rounded_gaussian(total, 0.0, noise, "s")
    np.testing.assert_array_equal(unchanged, total)
    assert unchanged is not total
    for wrong in (-1.0, math.nan, 2.0**60):
        with pytest.raises(UsageError, match="is not accepted"):
            rounded_gaussian(total, wrong, noise, "s")
