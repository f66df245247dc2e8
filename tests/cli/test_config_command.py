"""``scarcity-ray config``: the page of all keys is current, and the schema judges files as the models do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from scarcity_ray.cli.config import SETTINGS, job_schema
from scarcity_ray.cli.main import main
from scarcity_ray.config import load, parse_yaml, read_yaml, to_plain
from scarcity_ray.errors import ConfigError
from scarcity_ray.workloads.config import FORMAT_VERSION, RunConfig

ROOT = Path(__file__).parents[2]
JOBS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("configs", "examples")
    for path in (ROOT / folder).rglob("*.yaml")
)
LEAST: dict[str, Any] = {
    "name": "wards",
    "workload": {"class": "m:C"},
    "federation": {"auto_aggregate": False},
}


def test_the_page_of_all_keys_is_current() -> None:
    page = CliRunner().invoke(main, ["config", "reference"]).stdout
    assert (ROOT / "docs" / "config_reference.md").read_text(encoding="utf-8") == page, (
        "make it anew: scarcity-ray config reference > docs/config_reference.md"
    )


def test_every_key_of_every_section_has_a_meaning_and_each_section_is_reached() -> None:
    schema = job_schema()
    sections = {"RunConfig": schema} | {k: v for k, v in schema["$defs"].items() if "properties" in v}
    assert set(sections) == set(SETTINGS)
    for name, section in sections.items():
        assert section["additionalProperties"] is False
        silent = [k for k, v in section["properties"].items() if not {"description", "$ref"} & set(v)]
        assert silent == [], f"{name}: write a docstring below each of these"


def is_valid(content: object) -> bool:
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    schema = json.loads(CliRunner().invoke(main, ["config", "schema"]).stdout)
    validator.check_schema(schema)
    return bool(validator(schema).is_valid(content))


@pytest.mark.parametrize("name", JOBS)
def test_the_schema_accepts_each_job_that_is_shipped(name: str) -> None:
    assert is_valid(read_yaml(ROOT / name))


def test_the_schema_accepts_what_a_run_writes() -> None:
    config = load(RunConfig, {**LEAST, "gateway": {}, "lab": {}})
    assert is_valid({"format_version": FORMAT_VERSION, **to_plain(config)})


@pytest.mark.long
@pytest.mark.parametrize(
    ("path", "bad", "good"),
    [
        ("federation.seeed", "1", None),
        ("federation.total_epsilon", "0", "1e-3"),
        ("federation.vector_dim", "0", "1"),
        ("federation.layer1.clip_norm", "1e21", "1e20"),
        ("federation.layer1.pre", "[mean]", "[nnm]"),
        ("federation.privacy.unit", "group", "person"),
        ("federation.meta_parameters", "{loss: [0]}", "{loss: [0, 1]}"),
        ("federation.runtime.placement", "{eu: {}}", "{eu: {region: eu}}"),
        ("gateway.port", "65536", "65535"),
        ("workload.class", "3", "module:Class"),
        ("run.runtime", "slurm", "local"),
    ],
)
def test_schema_and_models_refuse_the_same_values(path: str, bad: str, good: str | None) -> None:
    for text in (bad, good):
        if text is None:
            continue
        content: dict[str, Any] = json.loads(json.dumps(LEAST))
        section = content
        *folders, key = path.split(".")
        for folder in folders:
            section = section.setdefault(folder, {})
        section[key] = parse_yaml(text)
        assert is_valid(content) is (text == good)
        try:
            load(RunConfig, content)
        except ConfigError:
            assert text == bad
        else:
            assert text == good
