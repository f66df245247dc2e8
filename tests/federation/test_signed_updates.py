"""A client's signature is worth something for one update, in one period of one run of one federation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scarcity_ray import (
    HierarchicalFederation,
    IdentityKeyPair,
    Rejection,
    SigningScope,
    UsageError,
    sign_update,
)
from scarcity_ray.actors.kept import directory_after
from scarcity_ray_client.wire import KeyRequest

DIMENSION = 4
KEY = IdentityKeyPair.generate()
ROW = np.full(DIMENSION, 0.3, np.float32)
SETTINGS = {
    "vector_dim": DIMENSION,
    "auto_aggregate": False,
    "buffer": {"participation_cap": 3},
    "meta_parameters": {"rate": [0, 1], "decay": [0, 1]},
}
SAID = {"sequence": 7, "num_examples": 40, "meta": {"rate": 0.25}}


@pytest.fixture
def fed(open_federation: Any) -> HierarchicalFederation:
    """A federation in which "ann" is registered, and whose driver does not hold her key."""
    return joined(open_federation(SETTINGS))


def joined(fed: HierarchicalFederation) -> HierarchicalFederation:
    fed.register_client("ann", "d", identity_keypair=KEY)
    fed.register_client("bob", "d", identity_keypair=KEY)
    fed._driver.keypairs.clear()
    return fed


def signature_for(scope: SigningScope, client_id: str = "ann", round_id: int = 0, **said: Any) -> bytes:
    return sign_update(KEY.sign, scope, client_id, round_id, ROW, **{**SAID, **said})


def answer(fed: HierarchicalFederation, signature: bytes | None, row: Any = ROW, **said: Any) -> Any:
    return fed.offer_update("ann", row, 0, signature=signature, **{**SAID, **said}).reason


def test_a_key_is_changed_as_the_old_one_signs(open_federation: Any, tmp_path: Any) -> None:
    kept = {"storage_path": str(tmp_path / "kept")}
    fed, new = joined(open_federation({**SETTINGS, **kept})), IdentityKeyPair.generate()
    scope = fed.signing_scope()
    where = scope.federation_id, "ann"
    for forged in (
        KeyRequest.signed(new, new, *where),
        replace(KeyRequest.signed(KEY, new, *where), proof_by_new=bytes(64)),
        KeyRequest.signed(KEY, new, "another", "ann"),
        KeyRequest.signed(KEY, new, scope.federation_id, "bob"),
    ):
        with pytest.raises(UsageError, match="not both signed"):
            fed.change_client_key("ann", forged)
    assert answer(fed, signature_for(scope)) is None
    for _ in range(2):  # asked again, it changes nothing
        fed.change_client_key("ann", KeyRequest.signed(KEY, new, *where))
    later = {**SAID, "sequence": 8}
    assert answer(fed, signature_for(scope, sequence=8), **later) is Rejection.BAD_SIGNATURE
    by_new = sign_update(new.sign, scope, "ann", 0, 2 * ROW, **{**SAID, "sequence": 9})
    assert answer(fed, by_new, 2 * ROW, sequence=9) is None
    basket = fed._runtime.peers.roles["basket:0"]._baskets["d_basket_0"]  # type: ignore[attr-defined]
    assert basket._buffer.num_updates == 2  # what the old key signed stays
    directory = fed._runtime.peers.roles["directory"]  # type: ignore[attr-defined]
    stored, changes = directory._kept.read()
    assert directory_after(stored, changes).keys["ann"] == new.public_bytes


def test_what_was_signed_is_accepted_as_it_was_signed(fed: HierarchicalFederation) -> None:
    assert answer(fed, signature_for(fed.signing_scope())) is None
    host = fed._runtime.peers.roles["basket:0"]  # type: ignore[attr-defined]
    basket = host._baskets["d_basket_0"]
    assert basket.states._meta["ann"].tolist() == [-0.5, 0.0]
    assert basket._buffer.num_examples("ann") == 40


@pytest.mark.parametrize(
    "changed",
    [
        {"federation_id": "another"},
        {"budget_period": 1},
        {"run": 12345},
    ],
    ids=str,
)
def test_a_signature_for_elsewhere_is_worth_nothing(
    fed: HierarchicalFederation, changed: dict[str, Any]
) -> None:
    signature = signature_for(replace(fed.signing_scope(), **changed))
    assert answer(fed, signature) is Rejection.BAD_SIGNATURE
    assert answer(fed, signature_for(fed.signing_scope())) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"meta": {"rate": 0.75}},
        {"meta": {"rate": 0.25, "decay": 0.0}},
        {"meta": {}},
        {"meta": None},
        {"sequence": 8},
        {"sequence": None},
        {"num_examples": 41},
        {"num_examples": None},
        {"row": np.full(DIMENSION, 0.31, np.float32)},
    ],
    ids=str,
)
def test_who_relays_a_signed_update_can_change_nothing_in_it(
    fed: HierarchicalFederation, changed: dict[str, Any]
) -> None:
    signature = signature_for(fed.signing_scope())
    assert answer(fed, signature, **changed) is Rejection.BAD_SIGNATURE
    assert fed.offer_update("ann", ROW, 1, signature=signature, **SAID).reason is Rejection.FUTURE_ROUND
    assert fed.offer_update("bob", ROW, 0, signature=signature, **SAID).reason is Rejection.BAD_SIGNATURE
    assert answer(fed, signature) is None


def test_what_is_not_reported_may_be_left_out_or_not(fed: HierarchicalFederation) -> None:
    signature = signature_for(fed.signing_scope())
    assert answer(fed, signature, meta={"rate": np.float64(0.25), "decay": float("nan")}) is None


def test_a_signature_is_worth_nothing_in_a_federation_begun_anew_on_the_same_ledger(
    open_federation: Any, tmp_path: Any
) -> None:
    settings = {**SETTINGS, "ledger_path": str(tmp_path / "one.sqlite")}
    first = joined(open_federation(settings))
    signature = signature_for(first.signing_scope())
    assert answer(first, signature) is None
    first.close()
    again = joined(open_federation(settings))
    assert again.federation_id == first.federation_id
    assert answer(again, signature) is Rejection.BAD_SIGNATURE
    assert answer(again, signature_for(again.signing_scope())) is None


def test_a_signature_is_worth_nothing_in_the_next_budget_period(
    fed: HierarchicalFederation, open_federation: Any
) -> None:
    before = signature_for(fed.signing_scope())
    fed.renew_budget(5.0, 1e-5, operator="ops")
    assert fed.signing_scope().budget_period == 1
    assert answer(fed, before) is Rejection.BAD_SIGNATURE
    fed._runtime.kill("basket:0")
    assert answer(fed, before) is Rejection.BAD_SIGNATURE, "the actor that came back knows the period too"
    assert answer(fed, signature_for(fed.signing_scope())) is None


def test_the_period_of_an_old_ledger_is_known_from_the_start(open_federation: Any, tmp_path: Any) -> None:
    settings = {**SETTINGS, "ledger_path": str(tmp_path / "one.sqlite")}
    first = open_federation(settings)
    first.renew_budget(5.0, 1e-5, operator="ops")
    first.close()
    again = joined(open_federation(settings))
    assert again.signing_scope().budget_period == 1
    assert answer(again, signature_for(again.signing_scope())) is None


def test_the_driver_that_holds_the_key_signs_all_that_it_sends(open_federation: Any) -> None:
    fed = open_federation(SETTINGS)
    fed.register_client("ann", "d", identity_keypair=KEY)
    assert fed.offer_update("ann", ROW, **SAID).accepted
    fed.renew_budget(5.0, 1e-5, operator="ops")
    receipts = fed.submit_updates(
        ["ann", "ann"], [ROW / 2, ROW / 4], sequences=[8, None], num_examples=[1, None]
    )
    assert all(receipts)


def test_a_sequence_number_is_for_one_content_of_a_round(fed: HierarchicalFederation) -> None:
    scope = fed.signing_scope()

    def send(row: Any, sequence: int | None, round_id: int = 0) -> Any:
        signature = sign_update(KEY.sign, scope, "ann", round_id, row, sequence=sequence)
        return fed.offer_update("ann", row, round_id, signature=signature, sequence=sequence).reason

    assert send(ROW, 1) is None
    assert send(ROW, 1) is Rejection.REPLAYED
    assert send(ROW, 2) is Rejection.REPLAYED, "the same content under another number is the same update"
    assert send(ROW / 2, 1) is Rejection.SEQUENCE_USED
    assert send(ROW / 2, 2) is None
    assert send(ROW / 4, None) is None
    fed.split_basket("d")
    assert send(ROW / 8, 2) is Rejection.SEQUENCE_USED, "also where the client has moved"
    fed.advance_round()
    assert send(ROW / 8, 1, round_id=1) is None
    assert fed.get_stats()["rejections"]["sequence_used"] == 2


def test_baskets_hear_of_a_period_whose_driver_died_before_it_told_them(fed: HierarchicalFederation) -> None:
    assert answer(fed, signature_for(fed.signing_scope())) is None
    renewal = (5.0, 1e-5, 0.0, "ops", "renewal/of a driver that died", None)
    fed._runtime.peers.handle("accountant").call("renew", *renewal).result()
    scope = fed.signing_scope()
    assert scope.budget_period == 1
    signature = signature_for(scope, round_id=0, sequence=8)
    assert fed.offer_update("ann", ROW, 0, signature=signature, **{**SAID, "sequence": 8}).reason in (
        None,
        Rejection.REPLAYED,
    )
