"""What contributors and reporters are handed works here: hooks and issue templates."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_hooks_are_local_and_run_what_the_test_extra_installs() -> None:
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repo["repo"] for repo in content["repos"]} == {"local"}
    for hook in content["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        command, *words = hook["entry"].split()
        assert shutil.which(command), command
        assert [word for word in words if "/" in word and not (ROOT / word).exists()] == []


def test_issue_templates_are_forms_whose_fields_have_names_of_their_own() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem == "config":
            continue
        assert content["name"]
        assert content["description"]
        fields = [field["id"] for field in content["body"]]
        assert len(set(fields)) == len(fields) > 1
        assert all(field["attributes"]["label"] for field in content["body"])
