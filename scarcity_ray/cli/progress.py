"""The progress of a running job: a live line on a terminal, plain lines elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from scarcity_ray.federation.training_round import TrainingProgress
from scarcity_ray.workloads.records import RoundRecord
from scarcity_ray.workloads.report.charts import as_figure
from scarcity_ray.workloads.report.page import epsilon


def reached(record: RoundRecord) -> str:
    """A round's first metric in words; `metric` comes first in a job's records."""
    return next((f"{name} {as_figure(name, value)}" for name, value in record.metrics.items()), "no metric")


def under_way(progress: TrainingProgress) -> str:
    """A round's progress in words."""
    left = "" if progress.seconds_left is None else f", {progress.seconds_left:.0f} s left"
    slowest = f", slowest {progress.slowest_client}" if progress.slowest_client else ""
    return f"{progress.num_done} of {progress.num_due} clients{left}{slowest}"


class Seldom:
    """Whether it is time again: when so many seconds have passed since it was, or since this was made."""

    def __init__(self, every_seconds: float, clock: Callable[[], float]) -> None:
        self._every_seconds, self._clock = every_seconds, clock
        self._last = clock()

    def is_due(self) -> bool:
        """Whether it is time, which begins the wait anew."""
        now = self._clock()
        if now < self._last + self._every_seconds:
            return False
        self._last = now
        return True


class JsonLines(AbstractContextManager["JsonLines"]):
    """Each event as one JSON object a line on what is standard output as this is made."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._seldom = Seldom(1.0, clock)
        self._out = sys.stdout

    def __exit__(self, *ending: object) -> None:
        pass

    def progress(self, progress: TrainingProgress) -> None:
        """Tell of clients that have trained, once a second at most."""
        if self._seldom.is_due():
            self.event("progress", asdict(progress))

    def phase(self, name: str) -> None:
        """Say that a phase begins."""
        self.event("phase", {"name": name})

    def round(self, record: RoundRecord) -> None:
        """Say what a round came to."""
        self.event("round", record.as_json())

    def event(self, kind: str, content: dict[str, Any]) -> None:
        """Print one event."""
        click.echo(json.dumps({"event": kind, **content}), file=self._out)


class PlainLines(AbstractContextManager["PlainLines"]):
    """A line a phase and a round, for logs and pipes."""

    def __init__(self, console: Console, rounds: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seldom = Seldom(10.0, clock)
        self._console = console
        self._rounds = rounds

    def __exit__(self, *ending: object) -> None:
        pass

    def progress(self, progress: TrainingProgress) -> None:
        """Tell of clients that have trained, every ten seconds at most."""
        if self._seldom.is_due():
            self._console.print(f"  {under_way(progress)}", markup=False, highlight=False, soft_wrap=True)

    def phase(self, name: str) -> None:
        """Say that a phase begins."""
        self._console.print(f"{name} ...", markup=False, highlight=False)

    def round(self, record: RoundRecord) -> None:
        """Say what a round came to."""
        self._console.print(
            f"round {record.round}/{self._rounds}  {reached(record)}  epsilon left "
            f"{epsilon(record.epsilon_left)}  rejected {record.num_rejected}  {record.elapsed:.1f} s"
            f"{'  no release' if record.waits_for else ''}",
            markup=False,
            highlight=False,
        )
        if record.waits_for:
            self._console.print(record.waits_for, markup=False, highlight=False, soft_wrap=True)


class LiveLine:
    """One line that moves, on a terminal."""

    def __init__(self, console: Console, rounds: int) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[figures]}", style="bold"),
            TextColumn("{task.fields[clients]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: TaskID = self._progress.add_task("", total=rounds, figures="", clients="")
        self._rejected = 0

    def __enter__(self) -> LiveLine:
        self._progress.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._progress.update(self._task, description="Stopped" if error else "Done")
        self._progress.stop()

    def phase(self, name: str) -> None:
        """Show the phase's name."""
        self._progress.update(self._task, description=name, clients="")

    def progress(self, progress: TrainingProgress) -> None:
        """Show how many clients of the round have trained."""
        self._progress.update(self._task, clients=under_way(progress))

    def round(self, record: RoundRecord) -> None:
        """Show where the training stands."""
        self._rejected += record.num_rejected
        figures = f"{reached(record)}  ε left {epsilon(record.epsilon_left)}  rejected {self._rejected}"
        self._progress.update(self._task, completed=record.round, figures=figures, clients="")


Display = JsonLines | PlainLines | LiveLine


def watcher(form: str, console: Console, rounds: int) -> Display:
    """The display that fits the format and the place it is shown at."""
    if form == "json":
        return JsonLines()
    return LiveLine(console, rounds) if console.is_terminal else PlainLines(console, rounds)
