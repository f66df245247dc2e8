"""The job: train through a federation, under the lab's attack if there is one, then make the runs beside."""

from __future__ import annotations

import math
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np

from scarcity_ray.config import Durability, HierarchicalFederationConfig, to_plain
from scarcity_ray.errors import PrivacyBudgetExhausted, UsageError
from scarcity_ray.federation.fit_terms import FitResult, Stopped
from scarcity_ray.federation.fit_terms import RoundRecord as FitRecord
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.federation.training_round import TrainingProgress
from scarcity_ray.ledger_url import LedgerUrl
from scarcity_ray.plan import make_plan
from scarcity_ray.storage.snapshots import Snapshots
from scarcity_ray.workloads.attacks import AttackConfig
from scarcity_ray.workloads.comparison import Compared, Comparison, ComparisonRuns
from scarcity_ray.workloads.config import Job, asked
from scarcity_ray.workloads.gossip_training import GossipTraining, mean_over_honest, standings_of
from scarcity_ray.workloads.records import Outcome, RoundRecord, RunBeside, Summary
from scarcity_ray.workloads.report.privacy_claim import privacy_claim
from scarcity_ray.workloads.run_folder import RunFolder
from scarcity_ray.workloads.scene import NO_ATTACK, Scene, SimulatedAttackers
from scarcity_ray.workloads.simulate import basket_rule
from scarcity_ray_client import Client, Refusal, checked_metrics
from scarcity_ray_client.errors import shown

_MOVED = {"storage_path", "ledger_path", "journal_path", "journal_key_path"}
"""Places, which may be others when a run goes on."""
MOST_TOLD = 20
"""Refusals that a summary keeps in full."""


class Stopwatch:
    """Wall time of a job by phase, in seconds."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._began = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._began

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

    def progress(self, progress: TrainingProgress) -> None:
        """Clients of a round have trained."""

    def round(self, record: RoundRecord) -> None:
        """A round is over."""


@dataclass
class Training:
    """Rounds that were made, and what came of them.

    Attributes:
        records: One for each round.
        budget_spent_early: Whether the budget ended before the last round.
        stopped: Why the rounds ended early, in words.
        fitted: What `fit` gave; None without Layer 2.
        refused: Refusals by client and reason.
        first_refusals: To read.
        metrics: Of the end; None if no round was made.
    """

    metric: str
    initial: Mapping[str, float]
    records: list[RoundRecord] = field(default_factory=list)
    budget_spent_early: bool = False
    stopped: str = ""
    fitted: FitResult[Any] | None = None
    refused: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    first_refusals: list[Refusal] = field(default_factory=list)
    metrics: Mapping[str, float] | None = None

    def take(self, result: FitResult[Any]) -> None:
        """Note what `fit` gave."""
        self.fitted, self.refused = result, result.refusals
        self.budget_spent_early = result.stopped is Stopped.BUDGET
        self.stopped = result.explanation if result.stopped is not Stopped.ROUNDS else ""
        self.metrics = self.records[-1].metrics if self.records else None


def noted(
    training: Training, watch: Stopwatch, note: Callable[[RoundRecord], None]
) -> Callable[[FitRecord], None]:
    """What `fit` tells its rounds to: a job's record of each is made, and given to `note`."""

    def on_round(record: FitRecord) -> None:
        before = training.records[-1].metrics if training.records else training.initial
        room = MOST_TOLD - len(training.first_refusals)
        training.first_refusals += record.first_refusals[:room]
        note(
            RoundRecord(
                round=len(training.records) + 1,
                metrics=headline_first(training.metric, record.evaluation if record.versions else before),
                epsilon_spent=record.epsilon_spent,
                epsilon_left=record.epsilon_left,
                sampled=record.num_sampled,
                accepted=record.num_accepted,
                rejected=record.refusals,
                gossip_messages=record.gossip_messages,
                released=bool(record.versions),
                clip_norm=record.clip_norm,
                seconds=record.phases,
                elapsed=watch.elapsed,
                training={domain: found.metrics for domain, found in record.metrics.items()},
                clients={domain: found.metrics for domain, found in record.clients.items()},
                private_evaluation=record.private_evaluation,
                waits_for=record.waiting_for,
            )
        )

    return on_round


def run_job(
    job: Job,
    folder: RunFolder,
    watcher: Watcher,
    open_federation: Callable[..., Any] = HierarchicalFederation,
    *,
    restore: Callable[..., Any] = HierarchicalFederation.restore,
    resume: bool = False,
) -> Outcome:
    """Run a job and write everything but its report into its folder.

    Metrics are flushed round by round. With Layer 2 the federation keeps its state in the folder, unless the
    config names another place, so that the job can go on after an interruption.

    Args:
        open_federation: Makes the federation; tests put a stand-in here.
        restore: Makes it again from what is stored.
        resume: Whether the job was interrupted, and goes on.

    Raises:
        ScarcityError: If the workload cannot be evaluated, the runtime is not there, or a role is lost.
    """
    config, watch = job.config, Stopwatch()
    watcher.phase("Evaluating the initial model")
    with watch.time("start"):
        initial, metric = initial_metrics(job)
        scene = Scene.of(job, metric)
    attack = NO_ATTACK if config.lab is None else config.lab.attacks[0]
    where: dict[str, Any] = {"runtime": config.run.runtime, "address": config.run.address}
    kept = _with_storage(config.federation, folder)
    goes_on = resume and kept.storage_path is not None and not Snapshots(kept.storage_path).is_empty()
    if resume and not goes_on and folder.holds_results:
        raise UsageError(
            f"--resume {folder.path}: it released models, and nothing is stored in {kept.storage_path}; "
            "bring that back, or run its config.yaml again with another --out: a new run, which spends anew"
        )
    if not goes_on:
        folder.begin_again(config)
    watcher.phase("Restoring the federation" if goes_on else "Starting the federation")
    with watch.time("start"):
        federation = restored(kept, restore, where) if goes_on else open_federation(kept, **where)
    training = Training(metric, initial)
    standings: dict[str, dict[str, Any]] = {}

    keep = keeping_rounds(job, folder, federation, training, watch, watcher, goes_on=goes_on)

    with federation:
        names = np.zeros(0, np.str_)
        if not config.federation.layer2.enabled:
            with watch.time("start"):
                names, places = np.unique(_registered(job.clients, federation), return_inverse=True)
            scene = replace(scene, baskets=places.astype(np.int64))
        runs = ComparisonRuns(scene, config.lab, config.federation, federation)

        def note(record: RoundRecord) -> None:
            keep(record)
            runs.go_on()

        watcher.phase("Training")
        if config.federation.layer2.enabled:
            _fit(job, scene, attack, federation, training, watch, watcher, note, folder, resume=goes_on)
        else:
            gossip = GossipTraining(scene, attack, federation, config.federation, names.tolist())
            for record in _gossip_rounds(job, gossip, federation, training, watch):
                note(record)
            own = gossip.basket_models()
            for number, vector in own.items():
                folder.write_model(f"model-{names[number]}.npz", job.codec.decode(vector))
            ended = standings_of(scene, gossip.models, own)
            standings = {names[number]: asdict(standing) for number, standing in ended.items()}
            reached = mean_over_honest(ended)
            if training.records and reached is not None:
                training.metrics = {**training.records[-1].metrics, metric: reached}
        watcher.phase("Comparison runs")
        if training.fitted is not None and training.fitted.best_model is not None:
            folder.write_model("best_model.npz", training.fitted.best_model)
        with watch.time("comparison"):
            made = runs.made(len(training.records))
        stats = federation.get_stats()
    for run, compared in made:
        if run.name == "local_only" and not compared.failed:
            for number, name in enumerate(sorted(standings)):
                standings[name]["alone"] = asdict(compared.standings[number])
    summary = summarise(
        job,
        training,
        stats,
        watch,
        folder,
        domains=job.domain_sizes,
        num_byzantine=int(scene.byzantine.sum()),
        made=made,
        standings=standings,
    )
    folder.write_summary(summary)
    return Outcome(summary, tuple(training.records))


def _with_storage(config: HierarchicalFederationConfig, folder: RunFolder) -> HierarchicalFederationConfig:
    """The config, with a place for its state; updates need no journal where clients can train again."""
    if config.storage_path is not None or not config.layer2.enabled:
        return config
    return replace(config, storage_path=str(folder.state), durability=config.durability or Durability.NONE)


def restored(
    config: HierarchicalFederationConfig, restore: Callable[..., Any], where: Mapping[str, Any]
) -> Any:
    """The stored federation, if it is that of the config.

    Raises:
        UsageError: If it was made with another config.
    """
    url = config.ledger_path if isinstance(config.ledger_path, LedgerUrl) else None
    journal = config.journal_path if isinstance(config.journal_path, LedgerUrl) else None
    federation = restore(config.storage_path, ledger_path=url, journal_path=journal, **where)
    asked, stored = to_plain(config), to_plain(federation.config)
    other = sorted(name for name in asked if asked[name] != stored[name] and name not in _MOVED)
    if other:
        federation.close()
        raise UsageError(
            f"federation.{other[0]}: {shown(asked[other[0]])} is not accepted; "
            f"{shown(stored[other[0]])}, with which the run began: a run goes on with its federation as it is"
        )
    return federation


def keeping_rounds(
    job: Job,
    folder: RunFolder,
    federation: HierarchicalFederation,
    training: Training,
    watch: Stopwatch,
    watcher: Watcher,
    *,
    goes_on: bool,
) -> Callable[[RoundRecord], None]:
    """What is done with each round of a run, served or not: its line is kept, and with receipts its release.

    Args:
        goes_on: Whether the run is resumed; the rounds that were made are told first, and kept anew.
    """

    def note(record: RoundRecord) -> None:
        if goes_on and not training.records:
            folder.begin_again(job.config)
        training.records.append(record)
        folder.append_round(record)
        if job.config.federation.receipts and (released := federation.get_global_meta_model()) is not None:
            folder.append_release(released.release_record(), federation.get_roster())
        watcher.round(record)
        for phase, seconds in record.seconds.items():
            watch.seconds[phase] += seconds

    return note


def initial_metrics(job: Job) -> tuple[dict[str, float], str]:
    """The initial model's metrics, and the name of the headline among them."""
    name = job.config.workload.class_
    model = asked(name, "initial_model", job.workload.initial_model)
    asked(name, "initial_model", lambda: job.codec.encode(model))
    given = asked(name, "evaluate, of the initial model", lambda: job.workload.evaluate(model))
    metrics = asked(name, "evaluate, of the initial model", lambda: checked_metrics(given))
    if not given:
        raise UsageError(f"workload {name!r}: evaluate gives no metric; return at least one by name")
    wanted = job.config.training.metric
    if wanted is not None and wanted not in given:
        raise UsageError(f"training.metric: {wanted!r} is not accepted; evaluate gives {', '.join(given)}")
    return metrics, wanted or next(iter(given))


def _fit(
    job: Job,
    scene: Scene,
    attack: AttackConfig,
    federation: Any,
    training: Training,
    watch: Stopwatch,
    watcher: Watcher,
    note: Callable[[RoundRecord], None],
    folder: RunFolder,
    *,
    resume: bool,
) -> None:
    """Train through `fit`; the model of each release is written before anything else is done with it."""
    terms, plan = job.config.training, make_plan(job.config.federation)
    adversary = None
    if attack.name != "none":
        adversary = SimulatedAttackers(scene, attack, lambda clip_norm: basket_rule(plan.at(clip_norm)))

    result: FitResult[Any] = federation.fit(
        job.workload,
        rounds=terms.rounds,
        clients_per_round=terms.clients_per_round,
        extra_clients=terms.extra_clients,
        deadline_seconds=terms.deadline_seconds,
        clients_per_task=terms.clients_per_task,
        optimizer=terms.server_optimizer(),
        averaging_decay=terms.averaging_decay,
        stopping=terms.stopping(training.metric),
        evaluate_clients=terms.evaluate_clients,
        private_evaluation=None if terms.private_evaluation is None else terms.private_evaluation.made(),
        adversary=adversary,
        on_round=noted(training, watch, note),
        on_progress=watcher.progress,
        on_release=lambda model, _: folder.write_model("model.npz", model),
        **({"resume": True} if resume else {}),
    )
    if resume:
        folder.write_model("model.npz", result.model)
    if result.stopped is Stopped.EVALUATION:
        raise UsageError(f"{result.explanation}; the model so far is {folder.path / 'model.npz'}")
    training.take(result)


def _registered(clients: Sequence[Client], federation: Any) -> list[str]:
    """Register clients; the basket of each."""
    if all(client.features is None for client in clients):
        return list(federation.register_clients([(client.client_id, client.domain_id) for client in clients]))
    return [federation.register_client(c.client_id, c.domain_id, c.features) for c in clients]


def _gossip_rounds(
    job: Job, gossip: GossipTraining, federation: Any, training: Training, watch: Stopwatch
) -> Iterator[RoundRecord]:
    """Train without Layer 2, round by round, until the last or until the budget is spent."""
    refused: dict[str, Counter[str]] = {}
    training.refused = refused
    for number in range(job.config.training.rounds):
        phases = Stopwatch()
        try:
            if federation.get_stats()["read_only"]:
                training.budget_spent_early = True
                return
            with phases.time("training"):
                client_ids, rows, refusals = gossip.train(number)
            with phases.time("submission"):
                receipts = federation.submit_updates(client_ids, rows, None)
            with phases.time("gossip"):
                messages = sum(federation.run_gossip_round().values())
        except PrivacyBudgetExhausted:
            training.budget_spent_early = True
            return
        with phases.time("aggregation"):
            metrics = gossip.collect()
        stats, (left, _) = federation.get_stats(), federation.get_privacy_budget()
        federation.advance_round()
        training.first_refusals += refusals[: MOST_TOLD - len(training.first_refusals)]
        given = zip(client_ids, receipts, strict=True)
        reasons = [(client_id, str(receipt.reason)) for client_id, receipt in given if not receipt.accepted]
        reasons += [(refusal.client_id, str(refusal.cause)) for refusal in refusals]
        for client_id, reason in reasons:
            refused.setdefault(client_id, Counter())[reason] += 1
        yield RoundRecord(
            round=number + 1,
            metrics=headline_first(training.metric, metrics),
            epsilon_spent=stats["privacy_consumed_epsilon"],
            epsilon_left=left,
            sampled=len(gossip.chosen(number)),
            accepted=sum(receipt.accepted for receipt in receipts),
            rejected=dict(sorted(Counter(reason for _, reason in reasons).items())),
            gossip_messages=messages,
            released=False,
            clip_norm=job.config.federation.layer1.clip_norm,
            seconds=dict(phases.seconds),
            elapsed=watch.elapsed,
        )


def headline_first(metric: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics, the headline in front."""
    return {name: metrics[name] for name in sorted(metrics, key=metric.__ne__)}


def summarise(
    job: Job,
    training: Training,
    stats: Mapping[str, Any],
    watch: Stopwatch,
    folder: RunFolder,
    *,
    domains: Mapping[str, int],
    num_byzantine: int = 0,
    made: Sequence[tuple[Comparison, Compared]] = (),
    standings: Mapping[str, Mapping[str, Any]] | None = None,
    is_served: bool = False,
) -> Summary:
    """The result of a job.

    Args:
        stats: The federation's.
        domains: Clients of each.
        made: The runs beside.
        standings: Without Layer 2, how each basket ended.
        is_served: Whether clients were sites outside the cluster.
    """
    config, records, fitted = job.config, training.records, training.fitted
    rejected: Counter[str] = Counter()
    for record in records:
        rejected.update(record.rejected)
    best = None
    if fitted is not None and fitted.best_round is not None:
        first = fitted.history[0].round_id
        best = records[fitted.best_round - first]
    return Summary(
        name=config.name,
        metric=training.metric,
        mode=config.training.mode,
        metrics=training.metrics,
        initial=training.initial,
        best_round=None if best is None else best.round,
        best_metrics={} if best is None else best.metrics,
        epsilon_spent=stats["privacy_consumed_epsilon"],
        delta=config.federation.total_delta,
        total_epsilon=stats["ledger"]["epsilon_total"],
        budget_spent_early=training.budget_spent_early,
        stopped=training.stopped,
        rounds=len(records),
        rounds_configured=config.training.rounds,
        releases=sum(record.released for record in records),
        clients=sum(domains.values()),
        domains=domains,
        baskets=stats["n_baskets"],
        byzantine_clients=num_byzantine,
        attack="none" if config.lab is None else config.lab.attacks[0].name,
        rule=str(config.federation.layer1.aggregation_method),
        rejected=dict(sorted(rejected.items())),
        refused={client: dict(counts) for client, counts in sorted(training.refused.items())},
        first_refusals=tuple(
            {"client": r.client_id, "round": r.round_id, "cause": str(r.cause), "detail": r.detail}
            for r in training.first_refusals
        ),
        gossip_messages=sum(record.gossip_messages for record in records),
        wall_seconds=watch.elapsed,
        seconds=dict(watch.seconds),
        runs=tuple(
            RunBeside(
                run.name,
                run.attack.name,
                compared.run.metrics,
                tuple(None if math.isnan(value) else value for value in compared.run.curve),
                compared.failed,
            )
            for run, compared in made
        ),
        privacy_claim=privacy_claim(
            config.federation,
            stats["privacy_lifetime_epsilon"],
            is_lab=config.lab is not None,
            is_served=is_served,
            renewals=stats["ledger"]["period"],
        ),
        basket_standings=standings or {},
        warnings=tuple(stats["warnings"]),
        waits_for=records[-1].waits_for if records and not any(r.released for r in records) else "",
        date=folder.begun.isoformat(timespec="seconds"),
        versions=versions(config.workload.class_),
        load_model=_how_to_load(job, folder),
        privacy=stats["privacy_claim"],
        private_evaluation=next(
            (record.private_evaluation for record in reversed(records) if record.private_evaluation), {}
        ),
    )


def versions(workload: str) -> dict[str, str]:
    """What a job ran with."""
    found = {"python": platform.python_version(), "workload": workload}
    for name in ("scarcity-ray", "numpy", "ray", "torch", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _how_to_load(job: Job, folder: RunFolder) -> str:
    """Python that reads the model, or the first basket's, back as the workload's own kind; "" without one."""
    written = sorted(folder.path.glob("model*.npz"))
    if not written:
        return ""
    section = job.config.workload
    arguments = [
        repr(section.class_),
        repr(dict(section.args)),
        *([repr(section.folder)] if section.folder else []),
    ]
    return (
        "from scarcity_ray_client import load_model, load_workload\n"
        f"workload = load_workload({', '.join(arguments)})\n"
        f"model = load_model({str(written[0])!r}, like=workload.initial_model())"
    )
