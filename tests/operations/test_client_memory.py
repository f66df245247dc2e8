"""One client, one vote, whatever ends: it leaves, a basket closes, a role dies, and it comes back."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray import FaultWarning, IdentityKeyPair, Rejection, sign_update
from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.names import ACCOUNTANT, DIRECTORY
from scarcity_ray.baskets import client_memory
from scarcity_ray.baskets.client_memory import ClientMemories, ClientMemory
from scarcity_ray.baskets.update_buffer import ReplayKey
from scarcity_ray.directory.records import OrderNumber
from scarcity_ray.gossip import GossipState
from tests.operations.stopping import IDS, ROWS, SETTINGS, Scene, Stopper

ENDS: dict[str, Callable[[Scene], Any]] = {
    "nothing": lambda scene: None,
    "its basket is split": lambda scene: scene.fed.split_basket("c_basket_0"),
    "its basket is disbanded": lambda scene: scene.fed.disband_basket("c_basket_0"),
    "the directory": lambda scene: scene.kill(DIRECTORY),
    "its actor": lambda scene: scene.kill("basket:0"),
    "its actor, then the directory": lambda scene: (
        scene.kill("basket:0"),
        hear(scene),
        scene.kill(DIRECTORY),
    ),
    "the directory, then its actor": lambda scene: (
        scene.kill(DIRECTORY),
        hear(scene),
        scene.kill("basket:0"),
    ),
    "split, then the directory": lambda scene: (scene.fed.split_basket("c_basket_0"), scene.kill(DIRECTORY)),
}


def hear(scene: Scene) -> None:
    scene.fed.get_stats()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.filterwarnings("ignore::scarcity_ray.FaultWarning")
def test_leaving_and_coming_back_gains_nothing_whatever_ends(
    end: str, scene_of: Callable[..., Scene]
) -> None:
    scene = scene_of()
    fed = scene.fed
    assert all(fed.submit_updates(IDS, ROWS))
    reputations = scene.role("basket:0")._baskets["c_basket_0"]._reputations
    reputations.offend("c0", 0, b"malformed, and signed", since=0, most=1)
    fed.run_gossip_round()
    fed.unregister_client("c0")
    ENDS[end](scene)
    fed.register_clients([("stranger", "c"), ("c0", "c")])
    assert fed.offer_update("c0", ROWS[0]).reason is Rejection.REPLAYED
    assert fed.offer_update("c0", 2 * ROWS[0]).reason is Rejection.PARTICIPATION_CAP
    client = fed.get_client("c0")
    assert client is not None
    assert client.trust_score == 0.5
    home = scene.role(f"basket:{scene.role(DIRECTORY)._slots[client.basket_id]}")._baskets[client.basket_id]
    home._reputations.offend("c0", 0, b"malformed, and signed", since=0, most=1)
    assert home._reputations.trust("c0") == 0.5, "held against it once, wherever it is"
    # Not tested or released twice in the round, as soon as it has a state again.
    memory = scene.role(DIRECTORY)._memories.get("c0")
    assert (memory.gossip.tested_round, memory.gossip.released_round) == (0, 0)
    fed.run_gossip_round()
    assert {n for name, n in scene.noise.drawn.items() if name.split("/")[2:3] == ["c0"]} == {1}
    # In a later round it is a client as any other, and nothing but its trust is remembered.
    for _ in range(fed.config.buffer.max_staleness + 1):
        fed.advance_round()
    scene.clock.advance(86_400.0)
    fed.advance_round()
    assert fed.offer_update("c0", ROWS[0])
    assert scene.role(DIRECTORY)._memories.all() == (
        ClientMemory("c0", slot=memory.slot, trust=0.5, number=memory.number),
    )


@pytest.mark.parametrize("kill", [None, DIRECTORY])
@pytest.mark.filterwarnings("ignore::scarcity_ray.FaultWarning")
def test_nobody_is_in_one_release_twice(kill: str | None, scene_of: Callable[..., Scene]) -> None:
    scene = scene_of(basket={"min_clients": 2, "max_clients": 3})
    fed = scene.fed
    assert all(fed.submit_updates(["c0", "c1", "c2"], ROWS[:3]))
    assert fed.force_aggregate() is None  # one basket has a fresh aggregate, with c0 in it
    fed.unregister_client("c0")
    fed.register_client("x", "c")
    fed.split_basket("c_basket_1")
    if kill:
        scene.kill(kill)
    fed.register_client("c0", "c")
    assert fed.offer_update("c0", ROWS[0]).reason is Rejection.REPLAYED
    fed.advance_round()
    assert all(fed.submit_updates(IDS, ROWS))
    fed.force_aggregate()
    stats = fed.get_stats()
    assert stats["n_basket_models_discarded"] == 1
    assert scene.released()[0] < 1.5 / len(IDS)


def test_what_is_remembered_holds_no_value_of_an_update(scene_of: Callable[..., Scene]) -> None:
    scene = scene_of()
    fed = scene.fed
    row = np.random.default_rng(3).standard_normal(ROWS.shape[1]).astype(np.float32)
    assert fed.offer_update("c0", row)
    fed.run_gossip_round()
    fed.unregister_client("c0")
    (memory,) = scene.role(DIRECTORY)._memories.all()
    told = pickle.dumps(memory)
    assert memory.accepted
    assert not any(value.tobytes() in told for value in row)


keys = st.builds(ReplayKey, st.just("a"), st.integers(0, 9), st.binary(min_size=2, max_size=2))
records = st.builds(
    GossipState,
    tested_round=st.integers(-1, 9),
    released_round=st.integers(-1, 9),
    num_releases=st.integers(0, 9),
    release_times=st.lists(st.floats(0, 1e5), max_size=5),
)
memories = st.builds(
    ClientMemory,
    client_id=st.just("a"),
    number=st.builds(OrderNumber, st.integers(0, 2), st.integers(0, 3)),
    trust=st.sampled_from([0.25, 0.5, 1.0]),
    accepted=st.lists(keys, max_size=8).map(lambda k: tuple(sorted(set(k), key=repr))),
    gossip=records,
)


@given(st.lists(memories, min_size=1, max_size=4), st.integers(0, 9), st.floats(0, 2e5))
def test_nothing_that_matters_is_forgotten_and_nothing_else_kept(
    known: Sequence[ClientMemory], oldest: int, now: float
) -> None:
    store = ClientMemories()
    for memory in known:
        store.note([memory])
    store.note([known[-1]])  # told twice
    newest = max(reversed(known), key=lambda memory: memory.number)  # of one leaving, what was told last
    store.forget_before(oldest, now)
    kept = store.get("a")
    expected = {key for memory in known for key in memory.accepted if key.round_id >= oldest}
    fresh = max(sum(abs(now - time) < 86_400.0 for time in memory.gossip.release_times) for memory in known)
    assert set(kept.accepted if kept else ()) == expected
    assert (len(kept.gossip.release_times) if kept else 0) >= fresh
    tested = max(memory.gossip.tested_round for memory in known)
    if tested >= oldest:
        assert kept is not None
        assert kept.gossip.tested_round == tested
    if kept is None:
        assert newest.trust == 1.0
    else:
        assert kept.trust == newest.trust
        assert all(abs(now - time) < 86_400.0 for time in kept.gossip.release_times)


@pytest.mark.parametrize("homes", ["ce", "ec"])
@pytest.mark.filterwarnings("ignore::scarcity_ray.FaultWarning")
def test_the_trust_of_the_last_leaving_counts_whichever_actor_keeps_it(
    homes: str, scene_of: Callable[..., Scene]
) -> None:
    scene = scene_of(expose_basket_models=False)
    fed, keys = scene.fed, IdentityKeyPair.generate()
    first, second = homes
    fed.register_client("m", first, identity_keypair=keys)
    assert fed.submit_update("m", ROWS[0])
    fed.unregister_client("m")  # fully trusted, and remembered for its update
    fed.register_client("m", second, identity_keypair=keys)
    bad = np.full(ROWS.shape[1], np.nan, np.float32)
    signature = sign_update(keys.sign, fed.signing_scope(), "m", 0, bad)
    assert fed.offer_update("m", bad, 0, signature=signature).reason is Rejection.NOT_FINITE
    fed.unregister_client("m")
    scene.kill(DIRECTORY)
    fed.register_client("m", first, identity_keypair=keys)
    client = fed.get_client("m")
    assert client is not None
    assert client.trust_score == 0.5


@pytest.mark.filterwarnings("ignore::scarcity_ray.FaultWarning")
def test_a_leaver_whose_actor_dies_before_it_has_told_is_trusted_as_last_known(
    scene_of: Callable[..., Scene],
) -> None:
    """Its replays die with its actor, as a member's do; its trust does not, whichever it was before."""
    for at in range(20):
        scene = scene_of(expose_basket_models=False)
        fed = scene.fed
        fed.unregister_client("c0")
        fed.register_client("c0", "c")
        scene.role("basket:0")._baskets["c_basket_0"]._reputations.offend("c0", 0, b"bad", since=0, most=1)
        fed.get_stats()
        stopper = Stopper(fed)
        stopped = stopper.run(lambda fed=fed: fed.unregister_client("c0"), at)
        scene.kill("basket:0")
        other = scene.another_driver()
        other.get_stats()
        other.register_client("c0", "c")
        client = other.get_client("c0")
        assert client is not None
        assert client.trust_score == 0.5, at
        if not stopped:
            return
    pytest.fail("it has more calls than are stopped here")


def test_a_new_round_looks_at_nobody_of_whom_trust_alone_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ClientMemories(ClientMemory(f"c{i}", trust=0.5) for i in range(3))
    store.note([ClientMemory("d", trust=0.5, accepted=(ReplayKey("d", 3, b"x"),)), ClientMemory("e")])
    looked: list[str] = []
    since = ClientMemory.since

    def watched(memory: ClientMemory, round_id: int, now: float) -> ClientMemory | None:
        looked.append(memory.client_id)
        return since(memory, round_id, now)

    monkeypatch.setattr(ClientMemory, "since", watched)
    for round_id in (3, 4, 5):
        store.forget_before(round_id, 0.0)
    assert looked == ["d", "e", "d"]
    assert [memory.client_id for memory in store.all()] == ["c0", "c1", "c2", "d"]
    assert all(memory.trust == 0.5 for memory in store.all())


def test_of_trust_alone_the_last_leavers_are_kept_and_the_others_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_memory, "MOST_TRUSTS", 3)
    store = ClientMemories(ClientMemory(f"c{i}", trust=0.5) for i in range(3))
    store.note([ClientMemory("c0", trust=0.25, number=OrderNumber(0, 1)), ClientMemory("c3", trust=0.5)])
    assert [memory.client_id for memory in store.all()] == ["c2", "c0", "c3"]
    assert store.num_dropped == 1


def test_a_death_is_told_where_it_is_met(scene_of: Callable[..., Scene]) -> None:
    scene = scene_of()
    fed, other = scene.fed, scene.another_driver()
    assert all(fed.submit_updates(IDS, ROWS))
    scene.kill("basket:1")
    with pytest.warns(FaultWarning, match="basket:1 died.*e_basket_0.*send the updates") as told:
        receipts = fed.submit_updates(IDS, ROWS)
    assert {warning.filename for warning in told} == {__file__}
    assert [bool(r) for r in receipts] == [client.startswith("e") for client in IDS]
    with pytest.warns(FaultWarning, match="e_basket_0"):
        other.get_stats()
    assert fed.faults == other.faults
    assert len(fed.faults) == 1
    late = scene.another_driver()
    assert late.faults == fed.faults
    scene.kill(DIRECTORY)
    with pytest.warns(FaultWarning, match="the directory died"):
        other.register_client("new", "f")
    assert len(fed.faults) == len(other.faults) == 2


@pytest.mark.filterwarnings("ignore::scarcity_ray.FaultWarning")
def test_a_death_is_noted_once_and_also_if_the_driver_dies_that_met_it(
    scene_of: Callable[..., Scene],
) -> None:
    scene = scene_of()
    fed, other = scene.fed, scene.another_driver()
    scene.kill("basket:0")
    faults = fed._driver.supervisor.recover({"basket:0"}, 0.0)
    fed._driver.client.note_faults(next(faults))  # and the driver dies before the actor is there again
    other.get_stats()
    assert len(other.faults) == 1


def test_a_renewal_reaches_basket_actors_that_were_not_told(scene_of: Callable[..., Scene]) -> None:
    layer2 = {**SETTINGS["layer2"], "central_dp_epsilon": 0.5}
    scene = scene_of(total_epsilon=0.55, gossip_budget_share=0.0, layer2=layer2)
    fed, clock = scene.fed, scene.clock
    fed.submit_updates(IDS, ROWS)
    fed.force_aggregate()
    assert fed.get_stats()["read_only"]
    fed.advance_round()
    assert {r.reason for r in fed.submit_updates(IDS, ROWS)} == {Rejection.READ_ONLY}
    # The driver that renews dies when the accountant has recorded it.
    fed._driver.client.call(ACCOUNTANT, Accountant.renew, 60.0, 1e-5, clock(), "op", "renewal/1")
    assert all(scene.another_driver().submit_updates(IDS, ROWS))
