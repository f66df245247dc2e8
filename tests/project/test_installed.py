"""The wheels, built from the sdists and installed outside the checkout, make a job and train it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
PAGE = (
    "from importlib.resources import files; page = files('scarcity_ray.gateway') / 'page';"
    "print(sorted(one.name for one in page.iterdir() if not one.name.endswith('.py')))"
)


def run(*command: object, cwd: Path) -> str:
    """What a command prints, which knows nothing of this checkout."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def sdist_of(source: Path, folder: Path) -> Path:
    """A package's sdist, made of a copy, so that no build is left in the checkout."""
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    copy = folder / "copy" / source.name
    shutil.copytree(source, copy, ignore=unwanted)
    before = set(folder.glob("*.tar.gz"))
    run(sys.executable, "-c", SDIST, folder, cwd=copy)
    (made,) = set(folder.glob("*.tar.gz")) - before
    return made


@pytest.mark.long
def test_the_wheels_of_both_packages_work_outside_the_checkout(tmp_path: Path) -> None:
    pytest.importorskip(
        "setuptools", minversion="77", reason="pyproject.toml asks for setuptools 77 to build"
    )
    sdists = [sdist_of(source, tmp_path) for source in (ROOT / "client", ROOT)]
    for sdist in sdists:
        with tarfile.open(sdist) as box:
            assert not [name for name in box.getnames() if name.endswith((".sqlite", ".pyc"))]
    offline = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip")
    wheels = tmp_path / "wheels"
    run(*pip, "wheel", *offline, "--no-build-isolation", "-w", wheels, *sdists, cwd=tmp_path)

    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    bin_ = tmp_path / "venv" / "bin"
    run(*pip, "--python", bin_ / "python", "install", *offline, *wheels.glob("*.whl"), cwd=tmp_path)
    place = run(bin_ / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    # Dependencies come from the tests' environment, behind what was installed; its .pth files are not read.
    (Path(place.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")

    where = "import scarcity_ray, scarcity_ray_client as c; print(scarcity_ray.__file__, c.__file__)"
    found = run(bin_ / "python", "-c", where, cwd=tmp_path).split()
    assert all(path.startswith(str(tmp_path)) for path in found)
    command = bin_ / "scarcity-ray"
    assert run(bin_ / "python", "-c", PAGE, cwd=tmp_path).count("console") == 3
    assert '"panels"' in run(command, "dashboard", cwd=tmp_path)
    assert "federation" in run(command, "config", "reference", cwd=tmp_path)
    run(bin_ / "scarcity-ray-client", "--help", cwd=tmp_path)
    run(command, "init", "hospitals", "--sites", "2", cwd=tmp_path)
    run(command, "init", "wards", cwd=tmp_path)
    run(command, "run", "job.yaml", "--runtime", "local", "--out", "first", cwd=tmp_path / "wards")
    assert (tmp_path / "wards" / "first" / "report.html").is_file()
    assert (tmp_path / "wards" / "first" / "model.npz").is_file()
