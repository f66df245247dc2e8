"""Which rule learns most: rules over clients, budgets, attackers, coordinates and likeness, seeds stated.

``python -m benchmarks choosing [--seeds 1] [--part PART] [--format json]``.
Accuracy on new examples under the worst attack that was run, mean over seeds 0, 1, ... (data, attackers and
noise differ), and in brackets the ratio of signal to noise that `plan --recommend` expects of that setting;
of back doors the share of examples that the trigger turns. ``regret`` is how far the rule with the highest
expected ratio lies below the best. About two minutes of CPU time a seed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import asdict

import numpy as np

from benchmarks.lab.choosing_sweep import Cell, at_seed, run
from scarcity_ray.forecast.choosing import Likeness, preference

NO_NOISE = math.inf
PARTS: dict[str, list[Cell]] = {
    "noise": [
        Cell(clients, 8, epsilon, 0.2, likeness)
        for likeness in Likeness
        for clients in (40, 200)
        for epsilon in (2.0, 8.0, NO_NOISE)
    ],
    "attackers": [
        Cell(200, 8, epsilon, share, likeness)
        for likeness in Likeness
        for share in (0.0, 0.3)
        for epsilon in (8.0, NO_NOISE)
    ],
    "many_attackers": [
        Cell(400, 8, epsilon, 0.4, likeness, per_basket=40)
        for likeness in (Likeness.ALIKE, Likeness.MIXED)
        for epsilon in (8.0, 32.0, NO_NOISE)
    ],
    "coordinates": [Cell(200, features, 8.0, 0.2, Likeness.ALIKE) for features in (2, 32, 128)],
    "back_doors": [
        Cell(200, 8, epsilon, share, likeness)
        for likeness in (Likeness.ALIKE, Likeness.MIXED)
        for share in (0.1, 0.2)
        for epsilon in (8.0, NO_NOISE)
    ],
}


def lines(part: str, seeds: Iterable[int]) -> Iterable[dict[str, object]]:
    """A line for each cell: what every rule came to, and the regret of the expected best."""
    for cell in PARTS[part]:
        attacks = ("back_door",) if part == "back_doors" else ("turned", "hidden")
        runs = [list(run(at_seed(cell, seed), attacks)) for seed in seeds]
        rules: dict[str, dict[str, float]] = {}
        for each in zip(*runs, strict=True):
            rules[each[0].rule] = {
                "accuracy": round(float(np.mean([result.accuracy for result in each])), 3),
                "planted": round(float(np.mean([result.planted for result in each])), 3),
                "ratio": round(each[0].expected[0], 2),
                "signal": round(each[0].expected[1], 3),
            }
        accuracies = {rule: found["accuracy"] for rule, found in rules.items()}
        expected = max(rules, key=lambda rule: preference(rules[rule]["ratio"], rules[rule]["signal"]))
        yield {
            "part": part,
            **asdict(cell),
            "name": f"{cell.clients} {cell.likeness}",
            "n": cell.clients,
            "d": cell.dimension,
            "rules": rules,
            "expected_best": expected,
            "regret": round(max(accuracies.values()) - accuracies[expected], 3),
        }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("markdown", "json"), default="markdown")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--part", action="append", choices=sorted(PARTS), help="default: all")
    chosen = parser.parse_args()
    for part in chosen.part or PARTS:
        found = []
        for line in lines(part, range(chosen.seeds)):
            found.append(line)
            if chosen.format == "json":
                print(json.dumps(line), flush=True)
        if chosen.format == "markdown":
            print(f"**{part.replace('_', ' ')}**\n\n{markdown(found)}\n", flush=True)
    return 0


def markdown(found: list[dict[str, object]]) -> str:
    """A row for each cell."""
    rules = list(dict.fromkeys(rule for line in found for rule in line["rules"]))  # type: ignore[attr-defined]
    heads = ["clients are", "number", "d", "epsilon", "attackers", *rules]
    text = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    for line in found:
        epsilon = "no noise" if line["epsilon"] == NO_NOISE else f"{line['epsilon']:g}"
        cells = [str(line["likeness"]), str(line["n"]), str(line["d"]), epsilon, f"{line['share']:.0%}"]
        for rule in rules:
            result = line["rules"].get(rule)  # type: ignore[attr-defined]
            cells.append("-" if result is None else _cell(result, line["part"] == "back_doors"))
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def _cell(result: dict[str, float], planted: bool) -> str:
    if planted:
        return f"{result['planted']:.0%}, accuracy {result['accuracy']:.0%}"
    ratio = result["ratio"]
    return f"{result['accuracy']:.0%}" + (f" ({ratio:.1f})" if math.isfinite(ratio) else "")


if __name__ == "__main__":
    raise SystemExit(main())
