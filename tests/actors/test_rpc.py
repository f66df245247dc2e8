"""Calls to roles: what is checked is a method, what is sent is its name."""

from __future__ import annotations

import functools
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.names import DIRECTORY, basket_actor
from scarcity_ray.federation.client import ActorClient
from scarcity_ray.runtime.rpc import Call, IdempotencyKey, Role, query


class Counter(Role):
    """Counts what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def add(self, what: str, times: int = 1) -> int:
        self.told += [what] * times
        return len(self.told)

    @query
    def told_so_far(self) -> int:
        return len(self.told)

    @functools.wraps(add)
    def decorated(self, *args: Any) -> int:
        return self.add(*args)


def test_a_message_is_the_methods_name_and_its_arguments_by_position(peers: Any) -> None:
    peers.roles["basket:0"] = Counter()
    assert Call(Counter.add, "x", 2).send(peers, basket_actor(0)).result() == 2
    assert Call(Counter.decorated, "y").send(peers, basket_actor(0)).result() == 3
    assert peers.log == [("basket:0", "add", ("x", 2)), ("basket:0", "add", ("y",))]
    with pytest.raises(TypeError, match="add: arguments to a role go by position: times"):
        Call(Counter.add, "x", times=2)


def test_a_call_with_a_number_is_sent_through_once(peers: Any) -> None:
    peers.roles["basket:0"] = Counter()
    number = IdempotencyKey("ann", 1)
    for _ in range(2):
        assert Call(Counter.add, "x").send(peers, basket_actor(0), number).result() == 1
    assert peers.log == [("basket:0", "once", (number, "add", "x"))] * 2


def test_a_query_needs_no_number(peers: Any) -> None:
    peers.roles["basket:0"] = Counter()
    assert not Call(Counter.add, "x").is_query
    client = ActorClient(SimpleNamespace(peers=peers), lambda: 0.0)
    assert client.call(basket_actor(0), Counter.told_so_far) == 0
    assert client.call(basket_actor(0), Counter.add, "x") == 1
    assert [method for _, method, _ in peers.log] == ["told_so_far", "once"]


def test_a_decorated_method_of_a_role_keeps_its_name() -> None:
    assert Call(Directory.register, (), 0.0).method == "register"


def test_a_roles_name_is_a_plain_string_wherever_it_arrives() -> None:
    back = pickle.loads(pickle.dumps({DIRECTORY: basket_actor(1)}))
    assert back == {"directory": "basket:1"}
    assert {type(name) for name in (*back, *back.values())} == {str}
