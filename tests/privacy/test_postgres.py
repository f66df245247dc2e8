"""The ledger in PostgreSQL: what the server must promise, and what if it, or the way to it, dies."""

from __future__ import annotations

import os
import pickle
import random
import signal
import socket
import threading
import time
import traceback
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scarcity_ray.errors import LedgerError, LedgerMissing, UsageError
from scarcity_ray.ledger_url import LedgerUrl
from scarcity_ray.privacy import DurableBudget, Ledger, PrivacyAccountant
from scarcity_ray.privacy.ledger.events import Genesis

psycopg = pytest.importorskip("psycopg", reason="the extra 'postgresql' is not installed")

TOTALS = {"total_epsilon": 1e3, "total_delta": 1e-5, "gossip_share": 0.25}


def begin(url, federation="hospital", **changes):
    return DurableBudget.open(url, name=federation, must_exist=False, now=1.0, **{**TOTALS, **changes})


def release(budget, charge_id, mu=0.01):
    return budget.charge_release(charge_id, mu, now=3.0, details={})


def recorded(url):
    ledger = Ledger.read(url)
    ledger.verify()
    ids = [row.charge_id for row in ledger.rows() if row.charge_id]
    ledger.close()
    return ids


def server_of(budget):
    return budget._ledger._store._server


def told(call, kind=LedgerError):
    """The error's text and all that a log would show of it."""
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value), "".join(traceback.format_exception(caught.value))


@pytest.fixture
def change(postgres_server):
    """Change settings of the server for one test."""
    changed = []

    def now(**settings):
        before = {}
        with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
            for name in settings:
                before[name] = connection.execute("SELECT current_setting(%s)", [name]).fetchone()[0]
        changed.append(before)
        put(settings)

    def put(settings):
        postgres_server.reload(**settings)
        for name, value in settings.items():
            wanted, deadline = str(value), time.monotonic() + 10
            while time.monotonic() < deadline:
                with psycopg.connect(postgres_server.url()) as connection:
                    if connection.execute("SELECT current_setting(%s)", [name]).fetchone()[0] == wanted:
                        break
            else:
                raise AssertionError(f"{name} did not change")

    yield now
    for before in reversed(changed):
        put(before)


# What the server must promise.


def test_a_commit_is_on_the_servers_disk(postgres_url, change):
    change(synchronous_commit="off")
    budget = begin(postgres_url)
    assert release(budget, "r0").allowed
    with server_of(budget).transaction(0):
        assert server_of(budget).ask("SHOW synchronous_commit") == [("on",)]
    assert server_of(budget).ask("SHOW synchronous_commit") == [("off",)], "for our transactions only"
    change(synchronous_commit="remote_apply")
    with server_of(budget).transaction(0):
        assert server_of(budget).ask("SHOW synchronous_commit") == [("remote_apply",)]


def test_a_server_that_does_not_sync_is_refused(postgres_url, change):
    budget = begin(postgres_url)
    change(fsync="off")
    for call in (lambda: release(budget, "r0"), lambda: begin(postgres_url, "bank")):
        with pytest.raises(LedgerError, match="does not keep what it confirms"):
            call()
    change(fsync="on")
    assert release(budget, "r0").allowed


def test_a_table_that_is_not_logged_is_refused(postgres_url):
    budget = begin(postgres_url)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("ALTER TABLE scarcity_ray.ledger SET UNLOGGED")
    with pytest.raises(LedgerError, match="the table is unlogged"):
        release(budget, "r0")


def test_a_commit_that_no_standby_confirmed_allows_nothing(postgres_url, change):
    budget = begin(postgres_url)
    change(synchronous_standby_names="nobody")
    refused = []

    def ask():
        # The second time the row is there already, and still not safe.
        for _ in range(2):
            refused.append(told(lambda: release(budget, "r0"))[0])

    thread = threading.Thread(target=ask)
    thread.start()
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        while thread.is_alive():
            admin.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            time.sleep(0.1)
    thread.join()
    assert len(refused) == 2
    assert "not confirm" in refused[0]
    assert all("cancel" in text for text in refused), refused
    change(synchronous_standby_names="")
    assert release(budget, "r0").repeated
    assert recorded(postgres_url) == ["r0"]


@pytest.mark.parametrize(
    "statement",
    ["UPDATE {} SET seq = seq", "DELETE FROM {}", "TRUNCATE {}", "UPDATE {} SET seq = 9 WHERE false"],
)
@pytest.mark.parametrize("role", ["origin", "replica"])
def test_rows_cannot_be_changed_by_accident(postgres_url, statement, role):
    begin(postgres_url)
    with psycopg.connect(postgres_url) as owner:
        owner.execute(f"SET session_replication_role = {role}")
        with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
            owner.execute(statement.format("scarcity_ray.ledger"))


def test_a_writer_needs_to_read_and_insert_only(postgres_url, postgres_server):
    begin(postgres_url).close()
    with psycopg.connect(postgres_url) as owner:
        owner.execute("DROP ROLE IF EXISTS clerk")
        owner.execute("CREATE ROLE clerk LOGIN PASSWORD 'clerks-word'")
    clerk = postgres_server.url(user="clerk", password="clerks-word")
    text, _ = told(lambda: begin(clerk))
    assert "permission denied" in text
    assert "grant this user USAGE" in text
    with psycopg.connect(postgres_url) as owner:
        owner.execute("GRANT USAGE ON SCHEMA scarcity_ray TO clerk")
        owner.execute("GRANT SELECT, INSERT ON scarcity_ray.ledger TO clerk")
    assert release(begin(clerk), "r0").allowed
    assert release(begin(clerk, "another"), "r0").allowed
    with psycopg.connect(postgres_url) as owner:
        owner.execute("DROP OWNED BY clerk")
        owner.execute("DROP ROLE clerk")


def test_a_server_that_takes_no_writes_is_told(postgres_url):
    begin(postgres_url).close()
    text, _ = told(lambda: begin(f"{postgres_url}?options=-cdefault_transaction_read_only%3Don"))
    assert "read-only" in text


# Many federations, one database.


def test_federations_share_a_database_and_nothing_else(postgres_url):
    budgets = {name: begin(postgres_url, name) for name in ("hospital", "bank")}
    for _ in range(2):
        assert all(release(budget, "r0").allowed for budget in budgets.values())
    assert release(budgets["bank"], "r1").allowed
    assert recorded(f"{postgres_url}?federation=hospital") == ["r0"]
    assert recorded(f"{postgres_url}?federation=bank") == ["r0", "r1"]
    with pytest.raises(UsageError, match="holds the ledgers of bank, hospital; say which with federation="):
        Ledger.read(postgres_url)
    with pytest.raises(LedgerMissing, match="federation 'school' is not there"):
        Ledger.read(f"{postgres_url}?federation=school")
    with pytest.raises(LedgerMissing, match="any federation"):
        Ledger.read(postgres_url.replace("/postgres", "/template1"))


def test_two_that_begin_at_once_make_one_ledger(postgres_url):
    made, refused = [], []
    genesis = Genesis(format=1, total_epsilon=1.0, total_delta=1e-5, gossip_share=0.0, name="hospital")

    def one():
        try:
            made.append(Ledger.create(postgres_url, genesis, now=1.0))
        except LedgerError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 3)
    assert all("there already" in text for text in refused), refused


def test_a_frozen_writer_does_not_block_its_successor(postgres_url, monkeypatch):
    from scarcity_ray import postgres

    monkeypatch.setattr(postgres, "_BEGIN", postgres._BEGIN.replace("'10s'", "'200ms'"))
    first = begin(postgres_url)
    ledger = first._ledger

    def wake_late():
        with ledger._store.writing():
            assert release(begin(postgres_url, take_over=True), "theirs").allowed
            ledger._store.commit(ledger._last())

    told(wake_late)
    with pytest.raises(LedgerError, match="moved on"):
        release(first, "late")
    assert recorded(postgres_url) == ["theirs"]


def test_a_lock_that_is_never_given_back_is_told(postgres_url, monkeypatch):
    from scarcity_ray import postgres

    first = begin(postgres_url)
    monkeypatch.setattr(postgres, "_BEGIN", postgres._BEGIN.replace("'15s'", "'100ms'"))
    with first._ledger._store.writing():
        assert "another writer holds the ledger" in told(lambda: begin(postgres_url))[0]
    assert release(first, "r0").allowed


# Deaths.


class Proxy:
    """A way to the server that is cut at a COMMIT: before the server has it, or before its answer is back."""

    def __init__(self, port):
        self._target = port
        self.cut = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [client, server]
            state = {"over": False}
            threading.Thread(target=self._forth, args=(client, server, state), daemon=True).start()
            threading.Thread(target=self._back, args=(client, server, state), daemon=True).start()

    def _forth(self, client, server, state):
        while data := self._read(client):
            if b"COMMIT\0" in data and self.cut is not None:
                state["over"] = True
                if self.cut == "before":
                    break
                self.cut = None
            server.sendall(data)
            if state["over"]:
                return
        self.cut = None
        self._end(client, server)

    def _back(self, client, server, state):
        while data := self._read(server):
            if state["over"]:
                break
            try:
                client.sendall(data)
            except OSError:
                break
        self._end(client, server)

    @staticmethod
    def _read(source):
        try:
            return source.recv(65536)
        except OSError:
            return b""

    @staticmethod
    def _end(*ends):
        for end in ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self):
        self._listener.close()
        self._end(*self._sockets)


@pytest.fixture
def proxy(postgres_server):
    made = Proxy(postgres_server.port)
    yield made
    made.close()


@pytest.mark.parametrize("cut", ["before", "after"])
@pytest.mark.parametrize("kind", ["release", "gossip", "renewal"])
def test_an_interrupted_charge_is_neither_lost_nor_doubled(postgres_url, postgres_server, proxy, cut, kind):
    way = postgres_url.replace(f":{postgres_server.port}/", f":{proxy.port}/")
    budget = begin(way)
    release(budget, "r0")
    model = PrivacyAccountant(1e3, 1e-5, gossip_share=0.25, delta_reserve=0.0)
    model.spend_release(0.01)
    proxy.cut = cut

    def charge():
        if kind == "release":
            return release(budget, "doubtful")
        if kind == "gossip":
            return budget.charge_gossip("doubtful", ["a", "b"], 0.5, now=3.0, details={})
        return budget.renew(2e3, 1e-5, now=3.0, operator="ann")

    text, log = told(charge)
    assert "nothing may be released" in text
    assert postgres_server.password not in log
    assert proxy.cut is None
    if kind == "renewal":
        assert budget.status(0.1).period == (cut == "after")
        return
    was_there = cut == "after"
    assert recorded(postgres_url) == ["r0"] + ["doubtful"] * was_there
    if kind == "release":
        assert charge().repeated == was_there
        model.spend_release(0.01)
    else:
        assert charge() == ("a", "b")
        model.spend_gossip(["a", "b"], 0.5)
    assert recorded(postgres_url) == ["r0", "doubtful"]
    assert budget.status(0.1).epsilon_spent == model.epsilon_spent()
    assert begin(postgres_url, take_over=True).status(0.1).epsilon_spent == model.epsilon_spent()


def test_what_was_interrupted_counts_before_it_is_asked_for_again(postgres_url, postgres_server, proxy):
    way = postgres_url.replace(f":{postgres_server.port}/", f":{proxy.port}/")
    budget = begin(way)
    proxy.cut = "after"
    told(lambda: release(budget, "doubtful", 0.5))
    again = begin(postgres_url, "other")
    release(again, "same", 0.5)
    assert budget.status(0.1).epsilon_spent == again.status(0.1).epsilon_spent > 0


def test_a_server_that_refuses_allows_nothing(postgres_url, postgres_server):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    nowhere = postgres_url.replace(f":{postgres_server.port}/", f":{port}/")
    for call in (lambda: begin(nowhere), lambda: Ledger.read(nowhere)):
        text, log = told(call)
        assert "cannot be used now" in text
        assert "Connection refused" in text
        assert postgres_server.password not in log


def retried(budget, server, charge_id):
    """Charge, and again after each failure, as a caller must."""
    failures = 0
    while True:
        try:
            assert release(budget, charge_id).allowed
            return failures
        except LedgerError as error:
            failures += 1
            if failures > 1000 or server.password in str(error):
                raise
            time.sleep(0.02)


def serving(server):
    """The process that serves the ledger's connection."""
    for pid in Path(f"/proc/{server._process.pid}/task/{server._process.pid}/children").read_text().split():
        try:
            if f"{server.user} postgres 127.0.0.1" in Path(f"/proc/{pid}/cmdline").read_text():
                return int(pid)
        except OSError:
            continue
    return None


@pytest.mark.long
@pytest.mark.parametrize("victim", ["backend", "server"])
def test_every_charge_is_recorded_once_whatever_dies(postgres_server, postgres_url, victim):
    budget = begin(postgres_url)
    rng = random.Random(3)
    over = threading.Event()
    kills, wanted = [], 2 if victim == "server" else 3

    def kill():
        while not over.is_set() and len(kills) < wanted:
            time.sleep(rng.uniform(0.01, 0.06))
            if victim == "server":
                postgres_server.kill()
                postgres_server.start()
                kills.append(victim)
            elif (pid := serving(postgres_server)) is not None:
                os.kill(pid, signal.SIGKILL)
                kills.append(pid)
                time.sleep(0.1)
                postgres_server.wait()

    killer = threading.Thread(target=kill)
    killer.start()
    k = failures = 0
    while killer.is_alive() or k < 20:
        failures += retried(budget, postgres_server, f"r{k}")
        k += 1
    over.set()
    killer.join()
    print(f"{len(kills)} kills, {k} charges, {failures} failures")
    postgres_server.wait()
    assert len(kills) == wanted
    assert recorded(postgres_url) == [f"r{i}" for i in range(k)]
    model = PrivacyAccountant(1e3, 1e-5, gossip_share=0.25, delta_reserve=0.0)
    for _ in range(k):
        model.spend_release(0.01)
    assert budget.status(0.1).epsilon_spent == model.epsilon_spent()
    assert begin(postgres_url, take_over=True).status(0.1).epsilon_spent == model.epsilon_spent()


def test_a_restart_between_charges_is_not_noticed(postgres_server, postgres_url):
    budget, reader = begin(postgres_url), Ledger.read(begin(postgres_url, "bank")._ledger.path)
    assert release(budget, "r0").allowed
    postgres_server.kill()
    postgres_server.start()
    assert release(budget, "r1").allowed
    assert release(budget, "r1").repeated
    reader.verify()


# The password, and what else stands in the URL.


def test_a_password_is_in_no_error(postgres_server, postgres_url):
    wrong = postgres_server.url(password="wr0ng%20word")
    text, log = told(lambda: begin(wrong))
    assert "password authentication failed" in text
    assert not any(word in log for word in ("wr0ng", "wr0ng word", "wr0ng%20word"))
    for bad in ("?sslmode=nonsense", "?no_such=parameter", "?port=1&sslpassword=hush-hush"):
        text, log = told(lambda bad=bad: Ledger.read(wrong + bad), (LedgerError, UsageError))
        assert "wr0ng" not in log
        assert "hush" not in log
    budget = begin(postgres_url)
    status = budget.status(0.1)
    shown = [repr(x) for x in (status, budget._ledger.path, LedgerUrl(postgres_url), vars(budget._ledger))]
    assert not any(postgres_server.password in text for text in shown)
    assert status.ledger_path.endswith("/postgres?federation=hospital")
    with psycopg.connect(postgres_url) as connection:
        everything = str(connection.execute("SELECT * FROM scarcity_ray.ledger").fetchall())
    assert postgres_server.password not in everything


def test_no_process_list_shows_the_password(postgres_server, postgres_url):
    budget = begin(postgres_url)
    with psycopg.connect(postgres_url) as connection:
        seen = str(connection.execute("SELECT * FROM pg_stat_activity").fetchall())
    assert "scarcity_ray ledger" in seen
    assert not budget.status(0.1).taken_over
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            seen += Path("/proc", process, "cmdline").read_text(errors="replace")
        except OSError:
            continue
    assert postgres_server.password not in seen


def certificate(folder, name):
    """A self-signed certificate of 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return paths


def test_tls_is_what_the_url_says(postgres_server, postgres_url, change):
    assert "server does not support SSL" in told(lambda: begin(f"{postgres_url}?sslmode=require"))[0]
    plain = begin(f"{postgres_url}?sslmode=disable&application_name=mine&connect_timeout=3")
    assert server_of(plain).ask("SHOW application_name") == [("mine",)]
    (ours, key), (other, _) = (certificate(postgres_server.folder, name) for name in ("ours", "other"))
    postgres_server.give(key)
    change(ssl_cert_file=ours, ssl_key_file=key)
    change(ssl="on")
    strict = f"{postgres_url}?sslmode=verify-full&sslrootcert="
    budget = begin(f"{strict}{ours}", take_over=True)
    query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    assert [server_of(one).ask(query) for one in (plain, budget)] == [[(False,)], [(True,)]]
    assert release(budget, "r0").allowed
    assert "certificate verify failed" in told(lambda: begin(f"{strict}{other}"))[0]
    elsewhere = f"{strict}{ours}".replace("@127.0.0.1:", "@localhost:")
    assert "does not match host name" in told(lambda: begin(elsewhere))[0]


def test_without_the_extra_the_remedy_is_told(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "scarcity_ray.privacy.ledger.postgres", None)
    with pytest.raises(UsageError, match=r"pip install 'scarcity-ray\[postgresql\]'"):
        Ledger.read("postgresql://db/x?federation=y")


def test_urls_travel(postgres_url):
    url = LedgerUrl(postgres_url)
    again = pickle.loads(pickle.dumps(url))
    assert again == url == postgres_url
    assert again.conninfo == postgres_url
