"""The baskets there are: their ids, which are live, and where each stands in its lifecycle.

*Guarantees*
    - A basket id is never used again; indices count up within a domain.
    - A domain's name stands for its only live basket.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from scarcity_ray.basket.records import BasketInfo, BasketStatus, Move, check_name
from scarcity_ray.config import BasketConfig
from scarcity_ray.config.arguments import seconds_of, shown
from scarcity_ray.errors import UsageError


@dataclass
class Basket:
    """One basket, live or disbanded.

    Attributes:
        basket_id: ``<domain>_basket_<k>``.
        domain_id: Its domain.
        created_at: Seconds on the manager's clock.
        last_activity: Likewise.
        clients: Ids of its members.
        disbanded: Whether it was split or disbanded.
        emptied: Whether its last client has left it.
        moves: Where its clients went when it closed.
    """

    basket_id: str
    domain_id: str
    created_at: float
    last_activity: float
    clients: set[str] = field(default_factory=set)
    disbanded: bool = False
    emptied: bool = False
    moves: tuple[Move, ...] = ()

    def join(self, client_id: str, now: float) -> None:
        """Take in a member."""
        self.clients.add(client_id)
        self.emptied = False
        self.touch(now)

    def leave(self, client_id: str) -> None:
        """Let a member go."""
        self.clients.discard(client_id)
        self.emptied = not self.clients

    def touch(self, at: float) -> None:
        """Mark it active; never moves activity back."""
        self.last_activity = max(self.last_activity, at)


class Roster:
    """All baskets, by id and by domain.

    Args:
        config: Sizes and thresholds.
        clock: Gives the time in seconds.
    """

    def __init__(self, config: BasketConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._baskets: dict[str, Basket] = {}
        self._live: dict[str, dict[str, Basket]] = {}
        self._next_index: dict[str, int] = {}

    def __contains__(self, basket_id: object) -> bool:
        return isinstance(basket_id, str) and basket_id in self._baskets

    def __getitem__(self, basket_id: str) -> Basket:
        return self._baskets[basket_id]

    def open(self, domain_id: str) -> Basket:
        """Open an empty basket in a domain."""
        domain_id = check_name("domain id", domain_id)
        index = self._next_index.get(domain_id, 0)
        return self._add(f"{domain_id}_basket_{index}", domain_id, index)

    def reopen(self, basket_id: str, domain_id: str) -> Basket:
        """Take over an id that was used before this roster began; later baskets get later indices.

        Raises:
            UsageError: If it is no id of a basket of the domain, or known here already.
        """
        index = index_of(basket_id, domain_id)
        if basket_id in self._baskets:
            raise UsageError(f"basket {basket_id!r} is known already")
        basket = self._add(basket_id, domain_id, index)
        siblings = self._live[domain_id]
        self._live[domain_id] = dict(sorted(siblings.items(), key=lambda item: (len(item[0]), item[0])))
        return basket

    def close(self, basket: Basket) -> None:
        """Take a basket from the live ones; it stays as a record."""
        basket.disbanded = True
        del self._live[basket.domain_id][basket.basket_id]

    def forget_emptied(self) -> tuple[str, ...]:
        """Close and forget the live baskets that their last client has left; their ids."""
        emptied = [basket for basket in self._baskets.values() if basket.emptied and not basket.disbanded]
        for basket in emptied:
            self.close(basket)
            del self._baskets[basket.basket_id]
        return tuple(basket.basket_id for basket in emptied)

    def live(self) -> list[Basket]:
        """All live baskets, oldest first."""
        return [basket for basket in self._baskets.values() if not basket.disbanded]

    def of_domain(self, domain_id: str) -> list[Basket]:
        """A domain's live baskets, oldest first."""
        return list(self._live.get(domain_id, {}).values()) if isinstance(domain_id, str) else []

    def stale(self, threshold: float) -> list[str]:
        """Live baskets idle for more than `threshold` seconds, oldest first."""
        now, threshold = self._clock(), seconds_of("threshold", threshold)
        return [basket.basket_id for basket in self.live() if now - basket.last_activity > threshold]

    def sizes(self) -> dict[str, int]:
        """Live baskets of each domain that has any."""
        return {domain: len(baskets) for domain, baskets in self._live.items() if baskets}

    def lookup(self, name: str) -> Basket | None:
        """A basket by its id, or the only live one of a domain.

        Raises:
            UsageError: For a domain with several.
        """
        if not isinstance(name, str):
            return None
        exact = self._baskets.get(name)
        if exact is not None:
            return exact
        live = self._live.get(name, {})
        if len(live) > 1:
            raise UsageError(f"domain {name!r} has several baskets, name one of: {', '.join(live)}")
        return next(iter(live.values()), None)

    def find(self, name: str) -> Basket:
        """As `lookup`, for baskets that must be live.

        Raises:
            UsageError: If it is not, or there is none.
        """
        basket = self.lookup(name)
        if basket is None:
            raise UsageError(f"there is no basket or domain {shown(name)}")
        if basket.disbanded:
            raise UsageError(f"basket {name!r} is disbanded")
        return basket

    def snapshot(self, basket: Basket, now: float) -> BasketInfo:
        """What is known of a basket at a moment; the caller's to keep."""
        return BasketInfo(
            basket_id=basket.basket_id,
            domain_id=basket.domain_id,
            status=self._status(basket, now),
            clients=set(basket.clients),
            created_at=basket.created_at,
            last_activity=basket.last_activity,
        )

    def _add(self, basket_id: str, domain_id: str, index: int) -> Basket:
        self._next_index[domain_id] = max(self._next_index.get(domain_id, 0), index + 1)
        now = self._clock()
        basket = Basket(basket_id, domain_id, created_at=now, last_activity=now)
        self._baskets[basket_id] = basket
        self._live.setdefault(domain_id, {})[basket_id] = basket
        return basket

    def _status(self, basket: Basket, now: float) -> BasketStatus:
        if basket.disbanded:
            return BasketStatus.DISBANDED
        if now - basket.last_activity > self._config.stale_threshold:
            return BasketStatus.STALE
        is_active = len(basket.clients) >= self._config.min_clients
        return BasketStatus.ACTIVE if is_active else BasketStatus.FORMING


def index_of(basket_id: str, domain_id: str) -> int:
    """The k of a basket id ``<domain_id>_basket_<k>``.

    Raises:
        UsageError: If it is of another form.
    """
    prefix, _, index = basket_id.rpartition("_") if isinstance(basket_id, str) else ("", "", "")
    if prefix != f"{domain_id}_basket" or not (index.isascii() and index.isdigit()):
        raise UsageError(f"a basket of domain {domain_id!r} cannot have the id {shown(basket_id)}")
    return int(index)


__all__ = ["Basket", "Roster", "index_of"]
