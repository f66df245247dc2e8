"""A basket actor that dies and comes back from its journal; the oracle is the same federation undisturbed."""

from __future__ import annotations

import itertools
import math
import sqlite3
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import Phase, given, settings

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig, Rejection
from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.messages import Admission, BasketPlace
from scarcity_ray.actors.names import DIRECTORY
from scarcity_ray.baskets.journalled import _codec
from scarcity_ray.baskets.reports import Member
from scarcity_ray.config import load
from scarcity_ray.errors import ActorLost, StorageError
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray.runtime import rpc
from scarcity_ray.storage.journal import Journal

pytestmark = pytest.mark.filterwarnings("ignore::scarcity_ray.ScarcityWarning")

CLIENTS = [f"{domain}{i}" for domain in "ab" for i in range(4)]
DIMENSION = 3
EXACT: dict[str, Any] = {
    "vector_dim": DIMENSION,
    "auto_aggregate": False,
    "total_epsilon": math.inf,
    "gossip": {"local_dp_epsilon": math.inf, "push_drift_threshold": 0.0},
    "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0, "min_updates": 1},
    "layer2": {"central_dp_epsilon": math.inf, "min_baskets": 2},
    "meta_parameters": {"loss": [0.0, 1.0]},
}


def opened(folder: Path, *, journal: bool, **others: Any) -> HierarchicalFederation:
    kept = {"journal_path": str(folder / "journal"), "durability": "update"} if journal else {}
    ledger = str(folder / f"ledger-{journal}.sqlite")
    config = load(HierarchicalFederationConfig, {**EXACT, "ledger_path": ledger, **kept, **others})
    return HierarchicalFederation(config, runtime="local", noise=SeededNoise(7), clock=lambda: 1e6)


@pytest.fixture
def fed_of(tmp_path: Path) -> Any:
    feds: list[HierarchicalFederation] = []

    def fed(**others: Any) -> HierarchicalFederation:
        feds.append(opened(tmp_path, journal=True, **others))
        feds[-1].register_clients([(client, client[0]) for client in CLIENTS])
        return feds[-1]

    yield fed
    for one in feds:
        one.close()


def rows(count: int = len(CLIENTS)) -> Any:
    return np.arange(1.0, 1.0 + count * DIMENSION, dtype=np.float32).reshape(count, DIMENSION) / 100


def kill(fed: HierarchicalFederation) -> None:
    fed._runtime.kill("basket:0")


@pytest.mark.parametrize("durability", ["round", "update"])
def test_an_acknowledged_update_outlives_the_actor(durability: str, fed_of: Any) -> None:
    fed = fed_of(durability=durability)
    assert all(fed.submit_updates(CLIENTS, rows(), 0))
    kill(fed)
    assert fed.offer_update("a0", rows()[0], 0).reason is Rejection.REPLAYED
    assert fed.get_stats()["n_updates_buffered"] == len(CLIENTS)
    assert fed.faults == (
        "basket:0 died and came back from its journal, with 8 updates that wait and 0 fresh aggregates; "
        "nothing was lost",
    )
    np.testing.assert_allclose(fed.force_aggregate(), rows().mean(axis=0), rtol=1e-4)


def test_an_aggregate_outlives_the_actor_without_the_updates_in_it(fed_of: Any) -> None:
    fed = fed_of()
    assert all(fed.submit_updates(CLIENTS, rows(), 0))
    fed._driver.run_layer1(None, True)
    kill(fed)
    stats = fed.get_stats()
    assert (stats["n_updates_buffered"], stats["n_layer1_aggregations"]) == (0, 2)
    np.testing.assert_allclose(fed.force_aggregate(), rows().mean(axis=0), rtol=1e-4)
    kill(fed)
    assert fed.force_aggregate() is None, "what was released is released once"


def test_a_call_answered_before_a_death_is_answered_again(fed_of: Any, monkeypatch: Any) -> None:
    """The answer is lost with the actor, and the driver makes the call again under its number."""
    fed = fed_of()
    peers, lost = fed._runtime.peers, []
    honest = type(peers).handle

    def handle(self: Any, name: str) -> Any:
        inner = honest(self, name)

        class Once:
            def call(self, method: str, *args: Any) -> Any:
                answer = inner.call(method, *args)
                if args[1:2] == ("submit",) and not lost:
                    lost.append(name)
                    kill(fed)
                    return honest(peers, name).call("submit")  # it is not running
                return answer

        return Once()

    monkeypatch.setattr(type(peers), "handle", handle)
    receipts = fed.submit_updates(["a0", "b0", "a0"], rows(3)[[0, 1, 0]], 0)
    assert [r.reason for r in receipts] == [None, None, Rejection.REPLAYED]
    assert lost == ["basket:0"]
    assert fed.get_stats()["n_updates_buffered"] == 2


def test_answers_that_nobody_can_ask_for_again_are_dropped(fed_of: Any, monkeypatch: Any) -> None:
    """Each thread is a caller of its own."""
    monkeypatch.setattr(rpc, "CALLERS", 3)
    fed = fed_of()
    for client, row in zip(CLIENTS, rows(), strict=True):
        with mock.patch("threading.get_ident", return_value=hash(client)):
            fed.submit_updates([client], row[None], 0)
    journal = fed._runtime.peers.roles["basket:0"]._journal
    assert len(journal.names("answer")) == len(CLIENTS)
    fed.advance_round()
    assert len(journal.names("answer")) == 2, "the third is the caller that advances the round"


STEPS = ["send", "again", "layer1", "release", "round", "leave", "join", "split", "offence"]


def step(fed: HierarchicalFederation, name: str, number: int) -> Any:
    """One step; what it answers."""
    client = CLIENTS[number % len(CLIENTS)]
    there = sorted(fed._driver.operations.locate(CLIENTS))
    match name:
        case "send":
            chosen = there[number % 2 :: 2] or there
            values = rows(len(chosen)) * (1 + number)
            report = [{"loss": number / 10 % 1} for _ in chosen] if fed.config.meta_parameters else None
            return [str(r.reason) for r in fed.submit_updates(chosen, values, meta=report)]
        case "again":
            return str(fed.offer_update(client, rows(1)[0]).reason)
        case "layer1":
            return [(o.basket_id, o.aggregated, o.num_rows) for o in fed._driver.run_layer1(None, True)]
        case "gossip":
            return fed.run_gossip_round()
        case "release":
            return fed.force_aggregate()
        case "round":
            return fed.advance_round()
        case "leave":
            return fed.unregister_client(client)
        case "join":
            return fed.register_client(client, client[0])
        case "offence":
            return str(fed.offer_update(client, [math.nan] * DIMENSION).reason)
        case _:
            basket, sizes = live(fed)[number % len(live(fed))], fed._driver.client.call
            sizes = sizes(DIRECTORY, Directory.stats, 0.0)["sizes"]
            return fed.split_basket(basket) if sizes[basket] > 1 else None


def live(fed: HierarchicalFederation) -> list[str]:
    return sorted(place.basket_id for place in fed._driver.operations.routing_table().places)


OF_ITS_OWN = {"ledger", "ledger_path", "ledger_head", "faults", "warnings", "waiting_for"}
BEGIN_ANEW = {"rejections", "n_updates_rejected", "n_gossip_messages", "n_sessions_refused"}
"""Counts of what a basket refused, or sent on, since it last wrote to its journal: a restart says so."""


def seen(fed: HierarchicalFederation) -> dict[str, Any]:
    """All that a user sees of the updates and of what became of them."""
    stats = {k: v for k, v in fed.get_stats().items() if k not in OF_ITS_OWN | BEGIN_ANEW}
    stats["waits"] = str(fed.waiting_for())
    for domain in stats["basket_stats"].values():
        for basket in domain["baskets"].values():
            for lost in ("gossip", "clipping"):
                basket.pop(lost)
    return {**stats, "models": {b: fed.get_basket_model(b) for b in live(fed)}}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


WITHOUT_LAYER2 = {"meta_parameters": {}, "layer2": {"enabled": False}}


@pytest.mark.parametrize("others", [{}, WITHOUT_LAYER2], ids=["layer2", "without_layer2"])
@settings(max_examples=settings.default.max_examples // 8, phases=set(Phase) - {Phase.shrink, Phase.explain})
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 7)), min_size=8, max_size=12))
def test_it_goes_on_as_if_nothing_had_happened(
    others: dict[str, Any], steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Killed before every step, it answers as the federation that has no journal and that nobody kills."""
    folder = tmp_path_factory.mktemp("twins")
    quiet = {**others, "gossip_budget_share": 0.0}
    with opened(folder, journal=False, **quiet) as calm, opened(folder, journal=True, **quiet) as killed:
        for fed in (calm, killed):
            fed.register_clients([(client, client[0]) for client in CLIENTS])
        for name, number in steps:
            kill(killed)
            one, other = step(calm, name, number), step(killed, name, number)
            assert same(one, other), (name, number, one, other)
            assert same(seen(calm), seen(killed)), (name, number)
        assert not any("are lost" in fault for fault in killed.faults)


def test_what_gossip_has_mixed_outlives_the_actor(tmp_path: Path) -> None:
    with opened(tmp_path, journal=False) as calm, opened(tmp_path, journal=True) as killed:
        models = []
        for fed in (calm, killed):
            fed.register_clients([(client, client[0]) for client in CLIENTS])
            fed.submit_updates(CLIENTS[:-1], rows(7), meta=[{"loss": 0.5}] * 7)
            assert fed.run_gossip_round()["a"] > 0
            if fed is killed:
                kill(fed)
            fed._driver.run_layer1(None, True)
            models.append([fed.get_basket_model(basket) for basket in live(fed)])
            assert fed.run_gossip_round() == {"a": 0, "b": 0}, "one vector a round, whoever dies"
        assert same(*models)
        lost = int(killed.faults[0].split("; ")[1].split()[0])
        assert "messages of gossip that had not reached a client are lost" in killed.faults[0]
        assert lost > 0


class KillingPeers:
    """The driver's peers; the basket actor that it calls dies before or after the call with this number."""

    def __init__(self, fed: HierarchicalFederation, at: int) -> None:
        self.fed, self.at, self.made = fed, at, 0
        self.peers = fed._runtime.peers

    def handle(self, name: str) -> Any:
        return _Killing(self, name)


class _Killing:
    def __init__(self, peers: KillingPeers, name: str) -> None:
        self.peers, self.name = peers, name

    def call(self, method: str, *args: Any) -> Any:
        def reached(point: int) -> bool:
            return self.name.startswith("basket:") and point == self.peers.at

        runtime, honest = self.peers.fed._runtime, self.peers.peers.handle(self.name)
        self.peers.made += 2
        if reached(self.peers.made - 1):
            runtime.kill(self.name)
        answer = honest.call(method, *args)
        if reached(self.peers.made):
            runtime.kill(self.name)
            return honest.call(method, *args)  # its answer is lost
        return answer


OWN = np.eye(len(CLIENTS), dtype=np.float32) / 10
"""One coordinate a client: a loss and a double count show in the sum of the baskets' aggregates."""

ACTS: dict[str, tuple[Callable[[HierarchicalFederation], Any], float]] = {
    "split": (lambda fed: fed.split_basket("a_basket_0"), 1.0),
    "leave": (lambda fed: fed.unregister_client("b0"), 0.0),
    "round": (lambda fed: fed.advance_round(), 0.5**0.5),
    "layer1": (lambda fed: fed._driver.run_layer1(None, True), 1.0),
    "submit": (lambda fed: [r.reason for r in fed.submit_updates(CLIENTS, 3 * OWN, 0)], 2.0),
}
"""What is done, and what client b0 counts for then: a mean of its updates, by their staleness."""


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ACTS)
def test_a_basket_actor_dies_inside_an_operation(name: str, step: int, tmp_path: Path) -> None:
    """Before a call of it or after; by hand at every call."""
    act, share = ACTS[name]
    small = {"runtime": {"baskets_per_actor": 1}, "vector_dim": len(CLIENTS), "meta_parameters": {}}
    for at in itertools.count(1, step):
        folder = tmp_path / str(at)
        folder.mkdir()
        with opened(folder, journal=True, **small) as fed:
            fed.register_clients([(client, client[0]) for client in CLIENTS])
            assert all(fed.submit_updates(CLIENTS, OWN, 0))
            driver = fed._driver.supervisor
            driver.peers = peers = KillingPeers(fed, at)
            answer = act(fed)
            driver.peers = peers.peers
            if name == "submit":
                assert answer == [None] * len(CLIENTS)
            fed._driver.run_layer1(None, True)
            counted = sum(
                model * fed.get_basket_meta_model(basket).n_contributors
                for basket in live(fed)
                if (model := fed.get_basket_model(basket)) is not None
            )
            expected = OWN.sum(axis=0) * (share or 1.0)
            expected[CLIENTS.index("b0")] *= share > 0.0
            np.testing.assert_allclose(counted, expected, rtol=1e-6)
            assert fed.get_stats()["n_updates_buffered"] == 0
            if peers.made < at:
                return
            assert len(fed.faults) <= 1


@pytest.mark.parametrize(("phase", "masked"), [("mask", True), ("unmask", True), ("contribute", False)])
def test_what_was_handed_in_is_settled_after_a_death(
    phase: str, masked: bool, fed_of: Any, monkeypatch: Any
) -> None:
    """After its masked input, or its shares, left: released once, by this session or by the next."""
    layer2 = {**EXACT["layer2"], "use_secure_aggregation": masked, "assumed_corrupt_fraction": 0.0}
    fed = fed_of(runtime={"baskets_per_actor": 1}, layer2=layer2)
    assert all(fed.submit_updates(CLIENTS, rows(), 0))
    fed._driver.run_layer1(None, True)
    honest, dead = getattr(BasketHost, phase), []

    @wraps(honest)
    def dies(host: BasketHost, *args: Any) -> Any:
        answer = honest(host, *args)
        if not dead:
            dead.append(host._slot)
            fed._runtime.kill(f"basket:{host._slot}")
            raise ActorLost(f"basket:{host._slot}", "killed as it answered")
        return answer

    monkeypatch.setattr(BasketHost, phase, dies)
    released = [model for _ in range(3) if (model := fed.force_aggregate()) is not None]
    if phase == "unmask":
        assert len(released) <= 1
    else:
        np.testing.assert_allclose(released[0], rows().mean(axis=0), rtol=1e-3)
        assert len(released) == 1
    assert dead


def test_what_is_spent_is_on_the_disk_before_a_share_leaves(fed_of: Any, monkeypatch: Any) -> None:
    fed = fed_of()
    assert all(fed.submit_updates(CLIENTS, rows(), 0))
    honest, found = BasketHost.unmask, []

    @wraps(honest)
    def look(host: BasketHost, *args: Any) -> Any:
        shares = honest(host, *args)
        found.extend(
            (len(shares), _codec.unpack(host._journal._journal.records(basket, "aggregate")[""]).is_fresh)
            for basket in sorted(host._baskets)
        )
        return shares

    monkeypatch.setattr(BasketHost, "unmask", look)
    assert fed.force_aggregate() is not None
    assert found == [(2, False)] * 2


def test_what_cannot_be_stored_is_refused_and_undone(fed_of: Any) -> None:
    """On a disk that is full, or may only be read: what was refused may come again."""
    fed = fed_of()
    assert all(fed.submit_updates(CLIENTS[:6], rows(6), 0))
    journal = fed._runtime.peers.roles["basket:0"]._journal._journal._connection
    (pages,) = journal.execute("PRAGMA page_count").fetchone()
    journal.execute(f"PRAGMA max_page_count={pages}")
    many, answers = np.tile(rows(1), (3, 1)), []
    for number in range(1, 400):
        answers = fed.submit_updates(["b2", "b3", "a0"], many * [[1], [2], [3 + number]], fed.advance_round())
        if any(receipt.reason is Rejection.NOT_STORED for receipt in answers):
            break
    refused = [r for r in answers if r.reason is Rejection.NOT_STORED]
    assert refused
    assert fed.get_stats()["rejections"]["not_stored"] == len(refused)
    buffered = fed.get_stats()["n_updates_buffered"]
    journal.execute("PRAGMA query_only=1")
    with pytest.raises(StorageError, match=r"basket-0\.sqlite.*readonly.*make the disk writable again"):
        fed._driver.run_layer1(None, True)
    journal.execute("PRAGMA query_only=0")
    assert fed.get_stats()["n_updates_buffered"] == buffered
    journal.execute("PRAGMA max_page_count=100000")
    fed.submit_updates(["b2", "b3"], many[:2])
    fed._driver.run_layer1(None, True)
    kill(fed)
    assert fed.get_stats()["n_updates_buffered"] == 0
    assert fed.get_basket_meta_model("b_basket_0").n_contributors == 4


def test_what_is_undone_leaves_ceilings_and_trust_as_they_were(fed_of: Any) -> None:
    layer2 = {**EXACT["layer2"], "central_dp_epsilon": 1.0}
    fed = fed_of(layer2=layer2, total_epsilon=100.0, gossip_budget_share=0.0)
    host = fed._runtime.peers.roles["basket:0"]
    basket = host._baskets["a_basket_0"]
    basket._reputations.take("a1")
    host.admit([Admission(BasketPlace("a_basket_0", "a", 0), (Member("a1", "a", trust=0.5),))])
    assert all(fed.submit_updates(["a0", "a1"], rows(2), 0))
    host._charges.left_out.add("a0")
    with mock.patch.object(Journal, "writing", side_effect=StorageError("the disk is full")):
        basket.leave_out({"a0"})
        (receipt,) = fed.submit_updates(["a2"], rows(1), 0)
    assert receipt.reason is Rejection.NOT_STORED
    for _ in range(2):
        basket = host._baskets["a_basket_0"]
        assert (sorted(basket.left_out), sorted(basket.members)) == (["a0"], ["a1", "a2", "a3"])
        assert basket.waiting() == {"a1": 1}, "nobody is released beyond its ceiling"
        assert {m.client_id: m.trust for m in basket.known_members()}["a1"] < 0.6
        kill(fed)
        fed.get_stats()
        host = fed._runtime.peers.roles["basket:0"]
        host._charges.left_out.add("a0")
        host._baskets["a_basket_0"].leave_out({"a0"})


def test_an_update_whose_bytes_were_changed_is_refused(fed_of: Any) -> None:
    fed = fed_of()
    assert all(fed.submit_updates(CLIENTS, rows(), 0))
    host = fed._runtime.peers.roles["basket:0"]
    file = host._journal._journal.path
    kill(fed)
    with sqlite3.connect(file) as connection:
        (content,) = connection.execute("SELECT rows FROM batches").fetchone()
        connection.execute("UPDATE batches SET rows = ?", (b"\1" + content[1:],))
    connection.close()
    with pytest.raises(ActorLost, match=r"basket-0\.sqlite: the journal is torn .* another digest"):
        fed.get_stats()


def test_a_lost_journal_is_told_update_by_update(fed_of: Any) -> None:
    """As on another machine: nobody has the file."""
    fed = fed_of()
    assert all(fed.submit_updates(["a0", "a1"], rows(2), 0))
    fed._driver.run_layer1(["a_basket_0"], True)
    fed.advance_round()
    assert all(fed.submit_updates(["a1", "b3"], rows(2)))
    host = fed._runtime.peers.roles["basket:0"]
    file = host._journal._journal.path
    kill(fed)
    file.unlink()
    assert fed.get_stats()["n_updates_buffered"] == 0
    assert "its journal is on no machine that is there" in fed.faults[0]
    assert "a0 (round 0), a1 (round 0), a1 (round 1), b3 (round 1): send" in fed.faults[0]
    assert fed.lost_updates == (("a0", 0), ("a1", 0), ("a1", 1), ("b3", 1))
    assert fed.offer_update("b3", rows(2)[1]), "it is taken again"


def test_who_leaves_while_its_actor_is_dead_is_withdrawn_and_remembered(fed_of: Any) -> None:
    fed = fed_of()
    assert all(fed.submit_updates(CLIENTS, rows(), 0))
    kill(fed)
    assert fed.unregister_client("a0")
    assert "1 updates of clients that left meanwhile are withdrawn: a0 (1)" in fed.faults[0]
    assert fed.register_client("a0", "a") == "a_basket_0"
    assert fed.offer_update("a0", rows()[0], 0).reason is Rejection.REPLAYED
    assert fed.get_stats()["n_updates_buffered"] == len(CLIENTS) - 1
