"""Which sites are enrolled, with which keys and certificates, and who is asked to enrol.

One SQLite file, that of the gateways' register, which ``scarcity-ray client-kit`` opens too: each request is
judged by what stands in the file then, so that a revocation counts at the next request without a restart.

A *token* invites one client, once, until it expires; its hash alone is kept. To enrol, a site shows the
token, an Ed25519 key that it has made, and a CSR. It is then known by that key, and by the SHA-256 of its
certificates: a renewed one holds at once, and the one before it for an overlap.

Guarantees:
    a_token_enrols_its_client_once: Under the key that shows it first, whatever comes at the same time.
    the_same_enrolment_is_answered_again: A site that lost the answer asks again with the same keys.
    no_token_is_in_the_file
    a_revocation_counts_at_the_next_request: Of every process that has the file open.
    a_certificate_of_another_client_is_refused: With the same words whether there is that client or not.
    a_renewed_certificate_holds_at_once_and_the_old_one_for_the_overlap
    a_client_has_few_certificates
    a_key_is_changed_with_the_old_one_alone
    a_change_is_on_the_disk_before_it_is_answered: Whatever else the file's connection does without waiting.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scarcity_ray.directory import check_name
from scarcity_ray.errors import UsageError
from scarcity_ray.gateway.certificates import facts_of
from scarcity_ray_client.errors import shown
from scarcity_ray_client.wire import EnrolRequest, ErrorAnswer, ErrorCode

REGISTER_FILE = "register.sqlite"
TOKEN_SECONDS = 7 * 86400.0
OVERLAP_SECONDS = 86400.0
MOST_CERTIFICATES = 4
"""Newest of a client that are kept: each request reads them all, and a client renews as often as it likes."""
REVOKED = "this site was revoked by the federation's operator"
_BUSY_SECONDS = 10.0
_TABLES = """
CREATE TABLE IF NOT EXISTS invitations (
    token_hash BLOB PRIMARY KEY, client_id TEXT NOT NULL, domain_id TEXT NOT NULL, features TEXT,
    expires REAL NOT NULL, used REAL
) STRICT;
CREATE TABLE IF NOT EXISTS shown_tokens (token_hash BLOB PRIMARY KEY, public_key BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS enrolments (
    client_id TEXT PRIMARY KEY, domain_id TEXT NOT NULL, features TEXT, public_key BLOB NOT NULL,
    num_examples INTEGER, policy TEXT, token_hash BLOB NOT NULL, enrolled REAL NOT NULL, revoked REAL
) STRICT;
CREATE TABLE IF NOT EXISTS certificates (
    fingerprint TEXT PRIMARY KEY, client_id TEXT NOT NULL, csr_hash BLOB NOT NULL, pem TEXT NOT NULL,
    expires INTEGER NOT NULL, retires REAL
) STRICT;
CREATE TABLE IF NOT EXISTS enrolment_facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""

Issue = Callable[[str, str], str]
"""Makes the certificate (PEM) for a CSR and a client's id: `Certificates.issue`."""


@dataclass(frozen=True)
class Invitation:
    """What a token is for.

    Attributes:
        features: By which the domain's clients are grouped; None: it has none.
        replaces: Whether the client is enrolled under another key, which its enrolment replaces: the
            directory must forget it first.
    """

    client_id: str
    domain_id: str
    features: tuple[float, ...] | None = None
    replaces: bool = False


@dataclass(frozen=True)
class Enrolment:
    """A site as it is known.

    Attributes:
        public_key: Ed25519, 32 bytes.
        policy: `SignedPolicy.to_text`; None: it has no ceiling of its own.
        certificates: SHA-256 (hexadecimal) of each, and until when it is good (unix seconds).
        revoked: Unix seconds; None: it is not.
    """

    client_id: str
    domain_id: str
    public_key: bytes
    features: tuple[float, ...] | None = None
    num_examples: int | None = None
    policy: str | None = None
    certificates: tuple[tuple[str, float], ...] = ()
    revoked: float | None = None

    @property
    def certificate_expires(self) -> int:
        """Until when it can reach the gateways, unix seconds."""
        return int(max((until for _, until in self.certificates), default=0))


@dataclass(frozen=True)
class Invited:
    """A client with an open invitation, and until when."""

    client_id: str
    domain_id: str
    expires: float


def judge(
    known: Enrolment | None, fingerprint: str | None, now_seconds: float, is_mutual: bool = True
) -> ErrorAnswer | None:
    """Why a request is refused; None if it is not, as far as certificates tell.

    Args:
        known: The client that asks, as it is enrolled now; None: it is not.
        fingerprint: SHA-256 (hexadecimal) of the certificate that TLS was shown; None: none.
        is_mutual: Whether one is needed; not where TLS ends at a proxy.
    """
    if is_mutual and fingerprint is None:
        return ErrorAnswer(ErrorCode.NO_CERTIFICATE, "no client certificate was shown")
    until = math.inf
    if is_mutual and fingerprint is not None:
        held = {} if known is None else dict(known.certificates)
        if fingerprint not in held:  # which clients there are is told to nobody else
            return ErrorAnswer(ErrorCode.WRONG_CERTIFICATE, "the certificate is not this client's")
        until = held[fingerprint]
    if known is None:
        return ErrorAnswer(ErrorCode.FORBIDDEN, "no such client is enrolled")
    if known.revoked is not None:
        return ErrorAnswer(ErrorCode.REVOKED, REVOKED)
    if now_seconds >= until:
        said = "the certificate has expired: ask the federation for a new kit"
        return ErrorAnswer(ErrorCode.EXPIRED_CERTIFICATE, said)
    return None


class Enrolments:
    """The enrolments in a SQLite connection, which the caller opens and closes, in autocommit.

    Args:
        connection: ``isolation_level=None``; the register's, or `opened`'s.
        clock: Unix seconds.
    """

    def __init__(self, connection: sqlite3.Connection, clock: Callable[[], float] = time.time) -> None:
        self._connection, self._clock = connection, clock
        connection.executescript(_TABLES)

    @classmethod
    @contextmanager
    def opened(
        cls, folder: str | os.PathLike[str], clock: Callable[[], float] = time.time
    ) -> Iterator[Enrolments]:
        """Those of the register's folder, for a command beside running gateways."""
        place = Path(folder)
        path = place / REGISTER_FILE
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"{path}: the register cannot be opened: {error}") from None
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            yield cls(connection, clock)
        except sqlite3.Error as error:
            raise UsageError(f"{path}: the register cannot be used: {error}") from error
        finally:
            connection.close()

    @property
    def federation_id(self) -> str:
        """Of the federation that is served; empty before it was served first."""
        found = self._one("SELECT value FROM enrolment_facts WHERE name = 'federation_id'")
        return "" if found is None else str(found[0])

    def serve(self, federation_id: str) -> None:
        """Note which federation the sites enrol with.

        Raises:
            UsageError: If sites have enrolled with another one here: their keys would not be its clients'.
        """
        with self._transaction():
            known = self.federation_id
            if known not in ("", federation_id) and self._one("SELECT 1 FROM enrolments") is not None:
                raise UsageError(
                    f"the register is of federation {known}, with sites enrolled, and this is "
                    f"{federation_id}: give it a folder of its own"
                )
            self._connection.execute(
                "INSERT OR REPLACE INTO enrolment_facts VALUES ('federation_id', ?)", (federation_id,)
            )

    def answer_seed(self) -> bytes:
        """The 32 secret bytes of the key that signs gateways' answers; made once, with the file."""
        with self._transaction():
            self._connection.execute(
                "INSERT OR IGNORE INTO enrolment_facts VALUES ('answer_seed', ?)", (secrets.token_hex(32),)
            )
            found = self._one("SELECT value FROM enrolment_facts WHERE name = 'answer_seed'")
        return b"" if found is None else bytes.fromhex(found[0])

    def invite(
        self,
        client_id: str,
        domain_id: str,
        features: Sequence[float] | None = None,
        valid_seconds: float = TOKEN_SECONDS,
        again: bool = False,
    ) -> str:
        """A new token for a client; one that it has and did not use is void.

        Args:
            again: Whether a client that is enrolled, or was revoked, may enrol anew, under other keys.

        Raises:
            UsageError: For an id that is none, or a client that is enrolled, unless `again`.
        """
        client_id, domain_id = check_name("client id", client_id), check_name("domain id", domain_id)
        token = secrets.token_urlsafe(32)
        with self._transaction():
            known = self.find(client_id)
            if known is not None and not again:
                state = "is enrolled" if known.revoked is None else "was revoked"
                raise UsageError(f"client {client_id!r} {state}; for another enrolment say --again")
            self._connection.execute(
                "DELETE FROM invitations WHERE client_id = ? AND used IS NULL", (client_id,)
            )
            row = (_hash(token), client_id, domain_id, _json(features), self._clock() + valid_seconds)
            self._connection.execute("INSERT INTO invitations VALUES (?, ?, ?, ?, ?, NULL)", row)
        return token

    def invitation(self, asked: EnrolRequest) -> Invitation | ErrorAnswer:
        """What an enrolment's token invites to, or why it is refused.

        The token is the first key's that shows it: of two that show it at a time, the federation would else
        know the one and the register the other.
        """
        if not asked.is_valid:
            return ErrorAnswer(ErrorCode.WRONG_SIGNATURE, "the enrolment is not signed by its key")
        token_hash = _hash(asked.token)
        found = self._one(
            "SELECT client_id, domain_id, features, expires, used FROM invitations WHERE token_hash = ?",
            (token_hash,),
        )
        if found is None or found[0] != asked.client_id:
            return ErrorAnswer(
                ErrorCode.BAD_TOKEN,
                "this kit is not valid: a newer one was made, or the site was revoked: "
                "ask the federation for its newest kit",
            )
        client_id, domain_id, features, expires, used = found
        known = self._one(
            "SELECT public_key, token_hash, revoked FROM enrolments WHERE client_id = ?", (client_id,)
        )
        if used is not None:
            same = self._one(
                "SELECT 1 FROM certificates WHERE client_id = ? AND csr_hash = ?",
                (client_id, _hash(asked.csr)),
            )
            if same is None or known != (asked.public_key, token_hash, None):
                return ErrorAnswer(ErrorCode.BAD_TOKEN, "the token was used")
        elif self._clock() > expires:
            return ErrorAnswer(ErrorCode.BAD_TOKEN, "the token has expired: ask the federation for a new kit")
        else:
            shown_by = (token_hash, asked.public_key)
            self._connection.execute("INSERT OR IGNORE INTO shown_tokens VALUES (?, ?)", shown_by)
            if (
                self._one("SELECT 1 FROM shown_tokens WHERE token_hash = ? AND public_key = ?", shown_by)
                is None
            ):
                return ErrorAnswer(ErrorCode.BAD_TOKEN, "the token was used")
        replaces = known is not None and known[0] != asked.public_key
        return Invitation(client_id, domain_id, _features(features), replaces)

    def enrol(self, asked: EnrolRequest, issue: Issue) -> str | ErrorAnswer:
        """Enrol a site; its certificate (PEM), the same one for the same request.

        Raises:
            UsageError: For a CSR that is none.
        """
        with self._transaction():
            invited = self.invitation(asked)
            if isinstance(invited, ErrorAnswer):
                return invited
            client_id, token_hash = invited.client_id, _hash(asked.token)
            known = self._one("SELECT token_hash FROM enrolments WHERE client_id = ?", (client_id,))
            if known != (token_hash,):
                self._connection.execute("DELETE FROM certificates WHERE client_id = ?", (client_id,))
                self._connection.execute(
                    "INSERT OR REPLACE INTO enrolments VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                    (
                        client_id,
                        invited.domain_id,
                        _json(invited.features),
                        asked.public_key,
                        asked.num_examples,
                        asked.policy,
                        token_hash,
                        self._clock(),
                    ),
                )
                self._connection.execute(
                    "UPDATE invitations SET used = ? WHERE token_hash = ?", (self._clock(), token_hash)
                )
            return self._certified(client_id, asked.csr, issue)

    def renew(
        self, client_id: str, csr: str, issue: Issue, overlap_seconds: float = OVERLAP_SECONDS
    ) -> str | ErrorAnswer:
        """A new certificate (PEM) for an enrolled site; those before it hold for the overlap.

        Raises:
            UsageError: For a CSR that is none.
        """
        with self._transaction():
            refused = judge(self.find(client_id), None, self._clock(), is_mutual=False)
            return refused or self._certified(client_id, csr, issue, self._clock() + overlap_seconds)

    @property
    def version(self) -> int:
        """Another number after each change, by any process: till then a copy of `enrolled` is good."""
        found = self._one("SELECT value FROM enrolment_facts WHERE name = 'version'")
        return 0 if found is None else int(found[0])

    def admit(
        self, client_id: str, fingerprint: str | None, is_mutual: bool = True
    ) -> Enrolment | ErrorAnswer:
        """Who asks, at this moment, or why not; arguments as in `judge`."""
        known = self.find(client_id)
        refused = judge(known, fingerprint, self._clock(), is_mutual)
        return refused or known or ErrorAnswer(ErrorCode.FORBIDDEN, "")

    def change_key(self, client_id: str, old: bytes, new: bytes) -> bool:
        """Have a site be known by another Ed25519 key, whose proofs the caller has checked; whether it is."""
        with self._transaction():
            self._connection.execute(
                "UPDATE enrolments SET public_key = ? WHERE client_id = ? AND public_key = ? "
                "AND revoked IS NULL",
                (new, client_id, old),
            )
            known = self.find(client_id)
            return known is not None and known.revoked is None and known.public_key == new

    def revoke(self, client_id: str) -> bool:
        """Refuse a site from its next request on, and void its invitation; whether there was any."""
        with self._transaction():
            voided = self._connection.execute(
                "DELETE FROM invitations WHERE client_id = ? AND used IS NULL", (client_id,)
            ).rowcount
            changed = self._connection.execute(
                "UPDATE enrolments SET revoked = ? WHERE client_id = ? AND revoked IS NULL",
                (self._clock(), client_id),
            ).rowcount
            return bool(voided or changed)

    def is_revoked(self, client_id: str) -> bool:
        """Whether a site that has enrolled was revoked since."""
        asked = "SELECT 1 FROM enrolments WHERE client_id = ? AND revoked IS NOT NULL"
        return self._one(asked, (client_id,)) is not None

    def find(self, client_id: str) -> Enrolment | None:
        """A site that has enrolled, revoked or not."""
        found = list(self._found("WHERE client_id = ?", (client_id,)))
        return found[0] if found else None

    def enrolled(self) -> list[Enrolment]:
        """All sites that have enrolled, by id."""
        return list(self._found("", ()))

    def invited(self) -> list[Invited]:
        """Clients whose token can still be used, by id."""
        rows = self._connection.execute(
            "SELECT client_id, domain_id, expires FROM invitations WHERE used IS NULL AND expires >= ? "
            "ORDER BY client_id",
            (self._clock(),),
        )
        return [Invited(*row) for row in rows]

    def _found(self, where: str, arguments: tuple[object, ...]) -> Iterator[Enrolment]:
        held: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for client_id, fingerprint, expires, retires in self._connection.execute(
            f"SELECT client_id, fingerprint, expires, retires FROM certificates {where} ORDER BY expires",
            arguments,
        ):
            held[client_id].append((fingerprint, expires if retires is None else min(expires, retires)))
        rows = self._connection.execute(
            "SELECT client_id, domain_id, public_key, features, num_examples, policy, revoked "
            f"FROM enrolments {where} ORDER BY client_id",
            arguments,
        )
        for client_id, domain_id, key, features, examples, policy, revoked in rows:
            certificates = tuple(held[client_id])
            yield Enrolment(
                client_id, domain_id, key, _features(features), examples, policy, certificates, revoked
            )

    def _certified(self, client_id: str, csr: str, issue: Issue, retires: float | None = None) -> str:
        csr_hash = _hash(csr)
        known = self._one(
            "SELECT pem FROM certificates WHERE client_id = ? AND csr_hash = ? AND retires IS NULL",
            (client_id, csr_hash),
        )
        if known is not None:
            return str(known[0])
        pem = issue(csr, client_id)
        facts = facts_of("client", pem)
        self._connection.execute(
            "UPDATE certificates SET retires = ? WHERE client_id = ? AND retires IS NULL",
            (self._clock() if retires is None else retires, client_id),
        )
        self._connection.execute(
            "INSERT INTO certificates VALUES (?, ?, ?, ?, ?, NULL)",
            (facts.fingerprint, client_id, csr_hash, pem, facts.expires),
        )
        self._connection.execute(
            "DELETE FROM certificates WHERE client_id = ? AND rowid NOT IN "
            "(SELECT rowid FROM certificates WHERE client_id = ? ORDER BY rowid DESC LIMIT ?)",
            (client_id, client_id, MOST_CERTIFICATES),
        )
        return pem

    def _one(self, statement: str, arguments: tuple[object, ...] = ()) -> tuple[Any, ...] | None:
        found: tuple[Any, ...] | None = self._connection.execute(statement, arguments).fetchone()
        return found

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        (level,) = self._connection.execute("PRAGMA synchronous").fetchone()
        self._connection.execute("PRAGMA synchronous=FULL")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute(
                "INSERT INTO enrolment_facts VALUES ('version', '1') "
                "ON CONFLICT (name) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
            )
            self._connection.execute("COMMIT")
        finally:
            self._connection.execute(f"PRAGMA synchronous={int(level)}")


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _json(features: Sequence[float] | None) -> str | None:
    if features is None:
        return None
    try:
        return json.dumps([float(number) for number in features], allow_nan=False)
    except (TypeError, ValueError):
        raise UsageError(f"features: {shown(features)} is not accepted; finite numbers") from None


def _features(text: object) -> tuple[float, ...] | None:
    return tuple(json.loads(text)) if isinstance(text, str) else None
