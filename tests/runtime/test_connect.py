"""What is refused before Ray is asked: against a server that asks for a token as Ray's head does."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scarcity_ray import HierarchicalFederation
from scarcity_ray.errors import UsageError

connecting = pytest.importorskip("scarcity_ray.runtime.connect")
ray_runtime = pytest.importorskip("scarcity_ray.runtime.ray_runtime")

TOKEN = "a" * 64
IN_USE = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS")


class Reached(Exception):
    """Ray was asked."""


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No variable of Ray's, a home of the test's own, and a Ray that says when it is asked."""

    def reached(**asked: object) -> None:
        raise Reached(asked["address"])

    for name in IN_USE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(connecting.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connecting.ray, "init", reached)
    return tmp_path


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A gRPC server that knows no method, and lets in only who has the token."""
    import grpc

    class Door(grpc.ServerInterceptor):
        def intercept_service(self, go_on, call):
            if ("authorization", f"Bearer {TOKEN}") in call.invocation_metadata:
                return go_on(call)
            refusal = lambda _, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")  # noqa: E731
            return grpc.unary_unary_rpc_method_handler(refusal)

    server = grpc.server(ThreadPoolExecutor(1), interceptors=[Door()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def write_token(home: Path, token: str, mode: int = 0o600) -> Path:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir(exist_ok=True)
    path.write_text(token)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("by", ["argument", "RAY_ADDRESS"])
@pytest.mark.parametrize(
    ("address", "host"), [("ray://gate.example:10001", "gate.example"), ("ray://gate", "gate")]
)
def test_a_ray_client_address_is_refused_before_connecting(monkeypatch, by, address, host) -> None:
    if by == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match=f"ray job submit --address http://{host}:8265") as refused:
        HierarchicalFederation(address=address if by == "argument" else None)
    assert address in str(refused.value)


def test_a_ray_client_connection_that_exists_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(connecting.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(connecting.ray_client.ray, "is_connected", lambda: True)
    for address in (None, "auto", "local", "127.0.0.1:6379"):
        with pytest.raises(UsageError, match="ray job submit"):
            HierarchicalFederation(address=address)


@pytest.mark.parametrize("mode", [None, "disabled"])
def test_a_cluster_that_asks_for_a_token_names_mode_and_file(head, own_home, monkeypatch, mode) -> None:
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    write_token(own_home, TOKEN)
    with pytest.raises(UsageError, match="RAY_AUTH_MODE=token") as refused:
        connecting.connect(head)
    assert str(own_home / ".ray" / "auth_token") in str(refused.value)


@pytest.mark.parametrize("token", ["", "b" * 64])
def test_a_token_that_is_missing_or_refused_names_its_file(head, own_home, monkeypatch, token) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    path = own_home / ".ray" / "auth_token"
    if token:
        write_token(own_home, token)
    with pytest.raises(UsageError, match=r"RAY_AUTH_MODE=token.*ray get-auth-token") as refused:
        connecting.connect(head)
    assert str(path) in str(refused.value)
    other = own_home / "elsewhere"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    with pytest.raises(UsageError, match=str(other)):
        connecting.connect(head)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "c" * 64)
    with pytest.raises(UsageError, match="the variable RAY_AUTH_TOKEN") as refused:
        connecting.connect(head)
    assert "c" * 64 not in str(refused.value)


def test_the_right_token_reaches_ray(head, own_home, monkeypatch, caplog) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    write_token(own_home, TOKEN + "\n")
    with pytest.raises(Reached, match=head):
        connecting.connect(head)
    assert not caplog.records
    path = write_token(own_home, TOKEN, 0o644)
    with pytest.raises(Reached, match=head):
        connecting.connect(head)
    assert f"chmod 600 {path}" in caplog.text


def test_a_cluster_started_here_finds_a_token_that_only_its_owner_reads(own_home, monkeypatch) -> None:
    """Ray would write the file as the umask says, for all to read."""
    before = os.umask(0)
    try:
        with pytest.raises(Reached, match="local"):
            connecting.connect(None)
    finally:
        os.umask(before)
    path = own_home / ".ray" / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = path.read_text()
    assert len(token) == 64
    with pytest.raises(Reached):
        connecting.connect(None)
    assert path.read_text() == token
    path.unlink()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(Reached):
        connecting.connect(None)
    assert not path.exists()


def test_a_runtime_that_cannot_begin_ends_the_cluster_that_it_started(monkeypatch) -> None:
    ended = []
    monkeypatch.setattr(ray_runtime, "connect", lambda address: True)
    monkeypatch.setattr(ray_runtime.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray_runtime.ray, "shutdown", lambda: ended.append(True))
    monkeypatch.setattr(ray_runtime.ray, "get_runtime_context", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ray_runtime.RayRuntime("anywhere")
    assert ended == [True]
