"""A run's plots as inline SVG in the page's text colour."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from scarcity_ray.errors import UsageError
from scarcity_ray.workloads.records import RoundRecord, RunBeside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSING_EXTRA = "the report needs matplotlib; install it with: pip install 'scarcity-ray[quickstart]'"
TEXT = "#123456"
"""Stands for the page's text colour until the SVG is made."""
GRID = "#8a8f98"
RIGHT = 0.75
"""Where a plot ends and what is written beside it begins, as a share of the width."""
LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": 9,
    "loc": "upper left",
    "bbox_to_anchor": (1.0, 1.04),
    "labelcolor": TEXT,
}
COLOURS = {
    "this run": "#3b82d6",
    "federation": "#3b82d6",
    "noiseless": "#8e6bbf",
    "clean": "#2e9e6b",
    "clipped_mean": "#d18a1c",
    "plain_mean": "#d1495b",
    "centralised": "#1d8f9e",
    "local_only": "#7d8794",
}
PALETTE = ("#8e6bbf", "#d18a1c", "#2e9e6b", "#3b82d6", "#7d8794", "#d1495b")
LABELS = {
    "federation": "simulated",
    "noiseless": "no noise",
    "clean": "no attack, no noise",
    "clipped_mean": "clipped mean",
    "plain_mean": "plain mean",
    "centralised": "centralised",
    "local_only": "every client alone",
}


def as_figure(metric: str, value: float | None) -> str:
    """A metric's value for reading; accuracies in percent.

    >>> as_figure("accuracy", 0.84633), as_figure("log_loss", 0.84633), as_figure("auc", None)
    ('84.6 %', '0.8463', '-')
    """
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.4g}"


def is_share(metric: str) -> bool:
    """Whether a metric is a share of right answers, which is read in percent."""
    return metric == "accuracy" or metric.endswith("_accuracy")


def require_matplotlib() -> None:
    """Raise `UsageError` with the command that installs it, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(MISSING_EXTRA) from None


def metric_chart(records: Sequence[RoundRecord], beside: Sequence[RunBeside], metric: str) -> str:
    """The headline metric over rounds: this run's, and that of the runs beside it."""
    figure, axes = _figure(3.6)
    rounds = [record.round for record in records]
    unit = 100.0 if is_share(metric) else 1.0
    lines = {"this run": [record.metrics.get(metric, np.nan) for record in records]}
    for run in beside:
        if run.metrics.get(metric) is not None or run.curve:
            known = [np.nan if value is None else value for value in run.curve[: len(rounds)]]
            lines[run.run] = known or [run.metrics[metric]] * len(rounds)
    ends = []
    for name, values in lines.items():
        scaled = unit * np.asarray(values, np.float64)
        axes.plot(
            rounds[: len(scaled)],
            scaled,
            color=COLOURS[name],
            linewidth=2.4 if name == "this run" else 1.5,
            linestyle="--" if name == "clean" else ":" if name in ("centralised", "local_only") else "-",
            zorder=3 if name == "this run" else 2,
            marker="o" if len(scaled) == 1 else "",
        )
        is_told = np.isfinite(scaled)
        told = as_figure(metric, scaled[-1] / unit) if is_told[-1] else "not finite"
        height = float(scaled[is_told][-1]) if is_told.any() else 0.0
        ends.append((height, f"{LABELS.get(name, name)} {told}", COLOURS[name]))
    if is_share(metric):
        axes.set_ylim(0, 100)
    low, high = axes.get_ylim()
    _label_ends(axes, ends, gap=0.065 * (high - low), main=0)
    axes.set_ylabel(f"{metric.replace('_', ' ')}{', %' if is_share(metric) else ''}")
    return _svg(figure, "metric", f"{metric.replace('_', ' ').capitalize()} over rounds")


def basket_chart(standings: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    """Each basket's members with gossip and without, and its own model, on own data if known."""
    figure, axes = _figure(1.1 + 0.32 * len(standings), left=0.2)
    places = range(len(standings))
    key = "members_at_home" if at_home(standings) else "members"
    series = {
        "members": [standing[key] for standing in standings.values()],
        "no gossip": [(standing.get("alone") or {}).get(key) for standing in standings.values()],
        "basket's model": [
            standing["model_at_home" if key == "members_at_home" else "model"]
            for standing in standings.values()
        ],
    }
    colours = (COLOURS["this run"], COLOURS["plain_mean"], COLOURS["clean"])
    unit = 100.0 if is_share(metric) else 1.0
    for (name, values), colour, marker in zip(series.items(), colours, "osD", strict=True):
        known = [
            (unit * value, place) for value, place in zip(values, places, strict=True) if value is not None
        ]
        if known:
            axes.plot(*zip(*known, strict=True), marker, color=colour, markersize=6, label=name)
    axes.set_yticks(list(places), list(standings), parse_math=False)
    axes.set_ylim(len(standings) - 0.5, -0.5)
    if is_share(metric):
        axes.set_xlim(0, 100)
    axes.grid(axis="x", color=GRID, alpha=0.25, linewidth=0.8)
    label = f"{metric.replace('_', ' ')}{', %' if is_share(metric) else ''}"
    axes.set_xlabel(label, color=TEXT, fontsize=9, loc="right", labelpad=2)
    if axes.lines:
        axes.legend(**LEGEND)
    return _svg(figure, "baskets", f"{metric.replace('_', ' ').capitalize()} of each basket")


def at_home(standings: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the workload measures models on clients' own data."""
    return any(standing["members_at_home"] is not None for standing in standings.values())


def budget_chart(records: Sequence[RoundRecord], total_epsilon: float) -> str:
    """Epsilon spent over rounds, against the budget."""
    figure, axes = _figure(2.6)
    rounds = [record.round for record in records]
    spent = [record.epsilon_spent for record in records]
    axes.fill_between(rounds, spent, color=COLOURS["this run"], alpha=0.18, linewidth=0)
    axes.plot(rounds, spent, color=COLOURS["this run"], linewidth=2.2)
    axes.axhline(total_epsilon, color=COLOURS["plain_mean"], linewidth=1.3, linestyle="--")
    ends = [
        (total_epsilon, f"budget {total_epsilon:g}", COLOURS["plain_mean"]),
        (spent[-1], f"spent {spent[-1]:.2f}", COLOURS["this run"]),
    ]
    _label_ends(axes, ends, gap=0.1 * total_epsilon)
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
    figure, axes = _figure(2.6)
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
    axes.legend(handles[::-1], names[::-1], handlelength=1.0, **LEGEND)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(unit)
    return _svg(figure, key, title)


def _figure(height: float, left: float = 0.075) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8.4, height))
    axes = figure.add_axes((left, 0.52 / height, RIGHT - left, 1 - 0.68 / height))
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


def _label_ends(
    axes: Axes, ends: Sequence[tuple[float, str, str]], gap: float, main: int | None = None
) -> None:
    """Write (height, text, colour) beside the plot, moved as little as it takes not to overlap or leave it.

    The label of number `main` is bold.
    """
    placed, top = [height for height, _, _ in ends], axes.get_ylim()[1]
    order = np.argsort(placed, kind="stable")
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    for label in reversed(order):
        placed[label] = min(placed[label], top)
        top = placed[label] - gap
    for place, (height, (_, text, colour)) in enumerate(zip(placed, ends, strict=True)):
        axes.annotate(
            text,
            (1.015, height),
            xycoords=("axes fraction", "data"),
            color=colour,
            va="center",
            fontsize=9,
            fontweight="bold" if place == main else "normal",
        )


def _svg(figure: Figure, key: str, title: str) -> str:
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(TEXT, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for side in ("width", "height"):
        text = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
