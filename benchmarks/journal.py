"""What an acknowledgement costs that is on the disk: the journal, LMDB, and one raw write, in turn.

``python -m benchmarks journal [--format json] [--folder DIR] [--turns 20]``. Each way stores a batch of rows
as one transaction and waits for the disk: the journal of a basket actor (`storage.journal`: SQLite in WAL
mode, synchronous=FULL, a batch's rows as one value), the same with one value an update, LMDB (where it
is installed), and ``pwrite`` with ``fdatasync`` of the same bytes, to which the ratio is (higher is better).
The median over the turns; the ways take turns, so that what else the disk does hits all. What is written lies
in a new folder in DIR, which is to be on the journal's disk, and is removed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._timing import matrix_of, wall_time
from scarcity_ray.storage.journal import VALUE_BYTES, Journal, JournalPlace

BATCHES = ((1, 64), (1, 4_096), (256, 64), (16, 1_024), (16, 16_384), (4, 262_144), (8, 1_000_000))
"""Rows and their length: single small updates, then batches from 64 KiB on."""
WARM_TURNS = 3

Write = Callable[[list[bytes]], None]


def raw(folder: Path) -> Write:
    file, end = os.open(folder / "raw", os.O_CREAT | os.O_WRONLY, 0o600), [0]

    def write(rows: list[bytes]) -> None:
        end[0] += os.pwrite(file, b"".join(rows), end[0])
        os.fdatasync(file)

    return write


def journal(folder: Path, row_bytes: int, *, split: bool) -> Write:
    place = JournalPlace(str(folder / f"journal-{split}"), row_bytes=row_bytes)
    made = Journal(place, "benchmark", 0, 1)

    def write(rows: list[bytes]) -> None:
        columns = b"x" * 60 * len(rows)
        with made.writing():
            most = 1 if split else max(1, VALUE_BYTES // len(rows[0]))
            for start in range(0, len(rows), most):
                some = rows[start : start + most]
                made.append("basket", 0, columns[: 60 * len(some)], b"".join(some))

    return write


def lmdb(folder: Path) -> Write | None:
    try:
        module: Any = importlib.import_module("lmdb")
    except ImportError:
        return None
    place, number = module.open(str(folder / "lmdb"), map_size=1 << 36), [0]

    def write(rows: list[bytes]) -> None:
        with place.begin(write=True) as transaction:
            for row in rows:
                number[0] += 1
                transaction.put(number[0].to_bytes(8, "big"), row, append=True)

    return write


def rows_of(folder: Path, turns: int) -> Iterator[dict[str, Any]]:
    for n, d in BATCHES:
        place = Path(tempfile.mkdtemp(dir=folder))
        found = {
            "pwrite + fdatasync": raw(place),
            "journal": journal(place, 4 * d, split=False),
            "journal, one value an update": journal(place, 4 * d, split=True),
            "lmdb": lmdb(place),
        }
        rows = [row.tobytes() for row in matrix_of(n, d)]
        ways = {name: write for name, write in found.items() if write is not None}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(WARM_TURNS + turns):
            for name, write in ways.items():
                times[name].append(wall_time(partial(write, rows)))
        medians = {name: statistics.median(taken[WARM_TURNS:]) for name, taken in times.items()}
        shutil.rmtree(place)
        for name, seconds in medians.items():
            yield {
                "name": name,
                "n": n,
                "d": d,
                "bytes": 4 * n * d,
                "seconds": seconds,
                "versus": "pwrite + fdatasync",
                "ratio": medians["pwrite + fdatasync"] / seconds,
            }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    parser.add_argument("--turns", type=int, default=20)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix=".benchmark-journal-", dir=arguments.folder))
    try:
        for row in rows_of(folder, arguments.turns):
            if arguments.format == "json":
                print(json.dumps(row), flush=True)
            else:
                size = f"{row['n']:4} x {row['d']:8}  {row['bytes'] / 1024:9.1f} KiB"
                cost = f"{row['seconds'] * 1e3:8.2f} ms  {row['ratio']:.2f} x {row['versus']}"
                print(f"{row['name']:30} {size}  {cost}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
