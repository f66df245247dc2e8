"""The driver's protocol: which actors each method calls, in which order.

A method returns when its effects are in place, so the driver's next call sees them. All decisions are made in
the actors. Since other drivers may have moved clients or baskets, a method asks the directory once as it
begins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.basket import BasketHost, SubmissionResult
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.global_aggregator import RELEASE, GlobalAggregator, Layer2Outcome
from scarcity_ray.actors.kept import CODEC
from scarcity_ray.actors.messages import Registry, RoutingTable
from scarcity_ray.actors.names import ACCOUNTANT, DIRECTORY, GLOBAL, basket_actor
from scarcity_ray.actors.secure_parties import PartyKnowledge
from scarcity_ray.actors.unattended_signing import objection
from scarcity_ray.baskets import Receipt, Rejection
from scarcity_ray.baskets.reports import Backlog, BasketReport, Layer1Outcome, Registered, ReputationReport
from scarcity_ray.baskets.submission import SubmissionBatch, charged_rows, signed
from scarcity_ray.config import AggregationMethod
from scarcity_ray.errors import LedgerTakenOver, PrivacyBudgetExhausted, UsageError
from scarcity_ray.federation.client import RECOVERIES, ActorClient, BegunCalls, T
from scarcity_ray.federation.operations import OperationRunner
from scarcity_ray.federation.pipeline import PendingReceipt, Pipeline, Wave
from scarcity_ray.federation.statistics import WITHOUT_LAYER2, federation_stats, warnings_of_clipping
from scarcity_ray.federation.stopping import finishing
from scarcity_ray.federation.supervisor import Supervisor, lost_releases
from scarcity_ray.federation.waiting import WaitingFor, rows_spent, waiting_for
from scarcity_ray.forecast import (
    Told,
    Warned,
    moot_warnings,
    warning_of_failures,
    warning_of_weights,
    warnings_at_release,
)
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.plan import check_renewal, person_claim
from scarcity_ray.privacy.ledger.answers import BudgetStatus
from scarcity_ray.privacy.schedule import Step
from scarcity_ray.runtime.rpc import Call
from scarcity_ray.secagg import IdentityKeyPair, Roster
from scarcity_ray.tracing import operation
from scarcity_ray.updates import SigningScope
from scarcity_ray_client.policy import SignedPolicy
from scarcity_ray_client.receipts import ReceiptProof, SignedReceipt
from scarcity_ray_client.site_ledger import Extension, Head


class Driver:
    """One driver of a federation.

    Args:
        told: The warnings that this driver has given.
        operator: The operator's identity, if this driver holds it; it signs each new roster.

    Attributes:
        keypairs: Of the clients that this driver signs for.
        pipeline: Has the updates whose receipts come later.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        clock: Callable[[], float],
        told: Told | None = None,
        operator: IdentityKeyPair | None = None,
    ) -> None:
        self.config = supervisor.identity.config
        self.supervisor = supervisor
        self.client = ActorClient(supervisor, clock)
        self.operations = OperationRunner(self.client, operator)
        self.told = told or Told()
        self.operator = operator
        self.keypairs: dict[str, IdentityKeyPair] = {}
        self.pipeline = Pipeline(self._begin, self._send, self._received, self._followed)
        self._told_registry: Registry | None = None
        self._told_period: int | None = None
        self._told_taken_over = False
        self._foreseen: tuple[Warned, ...] | None = None
        self._given_version = 0
        self._signed: tuple[Roster, ...] = ()

    def span_ids(self) -> dict[str, str | int]:
        """What the spans of this driver's operations are told (`tracing`)."""
        known, ids = self.client.routing_table, dict[str, str | int]()
        if known is not None:
            ids["round"] = known.round_id
        return {"federation": self.supervisor.identity.federation_id, **ids}

    def start(self, take_over: bool) -> BudgetStatus:
        """Start a new federation (`Supervisor.start`)."""
        opened = self.supervisor.start(take_over, self.client.now())
        self._told_period = opened.period
        self.operations.routing_table()
        return opened

    def restore(self, take_over: bool, continues: Sequence[int]) -> BudgetStatus:
        """Start a stored federation again (`Supervisor.restore`), and say what is lost for good."""
        opened = self.supervisor.restore(take_over, self.client.now(), continues)
        self._told_period = opened.period
        self.client.recall_faults()
        self.operations.routing_table()
        last = self.supervisor.latest
        self._given_version = 0 if last is None else last.version
        self.client.note_faults(self.supervisor.lost)
        self.supervisor.note_told(range(self.supervisor.num_slots))
        return opened

    def attach(self) -> None:
        """Join a federation that another driver has started."""
        self.supervisor.adopt(range(self.operations.routing_table().num_slots))

    def budget(self) -> BudgetStatus:
        """The budget's status; once the ledger was taken over, baskets become read-only."""
        status = self.client.call(ACCOUNTANT, Accountant.status, self.client.now())
        self.supervisor.ledger_head = status.head_hash
        if status.taken_over and not self._told_taken_over:
            self._told_taken_over = True
            self._tell_baskets(Call(BasketHost.set_read_only, True))
        if self.supervisor.plan.site_noise is not None and not status.read_only:
            self.operations.routing_table()
            if spent := rows_spent(self.supervisor.plan, self._backlogs(), self._registered()):
                status = replace(
                    status, read_only=True, read_only_reason=spent, remaining_epsilon=0.0, remaining_delta=0.0
                )
        return status

    def set_policies(self, policies: Sequence[SignedPolicy]) -> None:
        """Put clients under the ceilings that they signed, before they are registered.

        Raises:
            UsageError: If one is refused; the others are in force.
        """
        if not policies:
            return
        refused = self.client.call(ACCOUNTANT, Accountant.set_policies, tuple(policies), self.client.now())
        if refused:
            raise UsageError(
                "; ".join(refused[:3]) + (f"; and {len(refused) - 3} more" if refused[3:] else "")
            )

    def left_out(self) -> frozenset[str]:
        """The clients at ceilings of their own, with no room for the next release; baskets are told."""
        now = self.client.now()
        if not self.client.call(ACCOUNTANT, Accountant.leave_out, now):
            return frozenset()
        self._tell_baskets(Call(BasketHost.leave_out, now))
        return frozenset(self.client.call(ACCOUNTANT, Accountant.left_out, 0, now))

    def site_heads(self, client_ids: Sequence[str]) -> dict[str, Head]:
        """How far the accountant knows the own ledgers of those of the clients that have told."""
        now = self.client.now()
        return self.client.call(ACCOUNTANT, Accountant.site_heads, tuple(client_ids), now)

    def note_site_ledgers(self, told: Mapping[str, Extension]) -> tuple[str, ...]:
        """Tell the accountant how far sites' own ledgers are; the clients whose ledgers are older copies."""
        return self.client.call(ACCOUNTANT, Accountant.note_site_ledgers, dict(told), self.client.now())

    def able_to_send(self, client_ids: Sequence[str]) -> frozenset[str]:
        """Those of the clients whose budget has room for another noised row."""
        now = self.client.now()
        return frozenset(self.client.call(ACCOUNTANT, Accountant.able_to_send, tuple(client_ids), now))

    def charge_rows(
        self, charge_id: str, client_ids: Sequence[str], details: Mapping[str, object]
    ) -> dict[str, float]:
        """Charge each of the clients, each named once, for one row that it noises.

        Durable when this returns. A charge allows one draw of noise: give each an id of its own.

        Returns:
            What each client is charged whose charge fits: the mu of its noise.
        """
        schedule, now = self.supervisor.plan.row_schedule, self.client.now()
        together = defaultdict[Step | None, list[str]](list)
        steps: Sequence[Step | None] = [None] * len(client_ids)
        if not schedule.is_constant:
            steps = self.client.call(ACCOUNTANT, Accountant.row_steps, tuple(client_ids), now)
        for client_id, stands in zip(client_ids, steps, strict=True):
            together[stands].append(client_id)
        charged: dict[str, float] = {}
        for place, (step, ids) in enumerate(together.items()):
            mu = schedule.mu_release if step is None else schedule.mu(step)
            name = charge_id if step is None else f"{charge_id}/{place}/step {step.number}"
            asked = name, tuple(ids), mu, now, dict(details), step
            allowed, self.supervisor.ledger_head, _ = self.client.call(
                ACCOUNTANT, Accountant.charge_rows, *asked
            )
            charged |= dict.fromkeys(allowed, mu)
        return charged

    def refuse_if_spent(self) -> None:
        """With ``strict``, raise an error once the budget is spent."""
        status = self.budget() if self.config.strict else None
        if status is None or not status.read_only:
            return
        if status.taken_over:
            raise LedgerTakenOver(status.read_only_reason)
        raise PrivacyBudgetExhausted(
            f"the privacy budget is spent (epsilon {status.epsilon_spent:.4g}); renew_budget opens a new "
            "period"
        )

    @operation("renew_budget")
    def renew_budget(
        self, total_epsilon: float, total_delta: float, operator: str, call_id: str, signature: bytes | None
    ) -> None:
        """Open a new budget period, and tell the baskets.

        Raises:
            UsageError: For totals that cannot work, or a missing or wrong signature.
        """
        check_renewal(self.supervisor.plan, total_epsilon, total_delta)
        act = total_epsilon, total_delta, self.client.now(), operator, call_id, signature
        status = self.client.call(ACCOUNTANT, Accountant.renew, *act)
        self.budget_period()
        self._tell_baskets(Call(BasketHost.set_read_only, status.read_only))

    def budget_period(self) -> int:
        """The budget's period, which clients sign their updates for.

        A new period is told to the baskets, in case the driver that renewed the budget died before it did.
        """
        period = self.client.call(ACCOUNTANT, Accountant.budget_period, self.client.now())
        if period != self._told_period:
            self._tell_baskets(Call(BasketHost.set_budget_period, period))
            self._told_period = period
        return period

    def signing_scope(self) -> SigningScope:
        """The scope that clients sign with their updates."""
        identity = self.supervisor.identity
        return SigningScope(identity.federation_id, self.budget_period(), identity.run)

    def submit(
        self, batch: SubmissionBatch, *, aggregate: bool = True, is_charged: bool = False
    ) -> list[Receipt]:
        """Sign updates, send them to their baskets, and aggregate where that is due; receipts in order.

        A client that has moved since it was located is located again, once. Without `aggregate` nothing is
        aggregated, since more updates of the round are to come. Where clients noise their rows, each row is
        charged before it is judged, unless it was before its noise was drawn (`is_charged`).

        Raises:
            PrivacyBudgetExhausted: With ``strict``, once the budget is spent.
            UsageError: For rows that clients noised by a schedule of noise, outside `fit`.
        """
        if self.supervisor.plan.site_noise is not None and not is_charged:
            batch = self._charged(batch)
        if self.keypairs or batch.signatures is not None:
            batch = self._with_signatures(batch)
        answers, due = self._sent(batch)
        if due or any(receipt.reason is Rejection.READ_ONLY for receipt in answers):
            return self._followed(batch, answers, due if aggregate else set())
        return answers

    def submit_later(self, batch: SubmissionBatch) -> PendingReceipt:
        """As `submit` for one update, whose receipt comes later."""
        return self.pipeline.offer(batch)

    def _begin(self, batch: SubmissionBatch) -> Wave:
        """Sign updates, and route them to their baskets; nothing is sent."""
        if self.supervisor.plan.site_noise is not None:
            batch = self._charged(batch)
        if self.keypairs or batch.signatures is not None:
            batch = self._with_signatures(batch)
        return Wave(batch, self._routed(batch, range(len(batch)), beside=True), beside=True)

    def _send(self, wave: Wave) -> None:
        self.client.send(wave.sent[1])

    def _charged(self, batch: SubmissionBatch) -> SubmissionBatch:
        if not self.supervisor.plan.row_schedule.is_constant:
            raise UsageError(
                "privacy.noise_decay below 1 with privacy.noise: site is for fit, which tells each "
                "client the noise of its step before it draws; nobody can see of which step a row is "
                "that comes noised. Configure privacy.noise_decay: 1 to submit rows"
            )
        if batch.round_id is None:
            batch = replace(batch, round_id=self.current_round())
        return charged_rows(batch, self.config.vector_dim, self.charge_rows)

    def _followed(self, batch: SubmissionBatch, answers: list[Receipt], due: set[str]) -> list[Receipt]:
        """The receipts, after baskets that are due have aggregated."""
        if due and self.config.auto_aggregate:
            self._run_layers(sorted(due))
            busy = [i for i, receipt in enumerate(answers) if receipt.reason is Rejection.BUSY]
            if busy:  # There may be room now.
                again, _ = self._sent(batch.take(busy))
                answers = list((dict(enumerate(answers)) | dict(zip(busy, again, strict=True))).values())
        if any(receipt.reason is Rejection.READ_ONLY for receipt in answers):
            self.refuse_if_spent()
        return answers

    def _sent(self, batch: SubmissionBatch) -> tuple[list[Receipt], set[str]]:
        """Send updates to their baskets; their receipts, in order, and the baskets that are due."""
        return self._received(Wave(batch, self._routed(batch, range(len(batch.client_ids)))))

    def _received(self, wave: Wave) -> tuple[list[Receipt], set[str]]:
        """Receipts for updates that were sent to their baskets, in order, and the baskets that are due.

        Where this is interrupted and done again, no update is sent under another number.
        """
        batch, receipts = wave.batch, wave.receipts
        for attempt in range(3):
            by_slot, calls = wave.sent
            told_by = self.client.answers(calls)
            if wave.noted is not calls:
                self._acknowledge(batch, by_slot, told_by)
                wave.noted = calls
            for slot, answer in told_by.items():
                told = answer.with_signed() if answer.signed else answer.receipts
                receipts.update(zip(by_slot[slot], told, strict=True))
                wave.due.update(answer.due)
            pending = [
                i
                for i in range(len(batch.client_ids))
                if i not in receipts or receipts[i].reason is Rejection.UNKNOWN_CLIENT
            ]
            if not pending or attempt == 2:
                break
            wave.sent = self._routed(batch, pending, fresh=True, beside=wave.beside)
        if pending:
            asked = self.current_round() if batch.round_id is None else batch.round_id
            round_id = int(asked) if isinstance(asked, int | np.integer) else -1
            receipts |= dict.fromkeys(pending, Receipt(False, Rejection.UNKNOWN_CLIENT, None, round_id))
            self.client.call(DIRECTORY, Directory.count_unknown, len(pending))
        return [receipts[i] for i in range(len(receipts))], wave.due

    def _acknowledge(
        self,
        batch: SubmissionBatch,
        by_slot: Mapping[int, Sequence[int]],
        told_by: Mapping[int, SubmissionResult],
    ) -> None:
        """Note what was accepted, before a fault that takes it is heard of, and after one that did not."""
        is_news = {
            slot: answer.last_fault is not None and not self.client.has_heard(answer.last_fault)
            for slot, answer in told_by.items()
        }
        for slot, answer in sorted(told_by.items(), key=lambda told: is_news[told[0]]):
            try:
                if is_news[slot] and not self.client.has_heard(answer.last_fault):
                    self.client.hear_faults()
            finally:  # A warning may be turned into an error.
                ids = [batch.client_ids[i] for i in by_slot[slot]]
                self.supervisor.acknowledged.note(ids, answer.receipts)

    def _routed(
        self, batch: SubmissionBatch, pending: Sequence[int], *, fresh: bool = False, beside: bool = False
    ) -> tuple[Mapping[int, Sequence[int]], BegunCalls[SubmissionResult]]:
        """Which of the pending updates go to which basket actor, and the calls that take them there."""
        routes = self.operations.locate([batch.client_ids[i] for i in pending], fresh=fresh)
        by_slot: dict[int, list[int]] = defaultdict(list)
        for index in pending:
            if batch.client_ids[index] in routes:
                by_slot[routes[batch.client_ids[index]][1]].append(index)
        now = self.client.now()
        calls = {
            slot: Call(
                BasketHost.submit,
                tuple(routes[batch.client_ids[i]][0] for i in indices),
                batch if len(indices) == len(batch.client_ids) else batch.take(indices),
                now,
            )
            for slot, indices in by_slot.items()
        }
        return by_slot, self.client.numbered(calls, beside=beside)

    def prove_receipt(self, receipt: SignedReceipt) -> ReceiptProof:
        """What the baskets know of an accepted update."""
        self.operations.routing_table()
        answers = self.client.call_baskets(Call(BasketHost.prove, (receipt.key,)))
        return reduce(
            ReceiptProof.joined_with, (proof for slot in sorted(answers) for proof in answers[slot])
        )

    def accepted_for(self, round_id: int) -> frozenset[str]:
        """Clients of which an update for the round was accepted."""
        self.operations.routing_table()
        answers = self.client.call_baskets(Call(BasketHost.accepted_for, round_id))
        return frozenset(client for clients in answers.values() for client in clients)

    def kept_releases(self) -> list[GlobalMetaModel]:
        """The stored releases, oldest first; the last few of a federation with storage."""
        kept = self.supervisor.kept
        return [] if kept is None else kept.read_all(RELEASE, CODEC)

    def current_round(self) -> int:
        """The round of the federation."""
        return self.client.call(DIRECTORY, Directory.current_round)

    @operation("aggregate")
    def aggregate(self, *, force: bool) -> NDArray[np.float32] | None:
        """Aggregate where it is due; the newest global model if this driver has not had it yet."""
        outcome = self._run_layers(None, force=force, release=True)
        latest = outcome.model if outcome is not None and outcome.model is not None else self.latest_release()
        if latest is None or latest.version <= self._given_version:
            self.refuse_if_spent()
            return None
        self._given_version = latest.version
        return latest.aggregate

    @finishing()
    @operation("gossip")
    def run_gossip(self, once: str = "") -> dict[str, int]:
        """One gossip round in all baskets, then layers that are due; delivered messages by domain.

        See `BasketHost.run_gossip` for `once`.
        """
        self.operations.routing_table()
        counts = _merged(self.client.call_baskets(Call(BasketHost.run_gossip, self.client.now(), once)))
        self._run_layers_after_gossip()
        delivered: dict[str, int] = defaultdict(int)
        for place in self.operations.routing_table(fresh=False).places:
            delivered[place.domain_id] += counts.get(place.basket_id, 0)
        self.refuse_if_spent()
        return dict(delivered)

    @operation("advance_round")
    def advance_round(self) -> int:
        """Run layers that are due, then move every actor to the next round."""
        self._run_layers_after_gossip()
        self.report_activity()
        round_id = self.operations.run(Directory.advance_round, self.client.now())
        self.supervisor.acknowledged.forget_before(round_id - self.config.buffer.max_staleness)
        return round_id

    def report_activity(self) -> ActorClient:
        """Carry the basket actors' activity to the directory; it is lost if this driver stops in between."""
        self.operations.routing_table()
        reports = self.client.call_baskets(Call(BasketHost.take_activity))
        seen = tuple(reports[slot] for slot in sorted(reports))
        self.client.call(DIRECTORY, Directory.note_activity, seen, self.client.now())
        return self.client

    @operation("layer1")
    def run_layer1(self, baskets: Sequence[str] | None, force: bool) -> list[Layer1Outcome]:
        """Layer 1 wherever it is due, in all basket actors in parallel."""
        self.operations.routing_table(fresh=False)
        chosen = None if baskets is None else tuple(baskets)
        answers = self.client.call_baskets(Call(BasketHost.run_layer1, chosen, force, self.client.now()))
        outcomes = [outcome for slot in sorted(answers) for outcome in answers[slot]]
        self.supervisor.acknowledged.aggregated(o.basket_id for o in outcomes if o.aggregated)
        return outcomes

    @finishing()
    @operation("layer2")
    def run_layer2(self, force: bool) -> Layer2Outcome:
        """Layer 2 if it is due; baskets are told of a release, and of a spent budget."""
        if not self.supervisor.has_layer2:
            return Layer2Outcome(None, "Layer 2 is off (layer2.enabled: false)")
        where, roster = self.tell_parties()
        if roster is None and self.config.layer2.use_secure_aggregation:
            return Layer2Outcome(None, "no roster is signed yet: see `scarcity-ray roster sign`")
        # Restored below; if this driver fails in between, it tells all baskets the registry again.
        told, self._told_registry = self._told_registry, None
        run = where.places, where.round_id, force, self.client.now(), roster
        outcome = self.client.call(GLOBAL, GlobalAggregator.run, *run)
        # For basket actors that another driver has started meanwhile; with masks they are told with the next
        # roster.
        is_masked = self.config.layer2.use_secure_aggregation
        self.operations.routing_table(fresh=outcome.read_only or not is_masked)
        if outcome.model is not None:
            self.supervisor.latest = outcome.model
            self.supervisor.acknowledged.released((*outcome.dropped, *outcome.absent))
            if self.config.layer2.distribute_to_baskets:
                self.client.call_baskets(Call(BasketHost.adopt, outcome.model))
        if outcome.read_only:
            self.client.call_baskets(Call(BasketHost.set_read_only, True))
        if outcome.lost_roles:
            self.client.recover(*outcome.lost_roles)
        if lost := [fault for since in outcome.unpublished.items() for fault in lost_releases(*since)]:
            self.client.note_faults(lost)
        if not (outcome.aborted or outcome.dropped):
            self._told_registry = told
        return outcome

    def local_states(self, client_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The local states of those clients that have one."""
        routes = self.operations.locate(client_ids)
        by_slot: dict[int, list[str]] = defaultdict(list)
        for client_id in sorted(routes):
            by_slot[routes[client_id][1]].append(client_id)
        calls = {
            slot: Call(BasketHost.local_states, tuple(routes[c][0] for c in clients), tuple(clients))
            for slot, clients in by_slot.items()
        }
        return _merged(self.client.call_baskets(calls))

    def latest_release(self) -> GlobalMetaModel | None:
        """The last release; None before the first, and without Layer 2."""
        if self.supervisor.has_layer2:
            told = self.client.call(GLOBAL, GlobalAggregator.latest)
            self.supervisor.latest = told or self.supervisor.latest
        return self.supervisor.latest

    def waiting_for(self) -> WaitingFor:
        """What the next global model waits for; asking changes nothing."""
        self.operations.routing_table()
        budget = self.client.call(ACCOUNTANT, Accountant.status, self.client.now())
        return self._waiting_for(self._layer2_stats(), budget)

    def stats(self) -> dict[str, Any]:
        """Health, from every actor's answer."""
        self.report_activity()
        now = self.client.now()
        directory = self.client.call(DIRECTORY, Directory.stats, now)
        layer2, budget, reports = self._layer2_stats(), self.budget(), self._reports()
        waiting = self._waiting_for(layer2, budget)
        conduct: dict[str, ReputationReport] = {}
        if self.config.expose_basket_models:
            conduct = _merged(self.client.call_baskets(Call(BasketHost.reputations)))
        moot = moot_warnings(self.config.layer2, waiting.num_registered, layer2["n_baskets"])
        return federation_stats(
            directory,
            reports,
            self.operations.routing_table(fresh=False).places,
            layer2,
            budget,
            self.client.faults,
            conduct,
            waiting,
            self.told.as_json(moot),
            # Of all periods: who was in an earlier one is not protected by a new budget.
            person_claim(self.config, budget.lifetime_epsilon, budget.total_delta),
        )

    def registry(self) -> Registry:
        """The registered baskets; a new roster is signed if this driver holds the operator's identity.

        It is signed only if it agrees with what the basket actors state (`actors.unattended_signing`); if
        not, that is noted as a fault. Without secure aggregation the registry is empty.
        """
        if not self.config.layer2.use_secure_aggregation:
            return Registry(())
        registry = self.client.call(DIRECTORY, Directory.registry)
        if registry.draft is None or self.operator is None:
            return registry
        why = ""
        for _ in range(RECOVERIES):
            where = self.operations.routing_table()
            statements = self.client.call_baskets(Call(BasketHost.statement))
            self._record_keys(where, {slot: said.keys for slot, said in statements.items()})
            registry = self.client.call(DIRECTORY, Directory.registry)
            if registry.draft is None:
                return registry
            seen = (*registry.rosters, *self._signed)
            why = objection(registry.draft, statements.values(), seen, self.operator.public_bytes)
            if not why:
                self._signed = (registry.draft.signed(self.operator),)
                self.adopt_roster(self._signed[0])
                return self.client.call(DIRECTORY, Directory.registry)
        loss = f"the next roster is not signed: {why}; read it, and sign it with `scarcity-ray roster sign`"
        if loss not in self.client.faults:
            self.client.note_loss(loss)
        return registry

    def adopt_roster(self, roster: Roster) -> None:
        """Give the directory the next roster with the operator's signature.

        Raises:
            UsageError: If it is not the next one, or not signed by ``operator_key``.
        """
        refusal = self.client.call(DIRECTORY, Directory.adopt_roster, roster)
        if refusal:
            raise UsageError(f"this roster is not adopted: {refusal}")

    def tell_parties(self) -> tuple[RoutingTable, Roster | None]:
        """Send every basket actor the rosters, and the last release to those that lack it.

        That is done before this driver's first session, whenever the directory's roster has changed since
        (new baskets, a split, new keys of a restarted actor), and after a session that failed or left out a
        basket, which another driver may have told otherwise.

        Returns:
            The places of the baskets that may take part, and the newest roster; None without secure
            aggregation, and before an operator has signed one.
        """
        layer2 = self.config.layer2
        where, registry = self.operations.routing_table(fresh=False), self.registry()
        for turn in range(RECOVERIES):
            if registry == self._told_registry:
                break
            # Who is new there may live in an actor that another driver has started.
            where = self.operations.routing_table()
            held = self.client.call_baskets(
                Call(BasketHost.know_parties, registry.rosters, registry.endorsements, registry.life)
            )
            # New keys are not recorded in the last turn: that roster is final.
            is_news = turn < RECOVERIES - 1 and self._learn(where, held)
            if not is_news:
                self._bring_up(held, registry)
            if layer2.distribute_to_baskets:
                latest = self.client.call(GLOBAL, GlobalAggregator.latest)
                behind = [s for s, known in held.items() if latest and known.version < latest.version]
                if latest is not None:
                    self.client.call_baskets(dict.fromkeys(behind, Call(BasketHost.adopt, latest)))
            self._told_registry, registry = registry, self.registry()
        if not layer2.use_secure_aggregation:
            return where, None
        known = registry.known
        places = tuple(place for place in where.places if known.get(place.basket_id) == place.identity)
        return replace(where, places=places), registry.newest

    def _tell_baskets(self, call: Call[BasketHost, None]) -> None:
        """Call every basket actor, including those that other drivers have started."""
        self.operations.routing_table()
        self.client.call_baskets(call)

    def _bring_up(self, held: Mapping[int, PartyKnowledge], registry: Registry) -> None:
        """Send the missing epochs to basket actors that are behind."""
        newest = registry.newest
        for slot, known in held.items():
            if newest is None or (known.epoch == newest.epoch and not known.refusal):
                continue
            missed = self.client.call(DIRECTORY, Directory.registry, known.epoch)
            role = basket_actor(slot)
            rosters = missed.rosters or registry.rosters
            told = self.client.call(role, BasketHost.know_parties, rosters, missed.endorsements, missed.life)
            if told.refusal:
                self.client.note_loss(f"{role} follows no new roster, and joins no session: {told.refusal}")

    def _learn(self, where: RoutingTable, held: Mapping[int, PartyKnowledge]) -> bool:
        """Update the directory with the baskets' keys and the life that the actors obey.

        The directory's may be old: a driver may die after it has restarted an actor and before it has
        recorded the keys, or after `BasketHost.step_down` and before it has started a new directory.

        Returns:
            Whether the roster may have changed.
        """
        changed = self._record_keys(where, {slot: known.keys for slot, known in held.items()})
        overtaken = [known.overtaken for known in held.values() if known.overtaken is not None]
        if overtaken:
            self.client.call(DIRECTORY, Directory.outlive, max(overtaken))
        return changed or bool(overtaken)

    def _record_keys(self, where: RoutingTable, stated: Mapping[int, Mapping[str, bytes]]) -> bool:
        changed: dict[int, dict[str, bytes]] = defaultdict(dict)
        for place in where.places:
            own = stated.get(place.slot, {})
            if own.get(place.basket_id, place.identity) != place.identity:
                changed[place.slot][place.basket_id] = own[place.basket_id]
        for slot, keys in changed.items():
            self.client.call(DIRECTORY, Directory.record_identities, slot, keys)
        return bool(changed)

    def _run_layers(
        self, baskets: Sequence[str] | None, *, force: bool = False, release: bool = False
    ) -> Layer2Outcome | None:
        """Layer 1 where it is due, and Layer 2 if that has made an aggregate or `release` is set.

        Warns before the first release if noise will drown it, and before each release of weighted means if
        unequal weights do.
        """
        self.operations.routing_table()
        outcomes = self.run_layer1(baskets, force)
        failed = warning_of_failures([outcome.failure for outcome in outcomes if outcome.failure])
        made = [outcome for outcome in outcomes if outcome.aggregated]
        if made and self._foreseen is None:
            sizes = self.client.call(DIRECTORY, Directory.stats, self.client.now())["sizes"]
            self._foreseen = warnings_at_release(self.config, list(sizes.values()))
        # Each time, since a warning that is turned into an error stops each release.
        found = list(self._foreseen or ())
        if made and self.config.layer1.aggregation_method is AggregationMethod.WEIGHTED:
            facts = [report.facts for report in self._reports().values()]
            drowned = warning_of_weights(self.supervisor.plan, facts)
            found += () if drowned is None else (drowned,)
        found += warnings_of_clipping([o.clipping for o in made if o.clipping is not None])
        found += () if failed is None else (failed,)
        self.told.tell(found)
        return self.run_layer2(force) if made or release else None

    def _run_layers_after_gossip(self) -> None:
        if self.config.auto_aggregate and self.supervisor.plan.waits_for_gossip:
            self._run_layers(None)

    def _reports(self) -> dict[str, BasketReport]:
        """Counts and public facts of every basket."""
        return _merged(self.client.call_baskets(Call(BasketHost.reports, self.client.now())))

    def _layer2_stats(self) -> Mapping[str, Any]:
        if not self.supervisor.has_layer2:
            return WITHOUT_LAYER2
        return self.client.call(GLOBAL, GlobalAggregator.stats)

    def _waiting_for(self, layer2: Mapping[str, Any], budget: BudgetStatus) -> WaitingFor:
        now = self.client.now()
        return waiting_for(
            self.supervisor.plan,
            self._backlogs(),
            None if layer2["since"] is None else abs(now - layer2["since"]),
            registered=self._registered(),
            read_only=budget.read_only,
            taken_over=budget.read_only_reason if budget.taken_over else "",
            last_abort=layer2["aborted"],
        )

    def _backlogs(self) -> list[Backlog]:
        answers = self.client.call_baskets(Call(BasketHost.backlogs, self.client.now()))
        return [backlog for slot in sorted(answers) for backlog in answers[slot]]

    def _registered(self) -> Registered:
        return self.client.call(DIRECTORY, Directory.registered, self.operator is not None)

    def _with_signatures(self, batch: SubmissionBatch) -> SubmissionBatch:
        """The batch, signed for the clients whose keys are held here."""
        if batch.signatures is not None and self._told_period is None:
            self.budget_period()
        if not any(client_id in self.keypairs for client_id in batch.client_ids):
            return batch
        round_id = self.current_round() if batch.round_id is None else batch.round_id
        config = self.config
        return signed(
            batch,
            round_id,
            self.keypairs,
            self.signing_scope(),
            config.vector_dim,
            len(config.meta_parameters),
        )


def _merged(answers: Mapping[int, Mapping[str, T]]) -> dict[str, T]:
    return {key: value for answer in answers.values() for key, value in answer.items()}
