"""The client's package by itself: what its wheel holds needs NumPy and cryptography, and no Ray."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.project.test_house import swallowers

CLIENT = Path(__file__).resolve().parents[2] / "client"
PACKAGE = "scarcity_ray_client"
NEEDED = ("numpy", "cryptography", "yaml")
BROUGHT_ALONG = ("_cffi_backend", "cffi", "pycparser")
"""What the needed ones need themselves."""

BUILD = """
import sys
from setuptools import Distribution
made = Distribution()
made.parse_config_files(["pyproject.toml"])
made.set_defaults()
made.script_name = "setup.py"
build = made.get_command_obj("build_py")
build.build_lib = sys.argv[1]
build.ensure_finalized()
build.run()
"""

TRAIN = """
import sys
sys.path[:] = [path for path in sys.path if "-packages" not in path] + [sys.argv[1]]
import doctest, json, importlib, pkgutil
import scarcity_ray_client
from scarcity_ray_client import workload
names = [m.name for m in pkgutil.walk_packages(scarcity_ray_client.__path__, "scarcity_ray_client.")]
for name in names:
    if not name.endswith("_torch"):
        importlib.import_module(name)
failed = doctest.testmod(workload).failed
print(json.dumps([failed, names, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the files of the wheel, and links to the packages that it needs."""
    folder = tmp_path_factory.mktemp("installed")
    if importlib.util.find_spec("setuptools") is None:
        shutil.copytree(CLIENT / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        source = tmp_path_factory.mktemp("source")
        shutil.copytree(
            CLIENT, source, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "build")
        )
        done = subprocess.run(
            [sys.executable, "-c", BUILD, str(folder)],
            cwd=source,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    for name in (*NEEDED, *BROUGHT_ALONG):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        place = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        os.symlink(place, folder / place.name)
        if (bundled := place.with_name(f"{name}.libs")).is_dir():
            os.symlink(bundled, folder / bundled.name)
    return folder


@pytest.mark.long
def test_the_wheel_alone_trains_where_nothing_else_is_installed(installed):
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", TRAIN, str(installed)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    failed, names, loaded = json.loads(done.stdout.splitlines()[-1])
    assert failed == 0, done.stdout
    assert {"scarcity_ray_client.training", "scarcity_ray_client.models.saving"} <= set(names)
    foreign = set(loaded) - set(sys.stdlib_module_names) - {PACKAGE, "__main__", *NEEDED, *BROUGHT_ALONG}
    assert {name for name in foreign if not name.startswith(("_", "cython_"))} == set()
    assert not set(loaded) & {"ray", "pydantic", "aiohttp", "pandas", "torch", "sklearn", "scarcity_ray"}


def test_the_wheel_holds_the_package_and_its_types(installed):
    shipped = {
        str(path.relative_to(installed))
        for path in (installed / PACKAGE).rglob("*.*")
        if path.suffix != ".pyc"
    }
    sources = {str(path.relative_to(CLIENT)) for path in (CLIENT / PACKAGE).rglob("*.py")}
    assert shipped == sources | {f"{PACKAGE}/py.typed"}


def test_the_wheel_asks_for_three_packages():
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    asked = {re.split(r"[<>=~! ]", entry)[0].lower() for entry in project["dependencies"]}
    assert asked == {"numpy", "cryptography", "pyyaml"}
    assert set(project["optional-dependencies"]) == {"torch", "sklearn"}


def test_http_is_imported_by_those_alone_who_use_it():
    script = (
        "import sys, scarcity_ray_client as c; before = 'http.client' in sys.modules;"
        "c.FederationClient; print(before, 'http.client' in sys.modules, set(c.__all__) - set(dir(c)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["False", "True", "set()"]


def test_no_framework_is_imported_before_a_model_is_of_it():
    script = (
        "import sys, numpy, scarcity_ray_client as c; c.ModelCodec({'w': numpy.ones(2)});"
        "print(sorted({'torch', 'sklearn', 'ray', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((CLIENT / PACKAGE).rglob("*.py")), ids=lambda path: path.stem)
def test_each_module_is_documented_and_swallows_nothing(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert list(swallowers(tree)) == []
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    if path.stem.endswith("_torch"):
        pytest.importorskip("torch", reason="PyTorch is not installed")
    module = importlib.import_module(".".join(path.relative_to(CLIENT).with_suffix("").parts))
    assert all(hasattr(module, name) for name in getattr(module, "__all__", []))
