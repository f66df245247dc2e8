"""What the parts of a round cost on one core, a unit each, and how to find that out for another machine.

`MEASURED` was fitted to the processor time of whole rounds in one process (LocalRuntime) of 2 to 40 baskets
of 5 to 100 clients and 250 to 1e6 coordinates, on one core of a shared virtual AMD EPYC (2 cores, AES-NI),
with Python 3.11, NumPy 2.4 and the compiled column kernel, in November 2026. Another machine is described by
five short probes: each stands for a group of rates, which are scaled by how long it took against `REFERENCE`.

Guarantees:
    a_machine_like_the_reference_has_the_measured_rates: Scaling by equal probes changes nothing.
    a_slower_probe_makes_only_its_own_rates_greater: No rate belongs to two probes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from scarcity_ray.config import stream
from scarcity_ray.privacy.sampling.noise import SystemNoise
from scarcity_ray.robust import aggregate
from scarcity_ray.secagg import IdentityKeyPair
from scarcity_ray.secagg.masking import MaskTerm, apply_masks

REPEATS = 3
"""Times that each probe runs; the fastest counts."""


@dataclass(frozen=True)
class Rates:
    """Seconds of one core for one unit of work.

    Attributes:
        update: One update: its call, its receipt, its bookkeeping.
        update_element: One entry of an update: checks, digest, copies, clipping.
        release: One client's turn in a gossip round: charge, drift test, messages.
        gossip_element: One entry of a gossiping client's state.
        message_element: One entry of a delivered message.
        noise_sample: One sample of Gaussian noise.
        discrete_sample: One sample of discrete Gaussian noise.
        basket: One basket's Layer 1, its rule aside.
        row_element: One entry of a row in Layer 1: norm, clipping, and being summed once.
        distance_element: One entry of a row that is centred for inner products.
        gram_term: One of the n^2 d multiplications of a Gram matrix.
        mix_term: One of the n^2 d multiplications of a pre-aggregation before a rule on columns.
        sort_term: One of the n d log2(n) steps of selecting in columns.
        party: One basket's part in a secure sum, whatever its neighbours.
        pair: One neighbour of one party: keys, shares, both ways.
        mask_element: One entry of one mask.
        encode_element: One entry of a basket's vector on its way to the ring and into the sum.
        commit: One durable charge and what surrounds it.
    """

    update: float
    update_element: float
    release: float
    gossip_element: float
    message_element: float
    noise_sample: float
    discrete_sample: float
    basket: float
    row_element: float
    distance_element: float
    gram_term: float
    mix_term: float
    sort_term: float
    party: float
    pair: float
    mask_element: float
    encode_element: float
    commit: float


MEASURED = Rates(
    update=35e-6,
    update_element=13e-9,
    release=180e-6,
    gossip_element=2e-9,
    message_element=1e-9,
    noise_sample=18e-9,
    discrete_sample=52e-9,
    basket=0.7e-3,
    row_element=2.6e-9,
    distance_element=1.0e-9,
    gram_term=0.02e-9,
    mix_term=0.06e-9,
    sort_term=0.35e-9,
    party=0.9e-3,
    pair=0.43e-3,
    mask_element=1.0e-9,
    encode_element=6e-9,
    commit=5e-3,
)
"""Of one core of the machine described above."""


@dataclass(frozen=True)
class Probes:
    """Seconds that each probe took: small pieces of the real work."""

    noise: float
    masks: float
    kernels: float
    digests: float
    signatures: float


REFERENCE = Probes(noise=4.9e-3, masks=1.35e-3, kernels=4.1e-3, digests=0.58e-3, signatures=7.0e-3)
"""Of one core of that machine."""

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
    """Run the probes in this process; about a tenth of a second.

    Args:
        clock: Gives seconds of processor time of this process, so that other processes do not count.
    """
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


__all__ = ["MEASURED", "REFERENCE", "Probes", "Rates", "probe", "scaled"]
