"""The threat model names code and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = (ROOT / "docs" / "threat_model.md").read_text()


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`((?:\w+/)?test_\w+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 20
    for file, name in named:
        path = HERE.parent / file if "/" in file else HERE / file
        functions = {
            node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, f"{file}::{name}"


def test_every_file_that_the_page_names_exists():
    named = set(re.findall(r"`(\w+\.py)`", PAGE)) | set(re.findall(r"\(`(\w+\.py)`, ", PAGE))
    assert len(named) > 8
    for file in named:
        assert (ROOT / "scarcity_ray" / "secagg" / file).exists(), file


def test_every_guarantee_of_the_package_has_a_test_of_its_name():
    tests = {
        node.name
        for path in HERE.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    for path in (ROOT / "scarcity_ray" / "secagg").glob("*.py"):
        for block in re.findall(r"Guarantees:\n((?:\s+\* `\w+`\n)+)", path.read_text()):
            for name in re.findall(r"`(\w+)`", block):
                assert f"test_{name}" in tests, f"{path.name}: {name}"
