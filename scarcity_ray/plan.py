"""From a config to every number that follows from it, or a `ConfigError`.

`make_plan` derives what a federation fixes once: noise scales, budget caps, least rows. What depends on
who is there (basket weights, sensitivity, ring) follows per release from `FederationPlan.release`. Nothing
else in the package re-derives any of these numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig, Layer1Config
from scarcity_ray.errors import ConfigError
from scarcity_ray.privacy.accounting import mu_of_gaussian
from scarcity_ray.privacy.sensitivity import rule_sensitivity
from scarcity_ray.robust import least_rows

DRIFT_SHARE = 0.1
"""Share of a gossip release's mu squared that the materiality test takes; the vector has the rest."""

FLOAT32_SLACK = 2.0**-21
"""What float32 rounding adds to a sensitivity, relative to the rule's bound and to the ball's radius.

Rounding to float32 moves a vector by at most u = 2^-24 of its norm. A row clipped to C may have norm
(1 + u) C, and one of norm up to (1 + 2 u) C is left as it is, which stretches the rule's bound by as much.
The rule's result is rounded once from float64, then clipped and rounded by Layer 1 and again by Layer 2:
three times u of a norm that is at most the radius (or is brought to it afterwards, and the error with it),
for either neighbour, so 6 u of the radius. 8 u of each leaves room for the terms in u^2 and for the sums in
float64.
"""

GRID_STEPS = 2.0**22
"""Fixed-point steps to a clip norm: what a float32 mantissa resolves."""
NOISE_TAIL = 12.0
"""Standard deviations of noise that the ring must hold: exceeded with probability below 2^-100."""
NOISE_REACH = 2.0**53
"""Least size of noise, in grid steps, that float64 no longer resolves to one step."""
ROUNDING = 1.0 + 1e-12
"""By this factor a sum of mu^2 may pass its cap, as in `privacy.accountant`."""


@dataclass(frozen=True)
class GossipPlan:
    """What one client's gossip costs and how noisy it is.

    Attributes:
        mu_drift: Gaussian-DP parameter of the materiality test.
        mu_vector: Gaussian-DP parameter of one noised vector.
        sigma_drift: Standard deviation added to the drift (its sensitivity is 2 clip_norm, its range).
        sigma_vector: Standard deviation added to each coordinate (replace-one sensitivity 2 clip_norm).
        clip_norm: Norm to which a state is clipped before noise.
        dimension: Length of a state.
        layer1: What becomes of the states afterwards, and how many of them may lie.
    """

    mu_drift: float
    mu_vector: float
    sigma_drift: float
    sigma_vector: float
    clip_norm: float
    dimension: int
    layer1: Layer1Config = field(default_factory=lambda: Layer1Config(byzantine_fraction=0.0))

    @property
    def receive_norm(self) -> float:
        """Norm to which a received vector is clipped.

        An honest one exceeds it with probability below 0.2 %: a standard Gaussian vector's norm is
        1-Lipschitz with mean at most sqrt(d), so its tail past sqrt(d) + 3 is below that of a Gaussian.
        """
        return self.clip_norm + self.sigma_vector * (math.sqrt(self.dimension) + 3.0)

    @property
    def noise_energy(self) -> float:
        """Expected squared norm of a released vector's noise, sigma^2 d."""
        return self.sigma_vector**2 * self.dimension

    def mixing_weight(
        self,
        num_received: float,
        *,
        spread: float | None = None,
        excess: float = 1.0,
        num_rows: float = math.inf,
        bias: float = 0.0,
    ) -> float:
        """Weight towards the mean of K noised states that leaves Layer 1's result the least expected error.

        States x_i = m + deviations of squared norm S, exchanged evenly (everybody gets and gives K), become
        (1 - w) x_i + w (mean of K received), each with noise of squared norm N = sigma^2 d. Their spread is
        then S ((1-w)^2 + w^2/K) + w^2 N (1/K - 1/n), and their mean is off by w^2 (N/n + B), B for what liars
        among the received can add. A rule whose result lies kappa times the spread from the mean (squared) is
        best off with

            w = S / (S (1 + 1/K) + N (1/K + (1/kappa - 1)/n) + B/kappa),

        and any w up to twice that is no worse than w = 0. Colluders may point their shift along the error
        that is there anyway, though: sqrt(kappa S ((1-w)^2 + w^2/K)) + w sqrt(B) is no more than without
        gossip for w up to 2 (1 - beta) / (1 + 1/K - beta^2), beta^2 = B / (kappa S); half of that is the
        most that w is, and from beta = 1 on it is 0. With kappa = 1 (a rule that picks one row) and
        B = 0 it is the inverse-variance weight of Graybill and Deal (1959), S / (S + (S + N)/K); a plain
        mean, kappa = 0, has nothing to gain from noise or liars, and w = 0.

        Args:
            num_received: K.
            spread: S; None: clip_norm^2, the most that clipped states can have.
            excess: kappa; see `gossip.excess`.
            num_rows: n.
            bias: B; see `gossip.mixing`.

        >>> GossipPlan(0, 0, 0.0, 0.0, 1.0, 4).mixing_weight(3)
        0.75
        """
        if num_received < 1:
            return 0.0
        share, noise = 1.0 / num_received, self.noise_energy
        if noise == 0.0 and bias == 0.0:
            return 1.0 / (1.0 + share)
        spread = self.clip_norm**2 if spread is None else spread
        if spread <= 0.0 or excess <= 0.0 or bias >= excess * spread:
            return 0.0
        beta = math.sqrt(bias / (excess * spread))
        most = (1.0 - beta) / (1.0 + share - beta**2)
        harm = noise * (share + (1.0 / excess - 1.0) / num_rows) + bias / excess
        return min(most, spread / (spread * (1.0 + share) + harm))

    def num_byzantine(self, num_members: int) -> int:
        """As `FederationPlan.num_byzantine`."""
        return _num_byzantine(self.layer1, num_members)


@dataclass(frozen=True)
class BasketFacts:
    """What is public about one basket's part in a release.

    Attributes:
        basket_id: The basket.
        domain_id: Its domain, which the operator's trust is given for.
        num_members: Registered members when the session froze.
        num_rows: Clients behind its fresh aggregate; 0 for a basket that joins with the zero vector.
        num_byzantine: The f that its rule ran with.
        max_row_share: Largest share of one row in a weighted mean; None for every other rule.
    """

    basket_id: str
    domain_id: str
    num_members: int
    num_rows: int = 0
    num_byzantine: int = 0
    max_row_share: float | None = None

    @property
    def fresh(self) -> bool:
        """Whether the basket has an aggregate that no release has used."""
        return self.num_rows > 0


@dataclass(frozen=True)
class ReleasePlan:
    """Numbers of one Layer 2 release, all from public facts; every party of a session is given the same.

    Attributes:
        weights: Basket id to weight: 0 without a fresh aggregate, the others sum to 1.
        sensitivities: Basket id to the L2 bound on its vector's change when one client's values change.
        ring_bits: 32 or 64.
        scale: Grid steps to a unit.
        length: Coordinates that travel: the update's, then one for each meta-parameter.
        mu: Gaussian-DP parameter of the release.
    """

    weights: dict[str, float]
    sensitivities: dict[str, float]
    ring_bits: int
    scale: float
    length: int
    mu: float

    def grid_sensitivity(self, survivors: Sequence[str]) -> float:
        """L2 bound, in grid steps, on the change of the survivors' integer sum.

        A basket's vector changes by at most w Delta; rounding to the grid moves the difference of two values
        by less than one step a coordinate, so by less than sqrt(length) in L2.
        """
        bound = max(self.weights[b] * self.sensitivities[b] for b in survivors)
        return self.scale * bound + math.sqrt(self.length)

    def grid_sigma(self, survivors: Sequence[str]) -> float:
        """Standard deviation of the noise on the integer sum, in grid steps."""
        return self.grid_sensitivity(survivors) / self.mu

    def surviving_weight(self, survivors: Sequence[str]) -> float:
        """What the sum is divided by."""
        return math.fsum(self.weights[b] for b in survivors)


class FederationPlan:
    """All numbers that follow from a config; `make_plan` makes and checks it.

    Attributes:
        mu_release: Gaussian-DP parameter of one Layer 2 release.
        mu_total: Gaussian-DP parameter of the whole budget.
        central_mu_cap, gossip_mu_cap: Its two shares (their squares add up).
        gossip: The numbers of gossip.
        num_releases: Layer 2 releases that the central share buys (inf without a finite epsilon).
        num_gossip_rounds: Federation rounds with a pushed vector that a client's gossip share buys.
        vector_length: Coordinates that travel in Layer 2.
        meta_radius: Half the range of one meta-parameter's coordinate in Layer 2.
    """

    def __init__(self, config: HierarchicalFederationConfig) -> None:
        self.config = config
        layer2, gossip = config.layer2, config.gossip
        self.mu_release = mu_of_gaussian(layer2.central_dp_epsilon, layer2.central_dp_delta)
        self.mu_total = mu_of_gaussian(config.total_epsilon, config.total_delta)
        mu_gossip = mu_of_gaussian(gossip.local_dp_epsilon, gossip.local_dp_delta)
        mu_drift = mu_gossip * math.sqrt(DRIFT_SHARE)
        mu_vector = mu_gossip * math.sqrt(1.0 - DRIFT_SHARE)
        sensitivity = 2.0 * gossip.clip_norm * (1.0 + FLOAT32_SLACK)
        self.gossip = GossipPlan(
            mu_drift=mu_drift,
            mu_vector=mu_vector,
            sigma_drift=sensitivity / mu_drift,
            sigma_vector=sensitivity / mu_vector,
            clip_norm=gossip.clip_norm,
            dimension=config.vector_dim,
            layer1=config.layer1,
        )
        share = config.gossip_budget_share
        self.gossip_mu_cap = self.mu_total * math.sqrt(share) if share else 0.0
        self.central_mu_cap = self.mu_total * math.sqrt(1.0 - share)
        self.num_releases = _times(self.central_mu_cap, self.mu_release)
        self.num_gossip_rounds = _times(self.gossip_mu_cap, mu_gossip)
        num_meta = len(config.meta_parameters)
        self.vector_length = config.vector_dim + num_meta
        self.meta_radius = layer2.clip_norm / math.sqrt(num_meta) if num_meta else 0.0

    def num_byzantine(self, num_members: int) -> int:
        """The f for a basket of `num_members` registered clients."""
        return _num_byzantine(self.config.layer1, num_members)

    def least_rows(self, num_members: int) -> int:
        """Rows without which Layer 1 of such a basket waits."""
        layer1, f = self.config.layer1, self.num_byzantine(num_members)
        by_rule = _least_rows(layer1, f)
        if layer1.aggregation_method is AggregationMethod.MULTI_KRUM and layer1.num_selected is not None:
            by_rule = max(by_rule, layer1.num_selected + f + 2)
        return max(layer1.min_updates, by_rule)

    def sensitivity(self, facts: BasketFacts) -> float:
        """L2 bound on the change of a basket's whole vector when one client's values change.

        The rule's own bound on rows of norm clip_norm (`privacy.sensitivity`), or none after a
        pre-aggregation, which spreads one row over others; capped by the diameter of the
        ball that its result is clipped to (clipping is 1-Lipschitz), both with what float32 adds
        (`FLOAT32_SLACK`), and beside it the meta-parameters' mean of vectors of norm clip_norm, so their L2
        sum.
        """
        if not facts.fresh:
            return 0.0
        layer1, layer2 = self.config.layer1, self.config.layer2
        radius = min(layer1.clip_norm, layer2.clip_norm)
        by_rule = rule_sensitivity(
            layer1.aggregation_method,
            num_rows=facts.num_rows,
            num_byzantine=facts.num_byzantine,
            clip_norm=min(layer1.clip_norm, layer1.clipping_radius or math.inf),
            max_row_share=facts.max_row_share,
        )
        if layer1.pre:
            by_rule = math.inf
        stretched = 1.0 + FLOAT32_SLACK
        model = min(by_rule, 2.0 * radius) * stretched + FLOAT32_SLACK * radius
        meta = 2.0 * layer2.clip_norm * stretched / facts.num_rows if self.config.meta_parameters else 0.0
        return math.hypot(model, meta)

    def release(self, baskets: Sequence[BasketFacts]) -> ReleasePlan:
        """Weights, sensitivities and ring of a release by `baskets`, at least one of them fresh.

        No sum overflows: the weights add up to 1, so the integer sum is at most scale times the norm of one
        vector, plus half a step for each basket, plus the noise's tail (`NOISE_TAIL` standard deviations).
        """
        layer2 = self.config.layer2
        shares = {
            b.basket_id: (b.num_members if layer2.weight_by_size else 1.0)
            * layer2.basket_trust.get(b.domain_id, 1.0)
            * b.fresh
            for b in baskets
        }
        total = math.fsum(shares.values())
        weights = {basket: share / total if total else 0.0 for basket, share in shares.items()}
        radius = (
            layer2.clip_norm
            * (1.0 + FLOAT32_SLACK)
            * (math.sqrt(2.0) if self.config.meta_parameters else 1.0)
        )
        draft = ReleasePlan(
            weights=weights,
            sensitivities={b.basket_id: self.sensitivity(b) for b in baskets},
            ring_bits=32,
            scale=GRID_STEPS / layer2.clip_norm,
            length=self.vector_length,
            mu=self.mu_release,
        )
        noise = NOISE_TAIL * draft.grid_sigma(list(weights))
        reach = draft.scale * radius + len(baskets) / 2 + noise
        return draft if reach < 2.0**31 else replace(draft, ring_bits=64)

    @property
    def greatest_noise(self) -> float:
        """The tail of the noise of any release, in grid steps: that of one basket with all the weight."""
        widest = 2.0 * (math.sqrt(2.0) if self.config.meta_parameters else 1.0) * (1.0 + 2.0 * FLOAT32_SLACK)
        steps = GRID_STEPS * widest + math.sqrt(self.vector_length)
        return NOISE_TAIL * steps / self.mu_release


def make_plan(config: HierarchicalFederationConfig) -> FederationPlan:
    """Derive a federation's numbers.

    Raises:
        ConfigError: If the config's values cannot work together; the error names the one to change.

    >>> from scarcity_ray.config import HierarchicalFederationConfig
    >>> make_plan(HierarchicalFederationConfig()).least_rows(10)
    7
    """
    plan = FederationPlan(config)
    _check_layer1(plan)
    _check_budget(plan)
    for name, (low, high) in config.meta_parameters.items():
        if not (low < high and math.isfinite(2.0 * (high - low))):
            raise ConfigError(
                f"meta_parameters.{name}", (low, high), "a finite least value below a finite greatest one"
            )
    if plan.greatest_noise >= NOISE_REACH:
        raise ConfigError(
            "layer2.central_dp_epsilon",
            config.layer2.central_dp_epsilon,
            f"an epsilon (with central_dp_delta = {config.layer2.central_dp_delta}) whose noise fits into "
            "2^53 steps of the ring's grid; any in earnest does",
        )
    return plan


def _check_layer1(plan: FederationPlan) -> None:
    basket, layer1 = plan.config.basket, plan.config.layer1
    smallest, rule = basket.min_clients, layer1.aggregation_method
    f = plan.num_byzantine(smallest)
    if layer1.num_selected is not None and rule is not AggregationMethod.MULTI_KRUM:
        raise ConfigError(
            "layer1.num_selected",
            layer1.num_selected,
            f"null for {rule.value}; only multi_krum selects a given number of rows",
        )
    if layer1.clipping_radius is not None and rule is not AggregationMethod.CENTERED_CLIPPING:
        raise ConfigError(
            "layer1.clipping_radius",
            layer1.clipping_radius,
            f"null for {rule.value}; only centered_clipping has a radius",
        )
    if layer1.pre and rule is AggregationMethod.WEIGHTED:
        raise ConfigError("layer1.pre", layer1.pre, "none before weighted, whose weights are of single rows")
    by_rule = _least_rows(layer1, f)
    if by_rule > max(smallest, _least_rows(layer1, 0)):
        raise ConfigError(
            "layer1.byzantine_fraction" if layer1.num_byzantine is None else "layer1.num_byzantine",
            layer1.byzantine_fraction if layer1.num_byzantine is None else f,
            f"{rule.value} with f = {f} needs {by_rule} rows, but a basket is active from "
            f"basket.min_clients = {smallest}; lower f or raise basket.min_clients",
        )
    most = basket.max_clients
    if layer1.min_updates > most:
        raise ConfigError("layer1.min_updates", layer1.min_updates, f"at most basket.max_clients = {most}")
    if by_rule > most:
        raise ConfigError(
            "basket.max_clients", most, f"at least the {by_rule} rows that {rule.value} needs with f = {f}"
        )
    if plan.least_rows(smallest) > most:
        raise ConfigError(
            "layer1.num_selected",
            layer1.num_selected,
            f"at most basket.max_clients - f - 2 = {most - f - 2} with f = {f}",
        )


def _least_rows(layer1: Layer1Config, num_byzantine: int) -> int:
    """Rows that the rule needs behind its pre-aggregation, which itself needs a majority of honest rows."""
    rows = least_rows(layer1.aggregation_method, num_byzantine)
    for _ in range(layer1.pre.count("bucketing")):
        rows = layer1.bucket_size * (rows - 1) + 1
    return max(rows, 2 * num_byzantine + 1) if layer1.pre else rows


def _check_budget(plan: FederationPlan) -> None:
    config = plan.config
    if config.gossip_budget_share > 0 and plan.num_gossip_rounds < 1:
        raise ConfigError(
            "gossip.local_dp_epsilon",
            config.gossip.local_dp_epsilon,
            f"an epsilon of which one release fits into gossip_budget_share = {config.gossip_budget_share} "
            "of the budget (or gossip_budget_share: 0, which turns gossip off)",
        )
    if plan.num_releases < 1:
        raise ConfigError(
            "layer2.central_dp_epsilon",
            config.layer2.central_dp_epsilon,
            f"an epsilon of which one release fits into total_epsilon = {config.total_epsilon} "
            "less the gossip's share",
        )


def _num_byzantine(layer1: Layer1Config, num_members: int) -> int:
    if layer1.num_byzantine is not None:
        return layer1.num_byzantine
    return math.floor(layer1.byzantine_fraction * num_members + 1e-9)


def _times(cap: float, mu: float) -> float:
    if math.isinf(cap):
        return math.inf
    return float(math.floor((cap / mu) ** 2 * ROUNDING))
