"""YAML as people write it: ``1e-5`` is a number, and a key given twice is refused with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from scarcity_ray.errors import ConfigError, ConfigFileError
from scarcity_ray.ledger_url import without_password


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe, and libyaml's if PyYAML has it: reads 1e-5 as a number as YAML 1.2, refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                key, line = without_password(key_node.value), key_node.start_mark.line + 1
                raise ConfigError(key, "given twice", f"one entry (line {line})")
            seen.add(key_node.value)
        made: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return made


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Parse a YAML document.

    Raises:
        ConfigError: If a key is given twice.
        ValueError: If it is no YAML document; the message has no password.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(without_password(str(error).replace("\n", " "))) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML file whose top level is a mapping.

    Raises:
        ConfigFileError: If the file cannot be read or is not such a file; the error names the line.
    """
    try:
        content = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        place = str(path) or "the file's name"
        raise ConfigFileError(place, error.strerror, "a readable YAML file") from None
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigFileError(str(path), without_password(str(error)), "a well-formed YAML file") from None
    if not isinstance(content, dict):
        found = "it is empty" if content is None else f"it holds a {type(content).__name__}"
        raise ConfigFileError(str(path), found, "a mapping of sections at the top level")
    return content
