"""Who masks with whom: the complete graph, or the sparse graph of Bell et al. 2020 (SecAgg+).

The graph is a function of the roster (all adverts) alone, so no party chooses it and each can compute it.
On the sparse graph the parties are put into a pseudo-random order and each is joined to the degree/2
before it and after it around the ring (a Harary graph under a random permutation, Bell et al. 2020,
algorithm 2): the neighbours of a party are a uniformly random set of ``degree`` others.
"""

from __future__ import annotations

from collections.abc import Collection

from scarcity_ray.secagg.context import SessionContext
from scarcity_ray.secagg.transcript import digest


class Graph:
    """The neighbourhoods of one roster.

    Guarantees:
        * `neighbourhood_is_mutual_and_of_the_stated_degree`
        * `graph_depends_on_every_advert`
    """

    def __init__(self, context: SessionContext, roster: tuple[str, ...], roster_digest: bytes) -> None:
        """Computes the order; neighbourhoods are read off it when they are asked for.

        Args:
            context: Gives degree and threshold.
            roster: Ids of the parties that advertised, sorted.
            roster_digest: Hash of all their adverts.
        """
        self._least = context.rebuild_threshold
        degree = len(roster) if context.degree is None else context.degree
        self._is_complete = len(roster) <= degree + 1
        self._reach = degree // 2
        self._order = roster
        if not self._is_complete:
            self._order = tuple(sorted(roster, key=lambda party: digest("graph", roster_digest, party)))
        self._place = {party: place for place, party in enumerate(self._order)}

    def neighbourhood(self, party_id: str) -> tuple[str, ...]:
        """The party and its neighbours, sorted: the holders of its shares."""
        return tuple(sorted(self._around(party_id)))

    def present(self, party_id: str, present: Collection[str]) -> tuple[str, ...]:
        """Those of a party's neighbourhood who are in ``present``, sorted."""
        return tuple(sorted(holder for holder in self._around(party_id) if holder in present))

    def is_covered(self, party_id: str, present: Collection[str]) -> bool:
        """Whether enough of a party's neighbourhood is present to rebuild its secrets."""
        return sum(holder in present for holder in self._around(party_id)) >= self._least

    def _around(self, party_id: str) -> tuple[str, ...]:
        if self._is_complete:
            return self._order
        first, size = self._place[party_id] - self._reach, len(self._order)
        return tuple(self._order[place % size] for place in range(first, first + 2 * self._reach + 1))
