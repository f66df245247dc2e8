"""How long a round takes on one core, by phase: arithmetic on counts of entries, pairs and clients.

The clients' own training is not in it, nor what other machines add: a network, other tenants, Ray's calls
(a basket actor's call takes 1 to 2 ms). Gossip, Layer 1 and the parties' masking run side by side on as many
cores as there are basket actors; what one process does for all (checking receipts, the sum, the noise on the
release, durable charges) does not.

Guarantees:
    seconds_grow_with_every_count: More clients, coordinates, peers or baskets never take less.
    distances_cost_n_squared_d_and_columns_n_d_log_n: In the limit, to the rate's own figure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from scarcity_ray.config import CentralNoise, HierarchicalFederationConfig
from scarcity_ray.forecast.prospects import Forecast
from scarcity_ray.forecast.rates import MEASURED, Rates
from scarcity_ray.plan import session_shape
from scarcity_ray.robust import get_rule
from scarcity_ray.robust.rules.coordinatewise import CoordinatewiseRule


@dataclass(frozen=True)
class RoundSeconds:
    """Seconds of one core in a round in which everybody takes part.

    Attributes:
        updates: From the driver into the baskets.
        gossip: Drift tests, noise, messages and mixing.
        layer1: The rule in every basket.
        secure_sum: Masks, keys and shares of all parties, and unmasking; without masking, the plain sum.
        release: The noise on it, if the aggregator draws it, and the charge.
    """

    updates: float
    gossip: float
    layer1: float
    secure_sum: float
    release: float

    @property
    def on_one_core(self) -> float:
        """All of it."""
        return math.fsum(getattr(self, field.name) for field in fields(self))


def round_seconds(forecast: Forecast, rates: Rates = MEASURED) -> RoundSeconds:
    """The seconds of a round of a federation.

    Args:
        forecast: Its config and the sizes of its baskets.
        rates: Of the machine.
    """
    config, sizes, d = forecast.config, forecast.sizes, forecast.config.vector_dim
    clients = sum(sizes)
    gossips = config.gossip_budget_share > 0 or not config.layer2.enabled
    return RoundSeconds(
        updates=clients * (rates.update + d * rates.update_element) + rates.commit,
        gossip=math.fsum(_gossip(config, size, rates) for size in sizes) + 2 * rates.commit
        if gossips
        else 0.0,
        layer1=math.fsum(layer1_seconds(config, size, rates) for size in sizes),
        secure_sum=_secure_sum(forecast, rates) if config.layer2.enabled else 0.0,
        release=_release(forecast, rates) if config.layer2.enabled else 0.0,
    )


def layer1_seconds(config: HierarchicalFederationConfig, size: int, rates: Rates = MEASURED) -> float:
    """Layer 1 of a basket all of whose members sent: n d for the rows, n^2 d and n d log2(n) by the rule."""
    rule = get_rule(config.layer1.aggregation_method)
    entries = size * config.vector_dim
    by_columns = isinstance(rule, CoordinatewiseRule)
    seconds = rates.basket + entries * rates.row_element
    if rule.needs_distances or config.layer1.pre:
        seconds += entries * (rates.distance_element + size * rates.gram_term)
    if by_columns:
        seconds += entries * math.log2(max(2, size)) * rates.sort_term
    if by_columns and config.layer1.pre:
        seconds += entries * size * rates.mix_term
    return seconds


def _gossip(config: HierarchicalFederationConfig, size: int, rates: Rates) -> float:
    if size < 2:
        return 0.0
    received = min(config.gossip.peers_per_round, size - 1)
    an_entry = rates.noise_sample + rates.gossip_element + received * rates.message_element
    return size * (rates.release + config.vector_dim * an_entry)


def _secure_sum(forecast: Forecast, rates: Rates) -> float:
    layer2, parties, length = forecast.config.layer2, len(forecast.sizes), forecast.release.length
    an_entry = rates.encode_element
    if layer2.noise is CentralNoise.DISTRIBUTED_DISCRETE_GAUSSIAN:
        an_entry += rates.discrete_sample
    seconds = parties * length * an_entry
    if not layer2.use_secure_aggregation or parties < 2:
        return seconds
    degree = session_shape(layer2, parties).degree
    neighbours = parties - 1 if degree is None else degree
    masks = parties * (neighbours + 1) + parties
    return (
        seconds
        + parties * (rates.party + neighbours * rates.pair)
        + masks * length * rates.mask_element * forecast.release.ring_bits / 32
    )


def _release(forecast: Forecast, rates: Rates) -> float:
    noise = forecast.config.layer2.noise
    if noise is CentralNoise.DISTRIBUTED_DISCRETE_GAUSSIAN or math.isinf(forecast.release.mu):
        return rates.commit
    sample = rates.noise_sample if noise is CentralNoise.GAUSSIAN else rates.discrete_sample
    return rates.commit + forecast.release.length * sample


__all__ = ["RoundSeconds", "layer1_seconds", "round_seconds"]
