"""Clients' feature vectors, and the order that they put clients in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from scarcity_ray.errors import UsageError


def check_features(client_id: str, features: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """A client's features as a new float64 vector (p,).

    Raises:
        UsageError: If they are anything but a non-empty vector of finite numbers.
    """
    try:
        given = np.asarray(features)
        vector = np.array(given if given.dtype.kind in "fiu" else [], dtype=np.float64)
    except (TypeError, ValueError):
        vector = np.empty(0)
    if vector.ndim != 1 or vector.size == 0 or not np.isfinite(vector).all():
        raise UsageError(f"features of client {client_id!r} must be a non-empty vector of finite numbers")
    return vector


def order_of(
    members: Sequence[str],
    features: Mapping[str, npt.NDArray[np.float64] | None],
    rng: np.random.Generator,
) -> list[str]:
    """Members in the order that a split cuts in the middle: by features, or at random if they say nothing.

    Args:
        members: Client ids.
        features: Of each of them; None where a client has none.
        rng: For the random order.
    """
    by_features = order_by_features(members, features)
    return by_features or [members[i] for i in rng.permutation(len(members))]


def order_by_features(
    members: Sequence[str], features: Mapping[str, npt.NDArray[np.float64] | None]
) -> list[str] | None:
    """Members along the first principal direction of their features; None if that says nothing.

    Args:
        members: Client ids.
        features: Of each of them; None where a client has none.
    """
    known = [f for f in (features[c] for c in members) if f is not None]
    if len(known) < len(members) or len({f.size for f in known}) > 1:
        return None
    matrix = np.stack(known)
    matrix = matrix / max(float(np.abs(matrix).max()), np.finfo(np.float64).tiny)
    centred = matrix - matrix.mean(axis=0)
    if not (matrix != matrix[0]).any():
        return None
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    direction = direction * np.sign(direction[np.argmax(np.abs(direction))])
    projection = centred @ direction
    return [members[i] for i in np.argsort(projection, kind="stable")]


__all__ = ["check_features", "order_by_features", "order_of"]
