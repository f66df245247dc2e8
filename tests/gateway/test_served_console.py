"""The operators' side of a real gateway, over TLS without a certificate of a client."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from scarcity_ray.cli.main import main
from scarcity_ray.gateway.operators import OperatorRole, Operators
from scarcity_ray_client.wire import RoundState
from tests.gateway.sites import Served, Site, job


@pytest.mark.long
def test_an_operator_watches_pauses_and_removes_a_site(tmp_path: Path) -> None:
    operators = Operators(tmp_path / "operators.json")
    token = operators.add("Ann", OperatorRole.OPERATE)
    (tmp_path / "token").write_text(token)
    served = Served(tmp_path, job(tmp_path, rounds=9, operators=str(operators.path)))
    served.start()
    authority = tmp_path / "ca.pem"
    north, south = served.site("north-1", "north"), served.site("south-1", "south")
    authority.write_text(north.authority)
    someone = Site("", served.port, north.trust, authority=north.authority)

    def status() -> dict[str, Any]:
        words = ["status", f"https://localhost:{served.port}", "--token-file", str(tmp_path / "token")]
        told = CliRunner().invoke(main, [*words, "--ca", str(authority), "--format", "json"])
        assert told.exit_code == 0, told.stderr
        return dict(json.loads(told.stdout))

    def operate(act: str, **given: Any) -> int:
        body = json.dumps(given).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return someone.ask("POST", f"/v1/operate/{act}", body, signed=False, **headers).status

    first = north.round()
    assert (first.state, first.round_id) == (RoundState.OPEN, 0)
    assert north.send(first, [1.0, 0.0]).status == 201
    told = status()
    assert told["state"] == "open"
    assert told["round"]["headline"].endswith("waiting for south-1")
    sites = {site["id"]: site for site in told["sites"]["list"]}
    assert [sites[name]["strip"][-1:] for name in ("north-1", "south-1")] == ["+", "."]
    assert sites["north-1"]["state"] == "up"
    assert sites["north-1"]["certificate_days_left"] > 20
    assert operate("pause") == 200
    assert south.send(south.round(), [0.0, 1.0]).status == 201
    until = time.monotonic() + 20.0
    while north.round(0, wait_seconds=0.2).state is not RoundState.PAUSED:
        assert time.monotonic() < until
    until = time.monotonic() + 20.0
    while status()["state"] != "paused":
        assert time.monotonic() < until
    assert someone.ask("GET", "/v1/status", signed=False).status == 401
    assert operate("resume") == 200
    assert north.round(0).state is RoundState.OPEN
    told = status()
    assert told["rounds"][0]["accepted"] == 2
    assert told["gateway"]["answers"]["201"] >= 2
    assert operate("unregister", client_id="south-1") == 200
    states = {site["id"]: site["state"] for site in status()["sites"]["list"]}
    assert states["south-1"] == "revoked"
