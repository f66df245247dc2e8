"""A federation's status as one JSON document: what the command, the console and the metrics show.

It is made of what `HierarchicalFederation.get_stats` and `get_clients` give, of the plan, and of what the
process that makes the rounds has seen. What depends on private values (outliers) is in it only where the
federation exposes basket models. Numbers that are not finite are null.

Guarantees:
    a_status_is_json
    outliers_are_told_only_with_exposed_models
    no_more_sites_than_asked_are_listed_and_all_are_counted
    who_is_left_out_at_its_ceiling_is_told_first
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol, TypedDict, Unpack

from scarcity_ray.directory import ClientInfo
from scarcity_ray.errors import ConfigError
from scarcity_ray.forecast import Forecast, round_seconds
from scarcity_ray.monitoring.history import Round, strip_of
from scarcity_ray.plan import FederationPlan
from scarcity_ray.privacy.ledger.answers import CeilingStanding

FORMAT_VERSION = 1
MOST_NAMED = 3
"""Sites that the sentence of a round names; the others are counted."""
MOST_SITES = 1000
"""Sites that a status lists."""
MOST_FAULTS = 50
"""Newest faults that a status lists."""
SECONDS_A_DAY = 86_400.0


class State(StrEnum):
    """What the federation is doing."""

    EMPTY = "no_sites"
    """Nobody is registered yet."""
    OPEN = "open"
    """A round is open for updates."""
    WAITING = "waiting"
    """Between rounds."""
    PAUSED = "paused"
    """An operator has paused the rounds."""
    FINISHED = "finished"
    """All rounds are made."""
    BUDGET_SPENT = "budget_spent"
    """Nothing more is released until an operator renews the budget."""
    STOPPED = "stopped"
    """It takes and releases nothing more: its roles or its ledger are gone."""


class SiteState(StrEnum):
    """What a site is doing."""

    UP = "up"
    STALE = "stale"
    """Not heard of for longer than ``basket.stale_threshold``."""
    NEVER = "never_seen"
    """Registered or enrolled, and not heard of yet."""
    LEFT_OUT = "left_out"
    """At its own ceiling: left out of all further rounds."""
    REVOKED = "revoked"
    """Its certificate was revoked."""


@dataclass(frozen=True)
class Enrolment:
    """A site's certificate.

    Attributes:
        certificate_expires: Seconds since the epoch; None: it has none yet.
    """

    certificate_expires: float | None
    revoked: bool = False


class Seen(TypedDict, total=False):
    """What the process that makes the rounds adds; see `Observed`."""

    name: str
    state: State | None
    sentence: str
    closes_in_seconds: float | None
    rounds: Sequence[Round]
    totals: Mapping[str, int]
    enrolments: Mapping[str, Enrolment]
    last_seen: Mapping[str, float]
    gateway: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Observed:
    """All that a status is made of.

    Attributes:
        at: Seconds since the epoch.
        stats: As `get_stats` gives them.
        clients: As `get_clients` gives them: all, or the first of them.
        ceilings: As `get_ceilings` gives them.
        state: Of the rounds, where a gateway or driver makes them; None: told by `stats` alone.
        sentence: What there is to say of that state, for a reader.
        closes_in_seconds: Until the open round closes.
        rounds: The last rounds, oldest first.
        totals: `RoundHistory.totals`.
        enrolments: By client, where sites are enrolled.
        last_seen: When a gateway last heard of each client, in seconds since the epoch.
        gateway: A gateway's own counts: numbers by name (``open_requests``, ``bytes_received``,
            ``bytes_sent``), and under ``answers`` how many by HTTP status.
    """

    at: float
    stats: Mapping[str, Any]
    plan: FederationPlan
    name: str = ""
    clients: Sequence[ClientInfo] = ()
    ceilings: Mapping[str, CeilingStanding] = field(default_factory=dict)
    state: State | None = None
    sentence: str = ""
    closes_in_seconds: float | None = None
    rounds: Sequence[Round] = ()
    totals: Mapping[str, int] = field(default_factory=dict)
    enrolments: Mapping[str, Enrolment] = field(default_factory=dict)
    last_seen: Mapping[str, float] = field(default_factory=dict)
    gateway: Mapping[str, Any] | None = None


class Watched(Protocol):
    """What of a `HierarchicalFederation` a status is made of."""

    plan: FederationPlan

    def get_stats(self) -> dict[str, Any]:
        """Its statistics."""

    def get_clients(self, limit: int = ...) -> list[ClientInfo]:
        """The first of its clients."""

    def get_ceilings(self, client_ids: Sequence[str]) -> dict[str, CeilingStanding]:
        """Where those stand that have ceilings of their own."""


def observe(federation: Watched, at: float, **seen: Unpack[Seen]) -> Observed:
    """Ask a federation, in a few calls, at the time `at`; `seen` are other fields of `Observed`."""
    stats = federation.get_stats()
    clients = federation.get_clients(MOST_SITES)
    ceilings: dict[str, CeilingStanding] = {}
    if stats["ceilings"]["clients"]:
        ceilings = federation.get_ceilings([client.client_id for client in clients])
    return Observed(at=at, stats=stats, plan=federation.plan, clients=clients, ceilings=ceilings, **seen)


def federation_status(seen: Observed) -> dict[str, Any]:
    """The document (docs/monitoring.md has its fields)."""
    stats, plan, config = seen.stats, seen.plan, seen.plan.config
    if not config.expose_basket_models:
        hidden = [replace(entry, outliers=frozenset()) for entry in seen.rounds]
        seen = replace(seen, rounds=hidden)
    claim = stats["privacy_claim"]
    state = seen.state or _state_of(stats)
    sites = _sites(seen)
    document: dict[str, Any] = plain(
        {
            "format_version": FORMAT_VERSION,
            "at": seen.at,
            "federation": {
                "id": stats["ledger"]["federation_id"],
                "name": seen.name,
                "num_coordinates": config.vector_dim,
                "rule": config.layer1.aggregation_method.value,
                "unit": claim["unit"],
                "noise": claim["noise"],
                "against": claim["against"],
                "exposes_basket_models": config.expose_basket_models,
                "needs_operator_signature": config.operator_key is not None,
            },
            "state": state.value,
            "sentence": seen.sentence or _sentence(state, stats),
            "round": _round_now(seen),
            "budget": _budget(stats, plan),
            "sites": sites,
            "baskets": _baskets(stats),
            "refusals": dict(stats["rejections"]),
            "totals": dict(seen.totals),
            "outliers": _outliers(seen),
            "validation": _validation(seen.rounds),
            "work": _work(seen),
            "ledger": {
                "path": stats["ledger_path"],
                "head": stats["ledger_head"],
                "opened": stats["ledger"]["incarnation"],
                "created": stats["ledger"]["created"],
                "releases_charged": stats["ledger"]["releases_charged"],
            },
            "counts": {name: stats[key] for name, key in _COUNTS.items()},
            "faults": {"count": len(stats["faults"]), "newest": list(stats["faults"][-MOST_FAULTS:])},
            "warnings": [str(warned.get("message", "")) for warned in stats["warnings"]],
            "rounds": [
                {"round": entry.round_id, **_told(entry.facts)} for entry in seen.rounds if entry.facts
            ],
            "gateway": None if seen.gateway is None else dict(seen.gateway),
        }
    )
    return document


_COUNTS = {
    "updates_buffered": "n_updates_buffered",
    "updates_withdrawn": "n_updates_withdrawn",
    "layer1_aggregations": "n_layer1_aggregations",
    "releases": "n_layer2_aggregations",
    "release_aborts": "n_layer2_aborts",
    "protocol_violations": "n_layer2_violations",
    "rule_failures": "n_rule_failures",
    "gossip_messages": "n_gossip_messages",
}
"""Names in a status, and under which `get_stats` has them."""


def outliers_of(stats: Mapping[str, Any]) -> frozenset[str]:
    """The clients far from the others in their basket's latest aggregate; none if that is private."""
    return frozenset(
        client_id
        for domain in stats["basket_stats"].values()
        for basket in domain["baskets"].values()
        for client_id in basket.get("outliers", ())
    )


def headline(waiting: Mapping[str, Any]) -> str:
    """What a round waits for, in one line, of the plain data of `WaitingFor`.

    >>> basket = {"missing": "updates", "absent": ["ward-3"], "num_absent": 1}
    >>> headline({"num_fresh": 4, "wanted_baskets": 5, "baskets": [basket]})
    '4 of 5 baskets; waiting for ward-3'
    """
    lacking = [basket for basket in waiting["baskets"] if basket["missing"] != "release"]
    named = [client_id for basket in lacking for client_id in basket["absent"]]
    more = sum(basket["num_absent"] for basket in lacking) - len(named[:MOST_NAMED])
    told = ", ".join(named[:MOST_NAMED]) + (f" and {more} more" if named and more > 0 else "")
    return f"{waiting['num_fresh']} of {waiting['wanted_baskets']} baskets" + (
        f"; waiting for {told}" if told else ""
    )


def plain(value: Any) -> Any:
    """The value with what is not finite as None, so that it is JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _state_of(stats: Mapping[str, Any]) -> State:
    if stats["waiting_for"]["missing"] == "ledger":
        return State.STOPPED
    if stats["read_only"]:
        return State.BUDGET_SPENT
    return State.OPEN if stats["n_clients"] else State.EMPTY


def _sentence(state: State, stats: Mapping[str, Any]) -> str:
    if state is State.EMPTY:
        return "No site is registered yet."
    if state is State.BUDGET_SPENT:
        return "The privacy budget is spent: nothing is released until an operator renews it."
    if state is State.STOPPED:
        return str(stats["waiting_for"]["sentence"])
    return headline(stats["waiting_for"])


def _round_now(seen: Observed) -> dict[str, Any]:
    waiting = seen.stats["waiting_for"]
    return {
        "number": seen.stats["current_round"],
        "headline": headline(waiting),
        "baskets_ready": waiting["num_fresh"],
        "baskets_wanted": waiting["wanted_baskets"],
        "baskets_least": waiting["least_baskets"],
        "closes_in_seconds": seen.closes_in_seconds,
        "missing": waiting["missing"],
        "text": waiting["text"],
        "baskets": [
            {
                "id": basket["basket_id"],
                "sites": basket["num_members"],
                "sent": basket["num_senders"],
                "needs_sites": basket["least_rows"],
                "is_ready": basket["missing"] == "release",
                "absent": basket["absent"],
                "num_absent": basket["num_absent"],
            }
            for basket in waiting["baskets"]
        ],
        "last_abort": next(reversed(seen.stats["last_layer2_aborts"]), None),
    }


def _budget(stats: Mapping[str, Any], plan: FederationPlan) -> dict[str, Any]:
    ledger = stats["ledger"]
    left, cost = _rounds_and_cost(stats, plan)
    return {
        "unit": stats["privacy_claim"]["unit"],
        "accounting": stats["privacy_accounting"],
        "period": ledger["period"],
        "epsilon_total": ledger["epsilon_total"],
        "epsilon_spent": ledger["epsilon_spent"],
        "epsilon_left": ledger["epsilon_left"],
        "epsilon_lifetime": stats["privacy_lifetime_epsilon"],
        "delta": ledger["delta_total"],
        "rounds_left": left,
        "next_release_epsilon": cost,
        "is_spent": stats["read_only"],
        "reason": stats["read_only_reason"],
        "ceilings": dict(stats["ceilings"]),
    }


def _rounds_and_cost(stats: Mapping[str, Any], plan: FederationPlan) -> tuple[int | None, float]:
    """Rounds that the budget still buys, None without end; and by how much the next one raises epsilon.

    Where clients noise their rows these are of the client that has spent most.
    """
    ledger = stats["ledger"]
    spent, delta = float(ledger["epsilon_spent"]), float(ledger["delta_total"])
    before = plan.accounting.mu_of_claim(spent, delta) if spent > 0.0 else 0.0
    if plan.site_noise is None:
        mu, left = float(ledger["next_mu"]), stats["n_releases_left"]
    else:
        mu, rest = plan.row_schedule.mu_release, plan.mu_total**2 - before**2
        left = int(rest / mu**2 * (1.0 + 1e-9)) if mu and math.isfinite(rest) else None
    if not (math.isfinite(before) and math.isfinite(mu)):
        return left, math.inf
    cost = max(0.0, plan.accounting.epsilon_of(math.hypot(before, mu), delta) - spent)
    return (0 if stats["read_only"] else left), cost


def _sites(seen: Observed) -> dict[str, Any]:
    stats = seen.stats
    left_out = set(stats["ceilings"]["left_out"])
    left_out |= {client_id for client_id, ceiling in seen.ceilings.items() if ceiling.is_left_out}
    known = {client.client_id: client for client in seen.clients}
    names = sorted(known.keys() | seen.enrolments.keys() | left_out)
    listed, by_state = list[dict[str, Any]](), Counter[str]()
    for client_id in names:
        site = _site(client_id, known.get(client_id), seen, client_id in left_out)
        by_state[site["state"]] += 1
        listed.append(site)
    days = [site["certificate_days_left"] for site in listed if site["state"] != SiteState.REVOKED]
    order = [SiteState.REVOKED, SiteState.LEFT_OUT, SiteState.STALE, SiteState.NEVER, SiteState.UP]
    listed.sort(key=lambda site: (order.index(SiteState(site["state"])), site["id"]))
    return {
        "registered": stats["n_clients"],
        "listed": min(len(listed), MOST_SITES),
        "unlisted": max(0, stats["n_clients"] - len(known)) + max(0, len(listed) - MOST_SITES),
        "by_state": {state.value: by_state[state] for state in SiteState},
        "first_certificate_days_left": min((left for left in days if left is not None), default=None),
        "strip_rounds": [entry.round_id for entry in seen.rounds],
        "list": listed[:MOST_SITES],
    }


def _site(client_id: str, info: ClientInfo | None, seen: Observed, is_left_out: bool) -> dict[str, Any]:
    ceiling, enrolment = seen.ceilings.get(client_id), seen.enrolments.get(client_id)
    heard = [info.last_active] if info is not None and info.n_updates else []
    heard += [seen.last_seen[client_id]] if client_id in seen.last_seen else []
    last = max(heard, default=None)
    if enrolment is not None and enrolment.revoked:
        state = SiteState.REVOKED
    elif is_left_out:
        state = SiteState.LEFT_OUT
    elif last is None:
        state = SiteState.NEVER
    else:
        is_stale = seen.at - last > seen.plan.config.basket.stale_threshold
        state = SiteState.STALE if is_stale else SiteState.UP
    days = None
    if enrolment is not None and enrolment.certificate_expires is not None:
        days = math.floor((enrolment.certificate_expires - seen.at) / SECONDS_A_DAY)
    return {
        "id": client_id,
        "domain": None if info is None else info.domain_id,
        "basket": None if info is None else info.basket_id,
        "state": state.value,
        "last_seen": last,
        "updates": 0 if info is None else info.n_updates,
        "certificate_days_left": days,
        "ceiling": None
        if ceiling is None
        else {
            "epsilon": ceiling.epsilon,
            "delta": ceiling.delta,
            "epsilon_spent": ceiling.epsilon_spent,
            "epsilon_left": 0.0 if is_left_out else max(0.0, ceiling.epsilon - ceiling.epsilon_spent),
        },
        "strip": strip_of(client_id, seen.rounds),
    }


def _baskets(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "id": basket_id,
            "domain": domain_id,
            "clients": basket["clients"],
            "updates": basket["updates"],
            "status": basket["status"],
            "needs_clients": basket["layer1_needs_clients"],
            "has_aggregate": basket["fresh"],
        }
        for domain_id, domain in sorted(stats["basket_stats"].items())
        for basket_id, basket in sorted(domain["baskets"].items())
    ]


def _outliers(seen: Observed) -> dict[str, Any] | None:
    """Who was far from the others, and in which rounds; None where that is private."""
    if not seen.plan.config.expose_basket_models:
        return None
    times = Counter(client_id for entry in seen.rounds for client_id in entry.outliers)
    return {
        "rounds": [entry.round_id for entry in seen.rounds],
        "sites": [
            {
                "id": client_id,
                "count": count,
                "strip": "".join("o" if client_id in entry.outliers else "." for entry in seen.rounds),
            }
            for client_id, count in sorted(times.items(), key=lambda item: (-item[1], item[0]))[:MOST_SITES]
        ],
        "now": sorted(outliers_of(seen.stats))[:MOST_SITES],
    }


def _validation(rounds: Sequence[Round]) -> dict[str, Any]:
    """Metrics of the newest round that has some, by domain, and how they came there; and the private ones."""
    by_domain = [(entry.round_id, entry.facts.get("validation") or {}) for entry in rounds]
    private = [(entry.round_id, entry.facts.get("private_validation") or {}) for entry in rounds]
    domains: dict[str, Any] = {}
    for round_id, found in by_domain:
        for domain, metrics in found.items():
            for name, value in metrics.items():
                trend = domains.setdefault(domain, {}).setdefault(name, {"rounds": [], "values": []})
                trend["rounds"].append(round_id)
                trend["values"].append(value)
    told = next(((number, found) for number, found in reversed(private) if found), None)
    return {
        "domains": domains,
        "private": None if told is None else {"round": told[0], "metrics": told[1]},
    }


def _work(seen: Observed) -> dict[str, Any]:
    """Bytes and seconds: what the forecast says of a round, and what the last one took."""
    last = next((entry.facts for entry in reversed(seen.rounds) if entry.facts), None)
    told: dict[str, Any] = {"forecast": None, "forecast_error": "", "last_round": None}
    sizes = [
        basket["clients"]
        for domain in seen.stats["basket_stats"].values()
        for basket in domain["baskets"].values()
        if basket["clients"]
    ]
    if sizes:
        try:
            forecast = Forecast(seen.plan.config, sizes, 1)
            told["forecast"] = {
                "seconds_on_one_core": round_seconds(forecast).on_one_core,
                "update_bytes": forecast.traffic.updates,
                "secure_sum_bytes": forecast.traffic.secure_sum,
                "gossip_bytes_at_most": forecast.traffic.gossip_most,
            }
        except ConfigError as error:
            told["forecast_error"] = str(error)
    if last is not None:
        own = sum(seconds for phase, seconds in last["phases"].items() if phase not in SITES_PHASES)
        told["last_round"] = {
            "seconds": last["seconds"],
            "own_seconds": own if last["phases"] else None,
            "update_bytes": last["num_bytes"],
            "phases": last["phases"],
        }
    return told


SITES_PHASES = ("training", "waiting", "evaluation", "client_evaluation")
"""Phases of a round in which sites work, or are waited for: the forecast leaves them out."""


def _told(facts: Mapping[str, Any]) -> dict[str, Any]:
    names = ("released", "seconds", "num_bytes", "accepted", "refusals", "epsilon_spent")
    return {name: facts[name] for name in names}


__all__ = [
    "FORMAT_VERSION",
    "Enrolment",
    "Observed",
    "SiteState",
    "State",
    "federation_status",
    "headline",
    "observe",
    "outliers_of",
    "plain",
]
