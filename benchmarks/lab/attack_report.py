"""The table of accuracy under attack, as text, as Markdown and as a picture."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.lab.attack_table import ARMS, Entry
from benchmarks.lab.laboratory import HONEST_MEAN
from scarcity_ray.workloads.report.charts import require_matplotlib
from scarcity_ray.workloads.report.page import attack_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTE = "Accuracy in %, mean over the seeds. '-': the rule refuses so large an f. '*': outside its theorem."
ARM_COLOURS = ("#d1495b", "#2566b0", "#7fb0e6", "#8e6bbf", "#d18a1c")


def tables(entries: Sequence[Entry], markdown: bool = False) -> str:
    """All tables: each part's worst cases, then a table of rules and attacks for each column."""
    blocks = []
    for part in dict.fromkeys(entry.part for entry in entries):
        mine = [entry for entry in entries if entry.part == part]
        columns = list(dict.fromkeys(entry.column for entry in mine))
        worst = {column: worst_cases([e for e in mine if e.column == column]) for column in columns}
        rules = list(dict.fromkeys(entry.rule for entry in mine))
        cells = [[rule, *(worst[column].get(rule, "-") for column in columns)] for rule in rules]
        blocks.append(_table(f"{part}: the worst of all attacks", ["rule", *columns], cells, markdown))
        for column in columns:
            here = [entry for entry in mine if entry.column == column]
            attacks = list(dict.fromkeys(entry.attack for entry in here))
            shown = {(entry.rule, entry.attack): _cell(entry) for entry in here}
            cells = [
                [rule, *(shown.get((rule, attack), "" if rule == HONEST_MEAN else "-") for attack in attacks)]
                for rule in rules
            ]
            blocks.append(_table(f"{part}: {column}", ["rule", *map(attack_name, attacks)], cells, markdown))
    return "\n\n".join([*blocks, NOTE])


def worst_cases(entries: Sequence[Entry]) -> dict[str, str]:
    """For each rule the least mean accuracy over the attacks, and under which, for one column's entries."""
    worst: dict[str, Entry] = {}
    for entry in entries:
        if entry.rule not in worst or entry.accuracy < worst[entry.rule].accuracy:
            worst[entry.rule] = entry
    return {
        rule: _cell(entry) if rule == HONEST_MEAN else f"{_cell(entry)} ({attack_name(entry.attack)})"
        for rule, entry in worst.items()
    }


def picture(entries: Sequence[Entry], columns: tuple[str, str] = ("iid, f = 5", "sorted, f = 5")) -> str:
    """An SVG: two of the first part's columns as coloured tables, and the comparison's worst cases.

    Raises:
        UsageError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15.5, 6.2), facecolor="white", layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1.15, 1.0))
    titles = ("25 clients with alike data, 5 attack", "25 clients sorted by label, 5 attack")
    for axes, column, title in zip((left, middle), columns, titles, strict=True):
        _heat(axes, [e for e in entries if e.part == "flat" and e.column == column], title)
    middle.set_yticklabels([])
    _arms(right, [entry for entry in entries if entry.part == "baskets"])
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "attacks"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"[ \t]+$", "", out.getvalue(), flags=re.MULTILINE)


def _cell(entry: Entry) -> str:
    return f"{100 * entry.accuracy:.0f}{'' if entry.guaranteed else '*'}"


def _table(title: str, head: Sequence[str], cells: Sequence[Sequence[str]], markdown: bool) -> str:
    if markdown:
        lines = [" | ".join(head), "|".join(["---", *["--:"] * (len(head) - 1)])]
        lines += [" | ".join(row) for row in cells]
        return f"**{title}**\n\n" + "\n".join(f"| {line} |" for line in lines)
    widths = [max(len(row[place]) for row in [head, *cells]) for place in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in [head, *cells]
    ]
    return "\n".join([title, "-" * len(lines[0]), *lines])


def _heat(axes: Axes, entries: Sequence[Entry], title: str) -> None:
    rules = list(dict.fromkeys(entry.rule for entry in entries))
    attacks = list(dict.fromkeys(entry.attack for entry in entries))
    values = np.full((len(rules), len(attacks)), np.nan)
    for entry in entries:
        values[rules.index(entry.rule), attacks.index(entry.attack)] = 100 * entry.accuracy
    axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=100, aspect="auto")
    for row, column in np.argwhere(np.isfinite(values)).tolist():
        value = values[row, column]
        ink = "black" if 15 < value < 90 else "white"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(attacks)), [attack_name(name) for name in attacks], rotation=45, ha="right")
    axes.set_yticks(range(len(rules)), [name.replace("_", " ") for name in rules])
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=11)


def _arms(axes: Axes, entries: Sequence[Entry]) -> None:
    rules = [rule for rule in dict.fromkeys(entry.rule for entry in entries) if rule != HONEST_MEAN]
    for place, rule in enumerate(rules):
        for number, (arm, colour) in enumerate(zip(ARMS, ARM_COLOURS, strict=True)):
            reached = [100 * e.accuracy for e in entries if e.rule == rule and e.column == arm]
            if reached:
                height, label = place + 0.14 * (number - 2), "" if place else arm
                axes.plot(min(reached), height, "o", color=colour, markersize=7, label=label)
    axes.set_yticks(range(len(rules)), [rule.replace("_", " ") for rule in rules])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy under the worst of the attacks, %", fontsize=9)
    axes.tick_params(labelsize=9, length=0)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.set_title("55 unlike clients, 10 attack: flat or in baskets", fontsize=11)
    if rules:
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
