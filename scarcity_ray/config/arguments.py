"""Arguments of public methods, judged where they come in; what is wrong is shown in a `UsageError`."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from scarcity_ray.errors import UsageError

T = TypeVar("T")

MOST_SHOWN = 80
"""Characters of a refused value that an error repeats."""


class _ShortRepr(reprlib.Repr):
    def repr_int(self, number: int, level: int) -> str:
        bits = number.bit_length()
        return repr(number) if bits <= 4 * MOST_SHOWN else f"an integer of {bits} bits"


_SHORT = _ShortRepr()
_SHORT.maxlevel = 4
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = _SHORT.maxdict = 8
_SHORT.maxstring = _SHORT.maxother = 2 * MOST_SHOWN


def shown(value: object) -> str:
    """A refused value as an error repeats it: its representation, cut short, however large or nested it is.

    >>> shown("x" * 1000) == "'" + 76 * "x" + "..."
    True
    >>> shown(10**5000)
    'an integer of 16610 bits'
    """
    text = _SHORT.repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


def number_of(what: str, value: object) -> float:
    """A Python or NumPy number as a float, NaN and infinities included; no bool.

    Raises:
        UsageError: If it is none, or an integer beyond all floats.

    >>> number_of("threshold", "600")
    Traceback (most recent call last):
    ...
    scarcity_ray.errors.UsageError: threshold: '600' is not accepted; a number
    """
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise UsageError(f"{what}: {shown(value)} is not accepted; a number")


def instance_of(what: str, value: object, kind: type[T]) -> T:
    """Return `value`, or raise a `UsageError` if it is not of a kind."""
    if not isinstance(value, kind):
        raise UsageError(f"{what}: {shown(value)} is not accepted; an instance of {kind.__name__}")
    return value


def seconds_of(what: str, value: object) -> float:
    """A moment or a length of time in seconds; a `UsageError` if it is no number, or NaN."""
    seconds = number_of(what, value)
    if math.isnan(seconds):
        raise UsageError(f"{what}: nan is not accepted; a number of seconds")
    return seconds


def check_clock(clock: Any) -> Callable[[], float]:
    """Return `clock`, or raise a `UsageError` if it cannot be called or gives no finite number."""
    if not callable(clock):
        raise UsageError(f"clock: {shown(clock)} is not accepted; a function that gives the time in seconds")
    if not math.isfinite(number_of("what clock() gives", clock())):
        raise UsageError("what clock() gives: a finite number of seconds is needed")
    asked: Callable[[], float] = clock
    return asked
