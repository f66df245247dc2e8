"""The report of a run without Layer 2: how each basket did by gossip alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scarcity_ray.workloads.comparison import GOSSIP_DEFENCES
from scarcity_ray.workloads.records import Outcome, Summary
from scarcity_ray.workloads.report.charts import (
    LABELS,
    accuracy_chart,
    basket_chart,
    budget_chart,
    time_chart,
)
from scarcity_ray.workloads.report.page import (
    attack_name,
    claim,
    early_end,
    epsilon,
    figure,
    percent,
    table,
    text,
    tiles,
    warned,
)

BASKET_COLUMNS = (
    ("members", "members, all digits"),
    ("members_at_home", "members, at home"),
    ("alone_at_home", "without gossip"),
    ("model_at_home", "basket's model"),
)
"""Keys of `standing_figures` and their headings."""


def gossip_report(outcome: Outcome) -> list[str]:
    """The page's parts."""
    summary, attack = outcome.summary, outcome.summary.attack
    parts = [
        f"<h1>{text(summary.name)}</h1>",
        f"<p>{gossip_headline(summary)}</p>",
        early_end(summary),
        _tiles(summary),
    ]
    if not outcome.rounds:
        return parts
    names = {
        name: (name, "none" if name == "clean" else attack) for name in ("alone", "clear_gossip", "clean")
    }
    curves = {name: outcome.curves[key] for name, key in names.items() if key in outcome.curves}
    parts += [
        "<h2>Baskets</h2>",
        "<p class='soft'>Honest members' own models on unseen digits, mean over the members: on all digits, "
        "and at home, that is, with digits as frequent as in the basket's domain (it never hears of "
        "another's), like the columns after it. A basket's own model is the robust mean of its members'.</p>",
        figure(basket_chart(summary.basket_standings)),
        _basket_table(summary),
        "<h2>Accuracy</h2>",
        figure(accuracy_chart(outcome.rounds, curves)),
        _comparison_table(summary),
        "<h2>Privacy</h2>",
    ]
    if math.isfinite(summary.total_epsilon):
        parts.append(figure(budget_chart(outcome.rounds, summary.total_epsilon)))
    return [*parts, claim(summary), warned(summary), "<h2>Time</h2>", figure(time_chart(outcome.rounds))]


def gossip_headline(summary: Summary) -> str:
    """What came out, in a sentence or two."""
    if summary.accuracy is None:
        return "No round was made."
    out = (
        f"{summary.clients} clients in {summary.baskets} baskets trained by gossip alone, each a classifier "
        "of digits of its own; on the digits of their own domains they reached "
        f"{percent(mean_of(summary, 'members_at_home'))}, without gossip "
        f"{percent(mean_of(summary, 'alone_at_home'))}"
    )
    if summary.byzantine_clients and summary.attack != "none":
        return f"{out}, while {summary.byzantine_clients} attacked ({attack_name(summary.attack)})."
    return f"{out}, without attackers."


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


def _tiles(summary: Summary) -> str:
    return tiles(
        [
            (percent(mean_of(summary, "members_at_home")), "accuracy on their own domains' unseen digits"),
            (percent(mean_of(summary, "alone_at_home")), "the same without gossip"),
            (
                f"{epsilon(summary.epsilon_spent)} of {epsilon(summary.total_epsilon)}",
                f"epsilon spent, at delta {summary.delta:g}",
            ),
            (f"{summary.byzantine_clients} of {summary.clients}", "clients are Byzantine"),
            (f"{summary.wall_seconds:.0f} s", "wall time, all runs"),
        ]
    )


def _basket_table(summary: Summary) -> str:
    rows = [
        (
            text(basket),
            f"{standing['byzantine']} of {standing['clients']}",
            *(percent(standing_figures(standing).get(key)) for key, _ in BASKET_COLUMNS),
        )
        for basket, standing in summary.basket_standings.items()
    ]
    head = ("basket", "attackers", *(heading for _, heading in BASKET_COLUMNS))
    return table(head, rows, {1, 2, 3, 4, 5}, None)


def _comparison_table(summary: Summary) -> str:
    rows = [("this run", "through the federation", percent(summary.accuracy))]
    for attack, runs in summary.attacks.items():
        rows += [
            (
                LABELS.get(name, name) + (f" ({attack_name(attack)})" if attack != summary.attack else ""),
                GOSSIP_DEFENCES[name],
                percent(value),
            )
            for name, value in runs.items()
        ]
    return (
        "<p class='soft'>Mean over honest clients, each with its own model, on all digits. The other runs "
        "are plain array programs in the same job, with noise from a seed.</p>"
        + table(("", "how clients learn", "accuracy"), rows, {2}, 0)
    )
