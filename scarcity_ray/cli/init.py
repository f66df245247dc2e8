"""``scarcity-ray init``: makes a folder with a job that runs as it is, to put one's own data and model in.

Guarantees:
    A folder is made whole or not at all.
    What is there already is never changed.
    With sites the server's folder holds no patient of a site.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
from collections.abc import Sequence
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
SITE_ROWS, SERVER_ROWS = 1000, 4000
"""Of each hospital's table with ``--sites``, and of the server's, of which a fifth is tested on."""
REGIONS = ("north", "east", "south", "west")
PRACTICES = tuple((f"practice_{number:03d}", number % len(REGIONS)) for number in range(NUM_PRACTICES))
"""Name, and number of the region."""
COLUMNS = ("practice", "region", "age", "pressure", "bmi", "smoker", "visits", "stay", "readmitted")


def init_command(name: str, kind: str, persons: bool = False, sites: int | None = None) -> ExitCode:
    """Make the folder `name`, with ``job.yaml``, ``workload.py``, ``data.csv`` and ``README.md``.

    With `sites` there is one folder for the server, and one for each site, as for so many machines.

    Args:
        name: Of the folder, made in the working folder, and of the job.
        kind: Of the model, one of `KINDS`.
        persons: Whether a person of a client is the unit of privacy, instead of the client; for ``numpy``.
        sites: Hospitals outside the cluster, at which persons are the unit; None: clients of the cluster.

    Raises:
        UsageError: If `name` cannot name both, something is there already, or `kind` knows no persons.
    """
    if (persons or sites) and kind != "numpy":
        raise UsageError(
            f"--{'sites' if sites else 'persons'}: with --kind {kind} is not accepted; with numpy, whose "
            "gradients by person have a closed form (docs/privacy_units.md)"
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
            if sites:
                _write_sites(unfinished, name, sites)
            else:
                _write(unfinished, name, kind, persons)
            unfinished.rename(folder)  # onto an empty folder too, and onto nothing else
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder.absolute()}: {error.strerror or error}") from None
    if sites:
        click.echo(
            f"Made {name}/ with a folder for the server, one for each of {sites} hospitals, and README.md."
        )
        click.echo(f"First:  cd {name}/server && scarcity-ray keys init keys --host localhost")
        click.echo(f"{name}/README.md says the rest: a terminal for the server, and one for each hospital.")
        return ExitCode.DONE
    click.echo(f"Made {name}/ with job.yaml, workload.py, data.csv and README.md, which says what they are.")
    if importlib.util.find_spec(str(KINDS[kind]["module"])) is None:
        click.echo(f"It needs {KINDS[kind]['package']}:  pip install {KINDS[kind]['package']}")
    click.echo(f"Train it:  cd {name} && scarcity-ray run job.yaml --runtime local")
    return ExitCode.DONE


def write_made_up_table(
    file: TextIO,
    persons: bool = False,
    practices: Sequence[tuple[str, int]] = PRACTICES,
    rows_each: int = ROWS_EACH,
    seed: int = 20_250_101,
) -> None:
    """Write a table of made-up patients, the same at each call: no person stands behind any row.

    With `persons` it names them in a column, and the second row of five is another stay of the first's.
    Each of `practices` is a name, and the number of its region.

    The practices of a region have a mean age of their own; whether a patient is readmitted is drawn with a
    log-odds that is linear in the columns.
    """
    rng = np.random.default_rng(seed)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((*COLUMNS[:-1], "patient", COLUMNS[-1]) if persons else COLUMNS)
    before = (0, 0.0, 0)
    for number, (practice, region) in enumerate(practices):
        for row in range(rows_each):
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
            key = (f"p{number:03d}-{row - (row % 5 == 1):02d}",) if persons else ()
            stayed = (age, pressure, bmi, smoker, visits, stay, *key, readmitted)
            writer.writerow((practice, REGIONS[region], *stayed))


def _require_room(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is there already, and is no folder; choose another name")
    if folder.exists() and (found := sorted(entry.name for entry in folder.iterdir())):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UsageError(
            f"the folder {folder} is there already, with {', '.join(found[:3])}{more}; choose another name"
        )


def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("scarcity_ray.cli"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def _write(folder: Path, name: str, kind: str, persons: bool) -> None:
    templates = _templates()
    for file in ("job.yaml", "workload.py", "README.md"):
        text = templates.get_template(f"{file}.j2").render(
            name=name, kind=kind, persons=persons, **KINDS[kind]
        )
        (folder / file).write_text(text, encoding="utf-8")
    with open(folder / "data.csv", "w", newline="", encoding="utf-8") as table:
        write_made_up_table(table, persons)


def _write_sites(folder: Path, name: str, num_sites: int) -> None:
    templates = _templates()
    sites = [(f"hospital_{number}", (number - 1) % len(REGIONS)) for number in range(1, num_sites + 1)]
    told = {"name": name, "kind": "numpy", "persons": True, **KINDS["numpy"]}
    told |= {"sites": [(site, REGIONS[region]) for site, region in sites], "rows": SITE_ROWS}
    readme = templates.get_template("sites/README.md.j2").render(told)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    everyone = tuple((f"elsewhere_{region}", number) for number, region in enumerate(REGIONS))
    server = ("server", everyone, SERVER_ROWS // len(REGIONS), "job.yaml")
    for number, (place, practices, rows_each, file) in enumerate(
        (server, *((site, ((site, region),), SITE_ROWS, "workload.yaml") for site, region in sites))
    ):
        machine = folder / place
        machine.mkdir()
        for target in (file, "workload.py"):
            source = f"sites/{target}.j2" if target == file else f"{target}.j2"
            (machine / target).write_text(templates.get_template(source).render(told), encoding="utf-8")
        with open(machine / "data.csv", "w", newline="", encoding="utf-8") as table:
            write_made_up_table(table, True, practices, rows_each, seed=number)
