"""The benchmark of single persons' gradients: what it says of subsampling, and that Opacus' are the same."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.persons import _accountants, _least_multiplier, opacus_of


def test_a_share_of_the_persons_needs_more_noise_than_all_of_them():
    """By Google's accountant against Gaussian DP of all persons in each step."""
    pytest.importorskip("dp_accounting")
    whole = 30**0.5 / 0.6477265
    rdp = _accountants(30, 0.5)["Poisson, RDP"]
    assert _least_multiplier(rdp, 0.5 * whole) > 0.5 * whole


def test_opacus_gives_the_same_gradients():
    torch = pytest.importorskip("torch")
    pytest.importorskip("opacus")
    from scarcity_ray_client.persons_torch import TorchModel

    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 4)), rng.integers(0, 2, 9).astype(float)
    model = TorchModel(module, torch.nn.functional.cross_entropy, num_classes=2)
    ours = model.gradients(model.initial(), x, y)
    np.testing.assert_allclose(ours, opacus_of(model.load(model.initial()), x, y)(), rtol=1e-9, atol=1e-12)
