"""How many steps an operation takes: calls, files and messages, on the local runtime.

``python -m benchmarks calls [--format json] [--messages]``. Two baskets of five clients (d = 64, the default
configuration without automatic aggregation) have one release behind them, so that nothing is counted that
happens once. Then one update is submitted, and with the last one `maybe_aggregate` makes a release.

Counted is what a reader of the code has to follow:

* *calls*: a named function or method of the package begins or, as a generator, goes on (comprehensions and
  lambdas belong to whoever wrote them);
* *files* that these stand in, and *changes of file*: calls whose file is not that of the call before;
* *round trips*: messages to roles, from the driver and between roles; each would cross a process on Ray;
* *asked again*: round trips beyond the first of one method of one role;
* *to buffer*: such calls within one another from the operation to the deepest `UpdateBuffer.accept`, both
  included; empty where nothing is buffered.

``--messages`` adds a row for each kind of message. ``n`` is the number of clients. The figures of the commit
`BEFORE_AT` are there to compare with; calls change by some ten from run to run, as keys are drawn anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numpy as np

import scarcity_ray
from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig

PACKAGE = str(Path(scarcity_ray.__file__).parent)
DRIVER = "driver"
CLIENTS, DIMENSION = 10, 64
BEFORE_AT = "23073a8"
BEFORE = {"submit_update": (89, 28), "maybe_aggregate": (4685, 88)}
"""Calls and files before the house was put in order."""
OPERATIONS = ("submit_update", "maybe_aggregate")
BUFFERED = "UpdateBuffer.accept"
WIDTH = 58
Row = dict[str, Any]
T = TypeVar("T")


@dataclass
class Trace:
    """The calls of one operation, in order.

    Attributes:
        files: The file of each call.
        messages: How often who sent which message: (sender, receiver, method) to its number.
        to_buffer: Calls within one another until an update is buffered, at most.
    """

    files: list[str] = field(default_factory=list)
    messages: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    to_buffer: int = 0

    @property
    def changes_of_file(self) -> int:
        return sum(a != b for a, b in zip(self.files, self.files[1:], strict=False))

    @property
    def asked_again(self) -> int:
        """Messages beyond the first with that receiver and method, whoever sent them."""
        asked = Counter({key[1:]: 0 for key in self.messages})
        for (_, receiver, method), number in self.messages.items():
            asked[receiver, method] += number
        return sum(number - 1 for number in asked.values())


def trace(operation: Callable[[], object]) -> Trace:
    """Run the operation and note its calls within the package."""
    seen = Trace()
    receivers: list[tuple[FrameType, str]] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "return" and receivers and receivers[-1][0] is frame:
            receivers.pop()
        if event != "call" or not is_counted(frame):
            return
        seen.files.append(frame.f_code.co_filename)
        if frame.f_code.co_qualname == BUFFERED:
            seen.to_buffer = max(seen.to_buffer, depth(frame))
        if is_message(frame):
            receiver, method = addressed(frame)
            seen.messages[receivers[-1][1] if receivers else DRIVER, receiver, method] += 1
            receivers.append((frame, receiver))

    sys.setprofile(profile)
    try:
        operation()
    finally:
        sys.setprofile(None)
    return seen


def is_counted(frame: FrameType) -> bool:
    """Whether this is a named function or method of the package."""
    return frame.f_code.co_filename.startswith(PACKAGE) and not frame.f_code.co_name.startswith("<")


def depth(frame: FrameType) -> int:
    """Counted calls that this one is within, itself included."""
    number, at = 0, frame
    while True:
        number += is_counted(at)
        if at.f_back is None:
            return number
        at = at.f_back


def is_message(frame: FrameType) -> bool:
    """Whether this is the local runtime handing a call to a role."""
    return frame.f_code.co_qualname.endswith("Handle.call") and frame.f_code.co_filename.endswith("/local.py")


def addressed(frame: FrameType) -> tuple[str, str]:
    """The role that is called, and the method; `once` only says that the call has a number."""
    method, arguments = frame.f_locals["method"], frame.f_locals["args"]
    return frame.f_locals["self"].name, arguments[1] if method == "once" else method


def federation(folder: str) -> HierarchicalFederation:
    """Two baskets of five clients with a ledger of their own, one release behind them."""
    config = HierarchicalFederationConfig(
        vector_dim=DIMENSION,
        auto_aggregate=False,
        ledger_path=str(Path(folder) / "ledger.sqlite"),
    )
    fed = HierarchicalFederation(config, runtime="local")
    for client in range(CLIENTS):
        fed.register_client(f"client_{client}", "healthcare" if client < CLIENTS // 2 else "finance")
    for client in range(CLIENTS):
        submit(fed, client)
    release(fed)
    fed.advance_round()
    return fed


def submit(fed: HierarchicalFederation, client: int) -> None:
    """One client's update for the present round; it must be accepted."""
    update = np.random.default_rng(client).normal(size=DIMENSION)
    if not fed.submit_update(f"client_{client}", update):
        raise RuntimeError(f"client_{client}'s update was refused")


def release(fed: HierarchicalFederation) -> None:
    """Aggregate; there must be a model."""
    if fed.maybe_aggregate() is None:
        raise RuntimeError("no model came of it")


def measured() -> Iterator[tuple[str, float, Trace]]:
    """Each operation's name, its processor seconds untraced, and its calls a round later."""
    with tempfile.TemporaryDirectory() as folder:
        fed = federation(folder)
        try:
            seconds = round_of(fed, processor_time)
            traces = round_of(fed, trace)
        finally:
            fed.close()
    for name in OPERATIONS:
        yield name, seconds[name], traces[name]


def round_of(fed: HierarchicalFederation, watch: Callable[[Callable[[], object]], T]) -> dict[str, T]:
    """One round; what `watch` says of the last submission and of the release."""
    for client in range(CLIENTS - 1):
        submit(fed, client)
    submitted = watch(lambda: submit(fed, CLIENTS - 1))
    released = watch(lambda: release(fed))
    fed.advance_round()
    return dict(zip(OPERATIONS, (submitted, released), strict=True))


def processor_time(operation: Callable[[], object]) -> float:
    start = time.process_time()
    operation()
    return time.process_time() - start


def rows(messages: bool = False) -> Iterator[Row]:
    """A row an operation and, with ``messages``, one a message of it."""
    for name, seconds, seen in measured():
        calls, (calls_before, files_before) = len(seen.files), BEFORE[name]
        yield {
            "name": name,
            "n": CLIENTS,
            "d": DIMENSION,
            "seconds": seconds,
            "calls": calls,
            "files": len(set(seen.files)),
            "changes_of_file": seen.changes_of_file,
            "round_trips": seen.messages.total(),
            "asked_again": seen.asked_again,
            "to_buffer": seen.to_buffer or "",
            "versus": f"{calls_before} calls in {files_before} files at {BEFORE_AT}",
            "ratio": calls / calls_before,
        }
        for (sender, receiver, method), number in seen.messages.items() if messages else ():
            what = f"{name}: {sender} > {receiver}.{method}"
            yield {"name": what, "n": CLIENTS, "d": DIMENSION, "round_trips": number}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--messages", action="store_true", help="a row for each message, too")
    arguments = parser.parse_args()
    columns = (
        "calls",
        "files",
        "changes_of_file",
        "round_trips",
        "asked_again",
        "to_buffer",
        "ratio",
        "versus",
    )
    if arguments.format == "table":
        print("  ".join(["".ljust(WIDTH), *columns]))
    for row in rows(arguments.messages):
        if arguments.format == "json":
            print(json.dumps(row))
            continue
        cells = [format(row.get(c, ""), ".2f" if c == "ratio" and c in row else "") for c in columns]
        print("  ".join([row["name"].ljust(WIDTH), *map(str.rjust, cells, map(len, columns))]).rstrip())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
