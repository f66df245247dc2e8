"""`fit`: in each round clients train, what they give is submitted, and the release moves the server's model.

The driver holds references to updates and reads what is small: who trained, on how many examples, with which
metrics. Only an `Adversary` has them come here. The server's optimiser and the evaluation see released deltas
alone, so they cost no privacy. Metrics that `train` and `evaluate_client` return, numbers of examples and
what errors say reach this driver as they are: they lie outside the privacy claim. What a private evaluation
reports does not: it lies behind the updates, goes to the baskets with them, and comes back in the releases.

Guarantees:
    a_spent_budget_ends_the_rounds_and_is_told
    too_few_clients_below_their_ceilings_end_the_rounds_and_it_is_told
    an_evaluation_that_raises_ends_the_rounds_and_loses_no_model
    a_round_without_a_release_says_what_it_waits_for
    what_is_measured_privately_comes_back_in_releases_alone
    an_interrupted_fit_goes_on_as_if_nothing_had_happened
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from scarcity_ray.errors import PrivacyBudgetExhausted, UsageError, warn_caller
from scarcity_ray.federation.cohort import Cohort, Fit, Phases
from scarcity_ray.federation.driver import Driver
from scarcity_ray.federation.evaluation import MeanMetrics, Progress
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
from scarcity_ray.federation.training_round import MOST_TOLD, TrainingProgress
from scarcity_ray.federation.waiting import Missing
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.layers.server_model import ServerModel
from scarcity_ray.tracing import operation
from scarcity_ray_client import ModelCodec, PrivateMetric, Refusal, Workload, checked_metrics
from scarcity_ray_client.errors import ModelRefused, ModelWarning, shown
from scarcity_ray_client.loading import told

Model = TypeVar("Model")

logger = logging.getLogger("scarcity_ray")


class Fitting(Generic[Model]):
    """One `fit`: all of it is checked as it is made, and `run` does it.

    Args:
        driver: Of the federation.
        cohort: Makes the clients.
        workload: Model, data and training.
        terms: How.
        clock: Gives seconds that only rise.
    """

    def __init__(
        self,
        driver: Driver,
        cohort: Callable[[Fit[Model]], Cohort],
        workload: Workload[Model],
        terms: FitTerms,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not isinstance(workload, Workload):
            raise UsageError(f"workload must be a Workload, got {shown(workload)}")
        if not driver.supervisor.has_layer2:
            raise UsageError("fit trains one global model: layer2.enabled is false")
        self._driver, self._workload, self._terms = driver, workload, terms
        self._clock = clock
        self._noted: set[str] = set()
        self._check_private_evaluation()
        self._codec = workload.codec()
        if not isinstance(self._codec, ModelCodec):
            raise UsageError(f"workload: codec() gave a {type(self._codec).__name__}; give a ModelCodec")
        dimension = self._codec.dimension
        if dimension != driver.config.vector_dim:
            raise UsageError(
                f"the model has {dimension} numbers, vector_dim is {driver.config.vector_dim}; "
                f"set vector_dim: {dimension}"
            )
        self._phases = Phases(clock)
        fit = Fit(driver, workload, self._codec, terms, self._phases, self._note)
        self._cohort = cohort(fit)
        self._model = ServerModel.begin(self._first_vector(), terms.optimizer, terms.averaging_decay)
        self._history: list[RoundRecord] = []
        self._refusals: dict[str, Counter[str]] = {}
        self._version = 0
        self._clip_norm = driver.config.layer1.clip_norm
        self._progress = Progress()
        self._measured: Mapping[str, PrivateMetric] = {}
        self._evaluation_error = ""
        self._interrupted: int | None = None

    def run(self) -> FitResult[Model]:
        """All rounds."""
        self._cohort.register()
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
            if self._cohort.leave_out() and (waits := self._driver.waiting_for()).missing is Missing.CEILING:
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

    def _keep(self) -> None:
        """Store where this fit stands, if the federation keeps anything."""
        kept = self._driver.supervisor.kept
        if kept is None:
            return
        rounds = self._interrupted, self._driver.current_round()
        state = FitState(
            terms=terms_of(self._terms),
            round_id=rounds[1] if rounds[0] is None else rounds[0],
            rng=self._cohort.draws(),
            model=self._model.kept(),
            version=self._version,
            clip_norm=self._clip_norm,
            history=tuple(self._history),
            refusals=self._refusals,
            progress=self._progress,
            noted=tuple(sorted(self._noted)),
            run=self._cohort.run,
        )
        write_fit(kept, state)

    def _resume(self) -> None:
        """Go on where the stored fit stands; its rounds are told again."""
        state = stored_fit(self._driver.supervisor.kept, self._terms, self._codec.dimension)
        if state is None:
            return
        self._cohort.resume(state)
        self._model = self._model.resumed(state.model)
        self._version, self._clip_norm = state.version, state.clip_norm
        self._history, self._progress = list(state.history), state.progress
        self._refusals = {client: Counter(counts) for client, counts in state.refusals.items()}
        self._noted, self._interrupted = set(state.noted), state.round_id
        for record in self._history:
            if self._terms.on_round is not None:
                self._terms.on_round(record)

    def _has_release_to_take(self) -> bool:
        """Whether the interrupted round had made a release: it is paid for."""
        latest = None if self._interrupted is None else self._driver.latest_release()
        return latest is not None and latest.version > self._version

    def _check_private_evaluation(self) -> None:
        """Refuse to ask for reports that the workload cannot give, or the federation does not expect."""
        kind, asked = type(self._workload), self._terms.private_evaluation
        if asked is None:
            return
        if kind.evaluate_client is Workload.evaluate_client:
            raise UsageError(f"private_evaluation: {kind.__name__} has no evaluate_client; write it")
        declared, due = self._driver.config.meta_parameters, asked.meta_parameters()
        if any(tuple(declared.get(name, ())) != due[name] for name in due):
            raise UsageError(
                "private_evaluation: the federation's meta_parameters lack what clients would report; "
                f"configure it with meta_parameters: { {name: list(ends) for name, ends in due.items()} }"
            )

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

    def span_ids(self) -> dict[str, str | int]:
        """As the driver's (`tracing`)."""
        return self._driver.span_ids()

    @operation("round")
    def _round(self) -> RoundRecord:
        begun, cohort = self._clock(), self._cohort
        self._phases.seconds.clear()
        self._measured, clip_norm = {}, self._clip_norm
        now, versions = self._driver.current_round(), list[int]()
        began, self._interrupted = self._interrupted, None
        is_over = began is not None and now == began + 1
        is_resumed = is_over or now == began
        if is_resumed:
            self._take_kept_releases(versions)
        is_trained, round_id = is_over or bool(versions), now - is_over
        cohort.begin(round_id, is_resumed=is_resumed, is_trained=is_trained)
        waiting_for, messages = "", 0
        facts: RoundFacts | None = None
        try:
            if not is_trained:
                cohort.train(self._model, self._version, self._clip_norm)
                with finishing():
                    messages = self._gossip(round_id, versions)
                    facts = cohort.facts(messages)
                    self._keep_facts(facts)
                with finishing(), self._phases.timed("aggregation"):
                    self._driver.aggregate(force=True)
                    self._take_releases(versions)
        except PrivacyBudgetExhausted as spent:
            waiting_for = str(spent)
        with self._phases.timed("accounting"):
            if not versions and not waiting_for:
                waiting_for = str(self._driver.waiting_for())
            if not is_over:
                self._driver.advance_round()
            self._take_releases(versions)
            budget = self._driver.budget()
        for note in cohort.notes():
            self._note(note)
        if facts is None:
            facts = self._kept_facts(round_id) if is_resumed else None
            facts = facts or cohort.facts(messages)
        left_out = cohort.left_out()
        reasons = self._counted([*facts.refused, *((one.client_id, str(one.cause)) for one in left_out)])
        evaluation, clients = dict[str, float](), dict[str, MeanMetrics]()
        refusals = [*facts.first_refusals, *left_out]
        refusals += self._counted_evaluations(facts.unmeasured, reasons)
        if versions:
            if self._terms.on_release is not None:
                self._terms.on_release(self._codec.decode(self._model.handed_out), round_id)
            with self._phases.timed("evaluation"):
                evaluation = self._evaluated(round_id)
            if self._terms.evaluate_clients:
                with self._phases.timed("client_evaluation"):
                    measured = cohort.evaluate(self._model.handed_out)
                clients = dict(measured.metrics)
                if measured.failed is not None:
                    self._fail_evaluation(
                        f"evaluate_client, after round {round_id}: all {measured.num_clients} clients "
                        f"failed; the first: {measured.failed}"
                    )
                refusals += self._counted_evaluations(measured.refusals, reasons)
        return RoundRecord(
            round_id=round_id,
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
            driver_bytes=cohort.num_bytes,
            phases=dict(self._phases.seconds),
            seconds=self._clock() - begun,
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
        with self._phases.timed("gossip"):
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

    def _note(self, note: str) -> None:
        """Warn once."""
        if note not in self._noted:
            self._noted.add(note)
            logger.warning("%s", note)

    def _count(self, client_id: str, reason: str) -> None:
        self._refusals.setdefault(client_id, Counter())[reason] += 1


__all__ = ["Adversary", "FitResult", "FitTerms", "Fitting", "RoundRecord", "Stopped", "TrainingProgress"]
