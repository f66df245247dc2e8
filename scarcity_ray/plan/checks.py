"""Makes the plan of a config, or a `ConfigError` that names values which cannot work together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from scarcity_ray.config import (
    AggregationMethod,
    CentralNoise,
    HierarchicalFederationConfig,
    Layer2Config,
    NoisePlace,
    PrivacyUnit,
)
from scarcity_ray.config.arguments import number_of
from scarcity_ray.errors import ConfigError, UsageError
from scarcity_ray.plan.federation import FederationPlan
from scarcity_ray.plan.session import honest_shares
from scarcity_ray.privacy.accounting.modes import Accounting
from scarcity_ray.robust import PluginRule
from scarcity_ray.secagg.graph import COMPLETE_UP_TO
from scarcity_ray_client.site_noise import MOST_STEPS, SiteNoise

NOISE_REACH = 2.0**53
"""Least size of noise, in grid steps, that float64 no longer resolves to one step."""


def make_plan(config: HierarchicalFederationConfig) -> FederationPlan:
    """Derive a federation's numbers.

    Raises:
        ConfigError: If the config's values cannot work together; the error names the one to change.
        UsageError: For a rule from outside that cannot be loaded, or states what it may not.

    >>> from scarcity_ray.config import HierarchicalFederationConfig
    >>> make_plan(HierarchicalFederationConfig()).least_rows(10)
    7
    """
    plan = FederationPlan(config)
    _check_layer1(plan)
    _check_schedule(config)
    _check_site_noise(plan)
    _check_budget(plan)
    if not config.layer2.enabled:
        _check_alone(plan)
    if config.layer2.adaptive_clipping:
        _check_adaptation(plan)
    _check_shares(config.layer2)
    _check_unit(config)
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


def _check_alone(plan: FederationPlan) -> None:
    config = plan.config
    if config.meta_parameters:
        raise ConfigError(
            "meta_parameters", dict(config.meta_parameters), "none without Layer 2, which alone carries them"
        )
    if config.layer2.adaptive_clipping:
        raise ConfigError(
            "layer2.adaptive_clipping", True, "false without Layer 2, which alone tells baskets a clip norm"
        )


def _check_layer1(plan: FederationPlan) -> None:
    basket, layer1 = plan.config.basket, plan.config.layer1
    smallest, rule = basket.min_clients, layer1.aggregation_method
    f = plan.num_byzantine(smallest)
    for name, value, only, use in (
        ("num_selected", layer1.num_selected, AggregationMethod.MULTI_KRUM, "selects a given number of rows"),
        ("clipping_radius", layer1.clipping_radius, AggregationMethod.CENTERED_CLIPPING, "has a radius"),
        ("max_examples", layer1.max_examples, AggregationMethod.WEIGHTED, "weighs clients by their examples"),
    ):
        if value is not None and rule is not only:
            raise ConfigError(f"layer1.{name}", value, f"null for {rule.value}; only {only.value} {use}")
    if isinstance(plan.rule, PluginRule):
        for num_rows, byzantine in ((plan.least_rows(smallest), f), *plan.rule_settings()):
            plan.rule.sensitivity(num_rows, byzantine, layer1.clip_norm)
    elif layer1.rule_args or layer1.rule_timeout_seconds is not None:
        name = "rule_args" if layer1.rule_args else "rule_timeout_seconds"
        given = dict(layer1.rule_args) or layer1.rule_timeout_seconds
        raise ConfigError(f"layer1.{name}", given, f"none for {rule.value}; only a rule from outside has it")
    if layer1.pre and rule is AggregationMethod.WEIGHTED:
        raise ConfigError("layer1.pre", layer1.pre, "none before weighted, whose weights are of single rows")
    by_rule = plan.rule_rows(f)
    if by_rule > max(smallest, plan.rule_rows(0)):
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


def _check_budget(plan: FederationPlan) -> None:
    config, gossip, layer2 = plan.config, plan.config.gossip, plan.config.layer2
    if plan.site_noise is not None:
        delta = config.privacy.row_delta or config.total_delta
        if plan.num_releases < 1:
            raise ConfigError(
                "privacy.row_epsilon",
                config.privacy.row_epsilon,
                f"{_most(plan.accounting, plan.mu_total, delta)} at row_delta = {delta:g}, with which one "
                f"row fits into total_epsilon = {config.total_epsilon:g}",
            )
        return
    gossips = plan.gossip_share == 0 or plan.num_gossip_rounds >= 1
    releases = not layer2.enabled or plan.num_releases >= 1
    budget = f"total_epsilon = {config.total_epsilon:g}"
    central = "" if releases else _most(plan.accounting, plan.central_mu_cap, layer2.central_dp_delta)
    if not gossips:
        local = _most(Accounting.GAUSSIAN_DP, plan.gossip_mu_cap, gossip.local_dp_delta)
        raise ConfigError(
            "gossip.local_dp_epsilon",
            gossip.local_dp_epsilon,
            f"{local}, with which one release fits into the gossip's share, {plan.gossip_share:g} of what "
            f"{budget} buys (or gossip_budget_share: 0, which turns gossip off)"
            + ("" if releases else f"; and for layer2.central_dp_epsilon {central}"),
        )
    if not releases:
        raise ConfigError(
            "layer2.central_dp_epsilon",
            layer2.central_dp_epsilon,
            f"{central}, with which one release fits into {budget} less the gossip's share",
        )


def _check_schedule(config: HierarchicalFederationConfig) -> None:
    decay = config.privacy.noise_decay
    if decay == 1.0:
        return
    if not config.layer2.enabled:
        raise ConfigError(
            "privacy.noise_decay", decay, "1 without Layer 2: gossip's noise is the same in every round"
        )
    spent = ("layer2.central_dp_epsilon", config.layer2.central_dp_epsilon)
    if config.privacy.noise is NoisePlace.SITE:
        spent = ("privacy.row_epsilon", config.privacy.row_epsilon or 0.0)
    for name, epsilon in (("total_epsilon", config.total_epsilon), spent):
        if math.isinf(epsilon):
            raise ConfigError(
                "privacy.noise_decay", decay, f"1 with {name} = inf: noise falls over a budget's last release"
            )


def _most(accounting: Accounting, mu_cap: float, delta: float) -> str:
    """The largest epsilon of three digits with which one release fits."""
    epsilon = accounting.epsilon_of(mu_cap, delta)
    if epsilon < 1e-9:
        return f"none at the delta of {delta:g}, which must be smaller"
    place = math.floor(math.log10(epsilon)) - 2
    digits = math.floor(epsilon / 10.0**place)
    while digits > 1 and accounting.mu_of_claim(float(f"{digits}e{place}"), delta) > mu_cap:
        digits -= 1
    return f"at most {float(f'{digits}e{place}'):g}"


def _check_adaptation(plan: FederationPlan) -> None:
    config, layer2 = plan.config, plan.config.layer2
    low, high = layer2.clip_norm_range
    if not low <= config.layer1.clip_norm <= high:
        raise ConfigError(
            "layer2.clip_norm_range",
            layer2.clip_norm_range,
            f"a range around layer1.clip_norm = {config.layer1.clip_norm}, where adaptation starts",
        )
    try:
        plan.at(low), plan.at(high)
    except ConfigError as error:
        raise ConfigError(
            "layer2.clip_norm_range",
            layer2.clip_norm_range,
            f"a range along which layer2.clip_norm and layer1.clipping_radius stay {error.accepted}",
        ) from None
    liars = plan.num_byzantine(config.basket.min_clients) / config.basket.min_clients
    if not liars < layer2.clip_quantile < 1.0 - liars:
        raise ConfigError(
            "layer2.clip_quantile",
            layer2.clip_quantile,
            f"between {liars:.3g} and {1.0 - liars:.3g}: else the Byzantine clients that layer1 reckons "
            "with could drive the clip norm to an end of its range by themselves",
        )
    if not layer2.distribute_to_baskets:
        raise ConfigError(
            "layer2.distribute_to_baskets",
            False,
            "true with adaptive_clipping: the clip norm reaches the baskets with the release",
        )
    if "clip_norm" in config.meta_parameters:
        raise ConfigError(
            "meta_parameters.clip_norm",
            config.meta_parameters["clip_norm"],
            "another name: it is learned already",
        )


def _check_shares(layer2: Layer2Config) -> None:
    if not layer2.enabled or layer2.noise is not CentralNoise.DISTRIBUTED_DISCRETE_GAUSSIAN:
        return
    if not layer2.use_secure_aggregation:
        raise ConfigError(
            "layer2.noise",
            layer2.noise.value,
            "gaussian or discrete_gaussian with use_secure_aggregation: false; without masks each basket's "
            "vector would be seen with its own share of the noise alone",
        )
    for num_parties in range(layer2.min_baskets, max(layer2.min_baskets, COMPLETE_UP_TO) + 1):
        honest_shares(layer2, num_parties)


def _check_unit(config: HierarchicalFederationConfig) -> None:
    privacy = config.privacy
    if privacy.unit is PrivacyUnit.CLIENT:
        for name, value in (
            ("person_clip_norm", privacy.person_clip_norm),
            ("min_persons", privacy.min_persons),
        ):
            if value is not None:
                raise ConfigError(f"privacy.{name}", value, "null where privacy.unit is client")
        return
    unit = f"privacy.unit: {privacy.unit.value}"
    _check_min_persons(config)
    clip_norm = config.layer1.clip_norm
    if (privacy.person_clip_norm or clip_norm) > clip_norm:
        raise ConfigError(
            "privacy.person_clip_norm",
            privacy.person_clip_norm,
            f"at most layer1.clip_norm = {clip_norm:g}, which would clip honest rows otherwise",
        )
    if not config.layer2.enabled:
        raise ConfigError("layer2.enabled", False, f"true with {unit}, whose claim is of releases")
    is_central = privacy.noise is NoisePlace.CENTRAL
    if config.gossip_budget_share and is_central:
        raise ConfigError(
            "gossip_budget_share",
            config.gossip_budget_share,
            f"0 with {unit}: gossip is noised for a whole client (or privacy.noise: site, under which it "
            "costs nothing)",
        )
    if config.layer2.adaptive_clipping:
        raise ConfigError(
            "layer2.adaptive_clipping",
            True,
            f"false with {unit}: one {privacy.unit.value} can turn a client's whole bit, however many "
            "there are"
            if is_central
            else "false with privacy.noise: site: a clip norm below that of noised rows would destroy them",
        )
    if config.meta_parameters:
        raise ConfigError(
            "meta_parameters",
            dict(config.meta_parameters),
            f"none with {unit}: one {privacy.unit.value} can change a client's whole report",
        )


def _check_min_persons(config: HierarchicalFederationConfig) -> None:
    unit = config.privacy.unit.value
    if config.privacy.min_persons is None:
        raise ConfigError(
            "privacy.min_persons",
            None,
            f"a number with privacy.unit: {unit}: one {unit} moves a row by 2 person_clip_norm / min_persons "
            "at most, and smaller clients are refused",
        )


def _check_site_noise(plan: FederationPlan) -> None:
    config, privacy, layer1 = plan.config, plan.config.privacy, plan.config.layer1
    site = "privacy.noise: site"
    if config.retain_rounds:
        needed = (
            (site, plan.site_noise is not None, "a row without noise is kept until it is in an aggregate"),
            ("receipts: true", config.receipts, "what is retained is shown by what receipts publish"),
            (
                "runtime.gpus_per_actor: 0",
                config.runtime.gpus_per_actor == 0.0,
                "a replay asks for the same bytes, and a GPU adds in an order of its own",
            ),
        )
        for setting, is_there, why in needed:
            if not is_there:
                raise ConfigError("retain_rounds", config.retain_rounds, f"0 without {setting}: {why}")
    if plan.site_noise is None:
        for name, value in (
            ("privacy.row_epsilon", privacy.row_epsilon),
            ("privacy.row_delta", privacy.row_delta),
        ):
            if value is not None:
                raise ConfigError(name, value, f"null without {site}: no row is noised")
        if layer1.momentum:
            raise ConfigError(
                "layer1.momentum",
                layer1.momentum,
                f"0 without {site}: only noised rows may enter more than one release",
            )
        return
    if privacy.unit is PrivacyUnit.CLIENT:
        raise ConfigError(
            "privacy.noise",
            privacy.noise.value,
            "central with privacy.unit: client: noise that hides a whole client in its own row drowns it",
        )
    if privacy.row_epsilon is None:
        raise ConfigError(
            "privacy.row_epsilon",
            None,
            f"a number with {site}: the epsilon of one row at row_delta, in the place of "
            "layer2.central_dp_epsilon, which is not used then; `scarcity-ray plan` prints the one that buys "
            "the rounds while noise is central",
        )
    if privacy.person_clip_norm is None:
        raise ConfigError(
            "privacy.person_clip_norm",
            None,
            f"a number with {site}: the norm of rows before noise, which layer1.clip_norm must exceed by the "
            "noise",
        )
    _check_min_persons(config)
    if config.layer2.noise is CentralNoise.DISTRIBUTED_DISCRETE_GAUSSIAN:
        raise ConfigError(
            "layer2.noise",
            config.layer2.noise.value,
            f"gaussian or discrete_gaussian with {site}, the law of a row's noise; baskets add no shares",
        )
    noise = plan.site_noise
    if not noise.grid_sigma(noise.min_persons) <= MOST_STEPS:
        raise ConfigError(
            "privacy.row_epsilon",
            privacy.row_epsilon,
            "an epsilon whose noise fits into 2^50 steps of a row's grid; any in earnest does",
        )
    for name, clip_norm, least in _short_clip_norms(plan, noise):
        raise ConfigError(
            name,
            clip_norm,
            f"at least {least:.4g} = C + sigma (sqrt(d) + 3) with {site}: C = person_clip_norm = "
            f"{noise.clip_norm:g}, and a row of min_persons = {noise.min_persons} has noise of sigma "
            f"{noise.sigma(noise.min_persons):.3g} in each of {noise.dimension} coordinates; clipped, it "
            "would be noise alone",
        )


def check_renewal(plan: FederationPlan, total_epsilon: float, total_delta: float) -> None:
    """Refuse new totals that a schedule of noise cannot be spread over.

    Infinite ones have no last release. Smaller ones buy fewer rows, of which the first is charged less, so
    that it may have more noise than the clip norms leave be.

    Raises:
        UsageError: If the totals cannot work with the plan.
    """
    noise, schedule = plan.site_noise, plan.row_schedule
    total_epsilon = number_of("total_epsilon", total_epsilon)
    total_delta = number_of("total_delta", total_delta)
    decay = plan.config.privacy.noise_decay
    if decay < 1.0 and math.isinf(total_epsilon):
        raise UsageError(
            f"total_epsilon: inf is not accepted with privacy.noise_decay = {decay:g}: noise falls over a "
            "budget's last release"
        )
    if noise is None or schedule.is_constant or not (total_epsilon > 0.0 and 0.0 < total_delta < 1.0):
        return  # the accountant refuses the others
    cap = plan.accounting.mu_of_claim(total_epsilon, total_delta) ** 2
    first = replace(noise, mu=schedule.mu(schedule.step_of(cap, 0)))
    for name, clip_norm, least in _short_clip_norms(plan, first):
        raise UsageError(
            f"total_epsilon: {total_epsilon:g} at delta {total_delta:g} is not accepted with "
            f"privacy.noise_decay = {decay:g}: it buys "
            f"{schedule.num_releases(cap):.0f} rows, the first of which would have so much noise that "
            f"{name} = {clip_norm:g}, below {least:.4g}, clips it; renew with a larger one"
        )


def _short_clip_norms(plan: FederationPlan, noise: SiteNoise) -> Iterator[tuple[str, float, float]]:
    """The clip norms that would clip honest noised rows: name, value, and the least that would not."""
    config, least = plan.config, noise.least_clip_norm
    # Layer 2 clips what a rule made of the rows: a small norm there limits a basket that liars hold.
    clipping = [("layer1.clip_norm", config.layer1.clip_norm)]
    if config.gossip_budget_share:
        clipping.append(("gossip.clip_norm", config.gossip.clip_norm))
    return ((name, clip_norm, least) for name, clip_norm in clipping if clip_norm < least)
