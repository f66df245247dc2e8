"""Rules on tensors, in this process and without Ray: times, memory's bandwidth, and ByzFL's own functions.

On a GPU: n of 50 and 100, d of 1e6 and 1e7, float32 and bfloat16 rows, within five minutes. Without one the
same runs small on one core: that shows that it runs, and its times say nothing of a GPU.

A call is timed from an idle device to an idle device, and of `RUNS` after a first one the fastest counts.
*Share* is the time that reading the rows once takes, at the rate at which this device copies them, over ours:
0.5 is within twice the memory's bandwidth. ``--peers`` has ByzFL's classes on the same tensor, where it is
installed; *ratio* is theirs over ours. ByzFL counts n - f - 1 neighbours, its Multi-Krum averages n - f rows,
and its mixing forms n (n - f) d entries: it is left out where they do not fit in half of the free memory.
torch's median of an even number of rows is the lower of the middle two.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks._adapters import without_its_init
from benchmarks._timing import BYZANTINE_SHARE, CASES, Row, progress

RUNS = 3
SIZES = [(n, d) for d in (1_000_000, 10_000_000) for n in (50, 100)]
SMALL = [(20, 20_000)]
NAMES = (
    "mean",
    "median",
    "trimmed_mean",
    "meamed",
    "krum",
    "multi_krum",
    "bulyan",
    "nnm + mean",
    "nnm + trimmed_mean",
)
LONGEST_SECONDS = 240.0
"""After so long no further size is begun: a device is lent for minutes."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", action="store_true", help="ByzFL's functions, too, where it is installed")
    parser.add_argument("--device", help="cuda if there is one, else cpu")
    parser.add_argument("--full", action="store_true", help="the sizes of a GPU, on a CPU too")
    parser.add_argument("--format", choices=["text", "json"], default="text")
    arguments = parser.parse_args()
    import torch

    from scarcity_ray.robust.tensors import kernels

    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, which says nothing of a GPU"
    if device.type == "cpu":
        torch.set_num_threads(1)
        kernels.NUMPYS_DEVICES = ()
    progress(f"{device}: {name}; torch {torch.__version__}")
    sizes = SMALL if device.type == "cpu" and not arguments.full else SIZES
    for row in rows(device, sizes, arguments.peers):
        print(json.dumps(row) if arguments.format == "json" else text(row), flush=True)
    return 0


def text(row: Row) -> str:
    peer = f"  ByzFL {row['peer_seconds']:.4g} s, {row['ratio']:.2f} times" if "ratio" in row else ""
    memory = row["extra_bytes"]
    counted = "" if memory is None else f"  {memory / row['rows_bytes']:.2f} times the rows' memory"
    return (
        f"{row['rule']:20s} n {row['n']:4d} d {row['d']:9d} {row['dtype']:9s} {row['seconds']:.4g} s  "
        f"share {row['share']:.2f}{counted}{peer}"
    )


def rows(device: Any, sizes: list[tuple[int, int]], peers: bool) -> Iterator[Row]:
    import torch

    from scarcity_ray import aggregate

    if peers and importlib.util.find_spec("byzfl") is None:
        progress("skipped: ByzFL is not installed")
        peers = False
    started = time.monotonic()
    for n, d in sizes:
        for dtype in (torch.float32, torch.bfloat16):
            if time.monotonic() - started > LONGEST_SECONDS:
                progress(f"left out: n {n}, d {d}, {dtype}: {LONGEST_SECONDS:.0f} s are over")
                continue
            generator = torch.Generator(device).manual_seed(0)
            given = torch.randn((n, d), dtype=torch.float32, device=device, generator=generator).to(dtype)
            f, size = int(BYZANTINE_SHARE * n), given.numel() * given.element_size()
            reading = least_time(given.clone, device) / 2
            theirs = dict(byzfl(given, f)) if peers else {}
            for rule in NAMES:
                method, pre = CASES[rule]

                def ours(
                    method: str = method, pre: tuple[str, ...] = pre, given: Any = given, f: int = f
                ) -> Any:
                    return aggregate(given, method=method, num_byzantine=f, pre=pre)

                found: Row = {"rule": rule, "n": n, "d": d, "dtype": str(dtype).removeprefix("torch.")}
                found |= {"rows_bytes": size, "extra_bytes": extra_bytes(ours, device)}
                found["seconds"] = least_time(ours, device)
                found["share"] = reading / found["seconds"]
                if rule in theirs:
                    found["peer_seconds"] = least_time(theirs[rule], device)
                    found["ratio"] = found["peer_seconds"] / found["seconds"]
                yield found


def byzfl(given: Any, f: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """ByzFL's functions on the tensor, by our names of the rules."""
    rules = without_its_init("byzfl", "aggregators.aggregators")
    nnm = without_its_init("byzfl", "aggregators.preaggregators").NNM(f)
    yield "mean", lambda: rules.Average()(given)
    yield "median", lambda: rules.Median()(given)
    yield "trimmed_mean", lambda: rules.TrMean(f)(given)
    yield "krum", lambda: rules.Krum(f)(given)
    yield "multi_krum", lambda: rules.MultiKrum(f)(given)
    if given.numel() * given.element_size() * (len(given) - f) <= free_bytes(given.device) / 2:
        yield "nnm + mean", lambda: rules.Average()(nnm(given))
        yield "nnm + trimmed_mean", lambda: rules.TrMean(f)(nnm(given))


def free_bytes(device: Any) -> float:
    import torch

    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 2e9


def least_time(call: Callable[[], Any], device: Any) -> float:
    call()
    return min(wall_seconds(call, device) for _ in range(RUNS))


def wall_seconds(call: Callable[[], Any], device: Any) -> float:
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def extra_bytes(call: Callable[[], Any], device: Any) -> int | None:
    """Peak memory of a call beyond what was held before it; None where it is not counted (the CPU)."""
    import torch

    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    wait(device)
    return int(torch.cuda.max_memory_allocated(device) - before)
