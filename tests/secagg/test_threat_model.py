"""The threat model names code and tests that exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = (ROOT / "docs" / "threat_model.md").read_text()


@functools.cache
def functions_of(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`((?:\w+/)?test_\w+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 20
    for file, name in named:
        path = HERE.parent / file if "/" in file else HERE / file
        assert name in functions_of(path), f"{file}::{name}"


def test_every_file_that_the_page_names_exists():
    named = set(re.findall(r"`(\w+\.py)`", PAGE)) | set(re.findall(r"\(`(\w+\.py)`, ", PAGE))
    assert len(named) > 8
    for file in named:
        assert (ROOT / "scarcity_ray" / "secagg" / file).exists(), file


def test_every_guarantee_of_the_package_has_a_test_of_its_name():
    tests = set().union(*map(functions_of, HERE.glob("test_*.py")))
    for path in (ROOT / "scarcity_ray" / "secagg").glob("*.py"):
        for block in re.findall(r"Guarantees:\n((?:\s+\* `\w+`\n)+)", path.read_text()):
            for name in re.findall(r"`(\w+)`", block):
                assert f"test_{name}" in tests, f"{path.name}: {name}"
