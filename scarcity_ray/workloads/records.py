"""The results of a job: a record of each round (``metrics.jsonl``) and a summary (``summary.json``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class RoundRecord:
    """The record of one round.

    Attributes:
        round: Number, from 1.
        accuracy: Of the model handed out after this round, on the test part; without Layer 2 the mean over
            honest clients, each with its own model.
        epsilon_spent: By the client that has spent most.
        epsilon_left: Of the budget; 0 once the next release does not fit.
        rejected: Updates refused, by reason.
        gossip_messages: Delivered in this round.
        released: Whether there was a global model.
        clip_norm: To which Layer 1 clipped; it moves with adaptive clipping.
        seconds: Time by phase.
        elapsed: Seconds since the job began.
        baskets: Without Layer 2, how each basket stands (`gossip_training.BasketStanding` as plain data).
        waits_for: Where there was no global model, what it waited for (`federation.waiting`).
    """

    round: int
    accuracy: float
    epsilon_spent: float
    epsilon_left: float
    accepted: int
    rejected: Mapping[str, int]
    gossip_messages: int
    released: bool
    clip_norm: float
    seconds: Mapping[str, float]
    elapsed: float
    baskets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    waits_for: str = ""

    @property
    def num_rejected(self) -> int:
        """Updates refused, whatever the reason."""
        return sum(self.rejected.values())

    def as_json(self) -> dict[str, Any]:
        """A line of ``metrics.jsonl``."""
        return finite(asdict(self))


@dataclass(frozen=True)
class Summary:
    """The result of a job; the contents of ``summary.json``. Counts are of the whole job.

    Attributes:
        accuracy: The federation's, under attack, with noise; without Layer 2 the mean over honest clients.
        accuracy_mean_under_attack: The plain mean's under the same attack.
        accuracy_clipped_mean: The mean of clipped updates, with its own noise, under the same attack.
        accuracy_clean: The federation's rule without attack and noise.
        accuracy_under_alie: The federation's, simulated, under ALIE.
        accuracy_simulated: The federation's, simulated, under the same attack: a check on `accuracy`.
        epsilon_spent: By the client that has spent most.
        budget_spent_early: Whether the budget ended before the last round.
        releases: Rounds with a global model.
        rejected: Updates refused, by reason.
        wall_seconds: From reading the data to the last comparison run, start of the runtime included.
        attacks: For each attack, the accuracies of the simulated runs by defence.
        privacy_claim: What the figures claim, in sentences.
        basket_standings: Without Layer 2, how each basket ended, and under ``alone`` how it would have
            without gossip.
        warnings: What the federation warned of (`forecast.Warned` as plain data).
        waits_for: Where no round released a model, what the last one waited for.
    """

    name: str
    accuracy: float | None
    accuracy_mean_under_attack: float | None
    accuracy_clipped_mean: float | None
    accuracy_clean: float | None
    accuracy_under_alie: float | None
    accuracy_simulated: float | None
    epsilon_spent: float
    delta: float
    total_epsilon: float
    budget_spent_early: bool
    rounds: int
    rounds_configured: int
    releases: int
    clients: int
    baskets: int
    byzantine_clients: int
    attack: str
    rule: str
    rejected: Mapping[str, int]
    gossip_messages: int
    wall_seconds: float
    seconds: Mapping[str, float]
    attacks: Mapping[str, Mapping[str, float]]
    privacy_claim: tuple[str, ...]
    basket_standings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: tuple[Mapping[str, Any], ...] = ()
    waits_for: str = ""

    def as_json(self) -> dict[str, Any]:
        """The contents of ``summary.json``."""
        return finite(asdict(self))


@dataclass(frozen=True)
class Outcome:
    """A finished job.

    Attributes:
        rounds: The records, one for each round.
        curves: Accuracy after each round of the simulated runs, by (defence, attack).
    """

    summary: Summary
    rounds: tuple[RoundRecord, ...]
    curves: Mapping[tuple[str, str], list[float]] = field(default_factory=dict)


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping as JSON can hold it: None for an infinite or undefined number.

    >>> finite({"epsilon": math.inf, "rounds": 3})
    {'epsilon': None, 'rounds': 3}
    """
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
