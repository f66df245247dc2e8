"""``scarcity-ray export``: writes a saved model for a framework."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import click

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.errors import UsageError
from scarcity_ray_client import export_model

ENDINGS = {"torch": ".pt", "numpy": ".arrays.npz"}


def export_command(model: str, framework: Literal["torch", "numpy"], out: str | None) -> ExitCode:
    """Write a saved model for a framework, to a new file that is there whole or not at all.

    Args:
        model: A file of `save_model`, such as a run's ``model.npz``.
        framework: For whom.
        out: The new file; None: beside `model`, with an ending of the framework's.

    Raises:
        UsageError: If `model` is no saved model, the new file cannot be made, or the framework is missing.
    """
    target = Path(model).with_suffix(ENDINGS[framework]) if out is None else Path(out)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        unfinished.touch(exist_ok=False)
        export_model(model, unfinished, framework)
        os.link(unfinished, target)
    except OSError as error:
        raise UsageError(f"cannot make {target}: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    click.echo(f"Written to {target}")
    return ExitCode.DONE
