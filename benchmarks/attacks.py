"""Accuracy under attack: every rule, every attack, alike and unlike clients, one federation and baskets.

``python -m benchmarks attacks [--format text|markdown|json] [--picture FILE.svg]``. Trains small federations
on scikit-learn's digits as plain array programs (`benchmarks.lab.laboratory`); nothing here is timed
against anything, `seconds` is the processor time of a run. A JSON line a run holds ``name, n, d, seconds,
versus, ratio`` like every benchmark's: versus the mean of the honest clients alone, ratio of accuracies.
``--rows FILE`` reads such lines instead of training.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.lab.attack_report import picture, tables
from benchmarks.lab.attack_table import (
    BASKET_ATTACKS,
    BASKET_RULES,
    FLAT_ATTACKS,
    FLAT_RULES,
    averages,
    basket_cases,
    flat_cases,
    record,
)
from benchmarks.lab.laboratory import HONEST_MEAN, TEST_SHARE, train
from scarcity_ray.workloads.digit_images import NUM_CLASSES, NUM_PIXELS, load_digits

PARTS = {
    "flat": (flat_cases, FLAT_RULES, FLAT_ATTACKS),
    "baskets": (basket_cases, BASKET_RULES, BASKET_ATTACKS),
}


def rows(
    seeds: int, steps: int, parts: list[str], rules: list[str], attacks: list[str]
) -> Iterator[dict[str, Any]]:
    best: dict[tuple[str, str, int], float] = {}
    for seed in range(seeds):
        data = load_digits(NUM_PIXELS, TEST_SHARE, seed)
        for part in parts:
            cases, all_rules, all_attacks = PARTS[part]
            chosen = [rule for rule in all_rules if not rules or rule in rules or rule == HONEST_MEAN]
            tried = [attack for attack in all_attacks if not attacks or attack in attacks or attack == "none"]
            for column, case in cases(seed, steps, chosen, tried):
                began = time.thread_time()
                reached = train(case, data)[-1]
                row = record(part, column, case, reached, time.thread_time() - began)
                reference = best.setdefault((part, column, seed), reached)
                yield row | {
                    "d": (NUM_PIXELS + 1) * NUM_CLASSES,
                    "versus": HONEST_MEAN,
                    "ratio": round(reached / reference, 4),
                }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    parser.add_argument("--picture", type=Path, help="an SVG file to write")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=125)
    parser.add_argument("--part", action="append", choices=sorted(PARTS), help="default: both")
    parser.add_argument("--rule", action="append", default=[], help="only these rules; may be repeated")
    parser.add_argument("--attack", action="append", default=[], help="only these attacks; may be repeated")
    parser.add_argument("--rows", type=Path, help="JSON lines of an earlier run to show instead of training")
    chosen = parser.parse_args()
    lines: list[dict[str, Any]] = []
    if chosen.rows:
        lines = [json.loads(line) for line in chosen.rows.read_text().splitlines()]
    else:
        parts = chosen.part or list(PARTS)
        for count, row in enumerate(rows(chosen.seeds, chosen.steps, parts, chosen.rule, chosen.attack), 1):
            lines.append(row)
            if chosen.format == "json":
                print(json.dumps(row), flush=True)
            elif sys.stderr.isatty():
                print(f"\r{count} runs", end="", file=sys.stderr, flush=True)
    if chosen.format != "json":
        print(tables(averages(lines), markdown=chosen.format == "markdown"))
    if chosen.picture:
        chosen.picture.write_text(picture(averages(lines)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
