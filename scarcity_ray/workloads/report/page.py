"""A run as one self-contained HTML page: its accuracy, what that is compared with, and its privacy.

The text is in `templates`: `page.html.j2` is the frame of `run.html.j2` and, for a run without Layer 2,
`gossip.html.j2`. All values but the charts are escaped. The page loads nothing from elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from scarcity_ray.config import to_plain
from scarcity_ray.workloads.comparison import DEFENCES, GOSSIP_DEFENCES
from scarcity_ray.workloads.config import RunConfig
from scarcity_ray.workloads.records import Outcome, Summary
from scarcity_ray.workloads.report.charts import (
    LABELS,
    accuracy_chart,
    basket_chart,
    budget_chart,
    rejection_chart,
    time_chart,
)

BASKET_COLUMNS = (
    ("members", "members, all digits"),
    ("members_at_home", "members, at home"),
    ("alone_at_home", "without gossip"),
    ("model_at_home", "basket's model"),
)
"""Keys of `standing_figures` and their headings."""
BASKET_HEAD = ("basket", "attackers", *(heading for _, heading in BASKET_COLUMNS))

LEAST_SECONDS = 0.05
"""Phases that took less are left out of the table of times."""


def render_report(config: RunConfig, outcome: Outcome) -> str:
    """The page of a finished job."""
    summary = outcome.summary
    by_gossip = not config.federation.layer2.enabled
    total = summary.total_epsilon
    shown = ("alone", "clear_gossip", "clean") if by_gossip else ("clean", "clipped_mean", "plain_mean")
    context = {
        "summary": summary,
        "rounds": outcome.rounds,
        "curves": _curves(outcome, shown),
        "attacked": bool(summary.byzantine_clients) and summary.attack != "none",
        "budget": epsilon(total) if math.isinf(total) else f"{total:g}",
        "settings": yaml.safe_dump(to_plain(config), sort_keys=False),
        **(_of_gossip(summary) if by_gossip else _of_releases(summary)),
    }
    return _templates.get_template("gossip.html.j2" if by_gossip else "run.html.j2").render(context)


def _curves(outcome: Outcome, names: Sequence[str]) -> dict[str, list[float]]:
    """The comparison runs of these names, under the job's attack; the clean run has none."""
    keys = {name: (name, "none" if name == "clean" else outcome.summary.attack) for name in names}
    return {name: outcome.curves[key] for name, key in keys.items() if key in outcome.curves}


def _of_releases(summary: Summary) -> dict[str, Any]:
    """What `run.html.j2` shows in tables."""
    noise = "central noise" if math.isfinite(summary.total_epsilon) else "no noise"
    compared = {
        "clean": summary.accuracy_clean,
        "clipped_mean": summary.accuracy_clipped_mean,
        "plain_mean": summary.accuracy_mean_under_attack,
    }
    rule = summary.rule.replace("_", " ")
    return {
        "comparison": [
            ("this run", f"{rule} in each basket, gossip, {noise}", percent(summary.accuracy)),
            *((LABELS[name], DEFENCES[name], percent(value)) for name, value in compared.items()),
        ],
        "attacks": [
            (attack_name(name), *(percent(runs.get(d)) for d in ("federation", "clipped_mean", "plain_mean")))
            for name, runs in summary.attacks.items()
            if name != "none"
        ],
        "phases": [
            (phase, f"{seconds:.1f}")
            for phase, seconds in sorted(summary.seconds.items(), key=lambda item: -item[1])
            if seconds >= LEAST_SECONDS
        ],
    }


def _of_gossip(summary: Summary) -> dict[str, Any]:
    """What `gossip.html.j2` shows in tables."""
    return {
        "basket_head": BASKET_HEAD,
        "basket_rows": basket_rows(summary),
        "comparison": [
            ("this run", "through the federation", percent(summary.accuracy)),
            *(
                (
                    LABELS.get(name, name)
                    + (f" ({attack_name(attack)})" if attack != summary.attack else ""),
                    GOSSIP_DEFENCES[name],
                    percent(value),
                )
                for attack, runs in summary.attacks.items()
                for name, value in runs.items()
            ),
        ],
    }


def basket_rows(summary: Summary) -> list[tuple[str, ...]]:
    """The rows of the table of baskets, under `BASKET_HEAD`."""
    return [
        (
            basket,
            f"{standing['byzantine']} of {standing['clients']}",
            *(percent(standing_figures(standing).get(key)) for key, _ in BASKET_COLUMNS),
        )
        for basket, standing in summary.basket_standings.items()
    ]


def standing_figures(standing: Mapping[str, Any]) -> dict[str, float | None]:
    """A basket's figures by the keys of `BASKET_COLUMNS`."""
    alone = standing.get("alone") or {}
    return {**standing, "alone_at_home": alone.get("members_at_home")}


def mean_of(summary: Summary, key: str) -> float | None:
    """Mean of a basket's figure over all honest clients; None where some basket has none."""
    total, honest = 0.0, 0
    for standing in summary.basket_standings.values():
        value = standing_figures(standing).get(key)
        if value is None:
            return None
        count = standing["clients"] - standing["byzantine"]
        total, honest = total + count * value, honest + count
    return total / honest if honest else None


def simulated_note(summary: Summary) -> str:
    """Why the run and its simulation differ, in figures."""
    if summary.accuracy is None or summary.accuracy_simulated is None:
        return ""
    return (
        f"This run reached {percent(summary.accuracy)} and the simulation of the same rule under the same "
        f"attack {percent(summary.accuracy_simulated)}: one draw each. The run's noise is fresh from the "
        "operating system and its clients gossip; the simulation's noise comes from the seed, and it leaves "
        "gossip out. Another run gives another figure; `python -m pytest -m slow tests/workloads` measures "
        "how far they spread."
    )


def percent(value: float | None) -> str:
    """An accuracy for reading.

    >>> percent(0.84633), percent(None)
    ('84.6 %', '-')
    """
    return "-" if value is None else f"{100 * value:.1f} %"


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
_templates.filters.update(percent=percent, epsilon=epsilon, attack_name=attack_name)
_templates.globals.update(
    accuracy_chart=accuracy_chart,
    basket_chart=basket_chart,
    budget_chart=budget_chart,
    rejection_chart=rejection_chart,
    time_chart=time_chart,
    mean_of=mean_of,
    simulated_note=simulated_note,
)
