"""The table of accuracy under attack: which cases it holds, and what their runs come to.

Two parts. *Flat*: every rule against every attack at several shares of attackers, among 25 clients with
alike and with unlike data. *Baskets*: the same unlike clients in one flat federation and in domain baskets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.lab.laboratory import HONEST_MEAN, Case, Split, can_run, within_guarantee
from scarcity_ray.robust.rules import RULES
from scarcity_ray.workloads.attacks import NAMES, AttackName

FLAT_CLIENTS = 25
FRACTIONS = (0.1, 0.2, 0.3)
MIXED = ("krum", "trimmed_mean", "median", "geometric_median")
FLAT_RULES = (
    HONEST_MEAN,
    *dict.fromkeys(rule.name for rule in RULES.values() if rule.name != "weighted"),
    *(f"nnm + {rule}" for rule in MIXED),
)
"""`weighted` with equal weights is the mean."""
FLAT_ATTACKS: tuple[AttackName, ...] = tuple(name for name in NAMES if name not in ("inf", "poison"))
"""Infinite rows are refused as NaN is."""

BASKETS, PER_BASKET, BASKETS_BYZANTINE = 5, 11, 10
BASKETS_CLIP_NORM = 2.0
BASKET_RULES = (
    HONEST_MEAN,
    "mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "bulyan",
    "geometric_median",
    "centered_clipping",
    "nnm + trimmed_mean",
)
BASKET_ATTACKS: tuple[AttackName, ...] = (
    "none",
    "sign_flip",
    "label_flip",
    "ipm",
    "alie",
    "mimic",
    "optimised_ipm",
    "optimised_alie",
)
ARMS: Mapping[str, Mapping[str, Any]] = {
    "flat": {"placement": "even"},
    "baskets": {"placement": "even", "baskets": True},
    "baskets, attackers at random": {"placement": "random", "baskets": True},
    "flat, attackers in one domain": {"placement": "packed"},
    "baskets, attackers in one": {"placement": "packed", "baskets": True},
}


@dataclass(frozen=True)
class Entry:
    """What one case, averaged over its seeds, came to.

    Attributes:
        part: ``flat`` or ``baskets``.
        column: The part of the table: a split and f, or an arm of the comparison.
        rule: Of the case.
        attack: Of the case.
        accuracy: Mean over the seeds.
        lowest: Of the seeds.
        guaranteed: Whether the rule's theorem covers the case.
    """

    part: str
    column: str
    rule: str
    attack: str
    accuracy: float
    lowest: float
    guaranteed: bool


def flat_cases(
    seed: int, steps: int, rules: Sequence[str] = FLAT_RULES, attacks: Sequence[AttackName] = FLAT_ATTACKS
) -> Iterator[tuple[str, Case]]:
    """The first part's cases that the rules accept, each with its column."""
    splits: tuple[Split, ...] = ("iid", "sorted")
    for split in splits:
        for fraction in FRACTIONS:
            f = int(fraction * FLAT_CLIENTS)
            for rule, attack in _pairs(rules, attacks):
                case = Case(
                    rule=rule,
                    attack=attack,
                    split=split,
                    num_clients=FLAT_CLIENTS,
                    num_byzantine=f,
                    seed=seed,
                    steps=steps,
                    per_basket=FLAT_CLIENTS,
                )
                if can_run(case):
                    yield f"{split}, f = {f}", case


def basket_cases(
    seed: int, steps: int, rules: Sequence[str] = BASKET_RULES, attacks: Sequence[AttackName] = BASKET_ATTACKS
) -> Iterator[tuple[str, Case]]:
    """The second part's cases, each with its arm."""
    for rule, attack in _pairs(rules, attacks):
        for arm, settings in ARMS.items():
            case = Case(
                rule=rule,
                attack=attack,
                split="domains",
                num_clients=BASKETS * PER_BASKET,
                num_byzantine=BASKETS_BYZANTINE,
                per_basket=PER_BASKET,
                clip_norm=BASKETS_CLIP_NORM,
                seed=seed,
                steps=steps,
                **settings,
            )
            if can_run(case):
                yield arm, case


def record(part: str, column: str, case: Case, accuracy: float, seconds: float) -> dict[str, Any]:
    """A finished case as a line of JSON; `averages` reads it."""
    return {
        "name": f"{case.rule} under {case.attack}",
        "part": part,
        "column": column,
        "rule": case.rule,
        "attack": case.attack,
        "n": case.num_clients,
        "f": case.num_byzantine,
        "seed": case.seed,
        "steps": case.steps,
        "accuracy": round(accuracy, 4),
        "guaranteed": within_guarantee(case),
        "seconds": round(seconds, 3),
    }


def averages(records: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """One entry for each part, column, rule and attack, in the order in which they came first."""
    grouped: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
    for line in records:
        key = (line["part"], line["column"], line["rule"], line["attack"])
        grouped.setdefault(key, []).append(line)
    return [
        Entry(
            *key,
            accuracy=float(np.mean([line["accuracy"] for line in lines])),
            lowest=min(line["accuracy"] for line in lines),
            guaranteed=all(line["guaranteed"] for line in lines),
        )
        for key, lines in grouped.items()
    ]


def _pairs(rules: Sequence[str], attacks: Sequence[AttackName]) -> Iterator[tuple[str, AttackName]]:
    for rule in rules:
        for attack in attacks:
            if rule != HONEST_MEAN or attack == "none":
                yield rule, attack
