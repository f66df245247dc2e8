"""The benchmark of 20 hospitals: its rows are the workload's, its noise the plan's, its bounds Student's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.hospitals import CONFIG, losses, markdown
from benchmarks.lab.hospitals_sweep import CLEAN, TURNED, Arm, _site, rows_of, run, trial_of
from benchmarks.lab.releases import Releases
from scarcity_ray.config.yaml_text import read_yaml
from scarcity_ray.workloads.config import load_job

pytest.importorskip("statsmodels", reason="the data are in statsmodels, which is not installed")


@pytest.fixture(scope="module")
def trial():
    return trial_of(read_yaml(CONFIG), str(CONFIG.parents[1] / "examples" / "hospitals"), seed=0)


def test_the_job_is_of_the_size_that_the_issue_asks_for(trial):
    sizes = trial.num_units("record")
    assert len(sizes) >= 20
    assert sizes.sum() >= 15_000
    assert len(trial.test_labels) >= 5_000
    assert sizes.max() >= 2.5 * sizes.min() >= 250
    assert np.ptp([trial.labels[a:b].mean() for a, b in trial._spans]) > 0.1


@pytest.mark.parametrize("unit", ["record", "person"])
def test_rows_are_those_that_the_workload_trains(trial, unit):
    job = load_job(CONFIG, [f"workload.args.unit={unit}", "workload.args.min_persons=40"])
    vector = np.random.default_rng(0).standard_normal(len(trial.initial)).astype(np.float32)
    poisoned = np.arange(trial.num_sites) == 3
    rows = rows_of(trial, vector[None], poisoned[None], np.array([unit == "person"]))[0]
    model, counts = job.codec.decode(vector), trial.num_units(unit)
    for place in (0, 3, 19):
        client = job.clients[place]
        trained = (job.workload.poison if poisoned[place] else job.workload.train)(model, client, 0)
        np.testing.assert_allclose(job.codec.encode(trained.delta), rows[place], atol=1e-7)
        assert trained.num_persons == client.num_persons == counts[place]


def test_attackers_lie_where_the_placement_says(trial):
    expected = {"spread": [1, 1, 1, 1], "pairs": [0, 0, 2, 2], "gathered": [0, 0, 0, 4]}
    for placement, counts in expected.items():
        inside = np.bincount(trial.baskets(), trial.byzantine(placement))
        assert sorted(inside) == counts


def test_the_noise_is_for_one_record_of_the_smallest_hospital(trial):
    arm = Arm("centered_clipping")
    counts = trial.num_units("record")
    releases = Releases(trial.plan(arm), trial.baskets(), counts)
    _, sigma = releases.of(np.zeros((20, 10), np.float32))
    assert sigma == pytest.approx(2 * 0.25 / counts.min() / 20 / releases.plan.mu_release, rel=0.03)


def test_clipping_around_the_released_model_holds_where_the_clipped_mean_falls(trial):
    attacked = [Arm(rule, "sign_flip") for rule in ("centered_clipping", "mean")]
    clean, kept, fallen, turned = run(trial, [CLEAN, *attacked, replace(attacked[0], attack=TURNED)])
    assert clean > 0.6
    assert kept > clean - 0.05 < turned + 0.05
    assert fallen < clean - 0.1


def test_rows_noised_at_their_hospitals_have_noise_for_one_of_their_own_records(trial):
    arm = Arm("median", at_source=True, rounds=20, momentum=0.8, byzantine_fraction=0.4)
    site, counts = _site(trial, arm, 20), trial.num_units("record")
    # (3, 1e-6) is mu = 0.6477 in Gaussian DP, the greatest that any way to account allows.
    np.testing.assert_allclose(site.sigmas[:, 0] * counts, 2 * 0.25 * 20**0.5 / 0.6477, rtol=0.1)
    assert (site.sigmas[:, 0] * counts).min() >= 2 * 0.25 * 20**0.5 / 0.6477
    rng, rows = np.random.default_rng(0), np.zeros((20, 10), np.float32)
    seen = np.array([site.noised(rows, rng) for _ in range(400)])[50:]
    np.testing.assert_allclose(seen.std(axis=(0, 2)) / site.sigmas[:, 0], (0.2 / 1.8) ** 0.5, rtol=0.2)


def test_a_liar_reaches_the_momentum_that_it_aims_at_unless_that_is_too_far(trial):
    site = _site(trial, Arm("median", at_source=True, rounds=20, momentum=0.8), 20)
    liars = np.arange(20) < 4
    aimed = np.full((20, 10), 0.01, np.float32)
    np.testing.assert_allclose(site.kept(aimed, liars)[:4], 0.01, rtol=1e-5)
    far = site.kept(1e6 * aimed, liars)[0].astype(np.float64) - 0.8 * 0.01
    assert np.linalg.norm(far) == pytest.approx(0.2 * site.longest)
    assert not site.kept(aimed, liars)[4:].any()


def test_krum_learns_with_noise_at_the_hospitals_and_not_with_noise_on_releases(trial):
    at_site = Arm("krum", "sign_flip", at_source=True, rounds=20, learning_rate=12.0, momentum=0.8)
    arms = [replace(arm, byzantine_fraction=0.2) for arm in (at_site, Arm("krum", "sign_flip"))]
    clean, kept, lost = run(trial, [CLEAN, *arms])
    assert kept > clean - 0.04 > lost


def test_the_bound_is_that_of_a_paired_t_interval():
    aucs = {"clean": [0.7, 0.6, 0.8], "centralised": [0.8, 0.8, 0.8], "median": [0.69, 0.58, 0.77]}
    found = [
        {
            "seed": seed,
            "noise": "central" if name == "median" else "",
            "name": name,
            "placement": "spread",
            "attack": "none",
            "auc": value,
        }
        for name, values in aucs.items()
        for seed, value in enumerate(values)
    ]
    mean, bound = losses(found)[("central", "median", "spread", "none")]
    assert mean == pytest.approx(0.02)
    assert bound == pytest.approx(0.02 + 2.919986 * 0.01 / 3**0.5, rel=1e-6)
    first, *rows = markdown(found).splitlines()
    assert first.endswith("0.700 (0.600 to 0.800, 3 seeds); of all data in one place: 0.800")
    assert any(row.startswith("| median | 0.020 (0.037) |") for row in rows)
