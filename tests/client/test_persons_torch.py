"""Gradients by record of PyTorch modules; skipped, and said so, where PyTorch is not installed."""

from __future__ import annotations

import numpy as np
import pytest

from scarcity_ray_client.errors import UsageError
from scarcity_ray_client.persons import TanhMlp, person_gradient

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed: pip install 'scarcity-ray-client[torch]'"
)
from scarcity_ray_client.persons_torch import TorchModel  # noqa: E402

nn, cross_entropy = torch.nn, torch.nn.functional.cross_entropy
torch.set_num_threads(1)


def dense():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))


def images():
    return nn.Sequential(
        nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 3)
    )


CASES = {"dense": (dense, 6), "images": (images, 36)}


def case(name, count=60):
    torch.manual_seed(0)
    make, features = CASES[name]
    module, rng = make(), np.random.default_rng(1)
    return module, rng.normal(size=(count, features)), rng.integers(0, 3, count)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_autograd_record_by_record(name):
    module, x, y = case(name, 7)
    model = TorchModel(module, cross_entropy, num_classes=3)
    found = model.gradients(model.initial(), x, y)
    alone = module.double().eval()
    for row, record, target in zip(found, torch.from_numpy(x), torch.from_numpy(y), strict=True):
        loss = cross_entropy(alone(record[None]), target[None])
        due = torch.cat([part.ravel() for part in torch.autograd.grad(loss, list(alone.parameters()))])
        np.testing.assert_allclose(row, due.numpy(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_a_records_gradient_does_not_depend_on_the_others(name):
    module, x, y = case(name)
    model = TorchModel(module, cross_entropy, num_classes=3)
    full = model.gradients(model.initial(), x, y)
    rng = np.random.default_rng(2)
    for count in (1, 2, 3, 7, 33, 59):
        chosen = rng.permutation(len(x))[:count]
        part = model.gradients(model.initial(), x[chosen], y[chosen])
        assert part.tobytes() == full[chosen].tobytes()


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3),
        nn.SyncBatchNorm(3),
        nn.LazyBatchNorm1d(),
        nn.InstanceNorm1d(3, track_running_stats=True),
    ],
)
def test_modules_with_statistics_of_a_batch_are_refused(layer):
    with pytest.raises(UsageError, match=rf"module: 1 is {type(layer).__name__}.*GroupNorm"):
        TorchModel(nn.Sequential(nn.Linear(6, 3), layer), cross_entropy, num_classes=3)


class Counting(nn.Module):
    """Keeps a mean of all that it has seen."""

    def __init__(self, in_place):
        super().__init__()
        self.last, self.in_place = nn.Linear(6, 3), in_place
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x):
        if self.in_place:
            self.seen += x.mean(0)
        else:
            self.seen = self.seen + x.mean(0)
        return self.last(x - self.seen)


def test_a_buffer_is_not_written_to():
    _, x, y = case("dense")
    given = {"loss": cross_entropy, "num_classes": 3}
    model = TorchModel(Counting(in_place=True), **given)
    with pytest.raises(UsageError, match="must not write into buffers"):
        model.gradients(model.initial(), x, y)
    model = TorchModel(Counting(in_place=False), **given)
    first, second = (model.gradients(model.initial(), x, y) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_the_mean_over_persons_is_that_of_the_closed_form():
    """And a record whose target is no class counts as zero in both."""
    closed, rng = TanhMlp(5, 3), np.random.default_rng(3)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    weights = closed.initial(6, seed=0)
    # PyTorch's matrices are (out, in).
    first, second = np.split(weights, [7 * 5])
    flat = np.concatenate([first[:30].reshape(6, 5).T.ravel(), first[30:]])
    last = np.concatenate([second[:15].reshape(5, 3).T.ravel(), second[15:]])
    x, y, keys = rng.normal(size=(90, 6)), rng.integers(0, 3, 90).astype(float), rng.integers(0, 40, 90)
    y[3], y[4] = 7.0, np.nan
    given = {"clip_norm": 0.2, "min_persons": 10}
    ours = person_gradient(closed, weights, x, y, keys, **given)
    model = TorchModel(module, cross_entropy, num_classes=3)
    theirs = person_gradient(model, np.concatenate([flat, last]), x, y, keys, **given)
    assert theirs.num_persons == ours.num_persons
    assert theirs.clipped_share == ours.clipped_share > 0.0
    np.testing.assert_allclose(theirs.row[:30].reshape(5, 6).T.ravel(), ours.row[:30], atol=1e-12)
    np.testing.assert_allclose(theirs.row[-3:], ours.row[-3:], atol=1e-12)


def test_frozen_parameters_stay_and_loaded_ones_are_taken():
    module = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1))
    module[0].requires_grad_(False)
    model = TorchModel(module, lambda scores, y: ((scores[:, 0] - y) ** 2).sum(), num_classes=None)
    assert model.num_parameters(6) == 6
    made = model.load(np.arange(6.0))
    assert made[1].weight.tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0]]
    assert torch.equal(made[0].weight, module[0].weight.double())
    assert model.gradients(np.zeros(6), np.ones((2, 6)), [1.5, np.inf]).shape == (2, 6)
    with pytest.raises(UsageError, match="no parameters"):
        TorchModel(nn.ReLU(), cross_entropy, num_classes=3)
