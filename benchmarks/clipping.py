"""Adaptive clipping against every fixed clip norm of a sweep, on the quickstart, simulated, noise included.

``python -m benchmarks clipping [--format json] [--seeds 15] [--quantile 0.3] [--rate 1]``. Accuracy on unseen
digits after all rounds, the median over seeds 0 to 14 (data, attackers and noise differ); ``versus_best`` is
how far a case lies from the best fixed clip norm. No gossip. CPU seconds are this process's.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.lab.clipping_sweep import (
    LEARNING_RATE,
    QUANTILE,
    best_fixed,
    clipping_cases,
    run_clipping,
)
from scarcity_ray.workloads.config import load_job

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--quantile", type=float, default=QUANTILE)
    parser.add_argument("--rate", type=float, default=LEARNING_RATE)
    arguments = parser.parse_args()
    jobs = [
        load_job(QUICKSTART, [f"federation.seed={seed}", f"workload.args.seed={seed}"])
        for seed in range(arguments.seeds)
    ]
    cases = clipping_cases(quantile=arguments.quantile, learning_rate=arguments.rate)
    results, start = [], time.process_time()
    for result in run_clipping(jobs, cases):
        results.append(result)
        seconds, start = time.process_time() - start, time.process_time()
        best = best_fixed(results)
        row = {
            "name": result.case.name,
            "n": arguments.seeds,
            "d": jobs[0].codec.dimension,
            "seconds": round(seconds, 2),
            "versus": best.case.name,
            "accuracy": round(result.accuracy, 4),
            "versus_best": round(result.accuracy - best.accuracy, 4) if result.case.adaptive else None,
            "lowest": round(min(result.accuracies), 4),
            "highest": round(max(result.accuracies), 4),
        }
        if arguments.format == "json":
            print(json.dumps(row), flush=True)
        else:
            away = f"{row['versus_best']:+.4f} of {best.case.name}" if result.case.adaptive else ""
            spread = f"{row['lowest']:.4f} to {row['highest']:.4f}"
            print(f"{row['name']:20}  {row['accuracy']:.4f}  {spread}  {seconds:6.1f} s  {away}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
