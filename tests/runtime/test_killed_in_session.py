"""Actors killed within secure aggregation: dropouts are recovered, or nothing is released and no key stays.

The federation is without noise, so that a release is the sum of its survivors to the last bit.
"""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.errors import ActorLost, LedgerMissing
from scarcity_ray.federation import supervisor

pytestmark = pytest.mark.ray

PHASES = ["advertise", "share_keys", "mask", "confirm", "unmask"]
"""Advertise, share, mask, confirm, unmask."""
IN_THE_SUM = PHASES[3:]
"""Whoever dies in these has its input in the sum already."""
BASKETS = [f"domain{i}_basket_0" for i in range(4)]


def host_that_waits_to_be_killed(folder: Path) -> type[BasketHost]:
    """A basket actor that stops in a phase once ``folder/<phase>-<slot>`` is there, and says who it is.

    Where ``folder/<phase>-<slot>-kills`` names a process, it kills that one instead, and goes on.
    """

    def stopping(phase: str) -> Callable[..., Any]:
        def method(self: BasketHost, *args: Any) -> Any:
            order = folder / f"{phase}-{self._slot}-kills"
            if order.exists():
                victim = int(order.read_text())
                order.unlink()
                os.kill(victim, signal.SIGKILL)
            switch = folder / f"{phase}-{self._slot}"
            if switch.exists():
                switch.rename(folder / f"{os.getpid()}.pid")
                time.sleep(120.0)
            return getattr(BasketHost, phase)(self, *args)

        return method

    return type("Host", (BasketHost,), {phase: stopping(phase) for phase in PHASES})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("switches")


@pytest.fixture(scope="module")
def harness(ray_cluster: None, folder: Path, open_harnesses: Callable[..., Any]) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "BasketHost", host_that_waits_to_be_killed(folder))
        yield open_harnesses(
            "ray",
            total_epsilon=math.inf,
            layer2={"central_dp_epsilon": math.inf},
            gossip={"local_dp_epsilon": math.inf},
        )


def kill_in(harness: Any, folder: Path, phase: str, victims: int) -> Any:
    """Force a release while a thread kills `victims` basket actors as they stop in `phase`."""
    for slot in range(victims):
        (folder / f"{phase}-{slot}").touch()

    def kill_them() -> None:
        dead: set[Path] = set()
        while len(dead) < victims:
            for said in set(folder.glob("*.pid")) - dead:
                os.kill(int(said.stem), signal.SIGKILL)
                dead.add(said)
            time.sleep(0.01)
        for said in dead:
            said.unlink()

    killer = threading.Thread(target=kill_them, daemon=True)
    killer.start()
    model = harness.fed.force_aggregate()
    killer.join(timeout=30.0)
    assert not killer.is_alive()
    return model


def charged(harness: Any) -> list[str]:
    with sqlite3.connect(f"file:{harness.ledger}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "SELECT charge_id FROM ledger WHERE charge_id LIKE 'layer2/%' "
            """AND record LIKE '%"kind":"release"%'"""
        )
        return [charge for (charge,) in rows]


def train(harness: Any, accepted: int = 12) -> dict[str, Any]:
    """Give every basket that has none a new aggregate, in the round that is on; all four aggregates."""
    round_id = harness.fed.get_stats()["current_round"]
    assert sum(harness.submit(round_id)) == accepted
    harness.fed._driver.run_layer1(None, True)
    return {basket: harness.fed.get_basket_model(basket) for basket in BASKETS}


def exact_sum(harness: Any, models: dict[str, Any], baskets: Sequence[str]) -> Any:
    """The release of these baskets: whole steps of the grid, each model weighing a quarter, added up."""
    steps_per_unit = harness.fed.plan.release(
        [harness.fed.get_basket_meta_model(basket).facts("", 3) for basket in BASKETS]
    ).scale
    steps = sum(
        np.rint(models[basket].astype(np.float64) / 4.0 * steps_per_unit).astype(int) for basket in baskets
    )
    return (steps / (steps_per_unit * len(baskets) / 4.0)).astype(np.float32)


@pytest.mark.parametrize("phase", PHASES)
def test_a_dropout_above_the_threshold_is_recovered(harness: Any, folder: Path, phase: str) -> None:
    models = train(harness)
    survivors = BASKETS if phase in IN_THE_SUM else BASKETS[1:]
    expected = exact_sum(harness, models, survivors)
    before = len(charged(harness))
    model = kill_in(harness, folder, phase, victims=1)
    assert harness.fed.get_global_meta_model().n_baskets == len(survivors)
    np.testing.assert_array_equal(model, expected)
    assert len(charged(harness)) == before + 1
    assert "basket:0 died" in harness.fed.get_stats()["faults"][-1]
    assert harness.fed.force_aggregate() is None, "what was released is never released again"
    assert len(charged(harness)) == before + 1
    harness.fed.advance_round()


@pytest.mark.parametrize("phase", PHASES[:4])
def test_below_the_threshold_it_aborts_for_nothing_and_is_retried(
    harness: Any, folder: Path, phase: str
) -> None:
    models = train(harness)
    before, stats = len(charged(harness)), harness.fed.get_stats()
    assert kill_in(harness, folder, phase, victims=2) is None
    assert len(charged(harness)) == before
    assert harness.fed.get_stats()["n_layer2_aborts"] == stats["n_layer2_aborts"] + 1
    again = train(harness, accepted=6)
    for basket in BASKETS[2:]:
        np.testing.assert_array_equal(again[basket], models[basket], "the survivors kept theirs")
    np.testing.assert_array_equal(harness.fed.force_aggregate(), exact_sum(harness, again, BASKETS))
    meta = harness.fed.get_global_meta_model()
    assert (meta.n_baskets, meta.version) == (4, stats["n_layer2_aggregations"] + 1)
    assert len(charged(harness)) == before + 1
    assert harness.fed.force_aggregate() is None
    harness.fed.advance_round()


def test_an_abort_after_the_charge_wastes_it_and_releases_nothing(harness: Any, folder: Path) -> None:
    train(harness)
    before, version = len(charged(harness)), harness.fed.get_stats()["n_layer2_aggregations"]
    assert kill_in(harness, folder, "unmask", victims=2) is None
    assert len(charged(harness)) == before + 1
    assert harness.fed.force_aggregate() is None, "what was asked for is never used again"
    harness.fed.advance_round()
    models = train(harness)
    np.testing.assert_array_equal(harness.fed.force_aggregate(), exact_sum(harness, models, BASKETS))
    assert harness.fed.get_global_meta_model().version == version + 1
    assert len(charged(harness)) == before + 2


def secrets_of(harness: Any) -> list[tuple[int, list[str]]]:
    """Attempts that each basket actor holds, and the states of their participants."""
    import ray

    from scarcity_ray.runtime.ray_runtime import find_actor

    place = harness.fed._runtime
    actors = [find_actor(place._namespace, f"basket:{slot}") for slot in range(4)]

    def held(host: Any) -> tuple[int, list[str]]:
        attempt = host._secure.attempt
        return (0, []) if attempt is None else (1, [p.state for p in attempt.participants.values()])

    return [ray.get(actor.__ray_call__.remote(held)) for actor in actors]


@pytest.mark.parametrize("phase", ["share_keys", "confirm", "unmask"])
def test_a_global_aggregator_killed_in_a_session_leaves_no_keys(
    harness: Any, folder: Path, phase: str
) -> None:
    harness.fed.advance_round()
    models = train(harness)
    before, version = len(charged(harness)), harness.fed.get_stats()["n_layer2_aggregations"]
    (folder / f"{phase}-0-kills").write_text(str(harness.pid("global")))
    model = harness.fed.force_aggregate()
    died, *lost = harness.fed.get_stats()["faults"][-1 - (phase == "unmask") :]
    assert "the global aggregator died" in died
    assert ["never published" in told for told in lost] == [True] * (phase == "unmask")
    assert secrets_of(harness) == [(0, [])] * 4
    if phase != "unmask":  # what is not charged is given up for good, and its aggregates are used again
        np.testing.assert_array_equal(model, exact_sum(harness, models, BASKETS))
        version += 1
    else:
        assert model is None, "what was masked may be in a release that nobody has seen"
    assert len(charged(harness)) == before + 1
    assert harness.fed.force_aggregate() is None
    harness.fed.advance_round()
    models = train(harness)
    np.testing.assert_array_equal(harness.fed.force_aggregate(), exact_sum(harness, models, BASKETS))
    assert harness.fed.get_global_meta_model().version == version + 1


def test_keys_that_nobody_is_left_to_wipe_are_wiped_at_the_first_touch_after_their_time(
    harness: Any, folder: Path
) -> None:
    """The global aggregator dies within a session, and the driver that would bring it back with it."""
    harness.fed.advance_round()
    models = train(harness)
    driver, peers = harness.fed._driver, harness.fed._runtime.peers
    (where, roster), now = driver.tell_parties(), driver.client.now()
    (folder / "confirm-0-kills").write_text(str(harness.pid("global")))
    with pytest.raises(ActorLost):
        peers.handle("global").call("run", where.places, where.round_id, True, now, roster).result()
    limit = harness.fed.config.layer2.session_timeout_seconds
    for later, held in ((limit - 1.0, 1), (limit, 0)):
        for slot in range(4):
            peers.handle(f"basket:{slot}").call("reports", now + later).result()
        assert [(sessions, bool(states)) for sessions, states in secrets_of(harness)] == [
            (held, held == 1)
        ] * 4
    np.testing.assert_array_equal(harness.fed.force_aggregate(), exact_sum(harness, models, BASKETS))
    harness.fed.advance_round()


def test_an_accountant_whose_node_is_gone_is_lost_for_good(harness: Any) -> None:
    parts = harness.fed._driver.supervisor
    here = parts.identity
    parts.identity = replace(here, ledger_node="ab" * 28)
    harness.kill("accountant")
    for _ in range(2):
        with pytest.raises(ActorLost, match="not in the cluster") as lost:
            harness.fed.get_privacy_budget()
        assert (lost.value.role, lost.value.retryable) == ("accountant", False)
    parts.identity = here
    assert harness.fed.get_privacy_budget()[0] > 0.0


def test_a_missing_ledger_is_an_error_never_a_fresh_budget(harness: Any) -> None:
    harness.kill("accountant")
    for file in harness.ledger.parent.glob(f"{harness.ledger.name}*"):
        file.unlink()
    for _ in range(2):
        with pytest.raises(LedgerMissing):
            harness.fed.get_privacy_budget()
    harness.submit(5)
    with pytest.raises(LedgerMissing):
        harness.fed.force_aggregate()
    assert not harness.ledger.exists()
