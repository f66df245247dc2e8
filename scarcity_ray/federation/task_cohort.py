"""Clients that train as tasks of the cluster: who is drawn, what is charged, and their updates' way.

Guarantees:
    a_client_with_too_few_persons_is_left_out_before_it_trains_and_counted
    a_client_without_an_update_is_counted_by_reason_while_the_round_goes_on
    a_round_in_which_every_client_failed_is_an_error_with_the_first_traceback
    a_client_at_its_ceiling_is_not_asked_to_train_and_counted
    each_noised_row_has_a_charge_before_its_training_begins: A lost task loses the row, never the charge.
    a_client_that_cannot_pay_for_a_row_is_left_out_and_counted
    updates_come_to_the_driver_for_an_adversary_alone
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.actors.directory import Directory
from scarcity_ray.baskets import Rejection
from scarcity_ray.baskets.reports import Member
from scarcity_ray.baskets.submission import StoredRow, SubmissionBatch
from scarcity_ray.errors import UsageError
from scarcity_ray.federation.arguments import policies_of
from scarcity_ray.federation.cohort import ClientsEvaluation, Fit
from scarcity_ray.federation.driver import Driver
from scarcity_ray.federation.evaluation import ClientEvaluation, MeanMetrics, mean_metrics_by_domain
from scarcity_ray.federation.fit_state import FitState, RoundFacts
from scarcity_ray.federation.fit_terms import Adversary, Rows
from scarcity_ray.federation.training_round import (
    MOST_TOLD,
    Answer,
    Group,
    Reporting,
    TrainingProgress,
    TrainingRound,
    evaluate_group,
    grouped,
    train_group,
)
from scarcity_ray.forecast import Warned, warning_of_few_persons
from scarcity_ray.layers.server_model import ServerModel
from scarcity_ray.runtime.base import Tasks, TaskSpec
from scarcity_ray_client import Cause, Client, Noising, Refusal, SiteLedgers, Workload, checked_clients
from scarcity_ray_client.errors import shown
from scarcity_ray_client.loading import source_folder
from scarcity_ray_client.site_ledger import Extension

Model = TypeVar("Model")

MOST_IN_FLIGHT = 256
"""Tasks whose clients train or have trained and are not submitted yet."""
IN_FLIGHT_BYTES = 2**30
"""What their updates may take together, where two clients for each CPU take less."""


class TaskCohort(Generic[Model]):
    """One fit's clients, which `Tasks` train.

    Args:
        tasks: Where clients train.
        fit: Whose clients they are.
    """

    def __init__(self, tasks: Tasks, fit: Fit[Model]) -> None:
        self._tasks, self._fit = tasks, fit
        self._driver, self._workload, self._terms = fit.driver, fit.workload, fit.terms
        self._phases, self._note = fit.phases, fit.note
        driver = fit.driver
        self._rng = np.random.default_rng(fit.terms.seed)
        everybody = checked_clients(fit.workload.clients())
        self._by_id = {client.client_id: client for client in everybody}
        self._min_persons = driver.config.privacy.min_persons
        least = self._min_persons or 1
        self._clients = tuple(one for one in everybody if (one.num_persons or least) >= least)
        self._too_small = tuple(one for one in everybody if (one.num_persons or least) < least)
        self._out: frozenset[str] = frozenset()
        self._newly_out: tuple[str, ...] = ()
        self._unpaid: Sequence[Refusal] = ()
        site_noise, source = driver.supervisor.plan.site_noise, driver.supervisor.identity.noise
        self._noising = None if site_noise is None else Noising(site_noise, source)
        # Charges are this life's own, since each covers a draw; sites' ledgers know rows of earlier lives.
        self._name = self.run = uuid.uuid4().hex
        self._charges = 0
        self._told_ledgers: dict[str, Extension] = {}
        self._check_site_ledgers()
        self._check_hooks()
        asked = fit.terms.private_evaluation
        names = tuple(driver.config.meta_parameters)
        self._reporting = None if asked is None else Reporting(asked, names)
        driver.told.tell(self._few_persons())
        count = len(self._clients)
        if (fit.terms.clients_per_round or count) + fit.terms.extra_clients > count:
            raise UsageError(f"clients_per_round and extra_clients: together more than the {count} clients")
        sent = fit.terms.clients_per_round
        driver.supervisor.check_memory(count if sent is None else sent + fit.terms.extra_clients)
        sources = source_folder(fit.workload)
        try:
            self._held = tasks.put((fit.workload, fit.codec), sources)
        except Exception as error:
            raise UsageError(
                f"the workload cannot be copied to where it trains: {error!r:.150}; open files and "
                "connections in train"
            ) from error
        self._most_in_flight = max(
            2 * tasks.parallelism,
            min(MOST_IN_FLIGHT * fit.terms.clients_per_task, IN_FLIGHT_BYTES // (4 * fit.codec.dimension)),
        )
        self._num_bytes = 0
        self._training: TrainingRound
        self._groups: list[Group]
        self._submitting: Submitting

    @property
    def num_bytes(self) -> int:
        """What of a round's updates and answers came to this process."""
        return self._num_bytes + self._submitting.num_bytes

    def draws(self) -> Mapping[str, Any]:
        """State of the bit generator that draws clients."""
        return self._rng.bit_generator.state

    def resume(self, state: FitState) -> None:
        """Go on where a stored fit stands."""
        self._rng.bit_generator.state = state.rng
        self.run = state.run
        self._out = frozenset(c for c, counts in state.refusals.items() if Cause.AT_CEILING in counts)
        self._charges = len(state.history)
        if state.history:
            self._too_small = ()

    def begin(self, round_id: int, *, is_resumed: bool, is_trained: bool) -> None:
        """Draw a round's clients; where they noise their rows, each is charged for one."""
        self._num_bytes = 0
        sampled = self._sampled(round_id, is_resumed=is_resumed, is_trained=is_trained)
        self._training, self._groups, self._unpaid = sampled
        has_reports = self._reporting is not None
        self._submitting = Submitting(
            self._driver, self._tasks, self._terms.adversary, round_id, has_reports=has_reports
        )

    def train(self, model: ServerModel, version: int, clip_norm: float) -> None:
        """Have clients train and submit what they give.

        Raises:
            UsageError: If every client failed.
        """
        if not self._training.is_over:
            self._train(self._training, self._groups, self._submitting, model.current, clip_norm)

    def facts(self, gossip_messages: int) -> RoundFacts:
        """What the round's training came to."""
        return self._facts(self._training, self._submitting, gossip_messages)

    def left_out(self) -> Sequence[Refusal]:
        """Clients that were not asked in this round, those left out for good in the first alone."""
        round_id = self._training.round_id
        return [
            *self._told_once_of_too_few_persons(round_id),
            *self._told_once_of_ceilings(round_id),
            *self._unpaid,
        ]

    def notes(self) -> Sequence[str]:
        """What the round's tasks said of the workload."""
        return sorted(self._training.notes)

    def evaluate(self, handed_out: NDArray[np.float32]) -> ClientsEvaluation:
        """The round's clients evaluate the model that is handed out, where their data lie."""
        groups, round_id = self._groups, self._training.round_id
        count = sum(map(len, groups))
        evaluating = TrainingRound(round_id, groups, count, self._most_in_flight)
        vector, answers = self._tasks.put(handed_out), list[Answer]()

        def spec(group: Group) -> TaskSpec:
            return self._spec(evaluating, group, evaluate_group, vector)

        self._run_tasks(evaluating, spec, lambda held: answers.extend(one for one, _ in held))
        means = self._by_domain([one for one in answers if one.metrics])
        return ClientsEvaluation(means, evaluating.refusals, evaluating.all_failed(), count)

    def _check_hooks(self) -> None:
        """Refuse an adversary that asks for what the workload does not have."""
        kind, adversary = type(self._workload), self._terms.adversary
        if self._terms.evaluate_clients and kind.evaluate_client is Workload.evaluate_client:
            raise UsageError(f"evaluate_clients: {kind.__name__} has no evaluate_client; write it")
        if adversary is None:
            return
        if adversary.poisons and kind.poison is Workload.poison:
            raise UsageError(f"adversary: it poisons, and {kind.__name__} has no poison; write it")
        if unknown := sorted(adversary.byzantine - self._by_id.keys()):
            raise UsageError(f"adversary: byzantine: {shown(unknown)} are no clients of the workload")
        self._note(
            f"adversary: {len(adversary.byzantine)} clients' updates are made up here, for the lab, and "
            "every client's update comes to this process; leave it out where data matter"
        )

    def _check_site_ledgers(self) -> None:
        """Refuse ledgers at the sites where rows are not noised there, or clients have no ceiling."""
        if self._terms.site_ledgers is None:
            return
        if self._noising is None:
            raise UsageError(
                "site_ledgers: fit keeps them with privacy.noise: site; under central noise a client's own "
                "code may keep a SiteLedger, which is a promise there"
            )
        if without := sorted(one.client_id for one in self._clients if one.policy is None):
            raise UsageError(f"site_ledgers: {shown(without)} have no Client.policy, so no ceiling to keep")

    def _noising_now(self, groups: Sequence[Group]) -> Noising | None:
        """What noises a round's rows, with the sites' ledgers as the accountant knows them now."""
        folder, clients = self._terms.site_ledgers, [client for group in groups for client in group]
        if folder is None or self._noising is None:
            return self._noising
        ledgers = SiteLedgers(
            folder,
            self._driver.supervisor.identity.federation_id,
            {client.client_id: client.policy.policy for client in clients if client.policy is not None},
            self._driver.supervisor.plan.accounting,
            is_proof=True,
            acknowledged=self._driver.site_heads([client.client_id for client in clients]),
            run=self.run,
        )
        return replace(self._noising, outbox=ledgers)

    def _tell_ledgers(self) -> None:
        """Tell the accountant how far the sites' ledgers are."""
        ledgers, self._told_ledgers = self._told_ledgers, {}
        if ledgers and (older := self._driver.note_site_ledgers(ledgers)):
            self._note(f"{shown(list(older))}: their own ledgers are older copies than the accountant knows")

    def _few_persons(self) -> tuple[Warned, ...]:
        """What is to be said of clients that are left out, which their number of persons alone decides.

        Raises:
            UsageError: If nobody is left.
        """
        if not self._too_small:
            return ()
        counts = [client.num_persons or 0 for client in self._too_small]
        found = warning_of_few_persons(self._driver.config.privacy, counts, len(self._by_id))
        if not self._clients:
            raise UsageError(found.message)
        return (found,)

    def register(self) -> None:
        """Register the clients, under the ceilings that they signed."""
        keys = {client: pair.public_bytes for client, pair in self._driver.keypairs.items()}
        members = tuple(
            Member(
                client.client_id,
                client.domain_id,
                keys.get(client.client_id),
                None if client.features is None else np.asarray(client.features, np.float64),
                num_examples=client.num_examples if self._min_persons is None else client.num_persons,
            )
            for client in self._clients
        )
        asked = [(client.client_id, keys.get(client.client_id), client.policy) for client in self._clients]
        self._driver.set_policies(policies_of(asked))
        self._driver.operations.run(Directory.register, members, self._driver.client.now())

    def leave_out(self) -> bool:
        """Ask clients at ceilings of their own no more; whether there are any."""
        gone = self._driver.left_out() & self._by_id.keys()
        self._clients = tuple(client for client in self._clients if client.client_id not in gone)
        self._newly_out = tuple(sorted(gone - self._out))
        self._out |= gone
        if self._newly_out:
            self._note(
                f"{shown(list(self._newly_out))}: left out of all further rounds at their own ceilings"
            )
        return bool(gone)

    def _told_once_of_ceilings(self, round_id: int) -> list[Refusal]:
        """Refusals of the clients that were left out since the last round."""
        why = "the next release would pass its own ceiling: it is left out of all further rounds"
        return [Refusal(client_id, round_id, Cause.AT_CEILING, why) for client_id in self._newly_out]

    def _sampled(
        self, round_id: int, *, is_resumed: bool, is_trained: bool
    ) -> tuple[TrainingRound, list[Group], list[Refusal]]:
        """The round, its groups, and the clients that cannot pay for a row, where they noise their rows.

        Of a round that was interrupted, clients whose update is there train no more, and pay for no more.
        """
        before = self._driver.accepted_for(round_id) if is_resumed else frozenset()
        able = self._able(before)
        count = self._terms.clients_per_round or len(able)
        order = self._rng.permutation(len(able))[: count + self._terms.extra_clients]
        chosen = [able[place] for place in order]
        due = [] if is_trained else [client for client in chosen if client.client_id not in before]
        paid = {client.client_id for client in self._charged(due, round_id)}
        unpaid_ids = {client.client_id for client in due} - paid
        clients = [client for client in chosen if client.client_id not in unpaid_ids]
        groups = grouped(clients, self._terms.clients_per_task, self._tasks.parallelism)
        asked = {client.client_id for client in able} - unpaid_ids
        why = "its privacy budget has no room for another noised row"
        unpaid = [
            Refusal(client.client_id, round_id, Cause.BUDGET_SPENT, why)
            for client in self._clients
            if client.client_id not in asked
        ]
        return TrainingRound(round_id, groups, count, self._most_in_flight, before), groups, unpaid

    def _able(self, before: Collection[str]) -> Sequence[Client]:
        """The clients that can pay for a row, or have, where they noise their rows; else all."""
        if self._noising is None:
            return self._clients
        able = self._driver.able_to_send([client.client_id for client in self._clients])
        return [one for one in self._clients if one.client_id in able or one.client_id in before]

    def _charged(self, clients: list[Client], round_id: int) -> list[Client]:
        """Those of the clients whose row of this round is charged, before any noise is drawn for it."""
        if self._noising is None or not clients:
            return clients
        charge_id = f"row/{self._name}/{self._charges}"
        self._charges += 1
        ids = [client.client_id for client in clients]
        charged = self._driver.charge_rows(charge_id, ids, {"round": round_id})
        self._noising = replace(self._noising, mus=charged)
        return [client for client in clients if client.client_id in charged]

    def _train(
        self,
        training: TrainingRound,
        groups: Sequence[Group],
        submitting: Submitting,
        current: Rows,
        clip_norm: float,
    ) -> None:
        noising = self._noising_now(groups)
        vector, adversary = self._tasks.put(current), self._terms.adversary
        poisoned = adversary.byzantine if adversary is not None and adversary.poisons else frozenset()

        def spec(group: Group) -> TaskSpec:
            poison = poisoned.intersection(client.client_id for client in group)
            asked = poison, self._reporting, self._min_persons, noising
            return self._spec(training, group, train_group, vector, *asked)

        def deliver(held: Sequence[tuple[Answer, StoredRow]]) -> None:
            ledgers = {answer.client_id: answer.site_ledger for answer, _ in held}
            self._told_ledgers |= {c: extension for c, extension in ledgers.items() if extension is not None}
            with self._phases.timed("submission"):
                submitting.take(held)

        began = self._phases.now()
        try:
            self._run_tasks(training, spec, deliver, self._terms.on_progress)
        finally:
            seconds = self._phases.seconds
            seconds["training"] = self._phases.now() - began - seconds["submission"]
        if (first := training.all_failed()) is not None:
            raise UsageError(
                f"all {training.num_sampled} clients of round {training.round_id} failed; the first: "
                f"{first}\n{first.traceback}"
            )
        self._tell_ledgers()
        with self._phases.timed("submission"):
            submitting.finish(clip_norm)

    def _run_tasks(
        self,
        training: TrainingRound,
        spec: Callable[[Group], TaskSpec],
        deliver: Callable[[Sequence[tuple[Answer, StoredRow]]], None],
        on_progress: Callable[[TrainingProgress], None] | None = None,
    ) -> None:
        """Run the round's tasks until it is over or late."""
        begun, is_late = self._phases.now(), False
        allowed = self._terms.deadline_seconds
        deadline = None if allowed is None else begun + allowed

        def why_waiting(late: Sequence[Group]) -> Sequence[str]:
            return self._tasks.why_waiting([spec(group) for group in late])

        try:
            while not training.is_over:
                for group in training.next():
                    self._tasks.start(spec(group))
                if on_progress is not None:
                    on_progress(training.progress(self._phases.now() - begun))
                left = None if deadline is None else deadline - self._phases.now()
                if left is not None and left <= 0:
                    is_late = True
                    break
                for end in self._tasks.ended(left):
                    self._num_bytes += end.num_bytes
                    training.note(end, is_late=deadline is not None and self._phases.now() > deadline)
                deliver(training.take())
        except (KeyboardInterrupt, SystemExit):
            # Tasks end with this process. Ray, asked to cancel one that starts or ends just now, may end it
            # first ("Tried to complete task that was not pending"), before anything is closed or said.
            training.close(None)
            raise
        except BaseException:
            self._tasks.stop(training.close(None))
            raise
        self._tasks.stop(training.close(why_waiting if is_late else None))
        if on_progress is not None:
            on_progress(training.progress(self._phases.now() - begun))
        deliver(training.take())

    def _spec(
        self, training: TrainingRound, group: Group, function: Callable[..., Any], vector: Any, *more: object
    ) -> TaskSpec:
        needs = group[0]
        return TaskSpec(
            training.key(group),
            function,
            (self._held, vector, group, training.round_id, *more),
            needs.num_cpus,
            needs.num_gpus,
            needs.resources,
            needs.labels,
        )

    def _facts(self, training: TrainingRound, submitting: Submitting, messages: int) -> RoundFacts:
        found = [(refusal.client_id, str(refusal.cause)) for refusal in training.refusals]
        return RoundFacts(
            round_id=training.round_id,
            num_sampled=training.num_sampled,
            num_accepted=len(submitting.accepted) + training.num_before,
            num_surplus=training.num_surplus,
            refused=(*found, *submitting.refused),
            first_refusals=tuple(training.refusals[:MOST_TOLD]),
            unmeasured=tuple(submitting.unmeasured),
            metrics=self._by_domain(submitting.accepted),
            gossip_messages=messages,
        )

    def _told_once_of_too_few_persons(self, round_id: int) -> list[Refusal]:
        """Refusals of the clients that were left out of all rounds, in the first."""
        unit = self._driver.config.privacy.unit
        told = [
            Refusal(
                client.client_id,
                round_id,
                Cause.TOO_FEW_PERSONS,
                f"{client.num_persons} {unit}s, below privacy.min_persons = {self._min_persons}: it is left "
                "out of all rounds",
            )
            for client in self._too_small
        ]
        self._too_small = ()
        return told

    def _by_domain(self, answers: Sequence[Answer]) -> dict[str, MeanMetrics]:
        return mean_metrics_by_domain(
            ClientEvaluation(
                one.client_id, self._by_id[one.client_id].domain_id, one.metrics, one.num_examples
            )
            for one in sorted(answers, key=lambda one: one.client_id)
        )


class Submitting:
    """A round's updates on their way to the baskets: by reference, or with an adversary through this process.

    Attributes:
        accepted: Answers of clients whose update was accepted.
        refused: Client and reason of each that was not.
        unmeasured: Private evaluations that failed.
        num_bytes: Of updates that came to this process.
    """

    def __init__(
        self,
        driver: Driver,
        tasks: Tasks,
        adversary: Adversary | None,
        round_id: int,
        *,
        has_reports: bool = False,
    ) -> None:
        self.accepted: list[Answer] = []
        self.refused: list[tuple[str, str]] = []
        self.unmeasured: list[Refusal] = []
        self.num_bytes = 0
        self._driver, self._tasks, self._adversary, self._round_id = driver, tasks, adversary, round_id
        self._has_reports = has_reports
        self._seen: dict[str, tuple[Answer, Rows]] = {}

    def take(self, held: Sequence[tuple[Answer, StoredRow]]) -> None:
        """Submit updates; with an adversary, have them here and keep them until `finish`."""
        if not held:
            return
        answers, rows = [answer for answer, _ in held], tuple(row for _, row in held)
        self.unmeasured += [answer.unmeasured for answer in answers if answer.unmeasured is not None]
        batch = self._batch(answers, rows)
        if self._adversary is None:
            self._submit(answers, batch)
            return
        for answer, row in zip(answers, batch.fetched(self._fetched).rows, strict=True):
            if isinstance(row, np.ndarray):
                self._seen[answer.client_id] = answer, np.array(row)
            else:
                self.refused.append((answer.client_id, Cause.LOST))

    def finish(self, clip_norm: float) -> None:
        """Submit what the adversary makes of the round's updates."""
        if self._adversary is None or not self._seen:
            return
        client_ids = sorted(self._seen)
        answers = [self._seen[client_id][0] for client_id in client_ids]
        rows = np.stack([self._seen.pop(client_id)[1] for client_id in client_ids])
        rows.setflags(write=False)
        behind = self._driver.config.vector_dim
        rows, reports = rows[:, :behind], rows[:, behind:]
        routes = self._driver.operations.locate(client_ids)
        baskets = [routes[client_id][0] if client_id in routes else "" for client_id in client_ids]
        given = self._adversary.sent(self._round_id, client_ids, baskets, rows, clip_norm)
        sent = np.asarray(given)
        if sent.shape != rows.shape or sent.dtype.kind != "f":
            raise UsageError(
                f"adversary: sent gave {sent.dtype} of shape {sent.shape}; float32 of {rows.shape} is due"
            )
        batch = self._batch(answers, sent.astype(np.float32))
        if self._has_reports:
            names = list(self._driver.config.meta_parameters)
            told = tuple(dict(zip(names, report, strict=True)) for report in reports.tolist())
            batch = replace(batch, meta=told, has_reports=False)
        self._submit(answers, batch)

    def _fetched(self, stored: Any) -> Any:
        value, num_bytes = self._tasks.fetch(stored)
        self.num_bytes += num_bytes
        return value

    def _batch(self, answers: Sequence[Answer], rows: Rows | tuple[StoredRow, ...]) -> SubmissionBatch:
        return SubmissionBatch(
            tuple(answer.client_id for answer in answers),
            rows,
            self._round_id,
            num_examples=tuple(answer.num_examples for answer in answers),
            has_reports=self._has_reports,
        )

    def _submit(self, answers: Sequence[Answer], batch: SubmissionBatch) -> None:
        receipts = self._driver.submit(batch, aggregate=False, is_charged=True)
        for answer, receipt in zip(answers, receipts, strict=True):
            if receipt.reason is None:
                self.accepted.append(answer)
                continue
            # What `train_clients` gives is a row of numbers: one that is none was lost on its way.
            is_lost = receipt.reason is Rejection.NOT_NUMERIC
            self.refused.append((answer.client_id, Cause.LOST if is_lost else str(receipt.reason)))
