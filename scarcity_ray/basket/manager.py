"""Who is in which basket: groups of clients of one domain that share information more freely.

`BasketManager` assigns clients to baskets, follows each basket through its lifecycle, and splits, disbands
and cleans up baskets. It holds no updates and no models, and it never looks at either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scarcity_ray.basket.fingerprints import check_features, order_by_features
from scarcity_ray.basket.records import BasketInfo, BasketStatus, ClientInfo, Move, check_name
from scarcity_ray.basket.trust import FIRST_TRUST
from scarcity_ray.config import BasketConfig, stream
from scarcity_ray.errors import UsageError


@dataclass
class _Basket:
    basket_id: str
    domain_id: str
    created_at: float
    last_activity: float
    clients: set[str] = field(default_factory=set)
    disbanded: bool = False
    emptied: bool = False
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True)
class _Departure:
    basket_id: str
    trust_score: float


class BasketManager:
    """Groups clients into baskets (spec/basket.md).

    Wherever a basket id is asked for, a domain's name stands for its only live basket; with several of them
    it is a `UsageError` that lists them. For an id that is not known, getters answer None or an empty set and
    everything that would change something raises `UsageError`.

    Guarantees:
        - Every client is in exactly one live basket, one of its own domain unless `allow_cross_domain`.
        - No basket is above its maximum, `max_clients`.
        - A basket id is never used again; indices count up within a domain.
        - What a caller does to a returned object changes nothing here.
        - Leaving and coming back does not restore trust.

    Args:
        config: Sizes and thresholds; the defaults if None.
        clock: Gives the time in seconds.
        rng: For splits at random; a fixed simulation stream if None.
    """

    def __init__(
        self,
        config: BasketConfig | None = None,
        *,
        clock: Callable[[], float] = time.time,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.config = config if config is not None else BasketConfig()
        self._clock = clock
        self._rng = rng if rng is not None else stream(0, "baskets")
        self._clients: dict[str, ClientInfo] = {}
        self._baskets: dict[str, _Basket] = {}
        self._live: dict[str, dict[str, _Basket]] = {}
        self._next_index: dict[str, int] = {}
        self._departures: dict[str, _Departure] = {}

    def add_client(self, client_id: str, domain_id: str, features: npt.ArrayLike | None = None) -> str:
        """Register a client and return its basket's id.

        It goes to the oldest basket of its domain with room (of any domain with `allow_cross_domain`; the
        basket keeps its own domain), and a new basket opens if there is none. Registering a client again in
        the same domain touches it and returns the basket that it has.

        Args:
            client_id: A printable str of 1 to 200 characters.
            domain_id: Likewise.
            features: A fingerprint for splits, finite (p,) with p >= 1; replaces an earlier one.

        Raises:
            UsageError: For ids or features of another kind, or a client registered in another domain.
        """
        client_id, domain_id = check_name("client id", client_id), check_name("domain id", domain_id)
        fingerprint = None if features is None else check_features(client_id, features)
        now = self._clock()
        known = self._clients.get(client_id)
        if known is not None:
            if known.domain_id != domain_id:
                raise UsageError(
                    f"client {client_id!r} is registered in domain {known.domain_id!r}; unregister it first"
                )
            known.features = fingerprint if fingerprint is not None else known.features
            self.touch_client(client_id, n_updates=0, at=now)
            return str(known.basket_id)
        departure = self._departures.get(client_id)
        client = ClientInfo(client_id, domain_id, None, fingerprint, joined_at=now, last_active=now)
        client.trust_score = departure.trust_score if departure else FIRST_TRUST
        self._clients[client_id] = client
        return self._place(client, now)

    def remove_client(self, client_id: str) -> bool:
        """Unregister a client; False if it is not known. A basket left empty is marked for `cleanup`."""
        client = self._clients.pop(client_id, None)
        if client is None:
            return False
        basket = self._baskets[str(client.basket_id)]
        basket.clients.discard(client_id)
        basket.emptied = not basket.clients
        self._departures[client_id] = _Departure(basket.basket_id, client.trust_score)
        return True

    def create_basket(self, domain_id: str) -> str:
        """Open an empty basket in a domain and return its id."""
        domain_id = check_name("domain id", domain_id)
        index = self._next_index.get(domain_id, 0)
        self._next_index[domain_id] = index + 1
        now = self._clock()
        basket = _Basket(f"{domain_id}_basket_{index}", domain_id, created_at=now, last_activity=now)
        self._baskets[basket.basket_id] = basket
        self._live.setdefault(domain_id, {})[basket.basket_id] = basket
        return basket.basket_id

    def restore_basket(
        self, basket_id: str, domain_id: str, clients: Iterable[tuple[str, str, npt.ArrayLike | None]]
    ) -> None:
        """Take over a basket and its clients as others knew them, after this manager came back empty.

        Activity begins now; trust (see `record_trust`) and counts of updates begin anew. Later baskets get
        later indices.

        Args:
            basket_id: ``<domain_id>_basket_<k>``, not known here.
            domain_id: Its domain.
            clients: (client id, its domain, its features) for clients not known here.

        Raises:
            UsageError: If the id is of another form or a basket or client is known already; then nothing
                is taken over.
        """
        prefix, _, index = basket_id.rpartition("_")
        if prefix != f"{domain_id}_basket" or not (index.isascii() and index.isdigit()):
            raise UsageError(f"a basket of domain {domain_id!r} cannot have the id {basket_id!r}")
        members = [(c, d, None if f is None else check_features(c, f)) for c, d, f in clients]
        known = [client_id for client_id, _, _ in members if client_id in self._clients]
        if basket_id in self._baskets or known:
            raise UsageError(f"basket {basket_id!r} or its clients {known} are known already")
        now = self._clock()
        basket = _Basket(basket_id, domain_id, created_at=now, last_activity=now)
        self._baskets[basket_id] = basket
        siblings = {**self._live.get(domain_id, {}), basket_id: basket}
        self._live[domain_id] = dict(sorted(siblings.items(), key=lambda item: (len(item[0]), item[0])))
        self._next_index[domain_id] = max(self._next_index.get(domain_id, 0), int(index) + 1)
        for client_id, client_domain, features in members:
            client = ClientInfo(client_id, client_domain, None, features, joined_at=now, last_active=now)
            self._clients[client_id] = client
            self._join(client, basket, now)

    def disband_basket(self, basket_id: str) -> tuple[Move, ...]:
        """Close a basket, reassign its clients as if they had just registered, and return their moves."""
        basket = self._find(basket_id)
        self._close(basket)
        now = self._clock()
        members = sorted(basket.clients)
        basket.clients.clear()
        basket.moves = tuple(Move(c, basket.basket_id, self._place(self._clients[c], now)) for c in members)
        return basket.moves

    def split_basket(self, basket_id: str) -> tuple[str, str]:
        """Close a basket and divide its clients between two new ones of the same domain.

        Where all clients have features of one length, they are sorted along the features' first principal
        direction and cut in the middle, so that the halves differ by one client at most; otherwise, or if all
        features are equal, they are divided at random. `moves_from` tells who went where.

        Returns:
            The ids of the two new baskets.

        Raises:
            UsageError: If the basket is not live, or holds fewer than two clients.
        """
        basket = self._find(basket_id)
        members = sorted(basket.clients)
        if len(members) < 2:
            raise UsageError(f"basket {basket.basket_id!r} holds {len(members)} clients; a split needs two")
        order = order_by_features(members, {c: self._clients[c].features for c in members})
        if order is None:
            order = [members[i] for i in self._rng.permutation(len(members))]
        self._close(basket)
        now = self._clock()
        first, second = self.create_basket(basket.domain_id), self.create_basket(basket.domain_id)
        half = (len(order) + 1) // 2
        for position, client_id in enumerate(order):
            self._join(self._clients[client_id], self._baskets[first if position < half else second], now)
        basket.clients.clear()
        basket.moves = tuple(
            Move(client, basket.basket_id, str(self._clients[client].basket_id)) for client in members
        )
        return first, second

    def cleanup(self) -> tuple[str, ...]:
        """Forget the live baskets that their last client has left, and return their ids.

        Nothing here calls it by itself: the directory does so when a round advances. Until then a newcomer
        may still move into an emptied basket. A basket opened with `create_basket` is not marked before it
        has held a client.
        """
        emptied = [basket for basket in self._baskets.values() if basket.emptied and not basket.disbanded]
        for basket in emptied:
            self._close(basket)
            del self._baskets[basket.basket_id]
        return tuple(basket.basket_id for basket in emptied)

    def touch_client(self, client_id: str, n_updates: int = 1, at: float | None = None) -> None:
        """Count accepted updates of a client, and mark it and its basket active.

        Args:
            client_id: The client.
            n_updates: Updates accepted since the last call; 0 marks activity alone.
            at: When, in seconds on the manager's clock; now if None. Never moves activity back.
        """
        client = self._find_client(client_id)
        if n_updates < 0:
            raise UsageError(f"n_updates must not be negative, got {n_updates}")
        at = self._clock() if at is None else at
        client.last_active = max(client.last_active, at)
        client.n_updates += n_updates
        basket = self._baskets[str(client.basket_id)]
        basket.last_activity = max(basket.last_activity, at)

    def touch_basket(self, basket_id: str, at: float | None = None) -> None:
        """Mark a basket active (gossip, aggregation), now or at a given time."""
        basket = self._find(basket_id)
        basket.last_activity = max(basket.last_activity, self._clock() if at is None else at)

    def record_trust(self, client_id: str, trust_score: float) -> None:
        """Note how far a client is trusted, also one that has left; one never seen is ignored.

        Raises:
            UsageError: If it is not in [0, 1].
        """
        if not 0.0 <= trust_score <= 1.0:
            raise UsageError(f"trust must be in [0, 1], got {trust_score!r}")
        if client_id in self._clients:
            self._clients[client_id].trust_score = trust_score
        elif client_id in self._departures:
            self._departures[client_id] = replace(self._departures[client_id], trust_score=trust_score)

    def resolve(self, basket_id_or_domain: str) -> str:
        """The id of the live basket meant by a basket's id, or by the name of a domain with one basket.

        Raises:
            UsageError: If nothing of that name is live, or the domain has several baskets.
        """
        return self._find(basket_id_or_domain).basket_id

    def get_basket(self, basket_id: str) -> BasketInfo | None:
        """A basket, live or disbanded; None if there is none of that name."""
        basket = self._lookup(basket_id)
        return None if basket is None else self._snapshot(basket, self._clock())

    def get_basket_clients(self, basket_id: str) -> set[str]:
        """The ids of a basket's members; empty if there is no such basket."""
        basket = self._lookup(basket_id)
        return set() if basket is None else set(basket.clients)

    def get_client(self, client_id: str) -> ClientInfo | None:
        """A registered client; None if it is not known."""
        client = self._clients.get(client_id)
        if client is None:
            return None
        return replace(client, features=None if client.features is None else client.features.copy())

    def get_client_basket(self, client_id: str) -> str | None:
        """The basket of a registered client; None if it is not known."""
        client = self._clients.get(client_id)
        return None if client is None else client.basket_id

    def former_basket(self, client_id: str) -> str | None:
        """The basket from which a client last unregistered, also after it came back; None if it never did.

        Whoever keeps aggregates needs it: that basket's latest one may still hold the client.
        """
        departure = self._departures.get(client_id)
        return None if departure is None else departure.basket_id

    def moves_from(self, basket_id: str) -> tuple[Move, ...]:
        """Where a basket's clients went when it was split or disbanded, by client id; () while it is live."""
        basket = self._baskets.get(basket_id)
        return () if basket is None else basket.moves

    def client_ids(self) -> tuple[str, ...]:
        """All registered clients, sorted."""
        return tuple(sorted(self._clients))

    def live_baskets(self) -> tuple[BasketInfo, ...]:
        """All baskets that are not disbanded, oldest first."""
        now = self._clock()
        return tuple(self._snapshot(basket, now) for basket in self._all_live())

    def domain_baskets(self, domain_id: str) -> tuple[str, ...]:
        """The ids of a domain's live baskets, oldest first."""
        return tuple(self._live.get(domain_id, ()))

    def get_stale_baskets(self, threshold: float | None = None) -> list[str]:
        """Live baskets idle for more than `threshold` seconds (the config's if None), oldest first."""
        limit = self.config.stale_threshold if threshold is None else threshold
        now = self._clock()
        return [basket.basket_id for basket in self._all_live() if now - basket.last_activity > limit]

    def get_stats(self) -> dict[str, Any]:
        """Counts over live baskets, with the keys of spec/basket.md."""
        by_domain = {domain: len(baskets) for domain, baskets in self._live.items() if baskets}
        n_baskets = sum(by_domain.values())
        return {
            "n_clients": len(self._clients),
            "n_baskets": n_baskets,
            "baskets_by_domain": by_domain,
            "avg_clients_per_basket": len(self._clients) / n_baskets if n_baskets else 0.0,
            "n_stale_baskets": len(self.get_stale_baskets()),
        }

    def _place(self, client: ClientInfo, now: float) -> str:
        if self.config.allow_cross_domain:
            candidates = self._all_live()
        else:
            candidates = list(self._live.get(client.domain_id, {}).values())
        room = (basket for basket in candidates if len(basket.clients) < self.config.max_clients)
        basket = next(room, None) or self._baskets[self.create_basket(client.domain_id)]
        self._join(client, basket, now)
        return basket.basket_id

    def _join(self, client: ClientInfo, basket: _Basket, now: float) -> None:
        client.basket_id = basket.basket_id
        basket.clients.add(client.client_id)
        basket.emptied = False
        basket.last_activity = max(basket.last_activity, now)

    def _close(self, basket: _Basket) -> None:
        basket.disbanded = True
        del self._live[basket.domain_id][basket.basket_id]

    def _all_live(self) -> list[_Basket]:
        return [basket for basket in self._baskets.values() if not basket.disbanded]

    def _lookup(self, name: str) -> _Basket | None:
        """A basket by its id, or the only live one of a domain."""
        exact = self._baskets.get(name)
        if exact is not None:
            return exact
        live = self._live.get(name, {})
        if len(live) > 1:
            raise UsageError(f"domain {name!r} has several baskets, name one of: {', '.join(live)}")
        return next(iter(live.values()), None)

    def _find(self, name: str) -> _Basket:
        basket = self._lookup(name)
        if basket is None:
            raise UsageError(f"there is no basket or domain {name!r}")
        if basket.disbanded:
            raise UsageError(f"basket {name!r} is disbanded")
        return basket

    def _find_client(self, client_id: str) -> ClientInfo:
        client = self._clients.get(client_id)
        if client is None:
            raise UsageError(f"client {client_id!r} is not registered")
        return client

    def _snapshot(self, basket: _Basket, now: float) -> BasketInfo:
        return BasketInfo(
            basket_id=basket.basket_id,
            domain_id=basket.domain_id,
            status=self._status(basket, now),
            clients=set(basket.clients),
            created_at=basket.created_at,
            last_activity=basket.last_activity,
        )

    def _status(self, basket: _Basket, now: float) -> BasketStatus:
        if basket.disbanded:
            return BasketStatus.DISBANDED
        if now - basket.last_activity > self.config.stale_threshold:
            return BasketStatus.STALE
        return BasketStatus.ACTIVE if len(basket.clients) >= self.config.min_clients else BasketStatus.FORMING


__all__ = ["BasketManager"]
