"""Charges a budget on a disk that stops at each system call in turn; prints what went wrong, as JSON.

Started by test_ledger_faults.py with faults.so preloaded: ``driver.py LIBRARY FOLDER SCENARIO STRIDE``. With
a stride of 2 the disk stops at every second call, torn at the others.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from scarcity_ray.errors import LedgerError
from scarcity_ray.privacy import DurableBudget, Ledger, PrivacyAccountant
from scarcity_ray.privacy.ledger import sqlite as store_module

TOTALS = {"name": "f", "total_epsilon": 100.0, "total_delta": 1e-5, "gossip_share": 0.5, "now": 0.0}
NAME = "ledger.sqlite"


def charge_all(folder: Path, say: int) -> None:
    """Open (or begin) the budget and charge it; each allowed charge is told at once."""
    budget = DurableBudget.open(folder / NAME, must_exist=False, **TOTALS)
    os.write(say, b"open\n")
    for k in range(3):
        if budget.charge_release(f"r{k}", 0.5, now=0.0, details={}).allowed:
            os.write(say, f"r{k}\n".encode())
        if budget.charge_gossip(f"g{k}", ["a", f"c{k}"], 0.5, now=0.0, details={}):
            os.write(say, f"g{k}\n".encode())
        if k == 1:
            budget.renew(200.0, 1e-5, now=0.0, operator="o")
            os.write(say, b"renewed\n")
    budget.close()


def run_child(library: ctypes.CDLL, folder: Path, image: Path, at: int, torn: int) -> tuple[list[str], bool]:
    """What the child was allowed, and whether it came to its end."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(readable)
        library.fault_arm(str(folder).encode(), str(image).encode(), at, torn)
        try:
            charge_all(folder, writable)
        except BaseException as error:
            os.write(2, repr(error).encode() + b"\n")
            os._exit(7)
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        told = pipe.read().decode().split()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return told, False
    if status != 0:
        raise SystemExit(f"the child failed by itself: {status}")
    return told, True


def power_cut(image: Path, to: Path) -> None:
    """Lay out what was synced."""
    for name in image.glob("n*"):
        content = image / f"i{name.read_text()}"
        target = to / name.name[1:]
        if content.exists():
            shutil.copyfile(content, target)
        else:
            target.touch()


def states(folder: Path, image: Path, work: Path) -> dict[str, Path]:
    """The folders that may be found after the stop: all written, only what was synced, and mixtures."""
    synced = work / "synced"
    synced.mkdir()
    power_cut(image, synced)
    found = {"written": folder, "synced": synced}
    # A name without its content cannot come from another file, so both must have the database.
    if (folder / NAME).exists() and (synced / NAME).exists():
        for database, wal in ((folder, synced), (synced, folder)):
            mixed = work / f"mixed-{database.name}"
            mixed.mkdir()
            shutil.copyfile(database / NAME, mixed / NAME)
            if (wal / f"{NAME}-wal").exists():
                shutil.copyfile(wal / f"{NAME}-wal", mixed / f"{NAME}-wal")
            found[mixed.name] = mixed
    return found


def complaint(folder: Path, told: list[str]) -> str | None:
    """What is wrong with a state, given what was allowed before the stop."""
    if not (folder / NAME).exists():
        return "the ledger is gone" if told else None
    try:
        ledger = Ledger.read(folder / NAME)
        ledger.verify()
        rows = list(ledger.rows())
        ledger.close()
        budget = DurableBudget.open(folder / NAME, must_exist=True, **TOTALS)
    except LedgerError as error:
        return repr(error)
    recorded = (
        {row.charge_id for row in rows} | {"renewed" for row in rows if row.kind == "renewal"} | {"open"}
    )
    if not set(told) <= recorded:
        return f"lost: {sorted(set(told) - recorded)}"
    model = PrivacyAccountant(100.0, 1e-5, gossip_share=0.5, delta_reserve=0.0)
    for charge in told:
        if charge == "renewed":
            model.renew(200.0, 1e-5)
        elif charge[0] == "r":
            model.spend_release(0.5)
        elif charge[0] == "g":
            model.spend_gossip(["a", f"c{charge[1:]}"], 0.5)
    status = budget.status(0.5)
    budget.close()
    if status.lifetime_epsilon < model.lifetime_epsilon() * (1 - 1e-12):
        return f"spent {status.lifetime_epsilon}, released {model.lifetime_epsilon()}"
    return None


def main(library_path: str, place: str, scenario: str, stride: str) -> None:
    library = ctypes.CDLL(library_path)
    if scenario == "unsynced":
        connect = store_module._connect

        def careless(path, *, mode):
            connection = connect(path, mode=mode)
            connection.execute("PRAGMA synchronous=NORMAL")
            return connection

        store_module._connect = careless
    base = Path(place)
    complaints, stops = [], 0
    for torn in (0, 1) if scenario == "synced" else (0,):
        for at in itertools.count(1 + torn * (int(stride) - 1), int(stride)):
            work = base / f"{scenario}-{torn}-{at}"
            folder, image = work / "written", work / "image"
            folder.mkdir(parents=True)
            image.mkdir()
            told, finished = run_child(library, folder, image, at, torn)
            for name, state in states(folder, image, work).items():
                wrong = complaint(state, told)
                if wrong is not None:
                    complaints.append([torn, at, name, wrong])
            shutil.rmtree(work)
            stops += 1
            if finished:
                break
    print(json.dumps({"stops": stops, "complaints": complaints}))


if __name__ == "__main__":
    main(*sys.argv[1:])
