"""Shops learn who comes back: scikit-learn's `SGDClassifier` on purchases of CDs.

The data are real (CDNOW, 69,659 purchases by 23,570 people who first bought in early 1997; the package
`lifetimes` ships them); the shops are made up: whoever came later rather belongs to a later region. The first
39 weeks are known, and the question is who buys again in the 39 weeks after them.

    pip install --no-deps "lifetimes==0.11.3" && pip install "scikit-learn>=1.5,<2"
"""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier

from scarcity_ray_client import Client, Trained, Workload
from scarcity_ray_client.metrics import auc, binary_metrics
from scarcity_ray_client.models import initialised

REGIONS = 10
KNOWN_DAYS = 273
"""Days from 1 January 1997 that the shops look back on; who buys in the 272 days after them is guessed."""
SCALES = np.array([[1.0, 0.0, 0.0, 1.0, 3.0, 0.5], [0.5, 1.0, 100.0, 0.5, 1.0, 0.3]]).T
"""Centre and scale of the features, the same in all shops: logarithm of the number of purchases, days between
the first and the last, days since the last, logarithm of CDs, of dollars, and of dollars a CD."""
CLASSES = np.array([0, 1])


class Customers(NamedTuple):
    """(n, 6) float64 features and (n,) 1 for who bought again."""

    features: NDArray[np.float64]
    labels: NDArray[np.int64]


class Returns(Workload[SGDClassifier]):
    """Will this customer buy again?

    Args:
        shops: How many, a multiple of the ten regions.
        passes: Over a shop's customers in one training.
        learning_rate: Of stochastic gradient descent.
        split: Seed of who belongs to which shop, and of the fifth that is kept for the test.
    """

    def __init__(
        self, shops: int = 200, passes: int = 1, learning_rate: float = 0.01, split: int = 0
    ) -> None:
        self.shops, self.split = shops, split
        self.passes, self.learning_rate = passes, learning_rate

    @cached_property
    def _dealt(self) -> tuple[list[Customers], Customers]:
        features, labels, first_day = purchases()
        rng = np.random.default_rng(self.split)
        order = np.argsort(first_day + 10.0 * rng.standard_normal(len(labels)))
        shop = np.full(len(labels), -1)
        each = self.shops // REGIONS
        for region, people in enumerate(np.array_split(order, REGIONS)):
            sizes = np.exp(0.7 * rng.standard_normal(each))
            shop[people] = region * each + rng.choice(each, people.size, p=sizes / sizes.sum())
        tested = rng.random(len(labels)) < 0.2
        shop[tested] = -1
        dealt = [Customers(features[shop == place], labels[shop == place]) for place in range(self.shops)]
        return dealt, Customers(features[tested], labels[tested])

    def clients(self) -> list[Client]:
        """One a shop; its region is its domain."""
        each = self.shops // REGIONS
        return [
            Client(
                f"shop_{i:03d}",
                f"region_{i // each}",
                data=i,
                num_examples=len(held.labels),
                num_cpus=0.5,
            )
            for i, held in enumerate(self._dealt[0])
        ]

    def initial_model(self) -> SGDClassifier:
        """Zeros of the right shape."""
        model = SGDClassifier(
            loss="log_loss", alpha=0.0, learning_rate="constant", eta0=self.learning_rate, random_state=0
        )
        return initialised(model, SCALES.shape[0], CLASSES)

    def train(self, model: SGDClassifier, client: Client, round_id: int) -> Trained[SGDClassifier]:
        """A pass over the shop's own customers."""
        return Trained(model=self._fitted(model, *self._dealt[0][client.data]))

    def poison(self, model: SGDClassifier, client: Client, round_id: int) -> Trained[SGDClassifier]:
        """The same with every label turned."""
        held = self._dealt[0][client.data]
        return Trained(model=self._fitted(model, held.features, 1 - held.labels))

    def evaluate(self, model: SGDClassifier) -> dict[str, float]:
        """On customers whom no shop has."""
        test = self._dealt[1]
        return binary_metrics(test.labels, chances(model, test.features))

    def evaluate_client(self, model: SGDClassifier, client: Client) -> dict[str, float]:
        """On the shop's own customers."""
        held = self._dealt[0][client.data]
        return {"auc": auc(held.labels, chances(model, held.features))}

    def centralised(self) -> SGDClassifier:
        """The same model on all shops' customers in one place."""
        features, labels = (np.concatenate(part) for part in zip(*self._dealt[0], strict=True))
        return self._fitted(self.initial_model(), features, labels)

    def _fitted(
        self, model: SGDClassifier, features: NDArray[np.float64], labels: NDArray[np.int64]
    ) -> SGDClassifier:
        for _ in range(self.passes):
            model.partial_fit(features, labels, CLASSES)
        return model


def purchases() -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each customer the scaled features, whether the customer bought again, and the first day."""
    # Read from the package's folder: importing it needs more than the file.
    package = find_spec("lifetimes")
    if package is None or package.origin is None:
        raise ModuleNotFoundError('the purchases are in a package: pip install --no-deps "lifetimes==0.11.3"')
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "CDNOW_master.txt", skiprows=1)
    _, customer = np.unique(table[:, 0], return_inverse=True)
    dates = table[:, 1].astype(np.int64)
    months = (dates // 10_000 * 12 + dates // 100 % 100 - 1 - 12 * 1970).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (dates % 100 - 1)
    day = (days - np.datetime64("1997-01-01")).astype(np.int64)
    known = day < KNOWN_DAYS
    count = int(customer.max()) + 1

    def added(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(customer[known], values[known], minlength=count)

    first, last = np.full(count, KNOWN_DAYS), np.zeros(count, np.int64)
    np.minimum.at(first, customer[known], day[known])
    np.maximum.at(last, customer[known], day[known])
    bought, cds, dollars = added(np.ones(len(day))), added(table[:, 2]), added(table[:, 3])
    features = np.stack(
        [
            np.log1p(bought),
            (last - first) / 90.0,
            (KNOWN_DAYS - last).astype(np.float64),
            np.log1p(cds),
            np.log1p(dollars),
            np.log1p(dollars / np.maximum(cds, 1.0)) / 5.0,
        ],
        axis=1,
    )
    again = np.bincount(customer[~known], minlength=count) > 0
    return (features - SCALES[:, 0]) / SCALES[:, 1], again.astype(np.int64), first


def chances(model: SGDClassifier, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probability of class 1 of each row, (n,)."""
    return np.asarray(model.predict_proba(features)[:, 1])
