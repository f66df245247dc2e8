"""Which updates were accepted before, for as long as it matters."""

from __future__ import annotations

from typing import NamedTuple


class ReplayKey(NamedTuple):
    """What makes two updates the same: client, round and content.

    Attributes:
        client_id: Who sent it.
        round_id: The round that it was sent for.
        digest: `content_digest` of its float32 row.
    """

    client_id: str
    round_id: int
    digest: bytes


class ReplayGuard:
    """Remembers accepted updates by client, round and content digest.

    Guarantees:
        - A marked key fails the check until its round is cleared, whatever became of the update.
        - Memory is bounded: with the buffer's cap, at most cap digests for each client and round, and rounds
          are cleared once their updates are too stale to be accepted at all.
    """

    def __init__(self) -> None:
        self._rounds: dict[int, dict[str, set[bytes]]] = {}

    def check(self, key: ReplayKey) -> bool:
        """True if `key` is new, False if it is a replay."""
        return key.digest not in self._rounds.get(key.round_id, {}).get(key.client_id, ())

    def mark(self, key: ReplayKey) -> None:
        """Remember `key` as accepted."""
        self._rounds.setdefault(key.round_id, {}).setdefault(key.client_id, set()).add(key.digest)

    def count(self, client_id: str, round_id: int) -> int:
        """How many updates of a client were accepted for a round."""
        return len(self._rounds.get(round_id, {}).get(client_id, ()))

    def clear_round(self, round_id: int) -> None:
        """Forget a round."""
        self._rounds.pop(round_id, None)

    def clear_before(self, round_id: int) -> None:
        """Forget all rounds before `round_id`."""
        for old in [known for known in self._rounds if known < round_id]:
            del self._rounds[old]

    def keys_of(self, client_id: str) -> tuple[ReplayKey, ...]:
        """All keys remembered of a client, sorted: they travel with it to another host."""
        return tuple(
            sorted(
                ReplayKey(client_id, round_id, digest)
                for round_id, clients in self._rounds.items()
                for digest in clients.get(client_id, ())
            )
        )


__all__ = ["ReplayGuard", "ReplayKey"]
