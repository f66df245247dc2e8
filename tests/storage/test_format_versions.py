"""Files and messages of each version are read, and those of a newer one refused by name with the way out.

``fixtures`` holds one of each version, as the release that introduced it wrote it: none is written again.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from scarcity_ray import (
    LedgerCorrupted,
    LedgerError,
    MessageRefused,
    ProtocolViolation,
    StorageError,
    UpdateStatement,
    UsageError,
)
from scarcity_ray.baskets.retained import CODEC, replay
from scarcity_ray.errors import ConfigError
from scarcity_ray.privacy import DurableBudget
from scarcity_ray.privacy.ledger.events import renewal_message
from scarcity_ray.release import __version__
from scarcity_ray.runtime import card
from scarcity_ray.runtime.rpc import IdempotencyKey, Role
from scarcity_ray.secagg.roster import Roster
from scarcity_ray.storage.codec import Codec
from scarcity_ray.storage.journal import Journal, JournalPlace
from scarcity_ray.storage.sealing import Sealing
from scarcity_ray.storage.snapshots import Snapshots
from scarcity_ray.workloads.config import load_run
from scarcity_ray.workloads.run_folder import RunFolder
from scarcity_ray_client import Policy, SiteLedger, load_model
from scarcity_ray_client.policy import SignedPolicy
from scarcity_ray_client.receipts import ReceiptProof, ReleaseRecord, SignedReceipt, audit_receipt

FIXTURES = Path(__file__).parent / "fixtures"
WAY_OUT = "reads 1 to 1; use the release that wrote it, or a newer one"
ROW = np.array([1.0, -2.0], np.float32)


def database(path: Path, dump: str, *, old: str = "", new: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (FIXTURES / dump).read_text()
    assert old in text
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(text.replace(old, new, 1))
    return path


def test_every_fixture_is_read_below() -> None:
    own = Path(__file__).read_text()
    assert {path.name for path in FIXTURES.iterdir() if f'"{path.name}"' not in own} == set()


def test_a_model(tmp_path: Path) -> None:
    assert np.array_equal(load_model(FIXTURES / "model-1.npz")["w"], ROW)
    with np.load(FIXTURES / "model-1.npz") as archive:
        members = dict(archive)
    header = json.loads(members["header"].tobytes()) | {"version": 2}
    members["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(tmp_path / "model.npz", **members)
    with pytest.raises(UsageError, match=f"model.npz: a scarcity_ray model of version 2, .*{WAY_OUT}"):
        load_model(tmp_path / "model.npz")


def test_a_roster() -> None:
    text = (FIXTURES / "roster-1.json").read_text()
    roster = Roster.from_json(text)
    assert roster.is_signed_by(roster.parties[0].identity_public)
    assert Roster.from_json((FIXTURES / "roster-0.json").read_text()) == roster
    with pytest.raises(UsageError, match=f"a scarcity_ray roster of version 2, .*{WAY_OUT}"):
        Roster.from_json(json.dumps(json.loads(text) | {"version": 2}))


def test_a_policy() -> None:
    text = (FIXTURES / "policy-1.json").read_text()
    assert SignedPolicy.from_text(text).policy == Policy("ann", "person", 3.0, 1e-6, "f1")
    with pytest.raises(UsageError, match="or of a newer format"):
        SignedPolicy.from_text(text.replace("policy/1", "policy/2"))


def test_a_signed_update() -> None:
    message = bytes.fromhex((FIXTURES / "update-1.hex").read_text())
    statement = UpdateStatement.decode(message)
    assert (statement.client_id, statement.round_id, statement.report) == ("ann", 3, (("loss", 0.5),))
    newer = message.replace(b"update\0\0\x01", b"update\0\0\x02")
    with pytest.raises(MessageRefused, match="version 2"):
        UpdateStatement.decode(newer)


def test_a_renewal() -> None:
    assert (FIXTURES / "renewal-1.txt").read_bytes() == renewal_message("f1", 0, 10.0, 1e-5, "ann")


def test_a_ledger(tmp_path: Path) -> None:
    terms = {"name": "town", "total_epsilon": 10.0, "total_delta": 1e-5, "gossip_share": 0.25}
    path = database(tmp_path / "ledger.sqlite", "ledger-1.sql")
    with closing(DurableBudget.open(path, must_exist=True, now=3.0, **terms)) as budget:
        assert budget.status(0.2).lifetime_epsilon == pytest.approx(0.7255217508592534)
    newer = database(tmp_path / "newer.sqlite", "ledger-1.sql", old='"format":1', new='"format":2')
    with pytest.raises(
        LedgerError, match=f"newer.sqlite: a scarcity_ray ledger of version 2, .*{WAY_OUT}"
    ) as e:
        DurableBudget.open(newer, must_exist=True, now=3.0, **terms)
    assert not isinstance(e.value, LedgerCorrupted)


@pytest.mark.parametrize("dump", ["site_ledger-1.sql", "site_ledger-2.sql"])
def test_a_sites_ledger(tmp_path: Path, dump: str) -> None:
    policy = Policy("ann", "person", 3.0, 1e-6, "f1")
    path = database(tmp_path / "site.sqlite", dump)
    for _ in range(2):  # the first migrates it
        with closing(SiteLedger.open(path, policy, federation_id="f1", is_proof=True)) as ledger:
            assert np.array_equal(ledger.send("ann", 3, 0.1, lambda: pytest.fail("it is kept")), ROW)
            spent = ledger.epsilon_spent
            assert np.array_equal(ledger.send("ann", 3, 0.1, lambda: 2 * ROW, "run 2"), 2 * ROW)
    assert spent > 0


def test_a_journal(tmp_path: Path) -> None:
    place = JournalPlace(str(tmp_path))
    tmp_path.chmod(0o700)
    place.path("f1", 0).parent.mkdir(0o700)
    database(place.path("f1", 0), "journal-1.sql")
    journal = Journal(place, "f1", 0, 1)
    (batch,) = journal.batches("b")
    assert (batch.columns, batch.rows) == (b"columns", ROW.astype("<f4").tobytes())
    assert journal.records("b", "count") == {"": b"1"}
    journal.close()
    for version, refused in (
        (3, "a scarcity_ray journal of version 3, .*reads 1 to 2"),
        (2, "is encrypted; set"),
    ):
        path = tmp_path / str(version) / "f1"
        path.mkdir(0o700, parents=True)
        path.parent.chmod(0o700)
        newer = JournalPlace(str(path.parent))
        old = "journal',1,'f1'"
        database(newer.path("f1", 0), "journal-1.sql", old=old, new=old.replace("1", str(version), 1))
        with pytest.raises(StorageError, match=f"basket-0.sqlite: .*{refused}"):
            Journal(newer, "f1", 0, 1)


def test_an_encrypted_journal(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    place = JournalPlace(str(tmp_path), key_path="given")
    place.path("f1", 0).parent.mkdir(0o700)
    database(place.path("f1", 0), "journal-2.sql")
    with closing(Journal(place, "f1", 0, 1)) as journal:
        (batch,) = journal.batches("b")
        sealing = Sealing(bytes(32), "scarcity_ray journal/f1/0")
        assert sealing.open(batch.columns, "b", 1, "columns") == b"columns"
        assert sealing.open(batch.rows or b"", "b", 1, "rows") == ROW.astype("<f4").tobytes()


def test_a_snapshot(tmp_path: Path) -> None:
    fixture = FIXTURES / "snapshot-1.model.00000001.000000000001"
    file = tmp_path / fixture.name.partition(".")[2]
    shutil.copyfile(fixture, file)
    state = Snapshots(str(tmp_path), "f1", 1).read("model", Codec())
    assert state["round"] == 3
    assert np.array_equal(state["weights"], ROW)
    file.write_bytes(file.read_bytes().replace(b'"version": 1', b'"version": 2', 1))
    with pytest.raises(StorageError, match=f"a scarcity_ray snapshot of version 2, .*{WAY_OUT}"):
        Snapshots(str(tmp_path), "f1", 1).read("model", Codec())


def test_receipts() -> None:
    """A release's record also in version 1, which had no digests of manifests."""
    texts = {
        kind: (FIXTURES / kind).read_text()
        for kind in ("receipt-1.json", "receipt_proof-1.json", "release_record-1.jsonl")
    }
    receipt = SignedReceipt.from_text(texts["receipt-1.json"])
    release = ReleaseRecord.from_text(texts["release_record-1.jsonl"])
    proof = ReceiptProof.from_text(texts["receipt_proof-1.json"])
    assert audit_receipt(receipt, [release], proof).is_counted_once
    for read, text in zip((SignedReceipt, ReceiptProof, ReleaseRecord), texts.values(), strict=True):
        newest = 2 if read is ReleaseRecord else 1
        newer = json.dumps(json.loads(text) | {"version": newest + 1})
        with pytest.raises(
            UsageError, match=f"of version {newest + 1}, and this release reads 1 to {newest}; use"
        ):
            read.from_text(newer)


def test_retained_rows() -> None:
    release = ReleaseRecord.from_text((FIXTURES / "release_record-2.jsonl").read_text())
    kept = Snapshots(str(FIXTURES)).read_file("retained-1.rows", CODEC)
    for aggregate, root in zip(kept, release.roots, strict=True):
        assert replay(aggregate).faults == ()
        assert root.is_valid
        assert root.manifest == aggregate.digest


def test_a_runs_config(tmp_path: Path) -> None:
    """Also one of before it stated a version, as people write it."""
    config = load_run(FIXTURES / "config-0.yaml")
    assert load_run(FIXTURES / "config-1.yaml") == config
    folder = RunFolder.new(config, str(tmp_path / "run"), datetime.now(UTC))
    folder.write_config(config)
    written = (tmp_path / "run" / "config.yaml").read_text()
    assert load_run(tmp_path / "run" / "config.yaml") == config
    assert written.startswith("format_version: 1\n")
    for version in ("2", "0", "'1'", "true"):
        (tmp_path / "newer.yaml").write_text(written.replace("version: 1", f"version: {version}\nnew: 3"))
        with pytest.raises(
            ConfigError, match=r"format_version: .* the release that wrote the file, or a newer"
        ):
            load_run(tmp_path / "newer.yaml")


def test_a_card_of_another_release_is_refused_with_the_way_out() -> None:
    assert card.opened(card.sealed(b"content")) == b"content"
    theirs = card.sealed(b"content").replace(__version__.encode(), b"9.9")
    for published, release in ((theirs, "'9.9'"), (b"\x80\x05N.", "'0.0'"), (b"", "'0.0'")):
        with pytest.raises(
            UsageError, match=f"actors run release {release} .*and this is {__version__}: "
        ) as e:
            card.opened(published)
        assert all(word in str(e.value) for word in ("terminate()", "storage_path", "restore"))


class Counter(Role):
    def add(self) -> int:
        return 1


def test_a_call_of_another_release_is_refused() -> None:
    call = IdempotencyKey("driver", 1)
    assert Counter().once(call, "add") == 1
    earlier = replace(call)
    vars(earlier).pop("release")  # as one that is unpickled from a release that stated none
    for other in (replace(call, release="9.9"), earlier):
        with pytest.raises(ProtocolViolation, match=r"called by release '(9.9|0.0)' .*, this actor's is"):
            Counter().once(other, "add")


def test_an_actor_of_a_node_with_another_release_does_not_start() -> None:
    pytest.importorskip("ray")
    from scarcity_ray.runtime.ray_runtime import on_ray

    made, arguments = on_ray(Counter, {})
    assert isinstance(made(**arguments), Counter)
    with pytest.raises(UsageError, match=r"driver '9.9': install the same on all nodes"):
        made(**{**arguments, "drivers_release": "9.9"})
