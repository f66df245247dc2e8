"""A site's own ledger: nothing beyond the ceiling, the same bytes again, and no older copy."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import dp_accounting
import numpy as np
import pytest

from scarcity_ray_client import Policy, SiteLedger, SiteLedgerRefused, SiteLedgers, UsageError
from scarcity_ray_client.accounting.modes import Accounting
from scarcity_ray_client.site_ledger import Extension, Head
from scarcity_ray_client.training import Cause, Refusal

POLICY = Policy("ward_3", "person", 2.0, 1e-6)
MU = 0.1


def opened(path: Path, policy: Policy = POLICY, **changes) -> SiteLedger:
    return SiteLedger.open(path, policy, **{"federation_id": "f1", "is_proof": True, **changes})


def drawn(size: int = 5) -> np.ndarray:
    return np.random.default_rng().normal(size=size).astype(np.float32)


def epsilon_by_google(mu: float, count: int, delta: float) -> float:
    """Of so many Gaussian releases, by dp-accounting's RDP: no smaller than the truth."""
    accountant = dp_accounting.rdp.RdpAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(1.0 / mu), count)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize("accounting", list(Accounting))
def test_nothing_is_sent_beyond_the_ceiling(tmp_path, accounting):
    ledger = opened(tmp_path / "ledger.sqlite", accounting=accounting)
    answers = [ledger.send("ward_3", number, MU, drawn) for number in range(80)]
    sent = sum(isinstance(answer, np.ndarray) for answer in answers)
    assert 0 < sent < 80
    assert all(isinstance(answer, Refusal) and answer.cause is Cause.AT_CEILING for answer in answers[sent:])
    assert ledger.epsilon_spent <= 2.0
    if accounting is Accounting.ZCDP:
        # Google's RDP accountant converts as tightly: it allows this many, and at most one more.
        assert epsilon_by_google(MU, sent, 1e-6) <= 2.0 * (1 + 1e-3) < epsilon_by_google(MU, sent + 2, 1e-6)
    # A smaller row may still fit; it is charged as what it is.
    assert isinstance(ledger.send("ward_3", 90, 0.0, drawn), np.ndarray)


def test_nobody_passes_it_together(tmp_path):
    """Many ledgers on one file, as many processes have them; and many threads with one."""
    path = tmp_path / "ledger.sqlite"

    def sent_by(ledger: SiteLedger, rounds: range) -> int:
        answers = [ledger.send("ward_3", number, MU, drawn) for number in rounds]
        return sum(isinstance(answer, np.ndarray) for answer in answers)

    alone = sent_by(opened(tmp_path / "alone.sqlite"), range(60))
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda worker: sent_by(opened(path), range(worker, 60, 4)), range(4))) == alone
        shared = opened(tmp_path / "shared.sqlite")
        assert sum(pool.map(lambda worker: sent_by(shared, range(worker, 60, 4)), range(4))) == alone
    assert shared.head.num_rows == 2 + alone, "a charge for each row that was sent"


def test_the_same_row_is_sent_again_byte_by_byte(tmp_path):
    ledger = opened(tmp_path / "ledger.sqlite")
    first = ledger.send("ward_3", 7, MU, drawn)
    spent = ledger.epsilon_spent
    for again in (ledger, opened(tmp_path / "ledger.sqlite")):
        repeated = again.send("ward_3", 7, MU, pytest.fail)
        assert repeated.tobytes() == first.tobytes()
        assert again.epsilon_spent == spent
    assert ledger.send("ward_3", 7, 0.2, pytest.fail).tobytes() == first.tobytes(), "at whatever cost"
    assert ledger.epsilon_spent == spent
    assert ledger.forget_rows(8) == 1
    forgotten = ledger.send("ward_3", 7, MU, pytest.fail)
    assert (forgotten.cause, ledger.epsilon_spent) == (Cause.LOST, spent)


def test_a_row_of_another_run_is_never_sent_again(tmp_path):
    """Opened anew on its ledger, a federation begins again at round 0, with another model."""
    ledger = opened(tmp_path / "ledger.sqlite")
    first, other = (ledger.send("ward_3", 0, MU, drawn, run) for run in ("1", "2"))
    assert (first != other).all()
    assert ledger.epsilon_spent == pytest.approx(epsilon_by_google(MU, 2, POLICY.delta), rel=1e-3)
    assert ledger.send("ward_3", 0, MU, pytest.fail, "1").tobytes() == first.tobytes()
    assert ledger.forget_rows(0, "2") == 1
    assert ledger.send("ward_3", 0, MU, pytest.fail, "1").cause is Cause.LOST
    assert ledger.send("ward_3", 0, MU, pytest.fail, "2").tobytes() == other.tobytes()
    with pytest.raises(UsageError, match="run: "):
        ledger.send("ward_3", 0, MU, pytest.fail, 2)  # type: ignore[arg-type]


def test_no_file_stays_open(tmp_path):
    ledgers = SiteLedgers(str(tmp_path / "ledgers"), "f1", {"ward_3": POLICY}, run="1")
    ledgers.open("ward_3").close()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        assert isinstance(ledgers.send("ward_3", number, MU, drawn), np.ndarray)
        ledgers.extension("ward_3")
        with pytest.raises(ZeroDivisionError):
            ledgers.send("ward_3", 9, MU, lambda: 1 / 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_draw_that_fails_is_not_charged(tmp_path):
    ledger = opened(tmp_path / "ledger.sqlite")

    def fails():
        raise ValueError("too few persons")

    with pytest.raises(ValueError, match="too few persons"):
        ledger.send("ward_3", 0, MU, fails)
    assert ledger.epsilon_spent == 0.0
    for client, round_id, mu, why in (
        ("ward_4", 0, MU, "client_id"),
        ("ward_3", -1, MU, "round_id"),
        ("ward_3", 0, math.inf, "mu"),
        ("ward_3", 0, -0.1, "mu"),
    ):
        with pytest.raises(UsageError, match=f"{why}: "):
            ledger.send(client, round_id, mu, pytest.fail)


KILLED = """
import os, signal, sys
import numpy as np
from scarcity_ray_client import Policy, SiteLedger
from scarcity_ray_client import site_ledger

path, where = sys.argv[1:]
ledger = SiteLedger.open(path, Policy("ward_3", "person", 2.0, 1e-6), federation_id="f1", is_proof=True)

def die(): os.kill(os.getpid(), signal.SIGKILL)

def make():
    row = np.arange(5, dtype=np.float32) + float.fromhex(os.environ["DRAW"])
    if where == "drawn": die()
    return row

class Watched:
    def __init__(self, inner): self.inner = inner
    def __getattr__(self, name): return getattr(self.inner, name)
    def execute(self, text, *more):
        if where == "before commit" and text == "COMMIT": die()
        if where == "charged" and text.startswith("INSERT INTO sent"): die()
        done = self.inner.execute(text, *more)
        if where == "after commit" and text == "COMMIT": die()
        return done

ledger._connection = Watched(ledger._connection)
print(ledger.send("ward_3", 7, 0.1, make).tobytes().hex(), flush=True)
"""


def run_killed(path: Path, where: str, draw: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(path), where],
        env={**os.environ, "DRAW": float(draw).hex()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("where", ["drawn", "charged", "before commit", "after commit"])
def test_a_row_that_was_not_committed_was_not_sent(tmp_path, where):
    """SIGKILL between the steps: what was not committed never left, what was is sent again as it was."""
    path = tmp_path / "ledger.sqlite"
    died = run_killed(path, where, 0.25)
    assert (died.returncode, died.stdout) == (-signal.SIGKILL, ""), died.stderr
    ledger = opened(path)
    row = ledger.send("ward_3", 7, 0.1, lambda: np.arange(5, dtype=np.float32) + np.float32(0.75))
    assert row[0] == (0.25 if where == "after commit" else 0.75)
    assert ledger.epsilon_spent == pytest.approx(Accounting.ZCDP.epsilon_of(MU, 1e-6))
    assert ledger.head.num_rows == 3


def told(ledger: SiteLedger, known: Head | None) -> Head | None:
    return (known or Head()).extended(ledger.extension(known))


def test_a_restored_backup_is_refused(tmp_path):
    path, copy = tmp_path / "ledger.sqlite", tmp_path / "copy.sqlite"
    ledger = opened(path)
    ledger.send("ward_3", 0, MU, drawn)
    known = told(ledger, None)
    ledger.close()
    shutil.copy(path, copy)
    ledger = opened(path)
    ledger.send("ward_3", 1, MU, drawn)
    newest = told(ledger, known)
    assert newest == ledger.head
    assert ledger.heed(newest)
    ledger.close()
    shutil.copy(copy, path)
    Path(f"{path}-wal").unlink(missing_ok=True)
    restored = opened(path)
    # The accountant refuses what the copy tells, whichever head it pretends to know, and the copy stops.
    for since in (known, None, newest):
        if since == newest:
            with pytest.raises(SiteLedgerRefused, match="does not hold the head"):
                restored.extension(since)
        else:
            assert newest.extended(restored.extension(since)) is None
    assert not restored.heed(newest)
    refused = restored.send("ward_3", 2, MU, pytest.fail)
    assert refused.cause is Cause.LEDGER_ROLLED_BACK
    assert "older copy" in refused.detail
    # A file that was begun anew holds no old head either, nor does a copy that was continued.
    assert not opened(tmp_path / "new.sqlite").heed(newest)
    forked = opened(copy)
    forked.send("ward_3", 1, MU, drawn)
    assert not forked.heed(newest)


def test_an_extension_that_is_none_leads_nowhere(tmp_path):
    ledger = opened(tmp_path / "ledger.sqlite")
    for number in range(3):
        ledger.send("ward_3", number, MU, drawn)
    whole = ledger.extension(None)
    assert Head().extended(whole) == ledger.head
    for wrong in (
        None,
        replace(whole, since=1),
        replace(whole, links=(*whole.links[:-1], b"short")),
        replace(whole, links=whole.links * 50_000),
    ):
        assert Head().extended(wrong) is None
    swapped = Extension(0, (whole.links[1], whole.links[0], *whole.links[2:]))
    assert Head().extended(swapped) != ledger.head


def test_what_the_accountant_is_told_confirms_no_guess_of_a_row(tmp_path):
    """Whoever knows all else of a row that has no noise, the ledger before it included, has no salt."""
    path, row = tmp_path / "ledger.sqlite", np.array([0.25, -0.5], np.float32)
    opened(path, is_proof=False).close()
    told = []
    for name in ("first", "second"):
        shutil.copy(path, tmp_path / name)
        with opened(tmp_path / name, is_proof=False) as ledger:
            ledger.send("ward_3", 0, MU, lambda: row, "7")
            told.append(ledger.extension(None).links)
    assert told[0][:-1] == told[1][:-1]
    assert told[0][-1] != told[1][-1]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE ledger SET record = replace(record, '0x1.99', '0x1.11') WHERE seq = 3",
        "DELETE FROM ledger WHERE seq = 3",
        "DELETE FROM ledger WHERE seq = 2",
        "UPDATE ledger SET seq = 9 WHERE seq = 3",
        "UPDATE ledger SET head = zeroblob(32) WHERE seq = 2",
    ],
)
def test_a_changed_file_is_refused(tmp_path, damage):
    ledger = opened(tmp_path / "ledger.sqlite")
    for number in range(2):
        ledger.send("ward_3", number, MU, drawn)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as file:
        with pytest.raises(sqlite3.IntegrityError, match="rows never"):
            file.execute(damage)
        file.execute("DROP TRIGGER no_update")
        file.execute("DROP TRIGGER no_delete")
        file.execute(damage)
    if damage.startswith("DELETE FROM ledger WHERE seq = 3") or "seq = 9" in damage:
        # Who has it open keeps its sums, and misses its newest row.
        with pytest.raises(SiteLedgerRefused):
            ledger.send("ward_3", 5, MU, pytest.fail)
    ledger.close()
    if "seq = 3" in damage and "DELETE" in damage:
        # Cut at its end: by itself it is whole, and the accountant's head is not in it.
        assert not opened(tmp_path / "ledger.sqlite").heed(Head(4, b"h" * 32))
    else:
        with pytest.raises(SiteLedgerRefused, match="the chain breaks"):
            opened(tmp_path / "ledger.sqlite")


def test_a_kept_row_that_was_changed_is_not_sent(tmp_path):
    ledger = opened(tmp_path / "ledger.sqlite")
    ledger.send("ward_3", 0, MU, drawn)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as file:
        file.execute("UPDATE sent SET row = zeroblob(20)")
    with pytest.raises(SiteLedgerRefused, match="was changed"):
        ledger.send("ward_3", 0, MU, drawn)


def test_a_looser_policy_changes_nothing(tmp_path):
    path = tmp_path / "ledger.sqlite"
    ledger = opened(path)
    for number in range(10):
        ledger.send("ward_3", number, MU, drawn)
    for looser in (replace(POLICY, lifetime_epsilon=3.0), replace(POLICY, delta=1e-5)):
        with pytest.raises(UsageError, match="allows more than the one in force"):
            opened(path, looser)
    stricter = opened(path, replace(POLICY, lifetime_epsilon=1.0))
    assert stricter.send("ward_3", 10, MU, pytest.fail).cause is Cause.AT_CEILING
    # Who has it open hears of it.
    assert ledger.send("ward_3", 11, MU, pytest.fail).cause is Cause.AT_CEILING
    with pytest.raises(UsageError, match="allows more"):
        opened(path)


@pytest.mark.parametrize(
    "changes",
    [{"federation_id": "f2"}, {"accounting": Accounting.GAUSSIAN_DP}, {"is_proof": False}],
    ids=str,
)
def test_another_ones_ledger_is_refused(tmp_path, changes):
    opened(tmp_path / "ledger.sqlite")
    with pytest.raises(SiteLedgerRefused, match=f"begun with another {next(iter(changes))}"):
        opened(tmp_path / "ledger.sqlite", **changes)
    with pytest.raises(SiteLedgerRefused, match="another client_id"):
        opened(tmp_path / "ledger.sqlite", replace(POLICY, client_id="ward_4"))
    with pytest.raises(UsageError, match="is for federation f9"):
        opened(tmp_path / "ledger.sqlite", replace(POLICY, federation_id="f9"))
    (tmp_path / "rubbish.sqlite").write_bytes(b"rubbish" * 1000)
    with pytest.raises(SiteLedgerRefused):
        opened(tmp_path / "rubbish.sqlite")


def test_a_newer_format_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("scarcity_ray_client.site_ledger.FORMAT", 3)
    opened(tmp_path / "ledger.sqlite").close()
    monkeypatch.undo()
    with pytest.raises(SiteLedgerRefused, match=r"a scarcity_ray site ledger of version 3, .* reads 1 to 2"):
        opened(tmp_path / "ledger.sqlite")


def test_a_folder_has_a_ledger_for_each_client(tmp_path):
    policies = {name: replace(POLICY, client_id=name) for name in ("ward_3", "../../ward")}
    ledgers = SiteLedgers(str(tmp_path / "ledgers"), "f1", policies)
    for name in policies:
        assert isinstance(ledgers.open(name).send(name, 0, MU, drawn), np.ndarray)
    assert sorted(path.suffix for path in (tmp_path / "ledgers").iterdir() if path.suffix == ".sqlite") == [
        ".sqlite",
        ".sqlite",
    ]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "ledgers").glob("*.sqlite")} == {0o600}
    with pytest.raises(UsageError, match="no policy"):
        ledgers.open("ward_5")
    late = replace(ledgers, acknowledged={"ward_3": Head(9, b"h" * 32)})
    assert late.open("ward_3").send("ward_3", 1, MU, pytest.fail).cause is Cause.LEDGER_ROLLED_BACK
    with sqlite3.connect(ledgers.path_of("ward_3")) as file:
        kinds = [json.loads(record)["kind"] for (record,) in file.execute("SELECT record FROM ledger")]
    assert kinds == ["begun", "policy", "row"]
