"""A job whose clients are sites outside the cluster: the federation is opened, gateways listen, rounds go.

Beside where the updates come from it is `workloads.job.run_job`: the same folder, records, model, summary.

Guarantees:
    a_served_job_that_was_killed_goes_on_with_the_same_round_model_and_slots
    sites_are_told_how_it_ended
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import Durability, HierarchicalFederationConfig
from scarcity_ray.config.gateway import GatewayConfig
from scarcity_ray.errors import ScarcityError, UsageError
from scarcity_ray.federation.cohort import Fit
from scarcity_ray.federation.fit_terms import FitTerms, Stopped
from scarcity_ray.federation.fit_terms import RoundRecord as FitRecord
from scarcity_ray.federation.fitting import Fitting
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.federation.publishing import publishing
from scarcity_ray.federation.served_round import OpenRound
from scarcity_ray.federation.site_cohort import SiteCohort, SiteTerms, Waiting
from scarcity_ray.federation.stored import with_absolute_places
from scarcity_ray.gateway.front_door import FrontDoor, Serving, register_folder
from scarcity_ray.gateway.register import Register
from scarcity_ray.gateway.site_desk import ServedTerms
from scarcity_ray.monitoring.status import outliers_of
from scarcity_ray.storage.snapshots import Snapshots
from scarcity_ray.workloads.config import Job
from scarcity_ray.workloads.job import (
    Stopwatch,
    Training,
    Watcher,
    initial_metrics,
    keeping_rounds,
    noted,
    restored,
    summarise,
)
from scarcity_ray.workloads.records import Outcome, RoundRecord
from scarcity_ray.workloads.run_folder import RunFolder
from scarcity_ray_client.wire import RoundState

STOPPING_SECONDS = 1.0
"""For which gateways tell that it has ended, before they end."""


@dataclass(frozen=True)
class Listening:
    """That sites can come: where, who is enrolled, and who may enrol."""

    url: str
    enrolled: Sequence[str]
    invited: Sequence[str]


class ServingWatcher(Watcher, Protocol):
    """Receives the progress of a served job."""

    def listening(self, listening: Listening) -> None:
        """Sites can come."""

    def waiting(self, waiting: Waiting) -> None:
        """Whom the round waits for has changed."""


def serve_job(
    job: Job,
    folder: RunFolder,
    watcher: ServingWatcher,
    open_federation: Callable[..., Any] = HierarchicalFederation,
    *,
    restore: Callable[..., Any] = HierarchicalFederation.restore,
    attach: Callable[..., Any] = HierarchicalFederation.attach,
    resume: bool = False,
) -> Outcome:
    """Serve a job until its rounds are made, and write everything but its report into its folder.

    Args:
        open_federation: Makes the federation.
        restore: Makes it again from what is stored.
        attach: Joins it where its roles have outlived their server.
        resume: Whether the job was interrupted, and goes on.

    Raises:
        ScarcityError: If the workload cannot be evaluated, the port is taken, or a role is lost.
    """
    config, watch = job.config, Stopwatch()
    gateway = config.gateway or GatewayConfig()
    watcher.phase("Evaluating the initial model")
    with watch.time("start"):
        initial, metric = initial_metrics(job)
    where: dict[str, Any] = {"runtime": config.run.runtime, "address": config.run.address}
    kept = _with_storage(config.federation, folder)
    goes_on = resume and kept.storage_path is not None and not Snapshots(kept.storage_path).is_empty()
    if resume and not goes_on and folder.holds_results:
        raise UsageError(
            f"--resume {folder.path}: it released models, and nothing is stored in {kept.storage_path}; "
            "bring that back, or serve its config.yaml again with another --out: a new run, which spends anew"
        )
    if not goes_on:
        folder.begin_again(config)
    watcher.phase("Restoring the federation" if goes_on else "Starting the federation")
    with watch.time("start"):
        if goes_on:
            federation = _again(config.name, kept, restore, attach, where)
        else:
            # On a cluster its roles outlive this process, so that gateways go on when it is killed.
            named = {"name": config.name} if config.run.runtime == "ray" else {}
            federation = open_federation(kept, **named, **where)
    training = Training(metric, initial)

    note = keeping_rounds(job, folder, federation, training, watch, watcher, goes_on=goes_on)
    with federation, ended(federation):
        asked = config.training.private_evaluation
        terms = ServedTerms.of(
            federation._open(), None if asked is None else asked.made(), config.training.evaluate_clients
        )
        door = Serving(gateway, register_folder(kept, folder.state), terms).open(federation)
        try:
            enrolled = [site.client_id for site in door.sites()]
            invited = door.invited()
            federation._open().supervisor.check_memory(len(enrolled) + len(invited))
            watcher.listening(Listening(door.url, enrolled, invited))
            _fit(job, federation, door, gateway, training, watch, watcher, note, folder, resume=goes_on)
            end = RoundState.FINISHED, training.stopped or "all rounds are made"
        except BaseException:
            end = RoundState.STOPPED, "the federation's server has stopped; it may go on later"
            raise
        finally:
            last = None if training.fitted is None else training.fitted.vector
            _tell_end(federation, door, *end, last)
            domains = dict(Counter(site.domain_id for site in door.sites()))
            door.close()
        if training.fitted is not None and training.fitted.best_model is not None:
            folder.write_model("best_model.npz", training.fitted.best_model)
        stats = federation.get_stats()
    summary = summarise(job, training, stats, watch, folder, domains=domains, is_served=True)
    folder.write_summary(summary)
    return Outcome(summary, tuple(training.records))


@contextmanager
def ended(federation: HierarchicalFederation) -> Iterator[None]:
    """Ends a federation's roles after the block, also where another process has started them."""
    try:
        yield
    finally:
        federation.terminate()


def _again(
    name: str,
    config: HierarchicalFederationConfig,
    restore: Callable[..., Any],
    attach: Callable[..., Any],
    where: Mapping[str, Any],
) -> Any:
    """The federation of a served job that goes on: as it runs still, or from what is stored.

    Raises:
        UsageError: If another one of this name runs.
    """
    if where["runtime"] == "ray":
        try:
            running = attach(name, address=where["address"])
        except UsageError:
            return restored(config, restore, where)
        if running.config.storage_path == with_absolute_places(config).storage_path:
            return running
        running.close()
        raise UsageError(f"another federation named {name!r} runs on this cluster: end it, or rename one")
    return restored(config, restore, where)


def _with_storage(config: HierarchicalFederationConfig, folder: RunFolder) -> HierarchicalFederationConfig:
    """The config, with a place for its state: what was acknowledged to a site is kept."""
    if config.storage_path is not None:
        return config
    return replace(config, storage_path=str(folder.state), durability=config.durability or Durability.UPDATE)


def _fit(
    job: Job,
    federation: HierarchicalFederation,
    door: FrontDoor,
    gateway: GatewayConfig,
    training: Training,
    watch: Stopwatch,
    watcher: ServingWatcher,
    note: Callable[[RoundRecord], None],
    folder: RunFolder,
    *,
    resume: bool,
) -> None:
    given, config = job.config.training, job.config
    asked = given.private_evaluation
    note_for_job = noted(training, watch, note)

    def on_round(record: FitRecord) -> None:
        is_shown = federation.config.expose_basket_models
        outliers = sorted(outliers_of(federation.get_stats())) if is_shown else ()
        door.register.call(Register.note_record, record, outliers)
        note_for_job(record)

    site_terms = SiteTerms(gateway.round_seconds, gateway.up_seconds)

    def cohort(fit: Fit[Any]) -> SiteCohort:
        return SiteCohort(fit, door, site_terms, watcher.waiting)

    driver = federation._open()
    with publishing(federation, federation._runtime, driver, on_round) as on_told:
        terms = FitTerms(
            rounds=given.rounds,
            optimizer=given.server_optimizer(),
            averaging_decay=given.averaging_decay,
            stopping=given.stopping(training.metric),
            evaluate_clients=given.evaluate_clients,
            private_evaluation=None if asked is None else asked.made(),
            seed=config.federation.seed,
            on_round=on_told,
            on_progress=watcher.progress,
            on_release=lambda model, _: folder.write_model("model.npz", model),
            resume=resume,
        )
        watcher.phase("Serving")
        result = Fitting(driver, cohort, job.workload, terms).run()
    if resume:
        folder.write_model("model.npz", result.model)
    if result.stopped is Stopped.EVALUATION:
        raise UsageError(f"{result.explanation}; the model so far is {folder.path / 'model.npz'}")
    training.take(result)


def _tell_end(
    federation: HierarchicalFederation,
    door: FrontDoor,
    state: RoundState,
    reason: str,
    last: NDArray[np.float32] | None,
) -> None:
    """Have gateways tell sites that it has ended, for a moment, with the last model to be taken."""
    driver = federation._open()
    with suppress(ScarcityError):
        latest = driver.latest_release()
        door.publish(
            OpenRound(
                state,
                reason,
                driver.current_round(),
                driver.signing_scope(),
                driver.config.layer1.clip_norm,
                model_version=0 if latest is None else latest.version,
            ),
            last,
        )
        door.wait(STOPPING_SECONDS)
