"""How many baskets a session of secure aggregation needs, and how many honest ones any of its sums holds.

R baskets are registered (`secagg.roster`), and c of them may collude with the global aggregator: the assumed
share of *R*, rounded up. The aggregator invites n of them, so it may invite all of the c whatever n is;
nothing is counted by the share of n. It cannot invite whom the roster does not name.

With threshold t(n) a sum holds t parties or more. On the complete graph an aggregator that also deviates from
the protocol learns at most one sum of an attempt if 2t > n + c (`secagg.context`). On a sparse graph fewer
parties are certain to be in it, except with probability 2^-40 (`secagg.graph`).

Only baskets of weight above 0 count: one without a fresh aggregate hides nobody, though it takes part and
adds its share of noise. Let z of the n parties be such. A basket unmasks no sum with fewer than L of weight,

    L = max(c + 2, min_baskets, t - z),

so that every sum that is learned holds two honest aggregates or more, even if all c corrupt baskets call
themselves fresh and send zeros. L - c honest shares of noise are counted on. On the sparse graph the z are
counted with the corrupt among the neighbours that a party hides among.

*Small federations.* Where even a session of all R has fewer than two honest baskets for certain (R < c + 2,
by default two baskets), this promise cannot be kept: one corrupt basket of two subtracts its own part.
Masking then protects only against an aggregator that colludes with nobody, a sum needs two baskets of weight,
and noise in shares counts on one share, which carries the whole noise. `masking_warning` says so.

A party that the operator has not signed for yet (the halves of a split, `secagg.roster`) is counted as
corrupt.

Guarantees:
    no_more_honest_parties_are_counted_than_any_sum_must_hold
    the_corrupt_are_counted_of_all_that_are_registered: Whoever is invited.
    a_session_in_which_none_is_certain_is_refused: Before it begins, naming the remedy.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from scarcity_ray.config import CentralNoise, Layer2Config
from scarcity_ray.errors import ConfigError
from scarcity_ray.secagg import choose_graph, colluders_tolerated, threshold_for
from scarcity_ray.secagg.graph import COMPLETE_UP_TO, GraphChoice

HIDDEN_AMONG = 2
"""Honest aggregates that every sum must hold, the one that is hidden included."""


@dataclass(frozen=True)
class SessionShape:
    """The numbers that follow from the size of a session.

    Attributes:
        threshold: Parties without which it aborts.
        degree: Neighbours of each party; None: all others.
        share_threshold: Shares of a neighbourhood that rebuild a secret; None on the complete graph.
        num_honest: Honest parties of weight that are certain to be in any sum that is learned; 0 if that is
            not certain of any.
        num_corrupt: Parties that may collude with the aggregator.
        least_weighted: Parties of weight above 0 without which nothing is unmasked.
        hides: Whether the federation is large enough to hide a basket from an aggregator with colluders.
    """

    threshold: int
    degree: int | None
    share_threshold: int | None
    num_honest: int
    num_corrupt: int
    least_weighted: int
    hides: bool

    def refusal(self, num_weighted: int) -> str:
        """Why no basket may join such a session, or nothing.

        Args:
            num_weighted: Parties of weight above 0.
        """
        if self.hides and self.num_honest < HIDDEN_AMONG:
            return (
                f"a session that counts on {self.num_honest} honest baskets hides nobody: "
                f"{self.num_corrupt} of those registered may be corrupt, so more must take part"
            )
        return self.too_few(num_weighted)

    def too_few(self, num_weighted: int) -> str:
        """Why so many parties of weight do not suffice, or nothing."""
        if num_weighted >= self.least_weighted:
            return ""
        why = (
            f" while {self.num_corrupt} of those registered may be corrupt (layer2.assumed_corrupt_fraction)"
        )
        shown = why if self.hides and self.num_corrupt else ""
        return f"{num_weighted} fresh baskets; a release needs {self.least_weighted}{shown}"


def session_shape(
    layer2: Layer2Config, num_parties: int, *, registered: int | None = None, idle: int = 0, unsigned: int = 0
) -> SessionShape:
    """The shape of a session.

    Args:
        num_parties: Baskets that take part.
        registered: Baskets of the federation; those that take part if None.
        idle: Those of the parties that have weight 0.
        unsigned: Those of the parties that are not on the roster, but endorsed by one that is.

    >>> session_shape(Layer2Config(), 10).num_honest
    6
    >>> session_shape(Layer2Config(), 5, registered=20).num_honest
    2
    """
    if num_parties < 2:
        return SessionShape(layer2.min_baskets, None, None, num_parties, 0, layer2.min_baskets, False)
    registered = num_parties if registered is None else registered
    corrupt = corrupt_of(layer2, registered)
    everybody = max(registered, 2)
    most = _honest(layer2, everybody, corrupt, 0, threshold_for(everybody, layer2.threshold_fraction))
    hides = most >= HIDDEN_AMONG
    corrupt += unsigned
    threshold = threshold_for(num_parties, layer2.threshold_fraction)
    graph = _graph(num_parties, threshold, corrupt + idle, layer2.assumed_dropout_fraction)
    least = max(layer2.min_baskets, corrupt + HIDDEN_AMONG if hides else 2)
    certain = min(max(least, threshold - idle), num_parties - idle)
    honest = _honest(layer2, num_parties, corrupt, idle, certain)
    return SessionShape(threshold, graph.degree, graph.share_threshold, max(0, honest), corrupt, least, hides)


def corrupt_of(layer2: Layer2Config, registered: int) -> int:
    """How many of the registered baskets may collude with the global aggregator."""
    return math.ceil(layer2.assumed_corrupt_fraction * registered)


def honest_shares(
    layer2: Layer2Config, num_parties: int, *, registered: int | None = None, idle: int = 0, unsigned: int = 0
) -> int:
    """Shares of noise that can be counted on in a session; its arguments are those of `session_shape`.

    Raises:
        ConfigError: If not one can.
    """
    shape = session_shape(layer2, num_parties, registered=registered, idle=idle, unsigned=unsigned)
    if shape.num_honest < 1:
        raise ConfigError(
            "layer2.assumed_corrupt_fraction",
            layer2.assumed_corrupt_fraction,
            f"a share that leaves an honest basket in every sum of {num_parties} baskets"
            f"{'' if registered in (None, num_parties) else f' of {registered}'}: noise in shares "
            f"counts on it; lower it, or raise layer2.threshold_fraction = {layer2.threshold_fraction:.4g}",
        )
    return shape.num_honest


def fewest_parties(layer2: Layer2Config, registered: int) -> int:
    """Baskets, all of them fresh, with which a session of a federation may begin, and with any more."""

    def is_enough(count: int) -> bool:
        shape = session_shape(layer2, count, registered=registered)
        if shape.refusal(count):
            return False
        return layer2.noise is not CentralNoise.DISTRIBUTED_DISCRETE_GAUSSIAN or shape.num_honest >= 1

    # Not by bisection: some sizes in between are refused.
    enough = registered
    while enough > 2 and is_enough(enough - 1):
        enough -= 1
    return enough


def hides_from(layer2: Layer2Config) -> int | None:
    """From how many registered baskets on masks hide one from an aggregator that colludes with the corrupt.

    2 without secure aggregation, which promises nothing; None if 64 are too few.
    """
    if not (layer2.enabled and layer2.use_secure_aggregation):
        return 2
    for registered in range(COMPLETE_UP_TO, 1, -1):
        if not session_shape(layer2, registered).hides:
            return registered + 1 if registered < COMPLETE_UP_TO else None
    return 2


def masking_warning(layer2: Layer2Config, baskets: int | None = None) -> str | None:
    """A warning if a federation has too few baskets for masks to hide one from colluders.

    Args:
        baskets: Registered ones; None before that is known.

    Returns:
        A sentence for the config's owner; None where there is nothing to say.
    """
    if not (layer2.enabled and layer2.use_secure_aggregation) or (baskets is not None and baskets < 1):
        return None
    enough = hides_from(layer2)
    fraction = f"layer2.assumed_corrupt_fraction = {layer2.assumed_corrupt_fraction:g}"
    shares = layer2.noise is CentralNoise.DISTRIBUTED_DISCRETE_GAUSSIAN
    only = "masking protects only against a global aggregator that colludes with no basket" + (
        ", and each share of noise carries the whole noise" if shares else ""
    )
    too_low = f"layer2.threshold_fraction = {layer2.threshold_fraction:.4g} is too low to count on more"
    if baskets is None:
        if enough is None:
            return f"{only} ({fraction}): {too_low}"
        if enough <= layer2.min_baskets:
            return None
        return f"until {enough} baskets are registered, {only} ({fraction})"
    if session_shape(layer2, max(baskets, 2)).hides:
        return None
    return (
        f"with {baskets} baskets, of which {corrupt_of(layer2, baskets)} may be corrupt ({fraction}), {only}"
        + (
            f"; from {enough} baskets on it protects against one that colludes with the corrupt, too"
            if enough
            else f"; {too_low}"
        )
    )


def _honest(layer2: Layer2Config, num_parties: int, corrupt: int, idle: int, least: int) -> int:
    """Honest parties of weight in any sum that holds `least` of weight; below 1: none is certain."""
    threshold = threshold_for(num_parties, layer2.threshold_fraction)
    graph = _graph(num_parties, threshold, corrupt + idle, layer2.assumed_dropout_fraction)
    if graph.least_hidden_among is not None:
        return min(least - corrupt, graph.least_hidden_among)
    if corrupt > colluders_tolerated(num_parties, threshold):
        return 0
    return least - corrupt


@functools.lru_cache(maxsize=256)
def _graph(num_parties: int, threshold: int, corrupt: int, dropout_fraction: float) -> GraphChoice:
    return choose_graph(
        num_parties, threshold, corrupt_fraction=0.0, num_corrupt=corrupt, dropout_fraction=dropout_fraction
    )
