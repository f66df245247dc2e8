"""The accountant: checks each charge against the budget and records it durably before it allows it.

Whoever can reach the Ray cluster can call it. A false charge only wastes budget, but a renewal grants new
budget. So with ``operator_key`` in the configuration a renewal needs the operator's signature over
`privacy.ledger.events.renewal_message`, whoever sends it; without that key everybody can renew.

Guarantees:
    a_renewal_needs_the_operators_signature: With an operator's key; the signature is for one federation,
        period, name and pair of totals. The ledger keeps the key and is opened with no other.
    a_release_is_charged_or_given_up_never_both
    a_release_of_another_step_is_not_charged: Under a schedule of noise; nor one with another mu than its
        step's.
    a_row_of_another_step_is_not_charged: Likewise, of each client's own schedule; nor one of another mu.
    once_its_ledger_is_taken_over_nothing_is_charged: Charges are refused with the reason, not lost.
    a_client_is_left_out_before_a_release_would_pass_its_ceiling: On record, before anybody is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scarcity_ray.errors import LedgerTakenOver, UsageError
from scarcity_ray.privacy.ledger.answers import BudgetStatus, CeilingStanding, Charge
from scarcity_ray.privacy.ledger.budget import DurableBudget
from scarcity_ray.privacy.ledger.events import renewal_message
from scarcity_ray.privacy.ledger.file_access import make_folder, make_private_folder
from scarcity_ray.privacy.schedule import NoiseSchedule, Step
from scarcity_ray.runtime.rpc import Role, query
from scarcity_ray_client.identity import IdentityKeyPair
from scarcity_ray_client.policy import SignedPolicy
from scarcity_ray_client.site_ledger import Extension, Head


class Accountant(Role):
    """`privacy.DurableBudget` as a role; the ledger opens at the first call, so that errors keep their type.

    Args:
        open_budget: `DurableBudget.open` with every argument but `now`.
        schedule: What each release is charged; once the next does not fit, all is read-only.
        row_schedule: What a client is charged for each row that it noises; nothing where releases are noised.
        folder: The folder to make for a new ledger's file.
        private_folder: Whether the folder must be this user's alone.
        operator_key: The operator's Ed25519 public key, in hexadecimal digits; None: everybody may renew.
    """

    def __init__(
        self,
        open_budget: Callable[..., DurableBudget],
        schedule: NoiseSchedule,
        folder: Path | None = None,
        private_folder: bool = False,
        operator_key: str | None = None,
        row_schedule: NoiseSchedule | None = None,
    ) -> None:
        super().__init__()
        self._open_budget = open_budget
        self._folder = folder
        self._make_folder = make_private_folder if private_folder else make_folder
        self._operator_key = None if operator_key is None else bytes.fromhex(operator_key)
        self._schedule = schedule
        self._row_schedule = row_schedule or NoiseSchedule(0.0)
        self._budget: DurableBudget | None = None

    def _opened(self, now: float) -> DurableBudget:
        if self._budget is None:
            if self._folder is not None:
                self._make_folder(self._folder)
            self._budget = self._open_budget(now=now)
        return self._budget

    def charge_release(
        self,
        charge_id: str,
        mu: float,
        now: float,
        details: dict[str, Any],
        num_left_out: int | None = None,
        step: Step | None = None,
    ) -> Charge:
        """Charge one Layer 2 release; the answer is durable. See `DurableBudget.charge_release`.

        Args:
            step: Where its schedule of noise says that the ledger stands; None under constant noise.
        """
        budget = self._opened(now)
        if not self._schedule.accepts(mu, step):
            why = "it is charged another mu than its step in the schedule of noise"
            return Charge(False, why, self._status(budget).epsilon_spent, budget.head_hash, is_outdated=True)
        try:
            charge = budget.charge_release(
                charge_id, mu, now=now, details=details, step=step, num_left_out=num_left_out
            )
        except LedgerTakenOver as error:
            return Charge(False, str(error), self._status(budget).epsilon_spent, budget.head_hash)
        return replace(charge, is_last=self._why_read_only(budget) != "")

    @query
    def step(self, now: float) -> Step:
        """Where the ledger stands before the next release."""
        return self._opened(now).step

    def void_release(self, charge_id: str, now: float, details: dict[str, Any]) -> bool:
        """Refuse a release for ever unless it was charged; whether it is refused. The answer is durable."""
        try:
            return self._opened(now).void_release(charge_id, now=now, details=details)
        except LedgerTakenOver:
            return False

    @query
    def dropped_from(self, charge_id: str, now: float) -> tuple[str, ...]:
        """The baskets that are not in the sum of a release, as it was charged."""
        return self._opened(now).dropped_from(charge_id)

    def charge_gossip(
        self, charge_id: str, client_ids: tuple[str, ...], mu: float, now: float, details: dict[str, Any]
    ) -> tuple[tuple[str, ...], str, str]:
        """Charge each client's own gossip.

        Returns:
            The clients whose charge fitted, durably recorded; the ledger's head; and why nothing is charged
            any more, empty unless the ledger was taken over.
        """
        budget = self._opened(now)
        try:
            allowed = budget.charge_gossip(
                charge_id, client_ids, mu, now=now, details=details, reserve=self._next_mu(budget)
            )
        except LedgerTakenOver as error:
            return (), budget.head_hash, str(error)
        return allowed, budget.head_hash, ""

    def charge_rows(
        self,
        charge_id: str,
        client_ids: tuple[str, ...],
        mu: float,
        now: float,
        details: dict[str, Any],
        step: Step | None = None,
    ) -> tuple[tuple[str, ...], str, str]:
        """Charge each client for one row that it noises itself; answered as `charge_gossip` is.

        Args:
            step: Where the clients stand in their schedules of noise, each in its own; those who stand
                elsewhere are not charged. None under constant noise.
        """
        budget, schedule = self._opened(now), self._row_schedule
        if not schedule.accepts(mu, step) or (schedule.is_constant and mu != schedule.mu_release):
            return (), budget.head_hash, ""
        try:
            allowed = budget.charge_rows(charge_id, client_ids, mu, now=now, details=details, step=step)
        except LedgerTakenOver as error:
            return (), budget.head_hash, str(error)
        return allowed, budget.head_hash, ""

    @query
    def able_to_send(self, client_ids: tuple[str, ...], now: float) -> tuple[str, ...]:
        """Those of the clients whose budget has room for one more row that they noise themselves."""
        return self._able(self._opened(now), client_ids)

    @query
    def row_steps(self, client_ids: tuple[str, ...], now: float) -> tuple[Step, ...]:
        """Where each of the clients stands in its own schedule of noise before its next row."""
        return tuple(self._opened(now).own_steps(client_ids))

    def set_policies(self, policies: Sequence[SignedPolicy], now: float) -> tuple[str, ...]:
        """Put clients under the ceilings that they signed, durably; why those that are refused are."""
        budget = self._opened(now)
        answers = [budget.set_policy(signed, now=now) for signed in policies]
        return tuple(answer for answer in answers if answer)

    def leave_out(self, now: float) -> int:
        """Leave out the clients whose ceilings have no room for the next release; how many are left out.

        Where clients noise their rows, a release costs nothing, and a client's next row must fit.
        """
        budget = self._opened(now)
        rows = self._row_schedule if self._row_schedule.mu_release > 0.0 else None
        try:
            return budget.leave_out(rows or self._next_mu(budget), now=now)
        except LedgerTakenOver:
            return len(budget.left_out())

    def note_site_ledgers(self, told: Mapping[str, Extension], now: float) -> tuple[str, ...]:
        """Note how far sites' own ledgers are, durably; the clients whose ledgers are older copies."""
        return self._opened(now).note_site_ledgers(told, now=now)

    @query
    def site_heads(self, client_ids: tuple[str, ...], now: float) -> dict[str, Head]:
        """How far the own ledgers of those of the clients are known that have told."""
        return self._opened(now).site_heads(client_ids)

    @query
    def left_out(self, since: int, now: float) -> tuple[str, ...]:
        """Who is left out, in the order in which it happened, without the first `since`."""
        return self._opened(now).left_out(since)

    @query
    def read_only_reason(self, now: float) -> str:
        """Why nothing more is released; empty while a release fits."""
        return self._why_read_only(self._opened(now))

    @query
    def status(self, now: float) -> BudgetStatus:
        """What is left and what was spent."""
        return self._status(self._opened(now))

    @query
    def releases_since(self, head_hash: str, now: float) -> int:
        """Central releases that were charged after the ledger had this head; all, if it is empty."""
        return self._opened(now).releases_since(head_hash)

    @query
    def budget_period(self, now: float) -> int:
        """The number of renewals so far; clients sign their updates for it."""
        return self._opened(now).period

    @query
    def remaining(self, client_id: str, now: float) -> tuple[float, float]:
        """What is left of (epsilon, delta) for one client; (0, 0) once no release or row fits."""
        budget = self._opened(now)
        is_spent = self._status(budget).read_only or not self._able(budget, (client_id,))
        return (0.0, 0.0) if is_spent else budget.remaining(client_id)

    @query
    def ceilings_of(self, client_ids: tuple[str, ...], now: float) -> dict[str, CeilingStanding]:
        """Where those of the clients stand that have a ceiling of their own."""
        return self._opened(now).ceilings_of(client_ids)

    @query
    def was_charged(self, client_id: str, now: float) -> bool:
        """Whether a client's own gossip was ever charged."""
        return self._opened(now).was_charged(client_id)

    def renew(
        self,
        total_epsilon: float,
        total_delta: float,
        now: float,
        operator: str,
        renewal_id: str,
        signature: bytes | None = None,
    ) -> BudgetStatus:
        """Open a new budget period, once for each `renewal_id`; the operator is recorded.

        Raises:
            UsageError: If the operator's signature is needed and `signature` is not that.
        """
        budget = self._opened(now)
        details: dict[str, Any] = {}
        if self._operator_key is not None and not budget.was_renewed(renewal_id):
            status = self._status(budget)
            message = renewal_message(
                status.federation_id, status.period, total_epsilon, total_delta, operator
            )
            signed = signature is not None and IdentityKeyPair.verify_with(
                self._operator_key, message, signature
            )
            if signature is None or not signed:
                raise UsageError(
                    "signature: a renewal of this federation needs the operator's, over "
                    f"renewal_message(total_epsilon, total_delta, operator=...) in budget period "
                    f"{status.period}; {'none was given' if signature is None else 'the one given is not'}"
                )
            details["signature"] = signature.hex()
        budget.renew(
            total_epsilon, total_delta, now=now, operator=operator, renewal_id=renewal_id, details=details
        )
        return self._status(budget)

    def _able(self, budget: DurableBudget, client_ids: tuple[str, ...]) -> tuple[str, ...]:
        schedule, by_mu = self._row_schedule, defaultdict[float, list[str]](list)
        if schedule.is_constant:
            return budget.affordable(client_ids, schedule.mu_release)
        for client_id, step in zip(client_ids, budget.own_steps(client_ids), strict=True):
            by_mu[schedule.mu(step)].append(client_id)
        able = {client for mu, clients in by_mu.items() for client in budget.affordable(clients, mu)}
        return tuple(client_id for client_id in client_ids if client_id in able)

    def _next_mu(self, budget: DurableBudget) -> float:
        return self._schedule.mu(budget.step)

    def _why_read_only(self, budget: DurableBudget) -> str:
        return budget.read_only_reason(self._next_mu(budget))

    def _status(self, budget: DurableBudget) -> BudgetStatus:
        step = budget.step
        mu = self._schedule.mu(step)
        return replace(
            budget.status(mu),
            releases_charged=step.number,
            releases_left=self._schedule.num_left(step),
            next_mu=mu,
        )

    def close(self) -> None:
        """Close the ledger, as the end of the process would."""
        if self._budget is not None:
            self._budget.close()
