"""A driver's session with a federation: who is called with what, and the order of things.

Every method ends when its effects are in place, so each call sees what the same driver did before. What a
call does to the federation is decided in the roles; here it is only carried from one to the next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.basket_host import BasketHost
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.global_aggregator import GlobalAggregator
from scarcity_ray.actors.messages import Layer2Outcome, PartyKnowledge, Registry, Whereabouts
from scarcity_ray.actors.names import ACCOUNTANT, DIRECTORY, GLOBAL, basket_actor
from scarcity_ray.actors.unattended_signing import objection
from scarcity_ray.baskets import Receipt, Rejection
from scarcity_ray.baskets.reports import BasketReport, Layer1Outcome, Member, ReputationReport
from scarcity_ray.baskets.submission import SubmissionBatch
from scarcity_ray.errors import UsageError
from scarcity_ray.federation.calls import RECOVERIES, logger
from scarcity_ray.federation.operations import Operations
from scarcity_ray.federation.statistics import WITHOUT_LAYER2
from scarcity_ray.federation.supervisor import Assembly
from scarcity_ray.federation.waiting import WaitingFor, waiting_for
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.privacy.ledger.answers import BudgetStatus
from scarcity_ray.runtime.rpc import Call
from scarcity_ray.secagg import Roster


class DriverSession(Operations):
    """What one driver does to a federation.

    Args:
        assembly: The federation's roles.
        clock: Gives the time in seconds since the epoch.

    """

    def __init__(self, assembly: Assembly, clock: Callable[[], float]) -> None:
        super().__init__(assembly, clock)
        self._routes: dict[str, tuple[str, int]] = {}
        self._told_registry: Registry | None = None
        self._told_taken_over = False
        self.told_period: int | None = None
        self._signed: tuple[Roster, ...] = ()

    def start(self) -> BudgetStatus:
        """Open a new federation's ledger through its accountant, which was started, and start the others.

        Returns:
            Where the budget stands at the start.

        Raises:
            LedgerError: If the ledger cannot be used.
            ActorLost: If a role cannot be started.
        """
        opened = Call(Accountant.status, self.now()).send(self.assembly, ACCOUNTANT).result()
        self.assembly.ledger_head = opened.head_hash
        self.assembly.start(opened)
        self.told_period = opened.period
        return opened

    def budget(self) -> BudgetStatus:
        """Where the budget stands; baskets are told once the ledger was taken over."""
        status = self.ask(ACCOUNTANT, Accountant.status, self.now())
        self.assembly.ledger_head = status.head_hash
        if status.taken_over and not self._told_taken_over:
            self._told_taken_over = True
            self.tell_baskets(BasketHost.set_read_only, True)
        return status

    def recover(self, *names: str) -> None:
        """As `RoleCalls.recover`; clients are looked up anew afterwards."""
        super().recover(*names)
        self._routes.clear()

    def register(self, members: Sequence[Member]) -> tuple[str, ...]:
        """Register clients; their baskets."""
        return self.operate(lambda now: Call(Directory.register, tuple(members), now))

    def unregister(self, client_id: str) -> bool:
        """Unregister a client; its buffered updates are withdrawn."""
        self._routes.pop(client_id, None)
        return self.operate(lambda now: Call(Directory.unregister, client_id, now))

    def split(self, basket_id: str) -> tuple[str, str]:
        """Split a basket; the ids of its halves."""
        halves = self.operate(lambda now: Call(Directory.split, basket_id, now))
        self._routes.clear()
        return halves

    def disband(self, basket_id: str) -> None:
        """Close a basket; its clients go to others of their domain."""
        self.operate(lambda now: Call(Directory.disband, basket_id, now))
        self._routes.clear()

    def current_round(self) -> int:
        """The round of the federation."""
        return self.ask(DIRECTORY, Directory.current_round)

    def budget_period(self) -> int:
        """The budget's period, which clients sign their updates for.

        Baskets are told if this driver has not told them: who renewed the budget may have died before.
        """
        period = self.ask(ACCOUNTANT, Accountant.budget_period, self.now())
        if period != self.told_period:
            self.tell_baskets(BasketHost.set_budget_period, period)
            self.told_period = period
        return period

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
            calls = {
                slot: Call(
                    BasketHost.submit,
                    tuple(routes[batch.client_ids[i]][0] for i in indices),
                    batch.take(indices),
                    self.now(),
                )
                for slot, indices in by_slot.items()
            }
            for slot, answer in self.call_baskets(calls).items():
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
            self.call(DIRECTORY, Directory.count_unknown, len(pending))
        return [receipts[i] for i in range(len(batch))], sorted(due)

    def run_layer1(self, baskets: Sequence[str] | None, force: bool) -> list[Layer1Outcome]:
        """Layer 1 wherever it is due, side by side in all basket actors."""
        chosen = None if baskets is None else tuple(baskets)
        answers = self.tell_baskets(BasketHost.run_layer1, chosen, force, self.now())
        return [outcome for slot in sorted(answers) for outcome in answers[slot]]

    def run_layer2(self, force: bool) -> Layer2Outcome:
        """Layer 2 if it is due; a release is told to the baskets, and so is a spent budget."""
        if not self.assembly.has_layer2:
            return Layer2Outcome(None, "Layer 2 is off (layer2.enabled: false)")
        where, roster = self._tell_parties()
        if roster is None and self.assembly.identity.config.layer2.use_secure_aggregation:
            return Layer2Outcome(None, "no roster is signed yet: see `scarcity-ray roster sign`")
        # Until the baskets know of the release: who stops in between tells them all anew.
        told, self._told_registry = self._told_registry, None
        outcome = self.call(
            GLOBAL, GlobalAggregator.run, where.places, where.round_id, force, self.now(), roster
        )
        if outcome.model is not None:
            self.latest = outcome.model
            if self.assembly.identity.config.layer2.distribute_to_baskets:
                self.tell_baskets(BasketHost.adopt, outcome.model)
        if outcome.read_only:
            self.tell_baskets(BasketHost.set_read_only, True)
        self.recover(*outcome.lost_roles)
        if not (outcome.aborted or outcome.dropped):
            self._told_registry = told
        return outcome

    def local_states(self, client_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The local states of clients, those that there are."""
        routes = self._locate(client_ids, fresh=True)
        by_slot: dict[int, list[str]] = defaultdict(list)
        for client_id in sorted(routes):
            by_slot[routes[client_id][1]].append(client_id)
        calls = {
            slot: Call(BasketHost.local_states, tuple(routes[c][0] for c in clients), tuple(clients))
            for slot, clients in by_slot.items()
        }
        answers = self.ask_baskets(calls)
        return {client_id: state for answer in answers.values() for client_id, state in answer.items()}

    def run_gossip(self) -> dict[str, int]:
        """One gossip round everywhere; delivered messages a basket."""
        answers = self.tell_baskets(BasketHost.run_gossip, self.now())
        return {basket: count for answer in answers.values() for basket, count in answer.items()}

    def advance_round(self) -> int:
        """Move every role to the next round."""
        self.report_activity()
        return self.operate(lambda now: Call(Directory.advance_round, now))

    def report_activity(self) -> None:
        """Tell the directory what the basket actors saw; counts die with a driver that stops in between."""
        reports = self.tell_baskets(BasketHost.take_activity)
        seen = tuple(reports[slot] for slot in sorted(reports))
        self.call(DIRECTORY, Directory.note_activity, seen, self.now())

    def reports(self) -> dict[str, BasketReport]:
        """Counts and public facts of every basket."""
        answers = self.poll_baskets(BasketHost.reports, self.now())
        return {basket: report for answer in answers.values() for basket, report in answer.items()}

    def latest_release(self) -> GlobalMetaModel | None:
        """The last release; None before the first, and without Layer 2."""
        if self.assembly.has_layer2:
            self.latest = self.ask(GLOBAL, GlobalAggregator.latest) or self.latest
        return self.latest

    def layer2_stats(self) -> Mapping[str, Any]:
        """What Layer 2 counted."""
        return self.ask(GLOBAL, GlobalAggregator.stats) if self.assembly.has_layer2 else WITHOUT_LAYER2

    def conduct(self) -> dict[str, ReputationReport]:
        """How every basket's members stand to its aggregates; nothing where basket models are private."""
        answers = self.poll_baskets(BasketHost.conduct)
        return {basket: report for answer in answers.values() for basket, report in answer.items()}

    def waiting_for(self) -> WaitingFor:
        """What the next global model waits for; asking changes nothing."""
        answers = self.poll_baskets(BasketHost.backlogs, self.now())
        layer2 = self.layer2_stats()
        budget = self.ask(ACCOUNTANT, Accountant.status, self.now())
        return waiting_for(
            self.assembly.plan,
            [backlog for slot in sorted(answers) for backlog in answers[slot]],
            None if layer2["since"] is None else self.now() - layer2["since"],
            registered=self.ask(DIRECTORY, Directory.registered, self.operator is not None),
            read_only=budget.read_only,
            taken_over=budget.read_only_reason if budget.taken_over else "",
            last_abort=layer2["aborted"],
        )

    def registry(self) -> Registry:
        """Who is registered; a new roster is signed where this driver holds the operator's identity.

        It is held against what the basket actors state (`actors.unattended_signing`); one that is not what
        they state is not signed, and that is a fault. Without masks nobody need be registered: it is empty.
        """
        if not self.assembly.identity.config.layer2.use_secure_aggregation:
            return Registry(())
        registry = self.call(DIRECTORY, Directory.registry)
        if registry.draft is None or self.operator is None:
            return registry
        why = ""
        for _ in range(RECOVERIES):
            statements = self.poll_baskets(BasketHost.statement)
            where = self.whereabouts()
            self._record_keys(where, {slot: said.keys for slot, said in statements.items()})
            registry = self.call(DIRECTORY, Directory.registry)
            if registry.draft is None:
                return registry
            seen = (*registry.rosters, *self._signed)
            why = objection(registry.draft, statements.values(), seen, self.operator.public_bytes)
            if not why:
                self._signed = (registry.draft.signed(self.operator),)
                self.adopt_roster(self._signed[0])
                return self.call(DIRECTORY, Directory.registry)
        loss = f"the next roster is not signed: {why}; read it, and sign it with `scarcity-ray roster sign`"
        if loss not in self.faults:
            self.faults.append(loss)
            logger.warning(loss)
        return registry

    def adopt_roster(self, roster: Roster) -> None:
        """Have the directory take the next roster with the operator's signature.

        Raises:
            UsageError: If it is not the next one, or not signed by the operator of the config.
        """
        refusal = self.call(DIRECTORY, Directory.adopt_roster, roster)
        if refusal:
            raise UsageError(f"this roster is not adopted: {refusal}")

    def _tell_parties(self) -> tuple[Whereabouts, Roster | None]:
        """Tell every basket actor who is registered, and the last release to those that lack it.

        Told before this driver's first session, whenever the directory's roster differs from what was told
        last (new baskets, a split, keys that changed with an actor that came back, also while they are being
        told), after a session in which a basket was left out, which may have been told otherwise by another
        driver, and after one that this driver has not seen to its end.

        Returns:
            Where those baskets are that may take part, and the newest roster; None without masks, and before
            an operator has signed one.
        """
        layer2 = self.assembly.identity.config.layer2
        where, registry = self.whereabouts(), self.registry()
        for turn in range(RECOVERIES):
            if registry == self._told_registry:
                break
            held = self.tell_baskets(
                BasketHost.know_parties, registry.rosters, registry.endorsements, registry.life
            )
            # The last time, whoever states new keys must do with the roster that all are told.
            is_news = turn < RECOVERIES - 1 and self._learn(where, held)
            if not is_news:
                self._bring_up(held, registry)
            if layer2.distribute_to_baskets:
                latest = self.ask(GLOBAL, GlobalAggregator.latest)
                behind = [s for s, known in held.items() if latest and known.version < latest.version]
                if latest is not None:
                    self.call_baskets(dict.fromkeys(behind, Call(BasketHost.adopt, latest)))
            self._told_registry = registry
            where, registry = self.whereabouts(), self.registry()
        if not layer2.use_secure_aggregation:
            return where, None
        known = registry.known
        places = tuple(place for place in where.places if known.get(place.basket_id) == place.identity)
        return replace(where, places=places), registry.newest

    def _bring_up(self, held: Mapping[int, PartyKnowledge], registry: Registry) -> None:
        """Tell the epochs in between to basket actors that missed some."""
        newest = registry.newest
        for slot, known in held.items():
            if newest is None or (known.epoch == newest.epoch and not known.refusal):
                continue
            missed = self.call(DIRECTORY, Directory.registry, known.epoch)
            role = basket_actor(slot)
            rosters = missed.rosters or registry.rosters
            told = self.call(role, BasketHost.know_parties, rosters, missed.endorsements, missed.life)
            if told.refusal:
                loss = f"{role} follows no new roster, and joins no session: {told.refusal}"
                self.faults.append(loss)
                logger.warning(loss)

    def _learn(self, where: Whereabouts, held: Mapping[int, PartyKnowledge]) -> bool:
        """Have the directory know the keys that the baskets have, and the life that the actors obey.

        It may not: a driver that brings an actor back and dies before it has said so leaves the old keys; one
        whose new directory did not come to be has fenced the actors off from this one. An actor is asked for
        the baskets in its own slot alone.

        Returns:
            Whether the roster may be another one now.
        """
        changed = self._record_keys(where, {slot: known.keys for slot, known in held.items()})
        overtaken = [known.overtaken for known in held.values() if known.overtaken is not None]
        if overtaken:
            self.call(DIRECTORY, Directory.outlive, max(overtaken))
        return changed or bool(overtaken)

    def _record_keys(self, where: Whereabouts, stated: Mapping[int, Mapping[str, bytes]]) -> bool:
        changed: dict[int, dict[str, bytes]] = defaultdict(dict)
        for place in where.places:
            own = stated.get(place.slot, {})
            if own.get(place.basket_id, place.identity) != place.identity:
                changed[place.slot][place.basket_id] = own[place.basket_id]
        for slot, keys in changed.items():
            self.call(DIRECTORY, Directory.record_identities, slot, keys)
        return bool(changed)

    def _locate(self, client_ids: Sequence[str], fresh: bool) -> dict[str, tuple[str, int]]:
        unknown = sorted({c for c in client_ids if fresh or c not in self._routes})
        if unknown:
            for client_id in unknown:
                self._routes.pop(client_id, None)
            self._routes.update(self.located(unknown))
        return {c: self._routes[c] for c in client_ids if c in self._routes}
