"""`fit`: in each round clients train, what they give is submitted, and the release moves the server's model.

The driver holds references to updates and reads what is small: who trained, on how many examples, with which
metrics. Only an `Adversary` has them come here. The server's optimiser and the evaluation see released deltas
alone, so they cost no privacy. Metrics that `train` and `evaluate_client` return, numbers of examples and
what errors say reach this driver as they are: they lie outside the privacy claim. What a private evaluation
reports does not: it lies behind the updates, goes to the baskets with them, and comes back in the releases.

Guarantees:
    a_client_with_too_few_persons_is_left_out_before_it_trains_and_counted
    a_client_without_an_update_is_counted_by_reason_while_the_round_goes_on
    a_round_in_which_every_client_failed_is_an_error_with_the_first_traceback
    a_spent_budget_ends_the_rounds_and_is_told
    a_client_at_its_ceiling_is_not_asked_to_train_and_counted
    too_few_clients_below_their_ceilings_end_the_rounds_and_it_is_told
    each_noised_row_has_a_charge_before_its_training_begins: A lost task loses the row, never the charge.
    a_client_that_cannot_pay_for_a_row_is_left_out_and_counted
    an_evaluation_that_raises_ends_the_rounds_and_loses_no_model
    a_round_without_a_release_says_what_it_waits_for
    updates_come_to_the_driver_for_an_adversary_alone
    what_is_measured_privately_comes_back_in_releases_alone
    an_interrupted_fit_goes_on_as_if_nothing_had_happened
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np

from scarcity_ray.actors.directory import Directory
from scarcity_ray.baskets import Rejection
from scarcity_ray.baskets.reports import Member
from scarcity_ray.baskets.submission import StoredRow, SubmissionBatch
from scarcity_ray.errors import PrivacyBudgetExhausted, UsageError, warn_caller
from scarcity_ray.federation.arguments import policies_of
from scarcity_ray.federation.driver import Driver
from scarcity_ray.federation.evaluation import (
    ClientEvaluation,
    MeanMetrics,
    Progress,
    mean_metrics_by_domain,
)
from scarcity_ray.federation.fit_state import (
    FitState,
    RoundFacts,
    stored_facts,
    stored_fit,
    terms_of,
    write_facts,
    write_fit,
)
from scarcity_ray.federation.fit_terms import (
    Adversary,
    FitResult,
    FitTerms,
    RoundRecord,
    Rows,
    Stopped,
)
from scarcity_ray.federation.stopping import finishing
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
from scarcity_ray.federation.waiting import Missing
from scarcity_ray.forecast import Warned, warning_of_few_persons
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.layers.server_model import ServerModel
from scarcity_ray.runtime.base import Tasks, TaskSpec
from scarcity_ray.tracing import operation
from scarcity_ray_client import (
    Cause,
    Client,
    ModelCodec,
    Noising,
    PrivateMetric,
    Refusal,
    SiteLedgers,
    Workload,
    checked_clients,
    checked_metrics,
)
from scarcity_ray_client.errors import ModelRefused, ModelWarning, shown
from scarcity_ray_client.loading import source_folder, told
from scarcity_ray_client.site_ledger import Extension

Model = TypeVar("Model")

logger = logging.getLogger("scarcity_ray")

MOST_IN_FLIGHT = 256
"""Tasks whose clients train or have trained and are not submitted yet."""
IN_FLIGHT_BYTES = 2**30
"""What their updates may take together, where two clients for each CPU take less."""


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
        everybody = checked_clients(workload.clients())
        self._by_id = {client.client_id: client for client in everybody}
        self._min_persons = driver.config.privacy.min_persons
        least = self._min_persons or 1
        self._clients = tuple(one for one in everybody if (one.num_persons or least) >= least)
        self._too_small = tuple(one for one in everybody if (one.num_persons or least) < least)
        self._noted: set[str] = set()
        self._out: frozenset[str] = frozenset()
        self._newly_out: tuple[str, ...] = ()
        site_noise, source = driver.supervisor.plan.site_noise, driver.supervisor.identity.noise
        self._noising = None if site_noise is None else Noising(site_noise, source)
        # Charges are this life's own, since each covers a draw; sites' ledgers know rows of earlier lives.
        self._name = self._run = uuid.uuid4().hex
        self._told_ledgers: dict[str, Extension] = {}
        self._check_site_ledgers()
        self._check_hooks()
        asked = terms.private_evaluation
        names = tuple(driver.config.meta_parameters)
        self._reporting = None if asked is None else Reporting(asked, names)
        self._codec = workload.codec()
        if not isinstance(self._codec, ModelCodec):
            raise UsageError(f"workload: codec() gave a {type(self._codec).__name__}; give a ModelCodec")
        dimension = self._codec.dimension
        if dimension != driver.config.vector_dim:
            raise UsageError(
                f"the model has {dimension} numbers, vector_dim is {driver.config.vector_dim}; "
                f"set vector_dim: {dimension}"
            )
        driver.told.tell(self._few_persons())
        count = len(self._clients)
        if (terms.clients_per_round or count) + terms.extra_clients > count:
            raise UsageError(f"clients_per_round and extra_clients: together more than the {count} clients")
        self._model = ServerModel.begin(self._first_vector(), terms.optimizer, terms.averaging_decay)
        sources = source_folder(workload)
        try:
            self._held = tasks.put((workload, self._codec), sources)
        except Exception as error:
            raise UsageError(
                f"the workload cannot be copied to where it trains: {error!r:.150}; open files and "
                "connections in train"
            ) from error
        self._most_in_flight = max(
            2 * tasks.parallelism,
            min(MOST_IN_FLIGHT * terms.clients_per_task, IN_FLIGHT_BYTES // (4 * dimension)),
        )
        self._history: list[RoundRecord] = []
        self._refusals: dict[str, Counter[str]] = {}
        self._phases: defaultdict[str, float] = defaultdict(float)
        self._num_bytes = 0
        self._version = 0
        self._clip_norm = driver.config.layer1.clip_norm
        self._progress = Progress()
        self._measured: Mapping[str, PrivateMetric] = {}
        self._evaluation_error = ""
        self._interrupted: int | None = None

    def run(self) -> FitResult[Model]:
        """All rounds."""
        self._register()
        latest = self._driver.latest_release()
        if latest is not None:
            self._version, self._clip_norm = latest.version, latest.clip_norm or self._clip_norm
        if self._terms.resume:
            self._resume()
        self._keep()
        stopped, explanation = Stopped.ROUNDS, ""
        budget = self._driver.budget()
        for _ in range(self._terms.rounds - len(self._history)):
            if self._progress.stop is not None:
                stopped, explanation = Stopped.NO_IMPROVEMENT, self._progress.stop
                break
            if budget.read_only and not self._has_release_to_take():
                stopped = Stopped.BUDGET
                explanation = (
                    budget.read_only_reason or "the next release does not fit into the privacy budget"
                )
                break
            if self._leave_out() and (waits := self._driver.waiting_for()).missing is Missing.CEILING:
                stopped, explanation = Stopped.CEILING, str(waits)
                break
            record = self._round()
            self._history.append(record)
            explanation = record.waiting_for
            watched = self._terms.stopping
            if watched is not None and record.versions and not self._evaluation_error:
                self._progress = watched.step(
                    self._progress, record.round_id, record.evaluation, self._model.handed_out
                )
                if self._progress.best is None:
                    given = ", ".join(sorted(record.evaluation)) or "none"
                    self._note(f"stopping: evaluate gave no finite {watched.metric}, it gave: {given}")
            self._keep()
            if self._terms.on_round is not None:
                self._terms.on_round(record)
            if self._evaluation_error:
                stopped, explanation = Stopped.EVALUATION, self._evaluation_error
                break
            budget = self._driver.budget()
        best, is_average = self._progress.best, self._terms.averaging_decay is not None
        return FitResult(
            model=self._codec.decode(self._model.handed_out),
            vector=self._model.handed_out,
            last_model=self._codec.decode(self._model.current) if is_average else None,
            history=tuple(self._history),
            refusals={client: dict(counts) for client, counts in sorted(self._refusals.items())},
            stopped=stopped,
            explanation=explanation,
            epsilon_spent=self._driver.budget().epsilon_spent,
            best_model=None if best is None else self._codec.decode(best.model),
            best_round=None if best is None else best.round_id,
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
            run=self._run,
        )
        return replace(self._noising, outbox=ledgers)

    def _tell_ledgers(self) -> None:
        """Tell the accountant how far the sites' ledgers are."""
        ledgers, self._told_ledgers = self._told_ledgers, {}
        if ledgers and (older := self._driver.note_site_ledgers(ledgers)):
            self._note(f"{shown(list(older))}: their own ledgers are older copies than the accountant knows")

    def _keep(self) -> None:
        """Store where this fit stands, if the federation keeps anything."""
        kept = self._driver.supervisor.kept
        if kept is None:
            return
        rounds = self._interrupted, self._driver.current_round()
        state = FitState(
            terms=terms_of(self._terms),
            round_id=rounds[1] if rounds[0] is None else rounds[0],
            rng=self._rng.bit_generator.state,
            model=self._model.kept(),
            version=self._version,
            clip_norm=self._clip_norm,
            history=tuple(self._history),
            refusals=self._refusals,
            progress=self._progress,
            noted=tuple(sorted(self._noted)),
            run=self._run,
        )
        write_fit(kept, state)

    def _resume(self) -> None:
        """Go on where the stored fit stands; its rounds are told again."""
        state = stored_fit(self._driver.supervisor.kept, self._terms, self._codec.dimension)
        if state is None:
            return
        self._rng.bit_generator.state = state.rng
        self._model = self._model.resumed(state.model)
        self._version, self._clip_norm = state.version, state.clip_norm
        self._history, self._progress = list(state.history), state.progress
        self._refusals = {client: Counter(counts) for client, counts in state.refusals.items()}
        self._noted, self._interrupted, self._run = set(state.noted), state.round_id, state.run
        self._out = frozenset(c for c, counts in state.refusals.items() if Cause.AT_CEILING in counts)
        if self._history:
            self._too_small = ()
        for record in self._history:
            if self._terms.on_round is not None:
                self._terms.on_round(record)

    def _has_release_to_take(self) -> bool:
        """Whether the interrupted round had made a release: it is paid for."""
        latest = None if self._interrupted is None else self._driver.latest_release()
        return latest is not None and latest.version > self._version

    def _check_hooks(self) -> None:
        """Refuse terms that ask for a method of the workload that it does not have."""
        kind, adversary = type(self._workload), self._terms.adversary
        if self._terms.evaluate_clients and kind.evaluate_client is Workload.evaluate_client:
            raise UsageError(f"evaluate_clients: {kind.__name__} has no evaluate_client; write it")
        if (asked := self._terms.private_evaluation) is not None:
            if kind.evaluate_client is Workload.evaluate_client:
                raise UsageError(f"private_evaluation: {kind.__name__} has no evaluate_client; write it")
            declared, due = self._driver.config.meta_parameters, asked.meta_parameters()
            if any(tuple(declared.get(name, ())) != due[name] for name in due):
                raise UsageError(
                    "private_evaluation: the federation's meta_parameters lack what clients would report; "
                    f"configure it with meta_parameters: { {name: list(ends) for name, ends in due.items()} }"
                )
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

    def _first_vector(self) -> Rows:
        start = self._terms.start
        if start is None:
            return self._codec.encode(self._workload.initial_model())
        try:
            vector, differing = self._codec.encode(start), self._codec.differing(start)
        except ModelRefused as error:
            raise UsageError(f"start: {error}; give a model like initial_model's") from error
        if differing:
            warn_caller(
                f"start: {shown(differing)} are not trained and differ from initial_model's, which are used; "
                "have initial_model give them",
                ModelWarning,
            )
        return vector

    def _register(self) -> None:
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

    def _leave_out(self) -> bool:
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
        charge_id = f"row/{self._name}/{len(self._history)}"
        ids = [client.client_id for client in clients]
        charged = self._driver.charge_rows(charge_id, ids, {"round": round_id})
        self._noising = replace(self._noising, mus=charged)
        return [client for client in clients if client.client_id in charged]

    def span_ids(self) -> dict[str, str | int]:
        """As the driver's (`tracing`)."""
        return self._driver.span_ids()

    @operation("round")
    def _round(self) -> RoundRecord:
        begun = self._clock()
        self._num_bytes = 0
        self._phases.clear()
        self._measured, clip_norm = {}, self._clip_norm
        now, versions = self._driver.current_round(), list[int]()
        began, self._interrupted = self._interrupted, None
        is_over = began is not None and now == began + 1
        is_resumed = is_over or now == began
        if is_resumed:
            self._take_kept_releases(versions)
        is_trained = is_over or bool(versions)
        training, groups, unpaid = self._sampled(now - is_over, is_resumed=is_resumed, is_trained=is_trained)
        submitting = Submitting(
            self._driver,
            self._tasks,
            self._terms.adversary,
            training.round_id,
            has_reports=self._reporting is not None,
        )
        waiting_for, messages = "", 0
        facts: RoundFacts | None = None
        try:
            if not is_trained:
                if not training.is_over:
                    self._train(training, groups, submitting)
                with finishing():
                    messages = self._gossip(training.round_id, versions)
                    facts = self._facts(training, submitting, messages)
                    self._keep_facts(facts)
                with finishing(), self._timed("aggregation"):
                    self._driver.aggregate(force=True)
                    self._take_releases(versions)
        except PrivacyBudgetExhausted as spent:
            waiting_for = str(spent)
        with self._timed("accounting"):
            if not versions and not waiting_for:
                waiting_for = str(self._driver.waiting_for())
            if not is_over:
                self._driver.advance_round()
            self._take_releases(versions)
            budget = self._driver.budget()
        for note in sorted(training.notes):
            self._note(note)
        if facts is None:
            facts = self._kept_facts(training.round_id) if is_resumed else None
            facts = facts or self._facts(training, submitting, messages)
        left_out = [
            *self._told_once_of_too_few_persons(training.round_id),
            *self._told_once_of_ceilings(training.round_id),
            *unpaid,
        ]
        reasons = self._counted([*facts.refused, *((one.client_id, str(one.cause)) for one in left_out)])
        evaluation, clients = dict[str, float](), dict[str, MeanMetrics]()
        refusals = [*facts.first_refusals, *left_out]
        refusals += self._counted_evaluations(facts.unmeasured, reasons)
        if versions:
            if self._terms.on_release is not None:
                self._terms.on_release(self._codec.decode(self._model.handed_out), training.round_id)
            with self._timed("evaluation"):
                evaluation = self._evaluated(training.round_id)
            if self._terms.evaluate_clients:
                with self._timed("client_evaluation"):
                    clients, refused = self._evaluated_by_clients(training.round_id, groups)
                refusals += self._counted_evaluations(refused, reasons)
        return RoundRecord(
            round_id=training.round_id,
            num_sampled=facts.num_sampled,
            num_accepted=facts.num_accepted,
            num_surplus=facts.num_surplus,
            refusals={str(reason): count for reason, count in sorted(reasons.items())},
            first_refusals=tuple(refusals[:MOST_TOLD]),
            metrics=facts.metrics,
            evaluation=evaluation,
            clients=clients,
            private_evaluation=self._measured,
            versions=tuple(versions),
            waiting_for=waiting_for if not versions else "",
            clip_norm=clip_norm,
            gossip_messages=facts.gossip_messages,
            epsilon_spent=budget.epsilon_spent,
            epsilon_left=budget.remaining_epsilon,
            driver_bytes=self._num_bytes + submitting.num_bytes,
            phases=dict(self._phases),
            seconds=self._clock() - begun,
        )

    def _train(self, training: TrainingRound, groups: Sequence[Group], submitting: Submitting) -> None:
        """Have clients train and submit what they give."""
        noising = self._noising_now(groups)
        vector, adversary = self._tasks.put(self._model.current), self._terms.adversary
        poisoned = adversary.byzantine if adversary is not None and adversary.poisons else frozenset()

        def spec(group: Group) -> TaskSpec:
            poison = poisoned.intersection(client.client_id for client in group)
            asked = poison, self._reporting, self._min_persons, noising
            return self._spec(training, group, train_group, vector, *asked)

        def deliver(held: Sequence[tuple[Answer, StoredRow]]) -> None:
            ledgers = {answer.client_id: answer.site_ledger for answer, _ in held}
            self._told_ledgers |= {c: extension for c, extension in ledgers.items() if extension is not None}
            with self._timed("submission"):
                submitting.take(held)

        began = self._clock()
        try:
            self._run_tasks(training, spec, deliver, self._terms.on_progress)
        finally:
            self._phases["training"] = self._clock() - began - self._phases["submission"]
        if (first := training.all_failed()) is not None:
            raise UsageError(
                f"all {training.num_sampled} clients of round {training.round_id} failed; the first: "
                f"{first}\n{first.traceback}"
            )
        self._tell_ledgers()
        with self._timed("submission"):
            submitting.finish(self._clip_norm)

    def _run_tasks(
        self,
        training: TrainingRound,
        spec: Callable[[Group], TaskSpec],
        deliver: Callable[[Sequence[tuple[Answer, StoredRow]]], None],
        on_progress: Callable[[TrainingProgress], None] | None = None,
    ) -> None:
        """Run the round's tasks until it is over or late."""
        begun, is_late = self._clock(), False
        allowed = self._terms.deadline_seconds
        deadline = None if allowed is None else begun + allowed

        def why_waiting(late: Sequence[Group]) -> Sequence[str]:
            return self._tasks.why_waiting([spec(group) for group in late])

        try:
            while not training.is_over:
                for group in training.next():
                    self._tasks.start(spec(group))
                if on_progress is not None:
                    on_progress(training.progress(self._clock() - begun))
                left = None if deadline is None else deadline - self._clock()
                if left is not None and left <= 0:
                    is_late = True
                    break
                for end in self._tasks.ended(left):
                    self._num_bytes += end.num_bytes
                    training.note(end, is_late=deadline is not None and self._clock() > deadline)
                deliver(training.take())
        finally:
            self._tasks.stop(training.close(why_waiting if is_late else None))
        if on_progress is not None:
            on_progress(training.progress(self._clock() - begun))
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

    def _keep_facts(self, facts: RoundFacts) -> None:
        if (kept := self._driver.supervisor.kept) is not None:
            write_facts(kept, facts)

    def _kept_facts(self, round_id: int) -> RoundFacts | None:
        kept = self._driver.supervisor.kept
        facts = None if kept is None else stored_facts(kept)
        return facts if facts is not None and facts.round_id == round_id else None

    def _counted(self, refused: Sequence[tuple[str, str]]) -> Counter[str]:
        """Updates that did not come or were refused, by reason; each is counted for its client."""
        reasons: Counter[str] = Counter()
        for client_id, reason in refused:
            reasons[reason] += 1
            self._count(client_id, reason)
        return reasons

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

    def _counted_evaluations(self, refused: Sequence[Refusal], reasons: Counter[str]) -> Sequence[Refusal]:
        """Evaluations that failed, counted in `reasons` and for their clients."""
        for refusal in refused:
            reasons[f"evaluation_{refusal.cause}"] += 1
            self._count(refusal.client_id, f"evaluation_{refusal.cause}")
        return refused

    def _gossip(self, round_id: int, versions: list[int]) -> int:
        """Gossip where it has a share of the budget; the messages that were delivered."""
        if self._driver.supervisor.plan.gossip_share <= 0.0:
            return 0
        with self._timed("gossip"):
            delivered = self._driver.run_gossip(f"fit/{round_id}")
            self._take_releases(versions)
        return sum(delivered.values())

    def _take_releases(self, versions: list[int]) -> None:
        """Step on a release that was not taken yet; one that another driver has made counts as well."""
        latest: GlobalMetaModel | None = self._driver.latest_release()
        if latest is None or latest.version <= self._version:
            return
        self._take(latest, versions)

    def _take_kept_releases(self, versions: list[int]) -> None:
        """Step on the stored releases that the fit had not taken when it was interrupted, one by one."""
        for release in self._driver.kept_releases():
            if release.version > self._version:
                self._take(release, versions)
        self._take_releases(versions)

    def _take(self, latest: GlobalMetaModel, versions: list[int]) -> None:
        if latest.version > self._version + 1:
            logger.warning(
                "releases %d to %d are not in this fit's model: another driver has made them",
                self._version + 1,
                latest.version - 1,
            )
        moved = None if latest.clip_norm is None else (self._clip_norm, latest.clip_norm)
        self._model = self._model.step(latest.aggregate, moved)
        self._clip_norm = latest.clip_norm or self._clip_norm
        self._version = latest.version
        if self._terms.private_evaluation is not None:
            self._measured = self._terms.private_evaluation.read(latest.meta_means)
        versions.append(latest.version)

    def _evaluated(self, round_id: int) -> dict[str, float]:
        """The metrics of the model handed out; what `evaluate` raises is kept, to end the rounds with."""
        try:
            return checked_metrics(self._workload.evaluate(self._codec.decode(self._model.handed_out)))
        except Exception as error:
            self._fail_evaluation(f"evaluate, after round {round_id}: {told(error)}")
            return {}

    def _fail_evaluation(self, why: str) -> None:
        """Have the rounds end, with the model that is there, since it is paid for."""
        self._evaluation_error = why
        logger.error("%s", why)

    def _evaluated_by_clients(
        self, round_id: int, groups: Sequence[Group]
    ) -> tuple[dict[str, MeanMetrics], list[Refusal]]:
        """The round's clients evaluate the model that is handed out, where their data lie."""
        count = sum(map(len, groups))
        evaluating = TrainingRound(round_id, groups, count, self._most_in_flight)
        vector, answers = self._tasks.put(self._model.handed_out), list[Answer]()

        def spec(group: Group) -> TaskSpec:
            return self._spec(evaluating, group, evaluate_group, vector)

        self._run_tasks(evaluating, spec, lambda held: answers.extend(one for one, _ in held))
        if (first := evaluating.all_failed()) is not None:
            self._fail_evaluation(
                f"evaluate_client, after round {round_id}: all {count} clients failed; the first: {first}"
            )
        return self._by_domain([one for one in answers if one.metrics]), evaluating.refusals

    def _by_domain(self, answers: Sequence[Answer]) -> dict[str, MeanMetrics]:
        return mean_metrics_by_domain(
            ClientEvaluation(
                one.client_id, self._by_id[one.client_id].domain_id, one.metrics, one.num_examples
            )
            for one in sorted(answers, key=lambda one: one.client_id)
        )

    def _note(self, note: str) -> None:
        """Warn once."""
        if note not in self._noted:
            self._noted.add(note)
            logger.warning("%s", note)

    def _count(self, client_id: str, reason: str) -> None:
        self._refusals.setdefault(client_id, Counter())[reason] += 1

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = self._clock()
        try:
            yield
        finally:
            self._phases[phase] += self._clock() - began


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


__all__ = ["Adversary", "FitResult", "FitTerms", "Fitting", "RoundRecord", "Stopped", "TrainingProgress"]
