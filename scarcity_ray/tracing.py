"""Spans: what a driver does, by operation and phase, for OpenTelemetry traces and for the ids in log lines.

A span costs about 3 microseconds unless traces are on (`SCARCITY_RAY_TRACES=1`, with the extra ``otel``, or
any tracer provider of the program's own): then it is an OpenTelemetry span, and whatever exporter the
program or the standard ``OTEL_*`` variables set up gets it. Only ids, counts and names are its attributes,
never a value of an update, and no client's id.
"""

from __future__ import annotations

import functools
import itertools
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

TRACES = "SCARCITY_RAY_TRACES"
"""The environment's switch for traces: 1 turns them on."""

_PROCESS = uuid.uuid4().hex[:12]
_numbers = itertools.count(1)
_context: ContextVar[Mapping[str, str | int]] = ContextVar(
    "scarcity_ray_span", default=MappingProxyType[str, str | int]({})
)


def current() -> Mapping[str, str | int]:
    """The ids under which this thread works: federation, round, operation and its id, as far as known."""
    return _context.get()


@contextmanager
def span(name: str, **ids: str | int | None) -> Iterator[None]:
    """Do what follows as the operation `name`, or as a phase of the operation that is under way.

    Args:
        ids: Of the federation, the round and the like; None is left out. They hold for what is inside, too.
    """
    outer = _context.get()
    known = {key: value for key, value in ids.items() if value is not None}
    if "operation" in outer:
        entered = {**outer, **known, "phase": name}
    else:
        entered = {**known, "operation": name, "operation_id": f"{_PROCESS}-{next(_numbers)}"}
    token = _context.set(MappingProxyType(entered))
    try:
        with _recorded(name, entered):
            yield
    finally:
        _context.reset(token)


class Spanned(Protocol):
    """Whose methods are operations."""

    def span_ids(self) -> dict[str, str | int]:
        """The ids under which it works now."""


_S = TypeVar("_S", bound=Spanned)


def operation(
    name: str,
) -> Callable[[Callable[Concatenate[_S, P], T]], Callable[Concatenate[_S, P], T]]:
    """A method as a `span` of this name, under the ids of whose it is."""

    def decorated(method: Callable[Concatenate[_S, P], T]) -> Callable[Concatenate[_S, P], T]:
        @functools.wraps(method)
        def spanned(self: _S, /, *args: P.args, **kwargs: P.kwargs) -> T:
            with span(name, **self.span_ids()):
                return method(self, *args, **kwargs)

        return spanned

    return decorated


def traces_are_on() -> bool:
    """Whether the environment asks for traces."""
    return os.environ.get(TRACES, "") not in ("", "0")


def _recorded(name: str, ids: Mapping[str, str | int]) -> Any:
    if not traces_are_on():
        return nullcontext()
    from opentelemetry import trace

    attributes = {f"scarcity_ray.{key}": value for key, value in ids.items() if key != "phase"}
    return trace.get_tracer("scarcity_ray").start_as_current_span(
        f"scarcity_ray.{name}", attributes=attributes
    )


__all__ = ["TRACES", "current", "operation", "span", "traces_are_on"]
