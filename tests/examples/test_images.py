"""The example of images and a PyTorch CNN, from its job file; skipped where PyTorch or mlxtend is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load, read_yaml
from scarcity_ray_client import Update, Workload, load_workload, train_client, train_clients

for package in ("torch", "mlxtend", "sklearn"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'scarcity-ray[test-torch]'")

FOLDER = Path(__file__).parents[2] / "examples" / "images"
JOB = read_yaml(FOLDER / "job.yaml")


def workload(**arguments: object) -> Workload:
    return load_workload(JOB["workload"]["class"], arguments, FOLDER)


@pytest.fixture(scope="module")
def digits() -> Workload:
    return workload()


def test_every_image_has_one_client_and_clients_differ_in_their_digits(digits):
    clients = digits.clients()
    places = [place for client in clients for place in client.data]
    assert len(clients) == 200
    assert len(places) == len(set(places)) == 4000
    assert min(places) >= 1000


def test_clients_trained_together_move_as_alone(digits):
    codec, clients = digits.codec(), digits.clients()[:3]
    vector = codec.encode(digits.initial_model())
    together = train_clients(digits, codec, vector, clients, 0)
    for client, update in zip(clients, together, strict=True):
        alone = train_client(digits, codec, vector, client, 0)
        assert isinstance(update, Update)
        assert isinstance(alone, Update)
        np.testing.assert_allclose(update.delta, alone.delta, atol=1e-5)
        assert update.metrics["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-5)


def test_a_backdoor_is_boosted_and_turns_the_loss_of_marked_images():
    attacker = workload(poison="backdoor", boost=10.0)
    codec, client = attacker.codec(), attacker.clients()[0]
    vector = codec.encode(attacker.initial_model())
    sent = train_client(attacker, codec, vector, client, 0, attacker=True)
    honest = train_client(attacker, codec, vector, client, 0)
    assert np.linalg.norm(sent.delta) > 5 * np.linalg.norm(honest.delta)
    before, after = (attacker.evaluate(codec.decode(v))["backdoor"] for v in (vector, vector + sent.delta))
    assert after > 0.9 > before


def test_the_job_trains_a_cnn_in_fit(tmp_path):
    settings = JOB["federation"] | {"vector_dim": 1946, "ledger_path": str(tmp_path / "ledger.sqlite")}
    settings["layer2"] = settings["layer2"] | {
        "central_dp_epsilon": float("inf"),
        "use_secure_aggregation": False,
    }
    config = load(HierarchicalFederationConfig, settings | {"total_epsilon": float("inf")})
    with HierarchicalFederation(config, runtime="local") as federation:
        result = federation.fit(workload(), rounds=2, clients_per_task=50)
    losses = [record.evaluation["loss"] for record in result.history]
    assert losses == sorted(losses, reverse=True)
    assert [record.num_accepted for record in result.history] == [200] * 2
    assert type(result.model).__name__ == "DigitCNN"
