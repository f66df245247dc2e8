"""The global aggregator never holds a basket's plain aggregate while secure aggregation is on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, UsageError
from scarcity_ray.actors import global_aggregator
from scarcity_ray.actors.secure_session import PlainSession, SecureSession
from scarcity_ray.actors.session_terms import SessionTerms

DIMENSION = 60
BASKETS = 5


class RecordingPeers:
    """Passes calls on, keeps every answer, and looks at what the aggregator holds at each of them."""

    def __init__(self, peers: Any, look: Any) -> None:
        self.peers = peers
        self.look = look
        self.answers: list[Any] = []

    def handle(self, name: str) -> Any:
        return _RecordingHandle(self, self.peers.handle(name))


class _RecordingHandle:
    def __init__(self, recorder: RecordingPeers, handle: Any) -> None:
        self.recorder = recorder
        self.handle = handle
        self.name = handle.name

    def call(self, method: str, *args: object) -> Any:
        self.recorder.look()
        future = self.handle.call(method, *args)
        self.recorder.answers.append((method, future.result()))
        return future


def reachable(root: object, stop: tuple[type, ...] = (RecordingPeers,)) -> Iterator[Any]:
    """Every array and every byte string that can be reached from `root`."""
    pending, seen = [root], set()
    while pending:
        thing = pending.pop()
        if id(thing) in seen or isinstance(thing, (*stop, str, int, float, type)) or thing is None:
            continue
        seen.add(id(thing))
        if isinstance(thing, np.ndarray | bytes | bytearray | memoryview):
            yield thing
        elif isinstance(thing, dict):
            pending += [*thing.keys(), *thing.values()]
        elif isinstance(thing, list | tuple | set | frozenset):
            pending += list(thing)
        else:
            pending += list(getattr(thing, "__dict__", {}).values())
            slots = [s for kind in type(thing).__mro__ for s in getattr(kind, "__slots__", ())]
            pending += [getattr(thing, slot) for slot in slots if hasattr(thing, slot)]
            cells = getattr(thing, "__closure__", None) or ()
            pending += [cell.cell_contents for cell in cells]
            pending += [getattr(thing, "__self__", None)]


def as_vectors(thing: Any) -> Iterator[np.ndarray[Any, Any]]:
    """All readings of an array or of bytes as a real vector of the model's length."""
    if isinstance(thing, np.ndarray):
        if thing.size == DIMENSION and thing.dtype.kind in "fiu":
            flat = np.ascontiguousarray(thing).ravel()
            yield flat.astype(np.float64)
            if flat.dtype.kind == "u":
                yield flat.view(f"i{flat.itemsize}").astype(np.float64)
        return
    raw = bytes(thing)
    for kind in ("<f4", "<f8", "<i4", "<i8"):
        width = DIMENSION * np.dtype(kind).itemsize
        if len(raw) == width:
            with np.errstate(all="ignore"):
                yield np.frombuffer(raw, kind).astype(np.float64)


def likeness(thing: Any, plain: list[np.ndarray[Any, Any]]) -> float:
    """The largest cosine between any reading of `thing` and any one basket's plain vector."""
    largest = 0.0
    for vector in as_vectors(thing):
        vector = np.nan_to_num(vector, nan=0.0, posinf=0.0, neginf=0.0)
        norm = float(np.linalg.norm(vector))
        for own in plain if np.isfinite(norm) and norm > 0.0 else ():
            largest = max(largest, abs(float(vector @ own)) / (norm * float(np.linalg.norm(own))))
    return largest


def watch(open_federation: Any, monkeypatch: pytest.MonkeyPatch, secure: bool) -> tuple[list[float], Any]:
    """The likeness of everything that the aggregator held or was told in two releases."""
    fed: HierarchicalFederation = open_federation(
        {
            "vector_dim": DIMENSION,
            "auto_aggregate": False,
            "total_epsilon": math.inf,
            "gossip": {"local_dp_epsilon": math.inf},
            "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0},
            "layer2": {"central_dp_epsilon": math.inf, "use_secure_aggregation": secure},
        }
    )
    role = fed._runtime._peers.roles["global"]  # type: ignore[attr-defined]
    host = fed._runtime._peers.roles["basket:0"]  # type: ignore[attr-defined]
    held: list[Any] = []
    sessions: list[Any] = []
    kind = SecureSession if secure else PlainSession

    class Watched(kind):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            sessions.append(self)

    def look() -> None:
        for thing in [*reachable(role), *(found for session in sessions for found in reachable(session))]:
            held.append(thing.copy() if isinstance(thing, np.ndarray) else bytes(thing))

    monkeypatch.setattr(global_aggregator, kind.__name__, Watched)
    recorder = role._peers = RecordingPeers(role._peers, look)
    # Orthogonal aggregates: the sum has a cosine of 1 / sqrt(BASKETS) with each, and nothing else has more.
    fed.register_clients([(f"{b}_{i}", f"d{b}") for b in range(BASKETS) for i in range(3)])
    plain: list[np.ndarray[Any, Any]] = []
    for round_id in range(2):
        for b in range(BASKETS):
            vector = np.zeros(DIMENSION)
            vector[b * 12 : b * 12 + 12] = np.random.default_rng([b, round_id]).normal(size=12) / 8.0
            plain.append(vector)
            for i in range(3):
                assert fed.submit_update(f"{b}_{i}", vector * (1.0 + 0.01 * i))
        assert fed.force_aggregate() is not None
        fed.advance_round()
    look()
    assert len(sessions) == 2
    told = [thing for _, answer in recorder.answers for thing in reachable(answer)]
    assert len(held) >= 2
    assert len(told) >= 2 * BASKETS
    for b in range(BASKETS):
        model = host.basket_model(f"d{b}_basket_0")
        assert likeness(model.aggregate, plain) > 0.999
    return [likeness(thing, plain) for thing in [*held, *told]], recorder


def test_the_aggregator_never_holds_or_is_told_a_plain_aggregate(
    open_federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    likenesses, _ = watch(open_federation, monkeypatch, secure=True)
    assert max(likenesses) < 0.8
    # The sum itself is there, and like every basket by a little: the watch sees what it looks for.
    assert max(likenesses) > 0.4


def test_the_watch_finds_plain_aggregates_where_secure_aggregation_is_off(
    open_federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    likenesses, recorder = watch(open_federation, monkeypatch, secure=False)
    assert max(likenesses) > 0.999
    assert any(method == "contribute" for method, _ in recorder.answers)


def test_a_basket_gives_no_plain_sum_where_secure_aggregation_is_on(open_federation: Any) -> None:
    """Even an aggregator that asks for it is refused."""
    fed = open_federation({"vector_dim": DIMENSION, "auto_aggregate": False})
    fed.register_clients([(f"c{i}", "a" if i < 5 else "b") for i in range(10)])
    for i in range(10):
        fed.submit_update(f"c{i}", np.full(DIMENSION, 0.1 + 0.001 * i))
    role = fed._runtime._peers.roles["global"]
    asked: list[SessionTerms] = []
    terms_of = role._terms

    def unmasked(*args: Any) -> SessionTerms:
        asked.append(replace(terms_of(*args), masked=False))
        return asked[-1]

    role._terms = unmasked
    with pytest.raises(UsageError, match="secure aggregation"):
        fed.force_aggregate()
    assert asked
    assert fed.get_global_model() is None
    assert fed.get_stats()["privacy_consumed_epsilon"] == 0.0
