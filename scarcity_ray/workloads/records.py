"""The results of a job: a record of each round (``metrics.jsonl``) and a summary (``summary.json``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from scarcity_ray_client import PrivateMetric


@dataclass(frozen=True)
class RoundRecord:
    """The record of one round.

    Attributes:
        round: Number, from 1.
        metrics: `Workload.evaluate`'s of the model handed out after this round; without Layer 2 the mean over
            some honest clients, each with its own model.
        epsilon_spent: By the client that has spent most.
        epsilon_left: Of the budget; 0 once the next release does not fit.
        sampled: Clients that were to train.
        accepted: Updates accepted.
        rejected: Updates that did not come or were refused, by reason.
        gossip_messages: Delivered in this round.
        released: Whether there was a global model.
        clip_norm: To which Layer 1 clipped; it moves with adaptive clipping.
        seconds: Time by phase.
        elapsed: Seconds since the job began.
        training: Means of what clients' training told, by domain; outside the privacy claim, as the next is.
        clients: Means of what clients measured of the release (`evaluate_client`), by domain.
        private_evaluation: What the release told of the metrics asked for privately, of the models that
            clients were handed: inside the privacy claim.
        waits_for: Where there was no global model, what it waited for (`federation.waiting`).
    """

    round: int
    metrics: Mapping[str, float]
    epsilon_spent: float
    epsilon_left: float
    sampled: int
    accepted: int
    rejected: Mapping[str, int]
    gossip_messages: int
    released: bool
    clip_norm: float
    seconds: Mapping[str, float]
    elapsed: float
    training: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    clients: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    private_evaluation: Mapping[str, PrivateMetric] = field(default_factory=dict)
    waits_for: str = ""

    @property
    def num_rejected(self) -> int:
        """Updates refused, whatever the reason."""
        return sum(self.rejected.values())

    def as_json(self) -> dict[str, Any]:
        """A line of ``metrics.jsonl``."""
        return finite(asdict(self))


@dataclass(frozen=True)
class RunBeside:
    """A simulated run that the job is compared with.

    Attributes:
        run: A key of `comparison.RUNS`.
        attack: That it was under.
        metrics: Of its model; none if the model is not finite.
        curve: The headline metric after each round, None where there was none; empty for runs of one model.
        failed: What the workload or an attack raised in it, so that it has no metrics, or how often a rule
            from outside failed in it.
    """

    run: str
    attack: str
    metrics: Mapping[str, float]
    curve: tuple[float | None, ...] = ()
    failed: str = ""


@dataclass(frozen=True)
class Summary:
    """The result of a job; the contents of ``summary.json``. Counts are of the whole job.

    Attributes:
        metric: The headline among the metrics.
        mode: ``max`` or ``min``, whichever is better.
        metrics: Of the model handed out, under the lab's attack; without Layer 2 the mean over honest
            clients. None if no round was made.
        initial: Of the initial model.
        best_round: The round whose model was best, and its metrics.
        epsilon_spent: By the client that has spent most, in this budget period; `total_epsilon` is the
            period's, which a renewal may have changed.
        budget_spent_early: Whether the budget ended before the last round.
        stopped: Why the rounds ended, if not because all were made.
        releases: Rounds with a global model.
        domains: Clients of each domain.
        attack: The lab's; ``none`` without one.
        rejected: Updates that did not come or were refused, by reason.
        refused: The same by client.
        first_refusals: The first trainings that gave no update: client, round, cause and detail.
        wall_seconds: From the first evaluation to the last run beside, start of the runtime included.
        runs: The runs beside.
        privacy_claim: What the figures claim, in sentences.
        basket_standings: Without Layer 2, how each basket ended (`gossip_training.BasketStanding`), and
            under ``alone`` how it would have without gossip.
        warnings: What the federation warned of (`forecast.Warned` as plain data).
        waits_for: Where no round released a model, what the last one waited for.
        date: When it began, ISO 8601 in UTC.
        versions: Of what it ran with, and the workload's class.
        load_model: Python that reads the model back.
        privacy: Unit, mode and against whom; for a person or record the figures beside epsilon, which are
            those of `plan.PersonClaim`.
        private_evaluation: Of the last release that told any; inside the privacy claim.
    """

    name: str
    metric: str
    mode: str
    metrics: Mapping[str, float] | None
    initial: Mapping[str, float]
    best_round: int | None
    best_metrics: Mapping[str, float]
    epsilon_spent: float
    delta: float
    total_epsilon: float
    budget_spent_early: bool
    stopped: str
    rounds: int
    rounds_configured: int
    releases: int
    clients: int
    domains: Mapping[str, int]
    baskets: int
    byzantine_clients: int
    attack: str
    rule: str
    rejected: Mapping[str, int]
    refused: Mapping[str, Mapping[str, int]]
    first_refusals: tuple[Mapping[str, Any], ...]
    gossip_messages: int
    wall_seconds: float
    seconds: Mapping[str, float]
    runs: tuple[RunBeside, ...]
    privacy_claim: tuple[str, ...]
    basket_standings: Mapping[str, Mapping[str, Any]]
    warnings: tuple[Mapping[str, Any], ...]
    waits_for: str
    date: str
    versions: Mapping[str, str]
    load_model: str
    privacy: Mapping[str, Any] = field(default_factory=dict)
    private_evaluation: Mapping[str, PrivateMetric] = field(default_factory=dict)

    @property
    def headline(self) -> float | None:
        """The value of the headline metric."""
        return None if self.metrics is None else self.metrics.get(self.metric)

    def beside(self, run: str, attack: str | None = None) -> float | None:
        """The headline metric of a run beside; under whichever attack it was made first, if None."""
        for one in self.runs:
            if one.run == run and attack in (None, one.attack):
                return one.metrics.get(self.metric)
        return None

    def as_json(self) -> dict[str, Any]:
        """The contents of ``summary.json``."""
        return finite(asdict(self))


@dataclass(frozen=True)
class Outcome:
    """A finished job.

    Attributes:
        rounds: The records, one for each round.
    """

    summary: Summary
    rounds: tuple[RoundRecord, ...]


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping as JSON can hold it: None for an infinite or undefined number.

    >>> finite({"epsilon": math.inf, "rounds": 3})
    {'epsilon': None, 'rounds': 3}
    """
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
