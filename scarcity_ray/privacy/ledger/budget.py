"""The budget on disk, or in a database: check, record durably, then allow.

A charge is in the ledger before the caller learns that it is allowed. So a crash at any moment may waste
budget, and never overspends it. Every charge has an id: a charge that is asked for again, also after a
restart, gets its first answer and is charged once. A refusal writes nothing; a smaller charge may still fit.

Guarantees:
    an_allowed_charge_survives_sigkill: At any moment; reopening finds at least all that were allowed.
    a_retried_charge_is_charged_once: Also across reopening, and never for more than was recorded.
    a_charge_of_an_earlier_period_covers_nothing: Asked again after a renewal, it is charged again.
    an_interrupted_charge_is_neither_lost_nor_doubled: Asked again, it is found recorded, or charged then.
    a_restart_continues_the_same_budget: By replaying the ledger; spent epsilon is bitwise the same.
    a_ledger_of_another_accounting_is_refused: Its sums mean something else.
    a_ledger_of_another_unit_is_refused: What it spent protects others than the configuration says.
    a_missing_ledger_is_never_a_fresh_budget: `LedgerMissing`.
    an_older_copy_is_never_continued: Where a newer head is known; `LedgerRolledBack`.
    a_partial_gossip_charge_records_exactly_the_allowed: Others are not charged, and get no permission later.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import PrivacyUnit
from scarcity_ray.errors import LedgerError, LedgerTakenOver, UsageError
from scarcity_ray.privacy.accounting.accountant import PrivacyAccountant
from scarcity_ray.privacy.accounting.modes import Accounting
from scarcity_ray.privacy.ledger.answers import BudgetStatus, Charge
from scarcity_ray.privacy.ledger.chain import Row
from scarcity_ray.privacy.ledger.events import (
    Genesis,
    GossipCharge,
    ReleaseCharge,
    Renewal,
    VoidedRelease,
    pack_gossip,
)
from scarcity_ray.privacy.ledger.ledger import Ledger, Opening
from scarcity_ray.privacy.ledger.replay import NEIGHBOURS, accountant_of, accounting_of, neighbours_of, replay
from scarcity_ray.privacy.ledger.store import address_of, exists
from scarcity_ray.privacy.schedule import Step

_Charged = TypeVar("_Charged", ReleaseCharge, GossipCharge)


class DurableBudget:
    """A `PrivacyAccountant` that remembers through its `Ledger`; made by `open`. Threads may share it."""

    def __init__(self, ledger: Ledger, accountant: PrivacyAccountant, *, is_new: bool = False) -> None:
        self._ledger = ledger
        self._accountant = accountant
        self._is_new = is_new
        self._taken_over = ""
        self._lock = threading.Lock()
        self._began = 0
        for row in ledger.rows():
            self._note(row)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        total_epsilon: float,
        total_delta: float,
        gossip_share: float,
        accounting: Accounting = Accounting.GAUSSIAN_DP,
        unit: PrivacyUnit = PrivacyUnit.CLIENT,
        must_exist: bool,
        now: float,
        **opening: Unpack[Opening],
    ) -> DurableBudget:
        """Continue the budget recorded at `path`, or begin it there.

        The arguments that are not here are those of `Ledger.open`, and so are the errors; but an operator's
        key that is not given is taken as not configured. The whole of `total_delta` serves releases whose mu
        is known.

        Args:
            path: The ledger's file, or the URL of a PostgreSQL database.
            total_epsilon: The claim of the first period, or of the one in force.
            gossip_share: Share of the cap set aside for each client's gossip, in [0, 1].
            accounting: What the ledger adds up, for good.
            unit: Whom its claim protects, for good.
            must_exist: Whether this federation is known to have a ledger.

        Raises:
            LedgerMissing: If the ledger must exist and does not.
            LedgerError: If it states another budget, accounting or unit.
        """
        name = opening.get("name")
        opening.setdefault("operator_key", None)
        asked = Genesis(
            format=1,
            total_epsilon=total_epsilon,
            total_delta=total_delta,
            gossip_share=gossip_share,
            accounting=accounting.value,
            neighbours=NEIGHBOURS[unit],
            name=name,
        )
        accountant = accountant_of(asked)
        address = address_of(path, name)
        if not must_exist and not exists(address):
            made = Ledger.create(address, asked, now=now, operator_key=opening["operator_key"])
            return cls(made, accountant, is_new=True)
        ledger = Ledger.open(address, now=now, **opening)
        try:
            stated = accounting_of(ledger.genesis)
            if stated is not accounting:
                raise LedgerError(
                    f"{address}: the ledger adds up {stated.value} and the configuration (layer2.noise) "
                    f"needs {accounting.value}; what a ledger adds up is chosen when it is made: configure "
                    "the noise that it was made for, or start another federation"
                )
            neighbours = neighbours_of(ledger.genesis)
            if neighbours != NEIGHBOURS[unit]:
                raise LedgerError(
                    f"{address}: the ledger's neighbours are {neighbours!r}, and the configuration "
                    f"(privacy.unit: {unit.value}) needs {NEIGHBOURS[unit]!r}; what was spent protects the "
                    "unit that a ledger was made with: configure that unit, or start another federation"
                )
            budget = cls(ledger, accountant_of(ledger.genesis))
            known, genesis = budget._accountant, ledger.genesis
            first = (genesis.total_epsilon, genesis.total_delta)
            in_force = (known.total_epsilon, known.total_delta)
            if (total_epsilon, total_delta) not in (first, in_force) or gossip_share != known.gossip_share:
                raise LedgerError(
                    f"{address}: the ledger states total_epsilon {in_force[0]}, total_delta {in_force[1]} "
                    f"and gossip_budget_share {known.gossip_share}, the configuration {total_epsilon}, "
                    f"{total_delta} and {gossip_share}; configure what the ledger states, and change the "
                    "totals by renewing the budget"
                )
        except BaseException:
            ledger.close()
            raise
        return budget

    def charge_release(
        self,
        charge_id: str,
        mu: float,
        *,
        now: float,
        details: Mapping[str, object],
        step: Step | None = None,
    ) -> Charge:
        """Charge one central release.

        Args:
            charge_id: The release's own name; asked again, it is given its first answer.
            mu: What the release is charged as (`modes`); for Gaussian noise, sensitivity over sigma.
            now: Seconds since 1970, as in the methods below.
            details: Plain data to record with it (sigma, sensitivity, round), as in the methods below.
            step: Where the budget must stand for a charge that is not recorded yet; None: anywhere.

        Raises:
            UsageError: If the id was recorded for something else.
            LedgerError: If the ledger cannot be written; nothing may be released then.
        """
        with self._current():
            row = self._ledger.find(charge_id)
            if row is not None and isinstance(row.event, VoidedRelease):
                why = "this release was given up, and its name with it"
                return Charge(False, why, self._accountant.epsilon_spent(), self._ledger.head_hash)
            known = self._known(charge_id, ReleaseCharge, mu)
            if known is not None:
                event, head = known
                return Charge(True, "", event.epsilon_spent, head, repeated=True)
            accountant = self._accountant
            if step not in (None, accountant.step):
                why = (
                    f"its noise is planned as release {step.number + 1} of the period, and the ledger stands "
                    f"before release {accountant.step.number + 1}"
                )
                spent = accountant.epsilon_spent()
                return Charge(False, why, spent, self._ledger.head_hash, is_outdated=True)
            if not accountant.check_release(mu):
                return Charge(False, self._why_not(mu), accountant.epsilon_spent(), self._ledger.head_hash)
            spent = accountant.epsilon_spent(release=mu)
            row = self._ledger.append(
                ReleaseCharge(mu, spent, details), charge_id=self._free(charge_id), now=now
            )
            accountant.note_release(mu)
            return Charge(True, "", spent, row.hash)

    def void_release(self, charge_id: str, *, now: float, details: Mapping[str, object]) -> bool:
        """Give a release up before it is charged; from then on it is refused, durably.

        Returns:
            Whether it is given up; False if it was charged before.
        """
        with self._current():
            known = self._ledger.find(charge_id)
            if known is None:
                self._ledger.append(VoidedRelease(details), charge_id=charge_id, now=now)
            return known is None or isinstance(known.event, VoidedRelease)

    def charge_gossip(
        self,
        charge_id: str,
        client_ids: Sequence[str],
        mu: float,
        *,
        now: float,
        details: Mapping[str, object],
    ) -> tuple[str, ...]:
        """Charge one message to each of the clients that can afford it.

        Args:
            charge_id: The round's own name; asked again, those recorded are allowed again, and no others.
            mu: Of one message.

        Returns:
            The clients that may send, in the order given.

        Raises:
            UsageError: If the id was recorded for something else, or a client is named twice.
            LedgerError: If the ledger cannot be written; nobody may send then.
        """
        with self._current():
            accountant = self._accountant
            places = accountant.places(client_ids)
            known = self._known(charge_id, GossipCharge, mu)
            if known is not None:
                return _chosen(client_ids, np.isin(places, known[0].members.places))
            allowed = accountant.affordable_at(places, mu)
            charged = _chosen(client_ids, allowed)
            if not charged:
                return ()
            newcomers = _chosen(client_ids, allowed & (places < 0))
            at = places[allowed]
            at[at < 0] = accountant.num_clients + np.arange(len(newcomers))
            payload = pack_gossip(at, newcomers)
            event = GossipCharge(mu, len(charged), len(client_ids), details, payload)
            self._ledger.append(event, charge_id=self._free(charge_id), now=now)
            accountant.enrol(newcomers)
            accountant.note_gossip(at, mu)
            return charged

    def renew(
        self,
        total_epsilon: float,
        total_delta: float,
        *,
        now: float,
        operator: str,
        renewal_id: str | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        """Begin a new period with new totals: the operator's act, recorded.

        Args:
            operator: Who decided it.
            renewal_id: The act's own name, among those of the charges; asked again, nothing more happens.

        Raises:
            UsageError: If the id was recorded for something else.
        """
        with self._current():
            known = None if renewal_id is None else self._ledger.find(renewal_id)
            if known is not None:
                if not isinstance(known.event, Renewal):
                    raise UsageError(f"renewal_id: {renewal_id!r} is recorded already, as {known.kind}")
                return
            asked = PrivacyAccountant(total_epsilon, total_delta, delta_reserve=0.0)
            event = Renewal(asked.total_epsilon, asked.total_delta, operator, details or None)
            self._note(self._ledger.append(event, charge_id=renewal_id, now=now))

    def read_only_reason(self, next_release_mu: float) -> str:
        """Why the next configured central release cannot be charged, as in `status`; empty if it can."""
        with self._standing():
            return self._why_read_only(next_release_mu)

    def _why_read_only(self, next_release_mu: float) -> str:
        fits = self._accountant.check_release(next_release_mu)
        return self._taken_over or ("" if fits else "the privacy budget is spent")

    def status(self, next_release_mu: float) -> BudgetStatus:
        """The state of the budget, given the mu of the next configured central release.

        A ledger that was taken over is no error here: what it said last stands, and is read-only.
        """
        with self._standing():
            accountant = self._accountant
            why = self._why_read_only(next_release_mu)
            read_only = why != ""
            epsilon, delta = (0.0, 0.0) if read_only else accountant.remaining()
            return BudgetStatus(
                remaining_epsilon=epsilon,
                remaining_delta=delta,
                epsilon_spent=accountant.epsilon_spent(),
                lifetime_epsilon=accountant.lifetime_epsilon(),
                read_only=read_only,
                total_epsilon=accountant.total_epsilon,
                total_delta=accountant.total_delta,
                period=accountant.period,
                head_hash=self._ledger.head_hash,
                ledger_path=str(self._ledger.path),
                accounting=accountant.accounting,
                read_only_reason=why,
                taken_over=self._taken_over != "",
                federation_id=self._ledger.federation_id,
                incarnation=self._ledger.standing.incarnation,
                run=self._ledger.standing.run,
                created=self._ledger.created,
                is_new=self._is_new,
            )

    @property
    def step(self) -> Step:
        """Where the budget period stands before its next release."""
        with self._standing():
            return self._accountant.step

    @property
    def period(self) -> int:
        """0, and one more for each renewal."""
        with self._current():
            return self._accountant.period

    def remaining(self, client_id: str) -> tuple[float, float]:
        """The (epsilon, delta) left for one client."""
        with self._standing():
            return self._accountant.remaining(client_id)

    def was_charged(self, client_id: str) -> bool:
        """Whether the client's own gossip was ever charged, in any period."""
        with self._standing():
            return bool(self._accountant.places([client_id])[0] >= 0)

    def was_renewed(self, renewal_id: str) -> bool:
        """Whether this renewal is recorded."""
        with self._current():
            known = self._ledger.find(renewal_id)
            return known is not None and isinstance(known.event, Renewal)

    @property
    def head_hash(self) -> str:
        """The ledger's newest hash, hexadecimal."""
        with self._lock:
            return self._ledger.head_hash

    def close(self) -> None:
        """Let go of the ledger."""
        self._ledger.close()

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Holds the lock, after an interrupted charge was settled: it may have been recorded."""
        with self._lock:
            try:
                self._settle()
                yield
            except LedgerTakenOver as error:
                self._taken_over = str(error)
                raise

    @contextmanager
    def _standing(self) -> Iterator[None]:
        """As `_current`, for what may still be answered once the ledger was taken over."""
        with self._lock:
            if not self._taken_over:
                try:
                    self._settle()
                    self._ledger.look()
                except LedgerTakenOver as error:
                    self._taken_over = str(error)
            yield

    def _settle(self) -> None:
        if self._taken_over:
            raise LedgerTakenOver(self._taken_over)
        interrupted = self._ledger.settle()
        if interrupted is not None:
            self._note(interrupted)

    def _note(self, row: Row) -> None:
        replay(self._accountant, row, self._ledger.path)
        if isinstance(row.event, Renewal):
            self._began = row.seq

    def _why_not(self, mu: float) -> str:
        accountant = self._accountant
        alone = accountant.accounting.epsilon_of(mu, accountant.total_delta)
        return (
            f"a release of {accountant.accounting.in_words(mu)}, by itself epsilon {alone:.4g} at delta "
            f"{accountant.total_delta:g}, does not fit into what is left of the privacy budget"
        )

    def _known(self, charge_id: str, kind: type[_Charged], mu: float) -> tuple[_Charged, str] | None:
        """This charge as it was recorded in this period, if it was, and the hash of its row."""
        for name in (charge_id, self._again(charge_id)):
            row = self._ledger.find(name)
            if row is None or (row.seq < self._began and isinstance(row.event, kind)):
                continue
            event = row.event
            if isinstance(event, kind) and event.mu == mu:
                return event, row.hash
            mus = ""
            if isinstance(event, ReleaseCharge | GossipCharge):
                mus = f" with {self._accountant.accounting.in_words(event.mu)}"
            raise UsageError(
                f"charge_id: {charge_id!r} is recorded already, as {row.kind}{mus}; "
                "give each charge an id of its own"
            )
        return None

    def _free(self, charge_id: str) -> str:
        """The name that a charge is recorded under: its own, unless an earlier period has it."""
        return charge_id if self._ledger.find(charge_id) is None else self._again(charge_id)

    def _again(self, charge_id: str) -> str:
        return f"{charge_id} in period {self._accountant.period}"


def _chosen(client_ids: Sequence[str], mask: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(itertools.compress(client_ids, mask.tolist()))
