"""The notebook in `examples/notebook` works, and works again in the same kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook" / "first_federation.ipynb"


def test_the_notebook_works_twice_in_one_kernel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib").use("Agg")
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    assert sum("ROUNDS = 10" in cell for cell in cells) == 1
    kernel: dict[str, Any] = {"__name__": "__main__"}
    ledgers = set()
    for _ in range(2):
        for number, cell in enumerate(cells):
            exec(compile(cell.replace("ROUNDS = 10", "ROUNDS = 2"), f"cell {number}", "exec"), kernel)
        assert kernel["result"].explanation == ""
        assert kernel["result"].history[-1].evaluation["accuracy"] > 0.8
        ledgers.add(kernel["stats"]["ledger_path"])
    assert len(ledgers) == 2, "each run has a budget of its own"
    assert "all rounds were made" in capsys.readouterr().out


def test_the_notebook_is_kept_without_what_a_run_printed() -> None:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell["outputs"] for cell in content["cells"] if cell["cell_type"] == "code")
