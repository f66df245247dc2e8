"""What a refused value is told: its path, the value, and what would be accepted."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import ValidationError

from scarcity_ray.errors import ConfigError
from scarcity_ray.ledger_url import without_password

LONGEST = 200
"""Characters of a refused value that an error repeats."""
_UNKNOWN = {"unexpected_keyword_argument", "extra_forbidden"}


def join_path(prefix: str, path: str) -> str:
    """`prefix.path`, or the one that is not empty."""
    return f"{prefix}.{path}" if prefix and path else prefix or path


def refusal(error: ValidationError, cls: Any, prefix: str) -> ConfigError:
    """The first of pydantic's complaints about a `cls`, as an error that names path, value and remedy.

    An unknown key comes before one that is missing: it may be that one, misspelt.
    """
    complaints = error.errors()
    first = next((one for one in complaints if one["type"] in _UNKNOWN), complaints[0])
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
    if first["type"] in _UNKNOWN:
        known = _known_keys(cls, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        accepted = f"unknown key{hint} (known: {', '.join(sorted(known))})"
        return ConfigError(path, _shown(first["input"]), accepted)
    if first["type"] == "missing":
        return ConfigError(path, None, "a value: this key has no default")
    value = first["input"]
    if isinstance(value, float) and math.isnan(value):
        value = "nan"
    return ConfigError(path, _shown(value), first["msg"][0].lower() + first["msg"][1:])


def _shown(value: object) -> object:
    """The value for an error, or what it is if it is long or might hold a password."""
    if isinstance(value, str):
        text = without_password(value)
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    if _is_long(value):
        return f"a long {type(value).__name__}"
    return value if without_password(repr(value)) == repr(value) else f"a {type(value).__name__}"


def _is_long(value: object) -> bool:
    """Whether writing it out takes much; of a container only as much is looked at as decides it."""
    left, waiting = LONGEST, [value]
    while waiting and left >= 0:
        one = waiting.pop()
        if isinstance(one, int):
            left -= one.bit_length() // 3
        elif isinstance(one, str | bytes):
            left -= len(one)
        elif isinstance(one, Mapping):
            waiting += [part for _, item in zip(range(LONGEST), one.items(), strict=False) for part in item]
        elif isinstance(one, Collection):
            waiting += [part for _, part in zip(range(LONGEST), one, strict=False)]
        left -= 1
    return left < 0


def _known_keys(cls: Any, location: list[str]) -> list[str]:
    for name in location:
        section = get_type_hints(cls).get(name)
        if not is_dataclass(section):
            return []
        cls = section
    return [f.name for f in fields(cls)]
