"""A `fit`'s metrics on their way to the runtime, which serves them to Prometheus (docs/monitoring.md)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from scarcity_ray.federation.driver import Driver
from scarcity_ray.federation.fit_terms import RoundRecord
from scarcity_ray.monitoring.history import RoundHistory
from scarcity_ray.monitoring.metrics import samples_of
from scarcity_ray.monitoring.status import Watched, federation_status, observe, outliers_of
from scarcity_ray.runtime import Runtime
from scarcity_ray.runtime.samples import Sample

logger = logging.getLogger("scarcity_ray")


class PublishedRounds:
    """Publishes after each round; what fails in it is logged and ends no round.

    Args:
        federation: That makes the rounds.
        name: Its name, if it has one: the label.
        publish: Gives samples to the runtime.
        now: The time, in seconds since the epoch.
    """

    def __init__(
        self,
        federation: Watched,
        name: str | None,
        publish: Callable[[Iterable[Sample]], None],
        now: Callable[[], float],
    ) -> None:
        self._federation, self._name, self._publish, self._now = federation, name or "", publish, now
        self._history = RoundHistory()

    def note(self, record: RoundRecord) -> None:
        """A round is over."""
        try:
            seen = observe(self._federation, self._now(), name=self._name)
            note_record(self._history, record, outliers_of(seen.stats))
            seen = replace(seen, rounds=self._history.rounds(), totals=dict(self._history.totals))
            self._publish(samples_of(federation_status(seen)))
        except Exception as error:
            logger.warning("the metrics of round %d are not published: %r", record.round_id, error)


def publishing(
    federation: Watched,
    runtime: Runtime,
    driver: Driver,
    on_round: Callable[[RoundRecord], None] | None,
) -> Callable[[RoundRecord], None] | None:
    """What a fit tells of each round: published where the runtime serves metrics, then `on_round`."""
    if not runtime.serves_metrics:
        return on_round
    name = driver.supervisor.identity.name
    published = PublishedRounds(federation, name, runtime.publish, driver.client.now)

    def told(record: RoundRecord) -> None:
        published.note(record)
        if on_round is not None:
            on_round(record)

    return told


def note_record(
    history: RoundHistory, record: RoundRecord, outliers: Iterable[str] = (), *, knows_outcomes: bool = False
) -> None:
    """Tell a history of a round as `fit` records it.

    Args:
        knows_outcomes: Whether it was told of each update as it was judged.
    """
    by_clients = record.clients or record.metrics
    history.note_round(
        record.round_id,
        released=bool(record.versions),
        seconds=record.seconds,
        phases=record.phases,
        accepted=None if knows_outcomes else record.num_accepted,
        refusals=None if knows_outcomes else record.refusals,
        epsilon_spent=record.epsilon_spent,
        validation={domain: found.metrics for domain, found in by_clients.items()},
        private_validation={
            name: {"mean": found.mean, "standard_error": found.standard_error}
            for name, found in record.private_evaluation.items()
        },
        outliers=outliers,
    )
