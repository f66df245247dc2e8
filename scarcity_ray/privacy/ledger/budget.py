"""The budget on disk, or in a database: check, record durably, then allow.

A charge is in the ledger before the caller learns that it is allowed. So a crash at any moment may waste
budget, and never overspends it. Every charge has an id: a charge that is asked for again, also after a
restart, gets its first answer and is charged once. A refusal writes nothing; a smaller charge may still fit.

Guarantees:
    an_allowed_charge_survives_sigkill: At any moment; reopening finds at least all that were allowed.
    a_retried_charge_is_charged_once: Also across reopening, and never for more than was recorded.
    a_charge_of_an_earlier_period_covers_nothing: Asked again after a renewal, it is charged again.
    a_release_is_charged_or_given_up_never_both: Whatever other names are charged.
    a_release_is_charged_as_one_sum: In every period, as the sum of the same baskets.
    an_interrupted_charge_is_neither_lost_nor_doubled: Asked again, it is found recorded, or charged then.
    a_restart_continues_the_same_budget: By replaying the ledger; spent epsilon is bitwise the same.
    a_ledger_of_another_accounting_is_refused: Its sums mean something else.
    a_ledger_of_another_unit_is_refused: What it spent protects others than the configuration says.
    a_missing_ledger_is_never_a_fresh_budget: `LedgerMissing`.
    an_older_copy_is_never_continued: Where a newer head is known; `LedgerRolledBack`.
    a_partial_gossip_charge_records_exactly_the_allowed: Others are not charged, and get no permission later.
    a_release_that_would_pass_a_ceiling_is_refused: Until who has reached it is left out, on record.
    a_release_is_refused_to_whoever_does_not_know_who_is_left_out: It may hold rows that it does not charge.
    a_site_ledger_that_does_not_go_on_where_it_was_is_told_of: A restored backup, or another file.
    a_looser_policy_and_a_forged_one_are_refused: Also one that was valid before, and under another key.
"""

from __future__ import annotations

import bisect
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import PrivacyUnit
from scarcity_ray.errors import LedgerError, LedgerTakenOver, UsageError
from scarcity_ray.privacy.accounting.accountant import PrivacyAccountant
from scarcity_ray.privacy.accounting.modes import Accounting
from scarcity_ray.privacy.ledger.answers import NAMED, BudgetStatus, CeilingStanding, Charge
from scarcity_ray.privacy.ledger.chain import Row
from scarcity_ray.privacy.ledger.events import (
    Genesis,
    GossipCharge,
    LeftOut,
    PolicyGiven,
    ReleaseCharge,
    Renewal,
    RowCharge,
    SiteHeads,
    VoidedRelease,
    pack_gossip,
)
from scarcity_ray.privacy.ledger.ledger import Ledger, Opening
from scarcity_ray.privacy.ledger.replay import NEIGHBOURS, accountant_of, accounting_of, neighbours_of, replay
from scarcity_ray.privacy.ledger.store import address_of, exists
from scarcity_ray.privacy.schedule import NoiseSchedule, Step
from scarcity_ray_client.errors import shown
from scarcity_ray_client.policy import SignedPolicy
from scarcity_ray_client.site_ledger import Extension, Head

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
        self._policies: dict[str, SignedPolicy] = {}
        self._left_out_rows: list[tuple[int, int]] = []
        self._site_heads: dict[str, Head] = {}
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
                    f"and gossip_budget_share {known.gossip_share} (1 where privacy.noise is site), the "
                    f"configuration {total_epsilon}, "
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
        num_left_out: int | None = None,
    ) -> Charge:
        """Charge one central release, to all clients but those that are left out at ceilings of their own.

        A release may hold rows of clients that are in at the moment of its charge, and of no others. So the
        caller says how many were left out when it fixed whose rows the release holds. The list only grows:
        if it is as long as then, it is the same, and everybody whose row the release may hold is charged.

        Args:
            charge_id: The release's own name; asked again, it is given its first answer.
            mu: What the release is charged as (`modes`); for Gaussian noise, sensitivity over sigma.
            now: Seconds since 1970, as in the methods below.
            details: Plain data to record with it (sigma, sensitivity, round), as in the methods below.
            step: Where the budget must stand for a charge that is not recorded yet; None: anywhere.
            num_left_out: How many clients the caller knows to be left out (`leave_out`); None: it takes the
                answer's number, and sees to it itself.

        Raises:
            UsageError: If the id was recorded for something else.
            LedgerError: If the ledger cannot be written; nothing may be released then.
        """
        with self._current():
            row = self._ledger.find(charge_id)
            if row is not None and isinstance(row.event, VoidedRelease):
                why = "this release was given up, and its name with it"
                spent = self._accountant.epsilon_spent()
                return Charge(False, why, spent, self._ledger.head_hash, is_outdated=True)
            known = self._known(charge_id, ReleaseCharge, mu)
            charged = (
                row.event.details if row is not None and isinstance(row.event, ReleaseCharge) else details
            )
            dropped = _dropped(charged)
            if known is not None:
                event, seq, head = known
                left_out, spent = self._num_left_out(seq), event.epsilon_spent
                return Charge(True, "", spent, head, repeated=True, num_left_out=left_out, dropped=dropped)
            accountant = self._accountant
            if dropped != _dropped(details):
                why = "this release was charged before, as the sum of other baskets"
                spent = accountant.epsilon_spent()
                return Charge(False, why, spent, self._ledger.head_hash, is_outdated=True)
            if step not in (None, accountant.step):
                why = (
                    f"its noise is planned as release {step.number + 1} of the period, and the ledger stands "
                    f"before release {accountant.step.number + 1}"
                )
                spent = accountant.epsilon_spent()
                return Charge(False, why, spent, self._ledger.head_hash, is_outdated=True)
            if why := self._unheeded(mu, num_left_out):
                spent = accountant.epsilon_spent()
                return Charge(False, why, spent, self._ledger.head_hash, is_outdated=True)
            if not accountant.check_release(mu):
                return Charge(False, self._why_not(mu), accountant.epsilon_spent(), self._ledger.head_hash)
            spent = accountant.epsilon_spent(release=mu)
            event = ReleaseCharge(mu, spent, details)
            row = self._ledger.append(event, charge_id=self._free(charge_id), now=now)
            accountant.note_release(mu)
            left_out = len(accountant.ceilings.left_out)
            return Charge(True, "", spent, row.hash, num_left_out=left_out, dropped=dropped)

    def set_policy(self, signed: SignedPolicy, *, now: float) -> str:
        """Put a client under the ceiling that it has signed, durably; a stricter one replaces it later.

        The first policy fixes the key: another is refused for good, so that nobody who registers the client
        anew can loosen its ceiling. The same policy given again changes nothing.

        Returns:
            Why it is refused, as a sentence; empty if it is in force.
        """
        with self._current():
            policy, known = signed.policy, self._policies.get(signed.policy.client_id)
            if known == signed:
                return ""
            if why := self._policy_refusal(signed, known):
                return f"the policy of client {policy.client_id!r} is refused: {why}"
            self._note(self._ledger.append(PolicyGiven.of(signed), now=now))
            return ""

    def leave_out(self, mu: float | NoiseSchedule, *, now: float) -> int:
        """Leave out, durably and for good, the clients whose ceilings have no room for the next charge.

        To be called before it is fixed whose rows a release holds.

        Args:
            mu: Of the next release, or where a client is charged for rows of its own, their schedule: each
                stands at a step of its own.

        Returns:
            How many are left out, with those of before.
        """
        with self._current():
            accountant = self._accountant
            if isinstance(mu, NoiseSchedule):
                self._leave_out(accountant.ceilings.reached_by(accountant.next_own(mu)), mu.mu_release, now)
            else:
                self._leave_out(accountant.ceilings.reached_by(mu), mu, now)
            return len(self._accountant.ceilings.left_out)

    def left_out(self, since: int = 0) -> tuple[str, ...]:
        """The clients that are left out, in the order in which it happened, without the first `since`."""
        with self._standing():
            return tuple(self._accountant.ceilings.left_out[since:])

    def note_site_ledgers(self, told: Mapping[str, Extension], *, now: float) -> tuple[str, ...]:
        """Note how far sites' own ledgers are, durably, if each goes on where it was known to be.

        Returns:
            The clients whose ledgers do not, sorted: older copies, or other files. Nothing changes for them.
        """
        with self._current():
            ahead = {c: self._site_heads.get(c, Head()).extended(told[c]) for c in sorted(told)}
            heads = {c: (head.num_rows, head.head.hex()) for c, head in ahead.items() if head is not None}
            news = {c: head for c, head in heads.items() if ahead[c] != self._site_heads.get(c)}
            if news:
                self._note(self._ledger.append(SiteHeads(news), now=now))
            return tuple(client for client, head in ahead.items() if head is None)

    def site_heads(self, client_ids: Iterable[str]) -> dict[str, Head]:
        """How far the own ledgers of those of the clients are known that have told."""
        with self._standing():
            return {c: self._site_heads[c] for c in client_ids if c in self._site_heads}

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

    def dropped_from(self, charge_id: str) -> tuple[str, ...]:
        """The baskets that are not in the sum of a release, as it was charged; none if it was not."""
        with self._current():
            known = self._ledger.find(charge_id)
            if known is None or not isinstance(known.event, ReleaseCharge):
                return ()
            return _dropped(known.event.details)

    def charge_gossip(
        self,
        charge_id: str,
        client_ids: Sequence[str],
        mu: float,
        *,
        now: float,
        details: Mapping[str, object],
        reserve: float = 0.0,
    ) -> tuple[str, ...]:
        """Charge one message to each of the clients that can afford it.

        Where releases cost nothing, a client whose own ceiling has no room for the message is left out.

        Args:
            charge_id: The round's own name; asked again, those recorded are allowed again, and no others.
            mu: Of one message.
            reserve: The mu of the next release, which must still fit under the ceiling of each client that
                is charged: its row may lie in an aggregate already.

        Returns:
            The clients that may send, in the order given.

        Raises:
            UsageError: If the id was recorded for something else, or a client is named twice.
            LedgerError: If the ledger cannot be written; nobody may send then.
        """
        return self._charge_each(GossipCharge, charge_id, client_ids, mu, now, details, reserve)

    def charge_rows(
        self,
        charge_id: str,
        client_ids: Sequence[str],
        mu: float,
        *,
        now: float,
        details: Mapping[str, object],
        step: Step | None = None,
    ) -> tuple[str, ...]:
        """Charge one row, which it noises itself, to each of the clients that can afford it.

        Arguments, result and errors are as in `charge_gossip`. One charge covers one draw of noise: asked
        again, its answer allows to send again what was drawn, never to draw again.

        Args:
            step: Where a client must stand to be charged, unless it was under this id; None: anywhere.
        """
        return self._charge_each(RowCharge, charge_id, client_ids, mu, now, details, 0.0, step)

    def own_steps(self, client_ids: Sequence[str]) -> list[Step]:
        """Where each of the distinct clients stands before its next charge of its own."""
        with self._standing():
            return self._accountant.own_steps(client_ids)

    def affordable(self, client_ids: Sequence[str], mu: float) -> tuple[str, ...]:
        """Those of the clients whose own budget has room for one more charge of `mu`, in the order given."""
        with self._standing():
            return _chosen(client_ids, self._accountant.affordable_gossip(client_ids, mu))

    def _charge_each(
        self,
        kind: type[GossipCharge],
        charge_id: str,
        client_ids: Sequence[str],
        mu: float,
        now: float,
        details: Mapping[str, object],
        reserve: float,
        step: Step | None = None,
    ) -> tuple[str, ...]:
        with self._current():
            accountant = self._accountant
            places = accountant.places(client_ids)
            known = self._known(charge_id, kind, mu)
            if known is not None:
                return _chosen(client_ids, np.isin(places, known[0].members.places))
            stands = np.ones(len(client_ids), np.bool_)
            if step is not None:
                stands = np.array([own == step for own in accountant.own_steps(client_ids)], np.bool_)
            allowed = accountant.affordable_at(places, mu, reserve=reserve) & stands
            if reserve == 0.0:
                stuck = {*accountant.ceilings.reached_by(mu)}
                short = [client in stuck for client in client_ids]
                self._leave_out(_chosen(client_ids, stands & short), mu, now)
            charged = _chosen(client_ids, allowed)
            if not charged:
                return ()
            newcomers = _chosen(client_ids, allowed & (places < 0))
            at = places[allowed]
            at[at < 0] = accountant.num_clients + np.arange(len(newcomers))
            payload = pack_gossip(at, newcomers)
            event = kind(mu, len(charged), len(client_ids), details, payload)
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

    def releases_since(self, head_hash: str) -> int:
        """Central releases that were charged after the ledger had this head; all, if it is empty."""
        with self._standing():
            counting, number = not head_hash, 0
            for row in self._ledger.rows():
                number += counting and isinstance(row.event, ReleaseCharge)
                counting = counting or row.hash == head_hash
            return number

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
                num_ceilings=len(accountant.ceilings),
                num_left_out=len(accountant.ceilings.left_out),
                left_out=tuple(accountant.ceilings.left_out[:NAMED]),
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
        """The (epsilon, delta) left for one client, under its own ceiling too; (0, 0) once it is left out."""
        with self._standing():
            own = self._accountant.left_under_ceiling(client_id)
            epsilon, delta = self._accountant.remaining(client_id)
            return min(epsilon, own), delta if own > 0.0 else 0.0

    def ceilings_of(self, client_ids: Iterable[str]) -> dict[str, CeilingStanding]:
        """Where those of the clients stand that have a ceiling of their own."""
        with self._standing():
            found = ((client_id, self._accountant.ceiling_of(client_id)) for client_id in client_ids)
            return {
                client_id: CeilingStanding(*standing) for client_id, standing in found if standing is not None
            }

    def was_charged(self, client_id: str) -> bool:
        """Whether the client's own gossip was ever charged, in any period, or it has a ceiling."""
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
        if self._ledger.doubt is not None and (interrupted := self._ledger.settle()) is not None:
            self._note(interrupted)

    def _note(self, row: Row) -> None:
        replay(self._accountant, row, self._ledger.path)
        match row.event:
            case Renewal():
                self._began = row.seq
            case PolicyGiven(client_id=client_id, signed=signed):
                self._policies[client_id] = signed
            case SiteHeads(heads=heads):
                known = {client: Head(rows, bytes.fromhex(head)) for client, (rows, head) in heads.items()}
                self._site_heads |= known
            case LeftOut():
                self._left_out_rows.append((row.seq, len(self._accountant.ceilings.left_out)))

    def _leave_out(self, clients: Sequence[str], mu: float, now: float) -> None:
        if clients:
            self._note(self._ledger.append(LeftOut(tuple(clients), mu), now=now))

    def _num_left_out(self, seq: int) -> int:
        """How many were left out when the row of this number was written."""
        before = bisect.bisect_left(self._left_out_rows, (seq, 0))
        return self._left_out_rows[before - 1][1] if before else 0

    def _unheeded(self, mu: float, num_left_out: int | None) -> str:
        """Whose ceiling a release does not heed, in a sentence; empty if it heeds all."""
        ceilings = self._accountant.ceilings
        if num_left_out not in (None, len(ceilings.left_out)):
            return (
                f"{len(ceilings.left_out)} clients are left out at their own ceilings, and the release was "
                f"prepared when there were {num_left_out}: it may hold rows of the others"
            )
        stuck = ceilings.reached_by(mu)
        if not stuck:
            return ""
        return (
            f"the release would pass the ceilings of {len(stuck)} clients ({shown(list(stuck))}), which are "
            "not left out yet"
        )

    def _policy_refusal(self, signed: SignedPolicy, known: SignedPolicy | None) -> str:
        """Why a policy is not taken into the ledger; empty if it is."""
        policy, neighbours = signed.policy, neighbours_of(self._ledger.genesis)
        if not signed.is_valid:
            return "its signature is not its key's"
        if policy.federation_id not in ("", self._ledger.federation_id):
            return f"it is for federation {policy.federation_id}, and this is {self._ledger.federation_id}"
        if NEIGHBOURS[PrivacyUnit(policy.unit)] != neighbours:
            return f"its unit is {policy.unit}, and the ledger's neighbours are {neighbours!r}"
        if known is None:
            return ""
        if known.public_key != signed.public_key:
            return "its key is another than that of the policy in force, which only the same key may replace"
        if policy.loosens(known.policy):
            return (
                f"it allows more than the one in force, epsilon {known.policy.lifetime_epsilon:g} at delta "
                f"{known.policy.delta:g}; only a stricter one replaces it"
            )
        return ""

    def _why_not(self, mu: float) -> str:
        accountant = self._accountant
        alone = accountant.accounting.epsilon_of(mu, accountant.total_delta)
        return (
            f"a release of {accountant.accounting.in_words(mu)}, by itself epsilon {alone:.4g} at delta "
            f"{accountant.total_delta:g}, does not fit into what is left of the privacy budget"
        )

    def _known(self, charge_id: str, kind: type[_Charged], mu: float) -> tuple[_Charged, int, str] | None:
        """This charge as it was recorded in this period, if it was, with its row's number and hash."""
        row = self._ledger.find(charge_id)
        if row is not None and row.seq < self._began and isinstance(row.event, kind):
            row = self._ledger.find(self._again(charge_id))
        if row is None:
            return None
        event = row.event
        if isinstance(event, kind) and event.mu == mu:
            return event, row.seq, row.hash
        mus = ""
        if isinstance(event, ReleaseCharge | GossipCharge):
            mus = f" with {self._accountant.accounting.in_words(event.mu)}"
        raise UsageError(
            f"charge_id: {charge_id!r} is recorded already, as {row.kind}{mus}; "
            "give each charge an id of its own"
        )

    def _free(self, charge_id: str) -> str:
        """The name that a charge is recorded under: its own, unless an earlier period has it."""
        return charge_id if self._ledger.find(charge_id) is None else self._again(charge_id)

    def _again(self, charge_id: str) -> str:
        return f"{charge_id} in period {self._accountant.period}"


def _chosen(client_ids: Sequence[str], mask: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(itertools.compress(client_ids, mask.tolist()))


def _dropped(details: object) -> tuple[str, ...]:
    """The baskets that a release's details name as not in its sum."""
    named = details.get("dropped") if isinstance(details, Mapping) else None
    return tuple(sorted(map(str, named))) if isinstance(named, list | tuple) else ()
