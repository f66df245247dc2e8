"""Load over time: memory, files and threads of every role over many rounds, and what is left behind.

``python -m benchmarks soak [--part rounds wide outrun] [--runtime local|ray] [--rounds N] [--seconds S]``
stops after the rounds or the seconds, whichever comes first, and says how many rounds were made.

Parts:
    rounds: Rounds of submissions, gossip, Layer 1, a secure sum and its release, with storage and a journal,
        and one client that leaves and comes back each round. After each, every process's own memory
        (RssAnon), open files and threads are read from outside, out of /proc. ``slope`` is that of a line
        through the means of 20 equal stretches after the first fifth of the rounds (what is read once and
        filled up is in there), with the 95 % confidence interval of that line. ``left`` are Ray's objects
        that some process refers to, before the first round and after the last. ``a round of the second half``
        tells live memory from what is free between it, if all of the rounds were made.
    wide: One round of many long updates (200 of d = 1e6), and the processes' peak memory.
    outrun: Clients that send on without any aggregate, into ``buffer.max_bytes`` of 64 MiB: how many were
        accepted and refused, and the basket actors' memory.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks._heap import heap
from benchmarks._memory import PeakMemory
from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load

Row = dict[str, Any]
D = 64
CLIENTS = 40
STRETCHES = 20
WARM_UP = 0.2
KINDS = ("KiB", "files", "threads")
HEAP = ("KiB in use", "KiB free", "Python blocks")


@dataclass
class Watch:
    """What the processes of a federation take, read again and again.

    Attributes:
        series: By role and kind, a value a round.
    """

    processes: dict[str, int]
    series: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def look(self) -> None:
        for role, process in self.processes.items():
            status = Path(f"/proc/{process}/status").read_text().splitlines()
            said = {line.partition(":")[0]: line.split()[1] for line in status if len(line.split()) > 1}
            found = (int(said["RssAnon"]), len(os.listdir(f"/proc/{process}/fd")), int(said["Threads"]))
            for kind, value in zip(KINDS, map(float, found), strict=True):
                self.series[role, kind].append(value)

    def rows(self) -> Iterator[Row]:
        for (role, kind), values in self.series.items():
            yield {"name": role, "kind": kind, "first": values[0], "last": values[-1], **slope(values)}


def slope(values: Sequence[float]) -> Row:
    """The growth a round after the warm-up, with its 95 % confidence interval."""
    warm = np.asarray(values[int(WARM_UP * len(values)) :])
    if len(warm) < STRETCHES:
        return {"slope": float("nan"), "low": float("nan"), "high": float("nan")}
    each = len(warm) // STRETCHES
    means = warm[-each * STRETCHES :].reshape(STRETCHES, each).mean(axis=1)
    line = stats.linregress(each * np.arange(STRETCHES), means)
    width = float(stats.t.ppf(0.975, STRETCHES - 2) * line.stderr)
    return {"slope": float(line.slope), "low": line.slope - width, "high": line.slope + width}


def settings(folder: Path, **changes: Any) -> HierarchicalFederationConfig:
    plain: dict[str, Any] = {
        "vector_dim": D,
        "auto_aggregate": False,
        "total_epsilon": 1e6,
        "total_delta": 0.5,
        "ledger_path": str(folder / "ledger.sqlite"),
        "storage_path": str(folder / "state"),
        "journal_path": str(folder / "journal"),
        "basket": {"max_clients": 10},
        "layer2": {"central_dp_delta": 1e-7},
        "gossip": {"local_dp_delta": 1e-7},
    }
    return load(HierarchicalFederationConfig, plain | changes)


class Clock:
    """An hour a round, so that what is remembered for a day is so for 24 rounds."""

    now = 1e9

    def __call__(self) -> float:
        return self.now


@contextmanager
def opened(
    runtime: Any, clock: Callable[[], float] = time.time, **changes: Any
) -> Iterator[HierarchicalFederation]:
    with (
        tempfile.TemporaryDirectory() as folder,
        HierarchicalFederation(settings(Path(folder), **changes), runtime=runtime, clock=clock) as federation,
    ):
        yield federation


def processes_of(federation: HierarchicalFederation) -> dict[str, int]:
    """The driver's process and on Ray every role's."""
    found = {"driver": os.getpid()}
    place: Any = federation._runtime
    if hasattr(place, "_namespace"):
        import ray

        from scarcity_ray.runtime.ray_runtime import find_actor

        for name in place.names():
            asked = find_actor(place._namespace, name).__ray_call__.remote(lambda self: os.getpid())
            found[name] = int(ray.get(asked))
    return found


def start_ray() -> None:
    """A cluster as the package starts one, with the dashboard, which serves Ray's state API."""
    import ray

    from scarcity_ray.runtime.connect import MALLOC_ARENAS

    os.environ.setdefault("MALLOC_ARENA_MAX", MALLOC_ARENAS)
    ray.init(address="local", include_dashboard=True, log_to_driver=False, logging_level="ERROR")


def stored_objects(runtime: str) -> int | None:
    """Objects that some process refers to, by Ray's state API; None without Ray."""
    if runtime != "ray":
        return None
    from ray.util.state import list_objects

    return len(list_objects(limit=10_000))


def heaps(federation: HierarchicalFederation) -> dict[str, tuple[int, int, int]]:
    """`heap` of the driver and on Ray of every role."""
    found, place = {"driver": heap()}, federation._runtime
    if isinstance(namespace := getattr(place, "_namespace", None), str):
        import ray

        from scarcity_ray.runtime.ray_runtime import find_actor

        for name in place.names():
            found[name] = ray.get(find_actor(namespace, name).__ray_call__.remote(heap))
    return found


def rounds(runtime: str, most: int, seconds: float) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    ids = [f"c{i}" for i in range(CLIENTS)]
    clock = Clock()
    if runtime == "ray":
        start_ray()
    with opened(runtime, clock) as federation:
        federation.register_clients([(c, "ab"[i % 2]) for i, c in enumerate(ids)])
        watch = Watch(processes_of(federation))
        before, made, start = stored_objects(runtime), 0, time.monotonic()
        half = heaps(federation)
        while made < most and time.monotonic() - start < seconds:
            receipts = federation.submit_updates(ids, 0.1 * rng.standard_normal((CLIENTS, D)))
            federation.run_gossip_round()
            federation.force_aggregate()
            leaver = ids[made % CLIENTS]
            federation.unregister_client(leaver)
            federation.register_client(leaver, "ab"[ids.index(leaver) % 2])
            federation.advance_round()
            if not all(receipts):
                raise RuntimeError(f"refused: {Counter(receipt.reason for receipt in receipts)}")
            made += 1
            clock.now += 3600.0
            watch.look()
            if made == most // 2:
                half = heaps(federation)
        taken = time.monotonic() - start
        stats_of = federation.get_stats()
        yield {
            "name": f"rounds, {runtime}",
            "rounds": made,
            "seconds": taken,
            "releases": stats_of["n_layer2_aggregations"],
            "faults": len(federation.faults),
            "left": [before, stored_objects(runtime)],
        }
        yield from watch.rows()
        for role, ended in heaps(federation).items() if made > most // 2 else ():
            grown = [(now - then) / (made - most // 2) for now, then in zip(ended, half[role], strict=True)]
            yield {"name": role, "kind": "a round of the second half", **dict(zip(HEAP, grown, strict=True))}


def wide(runtime: str, clients: int, d: int) -> Iterator[Row]:
    """One round of long rows, in batches of 20."""
    ids = [f"c{i}" for i in range(clients)]
    changes: dict[str, Any] = {
        "vector_dim": d,
        "storage_path": None,
        "journal_path": None,
        "gossip_budget_share": 0.0,
    }
    rng = np.random.default_rng(0)
    with opened(runtime, **changes, basket={"max_clients": 50}) as federation, PeakMemory() as peak:
        federation.register_clients([(c, "a") for c in ids])
        start, reasons = time.monotonic(), Counter[str]()
        for first in range(0, clients, 20):
            rows = rng.standard_normal((min(20, clients - first), d), dtype=np.float32)
            receipts = federation.submit_updates(ids[first : first + 20], rows)
            reasons.update(str(receipt.reason or "accepted") for receipt in receipts)
        submitted = time.monotonic() - start
        released = federation.force_aggregate() is not None
        taken = time.monotonic() - start
    yield {
        "name": f"wide, {runtime}",
        "n": clients,
        "d": d,
        "seconds to submit": submitted,
        "seconds": taken,
        "released": released,
        "answers": dict(reasons),
        "peak GB": peak.extra / 1e9,
    }


def outrun(runtime: str, seconds: float, d: int = 100_000, most: int = 64 << 20) -> Iterator[Row]:
    ids = [f"c{i}" for i in range(CLIENTS)]
    changes: dict[str, Any] = {"vector_dim": d, "buffer": {"max_bytes": most, "participation_cap": 1000}}
    changes |= {"storage_path": None, "journal_path": None, "gossip_budget_share": 0.0}
    rng, reasons, start = np.random.default_rng(0), Counter[str](), time.monotonic()
    with opened(runtime, **changes) as federation:
        federation.register_clients([(c, "a") for c in ids])
        watch = Watch(processes_of(federation))
        for _ in range(40):
            watch.look()
            rows = rng.standard_normal((CLIENTS, d), dtype=np.float32)
            reasons.update(str(r.reason or "accepted") for r in federation.submit_updates(ids, rows))
            if time.monotonic() - start > seconds:
                break
        watch.look()
        released = federation.force_aggregate() is not None
        again = Counter(str(r.reason or "accepted") for r in federation.submit_updates(ids, rows))
    yield {
        "name": f"outrun, {runtime}",
        "offered MiB": sum(reasons.values()) * 4 * d / 2**20,
        "answers": dict(reasons),
        "released": released,
        "after": dict(again),
        "peak growth MiB": {
            role: (max(values) - values[0]) / 1024
            for (role, kind), values in watch.series.items()
            if kind == "KiB"
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=("rounds", "wide", "outrun"), default=["rounds"])
    parser.add_argument("--runtime", choices=("local", "ray"), default="local")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--clients", type=int, default=200, help="of the part wide")
    parser.add_argument("--dim", type=int, default=1_000_000, help="of the part wide")
    arguments = parser.parse_args()
    parts = {
        "rounds": lambda: rounds(arguments.runtime, arguments.rounds, arguments.seconds),
        "wide": lambda: wide(arguments.runtime, arguments.clients, arguments.dim),
        "outrun": lambda: outrun(arguments.runtime, arguments.seconds),
    }
    for part in arguments.part:
        for row in parts[part]():
            print(json.dumps(row, default=str), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
