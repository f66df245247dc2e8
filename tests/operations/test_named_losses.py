"""A driver names the updates that died with a basket actor, and no others, whichever driver saw it die."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scarcity_ray import FaultWarning, HierarchicalFederation, Rejection
from scarcity_ray.actors.global_aggregator import GlobalAggregator
from scarcity_ray.actors.names import GLOBAL
from scarcity_ray.actors.secure_session import PlainSession
from scarcity_ray.errors import ActorLost, SecureAggregationAborted
from scarcity_ray.layers.models import GlobalMetaModel
from tests.operations.stopping import CLIENTS, IDS, ROWS, Scene


def dies(fed: HierarchicalFederation, role: str, seen_by: HierarchicalFederation) -> None:
    fed._runtime.kill(role)
    with pytest.warns(FaultWarning, match=role):
        seen_by.get_stats()


def test_what_was_accepted_after_the_death_is_not_named(scene_of: Callable[..., Scene]) -> None:
    """The driver sends on to where its clients were, before it has heard."""
    scene = scene_of(buffer={"participation_cap": 9})
    fed = scene.fed
    assert fed.offer_update("c0", ROWS[0])
    dies(fed, "basket:0", seen_by=scene.another_driver())
    with pytest.warns(FaultWarning, match="basket:0 died"):
        assert fed.offer_update("c1", ROWS[1])
    fed.get_stats()
    assert fed.lost_updates == (("c0", 0),)
    assert fed.offer_update("c0", ROWS[0])
    dies(fed, "basket:0", seen_by=fed)
    assert sorted(fed.lost_updates[1:]) == [("c0", 0), ("c1", 0)]


def test_what_was_accepted_is_noted_though_the_warning_is_an_error(scene_of: Callable[..., Scene]) -> None:
    scene = scene_of()
    fed = scene.fed
    assert fed.offer_update("c0", ROWS[0])
    dies(fed, "basket:0", seen_by=scene.another_driver())
    with warnings.catch_warnings():
        warnings.simplefilter("error", FaultWarning)
        with pytest.raises(FaultWarning):
            fed.offer_update("c1", ROWS[1])
    assert fed.lost_updates == (("c0", 0),)
    dies(fed, "basket:0", seen_by=fed)
    assert fed.lost_updates[1:] == (("c1", 0),)


def test_what_was_accepted_before_the_death_is_named_though_its_receipt_is_read_later(
    scene_of: Callable[..., Scene],
) -> None:
    scene = scene_of()
    fed = scene.fed
    pending = [fed.submit_update_async(client, ROWS[0]) for client in ("c0", "c1")]
    dies(fed, "basket:0", seen_by=scene.another_driver())
    with pytest.warns(FaultWarning, match="basket:0 died"):
        assert len(fed.faults) == 1
    assert all(p.result() for p in pending)
    assert fed.lost_updates == (("c0", 0), ("c1", 0))


def test_what_was_accepted_is_named_though_others_of_the_batch_are_looked_for_yet(
    scene_of: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client has moved; before it is looked up, the actor dies that has accepted the rest of the batch."""
    scene = scene_of(runtime={"baskets_per_actor": 1})
    fed, other = scene.fed, scene.another_driver()
    where = other._driver.operations.locate(IDS)
    other.unregister_client("c0")
    locate, slot = fed._driver.operations.locate, where["e0"][1]

    def looked_up(ids: Any, *, fresh: bool = True) -> Any:
        if fresh:
            dies(fed, f"basket:{slot}", seen_by=other)
        return locate(ids, fresh=fresh)

    monkeypatch.setattr(fed._driver.operations, "locate", looked_up)
    with pytest.warns(FaultWarning, match="died"):
        receipts = dict(zip(IDS, fed.submit_updates(IDS, ROWS), strict=True))
    assert receipts["c0"].reason is Rejection.UNKNOWN_CLIENT
    died = {client for client, domain in CLIENTS if domain == "e" and where[client][1] == slot}
    assert all(receipts[client] for client in died)
    assert {client for client, _ in fed.lost_updates} == died


def test_each_release_that_was_charged_and_never_made_is_told_once(
    scene_of: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the global actor died of it or not, and however often it dies afterwards."""
    fed = scene_of(total_epsilon=90.0, layer2={"use_secure_aggregation": False}).fed

    unmask, release = PlainSession.unmask, GlobalAggregator._release

    def aborts(self: PlainSession, now: float) -> Any:
        unmask(self, now)
        raise SecureAggregationAborted("too few are left")

    def dies(self: GlobalAggregator, *args: Any) -> GlobalMetaModel:
        fed._runtime.kill(GLOBAL)
        raise ActorLost(GLOBAL)

    def lost_with(deed: Callable[..., Any]) -> None:
        fed.advance_round()
        assert all(fed.submit_updates(IDS, ROWS))
        monkeypatch.setattr(PlainSession, "unmask", aborts if deed is aborts else unmask)
        monkeypatch.setattr(GlobalAggregator, "_release", dies if deed is dies else release)
        with pytest.warns(FaultWarning, match="never published"):
            assert fed.force_aggregate() is None
        monkeypatch.setattr(PlainSession, "unmask", unmask)
        monkeypatch.setattr(GlobalAggregator, "_release", release)

    def told() -> int:
        fed.get_stats()
        return sum("1 release was charged and never published" in loss for loss in fed.faults)

    for number, deed in enumerate((dies, dies, aborts, aborts, dies, aborts), 1):
        lost_with(deed)
        assert told() == number
        fed._runtime.kill(GLOBAL)
        with pytest.warns(FaultWarning, match=f"{GLOBAL} aggregator died"):
            fed.maybe_aggregate()
        assert told() == number
    fed.advance_round()
    assert all(fed.submit_updates(IDS, ROWS))
    assert fed.force_aggregate() is not None
    lost_with(aborts)
    assert told() == 7


def test_what_an_earlier_federation_released_is_no_loss_of_the_next_one_on_its_ledger(
    scene_of: Callable[..., Scene], tmp_path: Path
) -> None:
    ledger, storage = str(tmp_path / "ledger.sqlite"), str(tmp_path / "state")
    earlier = scene_of(ledger_path=ledger, layer2={"use_secure_aggregation": False}).fed
    assert all(earlier.submit_updates(IDS, ROWS))
    assert earlier.force_aggregate() is not None
    earlier.close()
    fed = scene_of(ledger_path=ledger, storage_path=storage).fed
    fed._runtime.kill(GLOBAL)
    with pytest.warns(FaultWarning, match="nothing is lost"):
        fed.get_stats()
    fed.close()
    for _ in range(2):
        with HierarchicalFederation.restore(storage, runtime="local") as restored:
            assert not [loss for loss in restored.faults if "never published" in loss]
