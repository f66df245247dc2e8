"""Noise: two-sided tests of its distribution (false alarm at most 1e-6 each), and that it never repeats."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from scipy import special, stats

from scarcity_ray.privacy import SeededNoise, SystemNoise
from scarcity_ray.privacy.noise import normal_of_words, random_words

ALARM = 1e-6


def looks_standard_normal(sample):
    """Kolmogorov-Smirnov, and the mean and variance two-sided, at a false-alarm rate of at most ALARM."""
    n = sample.size
    variance = np.sum(sample**2)
    return (
        stats.kstest(sample, "norm").pvalue > ALARM / 3
        and abs(np.sum(sample)) < stats.norm.isf(ALARM / 6) * np.sqrt(n)
        and stats.chi2.ppf(ALARM / 6, n) < variance < stats.chi2.isf(ALARM / 6, n)
    )


@pytest.mark.parametrize("source", [SystemNoise(), SeededNoise(3)])
def test_system_noise_is_standard_normal(source):
    sample = source.standard_normal((400, 500), "test").ravel()
    assert looks_standard_normal(sample)
    assert not looks_standard_normal(1.5 * sample)
    assert not looks_standard_normal(sample / 1.5)
    assert not looks_standard_normal(sample + 0.1)
    lagged = np.sum(sample[1:] * sample[:-1]) / np.sqrt(sample.size)
    assert abs(lagged) < stats.norm.isf(ALARM / 2)


def test_the_tails_are_filled():
    sample = np.abs(SystemNoise().standard_normal(1_000_000))
    for edge in (3.0, 4.0):
        expected = 2 * stats.norm.sf(edge) * sample.size
        low, high = stats.poisson.ppf([ALARM / 4, 1 - ALARM / 4], expected)
        assert low <= np.sum(sample > edge) <= high


def test_the_map_from_words_is_the_inverse_normal():
    words = random_words(100_000).copy()
    words[:4] = [0, 1, 2**64 - 1, 2**64 - 2]

    def half(count):
        return np.full(count, 1 << 63, np.uint64)

    tail = ((words >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-64
    expected = np.where(words & np.uint64(1), -special.ndtri(tail), special.ndtri(tail))
    found = normal_of_words(words, half)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)
    assert np.all(np.isfinite(found))
    np.testing.assert_array_equal(found, -normal_of_words(words ^ np.uint64(1), half))


@pytest.mark.parametrize("magnitude", [0, 1, 7, 2**20, 2**40])
def test_the_tail_has_no_holes(magnitude):
    word = np.uint64(2 * magnitude + 1)
    values = normal_of_words(np.full(20_000, word))
    # In the tail's mass they are uniform between the ends of the word's cell.
    inside = special.ndtr(-values) * 2.0**64 - magnitude
    if magnitude < 2**30:
        assert np.unique(values).size > 19_000
        assert stats.kstest(inside, "uniform").pvalue > ALARM
    assert np.all((inside > -0.01) & (inside < 1.01))
    # Everywhere neighbouring values of the tail's mass are a relative 2^-52 apart or less.
    assert np.diff(np.unique(values), prepend=values.min()).max() < max(0.2, 1.0 / (magnitude + 1))


def test_extra_bits_are_asked_for_where_fewer_than_53_are_left():
    asked = []

    def more(count):
        asked.append(count)
        return random_words(count)

    normal_of_words(np.array([2**53 - 1, 2**53, 5, 2**64 - 1], dtype=np.uint64), more)
    assert asked == [2]


def test_random_words_are_uniform_bits():
    bits = np.unpackbits(random_words(50_000).view(np.uint8)).reshape(-1, 64)
    share = np.abs(bits.sum(axis=0) - bits.shape[0] / 2) / np.sqrt(bits.shape[0] / 4)
    assert share.max() < stats.norm.isf(ALARM / 128)


def test_two_calls_never_give_the_same_noise():
    source = SystemNoise()
    twins = [
        source,
        copy.copy(source),
        copy.deepcopy(source),
        pickle.loads(pickle.dumps(source)),
        SystemNoise(),
    ]
    drawn = [twin.standard_normal(4, "same stream") for twin in twins for _ in range(2)]
    assert len({values.tobytes() for values in drawn}) == len(drawn)


def test_two_calls_never_give_the_same_noise_across_fork():
    source = SystemNoise()
    source.standard_normal(8)
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writable, source.standard_normal(8).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(readable, 64) != source.standard_normal(8).tobytes()
    os.close(readable)
    os.close(writable)


def test_a_pickled_source_carries_no_key():
    assert vars(SystemNoise()) == {}
    assert len(pickle.dumps(SystemNoise())) < 100


def test_seeded_noise_depends_on_seed_stream_and_shape_alone():
    source = SeededNoise(7)
    first = source.standard_normal((2, 3), "a")
    source.standard_normal(100, "b")
    np.testing.assert_array_equal(first, pickle.loads(pickle.dumps(source)).standard_normal((2, 3), "a"))
    for other in (
        SeededNoise(8).standard_normal((2, 3), "a"),
        source.standard_normal((2, 3), "b"),
        source.standard_normal((3, 2), "a").reshape(2, 3),
    ):
        assert not np.any(first == other)
    code = (
        "from scarcity_ray.privacy import SeededNoise\n"
        "print(SeededNoise(7).standard_normal((2, 3), 'a').tobytes().hex())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == first.tobytes().hex()


@pytest.mark.parametrize("shape", [0, 1, 5, (), (0, 3), (2, 3), [4]])
def test_shapes(shape):
    expected = np.zeros(shape).shape
    for source in (SystemNoise(), SeededNoise(0)):
        drawn = source.standard_normal(shape, "x")
        assert drawn.shape == expected
        assert drawn.dtype == np.float64


def test_noise_needs_no_test_oracle_and_no_ray():
    code = "import scarcity_ray.privacy, sys; print(sorted(m.split('.')[0] for m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for foreign in ("scipy", "dp_accounting", "ray", "hypothesis"):
        assert f"'{foreign}'" not in loaded
