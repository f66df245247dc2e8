"""How much of the privacy budget is spent, exactly: a sum for all releases, and one for each client's gossip.

Releases compose by adding mu^2. "A release is allowed iff its mu^2 still fits under the cap" is a valid
privacy filter, even when each release is chosen in the light of all earlier ones. `Accounting` says what mu
is and what a sum of mu^2 amounts to: Gaussian DP, exact, or zCDP with mu^2 = 2 rho. The claim (total_epsilon,
total_delta) becomes the cap mu_total^2, with mu_total the largest that keeps (total_epsilon, total_delta -
delta_reserve). A share of the cap is set aside for gossip, the same for each client. A client has spent the
central releases and its own gossip, so the caps of both parts add up to mu_total^2, and no client's gossip
can use up what the releases need.

A general (epsilon, delta)-DP release is, for any two neighbours, made of one that tells all with probability
delta and is else randomised response at epsilon (Kairouz, Oh, Viswanath 2015, "The Composition Theorem for
Differential Privacy"): it is charged mu = `Accounting.mu_of_pure`(epsilon), and its delta is added up under
the reserve. (That both laws lie within delta of a pair that is epsilon apart would not be enough: it costs
e^total_epsilon as much delta.)

Clients may have ceilings of their own below that (`ceilings`). They hold over all periods together, and only
for releases and messages whose mu is known: with a ceiling, no release is taken that costs delta.

The state is pure: no clock, no randomness, no disk. `DurableBudget` puts a ledger behind it.

Guarantees:
    what_was_spent_never_exceeds_the_claim: (total_epsilon, total_delta), for each client, under any sequence.
    a_refused_charge_changes_nothing: And a smaller one may still fit.
    the_reported_budget_is_the_worst_case_over_all_clients: Of all who were ever charged in this period.
    a_budget_planned_for_n_equal_releases_allows_n: Rounding does not cost the last one.
    lifetime_epsilon_covers_all_periods: It never falls, whatever is renewed.
    a_renewal_refills_no_ceiling
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config.arguments import number_of
from scarcity_ray.errors import UsageError
from scarcity_ray.privacy.accounting.ceilings import Ceilings
from scarcity_ray.privacy.accounting.gaussian_dp import check_delta, check_mu
from scarcity_ray.privacy.accounting.modes import ROUNDING, Accounting
from scarcity_ray.privacy.schedule import NoiseSchedule, Step
from scarcity_ray_client.errors import shown


class PrivacyAccountant:
    """The budget of one federation: checks and spends, worst case over its clients.

    Args:
        total_epsilon: The claim of one period, above 0; ``inf`` claims nothing, and everything fits.
        total_delta: The claim's delta, in (0, 1).
        gossip_share: Share of the cap set aside for each client's gossip, in [0, 1]; with 1 no release fits.
        delta_reserve: Part of `total_delta` kept for `spend`, in [0, total_delta); half of it by default.
            With 0, `spend` accepts pure epsilon-DP releases only, and all of delta serves the other ones.
        accounting: What the sum of mu^2 means; Gaussian DP accepts Gaussian releases only.

    Attributes:
        ceilings: Of clients of their own.

    >>> accountant = PrivacyAccountant(total_epsilon=1.0, total_delta=1e-5)
    >>> accountant.spend(0.1, 0.0), accountant.spend(5.0, 0.0)
    (True, False)
    >>> accountant.remaining()[0] < 0.9
    True
    """

    def __init__(
        self,
        total_epsilon: float,
        total_delta: float,
        *,
        gossip_share: float = 0.0,
        delta_reserve: float | None = None,
        accounting: Accounting = Accounting.GAUSSIAN_DP,
    ) -> None:
        if not 0.0 <= number_of("gossip_share", gossip_share) <= 1.0:
            raise UsageError(f"gossip_share: {gossip_share!r} is not accepted; between 0 and 1")
        self.gossip_share = gossip_share
        self.accounting = accounting
        self.ceilings = Ceilings(accounting)
        self._reserve_given = delta_reserve
        self._places: dict[str, int] = {}
        self._past_central = self._past_delta = 0.0
        self._past_gossip = np.zeros(0)
        self._gossip = np.zeros(0)
        self._least_delta = total_delta
        self.period = 0
        self._begin(total_epsilon, total_delta)

    def _begin(self, total_epsilon: float, total_delta: float) -> None:
        """Take new totals and an empty period; a refused total changes nothing."""
        total_epsilon = number_of("total_epsilon", total_epsilon)
        total_delta = number_of("total_delta", total_delta)
        if not total_epsilon > 0.0:
            raise UsageError(f"total_epsilon: {total_epsilon!r} is not accepted; above 0")
        if not 0.0 < total_delta < 1.0:
            raise UsageError(f"total_delta: {total_delta!r} is not accepted; above 0 and below 1")
        given = self._reserve_given
        reserve = 0.5 * total_delta if given is None else number_of("delta_reserve", given)
        if not 0.0 <= reserve < total_delta:
            raise UsageError(f"delta_reserve: {reserve!r} is not accepted; at least 0 and below total_delta")
        self.mu_total = self.accounting.mu_of_claim(total_epsilon, total_delta - reserve)
        self.total_epsilon = total_epsilon
        self.total_delta = total_delta
        self.delta_reserve = reserve
        square = self.mu_total**2
        boundless = math.isinf(square)
        self._gossip_cap = math.inf if boundless else self.gossip_share * square
        self._central_cap = math.inf if boundless else (1.0 - self.gossip_share) * square
        self._least_delta = min(self._least_delta, total_delta)
        self._central = CompensatedSum()
        self._num_releases = 0
        self._delta = CompensatedSum()
        self._gossip = np.zeros_like(self._gossip)
        self._num_own = np.zeros(self._gossip.size, np.int64)

    def check(self, epsilon: float, delta: float) -> bool:
        """Whether an (epsilon, delta)-DP release fits."""
        check_delta(delta)
        fits = math.isinf(self.mu_total) or self._delta.plus(delta) <= self.delta_reserve * ROUNDING
        mu = self.accounting.mu_of_pure(epsilon)
        costs_no_delta = delta == 0.0 or not self.ceilings.num_in
        return self.check_release(mu) and fits and costs_no_delta and not self.ceilings.reached_by(mu)

    def spend(self, epsilon: float, delta: float) -> bool:
        """Charge an (epsilon, delta)-DP release if it fits; False changes nothing."""
        if not self.check(epsilon, delta):
            return False
        self.note_release(self.accounting.mu_of_pure(epsilon))
        self._delta.add(delta)
        return True

    def check_release(self, mu: float) -> bool:
        """Whether a release of parameter `mu`, seen by all, fits into this period's budget."""
        check_mu(mu)
        return self._central.plus(mu * mu) <= self._central_cap * ROUNDING

    def spend_release(self, mu: float) -> bool:
        """Charge a release if it fits, under every ceiling too; False changes nothing."""
        fits = self.check_release(mu) and not self.ceilings.reached_by(mu)
        if fits:
            self.note_release(mu)
        return fits

    def note_release(self, mu: float) -> None:
        """Charge a release that has happened, whether or not it fits."""
        check_mu(mu)
        self._central.add(mu * mu)
        self._num_releases += 1
        self.ceilings.note_release(mu)

    @property
    def step(self) -> Step:
        """Where the period stands before its next release."""
        left = max(0.0, self._central_cap - self._central.value)
        return Step(self._num_releases, self._central_cap, left)

    def set_ceiling(self, client_id: str, epsilon: float, delta: float, *, is_newcomer: bool) -> None:
        """Put a client under a ceiling over all periods, or under a lower one.

        Args:
            is_newcomer: Whether it took no part before its first ceiling, in its own word. If not, or if it
                was charged for gossip, all releases so far count as its own.
        """
        is_newcomer = is_newcomer and client_id not in self._places
        self.enrol([client_id])
        place = self._places[client_id]
        central = 0.0 if is_newcomer else self._past_central + self._central.value
        own = float(self._past_gossip[place] + self._gossip[place])
        self.ceilings.set(client_id, place, epsilon, delta, central + own)

    def leave_out(self, client_ids: Sequence[str]) -> None:
        """Leave clients out of all releases from now on.

        Raises:
            UsageError: If one has no ceiling, or is named twice.
        """
        strangers = [client_id for client_id in client_ids if self.ceilings.claim_of(client_id) is None]
        if strangers:
            raise UsageError(f"client_ids: {shown(strangers)} have no ceiling")
        self.ceilings.leave_out(client_ids, self.places(client_ids))

    def own_steps(self, client_ids: Sequence[str]) -> list[Step]:
        """Where each of the distinct clients stands in this period before its next charge of its own."""
        cap = self._gossip_cap
        return [
            Step(0, cap, cap)
            if place < 0
            else Step(int(self._num_own[place]), cap, max(0.0, cap - float(self._gossip[place])))
            for place in self.places(client_ids).tolist()
        ]

    def next_own(self, schedule: NoiseSchedule) -> NDArray[np.float64]:
        """What the client at each place is charged next by a schedule of its own; 0 if its period is over."""
        cap, stands = self._gossip_cap, np.stack([self._num_own.astype(np.float64), self._gossip])
        different, which = np.unique(stands, axis=1, return_inverse=True)
        steps = [Step(int(number), cap, max(0.0, cap - spent)) for number, spent in different.T.tolist()]
        mus = [schedule.mu(step) if schedule.num_left(step) else 0.0 for step in steps]
        return np.array(mus)[which.reshape(-1)]

    def affordable_gossip(self, client_ids: Sequence[str], mu: float) -> NDArray[np.bool_]:
        """Which of the distinct clients, known or new, can send one more message of parameter `mu`."""
        return self.affordable_at(self.places(client_ids), mu)

    def spend_gossip(self, client_ids: Sequence[str], mu: float) -> NDArray[np.bool_]:
        """Charge one message to each of the distinct clients that can afford it; who was charged."""
        places = self.places(client_ids)
        allowed = self.affordable_at(places, mu)
        newcomers = np.flatnonzero(allowed & (places < 0))
        places[newcomers] = self.num_clients + np.arange(newcomers.size)
        self.enrol([client_ids[i] for i in newcomers.tolist()])
        self.note_gossip(places[allowed], mu)
        return allowed

    def note_gossip(self, places: NDArray[np.int64], mu: float) -> None:
        """Charge one message that has been sent to each of the clients at distinct `places`."""
        check_mu(mu)
        self._gossip[places] += mu * mu
        self._num_own[places] += 1
        self.ceilings.note_own(places, mu)

    def affordable_at(
        self, places: NDArray[np.int64], mu: float, *, reserve: float = 0.0
    ) -> NDArray[np.bool_]:
        """As `affordable_gossip`, for the clients at `places`; -1 stands for one that was never charged.

        Args:
            reserve: The mu of a release that must still fit under each client's own ceiling.
        """
        check_mu(mu)
        spent = (
            np.where(places >= 0, self._gossip[places], 0.0) if self._gossip.size else np.zeros(places.size)
        )
        fits: NDArray[np.bool_] = spent + mu * mu <= self._gossip_cap * ROUNDING
        return fits & self.ceilings.affordable(places, mu, reserve)

    def enrol(self, client_ids: Sequence[str]) -> None:
        """Give clients that have no place yet the next ones, in the order given."""
        for client in client_ids:
            self._places.setdefault(client, len(self._places))
        missing = len(self._places) - self._gossip.size
        if missing > 0:
            # Doubled, so that adding clients one by one takes constant time each.
            room = np.zeros(max(missing, self._gossip.size))
            self._gossip = np.concatenate([self._gossip, room])
            self._past_gossip = np.concatenate([self._past_gossip, room])
            self._num_own = np.concatenate([self._num_own, np.zeros(room.size, np.int64)])
            self.ceilings.grow(self._gossip.size)

    @property
    def num_clients(self) -> int:
        """How many clients were ever charged for gossip, or have a ceiling of their own."""
        return len(self._places)

    def places(self, client_ids: Sequence[str]) -> NDArray[np.int64]:
        """The place of each id in the order of first charges and ceilings; -1 for the others.

        Raises:
            UsageError: If an id is given twice.
        """
        if len(set(client_ids)) != len(client_ids):
            raise UsageError("client_ids: a client is named twice; one charge covers a client's one message")
        found = map(self._places.get, client_ids, itertools.repeat(-1))
        return np.fromiter(found, dtype=np.int64, count=len(client_ids))

    def mu_spent(self, client_id: str | None = None) -> float:
        """Total mu of this period: the worst case over all clients, or one client's own."""
        return math.sqrt(self._central.value + self._own(self._gossip, client_id))

    def epsilon_spent(self, client_id: str | None = None, *, release: float = 0.0) -> float:
        """Epsilon at `total_delta` of what was spent in this period, and of one more release if given.

        What fits is at most `total_epsilon`.
        """
        left = max(0.0, self.total_delta - self._delta.value)
        mu = math.sqrt(self._central.plus(release * release) + self._own(self._gossip, client_id))
        epsilon = self.accounting.epsilon_of(mu, left)
        return min(epsilon, self.total_epsilon) if mu * mu <= self.mu_total**2 * ROUNDING else epsilon

    def delta_spent(self, client_id: str | None = None) -> float:
        """Delta at `total_epsilon` of all that was spent in this period."""
        return self.accounting.delta_of(self.mu_spent(client_id), self.total_epsilon) + self._delta.value

    def remaining(self, client_id: str | None = None) -> tuple[float, float]:
        """The (epsilon, delta) left: the worst case over all clients, or one client's own.

        Returns:
            `total_epsilon` less the epsilon spent at `total_delta`, and `total_delta` less the delta spent at
            `total_epsilon`; neither is negative.
        """
        if math.isinf(self.total_epsilon):
            return math.inf, max(0.0, self.total_delta - self._delta.value)
        epsilon = self.total_epsilon - self.epsilon_spent(client_id)
        delta = self.total_delta - self.delta_spent(client_id)
        return max(0.0, epsilon), max(0.0, delta)

    def reset(self) -> None:
        """Begin a new period with the same totals; the lifetime keeps what was spent."""
        self.renew(self.total_epsilon, self.total_delta)

    def renew(self, total_epsilon: float, total_delta: float) -> None:
        """Begin a new period with new totals; the lifetime keeps what was spent."""
        central, delta, gossip = self._central.value, self._delta.value, self._gossip
        self._begin(total_epsilon, total_delta)
        self._past_central += central
        self._past_delta += delta
        self._past_gossip += gossip
        self.period += 1

    def lifetime_epsilon(self, client_id: str | None = None) -> float:
        """Epsilon of everything ever spent, in all periods together.

        Stated at the least `total_delta` of any period, less the deltas that `spend` ever charged; ``inf`` if
        those use it up.
        """
        left = max(0.0, self._least_delta - self._past_delta - self._delta.value)
        return self.accounting.epsilon_of(self.lifetime_mu(client_id), left)

    def lifetime_mu(self, client_id: str | None = None) -> float:
        """Total mu of all periods: the worst case over all clients, or one client's own."""
        gossip = self._past_gossip + self._gossip
        return math.sqrt(self._past_central + self._central.value + self._own(gossip, client_id))

    @property
    def least_delta(self) -> float:
        """The least `total_delta` of any period."""
        return self._least_delta

    def left_under_ceiling(self, client_id: str) -> float:
        """The epsilon left under a client's ceiling at its delta; 0 once it is left out, ``inf`` without."""
        claim = self.ceilings.claim_of(client_id)
        if claim is None:
            return math.inf
        place = self._places[client_id]
        is_in = self.ceilings.is_in(place)
        return max(0.0, claim[0] - self.ceilings.epsilon_spent(client_id, place)) if is_in else 0.0

    def ceiling_of(self, client_id: str) -> tuple[float, float, float, bool] | None:
        """A client's ceiling (epsilon, delta), the epsilon spent of it, and whether it is left out."""
        claim = self.ceilings.claim_of(client_id)
        if claim is None:
            return None
        place = self._places[client_id]
        return *claim, self.ceilings.epsilon_spent(client_id, place), not self.ceilings.is_in(place)

    def _own(self, spent: NDArray[np.float64], client_id: str | None) -> float:
        if client_id is None:
            return float(spent.max(initial=0.0))
        place = self._places.get(client_id)
        return 0.0 if place is None else float(spent[place])


class CompensatedSum:
    """A running sum whose rounding error does not grow with the number of terms (Neumaier 1974)."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._rest = 0.0

    @property
    def value(self) -> float:
        """The sum."""
        return self._sum + self._rest

    def plus(self, term: float) -> float:
        """The sum if `term` >= 0 were added."""
        high, rest = self._added(term)
        return high + rest

    def add(self, term: float) -> None:
        """Add `term` >= 0."""
        self._sum, self._rest = self._added(term)

    def _added(self, term: float) -> tuple[float, float]:
        high = self._sum + term
        if math.isinf(high):
            return high, 0.0
        lost = (self._sum - high) + term if self._sum >= term else (term - high) + self._sum
        return high, self._rest + lost
