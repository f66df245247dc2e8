"""A key's old name is taken for one release more, with a warning, and then refused with the new one."""

from __future__ import annotations

from dataclasses import field
from typing import ClassVar

import pytest

from scarcity_ray.config import load, to_plain
from scarcity_ray.config.validation import Renamed, settings
from scarcity_ray.errors import ConfigError, ConfigWarning


@settings
class Rule:
    RENAMED: ClassVar = {"krum_f": Renamed("num_byzantine", "999.0"), "beta": Renamed("share", "0.1")}
    num_byzantine: int = 1
    share: float = 0.1


@settings
class Federation:
    layer1: Rule = field(default_factory=Rule)


def test_an_old_name_is_read_with_a_warning_that_names_the_new_one() -> None:
    with pytest.warns(ConfigWarning, match="krum_f is called num_byzantine now; release 999.0 refuses"):
        loaded = load(Federation, {"layer1": {"krum_f": 3}})
    assert to_plain(loaded) == {"layer1": {"num_byzantine": 3, "share": 0.1}}
    with pytest.warns(ConfigWarning):
        assert Rule(krum_f=3) == loaded.layer1  # type: ignore[call-arg]


def test_after_its_release_it_is_refused_with_the_new_one() -> None:
    with pytest.raises(ConfigError, match=r"layer1.beta: 0.2 is not accepted; the key's new name, share"):
        load(Federation, {"layer1": {"beta": 0.2}})


def test_both_names_are_refused_as_nobody_can_know_which_is_meant() -> None:
    with pytest.raises(ConfigError, match="num_byzantine alone, which is the new name"):
        load(Federation, {"layer1": {"krum_f": 3, "num_byzantine": 2}})


def test_the_value_is_checked_under_its_new_name() -> None:
    with pytest.warns(ConfigWarning), pytest.raises(ConfigError, match=r"layer1\.num_byzantine: 'x'"):
        load(Federation, {"layer1": {"krum_f": "x"}})
