"""What all gateways of a federation share: who is enrolled, nonces, what became of each upload, the round.

One role on the federation's home node, with an SQLite file. The baskets' replay memory decides what counts
once; the register makes the answers repeatable, so that a client whose answer was lost, with the gateway that
gave it, is told the same again by another.

Each request is judged here, and once: who asks (`Enrolments`), the signature, then the nonce. An unsigned
request leaves nothing behind.

Guarantees:
    a_settled_slot_is_answered_the_same_again: Also by a register that was killed and started again.
    a_nonce_is_taken_once: And by nobody who has not signed for it.
    a_revoked_site_is_refused_at_its_next_request: And an upload that is still on its way then.
    what_a_round_has_heard_outlives_the_register: Metrics, when sites were seen lately, an operator's pause.
    a_call_that_fails_leaves_the_register_usable
    a_new_round_is_told_to_whoever_asks
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.errors import StorageError, UsageError
from scarcity_ray.federation.fit_terms import RoundRecord
from scarcity_ray.federation.publishing import note_record
from scarcity_ray.federation.served_round import Heard, Measured, OpenRound
from scarcity_ray.gateway.certificates import Certificates
from scarcity_ray.gateway.enrolments import REGISTER_FILE, Enrolment, Enrolments, Invitation
from scarcity_ray.gateway.slots import Claim, ClaimKind, Outcome, Slot, Slots
from scarcity_ray.monitoring.history import Round, RoundHistory
from scarcity_ray.private_folder import why_not_private
from scarcity_ray.runtime.rpc import Role, RoleName, query
from scarcity_ray_client.wire import (
    CertificateAnswer,
    CertificateRequest,
    EnrolAnswer,
    EnrolRequest,
    ErrorAnswer,
    ErrorCode,
    SignedRequest,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS measured (
    round_id INTEGER NOT NULL, kind TEXT NOT NULL, client_id TEXT NOT NULL, metrics TEXT NOT NULL,
    num_examples INTEGER NOT NULL, PRIMARY KEY (round_id, kind, client_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS states (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS nonces (
    nonce BLOB PRIMARY KEY, client_id TEXT NOT NULL, seconds REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS nonces_by_time ON nonces (seconds);
"""
ROUNDS_REMEMBERED = 64
"""Rounds whose slots and fates are kept."""
MOST_TOLD = 100
"""Refusals for one reason that are told of one client and round: it may send as often as it likes."""
BUSY_SECONDS = 10.0


@dataclass(frozen=True)
class Asked:
    """A request as it came.

    Attributes:
        target: Path with query.
        fingerprint: SHA-256 of the certificate that TLS was shown, hexadecimal; None: none.
    """

    request: SignedRequest
    method: str
    target: str
    fingerprint: str | None


class Register(Role):
    """The role.

    Args:
        folder: Of its file; made if it is not there, for this user alone.
        federation_id: Of the federation that is served.
        nonce_seconds: For which a nonce is remembered.
        overlap_seconds: For which a certificate still holds once its successor is issued.
        keys: The folder of certificates; None: TLS ends elsewhere, and requests need no certificate.

    Raises:
        StorageError: If it cannot be used.
        UsageError: If it is another federation's.
    """

    def __init__(
        self,
        folder: str,
        federation_id: str,
        nonce_seconds: float,
        overlap_seconds: float,
        keys: str | None,
        *,
        is_mutual: bool = True,
    ) -> None:
        super().__init__()
        self._federation_id, self._overlap_seconds, self._is_mutual = (
            federation_id,
            overlap_seconds,
            is_mutual,
        )
        self._certificates = None if keys is None else Certificates(keys)
        self._lock = threading.RLock()
        self._nonce_seconds = nonce_seconds
        self._swept = 0.0
        self._refusals: dict[int, Counter[tuple[str, str]]] = {}
        self._round: OpenRound | None = None
        self._model: NDArray[np.float32] = np.zeros(0, np.float32)
        self._model_sha256 = ""
        self._session_key = os.urandom(32)
        self._began = time.time()
        self._history = RoundHistory()
        place = Path(folder)
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            why = why_not_private(place, "the gateways' register")
        except OSError as error:
            why = f"{place}: {error.strerror}; give a folder that can be written"
        if why:
            raise StorageError(why)
        path = place / REGISTER_FILE
        try:
            self._db = sqlite3.connect(
                path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False
            )
            os.chmod(path, 0o600)
            self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {_SCHEMA}")
        except sqlite3.Error as error:
            raise StorageError(f"{path}: the gateways' register cannot be used: {error}") from None
        self._slots = Slots(self._db)
        self._enrolments = Enrolments(self._db)
        self._enrolments.serve(federation_id)
        # A nonce says who has asked when, for as long as it is remembered.
        self._seen: dict[str, float] = dict(
            self._db.execute("SELECT client_id, MAX(seconds) FROM nonces GROUP BY client_id").fetchall()
        )
        found = self._db.execute("SELECT value FROM states WHERE name = 'is_paused'").fetchone()
        self._is_paused = found == ("yes",)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def admit(self, asked: Sequence[Asked], now: float) -> tuple[Enrolment | ErrorAnswer, ...]:
        """Judge who asks, at this moment; who is admitted was seen now.

        Args:
            now: Unix seconds, of the gateway.
        """
        with self._lock:
            judged = [self._judged(one, now) for one in asked]
            with self._transaction():
                for place, (one, found) in enumerate(zip(asked, judged, strict=True)):
                    if isinstance(found, ErrorAnswer):
                        continue
                    put = "INSERT OR IGNORE INTO nonces VALUES (?, ?, ?)"
                    taken = self._db.execute(put, (bytes.fromhex(one.request.nonce), found.client_id, now))
                    if taken.rowcount == 1:
                        self._seen[found.client_id] = now
                    else:
                        judged[place] = ErrorAnswer(ErrorCode.REPLAYED, "this request was made before")
                if now > self._swept + 1.0:
                    self._swept = now
                    self._db.execute("DELETE FROM nonces WHERE seconds < ?", (now - self._nonce_seconds,))
            return tuple(judged)

    def invitation(self, asked: EnrolRequest) -> Invitation | ErrorAnswer:
        """What an enrolment's token invites to, or why it is refused."""
        with self._lock:
            return self._enrolments.invitation(asked)

    def enrol(self, asked: EnrolRequest) -> EnrolAnswer | ErrorAnswer:
        """Enrol a site that the federation has taken; its certificate."""
        with self._lock:
            invited = self._enrolments.invitation(asked)
            if isinstance(invited, ErrorAnswer):
                return invited
            try:
                made = self._enrolments.enrol(asked, self._issue)
            except UsageError as error:
                return ErrorAnswer(ErrorCode.MALFORMED, str(error))
            if isinstance(made, ErrorAnswer):
                return made
            self._seen[asked.client_id] = time.time()
        return EnrolAnswer(made, self._federation_id, invited.domain_id)

    def renew(self, client_id: str, asked: CertificateRequest) -> CertificateAnswer | ErrorAnswer:
        """Give an enrolled site a new certificate."""
        with self._lock:
            try:
                made = self._enrolments.renew(client_id, asked.csr, self._issue, self._overlap_seconds)
            except UsageError as error:
                return ErrorAnswer(ErrorCode.MALFORMED, str(error))
        return made if isinstance(made, ErrorAnswer) else CertificateAnswer(made)

    def change_key(self, client_id: str, old: bytes, new: bytes) -> bool:
        """Have a site be known by another Ed25519 key, whose proofs were checked; whether it is."""
        with self._lock:
            return self._enrolments.change_key(client_id, old, new)

    @query
    def enrolled(self) -> tuple[Enrolment, ...]:
        """All sites that have enrolled, revoked ones among them, by id."""
        with self._lock:
            return tuple(self._enrolments.enrolled())

    @query
    def invited(self) -> tuple[str, ...]:
        """Sites whose token can still be used, by id."""
        with self._lock:
            return tuple(one.client_id for one in self._enrolments.invited())

    def revoke(self, client_id: str) -> bool:
        """Refuse a site from its next request on; whether it was there."""
        with self._lock:
            return self._enrolments.revoke(client_id)

    @query
    def is_revoked(self, client_id: str) -> bool:
        """Whether a site that has enrolled was revoked since."""
        with self._lock:
            return self._enrolments.is_revoked(client_id)

    def claim(self, slots: Sequence[Slot]) -> tuple[Claim, ...]:
        """Claim slots for uploads that are there in full."""
        with self._lock, self._transaction():
            return tuple(
                Claim(ClaimKind.REVOKED)
                if self._enrolments.is_revoked(slot.client_id)
                else self._slots.claim(slot)
                for slot in slots
            )

    def standing(self, round_id: int, client_id: str, digest: str) -> bytes | None:
        """What an upload was answered that was accepted before; None if it was not."""
        with self._lock:
            return self._slots.standing(round_id, client_id, digest)

    def settle(self, outcomes: Sequence[Outcome]) -> tuple[bytes | None, ...]:
        """Note what became of uploads; one of unknown fate keeps its slot.

        Returns:
            What each is answered from now on; None unless it was accepted.
        """
        with self._lock, self._transaction():
            answers = tuple(self._slots.settle(outcome) for outcome in outcomes)
            for outcome, answer in zip(outcomes, answers, strict=True):
                slot, reason = outcome.slot, outcome.reason
                if answer is not None:
                    self._history.note_outcome(slot.client_id, slot.round_id, None)
                    if outcome.metrics:
                        said = Measured(slot.client_id, outcome.metrics, outcome.num_examples)
                        self._note_measured(slot.round_id, "trained", said)
                elif reason is not None:
                    self._history.note_outcome(slot.client_id, slot.round_id, reason)
                    self._refusals.setdefault(slot.round_id, Counter())[slot.client_id, reason] += 1
            return answers

    def note_evaluation(self, round_id: int, measured: Measured) -> None:
        """Note what a client measured of the model that a round began with."""
        with self._lock:
            self._note_measured(round_id, "evaluated", measured)

    @query
    def fates(self, client_id: str, most: int) -> tuple[tuple[int, str], ...]:
        """What became of a client's updates in its last rounds, oldest first."""
        with self._lock:
            return self._slots.fates(client_id, most)

    def publish(self, opened: OpenRound, model: NDArray[np.float32] | None) -> None:
        """Tell the gateways of a round; the model stays if None is given."""
        with self._lock:
            # Rises over lives too, so that a gateway sees that a register was started again.
            number = time.time_ns() if self._round is None else self._round.number + 1
            if model is not None:
                self._model = np.array(model, "<f4")
                self._model_sha256 = hashlib.sha256(self._model.tobytes()).hexdigest()
            self._round = replace(opened, number=number, model_sha256=self._model_sha256)
            self._slots.forget(opened.round_id - ROUNDS_REMEMBERED)
            self._db.execute("DELETE FROM measured WHERE round_id < ?", (opened.round_id,))
            for round_id in [known for known in self._refusals if known < opened.round_id]:
                del self._refusals[round_id]

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
            fates = self._slots.fates_of_round(round_id)
            counts = self._refusals.get(round_id, Counter())
            return Heard(
                frozenset(client for client, fate in fates.items() if fate == "accepted"),
                {client: fate for client, fate in fates.items() if fate != "accepted"},
                tuple(sorted(one for one, count in counts.items() for _ in range(min(count, MOST_TOLD)))),
                dict(self._seen),
                self._measured(round_id, "trained"),
                self._measured(round_id, "evaluated"),
                self._is_paused,
                self._round is not None,
                self._began,
            )

    def note_record(self, record: RoundRecord, outliers: Sequence[str]) -> None:
        """Note what a round came to, for whoever watches."""
        note_record(self._history, record, outliers, knows_outcomes=True)

    @query
    def history(self) -> tuple[list[Round], dict[str, int]]:
        """What came of the last rounds, and in all, since the register began."""
        return self._history.rounds(), dict(self._history.totals)

    @query
    def session_key(self) -> bytes:
        """What gateways sign operators' logins with."""
        return self._session_key

    def answer_seed(self) -> bytes:
        """Of the key that gateways sign their answers with (`Enrolments.answer_seed`)."""
        with self._lock:
            return self._enrolments.answer_seed()

    def pause(self, is_paused: bool) -> None:
        """Have no round close, or go on."""
        with self._lock:
            said = "yes" if is_paused else "no"
            self._db.execute("INSERT OR REPLACE INTO states VALUES ('is_paused', ?)", (said,))
            self._is_paused = is_paused

    def keep_only(self, round_id: int, accepted: Sequence[str]) -> None:
        """Free the slots of a round's clients whose updates are in no basket any more."""
        with self._lock, self._transaction():
            for client_id in self._slots.keep_only(round_id, accepted):
                self._db.execute(
                    "DELETE FROM measured WHERE round_id = ? AND client_id = ? AND kind = 'trained'",
                    (round_id, client_id),
                )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of the block is written, or nothing: one that is left open would end every later call."""
        self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _judged(self, asked: Asked, now: float) -> Enrolment | ErrorAnswer:
        request = asked.request
        if (wrong := request.clock_error(now)) is not None:
            return wrong
        found = self._enrolments.admit(request.client_id, asked.fingerprint, self._is_mutual)
        if isinstance(found, ErrorAnswer):
            return found
        if not request.is_valid(found.public_key, self._federation_id, asked.method, asked.target):
            return ErrorAnswer(ErrorCode.WRONG_SIGNATURE, "the request is not signed by this site's key")
        return found

    def _issue(self, csr: str, client_id: str) -> str:
        if self._certificates is None:
            raise UsageError("certificates are issued where TLS is: gateway.tls is off here")
        return self._certificates.issue(csr, client_id)

    def _note_measured(self, round_id: int, kind: str, said: Measured) -> None:
        row = round_id, kind, said.client_id, json.dumps(dict(said.metrics)), said.num_examples
        self._db.execute("INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?, ?)", row)

    def _measured(self, round_id: int, kind: str) -> tuple[Measured, ...]:
        found = self._db.execute(
            "SELECT client_id, metrics, num_examples FROM measured WHERE round_id = ? AND kind = ?",
            (round_id, kind),
        )
        return tuple(Measured(client, json.loads(metrics), count) for client, metrics, count in found)


REGISTER: RoleName[Register] = RoleName("register")
