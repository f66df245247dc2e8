"""Layer 2: a weighted mean of the baskets' aggregates on an integer grid, noised once.

A basket's part is its clipped aggregate times its public weight, rounded to the grid of the ring
(`contribution`). Parts add up in the ring, masked or not, without error. The sum gets noise on the grid and
is divided by the surviving weight (`noised_mean`). The noise, by ``layer2.noise``:

- ``gaussian``: ``rint(sigma z)`` is added to the integers. That rounds the Gaussian mechanism's output, so it
  is post-processing, and leaks no low-order bits (Mironov 2012).
- ``discrete_gaussian``: exact discrete Gaussian noise, which relies on no property of floats (Canonne,
  Kamath, Steinke 2020).
- ``distributed_discrete_gaussian``: each basket adds a share of such noise to its own part (`add_share`), and
  the sum gets none.

Guarantees:
    A contribution never exceeds its weight times the clip norm by more than half a step a coordinate.
    The noise has the scale and the law of the release plan over the survivors.
    the_rings_edge_betrays_nothing: A corrupt basket may put the sum there; the claim stands whatever it adds.
    the_plain_sum_and_the_secure_sum_give_the_same_bytes
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import CentralNoise, HierarchicalFederationConfig, Layer2Config
from scarcity_ray.errors import UsageError
from scarcity_ray.layers.meta_parameters import decode_mean, unclamped_means
from scarcity_ray.layers.models import BasketModel, GlobalMetaModel
from scarcity_ray.plan import FederationPlan, ReleasePlan, make_plan
from scarcity_ray.privacy.sampling.discrete_gaussian import DiscreteGaussian, discrete_gaussian
from scarcity_ray.privacy.sampling.noise import NoiseSource, SystemNoise, rounded_gaussian
from scarcity_ray.robust import clip_vector
from scarcity_ray.secagg.fixed_point import encode, to_signed
from scarcity_ray_client import NoisedMean


def contribution(
    model: BasketModel | None, basket_id: str, release: ReleasePlan, plan: FederationPlan
) -> NDArray[Any]:
    """One basket's part of the sum, in the ring; the zero vector for a basket without a fresh model.

    Returns:
        uint32 or uint64, shape (release.length,).
    """
    vector = np.zeros(release.length)
    plan = plan.at(release.clip_norm)
    if model is not None:
        clipped = clip_vector(model.aggregate, plan.config.layer2.clip_norm)
        vector[: len(clipped)] = clipped
        reported = len(clipped) + len(model.meta)
        vector[len(clipped) : reported] = release.meta_radius * model.meta
        vector[reported:] = release.bit_radius * model.bit
        vector *= release.weights[basket_id]
    return encode(vector, release.scale, release.ring_bits)


def add_share(part: NDArray[Any], release: ReleasePlan, noise: NoiseSource, stream: str) -> NDArray[Any]:
    """A basket's part with its share of the noise, where noise comes in shares; else the part as it is.

    Baskets that join with the zero vector add a share too: the noise scale counts on every honest survivor.

    Args:
        part: uint32 or uint64, shape (release.length,).
        stream: Name of the share, unique to this basket and this attempt at the release.
    """
    if release.share_sigma == 0.0:
        return part
    share = DiscreteGaussian(release.share_sigma).sample(part.size, noise.uniform_words(stream))
    noised: NDArray[Any] = part + share.astype(part.dtype)
    return noised


def noised_mean(
    ring_sum: NDArray[Any],
    release: ReleasePlan,
    survivors: Sequence[str],
    noise: NoiseSource,
    stream: str,
) -> tuple[NDArray[np.float64], float]:
    """The released vector: the sum of the survivors' parts plus noise, over their weight.

    Noise that leaves the ring's signed range comes back at its other end. So the result is a function of the
    parts' true sum plus noise, mod 2^bits, and the claim stands. Else a basket that adds half the ring could
    make one step of that sum a jump across the ring, which no noise hides.

    Args:
        ring_sum: uint32 or uint64, shape (release.length,).
        survivors: Baskets whose parts are in the sum.
        stream: Name of the noise, unique to this release.

    Returns:
        float64, shape (release.length,), and the standard deviation of its noise.
    """
    sigma = release.grid_sigma(survivors)
    total = to_signed(ring_sum)
    if release.noise is CentralNoise.GAUSSIAN:
        total = rounded_gaussian(total, sigma, noise, stream)
    elif release.noise is CentralNoise.DISCRETE_GAUSSIAN:
        total = discrete_gaussian(total, sigma, noise, stream)
    above = 64 - 8 * ring_sum.itemsize
    total <<= above
    total >>= above
    unit = release.scale * release.surviving_weight(survivors)
    return total / unit, sigma / unit


class Layer2Aggregator:
    """Layer 2 in one process, from plain basket models: for tests, notebooks and plain sums.

    Here nothing is charged. In a federation the global aggregator runs the same functions behind secure
    aggregation, and charges each release first.

    Args:
        config: Layer 2's settings, or a whole federation's (then Layer 1's rule sets the sensitivity).
        noise: Where the noise comes from; the operating system's entropy by default.
    """

    def __init__(
        self,
        config: Layer2Config | HierarchicalFederationConfig | None = None,
        *,
        noise: NoiseSource | None = None,
    ) -> None:
        self._config = config or Layer2Config()
        self._noise = noise or SystemNoise()

    def aggregate(
        self,
        basket_models: Sequence[BasketModel],
        *,
        domains: Mapping[str, str] | None = None,
        round_id: int = 0,
        timestamp: float = 0.0,
    ) -> GlobalMetaModel:
        """Aggregate at least ``min_baskets`` models.

        Args:
            basket_models: One a basket.
            domains: Basket id to domain, for the operator's trust.

        Raises:
            UsageError: For too few models, two of one basket, or models of different lengths.
        """
        plan = self._plan(basket_models)
        layer2 = plan.config.layer2
        ids = [model.basket_id for model in basket_models]
        if len(set(ids)) < len(ids):
            raise UsageError(f"each basket gives one model, got {sorted(ids)}")
        if len(ids) < layer2.min_baskets:
            raise UsageError(f"a release needs models of {layer2.min_baskets} baskets, got {len(ids)}")
        domains = domains or {}
        release = plan.release(
            [m.facts(domains.get(m.basket_id, ""), m.n_members or m.n_contributors) for m in basket_models]
        )
        if release.surviving_weight(ids) <= 0.0:
            raise UsageError("every basket has weight 0; see layer2.basket_trust")
        name = f"layer2/{round_id}"
        parts = [
            add_share(
                contribution(m, m.basket_id, release, plan), release, self._noise, f"{name}/{m.basket_id}"
            )
            for m in basket_models
        ]
        ring_sum = np.add.reduce(parts, dtype=parts[0].dtype)
        vector, sigma = noised_mean(ring_sum, release, ids, self._noise, name)
        return GlobalMetaModel(
            aggregate=vector[: plan.config.vector_dim].astype(np.float32),
            n_baskets=len(ids),
            n_clients_total=sum(m.n_contributors for m in basket_models),
            round_id=round_id,
            timestamp=timestamp,
            privacy_spent=layer2.central_dp_epsilon,
            noise_sigma=sigma,
            meta_params=decode_meta(vector, release, plan),
            meta_means=noised_means(vector, sigma, release, ids, plan),
            clip_norm=decode_clip_norm(vector, release, plan),
        )

    def _plan(self, models: Sequence[BasketModel]) -> FederationPlan:
        lengths = sorted({len(m.aggregate) for m in models})
        if len(lengths) != 1:
            raise UsageError(f"basket models must have one length, got {lengths}")
        if isinstance(self._config, HierarchicalFederationConfig):
            if lengths[0] != self._config.vector_dim:
                raise UsageError(f"models have length {lengths[0]}, vector_dim is {self._config.vector_dim}")
            return make_plan(self._config)
        return make_plan(
            HierarchicalFederationConfig(layer2=self._config, vector_dim=lengths[0], total_epsilon=math.inf)
        )


def decode_meta(vector: NDArray[np.float64], release: ReleasePlan, plan: FederationPlan) -> dict[str, float]:
    """The meta-parameters of a released vector, each within its range."""
    ranges = plan.config.meta_parameters
    return decode_mean(_meta_coordinates(vector, release, plan), ranges) if ranges else {}


def noised_means(
    vector: NDArray[np.float64],
    sigma: float,
    release: ReleasePlan,
    survivors: Sequence[str],
    plan: FederationPlan,
) -> dict[str, NoisedMean]:
    """The same as they were released, noise and all, with the standard deviation of that noise.

    What rounding to the grid adds, half a step a basket at most, is counted as noise.
    """
    ranges = plan.config.meta_parameters
    if not ranges:
        return {}
    rounding = 0.5 * len(survivors) / (release.scale * release.surviving_weight(survivors))
    coordinates = _meta_coordinates(vector, release, plan)
    return unclamped_means(coordinates, math.hypot(sigma, rounding) / release.meta_radius, ranges)


def _meta_coordinates(
    vector: NDArray[np.float64], release: ReleasePlan, plan: FederationPlan
) -> NDArray[np.float64]:
    first = plan.config.vector_dim
    return vector[first : first + len(plan.config.meta_parameters)] / release.meta_radius


def decode_clip_norm(vector: NDArray[np.float64], release: ReleasePlan, plan: FederationPlan) -> float | None:
    """The next clip norm, by post-processing of a released vector; None without adaptive clipping."""
    if not plan.config.layer2.adaptive_clipping:
        return None
    return plan.next_clip_norm(release.clip_norm, float(vector[-1]) / release.bit_radius + 0.5)
