"""A run's plots as inline SVG that takes its text colour from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from scarcity_ray.errors import UsageError
from scarcity_ray.workloads.records import RoundRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSING_EXTRA = "the report needs matplotlib; install it with: pip install 'scarcity-ray[quickstart]'"
TEXT = "#123456"
"""Stands for the page's text colour until the SVG is made."""
GRID = "#8a8f98"
COLOURS = {
    "federation": "#3b82d6",
    "clean": "#2e9e6b",
    "clipped_mean": "#d18a1c",
    "plain_mean": "#d1495b",
    "alone": "#d1495b",
    "clear_gossip": "#d18a1c",
}
PALETTE = ("#8e6bbf", "#d18a1c", "#2e9e6b", "#3b82d6", "#7d8794", "#d1495b")
LABELS = {
    "federation": "this run",
    "clean": "no attack, no noise",
    "clipped_mean": "clipped mean",
    "plain_mean": "plain mean",
    "gossip": "simulated",
    "alone": "no gossip",
    "clear_gossip": "without noise",
}


def require_matplotlib() -> None:
    """Raise `UsageError` with the command that installs it, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(MISSING_EXTRA) from None


def accuracy_chart(records: Sequence[RoundRecord], curves: Mapping[str, Sequence[float]]) -> str:
    """Accuracy over rounds: the federation's, and the curves of `COLOURS` that there are."""
    figure, axes = _figure(3.6, right=0.75)
    rounds = [record.round for record in records]
    lines = {"federation": [record.accuracy for record in records], **curves}
    for name, values in lines.items():
        axes.plot(
            rounds[: len(values)],
            [100 * value for value in values],
            color=COLOURS[name],
            linewidth=2.4 if name == "federation" else 1.5,
            linestyle="--" if name == "clean" else "-",
            zorder=3 if name == "federation" else 2,
            marker="o" if len(values) == 1 else "",
        )
    heights = _apart([100 * values[-1] for values in lines.values()], gap=6.5)
    for (name, values), height in zip(lines.items(), heights, strict=True):
        axes.annotate(
            f"{LABELS[name]} {100 * values[-1]:.1f} %",
            (1.015, height),
            xycoords=("axes fraction", "data"),
            color=COLOURS[name],
            va="center",
            fontsize=9,
            fontweight="bold" if name == "federation" else "normal",
        )
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy, %")
    return _svg(figure, "accuracy", "Accuracy over rounds")


def basket_chart(standings: Mapping[str, Mapping[str, Any]]) -> str:
    """Each basket's members with gossip and without, and its own model, on its own domain's digits."""
    figure, axes = _figure(1.1 + 0.32 * len(standings), right=0.75)
    places = range(len(standings))
    series = {
        "members": [standing["members_at_home"] for standing in standings.values()],
        "no gossip": [
            (standing.get("alone") or {}).get("members_at_home") for standing in standings.values()
        ],
        "basket's model": [standing["model_at_home"] for standing in standings.values()],
    }
    colours = (COLOURS["federation"], COLOURS["alone"], COLOURS["clean"])
    for (name, values), colour, marker in zip(series.items(), colours, "osD", strict=True):
        known = [
            (100 * value, place) for value, place in zip(values, places, strict=True) if value is not None
        ]
        if known:
            axes.plot(*zip(*known, strict=True), marker, color=colour, markersize=6, label=name)
    axes.set_yticks(list(places), list(standings))
    axes.set_ylim(len(standings) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.grid(axis="x", color=GRID, alpha=0.25, linewidth=0.8)
    axes.set_xlabel("accuracy, %", color=TEXT, fontsize=9, loc="right", labelpad=2)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.04), labelcolor=TEXT)
    left = 0.2
    axes.set_position((left, axes.get_position().y0, 0.75 - left, axes.get_position().height))
    return _svg(figure, "baskets", "Accuracy of each basket")


def budget_chart(records: Sequence[RoundRecord], total_epsilon: float) -> str:
    """Epsilon spent over rounds, against the budget."""
    figure, axes = _figure(2.6, right=0.75)
    rounds = [record.round for record in records]
    spent = [record.epsilon_spent for record in records]
    axes.fill_between(rounds, spent, color=COLOURS["federation"], alpha=0.18, linewidth=0)
    axes.plot(rounds, spent, color=COLOURS["federation"], linewidth=2.2)
    axes.axhline(total_epsilon, color=COLOURS["plain_mean"], linewidth=1.3, linestyle="--")
    heights = _apart([total_epsilon, spent[-1]], gap=0.1 * total_epsilon)
    for height, text, colour in (
        (heights[0], f"budget {total_epsilon:g}", COLOURS["plain_mean"]),
        (heights[1], f"spent {spent[-1]:.2f}", COLOURS["federation"]),
    ):
        axes.annotate(
            text, (1.015, height), xycoords=("axes fraction", "data"), color=colour, va="center", fontsize=9
        )
    axes.set_ylim(0, 1.12 * total_epsilon)
    axes.set_ylabel("epsilon")
    return _svg(figure, "budget", "Epsilon spent over rounds")


def rejection_chart(records: Sequence[RoundRecord]) -> str:
    """Refused updates a round, by reason."""
    reasons = sorted({reason for record in records for reason in record.rejected})
    return _stacked(
        records,
        {reason.replace("_", " "): [r.rejected.get(reason, 0) for r in records] for reason in reasons},
        "updates refused",
        "rejections",
        "Refused updates over rounds",
    )


def time_chart(records: Sequence[RoundRecord]) -> str:
    """Seconds a round, by phase."""
    phases = list(dict.fromkeys(phase for record in records for phase in record.seconds))
    return _stacked(
        records,
        {phase: [r.seconds.get(phase, 0.0) for r in records] for phase in phases},
        "seconds",
        "time",
        "Seconds by phase over rounds",
    )


def _stacked(
    records: Sequence[RoundRecord], layers: Mapping[str, Sequence[float]], unit: str, key: str, title: str
) -> str:
    figure, axes = _figure(2.6, right=0.75)
    bottom = np.zeros(len(records))
    for place, (name, values) in enumerate(layers.items()):
        axes.bar(
            [record.round for record in records],
            values,
            bottom=bottom,
            width=0.85,
            label=name,
            color=PALETTE[place % len(PALETTE)],
            linewidth=0,
        )
        bottom += np.asarray(values, dtype=np.float64)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        names[::-1],
        frameon=False,
        fontsize=9,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.04),
        labelcolor=TEXT,
        handlelength=1.0,
    )
    axes.set_ylim(bottom=0)
    axes.set_ylabel(unit)
    return _svg(figure, key, title)


def _figure(height: float, right: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8.4, height))
    axes = figure.add_axes((0.075, 0.52 / height, right - 0.075, 1 - 0.68 / height))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(colors=TEXT, labelsize=9, color=GRID)
    axes.grid(axis="y", color=GRID, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("round", color=TEXT, fontsize=9, loc="right", labelpad=2)
    axes.yaxis.label.set_color(TEXT)
    axes.yaxis.label.set_fontsize(9)
    axes.margins(x=0.015)
    return figure, axes


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved up as little as it takes for labels not to overlap, in the order given."""
    placed = list(heights)
    order = np.argsort(heights, kind="stable")
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    return placed


def _svg(figure: Figure, key: str, title: str) -> str:
    import matplotlib

    settings: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": key}
    out = io.StringIO()
    with matplotlib.rc_context(settings):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(TEXT, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
