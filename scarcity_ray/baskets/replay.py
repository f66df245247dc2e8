"""Which updates were accepted before, for as long as it matters."""

from __future__ import annotations

from typing import NamedTuple


class ReplayKey(NamedTuple):
    """What makes two updates the same: client, round and content.

    Attributes:
        client_id: Who sent it.
        round_id: The round that it was sent for.
        digest: `content_digest` of its float32 row.
        sequence: The number that its client gave it within the round; None where the client does not count.
    """

    client_id: str
    round_id: int
    digest: bytes
    sequence: int | None = None


class ReplayGuard:
    """Remembers accepted updates by client, round and content digest, and by the client's own numbers.

    Guarantees:
        - A marked key fails the check until its round is cleared, whatever became of the update.
        - A sequence number that was marked is used: no other content of that client and round may have it.
        - Memory is bounded: with the buffer's cap, at most cap digests for each client and round, and rounds
          are cleared once their updates are too stale to be accepted at all.
    """

    def __init__(self) -> None:
        self._rounds: dict[int, dict[str, dict[bytes, int | None]]] = {}
        self._sequences: dict[int, set[tuple[str, int]]] = {}

    def check(self, key: ReplayKey) -> bool:
        """True if `key` is new, False if it is a replay; its sequence number makes no difference."""
        return key.digest not in self._rounds.get(key.round_id, {}).get(key.client_id, ())

    def has_used(self, client_id: str, round_id: int, sequence: int | None) -> bool:
        """Whether an accepted update of the client and round bears that number."""
        return sequence is not None and (client_id, sequence) in self._sequences.get(round_id, ())

    def mark(self, key: ReplayKey) -> None:
        """Remember `key` as accepted."""
        client_id, round_id, digest, sequence = key
        self._rounds.setdefault(round_id, {}).setdefault(client_id, {})[digest] = sequence
        if sequence is not None:
            self._sequences.setdefault(round_id, set()).add((client_id, sequence))

    def count(self, client_id: str, round_id: int) -> int:
        """How many updates of a client were accepted for a round."""
        return len(self._rounds.get(round_id, {}).get(client_id, ()))

    def clear_round(self, round_id: int) -> None:
        """Forget a round."""
        self._rounds.pop(round_id, None)
        self._sequences.pop(round_id, None)

    def clear_before(self, round_id: int) -> None:
        """Forget all rounds before `round_id`."""
        for old in [known for known in self._rounds if known < round_id]:
            self.clear_round(old)

    def keys_of(self, client_id: str) -> tuple[ReplayKey, ...]:
        """All keys remembered of a client, by round and digest: they travel with it to another host."""
        return tuple(
            ReplayKey(client_id, round_id, digest, sequence)
            for round_id, clients in sorted(self._rounds.items())
            for digest, sequence in sorted(clients.get(client_id, {}).items(), key=lambda item: item[0])
        )


__all__ = ["ReplayGuard", "ReplayKey"]
