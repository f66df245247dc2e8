"""The ziggurat: its layers make up the Gaussian density, and what is drawn follows it (false alarm 1e-6)."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from scipy import special, stats

from scarcity_ray_client.noise import ziggurat
from scarcity_ray_client.noise.source import Keystream, random_words
from scarcity_ray_client.noise.ziggurat import LAYERS, _tail, normals, table

ALARM = 1e-6
EDGE = 4.03884984610950452271442340533593


def drawn(count):
    return normals(count, Keystream().blocks(count), random_words)


def test_the_table_is_exact():
    layers = table()
    with mpmath.workdps(60):
        edge, area = mpmath.mpf(str(ziggurat._TAIL_FROM)), mpmath.mpf(str(ziggurat._AREA))
        tail = mpmath.sqrt(mpmath.pi / 2) * mpmath.erfc(edge / mpmath.sqrt(2))
        assert abs(edge * mpmath.exp(-(edge**2) / 2) + tail - area) < mpmath.mpf(10) ** -40
        x, height = edge, mpmath.exp(-(edge**2) / 2)
        assert layers.width[0] == float(area / height)
        for i in range(1, LAYERS):
            assert (layers.width[i], layers.inner[i - 1]) == (float(x), float(x))
            assert (layers.bottom[i], layers.top[i - 1]) == (float(height), float(height))
            height += area / x
            x = mpmath.sqrt(-2 * mpmath.log(height)) if i < LAYERS - 1 else mpmath.mpf(0)
        assert abs(height - 1) < mpmath.mpf(10) ** -40, "the last layer ends at the top of the density"
    assert (layers.inner[-1], layers.bottom[0], layers.top[-1]) == (0.0, 0.0, 1.0)


def test_the_layers_make_up_the_density():
    layers, area = table(), float(ziggurat._AREA)
    edges = layers.inner[1:-1:97]
    for x in [*np.linspace(0.0, EDGE - 1e-9, 400), *(edges - 1e-12), *(edges + 1e-12)]:
        density = np.exp(-0.5 * x * x)
        at_once = x < layers.inner
        wedge = ~at_once & (x < layers.width) & (np.arange(LAYERS) > 0)
        share = at_once + wedge * (density - layers.bottom) / (layers.top - layers.bottom)
        assert np.sum(share / layers.width) * area == pytest.approx(density, rel=1e-12, abs=0)


def chi_squared(sample, cells=1000):
    counts = np.histogram(special.ndtr(sample), bins=cells, range=(0.0, 1.0))[0]
    return stats.chisquare(counts).pvalue


@pytest.mark.long
def test_the_values_are_normal():
    sample = np.concatenate([drawn(1_000_000) for _ in range(10)])
    assert chi_squared(sample) > ALARM
    assert abs(np.mean(sample > 0) - 0.5) < stats.norm.isf(ALARM / 2) / 2 / np.sqrt(sample.size)
    beyond = np.sum(np.abs(sample) > EDGE)
    low, high = stats.poisson.ppf([ALARM / 2, 1 - ALARM / 2], 2 * stats.norm.sf(EDGE) * sample.size)
    assert low <= beyond <= high


def wedge_is_right(layer, count=100_000):
    """Of what lies beside a layer's sure part, the share that is kept, and how it is spread."""
    layers = table()
    inner, width, bottom, top = (c[layer] for c in (layers.inner, layers.width, layers.bottom, layers.top))
    rng = np.random.default_rng(layer)
    x = rng.uniform(inner, width, count) * rng.choice([-1.0, 1.0], count)
    values = x.copy()
    ziggurat._settle(values, np.arange(count), np.full(count, layer), random_words)
    kept = values == x

    def below(edge):
        mass = np.sqrt(2 * np.pi) * (special.ndtr(edge) - special.ndtr(inner))
        return (mass - bottom * (edge - inner)) / (top - bottom)

    share = below(width) / (width - inner)
    return (
        stats.binomtest(int(kept.sum()), count, share).pvalue > ALARM
        and stats.kstest(np.abs(x[kept]), lambda edge: below(edge) / below(width)).pvalue > ALARM
        and stats.kstest(values[~kept], "norm").pvalue > ALARM
    )


@pytest.mark.parametrize("layer", [1, 2, 30, 500, LAYERS - 2, LAYERS - 1])
def test_wedges_are_kept_with_the_densitys_chance(layer, monkeypatch):
    assert wedge_is_right(layer)
    uniform = ziggurat._uniform
    monkeypatch.setattr(ziggurat, "_uniform", lambda words: uniform(words) ** 1.1)
    assert not wedge_is_right(layer)


def test_the_tail_is_the_tail():
    sample = _tail(200_000, random_words)
    assert sample.min() >= EDGE
    assert stats.kstest(sample, lambda x: 1 - stats.norm.sf(x) / stats.norm.sf(EDGE)).pvalue > ALARM


def test_the_tail_has_no_holes():
    """Words whose leading 64 bits are all 0, beyond 6.5 deviations even so, still give different values."""
    asked = []

    def more(count):
        asked.append(count)
        return np.zeros(count, np.uint64) if len(asked) == 1 else random_words(count)

    far = ziggurat._finely_uniform(20_000, more)
    assert far.max() < 2.0**-64
    assert np.unique(far).size > 19_900
    assert stats.kstest(far * 2.0**64, "uniform").pvalue > ALARM


@pytest.mark.parametrize("count", [0, 1, 2, 999, 2**15 + 7])
def test_any_number_can_be_drawn(count):
    values = drawn(count)
    assert values.shape == (count,)
    assert np.isfinite(values).all()
    assert count < 3 or np.unique(values).size == count
