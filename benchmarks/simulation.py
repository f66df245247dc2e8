"""How many programs of simulated federations a second of CPU runs, and what they find.

``python -m benchmarks simulation [--programs 20000] [--seed 0]`` draws programs as `tests/simulation` does,
and prints how far it is as it goes. A program that finds something is shrunk and printed, and the exit status
is 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.simulation.program import Program, programs
from tests.simulation.world import run, watched

TOLD_EVERY = 250
"""Programs."""


def main() -> int:
    """Run the programs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks simulation", description=__doc__)
    parser.add_argument("--programs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    logging.disable(logging.ERROR)
    counts: Counter[str] = Counter()

    @seed(asked.seed)
    @settings(
        max_examples=asked.programs,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(programs)
    def simulate(program: Program) -> None:
        counts["programs"] += 1
        counts["of these stored"] += program.setting.stored
        if counts["programs"] % TOLD_EVERY == 0:
            print(told(), flush=True)
        world = run(program)
        counts["calls"] += len(world.network.trace)
        counts["faults"] += len(world.network.happened)
        counts["deaths of roles"] += sum(world.deaths.values())
        counts["releases"] += len(world.releases)

    def told() -> str:
        seconds = time.process_time() - began
        what = ", ".join(f"{count} {what}" for what, count in counts.items())
        rate = counts["programs"] / seconds
        return f"seed {asked.seed}: {what}; {seconds:.0f} s of CPU, {rate:.1f} programs a second"

    began, found = time.process_time(), False
    with watched():
        try:
            simulate()
        except Exception as error:
            found = True
            print(
                f"{type(error).__name__}: {error}",
                *getattr(error, "__notes__", ()),
                sep="\n",
                file=sys.stderr,
                flush=True,
            )
    print(told(), "and it found something" if found else "and it found nothing", flush=True)
    return int(found)
