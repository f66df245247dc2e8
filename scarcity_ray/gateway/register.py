"""What all gateways of a federation share: who is enrolled, nonces, what became of each upload, the round.

One role on the federation's home node, with an SQLite file. The baskets' replay memory decides what counts
once; the register makes the answers repeatable, so that a client whose answer was lost, with the gateway that
gave it, is told the same again by another.

Guarantees:
    a_slot_is_one_body: Of a client, round and sequence, until it is refused.
    a_settled_slot_is_answered_the_same_again: Also by a register that was killed and started again.
    a_nonce_is_taken_once
    a_refused_slot_is_free_again
    a_new_round_is_told_to_whoever_asks
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.errors import StorageError
from scarcity_ray.private_folder import why_not_private
from scarcity_ray.runtime.rpc import Role, RoleName, query
from scarcity_ray.updates import SigningScope
from scarcity_ray_client.wire import RoundState

_SCHEMA = """
CREATE TABLE IF NOT EXISTS slots (
    round_id INTEGER NOT NULL, client_id TEXT NOT NULL, sequence INTEGER NOT NULL,
    digest BLOB NOT NULL, answer BLOB, PRIMARY KEY (round_id, client_id, sequence)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS nonces (nonce BLOB PRIMARY KEY, client_id TEXT NOT NULL, seconds REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS nonces_by_time ON nonces (seconds);
CREATE TABLE IF NOT EXISTS fates (
    round_id INTEGER NOT NULL, client_id TEXT NOT NULL, fate TEXT NOT NULL, PRIMARY KEY (client_id, round_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS told (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
ROUNDS_REMEMBERED = 64
"""Rounds whose slots and fates are kept."""
BUSY_SECONDS = 10.0


@dataclass(frozen=True)
class Slot:
    """An upload's place: one body."""

    round_id: int
    client_id: str
    sequence: int
    digest: str


class ClaimKind(StrEnum):
    """What a claim of a slot came to."""

    FRESH = "fresh"
    """It is this upload's now."""
    AGAIN = "again"
    """The same body had claimed it, and what became of it is not known here."""
    ANSWERED = "answered"
    """The same body was accepted before."""
    TAKEN = "taken"
    """Another body has it."""


@dataclass(frozen=True)
class Claim:
    """What a claim came to; `answer` is what the same upload was answered before."""

    kind: ClaimKind
    answer: bytes = b""


@dataclass(frozen=True)
class Outcome:
    """A judged upload: accepted with an `answer`, or refused for a `reason`; both None: try again."""

    slot: Slot
    answer: bytes | None = None
    reason: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    num_examples: int = 0


@dataclass(frozen=True)
class Measured:
    """What a client measured, of its training or of the model that it was handed."""

    client_id: str
    metrics: Mapping[str, float]
    num_examples: int


@dataclass(frozen=True)
class OpenRound:
    """The round as the server has published it.

    Attributes:
        number: Rises with each publication.
        closes_at: Unix seconds at the server; None: it waits for all.
        model_version: Of the last release that is in the model; 0: none.
        model_sha256: Hexadecimal, of the model's bytes; empty before there is one.
    """

    state: RoundState
    reason: str
    round_id: int
    scope: SigningScope
    clip_norm: float
    closes_at: float | None = None
    model_version: int = 0
    model_sha256: str = ""
    number: int = 0


@dataclass(frozen=True)
class Heard:
    """What the server's rounds need to know of the gateways' work.

    Attributes:
        accepted: Clients of which an update for the round is counted.
        refused: Clients with none, and the reason of the last refusal.
        refusals: Uploads that were refused, by client and reason.
        last_seen: Unix seconds by client.
        trained: Of accepted updates.
        evaluated: Of the model that the round began with.
    """

    accepted: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    refusals: Sequence[tuple[str, str]] = ()
    last_seen: Mapping[str, float] = field(default_factory=dict)
    trained: Sequence[Measured] = ()
    evaluated: Sequence[Measured] = ()


class Register(Role):
    """The role.

    Args:
        path: Of its file, whose folder is made if it is not there, for this user alone.
        nonce_seconds: For which a nonce is remembered.

    Raises:
        StorageError: If it cannot be used.
    """

    def __init__(self, path: str, nonce_seconds: float) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._nonce_seconds = nonce_seconds
        self._swept = 0.0
        self._seen: dict[str, float] = {}
        self._refusals: dict[int, Counter[tuple[str, str]]] = {}
        self._measured: dict[tuple[str, int], OrderedDict[str, Measured]] = {}
        self._round: OpenRound | None = None
        self._model: NDArray[np.float32] = np.zeros(0, np.float32)
        folder = Path(path).parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            why = why_not_private(folder, "the gateways' register")
        except OSError as error:
            why = f"{folder}: {error.strerror}; give a folder that can be written"
        if why:
            raise StorageError(why)
        try:
            self._db = sqlite3.connect(
                path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False
            )
            os.chmod(path, 0o600)
            self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {_SCHEMA}")
        except sqlite3.Error as error:
            raise StorageError(f"{path}: the gateways' register cannot be used: {error}") from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def note_nonces(self, asked: Sequence[tuple[str, str]], now: float) -> tuple[bool, ...]:
        """Take nonces, each with its client; whether each is new. Who asks was seen now."""
        with self._lock:
            self._db.execute("BEGIN")
            fresh = []
            for client_id, nonce in asked:
                put = "INSERT OR IGNORE INTO nonces VALUES (?, ?, ?)"
                done = self._db.execute(put, (bytes.fromhex(nonce), client_id, now))
                fresh.append(done.rowcount == 1)
                if fresh[-1]:
                    self._seen[client_id] = now
            if now > self._swept + 1.0:
                self._swept = now
                self._db.execute("DELETE FROM nonces WHERE seconds < ?", (now - self._nonce_seconds,))
            self._db.execute("COMMIT")
            return tuple(fresh)

    def claim(self, slots: Sequence[Slot]) -> tuple[Claim, ...]:
        """Claim slots for uploads that are there in full."""
        with self._lock:
            self._db.execute("BEGIN")
            claims = tuple(self._claim(slot) for slot in slots)
            self._db.execute("COMMIT")
            return claims

    def standing(self, round_id: int, client_id: str, digest: str) -> bytes | None:
        """What an upload was answered that was accepted before; None if it was not."""
        with self._lock:
            found = self._db.execute(
                "SELECT answer FROM slots WHERE round_id = ? AND client_id = ? AND digest = ?",
                (round_id, client_id, bytes.fromhex(digest)),
            ).fetchone()
        return None if found is None else found[0]

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Note what became of uploads; one of unknown fate keeps its slot."""
        with self._lock:
            self._db.execute("BEGIN")
            for outcome in outcomes:
                slot = outcome.slot
                place = slot.round_id, slot.client_id, slot.sequence
                if outcome.answer is not None:
                    self._db.execute(
                        "UPDATE slots SET answer = ? WHERE round_id = ? AND client_id = ? AND sequence = ?",
                        (outcome.answer, *place),
                    )
                    self._note_fate(slot, "accepted")
                    if outcome.metrics:
                        said = Measured(slot.client_id, outcome.metrics, outcome.num_examples)
                        self._measured.setdefault(("trained", slot.round_id), OrderedDict())[
                            slot.client_id
                        ] = said
                elif outcome.reason is not None:
                    self._db.execute(
                        "DELETE FROM slots WHERE round_id = ? AND client_id = ? AND sequence = ?", place
                    )
                    self._note_fate(slot, outcome.reason)
                    counts = self._refusals.setdefault(slot.round_id, Counter())
                    counts[slot.client_id, outcome.reason] += 1
            self._db.execute("COMMIT")

    def note_evaluation(self, round_id: int, measured: Measured) -> None:
        """Note what a client measured of the model that a round began with."""
        with self._lock:
            self._measured.setdefault(("evaluated", round_id), OrderedDict())[measured.client_id] = measured

    @query
    def fates(self, client_id: str, most: int) -> tuple[tuple[int, str], ...]:
        """What became of a client's updates in its last rounds, oldest first."""
        with self._lock:
            found = self._db.execute(
                "SELECT round_id, fate FROM fates WHERE client_id = ? ORDER BY round_id DESC LIMIT ?",
                (client_id, most),
            ).fetchall()
        return tuple((int(round_id), str(fate)) for round_id, fate in reversed(found))

    def publish(self, opened: OpenRound, model: NDArray[np.float32] | None) -> None:
        """Tell the gateways of a round; the model stays if None is given."""
        with self._lock:
            number = 1 if self._round is None else self._round.number + 1
            self._round = replace(opened, number=number)
            if model is not None:
                self._model = np.array(model, "<f4")
            oldest = opened.round_id - ROUNDS_REMEMBERED
            for table in ("slots", "fates"):
                self._db.execute(f"DELETE FROM {table} WHERE round_id < ?", (oldest,))
            for round_id in [known for known in self._refusals if known < opened.round_id]:
                del self._refusals[round_id]
            for place in [place for place in self._measured if place[1] < opened.round_id]:
                del self._measured[place]

    @query
    def current(self, number: int = -1) -> OpenRound | None:
        """The round, if there is one with another number."""
        with self._lock:
            return None if self._round is None or self._round.number == number else self._round

    @query
    def model(self) -> NDArray[np.float32]:
        """(d,) the published model; empty before there is one."""
        with self._lock:
            return self._model

    @query
    def heard(self, round_id: int) -> Heard:
        """What the gateways have taken of a round."""
        with self._lock:
            rows = self._db.execute(
                "SELECT client_id, fate FROM fates WHERE round_id = ?", (round_id,)
            ).fetchall()
            fates = {str(client_id): str(fate) for client_id, fate in rows}
            counts = self._refusals.get(round_id, Counter())
            return Heard(
                frozenset(client for client, fate in fates.items() if fate == "accepted"),
                {client: fate for client, fate in fates.items() if fate != "accepted"},
                tuple(sorted(counts.elements())),
                dict(self._seen),
                tuple(self._measured.get(("trained", round_id), {}).values()),
                tuple(self._measured.get(("evaluated", round_id), {}).values()),
            )

    def keep_only(self, round_id: int, accepted: Sequence[str]) -> None:
        """Free the slots of a round's clients whose updates are in no basket any more."""
        with self._lock:
            self._db.execute("BEGIN")
            for (client_id,) in self._db.execute(
                "SELECT DISTINCT client_id FROM slots WHERE round_id = ?", (round_id,)
            ).fetchall():
                if client_id not in accepted:
                    for table in ("slots", "fates"):
                        self._db.execute(
                            f"DELETE FROM {table} WHERE round_id = ? AND client_id = ?", (round_id, client_id)
                        )
            self._db.execute("COMMIT")

    def _claim(self, slot: Slot) -> Claim:
        place, digest = (slot.round_id, slot.client_id, slot.sequence), bytes.fromhex(slot.digest)
        found = self._db.execute(
            "SELECT digest, answer FROM slots WHERE round_id = ? AND client_id = ? AND sequence = ?", place
        ).fetchone()
        if found is None:
            self._db.execute("INSERT INTO slots VALUES (?, ?, ?, ?, NULL)", (*place, digest))
            return Claim(ClaimKind.FRESH)
        if found[0] != digest:
            return Claim(ClaimKind.TAKEN)
        return Claim(ClaimKind.AGAIN) if found[1] is None else Claim(ClaimKind.ANSWERED, found[1])

    def _note_fate(self, slot: Slot, fate: str) -> None:
        """A client's fate in a round is that of an accepted update, if it has one."""
        self._db.execute(
            "INSERT INTO fates VALUES (?, ?, ?) ON CONFLICT (client_id, round_id) DO UPDATE SET fate = "
            "CASE WHEN fate = 'accepted' THEN fate ELSE excluded.fate END",
            (slot.round_id, slot.client_id, fate),
        )


REGISTER: RoleName[Register] = RoleName("register")
