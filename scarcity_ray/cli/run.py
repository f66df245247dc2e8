"""``scarcity-ray run``: runs the job of a config file, and prints what it came to."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.cli.plan import Planned, forecast_of
from scarcity_ray.cli.progress import Display, JsonLines, watcher
from scarcity_ray.errors import LedgerWarning, ScarcityWarning
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.forecast import warnings_of
from scarcity_ray.privacy.ledger.holder import in_utc
from scarcity_ray.workloads.config import load_run
from scarcity_ray.workloads.job import run_job
from scarcity_ray.workloads.records import Summary
from scarcity_ray.workloads.report.charts import require_matplotlib
from scarcity_ray.workloads.report.page import (
    BASKET_COLUMNS,
    BASKET_HEAD,
    attack_name,
    basket_rows,
    epsilon,
    mean_of,
    percent,
    render_report,
    simulated_note,
)
from scarcity_ray.workloads.run_folder import RunFolder


def run_command(config: str, out: str | None, overrides: tuple[str, ...], form: str) -> ExitCode:
    """Run the job of a config file.

    Args:
        config: The file.
        out: The run's folder; None: a new one under ``run.out``.
        overrides: ``path=value`` each.
    """
    job = load_run(config, overrides)
    forecast = forecast_of(Planned(job.federation, job.basket_sizes, job.workload.rounds))
    told = [(warning.code, warning.message) for warning in warnings_of(forecast) if warning.loud]
    require_matplotlib()
    folder = RunFolder.new(job, out, datetime.now(UTC))
    console = Console(highlight=False)
    with watcher(form, console, job.workload.rounds) as display:
        if folder.passing is not None:
            told.append(("results_will_not_stay", folder.passing))
        for code, message in told:
            if isinstance(display, JsonLines):
                display.event("warning", {"code": code, "message": message})
            else:
                click.secho(f"WARNING: {message}", fg="red", bold=True, err=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScarcityWarning)  # in the summary, and the loud ones above
            outcome = run_job(job, folder, display, _opening(display, console))
    folder.report.write_text(render_report(job, outcome), encoding="utf-8")
    if isinstance(display, JsonLines):
        display.event("summary", {**outcome.summary.as_json(), "out": str(folder.path)})
    else:
        _print_summary(console, outcome.summary, folder)
    return ExitCode.BUDGET_SPENT if outcome.summary.budget_spent_early else ExitCode.DONE


def _opening(display: Display, console: Console) -> Callable[..., HierarchicalFederation]:
    """Opens a federation and prints which ledger it has, in place of a `LedgerWarning`."""

    def opened(*arguments: Any, **named: Any) -> HierarchicalFederation:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LedgerWarning)
            federation = HierarchicalFederation(*arguments, **named)
        ledger = federation.get_stats().get("ledger")
        if ledger is not None and isinstance(display, JsonLines):
            display.event("ledger", {k: str(v) if v == math.inf else v for k, v in ledger.items()})
        elif ledger is not None:
            age = "new" if ledger["is_new"] else f"begun {in_utc(ledger['created'])}"
            console.print(
                f"Ledger {ledger['path']} ({age}): epsilon {epsilon(ledger['epsilon_left'])} of "
                f"{epsilon(ledger['epsilon_total'])} left",
                markup=False,
                soft_wrap=True,
            )
        return federation

    return opened


def _print_summary(console: Console, summary: Summary, folder: RunFolder) -> None:
    attack = attack_name(summary.attack)
    console.print()
    if summary.budget_spent_early:
        console.print(
            f"The privacy budget was spent after round {summary.rounds} of {summary.rounds_configured}; "
            "the run ended there.\n",
            style="bold",
        )
    if summary.waits_for:
        console.print("No round released a model.", style="bold")
        console.print(f"{summary.waits_for}\n", markup=False, soft_wrap=True)
    console.print(_basket_table(summary) if summary.basket_standings else _comparison_table(summary, attack))
    console.print(
        f"\n{summary.rounds} rounds, {summary.clients} clients in {summary.baskets} baskets, "
        f"{summary.byzantine_clients} of them Byzantine, {sum(summary.rejected.values())} updates refused, "
        f"{summary.gossip_messages} gossip messages, {summary.wall_seconds:.0f} s; "
        f"epsilon {epsilon(summary.epsilon_spent)} of {epsilon(summary.total_epsilon)} spent "
        f"at delta {summary.delta:g}.",
        markup=False,
    )
    _print_warnings(console, summary)
    console.print("\nPrivacy claim", style="bold")
    for sentence in summary.privacy_claim:
        console.print(f"- {sentence}", markup=False)
    console.print(f"\nWritten to {folder.path}/; open {folder.report}", markup=False, soft_wrap=True)
    if folder.passing is not None:
        click.secho(f"WARNING: {folder.passing}", fg="red", bold=True, err=True)


def _print_warnings(console: Console, summary: Summary) -> None:
    if summary.warnings:
        console.print("\nTo know", style="bold")
    for warning in summary.warnings:
        console.print(f"- {warning['message']}", markup=False)
    if summary.accuracy_simulated is not None and not summary.basket_standings:
        console.print(f"- {simulated_note(summary)}", markup=False)


def _comparison_table(summary: Summary, attack: str) -> Table:
    table = Table(title=f"{summary.name}: accuracy on unseen digits", title_justify="left", box=None)
    table.add_column("run")
    table.add_column("attack")
    table.add_column("accuracy", justify="right")
    rule = summary.rule.replace("_", " ")
    noise = "noise" if math.isfinite(summary.total_epsilon) else "no noise"
    table.add_row(f"this federation ({rule}, {noise})", attack, percent(summary.accuracy), style="bold")
    for name, under, value in (
        ("plain mean, no clipping, no noise", attack, summary.accuracy_mean_under_attack),
        (
            f"clipped mean with {'its own' if noise == 'noise' else 'no'} noise",
            attack,
            summary.accuracy_clipped_mean,
        ),
        (f"{rule}, no noise", "none", summary.accuracy_clean),
        (f"{rule}, {noise} (simulated)", "ALIE", summary.accuracy_under_alie),
    ):
        table.add_row(name, under, percent(value))
    return table


def _basket_table(summary: Summary) -> Table:
    table = Table(title=f"{summary.name}: accuracy on unseen digits", title_justify="left", box=None)
    table.add_column("basket", no_wrap=True)
    for heading in BASKET_HEAD[1:]:
        table.add_column(heading, justify="right")
    for row in basket_rows(summary):
        table.add_row(*row)
    means = [percent(mean_of(summary, key)) for key, _ in BASKET_COLUMNS]
    share = f"{summary.byzantine_clients} of {summary.clients}"
    table.add_row("all honest clients", share, *means, style="bold")
    return table
