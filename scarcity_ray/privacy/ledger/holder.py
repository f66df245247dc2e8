"""What a ledger says of whose it is and who holds it, row by row."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from scarcity_ray.privacy.ledger.chain import NO_HASH, Row


@dataclass(frozen=True)
class Holder:
    """A process that opened a ledger to write.

    Attributes:
        pid: Its number.
        host: Its machine.
        since: When, in seconds since 1970, as it said.
        name: Of its federation, if it has one.
        incarnation: How often a federation had been opened on the ledger, this time included.
    """

    pid: int | None
    host: str | None
    since: float
    name: str | None
    incarnation: int

    @property
    def is_this_process(self) -> bool:
        """Whether it is the process that asks."""
        return (self.pid, self.host) == (os.getpid(), socket.gethostname())

    def __str__(self) -> str:
        whose = f"federation {self.name!r}" if self.name else "an unnamed federation"
        return f"{whose}, process {self.pid} on {self.host or 'an unknown host'}, since {in_utc(self.since)}"


@dataclass
class Standing:
    """What the rows up to `seq` say; `note` takes the next one.

    Attributes:
        seq: The last row's number; -1 before the first.
        hash: Its hash.
        epoch: Its writer's.
        federation_id: The federation's random id; that of a ledger from before there were such ids is its
            federation's name or its file's, until a newer version opens it to write.
        name: For people; None if it has none.
        incarnation: How often a federation was opened on it.
        run: The last opening's random number; the incarnation where an earlier version wrote none.
        operator_key: Whose signature a renewal needs, as hexadecimal digits; None: no opening has stated one.
        holder: Who opened it last; None if nobody did.
    """

    seq: int = -1
    hash: str = NO_HASH
    epoch: int = 0
    federation_id: str = ""
    name: str | None = None
    incarnation: int = 0
    run: int = 0
    operator_key: str | None = None
    holder: Holder | None = None
    has_random_id: bool = field(default=False)

    def note(self, row: Row) -> None:
        """Take account of a row."""
        self.seq, self.hash, self.epoch = row.seq, row.hash, row.epoch
        if row.seq == 0:
            # A ledger from before there were random ids states no name, and what people call it as its id.
            self.has_random_id = "name" in row.body
            self.federation_id = _text(row.body.get("federation_id")) or ""
            self.name = _text(row.body["name"]) if self.has_random_id else self.federation_id
        elif row.kind == "writer":
            self.incarnation = _count(row.body.get("incarnation"), self.incarnation)
            self.run = _count(row.body.get("run"), self.incarnation)
            self.operator_key = self.operator_key or _text(row.body.get("operator_key"))
            if not self.has_random_id and "federation_id" in row.body:
                self.federation_id, self.has_random_id = str(row.body["federation_id"]), True
            self.holder = Holder(
                _count(row.body.get("pid"), None),
                _text(row.body.get("host")),
                row.at,
                _text(row.body.get("name")) or self.name,
                self.incarnation,
            )


def times(count: int) -> str:
    """How often, for people.

    >>> times(1), times(3)
    ('once', '3 times')
    """
    return "once" if count == 1 else f"{count} times"


def in_utc(at: float) -> str:
    """A time for people.

    >>> in_utc(0.0)
    '1970-01-01 00:00:00 UTC'
    """
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{at:g} s"


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any, default: Any) -> Any:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


__all__ = ["Holder", "Standing", "in_utc"]
