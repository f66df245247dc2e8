"""Named random streams of a simulation."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, *labels: str | int) -> np.random.Generator:
    """A named random stream for simulation (peers, splits, data, attacks); never for keys or privacy noise.

    The same seed and labels give the same stream on every machine and in either runtime.

    >>> bool(stream(0, "peers", "basket_0", 3).random() == stream(0, "peers", "basket_0", 3).random())
    True
    """
    name = "\x1f".join([str(seed), *map(str, labels)])
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.Generator(np.random.PCG64DXSM(int.from_bytes(digest, "little")))
