"""No dead knobs: every field of every config is read somewhere outside config/."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from pathlib import Path

import pytest

from scarcity_ray import config
from scarcity_ray.config import HierarchicalFederationConfig, sections

CONFIG = Path(config.__file__).parent

CONFIGS = [
    HierarchicalFederationConfig,
    *(
        f.default_factory
        for f in dataclasses.fields(HierarchicalFederationConfig)
        if dataclasses.is_dataclass(f.default_factory)
    ),
]


@functools.cache
def reads(source: str) -> set[str]:
    """Names of all attributes that the source reads."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def dead_fields(configs, sources) -> list[str]:
    read = set().union(*map(reads, sources))
    for cls in configs:
        for name, member in vars(cls).items():
            # What is read outside config/ through a property of the config is read.
            if isinstance(member, property) and name in read:
                read |= reads(textwrap.dedent(inspect.getsource(member.fget)))
    return [
        f"{cls.__name__}.{f.name}" for cls in configs for f in dataclasses.fields(cls) if f.name not in read
    ]


@pytest.fixture(scope="module")
def sources() -> list[str]:
    return [p.read_text() for p in sorted(CONFIG.parent.rglob("*.py")) if p.parent != CONFIG]


def test_every_field_of_every_config_is_read_by_the_package(sources):
    assert dead_fields(CONFIGS, sources) == []


def test_there_is_no_config_that_this_does_not_look_at():
    made = {
        name
        for name, thing in vars(sections).items()
        if dataclasses.is_dataclass(thing) and thing.__module__ == sections.__name__
    }
    assert made == {cls.__name__ for cls in CONFIGS}


def test_a_planted_dead_field_is_found(sources):
    planted = dataclasses.make_dataclass("Planted", [("clip_norm", float, 1.0), ("warp_factor", int, 9)])
    assert dead_fields([planted], sources) == ["Planted.warp_factor"]


def test_writing_a_field_is_not_reading_it():
    planted = dataclasses.make_dataclass("Planted", [("warp_factor", int, 9)])
    assert dead_fields([planted], ["self.warp_factor = 3", "Planted(warp_factor=2)"]) == [
        "Planted.warp_factor"
    ]
    assert dead_fields([planted], ["x = config.warp_factor"]) == []
