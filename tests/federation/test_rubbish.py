"""Rubbish gets a refusal, or a `UsageError` that shows it and says what belongs there, on both runtimes."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from scarcity_ray import (
    HierarchicalFederation,
    HierarchicalFederationConfig,
    IdentityKeyPair,
    LocalDPMechanism,
    Rejection,
    RuntimeConfig,
    ScarcityError,
    UsageError,
)
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray_client.site_ledger import Extension
from scarcity_ray_client.wire import KeyRequest

NO_NAMES = [
    None,
    "",
    1,
    1.5,
    True,
    b"x",
    "x" * 10_000,
    "a\nb",
    "\x00",
    "\ud800",
    ["a"],
    {"a": 1},
    math.nan,
    (),
]
"""None of them can name anything."""
NO_ARRAYS = [
    None,
    "abc",
    {},
    object(),
    b"1234",
    [1, "x"],
    [[1, 2], [3]],
    np.array(["a"]),
    1 + 2j,
    threading.Lock(),
    np.ma.masked_array(np.ones(4), [1, 0, 0, 0]),
]
NO_NUMBERS = [None, "1", [1], {}, object(), 1 + 2j, True, 10**400]
ROWS = np.full((1, 4), 0.1)
KEY_REQUEST = KeyRequest(bytes(32), bytes(64), bytes(64))


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def fed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HierarchicalFederation]:
    """Five clients of one domain, one of them with a key that this driver holds; the last test closes it."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    config = HierarchicalFederationConfig(
        vector_dim=4,
        meta_parameters={"rate": (0.0, 1.0)},
        runtime=RuntimeConfig(baskets_per_actor=1),
        ledger_path=str(tmp_path_factory.mktemp("rubbish") / "ledger.sqlite"),
    )
    with HierarchicalFederation(config, runtime=request.param, noise=SeededNoise(7)) as fed:
        fed.register_client("signer", "d", identity_keypair=IdentityKeyPair.generate())
        fed.register_clients([(f"c{i}", "d") for i in range(4)])
        yield fed


def refused(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """What the `UsageError` of a call says."""
    with pytest.raises(UsageError) as caught:
        call(*args, **kwargs)
    said = str(caught.value)
    assert 15 < len(said) < 300
    return said


def test_what_is_no_name_is_nobodys(fed: HierarchicalFederation) -> None:
    before = fed.get_stats()
    for name in NO_NAMES:
        assert "client id" in refused(fed.register_client, name, "d")
        assert "domain id" in refused(fed.register_client, "new", name)
        assert "client id" in refused(fed.register_clients, [("new", "d"), (name, "d")])
        assert fed.unregister_client(name) is False
        assert "is not registered with a key" in refused(fed.change_client_key, name, KEY_REQUEST)
        assert fed.get_client(name) is None
        assert fed.get_basket(name) is None
        assert "there is no basket" in refused(fed.get_basket_model, name)
        assert "there is no basket" in refused(fed.split_basket, name)
        assert "there is no basket" in refused(fed.disband_basket, name)
        assert "operator" in refused(fed.renew_budget, 10.0, 1e-4, operator=name)
        assert fed.offer_update(name, ROWS[0]).reason is Rejection.UNKNOWN_CLIENT
        assert fed.submit_updates([name], ROWS)[0].reason is Rejection.UNKNOWN_CLIENT
        if name is not None:
            assert "neither is registered" in refused(fed.get_privacy_budget, name)
    after = fed.get_stats()
    unknown = Counter(unknown_client=2 * len(NO_NAMES))
    assert Counter(after["rejections"]) == Counter(before["rejections"]) + unknown
    assert after["n_updates_rejected"] == before["n_updates_rejected"] + unknown.total()
    changed = ("rejections", "n_updates_rejected")
    assert {k: v for k, v in after.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }


def test_a_list_of_clients_is_no_single_name(fed: HierarchicalFederation) -> None:
    for ids in ("c0", b"c0", None, 3, {"c0": 1}):
        assert "client_ids must be a sequence" in refused(fed.submit_updates, ids, np.zeros((2, 4)))
    for pairs in ("ab", None, 3, {"a": "d"}, [None], ["ab"], [("a", "d", None)], [1]):
        assert "pairs (client_id, domain_id)" in refused(fed.register_clients, pairs)
    assert fed.register_clients(np.array([["n", "d"]]).tolist()) == ["d_basket_0"]
    assert fed.submit_updates(np.array(["n"]), ROWS)[0].accepted


def test_what_is_no_array_of_numbers_is_refused(fed: HierarchicalFederation) -> None:
    for values in NO_ARRAYS:
        reason = fed.offer_update("c0", values).reason
        assert reason in (Rejection.NOT_NUMERIC, Rejection.WRONG_SHAPE), values
        assert "matrix" in refused(fed.submit_updates, ["c0"], values)
        if values is not None:
            assert "features" in refused(fed.register_client, "new", "d", features=values)
    for features in ([], [math.nan], [[1.0]], [math.inf]):
        assert "finite numbers" in refused(fed.register_client, "new", "d", features=features)
    assert fed.get_client("new") is None


def test_what_is_no_round_is_refused_signed_or_not(fed: HierarchicalFederation) -> None:
    for round_id in ("0", 0.0, [0], object(), math.nan, b"", True):
        for client in ("c0", "signer"):
            assert fed.offer_update(client, ROWS[0], round_id).reason is Rejection.NOT_NUMERIC
    assert fed.offer_update("signer", ROWS[0], 2**70).reason is Rejection.FUTURE_ROUND
    assert fed.offer_update("signer", ROWS[0], -1).reason is Rejection.TOO_STALE


def test_what_is_no_signature_is_a_bad_one(fed: HierarchicalFederation) -> None:
    for signature in ("", 1, [b"x"], object(), b"x" * 64, threading.Lock()):
        assert fed.offer_update("signer", ROWS[0], signature=signature).reason is Rejection.BAD_SIGNATURE
        answers = fed.submit_updates(["signer"], ROWS, signatures=[signature])
        assert answers[0].reason is Rejection.BAD_SIGNATURE
    for signatures in (b"x", "x", 1, object()):
        assert "signatures" in refused(fed.submit_updates, ["signer"], ROWS, signatures=signatures)


def test_what_is_no_report_is_a_usage_error(fed: HierarchicalFederation) -> None:
    for report in (1, "rate", ["rate"], True, math.nan, object()):
        assert "meta must map" in refused(fed.offer_update, "c0", ROWS[0], meta=report)
        assert "meta must map" in refused(fed.submit_updates, ["c0"], ROWS, meta=[report])
    assert "'rat'" in refused(fed.offer_update, "c0", ROWS[0], meta={"rat": 1.0})
    assert "not declared" in refused(fed.offer_update, "c0", ROWS[0], meta={1: 1.0, "x" * 999: 2.0})
    for value in ("high", None, math.nan, [], 10**400):
        fed.advance_round()
        assert fed.offer_update("c0", ROWS[0], meta={"rate": value}).accepted


def test_what_is_no_budget_or_time_is_a_usage_error(fed: HierarchicalFederation) -> None:
    head = fed.get_stats()["ledger_head"]
    for value in NO_NUMBERS:
        assert "total_epsilon" in refused(fed.renew_budget, value, 1e-4, operator="ann")
        assert "total_delta" in refused(fed.renew_budget, 1.0, value, operator="ann")
        if value is not None:
            assert "threshold" in refused(fed.get_stale_baskets, value)
    for epsilon, delta in (
        (0.0, 1e-5),
        (-1.0, 1e-5),
        (math.nan, 1e-5),
        (1.0, 0.0),
        (1.0, 1.0),
        (1.0, math.nan),
    ):
        assert "is not accepted; above 0" in refused(fed.renew_budget, epsilon, delta, operator="ann")
    assert "threshold" in refused(fed.get_stale_baskets, math.nan)
    assert fed.get_stats()["ledger_head"] == head
    fed.renew_budget(1.7e308, 1e-5, operator="ann")
    assert fed.get_privacy_budget() == (1.7e308, 1e-5)


def test_what_no_federation_can_be_made_of_is_a_usage_error(runtime: str) -> None:
    def make(**given: Any) -> None:
        HierarchicalFederation(**{"runtime": runtime, **given})

    for rubbish in ("quickstart.yaml", "", {"vector_dim": 4}, 3, ()):
        assert "HierarchicalFederationConfig" in refused(make, config=rubbish)
    for clock in (None, 3, "now", lambda: None, lambda: math.nan, lambda: "12:00"):
        assert "clock" in refused(make, clock=clock)
    for noise in ("", 0, object(), LocalDPMechanism(1.0, 1e-5, 1.0)):
        assert "standard_normal" in refused(make, noise=noise)
    for kind in ("Ray", None, 3, "x" * 10_000):
        assert "'ray' or 'local'" in refused(make, runtime=kind)
    for name in ("", "a b", "../etc", 3, b"x", "x" * 10_000):
        assert "name must be" in refused(make, name=name)
        assert "name must be" in refused(HierarchicalFederation.attach, name)


def test_a_closed_federation_says_so_whatever_it_is_asked(fed: HierarchicalFederation) -> None:
    fed.close()
    fed.close()
    asked: dict[str, tuple[Any, ...]] = {
        "register_client": ("a", "d"),
        "site_ledger_head": ("a",),
        "note_site_ledger": ("a", Extension(0, ())),
        "register_clients": ([("a", "d")],),
        "unregister_client": ("c0",),
        "change_client_key": ("c0", None),
        "split_basket": ("d",),
        "disband_basket": ("d",),
        "submit_update": ("c0", ROWS[0]),
        "offer_update": ("c0", ROWS[0]),
        "submit_update_async": ("c0", ROWS[0]),
        "submit_updates": (["c0"], ROWS),
        "get_basket_model": ("d",),
        "get_basket_meta_model": ("d",),
        "get_local_states": (["c0"],),
        "get_client": ("c0",),
        "get_ceilings": (["c0"],),
        "get_basket": ("d",),
        "prove_receipt": (3,),
        "sign_roster": (IdentityKeyPair.generate(),),
        "publish_metrics": ([],),
        "map_tasks": (len, [()]),
        "tasks_beside": (len, [()]),
        "fit": (None,),
    }
    silent = {"close", "attach", "restore", "federation_id", "faults", "lost_updates"}
    for name in sorted(set(vars(HierarchicalFederation)) - silent):
        if name.startswith("_"):
            continue
        is_renewal = name in ("renew_budget", "renewal_message")
        given = {"operator": "ann"} if is_renewal else {"rounds": 1} if name == "fit" else {}
        arguments = (1.0, 1e-5) if is_renewal else asked.get(name, ())
        assert "closed" in refused(getattr(fed, name), *arguments, **given), name
    with pytest.raises(ScarcityError, match="closed"):
        fed.__enter__()
