"""``scarcity-ray config``: every key of a job's file, for people and for editors."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click
from pydantic import TypeAdapter
from pydantic.dataclasses import is_pydantic_dataclass

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.config import gateway, sections
from scarcity_ray.workloads import attacks
from scarcity_ray.workloads import config as jobs
from scarcity_ray.workloads.config import FORMAT_VERSION, RunConfig

SETTINGS = {
    name: thing
    for module in (sections, gateway, attacks, jobs)
    for name, thing in vars(module).items()
    if isinstance(thing, type) and is_pydantic_dataclass(thing)
}
"""The classes of settings by name, as the schema's ``$defs`` name them."""
LONG = 2**31 - 1
"""An integer's limit that is not worth saying."""
REFERENCE_HEAD = """\
# Every key of the job file

Made by `scarcity-ray config reference` from the types and docstrings of the settings; a test holds it
current. What the sections are for stands in [the job file](job_file.md).

A driver's own config, `HierarchicalFederationConfig`, has the keys below `federation`. `null` is Python's
`None`.
"""


def reference_command() -> ExitCode:
    """Print the page."""
    click.echo(config_reference(), nl=False)
    return ExitCode.DONE


def schema_command() -> ExitCode:
    """Print the JSON Schema."""
    click.echo(json.dumps(job_schema(), indent=2))
    return ExitCode.DONE


def job_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a job's file: keys, types, ranges, defaults and meanings.

    What only holds of several keys together is not in it; `scarcity-ray plan` checks that.
    """
    root = TypeAdapter(RunConfig).json_schema(by_alias=True)
    definitions = root.pop("$defs")
    for name, section in (("RunConfig", root), *definitions.items()):
        section.pop("title", None)
        section["description"] = _prose(section.get("description", ""))
        if name in SETTINGS:
            _explain(section, SETTINGS[name])
    root["properties"]["format_version"] = {
        "description": "Stated by the file of a run's folder.",
        "type": "integer",
        "minimum": 1,
        "maximum": FORMAT_VERSION,
    }
    dialect = "https://json-schema.org/draft/2020-12/schema"
    whole = {"$schema": dialect, "title": "A job of scarcity-ray", **root, "$defs": definitions}
    return {key: _with_ranges(part) for key, part in whole.items()}


def config_reference() -> str:
    """The page docs/config_reference.md."""
    schema = job_schema()
    del schema["properties"]["format_version"]
    parts = [REFERENCE_HEAD]
    for path, section in _sections(schema, schema["$defs"]):
        required = section.get("required", ())
        parts.append(f"\n## {path or 'The file'}\n\n{_linked(section['description'])}\n\n")
        parts.append("| key | default | accepts | meaning |\n|---|---|---|---|\n")
        for key, value in section["properties"].items():
            inner = _section_of(value, schema["$defs"])
            default = "required" if key in required else _code(value.get("default"))
            accepts = f"[keys](#{f'{path}.{key}'.lstrip('.').replace('.', '')})"
            if inner is None:
                accepts = _accepts(value, schema["$defs"])
            elif key not in required and "default" not in value:
                default = "each key's"
            meaning = value.get("description") or (inner or {}).get("description", "")
            parts.append(f"| `{key}` | {default} | {accepts} | {_linked(meaning)} |\n")
    return "".join(parts)


def _explain(section: dict[str, Any], cls: type) -> None:
    """Put what attribute docstrings and factories say to a section's keys."""
    meanings = _meanings(cls.__module__).get(cls.__name__, {})
    known = {
        (info.alias or name): (name, info)
        for name, info in cls.__pydantic_fields__.items()  # type: ignore[attr-defined]
    }
    for key, value in section["properties"].items():
        name, info = known[key]
        value.pop("title", None)
        if meaning := meanings.get(name):
            value["description"] = meaning
        if info.default_factory is not None:
            default = info.default_factory()
            if not dataclasses.is_dataclass(default):
                value["default"] = default


@functools.cache
def _meanings(module: str) -> Mapping[str, Mapping[str, str]]:
    """The docstring below each attribute of a module's classes, by class and attribute."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {
        node.name: {
            said.target.id: _prose(text.value.value)
            for said, text in zip(node.body, node.body[1:], strict=False)
            if isinstance(said, ast.AnnAssign)
            and isinstance(said.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def _prose(docstring: str) -> str:
    return " ".join(docstring.replace("``", "`").split())


def _with_ranges(node: Any) -> Any:
    """The same with JSON Schema's names for ranges, which pydantic keeps as its own behind a validator."""
    if isinstance(node, list):
        return [_with_ranges(part) for part in node]
    if not isinstance(node, dict):
        return node
    names = {"ge": "minimum", "le": "maximum"} if node.get("type") == "integer" else {}
    return {names.get(key, key): _with_ranges(part) for key, part in node.items()}


def _section_of(value: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    """The section that a key holds, or may hold; None if it is a value."""
    for option in (value, *value.get("anyOf", ())):
        target = definitions.get(option.get("$ref", "").rpartition("/")[2], {})
        if "properties" in target:
            return target
    return None


def _sections(
    section: Mapping[str, Any], definitions: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All sections with their paths, each before those within it."""
    yield path, section
    for key, value in section["properties"].items():
        inner = _section_of(value, definitions)
        if inner is not None:
            yield from _sections(inner, definitions, f"{path}.{key}" if path else key)


def _accepts(value: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A value's type and range in words."""
    if "$ref" in value:
        return _accepts(definitions[value["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_accepts(option, definitions) for option in value["anyOf"]))
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    kind = value.get("type")
    if kind == "array":
        if "prefixItems" in value:
            return " and ".join(_accepts(part, definitions) for part in value["prefixItems"])
        return f"list of {_accepts(value['items'], definitions)}"
    if kind == "object":
        held = value.get("additionalProperties") or next(
            iter(value.get("patternProperties", {}).values()), None
        )
        return f"mapping to {_accepts(held, definitions)}" if isinstance(held, dict) and held else "mapping"
    words = {"integer": "integer", "number": "number", "boolean": "`true`, `false`", "string": "text"}
    limits = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    ranges = [
        f"{sign} {value[limit]:g}"
        for limit, sign in limits.items()
        if value.get(limit, LONG) < LONG or isinstance(value.get(limit), float)
    ]
    return " ".join([words.get(str(kind), "`null`" if kind == "null" else "any"), ", ".join(ranges)]).strip()


def _code(value: object) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _linked(text: str) -> str:
    """With links, as seen from docs/, where a docstring names a page; safe in a table's cell."""
    return re.sub(r"docs/(([\w/-]+)\.md(?:#[\w-]+)?)", r"[\2](\1)", text).replace("|", "\\|")
