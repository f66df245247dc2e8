"""Assigns clients to baskets: groups of clients of one domain, within which they gossip."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scarcity_ray.config import BasketConfig, stream
from scarcity_ray.config.arguments import check_clock, instance_of, number_of, seconds_of
from scarcity_ray.directory.records import FIRST_TRUST, BasketInfo, ClientInfo, Departure, Move, check_name
from scarcity_ray.directory.roster import Basket, Roster, RosterState, check_features, order_by_features
from scarcity_ray.errors import UsageError
from scarcity_ray_client.errors import shown

MOST_DEPARTURES = 100_000
"""Unregistered clients whose last basket and trust are remembered; beyond that the oldest are forgotten."""


@dataclass(frozen=True, eq=False)
class ManagerState:
    """A manager's memory, as plain data.

    Attributes:
        rng: State of the bit generator that divides baskets.
    """

    clients: tuple[ClientInfo, ...]
    roster: RosterState
    departures: Mapping[str, Departure]
    rng: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ManagerChange:
    """What has changed of a `ManagerState` as clients came and left.

    Attributes:
        clients: Those that changed and are there.
        gone: Those that left.
        baskets: Those that changed, without their clients.
        departures: Of those that have ever left, among both.
        next_index: By domain, of the baskets' domains.
    """

    clients: tuple[ClientInfo, ...]
    gone: tuple[str, ...]
    baskets: tuple[Basket, ...]
    departures: Mapping[str, Departure]
    next_index: Mapping[str, int]
    num_opened: int


class BasketManager:
    """Groups clients into baskets (docs/specification.md#baskets).

    A domain's name may stand in for a basket id if the domain has one live basket; if it has several, the
    `UsageError` lists them. For an unknown id, getters return None or an empty set, and methods that change
    something raise `UsageError`.

    Guarantees:
        Every client is in exactly one live basket, one of its own domain unless `allow_cross_domain`.
        No basket is above its maximum, `max_clients`.
        A basket id is never used again (`roster`).
        what_a_caller_does_to_a_returned_object_changes_nothing_here
        leaving_and_coming_back_does_not_restore_trust: Unless `MOST_DEPARTURES` others have left since.

    Args:
        rng: For splits; a fixed simulation stream if None.
    """

    def __init__(
        self,
        config: BasketConfig | None = None,
        *,
        clock: Callable[[], float] = time.time,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.config = BasketConfig() if config is None else instance_of("config", config, BasketConfig)
        self._clock = check_clock(clock)
        self._rng = stream(0, "baskets") if rng is None else instance_of("rng", rng, np.random.Generator)
        self._clients: dict[str, ClientInfo] = {}
        self._roster = Roster(self.config, clock)
        self._departures: dict[str, Departure] = {}

    def add_client(self, client_id: str, domain_id: str, features: npt.ArrayLike | None = None) -> str:
        """Register a client and return its basket's id.

        The client joins the oldest basket of its domain with room (of any domain, with
        `allow_cross_domain`); if there is none, a new basket opens. Registering a client again in the same
        domain marks it active and returns its basket.

        Args:
            client_id: A printable str of 1 to 200 characters, as `domain_id` is.
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
        if self._known(client_id) is None:
            return False
        client = self._clients.pop(client_id)
        basket = self._roster[str(client.basket_id)]
        self._roster.leave(basket, client_id)
        self._departures.pop(client_id, None)
        self._departures[client_id] = Departure(basket.basket_id, client.trust_score)
        if len(self._departures) > MOST_DEPARTURES:
            del self._departures[next(iter(self._departures))]
        return True

    def kept(self) -> ManagerState:
        """What `restore` makes the same manager from."""
        clients, departures = tuple(self._clients.values()), dict(self._departures)
        return ManagerState(clients, self._roster.kept(), departures, self._rng.bit_generator.state)

    def restore(self, state: ManagerState) -> None:
        """Take over what `kept` gave; this manager must be new."""
        self._clients = {client.client_id: client for client in state.clients}
        self._roster.restore(state.roster)
        self._departures = dict(state.departures)
        self._rng.bit_generator.state = state.rng

    def change_of(self, client_ids: Iterable[str], basket_ids: Iterable[str]) -> ManagerChange:
        """These clients and baskets as they are now, for `changed`."""
        known, ids = self._clients, sorted(client_ids)
        baskets = self._roster.some(sorted(basket_ids))
        return ManagerChange(
            clients=tuple(known[client_id] for client_id in ids if client_id in known),
            gone=tuple(client_id for client_id in ids if client_id not in known),
            baskets=tuple(replace(basket, clients=set()) for basket in baskets),
            departures={c: self._departures[c] for c in ids if c in self._departures},
            next_index={b.domain_id: self._roster.next_index(b.domain_id) for b in baskets},
            num_opened=self._roster.num_opened,
        )

    def create_basket(self, domain_id: str) -> str:
        """Open an empty basket in a domain and return its id."""
        return self._roster.open(domain_id).basket_id

    def restore_basket(
        self, basket_id: str, domain_id: str, clients: Iterable[tuple[str, str, npt.ArrayLike | None]]
    ) -> None:
        """Recreate a basket with its members, in a manager that lost its state.

        Activity, trust and update counts start again. New baskets get higher indices.

        Args:
            basket_id: ``<domain_id>_basket_<k>``.
            clients: (client id, its domain, its features) of each member.

        Raises:
            UsageError: If the id has another form, or the basket or a client is known already; nothing
                changes then.
        """
        members = [(c, d, None if f is None else check_features(c, f)) for c, d, f in clients]
        known = [client_id for client_id, _, _ in members if client_id in self._clients]
        if known:
            raise UsageError(f"clients {known} of basket {basket_id!r} are known already")
        basket, now = self._roster.reopen(basket_id, domain_id), self._clock()
        for client_id, client_domain, features in members:
            client = ClientInfo(client_id, client_domain, None, features, joined_at=now, last_active=now)
            self._clients[client_id] = client
            self._join(client, basket, now)

    def disband_basket(self, basket_id: str) -> tuple[Move, ...]:
        """Close a basket, reassign its clients as if they had just registered, and return their moves."""
        basket = self._roster.find(basket_id)
        self._roster.close(basket)
        now = self._clock()
        members = sorted(basket.clients)
        basket.clients.clear()
        basket.moves = tuple(Move(c, basket.basket_id, self._place(self._clients[c], now)) for c in members)
        return basket.moves

    def split_basket(self, basket_id: str) -> tuple[str, str]:
        """Close a basket and divide its clients between two new ones of the same domain.

        If all clients have features of one length, they are sorted along the features' first principal
        direction and cut in the middle. Otherwise, or if all features are equal, they are divided at random.
        The halves differ by at most one client. `moves_from` tells who went where.

        Returns:
            The ids of the two new baskets.

        Raises:
            UsageError: If the basket is not live, or holds fewer than two clients.
        """
        basket = self._roster.find(basket_id)
        members = sorted(basket.clients)
        if len(members) < 2:
            raise UsageError(f"basket {basket.basket_id!r} holds {len(members)} clients; a split needs two")
        order = order_by_features(members, {c: self._clients[c].features for c in members})
        if order is None:
            order = [members[i] for i in self._rng.permutation(len(members))]
        self._roster.close(basket)
        now = self._clock()
        first, second = self._roster.open(basket.domain_id), self._roster.open(basket.domain_id)
        half = (len(order) + 1) // 2
        for position, client_id in enumerate(order):
            self._join(self._clients[client_id], first if position < half else second, now)
        basket.clients.clear()
        basket.moves = tuple(Move(c, basket.basket_id, str(self._clients[c].basket_id)) for c in members)
        return first.basket_id, second.basket_id

    def cleanup(self) -> tuple[str, ...]:
        """Forget the live baskets that their last client has left, and return their ids.

        The directory calls it when a round advances. Until then a new client may still join an emptied
        basket. A basket from `create_basket` stays until it has held a client.
        """
        return self._roster.forget_emptied()

    def touch_client(self, client_id: str, n_updates: int = 1, at: float | None = None) -> None:
        """Count accepted updates of a client, and mark it and its basket active.

        Args:
            n_updates: Updates accepted since the last call; 0 marks activity alone.
            at: When, in seconds on the manager's clock; now if None. Never moves activity back.
        """
        client = self._known(client_id)
        if client is None:
            raise UsageError(f"client {shown(client_id)} is not registered")
        if not isinstance(n_updates, int | np.integer) or n_updates < 0:
            raise UsageError(f"n_updates: {shown(n_updates)} is not accepted; an integer of at least 0")
        at = self._clock() if at is None else seconds_of("at", at)
        client.last_active = max(client.last_active, at)
        client.n_updates += int(n_updates)
        self._roster[str(client.basket_id)].touch(at)

    def touch_basket(self, basket_id: str, at: float | None = None) -> None:
        """Mark a basket active (gossip, aggregation), now or at a given time."""
        self._roster.find(basket_id).touch(self._clock() if at is None else seconds_of("at", at))

    def record_trust(self, client_id: str, trust_score: float) -> None:
        """Set the trust, in [0, 1], of a client or a former client; others are ignored."""
        if not 0.0 <= number_of("trust", trust_score) <= 1.0:
            raise UsageError(f"trust must be in [0, 1], got {trust_score!r}")
        if self._known(client_id) is not None:
            self._clients[client_id].trust_score = trust_score
        elif self.former_basket(client_id) is not None:
            self._departures[client_id] = replace(self._departures[client_id], trust_score=trust_score)

    def resolve(self, basket_id_or_domain: str) -> str:
        """The id of the live basket meant by a basket's id, or by the name of a domain with one basket.

        Raises:
            UsageError: If nothing of that name is live, or the domain has several baskets.
        """
        return self._roster.find(basket_id_or_domain).basket_id

    def get_basket(self, basket_id: str) -> BasketInfo | None:
        """A basket, live or disbanded; None if there is none of that name."""
        basket = self._roster.lookup(basket_id)
        return None if basket is None else self._roster.snapshot(basket, self._clock())

    def get_basket_clients(self, basket_id: str) -> set[str]:
        """The ids of a basket's members; empty if there is no such basket."""
        basket = self._roster.lookup(basket_id)
        return set() if basket is None else set(basket.clients)

    def get_client(self, client_id: str) -> ClientInfo | None:
        """A registered client; None if it is not known."""
        client = self._known(client_id)
        if client is None:
            return None
        return ClientInfo(
            client.client_id,
            client.domain_id,
            client.basket_id,
            None if client.features is None else client.features.copy(),
            client.joined_at,
            client.last_active,
            client.n_updates,
            client.trust_score,
        )

    def get_clients(self, limit: int) -> list[ClientInfo]:
        """Up to `limit` registered clients, the first by id, without their features."""
        first = heapq.nsmallest(limit, self._clients)
        return [replace(self._clients[client_id], features=None) for client_id in first]

    def get_client_basket(self, client_id: str) -> str | None:
        """The basket of a registered client; None if it is not known."""
        client = self._known(client_id)
        return None if client is None else client.basket_id

    def former_basket(self, client_id: str) -> str | None:
        """The basket from which a client last unregistered, also after it came back; None if it never did.

        It is forgotten once `MOST_DEPARTURES` other clients have left.
        """
        departure = self._departures.get(client_id) if isinstance(client_id, str) else None
        return None if departure is None else departure.basket_id

    def moves_from(self, basket_id: str) -> tuple[Move, ...]:
        """Where a basket's clients went when it was split or disbanded, by client id; () while it is live."""
        return self._roster[basket_id].moves if basket_id in self._roster else ()

    def client_ids(self) -> tuple[str, ...]:
        """All registered clients, sorted."""
        return tuple(sorted(self._clients))

    def live_baskets(self) -> tuple[BasketInfo, ...]:
        """All baskets that are not disbanded, oldest first."""
        now = self._clock()
        return tuple(self._roster.snapshot(basket, now) for basket in self._roster.live())

    def live_basket_ids(self) -> tuple[str, ...]:
        """The ids of all baskets that are not disbanded, oldest first."""
        return tuple(basket.basket_id for basket in self._roster.live())

    def is_live(self, basket_id: str) -> bool:
        """Whether there is a basket of this id that is not disbanded."""
        return basket_id in self._roster and not self._roster[basket_id].disbanded

    def domain_of(self, basket_id: str) -> str | None:
        """The domain of a basket, live or disbanded; None if there is none of this id."""
        return self._roster[basket_id].domain_id if basket_id in self._roster else None

    def domain_baskets(self, domain_id: str) -> tuple[str, ...]:
        """The ids of a domain's live baskets, oldest first."""
        return tuple(basket.basket_id for basket in self._roster.of_domain(domain_id))

    def get_stale_baskets(self, threshold: float | None = None) -> list[str]:
        """Live baskets idle for more than `threshold` seconds (the config's if None), oldest first."""
        return self._roster.stale(self.config.stale_threshold if threshold is None else threshold)

    def get_stats(self) -> dict[str, Any]:
        """Counts over live baskets, with the keys of docs/specification.md#life-of-a-basket."""
        by_domain = self._roster.sizes()
        n_baskets = sum(by_domain.values())
        return {
            "n_clients": len(self._clients),
            "n_baskets": n_baskets,
            "baskets_by_domain": by_domain,
            "avg_clients_per_basket": len(self._clients) / n_baskets if n_baskets else 0.0,
            "n_stale_baskets": len(self.get_stale_baskets()),
        }

    def _place(self, client: ClientInfo, now: float) -> str:
        basket = self._roster.with_room(client.domain_id) or self._roster.open(client.domain_id)
        self._join(client, basket, now)
        return basket.basket_id

    def _join(self, client: ClientInfo, basket: Basket, now: float) -> None:
        client.basket_id = basket.basket_id
        self._roster.join(basket, client.client_id, now)

    def _known(self, client_id: object) -> ClientInfo | None:
        return self._clients.get(client_id) if isinstance(client_id, str) else None


def changed(state: ManagerState, changes: Sequence[ManagerChange]) -> ManagerState:
    """A manager's memory after the changes, oldest first."""
    clients = {client.client_id: client for client in state.clients}
    baskets = {basket.basket_id: basket for basket in state.roster.baskets}
    departures, next_index = dict(state.departures), dict(state.roster.next_index)
    num_opened = state.roster.num_opened
    for change in changes:
        for basket in change.baskets:
            before = baskets.get(basket.basket_id)
            baskets[basket.basket_id] = basket
            basket.clients |= set() if before is None else before.clients
        for client_id in (*(client.client_id for client in change.clients), *change.gone):
            if (former := clients.get(client_id)) is not None:
                baskets[str(former.basket_id)].clients.discard(client_id)
        for client in change.clients:
            clients[client.client_id] = client
            baskets[str(client.basket_id)].clients.add(client.client_id)
        for client_id in change.gone:
            clients.pop(client_id, None)
            departures.pop(client_id, None)
        departures |= change.departures
        for client_id in [*departures][: max(len(departures) - MOST_DEPARTURES, 0)]:
            del departures[client_id]
        next_index |= change.next_index
        num_opened = change.num_opened
    roster = RosterState(tuple(baskets.values()), next_index, num_opened)
    return ManagerState(tuple(clients.values()), roster, departures, state.rng)
