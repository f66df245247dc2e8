"""The main job: train through a federation under attack, then make the runs that it is compared with."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import stream
from scarcity_ray.errors import PrivacyBudgetExhausted
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.plan import make_plan
from scarcity_ray.workloads.attacks import craft
from scarcity_ray.workloads.averaging import RunningModel
from scarcity_ray.workloads.comparison import (
    ComparisonInputs,
    compare,
    compare_gossip,
    comparisons,
    gossip_comparisons,
)
from scarcity_ray.workloads.config import RunConfig
from scarcity_ray.workloads.gossip_training import BasketStanding, GossipTraining, mean_accuracy
from scarcity_ray.workloads.population import Scene, make_scene
from scarcity_ray.workloads.records import Outcome, RoundRecord, Summary
from scarcity_ray.workloads.report.privacy_claim import privacy_claim
from scarcity_ray.workloads.run_folder import RunFolder
from scarcity_ray.workloads.simulate import basket_rule
from scarcity_ray.workloads.softmax import accuracy, train_clients


class Stopwatch:
    """Where a job's wall time goes: seconds by phase."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._began = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._began

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Seconds by phase since `seconds` was `before`, phases without any left out."""
        spans = {phase: total - before.get(phase, 0.0) for phase, total in self.seconds.items()}
        return {phase: span for phase, span in spans.items() if span > 0.0}

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - began


class Watcher(Protocol):
    """Who is told how a job goes."""

    def phase(self, name: str) -> None:
        """A phase begins."""

    def round(self, record: RoundRecord) -> None:
        """A round is over."""


@dataclass
class Progress:
    """Where the federated training stands."""

    model: RunningModel
    records: list[RoundRecord]
    clip_norm: float
    gossip: GossipTraining | None = None
    epsilon_spent: float = 0.0
    budget_spent_early: bool = False
    warnings: Sequence[Mapping[str, Any]] = ()


def run_job(
    config: RunConfig,
    folder: RunFolder,
    watcher: Watcher,
    open_federation: Callable[..., Any] = HierarchicalFederation,
) -> Outcome:
    """Run a job and write everything but its report into its folder.

    Args:
        config: The job.
        folder: Where it writes; metrics are flushed round by round.
        watcher: Told of phases and rounds.
        open_federation: Makes the federation; tests put a stand-in here.

    Raises:
        ScarcityError: If the data or the runtime is not there, or a role is lost for good.
    """
    watch = Stopwatch()
    watcher.phase("Dealing out the data")
    with watch.time("data"):
        scene = make_scene(config)
    folder.write_config(config)
    watcher.phase("Starting the federation")
    with watch.time("start"):
        federation = open_federation(
            config.federation, runtime=config.run.runtime, address=config.run.address
        )
    with federation:
        with watch.time("start"):
            clients = list(zip(scene.population.client_ids, scene.population.domains, strict=True))
            names, places = np.unique(federation.register_clients(clients), return_inverse=True)
        scene = replace(scene, baskets=places.astype(np.int64))
        watcher.phase("Training")
        progress = _train(config, federation, scene, folder, watcher, watch, names.tolist())
        watcher.phase("Comparison runs")
        with watch.time("comparison"):
            curves, alone = _compare(config, federation, scene, len(progress.records))
    _write_models(progress, config, folder, names.tolist())
    summary = _summarise(config, scene, progress, curves, len(names), watch)
    standings = progress.records[-1].baskets if progress.records else {}
    together = {
        name: {**standing, **({"alone": asdict(alone[number])} if number in alone else {})}
        for number, (name, standing) in enumerate(sorted(standings.items()))
    }
    summary = replace(summary, basket_standings=together)
    folder.write_summary(summary)
    return Outcome(summary, tuple(progress.records), curves)


def _train(
    config: RunConfig,
    federation: Any,
    scene: Scene,
    folder: RunFolder,
    watcher: Watcher,
    watch: Stopwatch,
    basket_ids: list[str],
) -> Progress:
    progress = Progress(RunningModel.zeros(config.workload.dimension), [], config.federation.layer1.clip_norm)
    if not config.federation.layer2.enabled:
        progress.gossip = GossipTraining(scene, federation, config.federation, basket_ids)
    for number in range(config.workload.rounds):
        stats = federation.get_stats()
        progress.epsilon_spent = stats["privacy_consumed_epsilon"]
        if stats["read_only"]:
            progress.budget_spent_early = True
            break
        try:
            record = _round(config, federation, scene, progress, number, watch)
        except PrivacyBudgetExhausted:
            progress.budget_spent_early = True
            break
        progress.records.append(record)
        progress.epsilon_spent = record.epsilon_spent
        folder.append_round(record)
        watcher.round(record)
    return progress


def _round(
    config: RunConfig, federation: Any, scene: Scene, progress: Progress, number: int, watch: Stopwatch
) -> RoundRecord:
    workload, population, gossip = config.workload, scene.population, progress.gossip
    before = dict(watch.seconds)
    delta, standings = None, {}
    with watch.time("training"):
        if gossip is not None:
            sent = gossip.train(number)
        else:
            sent = _updates(config, federation, scene, progress, number)
    with watch.time("submission"):
        receipts = federation.submit_updates(population.client_ids, sent, None)
    with watch.time("gossip"):
        messages = sum(federation.run_gossip_round().values()) if workload.gossip else 0
    with watch.time("aggregation"):
        if gossip is not None:
            standings = gossip.collect()
        else:
            delta = federation.force_aggregate()
    with watch.time("accounting"):
        epsilon_left, _ = federation.get_privacy_budget()
        stats = federation.get_stats()
        epsilon_spent = stats["privacy_consumed_epsilon"]
        progress.warnings = stats["warnings"]
        federation.advance_round()
    used, clip_norms = progress.clip_norm, None
    if delta is not None:
        if config.federation.layer2.adaptive_clipping:
            progress.clip_norm = federation.get_meta_params()["clip_norm"]
            clip_norms = used, progress.clip_norm
        progress.model = progress.model.step(
            delta, workload.server_learning_rate, workload.averaging_decay, clip_norms
        )
    return RoundRecord(
        round=number + 1,
        accuracy=mean_accuracy(standings) if standings else _test_accuracy(progress.model.average, scene),
        epsilon_spent=epsilon_spent,
        epsilon_left=epsilon_left,
        accepted=sum(receipt.accepted for receipt in receipts),
        rejected=dict(sorted(Counter(str(r.reason) for r in receipts if not r.accepted).items())),
        gossip_messages=messages,
        released=delta is not None,
        clip_norm=used,
        seconds=watch.since(before),
        elapsed=watch.elapsed,
        baskets=gossip.by_name(standings) if gossip is not None else {},
        waits_for=stats["waiting_for"]["text"] if delta is None and gossip is None else "",
    )


def _updates(
    config: RunConfig, federation: Any, scene: Scene, progress: Progress, number: int
) -> NDArray[np.float32]:
    """What clients send when they start from the global model: their deltas, or an attack."""
    workload = config.workload
    inputs = scene.training(progress.model.current, workload.attack)
    deltas = np.concatenate(federation.map_tasks(train_clients, scene.tasks, inputs))
    rng = stream(scene.seed, "attack", number)
    rule = basket_rule(make_plan(config.federation).at(progress.clip_norm))
    return craft(workload.attack, deltas, scene.population.byzantine, scene.baskets, rng, rule)


def _write_models(progress: Progress, config: RunConfig, folder: RunFolder, basket_ids: list[str]) -> None:
    """The global model, or each basket's own where these are exposed."""
    if progress.gossip is None:
        folder.write_model(progress.model.average, config, progress.epsilon_spent)
    elif progress.gossip.basket_models:
        models = {basket_ids[number]: model for number, model in progress.gossip.basket_models.items()}
        folder.write_basket_models(models, config)


def _test_accuracy(model: NDArray[np.float32], scene: Scene) -> float:
    return accuracy(model, scene.dataset.test_features, scene.dataset.test_labels)


def _compare(
    config: RunConfig, federation: Any, scene: Scene, rounds: int
) -> tuple[dict[tuple[str, str], list[float]], dict[int, BasketStanding]]:
    """Accuracy after each round by run and attack; and how each basket would have ended without gossip."""
    if not rounds:
        return {}, {}
    workload = replace(config.workload, rounds=rounds)
    inputs = ComparisonInputs(replace(scene, workload=workload), config.federation)
    if not config.federation.layer2.enabled:
        made = gossip_comparisons(workload.attack, workload.compare_attacks)
        found = federation.map_tasks(compare_gossip, made, inputs)
        by_run = {(run.name, run.attack.name): one for run, one in zip(made, found, strict=True)}
        alone = by_run["alone", workload.attack.name].standings
        return {key: one.curve for key, one in by_run.items()}, alone
    runs = comparisons(config.workload.attack, config.workload.compare_attacks)
    curves = federation.map_tasks(compare, runs, inputs)
    return {(run.name, run.attack.name): curve for run, curve in zip(runs, curves, strict=True)}, {}


def _summarise(
    config: RunConfig,
    scene: Scene,
    progress: Progress,
    curves: dict[tuple[str, str], list[float]],
    num_baskets: int,
    watch: Stopwatch,
) -> Summary:
    workload, federation = config.workload, config.federation
    attack, records = workload.attack.name, progress.records
    final = {key: curve[-1] for key, curve in curves.items()}
    rejected: Counter[str] = Counter()
    for record in records:
        rejected.update(record.rejected)
    attacks: dict[str, dict[str, float]] = {}
    for (name, under), value in final.items():
        attacks.setdefault(under, {})[name] = value
    return Summary(
        name=config.name,
        accuracy=records[-1].accuracy if records else None,
        accuracy_mean_under_attack=final.get(("plain_mean", attack)),
        accuracy_clipped_mean=final.get(("clipped_mean", attack)),
        accuracy_clean=final.get(("clean", "none")),
        accuracy_under_alie=final.get(("federation", "alie")),
        accuracy_simulated=final.get(("federation", attack), final.get(("gossip", attack))),
        epsilon_spent=progress.epsilon_spent,
        delta=federation.total_delta,
        total_epsilon=federation.total_epsilon,
        budget_spent_early=progress.budget_spent_early,
        rounds=len(records),
        rounds_configured=workload.rounds,
        releases=sum(record.released for record in records),
        clients=workload.clients,
        baskets=num_baskets,
        byzantine_clients=int(scene.population.byzantine.sum()),
        attack=attack,
        rule=federation.layer1.aggregation_method.value,
        rejected=dict(sorted(rejected.items())),
        gossip_messages=sum(record.gossip_messages for record in records),
        wall_seconds=watch.elapsed,
        seconds=dict(watch.seconds),
        attacks=attacks,
        privacy_claim=privacy_claim(federation, progress.epsilon_spent),
        warnings=tuple(progress.warnings),
        waits_for=records[-1].waits_for if records and not any(r.released for r in records) else "",
    )
