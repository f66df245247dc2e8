"""How a command ends: its exit code, with errors as one line; a closed pipe is no error to show."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import ParamSpec

import click

from scarcity_ray.errors import ConfigError, PrivacyBudgetExhausted, ScarcityError, UsageError
from scarcity_ray.ledger_url import without_password
from scarcity_ray.monitoring.logs import logs_are_json, use_json_logs
from scarcity_ray.tracing import traces_are_on

P = ParamSpec("P")


class ExitCode(IntEnum):
    """Done, failed, bad usage or config, the budget was spent before the end, or it was interrupted."""

    DONE = 0
    FAILED = 1
    BAD_USAGE = 2
    BUDGET_SPENT = 3
    INTERRUPTED = 130


def exits(command: Callable[P, ExitCode]) -> Callable[P, None]:
    """A command that ends the process with its exit code; it fails if its output is not read to the end."""
    return _ending(command, ExitCode.FAILED)


def only_prints(command: Callable[P, ExitCode]) -> Callable[P, None]:
    """As `exits`, for a command that has done its work even if its output is not read to the end."""
    return _ending(command, ExitCode.DONE)


def _ending(command: Callable[P, ExitCode], unread: ExitCode) -> Callable[P, None]:
    @functools.wraps(command)
    def ended(*args: P.args, **named: P.kwargs) -> None:
        try:
            start_watching()
            code = command(*args, **named)
            sys.stdout.flush()
        except (BrokenPipeError, SystemExit):  # the latter is what rich makes of the former
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = unread
        except KeyboardInterrupt:  # what is left is said where it is known
            click.echo("scarcity-ray: interrupted", err=True)
            code = ExitCode.INTERRUPTED
        except (ConfigError, UsageError) as error:
            click.echo(f"scarcity-ray: {without_password(str(error))}", err=True)
            code = ExitCode.BAD_USAGE
        except PrivacyBudgetExhausted as error:
            click.echo(f"scarcity-ray: {error}", err=True)
            code = ExitCode.BUDGET_SPENT
        except ScarcityError as error:
            click.echo(f"scarcity-ray: {type(error).__name__}: {error}", err=True)
            code = ExitCode.FAILED
        sys.exit(code)

    return ended


def start_watching() -> None:
    """Begin the JSON logs and the traces that the environment asks for (docs/monitoring.md).

    Raises:
        UsageError: If traces are asked for and the extra ``otel`` is not installed.
    """
    if logs_are_json():
        use_json_logs()
    if traces_are_on():
        from scarcity_ray.monitoring.traces import start_traces

        start_traces()
