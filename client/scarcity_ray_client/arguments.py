"""Checks of arguments, each of which raises a `UsageError`."""

from __future__ import annotations

import numpy as np

from scarcity_ray_client.errors import UsageError, shown


def number_of(what: str, value: object) -> float:
    """A Python or NumPy number as a float, NaN and infinities included; no bool.

    Raises:
        UsageError: If it is none, or an integer beyond all floats.

    >>> number_of("threshold", "600")
    Traceback (most recent call last):
    ...
    scarcity_ray_client.errors.UsageError: threshold: '600' is not accepted; a number
    """
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise UsageError(f"{what}: {shown(value)} is not accepted; a number")
