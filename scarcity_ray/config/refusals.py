"""What a refused value is told: its path, the value, and what would be accepted."""

from __future__ import annotations

import difflib
import math
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import ValidationError

from scarcity_ray.errors import ConfigError
from scarcity_ray.ledger_url import without_password


def join_path(prefix: str, path: str) -> str:
    """`prefix.path`, or the one that is not empty."""
    return f"{prefix}.{path}" if prefix and path else prefix or path


def refusal(error: ValidationError, cls: Any, prefix: str) -> ConfigError:
    """The first of pydantic's complaints about a `cls`, as an error that names path, value and remedy."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    names, place = _known_keys(cls, []), first["loc"][0] if first["loc"] else ""
    if isinstance(place, int) and place < len(names) and first["type"] != "invalid_key":
        location[0] = names[place]
    inner = (first.get("ctx") or {}).get("error")
    if isinstance(inner, ConfigError):
        return ConfigError(
            join_path(join_path(prefix, ".".join(location)), inner.path), inner.value, inner.accepted
        )
    path = join_path(prefix, ".".join(location)) or cls.__name__
    if first["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        known = _known_keys(cls, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        accepted = f"unknown key, {hint}(known: {', '.join(sorted(known))})"
        return ConfigError(path, _shown(first["input"]), accepted)
    value = first["input"]
    if isinstance(value, float) and math.isnan(value):
        value = "nan"
    return ConfigError(path, _shown(value), first["msg"][0].lower() + first["msg"][1:])


def _shown(value: object) -> object:
    """The value for an error, or what it is if it might hold a password."""
    if isinstance(value, str):
        return without_password(value)
    return value if without_password(repr(value)) == repr(value) else f"a {type(value).__name__}"


def _known_keys(cls: Any, location: list[str]) -> list[str]:
    for name in location:
        hints = {f.name: f.default_factory for f in fields(cls)}
        factory = hints.get(name)
        if not is_dataclass(factory):
            return []
        cls = factory
    return [f.name for f in fields(cls)]
