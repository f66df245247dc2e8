"""``scarcity-ray plan``: prints what follows from a config; every number comes from `forecast`."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.config import HierarchicalFederationConfig, PrivacyUnit, load
from scarcity_ray.errors import ConfigError
from scarcity_ray.forecast import (
    MEASURED,
    Forecast,
    Rates,
    Warned,
    probe,
    round_seconds,
    scaled,
    solve_for_rounds,
    warnings_of,
    weak_settings,
)
from scarcity_ray.forecast.noise_places import proven_kappa, site_sigma, with_site_noise
from scarcity_ray.plan import AGAINST, FederationPlan, fewest_parties, make_plan, person_claim, session_shape
from scarcity_ray.privacy.accounting.modes import Accounting, rho_of_mu
from scarcity_ray.robust import PluginRule
from scarcity_ray.workloads.config import load_job, read_content
from scarcity_ray.workloads.records import finite
from scarcity_ray_client.loading import search_beside

_FEDERATION = tuple(field.name for field in fields(HierarchicalFederationConfig))
SECTIONS = (
    *("baskets", "budget", "privacy", "release", "signal", "site_noise", "clipping", "ring"),
    *("gossip", "traffic", "seconds", "changes", "solved"),
)


@dataclass(frozen=True)
class Planned:
    """The federation, its baskets and rounds that a plan is made for.

    Attributes:
        sizes: Clients of each basket.
        rounds: Rounds that are wanted; None: as many as the budget buys.
        assumed: What was assumed of the clients, in words; empty where the file or the options say it.
        where: Where the federation's settings stand in the file.
        learning_rate: The server's in the file; None where it has none.
        persons: Of each of the file's clients; empty where it does not say.
    """

    federation: HierarchicalFederationConfig
    sizes: tuple[int, ...]
    rounds: int | None
    assumed: str = ""
    where: str = "federation"
    learning_rate: float | None = None
    persons: tuple[int, ...] = ()


def plan_command(
    config: str,
    overrides: tuple[str, ...],
    form: str,
    rounds: int | None = None,
    epsilon: float | None = None,
    measure: bool = False,
    clients: int | None = None,
    baskets: int | None = None,
    recommend: bool = False,
    attackers: int | None = None,
    likeness: str | None = None,
    update_norm: float | None = None,
    back_doors: bool = False,
    scale: bool = False,
    cores: int | None = None,
) -> ExitCode:
    """Print the plan of a config file.

    Args:
        config: The file: of a job, or a driver's, which has no workload.
        overrides: ``path=value`` each.
        rounds: Solve for the noise at which the budget buys as many.
        epsilon: Plan with this total epsilon instead of the file's.
        measure: Predict seconds by this machine's rates, which are probed first.
        clients: Plan for so many, whatever the file says.
        baskets: Plan for so many, of equal size.
        recommend: Print which rule, clip norm and baskets to choose instead (`cli.recommend`).
        attackers, likeness, update_norm, back_doors: For that alone.
        scale: Print seconds and memory of a round on clusters instead (`cli.scale`).
        cores: Of a node, for that alone.
    """
    if cores is not None and not scale:
        raise ConfigError("--cores", cores, "only with --scale")
    asked = {
        "--attackers": attackers,
        "--clients-are": likeness,
        "--update-norm": update_norm,
        "--back-doors": back_doors or None,
    }
    if not recommend and (alone := [name for name, value in asked.items() if value is not None]):
        raise ConfigError(alone[0], asked[alone[0]], "only with --recommend")
    if scale:
        from scarcity_ray.cli.scale import scale_command

        federation = load_planned(config, overrides).federation
        speed = scaled(probe(time.process_time)) if measure else MEASURED
        return scale_command(federation, form, speed, clients, cores or 8)
    planned = _solved(load_planned(config, overrides, clients, baskets), rounds, epsilon)
    if recommend:
        from scarcity_ray.cli.recommend import recommend_command

        return recommend_command(
            planned,
            form,
            attackers=attackers,
            likeness=likeness or "mixed",
            update_norm=update_norm,
            back_doors=back_doors,
        )
    rates = scaled(probe(time.process_time)) if measure else MEASURED
    numbers = planned_numbers(planned, rates)
    if rounds is not None or epsilon is not None:
        row_epsilon = planned.federation.privacy.row_epsilon
        numbers["solved"] = _what_was_solved(numbers, rounds, epsilon, row_epsilon)
    if form == "json":
        click.echo(json.dumps(numbers))
    else:
        _print(numbers, Console(highlight=False, soft_wrap=True))
    return ExitCode.DONE


def load_planned(
    path: str, overrides: tuple[str, ...], clients: int | None = None, baskets: int | None = None
) -> Planned:
    """Read a job's file, or a driver's: one with ``federation:`` and no workload, or with its settings alone.

    Raises:
        ConfigError: If the file, an override or a number of clients or baskets is not accepted.
    """
    content = read_content(path, overrides)
    search_beside(path)
    if "workload" in content or not content.keys() & {"federation", *_FEDERATION}:
        # A served job's clients are its sites, of which its workload knows none.
        is_served = content.get("gateway") is not None
        job = load_job(path, overrides, is_served=is_served)
        rate = job.config.training.server_optimizer().learning_rate
        if clients is None and baskets is None and not is_served:
            rounds = job.config.training.rounds
            known = [client.num_persons for client in job.clients]
            persons = tuple(each for each in known if each is not None)
            return Planned(
                job.config.federation,
                job.basket_sizes,
                rounds,
                learning_rate=rate,
                persons=persons if len(persons) == len(known) else (),
            )
        crowd = _crowd(job.config.federation, clients, baskets, "federation")
        return replace(crowd, learning_rate=rate)
    if "federation" not in content:
        return _crowd(load(HierarchicalFederationConfig, content), clients, baskets, "")
    unknown = sorted(content.keys() - {"federation", "name"})
    if unknown:
        raise ConfigError(unknown[0], content[unknown[0]], "only federation beside it, or a workload too")
    federation = load(HierarchicalFederationConfig, content["federation"], "federation")
    return _crowd(federation, clients, baskets, "federation")


def _crowd(
    federation: HierarchicalFederationConfig, clients: int | None, baskets: int | None, where: str
) -> Planned:
    """So many clients in so many baskets; where not said, the fewest that a release can be made of."""
    plan = _plan_of(federation, where)
    least = federation.layer2.min_baskets if federation.layer2.enabled else 1
    count = least if baskets is None else baskets
    if count < least:
        raise ConfigError("--baskets", count, f"at least {least} (layer2.min_baskets)")
    basket = federation.basket
    each = next((n for n in range(basket.min_clients, basket.max_clients + 1) if _works(plan, n)), None)
    if clients is None and each is None:
        raise ConfigError("--clients", None, "a number: no size of a basket suits the rule by itself")
    total = count * (each or 1) if clients is None else clients
    if total < count:
        raise ConfigError("--clients", total, f"at least one for each of the {count} baskets")
    fewer, more = divmod(total, count)
    sizes = tuple(fewer + (place < more) for place in range(count))
    smallest = min(sizes)
    if smallest < plan.least_rows(smallest):
        raise ConfigError(
            "--clients",
            total,
            f"more, or fewer --baskets: a basket of {smallest} is too small for "
            f"{federation.layer1.aggregation_method.value}, which needs {plan.least_rows(smallest)} rows",
        )
    given = [name for name, value in (("--clients", clients), ("--baskets", baskets)) if value is None]
    assumed = (
        f"{count} baskets of {fewer}{f' to {fewer + 1}' if more else ''} clients are assumed; "
        f"say otherwise with {' and '.join(given)}"
    )
    return Planned(federation, sizes, None, assumed if given else "", where)


def _works(plan: FederationPlan, size: int) -> bool:
    """Whether a basket of this size can aggregate, and against a liar if the config reckons with any."""
    layer1 = plan.config.layer1
    reckons = layer1.byzantine_fraction if layer1.num_byzantine is None else layer1.num_byzantine
    return plan.least_rows(size) <= size and (not reckons or plan.num_byzantine(size) > 0)


def forecast_of(planned: Planned) -> Forecast:
    """The forecast for these baskets and rounds."""
    bought = FederationPlan(planned.federation).num_releases
    rounds = planned.rounds or (int(bought) if 1 <= bought < math.inf else 1)
    return Forecast(planned.federation, planned.sizes, rounds)


def planned_numbers(planned: Planned, rates: Rates = MEASURED) -> dict[str, Any]:
    """Every number of the plan, by section, when all clients take part; None: no limit."""
    forecast = forecast_of(planned)
    federation, plan, release = planned.federation, forecast.plan, forecast.release
    smallest, gossip, seconds = min(forecast.sizes), plan.gossip, round_seconds(forecast, rates)
    counted_on = _counted_on(forecast)
    received = min(federation.gossip.peers_per_round, smallest - 1)
    numbers: dict[str, Any] = {
        "baskets": {
            "number": len(forecast.sizes),
            "clients_each": {str(size): count for size, count in sorted(Counter(forecast.sizes).items())},
            "rule": federation.layer1.aggregation_method.value,
            "byzantine_clients_assumed": plan.num_byzantine(smallest),
            "least_updates": plan.least_rows(smallest),
            "least_baskets_of_a_release": max(
                federation.layer2.min_baskets, counted_on.get("fresh_baskets_needed", 0)
            ),
            "least_survivors_of_a_session": forecast.survivors_needed,
            **counted_on,
            "sizes_that_never_aggregate": list(forecast.stuck_sizes),
        },
        "budget": {
            "epsilon": federation.total_epsilon,
            "delta": federation.total_delta,
            "accounting": plan.accounting.value,
            **_charged(plan, "_total", plan.mu_total),
            "share_of_gossip": plan.gossip_share,
            **_charged(plan, "_for_releases", plan.central_mu_cap),
            **_charged(
                plan,
                f"_for_{'gossip' if plan.site_noise is None else 'rows'}_of_a_client",
                plan.gossip_mu_cap,
            ),
        },
        "privacy": _privacy(federation),
        "release": {
            "epsilon": federation.layer2.central_dp_epsilon,
            "noise": federation.layer2.noise.value,
            **_charged(plan, "", release.mu),
            "releases_that_the_budget_buys": plan.num_releases,
            **({} if planned.rounds is None else {"rounds_configured": planned.rounds}),
            "sensitivity": forecast.sensitivity,
            "sensitivity_at_most": forecast.sensitivity_of_liars,
            **_stated(forecast),
            "noise_sigma_per_coordinate": forecast.sigma,
            **({} if plan.schedule.is_constant else {"noise_sigma_of_the_last": forecast.sigma_of_last}),
            "coordinates": release.length,
            **_reported(forecast),
        },
        "signal": {
            "norm_at_most": forecast.signal_bound,
            "noise_norm": forecast.noise_norm,
            "noise_norm_with_least_updates": forecast.noise_norm_at_least_rows,
            "signal_to_noise_of_a_release": forecast.signal_to_noise,
            "signal_to_noise_of_all_rounds": forecast.signal_to_noise_over_all_rounds,
        },
        "site_noise": _site_noise(planned, forecast),
        "ring": {
            "bits": release.ring_bits,
            "steps_to_a_unit": release.scale,
            "headroom_bits": forecast.headroom_bits,
        },
        "gossip": {
            "epsilon_a_round": federation.gossip.local_dp_epsilon,
            "rounds_that_the_share_buys": plan.num_gossip_rounds,
            "noise_sigma_on_drift": gossip.sigma_drift,
            "noise_sigma_per_coordinate": gossip.sigma_vector,
            "noise_norm": math.sqrt(gossip.noise_energy),
            "clip_norm": gossip.clip_norm,
            "messages_received": received,
            "mixing_weight": gossip.mixing_weight(received),
        },
        "traffic": {f"{name}_bytes": count for name, count in asdict(forecast.traffic).items()},
        "seconds": {
            **asdict(seconds),
            "a_round_on_one_core": seconds.on_one_core,
            "one_core_of": "the reference machine" if rates is MEASURED else "this machine, as probed",
        },
        "clipping": _adaptation(forecast) if federation.layer2.adaptive_clipping else {},
        "changes": {
            "rounds_until_noise_is_as_large_as_signal": forecast.rounds_at_equal_noise,
            "baskets_until_noise_is_no_larger_than_signal": forecast.baskets_at_equal_noise,
        },
        "solved": {},
        "rules": [finite({**asdict(cost), "rule": cost.rule.value}) for cost in forecast.rules],
        "warnings": [
            {**asdict(warning), "remedies": list(warning.remedies)}
            for warning in (
                *warnings_of(forecast),
                *_all_needed(forecast, counted_on),
                *weak_settings(federation, sum(planned.sizes)),
            )
        ],
    }
    if planned.assumed:
        numbers["baskets"]["assumed"] = planned.assumed
    if plan.site_noise is not None:
        _leave_out_central_noise(numbers, plan)
    if not federation.layer2.enabled:
        _leave_out_layer2(numbers, counted_on, planned.rounds)
    for title in SECTIONS:
        numbers[title] = finite(numbers[title])
    return numbers


def _privacy(federation: HierarchicalFederationConfig) -> dict[str, Any]:
    """What the whole budget is worth to a person or record; nothing where the client is the unit."""
    claim = person_claim(federation, federation.total_epsilon)
    if claim is None:
        return {}
    unit = claim.unit.value
    return {
        "unit": f"{unit}, against {AGAINST[claim.noise]} ({claim.noise.value} noise)",
        "norm_of_a_contribution_at_most": claim.person_clip_norm,
        f"least_{unit}s_of_a_client": claim.min_persons,
        "membership_advantage_at_most": claim.membership_advantage,
        "true_positives_at_1_percent_false_ones": claim.true_positives,
        f"epsilon_of_a_{unit}_at_two_clients": claim.two_clients_epsilon,
        **({"epsilon_of_10_records": claim.ten_records_epsilon} if claim.unit is PrivacyUnit.RECORD else {}),
        "epsilon_of_a_whole_client_with_as_few": claim.client_epsilon,
    }


def _site_noise(planned: Planned, forecast: Forecast) -> dict[str, Any]:
    """What noise at the site costs the file's rule, or would; nothing where the client is the unit."""
    federation, clients = planned.federation, sum(planned.sizes)
    if federation.privacy.unit is PrivacyUnit.CLIENT or math.isinf(federation.total_epsilon):
        return {}
    at_site = federation
    if forecast.plan.site_noise is None:
        at_site = with_site_noise(federation, forecast.rounds)
    root = math.sqrt(federation.vector_dim)
    sigma = forecast.row_noise_norm / root or site_sigma(federation, forecast.rounds)
    mean, kappa = sigma * root / math.sqrt(clients), proven_kappa(federation, min(planned.sizes))
    contribution = federation.privacy.person_clip_norm or federation.layer1.clip_norm
    return {
        "row_epsilon": at_site.privacy.row_epsilon,
        "noise_sigma_of_a_row": sigma,
        "noise_norm_of_a_row": sigma * root,
        "noise_norm_of_the_mean": mean,
        "noise_of_the_mean_over_central_noise": f"sqrt({clients}) = {math.sqrt(clients):.3g}",
        "error_of_the_rule_at_most": "not known for this rule"
        if kappa is None
        else f"{math.sqrt(kappa) * sigma * root:.3g} if honest rows are alike before noise, more if not",
        "layer1.clip_norm_at_least": contribution + sigma * (root + 3.0),
    }


def _stated(forecast: Forecast) -> dict[str, Any]:
    """What a rule from outside states of itself, which only its author answers for."""
    rule, plan, size = forecast.plan.rule, forecast.plan, min(forecast.sizes)
    if not isinstance(rule, PluginRule) or forecast.config.layer1.pre:
        return {}
    stated = rule.sensitivity(size, plan.num_byzantine(size), forecast.config.layer1.clip_norm)
    return {
        "rule_sensitivity_its_author_claims": stated,
        "rule_sensitivity_proof": rule.reference or "none needed: twice the clip norm",
    }


def _reported(forecast: Forecast) -> dict[str, Any]:
    """The noise on meta-parameters, and what they cost the model."""
    names = forecast.config.meta_parameters
    if not names:
        return {}
    return {
        "meta_parameters": len(names),
        "noise_sigma_of_them_over_their_range": forecast.meta_noise,
        "noise_is_larger_through_them_by_the_factor": forecast.meta_factor,
    }


def _adaptation(forecast: Forecast) -> dict[str, Any]:
    """The effect and cost of adaptive clipping; the release's numbers are those of its first clip norm."""
    layer2 = forecast.config.layer2
    low, high = layer2.clip_norm_range
    return {
        "clip_norm_starts_at": forecast.config.layer1.clip_norm,
        "clip_norm_at_least": low,
        "clip_norm_at_most": high,
        "quantile_of_the_norms": layer2.clip_quantile,
        "noise_is_larger_by_the_factor": forecast.adaptation_factor,
        "noise_sigma_on_the_share_below": forecast.share_noise,
        "factor_of_a_step_up_at_most": math.exp(layer2.clip_learning_rate * layer2.clip_quantile),
        "factor_of_a_step_down_at_most": math.exp(-layer2.clip_learning_rate * (1.0 - layer2.clip_quantile)),
    }


def _counted_on(forecast: Forecast) -> dict[str, int]:
    """Whom secure aggregation counts on, and how many baskets may be missing from a session of all."""
    layer2, baskets = forecast.config.layer2, len(forecast.sizes)
    if not layer2.use_secure_aggregation or baskets < 2:
        return {}
    shape = session_shape(layer2, baskets)
    return {
        "corrupt_baskets_assumed": shape.num_corrupt,
        "honest_baskets_counted_on": shape.num_honest,
        "fresh_baskets_needed": shape.least_weighted,
        "baskets_that_may_be_missing": baskets - fewest_parties(layer2, baskets),
        "baskets_that_may_drop_out": baskets - max(shape.threshold, shape.least_weighted),
    }


def _all_needed(forecast: Forecast, counted_on: dict[str, int]) -> tuple[Warned, ...]:
    """A note where no basket may be missing though ``layer2.min_baskets`` are fewer."""
    layer2, baskets = forecast.config.layer2, len(forecast.sizes)
    may_be_missing = counted_on.get("baskets_that_may_be_missing", 1)
    if not layer2.enabled or may_be_missing or baskets <= layer2.min_baskets:
        return ()
    words = "three" if baskets == 3 else str(baskets)
    message = f"with {baskets} baskets all {words} must be there and fresh for a release"
    return (Warned("all_baskets_needed", message, loud=False, about="privacy"),)


def _leave_out_central_noise(numbers: dict[str, Any], plan: FederationPlan) -> None:
    """Where clients noise their rows: what a row costs in a release's place, and no price of rules."""
    release, privacy = numbers["release"], plan.config.privacy
    charged = _charged(plan, "", plan.mu_row)
    for name in ("sensitivity", "sensitivity_at_most", "noise_sigma_per_coordinate", *charged):
        del release[name]
    numbers["release"] = {**release, "epsilon": privacy.row_epsilon, **charged}
    numbers["gossip"] = {
        name: numbers["gossip"][name]
        for name in ("clip_norm", "messages_received", "mixing_weight")
        if plan.config.gossip_budget_share
    }
    numbers["rules"].clear()


def _leave_out_layer2(numbers: dict[str, Any], counted_on: dict[str, int], rounds: int | None) -> None:
    """Without Layer 2 there is no release to speak of: baskets stay by themselves."""
    for title in ("release", "signal", "ring", "changes", "rules"):
        numbers[title].clear()
    for name in ("least_baskets_of_a_release", "least_survivors_of_a_session", *counted_on):
        del numbers["baskets"][name]
    del numbers["budget"]["mu_for_releases"]
    del numbers["traffic"]["secure_sum_bytes"], numbers["traffic"]["model_bytes"]
    del numbers["seconds"]["secure_sum"], numbers["seconds"]["release"]
    if rounds is not None:
        numbers["gossip"] = {"rounds_configured": rounds, **numbers["gossip"]}


def _charged(plan: FederationPlan, what: str, mu: float) -> dict[str, float]:
    """A number that the ledger adds up, by the name that it has there: mu, or rho of zCDP."""
    return {f"rho{what}": rho_of_mu(mu)} if plan.accounting is Accounting.ZCDP else {f"mu{what}": mu}


def _solved(planned: Planned, rounds: int | None, epsilon: float | None) -> Planned:
    federation = planned.federation
    try:
        if epsilon is not None:
            federation = replace(federation, total_epsilon=epsilon)
        if rounds is not None:
            federation = solve_for_rounds(federation, rounds)
    except ConfigError as error:
        path = "--rounds" if error.path == "rounds" else "--epsilon"
        raise ConfigError(path, error.value, error.accepted) from None
    _plan_of(federation, planned.where)
    return replace(planned, federation=federation, rounds=rounds or planned.rounds)


def _plan_of(federation: HierarchicalFederationConfig, where: str) -> FederationPlan:
    try:
        return make_plan(federation)
    except ConfigError as error:
        raise error.under(where) from None


def _what_was_solved(
    numbers: dict[str, Any], rounds: int | None, epsilon: float | None, row_epsilon: float | None
) -> dict[str, Any]:
    """The settings that were solved for, by path, and what they buy."""
    solved: dict[str, Any] = {}
    if epsilon is not None:
        solved["federation.total_epsilon"] = numbers["budget"]["epsilon"]
    if rounds is not None:
        solved["training.rounds"] = rounds
        if row_epsilon is not None:
            solved["federation.privacy.row_epsilon"] = row_epsilon
        elif numbers["release"]:
            solved["federation.layer2.central_dp_epsilon"] = numbers["release"]["epsilon"]
        if row_epsilon is None:
            solved["federation.gossip.local_dp_epsilon"] = numbers["gossip"]["epsilon_a_round"]
    kind = "release" if numbers["release"] else "gossip"
    if numbers["release"]:
        solved["releases"] = numbers["release"]["releases_that_the_budget_buys"]
    if row_epsilon is None:
        solved["gossip_rounds"] = numbers["gossip"]["rounds_that_the_share_buys"]
    where, name = (
        (kind, "noise_sigma_per_coordinate")
        if row_epsilon is None
        else ("site_noise", "noise_sigma_of_a_row")
    )
    solved[name] = numbers[where][name]
    return solved


def _print(numbers: dict[str, Any], console: Console) -> None:
    for warning in numbers["warnings"]:
        label, style = ("WARNING", "bold red") if warning["loud"] else ("Note", "yellow")
        console.print(f"{label}: {warning['message']}", style=style, markup=False)
    width = max(len(name) for title in SECTIONS for name in numbers[title])
    for title in SECTIONS:
        if numbers[title]:
            console.print(_titled(title, numbers), style="bold")
        for name, value in numbers[title].items():
            console.print(
                f"  {name.replace('_', ' ') if '.' not in name else name:<{width}}  {_readable(value)}",
                markup=False,
            )
    if not numbers["release"]:
        console.print("no Layer 2: each basket trains by gossip alone, and all of the budget is gossip's")
        return
    if not numbers["rules"]:
        console.print("each client noises its own row: no Layer 1 rule costs more noise")
        return
    console.print("noise that each Layer 1 rule would cost (* configured)", style="bold")
    table = Table(box=None, pad_edge=False)
    for heading in ("  rule", "least updates", "sensitivity", "noise norm", "signal to noise"):
        table.add_column(heading, justify="left" if heading == "  rule" else "right", no_wrap=True)
    for cost in numbers["rules"]:
        figures: tuple[str, ...] = ("too few clients", "", "")
        if cost["fits"]:
            figures = tuple(_short(cost[name]) for name in ("sensitivity", "noise_norm", "signal_to_noise"))
        configured = cost["rule"] == numbers["baskets"]["rule"]
        name = f"{'*' if configured else ' '} {cost['rule']}"
        table.add_row(name, str(cost["least_rows"]), *figures, style="bold" if configured else "")
    console.print(table)


def _titled(title: str, numbers: dict[str, Any]) -> str:
    """A section's heading: what a row costs and would cost are told apart."""
    at_site = not numbers["rules"]
    if title == "site_noise":
        return "noise of a row" if at_site else "if clients noised their own rows (privacy.noise: site)"
    return "row, as each client pays for it" if title == "release" and at_site else title


def _short(value: float | None) -> str:
    return "unlimited" if value is None else f"{value:.3g}"


def _readable(value: Any) -> str:
    if value is None:
        return "unlimited"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{count} of {size}" for size, count in value.items())
    if isinstance(value, float):
        return f"{value:.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.6g}"
    return str(value)
