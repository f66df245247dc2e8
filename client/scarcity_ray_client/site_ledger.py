"""A site's own ledger: what it has sent, what that costs, and that it does not send beyond its ceiling.

*What it is worth.* Under site noise (``privacy: {noise: site}``) it is a **proof**: the site noises its row
itself, so what a row costs is known here, and no row leaves once the ceiling is reached, whatever the
federation does. That holds against the cluster's operator only where training, entropy and this file are in a
process of the site's own. Under central noise it is a **promise**: the site sends its row without noise and
cannot see the sigma of a release. It stops after as many rows as the stated costs allow, which protects it if
the federation noises as it says. `SiteLedger.is_proof` says which.

*One draw a charge.* `SiteLedger.send` checks the ceiling, has the row noised, and commits charge and row in
one transaction before it returns the row. Killed before the commit, the row was never sent; killed after it,
the same row is sent again, byte by byte. So each charge has one row, and nothing leaves uncharged.

*Backups.* An older copy of the file would grant again what is spent. Its rows are a hash chain::

    link    SHA-256 of the row's record (JSON with sorted keys)
    head    SHA-256(head before + link); before the first row: 32 zero bytes

The record of a row that was sent has a salt of 256 bits. Under central noise the row is not noised, and its
digest alone would let whoever reads two heads in the federation's ledger confirm a guess of it.

With each charge the site tells the federation's accountant the links since the head that it was told last
(`Extension`), and the accountant keeps the new head in its own ledger if these lead to it. A copy that lacks
the head that the accountant knows is refused, on both sides: `SiteLedger.heed` stops the site, and
`Head.extended` the accountant. What was sent since the last exchange is not covered by this.

Guarantees:
    nothing_is_sent_beyond_the_ceiling: Whoever asks, in any number of processes and threads.
    the_same_row_is_sent_again_byte_by_byte: Also after SIGKILL at any moment; the row is charged once.
    a_row_of_another_run_is_never_sent_again: A federation that is opened anew has another model in round 0.
    no_file_stays_open: Of a folder's ledgers, whatever happens in between.
    a_row_that_was_not_committed_was_not_sent
    what_the_accountant_is_told_confirms_no_guess_of_a_row: Its links and heads are salted.
    a_changed_file_is_refused: A row that was edited, removed or moved.
    a_restored_backup_is_refused: By the site and by the accountant.
    a_looser_policy_changes_nothing: A stricter one is taken over.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scarcity_ray_client.accounting.modes import ROUNDING, Accounting
from scarcity_ray_client.errors import SiteLedgerRefused, UsageError, shown
from scarcity_ray_client.formats import why_not_read
from scarcity_ray_client.models import FloatVector
from scarcity_ray_client.policy import Policy
from scarcity_ray_client.training import Cause, Refusal

HASH_BYTES = 32
KIND = "scarcity_ray site ledger"
FORMAT = 2
"""1: rows that were sent state no run; such a file is migrated when it is opened."""
MOST_LINKS = 100_000
"""Rows that one exchange may tell of."""
_BUSY_SECONDS = 30.0
_SENT = """CREATE TABLE sent (
    run TEXT NOT NULL, round_id INTEGER NOT NULL, seq INTEGER NOT NULL UNIQUE, row BLOB,
    PRIMARY KEY (run, round_id)
) STRICT"""
_TABLES = f"""
CREATE TABLE ledger (seq INTEGER PRIMARY KEY, record TEXT NOT NULL, head BLOB NOT NULL) STRICT;
{_SENT};
CREATE TRIGGER no_update BEFORE UPDATE ON ledger BEGIN SELECT RAISE(ABORT, 'rows never change'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON ledger BEGIN SELECT RAISE(ABORT, 'rows never go'); END;
"""


@dataclass(frozen=True)
class Extension:
    """What a site tells of its ledger: the links of the rows after the first `since`, in order."""

    since: int
    links: tuple[bytes, ...]


@dataclass(frozen=True)
class Head:
    """How far a site's ledger is known: its number of rows and the chain's head after these."""

    num_rows: int = 0
    head: bytes = bytes(HASH_BYTES)

    def extended(self, told: Extension) -> Head | None:
        """The head after what the site tells; None if that does not begin here: a copy, or another file."""
        formed = (
            type(told) is Extension
            and told.since == self.num_rows
            and len(told.links) <= MOST_LINKS
            and all(type(link) is bytes and len(link) == HASH_BYTES for link in told.links)
        )
        if not formed:
            return None
        head = self.head
        for link in told.links:
            head = _chained(head, link)
        return Head(self.num_rows + len(told.links), head)


class SiteLedger:
    """One client's ledger for one federation, a SQLite file at the site; made by `open`.

    Attributes:
        policy: The ceiling in force.
        is_proof: Whether the site noises its rows itself, so that the ceiling holds whatever others do.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.RLock()
        self._rolled_back = ""
        self._read()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        policy: Policy,
        *,
        federation_id: str,
        accounting: Accounting = Accounting.ZCDP,
        is_proof: bool,
    ) -> SiteLedger:
        """Continue the ledger at `path`, or begin it there.

        Args:
            policy: The client's ceiling, as it signed it for the federation; a stricter one replaces the
                ledger's, a looser one is refused.
            federation_id: The federation's random id (`HierarchicalFederation.federation_id`).
            accounting: What the rows' costs add up in, as the federation's ledger.
            is_proof: Whether the rows that are sent are noised here.

        Raises:
            SiteLedgerRefused: If the file is no such ledger, another client's or federation's, or damaged.
            UsageError: If the policy is looser than the one in force.
        """
        path = Path(os.path.realpath(path))
        begun = {
            "accounting": accounting.value,
            "client_id": policy.client_id,
            "federation_id": federation_id,
            "is_proof": is_proof,
            "kind": "begun",
        }
        if policy.federation_id not in ("", federation_id):
            raise UsageError(
                f"policy: it is for federation {policy.federation_id}, and this is {federation_id}"
            )
        if not path.exists():
            _create(path)
        ledger = cls(path, _connected(path))
        try:
            ledger._begin(begun, policy)
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def existing(cls, path: str | os.PathLike[str]) -> SiteLedger:
        """The ledger at `path` as it stands, under the policy in force there; to be looked at.

        Raises:
            SiteLedgerRefused: If there is none, or it is damaged.
        """
        place = Path(os.path.realpath(path))
        ledger = cls(place, _connected(place))
        if ledger._policy is None:
            ledger.close()
            raise SiteLedgerRefused(f"{place}: it has no policy yet")
        return ledger

    @property
    def head(self) -> Head:
        """How far the ledger is."""
        with self._transaction():
            return self._head

    @property
    def epsilon_spent(self) -> float:
        """What was sent so far, at the policy's delta."""
        with self._transaction():
            square, policy = self._square, self.policy
            spent = self.accounting.epsilon_of(math.sqrt(square), policy.delta)
            return min(spent, policy.lifetime_epsilon) if square <= self._cap * ROUNDING else spent

    def send(
        self, client_id: str, round_id: int, mu: float, make: Callable[[], FloatVector], run: str = ""
    ) -> FloatVector | Refusal:
        """The row to send in a round, charged and on disk; asked again, the same one, without `make`.

        Args:
            round_id: The round, and `run` what counts it: rounds begin again at 0 when a federation is opened
                anew on its ledger, and a row of an earlier run is made from another model.
            mu: What the row costs: Delta over sigma, sqrt(2 rho) in zCDP; under central noise, what the
                federation says that a release costs.
            make: Gives the row, float32 (d,); under site noise, the noised one, drawn when it is called.

        Returns:
            The row, or why it is not sent: the ceiling, or a file that is an older copy.

        Raises:
            UsageError: For another client, or what is no round or cost.
            SiteLedgerRefused: If the file cannot be used; nothing may be sent then.
        """
        if client_id != self.policy.client_id:
            raise UsageError(
                f"client_id: {shown(client_id)} is not {self.policy.client_id!r}, whose ledger it is"
            )
        if not (isinstance(round_id, int) and 0 <= round_id < 2**63):
            raise UsageError(f"round_id: {shown(round_id)} is not accepted; an int of at least 0")
        if not (math.isfinite(mu) and mu >= 0.0):
            raise UsageError(f"mu: {mu!r} is not accepted; a finite number of at least 0")
        if not isinstance(run, str):
            raise UsageError(f"run: {shown(run)} is not accepted; a text")
        with self._transaction() as connection:
            if self._rolled_back:
                return Refusal(client_id, round_id, Cause.LEDGER_ROLLED_BACK, self._rolled_back)
            known = connection.execute(
                "SELECT ledger.record, sent.row FROM sent JOIN ledger USING (seq) "
                "WHERE run = ? AND round_id = ?",
                (run, round_id),
            ).fetchone()
            if known is not None:
                return self._again(client_id, round_id, *known)
            if self._square + mu * mu > self._cap * ROUNDING:
                epsilon, delta = self.policy.lifetime_epsilon, self.policy.delta
                why = f"another row would pass the site's own ceiling, epsilon {epsilon:g} at delta {delta:g}"
                return Refusal(client_id, round_id, Cause.AT_CEILING, why)
            row = np.ascontiguousarray(make(), dtype="<f4")
            data = row.tobytes()
            digest = hashlib.sha256(data).hexdigest()
            salt = secrets.token_hex(HASH_BYTES)
            charge = {
                "kind": "row",
                "mu": mu.hex(),
                "round_id": round_id,
                "run": run,
                "salt": salt,
                "sha256": digest,
            }
            seq = self._append(connection, charge)
            connection.execute("INSERT INTO sent VALUES (?, ?, ?, ?)", (run, round_id, seq, data))
            connection.execute("COMMIT")
            return row

    def forget_rows(self, before_round: int, run: str = "") -> int:
        """Drop the bytes of rows of earlier rounds, and of all other runs, which are not sent again then.

        Returns:
            How many were dropped. Charges stay.
        """
        with self._transaction() as connection:
            dropped = connection.execute(
                "UPDATE sent SET row = NULL WHERE (round_id < ? OR run <> ?) AND row IS NOT NULL",
                (before_round, run),
            ).rowcount
            connection.execute("COMMIT")
            return int(dropped)

    def heed(self, acknowledged: Head | None) -> bool:
        """Check the file against the newest head that the federation's accountant knows, before `send`.

        Returns:
            Whether the file holds it. If not, it is an older copy or another file, and nothing is sent any
            more.
        """
        with self._transaction() as connection:
            if acknowledged is not None and not self._holds(connection, acknowledged):
                self._rolled_back = (
                    f"{self.path}: the accountant was told of {acknowledged.num_rows} rows, and this file "
                    "does not hold them: it is an older copy or another site's; bring back the newest one"
                )
            return not self._rolled_back

    def extension(self, acknowledged: Head | None) -> Extension:
        """What to tell the accountant, which knows the ledger as far as `acknowledged`.

        Raises:
            SiteLedgerRefused: If the ledger does not hold that head: it is an older copy.
        """
        known = acknowledged or Head()
        with self._transaction() as connection:
            if not self._holds(connection, known):
                raise SiteLedgerRefused(f"{self.path}: it does not hold the head that the accountant knows")
            rows = connection.execute(
                "SELECT record FROM ledger WHERE seq >= ? ORDER BY seq LIMIT ?", (known.num_rows, MOST_LINKS)
            )
            return Extension(known.num_rows, tuple(_link(record) for (record,) in rows))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> SiteLedger:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _again(self, client_id: str, round_id: int, record: str, data: bytes | None) -> FloatVector | Refusal:
        if data is None:
            return Refusal(client_id, round_id, Cause.LOST, "its row was sent and is not kept any more")
        if hashlib.sha256(data).hexdigest() != json.loads(record)["sha256"]:
            raise SiteLedgerRefused(f"{self.path}: the kept row of round {round_id} was changed")
        return np.frombuffer(data, dtype="<f4").astype(np.float32)

    def _begin(self, begun: Mapping[str, object], policy: Policy) -> None:
        with self._transaction() as connection:
            if self._head.num_rows == 0:
                self._append(connection, {**begun, "format": FORMAT, "nonce": secrets.token_hex(16)})
            elif any(self._begun.get(name) != value for name, value in begun.items()):
                differs = sorted(name for name, value in begun.items() if self._begun.get(name) != value)
                raise SiteLedgerRefused(f"{self.path}: it was begun with another {', '.join(differs)}")
            if self._begun["format"] == 1:
                _migrate_from_1(connection)
            if self._policy is not None and policy.loosens(self._policy):
                raise UsageError(
                    f"policy: it allows more than the one in force in {self.path}, epsilon "
                    f"{self._policy.lifetime_epsilon:g} at delta {self._policy.delta:g}"
                )
            if self._policy is None or self._policy.loosens(policy):
                self._append(connection, {"kind": "policy", "policy": policy.encode().decode()})
            connection.execute("COMMIT")
        self._read()

    def _holds(self, connection: sqlite3.Connection, known: Head) -> bool:
        if known.num_rows == 0:
            return known == Head()
        found = connection.execute("SELECT head FROM ledger WHERE seq = ?", (known.num_rows - 1,)).fetchone()
        return found is not None and found[0] == known.head

    def _append(self, connection: sqlite3.Connection, content: Mapping[str, object]) -> int:
        record = json.dumps(content, sort_keys=True, separators=(",", ":"))
        seq, head = self._head.num_rows, _chained(self._head.head, _link(record))
        connection.execute("INSERT INTO ledger VALUES (?, ?, ?)", (seq, record, head))
        self._take(seq, record, head)
        return seq

    def _read(self) -> None:
        """Walk the chain from its beginning."""
        self._head, self._square, self._cap = Head(), 0.0, 0.0
        self._begun: dict[str, object] = {}
        self._policy: Policy | None = None
        with self._transaction() as connection:
            if self._begun.get("format") == FORMAT:
                self._check_sent(connection)

    def _check_sent(self, connection: sqlite3.Connection) -> None:
        """Check that the rows that are kept are those that were charged, each under its own round."""
        found = "SELECT run, round_id, record FROM ledger LEFT JOIN sent USING (seq)"
        is_whole = connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for run, round_id, record in connection.execute(found):
            content = json.loads(record)
            is_row = content["kind"] == "row"
            charged = (content.get("run", ""), content["round_id"]) if is_row else (None, None)
            is_whole = is_whole and (run, round_id) == charged
        if not is_whole:
            raise SiteLedgerRefused(
                f"{self.path}: the rows that are kept are not those that were charged, or their index is "
                "torn: bring back a copy"
            )

    def _catch_up(self, connection: sqlite3.Connection) -> None:
        """Take the rows that other processes have added."""
        rows = connection.execute(
            "SELECT seq, record, head FROM ledger WHERE seq >= ? ORDER BY seq", (self._head.num_rows,)
        )
        for seq, record, head in rows.fetchall():
            is_read = isinstance(record, str) and isinstance(head, bytes)
            if not is_read or seq != self._head.num_rows or head != _chained(self._head.head, _link(record)):
                raise SiteLedgerRefused(f"{self.path}: the chain breaks at row {self._head.num_rows}")
            try:
                self._take(seq, record, head)
            except (LookupError, TypeError, ValueError) as error:
                raise SiteLedgerRefused(f"{self.path}: row {seq} cannot be read: {error!r:.150}") from error
        if not self._holds(connection, self._head):
            raise SiteLedgerRefused(f"{self.path}: it lost rows while it was in use")

    def _take(self, seq: int, record: str, head: bytes) -> None:
        content = json.loads(record)
        match content["kind"]:
            case "begun":
                why = why_not_read(KIND, FORMAT, KIND, content["format"])
                if why:
                    raise SiteLedgerRefused(f"{self.path}: {why}")
                self._begun = content
                self.accounting = Accounting(content["accounting"])
                self.is_proof = content["is_proof"]
            case "policy":
                self._policy = self.policy = Policy.decode(content["policy"])
                cap = self.accounting.mu_of_claim(self.policy.lifetime_epsilon, self.policy.delta) ** 2
                self._cap = cap if seq == 1 else min(cap, self._cap)
            case "row":
                self._square += float.fromhex(content["mu"]) ** 2
            case kind:
                raise SiteLedgerRefused(
                    f"{self.path}: row {seq} is of a kind that is not known: {shown(kind)}"
                )
        self._head = Head(seq + 1, head)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One write transaction against all other threads and processes; rolled back unless committed."""
        with self._lock, self._locked() as connection:
            yield connection

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        before = self._head, self._square, self._cap, self._begun, self._policy
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._catch_up(self._connection)
            before = self._head, self._square, self._cap, self._begun, self._policy
            yield self._connection
        except (sqlite3.Error, UnicodeError) as error:
            raise SiteLedgerRefused(
                f"{self.path}: the site's ledger cannot be used: {error!r:.150}"
            ) from error
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
                self._head, self._square, self._cap, self._begun, self._policy = before


@dataclass(frozen=True)
class SiteLedgers:
    """The ledgers of the clients that train on this machine, a file for each in one folder.

    Attributes:
        folder: On the site's own disk.
        policies: By client.
        acknowledged: The newest heads that the federation's accountant knows, by client.
        run: What counts the rounds, as in `SiteLedger.send`.
    """

    folder: str
    federation_id: str
    policies: Mapping[str, Policy]
    accounting: Accounting = Accounting.ZCDP
    is_proof: bool = True
    acknowledged: Mapping[str, Head] = field(default_factory=dict)
    run: str = ""

    def open(self, client_id: str) -> SiteLedger:
        """A client's ledger, checked against the accountant's head, for the caller to close.

        Raises:
            UsageError: If the client has no policy, so no ceiling.
        """
        policy = self.policies.get(client_id)
        if policy is None:
            raise UsageError(
                f"client {shown(client_id)} has no policy, which a ledger of its own is kept for"
            )
        ledger = SiteLedger.open(
            self.path_of(client_id),
            policy,
            federation_id=self.federation_id,
            accounting=self.accounting,
            is_proof=self.is_proof,
        )
        try:
            ledger.heed(self.acknowledged.get(client_id))
        except BaseException:
            ledger.close()
            raise
        return ledger

    def send(
        self, client_id: str, round_id: int, mu: float, make: Callable[[], FloatVector]
    ) -> FloatVector | Refusal:
        """The row to send in a round of this run, as `SiteLedger.send` gives it."""
        with self.open(client_id) as ledger:
            return ledger.send(client_id, round_id, mu, make, self.run)

    def extension(self, client_id: str) -> Extension:
        """What to tell the accountant of a client's ledger, after it has sent."""
        with self.open(client_id) as ledger:
            return ledger.extension(self.acknowledged.get(client_id))

    def path_of(self, client_id: str) -> Path:
        """The file of a client's ledger."""
        return Path(self.folder) / f"{hashlib.sha256(client_id.encode()).hexdigest()[:32]}.sqlite"


def _link(record: str) -> bytes:
    return hashlib.sha256(record.encode()).digest()


def _chained(head: bytes, link: bytes) -> bytes:
    return hashlib.sha256(head + link).digest()


def _create(path: Path) -> None:
    """Make an empty ledger, whole before it has its name; another process may be first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(6)}.new")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        connection = _connected(draft)
        connection.executescript(_TABLES)
        connection.close()
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        if os.name != "nt":  # Windows opens no folder, and NTFS keeps a link that it has answered
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except (OSError, sqlite3.Error) as error:
        raise SiteLedgerRefused(f"{path}: the site's ledger could not be made: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


def _migrate_from_1(connection: sqlite3.Connection) -> None:
    """Have the rows that were sent state a run, the empty one, if they state none; in a transaction."""
    if any(column == "run" for _, column, *_ in connection.execute("PRAGMA table_info(sent)")):
        return
    connection.execute("ALTER TABLE sent RENAME TO sent_1")
    connection.execute(_SENT)
    connection.execute("INSERT INTO sent SELECT '', round_id, seq, row FROM sent_1")
    connection.execute("DROP TABLE sent_1")


def _connected(path: Path) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=rw"
    try:
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, timeout=_BUSY_SECONDS, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
    except (sqlite3.Error, UnicodeError) as error:
        raise SiteLedgerRefused(f"{path}: the site's ledger cannot be opened: {error}") from error
    return connection
