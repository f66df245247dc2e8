"""The house holds itself: imports, style, types, names, and what is in the box."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import scarcity_ray

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "scarcity_ray"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )


def holds(*arguments: str) -> None:
    done = run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports_point_down_and_only_the_runtime_imports_ray():
    holds("-c", "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])")


def test_ruff_finds_nothing():
    holds("-m", "ruff", "check", ".")


def test_ruff_would_format_nothing():
    holds("-m", "ruff", "format", "--check", ".")


def test_mypy_strict_finds_nothing():
    holds("-m", "mypy")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["strict"] is True
    assert settings["packages"] == ["scarcity_ray", "scarcity_ray_client", "benchmarks"]


def test_a_wrong_call_to_a_role_is_a_type_error():
    """mypy reads the wrong calls with the package, above; a `type: ignore` that hides no error is one."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["modules"] == ["tests.project.wrong_calls"]
    wrong = (ROOT / "tests" / "project" / "wrong_calls.py").read_text()
    assert len(re.findall(r"# type: ignore\[[a-z-]+\]", wrong)) >= 15
    assert not any(setting in settings for setting in ("warn_unused_ignores", "disable_error_code"))


def test_only_a_typed_call_has_a_role_called_by_a_string():
    """Whoever has a `Handle` names a method by a string, which no type checker holds to anything."""
    found = {
        str(path.relative_to(PACKAGE))
        for path, tree in parsed().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "handle"
    }
    assert found == {"runtime/rpc.py"}


@pytest.mark.parametrize("module", ["scarcity_ray.public", "scarcity_ray.actors.basket"])
def test_importing_the_package_imports_neither_ray_nor_what_is_in_the_extras(module):
    script = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    done = run("-c", script)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert "scarcity_ray" in loaded
    assert not loaded & {
        "ray",
        "sklearn",
        "matplotlib",
        "scipy",
        "dp_accounting",
        "pytest",
        "llvmlite",
        "numba",
        "torch",
    }


def test_the_public_names_are_sorted_unique_and_there():
    names = scarcity_ray.__all__
    assert names == sorted(set(names))
    for name in names:
        assert hasattr(scarcity_ray, name), name
    exported = {
        alias.asname or alias.name
        for node in ast.parse((PACKAGE / "public.py").read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert exported == set(names)


# What is promised (docs/specification.md) and what users of the older package know.
PROMISED = """AggregationMethod BasketConfig BasketInfo BasketManager BasketModel BasketStatus BufferConfig
BufferedUpdate CentralDPMechanism ClientInfo GlobalMetaModel GossipConfig GossipMessage HierarchicalFederation
HierarchicalFederationConfig IdentityKeyPair Layer1Aggregator Layer1Config Layer2Aggregator Layer2Config
LocalDPMechanism MaterialityDetector PeerSampler PrivacyAccountant ReplayGuard TriggerEngine UpdateBuffer
detect_outliers"""


def test_the_names_that_users_know_are_exported():
    assert set(PROMISED.split()) <= set(scarcity_ray.__all__)


def modules():
    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__main__":
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("module", list(modules()))
def test_every_module_has_a_docstring_and_its_all_resolves(module):
    if module in ("scarcity_ray.robust.tensors.kernels", "scarcity_ray.robust.tensors.order_statistics"):
        pytest.importorskip("torch")
    found = importlib.import_module(module)
    assert (found.__doc__ or "").strip(), module
    for name in getattr(found, "__all__", []):
        assert hasattr(found, name), f"{module}.{name}"


@pytest.mark.parametrize("name", scarcity_ray.__all__)
def test_every_public_name_and_its_methods_are_documented(name):
    thing = getattr(scarcity_ray, name)
    assert (inspect.getdoc(thing) or "").strip()
    assert not (inspect.getdoc(thing) or "").startswith(f"{name}("), "a signature is no docstring"
    for attribute, value in vars(thing).items() if inspect.isclass(thing) else ():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not attribute.startswith("_") and inspect.isfunction(function):
            assert (inspect.getdoc(function) or "").strip(), f"{name}.{attribute}"


@functools.cache
def parsed():
    return {path: ast.parse(path.read_text(), str(path)) for path in SOURCES}


def test_no_assert_checks_anything_in_the_package():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in parsed().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def swallowers(tree):
    """Handlers of every exception that do nothing about it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            named = [node.type] if not isinstance(node.type, ast.Tuple) else node.type.elts
            broad = any(n is None or getattr(n, "id", "") in ("Exception", "BaseException") for n in named)
            idle = all(
                isinstance(s, ast.Pass | ast.Continue)
                or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
                for s in node.body
            )
            if broad and idle:
                yield node.lineno


def test_no_exception_is_swallowed_in_the_package():
    found = [
        f"{path.relative_to(ROOT)}:{line}" for path, tree in parsed().items() for line in swallowers(tree)
    ]
    assert found == []
    planted = "try:\n    f()\nexcept {}:\n    pass\n"
    for broad in ("Exception", "BaseException", "(ValueError, Exception)"):
        assert list(swallowers(ast.parse(planted.format(broad)))) == [3]
    assert list(swallowers(ast.parse(planted.format("KeyError")))) == []


def uses_of_time_or_global_randomness(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("time.time", "time.monotonic") or called.startswith(("random.", "np.random.seed")):
                yield node.lineno, called
            if (
                called.startswith("np.random.")
                and called.split(".")[2][0].islower()
                and called.count(".") == 2
            ):
                yield node.lineno, called


PURE = ("robust", "privacy", "secagg", "gossip", "layers", "directory", "baskets", "actors")


def test_the_mathematics_reads_no_clock_and_no_global_randomness():
    found = [
        f"{path.relative_to(ROOT)}:{line} {called}"
        for path, tree in parsed().items()
        if path.relative_to(PACKAGE).parts[0] in PURE
        for line, called in uses_of_time_or_global_randomness(tree)
    ]
    assert found == []


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [
        p for p in ROOT.rglob("*") if p.is_file() and not set(p.parts) & {".venv", ".git", "build", "runs"}
    ]


# Put together here, so that this file names none.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("docker", "io"),
        ("ghcr", "io"),
        ("quay", "io"),
        ("gcr", "io"),
        ("anaconda", "org"),
        ("npmjs", "org"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
    )
] + ["index" + "-url", "PIP_INDEX" + "_URL"]


def test_no_tracked_file_names_a_package_registry():
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in tracked_files()
        if path.suffix not in {".lock", ".png"}
        for name in REGISTRIES
        if name.encode() in path.read_bytes()
    ]
    assert found == []


def test_the_box_holds_the_package_its_types_its_templates_and_nothing_else(tmp_path):
    script = (
        "import sys; from setuptools import Distribution; import os;"
        "d = Distribution(); d.parse_config_files(['pyproject.toml']); d.set_defaults();"
        "d.script_name = 'setup.py'; c = d.get_command_obj('build_py'); c.build_lib = sys.argv[1];"
        "c.ensure_finalized(); print('\\n'.join(os.path.relpath(p, sys.argv[1]) for p in c.get_outputs(0)))"
    )
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    templates = [*(PACKAGE / "workloads" / "report" / "templates").iterdir()]
    templates += (path for path in (PACKAGE / "cli" / "templates").rglob("*") if path.is_file())
    templates += (PACKAGE / "gateway" / "page").iterdir()
    assert tools["package-data"] == {
        "scarcity_ray": ["py.typed"],
        "scarcity_ray.cli": ["templates/*", "templates/sites/*"],
        "scarcity_ray.workloads.report": ["templates/*"],
        "scarcity_ray.gateway": ["page/*"],
    }
    assert tools["packages"]["find"]["include"] == ["scarcity_ray*"]
    assert (PACKAGE / "py.typed").is_file()
    if importlib.util.find_spec("setuptools") is None:
        return
    done = run("-c", script, str(tmp_path))
    assert done.returncode == 0, done.stderr
    shipped = {line for line in done.stdout.split() if line.startswith("scarcity_ray")}
    assert os.path.join("scarcity_ray", "py.typed") in shipped
    assert {str(p.relative_to(ROOT)) for p in (*SOURCES, *templates) if p.is_file()} <= shipped
    assert {line.split(os.sep)[0] for line in done.stdout.split()} == {"scarcity_ray"}


def test_what_the_tests_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    entries = [e for group in (project["dependencies"], *extras.values()) for e in group]
    declared = {re.split(r"[\[<>=~! ]", entry)[0].lower() for entry in entries}
    names = {"sklearn": "scikit-learn", "yaml": "pyyaml", "dp_accounting": "dp-accounting"}
    names["scarcity_ray_client"] = "scarcity-ray-client"
    names["opentelemetry"] = "opentelemetry-sdk"
    names["grpc"] = "ray"  # a requirement of ray[default]
    names["packaging"] = "pytest"  # a requirement of it
    imported = {
        (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.level == 0)
        for alias in node.names
    }
    foreign = imported - set(sys.stdlib_module_names) - {"scarcity_ray", "tests", "benchmarks", "conftest"}
    assert {names.get(name, name).lower() for name in foreign} <= declared


def test_sizes_of_files_are_reported(record_property):
    sizes = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in SOURCES}
    large = {name: lines for name, lines in sorted(sizes.items(), key=lambda item: -item[1]) if lines > 300}
    record_property("files_over_300_lines", json.dumps(large))
    print("files over 300 lines:", large)


def test_guarantees_are_spelled_in_one_way():
    """A reader who looks for what a module promises searches for one word."""
    spelled = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for package in (PACKAGE, ROOT / "client" / "scarcity_ray_client")
        for path in sorted(package.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.match(r"\W*guarantee", line, re.IGNORECASE) and line.strip() != "Guarantees:"
    ]
    assert spelled == []
