"""The runs that a federation's accuracy is set beside: same clients, same training, same attack."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig
from scarcity_ray.plan import make_plan
from scarcity_ray.workloads.attacks import AttackConfig, AttackName
from scarcity_ray.workloads.scene import Scene
from scarcity_ray.workloads.simulate import Defence, simulate


@dataclass(frozen=True)
class Comparison:
    """One simulated run.

    Attributes:
        name: A key of `DEFENCES`.
        attack: What the Byzantine clients do in it.
    """

    name: str
    attack: AttackConfig


@dataclass(frozen=True)
class ComparisonInputs:
    """What the comparison tasks share.

    Attributes:
        scene: Clients, data and rounds.
        federation: The federation's config.
    """

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


def compare(run: Comparison, inputs: ComparisonInputs) -> list[float]:
    """Make one comparison run; a task of the runtime. Returns the accuracy after each round."""
    return simulate(inputs.scene, run.attack, defence(run.name, inputs.federation))


def defence(name: str, federation: HierarchicalFederationConfig) -> Defence:
    """The defence of that name for a federation's config (see `DEFENCES`)."""
    if name == "plain_mean":
        return Defence(plan=None)
    if name == "clipped_mean":
        layer1 = replace(federation.layer1, aggregation_method=AggregationMethod.MEAN)
        return Defence(plan=make_plan(replace(federation, layer1=layer1)))
    return Defence(plan=make_plan(federation), noisy=name != "clean")
