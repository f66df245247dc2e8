"""What `fit` is asked to do and what it tells: its terms, checked as they are made, and its records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config.arguments import instance_of, number_of
from scarcity_ray.errors import UsageError
from scarcity_ray.federation.evaluation import EarlyStopping, MeanMetrics
from scarcity_ray.federation.training_round import TrainingProgress
from scarcity_ray.layers.server_optimizers import ServerOptimizer, ServerSGD
from scarcity_ray_client import PrivateEvaluation, PrivateMetric, Refusal
from scarcity_ray_client.errors import shown

Model = TypeVar("Model")
Rows = NDArray[np.float32]


class Stopped(StrEnum):
    """Why `fit` ended."""

    ROUNDS = "rounds"
    """All rounds are done."""
    BUDGET = "budget"
    """The next release does not fit into the privacy budget."""
    CEILING = "ceiling"
    """So many clients are at ceilings of their own that no release can be made."""
    NO_IMPROVEMENT = "no_improvement"
    """`EarlyStopping` said so."""
    EVALUATION = "evaluation"
    """`evaluate` raised after a release, or every client's `evaluate_client` did."""


@runtime_checkable
class Adversary(Protocol):
    """The lab's Byzantine clients, all played by the driver: **every update then comes to the driver**.

    Attributes:
        byzantine: Their ids.
        poisons: Whether they train with `Workload.poison`.
    """

    byzantine: frozenset[str]
    poisons: bool

    def sent(
        self,
        round_id: int,
        client_ids: Sequence[str],
        basket_ids: Sequence[str],
        rows: Rows,
        clip_norm: float,
    ) -> Rows:
        """The rows that reach the baskets in a round.

        Args:
            round_id: The federation's.
            client_ids: Who trained, sorted.
            basket_ids: The basket of each.
            rows: (n, d) what they trained, read-only.
            clip_norm: To which Layer 1 clips in this round.

        Returns:
            (n, d), with others in the places of `byzantine`.
        """


@dataclass(frozen=True, kw_only=True)
class FitTerms:
    """How to fit, checked as it is made; see `HierarchicalFederation.fit`."""

    rounds: int
    clients_per_round: int | None = None
    extra_clients: int = 0
    deadline_seconds: float | None = None
    clients_per_task: int = 1
    optimizer: ServerOptimizer = field(default_factory=ServerSGD)
    averaging_decay: float | None = None
    start: Any = None
    stopping: EarlyStopping | None = None
    evaluate_clients: bool = False
    private_evaluation: PrivateEvaluation | None = None
    adversary: Adversary | None = None
    seed: int = 0
    site_ledgers: str | None = None
    on_round: Callable[[RoundRecord], None] | None = None
    on_progress: Callable[[TrainingProgress], None] | None = None
    on_release: Callable[[Any, int], None] | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        _whole("rounds", self.rounds, 1)
        _whole("extra_clients", self.extra_clients, 0)
        _whole("clients_per_task", self.clients_per_task, 1)
        _whole("seed", self.seed, 0)
        if self.site_ledgers is not None:
            instance_of("site_ledgers", self.site_ledgers, str)
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
        instance_of("evaluate_clients", self.evaluate_clients, bool)
        instance_of("resume", self.resume, bool)
        if self.private_evaluation is not None:
            instance_of("private_evaluation", self.private_evaluation, PrivateEvaluation)
        if self.adversary is not None and not isinstance(self.adversary, Adversary):
            raise UsageError(f"adversary must be an Adversary, got {shown(self.adversary)}")
        for name in ("on_round", "on_progress", "on_release"):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise UsageError(f"{name} must be callable, got {shown(given)}")


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """What happened in one round.

    Attributes:
        round_id: The federation's.
        num_sampled: Clients that were to train.
        num_accepted: Whose update was accepted.
        num_surplus: That were not waited for: enough had answered, or the budget was spent.
        refusals: Updates that did not come or were refused, by reason; and evaluations that did not come, by
            ``evaluation_`` and the reason. The first round's has the clients that are left out of all.
        first_refusals: Up to 20 (`training_round.MOST_TOLD`) of the trainings and evaluations that gave none,
            to read: client, cause, detail. What an error says is the client's own: outside the claim.
        metrics: Those of `train`, by domain, averaged over accepted updates by examples: outside the claim.
        evaluation: Those of `evaluate` after the release; empty without one.
        clients: Those of `evaluate_client` after the release, by domain, averaged over the round's clients by
            examples: outside the claim.
        private_evaluation: Those of `evaluate_client` that were asked for privately, as this round's release
            tells them, on the models that clients were handed: **inside the claim**. Empty without a release.
        versions: Of the releases that were made.
        waiting_for: What the next release waits for, where there was none.
        clip_norm: To which Layer 1 clipped this round's updates.
        gossip_messages: That were delivered.
        epsilon_spent: Of this budget period so far.
        epsilon_left: Of this budget period; 0 once the next release does not fit.
        driver_bytes: What tasks sent to this driver.
        phases: Seconds by phase.
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
    clients: Mapping[str, MeanMetrics]
    private_evaluation: Mapping[str, PrivateMetric]
    versions: tuple[int, ...]
    waiting_for: str
    clip_norm: float
    gossip_messages: int
    epsilon_spent: float
    epsilon_left: float
    driver_bytes: int
    phases: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, eq=False, kw_only=True)
class FitResult(Generic[Model]):
    """What `fit` gives.

    Attributes:
        model: That is handed out after the last release, of the workload's own kind: the models' average with
            `averaging_decay`, else the last.
        vector: The same as the codec has it, (d,).
        last_model: With `averaging_decay` the last, from which clients would train on; else None.
        history: Round by round.
        refusals: By client and reason, of all rounds.
        stopped: Why it ended.
        explanation: That in words, or what the last round's release waited for; empty if all is well.
        epsilon_spent: Of this budget period.
        best_model: The best that was handed out, by `stopping`; None without it.
        best_round: The federation's round that made it.
    """

    model: Model
    vector: NDArray[np.float32]
    last_model: Model | None
    history: tuple[RoundRecord, ...]
    refusals: Mapping[str, Mapping[str, int]]
    stopped: Stopped
    explanation: str
    epsilon_spent: float
    best_model: Model | None = None
    best_round: int | None = None


def _whole(what: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UsageError(f"{what}: {shown(value)} is not accepted; an integer from {least}")


__all__ = ["Adversary", "FitResult", "FitTerms", "RoundRecord", "Stopped"]
