"""Why there is no model: what the next aggregate and the next release wait for, as data and in words.

Guarantees:
    what_is_said_to_be_missing_is_missing: With it, the basket aggregates, or the release is made.
    asking_changes_nothing
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from scarcity_ray.baskets.reports import NAMED, Backlog, Registered
from scarcity_ray.forecast.shortage import SIGNING, ReleaseNeed, rows_needed, ways_for_few_members
from scarcity_ray.layers.triggers import TriggerReason, basket_due, global_due
from scarcity_ray.plan import FederationPlan


class Missing(StrEnum):
    """What a basket, or the release, lacks."""

    MEMBERS = "members"
    """Of a basket: it has fewer clients than its rule needs rows."""
    UPDATES = "updates"
    """Of a basket: fewer clients have sent than its rule needs rows."""
    TRIGGER = "trigger"
    """Enough is there, but neither all of it, nor has the time or the staleness come."""
    RELEASE = "release"
    """Of a basket: nothing; its aggregate waits for the release."""
    BASKETS = "baskets"
    """Of the release: fewer baskets have clients than it needs."""
    ROSTER = "roster"
    """Of the release: the operator has not signed for the baskets that it needs."""
    AGGREGATES = "aggregates"
    """Of the release: fewer baskets than it needs have an aggregate that is in no release yet."""
    BUDGET = "budget"
    """Of the release: the privacy budget is spent."""
    CEILING = "ceiling"
    """Of the release: so many clients are at ceilings of their own that too few baskets can aggregate."""
    LEDGER = "ledger"
    """Of the release: another federation has taken the ledger over."""
    LAYER2 = "layer2"
    """Of the release: Layer 2 is off, so that there never is one."""
    RULE = "rule"
    """Of a basket: a result of its rule, one from outside, which failed."""
    CALL = "call"
    """Nothing but the call that makes it."""


@dataclass(frozen=True)
class BasketWait:
    """What one basket waits for.

    Attributes:
        num_members: Its clients.
        num_senders: Those with updates that are in no aggregate yet.
        num_absent: The others.
        absent: Up to `NAMED` of them, sorted.
        rule: Layer 1's aggregation method.
        num_byzantine: The rule's f in this basket.
        least_rows: Clients that must have sent.
        seconds_left: Until it is due by time; None if time does not help.
        sentence: The same in words, with what to do.
    """

    basket_id: str
    missing: Missing
    num_members: int
    num_senders: int
    num_absent: int
    absent: tuple[str, ...]
    rule: str
    num_byzantine: int
    least_rows: int
    seconds_left: float | None
    sentence: str


@dataclass(frozen=True)
class WaitingFor:
    """What the next global model waits for; ``str()`` says it to a newcomer.

    Attributes:
        num_fresh: Baskets whose aggregate is in no release yet.
        least_baskets: Baskets that a release needs.
        wanted_baskets: Baskets that make it due at once.
        num_registered: Baskets that count as registered.
        seconds_left: Until it is due by time; None if time does not help.
        sentence: The same in words, with what to do.
        baskets: What each basket waits for, those that lack something first; empty if nothing is accepted.
    """

    missing: Missing
    num_fresh: int
    least_baskets: int
    wanted_baskets: int
    num_registered: int
    seconds_left: float | None
    sentence: str
    baskets: tuple[BasketWait, ...] = ()

    def __str__(self) -> str:
        return "\n".join([self.sentence, *(f"- {basket.sentence}" for basket in self.baskets)])

    def as_json(self) -> dict[str, Any]:
        """Plain data, with the words under ``text``."""
        baskets = [asdict(basket) | {"missing": str(basket.missing)} for basket in self.baskets]
        return {"text": str(self), **asdict(self), "missing": str(self.missing), "baskets": baskets}


def waiting_for(
    plan: FederationPlan,
    backlogs: Sequence[Backlog],
    seconds: float | None = None,
    *,
    registered: Registered | None = None,
    read_only: bool = False,
    taken_over: str = "",
    last_abort: str | None = None,
) -> WaitingFor:
    """What the next release and the baskets behind it wait for.

    Args:
        plan: The federation's numbers.
        backlogs: Of every live basket.
        seconds: Since the last release, or since the first was tried; None if none ever was.
        registered: The registered baskets; None: those of `backlogs`.
        read_only: Whether nothing is accepted any more.
        taken_over: The reason, if the ledger was taken over.
        last_abort: Why the last session ended, if it did so without a release.
    """
    layer2 = plan.config.layer2
    if registered is None or not layer2.use_secure_aggregation:
        registered = Registered(len(backlogs), frozenset(backlog.basket_id for backlog in backlogs))
    need = ReleaseNeed(
        layer2, registered.number, registered.num_unsigned, plan.config.operator_key is not None
    )
    least = need.least()
    peopled = [backlog for backlog in backlogs if backlog.num_members]
    able = [backlog for backlog in backlogs if backlog.num_members or backlog.fresh]
    waits = [_basket_wait(plan, backlog) for backlog in peopled]
    order = list(Missing)
    waits.sort(key=lambda wait: (order.index(wait.missing), wait.basket_id))
    known = [backlog for backlog in backlogs if backlog.basket_id in registered.known]
    fresh = sum(backlog.fresh for backlog in known)
    strangers = sum(backlog.fresh for backlog in backlogs) - fresh
    active = sum(backlog.num_members >= plan.config.basket.min_clients for backlog in known)
    wanted = max(least, active if layer2.min_baskets_trigger is None else layer2.min_baskets_trigger)
    left: float | None = None
    if taken_over:
        missing, waits = Missing.LEDGER, []
        sentence = f"Nothing is accepted, aggregated or released: {taken_over}."
    elif spent := rows_spent(plan, backlogs, registered):
        missing, waits = Missing.BUDGET, []
        sentence = f"{spent}: no release comes of these until an operator calls renew_budget."
    elif read_only:
        missing, waits = Missing.BUDGET, []
        sentence = (
            "The privacy budget is spent: nothing is accepted, aggregated or released until an operator "
            "calls renew_budget."
        )
    elif stuck := _at_ceilings(plan, backlogs, need):
        missing, sentence = Missing.CEILING, stuck
    elif not able:
        missing, sentence = Missing.BASKETS, "No client is registered: begin with register_client."
    elif not layer2.enabled:
        missing = Missing.LAYER2
        sentence = (
            "There is no global model with layer2.enabled: false; get_basket_model gives each basket's own."
        )
    elif len(able) < least:
        missing = Missing.BASKETS
        sentence = _too_few_baskets(plan, able, need, len(backlogs) - len(able))
    elif not registered.has_roster:
        missing = Missing.ROSTER
        sentence = f"The roster of baskets waits for the operator's signature: {SIGNING}."
    elif fresh < least and strangers and need.signed:
        missing = Missing.ROSTER
        sentence = (
            f"{_counted(strangers)} a new aggregate, but no roster with the operator's signature names "
            f"{'it' if strangers == 1 else 'them'}: {SIGNING}. A release needs {least} ({need.why}), {fresh} "
            "of those that are named have one."
        )
    elif fresh < least:
        missing = Missing.AGGREGATES
        ways = list(need.ways(fresh, len(backlogs) - len(able)))
        sentence = (
            f"A release needs {least} baskets with a new aggregate ({need.why}), "
            f"{fresh} of {len(able)} have one"
            f"{': have more of them aggregate, or ' + ', or '.join(ways) if ways else ''}."
        )
    elif global_due(fresh, active, seconds or 0.0, layer2) is None:
        missing, left = Missing.TRIGGER, max(0.0, layer2.update_interval_seconds - (seconds or 0.0))
        sentence = (
            f"{fresh} of {wanted} baskets have a new aggregate; a release waits for the others, or for "
            f"{left:.3g} s (layer2.update_interval_seconds); force_aggregate does not wait."
        )
    else:
        missing = Missing.CALL
        sentence = f"{fresh} baskets have a new aggregate: maybe_aggregate releases them."
    if last_abort is not None and missing not in (Missing.BUDGET, Missing.LEDGER, Missing.LAYER2):
        sentence += f" The last attempt ended without a release: {last_abort}."
    return WaitingFor(missing, fresh, least, wanted, registered.number, left, sentence, tuple(waits))


def _at_ceilings(plan: FederationPlan, backlogs: Sequence[Backlog], need: ReleaseNeed) -> str:
    """Why the clients that are left make no release, if all of them together would; else empty."""

    def suffices(number: int) -> bool:
        return number > 0 and number >= plan.least_rows(number)

    peopled = [b for b in backlogs if b.fresh or suffices(b.num_members + b.num_left_out)]
    able = [backlog for backlog in peopled if backlog.fresh or suffices(backlog.num_members)]
    least = need.least() if plan.config.layer2.enabled else 1
    if len(peopled) < least or len(able) >= least:
        return ""
    number = sum(backlog.num_left_out for backlog in backlogs)
    return (
        f"{number} clients are left out at ceilings of their own, for good ({_left_out(backlogs)}): "
        f"{len(able)} baskets have the clients that their rule needs, and {least} are needed: register other "
        "clients."
    )


def _left_out(backlogs: Sequence[Backlog]) -> str:
    named = [client_id for backlog in backlogs for client_id in backlog.left_out][:NAMED]
    more = sum(backlog.num_left_out for backlog in backlogs) - len(named)
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def rows_spent(plan: FederationPlan, backlogs: Sequence[Backlog], registered: Registered | None) -> str:
    """Why no release can come of the rows that clients can still pay for, where these are noised; else "".

    A basket can still aggregate if as many members as its rule needs have sent, or can pay for another row.
    What too few members or baskets are the reason for is not the budget's.
    """
    if plan.site_noise is None:
        return ""
    layer2 = plan.config.layer2
    if registered is None or not layer2.use_secure_aggregation:
        registered = Registered(len(backlogs), frozenset(backlog.basket_id for backlog in backlogs))
    signed = plan.config.operator_key is not None
    least = ReleaseNeed(layer2, registered.number, registered.num_unsigned, signed).least()
    peopled = [one for one in backlogs if one.fresh or one.num_members >= plan.least_rows(one.num_members)]
    able = [one for one in peopled if one.fresh or (one.num_able or 0) >= plan.least_rows(one.num_members)]
    if len(peopled) < least or len(able) >= least:
        return ""
    return (
        f"The clients' privacy budgets are spent: a release needs {least} baskets in which as many clients "
        f"as the rule needs can pay for another noised row, and {len(able)} of {len(peopled)} are such"
    )


def _basket_wait(plan: FederationPlan, backlog: Backlog) -> BasketWait:
    members, senders = backlog.num_members, backlog.num_senders
    least = plan.least_rows(members)
    left: float | None = None
    if members < least:
        missing, sentence = Missing.MEMBERS, _too_few_members(plan, backlog)
    elif senders < least:
        missing = Missing.RELEASE if backlog.fresh else Missing.UPDATES
        sentence = _too_few_updates(plan, backlog)
    elif backlog.failure:
        missing = Missing.RULE
        sentence = (
            f"{backlog.failure}; its {senders} updates are kept, and maybe_aggregate tries again: mend the "
            "rule, or have the clients send others."
        )
    elif (reason := _due(plan, backlog)) is None:
        missing = Missing.RELEASE if backlog.fresh else Missing.TRIGGER
        left = max(0.0, plan.config.buffer.time_trigger_seconds - backlog.seconds)
        sentence = (
            f"{backlog.basket_id}: {senders} of {members} clients have sent, enough for the rule; it "
            f"waits for {_names(backlog)}, or {left:.3g} s (buffer.time_trigger_seconds); force_aggregate "
            "does not wait."
        )
    else:
        missing = Missing.RELEASE if backlog.fresh else Missing.CALL
        gossip = reason is TriggerReason.COUNT and plan.waits_for_gossip
        call = "run_gossip_round, then maybe_aggregate" if gossip else "maybe_aggregate"
        sentence = f"{backlog.basket_id}: {senders} of {members} clients have sent; {call} aggregates them."
    if missing is Missing.RELEASE:
        sentence = f"{backlog.basket_id}: its aggregate waits for the release."
        if not plan.config.layer2.enabled:
            sentence = f"{backlog.basket_id}: get_basket_model has its aggregate."
    return BasketWait(
        basket_id=backlog.basket_id,
        missing=missing,
        num_members=members,
        num_senders=senders,
        num_absent=members - senders,
        absent=backlog.absent,
        rule=plan.config.layer1.aggregation_method.value,
        num_byzantine=plan.num_byzantine(members),
        least_rows=least,
        seconds_left=left,
        sentence=sentence,
    )


def _due(plan: FederationPlan, backlog: Backlog) -> TriggerReason | None:
    return basket_due(
        plan.config.buffer,
        backlog.num_senders,
        backlog.seconds,
        n_active=backlog.num_members,
        least=plan.least_rows(backlog.num_members),
        oldest_staleness=backlog.staleness,
    )


def _too_few_members(plan: FederationPlan, backlog: Backlog) -> str:
    members, least = backlog.num_members, plan.least_rows(backlog.num_members)
    ways = ways_for_few_members(plan, members, backlog.domain_id)
    return (
        f"{backlog.basket_id}: {rows_needed(plan, members)}, it has {members} "
        f"{'client' if members == 1 else 'clients'}, {least - members} too few: {', or '.join(ways)}."
        + (f" Left out at ceilings of their own: {_left_out([backlog])}." if backlog.num_left_out else "")
    )


def _too_few_updates(plan: FederationPlan, backlog: Backlog) -> str:
    members, senders = backlog.num_members, backlog.num_senders
    leave = ""
    if senders and plan.least_rows(senders) <= senders:
        leave = ", or unregister_client those who are gone"
    return (
        f"{backlog.basket_id}: {rows_needed(plan, members)}, {senders} of {members} clients have sent: have "
        f"{_names(backlog)} submit{leave}."
    )


def _too_few_baskets(plan: FederationPlan, able: Sequence[Backlog], need: ReleaseNeed, num_empty: int) -> str:
    ways = ["register clients in another domain"]
    large = [b.basket_id for b in able if (n := b.num_members // 2) and plan.least_rows(n) <= n]
    if large:
        ways.append(f"split_basket({large[0]!r})")
    ways += need.ways(len(able), num_empty)
    ways.append("ask for get_basket_model, which is not noised and lies outside the privacy claim")
    return (
        f"A release sums at least {need.least()} baskets ({need.why}), so that none is seen alone, and "
        f"{_counted(len(able))} clients: {', or '.join(ways)}."
    )


def _counted(number: int) -> str:
    return "1 basket has" if number == 1 else f"{number} baskets have"


def _names(backlog: Backlog) -> str:
    more = backlog.num_members - backlog.num_senders - len(backlog.absent)
    return ", ".join(backlog.absent) + (f" and {more} more" if more > 0 else "")
