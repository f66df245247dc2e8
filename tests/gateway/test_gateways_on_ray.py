"""A gateway that is killed on Ray is started again, and whoever was sending goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import numpy as np
import pytest

from tests.gateway.sites import Answer, Served, Site, job, target_of

DIMENSION = 40_000


def insisting(ask: Callable[[], Answer], seconds: float = 30.0) -> Answer:
    """Ask until somebody answers."""
    until = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except (OSError, HTTPException):
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@pytest.mark.ray
def test_a_gateway_killed_in_mid_upload_loses_nothing(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    config = job(tmp_path, dimension=DIMENSION, rounds=1)
    config["run"]["runtime"] = "ray"
    served = Served(tmp_path, config)
    served.start(seconds=60)
    north, south = served.site("north-1", "north"), served.site("south-1", "south")

    def kill() -> None:
        ray.kill(ray.get_actor("gateway:0", namespace="scarcity_ray/served"))

    told = north.round()
    body = north.update(told, np.full(DIMENSION, 0.001, np.float32))
    target, half = target_of(told.round_id, body), len(body) // 2

    def part(site: Site, begin: int, end: int) -> Answer:
        return site.ask(
            "PATCH", target, body[begin:end], Upload_Offset=str(begin), Upload_Length=str(len(body))
        )

    assert part(north, 0, half).status == 204
    kill()
    found = insisting(lambda: north.ask("HEAD", target))
    assert found.headers["upload-offset"] == str(half), "what was sent is on the gateway's disk"
    accepted = part(north, half, len(body))
    assert accepted.status == 201, accepted
    kill()
    again = insisting(lambda: north.ask("PUT", target, body))
    assert (again.status, again.body) == (200, accepted.body), "the same answer, from another gateway"
    assert insisting(lambda: south.send(told, np.full(DIMENSION, 0.001, np.float32))).status == 201
    outcome = served.join(seconds=60)
    assert [record.accepted for record in outcome.rounds] == [2]
    assert outcome.summary.releases == 1
