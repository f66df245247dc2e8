"""A job that is served: sites enrol, train, send; the model is theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scarcity_ray.gateway.front_door import FrontDoor
from scarcity_ray.runtime.local import LocalRuntime
from scarcity_ray_client.wire import RoundState, UpdateAnswer
from tests.gateway.sites import Served, job


def test_two_sites_make_a_model(tmp_path: Path) -> None:
    served = Served(tmp_path, job(tmp_path, rounds=2))
    served.start()
    north, south = served.site("north-1", "north"), served.site("south-1", "south")
    done = None
    for number in range(2):
        for site, row in ((north, [1.0, 0.0]), (south, [0.0, 1.0])):
            told = site.round(done)
            assert (told.state, told.round_id) == (RoundState.OPEN, number)
            answer = site.send(told, row)
            assert answer.status == 201, answer
            assert UpdateAnswer.from_json(answer.body).client_id == site.client_id
        done = number
    told = north.round(done)
    assert told.state is RoundState.FINISHED
    assert told.model is not None
    model = north.ask("GET", "/v1/model")
    assert np.frombuffer(model.body, "<f4") == pytest.approx([1.0, 1.0], abs=1e-5)
    outcome = served.join()
    assert outcome.summary.releases == 2
    assert [record.accepted for record in outcome.rounds] == [2, 2]


@pytest.mark.long
def test_sites_whose_round_would_not_fit_into_memory_are_refused_before_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrontDoor, "invited", lambda self: [f"site-{i}" for i in range(100_000)])
    monkeypatch.setattr(LocalRuntime, "node_bytes", lambda self: (2.0**29,))
    served = Served(tmp_path, job(tmp_path, rounds=1))
    with pytest.raises(AssertionError, match=r"a round of 100000 clients .* needs about"):
        served.start()
    assert not served.watching.is_listening.is_set()
