"""JSON objects of the protocol, read field by field: what is not as it must be is a `MessageRefused`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from scarcity_ray_client.errors import MessageRefused, shown
from scarcity_ray_client.updates.signing import GREATEST, is_text

T = TypeVar("T")
VERSION = 1
"""Of this protocol: the ``1`` of ``/v1``, and the version that each JSON object states."""
MOST_JSON_BYTES = 2**20
MOST_TEXT = 1000
"""Characters of an id, a reason or a message."""
MOST_METRICS = 10_000
MOST_RECEIPT = 256 * 1024


class Fields:
    """Reads one JSON object field by field; what is not as it must be is a `MessageRefused`."""

    def __init__(self, what: str, data: bytes | Mapping[str, object]) -> None:
        self._what = what
        given = self._parsed(data) if isinstance(data, bytes) else data
        self._left = dict(given)

    def _parsed(self, data: bytes) -> dict[str, object]:
        if len(data) > MOST_JSON_BYTES:
            raise MessageRefused("foreign", f"it has {len(data)} bytes, and {MOST_JSON_BYTES} are read")
        try:
            given = json.loads(data.decode(), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise MessageRefused("foreign", f"it is no JSON of a {self._what}") from None
        if not isinstance(given, dict):
            raise MessageRefused("foreign", f"it is no JSON object of a {self._what}")
        version = given.pop("version", None)
        if type(version) is int and version > VERSION:
            said = (
                f"the {self._what} is of version {version}, and this release reads {VERSION}: use a newer one"
            )
            raise MessageRefused("newer", said)
        if type(version) is not int or version != VERSION:
            raise MessageRefused("foreign", f"the {self._what} has the version {shown(version)}")
        return given

    def text(self, name: str, most: int = MOST_TEXT) -> str:
        """A text of at most so many characters."""
        value = self._take(name)
        if not isinstance(value, str) or len(value) > most or not is_text(value):
            raise self._wrong(name, value, f"a text of at most {most} characters")
        return value

    def count(self, name: str) -> int:
        """A whole number from 0 to 2^64 - 1."""
        value = self._take(name)
        if type(value) is not int or not 0 <= value <= GREATEST:
            raise self._wrong(name, value, "a whole number from 0 to 2^64 - 1")
        return value

    def digits(self, name: str) -> int:
        """The same, written as a text."""
        text = self.text(name)
        if re.fullmatch("[0-9]{1,20}", text) is None or int(text) > GREATEST:
            raise self._wrong(name, text, "a whole number from 0 to 2^64 - 1 as text")
        return int(text)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._take(name)
        if type(value) is not bool:
            raise self._wrong(name, value, "true or false")
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        return self._number(name, self._take(name))

    def numbers(self, name: str) -> dict[str, float]:
        """Finite numbers by name."""
        return {key: self._number(name, value) for key, value in self._mapping(name).items()}

    def ranges(self, name: str) -> dict[str, tuple[float, float]]:
        """A least and a greatest value by name."""
        found = {}
        for key, ends in self._mapping(name).items():
            if not isinstance(ends, list) or len(ends) != 2:
                raise self._wrong(name, ends, "a least and a greatest value by name")
            found[key] = self._number(name, ends[0]), self._number(name, ends[1])
        return found

    def hexadecimal(self, name: str, length: int) -> bytes:
        """So many bytes, as hexadecimal digits."""
        return self._bytes(name, self._take(name), length)

    def hexadecimals(self, name: str, length: int, most: int) -> tuple[bytes, ...]:
        """A list of at most so many of them."""
        value = self._take(name)
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(name, value, f"a list of at most {most}")
        return tuple(self._bytes(name, one, length) for one in value)

    def one_of(self, name: str, kind: Callable[[str], T]) -> T:
        """A text that `kind` knows."""
        text = self.text(name)
        try:
            return kind(text)
        except ValueError:
            raise self._wrong(name, text, "one that this release knows") from None

    def inner(self, name: str) -> Fields:
        """An object within this one."""
        return Fields(f"{self._what}'s {name}", self._mapping(name))

    def inners(self, name: str) -> list[Fields]:
        """A list of objects."""
        value = self._take(name)
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self._wrong(name, value, "a list of objects")
        return [Fields(f"{self._what}'s {name}", one) for one in value]

    def maybe(self, name: str, read: Callable[[str], T]) -> T | None:
        """What `read` gives; None where there is null."""
        if self._left.get(name, self) is None:
            del self._left[name]
            return None
        return read(name)

    def end(self, made: T) -> T:
        """What was made of the fields, if they were all read."""
        if self._left:
            raise MessageRefused("foreign", f"the {self._what} has an unknown {shown(min(self._left))}")
        return made

    def _take(self, name: str) -> object:
        if name not in self._left:
            raise MessageRefused("torn", f"the {self._what} has no {name}")
        return self._left.pop(name)

    def _mapping(self, name: str) -> Mapping[str, object]:
        value = self._take(name)
        if not isinstance(value, dict) or len(value) > MOST_METRICS or not all(map(is_text, value)):
            raise self._wrong(name, value, f"an object of at most {MOST_METRICS} names")
        return value

    def _number(self, name: str, value: object) -> float:
        if type(value) is float and math.isfinite(value):
            return value
        if type(value) is int and abs(value) <= GREATEST:
            return float(value)
        raise self._wrong(name, value, "a finite number")

    def _bytes(self, name: str, value: object, length: int) -> bytes:
        if not isinstance(value, str) or re.fullmatch(f"[0-9a-f]{{{2 * length}}}", value) is None:
            raise self._wrong(name, value, f"{2 * length} hexadecimal digits")
        return bytes.fromhex(value)

    def _wrong(self, name: str, value: object, accepted: str) -> MessageRefused:
        said = f"the {self._what}'s {name}: {shown(value)} is not accepted; {accepted}"
        return MessageRefused("foreign", said)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def written(**content: object) -> bytes:
    """A JSON object that states its version."""
    return json.dumps({"version": VERSION, **content}, separators=(",", ":"), allow_nan=False).encode()


def message_of(what: str, content: list[object]) -> bytes:
    """The bytes that are signed: what it is, with its version, and a JSON list."""
    return f"scarcity_ray/{what}/1\n{json.dumps(content, separators=(',', ':'))}".encode()
