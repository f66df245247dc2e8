"""What n rows look like from within: their distances and inner products, without the rows.

Rules and pre-aggregation that work on whole rows need no more. A point is a row or, if somebody asked for it,
the zero vector (the *origin*, the last point), and every result is an affine combination of points. So norms
are distances to the origin, and what pre-aggregation makes of the rows is again a geometry.

*Guarantees*
    - A mixed geometry is that of the mixed rows.
    - Rows that are mixed alike are equal: their distance is zero.
    - Squares to a combination are those of the rows' differences from it, or are not given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import Matrix

CANCELLATION = 16.0
"""What a distance to a combination of points may lose against the distances it is made of."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """Distances and inner products of p points, the first `num_rows` of which are rows.

    Attributes:
        squared: (p, p) float64 squared distances, symmetric, zero on the diagonal.
        gram: (p, p) float64 inner products of the points less a common centre close to most of them.
        num_rows: n; p is n, or n + 1 with the origin.
    """

    squared: Matrix
    gram: Matrix
    num_rows: int

    @property
    def distances(self) -> Matrix:
        """(n, n) squared distances of the rows."""
        return self.squared[: self.num_rows, : self.num_rows]

    @property
    def norms(self) -> NDArray[np.float64]:
        """(n,) norms of the rows; needs the origin."""
        norms: NDArray[np.float64] = np.sqrt(self.squared[-1, : self.num_rows])
        return norms

    def distances_to(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """(p,) distances of the points to the combination with these (p,) coefficients, which sum to 1."""
        inner = self.gram @ coefficients
        squared = np.diagonal(self.gram) - 2.0 * inner + coefficients @ inner
        return np.sqrt(np.maximum(squared, 0.0))

    def mixed(self, mixing: Matrix) -> Geometry:
        """The geometry of the rows `mixing` @ points.

        Args:
            mixing: (m, p) float64, each row of which sums to 1.
        """
        has_origin = len(self.squared) > self.num_rows
        if has_origin:
            last = np.zeros((1, len(self.squared)))
            last[0, -1] = 1.0
            mixing = np.concatenate([mixing, last])
        gram = mixing @ self.gram @ mixing.T
        gram = 0.5 * (gram + gram.T)
        squared = squared_distances(gram)
        _, kind = np.unique(mixing, axis=0, return_inverse=True)
        squared[np.equal.outer(kind.ravel(), kind.ravel())] = 0.0
        unite_equal_points(squared)
        return Geometry(squared, gram, len(mixing) - has_origin)


def squared_distances(gram: Matrix) -> Matrix:
    """Squared distances from inner products: g_ii + g_jj - 2 g_ij, clamped at zero, zero on the diagonal.

    Args:
        gram: (p, p) float64, symmetric.
    """
    norms = np.diagonal(gram)
    squared = np.maximum(np.add.outer(norms, norms) - 2.0 * gram, 0.0)
    np.fill_diagonal(squared, 0.0)
    return squared


def squares_to(squared: Matrix, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Squared distances of all points to a combination of them; None where cancellation would spoil one.

    |x_j - sum w_i x_i|^2 = sum w_i d_ij - (1/2) sum w_i w_k d_ik for weights that sum to 1. An error in the
    distances grows by less than twice `CANCELLATION`.

    Args:
        squared: (p, p) float64 squared distances.
        weights: (p,) float64, nonnegative, which sum to 1.

    Returns:
        (p,) float64.
    """
    means = squared @ weights
    squares = means - 0.5 * float(weights @ means)
    squares[means == 0.0] = 0.0
    return squares if bool((squares * CANCELLATION >= means).all()) else None


def unite_equal_points(squared: Matrix) -> None:
    """Give points at distance zero the same distances to all others, in place."""
    equal = np.argwhere(np.tril(squared == 0.0, -1))
    for later, earlier in equal.tolist():
        squared[later, :] = squared[earlier, :]
        squared[:, later] = squared[:, earlier]
        squared[later, later] = 0.0
