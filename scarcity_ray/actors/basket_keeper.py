"""A basket actor's snapshots: its baskets at each round's end, and their gossip as a whole after each run.

Where the actor has a journal, that has the rest, and a snapshot serves if the journal's disk is lost. They
hold no update that waits, and say of no aggregate that a release may use it: only the journal can tell, which
forgets both as they are used. So a snapshot older than the last release counts nothing twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from scarcity_ray.actors.kept import CODEC, GossipRun, HostSnapshot
from scarcity_ray.baskets.basket import Basket
from scarcity_ray.baskets.retained import CODEC as RETAINED
from scarcity_ray.baskets.retained import rows_folder
from scarcity_ray.storage.snapshots import Snapshots

_ALL = 1 << 31


class BasketKeeper:
    """The snapshots of one basket actor; none where the federation has no storage.

    Guarantees:
        a_member_that_moved_meanwhile_is_restored_where_it_is

    Attributes:
        last_gossip: The last run, without its `after`.
        has_found: Whether there was a snapshot to restore from.
    """

    def __init__(self, kept: Snapshots | None, slot: int, *, has_journal: bool) -> None:
        self._kept, self._slot = kept, slot
        self._rows = None if kept is None else replace(kept, path=rows_folder(kept.path))
        self._baskets, self._gossip = f"baskets-{slot}", f"gossip-{slot}"
        self._has_journal = has_journal
        self.last_gossip = GossipRun()
        self.has_found = False

    def keep(self, baskets: Mapping[str, Basket]) -> None:
        """Write a snapshot of all baskets, at a round's end.

        Raises:
            StorageError: If it cannot be written.
        """
        if self._kept is not None:
            states = {basket_id: basket.kept() for basket_id, basket in sorted(baskets.items())}
            self._kept.write(self._baskets, HostSnapshot(states), CODEC)

    def retain(self, baskets: Mapping[str, Basket], round_id: int) -> None:
        """Write what was retained of new aggregates, before they are known to anybody.

        Raises:
            StorageError: If it cannot be written.
        """
        new = [kept for _, basket in sorted(baskets.items()) for kept in basket.retained]
        if new and self._rows is not None:
            self._rows.write(f"{self._slot}-{round_id}", new, RETAINED, keep=_ALL)
        for basket in baskets.values():
            basket.retained = []

    def forget_rows_before(self, round_id: int) -> None:
        """Remove what was retained in earlier rounds.

        Raises:
            StorageError: If it cannot be removed.
        """
        if self._rows is None:
            return
        for name in self._rows.states():
            slot, _, number = name.partition("-")
            if slot == str(self._slot) and int(number) < round_id:
                self._rows.remove(name)

    def keep_gossip(self, baskets: Mapping[str, Basket], name: str, delivered: Mapping[str, int]) -> None:
        """Write what the journal lacks of a gossip run: peers' rotation, messages that wait, counts.

        Without a journal a restored actor is as it was at the round's end, and gossips again.

        Raises:
            StorageError: If it cannot be written.
        """
        if self._kept is not None and self._has_journal:
            after = {basket_id: basket.gossip.kept() for basket_id, basket in sorted(baskets.items())}
            self._kept.write(self._gossip, GossipRun(name, delivered, after), CODEC)
        self.last_gossip = GossipRun(name, delivered)

    def restore(self, baskets: Mapping[str, Basket], journalled: Collection[str]) -> None:
        """Have the baskets go on from the newest snapshot.

        Args:
            journalled: Those that the journal has made again already.

        Raises:
            StorageError: If it is torn, or another federation's.
        """
        if self._kept is None:
            return
        stored: HostSnapshot | None = self._kept.read(self._baskets, CODEC)
        found, self.has_found = stored or HostSnapshot({}), stored is not None
        homes = {c: b for basket_id, b in baskets.items() if basket_id not in journalled for c in b.members}
        for basket_id, state in found.baskets.items():
            if basket_id in baskets and basket_id not in journalled:
                baskets[basket_id].restore(state)
            for client in state.clients:
                if client.client_id in homes:
                    homes[client.client_id].put(client)
        gossip = {basket_id: state.gossip for basket_id, state in found.baskets.items()}
        run: GossipRun = (self._kept.read(self._gossip, CODEC) if self._has_journal else None) or GossipRun()
        self.last_gossip = GossipRun(run.name, run.delivered)
        for basket_id, later in run.after.items():
            if basket_id not in gossip or later.sampler_round > gossip[basket_id].sampler_round:
                gossip[basket_id] = later
        for basket_id in gossip.keys() & baskets.keys():
            baskets[basket_id].gossip.restore(gossip[basket_id])
