"""Who masks with whom: the complete graph, or the sparse graph of SecAgg+ (Bell et al. 2020), and its degree.

The graph is a function of the roster (all adverts) alone, so no party chooses it and each can compute it.
On the sparse graph the parties are put into a pseudo-random order and each is joined to the degree/2
before it and after it around the ring (a Harary graph under a random permutation, Bell et al. 2020,
algorithm 2): the neighbours of a party are a uniformly random set of ``degree`` others.

How many neighbours suffice follows from exact hypergeometric tails. The neighbours of a party are ``degree``
(k) others, drawn without replacement. Of n parties, C collude with a coordinator that deviates at will, and D
others drop at random. A party and its neighbours are a neighbourhood; ``share_threshold`` (t) shares of it
rebuild a secret.

*Privacy.* Let c of an honest party's neighbours be corrupt. If 2t > k + 1 + c then

* not both of its secrets can be rebuilt: each of the k + 1 - c honest holders gives one share of the two;
* no party that released shares counts as dropped anywhere: t of its neighbourhood signed a set of
  survivors with it, each honest one signs one set, so at most k + 1 - t + c shares of its mask key exist;
* so its pair masks with the honest neighbours who released its seed stay on its input, and there are t - c
  of these, itself among them: it is hidden in a sum of t - c or more honest inputs, for any deviation.

So the tail to bound is P[c >= 2t - k - 1], times n honest parties, where c counts C corrupt among as few
others as the threshold admits: the coordinator can leave honest parties out of the roster. It can leave them
out of the session too, so C counts the corrupt among all who are registered (`plan.session`), and with them
the parties that have nothing to hide and so hide nobody.

*Correctness.* A secret cannot be rebuilt if more than k - t neighbours of a dropped party dropped as well:
the tail is P[d >= k - t + 1], times n. A session that fails so aborts, mostly before anything was unmasked.

*Grinding.* The graph is a hash of all adverts. Who speaks last among colluding parties can try many adverts
of its own until the graph suits it; ``grinding_bits`` of tries are allowed for on top of ``privacy_bits``.

Bell, Bonawitz, Gascon, Lepoint, Raykova 2020 (SecAgg+), section 3 and appendix; the bounds here are for the
protocol of this package, with every tail exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from scarcity_ray.errors import UsageError
from scarcity_ray.secagg.context import SessionContext
from scarcity_ray.secagg.transcript import digest

COMPLETE_UP_TO = 64


class Graph:
    """The neighbourhoods of the parties that advertised, whose ids are given sorted.

    Attributes:
        points: The field point at which each party's shares are evaluated: its place in the context, from 1.

    Guarantees:
        neighbourhood_is_mutual_and_of_the_stated_degree
        graph_depends_on_every_advert
    """

    def __init__(self, context: SessionContext, roster: tuple[str, ...], roster_digest: bytes) -> None:
        self._least = context.rebuild_threshold
        degree = len(roster) if context.degree is None else context.degree
        self._is_complete = len(roster) <= degree + 1
        self._reach = degree // 2
        self._order = roster
        if not self._is_complete:
            self._order = tuple(sorted(roster, key=lambda party: digest("graph", roster_digest, party)))
        self._place = {party: place for place, party in enumerate(self._order)}
        self._neighbourhoods: dict[str, tuple[str, ...]] = {}
        self.points = {party.party_id: point for point, party in enumerate(context.parties, start=1)}

    def neighbourhood(self, party_id: str) -> tuple[str, ...]:
        """The party and its neighbours, sorted: the holders of its shares."""
        if self._is_complete:
            return self._order
        known = self._neighbourhoods.get(party_id)
        if known is None:
            first, size = self._place[party_id] - self._reach, len(self._order)
            around = (self._order[place % size] for place in range(first, first + 2 * self._reach + 1))
            known = self._neighbourhoods[party_id] = tuple(sorted(around))
        return known

    def present(self, party_id: str, present: Collection[str]) -> tuple[str, ...]:
        """Those of a party's neighbourhood who are in ``present``, sorted."""
        return tuple(holder for holder in self.neighbourhood(party_id) if holder in present)

    def is_covered(self, party_id: str, present: Collection[str]) -> bool:
        """Whether enough of a party's neighbourhood is present to rebuild its secrets."""
        return sum(holder in present for holder in self.neighbourhood(party_id)) >= self._least

    def uncovered(self, present: Collection[str]) -> frozenset[str]:
        """The parties that are not `is_covered`, all at once: a running count around the ring."""
        here = np.array([party in present for party in self._order], dtype=np.int64)
        if self._is_complete:
            return frozenset() if here.sum() >= self._least else frozenset(self._order)
        ring = np.concatenate([here[-self._reach :], here, here[: self._reach]])
        counted = np.concatenate([[0], np.cumsum(ring)])
        width = 2 * self._reach + 1
        short = counted[width:] - counted[:-width] < self._least
        return frozenset(itertools.compress(self._order, short))


@dataclass(frozen=True, slots=True)
class GraphChoice:
    """The graph's fields of `SessionContext`, and what they promise.

    Attributes:
        degree: Neighbours of each party, or None for the complete graph.
        share_threshold: Shares of a neighbourhood that rebuild a secret, or None for the complete graph.
        least_hidden_among: Least number of honest inputs in any sum that can be learned, its own included,
            except with the failure probability; None on the complete graph, where the threshold says it.
    """

    degree: int | None
    share_threshold: int | None
    least_hidden_among: int | None


def choose_graph(
    num_parties: int,
    threshold: int,
    *,
    corrupt_fraction: float,
    dropout_fraction: float,
    num_corrupt: int | None = None,
    privacy_bits: int = 40,
    correctness_bits: int = 20,
    grinding_bits: int = 40,
) -> GraphChoice:
    """The smallest degree that meets both failure probabilities.

    Args:
        corrupt_fraction: Share of the parties that may collude with the coordinator.
        dropout_fraction: Share of the parties that may drop, at random.
        num_corrupt: How many of the parties may collude, where that is not a share of those in the session
            (whom the coordinator chooses) but of all that are registered; None: the share.
        privacy_bits: Probability at most 2**-privacy_bits that any honest party is less hidden than stated.
        correctness_bits: Probability at most 2**-correctness_bits that those dropouts abort the session.
        grinding_bits: Graphs that colluding parties may try are at most 2**grinding_bits.

    Returns:
        The complete graph for up to 64 parties, and where no smaller degree will do.

    Guarantees:
        tails_are_below_the_stated_probabilities
        degree_grows_slowly_with_the_number_of_parties
    """
    for name, value in (("corrupt_fraction", corrupt_fraction), ("dropout_fraction", dropout_fraction)):
        if not 0.0 <= value < 1.0:
            raise UsageError(f"{name} {value!r} is not in [0, 1)")
    if num_parties <= COMPLETE_UP_TO:
        return GraphChoice(None, None, None)
    others, least_others = num_parties - 1, threshold - 1
    corrupt = math.ceil(corrupt_fraction * num_parties) if num_corrupt is None else num_corrupt
    dropped = math.ceil(dropout_fraction * num_parties)
    for degree in range(2, others - 1, 2):
        bad = least_excess(
            least_others,
            corrupt,
            min(degree, least_others),
            privacy_bits + grinding_bits + _bits(num_parties),
        )
        gone = least_excess(others, dropped, degree, correctness_bits + _bits(num_parties))
        threshold = degree + 1 - gone
        if 2 * threshold - degree - 1 >= max(bad, 1):
            return GraphChoice(degree, threshold, threshold - bad + 1)
    return GraphChoice(None, None, None)


def least_excess(population: int, marked: int, drawn: int, bits: int) -> int:
    """The least x with P[X >= x] <= 2**-bits, in exact integer arithmetic.

    X is hypergeometric: how many `marked` items are among those `drawn` from the `population`.
    """
    marked = min(marked, population)
    total = math.comb(population, drawn)
    tail, x = 0, min(marked, drawn) + 1
    while x > 0:
        heavier = tail + math.comb(marked, x - 1) * math.comb(population - marked, drawn - x + 1)
        if heavier << bits > total:
            return x
        tail, x = heavier, x - 1
    return 0


def _bits(count: int) -> int:
    return (count - 1).bit_length()
