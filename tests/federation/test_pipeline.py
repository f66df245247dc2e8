"""`submit_update_async`: updates whose receipts come later, over a line on which answers take their time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import (
    FaultWarning,
    HierarchicalFederation,
    IdentityKeyPair,
    Rejection,
    ScarcityError,
    StorageError,
    UsageError,
)
from scarcity_ray.errors import ActorLost
from scarcity_ray.federation import pipeline

DIMENSION = 4
CLIENTS = [(f"c{i}", "d") for i in range(4)] + [(f"e{i}", "e") for i in range(4)]
ROWS = np.eye(len(CLIENTS), DIMENSION, dtype=np.float32) + 1.0
KEY = IdentityKeyPair.generate()


@dataclass
class Line:
    """The driver's way to the roles, on which an answer is there only once somebody waits for it.

    Attributes:
        sent: Clients in each message with updates, in order.
        lost: What happens to such messages, in turn: ``answer``, ``request``, or neither.
    """

    peers: Any
    sent: list[tuple[str, ...]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def handle(self, name: str) -> _Handle:
        return _Handle(self, self.peers.handle(name), name)


@dataclass
class _Handle:
    line: Line
    handle: Any
    name: str

    def call(self, method: str, *args: Any) -> Any:
        if method != "once" or args[1] != "submit":
            return self.handle.call(method, *args)
        self.line.sent.append(args[3].client_ids)
        how = self.line.lost.pop(0) if self.line.lost else ""
        answer = None if how == "request" else self.handle.call(method, *args)
        return _Later(self.name, None if how else answer)


@dataclass
class _Later:
    name: str
    answer: Any

    def is_over(self) -> bool:
        return False

    def result(self) -> Any:
        if self.answer is None:
            raise ActorLost(self.name, "the connection broke")
        return self.answer.result()


Opened = tuple[HierarchicalFederation, Line]


@pytest.fixture
def open_slow(open_federation: Any) -> Callable[..., Opened]:
    def open_one(**settings: Any) -> Opened:
        layer1 = {"aggregation_method": "mean", "byzantine_fraction": 0.0, "min_updates": 2}
        common = {"vector_dim": DIMENSION, "auto_aggregate": False, "layer1": layer1}
        fed = open_federation({**common, **settings})
        fed.register_clients(CLIENTS)
        line = Line(fed._driver.supervisor.peers)
        fed._driver.supervisor.peers = line
        return fed, line

    return open_one


def offers() -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Updates of every kind, for rounds 0 (the one before), 1 and the present one."""
    for index, (client, _) in enumerate(CLIENTS):
        yield (client, ROWS[index]), {}
    yield ("c0", ROWS[0]), {}
    yield ("c1", 3 * ROWS[0], 0), {"sequence": 7}
    yield ("c2", 3 * ROWS[0], 1), {"num_examples": 2}
    yield ("c2", [1.0, 2.0, 3.0, 4.0]), {"meta": {"rate": 0.5}}
    yield ("c3", ROWS[0].astype(np.float64) * 1e300), {}
    yield ("c3", "rubbish"), {}
    yield ("c3", np.ones(DIMENSION + 1, np.float32)), {}
    yield ("nobody", ROWS[0]), {}
    yield ("keyed", 5 * ROWS[0]), {}
    yield ("keyed", 6 * ROWS[0]), {"signature": b"forged"}
    yield ("e0", 7 * ROWS[0], float("nan")), {}
    yield ("e0", 7 * ROWS[0], True), {}


def test_a_receipt_that_comes_later_is_that_of_a_call_that_waits(open_slow: Callable[..., Opened]) -> None:
    settings = {"buffer": {"participation_cap": 2}, "meta_parameters": {"rate": [0, 1]}, "receipts": True}
    (waits, _), (later, line) = open_slow(**settings), open_slow(**settings)
    for fed in (waits, later):
        fed.register_client("keyed", "d", identity_keypair=KEY)
        fed.advance_round()
    told = [waits.offer_update(*given, **more) for given, more in offers()]
    pending = []
    for (client, update, *round_id), more in offers():
        update = update.copy() if isinstance(update, np.ndarray) else update
        pending.append(later.submit_update_async(client, update, *round_id, **more))
        if isinstance(update, np.ndarray):
            update[:] = np.nan  # it was copied
    assert not pending[-1].done()
    assert [p.result() for p in reversed(pending)] == told[::-1]
    assert len(line.sent) < len(pending)
    assert {receipt.reason for receipt in told} > {None, Rejection.REPLAYED, Rejection.BAD_SIGNATURE}
    assert all(p.done() and (p.result().signed() is not None) == bool(p.result()) for p in pending)
    silent = {"ledger", "ledger_path", "ledger_head"}
    stats = [{k: v for k, v in fed.get_stats().items() if k not in silent} for fed in (waits, later)]
    assert stats[0] == stats[1]
    np.testing.assert_array_equal(waits.force_aggregate(), later.force_aggregate())


def test_every_other_call_waits_for_what_is_on_its_way(open_slow: Callable[..., Opened]) -> None:
    fed, line = open_slow()
    pending = [fed.submit_update_async(client, row) for (client, _), row in zip(CLIENTS, ROWS, strict=True)]
    assert sum(map(len, line.sent)) == 1
    assert fed.get_stats()["n_updates_buffered"] == len(CLIENTS)
    assert all(p.done() and p.result() for p in pending)
    last = [fed.submit_update_async("c0", 2 * ROWS[0]), fed.submit_update_async("c1", 2 * ROWS[0])]
    fed.close()
    assert all(p.result() for p in last)
    with pytest.raises(UsageError, match="closed"):
        fed.submit_update_async("c0", 3 * ROWS[0])


@pytest.mark.parametrize("how", ["answer", "request"])
@pytest.mark.parametrize("dies", [False, True])
def test_a_wave_is_sent_again_under_its_number(
    how: str, dies: bool, open_slow: Callable[..., Opened], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an actor that is alive, and one that is dead and comes back from its journal."""
    fed, line = open_slow(durability="update", journal_path=str(tmp_path / "journal"))
    first = fed.submit_update_async("c0", ROWS[0])
    line.lost = [how]
    pending = [
        fed.submit_update_async(client, row) for (client, _), row in zip(CLIENTS[1:], ROWS[1:], strict=True)
    ]
    assert first.result()
    others = fed.submit_update_async("c0", 2 * ROWS[0])
    fed.faults  # noqa: B018  It calls roles while the wave is on its way.
    if dies:
        fed._runtime.kill("basket:0")
        with pytest.warns(FaultWarning, match="basket:0 died") as told:
            assert all(p.result() for p in pending)
        assert {warning.filename for warning in told} == {__file__}
    else:
        monkeypatch.setattr(fed._runtime, "is_alive", lambda name: True)
        assert all(p.result() for p in pending)
    assert others.result()
    assert line.sent[1] == line.sent[2]
    assert len(line.sent) == 4
    assert fed.get_stats()["n_updates_buffered"] == len(CLIENTS) + 1
    assert not fed.lost_updates
    assert not any(r.accepted for r in fed.submit_updates([c for c, _ in CLIENTS], ROWS))


def test_what_waits_is_bounded(open_slow: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MOST_WAITING", 3)
    fed, line = open_slow(buffer={"participation_cap": 20})
    pending = [fed.submit_update_async("c0", (1 + i) * ROWS[0]) for i in range(8)]
    assert [len(sent) for sent in line.sent] == [1, 3, 3]
    assert all(p.result() for p in pending)
    monkeypatch.setattr(pipeline, "MOST_WAITING_BYTES", 2 * ROWS[0].nbytes)
    line.sent.clear()
    pending = [fed.submit_update_async("c1", (1 + i) * ROWS[0]) for i in range(6)]
    assert [len(sent) for sent in line.sent] == [1, 2, 2]
    assert all(p.result() for p in pending)


def test_receipts_that_came_stay_though_a_release_fails(
    open_slow: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    fed, _ = open_slow(auto_aggregate=True, gossip_budget_share=0.0)

    def fails(*_: Any) -> None:
        raise StorageError("the disk is full")

    pending = [
        fed.submit_update_async(client, row) for (client, _), row in zip(CLIENTS[:4], ROWS, strict=False)
    ]
    with monkeypatch.context() as failing:
        failing.setattr(fed._driver, "_run_layers", fails)
        assert pending[0].result()
        with pytest.raises(StorageError):
            pending[3].result()
        assert all(p.result() for p in pending)
    assert fed.submit_update_async("e0", ROWS[4]).result()


def test_an_interruption_leaves_no_update_without_a_receipt(
    open_slow: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it comes: as a message is sent, as its answers are read, as receipts are handed out."""
    settings = {"runtime": {"baskets_per_actor": 1}, "buffer": {"participation_cap": 99}}
    fed, line = open_slow(**settings)
    number = 0
    for owner, name in ((_Handle, "call"), (_Later, "result"), (pipeline, "_answer")):
        work = getattr(owner, name)
        for place in range(4):
            rows, number = (number + 2 + np.arange(8)[:, None]) * ROWS, number + 8
            pending = [fed.submit_update_async(c, row) for (c, _), row in zip(CLIENTS, rows, strict=True)]
            passed = itertools.count()

            def interrupted(*args: Any, work: Any = work, place: int = place, passed: Any = passed) -> Any:
                if next(passed) == place:
                    raise KeyboardInterrupt
                return work(*args)

            with monkeypatch.context() as patch:
                patch.setattr(owner, name, interrupted)
                with suppress(KeyboardInterrupt):
                    pending[-1].result()
            fed.get_stats()
            assert all(p.done() and p.result() for p in pending)
    assert fed.get_stats()["n_updates_buffered"] == number
    assert len(line.sent) > 2 * 12


def test_what_could_not_be_sent_says_so_to_each_and_the_next_is_sent(
    open_slow: Callable[..., Opened],
) -> None:
    fed, line = open_slow()
    first = fed.submit_update_async("c0", ROWS[0])
    pending = [fed.submit_update_async(f"c{i}", ROWS[i]) for i in (1, 2)]
    clock, fed._driver.client._clock = fed._driver.client._clock, lambda: float("nan")
    for receipt in pending:
        with pytest.raises(UsageError, match="clock"):
            receipt.result()
        assert receipt.done()
    with pytest.raises(UsageError, match="clock"):
        fed.submit_update_async("c3", ROWS[3])
    fed._driver.client._clock = clock
    assert first.result()
    assert fed.submit_update_async("c1", ROWS[1]).result()
    assert line.sent == [("c0",), ("c1",)]


@pytest.mark.parametrize("end", ["close", "terminate"])
@pytest.mark.parametrize("kind", [ActorLost, StorageError, KeyboardInterrupt])
def test_what_has_no_receipt_at_the_end_is_told(
    kind: type[BaseException], end: str, open_slow: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent with the message that failed, and what waited and was sent for all that, or never."""
    fed, line = open_slow()
    first = fed.submit_update_async("c0", ROWS[0])
    waits = [fed.submit_update_async(f"c{i}", ROWS[i], round_id) for i, round_id in ((1, 0), (2, None))]

    def fails(answer: Any) -> None:
        monkeypatch.undo()
        raise ActorLost("basket:0", "it cannot start", retryable=False) if kind is ActorLost else kind()

    monkeypatch.setattr(_Later, "result", fails)
    with pytest.raises(kind) as told:
        getattr(fed, end)()
    assert not fed._runtime.names(), "the actors are ended all the same"
    with pytest.raises(ScarcityError):
        first.result()
    with pytest.raises(UsageError, match="closed"):
        fed.submit_update_async("c3", ROWS[3])
    sent, *never = told.value.__notes__
    assert first.was_sent
    assert sent.startswith("c0: sent and has no receipt")
    if kind is StorageError:
        assert all(p.result() for p in waits)
        assert (len(line.sent), never) == (3, [])
        return
    assert line.sent == [("c0",)]
    assert never[0].startswith("c1 (round 0), c2: never sent")
    for receipt in waits:
        with pytest.raises(UsageError, match="never sent"):
            receipt.result()
        assert (receipt.was_sent, receipt.done()) == (False, True)


def test_threads_may_send_side_by_side(open_slow: Callable[..., Opened]) -> None:
    fed, _ = open_slow(buffer={"participation_cap": 9})
    told: list[Any] = []

    def send(client: str) -> None:
        pending = [fed.submit_update_async(client, (1 + i) * ROWS[0]) for i in range(9)]
        told.extend(p.result() for p in pending)

    threads = [threading.Thread(target=send, args=(client,)) for client, _ in CLIENTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 9 * len(CLIENTS)
    assert all(told)
