"""Trust in a federation: it follows conduct, survives what clients and actors do, and never weighs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, IdentityKeyPair, Rejection, sign_update
from scarcity_ray.layers import layer1

DIMENSION = 40
NAMES = [f"{domain}{i}" for domain in "ab" for i in range(8)]
LIAR = "a0"
KEYS = {name: IdentityKeyPair.generate() for name in (LIAR, "b1")}


def settings(**sections: Any) -> dict[str, Any]:
    return {
        "vector_dim": DIMENSION,
        "auto_aggregate": False,
        "basket": {"min_clients": 2, "max_clients": 8},
        "gossip_budget_share": 0.0,
        "layer1": {"aggregation_method": "trimmed_mean", "byzantine_fraction": 0.2},
        "layer2": {"central_dp_epsilon": 0.5},
        **sections,
    }


def join(fed: HierarchicalFederation) -> None:
    for name in NAMES:
        fed.register_client(name, name[0], identity_keypair=KEYS.get(name))


def offend(fed: HierarchicalFederation, client_id: str, value: float = math.nan) -> None:
    """Send what is no update, signed by the client itself."""
    sent, round_id = np.full(DIMENSION, value), fed.get_stats()["current_round"]
    signature = sign_update(KEYS[client_id].sign, fed.signing_scope(), client_id, round_id, sent)
    assert fed.offer_update(client_id, sent, signature=signature).reason is Rejection.NOT_FINITE


def play_round(fed: HierarchicalFederation, seed: int) -> bytes:
    """Honest updates, and the liar's; the release."""
    rows = 0.05 + 0.01 * np.random.default_rng(seed).standard_normal((len(NAMES), DIMENSION))
    rows[NAMES.index(LIAR)] *= -8
    fed.submit_updates(NAMES, rows)
    fed.run_gossip_round()
    model = fed.force_aggregate()
    fed.advance_round()
    return b"" if model is None else model.tobytes()


def trust(fed: HierarchicalFederation, client_id: str) -> float:
    client = fed.get_client(client_id)
    assert client is not None
    return client.trust_score


def test_who_never_agrees_loses_trust_and_who_agrees_regains_it(open_federation: Any, runtime: str) -> None:
    fed = open_federation(settings(runtime={"baskets_per_actor": 9}), runtime=runtime)
    join(fed)
    offend(fed, "b1")
    for seed in range(4):
        play_round(fed, seed)
    assert trust(fed, LIAR) == pytest.approx(0.9**4)
    assert 0.65 < trust(fed, "b1") <= 1 - 0.5 * 0.9**4
    others = [trust(fed, name) for name in NAMES if name not in (LIAR, "b1")]
    assert np.mean(others) > 0.93
    entry = fed.get_stats()["basket_stats"]["a"]["baskets"]["a_basket_0"]
    assert LIAR in entry["outliers"]
    assert entry["trust"]["least"] == trust(fed, LIAR)
    model = fed.get_basket_meta_model("a")
    assert model is not None
    placing = model.placings[LIAR]
    assert (placing.selected, placing.agreement) == (True, 0.0)
    assert placing.distance == max(place.distance for place in model.placings.values())
    assert placing.trimmed is not None
    assert placing.trimmed > 0.9


def test_where_basket_models_are_private_nothing_of_agreement_is_made(open_federation: Any) -> None:
    fed = open_federation(settings(expose_basket_models=False))
    join(fed)
    offend(fed, "b1")
    for seed in range(3):
        play_round(fed, seed)
    assert {trust(fed, name) for name in NAMES if name != "b1"} == {1.0}
    assert trust(fed, "b1") == pytest.approx(0.53)  # halved for what anybody can see, then three updates
    for entry in fed.get_stats()["basket_stats"].values():
        for basket in entry["baskets"].values():
            assert not {"outliers", "trust"} & set(basket)
    host = fed._runtime.peers.roles["basket:0"]
    assert host.reputations() == {}
    models = [basket.latest.model for basket in host._baskets.values()]
    assert [model.placings for model in models] == [{}, {}]


def test_a_drivers_mistake_costs_no_trust(open_federation: Any) -> None:
    """Nor does a bad signature, which may be anybody's; and a driver that signs signs no rubbish."""
    fed = open_federation(settings())
    join(fed)
    key = IdentityKeyPair.generate()
    fed.register_client("keyed", "c", identity_keypair=key)
    rubbish = [
        np.full(DIMENSION, np.nan),
        np.zeros(DIMENSION + 1),
        np.zeros((2, 2)),
        "text",
        None,
        [True] * 4,
    ]
    for client_id in ("a1", "keyed"):
        for sent in rubbish:
            assert not fed.offer_update(client_id, sent)
            assert not fed.submit_updates([client_id], [sent])[0]
    for sent in (np.zeros(DIMENSION), np.full(DIMENSION, np.nan)):
        stranger = sign_update(IdentityKeyPair.generate().sign, fed.signing_scope(), "keyed", 0, sent)
        for signature in (bytes(64), b"", stranger):
            assert not fed.offer_update("keyed", sent, signature=signature)
    assert trust(fed, "a1") == trust(fed, "keyed") == 1.0


def test_what_a_client_signed_that_is_no_update_costs_trust_once(open_federation: Any) -> None:
    cap = 2
    fed = open_federation(settings(buffer={"participation_cap": cap, "max_staleness": 1}))
    key = IdentityKeyPair.generate()
    fed.register_client("keyed", "c", identity_keypair=key)

    def send(sent: Any, round_id: int, times: int = 1) -> float:
        signature = sign_update(key.sign, fed.signing_scope(), "keyed", round_id, sent)
        for _ in range(times):
            assert not fed.offer_update("keyed", sent, round_id, signature=signature)
        return trust(fed, "keyed")

    long, broken = np.zeros(DIMENSION + 1), np.full(DIMENSION, np.nan)
    assert send(long, 0, times=3) == 0.5
    assert send(broken, 0, times=3) == 0.25
    assert send(2 + long, 0) == 0.25, "no more of a round than it may send"
    for round_id in (1, -1, 5):
        assert send(2 + long, max(round_id, 0)) == 0.25, "no round that is not open"
    fed.advance_round()
    assert send(long, 0) == 0.25, "nor what was held against it before"
    assert send(long, 1) == 0.125
    fed.advance_round()
    assert send(long, 0) == 0.125, "nor what is too old"


def test_the_released_bytes_do_not_depend_on_trust_or_on_the_report(
    open_federation: Any, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs with the same noise: with reports, without, and with agreement drawn at random."""
    released = []
    for run in ("reported", "private", "random"):
        if run == "random":
            draw = np.random.default_rng(9).random
            monkeypatch.setattr(layer1, "agreement", lambda distances, _, draw=draw: draw(len(distances)))
        fed = open_federation(
            settings(
                expose_basket_models=run != "private",
                gossip_budget_share=0.5,
                gossip={"local_dp_epsilon": 4.0, "push_drift_threshold": 0.0},
                total_epsilon=50.0,
            ),
            clock=type(clock)(),
        )
        join(fed)
        offend(fed, "b1")
        models = [play_round(fed, seed) for seed in range(4)]
        assert sum(map(bool, models)) == 4
        assert fed.get_stats()["n_gossip_messages"] > 0
        released.append((models, trust(fed, LIAR)))
    assert released[0][0] == released[1][0] == released[2][0]
    assert len({score for _, score in released}) == 3


def test_trust_goes_with_clients_through_a_split_and_a_disband(open_federation: Any, runtime: str) -> None:
    fed = open_federation(settings(), runtime=runtime)
    join(fed)
    play_round(fed, 0)
    offend(fed, LIAR, np.inf)
    fed.split_basket("a_basket_0")  # before the directory was told
    assert trust(fed, LIAR) == pytest.approx(0.45)
    offend(fed, LIAR, -np.inf)
    home = fed.get_client(LIAR)
    assert home is not None
    fed.disband_basket(str(home.basket_id))
    assert trust(fed, LIAR) == pytest.approx(0.225)


def test_what_a_closed_basket_saw_last_is_told(open_federation: Any, clock: Any) -> None:
    fed = open_federation(settings())
    join(fed)
    clock.advance(5.0)
    fed.submit_update("a1", np.zeros(DIMENSION))
    offend(fed, LIAR)
    fed.unregister_client(LIAR)
    fed.split_basket("a_basket_0")
    fed.register_client(LIAR, "a", identity_keypair=KEYS[LIAR])
    assert trust(fed, LIAR) == 0.5
    client = fed.get_client("a1")
    assert client is not None
    assert (client.n_updates, client.last_active) == (1, clock.now)


def test_leaving_and_coming_back_does_not_restore_trust(open_federation: Any) -> None:
    fed = open_federation(settings())
    join(fed)
    offend(fed, LIAR)
    fed.unregister_client(LIAR)
    fed.register_client(LIAR, "a", identity_keypair=KEYS[LIAR])
    assert trust(fed, LIAR) == 0.5
    offend(fed, LIAR, np.inf)
    fed.unregister_client(LIAR)
    fed.get_stats()
    fed.register_client("stranger", "a")
    assert fed.register_client(LIAR, "a", identity_keypair=KEYS[LIAR]) == "a_basket_1"
    assert trust(fed, LIAR) == 0.25


def test_trust_survives_the_death_of_either_actor_that_knows_it(open_federation: Any, runtime: str) -> None:
    fed = open_federation(settings(total_epsilon=math.inf), runtime=runtime)
    join(fed)
    play_round(fed, 0)
    offend(fed, "b1")
    assert trust(fed, "b1") == pytest.approx(0.5, abs=0.05)
    for round_id, role in ((1, "basket:0"), (2, "directory")):
        known = {name: trust(fed, name) for name in NAMES}
        assert known[LIAR] == pytest.approx(0.9**round_id)
        fed._runtime.kill(role)
        assert {name: trust(fed, name) for name in NAMES} == known
        assert any(role.split(":")[0] in fault for fault in fed.get_stats()["faults"])
        play_round(fed, round_id)
    assert trust(fed, LIAR) == pytest.approx(0.9**3)
