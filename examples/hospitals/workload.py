"""Hospitals learn who will come often: logistic regression on RAND's Health Insurance Experiment, in NumPy.

The data are real (statsmodels' `randhie`: 20,190 years of about 5,000 people, 1974 to 1982, USA); the
hospitals are made up. Whoever is chronically ill rather goes to a larger kind of hospital, so the four kinds
differ in their patients, and within a kind the numbers of patients differ by more than tenfold.

    pip install "statsmodels>=0.14,<1"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scarcity_ray_client import Client, Trained, Workload
from scarcity_ray_client.metrics import auc, binary_metrics
from scarcity_ray_client.persons import LinearModel, person_gradient

Model = dict[str, NDArray[np.float32]]

KINDS = ("practice", "town", "county", "university")
COLUMNS: Mapping[str, tuple[float, float]] = {
    "lncoins": (1.8, 2.0),
    "idp": (0.25, 0.45),
    "lpi": (4.7, 2.7),
    "fmde": (4.0, 3.5),
    "physlm": (0.12, 0.32),
    "disea": (11.0, 7.0),
    "hlthg": (0.35, 0.48),
    "hlthf": (0.08, 0.27),
    "hlthp": (0.015, 0.12),
}
"""Each column with the centre and scale that all hospitals use, written down once and not taken from their
patients: coinsurance, deductible, incentive payment, deductible's size, physical limitation, chronic
diseases, and health good, fair or poor as people say themselves."""
SHARE = 0.1
"""Of person-years that are frequent, as is known beforehand."""
CLOSE = 10.0
"""Standard deviation, in diseases, of the draw that sends a person to a kind of hospital."""


class Patients(NamedTuple):
    """Person-years: (n, 9) float32 features and (n,) 0 or 1, one for at least `often` visits.

    `persons` (n,) numbers the people, as far as the data tell them apart.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    persons: NDArray[np.int64]


class FrequentVisits(Workload[Model]):
    """Will this person come to the doctor at least `often` times this year?

    Args:
        hospitals: How many, a multiple of the four kinds.
        often: Visits in a year from which a person counts as frequent; a tenth of all have eight.
        steps: Full-batch gradient steps of one training.
        learning_rate: Of these steps.
        split: Seed of who goes where, and of the people who are kept for the test.
        test_records: Person-years that the test has at least; None: a fifth of all people.
        uneven: Standard deviation of the logarithm of the hospitals' sizes.
    """

    def __init__(
        self,
        hospitals: int = 40,
        often: int = 8,
        steps: int = 5,
        learning_rate: float = 0.5,
        split: int = 0,
        test_records: int | None = None,
        uneven: float = 0.8,
    ) -> None:
        self.hospitals, self.often, self.split = hospitals, often, split
        self.steps, self.learning_rate = steps, learning_rate
        self.test_records, self.uneven = test_records, uneven

    @cached_property
    def _dealt(self) -> tuple[list[Patients], Patients]:
        """Each hospital's patients, and the test's; a person's years stay together as far as can be told."""
        from statsmodels.datasets import randhie

        table = randhie.load_pandas().data
        columns = [(table[name] - centre) / scale for name, (centre, scale) in COLUMNS.items()]
        features = np.stack(columns, axis=1).astype(np.float32)
        labels = (table["mdvis"].to_numpy() >= self.often).astype(np.int64)
        # There is no person's id, but a person's rows follow each other, and these traits stay as they are:
        # most runs are of three or five years, which is how long people took part.
        traits = table[["disea", "physlm", "idp", "lpi"]].to_numpy()
        person = np.cumsum(np.r_[False, (traits[1:] != traits[:-1]).any(axis=1)])
        rng = np.random.default_rng(self.split)
        count = int(person[-1]) + 1
        illness = table["disea"].groupby(person).mean().to_numpy() + CLOSE * rng.standard_normal(count)
        chance = rng.random(count)
        tested = chance < 0.2
        if self.test_records is not None:
            drawn = np.argsort(chance)
            years = np.cumsum(np.bincount(person)[drawn])
            tested = np.isin(np.arange(count), drawn[: np.searchsorted(years, self.test_records) + 1])
        hospital = np.full(count, -1)
        each = self.hospitals // len(KINDS)
        for kind, people in enumerate(np.array_split(np.argsort(illness), len(KINDS))):
            sizes = np.exp(self.uneven * rng.standard_normal(each))
            hospital[people] = kind * each + rng.choice(each, people.size, p=sizes / sizes.sum())
        hospital[tested] = -1
        all_years = Patients(features, labels, person)
        dealt = [_taken(all_years, at) for at in _rows(hospital[person], self.hospitals)]
        return dealt, _taken(all_years, np.flatnonzero(tested[person]))

    def clients(self) -> list[Client]:
        """One a hospital; its kind is its domain."""
        each = self.hospitals // len(KINDS)
        return [
            Client(
                f"{KINDS[i // each]}_{i % each:02d}", KINDS[i // each], data=i, num_examples=len(held.labels)
            )
            for i, held in enumerate(self._dealt[0])
        ]

    def patients(self, client: Client) -> Patients:
        """A hospital's own."""
        return self._dealt[0][client.data]

    @property
    def test(self) -> Patients:
        """People whom no hospital has."""
        return self._dealt[1]

    def initial_model(self) -> Model:
        """Everybody's probability is a tenth."""
        bias = np.full(1, np.log(SHARE / (1.0 - SHARE)), np.float32)
        return {"weights": np.zeros(len(COLUMNS), np.float32), "bias": bias}

    def train(self, model: Model, client: Client, round_id: int) -> Trained[Model]:
        """A few gradient steps on the hospital's own patients."""
        held = self.patients(client)
        trained = descend(model, held.features, held.labels, self.steps, self.learning_rate)
        return Trained(model=trained, metrics=binary_metrics(held.labels, chances(trained, held.features)))

    def poison(self, model: Model, client: Client, round_id: int) -> Trained[Model]:
        """The same with every label turned."""
        held = self.patients(client)
        return Trained(model=descend(model, held.features, 1 - held.labels, self.steps, self.learning_rate))

    def evaluate(self, model: Model) -> dict[str, float]:
        """On people whom no hospital has; F1 asks who is above the average risk."""
        test = self.test
        return binary_metrics(test.labels, chances(model, test.features), threshold=SHARE)

    def evaluate_client(self, model: Model, client: Client) -> dict[str, float]:
        """On the hospital's own patients."""
        held = self.patients(client)
        return {"auc": auc(held.labels, chances(model, held.features))}

    def centralised(self) -> Model:
        """The same model on all hospitals' patients in one place."""
        features, labels, _ = (np.concatenate(part) for part in zip(*self._dealt[0], strict=True))
        return descend(self.initial_model(), features, labels, 500, self.learning_rate)


class PrivateVisits(FrequentVisits):
    """The same, trained so that one record (or person) moves a hospital's update by 2 `clip_norm` / n alone.

    A training is one full-batch step from the released model (docs/privacy_units.md); the server's learning
    rate is its size. ``privacy`` in the job's file names the same unit, clip norm and least number.

    Args:
        hospitals, often, split, test_records, uneven: As above.
        unit: ``record``, a person-year, or ``person``, the years that the data let one take for one person's.
        clip_norm: C, the norm of a record's (person's) gradient at most.
        min_persons: Records (persons) without which a hospital sends nothing.
    """

    def __init__(
        self,
        hospitals: int = 40,
        often: int = 8,
        split: int = 0,
        test_records: int | None = None,
        uneven: float = 0.8,
        unit: Literal["record", "person"] = "record",
        clip_norm: float = 1.0,
        min_persons: int = 50,
    ) -> None:
        super().__init__(hospitals, often, split=split, test_records=test_records, uneven=uneven)
        self.unit, self.clip_norm, self.min_persons = unit, clip_norm, min_persons

    def clients(self) -> list[Client]:
        """One a hospital, with its number of records (persons)."""
        return [
            replace(
                client,
                num_persons=len(np.unique(held.persons)) if self.unit == "person" else len(held.labels),
            )
            for client, held in zip(super().clients(), self._dealt[0], strict=True)
        ]

    def train(self, model: Model, client: Client, round_id: int) -> Trained[Model]:
        """Minus the mean over the hospital's records (persons) of one clipped gradient each."""
        held = self.patients(client)
        return self._step(model, held, held.labels)

    def poison(self, model: Model, client: Client, round_id: int) -> Trained[Model]:
        """The same with every label turned."""
        held = self.patients(client)
        return self._step(model, held, 1 - held.labels)

    def _step(self, model: Model, held: Patients, labels: NDArray[np.int64]) -> Trained[Model]:
        mean = person_gradient(
            LinearModel("logistic"),
            np.concatenate([model["weights"], model["bias"]]),
            held.features,
            labels,
            held.persons if self.unit == "person" else None,
            clip_norm=self.clip_norm,
            min_persons=self.min_persons,
        )
        delta = {"weights": -mean.row[:-1], "bias": -mean.row[-1:]}
        return Trained(delta=delta, num_persons=mean.num_persons)


def _taken(years: Patients, at: NDArray[np.int64]) -> Patients:
    return Patients(years.features[at], years.labels[at], years.persons[at])


def _rows(owner: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(owner == place) for place in range(count)]


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
