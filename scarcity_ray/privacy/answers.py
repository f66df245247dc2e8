"""What the budget answers: plain values that travel between actors."""

from __future__ import annotations

from dataclasses import dataclass, field

from scarcity_ray.privacy.modes import Accounting


@dataclass(frozen=True)
class Charge:
    """The answer to one charge.

    Attributes:
        allowed: Whether the release may be made.
        reason: Why not, as a short sentence; empty if allowed.
        epsilon_spent: Of this period, worst case over all clients, this charge included if allowed.
        head_hash: The ledger's hash at the charge, hexadecimal: what the released model carries.
        repeated: Whether the charge was recorded before this call. It covers one drawing of noise: who finds
            it recorded and does not hold what was drawn must not draw again, but charge under a new id.
    """

    allowed: bool
    reason: str
    epsilon_spent: float
    head_hash: str
    repeated: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class BudgetStatus:
    """Where the budget stands.

    Attributes:
        remaining_epsilon: Worst case over all clients; 0 once the next release does not fit.
        remaining_delta: Likewise.
        epsilon_spent: Of this period, at `total_delta`, worst case over all clients.
        lifetime_epsilon: Of all periods together.
        read_only: Whether the next release does not fit.
        total_epsilon: This period's claim.
        total_delta: This period's delta.
        period: 0, and one more for each renewal.
        head_hash: The ledger's newest hash, hexadecimal.
        ledger_path: Where the ledger is.
        accounting: What the ledger adds up.
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


__all__ = ["BudgetStatus", "Charge"]
