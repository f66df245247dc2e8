"""YAML as people write it: ``1e-5`` is a number, and a key given twice is refused with its line."""

from __future__ import annotations

import re
from typing import Any

import yaml


class KeyGivenTwice(ValueError):
    """A mapping has two entries of one name; `key` and `line` (from 1) of the second."""

    def __init__(self, key: str, line: int) -> None:
        super().__init__(f"{key}: given twice (line {line})")
        self.key = key
        self.line = line


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe, and libyaml's if PyYAML has it: reads 1e-5 as a number as YAML 1.2, refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise KeyGivenTwice(key_node.value, key_node.start_mark.line + 1)
            seen.add(key_node.value)
        made: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return made


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml_text(text: str) -> Any:
    """The document in a text.

    Raises:
        KeyGivenTwice: If a key is.
        ValueError: If it is no YAML document; the message is one line.

    >>> read_yaml_text("delta: 1e-5")
    {'delta': 1e-05}
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error).replace("\n", " ")) from None
