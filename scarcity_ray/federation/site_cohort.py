"""Clients outside the cluster: a round is open until they have sent, or its time is over.

The gateways have the updates judged, each when it is there. This side opens and closes rounds, and counts.

Guarantees:
    a_round_closes_once_all_sites_that_are_up_have_an_answer_and_a_release_can_be_made
    a_round_whose_time_is_over_closes_with_the_rows_that_a_release_needs_and_not_before
    a_site_that_was_not_heard_of_is_not_waited_for
    a_resumed_round_is_the_same_round_on_the_same_model
    metrics_of_noised_rows_are_not_kept
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.actors.directory import Directory
from scarcity_ray.baskets.reports import Member
from scarcity_ray.errors import UsageError
from scarcity_ray.federation.arguments import policies_of
from scarcity_ray.federation.cohort import ClientsEvaluation, Fit
from scarcity_ray.federation.driver import Driver
from scarcity_ray.federation.evaluation import ClientEvaluation, MeanMetrics, mean_metrics_by_domain
from scarcity_ray.federation.fit_state import FitState, RoundFacts
from scarcity_ray.federation.served_round import FrontDoor, Heard, Measured, OpenRound, Site
from scarcity_ray.federation.training_round import MOST_TOLD, TrainingProgress
from scarcity_ray.federation.waiting import Missing, WaitingFor
from scarcity_ray.layers.server_model import ServerModel
from scarcity_ray_client import Cause, Refusal
from scarcity_ray_client.wire import RoundState

UNMENDABLE = (Missing.BUDGET, Missing.LEDGER, Missing.CEILING, Missing.LAYER2)
"""What no update that comes can mend."""
ROSTER_SECONDS = 2.0
"""Between two questions to the baskets."""


@dataclass(frozen=True)
class SiteTerms:
    """How sites' rounds go.

    Attributes:
        round_seconds: After which a round closes with what a release needs; None: sites that are up are
            waited for.
        up_seconds: For which a site that is silent is taken to be up.
        poll_seconds: Between two looks at what came.
    """

    round_seconds: float | None
    up_seconds: float
    poll_seconds: float = 0.2


class SiteCohort:
    """One served fit's sites.

    Args:
        fit: Whose clients they are.
        door: The gateways.
        terms: How rounds go.
        on_wait: Told, as often as it changes, whom the round waits for.
        clock: Unix seconds.
    """

    def __init__(
        self,
        fit: Fit[Any],
        door: FrontDoor,
        terms: SiteTerms,
        on_wait: Callable[[Waiting], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fit, self._door, self._terms, self._clock = fit, door, terms, clock
        self._driver, self._on_wait = fit.driver, on_wait
        given = fit.terms
        if given.adversary is not None or given.clients_per_round is not None or given.extra_clients:
            raise UsageError(
                "clients_per_round, extra_clients and an adversary are for clients that tasks train"
            )
        self.run = uuid.uuid4().hex
        self._round_id = 0
        self._is_resumed = False
        self._heard = Heard()
        self._waited_for: frozenset[str] = frozenset()
        self._closes_at: float | None = None
        self._told: Waiting | None = None
        self._asked_baskets = -ROSTER_SECONDS
        self._waits: WaitingFor | None = None
        self._sites: Mapping[str, Site] = {}
        self._gone: frozenset[str] = frozenset()
        self._newly_out: tuple[str, ...] = ()
        self._out: frozenset[str] = frozenset()

    @property
    def num_bytes(self) -> int:
        """Updates go from the gateways to the baskets: none of them comes to this process."""
        return 0

    def draws(self) -> Mapping[str, Any]:
        """Nobody is drawn: all sites may send."""
        return {}

    def resume(self, state: FitState) -> None:
        """Go on where a stored fit stands."""
        self.run, self._is_resumed = state.run, True

    def register(self) -> None:
        """Register the sites that are enrolled; those that enrol later, gateways register."""
        for site in self._door.sites():
            register_site(self._driver, site)

    def leave_out(self) -> bool:
        """Ask sites at ceilings of their own no more; whether there are any."""
        out = self._driver.left_out()
        self._newly_out = tuple(sorted(out - self._out))
        self._out = out
        return bool(out)

    def begin(self, round_id: int, *, is_resumed: bool, is_trained: bool) -> None:
        """Begin a round; of one that goes on, updates that no basket has any more are asked for again."""
        self._round_id, self._heard, self._told = round_id, Heard(), None
        self._asked_baskets = -ROSTER_SECONDS
        self._gone = frozenset()  # A gateway may have registered one as it was revoked.
        if is_resumed and not is_trained:
            self._door.keep_only(round_id, sorted(self._driver.accepted_for(round_id)))

    def train(self, model: ServerModel, version: int, clip_norm: float) -> None:
        """Open the round to the sites until it is complete."""
        begun = self._clock()
        seconds = self._terms.round_seconds
        self._closes_at = None if seconds is None else begun + seconds
        state = self._publish(RoundState.OPEN, "", version, clip_norm, model.current)
        with self._fit.phases.timed("training"):
            while not self._is_complete():
                wanted = RoundState.PAUSED if self._heard.is_paused else RoundState.OPEN
                lost = not self._heard.is_published
                if wanted is not state or lost:
                    reason = "an operator has paused the rounds" if wanted is RoundState.PAUSED else ""
                    again = model.current if lost else None
                    state = self._publish(wanted, reason, version, clip_norm, again)
                self._door.wait(self._terms.poll_seconds)
        self._publish(RoundState.WAITING, "the round is aggregated", version, clip_norm, None)
        self._heard = self._door.heard(self._round_id)

    def facts(self, gossip_messages: int) -> RoundFacts:
        """What came of the round."""
        heard = self._heard
        silent = sorted(self._waited_for - heard.accepted - heard.refused.keys())
        late = [
            Refusal(client_id, self._round_id, Cause.TIMED_OUT, "it had not sent when the round closed")
            for client_id in silent
        ]
        refusals = [
            *((client_id, reason) for client_id, reason in heard.refusals),
            *((client_id, str(Cause.TIMED_OUT)) for client_id in silent),
        ]
        is_noised = self._driver.supervisor.plan.site_noise is not None
        return RoundFacts(
            round_id=self._round_id,
            num_sampled=len(self._waited_for | heard.accepted),
            num_accepted=len(heard.accepted),
            num_surplus=0,
            refused=tuple(refusals),
            first_refusals=tuple(late[:MOST_TOLD]),
            unmeasured=(),
            metrics={} if is_noised else self._by_domain(heard.trained),
            gossip_messages=gossip_messages,
        )

    def left_out(self) -> Sequence[Refusal]:
        """Sites that are at their ceilings since the last round."""
        why = "the next release would pass its own ceiling: it is left out of all further rounds"
        return [Refusal(one, self._round_id, Cause.AT_CEILING, why) for one in self._newly_out]

    def notes(self) -> Sequence[str]:
        """Nothing comes here from where sites train."""
        return ()

    def evaluate(self, handed_out: NDArray[np.float32]) -> ClientsEvaluation:
        """What sites told in this round of the model that it began with; the new one is not sent yet."""
        return ClientsEvaluation(self._by_domain(self._heard.evaluated))

    def _is_complete(self) -> bool:
        now, heard = self._clock(), self._door.heard(self._round_id)
        self._heard = heard
        self._sites = {site.client_id: site for site in self._door.sites()}
        self._unregister_revoked()
        up = {
            client_id
            for client_id in self._sites.keys() - self._out
            if now - heard.last_seen.get(client_id, heard.began) <= self._terms.up_seconds
        }
        self._waited_for = frozenset(up)
        missing = up - heard.accepted - heard.refused.keys()
        is_over = self._closes_at is not None and now >= self._closes_at
        is_due = is_over or (bool(heard.accepted) and not missing)
        if is_due or now - self._asked_baskets >= ROSTER_SECONDS:
            self._asked_baskets, self._waits = now, self._driver.waiting_for()
        self._tell(heard, missing)
        if self._waits is None or heard.is_paused:
            return False
        return self._waits.missing in UNMENDABLE or (is_due and _is_enough(self._waits))

    def _unregister_revoked(self) -> None:
        """Have who was revoked leave its basket, which would wait for it; its update is withdrawn."""
        revoked = frozenset(self._door.revoked())
        for client_id in sorted(revoked - self._gone):
            self._driver.operations.run(Directory.unregister, client_id, self._driver.client.now())
        self._gone = revoked

    def _tell(self, heard: Heard, missing: set[str]) -> None:
        waiting = Waiting(
            self._round_id,
            len(heard.accepted),
            len(self._waited_for | heard.accepted),
            tuple(sorted(missing)),
            tuple(sorted(self._sites.keys() - self._waited_for - heard.accepted)),
            "" if self._waits is None else lacking(self._waits),
        )
        if waiting == self._told:
            return
        self._told = waiting
        if self._on_wait is not None:
            self._on_wait(waiting)
        if self._fit.terms.on_progress is not None:
            slowest = waiting.waited_for[0] if waiting.waited_for else None
            done, due = waiting.num_accepted, waiting.num_due
            self._fit.terms.on_progress(TrainingProgress(self._round_id, done, due, None, slowest))

    def _publish(
        self,
        state: RoundState,
        reason: str,
        version: int,
        clip_norm: float,
        model: NDArray[np.float32] | None,
    ) -> RoundState:
        scope = self._driver.signing_scope()
        opened = OpenRound(
            state, reason, self._round_id, scope, clip_norm, closes_at=self._closes_at, model_version=version
        )
        self._door.publish(opened, model)
        return state

    def _by_domain(self, measured: Sequence[Measured]) -> dict[str, MeanMetrics]:
        return mean_metrics_by_domain(
            ClientEvaluation(
                one.client_id, self._sites[one.client_id].domain_id, one.metrics, one.num_examples
            )
            for one in sorted(measured, key=lambda one: one.client_id)
            if one.client_id in self._sites and one.num_examples > 0
        )


@dataclass(frozen=True)
class Waiting:
    """Whom a round waits for.

    Attributes:
        num_accepted: Sites of which an update is counted.
        num_due: Of which one is expected.
        waited_for: Those that are up and have not sent.
        away: Those that were not heard of.
        release: What a release lacks, in words; empty if nothing.
    """

    round_id: int
    num_accepted: int
    num_due: int
    waited_for: tuple[str, ...]
    away: tuple[str, ...]
    release: str


def register_site(driver: Driver, site: Site) -> str:
    """Register a site with the federation, under its ceiling; its basket.

    Raises:
        UsageError: If it is refused: for its ceiling, its persons, or as it is registered otherwise.
    """
    least = driver.config.privacy.min_persons
    if least is not None and site.num_examples is not None and site.num_examples < least:
        raise UsageError(
            f"{site.num_examples} {driver.config.privacy.unit}s are not accepted; at least "
            f"privacy.min_persons = {least}, as each counts on so many"
        )
    driver.set_policies(policies_of([(site.client_id, site.public_key, site.policy)]))
    features = None if site.features is None else np.asarray(site.features, np.float64)
    member = Member(site.client_id, site.domain_id, site.public_key, features, num_examples=site.num_examples)
    (basket_id,) = driver.operations.run(Directory.register, (member,), driver.client.now())
    return basket_id


def lacking(waits: WaitingFor) -> str:
    """What a release lacks, to who serves sites; empty if nothing."""
    if _is_enough(waits):
        return ""
    if waits.missing is Missing.BASKETS:
        return (
            f"a release sums at least {waits.least_baskets} baskets, and {len(waits.baskets)} has sites: "
            "invite one of another domain (scarcity-ray client-kit make)"
        )
    if waits.missing is not Missing.AGGREGATES:
        return str(waits)
    short = [one for one in waits.baskets if one.missing in (Missing.MEMBERS, Missing.UPDATES)]
    ready = len(waits.baskets) - len(short)
    lines = [f"a release needs rows in at least {waits.least_baskets} baskets, and {ready} has enough"]
    for one in short:
        who = f", silent: {', '.join(one.absent)}" if one.absent else ""
        lines.append(f"- {one.basket_id}: {one.num_senders} of {one.least_rows} sites{who}")
    return "\n".join(lines)


def _is_enough(waits: WaitingFor) -> bool:
    """Whether a forced aggregation makes a release of what is there."""
    if waits.missing in (Missing.TRIGGER, Missing.CALL):
        return True
    counts = Counter(basket.missing for basket in waits.baskets)
    ready = counts[Missing.TRIGGER] + counts[Missing.CALL] + counts[Missing.RELEASE]
    return waits.missing is Missing.AGGREGATES and ready >= waits.least_baskets
