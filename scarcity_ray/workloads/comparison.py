"""The simulated runs that a federation's accuracy is compared with, which differ in the defence alone.

`comparisons` and `gossip_comparisons` say which runs to make, with Layer 2 and without; `compare` and
`compare_gossip` make one, as a task of the runtime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig
from scarcity_ray.plan import make_plan
from scarcity_ray.workloads.attacks import AttackConfig, AttackName
from scarcity_ray.workloads.gossip_training import GossipRun, simulate_gossip
from scarcity_ray.workloads.population import Scene
from scarcity_ray.workloads.simulate import Defence, simulate


@dataclass(frozen=True)
class Comparison:
    """One simulated run; its name is a key of `DEFENCES` or `GOSSIP_DEFENCES`."""

    name: str
    attack: AttackConfig


@dataclass(frozen=True)
class ComparisonInputs:
    """The inputs that all comparison tasks share."""

    scene: Scene
    federation: HierarchicalFederationConfig


DEFENCES = {
    "federation": "the configured rule in each basket, clipping and central noise",
    "clipped_mean": "the mean of clipped updates, with the noise that a mean needs for the same budget",
    "plain_mean": "the mean of all updates, without clipping or noise",
    "clean": "the configured rule, without attackers or noise",
}


def comparisons(attack: AttackConfig, others: tuple[AttackName, ...]) -> list[Comparison]:
    """The runs to make: every defence under the job's attack, all but `clean` under ALIE and the others."""
    named = [AttackConfig(name=name) for name in dict.fromkeys(("alie", *others)) if name != attack.name]
    runs = [Comparison("clean", AttackConfig(name="none"))]
    for each in (attack, *named):
        runs += [Comparison(name, each) for name in ("federation", "clipped_mean", "plain_mean")]
    return runs


GOSSIP_DEFENCES = {
    "gossip": "the configured gossip, simulated",
    "alone": "no gossip: every client learns from its own data",
    "clear_gossip": "gossip without noise, under the same attack",
    "clean": "the configured gossip, without attackers",
}


def gossip_comparisons(attack: AttackConfig, others: tuple[AttackName, ...]) -> list[Comparison]:
    """The runs to make without Layer 2: each of `GOSSIP_DEFENCES`, and the configured gossip under others."""
    named = [AttackConfig(name=name) for name in dict.fromkeys(others) if name != attack.name]
    runs = [Comparison(name, attack) for name in ("gossip", "alone", "clear_gossip")]
    runs += [Comparison("gossip", each) for each in named]
    return [*runs, Comparison("clean", AttackConfig(name="none"))]


def compare_gossip(run: Comparison, inputs: ComparisonInputs) -> GossipRun:
    """Make one comparison run without Layer 2; a task of the runtime."""
    federation = inputs.federation
    if run.name == "clear_gossip":
        clear = replace(federation.gossip, local_dp_epsilon=math.inf)
        federation = replace(federation, gossip=clear, total_epsilon=math.inf)
    return simulate_gossip(inputs.scene, run.attack, federation, gossip=run.name != "alone")


def compare(run: Comparison, inputs: ComparisonInputs) -> list[float]:
    """Make one comparison run; a task of the runtime. Returns the accuracy after each round."""
    return simulate(inputs.scene, run.attack, defence(run.name, inputs.federation))


def defence(name: str, federation: HierarchicalFederationConfig) -> Defence:
    """The defence of that name for a federation's config (see `DEFENCES`)."""
    if name == "plain_mean":
        return Defence(plan=None)
    if name == "clipped_mean":
        layer1 = replace(
            federation.layer1,
            aggregation_method=AggregationMethod.MEAN,
            rule_args={},
            rule_timeout_seconds=None,
        )
        return Defence(plan=make_plan(replace(federation, layer1=layer1)))
    return Defence(plan=make_plan(federation), noisy=name != "clean")
