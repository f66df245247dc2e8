"""A driver's session with a federation: who is called with what, and the order of things.

Every method ends when its effects are in place, so each call sees what the same driver did before. What a
call does to the federation is decided in the roles; here it is only carried from one to the next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.buffer import Receipt, Rejection
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.privacy.answers import BudgetStatus
from scarcity_ray.roles.handles import ACCOUNTANT, DIRECTORY, GLOBAL, basket_actor
from scarcity_ray.roles.messages import (
    BasketPlace,
    BasketReport,
    ConductReport,
    Layer1Outcome,
    Layer2Outcome,
    Member,
    Registration,
    Rehousing,
    SubmissionResult,
    Whereabouts,
)
from scarcity_ray.roles.statistics import WITHOUT_LAYER2
from scarcity_ray.roles.submission import SubmissionBatch
from scarcity_ray.roles.waiting import WaitingFor, waiting_for
from scarcity_ray.runtime.assembly import Assembly
from scarcity_ray.runtime.calls import RECOVERIES, RoleCalls


class DriverSession(RoleCalls):
    """What one driver does to a federation.

    Args:
        assembly: The federation's roles.
        clock: Gives the time in seconds since the epoch.
    """

    def __init__(self, assembly: Assembly, clock: Callable[[], float]) -> None:
        super().__init__(assembly, clock)
        self._routes: dict[str, tuple[str, int]] = {}
        self._told_parties: dict[str, bytes] | None = None

    def start(self) -> None:
        """Start a new federation's roles, then open its ledger.

        Raises:
            UsageError: If the federation is there already.
            LedgerError: If the ledger cannot be used.
            ActorLost: If a role cannot be started.
        """
        self.assembly.start()
        status: BudgetStatus = self.ask(ACCOUNTANT, "status", self.now())
        if status.read_only:
            self.tell_baskets("set_read_only", True)
        if status.period:
            self.tell_baskets("set_budget_period", status.period)

    def recover(self, *names: str) -> None:
        """As `RoleCalls.recover`; clients are looked up anew afterwards."""
        super().recover(*names)
        self._routes.clear()

    def register(self, members: Sequence[Member]) -> tuple[str, ...]:
        """Register clients; their baskets."""
        registration: Registration = self.call(DIRECTORY, "register", tuple(members), self.now())
        self._house([admission.place for admission in registration.admissions])
        by_slot: dict[int, list[object]] = defaultdict(list)
        for admission in registration.admissions:
            by_slot[admission.place.slot].append(admission)
        answers = self.call_baskets("admit", {slot: (tuple(a),) for slot, a in by_slot.items()})
        identities = {basket: key for answer in answers.values() for basket, key in answer.items()}
        self.call(DIRECTORY, "record_identities", identities)
        for relocation in registration.returned:
            self._move((relocation.client_id,), relocation.source, relocation.target)
        return registration.baskets

    def unregister(self, client_id: str) -> bool:
        """Unregister a client; its buffered updates are withdrawn."""
        place: BasketPlace | None = self.call(DIRECTORY, "unregister", client_id, self.now())
        self._routes.pop(client_id, None)
        if place is None:
            return False
        self.call(basket_actor(place.slot), "dismiss", place.basket_id, client_id)
        return True

    def rehouse(self, rehousing: Rehousing) -> None:
        """Carry out a split or a disband: clients move with all that is theirs."""
        self._house([admission.place for admission in rehousing.admissions])
        source = rehousing.closed
        for admission in rehousing.admissions:
            place = admission.place
            identities = self.call(basket_actor(place.slot), "admit", (admission,))
            self.call(DIRECTORY, "record_identities", identities)
            self._move(tuple(member.client_id for member in admission.members), source, place)
        self._close(source)
        self._routes.clear()

    def current_round(self) -> int:
        """The round of the federation."""
        return int(self.ask(DIRECTORY, "current_round"))

    def budget_period(self) -> int:
        """The budget's period, which clients sign their updates for."""
        return int(self.ask(ACCOUNTANT, "budget_period", self.now()))

    def submit(self, batch: SubmissionBatch) -> tuple[list[Receipt], list[str]]:
        """Send updates to their baskets; receipts in order, and the baskets whose Layer 1 is due.

        A client that is not where it was last seen is looked up again, once.
        """
        receipts: dict[int, Receipt] = {}
        due: set[str] = set()
        pending = list(range(len(batch)))
        for look_up in (False, True):
            routes = self._locate([batch.client_ids[i] for i in pending], look_up)
            by_slot: dict[int, list[int]] = defaultdict(list)
            for index in pending:
                if batch.client_ids[index] in routes:
                    by_slot[routes[batch.client_ids[index]][1]].append(index)
            arguments = {
                slot: (
                    tuple(routes[batch.client_ids[i]][0] for i in indices),
                    batch.take(indices),
                    self.now(),
                )
                for slot, indices in by_slot.items()
            }
            answers: dict[int, SubmissionResult] = self.call_baskets("submit", arguments)
            for slot, answer in answers.items():
                receipts.update(zip(by_slot[slot], answer.receipts, strict=True))
                due.update(answer.due)
            pending = [
                i for i in pending if i not in receipts or receipts[i].reason is Rejection.UNKNOWN_CLIENT
            ]
            if not pending:
                break
        if pending:
            asked = self.current_round() if batch.round_id is None else batch.round_id
            round_id = int(asked) if isinstance(asked, int | np.integer) else -1
            receipts |= dict.fromkeys(pending, Receipt(False, Rejection.UNKNOWN_CLIENT, None, round_id))
            self.call(DIRECTORY, "count_unknown", len(pending))
        return [receipts[i] for i in range(len(batch))], sorted(due)

    def run_layer1(self, baskets: Sequence[str] | None, force: bool) -> list[Layer1Outcome]:
        """Layer 1 wherever it is due, side by side in all basket actors."""
        chosen = None if baskets is None else tuple(baskets)
        answers = self.tell_baskets("run_layer1", chosen, force, self.now())
        return [outcome for slot in sorted(answers) for outcome in answers[slot]]

    def run_layer2(self, force: bool) -> Layer2Outcome:
        """Layer 2 if it is due; a release is told to the baskets, and so is a spent budget."""
        if not self.assembly.has_layer2:
            return Layer2Outcome(None, "Layer 2 is off (layer2.enabled: false)")
        where = self._tell_parties()
        outcome: Layer2Outcome = self.call(GLOBAL, "run", where.places, where.round_id, force, self.now())
        if outcome.model is not None:
            self.latest = outcome.model
            if self.assembly.identity.config.layer2.distribute_to_baskets:
                self.tell_baskets("adopt", outcome.model)
        if outcome.read_only:
            self.tell_baskets("set_read_only", True)
        self.recover(*outcome.lost_roles)
        if outcome.aborted or outcome.dropped:
            self._told_parties = None
        return outcome

    def local_states(self, client_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The local states of clients, those that there are."""
        routes = self._locate(client_ids, fresh=True)
        by_slot: dict[int, list[str]] = defaultdict(list)
        for client_id in sorted(routes):
            by_slot[routes[client_id][1]].append(client_id)
        arguments: dict[int, tuple[object, ...]] = {
            slot: (tuple(routes[c][0] for c in clients), tuple(clients)) for slot, clients in by_slot.items()
        }
        answers = self.ask_baskets("local_states", arguments)
        return {client_id: state for answer in answers.values() for client_id, state in answer.items()}

    def run_gossip(self) -> dict[str, int]:
        """One gossip round everywhere; delivered messages a basket."""
        answers = self.tell_baskets("run_gossip", self.now())
        return {basket: count for answer in answers.values() for basket, count in answer.items()}

    def advance_round(self) -> int:
        """Move every role to the next round."""
        self.report_activity()
        round_id, emptied = self.call(DIRECTORY, "advance_round", self.now())
        for place in emptied:
            self._close(place)
        self.tell_baskets("advance_round", round_id)
        return int(round_id)

    def report_activity(self) -> None:
        """Tell the directory what the basket actors saw."""
        reports = self.tell_baskets("take_activity")
        self.call(DIRECTORY, "note_activity", tuple(reports[slot] for slot in sorted(reports)), self.now())

    def reports(self) -> dict[str, BasketReport]:
        """Counts and public facts of every basket."""
        answers = self.poll_baskets("reports", self.now())
        return {basket: report for answer in answers.values() for basket, report in answer.items()}

    def latest_release(self) -> GlobalMetaModel | None:
        """The last release; None before the first, and without Layer 2."""
        if self.assembly.has_layer2:
            self.latest = self.ask(GLOBAL, "latest") or self.latest
        return self.latest

    def layer2_stats(self) -> Mapping[str, Any]:
        """What Layer 2 counted."""
        return self.ask(GLOBAL, "stats") if self.assembly.has_layer2 else WITHOUT_LAYER2

    def conduct(self) -> dict[str, ConductReport]:
        """How every basket's members stand to its aggregates; nothing where basket models are private."""
        answers = self.poll_baskets("conduct")
        return {basket: report for answer in answers.values() for basket, report in answer.items()}

    def waiting_for(self) -> WaitingFor:
        """What the next global model waits for; asking changes nothing."""
        answers = self.poll_baskets("backlogs", self.now())
        layer2 = self.layer2_stats()
        return waiting_for(
            self.assembly.plan,
            [backlog for slot in sorted(answers) for backlog in answers[slot]],
            None if layer2["since"] is None else self.now() - layer2["since"],
            read_only=self.ask(ACCOUNTANT, "status", self.now()).read_only,
            last_abort=layer2["aborted"],
        )

    def _tell_parties(self) -> Whereabouts:
        """Tell every basket actor the baskets' identity keys, and the last release to those that lack it.

        Told before this driver's first session, whenever the directory's record differs from what was told
        last (new baskets, a split, keys that changed with an actor that came back, also while they are being
        told), and after a session in which a basket was left out, which may have been told otherwise by
        another driver.

        Returns:
            The record that was told.
        """
        layer2 = self.assembly.identity.config.layer2
        where = self.whereabouts()
        for _ in range(RECOVERIES if layer2.use_secure_aggregation else 0):
            identities = {place.basket_id: place.identity for place in where.places if place.identity}
            if identities == self._told_parties:
                break
            held = self.tell_baskets("know_parties", identities)
            self._record_keys(where, {b: key for _, own in held.values() for b, key in own.items()})
            if layer2.distribute_to_baskets:
                latest = self.ask(GLOBAL, "latest")
                behind = [s for s, (version, _) in held.items() if latest and version < latest.version]
                self.call_baskets("adopt", dict.fromkeys(behind, (latest,)))
            self._told_parties = identities
            where = self.whereabouts()
        return where

    def _record_keys(self, where: Whereabouts, own: Mapping[str, bytes]) -> None:
        """Have the directory know the keys that the baskets have.

        It may not: a driver that brings an actor back and dies before it has said so leaves the old ones.
        """
        changed = {
            place.basket_id: own[place.basket_id]
            for place in where.places
            if own.get(place.basket_id, place.identity) != place.identity
        }
        if changed:
            self.call(DIRECTORY, "record_identities", changed)

    def _move(self, client_ids: tuple[str, ...], source: BasketPlace, target: BasketPlace) -> None:
        carries = self.call(basket_actor(source.slot), "take", source.basket_id, client_ids)
        self.call(basket_actor(target.slot), "put", target.basket_id, carries)

    def _close(self, place: BasketPlace) -> None:
        last_seen = self.call(basket_actor(place.slot), "close_basket", place.basket_id)
        self.call(DIRECTORY, "note_activity", (last_seen,), self.now())

    def _house(self, places: Sequence[BasketPlace]) -> None:
        missing = self.assembly.missing(place.slot for place in places)
        if missing:
            budget: BudgetStatus = self.ask(ACCOUNTANT, "status", self.now())
            self.assembly.start_slots(missing, self.whereabouts().round_id, budget)
        self.num_slots = max([self.num_slots, *(place.slot + 1 for place in places)])

    def _locate(self, client_ids: Sequence[str], fresh: bool) -> dict[str, tuple[str, int]]:
        unknown = sorted({c for c in client_ids if fresh or c not in self._routes})
        if unknown:
            for client_id in unknown:
                self._routes.pop(client_id, None)
            self._routes.update(self.ask(DIRECTORY, "locate", tuple(unknown)))
        return {c: self._routes[c] for c in client_ids if c in self._routes}
