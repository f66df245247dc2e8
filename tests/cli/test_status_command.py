"""``scarcity-ray status`` and ``operators``: at a gateway on this machine, and at what is none."""

from __future__ import annotations

import http.server
import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from scarcity_ray import HierarchicalFederation
from scarcity_ray.cli import status
from scarcity_ray.cli.main import main
from scarcity_ray.gateway.operators import OperatorRole, Operators
from tests.gateway.watched import WatchedFederation, served
from tests.monitoring.test_status import NOW, config_of


def ran(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(main, words, env=environment, catch_exceptions=False)


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server that is no gateway, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def test_a_pipe_is_given_each_status_as_it_comes(monkeypatch) -> None:
    out, seen, asked = io.TextIOWrapper(raw := io.BytesIO()), list[bytes](), list[int]()

    def interrupted(_: float) -> None:
        seen.append(raw.getvalue())
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr(time, "sleep", interrupted)
    monkeypatch.setattr(status, "shown_status", lambda told: told)
    with suppress(KeyboardInterrupt):
        status._as_text(lambda: asked.append(1) or f"status {len(asked)}", 1.0)
    assert [text.decode() for text in seen] == ["status 1\n", "status 1\nstatus 2\n"]


def test_a_gateways_status_is_told_as_text_and_as_json(tmp_path: Path) -> None:
    file, clients = tmp_path / "operators.json", [(f"ward-{n}", f"region-{n % 3}") for n in range(24)]
    token = ran("operators", "add", "Ann", "--file", str(file)).stdout.strip()
    (tmp_path / "token").write_text(token + "\n")
    with HierarchicalFederation(config_of(tmp_path), runtime="local", clock=lambda: NOW) as fed:
        fed.register_clients(clients)
        source = WatchedFederation(fed, NOW, name="hospitals")
        source.make_rounds(clients, 2)
        with served(source, Operators(file)) as address:
            told = ran("status", address, "--token-file", str(tmp_path / "token"))
            assert told.exit_code == 0
            assert told.stdout.startswith("hospitals: open. 0 of 6 baskets; waiting for ward-")
            assert "of 10 spent at delta 0.0001 for one client; 65 rounds left" in told.stdout
            assert "and 4 more (--format json lists them)" in told.stdout
            as_json = ran("status", address, "--format", "json", SCARCITY_RAY_OPERATOR_TOKEN=token)
            assert json.loads(as_json.stdout)["sites"]["registered"] == 24
            ran("operators", "revoke", "Ann", "--file", str(file))
            refused = ran("status", address, SCARCITY_RAY_OPERATOR_TOKEN=token)
            assert (refused.exit_code, "the token is no operator's" in refused.stderr) == (2, True)


def test_a_token_goes_to_the_gateway_that_was_named_alone() -> None:
    with answering(200, {}, b"{}") as (elsewhere, asked_there):
        with answering(302, {"Location": elsewhere}, b"") as (first, asked):
            told = ran("status", first, SCARCITY_RAY_OPERATOR_TOKEN="t")
        assert (told.exit_code, asked, asked_there) == (2, ["/v1/status"], [])
        assert "it sends elsewhere" in told.stderr
        ran(
            "status", "http://127.0.0.1:9", SCARCITY_RAY_OPERATOR_TOKEN="t", http_proxy=elsewhere, no_proxy=""
        )
        assert asked_there == [], "a proxy of the environment would read the token"
    told = ran("status", "http://gateway.example.org", SCARCITY_RAY_OPERATOR_TOKEN="t")
    assert "https alone" in told.stderr


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>", "is no gateway"),
        (200, b"[]", "is no gateway"),
        (200, b'{"format_version": 7}', "of format 7"),
        (503, b'{"message": "away\\u001b[31m"}', "away\\x1b[31m"),
        (500, b"?", "it answers 500"),
    ],
)
def test_what_is_no_gateway_is_said_to_be_none(status: int, body: bytes, words: str) -> None:
    with answering(status, {}, body) as (address, _):
        told = ran("status", address, SCARCITY_RAY_OPERATOR_TOKEN="t")
    assert told.exit_code == 2
    assert words in told.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ftp://x",), "is no gateway's address"),
        (("https://ann:secret@x",), "is no gateway's address"),
        (("http://127.0.0.1:9", "--token-file", "/nowhere"), "/nowhere"),
        (("http://127.0.0.1:9",), "no operator's token was given"),
        (("hospitals", "--ca", "x"), "are for a gateway's URL"),
    ],
)
def test_bad_usage_says_what_to_give(words: tuple[str, ...], said: str) -> None:
    told = ran("status", *words, SCARCITY_RAY_OPERATOR_TOKEN="")
    assert (told.exit_code, said in told.stderr) == (2, True), told.stderr


def test_traces_that_cannot_be_made_end_the_command_in_one_line(tmp_path: Path) -> None:
    file, missing = str(tmp_path / "none"), "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, missing, None)
        told = ran("operators", "list", "--file", file, SCARCITY_RAY_TRACES="1")
    assert (told.exit_code, told.stderr.count("\n"), "scarcity-ray[otel]" in told.stderr) == (2, 1, True)


def test_operators_are_listed_without_their_tokens(tmp_path: Path) -> None:
    file = str(tmp_path / "operators.json")
    tokens = [
        ran("operators", "add", name, "--role", role, "--file", file).stdout.strip()
        for name, role in (("Ann", "operate"), ("Bo", "read"))
    ]
    told = ran("operators", "list", "--file", file)
    assert [line.split("  ")[:2] for line in told.stdout.splitlines()] == [["Ann", "operate"], ["Bo", "read"]]
    as_json = [
        json.loads(line)
        for line in ran("operators", "list", "--file", file, "--format", "json").stdout.splitlines()
    ]
    assert [set(entry) for entry in as_json] == [{"name", "role", "added"}] * 2
    assert not any(token in told.stdout for token in tokens)
    assert Operators(file).who(tokens[0]).role is OperatorRole.OPERATE  # type: ignore[union-attr]
    assert ran("operators", "add", "Ann", "--file", file).exit_code == 2
