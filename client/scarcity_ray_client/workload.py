"""`Workload`: the contract between a federation and whoever has a model and data.

Guarantees:
    A client is checked as it is made.
    Trained holds a model or a delta.
    Metrics are finite floats by name.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from scarcity_ray_client.errors import UsageError, shown
from scarcity_ray_client.models import ModelCodec
from scarcity_ray_client.policy import SignedPolicy

Model = TypeVar("Model")

MOST_METRICS = 10_000
"""Numbers that one training or evaluation may give; each has a name of at most `MOST_NAME` characters."""
MOST_NAME = 200


@dataclass(frozen=True)
class Client:
    """Who trains, on what, and what the training needs; checked as it is made.

    Attributes:
        client_id: Unique in the federation.
        domain_id: What it has in common with others, such as ``"hospitals"``; baskets are made within a
            domain.
        features: Numbers by which a domain's clients are grouped (its fingerprint); None: it has none.
        data: Where its data lies: any JSON value that the workload understands, such as a path, URL or index.
        num_examples: How many examples it trains on.
        num_cpus: CPUs that a training needs.
        num_gpus: GPUs, of which a part may do.
        resources: Ray's custom resources, such as ``{"hospital_a": 1}``, which only that hospital's node has.
        labels: Ray's labels of the nodes that may train it, such as ``{"region": "north"}``.
        num_persons: How many persons its data are of (records, where a record is the unit of privacy), which
            is public: below ``privacy.min_persons`` it is not asked to train. None: its training tells.
        policy: Its ceiling, which it has signed; None: the federation's budget alone limits it.

    Raises:
        UsageError: For a value that none of these can have.
    """

    client_id: str
    domain_id: str
    features: tuple[float, ...] | None = None
    data: Any = field(default=None, hash=False)
    num_examples: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict, hash=False)
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    num_persons: int | None = None
    policy: SignedPolicy | None = None

    def __post_init__(self) -> None:
        for name in ("client_id", "domain_id"):
            self._require(name, _is_text(getattr(self, name)), "a text of at least one letter")
        if self.features is not None:
            try:
                object.__setattr__(self, "features", tuple(float(value) for value in self.features))
            except (TypeError, ValueError, OverflowError):
                self._require("features", False, "finite numbers, or None")
            self._require("features", all(map(math.isfinite, self.features)), "finite numbers, or None")
        try:
            json.dumps(self.data, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            self._require("data", False, "a JSON value, such as str(path) or an index")
        self._require("num_examples", _is_count(self.num_examples), "a positive int below 2**63")
        held = self.num_persons is None or _is_count(self.num_persons)
        self._require("num_persons", held, "a positive int below 2**63, or None")
        held = self.policy is None or (
            isinstance(self.policy, SignedPolicy) and self.policy.policy.client_id == self.client_id
        )
        self._require("policy", held, "a SignedPolicy of this client, or None")
        for name in ("num_cpus", "num_gpus"):
            self._require(name, _is_amount(getattr(self, name)), "a number from 0")
        for name, is_fit, accepted in (
            ("resources", _is_amount, "numbers from 0 by name"),
            ("labels", _is_text, "texts by name"),
        ):
            given = getattr(self, name)
            held = isinstance(given, Mapping) and all(_is_text(key) and is_fit(given[key]) for key in given)
            self._require(name, held, accepted)
            object.__setattr__(self, name, dict(given))

    def _require(self, name: str, holds: bool, accepted: str) -> None:
        if not holds:
            value = getattr(self, name)
            raise UsageError(
                f"client {shown(self.client_id)}: {name}: {shown(value)} is not accepted; {accepted}"
            )


@dataclass(frozen=True)
class Trained(Generic[Model]):
    """What a client's training gives: the model as it is now, or how far each number of it moved.

    An update is a *delta*, model after - model before, and the federation adds the deltas' aggregate to its
    model. A `model` is turned into one; a `delta` is taken as it is. A model given as a delta is refused
    where it can be told: it is a module or an estimator, lies in the memory of the model that was handed in,
    or equals it. Another one cannot be told (from a model of zeros, the first delta *is* the model): give
    `model` unless you subtract.

    Attributes:
        model: The trained model, of the structure of `Workload.initial_model`; it may be the one handed in.
        delta: In the same structure (of a module: by name), or a float vector (d,).
        metrics: Numbers by name, such as ``{"loss": 0.3}``; those that are not finite are left out.
        num_examples: Examples that were trained on; None: the client's `Client.num_examples`.
        num_persons: Persons (records) whose contributions `delta` is the mean of, where they are the unit of
            privacy (`scarcity_ray_client.persons`); it is required there, and `model` is refused.

    Raises:
        UsageError: Unless exactly one of model and delta is given, or if a number is no positive int.
    """

    model: Model | None = None
    delta: Any = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    num_examples: int | None = None
    num_persons: int | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.delta is None):
            raise UsageError("Trained takes either model= or delta=")
        for name in ("num_examples", "num_persons"):
            count = getattr(self, name)
            if count is not None and not _is_count(count):
                raise UsageError(f"{name}: {shown(count)} is not accepted; a positive int below 2**63")


class Workload(ABC, Generic[Model]):
    """A model, clients with data, and how one is trained on the other: derive, and write four methods.

    A model is a tree (dict, list, tuple, dataclass) of NumPy arrays or tensors, a PyTorch module, or a linear
    model or MLP of scikit-learn; `ModelCodec` says what becomes of its parts. The driver makes one workload;
    `train` and `evaluate_client` run on a copy of it where the client's data lies, so open data there and not
    in ``__init__``.

    >>> import numpy as np
    >>> class Regression(Workload[dict[str, np.ndarray]]):
    ...     '''Least squares by gradient descent; each client draws its examples from a seed.'''
    ...
    ...     def __init__(self, sites: int = 3, rate: float = 0.1) -> None:
    ...         self.sites, self.rate = sites, rate
    ...
    ...     def examples(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
    ...         rng = np.random.default_rng(seed)
    ...         features = rng.normal(size=(50, 2))
    ...         return features, features @ [1.0, -2.0] + rng.normal(scale=0.1, size=50)
    ...
    ...     def clients(self) -> list[Client]:
    ...         return [Client(f"site_{i}", "sites", data=i, num_examples=50) for i in range(self.sites)]
    ...
    ...     def initial_model(self) -> dict[str, np.ndarray]:
    ...         return {"weights": np.zeros(2, np.float32)}
    ...
    ...     def train(self, model, client, round_id):
    ...         features, targets = self.examples(client.data)
    ...         errors = features @ model["weights"] - targets
    ...         step = self.rate * features.T @ errors / len(targets)
    ...         model["weights"] -= step
    ...         return Trained(model=model, metrics={"loss": np.mean(errors**2)})
    ...
    ...     def evaluate(self, model) -> dict[str, float]:
    ...         features, targets = self.examples(seed=99)
    ...         return {"loss": float(np.mean((features @ model["weights"] - targets) ** 2))}
    >>> from scarcity_ray_client import train_client
    >>> workload = Regression()
    >>> codec, model = workload.codec(), workload.initial_model()
    >>> vector = codec.encode(model)
    >>> for round_id in range(30):
    ...     updates = [train_client(workload, codec, vector, site, round_id) for site in workload.clients()]
    ...     vector = vector + np.mean([update.delta for update in updates], axis=0)
    >>> workload.evaluate(model)["loss"] > 3.0, workload.evaluate(codec.decode(vector))["loss"] < 0.05
    (True, True)
    """

    @abstractmethod
    def clients(self) -> Sequence[Client]:
        """All clients, the same at each call; asked once, by the driver."""

    @abstractmethod
    def initial_model(self) -> Model:
        """The model that the first round starts from, the same at each call: seed what is random."""

    @abstractmethod
    def train(self, model: Model, client: Client, round_id: int) -> Trained[Model]:
        """Trains a model on one client's data.

        Args:
            model: The federation's model, this client's own copy on the CPU: it may be trained in place.
            client: One of `clients`.
            round_id: The federation's round, for a seed together with the client's id.

        Returns:
            ``Trained(model=...)`` or ``Trained(delta=...)``. Anything else, what is raised, and numbers that
            are not finite are counted as a `Refusal` with client, round and cause, while the round goes on.
        """

    @abstractmethod
    def evaluate(self, model: Model) -> Mapping[str, float]:
        """Metrics of a model on test data that the driver has, such as ``{"accuracy": 0.9}``."""

    def evaluate_client(self, model: Model, client: Client) -> Mapping[str, float] | None:
        """Metrics of a model on one client's data; None, as here: the workload does not offer that."""
        return None

    def poison(self, model: Model, client: Client, round_id: int) -> Trained[Model] | None:
        """What this client sends as an attacker that poisons its data, for example trained on flipped labels.

        Only the lab calls it, in place of `train`. None, as here: the workload does not offer that.
        """
        return None

    def train_many(
        self, models: Sequence[Model], clients: Sequence[Client], round_id: int
    ) -> Sequence[Trained[Model]]:
        """`train` for many small clients at once, as one array program; override it where that is quicker.

        It must give what `train` gives. If it raises, gives another number of results, or changes a model
        that clients share, each client is trained alone by `train`.

        Args:
            models: Of each client; they may all be one object: do not change them in place.
            clients: As many, on one machine.
            round_id: As in `train`.

        Returns:
            One for each client, in their order.
        """
        pairs = zip(models, clients, strict=True)
        return [self.train(copy.deepcopy(model), client, round_id) for model, client in pairs]

    def centralised(self) -> Model | None:
        """The model that all clients' data in one place give, for the lab to compare with.

        None, as here: the workload does not offer that.
        """
        return None

    def codec(self) -> ModelCodec[Model]:
        """How the model becomes a vector; override it to keep parts out (`ModelCodec`'s ``keep``)."""
        return ModelCodec(self.initial_model())


def checked_clients(clients: Iterable[Client]) -> tuple[Client, ...]:
    """A workload's clients, each of which must be a `Client` with an id of its own.

    Raises:
        UsageError: If there are none, they or one of them is something else, or two have one id.
    """
    try:
        one_by_one = iter(clients)
    except TypeError:
        raise UsageError(f"clients() gave a {type(clients).__name__}; give a list of Client") from None
    given, seen = tuple(one_by_one), set[str]()
    for place, client in enumerate(given):
        if not isinstance(client, Client):
            raise UsageError(f"clients()[{place}] is a {type(client).__name__}; give a Client")
        if client.client_id in seen:
            raise UsageError(f"clients()[{place}]: the id {client.client_id!r} is taken by another client")
        seen.add(client.client_id)
    if not seen:
        raise UsageError("clients() gave no client")
    return given


def checked_metrics(metrics: object) -> dict[str, float]:
    """Metrics as floats by name; those that are not finite are left out.

    Raises:
        UsageError: If it is no mapping of numbers by name, or beyond `MOST_METRICS` or `MOST_NAME`.

    >>> checked_metrics({"loss": 1, "auc": float("nan")})
    {'loss': 1.0}
    """
    if not isinstance(metrics, Mapping):
        raise UsageError(f"metrics: a {type(metrics).__name__} is not accepted; numbers by name")
    if len(metrics) > MOST_METRICS:
        raise UsageError(f"metrics: {len(metrics)} are not accepted; at most {MOST_METRICS}")
    read: dict[str, float] = {}
    for name, value in metrics.items():
        number = value.item() if getattr(value, "shape", None) == () else value
        if not _is_text(name) or len(name) > MOST_NAME or not isinstance(number, int | float):
            raise UsageError(
                f"metrics: {shown(name)}: {shown(value)} is not accepted; numbers by name, of at most "
                f"{MOST_NAME} characters"
            )
        read[name] = float(number) if abs(number) <= sys.float_info.max else math.inf
    return {name: number for name, number in read.items() if math.isfinite(number)}


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 2**63


def _is_text(value: object) -> bool:
    return (
        isinstance(value, str) and value != "" and not any("\ud800" <= letter <= "\udfff" for letter in value)
    )


def _is_amount(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    )


__all__ = ["Client", "Trained", "Workload", "checked_clients", "checked_metrics"]
