"""The digits that scikit-learn ships, behind a fixed public projection.

Central noise is added to every coordinate of the model, so fewer coordinates mean less noise. An image is
reduced to its lowest cosine frequencies. The projection depends on no data, so it costs no privacy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import stream
from scarcity_ray.errors import UsageError

NUM_CLASSES = 10
SIDE = 8
NUM_PIXELS = SIDE * SIDE
KERNEL_WIDTH = 2.0
"""Distance at which the random features' kernel has fallen to exp(-1/2); digits lie about 3 apart."""
DIGITS_FILE = "datasets/data/digits.csv.gz"
"""Within scikit-learn; a version that keeps it elsewhere is imported and asked."""
MISSING_EXTRA = "the digits need scikit-learn; install it with: pip install 'scarcity-ray[quickstart]'"


def frequencies(dimension: int) -> list[tuple[int, int]]:
    """The `dimension` lowest two-dimensional frequencies (down, across) of an 8 x 8 image, lowest first."""
    pairs = [(down, across) for down in range(SIDE) for across in range(SIDE)]
    return sorted(pairs, key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair))[:dimension]


def projection(dimension: int) -> NDArray[np.float64]:
    """The orthonormal cosine transform (DCT-II; Ahmed, Natarajan, Rao 1974) cut to its lowest frequencies.

    Returns:
        (64, dimension) float64 with orthonormal columns.
    """
    steps = np.arange(SIDE)
    basis = np.sqrt(2.0 / SIDE) * np.cos(np.pi * np.outer(steps, steps + 0.5) / SIDE)
    basis[0] /= np.sqrt(2.0)
    return np.stack(
        [np.outer(basis[down], basis[across]).ravel() for down, across in frequencies(dimension)], axis=1
    )


def random_fourier(features: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Random Fourier features of a Gaussian kernel (Rahimi, Recht 2007, algorithm 1).

    The frequencies and phases come from a fixed stream, the same for every run: they are public.

    Args:
        features: (n, k) float64.

    Returns:
        (n, count) float64: sqrt(2 / count) cos(w x / `KERNEL_WIDTH` + b), w normal, b uniform in 0..2 pi.

    Guarantees:
        Their products approach the Gaussian kernel.
    """
    rng = stream(0, "digits", "random features")
    frequencies = rng.standard_normal((features.shape[1], count)) / KERNEL_WIDTH
    phases = rng.uniform(0.0, 2.0 * np.pi, count)
    lifted: NDArray[np.float64] = np.sqrt(2.0 / count) * np.cos(features @ frequencies + phases)
    return lifted


@dataclass(frozen=True)
class Dataset:
    """Examples (n, features) float32 with labels (n,) int64, in a part for the clients and a test part."""

    train_features: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_features: NDArray[np.float32]
    test_labels: NDArray[np.int64]


@cache
def _bundled() -> NDArray[np.float64]:
    """Pixels 0..16 and the label, (1797, 65): scikit-learn's file alone, since an import takes a second."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UsageError(MISSING_EXTRA)
    file = Path(package.origin).parent / DIGITS_FILE
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits as bundled_digits

    return np.column_stack(bundled_digits(return_X_y=True))


def load_digits(dimension: int, test_share: float, seed: int, random_features: int = 0) -> Dataset:
    """The digits, pixels in -1/2..1/2, as `dimension` projected features each (1 to 64), shuffled and split.

    If positive, so many `random_features` take the projected ones' place.

    Raises:
        UsageError: If scikit-learn is not installed; the message holds the command that installs it.
    """
    table = _bundled()
    pixels, digits = table[:, :-1], table[:, -1].astype(np.int64)
    order = stream(seed, "digits", "test split").permutation(len(digits))
    projected = (pixels / 16.0 - 0.5) @ projection(dimension)
    lifted = random_fourier(projected, random_features) if random_features else projected
    features, labels = lifted.astype(np.float32)[order], digits[order]
    count = max(1, round(test_share * len(labels)))
    return Dataset(features[count:], labels[count:], features[:count], labels[:count])
