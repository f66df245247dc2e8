"""The federation and the writer that a ledger's rows name."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime

from scarcity_ray.privacy.ledger.chain import NO_HASH, Row
from scarcity_ray.privacy.ledger.events import Genesis, WriterEpoch


@dataclass(frozen=True)
class Holder:
    """A process that opened a ledger to write.

    Attributes:
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
    """The facts that the rows up to `seq` state about the ledger; `note` adds the next row.

    Attributes:
        seq, hash, epoch: Of the last row; -1, `NO_HASH` and 0 before the first.
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
        event = row.event
        if isinstance(event, Genesis) and row.seq == 0:
            self.has_random_id = event.name != ""
            self.federation_id = event.federation_id
            self.name = event.name if self.has_random_id else event.federation_id
        elif isinstance(event, WriterEpoch):
            if event.incarnation is not None:
                self.incarnation = event.incarnation
            self.run = self.incarnation if event.run is None else event.run
            self.operator_key = self.operator_key or event.operator_key
            if not self.has_random_id and event.federation_id is not None:
                self.federation_id, self.has_random_id = event.federation_id, True
            name = event.name or self.name
            self.holder = Holder(event.pid, event.host, row.at, name, self.incarnation)


def times(count: int) -> str:
    """How often, as text.

    >>> times(1), times(3)
    ('once', '3 times')
    """
    return "once" if count == 1 else f"{count} times"


def in_utc(at: float) -> str:
    """A time as text, in UTC.

    >>> in_utc(0.0)
    '1970-01-01 00:00:00 UTC'
    """
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{at:g} s"
