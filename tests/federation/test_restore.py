"""A federation whose roles have all ended, from its storage: what comes back, and what is refused."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig, IdentityKeyPair, Rejection
from scarcity_ray.actors.kept import CODEC, directory_after
from scarcity_ray.errors import LedgerMissing, LedgerRolledBack, StorageError, UsageError
from scarcity_ray.storage import journal, snapshots
from scarcity_ray.storage.snapshots import ChangingState
from tests.federation.test_resume import MASKED, MEMORY, Lives, fitted

CLIENTS = [(f"c{i}", "ab"[i // 3]) for i in range(6)]
ROWS = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32) / 4
IDS = [client_id for client_id, _ in CLIENTS]


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    made = Lives(tmp_path, {"auto_aggregate": False, "durability": "update"})
    made.begin()
    yield made
    made.kill()


def world(fed: HierarchicalFederation) -> dict[str, Any]:
    """What is known of clients and baskets."""
    stats = fed.get_stats()
    names = ("current_round", "n_clients", "basket_stats", "n_layer2_aggregations", "waiting_for")
    ids = [*IDS, "new"]
    baskets = {client.basket_id for c in ids if (client := fed.get_client(c)) is not None}
    return {
        **{name: stats[name] for name in names},
        "clients": [fed.get_client(c) for c in ids],
        "baskets": [fed.get_basket(str(b)) for b in sorted(map(str, baskets))],
        "budget": fed.get_privacy_budget(),
    }


def test_a_change_of_membership_is_durable_before_it_is_answered(lives: Lives) -> None:
    fed = lives.fed
    assert fed is not None
    fed.register_clients(CLIENTS)
    fed.register_client("new", "a", features=[1.0, 2.0])
    fed.submit_updates(IDS, ROWS)
    for act in (
        lambda fed: fed.advance_round(),
        lambda fed: fed.unregister_client("c0"),
        lambda fed: fed.disband_basket("a_basket_0"),
        lambda fed: fed.split_basket("b"),
    ):
        act(fed)
        before = world(fed)
        fed = lives.restore()
        assert world(fed) == before
    assert fed.register_client("c0", "a") == "a_basket_2"
    assert fed.offer_update("c0", ROWS[0], 0).reason is Rejection.REPLAYED
    assert fed.register_client("newer", "b").startswith("b_basket_")


@given(
    acts=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["come", "go", "send", "tell"])), max_size=10)
)
def test_what_changed_as_clients_came_and_left_makes_the_whole(acts: list[tuple[int, str]]) -> None:
    """The directory's last snapshot with the changes since is what it would write whole."""
    change, wholes = ChangingState.change, list[Any]()

    def noted(kept: ChangingState, changed: object, state: Any) -> None:
        wholes.append(CODEC.encode(state()))
        change(kept, changed, state)

    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as folder,
        mock.patch.object(ChangingState, "change", noted),
    ):
        lives = Lives(Path(folder), {"auto_aggregate": False, "basket": {"min_clients": 1, "max_clients": 2}})
        fed = lives.begin()
        fed.register_client("first", "a")
        for number, act in acts:
            client_id = f"c{number}"
            if act == "come":
                fed.register_client(client_id, "ab"[number % 2], features=[number, 1.0], num_examples=1)
            elif act == "go":
                fed.unregister_client(client_id)
            elif act == "send":
                fed.offer_update(client_id, ROWS[0])
            else:
                fed.get_stats()
            kept = fed._driver.supervisor.kept
            assert kept is not None
            stored, changes = ChangingState(kept, "directory", CODEC).read()
            told, arrays = CODEC.encode(directory_after(stored, changes))
            assert told == wholes[-1][0]
            assert list(map(list, arrays)) == list(map(list, wholes[-1][1]))
        lives.kill()


@pytest.mark.long
@pytest.mark.parametrize("act", ["split_basket", "disband_basket"])
def test_an_operation_that_everything_died_in_is_finished(act: str, tmp_path: Path) -> None:
    """At each of its calls: what waited waits, what was released is not accepted again, nothing is told."""
    is_done, at = None, 1
    while is_done is None:
        folder = tmp_path / str(at)
        folder.mkdir()
        lives = Lives(folder, {"auto_aggregate": False, "durability": "update", "total_epsilon": 100.0})
        fed = lives.begin()
        fed.register_clients(CLIENTS)
        fed.submit_updates(IDS, ROWS)
        assert fed.force_aggregate() is not None
        fed.submit_updates(IDS, -ROWS)
        operate = getattr(fed, act)
        is_done = lives.killed_at(lambda: [operate("a_basket_0")], at, after=False)  # noqa: B023
        fed = lives.restore()
        for rows in (ROWS, -ROWS):
            assert [r.reason for r in fed.submit_updates(IDS, rows)] == [Rejection.REPLAYED] * 6
        assert (fed.get_stats()["n_updates_buffered"], fed.faults) == (6, ())
        lives.kill()
        at += 1


@pytest.mark.parametrize("after", [False, True])
def test_a_restore_that_was_stopped_is_made_again(after: bool, lives: Lives) -> None:
    fed = lives.fed
    assert fed is not None
    fed.register_clients(CLIENTS)
    fed.submit_updates(IDS, ROWS)
    is_done, at = None, 1
    while is_done is None:
        lives.kill()
        is_done = lives.killed_at(lives.restore, at, after=after)
        at += 1
    assert at > 5
    fed = lives.restore()
    assert fed.faults == ()
    assert [r.reason for r in fed.submit_updates(IDS, ROWS)] == [Rejection.REPLAYED] * 6


@pytest.mark.parametrize("loss", ["file", "machine"])
def test_what_a_journal_lacks_is_told_though_the_restore_was_stopped(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that has made an empty journal dies, or one that has seen that the machine was off."""
    boot = tmp_path / "boot_id"
    boot.write_text("first")
    monkeypatch.setattr(journal, "BOOT_ID", boot)
    lives = Lives(tmp_path, {"auto_aggregate": False, "durability": "round"})
    lives.begin().register_clients(CLIENTS)
    lives.kill()
    is_done, at, told = None, 1, r"basket:0.* machine was started anew .* may be gone: send the updates"
    boot.write_text("second")
    if loss == "file":
        (file,) = tmp_path.glob("**/basket-0.sqlite")
        file.unlink()
        told = "basket:0.* lost.*: send the updates of this round again"
    while is_done is None:
        is_done = lives.killed_at(lives.restore, at, after=True)
        lives.kill()
        at += 1
    assert at > 5
    fed = lives.restore()
    assert sum(re.search(told, fault) is not None for fault in fed.faults) >= 1
    for name in list(fed._runtime.names()):
        if name.startswith("basket"):
            fed._runtime.kill(name)
    fed.get_stats()
    assert "nothing was lost" in fed.faults[-1]
    lives.kill()


def test_a_relative_place_is_that_of_the_driver_that_began(tmp_path: Path, monkeypatch: Any) -> None:
    """Actors and other drivers run in other folders."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    lives = Lives(tmp_path, {"auto_aggregate": False})
    lives.config = replace(lives.config, storage_path="state", journal_path="journal", durability="update")
    fed = lives.begin()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fed.register_clients(CLIENTS)
    fed.submit_updates(IDS, ROWS)
    monkeypatch.chdir(tmp_path)
    lives.kill()
    with HierarchicalFederation.restore("state", runtime="local", clock=lambda: 1e9) as restored:
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert restored.get_stats()["n_updates_buffered"] == 6
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_updates_that_wait_come_back_from_the_journal(lives: Lives) -> None:
    fed = lives.fed
    assert fed is not None
    fed.register_clients(CLIENTS)
    assert all(receipt.accepted for receipt in fed.submit_updates(IDS, ROWS))
    fed = lives.restore()
    assert fed.faults == ()
    assert [r.reason for r in fed.submit_updates(IDS, ROWS)] == [Rejection.REPLAYED] * 6
    first = fed.force_aggregate()
    assert first is not None
    fed = lives.restore()
    np.testing.assert_array_equal(fed.get_global_model(), first)
    assert fed.force_aggregate() is None, "nothing counts twice"
    assert lives.num_charged() == 1


def test_a_directory_that_dies_with_a_basket_actor_goes_on_from_what_it_has_stored(lives: Lives) -> None:
    fed = lives.fed
    assert fed is not None
    fed.register_clients(CLIENTS)
    fed.submit_updates(IDS, ROWS)
    for role in ("directory", "basket:0"):
        fed._runtime.kill(role)
    assert all(fed.get_client(client_id) is not None for client_id in IDS)
    assert not any(fed.submit_updates(IDS, ROWS)), "all are there already"
    assert fed.force_aggregate() is not None
    assert any("directory and basket:0 died" in fault for fault in fed.faults)
    fed.register_client("new", "a")
    assert fed.advance_round() == 1


def test_a_release_is_stored_before_it_is_answered(lives: Lives) -> None:
    """On a full disk it is not answered; once there is room it is, and is not made again."""
    fed = lives.fed
    assert fed is not None
    fed.register_clients(CLIENTS)
    fed.submit_updates(IDS, ROWS)
    write = snapshots.LocalFolder.write

    def full(store: snapshots.LocalFolder, name: str, parts: Any) -> None:
        if name.startswith("release"):
            raise OSError(28, "No space left on device")
        write(store, name, parts)

    with mock.patch.object(snapshots.LocalFolder, "write", full):
        for _ in range(2):
            with pytest.raises(StorageError, match=r"release.*No space left on device.*make room"):
                fed.force_aggregate()
    made = fed.force_aggregate()
    assert made is not None
    assert lives.num_charged() == 1
    np.testing.assert_array_equal(lives.restore().get_global_model(), made)


def test_a_member_that_moved_meanwhile_is_restored_where_it_is(tmp_path: Path) -> None:
    """Its replay memory too, from a snapshot that is older than its move, without a journal."""
    lives = Lives(tmp_path, {"auto_aggregate": False, "durability": "none", "total_epsilon": 100.0})
    fed = lives.begin()
    fed.register_clients(CLIENTS)
    fed.submit_updates(IDS, ROWS)
    assert fed.force_aggregate() is not None
    fed.advance_round()
    fed.split_basket("a")
    fed = lives.restore()
    assert fed.get_client("c0").basket_id == "a_basket_1"
    assert [r.reason for r in fed.submit_updates(IDS, ROWS, 0)] == [Rejection.REPLAYED] * 6
    (loss,) = fed.faults
    assert loss == (
        "updates that waited in b_basket_0, a_basket_1, a_basket_2, and their unreleased aggregates, are "
        "lost, as basket:0 has no journal (durability is none): send the updates of this round again, as "
        "`fit` does itself"
    )
    fed = lives.restore()
    assert fed.faults == (loss,)  # nothing else is lost, and it is not said again
    fed.advance_round()
    for file in (tmp_path / "state").glob("baskets-0.*"):
        file.unlink()
    assert "so are gossip, replays, caps and trust" in lives.restore().faults[-1]
    lives.kill()


def test_keys_of_clients_and_the_operators_roster_come_back(tmp_path: Path) -> None:
    operator, own = IdentityKeyPair.generate(), IdentityKeyPair.generate()
    lives = Lives(tmp_path, {**MASKED, "durability": "update", "operator_key": operator.public_bytes.hex()})
    fed = lives.begin()
    fed.register_clients(CLIENTS[1:])
    fed.register_client("c0", "a", identity_keypair=own)
    fed.sign_roster(operator)
    first = fed.get_roster()
    fed = lives.restore()
    assert fed.offer_update("c0", ROWS[0]).reason is Rejection.BAD_SIGNATURE
    roster = fed.get_roster()
    assert (roster.epoch, roster.previous) == (first.epoch + 1, first.digest()), "baskets have new keys"
    fed.sign_roster(operator)
    fed.register_client("c0", "a", identity_keypair=own)
    assert all(receipt.accepted for receipt in fed.submit_updates(IDS, ROWS))
    assert fed.force_aggregate() is not None
    lives.kill()


def test_seeds_of_noise_and_keys_of_sessions_never_reach_a_disk(tmp_path: Path) -> None:
    drawn: list[bytes] = []
    urandom = os.urandom

    def noted(count: int) -> bytes:
        made = urandom(count)
        if count == 32:
            drawn.append(made)
        return made

    lives = Lives(tmp_path, {**MASKED, "durability": "update", "gossip_budget_share": 0.2})
    with mock.patch("os.urandom", noted):
        fed = HierarchicalFederation(lives.config, runtime="local")
        fitted(fed, {})
        files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        fed.close()
    assert len(drawn) > 10
    assert {"ledger.sqlite", "basket-0.sqlite"} <= {path.name for path in files}
    for path, content in files.items():
        for secret in drawn:
            assert secret not in content, path
            assert secret.hex().encode() not in content.lower(), path


def test_a_new_federation_never_begins_where_one_is_stored(lives: Lives) -> None:
    lives.kill()
    with pytest.raises(StorageError, match=r"a federation is stored here; go on with it by .*restore\("):
        lives.begin()


def test_what_is_not_this_federations_is_refused_by_name(lives: Lives, tmp_path: Path) -> None:
    fed = lives.fed
    assert fed is not None
    fed.register_clients(CLIENTS)
    shutil.copy(tmp_path / "ledger.sqlite", tmp_path / "older.sqlite")
    fed.submit_updates(IDS, ROWS)
    assert fed.force_aggregate() is not None
    fed.advance_round()
    lives.kill()
    with pytest.raises(StorageError, match=r"nowhere: no federation is stored here"):
        HierarchicalFederation.restore(str(tmp_path / "nowhere"), runtime="local")

    def restored(ledger: str) -> None:
        HierarchicalFederation.restore(str(tmp_path / "state"), runtime="local", ledger_path=ledger)

    with sqlite3.connect(tmp_path / "older.sqlite") as older:
        assert older.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with pytest.raises(LedgerRolledBack, match="the release stored in"):
        restored(str(tmp_path / "older.sqlite"))
    with pytest.raises(LedgerMissing):
        restored(str(tmp_path / "gone.sqlite"))
    other = Lives(tmp_path / "other", {})
    (tmp_path / "other").mkdir()
    other.begin()
    other.kill()
    with pytest.raises((StorageError, LedgerRolledBack)):
        restored(str(tmp_path / "other" / "ledger.sqlite"))
    (newest,) = sorted((tmp_path / "state").glob("directory.*"))[-1:]
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(StorageError, match=rf"^{newest}: torn or changed"):
        lives.restore()
    newest.unlink()
    assert lives.restore().get_client("c0") is not None, "the version before it"


def test_a_fit_is_resumed_on_its_own_terms_alone(lives: Lives) -> None:
    fed = lives.fed
    assert fed is not None
    fitted(fed, {})
    with pytest.raises(UsageError, match="another one: clients_per_round was None, not 4; give the same"):
        fitted(fed, {"clients_per_round": 4}, resume=True)
    assert len(fitted(fed, {}, resume=True).history) == 2, "all its rounds were made"
    without = HierarchicalFederationConfig(vector_dim=2, gossip_budget_share=0.0)
    with (
        HierarchicalFederation(without, runtime="local") as forgetful,
        pytest.raises(UsageError, match="resume: nothing is kept, as storage_path is not configured"),
    ):
        fitted(forgetful, {}, resume=True)
