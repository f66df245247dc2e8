"""Where an operation stands in the order of all that the directory ever began."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True, slots=True)
class OrderNumber:
    """Where an operation stands in the order of all: a directory that comes back counts in a new life.

    Attributes:
        life: Of the directory.
        count: Operations that it began in this life.
    """

    life: int = 0
    count: int = 0


__all__ = ["OrderNumber"]
