"""A `fit`'s metrics on their way to the runtime, which serves them to Prometheus (docs/monitoring.md)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from scarcity_ray.federation.driver import Driver
from scarcity_ray.federation.fit_terms import RoundRecord
from scarcity_ray.monitoring.history import RoundHistory
from scarcity_ray.monitoring.metrics import samples_of
from scarcity_ray.monitoring.status import Watched, federation_status, observe
from scarcity_ray.runtime import Runtime
from scarcity_ray.runtime.samples import Sample

logger = logging.getLogger("scarcity_ray")


LEAST_SECONDS = 5.0
"""Between two publications: Ray's agents hear of them every ten, and one asks every role."""


class PublishedRounds:
    """Publishes after rounds, seldom enough to cost little; what fails in it is logged and ends no round.

    Args:
        federation: That makes the rounds.
        name: Its name, if it has one: the label.
        publish: Gives samples to the runtime.
        now: The time, in seconds since the epoch.
        clock: Gives seconds that only rise.
    """

    def __init__(
        self,
        federation: Watched,
        name: str | None,
        publish: Callable[[Iterable[Sample]], None],
        now: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._federation, self._name, self._publish, self._now = federation, name or "", publish, now
        self._clock, self._due = clock, -math.inf
        self._history = RoundHistory()
        self._untold: int | None = None

    def note(self, record: RoundRecord) -> None:
        """A round is over."""
        note_record(self._history, record)
        self._untold = record.round_id
        if self._clock() >= self._due:
            self.tell()

    def tell(self) -> None:
        """Publish what was noted since the last time, if anything was."""
        if self._untold is None:
            return
        try:
            totals = dict(self._history.totals)
            rounds = self._history.rounds()
            seen = observe(self._federation, self._now(), name=self._name, rounds=rounds, totals=totals)
            self._publish(samples_of(federation_status(seen)))
        except Exception as error:
            logger.warning("the metrics of round %d are not published: %r", self._untold, error)
        self._untold, self._due = None, self._clock() + LEAST_SECONDS


@contextmanager
def publishing(
    federation: Watched,
    runtime: Runtime,
    driver: Driver,
    on_round: Callable[[RoundRecord], None] | None,
) -> Iterator[Callable[[RoundRecord], None] | None]:
    """What a fit tells its rounds to: published where the runtime serves metrics, then given to `on_round`.

    A fit that returns has all its rounds published.
    """
    if not runtime.serves_metrics:
        yield on_round
        return
    name = driver.supervisor.identity.name
    published = PublishedRounds(federation, name, runtime.publish, driver.client.now)

    def told(record: RoundRecord) -> None:
        published.note(record)
        if on_round is not None:
            on_round(record)

    yield told
    published.tell()


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
