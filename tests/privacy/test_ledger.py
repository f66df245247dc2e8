"""The ledger: append-only, chained, one writer at a time; the same in a file and in PostgreSQL."""

from __future__ import annotations

import dataclasses
import json
import math
import os

import numpy as np
import pytest

from scarcity_ray.errors import LedgerCorrupted, LedgerError, LedgerMissing, UsageError
from scarcity_ray.privacy import Ledger
from scarcity_ray.privacy.ledger.events import (
    Genesis,
    GossipCharge,
    ReleaseCharge,
    pack_gossip,
    unpack_gossip,
)
from scarcity_ray.privacy.ledger.store import address_of, exists

GENESIS = Genesis(format=1, total_epsilon=10.0, total_delta=1e-5, gossip_share=0.0, name="hospital")
RELEASE = ReleaseCharge(0.1, 0.5, {})


def filled(path, rows=6, federation_id=""):
    genesis = dataclasses.replace(GENESIS, federation_id=federation_id)
    ledger = Ledger.create(path, genesis, now=1.0)
    for k in range(rows):
        ledger.append(ReleaseCharge(0.1 * k, 0.5, {}), charge_id=f"r{k}", now=2.0 + k)
    return ledger


def test_what_was_appended_is_found_again(path):
    ledger = filled(path)
    charge = GossipCharge(0.1 * 3, 1, 2, {}, pack_gossip(np.array([4]), ["ann"]))
    ledger.append(charge, charge_id="g0", now=5.0)
    written = list(ledger.rows())
    ledger.close()
    again = Ledger.open(path, now=9.0)
    assert list(again.rows())[:-1] == written
    assert [row.kind for row in again.rows()] == [
        *("genesis", "writer"),
        *["release"] * 6,
        *("gossip", "writer"),
    ]
    assert again.standing.name == "hospital"
    assert again.genesis.total_epsilon == 10.0
    row = again.find("r3")
    assert (row.at, row.event, row.payload, row.epoch) == (5.0, ReleaseCharge(0.1 * 3, 0.5, {}), b"", 1)
    row = again.find("g0")
    assert row.body == {"mu": 0.1 * 3, "charged": 1, "asked": 2, "details": {}}
    assert (row.event, row.payload) == (charge, charge.payload)
    assert (row.event.members.places.tolist(), row.event.members.newcomers) == ([4], ("ann",))
    assert again.find("r9") is None
    assert again.verify() == again.head_hash


def test_each_row_moves_the_head(path):
    ledger = filled(path, rows=0)
    heads = [ledger.head_hash]
    for k in range(3):
        row = ledger.append(RELEASE, charge_id=f"r{k}", now=1.0)
        assert row.hash == ledger.head_hash
        heads.append(row.hash)
    assert len(set(heads)) == 4
    assert all(ledger.verify(head) == heads[-1] for head in heads)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET record = replace(record, '\"mu\":0.2', '\"mu\":0.1') WHERE seq = 4",
        "UPDATE ledger SET record = replace(record, '\"at\":4.0', '\"at\":5.0') WHERE seq = 4",
        "UPDATE ledger SET record = record || ' ' WHERE seq = 4",
        "UPDATE ledger SET payload = x'09' WHERE seq = 4",
        "UPDATE ledger SET hash = zeroblob(32) WHERE seq = 4",
        "UPDATE ledger SET charge_id = 'other' WHERE seq = 4",
        "UPDATE ledger SET record = 'nothing' WHERE seq = 4",
        "DELETE FROM ledger WHERE seq = 4",
        "DELETE FROM ledger WHERE seq = 0",
        "DELETE FROM ledger",
        "DROP TABLE ledger",
        "UPDATE ledger SET seq = seq + 100 WHERE seq >= 4",
    ],
)
def test_any_edit_deletion_or_reordering_is_found(place, path, statement):
    filled(path).close()
    place.tamper(statement)
    # In a database, no rows at all are no ledger at all.
    nothing_left = place.kind == "postgresql" and statement in ("DELETE FROM ledger", "DROP TABLE ledger")
    told = LedgerMissing if nothing_left else LedgerCorrupted
    with pytest.raises(told, match="back"):
        Ledger.read(path).verify()
    with pytest.raises(told):
        Ledger.open(path, now=9.0)


def test_reordering_two_rows_is_found(place, path):
    filled(path).close()
    rows = place.records()
    swapped = [json.loads(rows[seq]) for seq in (4, 5)]
    swapped[0]["seq"], swapped[1]["seq"] = 5, 4
    texts = [json.dumps(one, sort_keys=True, separators=(",", ":")) for one in swapped]
    place.tamper(
        "UPDATE ledger SET charge_id = 'x' WHERE seq = 4",
        ("UPDATE ledger SET record = ?, charge_id = 'r2' WHERE seq = 5", (texts[0],)),
        ("UPDATE ledger SET record = ?, charge_id = 'r3' WHERE seq = 4", (texts[1],)),
    )
    with pytest.raises(LedgerCorrupted, match="breaks at row 4"):
        Ledger.read(path).verify()


def test_truncation_is_found_against_a_head_hash(place, path):
    ledger = filled(path)
    head = ledger.head_hash
    ledger.close()
    place.tamper("DELETE FROM ledger WHERE seq >= 6")
    reader = Ledger.read(path)
    reader.verify()
    with pytest.raises(LedgerCorrupted, match="cut, rolled back or replaced"):
        reader.verify(head)


def test_a_superseded_writer_is_refused(path):
    first = filled(path)
    second = Ledger.open(path, now=8.0, take_over=True)
    assert second.epoch == first.epoch + 1
    before = list(second.rows())
    for _ in range(2):
        with pytest.raises(LedgerError, match="moved on without this writer"):
            first.append(RELEASE, charge_id="late", now=9.0)
    assert list(second.rows()) == before
    second.append(RELEASE, charge_id="late", now=9.0)
    with pytest.raises(LedgerError, match="moved on"):
        first.find("late")


def test_a_charge_id_is_recorded_once(path):
    ledger = filled(path)
    before = ledger.head_hash
    with pytest.raises(LedgerError, match="'r1' is recorded already"):
        ledger.append(RELEASE, charge_id="r1", now=9.0)
    assert ledger.head_hash == ledger.verify() == before
    ledger.append(RELEASE, charge_id="fresh", now=9.0)


def test_a_reader_disturbs_nobody(path):
    writer = filled(path)
    reader = Ledger.read(path)
    with pytest.raises(LedgerError):
        reader.append(RELEASE, charge_id="x", now=1.0)
    writer.append(RELEASE, charge_id="more", now=1.0)
    assert reader.find("more") is not None
    assert reader.verify() == writer.head_hash


def test_a_missing_ledger_is_told_with_its_path_and_a_remedy(path):
    for opener in (lambda: Ledger.open(path, now=1.0), lambda: Ledger.read(path)):
        with pytest.raises(LedgerMissing) as caught:
            opener()
        assert str(address_of(path)) in str(caught.value)
        assert "bring back no copy but one that holds the newest head hash" in str(caught.value)
    assert not exists(address_of(path))


def test_a_new_ledger_replaces_none(path):
    filled(path)
    with pytest.raises(LedgerError, match="there already"):
        Ledger.create(path, GENESIS, now=1.0)


@pytest.mark.parametrize("charge_id", [0, 1.5, True, b"x", ("a",), [], {}])
def test_a_charge_whose_name_would_not_be_read_back_is_not_recorded(path, charge_id):
    """A number was once stored as a text, and the ledger was taken for changed from then on."""
    ledger = filled(path)
    head = ledger.head_hash
    with pytest.raises(UsageError, match="charge_id: "):
        ledger.append(ReleaseCharge(0.1, 0.5, {}), charge_id=charge_id, now=1.0)
    for now in (math.nan, math.inf, 10**400):
        with pytest.raises(UsageError):
            ledger.append(ReleaseCharge(0.1, 0.5, {}), charge_id="a", now=now)
    assert ledger.head_hash == head
    ledger.append(ReleaseCharge(0.1, 0.5, {}), charge_id="a", now=1.0)
    ledger.verify()


def test_plain_data_is_recorded_exactly(path):
    ledger = filled(path, rows=0)
    body = {"mu": 0.1 + 0.2, "sigma": float("inf"), "n": np.int64(3), "x": np.float32(0.5), 2: (1, [None])}
    row = ledger.append(ReleaseCharge(0.1, math.inf, body), now=1.0)
    expected = {"mu": 0.1 + 0.2, "sigma": "inf", "n": 3, "x": 0.5, "2": [1, [None]]}
    assert row.event == list(ledger.rows())[-1].event == ReleaseCharge(0.1, math.inf, expected)
    assert row.body["epsilon_spent"] == "inf"
    ledger.verify()
    for foreign in (object(), np.zeros(3), {1, 2}, b"bytes"):
        with pytest.raises(UsageError, match="plain data"):
            ledger.append(ReleaseCharge(0.1, 0.5, {"x": foreign}), now=1.0)
    ledger.append(RELEASE, now=1.0)


@pytest.mark.parametrize("known", [1, 10, 1000, 100_000])
def test_packed_members_read_back(known):
    rng = np.random.default_rng(known)
    for count in {1, min(known, 7), known}:
        places = rng.permutation(known)[:count]
        payload = pack_gossip(places, ["zoë", "b"])
        members = unpack_gossip(payload)
        np.testing.assert_array_equal(members.places, np.sort(places))
        assert members.newcomers == ("zoë", "b")
        assert len(payload) <= 40 + min(4 * count, known / 8 + 1)
    assert unpack_gossip(pack_gossip(np.zeros(0, dtype=np.int64), [])).places.size == 0


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("recorded", [True, False])
def test_what_a_lost_commit_left_is_settled(path, monkeypatch, recorded):
    ledger = filled(path, rows=2)
    head, commit = ledger.head_hash, ledger._store.commit

    def lost(row):
        if recorded:
            commit(row)
        raise Interrupted

    monkeypatch.setattr(ledger._store, "commit", lost)
    with pytest.raises(Interrupted):
        ledger.append(RELEASE, charge_id="doubtful", now=9.0)
    monkeypatch.undo()
    assert ledger.head_hash == head
    row = ledger.settle()
    assert (row is not None) == recorded == (ledger.find("doubtful") is not None)
    assert ledger.settle() is None
    ledger.append(RELEASE, charge_id="next", now=9.0)
    assert ledger.verify() == ledger.head_hash


def test_nothing_is_settled_behind_a_successor(path, monkeypatch):
    ledger = filled(path, rows=1)

    def lost(row):
        raise Interrupted

    monkeypatch.setattr(ledger._store, "commit", lost)
    with pytest.raises(Interrupted):
        ledger.append(RELEASE, charge_id="doubtful", now=9.0)
    monkeypatch.undo()
    Ledger.open(path, now=10.0, take_over=True).close()
    for _ in range(2):
        with pytest.raises(LedgerError, match="moved on"):
            ledger.settle()


@pytest.mark.parametrize("charge_id", ["quo'te", 'dou"ble', "back\\slash", "zero\0", "züri", "\udc80"])
def test_any_charge_id_is_kept(place, path, charge_id):
    if place.kind == "sqlite" and charge_id == "\udc80":
        pytest.skip("SQLite keeps no half of a surrogate pair")
    ledger = filled(path, rows=0)
    ledger.append(RELEASE, charge_id=charge_id, now=1.0)
    ledger.close()
    again = Ledger.open(path, now=2.0)
    assert again.find(charge_id).charge_id == charge_id
    with pytest.raises(LedgerError, match="recorded already"):
        again.append(RELEASE, charge_id=charge_id, now=1.0)


def test_the_chain_is_the_same_wherever_it_is_kept(tmp_path, postgres_url, monkeypatch):
    monkeypatch.setattr("secrets.randbits", lambda bits: 2**bits - 1)
    one = os.urandom(16).hex()
    heads = [
        filled(where, federation_id=one).head_hash for where in (tmp_path / "ledger.sqlite", postgres_url)
    ]
    pairs = zip(*(Ledger.read(w).rows() for w in (tmp_path / "ledger.sqlite", postgres_url)), strict=True)
    assert heads[0] == heads[1]
    assert all(left == right for left, right in pairs)
