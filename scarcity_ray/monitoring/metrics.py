"""Metrics: what is measured, under which names, and their values in a status.

Each is exported twice: through Ray's own metrics, with ``ray_`` before its name, on every node; and at a
gateway's ``/metrics``. Labels are the federation, its domains, phases, reasons and states, never a client's
id; of domains the first `MOST_DOMAINS` have a label of their own.

Guarantees:
    no_label_holds_a_clients_id
    what_is_not_known_has_no_sample
    every_sample_is_of_a_listed_metric
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from scarcity_ray.runtime.samples import Metric, Sample

PREFIX = "scarcity_ray_"
MOST_DOMAINS = 50
OTHER_DOMAINS = "(others)"


def _metric(name: str, description: str, *labels: str, kind: Literal["gauge", "counter"] = "gauge") -> Metric:
    return Metric(f"{PREFIX}{name}", kind, description, ("federation", *labels))


def _counter(name: str, description: str, *labels: str) -> Metric:
    return _metric(f"{name}_total", description, *labels, kind="counter")


CLIENTS = _metric("clients", "Registered clients.", "domain")
SITES = _metric("sites", "Sites by state: up, stale, never_seen, left_out, revoked.", "state")
BASKETS = _metric("baskets", "Baskets by status.", "status")
ROUND = _metric("round", "Number of the current round.")
BASKETS_READY = _metric("baskets_ready", "Baskets with an aggregate for the next release.")
BASKETS_WANTED = _metric("baskets_wanted", "Baskets that make the next release due at once.")
BUFFERED = _metric("updates_buffered", "Updates that are in no aggregate yet.")
EPSILON_TOTAL = _metric("epsilon_budget", "Epsilon of this budget period.")
EPSILON_SPENT = _metric("epsilon_spent", "Epsilon spent in this budget period.")
EPSILON_LEFT = _metric("epsilon_left", "Epsilon left; 0 once the next release does not fit.")
EPSILON_LIFETIME = _metric("epsilon_lifetime", "Epsilon spent over all budget periods.")
EPSILON_NEXT = _metric("epsilon_next_release", "By how much the next release raises epsilon.")
ROUNDS_LEFT = _metric("rounds_left", "Rounds that the budget still buys.")
READ_ONLY = _metric("budget_is_spent", "1 if nothing more is released until the budget is renewed.")
LEFT_OUT = _metric("clients_left_out", "Clients left out at ceilings of their own.")
ACCEPTED = _counter("updates_accepted", "Updates accepted since this process began.")
REFUSED = _counter("updates_refused", "Updates refused.", "reason")
WITHDRAWN = _counter("updates_withdrawn", "Updates withdrawn as their client left.")
LAYER1 = _counter("layer1_aggregations", "Aggregations of a basket.")
RELEASES = _counter("releases", "Released global models.")
ABORTS = _counter("release_aborts", "Sessions of secure aggregation that ended without a release.")
VIOLATIONS = _counter("protocol_violations", "Messages that the protocol of secure aggregation forbids.")
RULE_FAILURES = _counter("rule_failures", "Failures of a rule from outside, or of a GPU.")
GOSSIP = _counter("gossip_messages", "Gossip messages delivered.")
FAULTS = _counter("faults", "Losses with roles that died.")
ROUND_SECONDS = _metric("round_seconds", "Seconds of the last round.")
PHASE_SECONDS = _metric("round_phase_seconds", "Seconds of the last round by phase.", "phase")
FORECAST_SECONDS = _metric("forecast_round_seconds", "Forecast of a round on one core, without training.")
ROUND_BYTES = _metric("round_update_bytes", "Bytes of updates in the last round.")
FORECAST_BYTES = _metric("forecast_round_update_bytes", "Forecast: bytes of updates if all clients send.")
CERTIFICATE = _metric("certificate_days_left", "Days until the first certificate of a site expires.")
VALIDATION = _metric(
    "validation", "A metric as a domain's clients measured it: outside the claim.", "domain", "metric"
)
OPEN_REQUESTS = _metric("gateway_open_requests", "Requests that this gateway is answering.")
RECEIVED = _counter("gateway_received_bytes", "Bytes of bodies that this gateway received.")
SENT = _counter("gateway_sent_bytes", "Bytes of bodies that this gateway sent.")
ANSWERS = _counter("gateway_answers", "Answers of this gateway by HTTP status.", "status")

METRICS: tuple[Metric, ...] = tuple(value for value in list(vars().values()) if isinstance(value, Metric))
"""All of them."""


def samples_of(status: Mapping[str, Any]) -> list[Sample]:
    """The samples of a status (`status.federation_status`)."""
    federation = str(status["federation"]["name"] or status["federation"]["id"])
    return [
        Sample(metric, float(value), {"federation": federation, **labels})
        for metric, value, labels in _values(status)
        if value is not None
    ]


_Value = tuple[Metric, Any, dict[str, str]]


def _values(status: Mapping[str, Any]) -> Iterator[_Value]:
    now, budget, counts = status["round"], status["budget"], status["counts"]
    for metric, value in (
        (ROUND, now["number"]),
        (BASKETS_READY, now["baskets_ready"]),
        (BASKETS_WANTED, now["baskets_wanted"]),
        (BUFFERED, counts["updates_buffered"]),
        (EPSILON_TOTAL, budget["epsilon_total"]),
        (EPSILON_SPENT, budget["epsilon_spent"]),
        (EPSILON_LEFT, budget["epsilon_left"]),
        (EPSILON_LIFETIME, budget["epsilon_lifetime"]),
        (EPSILON_NEXT, budget["next_release_epsilon"]),
        (ROUNDS_LEFT, budget["rounds_left"]),
        (READ_ONLY, budget["is_spent"]),
        (LEFT_OUT, budget["ceilings"]["num_left_out"]),
        (ACCEPTED, status["totals"].get("accepted")),
        (WITHDRAWN, counts["updates_withdrawn"]),
        (LAYER1, counts["layer1_aggregations"]),
        (RELEASES, counts["releases"]),
        (ABORTS, counts["release_aborts"]),
        (VIOLATIONS, counts["protocol_violations"]),
        (RULE_FAILURES, counts["rule_failures"]),
        (GOSSIP, counts["gossip_messages"]),
        (FAULTS, status["faults"]["count"]),
    ):
        yield metric, value, {}
    for reason, count in status["refusals"].items():
        yield REFUSED, count, {"reason": reason}
    for state, count in status["sites"]["by_state"].items():
        yield SITES, count, {"state": state}
    clients, statuses = Counter[str](), Counter[str]()
    for basket in status["baskets"]:
        clients[basket["domain"]] += basket["clients"]
        statuses[basket["status"]] += 1
    for domain, count in _few(clients).items():
        yield CLIENTS, count, {"domain": domain}
    for name, count in statuses.items():
        yield BASKETS, count, {"status": name}
    yield CERTIFICATE, status["sites"]["first_certificate_days_left"], {}
    yield from _work(status["work"])
    for domain, metrics in sorted(status["validation"]["domains"].items())[:MOST_DOMAINS]:
        for name, trend in metrics.items():
            yield VALIDATION, trend["values"][-1], {"domain": domain, "metric": name}
    yield from _gateway(status["gateway"])


def _work(work: Mapping[str, Any]) -> Iterator[_Value]:
    if work["forecast"] is not None:
        yield FORECAST_SECONDS, work["forecast"]["seconds_on_one_core"], {}
        yield FORECAST_BYTES, work["forecast"]["update_bytes"], {}
    if work["last_round"] is not None:
        yield ROUND_SECONDS, work["last_round"]["seconds"], {}
        yield ROUND_BYTES, work["last_round"]["update_bytes"], {}
        for phase, seconds in work["last_round"]["phases"].items():
            yield PHASE_SECONDS, seconds, {"phase": phase}


def _gateway(gateway: Mapping[str, Any] | None) -> Iterator[_Value]:
    if gateway is None:
        return
    yield OPEN_REQUESTS, gateway.get("open_requests"), {}
    yield RECEIVED, gateway.get("bytes_received"), {}
    yield SENT, gateway.get("bytes_sent"), {}
    for status, count in gateway.get("answers", {}).items():
        yield ANSWERS, count, {"status": str(status)}


def _few(clients: Mapping[str, int]) -> dict[str, int]:
    """The first domains, and the others as one."""
    names = sorted(clients)
    few = {name: clients[name] for name in names[:MOST_DOMAINS]}
    if names[MOST_DOMAINS:]:
        few[OTHER_DOMAINS] = sum(clients[name] for name in names[MOST_DOMAINS:])
    return few


__all__ = ["METRICS", "PREFIX", "samples_of"]
