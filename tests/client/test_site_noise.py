"""A row that its client noises: how far one person moves it, the law of its noise, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray_client import TooFewPersons, UsageError
from scarcity_ray_client.noise.source import SeededNoise
from scarcity_ray_client.persons import person_mean
from scarcity_ray_client.site_noise import SiteNoise

C = 1.5
LEAST = 2


def site_noise(mu=math.inf, dimension=3, discrete=True):
    return SiteNoise(mu, C, LEAST, dimension, discrete)


def steps(noise, row, count):
    """The row that leaves a client without noise, in grid steps."""
    assert noise.mu == math.inf
    return noise.noised(np.asarray(row, np.float32), count).astype(np.float64) / noise.step(count)


@given(data=st.data())
def test_no_person_moves_a_row_further_than_the_noise_is_for(data):
    dimension, count = data.draw(st.integers(1, 12)), data.draw(st.integers(2, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    noise = site_noise(dimension=dimension)
    persons = rng.normal(size=(count, dimension)) * rng.choice([0.01, 1.0, 100.0])
    row = person_mean(persons, clip_norm=C, min_persons=LEAST).row
    persons[0] = -persons[0] if data.draw(st.booleans()) else 1e9 * row
    other = person_mean(persons, clip_norm=C, min_persons=LEAST).row
    apart = np.linalg.norm(steps(noise, row, count) - steps(noise, other, count))
    assert apart <= noise.sensitivity(count)
    assert apart >= 0.97 * np.linalg.norm(row - other) / noise.step(count) - math.sqrt(dimension)


def test_rounding_to_the_grid_is_added_and_needed():
    """Two rows that a person moves by the whole bound, each coordinate across a rounding edge more."""
    dimension, count = 30, 50
    noise = site_noise(dimension=dimension)
    step = noise.step(count)
    moved = 2 * C / count / math.sqrt(dimension)
    first = np.full(dimension, (math.floor(0.1 / step) + 0.499) * step)
    apart = np.linalg.norm(steps(noise, first, count) - steps(noise, first + moved, count))
    assert 2 * C / count / step < apart <= noise.sensitivity(count)


@pytest.mark.parametrize("dimension", [1, 31, 1000, 10**7])
@pytest.mark.parametrize("count", [2, 500, 10**6])
def test_the_grid_adds_one_per_cent_at_most(dimension, count):
    noise = site_noise(0.1, dimension)
    assert math.sqrt(dimension) <= 0.01 * noise.sensitivity(count)
    assert math.log2(noise.step(count)).is_integer()
    assert noise.sensitivity(count) * noise.step(count) == pytest.approx(
        2 * C / count, rel=0.02 + count / 10**6
    )
    assert noise.grid_sigma(count) * 0.1 >= noise.sensitivity(count)
    assert noise.sigma(count) == pytest.approx(noise.sensitivity(count) * noise.step(count) / 0.1)


@pytest.mark.parametrize("discrete", [True, False])
def test_noised_rows_have_the_law_and_scale_of_the_claim(discrete):
    """The mean square deviates by sqrt(2 / d) = 1 %: half or double the scale is far off."""
    dimension, count = 20_000, 400
    noise = site_noise(0.5, dimension, discrete)
    row = np.zeros(dimension)
    row[0] = 7.0  # clipped to C
    sent = noise.noised(row, count).astype(np.float64) / noise.step(count)
    assert (sent == np.rint(sent)).all()
    assert abs(sent[0] * noise.step(count) - C) < 8 * noise.sigma(count)
    assert np.mean(sent[1:] ** 2) == pytest.approx(noise.grid_sigma(count) ** 2, rel=0.06)
    assert abs(np.mean(sent[1:])) < 6 * noise.grid_sigma(count) / math.sqrt(dimension)
    within = np.mean(np.abs(sent[1:]) < noise.grid_sigma(count))
    assert within == pytest.approx(math.erf(math.sqrt(0.5)), abs=0.02)


def test_the_noise_follows_the_clients_own_number_of_persons():
    noise = site_noise(0.1)
    assert noise.sigma(100) / noise.sigma(400) == pytest.approx(4.0, rel=1e-3)


def test_two_rows_never_have_the_same_noise():
    noise = site_noise(0.1)
    assert (noise.noised(np.zeros(3), 10) != noise.noised(np.zeros(3), 10)).any()
    together = noise.noised(np.zeros((2, 3)), 10)
    assert (together[0] != together[1]).any()


def test_a_seeded_source_is_for_tests():
    noise, source = site_noise(0.1), SeededNoise(1)
    assert (noise.noised(np.zeros(3), 10, source, "a") == noise.noised(np.zeros(3), 10, source, "a")).all()


def test_rows_of_a_matrix_are_clipped_and_noised_each_by_itself():
    sent = site_noise().noised(np.array([[3.0, 0.0, 0.0], [0.5, 0.0, 0.0]]), 10)
    assert np.allclose(sent[:, 0], [C, 0.5], atol=0.01)


def test_what_cannot_be_noised_is_refused():
    with pytest.raises(TooFewPersons, match="min_persons = 2"):
        site_noise().noised(np.zeros(3), 1)
    with pytest.raises(UsageError, match="shape"):
        site_noise().noised(np.zeros(4), 10)
    with pytest.raises(UsageError, match="finite"):
        site_noise().noised([0.0, math.nan, 0.0], 10)


def test_an_honest_row_is_hardly_ever_longer_than_the_least_clip_norm():
    noise = SiteNoise(0.05, C, 100, 31)
    rows = np.tile(np.eye(31)[0] * C, (4000, 1))
    longer = np.linalg.norm(noise.noised(rows, 100), axis=1) > noise.least_clip_norm
    assert longer.mean() < 0.005
    assert (np.linalg.norm(noise.noised(rows, 100), axis=1) > 0.6 * noise.least_clip_norm).any()


@pytest.mark.parametrize(
    "numbers",
    [
        {"mu": math.nan}, {"mu": -0.1}, {"mu": 0.0}, {"clip_norm": math.nan}, {"clip_norm": -1.0},
        {"clip_norm": 1e-200}, {"min_persons": 0}, {"min_persons": True}, {"dimension": 0},
    ],
    ids=str,
)  # fmt: skip
def test_no_number_turns_the_noise_off(numbers):
    """Whoever runs the cluster tells them to a site, and a row may not go without noise for that."""
    fine = {"mu": 0.1, "clip_norm": 1.0, "min_persons": 1, "dimension": 2}
    with pytest.raises(UsageError, match=f"{next(iter(numbers))}: "):
        SiteNoise(**fine | numbers)
    for count in (math.nan, math.inf, 1e300, 400.5, True, "400", 2**31):
        with pytest.raises(UsageError, match="num_persons: "):
            SiteNoise(**fine).noised([0.5, 0.5], count)
    assert SiteNoise(**fine).noised([0.5, 0.5], np.int64(400)).shape == (2,)
