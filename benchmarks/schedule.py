"""What falling noise gains on the job ``configs/hospitals.yaml``, over seeds, at the same budget.

``python -m benchmarks schedule [--format json] [--seeds 15] [--first 0]``. For each epsilon, number of rounds
and ``privacy.noise_decay`` one training at each seed, by the learning rate (constant, or falling to 0 by a
cosine) that was best for it at the seeds 100 to 105. Between decays of one seed the noise differs in scale
alone, not in its draws. AUC of the last release, without attack: the mean over seeds, and the paired gain
over constant noise with its two-sided 95 % interval (Student's). Four minutes of CPU time.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from benchmarks.hospitals import CONFIG
from benchmarks.lab.hospitals_sweep import Arm, run, trial_of
from scarcity_ray.config import HierarchicalFederationConfig, load
from scarcity_ray.config.yaml_text import read_yaml
from scarcity_ray.forecast import solve_for_rounds

DECAYS = (1.0, 0.7, 0.5, 0.3, 0.1)
ROUNDS = (8, 20, 60)
EPSILONS = (3.0, 0.5)
RATES = (2.5, 5.0, 10.0, 20.0, 40.0)
TUNED = range(100, 106)
RULE = Arm("centered_clipping")


def with_noise(job: dict[str, Any], rounds: int, epsilon: float, decay: float) -> dict[str, Any]:
    """The job at another budget, all of which so many rounds use."""
    federation = job["federation"]
    federation = {
        **federation,
        "total_epsilon": epsilon,
        "privacy": {**federation["privacy"], "noise_decay": decay},
        "layer2": {**federation["layer2"], "central_dp_epsilon": 0.1 * epsilon},
    }
    solved = solve_for_rounds(load(HierarchicalFederationConfig, federation), rounds)
    federation["layer2"]["central_dp_epsilon"] = solved.layer2.central_dp_epsilon
    return {**job, "federation": federation, "training": {**job["training"], "rounds": rounds}}


def with_rate(job: dict[str, Any], rate: float, falls: bool) -> dict[str, Any]:
    """The job with another learning rate, which falls to 0 over the rounds (cosine) or stays."""
    training = job["training"]
    schedule = {"schedule": {"name": "cosine", "rounds": training["rounds"]}} if falls else {}
    optimizer = {"name": "sgd", "learning_rate": rate, **schedule}
    return {**job, "training": {**training, "optimizer": optimizer}}


def aucs(jobs: Sequence[dict[str, Any]], folder: str, seeds: range) -> NDArray[np.float64]:
    """(jobs, seeds) AUC of the last release."""
    columns = []
    for seed in seeds:
        trial = trial_of(jobs[0], folder, seed)
        columns.append([run(replace(trial, job=job), [RULE])[0] for job in jobs])
    return np.array(columns).T


def lines(job: dict[str, Any], seeds: range, tuned: range) -> Iterator[dict[str, Any]]:
    """One for each epsilon, number of rounds and decay, at the learning rate that was best on `tuned`."""
    folder = str((CONFIG.parent / job["workload"]["folder"]).resolve())
    for epsilon in EPSILONS:
        for rounds in ROUNDS:
            chosen = []
            for decay in DECAYS:
                noised = with_noise(job, rounds, epsilon, decay)
                tried = [with_rate(noised, rate, falls) for rate in RATES for falls in (False, True)]
                chosen.append(tried[int(np.argmax(aucs(tried, folder, tuned).mean(axis=1)))])
            found = aucs(chosen, folder, seeds)
            for decay, best, own in zip(DECAYS, chosen, found, strict=True):
                gains = own - found[0]
                margin = student.ppf(0.975, len(own) - 1) * gains.std(ddof=1) / math.sqrt(len(own))
                yield {
                    "epsilon": epsilon,
                    "rounds": rounds,
                    "decay": decay,
                    "learning_rate": best["training"]["optimizer"]["learning_rate"],
                    "rate_falls": "schedule" in best["training"]["optimizer"],
                    "auc": float(own.mean()),
                    "gain": float(gains.mean()),
                    "margin": float(margin),
                    "seeds": len(own),
                }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("markdown", "json"), default="markdown")
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--first", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.format == "markdown":
        print("| epsilon | rounds | decay | learning rate | AUC | gain (95 % interval) |")
        print("|--:|--:|--:|--:|--:|--:|")
    for line in lines(read_yaml(CONFIG), range(chosen.first, chosen.first + chosen.seeds), TUNED):
        if chosen.format == "json":
            print(json.dumps(line), flush=True)
            continue
        rate = f"{line['learning_rate']:g}{' falling' if line['rate_falls'] else ''}"
        gain = "" if line["decay"] == 1.0 else f"{line['gain']:+.4f} ± {line['margin']:.4f}"
        cells = (line["epsilon"], line["rounds"], line["decay"], rate, f"{line['auc']:.4f}", gain)
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
