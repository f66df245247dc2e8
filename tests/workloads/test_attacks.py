"""The attacks as pure functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcity_ray.errors import ConfigError
from scarcity_ray.workloads.attacks import AttackConfig, alie_strength, craft, flip_labels

ATTACKS = ["none", "sign_flip", "alie", "ipm", "gaussian", "nan", "label_flip"]


def _scene(seed: int = 0, clients: int = 22, dimension: int = 7):
    rng = np.random.default_rng(seed)
    deltas = rng.standard_normal((clients, dimension)).astype(np.float32)
    byzantine = rng.random(clients) < 0.3
    baskets = np.arange(clients) // 11
    return deltas, byzantine, baskets


@pytest.mark.parametrize("name", ATTACKS)
@given(seed=st.integers(0, 10_000), clients=st.integers(1, 33))
@settings(max_examples=25, deadline=None)
def test_honest_rows_stay_as_they_are(name, seed, clients):
    deltas, byzantine, baskets = _scene(seed, clients)
    byzantine[0] = False  # without an honest client there is no honest mean to hide near
    before = deltas.copy()
    sent = craft(AttackConfig(name=name), deltas, byzantine, baskets, np.random.default_rng(1))
    assert np.array_equal(sent[~byzantine], before[~byzantine])
    assert np.array_equal(deltas, before)
    assert sent.shape == deltas.shape
    assert sent.dtype == np.float32


def test_sign_flip_turns_and_scales():
    deltas, byzantine, baskets = _scene()
    sent = craft(AttackConfig(name="sign_flip"), deltas, byzantine, baskets, np.random.default_rng(0))
    assert np.allclose(sent[byzantine], -10 * deltas[byzantine])
    sent = craft(
        AttackConfig(name="sign_flip", scale=2.0), deltas, byzantine, baskets, np.random.default_rng(0)
    )
    assert np.allclose(sent[byzantine], -2 * deltas[byzantine])


@pytest.mark.parametrize(("name", "scale", "sign"), [("alie", 1.5, 1), ("ipm", 0.5, -0.5)])
def test_colluders_use_their_own_baskets_honest_rows(name, scale, sign):
    deltas, byzantine, baskets = _scene()
    sent = craft(AttackConfig(name=name, scale=scale), deltas, byzantine, baskets, np.random.default_rng(0))
    for basket in (0, 1):
        inside = baskets == basket
        honest = deltas[inside & ~byzantine]
        expected = sign * honest.mean(axis=0) - (scale * honest.std(axis=0) if name == "alie" else 0)
        assert np.allclose(sent[inside & byzantine], expected, atol=1e-6)


def test_a_basket_of_liars_alone_uses_the_others():
    deltas, byzantine, baskets = _scene()
    byzantine[:] = baskets == 0
    sent = craft(AttackConfig(name="ipm"), deltas, byzantine, baskets, np.random.default_rng(0))
    assert np.allclose(sent[0], -deltas[11:].mean(axis=0), atol=1e-6)


def test_gaussian_has_the_size_it_says():
    rng = np.random.default_rng(0)
    deltas = rng.standard_normal((40, 5000)).astype(np.float32)
    byzantine = np.arange(40) < 10
    sent = craft(AttackConfig(name="gaussian", scale=3.0), deltas, byzantine, np.zeros(40, int), rng)
    # 50,000 normals: the standard deviation's relative error is 1/sqrt(1e5); six of them, two-sided, 2e-9
    assert abs(sent[byzantine].std() / 3.0 / deltas[~byzantine].std() - 1) < 6 * np.sqrt(1e-5) + 0.01


def test_nan_sends_nothing_else():
    deltas, byzantine, baskets = _scene()
    sent = craft(AttackConfig(name="nan"), deltas, byzantine, baskets, np.random.default_rng(0))
    assert np.isnan(sent[byzantine]).all()


def test_alie_strength_is_the_papers():
    # Baruch et al. 2019, section 4: n = 50, m = 24 -> s = 2, z = Phi^-1(24/26)
    assert alie_strength(50, 24) == pytest.approx(1.426, abs=1e-3)
    assert alie_strength(11, 2) == pytest.approx(0.1397, abs=1e-3)
    assert alie_strength(3, 3 - 1) > 0  # more liars than honest: any z hides
    assert np.isfinite(alie_strength(10, 9))


def test_labels_are_flipped_only_for_the_byzantine_under_label_flip():
    labels = np.array([[0, 1, 9], [3, 4, 5]])
    byzantine = np.array([True, False])
    flipped = flip_labels(AttackConfig(name="label_flip"), labels, byzantine, 10)
    assert flipped.tolist() == [[9, 8, 0], [3, 4, 5]]
    assert flip_labels(AttackConfig(name="ipm"), labels, byzantine, 10) is labels


def test_an_unknown_attack_is_an_error_that_names_the_choices():
    with pytest.raises(ConfigError, match="sign_flip"):
        AttackConfig(name="sybil")
