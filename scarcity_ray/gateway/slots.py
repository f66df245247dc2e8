"""Slots of uploads: one body for a client, round and sequence, and what it was answered.

They lie in the register's SQLite file. The basket decides what counts once, and may have decided before
anybody hears of it: gateways die, and two of them may have one upload at a time. Whoever ends TLS may send
a copy of it with another row, which is refused and frees the slot, beside the one that is accepted. So a name
that was claimed more than once is remembered: if the basket calls it a replay, it was this very body.

Guarantees:
    a_slot_is_one_body: Of a client, round and sequence, until it is refused.
    a_refused_slot_is_free_again
    a_refused_copy_takes_no_accepted_slot: Whoever ends TLS may send another row beside a signed head.
    an_accepted_update_is_answered_so_whatever_comes_beside_it: In any order of claims, copies and deaths.
    one_body_has_one_slot_under_both_its_names
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

_TABLES = """
CREATE TABLE IF NOT EXISTS slots (
    round_id INTEGER NOT NULL, client_id TEXT NOT NULL, sequence INTEGER NOT NULL,
    digest BLOB NOT NULL, answer BLOB, PRIMARY KEY (round_id, client_id, sequence)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS known_names (
    round_id INTEGER NOT NULL, client_id TEXT NOT NULL, sequence INTEGER NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (round_id, client_id, sequence, digest)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fates (
    round_id INTEGER NOT NULL, client_id TEXT NOT NULL, fate TEXT NOT NULL, PRIMARY KEY (client_id, round_id)
) WITHOUT ROWID;
"""
_PLACE = "round_id = ? AND client_id = ? AND sequence = ?"
MOST_KNOWN = 32
"""Names of one client and round that were claimed more than once, and are kept when they are refused."""


@dataclass(frozen=True)
class Slot:
    """An upload's place: one body.

    Attributes:
        digest: Its name in the path, hexadecimal.
        head: Its head's SHA-256, which is the name that newer clients say; empty: as `digest`.
    """

    round_id: int
    client_id: str
    sequence: int
    digest: str
    head: str = ""

    @property
    def names(self) -> tuple[bytes, bytes]:
        """By which the same body may have been claimed before."""
        return bytes.fromhex(self.digest), bytes.fromhex(self.head or self.digest)


class ClaimKind(StrEnum):
    """What a claim of a slot came to."""

    FRESH = "fresh"
    """It is this upload's now."""
    AGAIN = "again"
    """The same body had claimed it before, and may have been accepted then."""
    ANSWERED = "answered"
    """The same body was accepted before."""
    TAKEN = "taken"
    """Another body has it."""
    REVOKED = "revoked"
    """Its client was revoked as it came."""


@dataclass(frozen=True)
class Claim:
    """What a claim came to; `answer` is what the same upload was answered before."""

    kind: ClaimKind
    answer: bytes = b""


@dataclass(frozen=True)
class Outcome:
    """A judged upload: accepted with an `answer`, or refused for a `reason`; both None: try again.

    Both: its row was accepted before. If it was claimed more than once, that was this very body; else it is
    refused.
    """

    slot: Slot
    answer: bytes | None = None
    reason: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    num_examples: int = 0


class Slots:
    """The slots in a SQLite connection; its caller's transaction is open wherever they are changed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        connection.executescript(_TABLES)

    def claim(self, slot: Slot) -> Claim:
        """Claim the slot of an upload that is there in full."""
        place, names = (slot.round_id, slot.client_id, slot.sequence), slot.names
        found = self._db.execute(f"SELECT digest, answer FROM slots WHERE {_PLACE}", place).fetchone()
        if found is not None and found[1] is not None:
            return Claim(ClaimKind.ANSWERED, found[1]) if found[0] in names else Claim(ClaimKind.TAKEN)
        is_again = (found is not None and found[0] in names) or self._is_known(slot)
        if found is not None and not is_again:
            return Claim(ClaimKind.TAKEN)
        if found is None:
            self._db.execute("INSERT INTO slots VALUES (?, ?, ?, ?, NULL)", (*place, names[0]))
        if is_again:
            # Of the two, one may be refused as a copy and free the slot, and the other be accepted.
            self._db.execute(
                "INSERT OR IGNORE INTO known_names SELECT ?, ?, ?, ? WHERE "
                "(SELECT COUNT(*) FROM known_names WHERE round_id = ? AND client_id = ?) < ?",
                (*place, names[0], *place[:2], MOST_KNOWN),
            )
        return Claim(ClaimKind.AGAIN if is_again else ClaimKind.FRESH)

    def standing(self, round_id: int, client_id: str, digest: str) -> bytes | None:
        """What an upload was answered that was accepted before; None if it was not."""
        found = self._db.execute(
            "SELECT answer FROM slots WHERE round_id = ? AND client_id = ? AND digest = ? "
            "AND answer IS NOT NULL",
            (round_id, client_id, bytes.fromhex(digest)),
        ).fetchone()
        return None if found is None else found[0]

    def settle(self, outcome: Outcome) -> bytes | None:
        """Note what became of an upload; what it is answered from now on, None unless it was accepted.

        One of unknown fate keeps its slot.
        """
        slot = outcome.slot
        place, names = (slot.round_id, slot.client_id, slot.sequence), slot.names
        is_repeated = outcome.reason is not None
        if outcome.answer is not None and (not is_repeated or self._is_known(slot)):
            # The basket has it: a refused copy that was settled before may have freed the slot, and another
            # gateway may have its receipt.
            first = "" if is_repeated else " OR TRUE"
            self._db.execute(
                "INSERT INTO slots VALUES (?, ?, ?, ?, ?) ON CONFLICT (round_id, client_id, sequence) "
                "DO UPDATE SET digest = excluded.digest, answer = excluded.answer "
                f"WHERE answer IS NULL{first}",
                (*place, names[0], outcome.answer),
            )
            self._note_fate(slot, "accepted")
            if not is_repeated:
                return outcome.answer
            stands = f"SELECT answer FROM slots WHERE {_PLACE} AND digest IN (?, ?)"
            found = self._db.execute(stands, (*place, *names)).fetchone()
            return None if found is None else found[0]
        if outcome.reason is not None:
            self._db.execute(
                f"DELETE FROM slots WHERE {_PLACE} AND digest IN (?, ?) AND answer IS NULL", (*place, *names)
            )
            self._note_fate(slot, outcome.reason)
        return None

    def fates(self, client_id: str, most: int) -> tuple[tuple[int, str], ...]:
        """What became of a client's updates in its last rounds, oldest first."""
        found = self._db.execute(
            "SELECT round_id, fate FROM fates WHERE client_id = ? ORDER BY round_id DESC LIMIT ?",
            (client_id, most),
        ).fetchall()
        return tuple((int(round_id), str(fate)) for round_id, fate in reversed(found))

    def fates_of_round(self, round_id: int) -> dict[str, str]:
        """By client: ``accepted``, or the reason of its last refusal."""
        found = self._db.execute("SELECT client_id, fate FROM fates WHERE round_id = ?", (round_id,))
        return {str(client_id): str(fate) for client_id, fate in found}

    def forget(self, before_round: int) -> None:
        """Forget rounds that are long over."""
        for table in ("slots", "fates", "known_names"):
            self._db.execute(f"DELETE FROM {table} WHERE round_id < ?", (before_round,))

    def keep_only(self, round_id: int, accepted: Sequence[str]) -> list[str]:
        """Free the slots of a round's other clients; these."""
        known = self._db.execute(
            "SELECT client_id FROM slots WHERE round_id = ? UNION "
            "SELECT client_id FROM fates WHERE round_id = ?",
            (round_id, round_id),
        ).fetchall()
        freed = [client_id for (client_id,) in known if client_id not in accepted]
        for client_id in freed:
            for table in ("slots", "fates", "known_names"):
                self._db.execute(
                    f"DELETE FROM {table} WHERE round_id = ? AND client_id = ?", (round_id, client_id)
                )
        return freed

    def _is_known(self, slot: Slot) -> bool:
        """Whether a body was claimed while it was under way: it may have been accepted then."""
        place = slot.round_id, slot.client_id, slot.sequence
        known = f"SELECT 1 FROM known_names WHERE {_PLACE} AND digest IN (?, ?)"
        return self._db.execute(known, (*place, *slot.names)).fetchone() is not None

    def _note_fate(self, slot: Slot, fate: str) -> None:
        """A client's fate in a round is that of an accepted update, if it has one."""
        self._db.execute(
            "INSERT INTO fates VALUES (?, ?, ?) ON CONFLICT (client_id, round_id) DO UPDATE SET fate = "
            "CASE WHEN fate = 'accepted' THEN fate ELSE excluded.fate END",
            (slot.round_id, slot.client_id, fate),
        )
