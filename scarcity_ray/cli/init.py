"""``scarcity-ray init``: makes a folder with a job that runs as it is, to put one's own data and model in.

Guarantees:
    A folder is made whole or not at all.
    What is there already is never changed.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import TextIO

import click
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.errors import UsageError

KINDS = {
    "numpy": {"model": "Softmax regression", "package": "numpy", "module": "numpy", "learning_rate": 0.5},
    "sklearn": {
        "model": "scikit-learn's SGDClassifier",
        "package": "scikit-learn",
        "module": "sklearn",
        "learning_rate": 0.02,
    },
    "torch": {
        "model": "A small network of PyTorch",
        "package": "torch",
        "module": "torch",
        "learning_rate": 0.5,
    },
}
"""What the templates say of each kind of model."""

NUM_PRACTICES = 160
ROWS_EACH = 25
REGIONS = ("north", "east", "south", "west")
COLUMNS = ("practice", "region", "age", "pressure", "bmi", "smoker", "visits", "stay", "readmitted")


def init_command(name: str, kind: str, persons: bool = False) -> ExitCode:
    """Make the folder `name`, with ``job.yaml``, ``workload.py``, ``data.csv`` and ``README.md``.

    Args:
        name: Of the folder, made in the working folder, and of the job.
        kind: Of the model, one of `KINDS`.
        persons: Whether a person of a client is the unit of privacy, instead of the client; for ``numpy``.

    Raises:
        UsageError: If `name` cannot name both, something is there already, or `kind` knows no persons.
    """
    if persons and kind != "numpy":
        raise UsageError(
            f"--persons: with --kind {kind} is not accepted; with numpy, whose gradients by person have a "
            "closed form (docs/privacy_units.md)"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UsageError(
            f"NAME: {name[:200]!r} is not accepted; letters, digits, '.', '_' and '-' name a new folder, "
            "which is made in the working folder"
        )
    folder = Path(name)
    unfinished = Path(f".{name}.{os.getpid()}")
    try:
        _require_room(folder)
        unfinished.mkdir()
        try:
            _write(unfinished, name, kind, persons)
            unfinished.rename(folder)  # onto an empty folder too, and onto nothing else
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder.absolute()}: {error.strerror or error}") from None
    click.echo(f"Made {name}/ with job.yaml, workload.py, data.csv and README.md, which says what they are.")
    if importlib.util.find_spec(str(KINDS[kind]["module"])) is None:
        click.echo(f"It needs {KINDS[kind]['package']}:  pip install {KINDS[kind]['package']}")
    click.echo(f"Train it:  cd {name} && scarcity-ray run job.yaml --runtime local")
    return ExitCode.DONE


def write_made_up_table(file: TextIO, persons: bool = False) -> None:
    """Write a table of made-up patients, the same at each call: no person stands behind any row.

    With `persons` it names them in a column, and the second row of five is another stay of the first's.

    The practices of a region have a mean age of their own; whether a patient is readmitted is drawn with a
    log-odds that is linear in the columns.
    """
    rng = np.random.default_rng(20_250_101)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((*COLUMNS[:-1], "patient", COLUMNS[-1]) if persons else COLUMNS)
    before = (0, 0.0, 0)
    for practice in range(NUM_PRACTICES):
        region = practice % len(REGIONS)
        for row in range(ROWS_EACH):
            age = int(np.clip(rng.normal(54 + 4 * region, 14), 18, 98))
            pressure = int(rng.normal(112 + 0.3 * age, 16))
            bmi = round(float(np.clip(rng.normal(26, 4.5), 15, 50)), 1)
            smoker, visits = int(rng.random() < 0.25), int(rng.poisson(3))
            stay = int(1 + rng.poisson(4))
            if persons and row % 5 == 1:
                age, bmi, smoker = before
            before = age, bmi, smoker
            odds = (age - 60) / 9 + (pressure - 130) / 20 + (bmi - 26) / 6 + 1.5 * smoker
            odds += (visits - 3) / 1.6 + (stay - 5) / 4 - 0.4
            readmitted = "yes" if rng.random() < 1 / (1 + np.exp(-odds)) else "no"
            key = (f"p{practice:03d}-{row - (row % 5 == 1):02d}",) if persons else ()
            stayed = (age, pressure, bmi, smoker, visits, stay, *key, readmitted)
            writer.writerow((f"practice_{practice:03d}", REGIONS[region], *stayed))


def _require_room(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is there already, and is no folder; choose another name")
    if folder.exists() and (found := sorted(entry.name for entry in folder.iterdir())):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UsageError(
            f"the folder {folder} is there already, with {', '.join(found[:3])}{more}; choose another name"
        )


def _write(folder: Path, name: str, kind: str, persons: bool) -> None:
    templates = Environment(
        loader=PackageLoader("scarcity_ray.cli"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    for file in ("job.yaml", "workload.py", "README.md"):
        text = templates.get_template(f"{file}.j2").render(
            name=name, kind=kind, persons=persons, **KINDS[kind]
        )
        (folder / file).write_text(text, encoding="utf-8")
    with open(folder / "data.csv", "w", newline="", encoding="utf-8") as table:
        write_made_up_table(table, persons)
