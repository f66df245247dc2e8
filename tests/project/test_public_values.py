"""Public dataclasses can be compared, and the version is the same wherever it stands."""

from __future__ import annotations

import dataclasses
import inspect
import tomllib
import typing
from pathlib import Path

import numpy as np
import pytest

import scarcity_ray
import scarcity_ray_client

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (scarcity_ray, scarcity_ray_client)


def compared_arrays(cls: type) -> list[str]:
    """Fields that ``==`` compares as a whole, which an array refuses."""
    if not dataclasses.is_dataclass(cls) or "__eq__" not in vars(cls):
        return []
    types = typing.get_type_hints(cls)
    return [f.name for f in dataclasses.fields(cls) if f.compare and "ndarray" in repr(types[f.name])]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_no_public_dataclass_compares_an_array_as_a_whole(package) -> None:
    public = [thing for name in package.__all__ if inspect.isclass(thing := getattr(package, name))]
    assert sum(map(dataclasses.is_dataclass, public)) > 5
    assert {cls.__name__: found for cls in public if (found := compared_arrays(cls))} == {}


def test_a_planted_one_is_found() -> None:
    planted = dataclasses.make_dataclass("Planted", [("row", np.ndarray), ("n", int)])
    assert compared_arrays(planted) == ["row"]


def test_both_packages_and_every_pin_state_one_version() -> None:
    here, client = (
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for folder in (".", "client")
    )
    asked = sum(here["optional-dependencies"].values(), here["dependencies"])
    pins = [one.partition("==")[2] for one in asked if one.startswith("scarcity-ray-client")]
    assert len(pins) >= 2
    assert {here["version"], client["version"], *pins} == {scarcity_ray.__version__}
