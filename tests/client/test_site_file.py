"""A site's own file: which workload, which client, which ceiling, and what is refused in it."""

from __future__ import annotations

import pytest

from scarcity_ray_client import Policy, UsageError
from scarcity_ray_client.site_file import load_site_file

MODULE = """
import numpy as np
from scarcity_ray_client import Client, Workload

class Visits(Workload):
    def __init__(self, names=("ann", "bob"), rate=0.1):
        self.names, self.rate = names, rate
    def clients(self):
        return [Client(name, "hospitals", num_examples=30, num_persons=20) for name in self.names]
    def initial_model(self):
        return {"w": np.zeros(2, np.float32)}
    def train(self, model, client, round_id): ...
    def evaluate(self, model): ...
"""


@pytest.fixture
def loaded(tmp_path):
    (tmp_path / "visits_of_a_site.py").write_text(MODULE)

    def load(text, client_id="ann"):
        (tmp_path / "site.yaml").write_text(text)
        return load_site_file(tmp_path / "site.yaml", client_id, "federation")

    return load


def test_the_workload_is_found_beside_the_file(loaded):
    site = loaded("workload: {class: 'visits_of_a_site:Visits', args: {rate: 1e-3}}")
    assert site.workload.rate == 1e-3
    assert (site.client.client_id, site.num_examples, site.codec.dimension) == ("ann", 20, 2)
    assert (site.policy, site.noised_alone) == (None, False)


def test_a_jobs_whole_file_is_accepted(loaded):
    site = loaded(
        "name: x\nfederation: {total_epsilon: 3}\ntraining: {rounds: 3}\ngateway: {port: 8443}\n"
        "workload: {class: 'visits_of_a_site:Visits'}\n"
        "policy: {unit: person, lifetime_epsilon: 3, delta: 1e-6}\nnoise: site\nperson_clip_norm: 1\n"
    )
    assert site.policy == Policy("ann", "person", 3.0, 1e-6, "federation")
    assert (site.noised_alone, site.person_clip_norm) == (True, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no section workload"),
        ("workload: 3", "no section workload"),
        ("workload: {class: 'visits_of_a_site:Visits'}\npolcy: {}", "polcy is not known"),
        ("workload: {class: 'visits_of_a_site:Visits', rate: 3}", "workload.rate is not known"),
        ("workload: {class: 3}", "workload.class: 3"),
        ("workload: {class: 'visits_of_a_site:Visitz'}", "has no Visitz; its workloads: Visits"),
        ("workload: {class: 'visits_of_a_site:Visits', args: {names: 3}}", "its workload: TypeError"),
        ("workload: {class: 'visits_of_a_site:Visits', args: {names: [bob]}}", "of client 'ann', and .* bob"),
        ("workload: {class: 'visits_of_a_site:Visits'}\nnoise: central", "noise: 'central'"),
        ("workload: {class: 'visits_of_a_site:Visits'}\nnoise: site", "noise: site needs policy"),
        (
            "workload: {class: 'visits_of_a_site:Visits'}\nnoise: site\n"
            "policy: {unit: person, lifetime_epsilon: 3, delta: 1e-6}",
            "noise: site needs person_clip_norm",
        ),
        ("workload: {class: 'visits_of_a_site:Visits'}\nperson_clip_norm: .nan", "person_clip_norm: nan"),
        ("workload: {class: 'visits_of_a_site:Visits'}\npolicy: {unit: person}", "delta is missing"),
        ("workload: {class: 'visits_of_a_site:Visits'}\npolicy: {epsilon: 3}", "lifetime_epsilon"),
        (
            "workload: {class: 'visits_of_a_site:Visits'}\n"
            "policy: {unit: person, lifetime_epsilon: -1, delta: 1e-6}",
            "lifetime_epsilon: -1",
        ),
        ("workload: {a: 1, a: 2}", "given twice"),
        ("workload: [", "site.yaml"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_remedy(loaded, text, said):
    with pytest.raises(UsageError, match=said) as refused:
        loaded(text)
    assert "site.yaml" in str(refused.value) or "visits_of_a_site" in str(refused.value)
