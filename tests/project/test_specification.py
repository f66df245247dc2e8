"""The checklist of promises names tests that exist, and the code names the checklist where it means it."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKLIST = ROOT / "docs" / "specification.md"
NAMED = re.compile(r"`(?P<file>[\w/]+\.py)::(?P<test>\w+)`")
LINK = re.compile(r"docs/specification\.md#([\w-]+)")


@functools.cache
def named_in(file: Path) -> set[str]:
    """Names of the test functions that pytest finds in a file."""
    if not file.is_file():
        return set()
    found = (node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef))
    return {node.name for node in found if node.name.startswith("test_")}


def promises(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each table row's promise and the (file, test) pairs that hold it."""
    rows = [line.strip("| ").rsplit("|", 1) for line in text.splitlines() if line.startswith("|")]
    said = [row for row in rows if len(row) == 2 and row[0].strip() not in ("promise", "---")]
    return [(promise.strip(), NAMED.findall(held)) for promise, held in said]


def broken(text: str) -> list[str]:
    """Promises that nothing holds, and tests that are not there."""
    faults = []
    for promise, tests in promises(text):
        if not tests:
            faults.append(f"nothing holds: {promise}")
        for file, test in tests:
            path = ROOT / (file if "/" in file else f"tests/spec/{file}")
            if test not in named_in(path):
                faults.append(f"there is no {path.relative_to(ROOT)}::{test}")
    return faults


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_promise_names_a_test_that_exists():
    text = CHECKLIST.read_text()
    assert len(promises(text)) > 80
    assert broken(text) == []


def test_every_line_on_a_key_names_a_test_that_exists():
    text = (ROOT / "docs" / "keys.md").read_text()
    assert len(promises(text)) > 40
    assert broken(text) == []


def test_a_promise_without_a_test_is_found():
    assert broken("| promise | held by |\n|---|---|\n| It sings | nobody |") == ["nothing holds: It sings"]
    assert broken("| It sings | `test_known_names.py::test_it_sings` |") == [
        "there is no tests/spec/test_known_names.py::test_it_sings"
    ]
    assert broken("| It sings | `tests/nowhere/test_x.py::test_it_sings` |") != []


def test_every_test_of_the_two_documents_is_in_the_checklist():
    listed = {test for _, tests in promises(CHECKLIST.read_text()) for _, test in tests}
    for name in ("test_basket_document.py", "test_routing_and_costs.py"):
        assert named_in(ROOT / "tests" / "spec" / name) <= listed


def test_what_the_code_cites_is_there():
    known = anchors(CHECKLIST.read_text())
    for folder in ("scarcity_ray", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert set(LINK.findall(text)) <= known, path
            assert not re.search(r"(?<!shared/)spec/(hierarchical|basket)\.md", text), path
