"""The job: train through a federation under attack, then make the runs that it is compared with."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
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
    """Wall time of a job by phase, in seconds."""

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
    """Receives the progress of a job."""

    def phase(self, name: str) -> None:
        """A phase begins."""

    def round(self, record: RoundRecord) -> None:
        """A round is over."""


def run_job(
    config: RunConfig,
    folder: RunFolder,
    watcher: Watcher,
    open_federation: Callable[..., Any] = HierarchicalFederation,
) -> Outcome:
    """Run a job and write everything but its report into its folder.

    Metrics are flushed round by round.

    Args:
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
        training = Training(config, federation, scene, names.tolist(), watch)
        for record in training.rounds():
            folder.append_round(record)
            watcher.round(record)
        watcher.phase("Comparison runs")
        with watch.time("comparison"):
            curves, alone = _compare(config, federation, scene, len(training.records))
    training.write_models(folder)
    summary = _summarise(config, scene, training, curves, len(names), watch)
    standings = training.records[-1].baskets if training.records else {}
    together = {
        name: {**standing, **({"alone": asdict(alone[number])} if number in alone else {})}
        for number, (name, standing) in enumerate(sorted(standings.items()))
    }
    summary = replace(summary, basket_standings=together)
    folder.write_summary(summary)
    return Outcome(summary, tuple(training.records), curves)


class Training:
    """Rounds of training through a federation, and where they stand.

    Attributes:
        records: One for each round made.
        epsilon_spent: By the client that has spent most.
        budget_spent_early: Whether the budget ended before the last round.
    """

    def __init__(
        self, config: RunConfig, federation: Any, scene: Scene, basket_ids: list[str], watch: Stopwatch
    ) -> None:
        self.records: list[RoundRecord] = []
        self.epsilon_spent = 0.0
        self.budget_spent_early = False
        self.warnings: Sequence[Mapping[str, Any]] = ()
        self._config, self._federation, self._watch = config, federation, watch
        self._scene, self._basket_ids = scene, basket_ids
        self._model = RunningModel.zeros(config.workload.dimension)
        self._clip_norm = config.federation.layer1.clip_norm
        self._gossip: GossipTraining | None = None
        if not config.federation.layer2.enabled:
            self._gossip = GossipTraining(scene, federation, config.federation, basket_ids)

    def rounds(self) -> Iterator[RoundRecord]:
        """Make the rounds, one at a time, until the last or until the budget is spent."""
        for number in range(self._config.workload.rounds):
            stats = self._federation.get_stats()
            self.epsilon_spent = stats["privacy_consumed_epsilon"]
            try:
                record = None if stats["read_only"] else self._round(number)
            except PrivacyBudgetExhausted:
                record = None
            if record is None:
                self.budget_spent_early = True
                return
            self.records.append(record)
            self.epsilon_spent = record.epsilon_spent
            yield record

    def write_models(self, folder: RunFolder) -> None:
        """Write the global model, or each basket's own where these are exposed."""
        if self._gossip is None:
            folder.write_model(self._model.average, self._config, self.epsilon_spent)
        elif self._gossip.basket_models:
            models = {self._basket_ids[n]: model for n, model in self._gossip.basket_models.items()}
            folder.write_basket_models(models, self._config)

    def _round(self, number: int) -> RoundRecord:
        workload, scene, gossip = self._config.workload, self._scene, self._gossip
        federation, watch = self._federation, self._watch
        before = dict(watch.seconds)
        delta, standings = None, {}
        with watch.time("training"):
            sent = self._deltas(number) if gossip is None else gossip.train(number)
        with watch.time("submission"):
            receipts = federation.submit_updates(scene.population.client_ids, sent, None)
        with watch.time("gossip"):
            messages = sum(federation.run_gossip_round().values()) if workload.gossip else 0
        with watch.time("aggregation"):
            if gossip is None:
                delta = federation.force_aggregate()
            else:
                standings = gossip.collect()
        with watch.time("accounting"):
            epsilon_left, _ = federation.get_privacy_budget()
            stats = federation.get_stats()
            self.warnings = stats["warnings"]
            federation.advance_round()
        clip_norm = self._clip_norm
        if delta is not None:
            self._add(delta)
        if gossip is None:
            test = scene.dataset
            reached = accuracy(self._model.average, test.test_features, test.test_labels)
        else:
            reached = mean_accuracy(standings)
        return RoundRecord(
            round=number + 1,
            accuracy=reached,
            epsilon_spent=stats["privacy_consumed_epsilon"],
            epsilon_left=epsilon_left,
            accepted=sum(receipt.accepted for receipt in receipts),
            rejected=dict(sorted(Counter(str(r.reason) for r in receipts if not r.accepted).items())),
            gossip_messages=messages,
            released=delta is not None,
            clip_norm=clip_norm,
            seconds=watch.since(before),
            elapsed=watch.elapsed,
            baskets={} if gossip is None else gossip.by_name(standings),
            waits_for=stats["waiting_for"]["text"] if delta is None and gossip is None else "",
        )

    def _deltas(self, number: int) -> NDArray[np.float32]:
        """The rows that clients send after training from the global model: their deltas, or an attack."""
        scene, attack = self._scene, self._config.workload.attack
        inputs = scene.training(self._model.current, attack)
        deltas = np.concatenate(self._federation.map_tasks(train_clients, scene.tasks, inputs))
        rng = stream(scene.seed, "attack", number)
        rule = basket_rule(make_plan(self._config.federation).at(self._clip_norm))
        return craft(attack, deltas, scene.population.byzantine, scene.baskets, rng, rule)

    def _add(self, delta: NDArray[np.float32]) -> None:
        """Add a global delta to the model, and follow the clip norm where it adapts."""
        workload, clip_norms = self._config.workload, None
        if self._config.federation.layer2.adaptive_clipping:
            used, self._clip_norm = self._clip_norm, self._federation.get_meta_params()["clip_norm"]
            clip_norms = used, self._clip_norm
        self._model = self._model.step(
            delta, workload.server_learning_rate, workload.averaging_decay, clip_norms
        )


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
    training: Training,
    curves: dict[tuple[str, str], list[float]],
    num_baskets: int,
    watch: Stopwatch,
) -> Summary:
    workload, federation = config.workload, config.federation
    attack, records = workload.attack.name, training.records
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
        epsilon_spent=training.epsilon_spent,
        delta=federation.total_delta,
        total_epsilon=federation.total_epsilon,
        budget_spent_early=training.budget_spent_early,
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
        privacy_claim=privacy_claim(federation, training.epsilon_spent),
        warnings=tuple(training.warnings),
        waits_for=records[-1].waits_for if records and not any(r.released for r in records) else "",
    )
