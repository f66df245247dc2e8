"""Ray's control service (GCS) with fault tolerance: killed and started again beneath a working federation.

``python -m benchmarks gcs [--kills 2] [--seconds-away 3]``, with Debian's package `redis-server`. Three nodes
that share this machine, as in `benchmarks.deaths`; the GCS keeps its tables in Redis (``RAY_REDIS_ADDRESS``).
A driver makes rounds; the GCS is killed, is away for some seconds, and is started again on the same address.
At the end it is judged whether an update was lost or counted twice, which is exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._deaths_nodes import Nodes
from benchmarks._deaths_oracle import judged
from scarcity_ray.actors.global_aggregator import RELEASE
from scarcity_ray.actors.kept import CODEC
from scarcity_ray.storage.snapshots import Snapshots

MOST_SECONDS = 90.0
"""For a driver's next round, or its end."""


class Run:
    """One federation's folder, with its driver's log."""

    def __init__(self, folder: Path, nodes: Nodes) -> None:
        self.folder, self.nodes = folder, nodes

    def lines(self) -> list[dict[str, Any]]:
        log = self.folder / "log.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def num_rounds(self) -> int:
        return sum(line["what"] == "round" for line in self.lines())

    def driver(self, verb: str) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_REDIS_ADDRESS"}
        command = [sys.executable, "-m", "benchmarks._deaths_driver", self.nodes.address]
        with (self.folder / "driver.err").open("ab") as told:
            return subprocess.Popen(
                [*command, str(self.folder), "calls", verb], stdout=told, stderr=told, env=environment
            )

    def until(self, holds: Callable[[], bool]) -> float:
        """Seconds until something holds.

        Raises:
            RuntimeError: If it takes too long; with the end of what the driver said.
        """
        start = time.monotonic()
        while not holds():
            if time.monotonic() - start > MOST_SECONDS:
                raise RuntimeError((self.folder / "driver.err").read_text()[-2000:])
            self.nodes.reap()
            time.sleep(0.1)
        return time.monotonic() - start


def kill_again_and_again(run: Run, kills: int, seconds_away: float) -> int:
    """Kill the GCS beneath a driver that makes rounds; the exit status."""
    head: Any = run.nodes._cluster.head_node
    driver = run.driver("work")
    try:
        run.until(lambda: run.num_rounds() >= 3)
        for _ in range(kills):
            before = run.num_rounds()
            head.kill_gcs_server()
            time.sleep(seconds_away)
            meanwhile = run.num_rounds() - before
            head.start_gcs_server()
            waited = run.until(lambda before=before + meanwhile: run.num_rounds() > before)  # type: ignore[misc]
            print(f"away {seconds_away:g} s: {meanwhile} rounds meanwhile; the next {waited:.1f} s later")
        (run.folder / "stop").touch()
        run.until(lambda: driver.poll() is not None)
        settling = run.driver("settle")
        run.until(lambda: settling.poll() is not None)
    finally:
        driver.kill()
    stored = Snapshots(str(run.folder / "state")).read_all(RELEASE, CODEC)
    counts, wrong = judged(
        run.lines(), {model.version: model for model in stored}, run.folder / "ledger.sqlite"
    )
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    print("\n".join(wrong) or "nothing was lost or counted twice")
    return int(bool(wrong))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seconds-away", type=float, default=3.0)
    asked = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        redis = subprocess.Popen(
            ["redis-server", "--port", str(port), "--save", "", "--dir", folder], stdout=subprocess.DEVNULL
        )
        os.environ["RAY_REDIS_ADDRESS"] = f"127.0.0.1:{port}"
        try:
            nodes = Nodes()
            try:
                return kill_again_and_again(Run(Path(folder), nodes), asked.kills, asked.seconds_away)
            finally:
                nodes._cluster.shutdown()
        finally:
            redis.kill()


if __name__ == "__main__":
    raise SystemExit(main())
