"""One person's gradients: their speed against Opacus, and what subsampling would buy a site of 500 persons.

``python -m benchmarks persons [--part speed|sampling] [--format json]``. *Speed*: milliseconds for the
gradients of all records, float64, one thread, the best of several runs, and times Opacus' `GradSampleModule`
on the same module. *Sampling*: the noise that a mean of gradients needs if each of T steps takes a random
share q of the persons, over the noise if each takes all, at the same (epsilon, delta). Poisson sampling with
null-record neighbours is counted by dp-accounting's PLD, which is tight, and by its RDP; batches of one size
with replace-one neighbours by RDP. All persons in each step are counted exactly, for the same neighbours. Two
minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.privacy import best_of
from scarcity_ray.privacy import Accounting
from scarcity_ray_client.persons import RecordGradients, TanhMlp

PERSONS, EPSILON, DELTA = 500, 3.0, 1e-6
STEPS, SHARES = (10, 30, 100, 1000), (0.5, 0.1, 0.02)
Row = dict[str, Any]


def speeds() -> Iterator[Row]:
    """Of each model and number of records: closed form, `torch.func` and Opacus."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 2))
    wide = nn.Sequential(nn.Linear(200, 128), nn.Tanh(), nn.Linear(128, 10))
    images = nn.Sequential(
        *(nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 16, 5, 2), nn.GroupNorm(4, 16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(800, 10)),
    )
    for name, module, features, classes, closed in (
        ("MLP 30-32-2", dense, 30, 2, TanhMlp(32, 2)),
        ("MLP 200-128-10", wide, 200, 10, TanhMlp(128, 10)),
        ("two convolutions", images, 784, 10, None),
    ):
        yield {"model": name, **_speed(module, features, classes, closed)}


def _speed(module: Any, features: int, classes: int, closed: RecordGradients | None) -> Row:
    import torch

    from scarcity_ray_client.persons_torch import TorchModel

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(PERSONS, features)), rng.integers(0, classes, PERSONS).astype(np.float64)
    model = TorchModel(module, torch.nn.functional.cross_entropy, num_classes=classes)
    weights = model.initial()
    seconds = {"torch.func": best_of(5, lambda: model.gradients(weights, x, y))}
    if closed is not None:
        seconds["closed form"] = best_of(5, lambda: closed.gradients(weights, x, y))
    if importlib.util.find_spec("opacus") is not None:
        seconds["opacus"] = best_of(5, opacus_of(model.load(weights), x, y))
    told: Row = {"records": PERSONS, "parameters": len(weights)}
    told |= {f"{name}, ms": round(1e3 * value, 1) for name, value in seconds.items()}
    if "opacus" in seconds:
        others = [name for name in seconds if name != "opacus"]
        told |= {f"{name} / opacus": round(seconds[name] / seconds["opacus"], 2) for name in others}
    return told


def opacus_of(module: Any, x: Any, y: Any) -> Callable[[], Any]:
    """Opacus' gradients of the same records, (N, d)."""
    import torch
    from opacus import GradSampleModule

    wrapped = GradSampleModule(module.train(), loss_reduction="sum")
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y).long()

    def gradients() -> Any:
        wrapped.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(wrapped(inputs), targets, reduction="sum").backward()
        return torch.cat([p.grad_sample.reshape(len(y), -1) for p in wrapped.parameters()], 1).numpy()

    return gradients


def samplings() -> Iterator[Row]:
    """Of each number of steps and share: noise over that of all persons in each step."""
    mu = Accounting.GAUSSIAN_DP.mu_of_claim(EPSILON, DELTA)
    for steps in STEPS:
        whole = math.sqrt(steps) / mu
        for share in SHARES:
            told: Row = {"steps": steps, "share": share}
            for name, epsilon_of in _accountants(steps, share).items():
                least = _least_multiplier(epsilon_of, share * whole)
                told[name] = round(least / (share * whole), 2)
            yield told


def _accountants(steps: int, share: float) -> dict[str, Callable[[float], float]]:
    """Epsilon of a noise multiplier: of the clip norm for null-record neighbours, else of twice that."""
    import dp_accounting as dp
    from dp_accounting import pld, rdp

    logging.getLogger("absl").setLevel(logging.ERROR)  # it tells of every order that it leaves out

    null, replaced = dp.NeighboringRelation.ADD_OR_REMOVE_ONE, dp.NeighboringRelation.REPLACE_ONE
    orders = list(range(2, 128))

    def poisson(multiplier: float) -> dp.DpEvent:
        return dp.PoissonSampledDpEvent(share, dp.GaussianDpEvent(multiplier))

    def fixed(multiplier: float) -> dp.DpEvent:
        batch = round(share * PERSONS)
        return dp.SampledWithoutReplacementDpEvent(PERSONS, batch, dp.GaussianDpEvent(multiplier))

    def counted(make: Callable[[], Any], event: Callable[[float], dp.DpEvent]) -> Callable[[float], float]:
        return lambda noise: float(make().compose(event(noise), steps).get_epsilon(DELTA))

    return {
        "Poisson, PLD": counted(lambda: pld.PLDAccountant(null, 5e-3), poisson),
        "Poisson, RDP": counted(lambda: rdp.RdpAccountant(orders, null), poisson),
        "fixed size, RDP": counted(lambda: rdp.RdpAccountant(orders, replaced), fixed),
    }


def _least_multiplier(epsilon_of: Callable[[float], float], about: float) -> float:
    """The least noise within the budget, by bisection to a hundredth."""
    low, high = 0.5 * about, max(10.0 * about, 2.0)
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if epsilon_of(middle) > EPSILON else (low, middle)
    return high


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("speed", "sampling"))
    parser.add_argument("--format", choices=("text", "json"), default="text")
    chosen = parser.parse_args()
    for part, rows in (("speed", speeds), ("sampling", samplings)):
        if chosen.part not in (None, part):
            continue
        if part == "speed" and importlib.util.find_spec("torch") is None:
            print("speed: left out, as PyTorch is not installed")
            continue
        for row in rows():
            plain = "  ".join(f"{name}: {value}" for name, value in row.items())
            print(json.dumps({"part": part, **row}) if chosen.format == "json" else plain, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
