"""A run as one self-contained HTML page: its metrics, what they are compared with, and its privacy.

The text is in `templates`: `page.html.j2` is the frame of `run.html.j2` and, for a run without Layer 2,
`gossip.html.j2`. All values but the charts are escaped. The page loads nothing from elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from scarcity_ray.config import to_plain
from scarcity_ray.federation.evaluation import INSIDE_CLAIM, OUTSIDE_CLAIM
from scarcity_ray.workloads.comparison import GOSSIP_RUNS, RULES, RUNS, UNATTACKED
from scarcity_ray.workloads.config import RunConfig
from scarcity_ray.workloads.records import Outcome, Summary
from scarcity_ray.workloads.report.charts import (
    LABELS,
    as_figure,
    at_home,
    basket_chart,
    budget_chart,
    metric_chart,
    rejection_chart,
    time_chart,
)

BASKET_COLUMNS = (
    ("members", "members"),
    ("members_at_home", "members, own data"),
    ("alone", "without gossip"),
    ("model", "basket's model"),
)
"""Keys of `standing_figures` and their headings."""

LEAST_SECONDS = 0.05
"""Phases that took less are left out of the table of times."""
MOST_CLIENTS = 20
"""Clients with refusals that are listed."""


def render_report(config: RunConfig, outcome: Outcome) -> str:
    """The page of a finished job."""
    summary = outcome.summary
    by_gossip = not config.federation.layer2.enabled
    total = summary.total_epsilon
    own = [run for run in summary.runs if run.attack in (summary.attack, "none") and run.run != "federation"]
    context = {
        "summary": summary,
        "rounds": outcome.rounds,
        "beside": own,
        "attacked": is_attacked(summary),
        "budget": epsilon(total) if math.isinf(total) else f"{total:g}",
        "metrics": [(name, as_figure(name, value)) for name, value in (summary.metrics or {}).items()],
        "comparison": comparison_rows(summary, GOSSIP_RUNS if by_gossip else RUNS),
        "attacks": attack_rows(summary),
        "failed_runs": failed_runs(summary),
        "domains": domain_rows(outcome),
        "refused": refused_rows(summary),
        "outside_claim": OUTSIDE_CLAIM,
        "inside_claim": INSIDE_CLAIM,
        "private": private_rows(summary),
        "phases": [
            (phase, f"{seconds:.1f}")
            for phase, seconds in sorted(summary.seconds.items(), key=lambda item: -item[1])
            if seconds >= LEAST_SECONDS
        ],
        "basket_head": ("basket", "attackers", *(heading for _, heading in BASKET_COLUMNS)),
        "basket_rows": basket_rows(summary),
        "settings": yaml.safe_dump(to_plain(config), sort_keys=False),
    }
    return _templates.get_template("gossip.html.j2" if by_gossip else "run.html.j2").render(context)


def is_attacked(summary: Summary) -> bool:
    """Whether anybody attacked."""
    return bool(summary.byzantine_clients) and summary.attack != "none"


def comparison_rows(summary: Summary, meaning: Mapping[Any, str] = RUNS) -> list[tuple[str, ...]]:
    """The run and those beside it, under its attack or none: name, what it is, attack, headline metric."""
    own = attack_name(summary.attack)
    rows: list[tuple[str, ...]] = [
        (
            "this run",
            "as configured, through the federation",
            own,
            as_figure(summary.metric, summary.headline),
        )
    ]
    for run in summary.runs:
        if run.attack == summary.attack or run.run in UNATTACKED:
            value = as_figure(summary.metric, run.metrics.get(summary.metric))
            rows.append((LABELS[run.run], meaning[run.run], attack_name(run.attack), value))
    return rows


def attack_rows(summary: Summary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The runs beside by attack and rule: headings and rows; no rows if there is but one attack."""
    attacks = list(dict.fromkeys(run.attack for run in summary.runs if run.run in RULES))
    rules = [rule for rule in RUNS if rule in RULES and any(run.run == rule for run in summary.runs)]
    head = ("attack", *("this federation's rule" if rule == "federation" else LABELS[rule] for rule in rules))
    rows = [
        (attack_name(attack), *(as_figure(summary.metric, summary.beside(rule, attack)) for rule in rules))
        for attack in attacks
    ]
    return head, rows if len(attacks) > 1 else []


def domain_rows(outcome: Outcome) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Domains by their clients and what these told last, in training and of the release."""
    told: list[tuple[str, Mapping[str, Mapping[str, float]]]] = [
        (title, next((found for record in reversed(outcome.rounds) if (found := getattr(record, key))), {}))
        for title, key in (("in training", "training"), ("of the release", "clients"))
    ]
    columns = [
        (title, by_domain, name)
        for title, by_domain in told
        for name in dict.fromkeys(name for metrics in by_domain.values() for name in metrics)
    ]
    head = ("domain", "clients", *(f"{name.replace('_', ' ')}, {title}" for title, _, name in columns))
    rows = [
        (
            domain,
            str(count),
            *(as_figure(name, by_domain.get(domain, {}).get(name)) for _, by_domain, name in columns),
        )
        for domain, count in sorted(outcome.summary.domains.items())
    ]
    return head, rows


def private_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Metrics that clients measured privately: mean, standard error, examples a client and their error."""
    return [
        (
            name.replace("_", " "),
            str(found) if found.mean is None else as_figure(name, found.mean),
            "" if found.standard_error is None else as_figure(name, found.standard_error),
            f"{found.examples:.3g} \N{PLUS-MINUS SIGN} {found.examples_error:.2g}",
        )
        for name, found in sorted(summary.private_evaluation.items())
    ]


def refused_rows(summary: Summary) -> list[tuple[str, str]]:
    """Clients with most refusals, by reason."""
    worst = sorted(summary.refused.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    return [
        (client, ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in counts.items()))
        for client, counts in worst[:MOST_CLIENTS]
    ]


def basket_rows(summary: Summary) -> list[tuple[str, ...]]:
    """The rows of the table of baskets, under `BASKET_COLUMNS`' headings."""
    return [
        (
            basket,
            f"{standing['byzantine']} of {standing['clients']}",
            *(as_figure(summary.metric, standing_figures(standing)[key]) for key, _ in BASKET_COLUMNS),
        )
        for basket, standing in summary.basket_standings.items()
    ]


def standing_figures(standing: Mapping[str, Any]) -> dict[str, float | None]:
    """A basket's figures by the keys of `BASKET_COLUMNS`, the last two on own data if known."""
    alone = standing.get("alone") or {}
    is_home = standing["members_at_home"] is not None
    return {
        "members": standing["members"],
        "members_at_home": standing["members_at_home"],
        "alone": alone.get("members_at_home" if is_home else "members"),
        "model": standing["model_at_home" if is_home else "model"],
    }


def mean_of(summary: Summary, key: str) -> float | None:
    """Mean of a basket's figure over all honest clients; None where some basket has none."""
    total, honest = 0.0, 0
    for standing in summary.basket_standings.values():
        value = standing_figures(standing)[key]
        if value is None:
            return None
        count = standing["clients"] - standing["byzantine"]
        total, honest = total + count * value, honest + count
    return total / honest if honest else None


def simulated_note(summary: Summary) -> str:
    """Why the run and its simulation differ, in figures."""
    simulated = summary.beside("federation", summary.attack)
    if summary.headline is None or simulated is None:
        return ""
    gossip = ", and it leaves gossip out" if summary.gossip_messages else ""
    return (
        f"This run reached {as_figure(summary.metric, summary.headline)} and the simulation of the same rule "
        f"under the same attack {as_figure(summary.metric, simulated)}: one draw each. The run's noise is "
        f"fresh from the operating system, the simulation's comes from the seed{gossip}. Another run gives "
        "another figure."
    )


def failed_runs(summary: Summary) -> list[str]:
    """The runs beside that failed, whole or in part, and how."""
    return [
        f"{LABELS[run.run]}{'' if run.attack == 'none' else f' under {attack_name(run.attack)}'}: "
        f"{run.failed.splitlines()[0]}"
        for run in summary.runs
        if run.failed
    ]


def epsilon(value: float) -> str:
    """An epsilon for reading.

    >>> epsilon(9.7366), epsilon(math.inf)
    ('9.74', '∞')
    """
    return "∞" if math.isinf(value) else f"{value:.2f}"


def attack_name(name: str) -> str:
    """An attack's name for reading.

    >>> attack_name("sign_flip"), attack_name("alie")
    ('sign flip', 'ALIE')
    """
    words = {"alie": "ALIE", "ipm": "IPM", "nan": "NaN", "inf": "infinity"}
    return " ".join(words.get(word, word) for word in name.split("_"))


_templates = Environment(
    loader=PackageLoader("scarcity_ray.workloads.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(epsilon=epsilon, attack_name=attack_name)
_templates.globals.update(
    as_figure=as_figure,
    at_home=at_home,
    basket_chart=basket_chart,
    budget_chart=budget_chart,
    mean_of=mean_of,
    metric_chart=metric_chart,
    rejection_chart=rejection_chart,
    simulated_note=simulated_note,
    time_chart=time_chart,
)
