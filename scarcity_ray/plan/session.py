"""Who must stay in a session of secure aggregation, and how many honest baskets any sum of it holds.

With n parties, c of them colluding with the global aggregator and threshold t, a sum holds t parties or more,
so at least t - c honest ones. Against an aggregator that also deviates from the protocol this needs
2t > n + c on the complete graph (`secagg.context`); on a sparse graph fewer are certain, except with
probability 2^-40, and `secagg.sparse` says how many. Noise in shares is scaled to the lesser of these. Fewer
honest survivors than that are never unmasked: below the threshold the session aborts.

Guarantees:
    no_more_honest_parties_are_counted_than_any_sum_must_hold
    a_session_in_which_none_is_certain_is_refused: Before it begins, naming the remedy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scarcity_ray.config import Layer2Config
from scarcity_ray.errors import ConfigError
from scarcity_ray.secagg import choose_graph, colluders_tolerated, threshold_for


@dataclass(frozen=True)
class SessionShape:
    """What the size of a session settles.

    Attributes:
        threshold: Parties without which it aborts.
        degree: Neighbours of each party; None: all others.
        share_threshold: Shares of a neighbourhood that rebuild a secret; None on the complete graph.
        num_honest: Honest parties that are certain to be in any sum that is learned; 0 if that is not certain
            of any.
    """

    threshold: int
    degree: int | None
    share_threshold: int | None
    num_honest: int


def session_shape(layer2: Layer2Config, num_parties: int) -> SessionShape:
    """The shape of a session of `num_parties`.

    The corrupt parties are counted as `choose_graph` counts them: the share, rounded up.

    >>> session_shape(Layer2Config(), 10)
    SessionShape(threshold=7, degree=None, share_threshold=None, num_honest=6)
    """
    if num_parties < 2:
        return SessionShape(layer2.min_baskets, None, None, num_parties)
    threshold = threshold_for(num_parties, layer2.threshold_fraction)
    graph = choose_graph(
        num_parties,
        threshold,
        corrupt_fraction=layer2.assumed_corrupt_fraction,
        dropout_fraction=layer2.assumed_dropout_fraction,
    )
    corrupt = math.ceil(layer2.assumed_corrupt_fraction * num_parties)
    honest = threshold - corrupt
    if graph.least_hidden_among is not None:
        honest = min(honest, graph.least_hidden_among)
    elif corrupt > colluders_tolerated(num_parties, threshold):
        honest = 0
    return SessionShape(threshold, graph.degree, graph.share_threshold, honest)


def honest_shares(layer2: Layer2Config, num_parties: int) -> int:
    """Shares of noise that can be counted on in a session of `num_parties`.

    Raises:
        ConfigError: If not one can.
    """
    honest = session_shape(layer2, num_parties).num_honest
    if honest < 1:
        raise ConfigError(
            "layer2.assumed_corrupt_fraction",
            layer2.assumed_corrupt_fraction,
            f"a share that leaves an honest basket in every sum of {num_parties} baskets: noise in shares "
            f"counts on it; lower it, or raise layer2.threshold_fraction = {layer2.threshold_fraction:.4g}",
        )
    return honest
