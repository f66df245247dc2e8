"""The return values of `DurableBudget`, plain values that travel between actors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from scarcity_ray.privacy.accounting.modes import Accounting
from scarcity_ray.privacy.ledger.holder import in_utc, times

NAMED = 100
"""Clients left out at their ceilings that a status names; the others are counted."""


@dataclass(frozen=True)
class Charge:
    """The answer to one charge.

    Attributes:
        reason: Why not, as a short sentence; empty if allowed.
        epsilon_spent: Of this period, worst case over all clients, this charge included if allowed.
        head_hash: The ledger's hash at the charge, hexadecimal: what the released model carries.
        repeated: Whether the charge was recorded before this call. A charge covers one drawing of noise: a
            caller that no longer has the noise must not draw again under it, but charge under a new id.
        is_last: Whether no other release fits beside it.
        is_outdated: Whether it is refused because, since it was planned, another release was charged, a
            client was left out, or has to be, or it was given up: there may be budget for another one.
        num_left_out: How many clients were left out at their ceilings when it was charged: the release holds
            no row of these, and is not charged to them.
        dropped: The baskets that took part in its session and are not in its sum, as it was charged.
    """

    allowed: bool
    reason: str
    epsilon_spent: float
    head_hash: str
    repeated: bool = field(default=False, compare=False)
    is_last: bool = field(default=False, compare=False)
    is_outdated: bool = False
    num_left_out: int = field(default=0, compare=False)
    dropped: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class CeilingStanding:
    """A client's own ceiling, and what it has spent of it.

    Attributes:
        epsilon: Of the ceiling, over all budget periods.
        delta: Of the ceiling.
        epsilon_spent: In all periods, at `delta`.
        is_left_out: Whether it is left out, for good.
    """

    epsilon: float
    delta: float
    epsilon_spent: float
    is_left_out: bool


@dataclass(frozen=True)
class BudgetStatus:
    """The state of a budget: what was spent, what is left, and on which ledger.

    Attributes:
        remaining_epsilon: Worst case over all clients; 0 once the next release does not fit.
        remaining_delta: Likewise.
        epsilon_spent: Of this period, at `total_delta`, worst case over all clients.
        lifetime_epsilon: Of all periods together.
        read_only: Whether the next release does not fit, or this accountant may charge nothing any more.
        total_epsilon: This period's claim.
        total_delta: This period's delta.
        period: 0, and one more for each renewal.
        head_hash: The ledger's newest hash, hexadecimal.
        read_only_reason: Why it is read-only, as a short sentence; empty if it is not.
        taken_over: Whether it is because another accountant has taken the ledger over.
        federation_id: The federation's random id, made with its ledger.
        incarnation: How often a federation was opened on the ledger, this time included.
        run: This opening's number, 63 random bits: what clients sign their updates for.
        created: When the ledger was made, in seconds since 1970, as its maker said.
        is_new: Whether it was made by this opening.
        releases_charged: In this period; the next one's number in a schedule of noise.
        releases_left: In this period, inf if nothing limits them.
        next_mu: What the next release is charged.
        num_ceilings: Clients with a ceiling of their own.
        num_left_out: Those of them that are left out, at their ceilings.
        left_out: The first of these.
    """

    remaining_epsilon: float
    remaining_delta: float
    epsilon_spent: float
    lifetime_epsilon: float
    read_only: bool
    total_epsilon: float
    total_delta: float
    period: int
    head_hash: str
    ledger_path: str
    accounting: Accounting = Accounting.GAUSSIAN_DP
    read_only_reason: str = ""
    taken_over: bool = False
    federation_id: str = ""
    incarnation: int = 0
    run: int = 0
    created: float = 0.0
    is_new: bool = False
    releases_charged: int = 0
    releases_left: float = math.inf
    next_mu: float = 0.0
    num_ceilings: int = 0
    num_left_out: int = 0
    left_out: tuple[str, ...] = ()

    def in_words(self) -> str:
        """Which ledger it is, new or old, and how much is left, in one sentence."""
        age = "new" if self.is_new else f"begun {in_utc(self.created)}, opened {times(self.incarnation)}"
        return (
            f"ledger {self.ledger_path} ({age}): epsilon {self.remaining_epsilon:.4g} of "
            f"{self.total_epsilon:g} left at delta {self.total_delta:g} in budget period {self.period}"
            + (f"; {self.epsilon_spent:.4g} was spent before" if self.epsilon_spent else "")
        )

    def of_ledger(self) -> dict[str, Any]:
        """Which ledger it is and what it has left, as statistics state it."""
        return {
            "path": self.ledger_path,
            "federation_id": self.federation_id,
            "created": self.created,
            "is_new": self.is_new,
            "incarnation": self.incarnation,
            "period": self.period,
            "epsilon_spent": self.epsilon_spent,
            "epsilon_left": self.remaining_epsilon,
            "epsilon_total": self.total_epsilon,
            "delta_total": self.total_delta,
            "head": self.head_hash,
            "releases_charged": self.releases_charged,
            "next_mu": self.next_mu,
        }

    def of_ceilings(self) -> dict[str, Any]:
        """How many clients have a ceiling of their own, and who is left out at it, as statistics state it."""
        return {
            "clients": self.num_ceilings,
            "num_left_out": self.num_left_out,
            "left_out": list(self.left_out),
        }
