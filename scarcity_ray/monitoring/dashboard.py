"""What the Grafana dashboard shows, as plain data; `runtime.ray_dashboard` writes it as Ray writes its own.

A query finds a metric under both of its names, ``scarcity_ray_...`` at a gateway and ``ray_scarcity_ray_...``
at Ray's endpoints, and takes the greatest where several processes tell the same.

Guarantees:
    every_query_names_a_metric_that_exists
    every_metric_is_on_the_dashboard
"""

from __future__ import annotations

from scarcity_ray.monitoring import metrics as m
from scarcity_ray.runtime.samples import Metric, PanelSpec, Query

WINDOW = "10m"
"""Over which a counter's rise is shown."""


def _query(metric: Metric, legend: str = "") -> Query:
    by = ", ".join(metric.labels)
    selected = f'{{__name__=~"(ray_)?{metric.name}", federation=~"$federation"}}'
    expr = f"max by ({by}) ({selected})"
    if metric.kind == "counter":
        expr = f"max by ({by}) (increase({selected}[{WINDOW}]))"
    words = " ".join(f"{{{{{label}}}}}" for label in metric.labels)
    return Query(expr, f"{words} {legend}".strip())


def _panel(title: str, description: str, unit: str, *shown: Metric | tuple[Metric, str]) -> PanelSpec:
    queries = (_query(*one) if isinstance(one, tuple) else _query(one) for one in shown)
    return PanelSpec(title, description, unit, tuple(queries))


ROWS: tuple[tuple[str, tuple[PanelSpec, ...]], ...] = (
    (
        "Privacy budget",
        (
            _panel(
                "Epsilon",
                "Spent and left of this budget period, and spent over all periods.",
                "none",
                (m.EPSILON_SPENT, "spent"),
                (m.EPSILON_LEFT, "left"),
                (m.EPSILON_TOTAL, "budget"),
                (m.EPSILON_LIFETIME, "of all periods"),
            ),
            _panel("Rounds left", "That the budget still buys.", "none", m.ROUNDS_LEFT),
            _panel("Cost of the next release", "By how much it raises epsilon.", "none", m.EPSILON_NEXT),
            _panel(
                "Stopped by privacy",
                "1 while the budget is spent; and clients left out at ceilings of their own.",
                "none",
                (m.READ_ONLY, "budget is spent"),
                (m.LEFT_OUT, "clients left out"),
            ),
        ),
    ),
    (
        "Rounds",
        (
            _panel("Round", "The current round's number.", "none", m.ROUND),
            _panel(
                "Baskets ready",
                "Baskets with an aggregate for the next release, and those that make it due at once.",
                "none",
                (m.BASKETS_READY, "ready"),
                (m.BASKETS_WANTED, "wanted"),
            ),
            _panel("Baskets", "By status.", "none", m.BASKETS),
            _panel(
                f"Releases in {WINDOW}",
                "Global models, and sessions of secure aggregation without one.",
                "none",
                (m.RELEASES, "released"),
                (m.ABORTS, "aborted"),
                (m.LAYER1, "basket aggregates"),
            ),
            _panel(
                "Seconds of the last round",
                "In all, and the forecast of the federation's own work on one core.",
                "s",
                (m.ROUND_SECONDS, "in all"),
                (m.FORECAST_SECONDS, "forecast, own work"),
            ),
            _panel("Seconds by phase", "Of the last round.", "s", m.PHASE_SECONDS),
            _panel(
                "Bytes of updates",
                "Of the last round, and forecast if all clients send.",
                "decbytes",
                (m.ROUND_BYTES, "last round"),
                (m.FORECAST_BYTES, "forecast"),
            ),
            _panel(
                "Validation",
                "As each domain's clients measured the model: outside the privacy claim.",
                "none",
                m.VALIDATION,
            ),
        ),
    ),
    (
        "Sites and updates",
        (
            _panel("Sites", "By state.", "none", m.SITES),
            _panel("Clients", "Registered, by domain.", "none", m.CLIENTS),
            _panel("Certificate", "Days until the first of a site's expires.", "d", m.CERTIFICATE),
            _panel(
                f"Updates in {WINDOW}",
                "Accepted and withdrawn; and those that wait now.",
                "none",
                (m.ACCEPTED, "accepted"),
                (m.WITHDRAWN, "withdrawn"),
                (m.BUFFERED, "waiting now"),
            ),
            _panel(f"Refused updates in {WINDOW}", "By reason.", "none", m.REFUSED),
            _panel(f"Gossip in {WINDOW}", "Messages delivered.", "none", m.GOSSIP),
            _panel(
                f"Losses in {WINDOW}",
                "With roles that died; forbidden messages; failures of a rule from outside.",
                "none",
                (m.FAULTS, "lost"),
                (m.VIOLATIONS, "forbidden messages"),
                (m.RULE_FAILURES, "rule failures"),
            ),
        ),
    ),
    (
        "Gateways",
        (
            _panel("Open requests", "That a gateway is answering.", "none", m.OPEN_REQUESTS),
            _panel(f"Answers in {WINDOW}", "By HTTP status.", "none", m.ANSWERS),
            _panel(
                f"Bytes in {WINDOW}",
                "Of bodies.",
                "decbytes",
                (m.RECEIVED, "received"),
                (m.SENT, "sent"),
            ),
        ),
    ),
)
"""Rows of panels, each with a title."""

__all__ = ["ROWS"]
