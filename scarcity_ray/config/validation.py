"""Settings: pydantic's dataclasses, whose every refusal is a `ConfigError` of path, value and range."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ArgsKwargs

from scarcity_ray.errors import ConfigError, ConfigWarning, warn_caller
from scarcity_ray.ledger_url import without_password

T = TypeVar("T")

LONGEST = 200
"""Characters of a refused value that an error repeats."""
_SUBSAMPLING = (
    "not offered: all persons in each step need less noise than a random share of them, at equal epsilon "
    "(docs/decisions/15-no-subsampling.md)"
)
_NOT_OFFERED = dict.fromkeys(("sampling_rate", "sample_rate", "subsampling"), _SUBSAMPLING)
_UNKNOWN = {"unexpected_keyword_argument", "extra_forbidden"}


@dataclass(frozen=True)
class Renamed:
    """What has become of a key, in ``RENAMED``, a class variable of the settings that it was one of.

    Attributes:
        name: The key that has taken its place, with the same values.
        removed_in: The release that refuses the old one, such as "0.3"; those before it warn.
    """

    name: str
    removed_in: str


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def settings(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass whose constructor checks types and ranges (`ConfigError`)."""
    renamed: Mapping[str, Renamed] = vars(cls).get("RENAMED", {})
    if renamed:

        def with_new_names(_: type[T], given: object) -> object:
            if isinstance(given, ArgsKwargs):
                return ArgsKwargs(given.args, _with_new_names(given.kwargs or {}, renamed))
            return _with_new_names(given, renamed) if isinstance(given, Mapping) else given

        before: Any = classmethod(with_new_names)
        cls._with_new_names = model_validator(mode="before")(before)  # type: ignore[attr-defined]
    made = pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid", populate_by_name=True))(cls)
    original = made.__init__

    @functools.wraps(original)
    def __init__(self: T, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        try:
            original(self, *args, **kwargs)
        except ValidationError as error:
            raise _refusal(error, cls) from None

    made.__init__ = __init__  # type: ignore[method-assign, assignment]
    return made  # type: ignore[return-value]


def load(cls: type[T], content: Mapping[str, Any], path: str = "") -> T:
    """Build settings from plain data.

    Args:
        content: Mappings, lists, strings and numbers, as YAML gives them.
        path: What to put in front of the paths in errors.

    Raises:
        ConfigError: For an unknown key, a wrong type or a value out of range.

    >>> from scarcity_ray.config import BasketConfig
    >>> load(BasketConfig, {"min_clients": 5}).min_clients
    5
    >>> load(BasketConfig, {"min_client": 5})
    Traceback (most recent call last):
    ...
    scarcity_ray.errors.ConfigError: min_client: 5 is not accepted; unknown key, did you mean 'min_clients'? \
(known: allow_cross_domain, max_clients, min_clients, stale_threshold)
    """
    try:
        return TypeAdapter(cls).validate_python(content)
    except ValidationError as error:
        raise _refusal(error, cls, path) from None


def to_plain(config: object) -> Any:
    """Settings as mappings, lists, strings and numbers, ready for YAML or JSON; without any password."""
    return TypeAdapter(type(config)).dump_python(config, mode="json", by_alias=True)


def _with_new_names(given: Mapping[str, Any], renamed: Mapping[str, Renamed]) -> dict[str, Any]:
    """Settings under the keys that they have now, with a warning for each that had an old one."""
    content = dict(given)
    for old in content.keys() & renamed.keys():
        name, removed_in = renamed[old].name, renamed[old].removed_in
        if name in content:
            raise ConfigError(old, _shown(content[old]), f"{name} alone, which is the new name of this key")
        if _numbers(version("scarcity-ray")) >= _numbers(removed_in):
            raise ConfigError(old, _shown(content[old]), f"the key's new name, {name}")
        warn_caller(f"{old} is called {name} now; release {removed_in} refuses the old name", ConfigWarning)
        content[name] = content.pop(old)
    return content


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".")[:2])


def _refusal(error: ValidationError, cls: Any, prefix: str = "") -> ConfigError:
    """The first of pydantic's complaints; an unknown key before a missing one, which it may be, misspelt."""
    complaints = error.errors()
    first = next((one for one in complaints if one["type"] in _UNKNOWN), complaints[0])
    kind, location, value = first["type"], list(first["loc"]), first["input"]
    if location and isinstance(location[0], int) and kind != "invalid_key":
        location[:1] = list(cls.__pydantic_fields__)[location[0] :][:1] or location[:1]
    path = without_password(".".join(map(str, [prefix, *location] if prefix else location)))
    cause = (first.get("ctx") or {}).get("error")
    if isinstance(cause, ConfigError):
        return cause.under(path)
    accepted = str(cause or first["msg"])
    if kind == "missing":
        value, accepted = None, "a value: this key has no default"
    elif kind in _UNKNOWN:
        for name in location[:-1]:
            cls = cls.__pydantic_fields__[name].annotation
        known = sorted(info.alias or name for name, info in cls.__pydantic_fields__.items())
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        accepted = f"unknown key{hint} (known: {', '.join(known)})"
        accepted = _NOT_OFFERED.get(str(location[-1]), accepted)
    return ConfigError(path or cls.__name__, _shown(value), accepted[0].lower() + accepted[1:])


def _shown(value: object) -> object:
    """The value for an error, or its type if it is long or might hold a password."""
    if isinstance(value, str):
        text = without_password(value)
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    if _room_left(value, LONGEST) < 0:
        return f"a long {type(value).__name__}"
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return value if without_password(repr(value)) == repr(value) else f"a {type(value).__name__}"


def _room_left(value: object, room: int) -> int:
    """How many of `room` characters remain once the value is written out; it stops where none do."""
    if isinstance(value, int):
        return room - value.bit_length() // 3 - 1
    if isinstance(value, str | bytes):
        return room - len(value) - 1
    parts: Any = value if isinstance(value, list | tuple | set | frozenset) else ()
    for part in (part for item in value.items() for part in item) if isinstance(value, Mapping) else parts:
        if room < 0:
            break
        room = _room_left(part, room - 1)
    return room - 1
