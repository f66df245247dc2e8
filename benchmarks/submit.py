"""What one update costs on its way into a basket, by how many wait there, and what hashing it costs.

``python -m benchmarks submit [--format json] [--waiting 10 400 4000] [--updates 200] [--receipts]``. CPU time
an update on the local runtime, in one basket with noise off: alone (`offer_update`), together
(`submit_updates` of a float32 matrix), and together with signatures by keys that the driver holds; with
``--receipts``, baskets sign receipts for them. Versus the same with the fewest waiting. Then long rows of one
matrix, versus copying it, the rows' SHA-256 and copying it again; and a row's digest versus BLAKE2b of the
same row where it lies, and of a copy.

``--ray --updates 1000`` measures this alone, by the wall clock: one update at a time on Ray, from a call to
its receipt (`submit_update`), and one behind the other (`submit_update_async`, all receipts read). Versus a
bare actor's call with the same row, waited for or one behind the other, in turns; the best turns are shown.
Other work on the machine slows both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scarcity_ray import (
    AggregationMethod,
    BasketConfig,
    HierarchicalFederation,
    HierarchicalFederationConfig,
    IdentityKeyPair,
    Layer1Config,
    Layer2Config,
)
from scarcity_ray.updates import content_digest

DIMENSION = 64
REPEATS = 5


def federation_of(
    clients: int,
    signers: int,
    receipts: bool = False,
    dimension: int = DIMENSION,
    runtime: Literal["local", "ray"] = "local",
) -> HierarchicalFederation:
    config = HierarchicalFederationConfig(
        vector_dim=dimension,
        receipts=receipts,
        total_epsilon=math.inf,
        basket=BasketConfig(max_clients=clients + 1),
        layer1=Layer1Config(aggregation_method=AggregationMethod.MEAN, byzantine_fraction=0.0),
        layer2=Layer2Config(central_dp_epsilon=math.inf),
    )
    federation = HierarchicalFederation(config, runtime=runtime)
    federation.register_clients([(f"c{i}", "d") for i in range(clients - signers)])
    for i in range(clients - signers, clients):
        federation.register_client(f"c{i}", "d", identity_keypair=IdentityKeyPair.generate())
    federation.register_client("absent", "d")  # so that no trigger fires
    return federation


def seconds_of(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def submissions(waiting: int, updates: int, receipts: bool = False) -> Iterator[tuple[str, float]]:
    matrix = np.random.default_rng(0).standard_normal((waiting + 3 * updates, DIMENSION), np.float32)
    ids = [f"c{i}" for i in range(len(matrix))]
    with federation_of(len(ids), updates, receipts) as federation:
        federation.submit_updates(ids[:waiting], matrix[:waiting])

        def alone() -> None:
            for i in range(waiting, waiting + updates):
                federation.offer_update(ids[i], matrix[i], 0)

        def together(rows: slice) -> None:
            federation.submit_updates(ids[rows], matrix[rows], 0)

        yield "alone", seconds_of(alone) / updates
        plain = slice(waiting + updates, waiting + 2 * updates)
        yield "together", seconds_of(lambda: together(plain)) / updates
        yield "together, signed", seconds_of(lambda: together(slice(-updates, None))) / updates


def digests(dimension: int) -> dict[str, float]:
    row = np.random.default_rng(0).standard_normal(dimension).astype(np.float32)
    ways: dict[str, Callable[[], bytes]] = {
        "digest": lambda: content_digest(row),
        "blake2b": lambda: hashlib.blake2b(row.data, digest_size=32).digest(),
        "blake2b of a copy": lambda: hashlib.blake2b(row.tobytes(), digest_size=32).digest(),
    }
    times = max(1, 1_000_000 // dimension)

    def repeat(way: Callable[[], bytes]) -> None:
        for _ in range(times):
            way()

    return {
        name: min(seconds_of(partial(repeat, way)) for _ in range(REPEATS)) / times
        for name, way in ways.items()
    }


def long_rows(clients: int = 20, dimension: int = 1_000_000) -> dict[str, Any]:
    """Rows of one matrix, in turns with what copies and digests of it cost."""
    matrix = np.random.default_rng(0).standard_normal((clients, dimension), np.float32)
    ids = [f"c{i}" for i in range(clients)]

    def floor() -> None:
        copied = matrix.copy()
        for row in copied:
            hashlib.sha256(row.data).digest()
        copied.copy()

    ours, theirs = math.inf, math.inf
    for _ in range(REPEATS):
        with federation_of(clients, 0, dimension=dimension) as federation:
            theirs = min(theirs, seconds_of(floor))
            ours = min(ours, seconds_of(partial(federation.submit_updates, ids, matrix, 0)))
    return {
        "name": "submit a matrix",
        "n": clients,
        "d": dimension,
        "seconds": ours / clients,
        "versus": "copy, sha256, copy",
        "ratio": ours / theirs,
    }


class _Bare:
    """An actor that does nothing with a row."""

    def take(self, row: NDArray[np.float32]) -> bool:
        return True


def on_ray(updates: int) -> Iterator[dict[str, Any]]:
    """One update at a time on Ray, in turns with a bare actor's calls."""
    import ray

    rows = np.random.default_rng(0).standard_normal((2 * updates * REPEATS, DIMENSION), np.float32)
    ids = [f"c{i}" for i in range(len(rows))]
    with federation_of(len(ids), 0, runtime="ray") as federation:
        bare = ray.remote(num_cpus=0)(_Bare).remote()
        ray.get(bare.take.remote(rows[0]))

        def waiting(turn: slice) -> None:
            if not all(
                federation.submit_update(*each, 0) for each in zip(ids[turn], rows[turn], strict=True)
            ):
                raise RuntimeError("an update was refused")

        def pipelined(turn: slice) -> None:
            each = zip(ids[turn], rows[turn], strict=True)
            pending = [federation.submit_update_async(*one, 0) for one in each]
            if not all(receipt.result() for receipt in pending):
                raise RuntimeError("an update was refused")

        def bare_waiting(turn: slice) -> None:
            for row in rows[turn]:
                ray.get(bare.take.remote(row))

        def bare_pipelined(turn: slice) -> None:
            ray.get([bare.take.remote(row) for row in rows[turn]])

        best: dict[str, float] = defaultdict(lambda: math.inf)
        for turn in range(REPEATS):
            for work in (bare_waiting, waiting, bare_pipelined, pipelined):
                first = (2 * turn + (work is pipelined)) * updates
                start = time.perf_counter()
                work(slice(first, first + updates))
                best[work.__name__] = min(best[work.__name__], (time.perf_counter() - start) / updates)
    for name in ("waiting", "pipelined"):
        yield {
            "name": f"submit on Ray, {name}",
            "n": updates,
            "d": DIMENSION,
            "seconds": best[name],
            "versus": f"a bare actor's call, {name}",
            "ratio": best[name] / best[f"bare_{name}"],
            "per_second": 1.0 / best[name],
        }


def rows_of(waiting: list[int], updates: int, receipts: bool = False) -> Iterator[dict[str, Any]]:
    first: dict[str, float] = {}
    for n in sorted(waiting):
        best: dict[str, float] = {}
        for _ in range(REPEATS):
            for name, seconds in submissions(n, updates, receipts):
                best[name] = min(seconds, best.get(name, math.inf))
        for name, seconds in best.items():
            other = first.setdefault(name, seconds)
            yield {
                "name": f"submit {name}",
                "n": n,
                "d": DIMENSION,
                "seconds": seconds,
                "versus": f"with {min(waiting)} waiting",
                "ratio": seconds / other,
            }
    yield long_rows()
    for d in (64, 10_000, 1_000_000):
        ways = digests(d)
        for name, seconds in ways.items():
            ratio = seconds / ways["blake2b"]
            yield {"name": name, "n": 1, "d": d, "seconds": seconds, "versus": "blake2b", "ratio": ratio}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--waiting", type=int, nargs="+", default=[10, 400, 4000])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--receipts", action="store_true")
    parser.add_argument("--ray", action="store_true", help="one update at a time on Ray, and nothing else")
    arguments = parser.parse_args()
    found = (
        on_ray(arguments.updates)
        if arguments.ray
        else rows_of(arguments.waiting, arguments.updates, arguments.receipts)
    )
    for row in found:
        if arguments.format == "json":
            print(json.dumps(row), flush=True)
        else:
            cost = f"{row['seconds'] * 1e6:10.1f} us  {row['seconds'] * 1e9 / row['d']:8.1f} ns an entry"
            size = f"n {row['n']:5}  d {row['d']:8}"
            rate = f"  {row['per_second']:,.0f} a second" if "per_second" in row else ""
            print(f"{row['name']:24} {size} {cost}  {row['ratio']:.2f} x {row['versus']}{rate}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
