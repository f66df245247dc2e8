"""``scarcity-ray plan``: the numbers that follow from a config, for people or machines."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import click

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.plan import BasketFacts, FederationPlan, make_plan
from scarcity_ray.workloads.config import RunConfig, load_run


def plan_command(path: str, overrides: tuple[str, ...], form: str) -> ExitCode:
    """Print the plan of a config file."""
    numbers = planned_numbers(load_run(path, overrides))
    if form == "json":
        click.echo(json.dumps(numbers))
        return ExitCode.DONE
    width = max(len(name) for section in numbers.values() for name in section)
    for title, section in numbers.items():
        click.echo(click.style(title, bold=True))
        for name, value in section.items():
            click.echo(f"  {name.replace('_', ' '):<{width}}  {_readable(value)}")
    return ExitCode.DONE


def planned_numbers(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Every number of the plan, by section, when all of the workload's clients take part."""
    federation = config.federation
    plan = make_plan(federation)
    sizes = config.basket_sizes
    facts = [_facts(plan, place, size) for place, size in enumerate(sizes)]
    release = plan.release(facts)
    survivors = list(release.weights)
    sigma = release.grid_sigma(survivors) / release.scale
    smallest = min(sizes)
    gossip = plan.gossip
    received = min(federation.gossip.peers_per_round, smallest - 1)
    numbers: dict[str, dict[str, Any]] = {
        "baskets": {
            "number": len(sizes),
            "clients_each": {str(size): count for size, count in sorted(Counter(sizes).items())},
            "rule": federation.layer1.aggregation_method.value,
            "byzantine_clients_assumed": plan.num_byzantine(smallest),
            "least_updates": plan.least_rows(smallest),
        },
        "budget": {
            "epsilon": federation.total_epsilon,
            "delta": federation.total_delta,
            "mu_total": plan.mu_total,
            "mu_for_releases": plan.central_mu_cap,
            "mu_for_gossip_of_a_client": plan.gossip_mu_cap,
        },
        "release": {
            "mu": release.mu,
            "releases_that_the_budget_buys": plan.num_releases,
            "rounds_configured": config.workload.rounds,
            "sensitivity": max(release.weights[b] * release.sensitivities[b] for b in survivors),
            "noise_sigma_per_coordinate": sigma,
            "noise_norm": sigma * math.sqrt(release.length),
            "clip_norm": federation.layer2.clip_norm,
            "coordinates": release.length,
            "ring_bits": release.ring_bits,
            "ring_steps_to_a_unit": release.scale,
        },
        "gossip": {
            "rounds_that_the_share_buys": plan.num_gossip_rounds,
            "noise_sigma_on_drift": gossip.sigma_drift,
            "noise_sigma_per_coordinate": gossip.sigma_vector,
            "noise_norm": gossip.sigma_vector * math.sqrt(gossip.dimension),
            "clip_norm": gossip.clip_norm,
            "messages_received": received,
            "mixing_weight": gossip.mixing_weight(received),
        },
    }
    return {
        title: {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in section.items()
        }
        for title, section in numbers.items()
    }


def _facts(plan: FederationPlan, place: int, size: int) -> BasketFacts:
    return BasketFacts(str(place), "", size, size, plan.num_byzantine(size))


def _readable(value: Any) -> str:
    if value is None:
        return "unlimited"
    if isinstance(value, dict):
        return ", ".join(f"{count} of {size}" for size, count in value.items())
    if isinstance(value, float):
        return f"{value:.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.6g}"
    return str(value)
