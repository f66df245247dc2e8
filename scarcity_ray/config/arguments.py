"""Checks of arguments of public methods, each of which raises a `UsageError`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from scarcity_ray.errors import UsageError
from scarcity_ray_client.arguments import number_of as number_of
from scarcity_ray_client.errors import shown

T = TypeVar("T")


def instance_of(what: str, value: object, kind: type[T]) -> T:
    """Return `value`, or raise a `UsageError` if it is no instance of `kind`."""
    if not isinstance(value, kind):
        raise UsageError(f"{what}: {shown(value)} is not accepted; an instance of {kind.__name__}")
    return value


def seconds_of(what: str, value: object) -> float:
    """A moment or a length of time in seconds; a `UsageError` if it is no number, or NaN."""
    seconds = number_of(what, value)
    if math.isnan(seconds):
        raise UsageError(f"{what}: nan is not accepted; a number of seconds")
    return seconds


def moment_of(what: str, value: object) -> float:
    """A moment in seconds; a `UsageError` if it is no finite number."""
    seconds = number_of(what, value)
    if not math.isfinite(seconds):
        raise UsageError(f"{what}: {seconds} is not accepted; a finite number of seconds is needed")
    return seconds


def check_clock(clock: Any) -> Callable[[], float]:
    """Return `clock`, or raise a `UsageError` if it cannot be called or gives no finite number."""
    if not callable(clock):
        raise UsageError(f"clock: {shown(clock)} is not accepted; a function that gives the time in seconds")
    moment_of("what clock() gives", clock())
    asked: Callable[[], float] = clock
    return asked
