"""`fit` of a PyTorch module, end to end on the local runtime; skipped, and said so, without PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from scarcity_ray_client import Client, Trained, Workload

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed: pip install 'scarcity-ray[test-torch]'"
)
torch.set_num_threads(1)


class Squares(Workload):
    """A small CNN tells pictures that are bright above from those that are bright below."""

    def clients(self):
        return [Client(f"c{i}", f"domain{i % 2}", data=i, num_examples=16) for i in range(6)]

    def initial_model(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return torch.nn.Sequential(
                torch.nn.Conv2d(1, 4, 3, padding=1),
                torch.nn.GroupNorm(2, 4),
                torch.nn.ReLU(),
                torch.nn.Flatten(),
                torch.nn.Linear(64, 2),
            )

    def pictures(self, seed):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 16)
        pictures = rng.normal(scale=0.3, size=(16, 1, 4, 4))
        pictures[labels == 0, :, :2] += 1.0
        pictures[labels == 1, :, 2:] += 1.0
        return torch.tensor(pictures, dtype=torch.float32), torch.tensor(labels)

    def train(self, model, client, round_id):
        pictures, labels = self.pictures(client.data)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(pictures), labels)
            loss.backward()
            optimizer.step()
        return Trained(model=model, metrics={"loss": loss})

    def evaluate(self, model):
        pictures, labels = self.pictures(99)
        with torch.no_grad():
            return {"accuracy": (model(pictures).argmax(1) == labels).float().mean()}


def test_a_module_is_trained_and_handed_out(open_federation):
    workload = Squares()
    settings = {
        "vector_dim": workload.codec().dimension,
        "total_epsilon": float("inf"),
        "gossip_budget_share": 0.0,
        "basket": {"min_clients": 3, "max_clients": 3},
        "layer1": {"aggregation_method": "median", "clip_norm": 5.0},
        "layer2": {"central_dp_epsilon": float("inf"), "use_secure_aggregation": False, "clip_norm": 5.0},
    }
    result = open_federation(settings).fit(workload, rounds=4)
    assert workload.evaluate(workload.initial_model())["accuracy"] < 0.8
    assert result.history[-1].evaluation["accuracy"] == 1.0
    assert isinstance(result.model, torch.nn.Sequential)
    assert workload.evaluate(result.model)["accuracy"] == 1.0
    assert result.history[-1].metrics["domain0"].metrics["loss"] < 0.3
    assert result.refusals == {}
