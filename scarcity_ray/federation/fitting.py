"""`fit`: in each round clients train, what they give is submitted, and the release moves the server's model.

The driver holds references to updates and reads what is small: who trained, on how many examples, with which
metrics. The server's optimiser and the evaluation see released deltas alone, so they cost no privacy. Metrics
that `train` returns reach this driver as they are: they lie outside the privacy claim.

Guarantees:
    a_client_without_an_update_is_counted_by_reason_while_the_round_goes_on
    a_round_in_which_every_client_raised_is_an_error_with_the_first_traceback
    a_spent_budget_ends_the_rounds_and_is_told
    a_round_without_a_release_says_what_it_waits_for
    clients_in_flight_are_bounded
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.actors.directory import Directory
from scarcity_ray.baskets import Rejection
from scarcity_ray.baskets.reports import Member
from scarcity_ray.baskets.submission import StoredRow, SubmissionBatch
from scarcity_ray.config.arguments import instance_of, number_of
from scarcity_ray.errors import PrivacyBudgetExhausted, UsageError
from scarcity_ray.federation.driver import Driver
from scarcity_ray.federation.evaluation import (
    ClientEvaluation,
    EarlyStopping,
    MeanMetrics,
    Progress,
    mean_metrics_by_domain,
)
from scarcity_ray.layers.server_optimizers import ServerOptimizer, ServerSGD
from scarcity_ray.runtime.base import TaskEnd, Tasks, TaskSpec
from scarcity_ray.updates import content_digest
from scarcity_ray_client import (
    Cause,
    Client,
    ModelCodec,
    Refusal,
    Workload,
    checked_clients,
    checked_metrics,
    train_client,
)
from scarcity_ray_client.errors import shown
from scarcity_ray_client.loading import told

Model = TypeVar("Model")
FloatVector = NDArray[np.float32]

logger = logging.getLogger("scarcity_ray")

MOST_IN_FLIGHT = 256
"""Clients that train or have trained and are not submitted yet."""
IN_FLIGHT_BYTES = 2**30
"""What their updates may take together, where two for each CPU take less."""
MOST_TOLD = 20
"""Refusals that a round keeps in full."""


class Stopped(StrEnum):
    """Why `fit` ended."""

    ROUNDS = "rounds"
    """All rounds are done."""
    BUDGET = "budget"
    """The next release does not fit into the privacy budget."""
    NO_IMPROVEMENT = "no_improvement"
    """`EarlyStopping` said so."""


@dataclass(frozen=True)
class FitTerms:
    """How to fit, checked as it is made; see `HierarchicalFederation.fit`."""

    rounds: int
    clients_per_round: int | None = None
    extra_clients: int = 0
    deadline_seconds: float | None = None
    optimizer: ServerOptimizer = field(default_factory=ServerSGD)
    stopping: EarlyStopping | None = None
    seed: int = 0
    on_round: Callable[[RoundRecord], None] | None = None

    def __post_init__(self) -> None:
        _whole("rounds", self.rounds, 1)
        _whole("extra_clients", self.extra_clients, 0)
        _whole("seed", self.seed, 0)
        if self.clients_per_round is not None:
            _whole("clients_per_round", self.clients_per_round, 1)
        if self.deadline_seconds is not None:
            seconds = number_of("deadline_seconds", self.deadline_seconds)
            if not 0 < seconds < np.inf:
                raise UsageError(f"deadline_seconds: {shown(seconds)} is not accepted; a number above 0")
        if not isinstance(self.optimizer, ServerOptimizer):
            raise UsageError(f"optimizer must be a ServerOptimizer, got {shown(self.optimizer)}")
        if self.stopping is not None:
            instance_of("stopping", self.stopping, EarlyStopping)
        if self.on_round is not None and not callable(self.on_round):
            raise UsageError(f"on_round must be callable, got {shown(self.on_round)}")


@dataclass(frozen=True)
class RoundRecord:
    """What happened in one round.

    Attributes:
        round_id: The federation's.
        num_sampled: Clients that were to train.
        num_accepted: Whose update was accepted.
        num_surplus: That were not waited for: enough had answered, or the budget was spent.
        refusals: Updates that did not come or were refused, by reason.
        first_refusals: Up to `MOST_TOLD` of the trainings that gave none, to read: client, cause, detail.
        metrics: Those of `train`, by domain, averaged over accepted updates by examples: outside the claim.
        evaluation: Those of `evaluate` after the release; empty without one.
        versions: Of the releases that were made.
        waiting_for: What the next release waits for, where there was none.
        epsilon_spent: Of this budget period so far.
        driver_bytes: What tasks sent to this driver.
        seconds: That it took.
    """

    round_id: int
    num_sampled: int
    num_accepted: int
    num_surplus: int
    refusals: Mapping[str, int]
    first_refusals: tuple[Refusal, ...]
    metrics: Mapping[str, MeanMetrics]
    evaluation: Mapping[str, float]
    versions: tuple[int, ...]
    waiting_for: str
    epsilon_spent: float
    driver_bytes: int
    seconds: float


@dataclass(frozen=True, eq=False)
class FitResult(Generic[Model]):
    """What `fit` gives.

    Attributes:
        model: After the last release, of the workload's own kind.
        vector: The same as the codec has it.
        history: Round by round.
        refusals: By client and reason, of all rounds.
        stopped: Why it ended.
        explanation: That in words, or what the last round's release waited for; empty if all is well.
        epsilon_spent: Of this budget period.
        best_model: The best by `stopping`; None without it.
        best_round: The federation's round that made it.
    """

    model: Model
    vector: FloatVector
    history: tuple[RoundRecord, ...]
    refusals: Mapping[str, Mapping[str, int]]
    stopped: Stopped
    explanation: str
    epsilon_spent: float
    best_model: Model | None = None
    best_round: int | None = None


@dataclass(frozen=True)
class Answer:
    """What of a client's update comes to the driver; the vector stays in the store."""

    client_id: str
    round_id: int
    num_examples: int
    metrics: Mapping[str, float]
    digest: bytes


def train(
    held: tuple[Workload[Model], ModelCodec[Model]], vector: FloatVector, client: Client, round_id: int
) -> tuple[Answer | Refusal, FloatVector | None]:
    """One client's training, as a task: what the driver is told, and the update."""
    outcome = train_client(*held, vector, client, round_id)
    if isinstance(outcome, Refusal):
        return outcome, None
    digest = content_digest(outcome.delta)
    return Answer(client.client_id, round_id, outcome.num_examples, outcome.metrics, digest), outcome.delta


class TrainingRound:
    """Who of a round's clients waits, trains, and has answered; it knows no runtime and no clock.

    Args:
        round_id: The round.
        clients: In the order in which they start.
        enough: Updates that end it.
        most_in_flight: Clients that train, or whose update is not submitted yet.
    """

    def __init__(self, round_id: int, clients: Sequence[Client], enough: int, most_in_flight: int) -> None:
        self.round_id = round_id
        self.num_sampled = len(clients)
        self.refusals: list[Refusal] = []
        self.in_flight: dict[str, Client] = {}
        self.unsubmitted: list[tuple[Answer, Any]] = []
        self.num_answers = 0
        self.num_surplus = 0
        self._waiting = deque(clients)
        self._enough = enough
        self._most = most_in_flight

    @property
    def is_over(self) -> bool:
        """Whether nobody is waited for any more."""
        return self.num_answers >= self._enough or not (self._waiting or self.in_flight)

    def next(self) -> list[Client]:
        """Clients to start now."""
        room = max(0, self._most - len(self.in_flight) - len(self.unsubmitted))
        started = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        self.in_flight |= {self.key(client): client for client in started}
        return started

    def key(self, client: Client) -> str:
        """The name of a client's task."""
        return f"{self.round_id}.{client.client_id}"

    def note(self, end: TaskEnd, *, is_late: bool) -> None:
        """A client's task has ended."""
        client = self.in_flight.pop(end.key)
        if is_late:
            self._refuse(client, Cause.TIMED_OUT, "it ended after the deadline")
        elif end.cause is not None:
            self._refuse(client, end.cause, end.detail, end.traceback)
        elif isinstance(end.answer, Refusal):
            self.refusals.append(end.answer)
        else:
            self.num_answers += 1
            self.unsubmitted.append((end.answer, end.stored))

    def take(self) -> list[tuple[Answer, Any]]:
        """Updates to submit now: all once it is over, else once they are half of what may be in flight."""
        if not self.is_over and 2 * len(self.unsubmitted) < self._most:
            return []
        taken, self.unsubmitted = self.unsubmitted, []
        return taken

    def close(self, why_waiting: Callable[[Sequence[Client]], Sequence[str]] | None) -> list[str]:
        """Give up whoever has not answered; keys of tasks to stop.

        Args:
            why_waiting: What kept each of those who are too late, if anything is known; None: the deadline
                has not passed, and nobody is late.
        """
        left, keys = [*self.in_flight.values(), *self._waiting], list(self.in_flight)
        if why_waiting is None:
            self.num_surplus = len(left)
        else:
            for client, why in zip(left, why_waiting(left), strict=True):
                stage = "ended" if self.key(client) in self.in_flight else "begun"
                detail = f"it had not {stage} at the deadline; {why}".rstrip("; ")
                self._refuse(client, Cause.TIMED_OUT, detail)
        self.in_flight.clear()
        self._waiting.clear()
        return keys

    def all_raised(self) -> Refusal | None:
        """The first refusal, if every client raised."""
        raised = [refusal for refusal in self.refusals if refusal.cause is Cause.RAISED]
        return raised[0] if len(raised) == self.num_sampled else None

    def _refuse(self, client: Client, cause: Cause, detail: str, traceback: str = "") -> None:
        self.refusals.append(Refusal(client.client_id, self.round_id, cause, detail, traceback))


class Fitting(Generic[Model]):
    """One `fit`: all of it is checked as it is made, and `run` does it.

    Args:
        driver: Of the federation.
        tasks: Where clients train.
        workload: Model, data and training.
        terms: How.
        clock: Gives seconds that only rise.
    """

    def __init__(
        self,
        driver: Driver,
        tasks: Tasks,
        workload: Workload[Model],
        terms: FitTerms,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not isinstance(workload, Workload):
            raise UsageError(f"workload must be a Workload, got {shown(workload)}")
        if not driver.supervisor.has_layer2:
            raise UsageError("fit trains one global model: layer2.enabled is false")
        self._driver, self._tasks, self._workload, self._terms = driver, tasks, workload, terms
        self._clock = clock
        self._rng = np.random.default_rng(terms.seed)
        self._clients = checked_clients(workload.clients())
        self._domains = {client.client_id: client.domain_id for client in self._clients}
        self._codec = workload.codec()
        self._vector = self._codec.encode(workload.initial_model())
        dimension = self._codec.dimension
        if dimension != driver.config.vector_dim:
            raise UsageError(
                f"the model has {dimension} numbers, vector_dim is {driver.config.vector_dim}; "
                f"set vector_dim: {dimension}"
            )
        count = len(self._clients)
        if (terms.clients_per_round or count) + terms.extra_clients > count:
            raise UsageError(f"clients_per_round and extra_clients: together more than the {count} clients")
        try:
            self._held = tasks.put((workload, self._codec))
        except Exception as error:
            raise UsageError(
                f"the workload cannot be copied to where it trains: {error!r:.150}; open files and "
                "connections in train"
            ) from error
        self._most_in_flight = max(
            2 * tasks.parallelism, min(MOST_IN_FLIGHT, IN_FLIGHT_BYTES // (4 * dimension))
        )
        self._state = terms.optimizer.init(dimension)
        self._history: list[RoundRecord] = []
        self._refusals: dict[str, Counter[str]] = {}
        self._num_steps = 0
        self._version = 0
        self._progress = Progress()

    def run(self) -> FitResult[Model]:
        """All rounds."""
        self._register()
        latest = self._driver.latest_release()
        self._version = 0 if latest is None else latest.version
        stopped, explanation = Stopped.ROUNDS, ""
        budget = self._driver.budget()
        for _ in range(self._terms.rounds):
            if budget.read_only:
                stopped = Stopped.BUDGET
                explanation = (
                    budget.read_only_reason or "the next release does not fit into the privacy budget"
                )
                break
            record = self._round()
            self._history.append(record)
            if self._terms.on_round is not None:
                self._terms.on_round(record)
            explanation = record.waiting_for
            if self._terms.stopping is not None and record.versions:
                self._progress = self._terms.stopping.step(
                    self._progress, record.round_id, record.evaluation, self._vector
                )
                if self._progress.stop is not None:
                    stopped, explanation = Stopped.NO_IMPROVEMENT, self._progress.stop
                    break
            budget = self._driver.budget()
        best = self._progress.best
        return FitResult(
            self._codec.decode(self._vector),
            self._vector,
            tuple(self._history),
            {client: dict(counts) for client, counts in sorted(self._refusals.items())},
            stopped,
            explanation,
            self._driver.budget().epsilon_spent,
            None if best is None else self._codec.decode(best.model),
            None if best is None else best.round_id,
        )

    def _register(self) -> None:
        keys = {client: pair.public_bytes for client, pair in self._driver.keypairs.items()}
        members = tuple(
            Member(
                client.client_id,
                client.domain_id,
                keys.get(client.client_id),
                None if client.features is None else np.asarray(client.features, np.float64),
                num_examples=client.num_examples,
            )
            for client in self._clients
        )
        self._driver.operations.run(Directory.register, members, self._driver.client.now())

    def _sampled(self, round_id: int) -> TrainingRound:
        count = self._terms.clients_per_round or len(self._clients)
        order = self._rng.permutation(len(self._clients))[: count + self._terms.extra_clients]
        clients = [self._clients[place] for place in order]
        return TrainingRound(round_id, clients, count, self._most_in_flight)

    def _round(self) -> RoundRecord:
        begun = self._clock()
        training = self._sampled(self._driver.current_round())
        accepted: list[ClientEvaluation] = []
        reasons: Counter[str] = Counter()
        versions: list[int] = []
        driver_bytes, waiting_for = 0, ""
        try:
            driver_bytes = self._train(training, accepted, reasons)
            self._release(versions)
        except PrivacyBudgetExhausted as spent:
            waiting_for = str(spent)
        if not versions and not waiting_for:
            waiting_for = str(self._driver.waiting_for())
        for refusal in training.refusals:
            reasons[refusal.cause] += 1
            self._count(refusal.client_id, refusal.cause)
        self._driver.advance_round()
        self._take_releases(versions)
        return RoundRecord(
            training.round_id,
            training.num_sampled,
            len(accepted),
            training.num_surplus,
            {str(reason): count for reason, count in sorted(reasons.items())},
            tuple(training.refusals[:MOST_TOLD]),
            mean_metrics_by_domain(accepted),
            self._evaluated(training.round_id) if versions else {},
            tuple(versions),
            waiting_for if not versions else "",
            self._driver.budget().epsilon_spent,
            driver_bytes,
            self._clock() - begun,
        )

    def _train(self, training: TrainingRound, accepted: list[ClientEvaluation], reasons: Counter[str]) -> int:
        """Have clients train and submit what they give; the bytes that came to this process."""
        allowed, num_bytes = self._terms.deadline_seconds, 0
        deadline = None if allowed is None else self._clock() + allowed
        vector = self._tasks.put(self._vector)

        def why_waiting(late: Sequence[Client]) -> Sequence[str]:
            return self._tasks.why_waiting([self._task(training, client, vector) for client in late])

        is_late = False
        try:
            while not training.is_over:
                for client in training.next():
                    self._tasks.start(self._task(training, client, vector))
                left = None if deadline is None else deadline - self._clock()
                if left is not None and left <= 0:
                    is_late = True
                    break
                for end in self._tasks.ended(left):
                    num_bytes += end.num_bytes
                    training.note(end, is_late=deadline is not None and self._clock() > deadline)
                self._submit(training, training.take(), accepted, reasons)
        finally:
            self._tasks.stop(training.close(why_waiting if is_late else None))
        self._submit(training, training.take(), accepted, reasons)
        if (first := training.all_raised()) is not None:
            raise UsageError(
                f"all {training.num_sampled} clients of round {training.round_id} raised; the first: "
                f"{first}\n{first.traceback}"
            )
        return num_bytes

    def _task(self, training: TrainingRound, client: Client, vector: Any) -> TaskSpec:
        return TaskSpec(
            training.key(client),
            train,
            (self._held, vector, client, training.round_id),
            client.num_cpus,
            client.num_gpus,
            client.resources,
            client.labels,
        )

    def _submit(
        self,
        training: TrainingRound,
        held: Sequence[tuple[Answer, Any]],
        accepted: list[ClientEvaluation],
        reasons: Counter[str],
    ) -> None:
        if not held:
            return
        batch = SubmissionBatch(
            tuple(answer.client_id for answer, _ in held),
            tuple(StoredRow(stored, answer.digest) for answer, stored in held),
            training.round_id,
            num_examples=tuple(answer.num_examples for answer, _ in held),
        )
        receipts = self._driver.submit(batch, aggregate=False)
        for (answer, _), receipt in zip(held, receipts, strict=True):
            if receipt.reason is None:
                domain = self._domains[answer.client_id]
                accepted.append(
                    ClientEvaluation(answer.client_id, domain, answer.metrics, answer.num_examples)
                )
                continue
            # What `train_client` gives is a row of numbers: one that is none was lost on its way.
            reason = Cause.LOST if receipt.reason is Rejection.NOT_NUMERIC else receipt.reason
            reasons[reason] += 1
            self._count(answer.client_id, reason)

    def _release(self, versions: list[int]) -> None:
        if self._driver.supervisor.plan.gossip_share > 0.0:
            self._driver.run_gossip()
            self._take_releases(versions)
        self._driver.aggregate(force=True)
        self._take_releases(versions)

    def _take_releases(self, versions: list[int]) -> None:
        """Step on a release that was not taken yet; one that another driver has made counts as well."""
        latest = self._driver.latest_release()
        if latest is None or latest.version <= self._version:
            return
        if latest.version > self._version + 1:
            logger.warning(
                "releases %d to %d are not in this fit's model: another driver has made them",
                self._version + 1,
                latest.version - 1,
            )
        self._state, vector = self._terms.optimizer.step(
            self._state, self._vector, latest.aggregate, self._num_steps
        )
        self._vector = vector
        self._version = latest.version
        self._num_steps += 1
        versions.append(latest.version)

    def _evaluated(self, round_id: int) -> dict[str, float]:
        try:
            return checked_metrics(self._workload.evaluate(self._codec.decode(self._vector)))
        except Exception as error:
            raise UsageError(f"evaluate, after round {round_id}: {told(error)}") from error

    def _count(self, client_id: str, reason: str) -> None:
        self._refusals.setdefault(client_id, Counter())[str(reason)] += 1


def _whole(what: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UsageError(f"{what}: {shown(value)} is not accepted; an integer from {least}")


__all__ = ["FitResult", "FitTerms", "Fitting", "RoundRecord", "Stopped", "TrainingRound"]
