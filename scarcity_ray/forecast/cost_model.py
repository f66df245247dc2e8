"""The cost model: seconds of a round on one core, by phase, as counts (entries, pairs, clients) times rates.

It leaves out the clients' own training, the network, other tenants, and Ray's calls (a basket actor's call
takes 1 to 2 ms). Gossip, Layer 1 and the parties' masking run in parallel on as many cores as there are
basket actors; checking receipts, the sum, the noise on the release and durable charges do not.

`MEASURED` was fitted to the processor time of whole rounds in one process (LocalRuntime) of 2 to 40 baskets
of 5 to 100 clients and 250 to 1e6 coordinates, on one core of a shared virtual AMD EPYC (2 cores, AES-NI),
with Python 3.11, NumPy 2.4 and the compiled column kernel, in November 2026. Another machine is described by
five short probes: each stands for a group of rates, which are scaled by how long it took against `REFERENCE`.

Guarantees:
    seconds_grow_with_every_count: More clients, coordinates, peers or baskets never take less.
    distances_cost_n_squared_d_and_columns_n_d_log_n: In the limit, to the rate's own figure.
    a_machine_like_the_reference_has_the_measured_rates: Scaling by equal probes changes nothing.
    a_slower_probe_makes_only_its_own_rates_greater: No rate belongs to two probes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from scarcity_ray.config import CentralNoise, HierarchicalFederationConfig, stream
from scarcity_ray.forecast.feasibility import Forecast
from scarcity_ray.plan import session_shape
from scarcity_ray.privacy.sampling.noise import SystemNoise
from scarcity_ray.robust import aggregate, configured_rule
from scarcity_ray.robust.rules.coordinatewise import CoordinatewiseRule
from scarcity_ray.secagg import IdentityKeyPair
from scarcity_ray.secagg.masking import MaskTerm, apply_masks

REPEATS = 3
"""Times that each probe runs; the fastest counts."""


@dataclass(frozen=True)
class Rates:
    """Seconds of one core for one unit of work, as measured on the machine above."""

    update: float = 35e-6
    """One update: its call, its receipt, its bookkeeping."""
    update_element: float = 13e-9
    """One entry of an update: checks, digest, copies, clipping."""
    release: float = 180e-6
    """One client's turn in a gossip round: charge, drift test, messages."""
    gossip_element: float = 2e-9
    """One entry of a gossiping client's state."""
    message_element: float = 1e-9
    """One entry of a delivered message."""
    noise_sample: float = 18e-9
    """One sample of Gaussian noise."""
    discrete_sample: float = 52e-9
    """One sample of discrete Gaussian noise."""
    basket: float = 0.7e-3
    """One basket's Layer 1, its rule aside."""
    row_element: float = 2.6e-9
    """One entry of a row in Layer 1: norm, clipping, and being summed once."""
    distance_element: float = 1.0e-9
    """One entry of a row that is centred for inner products."""
    gram_term: float = 0.02e-9
    """One of the n^2 d multiplications of a Gram matrix."""
    mix_term: float = 0.06e-9
    """One of the n^2 d multiplications of a pre-aggregation before a rule on columns."""
    sort_term: float = 0.35e-9
    """One of the n d log2(n) steps of selecting in columns."""
    party: float = 0.9e-3
    """One basket's part in a secure sum, whatever its neighbours."""
    pair: float = 0.43e-3
    """One neighbour of one party: keys, shares, both ways."""
    mask_element: float = 1.0e-9
    """One entry of one mask."""
    encode_element: float = 6e-9
    """One entry of a basket's vector on its way to the ring and into the sum."""
    commit: float = 5e-3
    """One durable charge and what surrounds it."""


MEASURED = Rates()


@dataclass(frozen=True)
class Probes:
    """Seconds that each probe took, a small piece of the real work, by default on that machine."""

    noise: float = 4.9e-3
    masks: float = 1.35e-3
    kernels: float = 4.1e-3
    digests: float = 0.58e-3
    signatures: float = 7.0e-3


REFERENCE = Probes()

BELONGS = {
    "noise": ("noise_sample", "discrete_sample"),
    "masks": ("mask_element",),
    "kernels": ("row_element", "distance_element", "gram_term", "mix_term", "sort_term"),
    "digests": ("update_element", "gossip_element", "message_element", "encode_element"),
    "signatures": ("update", "release", "basket", "party", "pair", "commit"),
}
"""Which rates each probe stands for; the last one for all that is Python calls and elliptic curves."""


def scaled(probes: Probes, rates: Rates = MEASURED, reference: Probes = REFERENCE) -> Rates:
    """The rates of a machine on which the probes took as long."""
    changed = {
        rate: getattr(rates, rate) * getattr(probes, probe.name) / getattr(reference, probe.name)
        for probe in fields(Probes)
        for rate in BELONGS[probe.name]
    }
    return replace(rates, **changed)


def probe(clock: Callable[[], float]) -> Probes:
    """Run the probes in this process, by a clock of its processor time; takes about a tenth of a second."""
    entries = 1 << 18
    noise, keys, block = SystemNoise(), IdentityKeyPair.generate(), bytes(4 * entries)
    rows = stream(0, "probe").standard_normal((32, 1 << 15), np.float32)
    masked = np.zeros(entries, np.uint32)
    terms = [MaskTerm(bytes([number]) * 32, add=number % 2 == 0) for number in range(8)]

    def kernels() -> None:
        for rule in ("krum", "trimmed_mean"):
            aggregate(rows, method=rule, num_byzantine=6)

    def signatures() -> None:
        for _ in range(50):
            keys.verify(block[:64], keys.sign(block[:64]))

    return Probes(
        noise=_fastest(clock, lambda: noise.standard_normal(entries, "probe")),
        masks=_fastest(clock, lambda: apply_masks(masked, terms)),
        kernels=_fastest(clock, kernels),
        digests=_fastest(clock, lambda: hashlib.sha256(block).digest()),
        signatures=_fastest(clock, signatures),
    )


def _fastest(clock: Callable[[], float], work: Callable[[], object]) -> float:
    work()
    taken = []
    for _ in range(REPEATS):
        began = clock()
        work()
        taken.append(clock() - began)
    return min(taken)


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
        """The sum of all phases."""
        return math.fsum(getattr(self, field.name) for field in fields(self))


def round_seconds(forecast: Forecast, rates: Rates = MEASURED) -> RoundSeconds:
    """The seconds of a round of the federation that the forecast is of, on a machine with these rates."""
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
    rule = configured_rule(config.layer1)
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
