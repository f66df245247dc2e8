"""Ceilings of the clients' own: what each that signed a policy has spent in all periods, and what still fits.

A ceiling (epsilon, delta) is a cap on mu^2, the largest that keeps it, as the federation's budget is
(`accountant`). A client spends each release that is charged while it is in, and its own messages and rows,
in all budget periods together. "Allowed iff it still fits under the cap" is a valid filter for each client by
itself (`modes`), whatever the others spend, since all of it is charged before it happens.

A client whose next charge does not fit is *left out*, for good: from then on no release is charged to it, and
none may hold a row of it (`ledger.budget` says how that is kept). Its cap may fall, by a stricter policy, and
never rises. So the sum never passes the cap that was in force when its last part was charged.

Guarantees:
    what_a_client_spends_never_passes_its_ceiling: Under any sequence of releases, messages and renewals.
    who_is_left_out_is_charged_no_more_and_never_comes_back
    a_ceiling_never_rises
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.privacy.accounting.modes import ROUNDING, Accounting


class Ceilings:
    """The ceilings of one federation's clients, by the clients' places in the accountant's list.

    Attributes:
        left_out: Who is left out, in the order in which it happened.
    """

    def __init__(self, accounting: Accounting) -> None:
        self.left_out: list[str] = []
        self._accounting = accounting
        self._claims: dict[str, tuple[float, float]] = {}
        self._names: dict[int, str] = {}
        self._caps = np.zeros(0)
        self._spent = np.zeros(0)
        self._is_in = np.zeros(0, np.bool_)

    def __len__(self) -> int:
        return len(self._claims)

    @property
    def num_in(self) -> int:
        """Clients with a ceiling that are not left out."""
        return len(self._claims) - len(self.left_out)

    def grow(self, room: int) -> None:
        """Have room for at least so many places; those without a ceiling may spend anything."""
        missing = room - self._caps.size
        if missing > 0:
            self._caps = np.concatenate([self._caps, np.full(missing, np.inf)])
            self._spent = np.concatenate([self._spent, np.zeros(missing)])
            self._is_in = np.concatenate([self._is_in, np.ones(missing, np.bool_)])

    def set(self, client_id: str, place: int, epsilon: float, delta: float, spent: float) -> None:
        """Put a client under a ceiling, or under a lower one.

        Args:
            spent: The mu^2 that it had spent before its first ceiling; later ones change nothing of it.
        """
        cap = self._accounting.mu_of_claim(epsilon, delta) ** 2
        if client_id not in self._claims:
            self._spent[place] = spent
            self._names[place] = client_id
        self._claims[client_id] = epsilon, delta
        self._caps[place] = min(self._caps[place], cap)

    def claim_of(self, client_id: str) -> tuple[float, float] | None:
        """The (epsilon, delta) of a client's ceiling; None if it has none."""
        return self._claims.get(client_id)

    def reached_by(self, mu: float | NDArray[np.float64]) -> tuple[str, ...]:
        """The clients that are in and cannot afford a charge of `mu`, in the order of their places.

        Args:
            mu: The same for all, or one for each place.
        """
        if not self.num_in:
            return ()
        places = np.fromiter(self._names, dtype=np.int64, count=len(self._names))
        places.sort()
        squares = np.broadcast_to(np.square(mu), self._caps.shape)[places]
        short = places[self._is_in[places] & ~self._fits(places, squares)]
        return tuple(self._names[place] for place in short.tolist())

    def affordable(self, places: NDArray[np.int64], mu: float, reserve: float) -> NDArray[np.bool_]:
        """Whether the client at each place (-1: one without a ceiling) can afford a charge of its own.

        Args:
            reserve: The mu of the next release, which must still fit beside it: the client's row may lie in
                an aggregate that waits for that release.
        """
        if not self._claims:
            return np.ones(places.size, np.bool_)
        known = places >= 0
        allowed = np.ones(places.size, np.bool_)
        held = places[known]
        under = np.isfinite(self._caps[held])
        fits = self._is_in[held] & self._fits(held, mu * mu + reserve * reserve)
        allowed[known] = fits | ~under
        return allowed

    def note_release(self, mu: float) -> None:
        """Charge a release to everybody who is in."""
        if self._claims:
            self._spent[self._is_in] += mu * mu

    def note_own(self, places: NDArray[np.int64], mu: float) -> None:
        """Charge the clients at distinct places each a message or row of its own."""
        if self._claims:
            self._spent[places] += mu * mu

    def is_in(self, place: int) -> bool:
        """Whether the client at a place is not left out."""
        return bool(self._is_in[place])

    def leave_out(self, clients: Sequence[str], places: NDArray[np.int64]) -> None:
        """Leave clients out, from the next release on."""
        self.left_out.extend(clients)
        self._is_in[places] = False

    def epsilon_spent(self, client_id: str, place: int) -> float:
        """What a client with a ceiling has spent in all periods, at its ceiling's delta."""
        epsilon, delta = self._claims[client_id]
        square = float(self._spent[place])
        spent = self._accounting.epsilon_of(square**0.5, delta)
        return min(spent, epsilon) if square <= self._caps[place] * ROUNDING else spent

    def _fits(self, places: NDArray[np.int64], square: float | NDArray[np.float64]) -> NDArray[np.bool_]:
        return self._spent[places] + square <= self._caps[places] * ROUNDING
