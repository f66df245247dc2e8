"""Real deaths on a cluster of three nodes: SIGKILL and SIGSTOP at random moments, and what they lose.

``python -m benchmarks deaths [--kills 200] [--seed 0] [--record FILE] [--folder DIR]``. A driver, in a
process of its own, goes through rounds of a federation with ``durability: update``; each of its clients'
updates has a coordinate of its own, and the noise is zero, so that a release shows what is in it. Meanwhile a
role, a training task, a node, the driver, or the whole cluster is killed, or stopped for a while. A driver
that has died is followed by another, which attaches or restores. The next death comes when a round is done.

At each federation's end (``--kills-a-federation``) all faults cease, what has no receipt is sent again, and:

* each update that was acknowledged is in one release, or waits in a basket that is too small, or its client
  left before one (*withdrawn*, with the aggregate it was in), or its round ended without a release
  (*superseded*), or the session that it was in was charged and failed (*charged*), or went on without its
  basket, which died in it (*dropped out*); else it is *lost*. None is in two;
* each release has a charge of its own in the ledger; versions and rounds rise;
* the next two rounds are rounds as any other.

Per death: who died, in what, seconds to the end of the next call of the driver, and of a whole round. The
exit status is 1 if anything was lost, counted twice, or stood still for ``--patience`` seconds.

With ``--record FILE`` each federation that is done is a line of JSON in the file, and the same command goes
on from there: ``--kills`` and the figures at the end are of all of them. ``--federations 1`` does one.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._deaths_nodes import Machines, Nodes, Place, program, roles_among, signalled, title
from benchmarks._deaths_oracle import judged
from scarcity_ray.actors.global_aggregator import RELEASE
from scarcity_ray.actors.kept import CODEC
from scarcity_ray.errors import StorageError
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.storage.snapshots import Snapshots

WEIGHTS = {
    "basket": 5,
    "two baskets": 2,
    "accountant": 3,
    "directory": 3,
    "global": 3,
    "basket and directory": 1,
    "driver": 4,
    "driver and basket": 1,
    "worker": 2,
    "raylet": 2,
    "node": 2,
    "cluster": 1,
    "head": 1,
    "cut": 2,
}
STOPPED_SECONDS = (0.2, 4.0)
CUT_SECONDS = (0.2, 9.0)
"""A node is given up for dead after about 3."""


@dataclass
class Death:
    """One death, or one stop.

    Attributes:
        seconds: Of a stop; 0 for SIGKILL.
        phase: The call that the driver was in, and what the victims did.
    """

    who: str
    seconds: float
    phase: str
    at: float
    next_call: float | None = None
    next_round: float | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        how = f"stopped {self.seconds:.1f} s" if self.seconds else "killed"
        until = [
            f"{what} {'never' if s is None else f'{s:.1f} s'}"
            for what, s in (("call", self.next_call), ("round", self.next_round))
        ]
        return " | ".join([self.who, how, self.phase, *until, *self.notes])


class Life:
    """One federation, from its beginning to its end."""

    def __init__(self, folder: Path, kind: str, nodes: Place, chance: random.Random, patience: float) -> None:
        self.folder, self.kind, self.nodes, self.chance, self.patience = folder, kind, nodes, chance, patience
        self.releases: dict[int, GlobalMetaModel] = {}
        self.deaths: list[Death] = []
        self.wrong: list[str] = []
        self.driver: subprocess.Popen[bytes] | None = None
        self.doomed: Any = None
        self.failures = 0
        self._read, self._lines, self._stored = 0, list[dict[str, Any]](), set[str]()

    def lines(self) -> list[dict[str, Any]]:
        """What the drivers have logged so far."""
        with suppress(FileNotFoundError), (self.folder / "log.jsonl").open("rb") as file:
            file.seek(self._read)
            for line in file:
                if line.endswith(b"\n"):
                    self._lines.append(json.loads(line))
                    self._read += len(line)
        return self._lines

    def start_driver(self, verb: str = "work") -> None:
        with (self.folder / "driver.err").open("ab") as errors:
            command = [*self.nodes.inside(), sys.executable, "-m", "benchmarks._deaths_driver"]
            asked = [self.nodes.address, str(self.folder), self.kind, verb]
            self.driver = subprocess.Popen([*command, *asked], stdout=errors, stderr=errors)

    def watch(self) -> None:
        """Start a driver if there is none, and read releases."""
        self.nodes.reap()
        self.lines()
        if self.driver is None or self.driver.poll() is not None:
            if self.driver is not None and self.driver.returncode > 0:
                self.failures += 1
                text = (self.folder / "driver.err").read_text(errors="replace").strip()
                said = text.rsplit("\n", 1)[-1][:300]
                print(f"    a driver ended: {said}", flush=True)
                if self.deaths:
                    self.deaths[-1].notes.append(f"driver ended: {said}")
            self.start_driver()
        self.read_releases()

    def read_releases(self) -> None:
        """Read what is stored, if there is more."""
        files = {file.name for file in (self.folder / "state").glob(f"{RELEASE}.*")}
        if files == self._stored:
            return
        with suppress(StorageError, OSError):
            for model in Snapshots(str(self.folder / "state")).read_all(RELEASE, CODEC):
                known = self.releases.setdefault(model.version, model)
                if known.aggregate.tobytes() != model.aggregate.tobytes():
                    self.wrong.append(f"two models of version {model.version}")
            self._stored = files

    def wait_for(self, since: float, what: str) -> float | None:
        """When the first call, or round, that began after a moment was done; None after the patience."""
        deadline = time.time() + self.patience
        while time.time() < deadline:
            self.watch()
            began: dict[int, float] = {}
            for line in self.lines():
                if line["at"] < since:
                    continue
                if what == "round" and line["what"] == "round" and line["began"] >= since:
                    return float(line["at"])
                if line["what"] in ("begin", "send"):
                    began[line["pid"]] = line["at"]
                if what == "call" and line["what"] in ("end", "sent") and line["pid"] in began:
                    return float(line["at"])
                if line["what"] == "finished":
                    return float(line["at"])
            time.sleep(0.2)
        return None

    def phase(self, pids: Sequence[int]) -> str:
        """The call that the driver is in, and what the victims do."""
        call = "between calls"
        for line in reversed(self.lines()):
            if line["what"] in ("begin", "send", "open", "end", "sent", "opened", "round"):
                call = {
                    "begin": line.get("call", ""),
                    "send": "submit",
                    "open": f"open ({line.get('how')})",
                }.get(line["what"], "between calls")
                break
        told = [name for pid in pids if (name := title(pid)) and not name.endswith("Agent")]
        return f"{call}; {', '.join(told[:4]) or 'no role'}"

    def victims(self, who: str) -> list[int]:
        """Processes that are to die; none if there is no such one now."""
        nodes, chance = self.nodes, self.chance
        found: list[int] = []
        for part in who.split(" and "):
            match part:
                case "driver":
                    found += [self.driver.pid] if self.driver is not None else []
                case "two baskets":
                    there = roles_among(nodes.everything(), "basket")
                    found += chance.sample(there, min(2, len(there)))
                case "raylet" | "node" | "cut":
                    if others := nodes.others():
                        self.doomed = chance.choice(others)
                        pids = nodes.processes(self.doomed)
                        found += [p for p in pids if part != "raylet" or program(p).endswith("/raylet")]
                case "head":
                    found += nodes.head()
                case "cluster":
                    found += nodes.everything() + ([self.driver.pid] if self.driver else [])
                case _:
                    there = roles_among(nodes.everything(), part)
                    at_work = [pid for pid in there if title(pid) != "IDLE"]
                    found += [chance.choice(at_work or there)] if there else []
        return found

    def death(self) -> Death | None:
        """Let somebody die or stand still now, and wait until a round is done."""
        chance = self.chance
        kinds = {k: w for k, w in WEIGHTS.items() if self.kind == "fit" or k != "worker"}
        if not isinstance(self.nodes, Machines):
            kinds.pop("cut", None)
        who = chance.choices(list(kinds), list(kinds.values()))[0]
        seconds = chance.uniform(*STOPPED_SECONDS) if chance.random() < 0.3 else 0.0
        seconds = chance.uniform(*CUT_SECONDS) if who == "cut" else seconds
        seconds = 0.0 if who in ("cluster", "head") else seconds
        pids = self.victims(who)
        if not pids:
            return None
        death = Death(who, seconds, self.phase(pids), time.time())
        self.deaths.append(death)
        if who == "cut":
            self.cut_off(seconds, death)
        elif seconds:
            signalled(pids, signal.SIGSTOP)
            time.sleep(seconds)
            signalled(pids, signal.SIGCONT)
        else:
            signalled(pids, signal.SIGKILL)
        if not seconds and who in ("raylet", "node"):
            self.nodes.replace(self.doomed)
        elif who in ("cluster", "head"):
            self.nodes.begin_anew()
        end = death.at + seconds
        if not seconds and ("driver" in who or who in ("cluster", "head")) and chance.random() < 0.4:
            end = self.kill_the_successor(death)
        for what in ("call", "round"):
            reached = self.wait_for(end, what)
            if reached is None:
                self.wrong.append(f"stood still after: {death}")
                break
            setattr(death, f"next_{what}", reached - end)
        return death

    def cut_off(self, seconds: float, death: Death) -> None:
        """Cut a node off: for all the time, or for moments of it, as where packets are lost.

        One that was given up for dead meanwhile ends when it is joined again; another takes its place.
        """
        nodes, until, is_lossy = self.nodes, time.time() + seconds, self.chance.random() < 0.4
        assert isinstance(nodes, Machines)
        death.notes.append("cut off in moments" if is_lossy else "cut off")
        while (left := until - time.time()) > 0.0:
            nodes.cut(self.doomed, off=True)
            time.sleep(min(left, self.chance.uniform(0.05, 0.5)) if is_lossy else left)
            nodes.cut(self.doomed, off=False)
            time.sleep(self.chance.uniform(0.05, 0.3) if is_lossy else 0.0)
        joined = time.time() + 3.0
        while time.time() < joined and self.doomed in nodes.others():
            time.sleep(0.1)
        if self.doomed not in nodes.others():
            death.notes.append("given up for dead")
            nodes.replace(self.doomed)

    def kill_the_successor(self, death: Death) -> float:
        """Kill the next driver as it attaches, restores, or just afterwards; when it died."""
        assert self.driver is not None
        self.driver.wait()
        self.watch()
        time.sleep(self.chance.uniform(1.0, 9.0))
        death.notes.append(f"and the next driver in: {self.phase([])}")
        self.driver.kill()
        return time.time()

    def live(self, kills: int) -> None:
        """Go through so many deaths, then settle."""
        self.start_driver()
        if self.wait_for(0.0, "round") is None:
            self.wrong.append("it did not begin")
            kills = 0
        pace = 1.0
        while len(self.deaths) < kills and not self.wrong:
            if any(line["what"] == "finished" for line in self.lines()):
                break
            wait = time.time() + self.chance.uniform(0.0, 1.5 * pace)
            while time.time() < wait:
                self.watch()
                time.sleep(min(0.05, max(0.0, wait - time.time())))
            rounds = [x["at"] - x["began"] for x in self.lines() if x["what"] == "round"]
            pace = statistics.median(rounds) if rounds else 1.0
            if (death := self.death()) is not None:
                print(f"{len(self.deaths):4d} {death}", flush=True)
        self.settle()

    def settle(self) -> None:
        """Stop the driver after its round, and have another one find everything in order."""
        (self.folder / "stop").touch()
        assert self.driver is not None
        with suppress(subprocess.TimeoutExpired):
            self.driver.wait(self.patience)
        self.driver.kill()
        self.driver.wait()
        for _ in range(3):
            self.start_driver("settle")
            deadline = time.time() + self.patience
            while self.driver.poll() is None and time.time() < deadline:
                self.watch()
                time.sleep(0.1)
            if self.driver.poll() == 0:
                break
            self.driver.kill()
            self.driver.wait()
            print((self.folder / "driver.err").read_text(errors="replace")[-1500:], file=sys.stderr)
        else:
            self.wrong.append("nobody could settle it")
        self.read_releases()


@dataclass(frozen=True)
class Record:
    """One federation that is done, as a line of the record.

    Attributes:
        counts: What became of its updates, and its releases and charges (`judged`).
    """

    seed: int
    number: int
    kind: str
    seconds: float
    deaths: list[Death]
    counts: dict[str, int]
    wrong: list[str]

    @classmethod
    def read(cls, file: Path) -> list[Record]:
        """The lines of a file; none if it is not there."""
        lines = map(json.loads, file.read_text().splitlines() if file.exists() else ())
        return [cls(**{**line, "deaths": [Death(**death) for death in line["deaths"]]}) for line in lines]


def told(records: Sequence[Record]) -> str:
    """What they come to."""
    deaths = [death for record in records for death in record.deaths]
    totals = sum((Counter(record.counts) for record in records), Counter[str]())
    minutes = sum(record.seconds for record in records) / 60.0
    lines = [f"{len(deaths)} deaths and stops in {len(records)} federations, {minutes:.0f} minutes, by who:"]
    for who in sorted({death.who for death in deaths}):
        mine = [death for death in deaths if death.who == who]
        reached = [death.next_call for death in mine if death.next_call is not None]
        within = (
            f"median {statistics.median(reached):.1f} s, most {max(reached):.1f} s" if reached else "never"
        )
        stopped = sum(death.seconds > 0 for death in mine)
        lines.append(f"  {who}: {len(mine)} ({stopped} stopped), to the end of the next call: {within}")
    lines += [
        f"{totals['acknowledged']} updates acknowledged: {totals['released']} released, "
        f"{totals['withdrawn']} withdrawn, {totals['superseded']} superseded, {totals['waiting']} waiting, "
        f"{totals['charged, and the session failed']} in sessions that failed after the charge, "
        f"{totals['dropped out']} of baskets that died in a session which went on without them, "
        f"{totals['lost']} lost, {totals['double']} counted twice; "
        f"{totals['charges']} charges, {totals['releases']} releases",
        *(wrong for record in records for wrong in record.wrong),
    ]
    return "\n".join(lines)


def main() -> int:
    """Kill until there were enough."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks deaths", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="in all, those in the record too")
    parser.add_argument("--kills-a-federation", type=int, default=20)
    parser.add_argument("--federations", type=int, default=1_000, help="at most, in this run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=180.0)
    parser.add_argument("--kinds", nargs="+", choices=["calls", "fit"], default=["calls", "fit"])
    parser.add_argument("--who", nargs="+", choices=list(WEIGHTS), help="only these")
    parser.add_argument("--machines", action="store_true", help="each node in a network of its own; as root")
    parser.add_argument("--record", type=Path, help="go on from this file, and add to it")
    parser.add_argument("--folder", type=Path, help="kept; by default a temporary one, kept if it went wrong")
    asked = parser.parse_args()
    for name in set(WEIGHTS) - set(asked.who or WEIGHTS):
        del WEIGHTS[name]
    records = Record.read(asked.record) if asked.record else []
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="deaths-"))
    folder.mkdir(parents=True, exist_ok=True)
    nodes: Place | None = None
    is_wrong = False
    try:
        for _ in range(asked.federations):
            left = asked.kills - sum(len(record.deaths) for record in records)
            if left <= 0 or is_wrong:
                break
            nodes = nodes or (Machines() if asked.machines else Nodes())
            number = max((r.number for r in records if r.seed == asked.seed), default=-1) + 1
            kind, began = asked.kinds[number % len(asked.kinds)], time.time()
            print(f"federation {number}: {kind}", flush=True)
            own = Path(tempfile.mkdtemp(prefix=f"{number}-", dir=folder))
            life = Life(own, kind, nodes, random.Random(f"{asked.seed}/{number}"), asked.patience)
            try:
                life.live(min(asked.kills_a_federation, left))
            finally:
                if life.driver is not None:
                    life.driver.kill()
            counts, wrong = judged(life.lines(), life.releases, own / "ledger.sqlite")
            life.wrong += wrong
            took = time.time() - began
            record = Record(asked.seed, number, kind, took, life.deaths, dict(counts), life.wrong)
            records.append(record)
            is_wrong = bool(life.wrong)
            if asked.record:
                with asked.record.open("a") as file:
                    file.write(json.dumps(asdict(record)) + "\n")
            print("  " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items()) if n), flush=True)
    finally:
        if nodes is not None:
            nodes.end()
    print(f"\n{told(records)}")
    if not is_wrong and asked.folder is None:
        shutil.rmtree(folder)
    else:
        print(f"kept in {folder}")
    return int(is_wrong)


if __name__ == "__main__":
    raise SystemExit(main())
