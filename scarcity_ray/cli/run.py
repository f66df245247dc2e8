"""``scarcity-ray run``: runs the job of a config file, and prints what it came to."""

from __future__ import annotations

import math
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.cli.plan import Planned, forecast_of
from scarcity_ray.cli.progress import Display, JsonLines, watcher
from scarcity_ray.errors import LedgerWarning, ScarcityWarning, UsageError
from scarcity_ray.federation.evaluation import INSIDE_CLAIM
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.federation.stopping import INTERRUPTING, interrupt
from scarcity_ray.forecast import warnings_of
from scarcity_ray.privacy.ledger.holder import in_utc
from scarcity_ray.workloads.config import Job, load_job
from scarcity_ray.workloads.job import run_job
from scarcity_ray.workloads.records import Outcome, Summary
from scarcity_ray.workloads.report.charts import as_figure, require_matplotlib
from scarcity_ray.workloads.report.page import (
    BASKET_COLUMNS,
    attack_rows,
    basket_rows,
    comparison_rows,
    epsilon,
    failed_runs,
    mean_of,
    render_report,
    simulated_note,
)
from scarcity_ray.workloads.run_folder import CONFIG, RunFolder

MOST_REFUSALS = 5
"""Refused trainings that are told on the terminal."""


def run_command(
    config: str | None, out: str | None, resume: str | None, overrides: tuple[str, ...], form: str
) -> ExitCode:
    """Run the job of a config file, or go on with one.

    Args:
        config: The file.
        out: The run's folder; None: a new one under ``run.out``.
        resume: The folder of the run to go on with, in place of both.
        overrides: ``path=value`` each.

    Raises:
        UsageError: For both, or neither; or if the folder is of no run, or of one that cannot go on.
    """
    file, going_on = job_file(config, out, resume)
    with redirect_stdout(sys.stderr) if form == "json" else nullcontext():
        job = load_job(file, overrides)
    if going_on is not None and not job.config.federation.layer2.enabled:
        raise UsageError(f"--resume {resume}: a run without Layer 2 cannot go on yet; run its config again")
    rounds = job.config.training.rounds
    forecast = forecast_of(Planned(job.config.federation, job.basket_sizes, rounds))
    told = [(warning.code, warning.message) for warning in warnings_of(forecast) if warning.loud]
    require_matplotlib()
    folder = folder_of(job, out, going_on)
    console = Console(highlight=False)
    with watcher(form, console, rounds) as display:
        if folder.passing is not None:
            told.append(("results_will_not_stay", folder.passing))
        for code, message in told:
            if isinstance(display, JsonLines):
                display.event("warning", {"code": code, "message": message})
            else:
                click.secho(f"WARNING: {message}", fg="red", bold=True, err=True)
        with (
            redirect_stdout(sys.stderr) if form == "json" else nullcontext(),
            warnings.catch_warnings(),
            ending_in_words(folder),
        ):
            warnings.simplefilter("ignore", ScarcityWarning)  # in the summary, and the loud ones above
            outcome = run_job(
                job,
                folder,
                display,
                opening(display, console, HierarchicalFederation),
                restore=opening(display, console, HierarchicalFederation.restore),
                resume=going_on is not None,
            )
    return tell_outcome(job, outcome, folder, display, console)


def job_file(config: str | None, out: str | None, resume: str | None) -> tuple[str, Path | None]:
    """The job's file, and the folder of the run to go on with, if any.

    Raises:
        UsageError: If the command names both, or neither; or the folder is no run's.
    """
    if resume is not None and config is None and out is None:
        going_on = Path(resume).expanduser().absolute()
        return str(config_of(going_on)), going_on
    if config is None or resume is not None:
        raise UsageError("give the file CONFIG, or --resume DIR in place of CONFIG and --out")
    return config, None


def folder_of(job: Job, out: str | None, going_on: Path | None) -> RunFolder:
    """The folder of a new run, or of the one that goes on."""
    now = datetime.now(UTC)
    if going_on is not None:
        return RunFolder.resumed(job.config, going_on, now)
    return RunFolder.new(job.config, out, now)


def tell_outcome(
    job: Job, outcome: Outcome, folder: RunFolder, display: Display, console: Console
) -> ExitCode:
    """Write the report of a run that has ended, and tell its summary."""
    folder.report.write_text(render_report(job.config, outcome), encoding="utf-8")
    if isinstance(display, JsonLines):
        display.event("summary", {**outcome.summary.as_json(), "out": str(folder.path)})
    else:
        print_summary(console, outcome.summary, folder)
    return ExitCode.BUDGET_SPENT if outcome.summary.budget_spent_early else ExitCode.DONE


def config_of(folder: Path) -> Path:
    """The resolved config of a run's folder."""
    if not (folder / CONFIG).is_file():
        raise UsageError(f"--resume {folder}: no run's folder, as it holds no {CONFIG}; give that of a run")
    return folder / CONFIG


@contextmanager
def ending_in_words(folder: RunFolder, command: str = "run") -> Iterator[None]:
    """A run that is interrupted, by Ctrl-C or SIGTERM, or fails says what its folder holds."""
    before = {number: signal.signal(number, interrupt) for number in INTERRUPTING}
    try:
        yield
    except BaseException:
        if left := folder.left(command):
            click.echo(left, err=True)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def opening(
    display: Display, console: Console, make: Callable[..., HierarchicalFederation]
) -> Callable[..., HierarchicalFederation]:
    """Makes a federation and prints which ledger it has, in place of a `LedgerWarning`."""

    def opened(*arguments: Any, **named: Any) -> HierarchicalFederation:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LedgerWarning)
            federation = make(*arguments, **named)
        for number in INTERRUPTING:
            signal.signal(number, interrupt)  # again: Ray puts its own in its place
        ledger = federation.get_stats().get("ledger")
        if ledger is not None and isinstance(display, JsonLines):
            display.event("ledger", {k: str(v) if v == math.inf else v for k, v in ledger.items()})
        elif ledger is not None:
            age = "new" if ledger["is_new"] else f"begun {in_utc(ledger['created'])}"
            console.print(
                f"Ledger {ledger['path']} ({age}): epsilon {epsilon(ledger['epsilon_left'])} of "
                f"{epsilon(ledger['epsilon_total'])} left"
                + (f", {epsilon(ledger['epsilon_spent'])} spent before" if ledger["epsilon_spent"] else ""),
                markup=False,
                soft_wrap=True,
            )
        return federation

    return opened


def print_summary(console: Console, summary: Summary, folder: RunFolder) -> None:
    """Print what a job came to."""
    console.print()
    if summary.budget_spent_early:
        console.print(
            f"The privacy budget was spent after round {summary.rounds} of {summary.rounds_configured}; "
            "the run ended there. A new budget is the operator's decision: docs/ledger.md, Renew it.\n",
            style="bold",
        )
    elif summary.stopped:
        console.print(f"Stopped after round {summary.rounds}: {summary.stopped}.\n", markup=False)
    if summary.waits_for:
        console.print("No round released a model.", style="bold")
        console.print(f"{summary.waits_for}\n", markup=False, soft_wrap=True)
    metric = summary.metric.replace("_", " ")
    console.print(
        f"{summary.name}: {metric} on test data ({summary.versions['workload']})",
        markup=False,
        soft_wrap=True,
    )
    for table in [*_basket_tables(summary), *_comparison_tables(summary)]:
        console.print(table)
    whole = ""
    if "client_epsilon" in summary.privacy:
        whole = f" (a whole client: {epsilon(summary.privacy['client_epsilon'])} or more)"
    console.print(
        f"\n{summary.rounds} rounds, {summary.clients} clients ({summary.byzantine_clients} Byzantine) in "
        f"{summary.baskets} baskets, {sum(summary.rejected.values())} updates refused, "
        f"{summary.gossip_messages} gossip messages, {summary.wall_seconds:.0f} s; "
        f"epsilon {epsilon(summary.epsilon_spent)} of {epsilon(summary.total_epsilon)} spent "
        f"at delta {summary.delta:g}, for one {summary.privacy.get('unit', 'client')}{whole}.",
        markup=False,
    )
    for refusal in summary.first_refusals[:MOST_REFUSALS]:
        console.print(
            f"refused: client {refusal['client']}, round {refusal['round']}: {refusal['cause']}: "
            f"{refusal['detail']}",
            markup=False,
            soft_wrap=True,
        )
    if summary.private_evaluation:
        console.print(f"\nMeasured by clients. {INSIDE_CLAIM}", markup=False, soft_wrap=True)
    for name, found in sorted(summary.private_evaluation.items()):
        console.print(f"{name}: {found}", markup=False)
    _print_warnings(console, summary)
    console.print("\nPrivacy claim", style="bold")
    for sentence in summary.privacy_claim:
        console.print(f"- {sentence}", markup=False)
    if summary.load_model:
        console.print("\nThe model", style="bold")
        console.print(summary.load_model, markup=False, soft_wrap=True)
    console.print(f"\nWritten to {folder.path}/; open {folder.report}", markup=False, soft_wrap=True)
    if folder.passing is not None:
        click.secho(f"WARNING: {folder.passing}", fg="red", bold=True, err=True)


def _print_warnings(console: Console, summary: Summary) -> None:
    note = "" if summary.basket_standings else simulated_note(summary)
    told = [
        *(warning["message"] for warning in summary.warnings),
        *failed_runs(summary),
        *filter(None, [note]),
    ]
    if told:
        console.print("\nTo know", style="bold")
    for message in told:
        console.print(f"- {message}", markup=False)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> Table:
    """A table whose first `words` columns are words, and the others figures."""
    table = Table(box=None)
    for place, heading in enumerate(head):
        table.add_column(heading, justify="left" if place < words else "right", no_wrap=not place)
    for row in rows:
        table.add_row(*row)
    return table


def _comparison_tables(summary: Summary) -> list[Table]:
    """The run and those beside it; its metrics, if there are several; rules by attack."""
    rows = [(name, attack, value) for name, _, attack, value in comparison_rows(summary)]
    tables = [_table(("run", "attack", summary.metric.replace("_", " ")), rows, 2)]
    if len(summary.metrics or {}) > 1:
        found = [(name, as_figure(name, value)) for name, value in (summary.metrics or {}).items()]
        tables.append(_table(("metric", "value"), found, 1))
    head, by_attack = attack_rows(summary)
    return [*tables, _table(head, by_attack, 1)] if by_attack else tables


def _basket_tables(summary: Summary) -> list[Table]:
    """Without Layer 2, how each basket ended."""
    if not summary.basket_standings:
        return []
    head = ("basket", "attackers", *(heading for _, heading in BASKET_COLUMNS))
    table = _table(head, basket_rows(summary), 1)
    means = [as_figure(summary.metric, mean_of(summary, key)) for key, _ in BASKET_COLUMNS]
    share = f"{summary.byzantine_clients} of {summary.clients}"
    table.add_row("all honest clients", share, *means, style="bold")
    return [table]
