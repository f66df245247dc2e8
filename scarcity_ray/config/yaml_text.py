"""YAML as people write it: ``1e-5`` is a number, and a key given twice is refused with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scarcity_ray.errors import ConfigError, ConfigFileError
from scarcity_ray.ledger_url import without_password
from scarcity_ray_client.yaml_text import KeyGivenTwice, read_yaml_text


def parse_yaml(text: str) -> Any:
    """Parse a YAML document.

    Raises:
        ConfigError: If a key is given twice.
        ValueError: If it is no YAML document; the message has no password.
    """
    try:
        return read_yaml_text(text)
    except KeyGivenTwice as twice:
        key = without_password(twice.key)
        raise ConfigError(key, "given twice", f"one entry (line {twice.line})") from None
    except ValueError as error:
        raise ValueError(without_password(str(error))) from None


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
    except UnicodeDecodeError as error:
        raise ConfigFileError(
            str(path), f"no text in UTF-8 ({error.reason})", "a file saved as UTF-8"
        ) from None
    except ValueError as error:
        raise ConfigFileError(str(path), without_password(str(error)), "a well-formed YAML file") from None
    if not isinstance(content, dict):
        found = "it is empty" if content is None else f"it holds a {type(content).__name__}"
        raise ConfigFileError(str(path), found, "a mapping of sections at the top level")
    return content
