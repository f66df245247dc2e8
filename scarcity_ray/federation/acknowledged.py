"""What a driver has sent and baskets have accepted: who must send again if it is lost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from scarcity_ray.baskets import Receipt


class Acknowledged:
    """Accepted updates by basket, each as client and round.

    A driver knows of its own updates, and of aggregates and releases that it has asked for itself: what it
    names as lost may have been released by another driver meanwhile.

    Attributes:
        lost: What was lost with basket actors that had no journal, in the order of its loss.
    """

    def __init__(self) -> None:
        self.lost: list[tuple[str, int]] = []
        self._waiting: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self._aggregated: dict[str, list[tuple[str, int]]] = defaultdict(list)

    def note(self, client_ids: Sequence[str], receipts: Sequence[Receipt]) -> None:
        """Note the receipts for a batch of updates."""
        for client_id, receipt in zip(client_ids, receipts, strict=True):
            if receipt.accepted and receipt.basket_id is not None:
                self._waiting[receipt.basket_id].append((client_id, receipt.round_id))

    def aggregated(self, baskets: Iterable[str]) -> None:
        """Note that baskets have made an aggregate, which takes the place of the one before."""
        for basket_id in baskets:
            self._aggregated[basket_id] = self._waiting.pop(basket_id, [])

    def released(self, kept: Iterable[str] = ()) -> None:
        """Note a release of all fresh aggregates but those of the baskets `kept` out of it."""
        kept = set(kept)
        self._aggregated = defaultdict(list, {b: a for b, a in self._aggregated.items() if b in kept})

    def forget_before(self, round_id: int) -> None:
        """Forget updates of earlier rounds, which nobody may send again."""
        for kept in (self._waiting, self._aggregated):
            for basket_id, updates in list(kept.items()):
                kept[basket_id] = [update for update in updates if update[1] >= round_id]
                if not kept[basket_id]:
                    del kept[basket_id]

    def clients(self) -> list[str]:
        """Whose updates may be lost yet, sorted."""
        kept = (*self._waiting.values(), *self._aggregated.values())
        return sorted({client_id for updates in kept for client_id, _ in updates})

    def lose(self, baskets: Iterable[str], client_ids: Iterable[str]) -> tuple[tuple[str, int], ...]:
        """Note that baskets have lost what they had of their clients; the updates.

        Args:
            baskets: Those that are lost.
            client_ids: Their clients, which may have moved there since they sent.
        """
        names, clients = set(baskets), set(client_ids)
        return self._lose(lambda basket_id, client_id: basket_id in names or client_id in clients)

    def lose_all_but(
        self, survivors: Iterable[str], client_ids: Iterable[str]
    ) -> tuple[tuple[str, int], ...]:
        """Note that all baskets but the `survivors` have lost what they had; the updates.

        Args:
            survivors: Baskets.
            client_ids: Their clients, which may have moved there since they sent.
        """
        names, clients = set(survivors), set(client_ids)
        return self._lose(lambda basket_id, client_id: basket_id not in names and client_id not in clients)

    def _lose(self, is_lost: Callable[[str, str], bool]) -> tuple[tuple[str, int], ...]:
        lost = list[tuple[str, int]]()
        for kept in (self._aggregated, self._waiting):
            for basket_id, updates in kept.items():
                gone = [u for u in updates if is_lost(basket_id, u[0])]
                kept[basket_id] = [u for u in updates if u not in gone]
                lost += gone
        self.lost += lost
        return tuple(lost)
