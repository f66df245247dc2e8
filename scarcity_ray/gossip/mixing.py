"""How received vectors move local states: one set of coefficients for all receivers of a round.

Each mixing makes x_i <- x_i + sum_j c_ij (y_j - x_i) out of what client i received, the y_j first clipped to
``plan.receive_norm``, which honest ones exceed with probability below 0.2 %:

- ``average``: the literal mean of the state and the vectors, whatever their noise and length.
- ``noise_aware``: c_ij = w / K with the weight of `GossipPlan.mixing_weight`, for the spread that released
  vectors show (`gossip.spread`) and what Layer 1 has to gain (`gossip.excess`; where clients train
  on from their own states, each of them gains as a rule does that picks one row: kappa = 1).
- ``clipped_gossip``: ClippedGossip (He, Karimireddy, Jaggi 2022), x_i + (w / K) sum_j clip(y_j - x_i, tau_i).
  Their tau_i^2 = (1 / delta) sum over honest j of W_ij |x_i - x_j|^2 takes the K - b shortest steps for the
  honest ones: tau_i^2 = (1 / b) of the sum of their squares. A liar moves a client by w tau_i / K at most.
- ``nearest_neighbors``: nearest-neighbour averaging (Farhadkhani et al. 2023): the b vectors furthest from
  the client's own state are left out, and the rest is a noise-aware mean.

b is how many of K received vectors may be lies: the least number that a random K of n - 1 peers with f liars
exceed with probability at most `EXCEED`. The last two weigh as ``noise_aware`` does, so that with b = 0 they
are the same, but reckon with colluders who all push one way as far as they are let: a share f / (n - 1) of
all steps of squared length r (2 S + N), with r = max(1, (K - b) / b) when clipped and (K / (K - b))^2 among
nearest neighbours, shifts the mean of all states by w^2 B, B = (f / (n - 1))^2 r (2 S + N). And a vector
further from the client's state than `IMPLAUSIBLE` times what released vectors show to be usual counts not at
all, so that whoever lies grossly is not even heard.

Steps are taken from the client's own state as it would be released (clipped to ``plan.clip_norm``), so that a
clip norm below the states' own length does not pull everybody to the origin.

Guarantees:
    - Without noise and liars the mean of all states is kept, if everybody receives as often as it is heard.
    - A liar moves a clipped state by no more than its share of the radius.
    - The b vectors furthest away do not count in nearest-neighbour averaging.
    - A grossly implausible vector moves nobody.
    - What is received and not noised can be trusted fully: without noise w = K / (K + 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import Layer1Config
from scarcity_ray.gossip.excess import excess_error
from scarcity_ray.gossip.neighbour_sums import Received, Scales
from scarcity_ray.gossip.spread import Spread
from scarcity_ray.plan import GossipPlan
from scarcity_ray.robust.arrays.blocks import Rows

EXCEED = 0.1
"""Probability that a client receives more lies than it is ready for."""

IMPLAUSIBLE = 2.0
"""Distance to a received vector, over the usual one, from which the robust mixings ignore it."""


Coefficients = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scene:
    """What a mixing may look at.

    Attributes:
        states: n float32 rows (d,) of those who received something.
        state_scales: (n,) factors that clip them to ``plan.clip_norm``.
        received: What they received.
        vector_scales: (m,) factors that clip the vectors to ``plan.receive_norm``.
        spread: What the round's released vectors show.
        plan: Noise scale, clip norms and Layer 1's rule.
        num_members: Members of the basket, which f is a fraction of.
        num_rows: States that Layer 1 would see.
    """

    states: Rows
    state_scales: Scales
    received: Received
    vector_scales: Scales
    spread: Spread
    plan: GossipPlan
    num_members: int
    num_rows: int

    @property
    def num_byzantine(self) -> int:
        """The f of a basket of this size."""
        return self.plan.num_byzantine(self.num_members)

    def weights(self, counts: NDArray[np.intp], reach: NDArray[np.float64] | None = None) -> Coefficients:
        """The noise-aware weight towards the mean of so many vectors, for each of `counts`.

        Args:
            counts: (n,) K.
            reach: (n,) r of the module's B; None where nobody lies.
        """
        rows, plan, spread = max(self.num_rows, 1), self.plan, self.spread.lower
        excess = 1.0
        if not plan.own_states:
            excess = excess_error(plan.layer1, rows, self.num_byzantine, plan.dimension)
        share = self.num_byzantine / max(1, self.num_members - 1)
        per_reach = share**2 * (2.0 * spread + plan.noise_energy)
        pairs = np.stack([counts, np.zeros(len(counts)) if reach is None else per_reach * reach], axis=1)
        kinds, kind = np.unique(pairs, axis=0, return_inverse=True)
        by_kind = [
            plan.mixing_weight(count, spread=spread, excess=excess, num_rows=rows, bias=bias)
            for count, bias in kinds.tolist()
        ]
        return np.array(by_kind, np.float64)[kind.reshape(-1)]

    def lies(self) -> NDArray[np.intp]:
        """(n,) b for each receiver."""
        counts = self.received.counts
        kinds, kind = np.unique(counts, return_inverse=True)
        by_kind = [tolerated_lies(self.num_members - 1, self.num_byzantine, k) for k in kinds.tolist()]
        return np.array(by_kind, np.intp)[kind]

    def distances(self) -> NDArray[np.float64]:
        """(n, K) squared distances of the clipped states to the clipped vectors, in units of clip_norm^2."""
        unit = self.plan.clip_norm
        return self.received.distances(self.states, self.state_scales / unit, self.vector_scales / unit)

    def plausible(self, squared: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(n, K): which of these `distances` honest clients may have."""
        usual = self.spread.typical / self.plan.clip_norm**2
        plausible: NDArray[np.bool_] = squared <= IMPLAUSIBLE**2 * usual
        return plausible


Mixing = Callable[[Scene], Coefficients]
"""Gives c, (n, K); entries where nothing was received are ignored."""


def noise_aware(scene: Scene) -> Coefficients:
    """Equal shares of the weight that noise and spread allow; see the module."""
    counts = scene.received.counts
    return np.broadcast_to((scene.weights(counts) / counts)[:, np.newaxis], scene.received.index.shape)


def clipped_gossip(scene: Scene) -> Coefficients:
    """As `noise_aware`, with each step clipped to tau_i; see the module.

    Where all that a client received may be lies (b = K, so K is 1 or f large), tau is the distance that the
    round's released vectors suggest for honest clients.
    """
    counts, lies = scene.received.counts, scene.lies()
    if not lies.any():
        return noise_aware(scene)
    reach = np.where(lies > 0, np.maximum(1.0, (counts - lies) / np.maximum(lies, 1)), 0.0)
    shares = (scene.weights(counts, reach) / counts)[:, np.newaxis]
    if not shares.any():
        return np.zeros(scene.received.index.shape)
    squared = scene.distances()
    nearest = np.arange(squared.shape[1]) < (counts - lies)[:, np.newaxis]
    radius = np.sum(np.sort(squared, axis=1), axis=1, where=nearest) / np.maximum(lies, 1)
    radius[lies == 0] = math.inf
    radius[lies >= counts] = scene.spread.typical / scene.plan.clip_norm**2
    radii = np.broadcast_to(radius[:, np.newaxis], squared.shape)
    factors = np.sqrt(np.divide(radii, squared, out=np.ones(squared.shape), where=squared > radii))
    clipped: Coefficients = np.where(scene.plausible(squared), shares * factors, 0.0)
    return clipped


def nearest_neighbors(scene: Scene) -> Coefficients:
    """Equal shares for all but the b vectors furthest from the client's own state; see the module."""
    counts, lies = scene.received.counts, scene.lies()
    if not lies.any():
        return noise_aware(scene)
    kept = counts - lies
    reach = np.where(lies > 0, (counts / np.maximum(kept, 1)) ** 2, 0.0)
    shares = scene.weights(kept, reach) / np.maximum(kept, 1)
    coefficients = np.zeros(scene.received.index.shape)
    if not shares.any():
        return coefficients
    squared = scene.distances()
    order = np.argsort(squared, axis=1, kind="stable")
    ranked = np.where(np.arange(order.shape[1]) < kept[:, np.newaxis], shares[:, np.newaxis], 0.0)
    np.put_along_axis(coefficients, order, ranked, axis=1)
    coefficients[~scene.plausible(squared)] = 0.0
    return coefficients


def average(scene: Scene) -> Coefficients:
    """1 / (K + 1) for each vector and the state (docs/specification.md#gossip).

    Under a local epsilon of ordinary size this destroys the state: noise of norm sigma sqrt(d) / sqrt(K + 1)
    comes in.
    """
    return np.broadcast_to(1.0 / (scene.received.counts + 1.0)[:, np.newaxis], scene.received.index.shape)


MIXINGS: dict[str, Mixing] = {
    "noise_aware": noise_aware,
    "average": average,
    "clipped_gossip": clipped_gossip,
    "nearest_neighbors": nearest_neighbors,
}
"""By the names of ``GossipConfig.mixing``."""


def mix(name: str, scene: Scene, out: Rows) -> None:
    """Mix what was received into the states.

    Args:
        name: One of `MIXINGS`.
        scene: States and what they received.
        out: n float32 rows for the result; may be ``scene.states``.
    """
    coefficients = np.where(scene.received.present, MIXINGS[name](scene), 0.0)
    vector_scales, state_scales = scene.vector_scales, scene.state_scales
    if name == "average":
        vector_scales, state_scales = np.ones_like(vector_scales), np.ones_like(state_scales)
    own = 1.0 - state_scales * coefficients.sum(axis=1)
    moved = np.flatnonzero(coefficients.any(axis=1)).tolist()
    received = scene.received
    if len(moved) < len(own):
        for row, state in zip(out, scene.states, strict=True):
            if row is not state:
                row[...] = state
        received = Received(received.vectors, received.index[moved], received.counts[moved])
    if len(moved):
        received.combine(
            [scene.states[i] for i in moved],
            own[moved],
            (coefficients * vector_scales[scene.received.index])[moved],
            [out[i] for i in moved],
        )


def default_mixing(layer1: Layer1Config) -> str:
    """``clipped_gossip`` where Layer 1 reckons with Byzantine clients, else ``noise_aware``."""
    fixed = layer1.num_byzantine
    return "clipped_gossip" if (layer1.byzantine_fraction if fixed is None else fixed) else "noise_aware"


def tolerated_lies(num_peers: int, num_byzantine: int, num_received: int) -> int:
    """b: of K random ones of so many peers, f of them liars, more lie with probability at most `EXCEED`.

    >>> tolerated_lies(99, 20, 5), tolerated_lies(12, 2, 3), tolerated_lies(99, 0, 5)
    (2, 1, 0)
    """
    peers = max(num_peers, num_received)
    liars = min(num_byzantine, peers)
    total = math.comb(peers, num_received)
    more, lies = 1.0, -1
    while more > EXCEED:
        lies += 1
        more -= math.comb(liars, lies) * math.comb(peers - liars, num_received - lies) / total
    return min(lies, num_received)


__all__ = [
    "EXCEED",
    "MIXINGS",
    "Scene",
    "average",
    "clipped_gossip",
    "default_mixing",
    "mix",
    "nearest_neighbors",
    "noise_aware",
    "tolerated_lies",
]
