"""Who goes where: the queue of baskets with room against looking at all baskets, as the rule is written."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import given

from scarcity_ray.config import BasketConfig
from scarcity_ray.directory import BasketManager
from scarcity_ray.directory.roster import Basket
from scarcity_ray.errors import UsageError

DOMAINS = ["bank", "clinic"]
CLIENTS = [f"c{i}" for i in range(14)]


class LooksAtAll(BasketManager):
    """A newcomer looks at every live basket, oldest first, and takes the first with room."""

    def _place(self, client, now):
        cross = self.config.allow_cross_domain
        candidates = self._roster.live() if cross else self._roster.of_domain(client.domain_id)
        room = (basket for basket in candidates if len(basket.clients) < self.config.max_clients)
        basket = next(room, None) or self._roster.open(client.domain_id)
        self._join(client, basket, now)
        return basket.basket_id


ACTIONS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(CLIENTS), st.sampled_from(DOMAINS)),
    st.tuples(st.just("add"), st.sampled_from(CLIENTS), st.sampled_from(DOMAINS)),
    st.tuples(st.just("remove"), st.sampled_from(CLIENTS), st.none()),
    st.tuples(st.just("split"), st.integers(0, 20), st.none()),
    st.tuples(st.just("disband"), st.integers(0, 20), st.none()),
    st.tuples(st.just("cleanup"), st.none(), st.none()),
    st.tuples(st.just("create"), st.none(), st.sampled_from(DOMAINS)),
    st.tuples(st.just("restore"), st.integers(0, 30), st.sampled_from(DOMAINS)),
)


def act(manager: BasketManager, action: str, which: object, domain: object) -> object:
    live = [info.basket_id for info in manager.live_baskets()]
    match action:
        case "add":
            return manager.add_client(which, domain)
        case "remove":
            return manager.remove_client(which)
        case "split" if live:
            return manager.split_basket(live[which % len(live)])
        case "disband" if live:
            return manager.disband_basket(live[which % len(live)])
        case "cleanup":
            return manager.cleanup()
        case "create":
            return manager.create_basket(domain)
        case "restore":
            return manager.restore_basket(f"{domain}_basket_{which}", domain, [(f"r{which}", domain, None)])
    return None


def answer(manager: BasketManager, *step: object) -> object:
    try:
        return act(manager, *step)
    except UsageError as refusal:
        return str(refusal)


@given(steps=st.lists(ACTIONS, max_size=60), most=st.integers(2, 4), cross=st.booleans())
def test_clients_go_where_they_would_go_if_all_baskets_were_looked_at(steps, most, cross) -> None:
    config = BasketConfig(min_clients=1, max_clients=most, allow_cross_domain=cross)
    quick, slow = BasketManager(config, clock=lambda: 0.0), LooksAtAll(config, clock=lambda: 0.0)
    for step in steps:
        assert answer(quick, *step) == answer(slow, *step)
        assert quick.live_baskets() == slow.live_baskets()
        assert [quick.domain_baskets(d) for d in DOMAINS] == [slow.domain_baskets(d) for d in DOMAINS]


class CountedSet(set):
    looked_at = 0

    def __len__(self) -> int:
        CountedSet.looked_at += 1
        return super().__len__()


@dataclass
class CountedBasket(Basket):
    """Counts how often somebody asks how many members a basket has."""

    clients: set[str] = field(default_factory=CountedSet)


@pytest.mark.parametrize("cross", [False, True])
def test_a_newcomer_looks_at_a_few_baskets_however_many_there_are(monkeypatch, cross) -> None:
    monkeypatch.setattr("scarcity_ray.directory.roster.Basket", CountedBasket)
    config = BasketConfig(min_clients=1, max_clients=2, allow_cross_domain=cross)
    manager, count = BasketManager(config), 2000
    CountedSet.looked_at = 0
    for i in range(count):
        manager.add_client(f"c{i}", "d")
    for i in range(0, count, 3):
        manager.remove_client(f"c{i}")
        manager.add_client(f"n{i}", "d")
    assert CountedSet.looked_at < 6 * count, "looking at all would be count ** 2 / 4"
