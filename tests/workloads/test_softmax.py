"""Local training, and the model that deltas add up to."""

from __future__ import annotations

import numpy as np
import pytest

from scarcity_ray.workloads.averaging import RunningModel
from scarcity_ray.workloads.softmax import TrainingInputs, accuracy, train_clients


def _inputs(model=None, clients=9, examples=5, features=4, classes=3, steps=4, rate=0.5):
    rng = np.random.default_rng(0)
    present = (np.arange(examples) < rng.integers(1, examples + 1, size=clients)[:, None]).astype(np.float32)
    padded = rng.standard_normal((clients, examples, features + 1)).astype(np.float32)
    padded[:, :, -1] = 1
    padded *= present[:, :, None]
    labels = rng.integers(0, classes, size=(clients, examples)) * present.astype(np.int64)
    start = rng.standard_normal((features + 1) * classes).astype(np.float32) if model is None else model
    return TrainingInputs(start, padded, labels, present, classes, steps, rate)


def _one_client_in_float64(inputs: TrainingInputs, row: int) -> np.ndarray:
    held = inputs.present[row] > 0
    examples, labels = inputs.features[row][held].astype(float), inputs.labels[row][held]
    start = inputs.model.reshape(examples.shape[1], -1).astype(float)
    weights = start.copy()
    for _ in range(inputs.local_steps):
        gradient = np.zeros_like(weights)
        for example, label in zip(examples, labels, strict=True):
            probabilities = np.exp(example @ weights) / np.exp(example @ weights).sum()
            probabilities[label] -= 1
            gradient += np.outer(example, probabilities) / len(labels)
        weights -= inputs.learning_rate * gradient
    return (weights - start).ravel()


def test_batched_training_is_each_clients_own_gradient_descent():
    inputs = _inputs()
    deltas = train_clients((0, 9), inputs)
    for row in range(9):
        assert np.allclose(deltas[row], _one_client_in_float64(inputs, row), atol=1e-5)


def test_a_clients_delta_does_not_depend_on_the_others_in_its_task():
    inputs = _inputs()
    whole = train_clients((0, 9), inputs)
    parts = np.concatenate([train_clients(rows, inputs) for rows in ((0, 1), (1, 4), (4, 9))])
    assert whole.tobytes() == parts.tobytes()
    assert whole.dtype == np.float32


def test_inputs_may_be_read_only():
    inputs = _inputs()
    for array in (inputs.model, inputs.features, inputs.labels, inputs.present):
        array.flags.writeable = False
    assert np.isfinite(train_clients((0, 9), inputs)).all()


def test_accuracy_counts_right_answers_and_never_a_broken_model():
    features = np.eye(3, dtype=np.float32)
    model = np.concatenate([np.eye(3, dtype=np.float32), np.zeros((1, 3), np.float32)]).ravel()
    assert accuracy(model, features, np.array([0, 1, 0])) == pytest.approx(2 / 3)
    assert accuracy(np.full(12, np.nan, np.float32), features, np.array([0, 0, 0])) == 0.0


def test_averaging_weighs_late_iterates_by_a_power_of_their_round():
    model = RunningModel.zeros(1)
    for _ in range(50):
        model = model.step(np.ones(1, np.float32), 1.0, 3.0)
    # weights proportional to t (t+1) (t+2): the mean of t under them is
    t = np.arange(1, 51)
    weights = t * (t + 1) * (t + 2)
    assert model.current[0] == 50
    assert model.average[0] == pytest.approx((weights * t).sum() / weights.sum(), rel=1e-4)
