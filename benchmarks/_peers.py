"""Layer 1 against Flower's own functions, on one core, where Flower is installed (the extra ``bench``).

Function against function: the rows are in the form that the other library hands to its rule, and ``ratio`` is
our time over theirs. *Flower new* is the Message API's, whose Bulyan selects once, without re-scoring;
*Flower legacy* is that of ``flwr.server``. A function of theirs that takes seconds is called once.

Left out, and said so on the error stream: ByzFL (needs torch), ByzPy (0.1.4 needs ``torch<2.6``) and ``krum``
(not on the package index).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks._timing import BYZANTINE_SHARE, Row, cpu_time, least_time, versus
from scarcity_ray.robust import aggregate_blocks, inline_blocks, one_blas_thread, row_norms

SIZES, QUICK = [(100, 100_000), (50, 1_000_000)], [(20, 10_000)]
MOST_LEGACY_WORK = 1.1e11
"""n^3 d beyond which Flower's legacy Bulyan, which then takes half a minute and more, is left out."""
LONG_SECONDS = 4.0
OUTSIDE = ("byzfl", "byzpy", "krum")

Peer = tuple[str, str, Callable[[], object]]


def rows(quick: bool = False) -> Iterator[Row]:
    for name in OUTSIDE:
        print(f"skipped: {name} (this benchmark does not call it)", file=sys.stderr)
    if importlib.util.find_spec("flwr") is None:
        print("skipped: flwr (not installed; the extra bench has it)", file=sys.stderr)
        return
    with one_blas_thread():
        for n, d in QUICK if quick else SIZES:
            yield from measure_size(n, d)


def measure_size(n: int, d: int) -> Iterator[Row]:
    updates = list(np.random.default_rng(0).standard_normal((n, d), np.float32))
    norms, f = row_norms(updates), int(BYZANTINE_SHARE * n)
    ours: dict[str, float] = {}
    for method, peer, call in [*flower_new(updates, f), *flower_legacy(updates, f)]:
        if method not in ours:
            ours[method] = least_time(
                lambda method=method: aggregate_blocks(
                    inline_blocks(updates), n, method=method, num_byzantine=f, norms=norms
                ),
                4,
            )
        seconds = ours[method]
        yield {"name": method, "n": n, "d": d, "seconds": seconds} | versus(seconds, peer, theirs(call))


def theirs(call: Callable[[], object]) -> float:
    first = cpu_time(call)
    return first if first > LONG_SECONDS else min(first, cpu_time(call))


def flower_new(updates: list[np.ndarray], f: int) -> list[Peer]:
    from flwr.app import ArrayRecord, RecordDict
    from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
    from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
    from flwr.serverapp.strategy.multikrum import select_multikrum

    n = len(updates)
    contents = [RecordDict({"arrays": ArrayRecord(numpy_ndarrays=[row])}) for row in updates]

    def bulyan() -> Any:
        chosen = select_multikrum(contents, f, n - 2 * f)
        arrays = [content["arrays"].to_numpy_ndarrays() for content in chosen]
        medians = [np.median(layer, axis=0) for layer in zip(*arrays, strict=True)]
        return aggregate_n_closest_weights(medians, arrays, n - 4 * f)

    return [
        ("krum", "Flower new", lambda: select_multikrum(contents, f, 1)),
        ("bulyan", "Flower new", bulyan),
        ("median", "Flower new", lambda: np.median(np.stack(updates), axis=0)),
        ("trimmed_mean", "Flower new", lambda: trim_mean(np.stack(updates), (f + 0.5) / n)),
    ]


def flower_legacy(updates: list[np.ndarray], f: int) -> list[Peer]:
    from flwr.server.strategy.aggregate import (
        aggregate_bulyan,
        aggregate_krum,
        aggregate_median,
        aggregate_trimmed_avg,
    )

    n, d = len(updates), len(updates[0])
    results = [([row], 1) for row in updates]
    peers: list[Peer] = [
        ("krum", "Flower legacy", lambda: aggregate_krum(results, f, 0)),
        ("median", "Flower legacy", lambda: aggregate_median(results)),
        ("trimmed_mean", "Flower legacy", lambda: aggregate_trimmed_avg(results, (f + 0.5) / n)),
    ]
    if n**3 * d <= MOST_LEGACY_WORK:
        peers.append(
            (
                "bulyan",
                "Flower legacy",
                lambda: aggregate_bulyan(list(results), f, aggregation_rule=aggregate_krum, to_keep=0),
            )
        )
    return peers
