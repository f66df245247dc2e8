"""The local states of a basket's clients: their momentum."""

from __future__ import annotations

import numpy as np
import pytest

from scarcity_ray.baskets.local_state import LocalStates
from scarcity_ray.baskets.update_buffer import BasketBuffer
from scarcity_ray.config import BufferConfig, HierarchicalFederationConfig, load

BETA = 0.9


class Basket:
    """A buffer with its states, as a basket uses the two."""

    def __init__(self, momentum=BETA):
        layer1 = {"momentum": momentum, "clip_norm": 10.0}
        config = load(HierarchicalFederationConfig, {"vector_dim": 2, "layer1": layer1})
        self.buffer = BasketBuffer(BufferConfig(), 2, "b")
        self.states = LocalStates(config, self.buffer)

    def send(self, row, client="a"):
        assert self.buffer.offer(client, row, now=0.0) is None
        self.states.form(client)

    def aggregate(self):
        clients = self.buffer.clients()
        rows = [row.copy() for row in self.states.rows(clients)]
        self.states.keep_momenta(clients)
        self.buffer.pop()
        self.buffer.advance_round()
        return dict(zip(clients, rows, strict=True))


def test_momentum_is_that_of_karimireddy_from_zero():
    basket, momentum = Basket(), np.zeros(2)
    for t in range(5):
        row = np.array([t + 1.0, -t])
        basket.send(row)
        momentum = BETA * momentum + (1 - BETA) * row
        assert basket.aggregate()["a"] == pytest.approx(momentum, rel=1e-5)


def test_without_momentum_a_state_is_its_row():
    basket = Basket(0.0)
    for value in (1.0, 2.0):
        basket.send([value, 0.0])
        assert basket.aggregate()["a"].tolist() == [value, 0.0]


def test_a_row_enters_its_clients_momentum_once():
    basket = Basket()
    basket.send([1.0, 0.0])
    for _ in range(3):
        basket.states.form("a")
    assert basket.aggregate()["a"] == pytest.approx([0.1, 0.0])
    basket.send([0.0, 1.0])
    basket.states.age()
    assert basket.aggregate()["a"] == pytest.approx([0.09, 0.1])


def test_gossip_moves_a_state_and_not_its_momentum():
    basket = Basket()
    basket.send([1.0, 0.0])
    basket.states.rows_to_mix(["a"])[0][:] = 7.0
    basket.aggregate()
    basket.send([1.0, 0.0])
    assert basket.aggregate()["a"] == pytest.approx([0.19, 0.0])


def test_one_long_row_is_clipped_before_it_enters():
    basket = Basket()
    basket.send([1e6, 0.0])
    assert basket.aggregate()["a"] == pytest.approx([1.0, 0.0])


def test_momentum_travels_with_its_client_and_dies_with_its_registration():
    here, there = Basket(), Basket()
    here.send([1.0, 0.0])
    here.aggregate()
    there.states.put("a", *here.states.take("a"))
    there.send([1.0, 0.0])
    assert there.aggregate()["a"] == pytest.approx([0.19, 0.0])
    here.send([1.0, 0.0])
    assert here.aggregate()["a"] == pytest.approx([0.1, 0.0])


def test_a_state_that_is_formed_when_it_is_asked_for_is_the_one_of_its_last_update():
    asked, late = Basket(), Basket()
    for round_id in range(3):
        for step in range(3):
            for basket in (asked, late):
                basket.states.clip_norm = 10.0 - step  # is set anew by a release
                basket.send([step + 1.0, 9.0 + round_id])
            asked.states.get("a")
        asked.states.clip_norm = late.states.clip_norm = 0.5
        assert late.states.ids() == ("a",)
        assert late.aggregate()["a"].tobytes() == asked.aggregate()["a"].tobytes()
        for basket in (asked, late):
            basket.send([round_id + 20.0, 0.0], "b")
        asked.states.get("b")
        assert late.states.take("b")[0].tobytes() == asked.states.take("b")[0].tobytes()
        for basket in (asked, late):
            basket.send([1.0, 1.0], "b")
            basket.buffer.withdraw("b")
            basket.states.forget("b")
        assert late.states.ids() == asked.states.ids() == ("a",)
        for basket in (asked, late):
            basket.buffer.take_client("b")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_known_norm_is_that_of_the_state(momentum):
    here, there = Basket(momentum=momentum), Basket(momentum=momentum)

    def check(basket):
        ids = basket.states.ids()
        found = [np.linalg.norm(row.astype(float)) for row in basket.states.rows(ids)]
        assert basket.states.lengths(ids) == pytest.approx(found, rel=2.0**-22)

    here.states.clip_norm = 2.0
    for row in ([30.0, 40.0], [0.3, 0.4]):
        here.send(row)
        check(here)
    here.states.rows_to_mix(["a"])[0][:] = 7.0
    check(here)
    here.send([1.0, 0.0])
    check(here)
    here.states.age()
    check(here)
    there.send([9.0, 0.0])
    check(there)
    there.states.put("a", *here.states.take("a"))
    check(there)
