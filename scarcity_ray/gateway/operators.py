"""Operators: who may read a federation's status or act on it, by tokens that are stored as hashes.

A token is 32 random bytes, made here and shown once; its SHA-256 is kept. A guess is as good as one at a key
of 256 bits, so that no slow hash is needed. The file is this user's alone, and is read again when it has
changed: a revoked token is refused at the next request.

Guarantees:
    no_token_is_in_the_file
    a_revoked_token_is_refused_at_once
    a_file_that_others_can_write_is_refused
    every_entry_is_compared_whatever_matches
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from scarcity_ray.directory import check_name
from scarcity_ray.errors import UsageError
from scarcity_ray_client.errors import shown

FORMAT_VERSION = 1
TOKEN_BYTES = 32
PREFIX = "srop_"
"""Before each token, so that a scanner for leaked secrets can find one."""
MOST_OPERATORS = 1000


class OperatorRole(StrEnum):
    """What an operator may do."""

    READ = "read"
    """See the status, the metrics and the ledger."""
    OPERATE = "operate"
    """Also renew the budget, unregister a client, pause and resume."""


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        token_sha256: Of the token, hexadecimal.
        added: Seconds since the epoch.
    """

    name: str
    role: OperatorRole
    token_sha256: str
    added: float

    @property
    def may_operate(self) -> bool:
        """Whether the operator may act."""
        return self.role is OperatorRole.OPERATE


class Operators:
    """The operators in a file, as it is now.

    Args:
        path: The file; where there is none, nobody is an operator.

    Raises:
        UsageError: If it cannot be read, is no file of operators, or others can write it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._known: tuple[Operator, ...] = ()
        self.all()

    def all(self) -> tuple[Operator, ...]:
        """All operators, sorted by name."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            self._seen, self._known = None, ()
            return ()
        version = (found.st_mtime_ns, found.st_ino, found.st_size)
        if version != self._seen:
            self._known, self._seen = _read(self.path), version
        return self._known

    def who(self, token: str) -> Operator | None:
        """Whose token it is; None if it is nobody's."""
        digest, found = _digest(token), None
        for operator in self.all():
            if hmac.compare_digest(operator.token_sha256, digest):
                found = operator
        return found

    def named(self, name: str) -> Operator | None:
        """The operator of this name."""
        return next((operator for operator in self.all() if operator.name == name), None)

    def add(self, name: str, role: OperatorRole, now: Callable[[], float] = time.time) -> str:
        """Add an operator; the token, which is told this once.

        Raises:
            UsageError: If there is one of this name.
        """
        check_name("operator", name)
        known = self.all()
        if any(operator.name == name for operator in known):
            raise UsageError(f"operator {name!r} is there already; revoke it first, or choose another name")
        if len(known) >= MOST_OPERATORS:
            raise UsageError(f"{self.path} has {len(known)} operators, the most there can be; revoke some")
        token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        self._write([*known, Operator(name, role, _digest(token), now())])
        return token

    def revoke(self, name: str) -> None:
        """Remove an operator: the token is worth nothing from now on.

        Raises:
            UsageError: If there is none of this name.
        """
        known = self.all()
        kept = [operator for operator in known if operator.name != name]
        if len(kept) == len(known):
            there = ", ".join(operator.name for operator in known) or "nobody"
            raise UsageError(f"operator {shown(name)} is not in {self.path}; there is {there}")
        self._write(kept)

    def _write(self, operators: Sequence[Operator]) -> None:
        entries = [asdict(operator) for operator in sorted(operators, key=lambda one: one.name)]
        text = json.dumps({"format_version": FORMAT_VERSION, "operators": entries}, indent=2)
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(dir=self.path.parent, prefix=".operators-")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(beside, self.path)
            except BaseException:
                Path(beside).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written ({error.strerror}); give another path") from None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> tuple[Operator, ...]:
    try:
        with path.open(encoding="utf-8") as file:
            found = os.fstat(file.fileno())
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"operators: {path} cannot be read: {error}") from None
    if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid not in (os.geteuid(), 0):
        raise UsageError(
            f"operators: {path} is not this user's alone (mode {stat.S_IMODE(found.st_mode):04o}, user "
            f"{found.st_uid}); see that its entries are yours, then chmod 600 it"
        )
    try:
        given = json.loads(text)
        if given["format_version"] != FORMAT_VERSION:
            raise UsageError(f"operators: {path} is of format {given['format_version']!r}; this reads 1")
        operators = tuple(
            Operator(
                check_name("operator", entry["name"]),
                OperatorRole(entry["role"]),
                _checked_digest(entry["token_sha256"]),
                float(entry["added"]),
            )
            for entry in given["operators"]
        )
    except UsageError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"operators: {path} is no file of operators ({error!r}); `scarcity-ray operators add` makes one"
        ) from None
    if len({operator.name for operator in operators}) != len(operators):
        raise UsageError(f"operators: {path} names an operator twice; remove one of the entries")
    return tuple(sorted(operators, key=lambda one: one.name))


def _checked_digest(value: object) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError("token_sha256 is no SHA-256")
    return value


__all__ = ["Operator", "OperatorRole", "Operators"]
