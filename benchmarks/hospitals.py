"""Privacy of a record among 20 hospitals, a fifth of which attack: AUC lost by each rule, over paired seeds.

``python -m benchmarks hospitals [--seeds 15] [--first 0] [--format json]``. Reads ``configs/hospitals.yaml``
and trains it as arithmetic, without Ray. Of each rule and attack the loss is the AUC of the same training
without noise and attack (the plain mean of all hospitals' rows), less the rule's own, paired by seed: its
mean, and the upper end of its one-sided 95 % interval (Student's t). At other seeds data are dealt, and
attackers and noise drawn, anew. Two minutes of CPU time.
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

from benchmarks.lab.hospitals_sweep import CLEAN, PLAIN_MEAN, TURNED, Arm, Placement, run, trial_of, widened
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


def arms() -> dict[tuple[str, Placement, str], Arm]:
    """By rule's name, placement and attack."""
    return {
        (name, placement, attack): replace(arm, attack=attack, placement=placement)
        for names, placements in ((ROBUST, get_args(Placement)), (BESIDE, ("spread",)))
        for placement in placements
        for name, arm in names.items()
        for attack in ATTACKS
        if attack != "none" or placement == "spread"
    }


def lines(job: dict[str, Any], seeds: range, coordinates: int | None = None) -> Iterator[dict[str, Any]]:
    """One JSON line for each run, that of the training without noise and attack first."""
    folder = str((CONFIG.parent / job["workload"]["folder"]).resolve())
    chosen = {("clean", "spread", "none"): CLEAN} | arms()
    for seed in seeds:
        trial = trial_of(job, folder, seed)
        if coordinates is not None:
            trial = widened(trial, coordinates)
        found = run(trial, list(chosen.values()))
        pooled = {"name": "centralised", "placement": "spread", "attack": "none"}
        yield {"seed": seed, **pooled, "auc": trial.auc_centralised}
        for (name, placement, attack), value in zip(chosen, found, strict=True):
            yield {"seed": seed, "name": name, "placement": placement, "attack": attack, "auc": value}


def losses(found: list[dict[str, Any]]) -> Mapping[tuple[str, str, str], tuple[float, float]]:
    """The mean loss of each rule, placement and attack, and its upper 95 % bound (inf of one seed)."""
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for line in found:
        values.setdefault((line["name"], line["placement"], line["attack"]), {})[line["seed"]] = line["auc"]
    clean = values[("clean", "spread", "none")]
    made = {}
    for key, own in values.items():
        lost = np.array([clean[seed] - own[seed] for seed in clean])
        n = len(lost)
        margin = math.inf if n < 2 else student.ppf(0.95, n - 1) * lost.std(ddof=1) / math.sqrt(n)
        made[key] = float(lost.mean()), float(lost.mean() + margin)
    return made


def markdown(found: list[dict[str, Any]]) -> str:
    """A row for each rule, and for some that of the placement with the greatest bound; a column an attack."""
    lost = losses(found)
    clean, pooled = ([line["auc"] for line in found if line["name"] == of] for of in ("clean", "centralised"))
    text = [
        f"AUC without noise and attack: {np.mean(clean):.3f} ({min(clean):.3f} to {max(clean):.3f}, "
        f"{len(clean)} seeds); of all data in one place: {np.mean(pooled):.3f}",
        "",
        "| loss of AUC | " + " | ".join(attack.replace("_", " ") for attack in ATTACKS) + " |",
        "|---" + "|--:" * len(ATTACKS) + "|",
    ]
    for name in ROBUST | BESIDE:
        text.append(_row(name, [lost.get((name, "spread", attack)) for attack in ATTACKS]))
        if name in ROBUST:
            placed = [
                [lost.get((name, where, attack)) for where in get_args(Placement)] for attack in ATTACKS
            ]
            worst = [max(filter(None, each), key=lambda loss: loss[1], default=None) for each in placed[1:]]
            text.append(_row(f"{name}, worst placement", [None, *worst]))
    return "\n".join(text)


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
    parser.add_argument("--coordinates", type=int, help="above 10: random features are added")
    chosen = parser.parse_args()
    found = []
    seeds = range(chosen.first, chosen.first + chosen.seeds)
    for line in lines(read_yaml(CONFIG), seeds, chosen.coordinates):
        found.append(line)
        if chosen.format == "json":
            print(json.dumps(line), flush=True)
    if chosen.format == "markdown":
        print(markdown(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
