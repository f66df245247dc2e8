from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scarcity_ray.config import BasketConfig
from scarcity_ray.directory import BasketManager, BasketStatus, Move

CLIENTS = [f"c{i}" for i in range(12)]
DOMAINS = ["bank", "clinic"]


class Baskets(RuleBasedStateMachine):
    """The manager against a model that knows only who is registered where, and which ids were ever seen."""

    @initialize(min_clients=st.integers(1, 3), room=st.integers(0, 2), cross=st.booleans())
    def start(self, min_clients: int, room: int, cross: bool) -> None:
        self.now = 0.0
        self.config = BasketConfig(
            min_clients=min_clients,
            max_clients=max(2, min_clients + room),
            stale_threshold=10.0,
            allow_cross_domain=cross,
        )
        self.manager = BasketManager(self.config, clock=lambda: self.now)
        self.domains: dict[str, str] = {}
        self.closed: set[str] = set()
        self.ever: set[str] = set()

    def pick_live(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from([b.basket_id for b in self.manager.live_baskets()]))

    @rule(
        client=st.sampled_from(CLIENTS), domain=st.sampled_from(DOMAINS), feature=st.none() | st.floats(-1, 1)
    )
    def add(self, client: str, domain: str, feature: float | None) -> None:
        domain = self.domains.get(client, domain)
        before = self.manager.get_client_basket(client)
        basket = self.manager.add_client(client, domain, None if feature is None else [feature, 1.0])
        assert before in (None, basket)
        self.domains[client] = domain

    @rule(client=st.sampled_from(CLIENTS))
    def remove(self, client: str) -> None:
        basket = self.manager.get_client_basket(client)
        assert self.manager.remove_client(client) == (client in self.domains)
        if self.domains.pop(client, None):
            assert self.manager.former_basket(client) == basket

    @rule(domain=st.sampled_from(DOMAINS))
    def create(self, domain: str) -> None:
        assert self.manager.create_basket(domain) not in self.ever

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.domains)
    @rule(data=st.data())
    def touch(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted(self.domains)))
        self.manager.touch_client(client)
        basket = self.manager.get_basket(self.manager.get_client_basket(client))
        enough = len(basket.clients) >= self.config.min_clients
        assert basket.status is (BasketStatus.ACTIVE if enough else BasketStatus.FORMING)

    @precondition(lambda self: self.manager.live_baskets())
    @rule(data=st.data())
    def disband(self, data: st.DataObject) -> None:
        basket_id = self.pick_live(data)
        members = self.manager.get_basket_clients(basket_id)
        moves = self.manager.disband_basket(basket_id)
        self.check_moves(basket_id, members, moves)

    @precondition(lambda self: any(len(b.clients) > 1 for b in self.manager.live_baskets()))
    @rule(data=st.data())
    def split(self, data: st.DataObject) -> None:
        large = [b.basket_id for b in self.manager.live_baskets() if len(b.clients) > 1]
        basket_id = data.draw(st.sampled_from(large))
        members = self.manager.get_basket_clients(basket_id)
        pair = self.manager.split_basket(basket_id)
        halves = [self.manager.get_basket_clients(b) for b in pair]
        assert halves[0] | halves[1] == members
        assert abs(len(halves[0]) - len(halves[1])) <= 1
        assert not self.ever.intersection(pair)
        self.check_moves(basket_id, members, self.manager.moves_from(basket_id))

    def check_moves(self, basket_id: str, members: set[str], moves: tuple[Move, ...]) -> None:
        assert moves == tuple(Move(c, basket_id, self.manager.get_client_basket(c)) for c in sorted(members))
        self.closed.add(basket_id)

    @rule()
    def cleanup(self) -> None:
        for basket_id in self.manager.cleanup():
            assert self.manager.get_basket(basket_id) is None

    @invariant()
    def every_client_is_in_exactly_one_live_basket_of_its_domain(self) -> None:
        held: dict[str, list[str]] = {}
        for basket in self.manager.live_baskets():
            for client in basket.clients:
                held.setdefault(client, []).append(basket.basket_id)
                assert self.config.allow_cross_domain or basket.domain_id == self.domains[client]
        assert held == {c: [self.manager.get_client_basket(c)] for c in self.domains}
        assert self.manager.client_ids() == tuple(sorted(self.domains))

    @invariant()
    def no_basket_is_above_its_maximum(self) -> None:
        assert all(len(b.clients) <= self.config.max_clients for b in self.manager.live_baskets())

    @invariant()
    def counts_always_agree(self) -> None:
        live = self.manager.live_baskets()
        stats = self.manager.get_stats()
        assert stats["n_clients"] == len(self.domains) == sum(len(b.clients) for b in live)
        assert stats["n_baskets"] == len(live) == sum(stats["baskets_by_domain"].values())
        for domain, count in stats["baskets_by_domain"].items():
            assert count == len(self.manager.domain_baskets(domain)) > 0
        if live:
            assert np.isclose(stats["avg_clients_per_basket"], len(self.domains) / len(live))

    @invariant()
    def statuses_are_right(self) -> None:
        stale = []
        for basket in self.manager.live_baskets():
            if self.now - basket.last_activity > self.config.stale_threshold:
                assert basket.status is BasketStatus.STALE
                stale.append(basket.basket_id)
            elif len(basket.clients) >= self.config.min_clients:
                assert basket.status is BasketStatus.ACTIVE
            else:
                assert basket.status is BasketStatus.FORMING
        assert self.manager.get_stale_baskets() == stale
        assert self.manager.get_stats()["n_stale_baskets"] == len(stale)
        for basket_id in self.closed:
            assert self.manager.get_basket(basket_id).status is BasketStatus.DISBANDED

    @invariant()
    def a_basket_id_is_never_used_again(self) -> None:
        live = {b.basket_id for b in self.manager.live_baskets()}
        assert not live & self.closed
        self.ever |= live


Baskets.TestCase.settings = settings(stateful_step_count=25)
TestBaskets = Baskets.TestCase
