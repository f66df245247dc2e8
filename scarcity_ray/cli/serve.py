"""``scarcity-ray serve``: serves a job to sites outside the cluster, and prints what it comes to."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.cli.progress import JsonLines, PlainLines
from scarcity_ray.cli.run import ending_in_words, folder_of, job_file, opening, tell_outcome
from scarcity_ray.config.gateway import GatewayConfig
from scarcity_ray.errors import ScarcityWarning, UsageError
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.federation.site_cohort import Waiting
from scarcity_ray.gateway.certificates import SERVER, Certificates
from scarcity_ray.gateway.serving import Listening, serve_job
from scarcity_ray.workloads.config import load_job
from scarcity_ray.workloads.report.charts import require_matplotlib

MOST_NAMED = 8
"""Sites that a line names."""


class ServingLines(PlainLines):
    """A line for whatever changes."""

    _told: Sequence[str] = ()

    def listening(self, listening: Listening) -> None:
        """Sites can come."""
        self._say(f"Serving on {listening.url}")
        self._say(f"  enrolled: {_named(listening.enrolled)}")
        if listening.invited:
            self._say(f"  may enrol: {_named(listening.invited)}")

    def waiting(self, waiting: Waiting) -> None:
        """Whom the round waits for has changed."""
        away = f"; not heard of: {_named(waiting.away)}" if waiting.away else ""
        whom = f", waiting for {_named(waiting.waited_for)}" if waiting.waited_for else ""
        told = [f"  round {waiting.round_id}: {waiting.num_accepted} of {waiting.num_due} sent{whom}{away}"]
        if waiting.num_accepted and not waiting.waited_for and waiting.release:
            told += [f"    {line}" for line in waiting.release.splitlines()]
        if told != self._told:
            self._told = told
            for line in told:
                self._say(line)

    def progress(self, progress: object) -> None:
        """`waiting` tells more."""

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class ServingJsonLines(JsonLines):
    """The same as JSON."""

    def listening(self, listening: Listening) -> None:
        """Sites can come."""
        self.event("listening", asdict(listening))

    def waiting(self, waiting: Waiting) -> None:
        """Whom the round waits for has changed."""
        self.event("waiting", asdict(waiting))

    def progress(self, progress: object) -> None:
        """`waiting` tells more."""


def serve_command(
    config: str | None, out: str | None, resume: str | None, overrides: tuple[str, ...], form: str
) -> ExitCode:
    """Serve the job of a config file, or go on with one.

    Args:
        config: The file.
        out: The run's folder; None: a new one under ``run.out``.
        resume: The folder of the served run to go on with, in place of both.
        overrides: ``path=value`` each.

    Raises:
        UsageError: For both, or neither; or if the folder is of no run, or of one that cannot go on.
    """
    file, going_on = job_file(config, out, resume)
    is_json = form == "json"
    with redirect_stdout(sys.stderr) if is_json else nullcontext():
        job = load_job(file, overrides, is_served=True)
    require_matplotlib()
    gateway = job.config.gateway or GatewayConfig()
    if job.config.run.runtime == "local" or Path(gateway.keys).exists():  # else they are at the cluster
        check_keys(gateway, time.time())
    folder = folder_of(job, out, going_on)
    console = Console(highlight=False)
    display = ServingJsonLines() if is_json else ServingLines(console, job.config.training.rounds)
    with (
        display,
        redirect_stdout(sys.stderr) if is_json else nullcontext(),
        warnings.catch_warnings(),
        ending_in_words(folder, "serve"),
    ):
        warnings.simplefilter("ignore", ScarcityWarning)  # in the summary
        outcome = serve_job(
            job,
            folder,
            display,
            opening(display, console, HierarchicalFederation),
            restore=opening(display, console, HierarchicalFederation.restore),
            attach=opening(display, console, HierarchicalFederation.attach),
            resume=going_on is not None,
        )
    return tell_outcome(job, outcome, folder, display, console)


def check_keys(gateway: GatewayConfig, now: float) -> None:
    """Refuse what no site could connect to, before anything is begun.

    Raises:
        UsageError: If there is no certificate, it has expired, or is for other hosts than the URL's.
    """
    if gateway.tls == "off":
        return
    facts = Certificates(gateway.keys).facts(SERVER)
    if facts.expires <= now:
        raise UsageError(
            f"gateway.keys: the certificate in {gateway.keys} has expired: "
            f"scarcity-ray keys renew {gateway.keys}"
        )
    host = urlsplit(gateway.url or "").hostname
    if host is not None and gateway.tls == "mutual" and host not in facts.hosts:
        raise UsageError(
            f"gateway.url: {gateway.url} is not accepted; a host of the certificate in {gateway.keys}: "
            f"{', '.join(facts.hosts)}. For this one: scarcity-ray keys renew {gateway.keys} --host {host}"
        )


def _named(sites: tuple[str, ...] | list[str] | object) -> str:
    names = list(sites) if isinstance(sites, list | tuple) else []
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more if names else "nobody yet"
