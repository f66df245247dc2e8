"""One client's update: what is kept of it, and what its sender is told."""

from __future__ import annotations

from dataclasses import dataclass

from scarcity_ray.updates import FloatRow, Rejection, content_digest, read_row


@dataclass(frozen=True)
class Receipt:
    """What a client is told about its update; true if it was accepted.

    Attributes:
        accepted: Whether it was, in the sense of `UpdateBuffer.accept`.
        reason: Why not; None if accepted.
        basket_id: The basket that judged it; None if the client is not known.
        round_id: The round that it was sent for.
    """

    accepted: bool
    reason: Rejection | None
    basket_id: str | None
    round_id: int

    def __bool__(self) -> bool:
        return self.accepted


@dataclass(frozen=True, eq=False)
class BufferedUpdate:
    """An accepted update.

    Attributes:
        client_id: Who sent it.
        basket_id: In which basket it waits.
        update: The buffer's own copy, float32 (d,), read-only.
        round_id: The round that it was sent for.
        timestamp: When it was accepted, in seconds.
        staleness: Rounds between `round_id` and the buffer's round when this was read.
        num_examples: Examples that its client says are behind it; None: it does not say.
    """

    client_id: str
    basket_id: str
    update: FloatRow
    round_id: int
    timestamp: float
    staleness: int
    num_examples: int | None = None


__all__ = ["BufferedUpdate", "FloatRow", "Receipt", "Rejection", "content_digest", "read_row"]
