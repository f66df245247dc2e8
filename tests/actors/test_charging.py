"""What is drawn is charged, once each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scarcity_ray.actors.charging import BasketCharges, charged_gossip
from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.plan import make_plan


@dataclass
class Orphan:
    """A basket that names the clients that it was given, in every step."""

    clients: tuple[str, ...]
    drawn: list[tuple[str, ...]] = field(default_factory=list)

    def gossip_begin(self, round_id: int, now: float) -> tuple[str, ...]:
        return self.clients

    def gossip_test(self, allowed: Any) -> tuple[str, ...]:
        self.drawn.append(tuple(allowed))
        return self.clients

    def gossip_exchange(self, allowed: Any, now: float) -> int:
        self.drawn.append(tuple(allowed))
        return 0


@dataclass
class Accountant:
    charged: list[tuple[str, ...]] = field(default_factory=list)

    def charge_gossip(self, charge_id: str, ids: tuple[str, ...], *more: Any) -> tuple[Any, str, str]:
        self.charged.append(ids)
        return ids, "head", ""


def test_one_drawing_a_charge(peers: Any) -> None:
    """Also where a client is in two baskets of one actor, which it never should be."""
    peers.roles["accountant"] = accountant = Accountant()
    baskets: Any = {"x": Orphan(("a", "b")), "y": Orphan(("b", "c"))}
    plan = make_plan(HierarchicalFederationConfig()).gossip
    charged_gossip(baskets, plan, BasketCharges(0, peers), 0, 0.0)
    assert accountant.charged == [("a", "b", "c")] * 2
    assert baskets["x"].drawn == [("a", "b")] * 2
    assert baskets["y"].drawn == [("c",)] * 2
