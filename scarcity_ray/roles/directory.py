"""The directory: who is in which basket, which actor holds it, and what round it is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from scarcity_ray.basket import BasketInfo, BasketManager, BasketStatus, ClientInfo, check_name
from scarcity_ray.config import stream
from scarcity_ray.errors import UsageError
from scarcity_ray.roles.messages import (
    ActivityReport,
    Admission,
    BasketPlace,
    FederationIdentity,
    Member,
    Registration,
    Rehousing,
    Return,
    Whereabouts,
)
from scarcity_ray.roles.role import Role


class Directory(Role):
    """`BasketManager` as a role, with the place of each basket and the clients' public keys.

    Args:
        identity: The federation's own facts; a second driver reads them here.
        num_slots: Basket actors to fill evenly; more are asked for only with ``runtime.baskets_per_actor``.
        round_id: Current round.
        admissions: What the basket actors hold, coming back after it was lost.
        now: Seconds since the epoch.
    """

    def __init__(
        self,
        identity: FederationIdentity,
        num_slots: int,
        round_id: int = 0,
        admissions: Sequence[Admission] = (),
        now: float = 0.0,
    ) -> None:
        super().__init__()
        config = identity.config
        self._identity = identity
        self._config = config
        self._num_slots = num_slots
        self._now = 0.0
        self._manager = BasketManager(
            config.basket, clock=lambda: self._now, rng=stream(config.seed, "directory")
        )
        self._slots: dict[str, int] = {}
        self._identities: dict[str, bytes] = {}
        self._keys: dict[str, bytes | None] = {}
        self._examples: dict[str, int] = {}
        self._round_id = round_id
        self._unknown = 0
        self._tick(now)
        self._restore(admissions)

    def identity(self) -> FederationIdentity:
        """The federation's own facts."""
        return self._identity

    def whereabouts(self) -> Whereabouts:
        """Round, live baskets and basket actors."""
        places = tuple(self._place(info.basket_id) for info in self._manager.live_baskets())
        return Whereabouts(self._round_id, places, self._num_slots)

    def current_round(self) -> int:
        """The round, alone: what is asked once an update must not tell of all baskets."""
        return self._round_id

    def locate(self, client_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Basket and slot of each client that is registered."""
        found: dict[str, tuple[str, int]] = {}
        for client_id in client_ids:
            basket_id = self._manager.get_client_basket(client_id)
            if basket_id is not None:
                found[client_id] = basket_id, self._slots[basket_id]
        return found

    def count_unknown(self, count: int) -> None:
        """Count updates of clients that are not registered."""
        self._unknown += count

    def register(self, clients: Sequence[Member], now: float) -> Registration:
        """Assign clients to baskets.

        Raises:
            UsageError: For an id that cannot be one, a client registered in another domain or under another
                key; then no client of the call is registered.
        """
        self._tick(now)
        for member in clients:
            self._check(member)
        joined: dict[str, list[str]] = defaultdict(list)
        baskets: list[str] = []
        returned: list[tuple[str, str, str]] = []
        for member in clients:
            former = self._manager.former_basket(member.client_id)
            known = self._manager.get_client_basket(member.client_id) is not None
            basket_id = self._manager.add_client(member.client_id, member.domain_id, member.features)
            if former not in (None, basket_id) and former in self._slots and not known:
                returned.append((member.client_id, former, basket_id))
            self._keys[member.client_id] = member.public_key
            if member.num_examples is not None:
                self._examples[member.client_id] = member.num_examples
            self._settle(basket_id)
            joined[basket_id].append(member.client_id)
            baskets.append(basket_id)
        admissions = tuple(
            Admission(self._place(b), tuple(self._member(c) for c in ids)) for b, ids in joined.items()
        )
        returns = tuple(Return(c, self._place(source), self._place(target)) for c, source, target in returned)
        return Registration(tuple(baskets), admissions, returns)

    def unregister(self, client_id: str, now: float) -> BasketPlace | None:
        """Remove a client; where it was, or None if it is not registered."""
        self._tick(now)
        basket_id = self._manager.get_client_basket(client_id)
        if basket_id is None:
            return None
        self._manager.remove_client(client_id)
        self._keys.pop(client_id, None)
        self._examples.pop(client_id, None)
        return self._place(basket_id)

    def record_identities(self, identities: dict[str, bytes]) -> None:
        """Note the public keys under which baskets sign in secure aggregation."""
        self._identities.update(identities)

    def split(self, basket_id: str, now: float) -> Rehousing:
        """Split a basket in two."""
        self._tick(now)
        basket_id = self._manager.resolve(basket_id)
        self._manager.split_basket(basket_id)
        return self._rehousing(basket_id)

    def disband(self, basket_id: str, now: float) -> Rehousing:
        """Close a basket; its clients go to others of their domain."""
        self._tick(now)
        basket_id = self._manager.resolve(basket_id)
        self._manager.disband_basket(basket_id)
        return self._rehousing(basket_id)

    def resolve(self, basket_id: str) -> BasketPlace:
        """The place of a basket, named by its id or by a domain that has one basket."""
        return self._place(self._manager.resolve(basket_id))

    def members_of_slot(self, slot: int) -> tuple[Admission, ...]:
        """Everything that a basket actor must be told after it came back empty."""
        return tuple(
            Admission(self._place(info.basket_id), tuple(self._member(c) for c in sorted(info.clients)))
            for info in self._manager.live_baskets()
            if self._slots[info.basket_id] == slot
        )

    def advance_round(self, now: float) -> tuple[int, tuple[BasketPlace, ...]]:
        """The next round's number, and the baskets that their last client left, which are removed now."""
        self._tick(now)
        self._round_id += 1
        before = {info.basket_id: self._place(info.basket_id) for info in self._manager.live_baskets()}
        return self._round_id, tuple(before[basket_id] for basket_id in self._manager.cleanup())

    def note_activity(self, reports: Sequence[ActivityReport], now: float) -> None:
        """Take over what basket actors saw."""
        self._tick(now)
        for report in reports:
            for client_id, activity in report.clients.items():
                self._manager.record_trust(client_id, activity.trust)
                if activity.accepted and self._manager.get_client_basket(client_id) is not None:
                    self._manager.touch_client(client_id, n_updates=activity.accepted, at=activity.seen)
            for basket_id, at in report.baskets.items():
                info = self._manager.get_basket(basket_id)
                if info is not None and info.status is not BasketStatus.DISBANDED:
                    self._manager.touch_basket(basket_id, at=at)

    def client(self, client_id: str, now: float) -> ClientInfo | None:
        """What is known of a client."""
        self._tick(now)
        return self._manager.get_client(client_id)

    def basket(self, basket_id: str, now: float) -> BasketInfo | None:
        """What is known of a basket."""
        self._tick(now)
        return self._manager.get_basket(basket_id)

    def stale_baskets(self, threshold: float | None, now: float) -> list[str]:
        """Baskets without activity for `threshold` seconds (the configured ones by default)."""
        self._tick(now)
        return list(self._manager.get_stale_baskets(threshold))

    def stats(self, now: float) -> dict[str, Any]:
        """The manager's statistics, the round, and each live basket's status."""
        self._tick(now)
        statuses = {info.basket_id: info.status.value for info in self._manager.live_baskets()}
        return {
            **self._manager.get_stats(),
            "current_round": self._round_id,
            "statuses": statuses,
            "unknown_clients": self._unknown,
        }

    def _restore(self, admissions: Sequence[Admission]) -> None:
        for admission in sorted(admissions, key=lambda a: a.place.basket_id):
            place = admission.place
            self._manager.restore_basket(
                place.basket_id,
                place.domain_id,
                [(m.client_id, m.domain_id, m.features) for m in admission.members],
            )
            for member in admission.members:
                self._manager.record_trust(member.client_id, member.trust)
            self._slots[place.basket_id] = place.slot
            self._num_slots = max(self._num_slots, place.slot + 1)
            self._identities[place.basket_id] = place.identity
            self._keys.update({m.client_id: m.public_key for m in admission.members})
            told = {m.client_id: m.num_examples for m in admission.members if m.num_examples is not None}
            self._examples.update(told)

    def _tick(self, now: float) -> None:
        self._now = max(self._now, now)

    def _check(self, member: Member) -> None:
        check_name("client id", member.client_id)
        check_name("domain id", member.domain_id)
        known = self._manager.get_client(member.client_id)
        if known is None:
            return
        if known.domain_id != member.domain_id:
            raise UsageError(
                f"client {member.client_id!r} is registered in domain {known.domain_id!r}; "
                "unregister it first"
            )
        if self._keys.get(member.client_id) != member.public_key:
            raise UsageError(
                f"client {member.client_id!r} is registered under another key; unregister it first"
            )

    def _settle(self, basket_id: str) -> None:
        """Give a new basket its actor: the emptiest, or a new one if each may hold only so many."""
        if basket_id in self._slots:
            return
        live = {info.basket_id for info in self._manager.live_baskets()}
        load = Counter({slot: 0 for slot in range(self._num_slots)})
        load.update(self._slots[b] for b in live if b in self._slots)
        slot, count = min(load.items(), key=lambda item: (item[1], item[0]), default=(0, 0))
        most = self._config.runtime.baskets_per_actor
        if not load or (most is not None and count >= most):
            slot = self._num_slots
            self._num_slots += 1
        self._slots[basket_id] = slot

    def _place(self, basket_id: str) -> BasketPlace:
        info = self._manager.get_basket(basket_id)
        return BasketPlace(
            basket_id=basket_id,
            domain_id=info.domain_id if info else "",
            slot=self._slots[basket_id],
            identity=self._identities.get(basket_id, b""),
            members=tuple(sorted(info.clients)) if info else (),
        )

    def _member(self, client_id: str) -> Member:
        info = self._manager.get_client(client_id)
        if info is None:
            return Member(client_id, "", self._keys.get(client_id))
        return Member(
            client_id,
            info.domain_id,
            self._keys.get(client_id),
            info.features,
            info.trust_score,
            self._examples.get(client_id),
        )

    def _rehousing(self, closed: str) -> Rehousing:
        moves = self._manager.moves_from(closed)
        homes = {move.to_basket for move in moves}
        targets = [info.basket_id for info in self._manager.live_baskets() if info.basket_id in homes]
        for basket_id in targets:
            self._settle(basket_id)
        return Rehousing(
            self._place(closed),
            tuple(
                Admission(self._place(b), tuple(self._member(m.client_id) for m in moves if m.to_basket == b))
                for b in targets
            ),
        )
