"""Noise: two-sided tests of its distribution (false alarm at most 1e-6 each), and that it never repeats."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from scarcity_ray.privacy import SeededNoise, SystemNoise
from scarcity_ray_client.noise.source import Keystream, random_words
from scarcity_ray_client.noise.ziggurat import draw_block

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


def test_random_words_are_uniform_bits():
    bits = np.unpackbits(random_words(50_000).view(np.uint8)).reshape(-1, 64)
    share = np.abs(bits.sum(axis=0) - bits.shape[0] / 2) / np.sqrt(bits.shape[0] / 4)
    assert share.max() < stats.norm.isf(ALARM / 128)


@pytest.mark.parametrize("count", [0, 1, 2**15, 2**15 + 1, 100_000])
def test_blocks_are_as_many_words_as_were_asked_for(count):
    keystream = Keystream()
    words = [word for block in keystream.blocks(count) for word in block.tolist()]
    assert len(words) == count == random_words(count).size
    words += keystream.words(count).tolist()
    assert len(set(words)) == 2 * count


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
    assert vars(SystemNoise()) == {"_draw": draw_block}  # a function, which computes
    assert len(pickle.dumps(SystemNoise())) < 150


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
