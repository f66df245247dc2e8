"""The numbers that are fixed for a federation, and how those of each release follow from them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

from scarcity_ray.config import (
    AggregationMethod,
    CentralNoise,
    HierarchicalFederationConfig,
    NoisePlace,
    PrivacyUnit,
)
from scarcity_ray.plan.gossip import GossipPlan
from scarcity_ray.plan.release import BasketFacts, ReleasePlan
from scarcity_ray.plan.session import honest_shares
from scarcity_ray.privacy.accounting.gaussian_dp import mu_of_gaussian
from scarcity_ray.privacy.accounting.modes import ROUNDING, Accounting
from scarcity_ray.privacy.accounting.zcdp import share_sigma
from scarcity_ray.privacy.adaptive_clipping import BIT_SHARE, adapted_clip_norm, bit_radius
from scarcity_ray.privacy.schedule import NoiseSchedule, Step
from scarcity_ray.privacy.sensitivity import rule_sensitivity
from scarcity_ray.robust import PluginRule, configured_rule
from scarcity_ray_client.site_noise import GRID_SHARE, ROW_SLACK, SiteNoise

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

FINEST_GRID = 2.0**48
"""Fixed-point steps to a clip norm at most, so that float64 holds every sum with noise to the step.

Where a person is the unit, the step is Delta / (100 sqrt(length)) at most while all baskets stay
(`GRID_SHARE`), unless this stands against it.
"""

MAX_EXAMPLES = 1000
"""Examples beyond which a client weighs no more, where the config does not say."""

GRID_STEPS = 2.0**22
"""Fixed-point steps to a clip norm: what a float32 mantissa resolves."""
NOISE_TAIL = 12.0
"""Standard deviations of noise that the ring must hold: exceeded with probability below 2^-100."""


class FederationPlan:
    """All numbers that follow from a config; `make_plan` makes and checks it.

    Attributes:
        accounting: What the ledger adds up: Gaussian DP, or zCDP where a release's noise is not Gaussian.
        mu_release: What one Layer 2 release is charged: sensitivity over the noise's scale. In zCDP it is
            sqrt(2 rho), rho being what (central_dp_epsilon, central_dp_delta) buys. Under a schedule of noise
            it is the root mean square over the releases that the budget buys. 0 where rows are noised.
        mu_row: Likewise, what a client is charged for each row that it noises itself; 0 where releases are
            noised.
        schedule: What each release is charged, from where the ledger stands.
        row_schedule: What a client is charged for each row, from where it stands itself.
        reserved: What must still fit for the federation to go on: `schedule`, or nothing without Layer 2.
        step: Where the ledger stands (`at_step`); the beginning of the budget, if nothing else is said.
        mu_total: As `mu_release`, of the whole budget.
        gossip_share: Of the budget, in mu squared: all of it without Layer 2, unless gossip is off. Where
            rows are noised gossip costs nothing, and any share above 0 says that there is gossip.
        own_share: Of the budget, what each client has for itself: its gossip, or its noised rows.
        central_mu_cap, gossip_mu_cap: The budget's two shares (their squares add up), the second for what
            each client is charged itself.
        num_releases: Layer 2 releases that the central share buys (inf without a finite epsilon; 0 without
            Layer 2), or rows that a client's budget buys.
        num_gossip_rounds: Federation rounds with a pushed vector that a client's gossip share buys.
        site_noise: How clients noise their rows, the first of a budget under a schedule of noise; None where
            releases are noised.
        vector_length: Coordinates that travel in Layer 2.
        max_examples: What a client's weight ends at, under the rule ``weighted``.
        rule: Layer 1's, at the clip norm that the federation starts with.
        person_clip_norm: Norm that no contribution of a person (record) exceeds; None where the client is the
            unit of privacy.
    """

    def __init__(self, config: HierarchicalFederationConfig) -> None:
        self.config = config
        self.rule = configured_rule(config.layer1)
        layer2, gossip = config.layer2, config.gossip
        gaussian = layer2.noise is CentralNoise.GAUSSIAN or not layer2.enabled
        self.max_examples = config.layer1.max_examples or MAX_EXAMPLES
        self.person_clip_norm: float | None = None
        if config.privacy.unit is not PrivacyUnit.CLIENT:
            self.person_clip_norm = config.privacy.person_clip_norm or config.layer1.clip_norm
        self.accounting = Accounting.GAUSSIAN_DP if gaussian else Accounting.ZCDP
        self.mu_total = self.accounting.mu_of_claim(config.total_epsilon, config.total_delta)
        self.mu_row, self.site_noise = 0.0, self._site_noise()
        self.row_schedule = NoiseSchedule(0.0)
        self.mu_release, decay = 0.0, config.privacy.noise_decay
        if self.site_noise is None:
            self.mu_release = self.accounting.mu_of_claim(layer2.central_dp_epsilon, layer2.central_dp_delta)
        else:
            self.mu_row, decay = self.site_noise.mu, 1.0
            self.row_schedule = NoiseSchedule(self.mu_row, config.privacy.noise_decay)
            if math.isfinite(self.mu_total):
                first = self.row_schedule.mu(self.row_schedule.step_of(self.mu_total**2, 0))
                self.site_noise = replace(self.site_noise, mu=first)
        # Gossip's noise is Gaussian in either mode, so its own claim is exact, and rho = mu^2 / 2 too.
        mu_gossip = mu_of_gaussian(gossip.local_dp_epsilon, gossip.local_dp_delta)
        if self.site_noise is not None:
            mu_gossip = 0.0
        mu_drift = mu_gossip * math.sqrt(DRIFT_SHARE)
        mu_vector = mu_gossip * math.sqrt(1.0 - DRIFT_SHARE)
        sensitivity = 2.0 * gossip.clip_norm * (1.0 + FLOAT32_SLACK)
        self.gossip = GossipPlan(
            mu_drift=mu_drift,
            mu_vector=mu_vector,
            sigma_drift=sensitivity / mu_drift if mu_drift else 0.0,
            sigma_vector=sensitivity / mu_vector if mu_vector else 0.0,
            clip_norm=gossip.clip_norm,
            dimension=config.vector_dim,
            layer1=config.layer1,
            own_states=not layer2.enabled,
        )
        share = config.gossip_budget_share
        if share and not layer2.enabled:
            share = 1.0
        self.gossip_share = share
        self.own_share = share = share if self.site_noise is None else 1.0
        self.gossip_mu_cap = self.mu_total * math.sqrt(share) if share else 0.0
        self.central_mu_cap = self.mu_total * math.sqrt(1.0 - share) if share < 1.0 else 0.0
        self.schedule = NoiseSchedule(self.mu_release, decay)
        self.reserved = self.schedule if layer2.enabled else NoiseSchedule(0.0)
        self.step = self.schedule.step_of(self.central_mu_cap**2, 0)
        self.num_releases = _times(self.central_mu_cap, self.mu_release) if layer2.enabled else 0.0
        if self.site_noise is not None:
            self.num_releases = _times(self.gossip_mu_cap, self.mu_row)
        self.num_gossip_rounds = _times(self.gossip_mu_cap, mu_gossip)
        num_meta = len(config.meta_parameters)
        self.vector_length = config.vector_dim + num_meta + layer2.adaptive_clipping
        self._least_rows: dict[int, int] = {}

    def _site_noise(self) -> SiteNoise | None:
        config, privacy = self.config, self.config.privacy
        if privacy.noise is NoisePlace.CENTRAL:
            return None
        epsilon = math.inf if privacy.row_epsilon is None else privacy.row_epsilon
        return SiteNoise(
            mu=self.accounting.mu_of_claim(epsilon, privacy.row_delta or config.total_delta),
            clip_norm=self.person_clip_norm or config.layer1.clip_norm,
            min_persons=privacy.min_persons or 1,
            dimension=config.vector_dim,
            is_discrete=self.accounting is Accounting.ZCDP,
        )

    def at(self, clip_norm: float) -> FederationPlan:
        """The plan of a round in which Layer 1 clips to `clip_norm`; all lengths keep their ratio to it.

        Layer 2's clip norm and centred clipping's radius move along; gossip, a release of its own, and the
        budget stay as they are. The ratios are those of this plan.
        """
        layer1, layer2 = self.config.layer1, self.config.layer2
        if clip_norm == layer1.clip_norm:
            return self
        factor = clip_norm / layer1.clip_norm
        radius = layer1.clipping_radius
        moved = copy.copy(self)
        moved.config = replace(
            self.config,
            layer1=replace(
                layer1, clip_norm=clip_norm, clipping_radius=None if radius is None else radius * factor
            ),
            layer2=replace(layer2, clip_norm=layer2.clip_norm * factor),
        )
        return moved

    def at_step(self, step: Step | None) -> FederationPlan:
        """The plan of the release that a ledger's charges come to; None under constant noise."""
        if step is None:
            return self
        moved = copy.copy(self)
        moved.step = step
        return moved

    def after(self, number: int) -> FederationPlan:
        """The plan of a release, or of rows, after so many others, if nothing unforeseen happens."""
        moved = copy.copy(self)
        if not self.schedule.is_constant:
            moved.step = self.schedule.step_of(self.central_mu_cap**2, number)
        if self.site_noise is not None and not self.row_schedule.is_constant:
            mu = self.row_schedule.mu(self.row_schedule.step_of(self.gossip_mu_cap**2, number))
            moved.site_noise = replace(self.site_noise, mu=mu)
        return moved

    def mu_of_step(self, number: int) -> float:
        """What a release is charged after so many others, if nothing unforeseen happens."""
        return self.schedule.mu(self.schedule.step_of(self.central_mu_cap**2, number))

    def next_clip_norm(self, clip_norm: float, share_below: float) -> float:
        """The clip norm after a release that told the noised share of norms below `clip_norm`."""
        layer2 = self.config.layer2
        adapted = adapted_clip_norm(
            clip_norm, share_below, quantile=layer2.clip_quantile, learning_rate=layer2.clip_learning_rate
        )
        low, high = layer2.clip_norm_range
        return min(high, max(low, adapted))

    def may_clip_to(self, clip_norm: float) -> bool:
        """Whether some release of this federation may have Layer 1 clip to `clip_norm`."""
        layer1, layer2 = self.config.layer1, self.config.layer2
        low, high = layer2.clip_norm_range
        return clip_norm == layer1.clip_norm or (layer2.adaptive_clipping and low <= clip_norm <= high)

    @cached_property
    def waits_for_gossip(self) -> bool:
        """Whether an aggregation that all having sent makes due waits for the round's gossip."""
        return self.gossip_share > 0.0 and self.config.buffer.min_updates_trigger is None

    def num_byzantine(self, num_members: int) -> int:
        """The f for a basket of `num_members` registered clients."""
        return self.config.layer1.byzantine_among(num_members)

    def rule_rows(self, num_byzantine: int) -> int:
        """Rows that the rule needs behind a pre-aggregation, which itself needs a majority of honest ones."""
        layer1 = self.config.layer1
        rows = self.rule.least_rows(num_byzantine)
        for _ in range(layer1.pre.count("bucketing")):
            rows = layer1.bucket_size * (rows - 1) + 1
        return max(rows, 2 * num_byzantine + 1) if layer1.pre else rows

    def least_rows(self, num_members: int) -> int:
        """Rows without which Layer 1 of such a basket waits; remembered, as each submission asks."""
        if num_members not in self._least_rows:
            layer1, f = self.config.layer1, self.num_byzantine(num_members)
            by_rule = self.rule_rows(f)
            if layer1.aggregation_method is AggregationMethod.MULTI_KRUM and layer1.num_selected is not None:
                by_rule = max(by_rule, layer1.num_selected + f + 2)
            self._least_rows[num_members] = max(layer1.min_updates, by_rule)
        return self._least_rows[num_members]

    def row_weight(self, num_examples: int | None) -> float:
        """A client's weight under the rule ``weighted``: its examples, `max_examples` at most.

        One that does not say how many it has counts as one example, the least that anybody can claim.
        """
        return float(min(num_examples or 1, self.max_examples))

    def has_enough_persons(self, num_persons: int | None) -> bool:
        """Whether a row of so many persons is taken; one that does not say how many counts as of one."""
        return (num_persons or 1) >= (self.config.privacy.min_persons or 1)

    def worst_row_share(self, num_rows: int) -> float | None:
        """The greatest share of one row in a weighted mean of `num_rows`; None for rules without weights.

        Reached if one client claims `max_examples` or more and every other one a single example. A release is
        scaled to the shares as they are, which are public and frozen when its basket aggregates; this is what
        they can come to, whatever clients claim from round to round.
        """
        if self.config.layer1.aggregation_method is not AggregationMethod.WEIGHTED:
            return None
        return self.max_examples / (self.max_examples + num_rows - 1)

    @property
    def rule_claim(self) -> str:
        """What is taken on the word of the author of a rule from outside; empty for the package's own."""
        if not isinstance(self.rule, PluginRule):
            return ""
        layer1 = self.config.layer1
        return self.rule.claim(() if layer1.pre else self.rule_settings(), layer1.clip_norm)

    def rule_settings(self) -> Iterator[tuple[int, int]]:
        """(n, f) of baskets in which all members have sent, if the rule has rows enough there.

        Of each size up to 128, then of sizes 1/64 apart, and of the greatest.
        """
        basket = self.config.basket
        size = basket.min_clients
        while size <= basket.max_clients:
            if size >= self.least_rows(size):
                yield size, self.num_byzantine(size)
            further = size + max(1, size // 64)
            size = further if size == basket.max_clients else min(further, basket.max_clients)

    def sensitivity(self, facts: BasketFacts) -> float:
        """L2 bound on the change of a basket's vector when one unit of privacy changes; 0 of noised rows.

        Noised rows have their cost already (`site_noise`), and the vector is post-processing of them.

        *Where the client is the unit* it is the rule's own on rows of norm clip_norm (`privacy.sensitivity`),
        capped by the diameter of the ball that its result is clipped to; after a pre-aggregation, which
        spreads one row over others, the diameter alone. A rule from outside has the diameter too, unless its
        author claims less (`robust.rules.plugin`). All include what float32 adds (`FLOAT32_SLACK`).

        Earlier clip norms do not matter. The last step before the rule clips every row to the clip norm C
        that the facts name, so the rule's rows have norm C at most for either neighbour. C is the same for
        both, as it depends on releases alone. An aggregate that waited for a later release keeps its rule's
        bound at the C of its rows, and is clipped to the ball of this release.

        *Where a person (record) is the unit*, replacing one person of client i, whose number n_i of persons
        is public and stays, moves the mean over them by at most delta_i = 2 C / n_i, C being
        ``privacy.person_clip_norm``. So does a row made of several such means (the weights of a client's
        buffered updates add up to 1 at most, and which are accepted does not follow from what they hold: one
        for each round) and a clipped one (a projection moves no two points further
        apart). All other rows are the same, since they are functions of earlier releases and of other
        clients' persons. `ROW_SLACK` is added, and the rule's own constant takes both to the basket's vector;
        a rule without a constant keeps 2 C, and one from outside what its author claims for a whole client.
        There are no meta-parameters then.

        The facts state N = `persons_of` of the aggregate's rows, which is at most n_i for the client i that
        the person is of (times its share, where rows are weighted), so the bound from N covers it. *A false
        count* of another client can only lower N, to ``min_persons`` at the least: it adds noise and takes
        nobody's protection but its own persons'.
        """
        if not facts.fresh or self.site_noise is not None:
            return 0.0
        layer2 = self.config.layer2
        layer1 = self.at(facts.clip_norm or self.config.layer1.clip_norm).config.layer1
        radius = min(layer1.clip_norm, layer2.clip_norm)
        stretched = 1.0 + FLOAT32_SLACK
        if layer1.pre:
            by_rule = math.inf
        elif isinstance(self.rule, PluginRule):
            longest = layer1.clip_norm * stretched
            by_rule = self.rule.sensitivity(facts.num_rows, facts.num_byzantine, longest)
        else:
            by_rule = rule_sensitivity(
                layer1.aggregation_method,
                num_rows=facts.num_rows,
                num_byzantine=facts.num_byzantine,
                clip_norm=min(layer1.clip_norm, layer1.clipping_radius or math.inf),
                max_row_share=facts.max_row_share,
                row_move=self._row_move(facts.num_persons),
            )
        return min(by_rule, 2.0 * radius) * stretched + FLOAT32_SLACK * radius

    def _row_move(self, num_persons: int | None) -> float | None:
        """How far one person moves its client's row, rounding included; None: as far as a client does."""
        if self.person_clip_norm is None:
            return None
        persons = num_persons or self.config.privacy.min_persons or 1
        return 2.0 * self.person_clip_norm / persons + ROW_SLACK * self.config.layer1.clip_norm

    def release(
        self, baskets: Sequence[BasketFacts], *, registered: int | None = None, unsigned: int = 0
    ) -> ReleasePlan:
        """Weights, sensitivities and ring of a release by `baskets`, at least one of them fresh.

        Args:
            baskets: Facts of those that take part.
            registered: Baskets of the federation; those that take part if None.
            unsigned: Those of `baskets` that are not on the roster (`plan.session`).

        With adaptive clipping a basket of n rows adds the mean of n bits of -1/2 or 1/2, times the radius s:
        one client moves it by at most s/n, beside the rest of its vector, so by at most
        sqrt(Delta^2 + s^2/n^2) jointly. The noise is scaled to that, so that all coordinates together cost
        mu, and s is chosen so that the bits take `BIT_SHARE` of mu squared at most
        (`privacy.adaptive_clipping`).

        With k meta-parameters it adds the mean of n vectors in [-1, 1]^k, times r. Their norm is at most
        m = r sqrt(k), so one client moves it by at most 2 m/n: as bits of radius 2 m would. So m is the
        greatest with which they take `BIT_SHARE`, but Layer 2's clip norm at least. Under a rule with the
        sensitivity of a mean that is more, half of mu squared. No sum overflows (`reach`).
        """
        layer2 = self.config.layer2
        fresh = [b for b in baskets if b.fresh]
        shares = {b.basket_id: 0.0 for b in baskets} | {
            b.basket_id: (b.num_members if layer2.weight_by_size else 1.0)
            * layer2.basket_trust.get(b.domain_id, 1.0)
            for b in fresh
        }
        total = math.fsum(shares.values())
        weights = {basket: share / total if total else 0.0 for basket, share in shares.items()}
        sensitivities = {b.basket_id: self.sensitivity(b) for b in baskets}

        def widest_bits() -> float:
            return bit_radius([(weights[b.basket_id], sensitivities[b.basket_id], b.num_rows) for b in fresh])

        def add_bits(radius: float) -> None:
            for b in fresh:
                sensitivities[b.basket_id] = math.hypot(sensitivities[b.basket_id], radius / b.num_rows)

        meta_norm, bits = 0.0, 0.0
        if self.config.meta_parameters:
            stretched = 1.0 + FLOAT32_SLACK
            meta_norm = max(layer2.clip_norm, widest_bits() / (2.0 * stretched))
            add_bits(2.0 * meta_norm * stretched)
        if layer2.adaptive_clipping:
            bits = widest_bits()
            add_bits(bits)
        draft = ReleasePlan(
            weights=weights,
            sensitivities=sensitivities,
            ring_bits=32,
            scale=self._grid_steps(weights, sensitivities) / layer2.clip_norm,
            length=self.vector_length,
            mu=self.schedule.mu(self.step),
            step=None if self.schedule.is_constant else self.step,
            clip_norm=self.config.layer1.clip_norm,
            bit_radius=bits,
            meta_radius=meta_norm / math.sqrt(max(1, len(self.config.meta_parameters))),
            noise=layer2.noise if self.site_noise is None else None,
        )
        if layer2.noise is CentralNoise.DISTRIBUTED_DISCRETE_GAUSSIAN:
            draft = self._with_shares(draft, registered, unsigned)
        return draft if self.reach(draft) < 2.0**31 else replace(draft, ring_bits=64)

    def _grid_steps(self, weights: dict[str, float], sensitivities: dict[str, float]) -> float:
        """Grid steps to a clip norm in a release: `GRID_STEPS`, or more where one person moves it by little.

        Rounding adds sqrt(length) steps to the sensitivity, whatever it is (`ReleasePlan.grid_sensitivity`).
        """
        move = max(weight * sensitivities[basket] for basket, weight in weights.items())
        if self.person_clip_norm is None or move == 0.0:
            return GRID_STEPS
        most = move / self.config.layer2.clip_norm
        _, exponent = math.frexp(math.sqrt(self.vector_length) / (GRID_SHARE * most))
        return min(max(GRID_STEPS, 2.0**exponent), FINEST_GRID)

    def reach(self, release: ReleasePlan) -> float:
        """The greatest coordinate of a release's integer sum, the tail of its noise included.

        The weights add up to 1, so it is at most scale times the norm of one vector (or the meta-parameters'
        radius, or half the bits'), plus half a step for each basket, plus `NOISE_TAIL` standard deviations of
        noise.
        """
        radius = self.config.layer2.clip_norm * (1.0 + FLOAT32_SLACK)
        noise = NOISE_TAIL * release.grid_sigma(list(release.weights))
        widest = max(radius, release.meta_radius, release.bit_radius / 2.0)
        return release.scale * widest + len(release.weights) / 2 + noise

    def _with_shares(self, draft: ReleasePlan, registered: int | None, unsigned: int) -> ReleasePlan:
        """The release with noise in shares, on which the parties agree before they know who survives.

        So it is scaled to the sensitivity over all of them, and to the honest shares that are in any sum.
        """
        parties = list(draft.weights)
        honest = honest_shares(
            self.config.layer2, len(parties), registered=registered, idle=draft.num_idle, unsigned=unsigned
        )
        sigma = share_sigma(0.5 * draft.mu**2, honest, draft.grid_sensitivity(parties), draft.length)
        return replace(draft, share_sigma=sigma, num_honest=honest)

    @property
    def greatest_noise(self) -> float:
        """The tail of the noise of any release, in grid steps: that of one basket with all the weight."""
        if self.site_noise is not None:
            return 0.0
        widest = 2.0 * (math.sqrt(2.0) if self.config.meta_parameters else 1.0) * (1.0 + 2.0 * FLOAT32_SLACK)
        if self.config.layer2.adaptive_clipping:
            widest /= math.sqrt(1.0 - BIT_SHARE)
        steps = GRID_STEPS * widest
        if self.person_clip_norm is not None:
            # A grid finer than `GRID_STEPS` has less than twice the steps that `GRID_SHARE` asks for.
            steps = max(steps, 2.0 / GRID_SHARE * math.sqrt(self.vector_length))
        steps += math.sqrt(self.vector_length)
        least = self.mu_of_step(0)
        return NOISE_TAIL * steps / least if least else math.inf


def _times(cap: float, mu: float) -> float:
    if math.isinf(cap) or mu == 0.0:
        return math.inf
    return float(math.floor((cap / mu) ** 2 * ROUNDING))
