"""Whether a config can learn: noise against signal, the price of each rule, the ring's headroom, the traffic.

A release is a weighted mean of vectors of norm at most the lesser clip norm C, so C bounds its norm; its
noise has the expected squared norm sigma^2 d over the model's d coordinates. Over T rounds the signal adds up
to at most T C and the noise, being independent, to sqrt(T) sigma sqrt(d). `solve_for_rounds` goes the other
way: from the rounds that are wanted to the noise that the budget can pay for.

Where clients noise their own rows, no noise is added to releases. Theirs is then what is left of the rows'
noise in the mean of all rows: it is independent, so over the root of the rows. Other rules leave more of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from scarcity_ray.config import (
    AggregationMethod,
    HierarchicalFederationConfig,
    Layer1Config,
    NoisePlace,
    RulePath,
)
from scarcity_ray.errors import ConfigError
from scarcity_ray.plan import (
    BasketFacts,
    FederationPlan,
    ReleasePlan,
    honest_shares,
    make_plan,
    session_shape,
)
from scarcity_ray.privacy.accounting.modes import Accounting
from scarcity_ray.secagg.context import MAX_PARTIES
from scarcity_ray.secagg.messages import session_volume

SIZES_LOOKED_AT = 10_000
"""Basket sizes above `basket.min_clients` that `Forecast.stuck_sizes` tries."""
ID_BYTES = 17
"""Bytes of a basket's id that traffic is counted with, those of ``domain_0_basket_0``."""
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes of content in a round in which everybody takes part; what carries them adds headers.

    Attributes:
        updates: One float32 update from each client.
        gossip_most: A vector from each client to each of its peers; who drifted little is silent.
        secure_sum: All messages of the Layer 2 session, both ways, or the plain inputs without masking; none
            without Layer 2.
        model: The released model to each basket, where releases are distributed.
    """

    updates: int
    gossip_most: int
    secure_sum: int
    model: int


class Forecast:
    """A config's prospects with baskets of given sizes.

    Guarantees:
        no_release_is_noisier_than_forecast_while_everybody_takes_part: Both take sigma from the same plan,
            where releases are noised.
        the_mean_of_noised_rows_is_as_noisy_as_forecast: While clients have `min_persons` each.
            Under the rule ``weighted`` that holds while all claim equally many examples; what unequal claims
            cost is told of the aggregates themselves, before they are released (`warning_of_weights`).
        stuck_sizes_are_those_at_which_the_rule_waits_for_ever: By the rule's own least rows.

    Args:
        sizes: Members of each basket, all of which send an update.

    Raises:
        ConfigError: If the config's values cannot work together.
    """

    def __init__(self, config: HierarchicalFederationConfig, sizes: Sequence[int], rounds: int) -> None:
        self.config = config
        self.sizes = tuple(sizes)
        self.rounds = rounds
        self.plan = make_plan(config)
        self.release = full_release(self.plan, self.sizes)

    @property
    def sensitivity(self) -> float:
        """The most by which one client moves the release."""
        return _sensitivity(self.release)

    @property
    def sensitivity_of_liars(self) -> float:
        """The sensitivity if, under the rule ``weighted``, one client of each basket claims all examples.

        For other rules it is `sensitivity`.
        """
        if self.plan.worst_row_share(1) is None:
            return self.sensitivity
        facts = [
            BasketFacts(str(place), "", size, num_rows=size, max_row_share=self.plan.worst_row_share(size))
            for place, size in enumerate(self.sizes)
        ]
        return _sensitivity(self.plan.release(facts))

    @property
    def sigma(self) -> float:
        """Standard deviation of a release's noise in each coordinate; of the first's, where noise falls."""
        if self.plan.site_noise is not None:
            return _row_sigma(self.plan) / math.sqrt(sum(self.sizes))
        return self.release.grid_sigma(list(self.release.weights)) / self.release.scale

    @property
    def noise_norm(self) -> float:
        """Norm (root mean square) of a release's noise over the model's coordinates."""
        return self.sigma * math.sqrt(self.config.vector_dim)

    @property
    def row_noise_norm(self) -> float:
        """As `noise_norm`, of the noise on one row of `min_persons`; 0 where releases are noised."""
        return _row_sigma(self.plan) * math.sqrt(self.config.vector_dim)

    @property
    def noise_norm_at_least_rows(self) -> float:
        """As `noise_norm`, when no basket has more rows than Layer 1 waits for."""
        rows = [min(size, self.plan.least_rows(size)) for size in self.sizes]
        if self.plan.site_noise is not None:
            return self.row_noise_norm / math.sqrt(sum(rows))
        return noise_norm_of(self.plan, full_release(self.plan, self.sizes, rows))

    @property
    def signal_bound(self) -> float:
        """The greatest norm that a release can have without its noise."""
        return signal_bound(self.config)

    @property
    def signal_to_noise(self) -> float:
        """Signal's bound over noise norm of one release; inf without noise."""
        return self.signal_bound / self.noise_norm if self.noise_norm else math.inf

    @property
    def rounds_possible(self) -> float:
        """Releases that are wanted and that the budget buys."""
        return min(float(self.rounds), self.plan.num_releases)

    @property
    def rounds_paid(self) -> float:
        """Rounds that the budget pays for: a release each, or a gossip vector where there is no Layer 2."""
        if self.config.layer2.enabled:
            return self.plan.num_releases
        return self.plan.num_gossip_rounds if self.plan.gossip_share else math.inf

    @property
    def signal_to_noise_over_all_rounds(self) -> float:
        """The same for the sum of all releases, if all have the greatest signal in the same direction."""
        rounds = max(1.0, self.rounds_possible)
        plan, is_site = self.plan, self.plan.site_noise is not None
        schedule, cap = (
            (plan.row_schedule, plan.gossip_mu_cap) if is_site else (plan.schedule, plan.central_mu_cap)
        )
        energy = schedule.noise_energy(cap**2, rounds)
        return self.signal_to_noise * rounds / math.sqrt(energy)

    @property
    def sigma_of_last(self) -> float:
        """As `sigma`, of the last release that the budget buys: less, where noise falls."""
        bought = self.plan.num_releases
        if math.isinf(bought):
            return self.sigma
        return self.sigma * self.release.mu / self.plan.mu_of_step(int(bought) - 1)

    @property
    def rounds_at_equal_noise(self) -> float:
        """Rounds that the budget buys if each release's noise is as large as the signal's bound.

        The noise is proportional to 1/mu, and the budget to rounds times mu^2.
        """
        if math.isinf(self.plan.num_releases) or math.isinf(self.signal_to_noise):
            return math.inf
        plan = self.plan
        bought = (
            plan.central_mu_cap / self.release.mu if plan.site_noise is None else plan.mu_total / plan.mu_row
        )
        return float(math.floor((bought * self.signal_to_noise) ** 2))

    @property
    def baskets_at_equal_noise(self) -> int | None:
        """Baskets, equal to the most sensitive one, that bring the noise within the signal's bound.

        With B of them sigma is (scale Delta / B + sqrt(L)) / (mu scale), in shares sqrt(B / h) times that, h
        of them being counted on. One fewer is too few. None if the grid is too coarse or no session so large.
        """
        release = self.release
        if self.plan.site_noise is not None:
            return math.ceil(len(self.sizes) / self.signal_to_noise**2)
        if math.isinf(release.mu):
            return 1
        noise = self.signal_bound / math.sqrt(self.config.vector_dim) * release.mu * release.scale
        widest = release.scale * max(release.sensitivities.values())

        def needed(count: int) -> float:
            room = noise / self._excess(count) - math.sqrt(release.length)
            return max(1, math.ceil(widest / room)) if room > 0.0 else math.inf

        count = 1
        while (wanted := needed(count)) > count:
            if math.isinf(wanted) or (release.share_sigma and wanted > MAX_PARTIES):
                return None
            count = int(wanted)
        while count > 1 and needed(count - 1) <= count - 1:
            count -= 1
        return count

    def _excess(self, baskets: int) -> float:
        """Noise in shares over the noise that one party would add; 1 where one party adds it."""
        if not self.release.share_sigma:
            return 1.0
        return math.sqrt(baskets / honest_shares(self.config.layer2, baskets))

    @property
    def adaptation_factor(self) -> float:
        """By how much the bits of adaptive clipping enlarge the noise on everything else; 1 without them."""
        fixed = replace(self.config, layer2=replace(self.config.layer2, adaptive_clipping=False))
        plan = FederationPlan(fixed)
        alone = noise_norm_of(plan, full_release(plan, self.sizes))
        return self.noise_norm / alone if alone else 1.0

    @property
    def share_noise(self) -> float:
        """Standard deviation of the noise on the share of norms below the clip norm; 0 without adaptation."""
        return self.sigma / self.release.bit_radius if self.release.bit_radius else 0.0

    @property
    def meta_factor(self) -> float:
        """By how much meta-parameters enlarge the noise on everything else; 1 without them."""
        plan = FederationPlan(replace(self.config, meta_parameters={}))
        alone = noise_norm_of(plan, full_release(plan, self.sizes))
        return self.noise_norm / alone if alone else 1.0

    @property
    def meta_noise(self) -> float:
        """Standard deviation of the noise on each, as a share of its range; 0 without meta-parameters."""
        return self.sigma / (2.0 * self.release.meta_radius) if self.release.meta_radius else 0.0

    @property
    def headroom_bits(self) -> float:
        """By how many bits the ring exceeds the greatest sum, the tail of its noise included."""
        return self.release.ring_bits - 1 - math.log2(self.plan.reach(self.release))

    @cached_property
    def rules(self) -> tuple[RuleCost, ...]:
        """Every rule with these baskets, this f and this mu, each by itself; the configured one as it is."""
        outside = (method,) if isinstance(method := self.config.layer1.aggregation_method, RulePath) else ()
        return tuple(rule_cost(self.config, rule, self.sizes) for rule in (*AggregationMethod, *outside))

    @cached_property
    def stuck_sizes(self) -> tuple[int, ...]:
        """Sizes of active baskets at which the rule needs more rows than there are members."""
        basket = self.config.basket
        most = min(basket.max_clients, basket.min_clients + SIZES_LOOKED_AT)
        return tuple(n for n in range(basket.min_clients, most + 1) if n < self.plan.least_rows(n))

    @property
    def survivors_needed(self) -> int:
        """Baskets that must stay to the end of a session of all of them."""
        return session_shape(self.config.layer2, len(self.sizes)).threshold

    @cached_property
    def traffic(self) -> Traffic:
        """Bytes a round."""
        config, baskets, clients = self.config, len(self.sizes), sum(self.sizes)
        vector = config.vector_dim * FLOAT_BYTES
        peers = sum(n * min(config.gossip.peers_per_round, n - 1) for n in self.sizes)
        plain = self.release.length * self.release.ring_bits // 8
        party = plain
        if config.layer2.use_secure_aggregation and baskets > 1:
            volume = session_volume(
                baskets,
                degree=session_shape(config.layer2, baskets).degree,
                dimension=self.release.length,
                ring_bits=self.release.ring_bits,
                id_bytes=ID_BYTES,
            )
            party = volume.sent + volume.received
        return Traffic(
            updates=clients * vector,
            gossip_most=peers * vector if config.gossip_budget_share > 0 else 0,
            secure_sum=baskets * party if config.layer2.enabled else 0,
            model=baskets * vector if config.layer2.enabled and config.layer2.distribute_to_baskets else 0,
        )


@dataclass(frozen=True)
class RuleCost:
    """The noise that one Layer 1 rule would need; a weighted mean with equal weights.

    Attributes:
        least_rows: Rows that it needs in the smallest basket.
        fits: Whether every basket has the rows that it needs; where not, the other numbers are None.
        sensitivity: How far one client's row moves a basket's vector, the most over the baskets.
        signal_to_noise: The greatest norm of a release without noise over that.
    """

    rule: AggregationMethod | RulePath
    least_rows: int
    fits: bool
    sensitivity: float | None = None
    noise_norm: float | None = None
    signal_to_noise: float | None = None


def _sensitivity(release: ReleasePlan) -> float:
    return max(weight * release.sensitivities[basket] for basket, weight in release.weights.items())


def _row_sigma(plan: FederationPlan) -> float:
    """Standard deviation of each coordinate of a row of `min_persons`; 0 where releases are noised."""
    noise = plan.site_noise
    return 0.0 if noise is None else noise.sigma(noise.min_persons)


def signal_bound(config: HierarchicalFederationConfig) -> float:
    """The greatest norm that a release can have without its noise.

    Where rows are noised it is that of their mean before noise: what clips later clips both alike.
    """
    layer1, privacy = config.layer1, config.privacy
    if privacy.noise is NoisePlace.SITE and privacy.person_clip_norm is not None:
        return privacy.person_clip_norm
    return min(layer1.clip_norm, layer1.clipping_radius or math.inf, config.layer2.clip_norm)


def full_release(
    plan: FederationPlan, sizes: Sequence[int], rows: Sequence[int] | None = None
) -> ReleasePlan:
    """The release of baskets of these sizes, of whose members `rows` (all, by default) sent an update.

    Under the rule ``weighted`` all of them claim equally many examples.
    """
    weighted = plan.config.layer1.aggregation_method is AggregationMethod.WEIGHTED
    return plan.release(
        [
            BasketFacts(
                basket_id=str(place),
                domain_id="",
                num_members=size,
                num_rows=count,
                num_byzantine=plan.num_byzantine(size),
                max_row_share=1.0 / count if weighted else None,
            )
            for place, (size, count) in enumerate(zip(sizes, rows or sizes, strict=True))
        ]
    )


def noise_norm_of(plan: FederationPlan, release: ReleasePlan) -> float:
    """Norm (root mean square) of a release's noise over the model's coordinates."""
    return release.grid_sigma(list(release.weights)) / release.scale * math.sqrt(plan.config.vector_dim)


def with_rule(
    config: HierarchicalFederationConfig, rule: AggregationMethod | RulePath
) -> HierarchicalFederationConfig:
    """The config with another rule, by itself; the same config for the rule that it has."""
    layer1 = config.layer1
    if rule == layer1.aggregation_method:
        return config
    alone = Layer1Config(
        aggregation_method=rule,
        min_updates=layer1.min_updates,
        clip_norm=layer1.clip_norm,
        byzantine_fraction=layer1.byzantine_fraction,
        num_byzantine=layer1.num_byzantine,
    )
    return replace(config, layer1=alone)


def rule_cost(
    config: HierarchicalFederationConfig, rule: AggregationMethod | RulePath, sizes: Sequence[int]
) -> RuleCost:
    """The cost of a rule by itself, without pre-aggregation; of the configured one as it is configured."""
    config = with_rule(config, rule)
    plan = FederationPlan(config)
    least = plan.least_rows(min(sizes))
    if any(size < plan.least_rows(size) for size in sizes):
        return RuleCost(rule, least, fits=False)
    release = full_release(plan, sizes)
    sensitivity, noise = max(release.sensitivities.values()), noise_norm_of(plan, release)
    if plan.site_noise is not None:
        noise = _row_sigma(plan) * math.sqrt(config.vector_dim / sum(sizes))
    ratio = signal_bound(config) / noise if noise else math.inf
    return RuleCost(rule, least, True, sensitivity, noise, ratio)


def solve_for_rounds(config: HierarchicalFederationConfig, rounds: int) -> HierarchicalFederationConfig:
    """The config with the epsilons of a release and of a gossip round at which the budget buys `rounds`.

    Where clients noise their own rows it is the epsilon of a row, and nothing else. All are rounded down to
    six digits. Where the total epsilon is infinite, nothing changes; without Layer 2 there are no releases to
    solve for.

    Guarantees:
        the_solved_epsilon_buys_the_rounds: Counted by the accountant, and a ten-thousandth more does not.

    Raises:
        ConfigError: If no epsilon above 0 is so small at the delta of a release or of a gossip round.
    """
    if math.isinf(config.total_epsilon):
        return config
    plan = FederationPlan(config)
    solved = config
    if plan.site_noise is not None:
        privacy, mu = config.privacy, plan.gossip_mu_cap / math.sqrt(rounds)
        for epsilon in _candidates(plan.accounting, mu, privacy.row_delta or config.total_delta, rounds):
            solved = replace(config, privacy=replace(privacy, row_epsilon=epsilon))
            if FederationPlan(solved).num_releases >= rounds:
                break
        return solved
    mu = plan.central_mu_cap / math.sqrt(rounds)
    central_delta = config.layer2.central_dp_delta
    for epsilon in _candidates(plan.accounting, mu, central_delta, rounds) if config.layer2.enabled else ():
        solved = replace(config, layer2=replace(config.layer2, central_dp_epsilon=epsilon))
        if FederationPlan(solved).num_releases >= rounds:
            break
    if config.gossip_budget_share == 0:
        return solved
    central = solved
    mu = plan.gossip_mu_cap / math.sqrt(rounds)
    for epsilon in _candidates(Accounting.GAUSSIAN_DP, mu, config.gossip.local_dp_delta, rounds):
        solved = replace(central, gossip=replace(central.gossip, local_dp_epsilon=epsilon))
        if FederationPlan(solved).num_gossip_rounds >= rounds:
            break
    return solved


def _candidates(accounting: Accounting, mu: float, delta: float, rounds: int) -> Sequence[float]:
    """Epsilons of six digits, falling from the one that makes a release cost mu."""
    epsilon = accounting.epsilon_of(mu, delta)
    if epsilon < 1e-9:
        raise ConfigError(
            "rounds", rounds, f"fewer rounds: no epsilon above 0 costs so little at delta = {delta:g}"
        )
    place = math.floor(math.log10(epsilon)) - 5
    digits = math.floor(epsilon / 10.0**place)
    return [float(f"{digits - less}e{place}") for less in range(8)]
