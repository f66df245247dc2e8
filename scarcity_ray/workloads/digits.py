"""Federated softmax regression on the 1797 digits that scikit-learn ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.errors import UsageError
from scarcity_ray.workloads.digit_images import NUM_CLASSES, NUM_PIXELS, load_digits
from scarcity_ray.workloads.softmax import PaddedExamples, descend, right_answers
from scarcity_ray.workloads.splits import split_among_clients
from scarcity_ray_client import Client, Trained, Workload

Model = dict[str, NDArray[np.float32]]


class Digits(Workload[Model]):
    """Each client holds a few digits; domains differ in which digits they have most of.

    The data are small and travel with the workload. Where yours are not, open them in `train`.
    """

    def __init__(
        self,
        clients: int = 260,
        domains: int = 4,
        features: int = 24,
        random_features: int = 0,
        test_share: float = 0.25,
        label_skew: float = 1.0,
        local_steps: int = 5,
        learning_rate: float = 1.0,
        seed: int = 0,
    ) -> None:
        whole = {"clients": clients, "domains": domains, "features": features, "local_steps": local_steps}
        for name, value in whole.items():
            most = NUM_PIXELS if name == "features" else 1347
            if not (type(value) is int and 1 <= value <= most):
                raise UsageError(f"{name}: {value!r} is not accepted; an integer from 1 to {most}")
        self.data = load_digits(features, test_share, seed, random_features)
        self._steps, self._learning_rate = local_steps, learning_rate
        labels = self.data.train_labels
        shares = split_among_clients(labels, clients, domains, label_skew, seed)
        self._examples = PaddedExamples.of(
            self.data.train_features, labels, [share.indices for share in shares]
        )
        self._turned = replace(self._examples, labels=NUM_CLASSES - 1 - self._examples.labels)
        self._clients, held = [], np.zeros((domains, NUM_CLASSES))
        for row, share in enumerate(shares):
            domain, count = f"domain_{share.domain}", len(share.indices)
            client_id = f"{domain}_client_{share.number:03d}"
            self._clients.append(Client(client_id, domain, data=[row, share.domain], num_examples=count))
            held[share.domain] += np.bincount(labels[share.indices], minlength=NUM_CLASSES)
        tested = np.maximum(np.bincount(self.data.test_labels, minlength=NUM_CLASSES), 1)
        at_home = (held / tested)[:, self.data.test_labels]
        self._at_home = at_home / np.maximum(at_home.sum(axis=1, keepdims=True), 1e-9)

    def clients(self) -> list[Client]:
        """See `Workload.clients`."""
        return self._clients

    def initial_model(self) -> Model:
        """Zeros."""
        return _model(np.zeros((self.data.train_features.shape[1] + 1, NUM_CLASSES), np.float32))

    def train(self, model: Model, client: Client, round_id: int) -> Trained[Model]:
        """See `train_many`."""
        return self.train_many([model], [client], round_id)[0]

    def train_many(
        self, models: Sequence[Model], clients: Sequence[Client], round_id: int
    ) -> list[Trained[Model]]:
        """Gradient descent, all clients in one array program."""
        return self._trained(models, clients, self._examples)

    def poison(self, model: Model, client: Client, round_id: int) -> Trained[Model]:
        """Training on turned labels: c becomes 9 - c (Karimireddy, He, Jaggi 2022)."""
        return self._trained([model], [client], self._turned)[0]

    def evaluate(self, model: Model) -> dict[str, float]:
        """On digits that no client holds."""
        return {"accuracy": float(self._right(model).mean())}

    def evaluate_client(self, model: Model, client: Client) -> dict[str, float]:
        """On the same, weighted to be as frequent as those that the client's domain holds."""
        return {"accuracy": float(self._right(model) @ self._at_home[client.data[1]])}

    def centralised(self) -> Model:
        """scikit-learn's logistic regression on all clients' digits."""
        from sklearn.linear_model import LogisticRegression

        fitted = LogisticRegression(max_iter=1000).fit(self.data.train_features, self.data.train_labels)
        return _model(np.vstack([fitted.coef_.T, fitted.intercept_]).astype(np.float32))

    def _right(self, model: Model) -> NDArray[np.bool_]:
        return right_answers(_flat(model), self.data.test_features, self.data.test_labels)

    def _trained(
        self, models: Sequence[Model], clients: Sequence[Client], examples: PaddedExamples
    ) -> list[Trained[Model]]:
        first = _flat(models[0])
        shared = all(model is models[0] for model in models)
        starts = (
            np.broadcast_to(first, (len(clients), first.size)) if shared else np.stack([*map(_flat, models)])
        )
        rows = [client.data[0] for client in clients]
        deltas = descend(starts, examples, rows, NUM_CLASSES, self._steps, self._learning_rate)
        return [Trained(delta=delta) for delta in deltas]


def _model(weights: NDArray[np.float32]) -> Model:
    """Of (features + 1, classes), of which the last row holds the biases."""
    return {"weights": weights[:-1], "bias": weights[-1]}


def _flat(model: Model) -> NDArray[np.float32]:
    return np.concatenate([model["weights"].ravel(), model["bias"]])
