"""The simulated runs that a job is compared with; they differ in the defence alone.

`comparisons` says which runs a job asks for, with Layer 2 and without, and `compare` makes one, as a task of
the runtime.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig
from scarcity_ray.errors import ScarcityError, UsageError
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.plan import make_plan
from scarcity_ray.runtime.rpc import TasksBeside
from scarcity_ray.workloads.attacks import AttackConfig
from scarcity_ray.workloads.config import LabConfig, RunName
from scarcity_ray.workloads.gossip_training import BasketStanding, simulate_gossip
from scarcity_ray.workloads.scene import NO_ATTACK, Scene, Travelling
from scarcity_ray.workloads.simulate import Defence, SimulatedRun, simulate, train_alone
from scarcity_ray_client.loading import told

RUNS: Mapping[RunName, str] = {
    "federation": "the configured rule in each basket, clipping and noise",
    "noiseless": "the same without noise",
    "clean": "the configured rule, without attackers or noise",
    "clipped_mean": "the mean of clipped updates, with the noise that a mean needs for the same budget",
    "plain_mean": "the mean of all updates, without clipping or noise",
    "centralised": "all clients' data in one place, without attackers or noise",
    "local_only": "every client alone on its own data, the mean over clients",
}
GOSSIP_RUNS: Mapping[RunName, str] = {
    "federation": "the configured gossip, simulated",
    "noiseless": "gossip without noise, under the same attack",
    "clean": "gossip without attackers or noise",
    "centralised": RUNS["centralised"],
    "local_only": "no gossip: every client learns from its own data",
}
"""Where there is no Layer 2."""
UNATTACKED = frozenset({"clean", "centralised", "local_only"})
"""Runs whose training no attacker takes part in."""
RULES = frozenset({"federation", "clipped_mean", "plain_mean"})
"""Runs that are also made under `LabConfig.compare_attacks`."""


@dataclass(frozen=True)
class Comparison:
    """One run beside."""

    name: RunName
    attack: AttackConfig


@dataclass(frozen=True)
class ComparisonInputs:
    """What all comparison tasks share."""

    scene: Travelling
    federation: HierarchicalFederationConfig


@dataclass(frozen=True)
class Compared:
    """A run beside, made.

    Attributes:
        standings: Without Layer 2, how each basket ended, by its number.
        failed: What was raised in its place, or how often its rule failed, in words; "" if neither.
    """

    run: SimulatedRun
    standings: Mapping[int, BasketStanding] = field(default_factory=dict)
    failed: str = ""


def comparisons(lab: LabConfig) -> list[Comparison]:
    """The runs to make: those of `compare` under the job's attack, the rules also under the other attacks.

    Where there are others, the configured federation is among the rules.
    """
    own, *others = lab.attacks
    chosen = list(dict.fromkeys((*(("federation",) if others else ()), *lab.compare)))
    runs = [Comparison(name, NO_ATTACK if name in UNATTACKED else own) for name in chosen]
    return runs + [Comparison(name, attack) for attack in others for name in chosen if name in RULES]


class ComparisonRuns:
    """A job's runs beside, begun while it trains, on what its rounds leave idle.

    Args:
        scene: Of the job, for as many rounds as it is to make.
        lab: Which runs; None: none.
        config: Of the federation.
        federation: On whose runtime they are made.
    """

    def __init__(
        self,
        scene: Scene,
        lab: LabConfig | None,
        config: HierarchicalFederationConfig,
        federation: HierarchicalFederation,
    ) -> None:
        self._scene, self._config, self._federation = scene, config, federation
        self._runs = [] if lab is None else comparisons(lab)
        self._attacks = () if lab is None else lab.attacks
        self._tasks = self._begun(scene) if self._runs else None

    def go_on(self) -> None:
        """Begin those that may run now, as after each round."""
        if self._tasks is not None:
            self._tasks.go_on()

    def made(self, rounds: int) -> list[tuple[Comparison, Compared]]:
        """All, with as many rounds as the job has made; none without a round.

        Guarantees:
            a_job_that_ended_early_is_compared_with_runs_as_short: They are made anew.
        """
        if self._tasks is None or not rounds:
            return []
        planned = self._scene.training
        if rounds != planned.rounds:
            self._tasks = self._begun(replace(self._scene, training=replace(planned, rounds=rounds)))
        return list(zip(self._runs, self._tasks.results(), strict=True))

    def _begun(self, scene: Scene) -> TasksBeside[Compared]:
        inputs = ComparisonInputs(Travelling.of(scene, *self._attacks), self._config)
        return self._federation.tasks_beside(compare, self._runs, inputs)


def compare(run: Comparison, inputs: ComparisonInputs) -> Compared:
    """Make one comparison run, or say how it failed; a task of the runtime."""
    try:
        made = _made(run, inputs)
        if count := made.run.rule_failures:
            made = replace(
                made, failed=f"its rule gave no result {count} times, and a basket waited each time"
            )
        return made
    except Exception as error:
        cause = str(error) if isinstance(error, ScarcityError) else told(error)
        return Compared(SimulatedRun((), {}), failed=f"it failed: {cause}")


def _made(run: Comparison, inputs: ComparisonInputs) -> Compared:
    scene, federation = inputs.scene.read(), inputs.federation
    if run.name == "centralised":
        model = scene.workload.centralised()
        if model is None:
            raise UsageError("centralised gave None")
        return Compared(SimulatedRun((), scene.evaluate(scene.codec.encode(model))))
    if not federation.layer2.enabled:
        if run.name in ("clean", "noiseless"):
            clear = replace(federation.gossip, local_dp_epsilon=math.inf)
            federation = replace(federation, gossip=clear, total_epsilon=math.inf)
        return Compared(*simulate_gossip(scene, run.attack, federation, gossip=run.name != "local_only"))
    if run.name == "local_only":
        return Compared(train_alone(scene))
    return Compared(simulate(scene, run.attack, defence(run.name, federation)))


def defence(name: str, federation: HierarchicalFederationConfig) -> Defence:
    """The defence of that name for a federation's config (see `RUNS`)."""
    if name == "plain_mean":
        return Defence(plan=None)
    if name == "clipped_mean":
        layer1 = replace(
            federation.layer1,
            aggregation_method=AggregationMethod.MEAN,
            rule_args={},
            rule_timeout_seconds=None,
            num_selected=None,
            clipping_radius=None,
            max_examples=None,
            pre=(),
        )
        return Defence(plan=make_plan(replace(federation, layer1=layer1)))
    return Defence(plan=make_plan(federation), noisy=name not in ("clean", "noiseless"))
