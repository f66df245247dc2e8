"""The progress of a running job: a live line on a terminal, plain lines elsewhere, or JSON lines."""

from __future__ import annotations

import json
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from scarcity_ray.workloads.records import RoundRecord
from scarcity_ray.workloads.report.page import epsilon, percent


class Lines:
    """A context manager that does nothing, as lines need no beginning and no end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ending: object) -> None:
        pass


class JsonLines(Lines):
    """Each event as one JSON object a line on standard output."""

    def phase(self, name: str) -> None:
        """Say that a phase begins."""
        self.event("phase", {"name": name})

    def round(self, record: RoundRecord) -> None:
        """Say what a round came to."""
        self.event("round", record.as_json())

    def event(self, kind: str, content: dict[str, Any]) -> None:
        """Print one event."""
        click.echo(json.dumps({"event": kind, **content}))


class PlainLines(Lines):
    """A line a phase and a round, for logs and pipes."""

    def __init__(self, console: Console, rounds: int) -> None:
        self._console = console
        self._rounds = rounds

    def phase(self, name: str) -> None:
        """Say that a phase begins."""
        self._console.print(f"{name} ...", markup=False, highlight=False)

    def round(self, record: RoundRecord) -> None:
        """Say what a round came to."""
        self._console.print(
            f"round {record.round}/{self._rounds}  accuracy {percent(record.accuracy)}  epsilon left "
            f"{epsilon(record.epsilon_left)}  rejected {record.num_rejected}  {record.elapsed:.1f} s"
            f"{'' if record.released or record.baskets else '  no release'}",
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
            TimeElapsedColumn(),
            console=console,
        )
        self._task: TaskID = self._progress.add_task("", total=rounds, figures="")
        self._rejected = 0

    def __enter__(self) -> LiveLine:
        self._progress.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._progress.update(self._task, description="Stopped" if error else "Done")
        self._progress.stop()

    def phase(self, name: str) -> None:
        """Show the phase's name."""
        self._progress.update(self._task, description=name)

    def round(self, record: RoundRecord) -> None:
        """Show where the training stands."""
        self._rejected += record.num_rejected
        figures = (
            f"accuracy {percent(record.accuracy)}  ε left {epsilon(record.epsilon_left)}  "
            f"rejected {self._rejected}"
        )
        self._progress.update(self._task, completed=record.round, figures=figures)


Display = JsonLines | PlainLines | LiveLine


def watcher(form: str, console: Console, rounds: int) -> Display:
    """The display that fits the format and the place it is shown at."""
    if form == "json":
        return JsonLines()
    return LiveLine(console, rounds) if console.is_terminal else PlainLines(console, rounds)
