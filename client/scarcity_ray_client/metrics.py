"""Metrics of classifiers on tables, weighted by example, for a workload's `evaluate` and `evaluate_client`.

Labels of `accuracy` are any values; those of the others are classes by number: 0 and 1, or 0 to K - 1.
Probabilities are (n,) of class 1, or (n, K) with rows that add up to 1. Weights are (n,) numbers from 0, by
default 1 each. A metric that the data do not define, such as the AUC of one class, is NaN, which
`checked_metrics` leaves out.

Guarantees:
    Where scikit-learn has the metric the number is the same.
    The AUC is the share of pairs in order with ties counted half.
    An integer weight counts as that many copies.
    The order of examples does not matter.
    Input of the wrong kind is refused.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from scarcity_ray_client.errors import UsageError, shown

Vector = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]


def accuracy(labels: npt.ArrayLike, predicted: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """The share of examples whose label was predicted.

    >>> accuracy(["yes", "no", "no"], ["yes", "yes", "no"], weights=[2, 1, 1])
    0.75
    """
    truth, guess = _column("labels", labels), _column("predicted", predicted)
    if truth.shape != guess.shape:
        raise UsageError(f"predicted: {guess.size} values for {truth.size} labels")
    return _mean(np.asarray(truth == guess, np.float64), weights)


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """The area under the ROC curve, by ranks (Mann, Whitney 1947).

    It is the share, by weight, of pairs of one example of each class in which that of class 1 has the higher
    score; equal scores count half.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,), higher for class 1; probabilities or not.
        weights: (n,).

    >>> auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.9])
    0.875
    """
    positive = _classes(labels, 2) == 1
    values = _numbers("scores", scores, positive.size)
    weight = _weights(weights, positive.size)
    _, rank = np.unique(values, return_inverse=True)
    ones, zeros = (np.bincount(rank, weight * of) for of in (positive, ~positive))
    if not (ones.any() and zeros.any()):
        return math.nan
    below = np.cumsum(zeros) - zeros / 2.0
    return float((ones / ones.sum()) @ (below / zeros.sum()))


def f1(labels: npt.ArrayLike, predicted: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """The harmonic mean of precision and recall of class 1; NaN if no example has or was given it.

    >>> f1([1, 1, 0, 0], [1, 0, 1, 0])
    0.5
    """
    truth, guess = _classes(labels, 2) == 1, _classes(predicted, 2, "predicted") == 1
    if truth.shape != guess.shape:
        raise UsageError(f"predicted: {guess.size} values for {truth.size} labels")
    weight = _weights(weights, truth.size)
    of_either = float(weight @ truth + weight @ guess)
    return float(2.0 * (weight @ (truth & guess)) / of_either) if of_either > 0.0 else math.nan


def log_loss(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float:
    """Mean of -log of the probability of the true class, in nats.

    Probabilities are clipped to the distance of their dtype's epsilon from 0 and 1, as scikit-learn does, so
    that one certain mistake does not make it infinite.

    >>> round(log_loss([1, 0], [0.5, 0.5]), 4)
    0.6931
    """
    truth, by_class = _prediction(labels, probabilities)
    kind = np.asarray(probabilities).dtype
    least = float(np.finfo(kind if kind.kind == "f" else np.float64).eps)
    of_truth = by_class[np.arange(truth.size), truth]
    return _mean(-np.log(np.clip(of_truth, least, 1.0 - least)), weights)


def brier_score(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float:
    """Mean squared error of the probabilities (Brier 1950).

    Of two classes that of class 1 alone, between 0 and 1; of more their sum over classes, between 0 and 2.

    >>> round(brier_score([1, 0], [0.8, 0.4]), 3)
    0.1
    """
    truth, by_class = _prediction(labels, probabilities)
    missed = ((by_class - np.eye(by_class.shape[1])[truth]) ** 2).sum(axis=1)
    return _mean(missed / 2.0 if by_class.shape[1] == 2 else missed, weights)


def calibration_error(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    bins: int = 15,
) -> float:
    """Expected calibration error (Naeini, Cooper, Hauskrecht 2015; Guo et al. 2017, equations 2 to 5).

    Examples fall into bins of equal width (each with its upper end) by their probability; the error is the
    mean over bins, by weight, of how far the mean probability is from the share that came true. Of (n,) that
    is class 1's probability and share; of (n, K) that of the predicted class. It depends on the bins, and is
    biased upwards where examples are few.

    >>> round(calibration_error([1, 1, 0, 1], [0.9, 0.9, 0.9, 0.9]), 3)
    0.15
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or not 1 <= bins <= 10**6:
        raise UsageError(f"bins: {shown(bins)} is not accepted; a whole number from 1")
    truth, by_class = _prediction(labels, probabilities)
    told = np.ones_like(truth) if np.ndim(probabilities) == 1 else by_class.argmax(axis=1)
    probability = by_class[np.arange(truth.size), told]
    weight = _weights(weights, truth.size)
    inside = np.clip(np.ceil(probability * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(inside, weight * (probability - (truth == told)))
    return float(np.abs(gaps).sum() / weight.sum())


def binary_metrics(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    threshold: float = 0.5,
) -> dict[str, float]:
    """All of them by name, for a table with labels 0 and 1, without those that are not defined.

    Args:
        labels: (n,) 0 or 1.
        probabilities: (n,) of class 1.
        weights: (n,).
        threshold: Class 1 is predicted from here on.

    >>> sorted(binary_metrics([0, 1, 1], [0.2, 0.7, 0.4]))
    ['accuracy', 'auc', 'brier_score', 'calibration_error', 'f1', 'log_loss']
    """
    chance = _numbers("probabilities", probabilities)
    predicted = np.asarray(chance >= threshold, np.int64)
    found = {
        "accuracy": accuracy(_classes(labels, 2), predicted, weights),
        "auc": auc(labels, chance, weights),
        "brier_score": brier_score(labels, probabilities, weights),
        "calibration_error": calibration_error(labels, probabilities, weights),
        "f1": f1(labels, predicted, weights),
        "log_loss": log_loss(labels, probabilities, weights),
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _column(what: str, values: npt.ArrayLike) -> npt.NDArray[np.generic]:
    try:
        read = np.asarray(values)
    except (TypeError, ValueError, OverflowError):
        read = np.zeros(())
    if read.ndim != 1 or not read.size:
        raise UsageError(f"{what}: the shape {read.shape} is not accepted; (n,), with at least one example")
    return read


def _numbers(what: str, values: npt.ArrayLike, size: int | None = None) -> Vector:
    read = _column(what, values)
    if read.dtype.kind not in "fiub" or size not in (None, read.size):
        raise UsageError(f"{what}: {read.size} of {read.dtype} are not accepted; {size or 'n'} numbers")
    numbers = read.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise UsageError(f"{what}: not finite at {np.flatnonzero(~np.isfinite(numbers))[:8].tolist()}")
    return numbers


def _classes(labels: npt.ArrayLike, count: int, what: str = "labels") -> Classes:
    numbers = _numbers(what, labels)
    if bool((numbers != np.floor(numbers)).any()) or numbers.min() < 0 or numbers.max() >= count:
        raise UsageError(f"{what}: {shown(numbers)} is not accepted; classes by number, 0 to {count - 1}")
    return numbers.astype(np.int64)


def _weights(weights: npt.ArrayLike | None, size: int) -> Vector:
    if weights is None:
        return np.ones(size)
    read = _numbers("weights", weights, size)
    if read.min() < 0.0 or not 0.0 < read.sum() < math.inf:
        raise UsageError(f"weights: {shown(read)} is not accepted; numbers from 0, not all 0")
    return read


def _mean(values: Vector, weights: npt.ArrayLike | None) -> float:
    weight = _weights(weights, values.size)
    return float(weight @ values / weight.sum())


def _prediction(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> tuple[Classes, Vector]:
    """Labels (n,) and probabilities (n, K)."""
    try:
        by_class = np.asarray(probabilities)
    except (TypeError, ValueError, OverflowError):
        by_class = np.zeros(())
    if by_class.dtype.kind not in "fiub" or by_class.ndim not in (1, 2) or not by_class.size:
        raise UsageError(
            f"probabilities: {by_class.dtype} of shape {by_class.shape} are not accepted; "
            "numbers, (n,) or (n, K)"
        )
    by_class = by_class.astype(np.float64)
    if not bool(((by_class >= 0.0) & (by_class <= 1.0)).all()):
        raise UsageError(f"probabilities: {shown(by_class)} is not accepted; numbers between 0 and 1")
    if by_class.ndim == 1:
        by_class = np.stack([1.0 - by_class, by_class], axis=1)
    elif by_class.shape[1] < 2 or bool((np.abs(by_class.sum(axis=1) - 1.0) > 1e-3).any()):
        raise UsageError("probabilities: rows of (n, K) must add up to 1, with K from 2")
    truth = _classes(labels, by_class.shape[1])
    if truth.size != len(by_class):
        raise UsageError(f"probabilities: {len(by_class)} rows for {truth.size} labels")
    return truth, by_class


__all__ = ["accuracy", "auc", "binary_metrics", "brier_score", "calibration_error", "f1", "log_loss"]
