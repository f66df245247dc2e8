"""Who owns the data keeps it: sealed boxes between basket actors, and what an actor answers to nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, ProtocolViolation, UsageError
from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.messages import OperationKind, Order
from scarcity_ray.actors.migration import MigrationDesk, packed, unpacked
from scarcity_ray.config import HierarchicalFederationConfig, load
from scarcity_ray.directory.records import OrderNumber
from scarcity_ray.runtime.rpc import IdempotencyKey
from tests.operations.stopping import Silence

KEY = b"k" * 32
ROW = np.arange(1.0, 7.0, dtype=np.float32)


@pytest.fixture
def host_of(tmp_path: Any) -> Iterator[Callable[..., BasketHost]]:
    with ExitStack() as opened:

        def host(**settings: Any) -> BasketHost:
            """A basket actor with members that have sent, gossiped and aggregated."""
            config = load(
                HierarchicalFederationConfig,
                {
                    "vector_dim": len(ROW),
                    "auto_aggregate": False,
                    "ledger_path": str(tmp_path / "ledger.sqlite"),
                    "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0, "min_updates": 2},
                    "meta_parameters": {"loss": [0.0, 1.0]},
                    "gossip": {"push_drift_threshold": 0.0},
                    **settings,
                },
            )
            fed = opened.enter_context(HierarchicalFederation(config, runtime="local", noise=Silence()))
            fed.register_clients([("a", "d"), ("b", "d")])
            fed.submit_update("a", ROW, meta={"loss": 0.5})
            fed.submit_update("b", ROW)
            fed.run_gossip_round()
            fed.offer_update("a", np.full(len(ROW), np.nan))
            role: BasketHost = fed._runtime.peers.roles["basket:0"]
            return role

        yield host


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if hasattr(one, "__dict__"):
        return type(one) is type(other) and all(same(v, getattr(other, k)) for k, v in vars(one).items())
    if type(one) in (tuple, list):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_a_box_holds_all_that_belongs_to_a_client(host_of: Callable[..., BasketHost]) -> None:
    carry = host_of()._baskets["d_basket_0"].take("a")
    assert len(carry.updates.updates) == len(carry.updates.accepted) == 1
    assert carry.gossip.state.release is not None
    assert carry.gossip.last_pushed is not None
    assert carry.local_state is not None
    assert carry.meta is not None
    assert carry.reputation is not None
    there = MigrationDesk(KEY)
    opened = there.open(MigrationDesk(KEY).seal(carry, "x", "op", there.key), "x", "op")
    assert same(carry, opened)
    assert same(carry, unpacked(packed(carry)))


def test_a_box_is_opened_by_its_addressee_alone(host_of: Callable[..., BasketHost]) -> None:
    carry = host_of()._baskets["d_basket_0"].take("a")
    here, there = MigrationDesk(KEY), MigrationDesk(KEY)
    box = here.seal(carry, "x", "op", there.key)
    assert ROW.tobytes() not in box.sealed
    assert here.open(box, "x", "op") is None
    assert MigrationDesk(KEY).open(box, "x", "op") is None, "nor by another actor of the federation"
    assert there.open(box, "y", "op") is None
    assert there.open(box, "x", "another") is None
    assert there.open(replace(box, client_id="b"), "x", "op") is None
    changed = box.sealed[:-1] + bytes([box.sealed[-1] ^ 1])
    assert there.open(replace(box, sealed=changed), "x", "op") is None


def test_what_belongs_to_a_client_is_sealed_to_no_stranger(host_of: Callable[..., BasketHost]) -> None:
    """Whoever can call an actor can ask; it reads nothing without the key that only actors are given."""
    host = host_of()
    order = Order(OrderNumber(9, 9), "op", OperationKind.SPLIT)
    stranger = MigrationDesk(KEY)
    with pytest.raises(ProtocolViolation, match="this federation's actors"):
        host.take("d_basket_0", {"a": ("d_basket_1", stranger.key)}, order)


def test_an_actor_answers_raw_values_to_nobody(host_of: Callable[..., BasketHost]) -> None:
    host = host_of(expose_basket_models=False)
    with pytest.raises(UsageError, match="expose_basket_models is false"):
        host.basket_model("d_basket_0")
    with pytest.raises(UsageError, match=r"layer2\.enabled is true"):
        host.local_states(("d_basket_0",), ("a",))
    with pytest.raises(ProtocolViolation, match="role's own"):
        host.once(IdempotencyKey("x", 1), "__getattribute__", "_baskets")
