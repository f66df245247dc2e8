"""Softmax regression: many clients' gradient descent as one array program, and right answers.

A model is one flat float32 vector of (features + 1) * classes coordinates; the last row holds the biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PaddedExamples:
    """Clients' examples, padded to one rectangle.

    Attributes:
        features: (clients, examples, features + 1) float32; the last feature is 1 (bias), padding is 0.
        labels: (clients, examples) int64; padding is 0.
        present: (clients, examples) float32; 1 for an example, 0 for padding.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    present: NDArray[np.float32]

    @classmethod
    def of(
        cls, features: NDArray[np.float32], labels: NDArray[np.int64], parts: Sequence[NDArray[np.int64]]
    ) -> PaddedExamples:
        """The examples at each client's indices `parts`."""
        shape = len(parts), max(map(len, parts))
        padded = np.zeros((*shape, features.shape[1] + 1), np.float32)
        padded_labels, present = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        for row, part in enumerate(parts):
            padded[row, : len(part), :-1] = features[part]
            padded[row, : len(part), -1] = 1.0
            padded_labels[row, : len(part)] = labels[part]
            present[row, : len(part)] = 1.0
        return cls(padded, padded_labels, present)


def descend(
    models: NDArray[np.float32],
    examples: PaddedExamples,
    rows: Sequence[int],
    num_classes: int,
    steps: int,
    learning_rate: float,
) -> NDArray[np.float32]:
    """Full-batch gradient descent on each client's mean cross-entropy, all clients in one batched product.

    Args:
        models: (n, d) float32, each client's start; it may be a view of one vector.
        rows: The n clients' places among `examples`.

    Returns:
        (n, d) float32, each client's model minus the one that it started from.

    Guarantees:
        A client's delta does not depend on the others in its task.
    """
    places = np.asarray(rows)
    features, present = examples.features[places], examples.present[places]
    wanted = np.eye(num_classes, dtype=np.float32)[examples.labels[places]]
    weights = models.reshape(len(places), features.shape[2], num_classes).copy()
    scale = (present / np.maximum(present.sum(axis=1, keepdims=True), 1.0))[:, :, None]
    backwards = np.ascontiguousarray(features.transpose(0, 2, 1))
    for _ in range(steps):
        residual = (softmax(features @ weights) - wanted) * scale
        weights -= np.float32(learning_rate) * (backwards @ residual)
    return weights.reshape(len(places), -1) - models


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities along the last axis."""
    exponentials: NDArray[np.float32] = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return exponentials


def accuracy(model: NDArray[np.float32], features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of examples whose label has the largest score; a score that is not finite is never right."""
    return float(right_answers(model, features, labels).mean())


def right_answers(
    model: NDArray[np.float32], features: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(examples,): whether the label has the largest score, all scores being finite."""
    weights = model.reshape(features.shape[1] + 1, -1)
    scores = features @ weights[:-1] + weights[-1]
    right: NDArray[np.bool_] = (scores.argmax(axis=1) == labels) & np.isfinite(scores).all(axis=1)
    return right
