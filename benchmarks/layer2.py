"""Layer 2 against the number of baskets: CPU seconds of a whole release, and what was counted in it.

``python -m benchmarks layer2 [--before DIR] [--baskets 4 20 100 500] [--turns 3] [--format json]``. A
release of n baskets that share one actor, at d = 250, in one process on the local runtime: both sides of
secure aggregation, the accountant and the noise. Each turn is a process of its own, which makes a small
release first (its noise tables, imports and database are no part of the figure); the least of the turns is
shown. With ``--before`` an earlier commit, unpacked by ``git archive COMMIT | tar -x -C DIR``, takes turns
with this one.

Counts are of one more release, under cProfile: a function in C is counted by its name, in either commit.
``calls`` are those between roles: on Ray each is one round trip to an actor.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pickle
import pstats
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scarcity_ray import HierarchicalFederation
from scarcity_ray.config import (
    AggregationMethod,
    BasketConfig,
    HierarchicalFederationConfig,
    Layer1Config,
    Layer2Config,
)
from scarcity_ray.plan import session_shape
from scarcity_ray.runtime import local
from scarcity_ray.secagg import IdentityKeyPair

DIMENSION = 250
COUNTED = {
    "agreements": "method 'exchange' of 'cryptography",
    "signatures": "method 'sign' of 'cryptography",
    "HMACs": "hmac_digest",
    "hashes": "openssl_sha256",
    "encodings": "secagg/transcript.py encode",
}
"""What is counted, and a part of the name that cProfile gives to it."""

Row = dict[str, Any]


def federation_of(n: int) -> HierarchicalFederation:
    """A federation of n baskets with fresh aggregates, for which Layer 2 is due."""
    config = HierarchicalFederationConfig(
        vector_dim=DIMENSION,
        total_epsilon=100.0,
        auto_aggregate=False,
        gossip_budget_share=0.0,
        basket=BasketConfig(min_clients=2),
        layer1=Layer1Config(aggregation_method=AggregationMethod.MEAN, byzantine_fraction=0.0, min_updates=2),
        layer2=Layer2Config(min_baskets=3),
    )
    clients = [(f"{basket}_{i}", f"domain_{basket:04}") for basket in range(n) for i in range(2)]
    federation = HierarchicalFederation(config, runtime="local")
    federation.register_clients(clients)
    federation.submit_updates([client for client, _ in clients], np.full((2 * n, DIMENSION), 0.01))
    federation._driver.run_layer1(None, True)
    return federation


def release(n: int, around: Callable[[Callable[[], Any]], None]) -> None:
    """Have Layer 2 of n baskets run by `around`."""
    with federation_of(n) as federation:
        outcomes: list[Any] = []
        around(lambda: outcomes.append(federation._driver.run_layer2(True)))
        if outcomes[0].model is None:
            raise RuntimeError(f"no release: {outcomes[0].reason}")


def seconds(n: int) -> float:
    """CPU seconds of one release."""
    spent = 0.0

    def timing(run: Callable[[], Any]) -> None:
        nonlocal spent
        start = time.process_time()
        run()
        spent = time.process_time() - start

    release(n, timing)
    return spent


def counts(n: int) -> dict[str, int]:
    """What one release does, and how often."""
    verified: list[tuple[bytes, bytes, bytes]] = []
    sent: list[int] = []
    profile = cProfile.Profile()
    verify, isolated = IdentityKeyPair.verify_with, local._isolated

    def verifying(*signed: bytes) -> bool:
        verified.append(signed)  # type: ignore[arg-type]
        return verify(*signed)

    def sending(value: Any) -> Any:
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        sent.append(len(head) + sum(buffer.raw().nbytes for buffer in buffers))
        return isolated(value)

    def profiling(run: Callable[[], Any]) -> None:
        IdentityKeyPair.verify_with = staticmethod(verifying)  # type: ignore[method-assign, assignment]
        local._isolated = sending
        try:
            profile.runcall(run)
        finally:
            IdentityKeyPair.verify_with = staticmethod(verify)  # type: ignore[method-assign]
            local._isolated = isolated

    release(n, profiling)
    calls: dict[str, int] = dict.fromkeys(COUNTED, 0)
    for (file, _, function), (_, number, *_) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        for name, part in COUNTED.items():
            if part in f"{file} {function}":
                calls[name] += number
    return {
        "verified": len(verified),
        "different": len(set(verified)),
        **calls,
        "calls": len(sent) // 2,
        "bytes": sum(sent),
    }


def turn(tree: Path, n: int, what: str) -> Any:
    """What a process of its own measures with the package in `tree`."""
    path = os.pathsep.join((str(tree), str(tree / "client")))
    done = subprocess.run(
        [sys.executable, __file__, "--turn", what, "--baskets", str(n)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def rows(baskets: list[int], before: Path | None, turns: int) -> list[Row]:
    """A row for each number of baskets and each tree; trees take turns."""
    trees = {"now": Path(__file__).parents[1]} | ({} if before is None else {"before": before})
    table = []
    for n in baskets:
        taken: dict[str, list[float]] = {name: [] for name in trees}
        for _ in range(turns):
            for name, tree in trees.items():
                taken[name].append(turn(tree, n, "seconds"))
        degree = session_shape(Layer2Config(), n).degree or n - 1
        for name, tree in trees.items():
            row = {"tree": name, "baskets": n, "degree": degree, "pairs": n * degree // 2}
            table.append(row | {"seconds": min(taken[name])} | turn(tree, n, "counts"))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="an earlier commit, unpacked")
    parser.add_argument("--baskets", type=int, nargs="+", default=[4, 20, 100, 500])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--turn", choices=("seconds", "counts"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        warnings.simplefilter("ignore")
        seconds(4)
        print(json.dumps((seconds if arguments.turn == "seconds" else counts)(arguments.baskets[0])))
        return 0
    table = rows(arguments.baskets, arguments.before, arguments.turns)
    if arguments.format == "json":
        print(json.dumps(table, indent=1))
        return 0
    widths = {name: max(10, len(name)) for name in table[0]}
    print("  ".join(name.rjust(width) for name, width in widths.items()))
    for row in table:
        cells = [f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()]
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths.values(), strict=True)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
