"""A basket actor's snapshots: its baskets at each round's end, and with a journal after each step of a round.

They hold no update that waits and say of no aggregate that a release may use it: that is the journal's to
tell, which forgets both in the moment in which they are used. So a snapshot that is older than the last
release counts nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping

from scarcity_ray.actors.kept import CODEC, HostSnapshot
from scarcity_ray.baskets.basket import Basket
from scarcity_ray.config import Durability, HierarchicalFederationConfig
from scarcity_ray.storage.snapshots import Snapshots


class BasketKeeper:
    """The snapshots of one basket actor; none where the federation has no storage.

    Guarantees:
        a_restored_basket_gossips_on_as_if_nothing_had_happened
        a_member_that_moved_meanwhile_is_restored_where_it_is
    """

    def __init__(self, kept: Snapshots | None, slot: int, config: HierarchicalFederationConfig) -> None:
        self._kept = kept
        self._name = f"baskets-{slot}"
        self._has_journal = config.keeps_updates is not Durability.NONE
        self._each_step = config.keeps_updates is Durability.UPDATE

    def keep(self, baskets: Mapping[str, Basket], round_id: int, *, is_boundary: bool = False) -> None:
        """Write a snapshot, if one is due now.

        Raises:
            StorageError: If it cannot be written.
        """
        if self._kept is None or not (is_boundary or self._each_step):
            return
        states = {b: basket.kept(has_journal=self._has_journal) for b, basket in sorted(baskets.items())}
        self._kept.write(self._name, HostSnapshot(round_id, states), CODEC)

    def restore(self, baskets: Mapping[str, Basket]) -> None:
        """Have the baskets go on from the newest snapshot.

        Raises:
            StorageError: If it is torn, or another federation's.
        """
        found: HostSnapshot | None = None if self._kept is None else self._kept.read(self._name, CODEC)
        if found is None:
            return
        homes = {client_id: basket for basket in baskets.values() for client_id in basket.members}
        for basket_id, state in found.baskets.items():
            if basket_id in baskets:
                baskets[basket_id].restore(state)
            for client in state.clients:
                if client.client_id in homes:
                    homes[client.client_id].restore_client(client)
        for state in found.baskets.values():
            for client in state.clients:
                if client.client_id in homes:
                    homes[client.client_id].restore_state(client, state)
