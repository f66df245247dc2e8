"""A federation's ledger under attack and by mistake: no older copy goes on, no federation ends another."""

from __future__ import annotations

import pickle
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, Rejection, UsageError, sign_update
from scarcity_ray.actors.names import ACCOUNTANT, GLOBAL, basket_actor
from scarcity_ray.errors import LedgerError, LedgerHeld, LedgerMissing, LedgerRolledBack, LedgerTakenOver
from scarcity_ray.privacy import Ledger
from scarcity_ray.secagg import IdentityKeyPair

DIMENSION = 4
CLIENTS = [(f"c{i}", "ab"[i % 2]) for i in range(6)]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def settings(ledger: Path) -> dict[str, Any]:
    return {
        "vector_dim": DIMENSION,
        "total_epsilon": 4.0,
        "auto_aggregate": False,
        "gossip_budget_share": 0.0,
        "ledger_path": str(ledger),
        "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0},
        "layer2": {"central_dp_epsilon": 1.0, "central_dp_delta": 1e-5},
    }


def play(fed: HierarchicalFederation, seed: int) -> Any:
    fed.register_clients(CLIENTS)
    rows = np.random.default_rng(seed).normal(size=(len(CLIENTS), DIMENSION))
    fed.submit_updates([client for client, _ in CLIENTS], rows)
    return fed.force_aggregate()


def back_up(ledger: Path) -> Path:
    copy = ledger.with_name("backup")
    with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def bring_back(ledger: Path, copy: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        ledger.with_name(ledger.name + suffix).unlink(missing_ok=True)
    shutil.copy(copy, ledger)


WITNESSES = ["the driver", GLOBAL, basket_actor(0)]


@pytest.mark.parametrize("witness", WITNESSES)
def test_a_backup_brought_back_under_a_running_federation_is_refused(
    open_federation: Any, settings: dict[str, Any], ledger: Path, witness: str
) -> None:
    """Whoever alone remembers the newest head."""
    fed = open_federation(settings)
    play(fed, 0)
    copy = back_up(ledger)
    assert play(fed, 1) is not None
    fed._runtime.kill(ACCOUNTANT)
    for name in {*WITNESSES[1:]} - {witness}:
        fed._runtime.kill(name)
    if witness != "the driver":
        fed._driver.supervisor.latest, fed._driver.supervisor.ledger_head = None, ""
    bring_back(ledger, copy)
    for _ in range(2):
        with pytest.raises(LedgerRolledBack, match=f"which {witness} knows as this ledger's"):
            fed.get_privacy_budget()
    with closing(Ledger.read(ledger)) as reader:
        assert [row.kind for row in reader.rows()].count("writer") == 1, "nothing was written to the copy"


def test_gossip_charged_since_a_backup_is_remembered_too(
    open_federation: Any, settings: dict[str, Any], ledger: Path
) -> None:
    fed = open_federation({**settings, "gossip_budget_share": 0.5})
    play(fed, 0)
    copy = back_up(ledger)
    rows = np.random.default_rng(1).normal(size=(len(CLIENTS), DIMENSION))
    fed.submit_updates([client for client, _ in CLIENTS], rows)
    assert sum(fed.run_gossip_round().values()) > 0
    fed._runtime.kill(ACCOUNTANT)
    bring_back(ledger, copy)
    with pytest.raises(LedgerRolledBack, match="which basket:0 knows"):
        fed.get_privacy_budget()


def test_the_whole_file_brought_back_is_accepted(
    open_federation: Any, settings: dict[str, Any], ledger: Path
) -> None:
    fed = open_federation(settings)
    play(fed, 0)
    left = fed.get_privacy_budget()
    fed._runtime.kill(ACCOUNTANT)
    bring_back(ledger, back_up(ledger))
    assert fed.get_privacy_budget() == left
    assert play(fed, 1) is not None


def test_a_ledger_removed_under_a_running_federation_releases_nothing(
    open_federation: Any, settings: dict[str, Any], ledger: Path
) -> None:
    fed = open_federation(settings)
    assert play(fed, 0) is not None
    version = fed.get_global_meta_model().version
    ledger.unlink()
    with pytest.raises(LedgerMissing, match="removed under its accountant"):
        play(fed, 1)
    assert fed.get_global_meta_model().version == version
    assert not ledger.exists()


def test_a_second_federation_on_a_ledger_is_refused_and_may_take_it_over(
    open_federation: Any, settings: dict[str, Any]
) -> None:
    first = open_federation(settings)
    assert play(first, 0) is not None
    before = first.get_stats()
    with pytest.raises(LedgerHeld, match=r"held by .*process .*end that federation \(close") as caught:
        open_federation(settings)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
    assert first.get_stats()["ledger"] == before["ledger"], "the first goes on as if nothing was asked"
    assert play(first, 1) is not None
    second = open_federation(settings, take_over_ledger=True)
    assert second.federation_id == first.federation_id
    stats = first.get_stats()
    assert stats["read_only"] is True
    assert "taken over" in stats["read_only_reason"]
    assert first.get_privacy_budget() == (0.0, 0.0)
    assert first.offer_update("c0", np.ones(DIMENSION)).reason is Rejection.READ_ONLY
    assert first.force_aggregate() is None
    assert set(first.run_gossip_round().values()) == {0}
    with pytest.raises(LedgerTakenOver):
        first.renew_budget(9.0, 1e-4, operator="ann")
    assert play(second, 2) is not None
    assert second.get_stats()["ledger"]["incarnation"] == stats["ledger"]["incarnation"] + 1
    # Its accountant, coming back, does not take the ledger back.
    first._runtime.kill(ACCOUNTANT)
    with pytest.raises(LedgerTakenOver):
        first.get_privacy_budget()
    assert second.get_privacy_budget()[0] > 0


def test_a_release_under_way_is_refused_once_the_ledger_was_taken_over(
    open_federation: Any, settings: dict[str, Any]
) -> None:
    """Nobody had looked yet."""
    first = open_federation({**settings, "strict": True})
    assert play(first, 0) is not None
    status = first._runtime.peers.roles[ACCOUNTANT]._budget
    open_federation(settings, take_over_ledger=True)
    status._ledger.look = lambda: None
    with pytest.raises(LedgerTakenOver):
        play(first, 1)
    assert first.get_global_meta_model().version == 1


def test_an_accountant_that_died_comes_back_unasked(open_federation: Any, settings: dict[str, Any]) -> None:
    fed = open_federation(settings)
    play(fed, 0)
    facts = fed.get_stats()["ledger"]
    fed._runtime.kill(ACCOUNTANT)
    again = fed.get_stats()["ledger"]
    assert {**again, "head": "", "is_new": True} == {**facts, "head": ""}


def test_a_federation_begun_anew_has_its_id_and_the_next_number(
    open_federation: Any, settings: dict[str, Any]
) -> None:
    told = []
    for _ in range(2):
        fed = open_federation(settings)
        identity = fed._driver.supervisor.identity
        assert fed.federation_id == identity.federation_id
        assert fed._runtime.card().federation_id == fed.federation_id
        told.append((fed.federation_id, identity.incarnation))
        fed.close()
    assert told[0][0] == told[1][0]
    assert [number for _, number in told] == [1, 2]


def test_an_update_that_was_signed_before_a_backup_came_back_is_not_taken(
    open_federation: Any, settings: dict[str, Any], ledger: Path
) -> None:
    open_federation(settings).close()
    copy = back_up(ledger)
    key, update = IdentityKeyPair.generate(), np.full(DIMENSION, 0.3)
    scopes, reasons = [], []
    signature = b""
    for _ in range(2):
        fed = open_federation(settings)
        fed.register_client("x", "a", identity_keypair=key)
        fed._driver.keypairs.clear()
        scopes.append(fed.signing_scope())
        signature = signature or sign_update(key.sign, scopes[0], "x", 0, update, sequence=1)
        reasons.append(fed.offer_update("x", update, 0, signature=signature, sequence=1).reason)
        fed.close()
        bring_back(ledger, copy)
    assert scopes[0].federation_id == scopes[1].federation_id
    assert reasons == [None, Rejection.BAD_SIGNATURE]


def test_a_ledger_that_was_taken_over_is_told(open_federation: Any, settings: dict[str, Any]) -> None:
    """By gossip, where no release is ever charged."""
    settings |= {"layer2": {"enabled": False}, "gossip_budget_share": 0.5}
    first = open_federation(settings)
    first.register_clients(CLIENTS)
    rows = np.random.default_rng(0).normal(size=(2, len(CLIENTS), DIMENSION))
    ids = [client for client, _ in CLIENTS]
    second = open_federation(settings, take_over_ledger=True)
    assert {receipt.reason for receipt in first.submit_updates(ids, rows[0])} == {None}
    assert set(first.run_gossip_round().values()) == {0}
    assert {receipt.reason for receipt in first.submit_updates(ids, rows[1])} == {Rejection.READ_ONLY}
    assert first.maybe_aggregate() is None
    assert "taken over" in first.get_stats()["read_only_reason"]
    assert second.get_stats()["read_only"] is False


# Who may renew.


def test_a_federation_without_the_ledgers_operator_key_is_refused(
    open_federation: Any, settings: dict[str, Any]
) -> None:
    operator, other = (IdentityKeyPair.generate().public_bytes.hex() for _ in range(2))
    open_federation({**settings, "operator_key": operator}).close()
    for more in ({}, {"operator_key": other}):
        with pytest.raises(LedgerError, match=f"configure operator_key = '{operator}'"):
            open_federation({**settings, **more})
    open_federation({**settings, "operator_key": operator}).close()


def test_a_renewal_needs_the_operators_signature(open_federation: Any, settings: dict[str, Any]) -> None:
    operator, other = IdentityKeyPair.generate(), IdentityKeyPair.generate()
    fed = open_federation({**settings, "operator_key": operator.public_bytes.hex()})
    accountant = fed._runtime.peers.handle(ACCOUNTANT)
    with pytest.raises(UsageError, match=r"needs the operator's, .*in budget period 0; none was given"):
        fed.renew_budget(9.0, 1e-4, operator="ann")
    with pytest.raises(UsageError, match="none was given"):
        accountant.call("renew", 9.0, 1e-4, 1.0, "ann", "renewal/x").result()
    message = fed.renewal_message(9.0, 1e-4, operator="ann")
    good = operator.sign(message)
    for totals, name, signature in (
        ((9.0, 1e-4), "ann", other.sign(message)),
        ((9.0, 1e-4), "bob", good),
        ((90.0, 1e-4), "ann", good),
        ((9.0, 1e-3), "ann", good),
        ((9.0, 1e-4), "ann", b""),
    ):
        with pytest.raises(UsageError, match="the one given is not"):
            fed.renew_budget(*totals, operator=name, signature=signature)
    assert fed.get_stats()["ledger"]["period"] == 0
    fed.renew_budget(9.0, 1e-4, operator="ann", signature=good)
    assert fed.get_privacy_budget() == (9.0, 1e-4)
    with pytest.raises(UsageError, match="in budget period 1; the one given is not"):
        fed.renew_budget(9.0, 1e-4, operator="ann", signature=good)
    with closing(Ledger.read(fed.config.ledger_path)) as reader:
        renewals = [row for row in reader.rows() if row.kind == "renewal"]
    assert [row.body["details"] for row in renewals] == [{"signature": good.hex()}]


def test_a_renewal_whose_answer_was_lost_is_not_asked_to_be_signed_again(
    open_federation: Any, settings: dict[str, Any]
) -> None:
    operator = IdentityKeyPair.generate()
    fed = open_federation({**settings, "operator_key": operator.public_bytes.hex()})
    good = operator.sign(fed.renewal_message(9.0, 1e-4, operator="ann"))
    accountant = fed._runtime.peers.handle(ACCOUNTANT)
    for _ in range(2):
        status = accountant.call("renew", 9.0, 1e-4, 1.0, "ann", "renewal/x", good).result()
        assert status.period == 1


def test_a_signature_is_worth_nothing_in_another_federation(
    open_federation: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    operator = IdentityKeyPair.generate()
    feds = [
        open_federation(
            {
                **settings,
                "operator_key": operator.public_bytes.hex(),
                "ledger_path": str(tmp_path / name / "l.sqlite"),
            }
        )
        for name in ("one", "two")
    ]
    good = operator.sign(feds[0].renewal_message(9.0, 1e-4, operator="ann"))
    with pytest.raises(UsageError, match="the one given is not"):
        feds[1].renew_budget(9.0, 1e-4, operator="ann", signature=good)
    feds[0].renew_budget(9.0, 1e-4, operator="ann", signature=good)


def test_a_driver_that_holds_the_operators_keypair_signs_renewals(
    open_federation: Any, settings: dict[str, Any]
) -> None:
    operator = IdentityKeyPair.generate()
    fed = open_federation(
        {**settings, "operator_key": operator.public_bytes.hex()}, operator_keypair=operator
    )
    fed.renew_budget(5.0, 1e-5, operator="ann")
    assert fed.signing_scope().budget_period == 1
    with pytest.raises(UsageError, match="the one given is not"):
        fed.renew_budget(5.0, 1e-5, operator="ann", signature=b"x" * 64)
