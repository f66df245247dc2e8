"""Configs from YAML and back to plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from scarcity_ray.config.refusals import join_path, refusal
from scarcity_ray.errors import ConfigError, ConfigFileError
from scarcity_ray.ledger_url import LedgerUrl, without_password

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-5 as a number, as YAML 1.2 does, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise ConfigError(
                    key_node.value, "given twice", f"one entry (line {key_node.start_mark.line + 1})"
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML file whose top level is a mapping.

    Raises:
        ConfigFileError: If the file cannot be read or is not such a file; the error names the line.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigFileError(
            str(path) or "the file's name", error.strerror, "a readable YAML file"
        ) from None
    except RecursionError:
        raise ConfigFileError(str(path), "nested too deeply", "a well-formed YAML file") from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        text = without_password(str(error).replace("\n", " "))
        raise ConfigFileError(str(path), text, "a well-formed YAML file") from None
    if not isinstance(content, dict):
        raise ConfigFileError(
            str(path),
            "it is empty" if content is None else f"it holds a {type(content).__name__}",
            "a mapping of sections at the top level",
        )
    return content


def load(cls: type[T], content: Mapping[str, Any], path: str = "") -> T:
    """Build the config dataclass `cls` from plain data.

    Args:
        cls: One of the dataclasses made by `settings`.
        content: Mappings, lists, strings and numbers, as YAML gives them.
        path: What to put in front of the paths in errors.

    Raises:
        ConfigError: For an unknown key, a wrong type or a value out of range.

    >>> from scarcity_ray.config import BasketConfig
    >>> load(BasketConfig, {"min_clients": 5}).min_clients
    5
    >>> load(BasketConfig, {"min_client": 5})
    Traceback (most recent call last):
    ...
    scarcity_ray.errors.ConfigError: min_client: 5 is not accepted; unknown key, did you mean 'min_clients'? \
(known: allow_cross_domain, max_clients, min_clients, stale_threshold)
    """
    try:
        return TypeAdapter(cls).validate_python(content)
    except ValidationError as error:
        raise refusal(error, cls, prefix=path) from None
    except ConfigError as error:
        raise ConfigError(join_path(path, error.path), error.value, error.accepted) from None


def to_plain(config: object) -> Any:
    """The config as mappings, lists, strings and numbers, ready for YAML or JSON; without any password."""
    if is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, Mapping):
        return {key: to_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(value) for value in config]
    if isinstance(config, LedgerUrl):
        return str(config)
    return config.value if isinstance(config, Enum) else config
