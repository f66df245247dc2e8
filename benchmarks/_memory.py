"""Peak memory of this process and everything that it started, sampled by a process of its own.

Run with a process id (and the seconds between two samples, where they should be more), this file is that
sampler: it prints a line when it has the level to start from, and when its input closes, what the peak was
above that level, in bytes, and how many samples there were. Pages of shared memory that were in use before
are not in the level, so that a store that uses them again hides nothing.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

PAUSE_SECONDS = 0.003


class PeakMemory:
    """A context that watches memory; afterwards ``extra`` is the growth in bytes at the worst moment."""

    extra = 0
    samples = 0

    def __enter__(self) -> PeakMemory:
        self._sampler = subprocess.Popen(
            [sys.executable, __file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._sampler.stdout is not None
        self._sampler.stdout.readline()
        return self

    def __exit__(self, *error: object) -> None:
        output, _ = self._sampler.communicate()
        self.extra, self.samples = map(int, output.split())


def family(root: int, without: int) -> list[int]:
    """`root` and its descendants, but for one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for process in found:
        found.extend(child for child in children.get(process, ()) if child != without)
    return found


def proportional_bytes(process: int, *fields: str) -> int:
    """The sum of these fields of the process's memory map, such as ``Pss``; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.partition(":")[0] in fields)


def cpu_seconds_below(root: int) -> float:
    """Processor time of `root` and its living descendants, and of the dead ones that were waited for."""
    ticks = 0
    for process in family(root, 0):
        try:
            ticks += sum(
                map(int, Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15])
            )
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    root, pause = int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else PAUSE_SECONDS
    processes = family(root, os.getpid())
    level = sum(proportional_bytes(process, "Pss_Anon", "Pss_File") for process in processes)
    print("watching", flush=True)
    peak, samples = level, 0
    while not select.select([sys.stdin], [], [], pause)[0]:
        if samples % 20 == 0:
            processes = family(root, os.getpid())
        peak = max(peak, sum(proportional_bytes(process, "Pss") for process in processes))
        samples += 1
    print(peak - level, samples)


if __name__ == "__main__":
    main()
