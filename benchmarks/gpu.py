"""Rules on tensors, in this process and without Ray: times, memory's bandwidth, and ByzFL's own functions.

On a GPU: n of 50 and 100, d of 1e6 and 1e7, float32 and bfloat16 rows, within five minutes. Without one the
same runs small on one core: that shows that it runs, and its times say nothing of a GPU.

First it checks what it is about to time: on hostile rows, selections are NumPy's, and those of distances that
are formed in float64 one by one; values are NumPy's to the last place. If not, it ends with 1.

A call is timed from an idle device to an idle device, and of `RUNS` after a first one the fastest counts.
*GB/s* is the rows' bytes over its time. *Share* is the time that reading the rows once takes, at the rate at
which this device copies them, over ours: 0.5 is within twice the memory's bandwidth. ``--peers`` has ByzFL's
classes on the same tensor, where it is installed; *ratio* is theirs over ours. ByzFL counts n - f - 1
neighbours, its Multi-Krum averages n - f rows, and its mixing forms n (n - f) d entries: it is left out where
they do not fit in half of the free memory. torch's median of an even number of rows is the lower of the
middle two.

*gram* is Krum's float32 products alone. *layer 1* has clipping before and after, half of the rows being too
long, and *copied* is that from NumPy's rows, as a basket does it. The last lines hold each size to the goals.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks._adapters import without_its_init
from benchmarks._timing import BYZANTINE_SHARE, CASES, Row, matrix_of, progress

RUNS = 3
SIZES = [(n, d) for d in (1_000_000, 10_000_000) for n in (50, 100)]
SMALL = [(20, 20_000)]
NAMES = (
    "krum",
    "multi_krum",
    "nnm + mean",
    "nnm + trimmed_mean",
    "median",
    "trimmed_mean",
    "mean",
    "meamed",
    "bulyan",
)
GOALS: dict[str, tuple[str, float]] = {
    "gram": ("share", 0.5),
    "krum": ("ratio", 3.0),
    "multi_krum": ("ratio", 3.0),
    "nnm + mean": ("ratio", 3.0),
    "nnm + trimmed_mean": ("ratio", 3.0),
    "median": ("ratio", 5.0),
    "trimmed_mean": ("ratio", 5.0),
}
"""Issue 17.7: the least *share* of the bandwidth, or *ratio* to ByzFL."""
LONGEST_SECONDS = 240.0
"""After so long nothing further is begun: a device is lent for minutes."""


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
    with kernels.ieee_float32(device):
        progress(f"products of float32 are IEEE's: {kernels.is_ieee(device)}")
    if wrong := differences(device):
        for what in wrong:
            progress(f"WRONG: {what}")
        return 1
    progress("selections are those of float64's distances, and of NumPy's rows")
    if arguments.peers and importlib.util.find_spec("byzfl") is None:
        progress("skipped: ByzFL is not installed")
        arguments.peers = False
    sizes = SMALL if device.type == "cpu" and not arguments.full else SIZES
    found: list[Row] = []
    for row in rows(device, sizes, arguments.peers):
        found.append(row)
        print(json.dumps(row) if arguments.format == "json" else text(row), flush=True)
    for goal in goals(found):
        print(json.dumps(goal) if arguments.format == "json" else told(goal))
    return 0


def text(row: Row) -> str:
    peer = f"  ByzFL {row['peer_seconds']:.4g} s, {row['ratio']:.2f} times" if "ratio" in row else ""
    memory = row["extra_bytes"]
    counted = "" if memory is None else f"  {memory / row['rows_bytes']:.2f} times the rows' memory"
    return (
        f"{row['rule']:29s} n {row['n']:4d} d {row['d']:9d} {row['dtype']:9s} {row['seconds']:.4g} s  "
        f"{row['rows_bytes'] / row['seconds'] / 1e9:.4g} GB/s  share {row['share']:.2f}{counted}{peer}"
    )


def goals(found: list[Row]) -> Iterator[Row]:
    """How many sizes reach each goal, and the one that is furthest from it."""
    for rule, (measure, least) in GOALS.items():
        rows = [row for row in found if row["rule"] == rule and measure in row]
        goal: Row = {"goal": rule, "measure": measure, "least": least, "sizes": len(rows)}
        if rows:
            worst = min(rows, key=lambda row: float(row[measure]))
            goal["reached"] = sum(row[measure] >= least for row in rows)
            goal["worst"] = {name: worst[name] for name in ("n", "d", "dtype", measure)}
        yield goal


def told(goal: Row) -> str:
    asked = f"goal: {goal['goal']:20s} {goal['measure']} of {goal['least']:g}"
    if not goal["sizes"]:
        return f"{asked}: not measured"
    worst = goal["worst"]
    return (
        f"{asked}: reached in {goal['reached']} of {goal['sizes']} sizes; least {worst[goal['measure']]:.2f} "
        f"(n {worst['n']}, d {worst['d']}, {worst['dtype']})"
    )


def differences(device: Any) -> list[str]:
    """What is not as it should be, on rows some of which are huge, equal, nearly equal or opposite."""
    import torch

    from scarcity_ray import Layer1Aggregator, Layer1Config, aggregate

    n, d, f = 20, 20_000, 4
    drawn = matrix_of(n, d) + 30.0 * matrix_of(1, d, 1)
    drawn[3] *= np.float32(1e12)
    drawn[5], drawn[8] = drawn[6], -drawn[9]
    drawn[11] = drawn[12] * np.float32(1 + 1e-6)
    wrong: list[str] = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given = torch.from_numpy(drawn).clamp(-6e4, 6e4).to(dtype).to(device)
        plain = given.float().cpu().numpy()
        exact = np.array(
            [np.square(plain.astype(np.float64) - row).sum(axis=1) for row in plain.astype(float)]
        )
        np.fill_diagonal(exact, np.inf)
        best = int(np.sort(exact, axis=1)[:, : n - f - 2].sum(axis=1).argmin())
        if (krum := aggregate(given, method="krum", num_byzantine=f).selected) != (best,):
            wrong.append(f"krum, {dtype}: {krum} selected, and by float64's distances {best}")
        for rule in NAMES:
            method, pre = CASES[rule]
            byzantine = f if rule != "bulyan" else 3
            ours, numpys = (
                aggregate(some, method=method, num_byzantine=byzantine, pre=pre) for some in (given, plain)
            )
            vector: Any = ours.vector
            expected = torch.from_numpy(numpys.vector).to(dtype).to(device)
            close = torch.allclose(vector, expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
            if ours.selected != numpys.selected or vector.device != given.device or not close:
                wrong.append(f"{rule}, {dtype}: not what NumPy's rows give")
        layer = Layer1Aggregator(Layer1Config(num_byzantine=f, clip_norm=4000.0))
        here, there = layer.aggregate(plain), layer.aggregate(given)
        vector = there.aggregate
        close = torch.allclose(vector, torch.from_numpy(here.aggregate).to(device), rtol=1e-6, atol=1e-6)
        if there.selected != here.selected or not close:
            wrong.append(f"layer 1, {dtype}: not what NumPy's rows give")
    return wrong


def rows(device: Any, sizes: list[tuple[int, int]], peers: bool) -> Iterator[Row]:
    import torch

    started = time.monotonic()
    for n, d in sizes:
        for dtype in (torch.float32, torch.bfloat16):
            generator = torch.Generator(device).manual_seed(0)
            given = torch.randn((n, d), dtype=torch.float32, device=device, generator=generator).to(dtype)
            reading = least_time(given.clone, device) / 2
            theirs = dict(byzfl(given, int(BYZANTINE_SHARE * n))) if peers else {}
            for rule, ours in cases(given):
                if time.monotonic() - started > LONGEST_SECONDS:
                    progress(f"left out: {rule}, n {n}, d {d}, {dtype}: {LONGEST_SECONDS:.0f} s are over")
                    continue
                found: Row = {"rule": rule, "n": n, "d": d, "dtype": str(dtype).removeprefix("torch.")}
                found |= {"rows_bytes": given.numel() * given.element_size()}
                found |= {"extra_bytes": extra_bytes(ours, device), "seconds": least_time(ours, device)}
                found["share"] = reading / found["seconds"]
                if rule in theirs:
                    found["peer_seconds"] = least_time(theirs[rule], device)
                    found["ratio"] = found["peer_seconds"] / found["seconds"]
                yield found


def cases(given: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is timed on a tensor, by name."""
    import torch

    from scarcity_ray import AggregationMethod, Layer1Aggregator, Layer1Config, aggregate
    from scarcity_ray.robust.measures.approximate_distances import approximate_gram_block
    from scarcity_ray.robust.tensors import kernels

    n, d = given.shape
    f = int(BYZANTINE_SHARE * n)
    tensors = kernels.TensorRows.given(given)
    yield "gram", lambda: list(tensors.map_blocks(approximate_gram_block, 0))
    for rule in NAMES:
        method, pre = CASES[rule]
        yield rule, partial(aggregate, given, method=method, num_byzantine=f, pre=pre)
    for method in ("krum", "trimmed_mean"):
        config = Layer1Config(
            aggregation_method=AggregationMethod(method), num_byzantine=f, clip_norm=float(d) ** 0.5
        )
        yield f"layer 1 {method}", partial(Layer1Aggregator(config).aggregate, given)
        if given.dtype == torch.float32 and given.numel() <= 100_000_000:
            there = Layer1Aggregator(config, device=str(given.device))
            yield f"layer 1 {method}, copied", partial(there.aggregate, given.cpu().numpy())


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
