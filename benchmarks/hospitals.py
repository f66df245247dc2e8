"""Privacy of a record among 20 hospitals, a fifth of which attack: AUC lost by each rule, over paired seeds.

``python -m benchmarks hospitals [--seeds 15] [--first 0] [--noise central|site] [--format json]``. Reads
``configs/hospitals.yaml`` and trains it as arithmetic, without Ray. Of each rule and attack the loss is the
AUC of the same training without noise and attack (the plain mean of all hospitals' rows), less the rule's,
paired by seed: its mean, and the upper end of its one-sided 95 % interval (Student's t). At other seeds data
are dealt, and attackers and noise drawn, anew. *Central*: releases are noised. *Site*: each hospital noises
its rows, in more rounds (`AT_SITE`) and with momentum over noised rows; the losses are against the same AUC.
Attackers then see all noised rows, and aim at what the rule sees: their own momentum. Twelve minutes of CPU
time.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from scipy.stats import t as student

from benchmarks.lab.hospitals_sweep import (
    CLEAN,
    HIDDEN,
    PLAIN_MEAN,
    TURNED,
    Arm,
    Placement,
    run,
    trial_of,
    widened,
)
from scarcity_ray.config.yaml_text import read_yaml

CONFIG = Path(__file__).parents[1] / "configs" / "hospitals.yaml"
ATTACKS = (
    "none",
    "sign_flip",
    "ipm",
    "alie",
    "mimic",
    "label_flip",
    "optimised_ipm",
    "optimised_alie",
    TURNED,
    HIDDEN,
)
ROBUST = {
    "centred clipping": Arm("centered_clipping"),
    "trimmed mean, f = 1 of 5": Arm("trimmed_mean", byzantine_fraction=0.2),
    "median": Arm("median", byzantine_fraction=0.4),
    "centred clipping, unit person": Arm("centered_clipping", unit="person"),
}
"""Under every placement of the attackers."""
BESIDE = {
    "centred clipping, one basket": Arm("centered_clipping", one_basket=True),
    "trimmed mean, one basket, f = 4 of 20": Arm("trimmed_mean", one_basket=True, byzantine_fraction=0.2),
    "clipped mean": Arm("mean"),
    "Krum, f = 1 of 5": Arm("krum", byzantine_fraction=0.2),
    "Bulyan, one basket, f = 4 of 20": Arm("bulyan", one_basket=True, byzantine_fraction=0.2),
    "trimmed mean, unit person": Arm("trimmed_mean", unit="person", byzantine_fraction=0.2),
    "centred clipping, unit client": Arm("centered_clipping", unit="client"),
    "trimmed mean, unit client": Arm("trimmed_mean", unit="client", byzantine_fraction=0.2),
    "centred clipping, no noise": Arm("centered_clipping", noisy=False),
    "trimmed mean, no noise": Arm("trimmed_mean", noisy=False, byzantine_fraction=0.2),
    "median, no noise": Arm("median", noisy=False, byzantine_fraction=0.4),
    "plain mean, no noise": Arm(PLAIN_MEAN, noisy=False),
}
AT_SITE = Arm("mean", at_source=True, momentum=0.8, rounds=20, learning_rate=12.0)
_GEOMETRIC = replace(AT_SITE, rule="geometric_median", byzantine_fraction=0.4)
_CENTRED = replace(AT_SITE, rule="centered_clipping", clipping_radius=0.01, learning_rate=16.0)
ROBUST_AT_SITE = {
    "geometric median, f = 2 of 5": _GEOMETRIC,
    "centred clipping": _CENTRED,
    "median, f = 2 of 5": replace(AT_SITE, rule="median", byzantine_fraction=0.4),
    "geometric median, unit person": replace(_GEOMETRIC, unit="person"),
}
BESIDE_AT_SITE = {
    "geometric median, no momentum": replace(_GEOMETRIC, momentum=0.0),
    "centred clipping, no momentum": replace(_CENTRED, momentum=0.0),
    "trimmed mean, f = 1 of 5": replace(AT_SITE, rule="trimmed_mean", byzantine_fraction=0.2),
    "Krum, f = 1 of 5": replace(AT_SITE, rule="krum", byzantine_fraction=0.2),
    "Krum, no momentum": replace(AT_SITE, rule="krum", byzantine_fraction=0.2, momentum=0.0),
    "geometric median, one basket, f = 4 of 20": replace(_GEOMETRIC, one_basket=True, byzantine_fraction=0.2),
    "Bulyan, one basket, f = 4 of 20": replace(
        AT_SITE, rule="bulyan", one_basket=True, byzantine_fraction=0.2
    ),
    "clipped mean": AT_SITE,
    "geometric median, unit client": replace(_GEOMETRIC, unit="client"),
    "geometric median, no noise": replace(_GEOMETRIC, noisy=False),
    "plain mean, no noise": replace(AT_SITE, rule=PLAIN_MEAN, noisy=False),
}
TABLES = {"central": (ROBUST, BESIDE), "site": (ROBUST_AT_SITE, BESIDE_AT_SITE)}
Key = tuple[str, str, str, str]
"""Where the noise is added, rule's name, placement and attack."""


def arms(noise: Sequence[str]) -> dict[Key, Arm]:
    """By key, for these places of the noise."""
    return {
        (where, name, placement, attack): replace(arm, attack=attack, placement=placement)
        for where in noise
        for names, placements in zip(TABLES[where], (get_args(Placement), ("spread",)), strict=True)
        for placement in placements
        for name, arm in names.items()
        for attack in ATTACKS
        if attack != "none" or placement == "spread"
    }


def lines(
    job: dict[str, Any], seeds: range, noise: Sequence[str], coordinates: int | None = None
) -> Iterator[dict[str, Any]]:
    """One JSON line for each run, that of the training without noise and attack first."""
    folder = str((CONFIG.parent / job["workload"]["folder"]).resolve())
    chosen = {("", "clean", "spread", "none"): CLEAN} | arms(noise)
    for seed in seeds:
        trial = trial_of(job, folder, seed)
        if coordinates is not None:
            trial = widened(trial, coordinates)
        found = run(trial, list(chosen.values()))
        pooled = ("", "centralised", "spread", "none")
        for key, value in zip((pooled, *chosen), (trial.auc_centralised, *found), strict=True):
            yield {"seed": seed, **dict(zip(KEYS, key, strict=True)), "auc": value}


KEYS = ("noise", "name", "placement", "attack")


def losses(found: list[dict[str, Any]]) -> Mapping[Key, tuple[float, float]]:
    """The mean loss by key, and its upper 95 % bound (inf of one seed)."""
    values: dict[Key, dict[int, float]] = {}
    for line in found:
        where, name, placement, attack = (line[key] for key in KEYS)
        values.setdefault((where, name, placement, attack), {})[line["seed"]] = line["auc"]
    clean = values[("", "clean", "spread", "none")]
    made = {}
    for key, own in values.items():
        lost = np.array([clean[seed] - own[seed] for seed in clean])
        n = len(lost)
        margin = math.inf if n < 2 else student.ppf(0.95, n - 1) * lost.std(ddof=1) / math.sqrt(n)
        made[key] = float(lost.mean()), float(lost.mean() + margin)
    return made


def markdown(found: list[dict[str, Any]]) -> str:
    """A table for each place of the noise, a column an attack.

    Robust rules have a second row: for each attack that of the placement with the greatest bound.
    """
    lost = losses(found)
    clean, pooled = ([line["auc"] for line in found if line["name"] == of] for of in ("clean", "centralised"))
    text = [
        f"AUC without noise and attack: {np.mean(clean):.3f} ({min(clean):.3f} to {max(clean):.3f}, "
        f"{len(clean)} seeds); of all data in one place: {np.mean(pooled):.3f}",
    ]
    for noise, (robust, beside) in TABLES.items():
        if any(key[0] == noise for key in lost):
            headings = [f"loss of AUC, {noise} noise", *(attack.replace("_", " ") for attack in ATTACKS)]
            text += ["", "| " + " | ".join(headings) + " |", "|---" + "|--:" * len(ATTACKS) + "|"]
            text += _rows(lost, noise, robust, beside)
    return "\n".join(text)


def _rows(
    lost: Mapping[Key, tuple[float, float]], noise: str, robust: Mapping[str, Arm], beside: Mapping[str, Arm]
) -> Iterator[str]:
    for name in {**robust, **beside}:
        yield _row(name, [lost.get((noise, name, "spread", attack)) for attack in ATTACKS])
        if name in robust:
            placed = [
                [lost.get((noise, name, where, attack)) for where in get_args(Placement)]
                for attack in ATTACKS
            ]
            worst = [max(filter(None, each), key=lambda loss: loss[1], default=None) for each in placed[1:]]
            yield _row(f"{name}, worst placement", [None, *worst])


def _row(name: str, cells: Sequence[tuple[float, float] | None]) -> str:
    shown = ["" if cell is None else f"{cell[0]:.3f} ({cell[1]:.3f})" for cell in cells]
    return f"| {name} | " + " | ".join(shown) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("markdown", "json"), default="markdown")
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--first", type=int, default=0, help="the first seed; 100 to 105 chose the settings")
    parser.add_argument("--noise", choices=tuple(TABLES), help="where it is added; both by default")
    parser.add_argument("--coordinates", type=int, help="above 10: random features are added")
    chosen = parser.parse_args()
    found = []
    seeds = range(chosen.first, chosen.first + chosen.seeds)
    noise = tuple(TABLES) if chosen.noise is None else (chosen.noise,)
    for line in lines(read_yaml(CONFIG), seeds, noise, chosen.coordinates):
        found.append(line)
        if chosen.format == "json":
            print(json.dumps(line), flush=True)
    if chosen.format == "markdown":
        print(markdown(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
