"""Every drawing of noise has a charge of its own, recorded before it: seen from outside, draw by draw.

A witness stands where the noise comes from and looks into the ledger at each draw. What it must notice is
tried on aggregators and baskets that are broken on purpose.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scarcity_ray.actors.global_aggregator as global_aggregator
from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.charging import BasketCharges
from scarcity_ray.errors import LedgerError
from scarcity_ray.gossip import GossipProtocol
from scarcity_ray.layers.layer2 import noised_mean
from scarcity_ray.privacy import Ledger, SeededNoise
from scarcity_ray.privacy.ledger.replay import export

CLIENTS = [(f"c{i}", "ab"[i // 4]) for i in range(8)]
SETTINGS: dict[str, Any] = {
    "vector_dim": 4,
    "auto_aggregate": False,
    "total_epsilon": 200.0,
    "basket": {"min_clients": 4, "max_clients": 4},
    "layer1": {"aggregation_method": "mean", "min_updates": 4},
    "layer2": {"min_baskets": 2},
    "gossip": {"local_dp_epsilon": 2.0, "push_drift_threshold": 1e-6},
}


class Witness:
    """Seeded noise; each draw is written down with what the ledger held at that moment."""

    def __init__(self, folder: Path) -> None:
        self.log, self.ledger = folder / "draws", folder / "ledger.sqlite"
        self._source = SeededNoise(3)

    def standard_normal(self, shape: Any, stream: str) -> Any:
        ledger = Ledger.read(self.ledger)
        charged: Counter[str] = Counter()
        for line in export(ledger):
            if line["kind"] == "release":
                charged["layer2"] += 1
            elif line["kind"] == "gossip":
                charged.update(f"gossip/{line['body']['details']['kind']}/{c}" for c in line["clients"])
        ledger.close()
        with self.log.open("a") as log:
            log.write(json.dumps([stream, charged]) + "\n")
        return self._source.standard_normal(shape, stream)

    def uniform_words(self, stream: str) -> Any:
        return self._source.uniform_words(stream)

    def complaints(self) -> set[str]:
        """What was wrong with the draws so far."""
        drawn: Counter[str] = Counter()
        streams: set[str] = set()
        wrong = set()
        for line in self.log.read_text().splitlines():
            stream, charged = json.loads(line)
            if stream in streams:
                wrong.add("a stream was drawn from twice")
            streams.add(stream)
            what = stream.rpartition("/")[0]
            drawn[what] += 1
            if drawn[what] > charged.get(what, 0):
                wrong.add(f"{what.split('/')[0]} was drawn before its charge")
        return wrong


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path)


def play(open_federation: Any, witness: Witness, rounds: int = 3) -> Any:
    fed = open_federation({**SETTINGS, "ledger_path": str(witness.ledger)}, noise=witness)
    fed.register_clients(CLIENTS)
    go_on(fed, rounds)
    return fed


def go_on(fed: Any, rounds: int) -> None:
    for k in range(rounds):
        rows = np.random.default_rng(k).normal(size=(8, 4)).astype(np.float32)
        fed.submit_updates([c for c, _ in CLIENTS], rows)
        for _ in range(2):
            fed.run_gossip_round()
        assert fed.force_aggregate() is not None
        fed.advance_round()


def test_every_draw_has_its_charge_before_it(open_federation: Any, witness: Witness) -> None:
    fed = play(open_federation, witness)
    streams = [json.loads(line)[0] for line in witness.log.read_text().splitlines()]
    assert sum(s.startswith("layer2/") for s in streams) == 3
    assert sum(s.startswith("gossip/drift/") for s in streams) == 24
    assert sum(s.startswith("gossip/vector/") for s in streams) > 3
    for role in ("accountant", "global", "basket:0"):
        fed._runtime.kill(role)
        go_on(fed, 1)
    assert witness.complaints() == set()


@pytest.mark.parametrize("kind", ["drift", "vector"])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_charge_that_failed_pays_for_nothing_twice(
    kind: str, recorded: bool, open_federation: Any, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = play(open_federation, witness, rounds=1)
    charge = Accountant.charge_gossip

    @functools.wraps(charge)
    def failing(self: Any, charge_id: str, clients: Any, mu: float, now: float, details: Any) -> Any:
        if details["kind"] != kind:
            return charge(self, charge_id, clients, mu, now, details)
        if recorded:
            charge(self, charge_id, clients, mu, now, details)
        raise LedgerError("the connection was lost")

    monkeypatch.setattr(Accountant, "charge_gossip", failing)
    fed.submit_updates([c for c, _ in CLIENTS], np.ones((8, 4), np.float32))
    with pytest.raises(LedgerError):
        fed.run_gossip_round()
    monkeypatch.undo()
    fed.advance_round()
    go_on(fed, 2)
    assert witness.complaints() == set()


def draw_before_the_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    aggregator = global_aggregator.GlobalAggregator
    charge = aggregator._charge

    def early(self: Any, *arguments: Any) -> Any:
        self._noise.standard_normal(4, f"layer2/{self._last.version + 1}")
        return charge(self, *arguments)

    monkeypatch.setattr(aggregator, "_charge", early)
    monkeypatch.setattr(
        global_aggregator, "noised_mean", lambda *given: noised_mean(*given[:3], SeededNoise(0), given[4])
    )


def draw_twice_for_one_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(*given: Any) -> Any:
        noised_mean(*given[:4], f"{given[4]}0")
        return noised_mean(*given)

    monkeypatch.setattr(global_aggregator, "noised_mean", twice)


def reuse_the_releases_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(global_aggregator, "noised_mean", lambda *given: noised_mean(*given[:4], "layer2/1"))


def gossip_before_the_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    def allow_all(self: Any, kind: str, clients: Any, *rest: Any) -> frozenset[str]:
        return frozenset(client for basket in clients.values() for client in basket)

    monkeypatch.setattr(BasketCharges, "gossip", allow_all)


def reuse_a_clients_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(self: Any, shape: int, kind: str, client_id: str, sigma: float) -> Any:
        return self._noise.standard_normal(shape, f"gossip/{kind}/{client_id}/0")

    monkeypatch.setattr(GossipProtocol, "_draw", draw)


@pytest.mark.parametrize(
    ("broken", "seen"),
    [
        (draw_before_the_charge, "layer2 was drawn before its charge"),
        (draw_twice_for_one_charge, "layer2 was drawn before its charge"),
        (reuse_the_releases_stream, "a stream was drawn from twice"),
        (gossip_before_the_charge, "gossip was drawn before its charge"),
        (reuse_a_clients_stream, "a stream was drawn from twice"),
    ],
)
def test_what_is_broken_is_seen(
    broken: Any, seen: str, open_federation: Any, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    play(open_federation, witness, rounds=2)
    assert seen in witness.complaints()
