"""``scarcity-ray ledger``: reads what was charged, finds what was changed, disturbs nobody."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.cli.main import main
from scarcity_ray.config import load
from scarcity_ray.errors import LedgerTakenOver
from scarcity_ray.privacy import Accounting, DurableBudget, Ledger
from scarcity_ray.privacy.ledger.chain import NO_HASH, canonical, seal
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray_client import IdentityKeyPair, Policy

BUDGET = {"name": "hospital", "total_epsilon": 5.0, "total_delta": 1e-5, "gossip_share": 0.5}


def command(*arguments):
    """The command's result; never an unforeseen exception."""
    result = CliRunner().invoke(main, ["ledger", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(code, *arguments):
    """The one line that a refused command says."""
    result = command(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    if code == 1:
        assert result.stderr.startswith("scarcity-ray: ")
        assert len(result.stderr.splitlines()) == 1
    return result.stderr


def lines(*arguments):
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line, parse_constant=pytest.fail) for line in result.stdout.splitlines()]


@pytest.fixture
def budget(tmp_path):
    """A writer that stays at work, with five rows behind it."""
    budget = DurableBudget.open(tmp_path / "ledger.sqlite", must_exist=False, now=1.0, **BUDGET)
    details = {"round": 3, "scale": 2.0, "grid_sigma": 8.0, "grid_sensitivity": 2.4}
    budget.charge_release("r0", 0.3, now=1e9, details=details)
    details = {"round": 3, "kind": "drift", "sigma": 5.0}
    budget.charge_gossip("g0", ["bo", "ann"], 0.2, now=1e9 + 60, details=details)
    budget.renew(6.0, 1e-5, now=1e9 + 120, operator="dee")
    yield budget
    budget.close()


@pytest.fixture
def path(budget, tmp_path):
    return tmp_path / "ledger.sqlite"


def copied(path, *statements):
    """A copy, changed behind the ledger's back."""
    copy = path.with_name("copy.sqlite")
    copy.unlink(missing_ok=True)
    with sqlite3.connect(path) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    for statement in statements:
        target.execute(*statement)
    target.commit()
    target.close()
    source.close()
    return copy


def rows_of(path):
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT * FROM ledger ORDER BY seq").fetchall()
    finally:
        connection.close()


def test_show_says_who_what_when_the_noise_and_epsilon_after(path):
    genesis, writer, release, gossip, renewal = lines("show", path, "--format", "json")
    assert genesis["who"] == "federation hospital"
    assert writer["who"] == f"process {os.getpid()}, epoch 1"
    assert (release["at"], release["what"], release["who"]) == (1e9, "release, round 3", "all clients")
    assert (release["sigma"], release["sensitivity"], release["mu"]) == (4.0, 1.2, 0.3)
    assert gossip["what"] == "gossip, drift, round 3"
    assert gossip["who"] == "2 of 2 clients"
    assert (gossip["sigma"], gossip["sensitivity"]) == (5.0, 1.0)
    assert (renewal["what"], renewal["who"]) == ("renewal, epsilon 6.0, delta 1e-05", "dee")
    spent = [line["epsilon_spent"] for line in (genesis, writer, release, gossip, renewal)]
    assert spent == [line["epsilon_spent"] for line in lines("export", path)]
    assert 0.0 == spent[0] < spent[2] < spent[3]
    assert spent[4] == 0.0
    shown = command("show", path).stdout
    for words in ("2001-09-09 01:46:40", "release, round 3", "2 of 2 clients", "1.2", renewal["hash"]):
        assert words in shown
    assert f"{spent[3]:.4g}" in shown
    assert "epsilon 0 of 6 spent at delta 1e-05 in budget period 1" in shown


def test_a_ledger_in_zcdp_says_so_and_states_rho(tmp_path):
    path = tmp_path / "zcdp.sqlite"
    given = {**BUDGET, "accounting": Accounting.ZCDP}
    with closing(DurableBudget.open(path, must_exist=False, now=1.0, **given)) as budget:
        budget.charge_release("r0", 0.3, now=2.0, details={})
        spent = budget.status(0.1).epsilon_spent
    shown = lines("show", path, "--format", "json")
    assert [line["rho"] for line in shown] == [None, None, pytest.approx(0.045)]
    assert [line["mu"] for line in shown] == [None, None, None]
    for line in (*shown, *lines("export", path)):
        assert line["accounting"] == "zcdp"
    assert shown[2]["epsilon_spent"] == spent
    assert "added up in zcdp" in command("show", path).stdout
    assert "It adds up zcdp." in command("verify", path).stdout


def test_show_last_gives_the_newest_rows(path):
    assert [line["seq"] for line in lines("show", path, "--last", 2, "--format", "json")] == [3, 4]
    assert "rows 3 to 4" in command("show", path, "--last", "2").stdout
    assert [line["seq"] for line in lines("show", path, "--last", 99, "--format", "json")] == [0, 1, 2, 3, 4]
    assert "--last" in refused(2, "show", path, "--last", 0)


def test_export_gives_every_row_as_a_json_line(path, tmp_path):
    exported = lines("export", path)
    assert [line["kind"] for line in exported] == ["genesis", "writer", "release", "gossip", "renewal"]
    assert sorted(exported[3]["clients"]) == ["ann", "bo"]
    assert exported[2]["body"]["details"]["grid_sigma"] == 8.0
    out = tmp_path / "out.jsonl"
    assert command("export", path, "--out", out).stdout == ""
    assert out.read_text() == command("export", path).stdout
    assert out.stat().st_mode & 0o777 == 0o600


def test_export_replaces_no_file(path, tmp_path):
    before = path.read_bytes()
    assert "is not replaced" in refused(2, "export", path, "--out", path)
    assert path.read_bytes() == before
    assert "cannot be made" in refused(2, "export", path, "--out", tmp_path / "no" / "out")
    broken = copied(path, ("UPDATE ledger SET payload = x'00' WHERE seq = 3",))
    assert "breaks at row 3" in refused(1, "export", broken, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_checked_rows_are_shown(path):
    broken = copied(path, ("UPDATE ledger SET payload = x'00' WHERE seq = 3",))
    for form in ("text", "json"):
        refused(1, "show", broken, "--format", form)
    result = command("export", broken)
    assert result.exit_code == 1
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == [0, 1, 2]
    assert "breaks at row 3" in result.stderr


def test_infinities_are_valid_json(tmp_path):
    path = tmp_path / "endless.sqlite"
    given = {**BUDGET, "total_epsilon": math.inf}
    budget = DurableBudget.open(path, must_exist=False, now=1.0, **given)
    budget.charge_release("r", math.inf, now=2.0, details={"scale": 2.0, "grid_sigma": 0.0})
    for words in (("show", path, "--format", "json"), ("export", path)):
        assert lines(*words)[-1]["epsilon_spent"] == "inf"
    assert "epsilon inf of inf" in command("show", path).stdout
    assert command("verify", path).exit_code == 0


def test_verify_holds_for_a_whole_ledger(path, budget):
    head = budget.status(0.1).head_hash
    result = command("verify", path)
    assert result.exit_code == 0
    assert "the chain holds, 5 rows" in result.stdout
    assert "cut, rolled back or replaced would pass too" in result.stdout
    assert f"head {head}" in result.stdout
    (told,) = lines("verify", path, "--format", "json")
    whole = {"holds": True, "rows": 5, "accounting": "gaussian_dp", "head": head, "row_of_given_head": None}
    assert whole.items() <= told.items()
    assert told["neighbours"] == "replace-one client"
    assert "Its neighbours are replace-one client." in result.stdout


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE ledger SET record = replace(record, '\"mu\":0.3', '\"mu\":0.1') WHERE seq = 2", 2),
        ("UPDATE ledger SET payload = zeroblob(0) WHERE seq = 3", 3),
        ("UPDATE ledger SET hash = zeroblob(32) WHERE seq = 2", 2),
        ("DELETE FROM ledger WHERE seq = 2", 2),
        ("UPDATE ledger SET seq = seq + 9 WHERE seq = 2", None),
        ("UPDATE ledger SET record = '{\"seq\":1e999}' WHERE seq = 2", 2),
        ("UPDATE ledger SET record = '[' || record || ']' WHERE seq = 2", 2),
    ],
)
def test_verify_finds_any_edit_deletion_or_reordering(path, statement, row):
    broken = copied(path, (statement,))
    told = refused(1, "verify", broken)
    assert str(broken) in told
    assert "bring back" in told
    assert row is None or f"row {row}" in told
    result = command("verify", broken, "--format", "json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert (answer["holds"], answer["error"]) == (False, "LedgerCorrupted")
    assert answer["reason"] in told


def test_a_deeply_nested_row_is_only_a_broken_one(path):
    deep = "[" * 200_000
    broken = copied(path, ("UPDATE ledger SET record = ? WHERE seq = 2", (deep,)))
    assert "row 2" in refused(1, "verify", broken)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seq=st.integers(0, 4), place=st.floats(0, 1, exclude_max=True), new=st.text(max_size=3))
def test_any_change_of_a_row_is_told_in_one_line(path, seq, place, new):
    record = rows_of(path)[seq][2]
    at = int(place * len(record))
    changed = record[:at] + new.encode(errors="replace").decode() + record[at + 1 :]
    if changed == record:
        return
    broken = copied(path, ("UPDATE ledger SET record = ? WHERE seq = ?", (changed, seq)))
    refused(1, "verify", broken)


def chained(path, *bodies):
    """A chain that holds, of rows that say what the caller likes."""
    shutil.copy(copied_empty(path), path.with_name("forged.sqlite"))
    forged = path.with_name("forged.sqlite")
    connection, previous = sqlite3.connect(forged), NO_HASH
    for seq, (kind, body, payload) in enumerate(bodies):
        record = canonical(seq, kind, None, 1, 1.0, body)
        previous = seal(previous, record, payload)
        row = (seq, None, record, payload, bytes.fromhex(previous))
        connection.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?)", row)
    connection.commit()
    connection.close()
    return forged


def copied_empty(path):
    return copied(path, ("DELETE FROM ledger",))


GENESIS = ("genesis", {"format": 1, "total_epsilon": 1.0, "total_delta": 1e-5, "gossip_share": 0.5}, b"")


@pytest.mark.parametrize(
    "rows",
    [
        [("genesis", {"format": 1}, b"")],
        [("genesis", {**GENESIS[1], "total_epsilon": -1.0}, b"")],
        [GENESIS, ("release", {}, b"")],
        [GENESIS, ("release", {"mu": "nan"}, b"")],
        [GENESIS, ("gossip", {"mu": 0.1}, b"")],
        [GENESIS, ("gossip", {"mu": 0.1}, b"L" + (4).to_bytes(8, "little") + b"\xff\xff\xff\xff[]")],
        [GENESIS, ("release", {"mu": 0.1, "details": {}}, b"")],
        [GENESIS, ("renewal", {"total_epsilon": [1]}, b"")],
        [GENESIS, ("writer", {"pid": "one"}, b"")],
    ],
)
def test_a_chain_of_rows_that_say_nothing_is_corrupted(path, rows):
    forged = chained(path, *rows)
    for words in (("verify", forged), ("show", forged)):
        assert f"row {len(rows) - 1}" in refused(1, *words)


def test_a_chain_of_odd_but_readable_rows_is_shown(path):
    odd = [
        GENESIS,
        ("release", {"mu": 0.1, "epsilon_spent": 0.2, "details": [1]}, b""),
        ("unheard", {}, b""),
        GENESIS,
    ]
    shown = command("show", chained(path, *odd))
    assert shown.exit_code == 0
    assert "unheard" in shown.stdout


def test_names_from_strangers_do_not_steer_the_terminal(budget, path):
    budget.renew(7.0, 1e-5, now=1e300, operator="\x1b[2J[red]mallory\n")
    result = command("show", path)
    assert "\x1b" not in result.stdout
    assert "\\x1b[2J[red]mallory\\n" in result.stdout


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 300, bytes(8192)])
@pytest.mark.parametrize("name", ["show", "verify", "export"])
def test_a_file_that_is_no_ledger_is_told_in_one_line(tmp_path, name, content):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    told = refused(1, name, path)
    assert str(path) in told
    assert "an older one would grant again what is spent" in told


@pytest.mark.parametrize("name", ["show", "verify", "export"])
def test_a_missing_file_is_told_in_one_line(tmp_path, name):
    path = tmp_path / "ledger.sqlite"
    told = refused(1, name, path)
    assert f"LedgerMissing: {path}: the ledger is not there" in told
    assert list(tmp_path.iterdir()) == []
    assert "is a directory" in refused(2, name, tmp_path)


def test_another_database_is_no_ledger(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (text)")
    connection.close()
    assert "no ledger" in refused(1, "verify", path)


@pytest.mark.parametrize("head", ["", "abc", "g" * 64, "0" * 63])
def test_a_head_that_is_no_hash_is_bad_usage(path, head):
    assert "64 hexadecimal digits" in refused(2, "verify", path, "--head", head)


def test_reading_never_writes(budget, path, tmp_path):
    before, epoch = rows_of(path), 1
    for words in (("show", path), ("verify", path), ("export", path)):
        assert command(*words).exit_code == 0
    assert rows_of(path) == before
    assert budget.charge_release("later", 0.1, now=2e9, details={}).allowed
    with Ledger.read(path)._store._connection as connection:
        assert connection.execute("SELECT max(json_extract(record, '$.epoch')) FROM ledger").fetchone() == (
            epoch,
        )


def test_it_says_whose_it_is_and_who_holds_it(budget, path):
    one = budget.status(0.1).federation_id
    holder = f"federation 'hospital', process {os.getpid()} on {socket.gethostname()}"
    for name in ("show", "verify"):
        said = command(name, path).stdout
        assert f"federation {one} (hospital), opened once" in said
        assert f"held by {holder}, since 1970-01-01 00:00:01 UTC" in said
        assert "budget period 1" in said
    (told,) = lines("verify", path, "--format", "json")
    assert (told["federation_id"], told["name"], told["incarnation"]) == (one, "hospital", 1)
    assert (told["period"], told["is_held"], told["holder"]["pid"]) == (1, True, os.getpid())
    link = path.with_name("current.sqlite")
    link.symlink_to(path)
    assert f"held by {holder}" in command("show", link).stdout
    budget.close()
    assert "free; last opened by" in command("show", link).stdout


def test_taking_over_ends_the_holder_and_frees_the_ledger(budget, path):
    budget.charge_release("r1", 0.1, now=2e9, details={})
    result = command("take-over", path, "--operator", "dee")
    assert result.exit_code == 0, result.output
    assert f"taken over from federation 'hospital', process {os.getpid()}" in result.stdout
    with pytest.raises(LedgerTakenOver):
        budget.charge_release("r2", 0.1, now=2e9, details={})
    with closing(DurableBudget.open(path, must_exist=True, now=3e9, **BUDGET)) as again:
        assert again.status(0.1).incarnation == 3
    who = [line["who"] for line in lines("show", path, "--format", "json")]
    assert f"process {os.getpid()}, epoch 2, taken over by dee" in who
    (told,) = lines("take-over", path, "--operator", "dee", "--format", "json")
    assert (told["taken_over"], told["was_held"], told["incarnation"]) == (True, False, 4)
    assert command("take-over", path).exit_code == 2
    assert command("take-over", path, "--operator", "").exit_code == 2


def test_a_ledger_in_a_folder_that_cannot_be_written_is_read(audited):
    """As an auditor's account reads a copy; root could write anywhere."""
    path = audited
    path.chmod(0o644)
    done = as_nobody("verify", path)
    assert done.exit_code == 0, done.stderr
    assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}.lock"]
    assert "perhaps held by federation 'hospital'" in done.stdout
    assert Ledger.read(path).verify() in done.stdout


@pytest.mark.parametrize("hindrance", ["unreadable", "in use"])
def test_a_ledger_that_this_user_may_not_read_is_told_in_one_line(audited, hindrance):
    path = audited
    if hindrance == "in use":
        path.chmod(0o644)
        path.with_name(f"{path.name}-wal").touch()
    done = as_nobody("verify", path)
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"LedgerError: {path}: " in done.stderr
    assert "this user must be able to read the file" in done.stderr


@pytest.fixture
def audited():
    """A ledger whose writer is gone, in a folder that all may enter (pytest's own are closed to others)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "ledger.sqlite"
        DurableBudget.open(path, must_exist=False, now=1.0, **BUDGET).close()
        yield path


def as_nobody(name, path):
    """The command by another user; the effective one decides what may be opened."""
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")
    command("--help")  # imports what another user might not be able to
    groups = os.getgroups()
    os.setgroups([])
    os.seteuid(65534)
    try:
        return command(name, path)
    finally:
        os.seteuid(0)
        os.setgroups(groups)


def run_command(*arguments):
    """The command in a process of its own."""
    script = [sys.executable, "-c", "from scarcity_ray.cli.main import main; main()", "ledger"]
    return subprocess.run(
        [*script, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


def test_a_writer_at_work_hinders_no_reader_and_no_reader_a_writer(budget, path):
    answers = []

    def work():
        for k in range(60):
            answers.append(budget.charge_release(f"w{k}", 0.01, now=2e9 + k, details={}))

    writer = threading.Thread(target=work)
    writer.start()
    counts, head = [], budget.status(0.1).head_hash
    while writer.is_alive():
        counts.append(lines("verify", path, "--head", head, "--format", "json")[0]["rows"])
        head = lines("show", path, "--last", 1, "--format", "json")[0]["hash"]
    writer.join()
    assert all(answer.allowed for answer in answers)
    assert len(answers) == 60
    assert counts == sorted(counts)
    assert lines("verify", path, "--head", head, "--format", "json")[0]["rows"] == 65


@pytest.fixture
def federation(tmp_path, runtime, clock):
    path = str(tmp_path / "federation.sqlite")
    config = load(HierarchicalFederationConfig, {"vector_dim": 4, "ledger_path": path})
    with HierarchicalFederation(config, runtime=runtime, clock=clock, noise=SeededNoise(7)) as fed:
        fed.register_clients([(f"c{i}", "a" if i < 5 else "b") for i in range(10)])
        yield fed


def play(fed):
    for i in range(10):
        fed.submit_update(f"c{i}", np.full(4, 0.01 * i))
    fed.maybe_aggregate()
    fed.advance_round()
    return fed.get_global_meta_model()


@pytest.mark.long
def test_verify_takes_a_models_head_and_refuses_a_truncated_copy(federation, tmp_path):
    path = Path(federation.config.ledger_path)
    first, second = play(federation), play(federation)
    federation.run_gossip_round()
    done = run_command("verify", path, "--head", first.ledger_head, "--format", "json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["row_of_given_head"] < answer["rows"] - 1
    assert "nothing up to there was cut" in command("verify", path, "--head", second.ledger_head).stdout
    whole = copied(path)
    assert command("verify", whole, "--head", second.ledger_head).exit_code == 0
    cut = copied(path, (f"DELETE FROM ledger WHERE seq > {answer['row_of_given_head']}",))
    assert command("verify", cut).exit_code == 0
    assert command("verify", cut, "--head", first.ledger_head.upper()).exit_code == 0
    told = refused(1, "verify", cut, "--head", second.ledger_head)
    assert "the ledger was cut, rolled back or replaced" in told
    # The federation goes on: nobody took its place as the writer.
    third = play(federation)
    assert third.version == second.version + 1
    assert command("verify", path, "--head", third.ledger_head).exit_code == 0
    last = lines("show", path, "--last", 1, "--format", "json")[0]
    assert last["epsilon_spent"] == federation.get_stats()["privacy_consumed_epsilon"]
    assert last["sigma"] > last["sensitivity"] > 0.0
    assert last["epoch"] == 1
    drift = next(line for line in lines("show", path, "--format", "json") if line["kind"] == "gossip")
    assert drift["sigma"] == federation.plan.gossip.sigma_drift


def test_the_report_says_in_words_what_was_claimed_spent_and_agreed_to(tmp_path):
    path, key = tmp_path / "ledger.sqlite", IdentityKeyPair.generate()
    terms = {"total_epsilon": 3.0, "total_delta": 1e-6, "gossip_share": 0.5, "must_exist": False}
    with closing(DurableBudget.open(str(path), now=1e9, name="town", **terms)) as budget:
        policy = Policy("ward_3", unit="client", lifetime_epsilon=2.0, delta=1e-6)
        assert budget.set_policy(policy.signed(key), now=1e9 + 1) == ""
        budget.charge_release("r1", 0.2, now=1e9 + 2, details={})
        budget.charge_gossip("g1", ["ward_1", "ward_2"], 0.1, now=1e9 + 3, details={})
        budget.renew(2.0, 1e-6, now=1e9 + 4, operator="ann | \x1b[31m")
        budget.charge_release("r2", 0.3, now=1e9 + 5, details={})
        epsilon = budget.status(0.0).lifetime_epsilon
    said = command("report", path)
    assert said.exit_code == 0
    assert "# What the federation town has spent of privacy" in said.stdout
    assert f"({epsilon:.4g}, 1e-06)-differential privacy of all that was ever released" in said.stdout
    assert "any one client as a whole (neighbours: replace-one client)" in said.stdout
    rows = [line for line in said.stdout.splitlines() if line.startswith("| 0 |") or line.startswith("| 1 |")]
    assert [row.split(" | ")[-2:] for row in rows] == [["1", "1 |"], ["1", "0 |"]]
    assert "2001-09-09 01:46:41 UTC: ward_3 accepts at most epsilon 2 at delta 1e-06" in said.stdout
    assert "does not replace consent" in said.stdout
    assert "\x1b" not in said.stdout
    assert "ann \\| \\x1b[31m" in said.stdout
    assert command("report", path, "--out", tmp_path / "report.md").exit_code == 0
    assert (tmp_path / "report.md").read_text() == said.stdout
    assert "is not replaced" in refused(2, "report", path, "--out", tmp_path / "report.md")


def test_the_report_of_an_infinite_budget_claims_nothing(tmp_path):
    path = tmp_path / "ledger.sqlite"
    terms = {"total_epsilon": math.inf, "total_delta": 1e-6, "gossip_share": 0.0, "must_exist": False}
    DurableBudget.open(str(path), now=1e9, **terms).close()
    assert "Nothing: the budget is infinite" in command("report", path).stdout
