"""What a basket actor takes for the last release."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scarcity_ray.actors.session_terms import LastRelease
from scarcity_ray.config import HierarchicalFederationConfig, Layer1Config, Layer2Config
from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.plan import make_plan

MODEL = GlobalMetaModel(np.zeros(3, np.float32), 3, 9, 0, 1.0, 0.5)


def last(**layer2: Any) -> LastRelease:
    config = HierarchicalFederationConfig(
        vector_dim=3,
        layer1=Layer1Config(aggregation_method="mean", byzantine_fraction=0.0),
        layer2=Layer2Config(**layer2),
    )
    release = LastRelease(make_plan(config))
    assert release.adopt(MODEL)
    return release


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("clip_norm", [float("nan"), float("inf"), -1.0, 0.0, 1e300, 1e6, 9, "1"])
def test_a_clip_norm_that_the_config_does_not_allow_is_never_adopted(adaptive: bool, clip_norm: Any) -> None:
    release = last(adaptive_clipping=adaptive)
    with pytest.raises(ProtocolViolation, match="a clip norm that is none here"):
        release.adopt(replace(MODEL, version=2, clip_norm=clip_norm))
    assert release.model is MODEL
    assert release.clip_norm == 1.0


def test_a_clip_norm_is_adopted_where_it_adapts() -> None:
    release = last(adaptive_clipping=True)
    assert release.adopt(replace(MODEL, version=2, clip_norm=0.5))
    assert release.clip_norm == 0.5
    with pytest.raises(ProtocolViolation, match="none here"):
        last().adopt(replace(MODEL, version=2, clip_norm=0.5))


def test_an_earlier_release_never_replaces_a_later_one() -> None:
    release = last()
    later = replace(MODEL, version=5)
    assert release.adopt(later)
    assert not release.adopt(MODEL)
    assert release.model is later


@pytest.mark.parametrize("rubbish", [None, 3, {"version": 9}, replace(MODEL, version="9")])  # type: ignore[arg-type]
def test_what_is_no_release_is_not_adopted(rubbish: Any) -> None:
    release = last()
    with pytest.raises(ProtocolViolation, match="this is no release"):
        release.adopt(rubbish)
    assert release.model is MODEL


@pytest.mark.parametrize(
    "numbers", [np.zeros(3), np.zeros(2, np.float32), np.full(3, np.nan, np.float32), [0.0] * 3]
)
def test_what_is_no_vector_of_the_federations_is_not_adopted(numbers: Any) -> None:
    release = last()
    for forged in (replace(MODEL, version=2, aggregate=numbers), replace(MODEL, version=2, ledger_head=b"x")):  # type: ignore[arg-type]
        with pytest.raises(ProtocolViolation, match="3 finite float32"):
            release.adopt(forged)
    assert release.model is MODEL
