"""Growth: what a client and an update cost, from few to many.

``python -m benchmarks scale [--part NAME ...] [--runtime local|ray ...] [--most N] [--format json]``. A size
is measured in a process of its own, so that no size finds the memory of another warm or full. Seconds are
processor time, of the driver and on Ray of all its roles too: what else the machine does changes them little.
``ratio`` is the time a unit over that of the smallest size: 1.5 is what growth may cost. ``collector`` is
what Python's garbage collector took of it in the driver: it looks at all objects whenever their number has
grown by a quarter, so that a process pays for it from 100,000 clients or so on, and hardly before. ``GB`` is
the driver's peak memory. On ``local`` all roles are in the driver.

Parts:
    manager: `BasketManager.add_client`, a client a call, all of one domain.
    register: `register_clients`, 10,000 a call, in baskets of 100 of ten domains.
    domain: the same, all of one domain.
    submit, gossip, layer1, layer2: a round of 10,000 and of 100,000 updates of d = 64 in baskets of 100:
        batches of 10,000, then gossip, then Layer 1 (Krum), then the noised sum of all baskets. It is a plain
        sum: what secure aggregation costs with the number of baskets, `python -m benchmarks secagg` says.
    single: `offer_update`, an update a call, into one basket that holds them all.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.directory import BasketManager

Row = dict[str, Any]
D = 64
BATCH = 10_000
SIZES: dict[str, tuple[int, ...]] = {
    "manager": (10_000, 100_000, 1_000_000),
    "register": (10_000, 100_000, 1_000_000),
    "domain": (10_000, 100_000, 1_000_000),
    "submit": (10_000, 100_000),
    "single": (100, 400, 1_600),
}
ROUND = ("submit", "gossip", "layer1", "layer2")
PARTS = (*SIZES, *ROUND[1:])


def settings(ledger: Path, most: int) -> HierarchicalFederationConfig:
    """Room in the budget for a few rounds, and no aggregation that nobody asked for."""
    plain = {
        "vector_dim": D,
        "auto_aggregate": False,
        "total_epsilon": 1000.0,
        "ledger_path": str(ledger),
        "basket": {"max_clients": most},
        "layer2": {"use_secure_aggregation": False},
        "gossip": {"local_dp_epsilon": 0.5},
    }
    return load(HierarchicalFederationConfig, plain)


@contextmanager
def opened(runtime: str, most: int = 100) -> Iterator[tuple[HierarchicalFederation, Callable[[], float]]]:
    """A federation, and a clock of the processor time that its driver and roles have taken."""
    kind: Literal["ray", "local"] = "ray" if runtime == "ray" else "local"
    with tempfile.TemporaryDirectory() as folder:
        config = settings(Path(folder) / "ledger.sqlite", most)
        with HierarchicalFederation(config, runtime=kind) as federation:
            yield federation, time.process_time if kind == "local" else ray_clock(federation)


def ray_clock(federation: HierarchicalFederation) -> Callable[[], float]:
    import ray

    from scarcity_ray.runtime.ray_runtime import find_actor

    place: Any = federation._runtime

    def taken() -> float:
        actors = [find_actor(place._namespace, name) for name in place.names()]
        asked = [actor.__ray_call__.remote(lambda self: time.process_time()) for actor in actors]
        return time.process_time() + float(sum(ray.get(asked)))

    return taken


def clients_of(count: int, domains: int) -> list[tuple[str, str]]:
    return [(f"client_{i}", f"domain_{i % domains}") for i in range(count)]


def register(federation: HierarchicalFederation, clients: Sequence[tuple[str, str]]) -> None:
    for start in range(0, len(clients), BATCH):
        federation.register_clients(clients[start : start + BATCH])


class Collector:
    """Adds up the time that Python's garbage collector takes in this process."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0
        gc.callbacks.append(self._tell)

    def _tell(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._start = time.thread_time()
        else:
            self.seconds += time.thread_time() - self._start


def measure(part: str, runtime: str, count: int) -> list[Row]:
    """What was done, its processor time, the collector's part of it, and the peak memory by then."""
    done: list[Row] = []
    collector = Collector()

    def note(name: str, clock: Callable[[], float], act: Callable[[], object]) -> None:
        start, collected = clock(), collector.seconds
        act()
        seconds, collected = clock() - start, collector.seconds - collected
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        done.append({"name": name, "seconds": seconds, "collector": collected, "GB": memory})

    if part == "manager":
        manager = BasketManager()
        clients = clients_of(count, 1)
        note(part, time.process_time, lambda: [manager.add_client(*client) for client in clients])
        return done
    with opened(runtime, 100 if part != "single" else count) as (federation, clock):
        clients = clients_of(count, 10 if part == "register" else 1)
        if part in ("register", "domain"):
            note(part, clock, lambda: register(federation, clients))
            return done
        register(federation, clients)
        ids = [client_id for client_id, _ in clients]
        rows = (0.1 * np.random.default_rng(0).standard_normal((count, D))).astype(np.float32)
        if part == "single":
            note(
                part,
                clock,
                lambda: [federation.offer_update(c, row) for c, row in zip(ids, rows, strict=True)],
            )
            return done
        driver = federation._driver
        note("submit", clock, lambda: submit(federation, ids, rows))
        note("gossip", clock, federation.run_gossip_round)
        note("layer1", clock, lambda: driver.run_layer1(None, force=False))
        note("layer2", clock, lambda: driver.run_layer2(force=False))
        if federation.get_global_model() is None:
            raise RuntimeError(f"nothing was released: {federation.get_stats()}")
        return done


def submit(federation: HierarchicalFederation, ids: Sequence[str], rows: np.ndarray) -> None:
    for start in range(0, len(ids), BATCH):
        receipts = federation.submit_updates(ids[start : start + BATCH], rows[start : start + BATCH])
        if not all(receipts):
            raise RuntimeError(f"refused: {next(r for r in receipts if not r).reason}")


def rows(parts: Sequence[str], runtimes: Sequence[str], most: int) -> Iterator[Row]:
    """Every row, each size in a fresh process."""
    wanted = list(dict.fromkeys("submit" if part in ROUND else part for part in parts))
    for part in wanted:
        for runtime in ("local",) if part == "manager" else runtimes:
            first: dict[str, tuple[int, float]] = {}
            for count in (size for size in SIZES[part] if size <= most):
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, mp_context=context) as fresh:
                    done = fresh.submit(measure, part, runtime, count).result()
                for row in done:
                    name, seconds = row["name"], row["seconds"]
                    start, least = first.setdefault(name, (count, seconds))
                    if name in parts:
                        yield {
                            "name": f"{name}, {runtime}" if part != "manager" else name,
                            "n": count,
                            "d": None if part in ("manager", "register", "domain") else D,
                            "seconds": seconds,
                            "versus": f"a unit of {start} ({1e6 * least / start:.1f} us)",
                            "ratio": (seconds / count) / (least / start),
                            "collector": row["collector"],
                            "GB": row["GB"],
                        }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--runtime", nargs="+", choices=("local", "ray"), default=("local", "ray"))
    parser.add_argument("--most", type=int, default=1_000_000, help="leave out what is larger")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    for row in rows(arguments.part, arguments.runtime, arguments.most):
        if arguments.format == "json":
            print(json.dumps(row), flush=True)
            continue
        unit = 1e6 * row["seconds"] / row["n"]
        print(
            f"{row['name']:<16} {row['n']:>8} {row['d'] or '':>3} {row['seconds']:>8.3f} s {unit:>8.1f} us"
            f" a unit  {row['ratio']:>5.2f} of {row['versus']}, collector {row['collector']:.3f} s,"
            f" {row['GB']:.2f} GB",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
