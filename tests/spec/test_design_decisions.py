"""What the specification leaves open, as it was decided (docs/decisions), on both runtimes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, IdentityKeyPair, Receipt, Rejection, UsageError, sign_update

DIMENSION = 4
ROUND = 5
GOOD = (0.1, 0.2, 0.3, 0.4)
NO_NOISE = {
    "total_epsilon": math.inf,
    "gossip": {"local_dp_epsilon": math.inf},
    "layer2": {"central_dp_epsilon": math.inf},
}


class Picky:
    """Fails whatever is done with it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


MALFORMED: list[tuple[str, Any, Rejection]] = [
    ("nan", np.array([0.1, np.nan, 0.0, 0.0]), Rejection.NOT_FINITE),
    ("infinity", np.array([0.1, -np.inf, 0.0, 0.0], np.float32), Rejection.NOT_FINITE),
    ("list with nan", [0.1, float("nan"), 0.0, 0.0], Rejection.NOT_FINITE),
    ("beyond float32", [1e39, 0.0, 0.0, 0.0], Rejection.NOT_FINITE),
    ("huge integer", [10**400, 0, 0, 0], Rejection.NOT_FINITE),
    ("too short", np.zeros(3), Rejection.WRONG_SHAPE),
    ("too long", np.zeros(5), Rejection.WRONG_SHAPE),
    ("empty", np.zeros(0), Rejection.WRONG_SHAPE),
    ("matrix", np.zeros((1, 4)), Rejection.WRONG_SHAPE),
    ("scalar", 0.5, Rejection.WRONG_SHAPE),
    ("nested list", [[0.1], [0.2], [0.3], [0.4]], Rejection.WRONG_SHAPE),
    ("ragged list", [[0.1], [0.2, 0.3], 0.3, 0.4], Rejection.WRONG_SHAPE),
    ("short list", [0.1], Rejection.WRONG_SHAPE),
    ("none", None, Rejection.NOT_NUMERIC),
    ("text", "0.1 0.2 0.3 0.4", Rejection.NOT_NUMERIC),
    ("bytes", b"0000", Rejection.NOT_NUMERIC),
    ("mapping", {"a": 1.0}, Rejection.NOT_NUMERIC),
    ("list of text", ["0.1", "0.2", "0.3", "0.4"], Rejection.NOT_NUMERIC),
    ("list with none", [0.1, None, 0.3, 0.4], Rejection.NOT_NUMERIC),
    ("object array", np.array([0.1, 0.2, 0.3, None], object), Rejection.NOT_NUMERIC),
    ("booleans", np.ones(4, bool), Rejection.NOT_NUMERIC),
    ("complex numbers", np.ones(4, complex), Rejection.NOT_NUMERIC),
    ("an object", Picky(), Rejection.NOT_NUMERIC),
]
ROUNDS: list[tuple[str, Any, Rejection]] = [
    ("next", ROUND + 1, Rejection.FUTURE_ROUND),
    ("far", 10**30, Rejection.FUTURE_ROUND),
    ("too old", ROUND - 3, Rejection.TOO_STALE),
    ("first", 0, Rejection.TOO_STALE),
    ("negative", -1, Rejection.TOO_STALE),
    ("text", "5", Rejection.NOT_NUMERIC),
    ("float", 5.0, Rejection.NOT_NUMERIC),
    ("boolean", True, Rejection.NOT_NUMERIC),
]
STRANGERS: list[tuple[str, Any]] = [
    ("never registered", "nobody"),
    ("empty", ""),
    ("none", None),
    ("a number", 7),
    ("a list", ["plain"]),
    ("has left", "left"),
]
WELCOME: list[tuple[str, Any]] = [
    ("list", list(GOOD)),
    ("tuple", (0.2, 0.2, 0.3, 0.4)),
    ("integers", np.array([1, 0, 0, 0])),
    ("list of integers", [0, 1, 0, 0]),
    ("float64", np.array([0.3, 0.2, 0.3, 0.4])),
    ("float16", np.array([0.4, 0.2, 0.3, 0.4], np.float16)),
    ("strided", np.arange(8.0)[::2]),
    ("big endian", np.array([0.5, 0.2, 0.3, 0.4], ">f8")),
    ("zeros", np.zeros(4)),
]


@pytest.fixture(scope="module")
def fed(open_federation: Any) -> HierarchicalFederation:
    """Round 5 of a federation that accepts rounds 3 to 5, two updates a client, three clients a basket."""
    fed: HierarchicalFederation = open_federation(
        {
            **NO_NOISE,
            "vector_dim": DIMENSION,
            "auto_aggregate": False,
            "basket": {"min_clients": 2, "max_clients": 3},
            "buffer": {"max_staleness": 2, "participation_cap": 2},
            "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0, "clip_norm": 100.0},
        }
    )
    fed.register_client("plain", "small")
    fed.register_client("left", "small")
    for i in range(len(WELCOME)):
        fed.register_client(f"welcome_{i}", f"welcome_{i}")
    fed.register_clients([(f"large_{i}", "large") for i in range(5)])
    for _ in range(ROUND):
        fed.advance_round()
    fed.unregister_client("left")
    return fed


def refused(fed: HierarchicalFederation, reason: Rejection, *args: Any, **kwargs: Any) -> Receipt:
    """Offer an update that must be refused for `reason`, and counted under it."""
    before = fed.get_stats()
    receipt = fed.offer_update(*args, **kwargs)
    after = fed.get_stats()
    assert (receipt.accepted, bool(receipt), receipt.reason) == (False, False, reason)
    assert after["n_updates_buffered"] == before["n_updates_buffered"]
    counted = {key: after["rejections"].get(key, 0) - before["rejections"].get(key, 0) for key in Rejection}
    assert counted == {key: int(key is reason) for key in Rejection}
    assert fed.submit_update(*args, **kwargs) is False
    return receipt


def test_rejections_come_from_one_enum_with_thirteen_reasons() -> None:
    assert {str(reason) for reason in Rejection} == {
        "unknown_client",
        "wrong_shape",
        "not_finite",
        "not_numeric",
        "future_round",
        "too_stale",
        "replayed",
        "sequence_used",
        "participation_cap",
        "bad_signature",
        "read_only",
        "too_few_persons",
        "budget_spent",
        "at_ceiling",
        "not_stored",
        "busy",
    }


@pytest.mark.parametrize(("name", "update", "reason"), MALFORMED, ids=[case[0] for case in MALFORMED])
def test_a_malformed_update_is_refused_and_never_raises(
    fed: HierarchicalFederation, name: str, update: Any, reason: Rejection
) -> None:
    receipt = refused(fed, reason, "plain", update)
    assert receipt.basket_id == "small_basket_0"


@pytest.mark.parametrize(("name", "round_id", "reason"), ROUNDS, ids=[case[0] for case in ROUNDS])
def test_a_wrong_round_is_refused_and_never_raises(
    fed: HierarchicalFederation, name: str, round_id: Any, reason: Rejection
) -> None:
    refused(fed, reason, "plain", np.array(GOOD), round_id)


@pytest.mark.parametrize(("name", "client_id"), STRANGERS, ids=[case[0] for case in STRANGERS])
def test_an_unknown_client_is_refused_and_never_raises(
    fed: HierarchicalFederation, name: str, client_id: Any
) -> None:
    receipt = refused(fed, Rejection.UNKNOWN_CLIENT, client_id, np.array(GOOD), 4)
    assert (receipt.basket_id, receipt.round_id) == (None, 4)


@pytest.mark.parametrize(("name", "update"), WELCOME, ids=[case[0] for case in WELCOME])
def test_any_real_vector_of_the_right_length_is_accepted(
    fed: HierarchicalFederation, name: str, update: Any
) -> None:
    client = f"welcome_{[case[0] for case in WELCOME].index(name)}"
    receipt = fed.offer_update(client, update, np.int64(ROUND - 2))
    assert receipt == Receipt(True, None, f"{client}_basket_0", ROUND - 2)


def test_a_replay_is_the_same_client_round_and_content(fed: HierarchicalFederation) -> None:
    assert fed.offer_update("large_0", np.array(GOOD), ROUND)
    refused(fed, Rejection.REPLAYED, "large_0", list(np.array(GOOD, np.float32)), ROUND)
    assert fed.offer_update("large_0", np.array(GOOD), ROUND - 1)
    assert fed.offer_update("large_1", np.array(GOOD), ROUND)


def test_the_participation_cap_counts_updates_of_a_client_for_a_round(fed: HierarchicalFederation) -> None:
    for k in range(2):
        assert fed.offer_update("large_2", np.full(DIMENSION, 0.1 * k), ROUND)
    refused(fed, Rejection.PARTICIPATION_CAP, "large_2", np.full(DIMENSION, 0.7), ROUND)
    assert fed.offer_update("large_2", np.full(DIMENSION, 0.7), ROUND - 1)


def test_the_driver_that_registered_a_keypair_signs(fed: HierarchicalFederation) -> None:
    keypair = IdentityKeyPair.generate()
    fed.register_client("keyed", "signed", identity_keypair=keypair)
    assert fed.offer_update("keyed", np.array(GOOD))
    refused(fed, Rejection.BAD_SIGNATURE, "keyed", np.array(GOOD) / 2, signature=bytes(64))
    refused(fed, Rejection.BAD_SIGNATURE, "keyed", np.array(GOOD) / 2, signature=b"short")
    refused(fed, Rejection.BAD_SIGNATURE, "keyed", np.array(GOOD) / 2, signature="text")


def test_only_what_a_client_signed_itself_costs_it_trust(fed: HierarchicalFederation) -> None:
    key = IdentityKeyPair.generate()
    fed.register_client("rogue", "signed", identity_keypair=key)
    broken = np.full(DIMENSION, np.nan)
    fed.offer_update("rogue", np.array(GOOD), signature=bytes(64))
    fed.offer_update("rogue", broken)
    rogue = fed.get_client("rogue")
    assert rogue is not None
    assert rogue.trust_score == 1.0
    signature = sign_update(key.sign, fed.signing_scope(), "rogue", ROUND, broken)
    assert fed.offer_update("rogue", broken, signature=signature).reason is Rejection.NOT_FINITE
    fed.offer_update("rogue", np.array(GOOD), round_id=ROUND + 1)
    again = fed.get_client("rogue")
    assert again is not None
    assert again.trust_score == 0.5


def test_many_updates_at_once_are_judged_one_by_one(fed: HierarchicalFederation) -> None:
    fed.register_clients([(f"batch_{i}", "batch") for i in range(3)])
    matrix = np.arange(20.0).reshape(5, 4)
    matrix[1, 2] = np.nan
    receipts = fed.submit_updates(["batch_0", "batch_1", "nobody", "batch_2", "batch_0"], matrix, ROUND)
    assert [receipt.reason for receipt in receipts] == [
        None,
        Rejection.NOT_FINITE,
        Rejection.UNKNOWN_CLIENT,
        None,
        None,
    ]
    with pytest.raises(UsageError):
        fed.submit_updates(["batch_0"], matrix)
    ragged = fed.submit_updates(["batch_0", "batch_1"], [[1.0, 2.0, 3.0, 4.0], [1.0]], ROUND - 1)
    assert [receipt.reason for receipt in ragged] == [None, Rejection.WRONG_SHAPE]
    mixed: Any = ["batch_2", 7, None]
    receipts = fed.submit_updates(mixed, np.full((3, 4), 0.25))
    assert [bool(receipt) for receipt in receipts] == [True, False, False]


def test_a_domain_name_stands_for_its_only_basket(fed: HierarchicalFederation) -> None:
    info = fed.get_basket("small")
    assert info is not None
    assert info.basket_id == "small_basket_0"
    assert fed.get_basket_model("small") is None


def test_a_domain_with_several_baskets_is_an_error_that_lists_them(fed: HierarchicalFederation) -> None:
    for ask in (fed.get_basket_model, fed.get_basket, fed.split_basket, fed.disband_basket):
        with pytest.raises(UsageError, match=r"large_basket_0.*large_basket_1"):
            ask("large")
    assert fed.get_basket_model("large_basket_1") is None


def test_basket_ids_count_up_within_a_domain(fed: HierarchicalFederation) -> None:
    assert set(fed.get_stats()["basket_stats"]["large"]["baskets"]) == {"large_basket_0", "large_basket_1"}
    assert fed.get_stats()["basket_stats"]["large"]["clients"] == 5


def test_a_client_is_in_one_domain(fed: HierarchicalFederation) -> None:
    assert fed.register_client("plain", "small") == "small_basket_0"
    with pytest.raises(UsageError, match="unregister it first"):
        fed.register_client("plain", "large")
    for bad in ("", None, 7):
        with pytest.raises(UsageError):
            fed.register_client(bad, "small")  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            fed.register_client("new", bad)  # type: ignore[arg-type]
    for features in ("text", [1.0, None], [[1.0]], [np.nan], []):
        with pytest.raises(UsageError):
            fed.register_client("new", "small", features=features)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        fed.register_client("new", "small", identity_keypair="a key")  # type: ignore[arg-type]
    assert fed.get_client("new") is None
    for unknown in ("nobody", None, 7):
        assert fed.unregister_client(unknown) is False  # type: ignore[arg-type]


@dataclass
class Votes:
    """A mean federation without noise or gossip, whose aggregates show every vote."""

    fed: HierarchicalFederation
    seen: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def votes(open_federation: Any, clock: Any) -> Votes:
    fed = open_federation(
        {
            "total_epsilon": math.inf,
            "gossip_budget_share": 0.0,
            "vector_dim": DIMENSION,
            "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0, "clip_norm": 1.0},
            "layer2": {"central_dp_epsilon": math.inf, "basket_trust": {"trusted": 2.0}},
            "basket": {"min_clients": 2},
            "meta_parameters": {"learning_rate": (0.0, 1.0), "decay": (-2.0, 2.0)},
            "runtime": {"baskets_per_actor": 9},
        }
    )
    unit = np.eye(DIMENSION)
    for i in range(3):
        fed.register_client(f"a{i}", "plain")
        fed.register_client(f"b{i}", "trusted")
    fed.submit_update("a0", 0.8 * unit[0], 0)
    fed.advance_round()
    for vector in (0.6 * unit[0], 0.4 * unit[0], 0.2 * unit[1]):
        fed.submit_update("a0", vector, 1)
    fed.submit_update("a1", 30.0 * unit[2], 1, meta={"learning_rate": 1.0})
    fed.submit_update("a2", np.zeros(4), 1, meta={"learning_rate": 0.5, "decay": 1e9})
    seen: dict[str, Any] = {
        "votes": fed.get_basket_model("plain"),
        "meta": fed.get_basket_meta_model("plain"),
    }
    for i in range(3):
        fed.submit_update(f"b{i}", 0.3 * unit[3], 1, meta={"learning_rate": 0.5, "decay": 0.0})
    seen["global"] = fed.get_global_model()
    seen["meta params"] = fed.get_meta_params()
    seen["version"] = fed.get_global_meta_model().version
    with pytest.raises(UsageError, match="momentum"):
        fed.offer_update("a0", unit[0], meta={"momentum": 1.0})
    fed.advance_round()
    for i in range(3):
        fed.submit_update(f"a{i}", 0.1 * unit[i])
    seen["forced with one fresh basket"] = fed.force_aggregate(), fed.force_aggregate()
    for k in range(2):
        clock.advance(1.0)
        fed.advance_round()
        for i in range(3):
            fed.submit_update(f"a{i}", (0.2 + 0.1 * k) * unit[i])
    seen["stats"] = fed.get_stats()
    return Votes(fed, seen)


def test_one_client_has_one_vote_weighted_by_staleness(votes: Votes) -> None:
    # a0: (0.8 / sqrt 2 + 0.6 + 0.4) / 4 and 0.2 / 4; a1 is clipped to norm 1; a2 is zero.
    expected = np.array([(0.8 / math.sqrt(2.0) + 1.0) / 4.0, 0.05, 1.0, 0.0]) / 3.0
    np.testing.assert_allclose(votes.seen["votes"], expected, rtol=1e-6)
    assert votes.seen["meta"].n_contributors == 3


def test_operator_trust_weighs_beside_size(votes: Votes) -> None:
    third = np.array([0.0, 0.0, 0.0, 0.3])
    expected = (votes.seen["votes"] + 2.0 * third) / 3.0
    np.testing.assert_allclose(votes.seen["global"], expected, atol=1e-6)


def test_meta_parameters_are_learned_beside_the_model(votes: Votes) -> None:
    # Plain basket: a0 reported nothing, the middle of each range. Trusted basket: weight two thirds.
    learning_rate = (0.5 + 1.0 + 0.5) / 3.0 / 3.0 + 0.5 * 2.0 / 3.0
    decay = (0.0 + 0.0 + 2.0) / 3.0 / 3.0
    assert votes.seen["meta params"] == pytest.approx(
        {"learning_rate": learning_rate, "decay": decay}, abs=1e-5
    )


def test_a_basket_model_enters_at_most_one_release(votes: Votes) -> None:
    first, second = votes.seen["forced with one fresh basket"]
    # The driver had not yet been given the automatic release; a forced one needs two fresh baskets.
    np.testing.assert_array_equal(first, votes.seen["global"])
    assert second is None
    assert votes.seen["stats"]["n_layer2_aggregations"] == votes.seen["version"] == 1


def test_a_newer_basket_model_supersedes_an_unused_one_counted(votes: Votes) -> None:
    assert votes.seen["stats"]["n_basket_models_superseded"] == 2


@pytest.fixture(scope="module")
def guarded(open_federation: Any) -> HierarchicalFederation:
    """Krum with f = floor(0.2 n), and basket models not exposed."""
    fed: HierarchicalFederation = open_federation(
        {
            **NO_NOISE,
            "vector_dim": DIMENSION,
            "auto_aggregate": False,
            "expose_basket_models": False,
            "runtime": {"baskets_per_actor": 9},
        }
    )
    fed.register_clients([(f"c{i}", "a" if i < 10 else "b") for i in range(15)])
    return fed


def test_force_never_weakens_a_rule_and_stats_say_what_is_missing(guarded: HierarchicalFederation) -> None:
    for i in (*range(6), *range(10, 14)):
        assert guarded.submit_update(f"c{i}", np.full(DIMENSION, 0.1 + 0.01 * i))
    assert guarded.force_aggregate() is None
    stats = guarded.get_stats()
    assert (stats["n_layer1_aggregations"], stats["n_updates_buffered"]) == (0, 10)
    # 2 f + 3 rows.
    baskets = {**stats["basket_stats"]["a"]["baskets"], **stats["basket_stats"]["b"]["baskets"]}
    needs = {basket: entry["layer1_needs_clients"] for basket, entry in baskets.items()}
    assert needs == {"a_basket_0": 7, "b_basket_0": 5}
    assert guarded.submit_update("c6", np.full(DIMENSION, 0.2))
    assert guarded.submit_update("c14", np.full(DIMENSION, 0.2))
    assert guarded.force_aggregate() is not None
    assert guarded.get_stats()["n_layer1_aggregations"] == 2


def test_basket_models_can_be_kept_unexposed(guarded: HierarchicalFederation) -> None:
    for ask in (guarded.get_basket_model, guarded.get_basket_meta_model):
        with pytest.raises(UsageError, match="expose_basket_models"):
            ask("a")
