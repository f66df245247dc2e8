"""The baskets that exist: their ids, which are live, and which have room.

Also in what order a split cuts a basket's clients, and which basket actor holds the fewest (`SlotLoads`).

Guarantees:
    A basket id is never used again; indices count up within a domain.
    A domain's name stands for its only live basket.
    Finding the oldest basket with room looks at one basket, and once more at each that has filled up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from scarcity_ray.config import BasketConfig
from scarcity_ray.config.arguments import seconds_of
from scarcity_ray.directory.records import BasketInfo, BasketStatus, Move, check_name
from scarcity_ray.errors import UsageError
from scarcity_ray_client.errors import shown


@dataclass
class Basket:
    """One basket, live or disbanded.

    Attributes:
        basket_id: ``<domain>_basket_<k>``.
        index: The k of its id.
        opened: How many baskets were there before it, over all domains.
        created_at: Seconds on the manager's clock.
        clients: Ids of its members.
        emptied: Whether its last client has left it.
        moves: Where its clients went when it closed.
    """

    basket_id: str
    domain_id: str
    index: int
    opened: int
    created_at: float
    last_activity: float
    clients: set[str] = field(default_factory=set)
    disbanded: bool = False
    emptied: bool = False
    moves: tuple[Move, ...] = ()

    def touch(self, at: float) -> None:
        """Mark it active; never moves activity back."""
        self.last_activity = max(self.last_activity, at)


@dataclass(frozen=True)
class RosterState:
    """All baskets, and the numbers of those to come.

    Attributes:
        next_index: By domain.
        num_opened: So far, forgotten ones included.
    """

    baskets: tuple[Basket, ...]
    next_index: Mapping[str, int]
    num_opened: int


class _Vacancies:
    """Baskets that may have room, oldest first; a full one is dropped when it comes to the front."""

    def __init__(self) -> None:
        self._queue: list[tuple[int, str]] = []
        self._queued: dict[str, Basket] = {}

    def add(self, order: int, basket: Basket) -> None:
        """Note that a basket has room; `order` is unique to it and rises from older to younger."""
        if basket.basket_id not in self._queued:
            self._queued[basket.basket_id] = basket
            heapq.heappush(self._queue, (order, basket.basket_id))

    def oldest(self, max_clients: int) -> Basket | None:
        """The oldest live basket with fewer than `max_clients` members; None if there is none."""
        while self._queue:
            basket = self._queued[self._queue[0][1]]
            if not basket.disbanded and len(basket.clients) < max_clients:
                return basket
            heapq.heappop(self._queue)
            del self._queued[basket.basket_id]
        return None


class Roster:
    """All baskets, by id and by domain; `clock` gives the time in seconds."""

    def __init__(self, config: BasketConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._baskets: dict[str, Basket] = {}
        self._live: dict[str, Basket] = {}
        self._of_domain: dict[str, dict[str, Basket]] = {}
        self._vacancies: dict[str | None, _Vacancies] = {}
        self._num_opened = 0
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
        """Open a basket under an id that was used before this roster began.

        Raises:
            UsageError: If it is no id of a basket of the domain, or known already.
        """
        index = index_of(basket_id, domain_id)
        if basket_id in self._baskets:
            raise UsageError(f"basket {basket_id!r} is known already")
        return self._add(basket_id, domain_id, index)

    def join(self, basket: Basket, client_id: str, now: float) -> None:
        """Take a member into a basket."""
        basket.clients.add(client_id)
        basket.emptied = False
        basket.touch(now)

    def leave(self, basket: Basket, client_id: str) -> None:
        """Let a basket's member go."""
        basket.clients.discard(client_id)
        basket.emptied = not basket.clients
        self._note_room(basket)

    def close(self, basket: Basket) -> None:
        """Take a basket from the live ones; it stays as a record."""
        basket.disbanded = True
        del self._live[basket.basket_id]
        del self._of_domain[basket.domain_id][basket.basket_id]

    def forget_emptied(self) -> tuple[str, ...]:
        """Close and forget the live baskets that their last client has left; their ids."""
        emptied = [basket for basket in self._live.values() if basket.emptied]
        for basket in emptied:
            self.close(basket)
            del self._baskets[basket.basket_id]
        return tuple(basket.basket_id for basket in emptied)

    def kept(self) -> RosterState:
        """What `restore` makes the same baskets from."""
        return RosterState(tuple(self._baskets.values()), dict(self._next_index), self._num_opened)

    def some(self, basket_ids: Iterable[str]) -> list[Basket]:
        """Those of the baskets that are there."""
        return [self._baskets[basket_id] for basket_id in basket_ids if basket_id in self._baskets]

    def next_index(self, domain_id: str) -> int:
        """The index of a domain's next basket."""
        return self._next_index.get(domain_id, 0)

    @property
    def num_opened(self) -> int:
        """Baskets opened so far."""
        return self._num_opened

    def restore(self, state: RosterState) -> None:
        """Take over what `kept` gave; this roster must be empty."""
        for basket in state.baskets:
            self._baskets[basket.basket_id] = basket
            if not basket.disbanded:
                self._live[basket.basket_id] = basket
                self._of_domain.setdefault(basket.domain_id, {})[basket.basket_id] = basket
                self._note_room(basket)
        self._next_index, self._num_opened = dict(state.next_index), state.num_opened

    def with_room(self, domain_id: str) -> Basket | None:
        """The oldest live basket with room in a domain, or in all with `allow_cross_domain`; else None.

        Age goes by index within a domain, and by the order of opening across domains.
        """
        vacancies = self._vacancies.get(None if self._config.allow_cross_domain else domain_id)
        return None if vacancies is None else vacancies.oldest(self._config.max_clients)

    def live(self) -> list[Basket]:
        """All live baskets, in the order of opening."""
        return list(self._live.values())

    def of_domain(self, domain_id: str) -> list[Basket]:
        """A domain's live baskets, oldest first."""
        live = self._of_domain.get(domain_id, {}) if isinstance(domain_id, str) else {}
        return sorted(live.values(), key=lambda basket: basket.index)

    def stale(self, threshold: float) -> list[str]:
        """Live baskets idle for more than `threshold` seconds, oldest first."""
        now, threshold = self._clock(), seconds_of("threshold", threshold)
        return [basket.basket_id for basket in self.live() if now - basket.last_activity > threshold]

    def sizes(self) -> dict[str, int]:
        """Live baskets of each domain that has any."""
        return {domain: len(baskets) for domain, baskets in self._of_domain.items() if baskets}

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
        live = self._of_domain.get(name, {})
        if len(live) > 1:
            names = ", ".join(basket.basket_id for basket in self.of_domain(name))
            raise UsageError(f"domain {name!r} has several baskets, name one of: {names}")
        return next(iter(live.values()), None)

    def find(self, name: str) -> Basket:
        """As `lookup`, for a basket that must be live.

        Raises:
            UsageError: If it is disbanded, or does not exist.
        """
        basket = self.lookup(name)
        if basket is None:
            raise UsageError(f"there is no basket or domain {shown(name)}")
        if basket.disbanded:
            raise UsageError(f"basket {name!r} is disbanded")
        return basket

    def snapshot(self, basket: Basket, now: float) -> BasketInfo:
        """What is known of a basket at a moment; the caller's to keep."""
        if basket.disbanded:
            status = BasketStatus.DISBANDED
        elif now - basket.last_activity > self._config.stale_threshold:
            status = BasketStatus.STALE
        else:
            is_active = len(basket.clients) >= self._config.min_clients
            status = BasketStatus.ACTIVE if is_active else BasketStatus.FORMING
        return BasketInfo(
            basket_id=basket.basket_id,
            domain_id=basket.domain_id,
            status=status,
            clients=set(basket.clients),
            created_at=basket.created_at,
            last_activity=basket.last_activity,
        )

    def _add(self, basket_id: str, domain_id: str, index: int) -> Basket:
        self._next_index[domain_id] = max(self._next_index.get(domain_id, 0), index + 1)
        now = self._clock()
        basket = Basket(basket_id, domain_id, index, self._num_opened, created_at=now, last_activity=now)
        self._num_opened += 1
        self._baskets[basket_id] = self._live[basket_id] = basket
        self._of_domain.setdefault(domain_id, {})[basket_id] = basket
        self._note_room(basket)
        return basket

    def _note_room(self, basket: Basket) -> None:
        cross = self._config.allow_cross_domain
        vacancies = self._vacancies.setdefault(None if cross else basket.domain_id, _Vacancies())
        vacancies.add(basket.opened if cross else basket.index, basket)


def index_of(basket_id: str, domain_id: str) -> int:
    """The k of a basket id ``<domain_id>_basket_<k>``.

    Raises:
        UsageError: If it is of another form.
    """
    prefix, _, index = basket_id.rpartition("_") if isinstance(basket_id, str) else ("", "", "")
    plain = index.isascii() and index.isdigit() and (index == "0" or not index.startswith("0"))
    if prefix != f"{domain_id}_basket" or not plain:
        raise UsageError(f"a basket of domain {domain_id!r} cannot have the id {shown(basket_id)}")
    return int(index)


def check_features(client_id: str, features: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """A client's features as a new float64 vector (p,).

    Raises:
        UsageError: If they are anything but a non-empty vector of finite numbers.
    """
    try:
        given = np.asarray(features)
        vector = np.array(given if given.dtype.kind in "fiu" else [], dtype=np.float64)
    except (TypeError, ValueError):
        vector = np.empty(0)
    if vector.ndim != 1 or vector.size == 0 or not np.isfinite(vector).all():
        raise UsageError(f"features of client {client_id!r} must be a non-empty vector of finite numbers")
    return vector


def order_by_features(
    members: Sequence[str], features: Mapping[str, npt.NDArray[np.float64] | None]
) -> list[str] | None:
    """Members sorted along the first principal direction of their features.

    None if a member has no features, their lengths differ, or all are equal.
    """
    known = [f for f in (features[c] for c in members) if f is not None]
    if len(known) < len(members) or len({f.size for f in known}) > 1:
        return None
    matrix = np.stack(known)
    matrix = matrix / max(float(np.abs(matrix).max()), np.finfo(np.float64).tiny)
    centred = matrix - matrix.mean(axis=0)
    if not (matrix != matrix[0]).any():
        return None
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    direction = direction * np.sign(direction[np.argmax(np.abs(direction))])
    projection = centred @ direction
    return [members[i] for i in np.argsort(projection, kind="stable")]


class SlotLoads:
    """How many live baskets each basket actor holds; a heap gives the one that holds the fewest.

    A domain that is placed (``runtime.placement``) has actors of its own, which hold no other's baskets.

    Args:
        num_slots: Basket actors, numbered from 0.
        most: Baskets that an actor may hold; None for any number.
    """

    def __init__(self, num_slots: int, most: int | None) -> None:
        self._most = most
        self._loads: list[int] = []
        self._queue: list[tuple[int, int]] = []
        self._own: dict[str, list[int]] = {}
        self._domains: dict[int, str] = {}
        self.extend(num_slots)

    def __len__(self) -> int:
        return len(self._loads)

    def extend(self, num_slots: int) -> None:
        """Have at least so many actors."""
        while len(self._loads) < num_slots:
            self._loads.append(0)
            heapq.heappush(self._queue, (0, len(self._loads) - 1))

    def domain(self, slot: int) -> str | None:
        """The placed domain whose own an actor is."""
        return self._domains.get(slot)

    def take(self, domain: str | None = None) -> int:
        """Give a basket to the first of the actors that hold the fewest; to a new one if all are full.

        Args:
            domain: Of the basket, if that domain is placed.
        """
        if domain is not None:
            slot = min(self._own.get(domain, ()), key=lambda own: (self._loads[own], own), default=None)
            if slot is None or (self._most is not None and self._loads[slot] >= self._most):
                slot = len(self._loads)
            self.add(slot, domain)
            return slot
        while self._queue and (
            self._queue[0][1] in self._domains or self._queue[0][0] != self._loads[self._queue[0][1]]
        ):
            heapq.heappop(self._queue)
        is_full = not self._queue or (self._most is not None and self._queue[0][0] >= self._most)
        slot = len(self._loads) if is_full else self._queue[0][1]
        self.add(slot)
        return slot

    def add(self, slot: int, domain: str | None = None) -> None:
        """Note that an actor holds one more, of a domain if that is placed."""
        self.extend(slot + 1)
        if domain is not None and slot not in self._domains:
            self._domains[slot] = domain
            self._own.setdefault(domain, []).append(slot)
        self._change(slot, 1)

    def remove(self, slot: int) -> None:
        """Note that an actor holds one less."""
        self._change(slot, -1)

    def _change(self, slot: int, by: int) -> None:
        self._loads[slot] += by
        heapq.heappush(self._queue, (self._loads[slot], slot))
        if len(self._queue) > 2 * len(self._loads) + 64:
            self._queue = [(load, number) for number, load in enumerate(self._loads)]
            heapq.heapify(self._queue)
