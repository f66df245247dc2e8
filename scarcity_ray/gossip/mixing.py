"""How received vectors move local states: one set of coefficients for all receivers of a round.

Each mixing makes x_i <- x_i + sum_j c_ij (y_j - x_i) out of what client i received, the y_j first clipped to
``plan.receive_norm``, which honest ones exceed with probability below 0.2 %:

- ``average``: the literal mean of the state and the vectors, whatever their noise and length.
- ``noise_aware``: c_ij = w / K with the weight of `GossipPlan.mixing_weight`, for the spread that released
  vectors show (`estimate_spread`) and what Layer 1 has to gain (`excess_error`; where clients train
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
nearest neighbours, shifts the mean of all states by w^2 B, B = (f / (n - 1))^2 r (2 S + N). A vector further
from the client's state than `IMPLAUSIBLE` times the typical distance is ignored.

Steps are taken from the client's own state clipped to ``plan.clip_norm``, as it would be released, so that a
clip norm below the states' norms does not pull all states to the origin.

Guarantees:
    without_noise_and_liars_the_mean_of_all_states_is_kept: If everybody receives as often as it is heard.
    A liar moves a clipped state by no more than its share of the radius.
    the_b_vectors_furthest_away_do_not_count_in_nearest_neighbour_averaging
    a_grossly_implausible_vector_moves_nobody
    What is received and not noised can be trusted fully: without noise w = K / (K + 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import AggregationMethod, Layer1Config
from scarcity_ray.gossip.neighbour_sums import Received, Scales, column_steps, scaled_block
from scarcity_ray.plan import GossipPlan
from scarcity_ray.robust.arrays.blocks import Rows
from scarcity_ray.robust.arrays.threads import workspace

EXCEED = 0.1
"""Probability that a client receives more lies than b."""

IMPLAUSIBLE = 2.0
"""Distance to a received vector, over the usual one, from which the robust mixings ignore it."""

MARGIN = 3.0
"""Standard errors that the estimate is lowered by."""

DEPENDENCE = 1.5
"""Standard error of the median of m halved squared differences of pure noise over N sqrt(2 / (d m)), at most;
neighbours share vectors (simulated: 1 for m = 1, up to 1.46 else)."""

_NORMAL = NormalDist()
Coefficients = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """How far the states are apart, as estimated from released vectors.

    Attributes:
        lower: Lower bound of the states' spread S, a squared norm; 0 if unknown.
        typical: A squared distance of two honest states, one of them noised, 2 S + N, as released vectors
            suggest it; 0 with fewer than two of them.
    """

    lower: float
    typical: float


@dataclass(frozen=True, eq=False)
class MixingInput:
    """What a mixing may look at.

    Attributes:
        states: n float32 rows (d,) of the clients that received something.
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


Mixing = Callable[[MixingInput], Coefficients]
"""Gives c, (n, K); entries where nothing was received are ignored."""


def noise_aware(given: MixingInput) -> Coefficients:
    """Equal shares of the weight that noise and spread allow; see the module."""
    counts = given.received.counts
    return np.broadcast_to((given.weights(counts) / counts)[:, np.newaxis], given.received.index.shape)


def clipped_gossip(given: MixingInput) -> Coefficients:
    """As `noise_aware`, with each step clipped to tau_i; see the module.

    Where all that a client received may be lies (b = K, so K is 1 or f large), tau is the distance that the
    round's released vectors suggest for honest clients.
    """
    counts, lies = given.received.counts, given.lies()
    if not lies.any():
        return noise_aware(given)
    reach = np.where(lies > 0, np.maximum(1.0, (counts - lies) / np.maximum(lies, 1)), 0.0)
    shares = (given.weights(counts, reach) / counts)[:, np.newaxis]
    if not shares.any():
        return np.zeros(given.received.index.shape)
    squared = given.distances()
    nearest = np.arange(squared.shape[1]) < (counts - lies)[:, np.newaxis]
    radius = np.sum(np.sort(squared, axis=1), axis=1, where=nearest) / np.maximum(lies, 1)
    radius[lies == 0] = math.inf
    radius[lies >= counts] = given.spread.typical / given.plan.clip_norm**2
    radii = np.broadcast_to(radius[:, np.newaxis], squared.shape)
    factors = np.sqrt(np.divide(radii, squared, out=np.ones(squared.shape), where=squared > radii))
    clipped: Coefficients = np.where(given.plausible(squared), shares * factors, 0.0)
    return clipped


def nearest_neighbors(given: MixingInput) -> Coefficients:
    """Equal shares for all but the b vectors furthest from the client's own state; see the module."""
    counts, lies = given.received.counts, given.lies()
    if not lies.any():
        return noise_aware(given)
    kept = counts - lies
    reach = np.where(lies > 0, (counts / np.maximum(kept, 1)) ** 2, 0.0)
    shares = given.weights(kept, reach) / np.maximum(kept, 1)
    coefficients = np.zeros(given.received.index.shape)
    if not shares.any():
        return coefficients
    squared = given.distances()
    order = np.argsort(squared, axis=1, kind="stable")
    ranked = np.where(np.arange(order.shape[1]) < kept[:, np.newaxis], shares[:, np.newaxis], 0.0)
    np.put_along_axis(coefficients, order, ranked, axis=1)
    coefficients[~given.plausible(squared)] = 0.0
    return coefficients


def average(given: MixingInput) -> Coefficients:
    """1 / (K + 1) for each vector and the state (docs/specification.md#gossip).

    Under a local epsilon of ordinary size this destroys the state: noise of norm sigma sqrt(d) / sqrt(K + 1)
    comes in.
    """
    return np.broadcast_to(1.0 / (given.received.counts + 1.0)[:, np.newaxis], given.received.index.shape)


MIXINGS: dict[str, Mixing] = {
    "noise_aware": noise_aware,
    "average": average,
    "clipped_gossip": clipped_gossip,
    "nearest_neighbors": nearest_neighbors,
}
"""By the names of ``GossipConfig.mixing``."""


def mix(name: str, given: MixingInput, out: Rows) -> None:
    """Mix what was received into the states.

    Args:
        name: One of `MIXINGS`.
        out: n float32 rows for the result; may be ``given.states``.
    """
    coefficients = np.where(given.received.present, MIXINGS[name](given), 0.0)
    vector_scales, state_scales = given.vector_scales, given.state_scales
    if name == "average":
        vector_scales, state_scales = np.ones_like(vector_scales), np.ones_like(state_scales)
    own = 1.0 - state_scales * coefficients.sum(axis=1)
    moved = np.flatnonzero(coefficients.any(axis=1)).tolist()
    received = given.received
    if len(moved) < len(own):
        for row, state in zip(out, given.states, strict=True):
            if row is not state:
                row[...] = state
        received = Received(received.vectors, received.index[moved], received.counts[moved])
    if len(moved):
        received.combine(
            [given.states[i] for i in moved],
            own[moved],
            (coefficients * vector_scales[given.received.index])[moved],
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


def estimate_spread(
    vectors: Sequence[NDArray[np.float32]], scales: Scales, plan: GossipPlan, num_byzantine: int
) -> Spread:
    """How far apart the clients' states are, judged from nothing but what they released.

    Released vectors are y_i = x_i + sigma z_i. Half the squared difference of two of them has the expectation
    S + N, where S is the states' spread (the trace of their covariance) and N = sigma^2 d is known: the
    moment estimate with known within-variance of DerSimonian and Laird (1986), from successive differences
    (von Neumann 1941), which need one pass and of which one liar spoils two. Everything here is a function of
    released vectors, so it is post-processing and costs no budget.

    `GossipPlan.mixing_weight` does harm once S is overestimated by more than a factor of 2, so the estimate
    is a lower bound: a quantile of the differences that f liars cannot lift above the honest median, less
    `MARGIN` standard errors of the noise. Where noise hides the spread, S is 0 and no state moves, which
    costs at most about K S / N of the error.

    Guarantees:
        without_spread_the_lower_bound_is_0_but_for_one_time_in_a_hundred: Whatever f clients release.
        The lower bound is at most that of the clip norm.
        Nothing but released vectors enters.

    Args:
        vectors: m float32 vectors of length d, one a sender, in an order that their values did not choose.
        scales: (m,) factors that clip them to ``plan.receive_norm``.
        num_byzantine: f, how many of the senders may lie.
    """
    halves = np.sort(successive_differences(vectors, scales, plan.clip_norm)) / 2.0
    honest = len(halves) - 2 * num_byzantine
    if honest < 1:
        return Spread(0.0, 0.0)
    unit, dimension = plan.clip_norm**2, plan.dimension
    noise = plan.noise_energy / unit
    median = float(halves[(honest - 1) // 2] + halves[honest // 2]) / 2.0
    error = DEPENDENCE * max(noise, median) * math.sqrt(2.0 / (dimension * honest)) if noise else 0.0
    # Median of a chi-squared variable over its mean (Wilson and Hilferty 1931).
    chi_square_median = (1.0 - 2.0 / (9.0 * dimension)) ** 3
    lower = median - noise * chi_square_median - MARGIN * error
    return Spread(unit * min(max(0.0, lower), 1.0), unit * max(0.0, 2.0 * median - noise))


def successive_differences(
    vectors: Sequence[NDArray[np.float32]], scales: Scales, unit: float
) -> NDArray[np.float64]:
    """Squared distances of neighbours in the sequence, the last and the first among them, in unit^2.

    Returns:
        (m,) float64; (1,) for two vectors and (0,) for fewer.
    """
    count = len(vectors)
    if count < 2:
        return np.zeros(0)
    squared = np.zeros(count)
    for columns in column_steps(len(vectors[0]), 4 * count):
        block = scaled_block("vectors", vectors, columns, scales / unit)
        for first, second in ((slice(1, None), slice(None, -1)), (slice(0, 1), slice(-1, None))):
            ahead = block[first]
            difference = workspace("difference", ahead.shape, np.float32)
            np.subtract(ahead, block[second], out=difference)
            squared[first] += np.einsum("ij,ij->i", difference, difference)
    return squared if count > 2 else squared[:1]


def excess_error(layer1: Layer1Config, num_rows: int, num_byzantine: int, dimension: int) -> float:
    """kappa: E |rule - mean|^2 / E |x_i - m|^2 for n independent Gaussian rows around m.

    It is the error that gossip could save. Proven worst cases (`robust.tolerance`) are far above the error
    without an attack, and weights made for them would let in too much noise. A kappa that is too small only
    loses gain, so this is a lower bound of the rule's error without an attack:

    - Mean: 0.
    - Krum, Multi-Krum: a mean of k of n rows, (1/k - 1/n) for any k of them; it takes central ones, whose
      squared distances are the lowest of n chi-squared values (Wilson and Hilferty 1931).
    - Trimmed mean and median: the mean is complete and sufficient, so (Basu 1955) the difference has the
      rule's variance less the mean's; the trimmed mean's is Tukey's (1960), and a median keeps one or two.
    - Bulyan: at least as much as a trimmed mean that drops the same 2f of the selected values.

    Guarantees:
        no_rule_loses_less_on_gaussian_rows_than_its_excess_says
        A rule that is not listed has excess 0.

    >>> mean = Layer1Config(aggregation_method=AggregationMethod.MEAN)
    >>> excess_error(mean, 10, 2, 64)
    0.0
    """
    method, n = layer1.aggregation_method, max(1, num_rows)
    if method is AggregationMethod.KRUM:
        return _chosen(1, n, dimension)
    if method is AggregationMethod.MULTI_KRUM:
        chosen = n - num_byzantine - 2 if layer1.num_selected is None else layer1.num_selected
        return _chosen(min(n, max(1, chosen)), n, dimension)
    if method in (AggregationMethod.TRIMMED_MEAN, AggregationMethod.BULYAN):
        return (trimmed_variance(min(num_byzantine / n, 0.5)) - 1.0) / n
    if method is AggregationMethod.MEDIAN:
        return (trimmed_variance((n - 1) // 2 / n) - 1.0) / n
    return 0.0


def _chosen(k: int, n: int, dimension: int) -> float:
    if k >= n:
        return 0.0
    below = n * _NORMAL.pdf(_NORMAL.inv_cdf(k / n)) / k
    scale = 2.0 / (9.0 * dimension)
    return (1.0 / k - 1.0 / n) * max(0.0, 1.0 - scale - below * math.sqrt(scale)) ** 3


def trimmed_variance(share: float) -> float:
    """Variance, times n, of the trimmed mean of n standard normal values, for large n (Tukey 1960).

    Args:
        share: Dropped at each end, from 0 (the mean) to 0.5 (the median).

    >>> trimmed_variance(0.0)
    1.0
    """
    if share <= 0.0:
        return 1.0
    kept = 1.0 - 2.0 * share
    if kept < 1e-3:
        return math.pi / 2.0
    q = -_NORMAL.inv_cdf(share)
    return (kept - 2.0 * q * _NORMAL.pdf(q) + 2.0 * share * q * q) / kept**2
