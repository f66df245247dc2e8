"""The accountant: one process that checks, records durably, and only then allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scarcity_ray.errors import LedgerError
from scarcity_ray.ledger_url import is_ledger_url
from scarcity_ray.privacy.answers import BudgetStatus, Charge
from scarcity_ray.privacy.budget import DurableBudget
from scarcity_ray.privacy.modes import Accounting
from scarcity_ray.roles.role import Role


class Accountant(Role):
    """`privacy.DurableBudget` as a role; its ledger opens at the first call, so that errors keep their type.

    Args:
        path: The ledger's file on this node, or its database's URL.
        federation_id: Whose ledger it must be.
        total_epsilon: The budget.
        total_delta: The budget.
        gossip_share: Share of the budget set aside for each client's gossip.
        accounting: What the ledger adds up.
        mu_reserved: What a release is charged, 0 where none is made: once it does not fit, all is read-only.
        must_exist: Whether the federation is known to have a ledger there already.
    """

    def __init__(
        self,
        path: str,
        federation_id: str,
        total_epsilon: float,
        total_delta: float,
        gossip_share: float,
        accounting: Accounting,
        mu_reserved: float,
        must_exist: bool,
    ) -> None:
        super().__init__()
        self._path = path
        self._opening: dict[str, Any] = {
            "federation_id": federation_id,
            "total_epsilon": total_epsilon,
            "total_delta": total_delta,
            "gossip_share": gossip_share,
            "accounting": accounting,
            "must_exist": must_exist,
        }
        self._mu_reserved = mu_reserved
        self._budget: DurableBudget | None = None

    def _opened(self, now: float) -> DurableBudget:
        if self._budget is None:
            if not self._opening["must_exist"] and not is_ledger_url(self._path):
                _make_folder(Path(self._path).parent)
            self._budget = DurableBudget.open(self._path, now=now, **self._opening)
        return self._budget

    def charge_release(self, charge_id: str, mu: float, now: float, details: dict[str, Any]) -> Charge:
        """Charge one Layer 2 release; the answer is durable."""
        return self._opened(now).charge_release(charge_id, mu, now=now, details=details)

    def charge_gossip(
        self, charge_id: str, client_ids: tuple[str, ...], mu: float, now: float, details: dict[str, Any]
    ) -> tuple[str, ...]:
        """Charge each client's own gossip; the clients whose charge fitted, durably recorded."""
        return self._opened(now).charge_gossip(charge_id, client_ids, mu, now=now, details=details)

    def status(self, now: float) -> BudgetStatus:
        """What is left and what was spent."""
        return self._opened(now).status(self._mu_reserved)

    def budget_period(self, now: float) -> int:
        """0, and one more for each renewal: what clients sign their updates for."""
        return self._opened(now).period

    def remaining(self, client_id: str, now: float) -> tuple[float, float]:
        """What is left of (epsilon, delta) for one client; (0, 0) once the next release does not fit."""
        budget = self._opened(now)
        return (0.0, 0.0) if budget.status(self._mu_reserved).read_only else budget.remaining(client_id)

    def was_charged(self, client_id: str, now: float) -> bool:
        """Whether a client's own gossip was ever charged."""
        return self._opened(now).was_charged(client_id)

    def renew(
        self, total_epsilon: float, total_delta: float, now: float, operator: str, renewal_id: str
    ) -> BudgetStatus:
        """Open a new budget period: the operator's act, recorded, once for each `renewal_id`."""
        budget = self._opened(now)
        budget.renew(total_epsilon, total_delta, now=now, operator=operator, renewal_id=renewal_id)
        return budget.status(self._mu_reserved)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise LedgerError(
            f"{folder}: the ledger's folder cannot be made ({error.strerror}); choose another ledger_path"
        ) from None
