"""Gossip's compiled passes against NumPy's; without Numba (the extra ``fast``) the first is skipped."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from scarcity_ray.gossip import passes
from scarcity_ray.gossip.materiality import HalfVector
from scarcity_ray.gossip.message import noised
from scarcity_ray.privacy.sampling.noise import SystemNoise


def told_by_both(monkeypatch, act):
    """What `act` gives with the compiled passes, if they can be had, and what with NumPy's."""
    told = []
    for worked in (passes.MANY_ENTRIES, 0):
        monkeypatch.setattr(passes._Worked, "entries", worked)
        told.append(act())
    return told


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 7, 255, 256, 257, 8192, 8193, 20_000]),
    st.sampled_from([1e-42, 1e-3, 1.0, 1e30]),
    st.sampled_from([1e-3, 1.0, 7.3, 1e20]),
)
def test_the_compiled_passes_have_numpys_bits(seed, d, size, sigma):
    pytest.importorskip("numba", reason="the extra fast is not installed")
    rng = np.random.default_rng(seed)
    state = (size * rng.standard_normal(d) * rng.integers(0, 2, d)).astype(np.float32)
    noise, words = rng.standard_normal(d), rng.integers(-(2**63), 2**63 - 1, d)
    layers = passes.ziggurat.table()

    def act():
        halved, drawn = HalfVector.of(state), np.empty(d)
        places = passes.draw_block(words, layers.width * 2.0**-63, layers.inner, drawn)
        arrays = places, drawn, noised(state, noise, sigma), halved.words, halved.scales
        return [array.tobytes() for array in arrays]

    with pytest.MonkeyPatch.context() as monkeypatch:
        compiled, plain = told_by_both(monkeypatch, act)
    assert compiled == plain
    assert passes.compiled_passes() is not None


def test_rows_that_may_not_be_written_to_are_taken(monkeypatch):
    state = np.linspace(-1, 1, 3000, dtype=np.float32)
    state.flags.writeable = False
    noise = np.cos(np.arange(6000.0))[::2]
    first, second = told_by_both(monkeypatch, lambda: noised(state, noise, 2.0).tobytes())
    assert first == second


def test_noise_of_compiled_passes_is_standard_normal(monkeypatch):
    monkeypatch.setattr(passes._Worked, "entries", passes.MANY_ENTRIES)
    sample = SystemNoise(passes.draw_block).standard_normal(200_000)
    assert abs(sample.mean()) < 5 / np.sqrt(sample.size)
    assert abs(sample.var() - 1) < 5 * np.sqrt(2 / sample.size)
