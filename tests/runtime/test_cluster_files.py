"""The files in `cluster/` are what Ray and this package understand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scarcity_ray import RuntimeConfig
from scarcity_ray.config import load

CLUSTER = Path(__file__).parents[2] / "cluster"


@pytest.fixture
def machines() -> Any:
    return yaml.safe_load((CLUSTER / "machines.yaml").read_text(encoding="utf-8"))


def test_ray_accepts_the_file(machines: Any) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    prepared = util.prepare_config(machines)
    util.validate_config(prepared)
    (kind,) = prepared["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(machines["provider"]["worker_ips"])


def test_every_machine_asks_for_the_token_and_sends_no_statistics(machines: Any) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = machines[key][-1]
        assert "RAY_AUTH_MODE=token" in start
        assert "RAY_USAGE_STATS_ENABLED=0" in start
    assert "--dashboard-host=127.0.0.1" in machines["head_start_ray_commands"][-1]


def test_the_settings_that_the_page_shows_are_accepted() -> None:
    page = (CLUSTER / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    shown = load(RuntimeConfig, yaml.safe_load(block)["federation"]["runtime"])
    assert shown.baskets_per_actor == 4
