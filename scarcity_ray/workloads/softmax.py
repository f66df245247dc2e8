"""Softmax regression: many clients' local training as one array program, and its accuracy.

A model is one flat float32 vector of (features + 1) * classes coordinates; the last row holds the biases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrainingInputs:
    """The inputs that all training tasks of a round share.

    Attributes:
        model: (d,) float32, the round's global model; or (clients, d), each client's own.
        features: (clients, examples, features + 1) float32.
        labels: (clients, examples) int64.
        present: (clients, examples) float32, 1 for an example and 0 for padding.
        local_steps: Gradient steps a client.
    """

    model: NDArray[np.float32]
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    present: NDArray[np.float32]
    num_classes: int
    local_steps: int
    learning_rate: float


def train_clients(rows: tuple[int, int], inputs: TrainingInputs) -> NDArray[np.float32]:
    """Train the clients of a range of rows from the global model or their own; a task of the runtime.

    Full-batch gradient descent on each client's mean cross-entropy, all clients in one batched product.

    Args:
        rows: First row, and the one after the last.

    Returns:
        (rows, d) float32, each client's model minus the one that it started from.

    Guarantees:
        A client's delta does not depend on the others in its task.
    """
    first, last = rows
    features = inputs.features[first:last]
    present = inputs.present[first:last]
    count = last - first
    wanted = np.eye(inputs.num_classes, dtype=np.float32)[inputs.labels[first:last]]
    start = inputs.model[first:last] if inputs.model.ndim == 2 else np.repeat(inputs.model[None], count, 0)
    weights = start.reshape(count, features.shape[2], inputs.num_classes).copy()
    scale = (present / np.maximum(present.sum(axis=1, keepdims=True), 1.0))[:, :, None]
    backwards = np.ascontiguousarray(features.transpose(0, 2, 1))
    for _ in range(inputs.local_steps):
        residual = (softmax(features @ weights) - wanted) * scale
        weights -= np.float32(inputs.learning_rate) * (backwards @ residual)
    trained: NDArray[np.float32] = weights.reshape(count, -1) - start
    return trained


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities along the last axis."""
    exponentials: NDArray[np.float32] = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return exponentials


def accuracy(model: NDArray[np.float32], features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of examples whose label has the largest score; a score that is not finite is never right."""
    return float(right_answers(model[None], features, labels).mean())


def right_answers(
    models: NDArray[np.float32], features: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(models, examples): whether the label has the largest score, all scores being finite."""
    weights = models.reshape(len(models), features.shape[1] + 1, -1)
    scores = features @ weights[:, :-1] + weights[:, -1:]
    right: NDArray[np.bool_] = (scores.argmax(axis=2) == labels) & np.isfinite(scores).all(axis=2)
    return right
