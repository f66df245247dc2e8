"""Local training as one array program."""

from __future__ import annotations

import numpy as np
import pytest

from scarcity_ray.workloads.softmax import PaddedExamples, accuracy, descend


def _examples(clients=9, examples=5, features=4, classes=3):
    rng = np.random.default_rng(0)
    counts = rng.integers(1, examples + 1, size=clients)
    labels = rng.integers(0, classes, size=counts.sum())
    rows = rng.standard_normal((counts.sum(), features)).astype(np.float32)
    return PaddedExamples.of(rows, labels, np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1]))


def _starts(clients=9, d=15):
    return np.random.default_rng(1).standard_normal((clients, d)).astype(np.float32)


def _one_client_in_float64(start, examples, row, steps, rate) -> np.ndarray:
    held = examples.present[row] > 0
    features, labels = examples.features[row][held].astype(float), examples.labels[row][held]
    start = start.reshape(features.shape[1], -1).astype(float)
    weights = start.copy()
    for _ in range(steps):
        gradient = np.zeros_like(weights)
        for example, label in zip(features, labels, strict=True):
            probabilities = np.exp(example @ weights) / np.exp(example @ weights).sum()
            probabilities[label] -= 1
            gradient += np.outer(example, probabilities) / len(labels)
        weights -= rate * gradient
    return (weights - start).ravel()


def test_batched_training_is_each_clients_own_gradient_descent():
    examples, starts = _examples(), _starts()
    deltas = descend(starts, examples, range(9), 3, 4, 0.5)
    for row in range(9):
        assert np.allclose(deltas[row], _one_client_in_float64(starts[row], examples, row, 4, 0.5), atol=1e-5)


def test_a_clients_delta_does_not_depend_on_the_others_in_its_task():
    examples, starts = _examples(), _starts()
    whole = descend(starts, examples, range(9), 3, 4, 0.5)
    parts = [descend(starts[rows], examples, rows, 3, 4, 0.5) for rows in ([0], [1, 2, 3], [8, 4, 5, 6, 7])]
    assert whole[[0, 1, 2, 3, 8, 4, 5, 6, 7]].tobytes() == np.concatenate(parts).tobytes()
    assert whole.dtype == np.float32


def test_inputs_may_be_read_only():
    examples, starts = _examples(), np.broadcast_to(_starts()[0], (9, 15))
    for array in (examples.features, examples.labels, examples.present):
        array.flags.writeable = False
    assert np.isfinite(descend(starts, examples, range(9), 3, 4, 0.5)).all()


def test_accuracy_counts_right_answers_and_never_a_broken_model():
    features = np.eye(3, dtype=np.float32)
    model = np.concatenate([np.eye(3, dtype=np.float32), np.zeros((1, 3), np.float32)]).ravel()
    assert accuracy(model, features, np.array([0, 1, 0])) == pytest.approx(2 / 3)
    assert accuracy(np.full(12, np.nan, np.float32), features, np.array([0, 0, 0])) == 0.0
