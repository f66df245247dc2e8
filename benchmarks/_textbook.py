"""The rules as NumPy says them in a textbook, to be compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def distances(matrix: np.ndarray) -> np.ndarray:
    return np.array([np.square(matrix - row).sum(axis=1) for row in matrix])


def scores(squared: np.ndarray, neighbours: int) -> np.ndarray:
    return np.sort(squared, axis=1)[:, 1 : 1 + neighbours].sum(axis=1)


def krum(matrix: np.ndarray, f: int) -> np.ndarray:
    return matrix[np.argmin(scores(distances(matrix), len(matrix) - f - 2))]


def multi_krum(matrix: np.ndarray, f: int) -> np.ndarray:
    order = np.argsort(scores(distances(matrix), len(matrix) - f - 2))
    return matrix[order[: len(matrix) - f - 2]].mean(axis=0)


def bulyan(matrix: np.ndarray, f: int) -> np.ndarray:
    squared, left, picked = distances(matrix), list(range(len(matrix))), []
    for _ in range(len(matrix) - 2 * f):
        within = scores(squared[np.ix_(left, left)], max(1, len(left) - f - 2))
        picked.append(left.pop(int(np.argmin(within))))
    return around_median(matrix[picked], len(matrix) - 4 * f)


def around_median(matrix: np.ndarray, count: int) -> np.ndarray:
    nearest = np.argsort(np.abs(matrix - np.median(matrix, axis=0)), axis=0)[:count]
    return np.take_along_axis(matrix, nearest, axis=0).mean(axis=0)


def trimmed_mean(matrix: np.ndarray, f: int) -> np.ndarray:
    return np.sort(matrix, axis=0)[f : len(matrix) - f].mean(axis=0)


def geometric_median(matrix: np.ndarray, f: int) -> np.ndarray:
    point = matrix.mean(axis=0)
    for _ in range(20):
        weights = 1.0 / np.maximum(np.linalg.norm(matrix - point, axis=1), 1e-6)
        point = weights @ matrix / weights.sum()
    return point


def centered_clipping(matrix: np.ndarray, f: int) -> np.ndarray:
    norms = np.linalg.norm(matrix, axis=1)
    return (matrix * np.minimum(1.0, 1.0 / norms)[:, np.newaxis]).mean(axis=0)


def caf(matrix: np.ndarray, f: int) -> np.ndarray:
    weights = np.ones(len(matrix))
    best, least = matrix[0], np.inf
    while weights.sum() > len(matrix) - 2 * f:
        mean = weights @ matrix / weights.sum()
        centred = matrix - mean
        _, sizes, directions = np.linalg.svd(
            np.sqrt(weights / weights.sum())[:, np.newaxis] * centred, full_matrices=False
        )
        if sizes[0] < least:
            best, least = mean, sizes[0]
        deviations = np.square(centred @ directions[0])
        weights = weights * np.maximum(1.0 - deviations / deviations[weights > 0.0].max(), 0.0)
    return best


def monna(matrix: np.ndarray, f: int) -> np.ndarray:
    nearest = np.argsort(np.square(matrix - matrix[0]).sum(axis=1))[: len(matrix) - f]
    return matrix[nearest].mean(axis=0)


def mixed(matrix: np.ndarray, f: int) -> np.ndarray:
    nearest = np.argsort(distances(matrix), axis=1)[:, : len(matrix) - f]
    return np.array([matrix[rows].mean(axis=0) for rows in nearest])


TEXTBOOK: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "mean": lambda matrix, f: matrix.mean(axis=0),
    "median": lambda matrix, f: np.median(matrix, axis=0),
    "trimmed_mean": trimmed_mean,
    "meamed": lambda matrix, f: around_median(matrix, len(matrix) - f),
    "krum": krum,
    "multi_krum": multi_krum,
    "bulyan": bulyan,
    "geometric_median": geometric_median,
    "centered_clipping": centered_clipping,
    "caf": caf,
    "monna": monna,
    "nnm + krum": lambda matrix, f: krum(mixed(matrix, f), f),
    "nnm + trimmed_mean": lambda matrix, f: trimmed_mean(mixed(matrix, f), f),
}
"""Those of rows and f; there is none for MDA, whose definition tries all subsets."""
