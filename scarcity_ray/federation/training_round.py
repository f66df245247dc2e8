"""A round's training: what its tasks do, and who waits, trains and has answered.

What a task gives comes to the driver in two parts: answers, which are small, and the updates, which stay in
the runtime's store.

Guarantees:
    clients_in_flight_are_bounded
    only_clients_that_need_the_same_share_a_task
    whoever_shares_a_task_is_counted_by_itself
    nobody_is_late_before_the_deadline
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.baskets.submission import StoredRow
from scarcity_ray.runtime.base import TaskEnd
from scarcity_ray.updates import content_digest
from scarcity_ray_client import (
    Cause,
    Client,
    ModelCodec,
    Noising,
    PrivateEvaluation,
    Refusal,
    SiteLedgers,
    Workload,
    evaluate_client,
    train_clients,
)
from scarcity_ray_client.site_ledger import Extension

Model = TypeVar("Model")
Group = tuple[Client, ...]
"""Clients that share a task."""
Held = tuple[Workload[Model], ModelCodec[Model]]
Rows = NDArray[np.float32]

MOST_TOLD = 20
"""Refusals that a round keeps in full: of others it keeps no traceback."""


@dataclass(frozen=True)
class Answer:
    """What of a client's task comes to the driver."""

    client_id: str
    round_id: int
    num_examples: int
    """Persons (records) where they are the unit of privacy: what is stated with its update."""
    metrics: Mapping[str, float]
    digest: bytes = b""
    """Of its update, with the report behind it where one is asked for."""
    unmeasured: Refusal | None = None
    """Why its private evaluation failed; it then weighs nothing in it."""
    site_ledger: Extension | None = None
    """What its own ledger tells the accountant, where it keeps one."""


Told = Answer | Refusal | str
"""What a task tells the driver: of a client, or in words of the workload."""


@dataclass(frozen=True)
class TrainingProgress:
    """How far a round's training is.

    Attributes:
        round_id: The federation's.
        num_done: Clients that have answered, or were counted as failed.
        num_due: Clients that train in this round.
        seconds_left: Until the others are done, if they take as long as those that are; None before the
            first.
        slowest_client: Who has been waited for longest; None if nobody is.
    """

    round_id: int
    num_done: int
    num_due: int
    seconds_left: float | None
    slowest_client: str | None


@dataclass(frozen=True)
class Reporting:
    """What clients report behind their updates: a number for each meta-parameter, NaN where none is asked.

    Attributes:
        evaluation: What is asked of a client.
        names: Of the federation's meta-parameters, in the order of its configuration.
    """

    evaluation: PrivateEvaluation
    names: tuple[str, ...]

    def measured(
        self, held: Held[Model], vector: Rows, client: Client, round_id: int
    ) -> tuple[Rows, Refusal | None]:
        """A client's report (k,) on the model that it was handed, and why it measured nothing, if so."""
        found = evaluate_client(*held, vector, client, round_id)
        refusal = found if isinstance(found, Refusal) else None
        report = self.evaluation.report({} if isinstance(found, Refusal) else found, client.num_examples)
        return np.array([report.get(name, np.nan) for name in self.names], np.float32), refusal


def train_group(
    held: Held[Model],
    vector: Rows,
    clients: Group,
    round_id: int,
    poisoned: frozenset[str],
    reporting: Reporting | None = None,
    min_persons: int | None = None,
    noising: Noising | None = None,
) -> tuple[list[Told], Rows | None]:
    """The task of clients that train: an answer for each, and the updates (n, d) of those that have one.

    With `reporting` each update ends in its client's report: (n, d + k). With `noising` each update is noised
    here, under one charge of its client: the task must not be run a second time.
    """
    told: list[Told] = []
    rows = []
    by_id = {client.client_id: client for client in clients}
    for outcome in train_clients(
        *held,
        vector,
        clients,
        round_id,
        poisoned,
        on_failure=told.append,
        min_persons=min_persons,
        noising=noising,
    ):
        if isinstance(outcome, Refusal):
            told.append(outcome)
            continue
        row, unmeasured = outcome.delta, None
        if reporting is not None:
            client = by_id[outcome.client_id]
            report, unmeasured = reporting.measured(held, vector, client, round_id)
            row = np.concatenate([row, report])
        # An attacker that tells of nobody states the least that is taken.
        count = outcome.num_examples if min_persons is None else outcome.num_persons or min_persons
        digest = content_digest(row)
        kept = None if noising is None else noising.outbox
        extension = kept.extension(outcome.client_id) if isinstance(kept, SiteLedgers) else None
        told.append(
            Answer(outcome.client_id, round_id, count, outcome.metrics, digest, unmeasured, extension)
        )
        rows.append(row)
    if len(rows) == 1:
        return told, rows[0][None]
    return told, np.stack(rows) if rows else None


def evaluate_group(held: Held[Model], vector: Rows, clients: Group, round_id: int) -> tuple[list[Told], None]:
    """The task of clients that evaluate: an answer for each."""
    told: list[Told] = []
    for client in clients:
        found = evaluate_client(*held, vector, client, round_id)
        if isinstance(found, Refusal):
            told.append(found)
        else:
            told.append(Answer(client.client_id, round_id, client.num_examples, found))
    return told, None


def grouped(clients: Sequence[Client], most: int, parallelism: int) -> list[Group]:
    """Clients by task, in the order of each task's first: at most `most`, which need the same of a node.

    They are spread over `parallelism` tasks before any task gets a second client.
    """
    alike: dict[object, list[Client]] = {}
    for client in clients:
        needs = sorted(client.resources.items()), sorted(client.labels.items())
        alike.setdefault((client.num_cpus, client.num_gpus, str(needs)), []).append(client)
    groups: list[Group] = []
    for same in alike.values():
        size = min(most, math.ceil(len(same) / parallelism))
        groups += [tuple(same[first : first + size]) for first in range(0, len(same), size)]
    place = {client.client_id: number for number, client in enumerate(clients)}
    return sorted(groups, key=lambda group: place[group[0].client_id])


class TrainingRound:
    """Who of a round's clients waits, trains, and has answered; it knows no runtime and no clock.

    Attributes:
        num_sampled: Clients that were to train.
        refusals: Of those that gave no update.
        in_flight: Groups that train, by key.
        unsubmitted: Updates that nobody has taken.
        notes: What tasks said of the workload.
        num_answers: Updates so far.
        num_surplus: Clients that were given up before the deadline.
        num_before: Clients whose update was accepted before the round was interrupted.

    Args:
        round_id: The round.
        groups: Of clients, in the order in which they start.
        enough: Updates that end it.
        most_in_flight: Clients that train, or whose update is not submitted yet; one group may exceed it.
        before: Clients whose update is there already: they count and do not train.
    """

    def __init__(
        self,
        round_id: int,
        groups: Sequence[Group],
        enough: int,
        most_in_flight: int,
        before: Collection[str] = (),
    ) -> None:
        self.round_id = round_id
        self.num_sampled = sum(map(len, groups))
        self.refusals: list[Refusal] = []
        self.in_flight: dict[str, Group] = {}
        self.unsubmitted: list[tuple[Answer, StoredRow]] = []
        self.notes: set[str] = set()
        self.num_answers = 0
        self.num_surplus = 0
        left = [tuple(client for client in group if client.client_id not in before) for group in groups]
        self._waiting = deque(group for group in left if group)
        self.num_before = self.num_sampled - sum(map(len, left))
        self._enough = enough - self.num_before
        self._most = most_in_flight

    @property
    def is_over(self) -> bool:
        """Whether nobody is waited for any more."""
        return self.num_answers >= self._enough or not (self._waiting or self.in_flight)

    def next(self) -> list[Group]:
        """Groups to start now."""
        started: list[Group] = []
        taken = sum(map(len, self.in_flight.values())) + len(self.unsubmitted)
        while self._waiting and (taken + len(self._waiting[0]) <= self._most or not taken):
            group = self._waiting.popleft()
            started.append(group)
            self.in_flight[self.key(group)] = group
            taken += len(group)
        return started

    def key(self, group: Group) -> str:
        """The name of a group's task; no other group has this first client."""
        return f"{self.round_id}.{group[0].client_id}"

    def note(self, end: TaskEnd, *, is_late: bool) -> None:
        """A group's task has ended."""
        group = self.in_flight.pop(end.key)
        if is_late:
            self._refuse(group, Cause.TIMED_OUT, "it ended after the deadline")
        elif end.cause is not None:
            self._refuse(group, end.cause, end.detail, end.traceback)
        else:
            answers = [answer for answer in end.answer if isinstance(answer, Answer)]
            for refusal in end.answer:
                if isinstance(refusal, Refusal):
                    self._keep(refusal)
            self.notes.update(note for note in end.answer if isinstance(note, str))
            self.num_answers += len(answers)
            for index, answer in enumerate(answers):
                self.unsubmitted.append((answer, StoredRow(end.stored, answer.digest, index)))

    def take(self) -> list[tuple[Answer, StoredRow]]:
        """Updates to submit now: all once nobody trains, else once they are half of what may be in flight."""
        if not self.is_over and self.in_flight and 2 * len(self.unsubmitted) < self._most:
            return []
        taken, self.unsubmitted = self.unsubmitted, []
        return taken

    def close(self, why_waiting: Callable[[Sequence[Group]], Sequence[str]] | None) -> list[str]:
        """Give up whoever has not answered; keys of tasks to stop.

        Args:
            why_waiting: What kept each group that is too late, if anything is known; None: the deadline has
                not passed, and nobody is late.
        """
        left, keys = [*self.in_flight.values(), *self._waiting], list(self.in_flight)
        if why_waiting is None:
            self.num_surplus = sum(map(len, left))
        else:
            for group, why in zip(left, why_waiting(left), strict=True):
                stage = "ended" if self.key(group) in self.in_flight else "begun"
                detail = f"it had not {stage} at the deadline; {why}".rstrip("; ")
                self._refuse(group, Cause.TIMED_OUT, detail)
        self.in_flight.clear()
        self._waiting.clear()
        return keys

    def progress(self, seconds: float) -> TrainingProgress:
        """How far it is, `seconds` after it began."""
        done, waited_for = self.num_answers + len(self.refusals), next(iter(self.in_flight.values()), None)
        return TrainingProgress(
            self.round_id,
            done,
            self.num_sampled,
            seconds / done * (self.num_sampled - done) if done else None,
            None if waited_for is None else waited_for[0].client_id,
        )

    def all_failed(self) -> Refusal | None:
        """The first refusal, if every client raised, gave no result of a training or has too few persons."""
        ends = (Cause.RAISED, Cause.WRONG_RESULT, Cause.TOO_FEW_PERSONS)
        faults = [one for one in self.refusals if one.cause in ends]
        return faults[0] if faults and len(faults) == self.num_sampled else None

    def _refuse(self, group: Group, cause: Cause, detail: str, traceback: str = "") -> None:
        shared = f" (its task is shared by {len(group)} clients)" if len(group) > 1 else ""
        for client in group:
            self._keep(Refusal(client.client_id, self.round_id, cause, detail + shared, traceback))

    def _keep(self, refusal: Refusal) -> None:
        is_told = len(self.refusals) < MOST_TOLD or not refusal.traceback
        self.refusals.append(refusal if is_told else replace(refusal, traceback=""))


__all__ = [
    "Answer",
    "Group",
    "Reporting",
    "TrainingProgress",
    "TrainingRound",
    "evaluate_group",
    "grouped",
    "train_group",
]
