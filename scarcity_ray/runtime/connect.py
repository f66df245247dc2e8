"""Connects to a Ray cluster: the given address, an open connection, ``RAY_ADDRESS``, or a new cluster.

Ray itself waits for minutes at an address where no cluster answers, and may then end the process. So an
address is checked first: one where no cluster answers, a token that the cluster refuses, or ``ray://`` (over
which a driver cannot own its roles) is a `UsageError` within seconds.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import client as ray_client

from scarcity_ray.errors import UsageError

logger = logging.getLogger("scarcity_ray")

ANSWER_SECONDS = 5.0
"""Time in which a cluster's port must accept a connection and greet."""
MALLOC_ARENAS = "2"
"""Of glibc, for each process of a cluster that is started here. By itself it makes eight a core; free memory
that is spread over them made each role grow by 3 to 10 KiB a round (docs/reliability.md#load)."""
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The first call of every Ray client to the head."""


def connect(address: str | None) -> bool:
    """Connect this process to a cluster.

    Returns:
        Whether a connection was opened, which the caller must then close with `ray.shutdown`.

    Raises:
        UsageError: If no cluster answers at the address, it refuses this process's token, the connection is
            or would be a ``ray://`` one, or this process is connected to another cluster.
    """
    if ray.is_initialized():
        if ray_client.ray.is_connected():
            raise UsageError(f"this process is connected over ray://, which cannot be used: {_as_a_job()}")
        _refuse_another(address)
        return False
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address.startswith("ray://"):
        raise UsageError(f"{address!r} cannot be used: {_as_a_job(address)}")
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("MALLOC_ARENA_MAX", MALLOC_ARENAS)
        options["include_dashboard"] = False
        _make_token()
    elif address != "auto":
        expect_cluster(address)
    _warn_of_a_token_that_others_read()
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        mode, path = os.environ.get("RAY_AUTH_MODE", ""), token_file()
        raise UsageError(
            f"no Ray cluster can be used at {address!r} (RAY_AUTH_MODE is {mode!r}, its token in "
            f"{path or 'RAY_AUTH_TOKEN'}): {first_line(error)}"
        ) from None
    return True


def token_file() -> Path | None:
    """Where Ray reads this process's token from; None if it is in ``RAY_AUTH_TOKEN`` itself."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(path) if path else Path(os.path.expanduser("~")) / ".ray" / "auth_token"


def _as_a_job(address: str = "ray://HEAD") -> str:
    """Why a driver over ``ray://`` is refused, and how to run it instead."""
    host = address.removeprefix("ray://").rpartition(":")[0] or address.removeprefix("ray://") or "HEAD"
    return (
        "a driver holds its roles' lives in its own process on the cluster. Run it there, as a job: "
        f"ray job submit --address http://{host}:8265 --working-dir . -- python your_driver.py"
    )


def _refuse_another(address: str | None) -> None:
    if address in (None, "auto", "local"):
        return
    here = ray.get_runtime_context().gcs_address
    if not _same(address, here):
        raise UsageError(
            f"this process is connected to the cluster at {here!r}; "
            f"address={address!r} needs ray.shutdown() first"
        )


def _same(address: str, here: str) -> bool:
    """Whether two addresses are one; Ray calls a loopback address by the machine's own."""
    (host, _, port), (host_here, _, port_here) = address.rpartition(":"), here.rpartition(":")
    try:
        found = socket.gethostbyname(host)
    except OSError:
        return False
    loopback = found.startswith("127.") and host_here == ray.util.get_node_ip_address()
    return port == port_here and (loopback or found == socket.gethostbyname(host_here))


def expect_cluster(address: str) -> None:
    """Check that a gRPC server answers, whose first bytes are an HTTP/2 SETTINGS frame (TLS hides them)."""
    host, _, port = address.rpartition(":")
    if "://" in host or not host or not port.isdigit():
        raise UsageError(
            f"{address!r} is no address of a Ray cluster; accepted: HOST:PORT of its head "
            "(port 6379 by default), 'auto' for one that runs on this machine, 'local' for a new one"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as stream:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            stream.sendall(_HTTP2_PREFACE)
            greeting = stream.recv(9)
    except OSError as error:
        raise UsageError(
            f"no Ray cluster answers at {address!r}: {error}; start one there (ray start --head), or "
            "leave the address out: one is then started here"
        ) from None
    if len(greeting) < 9 or greeting[3] != 4:
        raise UsageError(f"what answers at {address!r} is no Ray cluster (is it the dashboard's port?)")
    _expect_admission(address)


def _expect_admission(address: str) -> None:
    """Check that the cluster accepts this process's token, or none."""
    if _is_admitted(address, ""):
        return
    mode, path = os.environ.get("RAY_AUTH_MODE", ""), token_file()
    where = "the variable RAY_AUTH_TOKEN" if path is None else f"the file {path}"
    remedy = f"Put the cluster's token into {where} (its head prints it with: ray get-auth-token)"
    asks = f"the cluster at {address!r} asks for a token"
    if mode != "token":
        raise UsageError(
            f"{asks}, and this process shows none, for RAY_AUTH_MODE is {mode!r}. {remedy}, and start this "
            "process with RAY_AUTH_MODE=token"
        )
    token = os.environ.get("RAY_AUTH_TOKEN", "") if path is None else _read(path)
    if not token:
        raise UsageError(f"{asks} (RAY_AUTH_MODE=token), and there is none in {where}. {remedy}")
    if not _is_admitted(address, token):
        raise UsageError(f"{asks} (RAY_AUTH_MODE=token), and refuses that in {where}. {remedy}")


def _is_admitted(address: str, token: str) -> bool:
    """Whether the cluster answers a process that shows this token; faults of other kinds are left to Ray."""
    import grpc

    shown = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(_QUESTION)(b"", timeout=ANSWER_SECONDS, metadata=shown)
        except grpc.RpcError as error:
            return bool(error.code() is not grpc.StatusCode.UNAUTHENTICATED)
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _make_token() -> None:
    """Write the token of a new cluster for this user alone; Ray would write one that every user can read."""
    path = token_file()
    if path is None or os.environ.get("RAY_AUTH_MODE", "token") != "token" or path.exists():
        return
    if os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return  # Ray refuses a path without a token; it is not ours to fill
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32))
    except OSError as error:
        logger.info("no token was written to %s: %s", path, error)


def _warn_of_a_token_that_others_read() -> None:
    path = token_file()
    if path is None or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if mode & 0o077:
        logger.warning(
            "other users of this machine can read Ray's token, and run code with it: chmod 600 %s", path
        )


def first_line(error: BaseException) -> str:
    """What an error says, without the pages that follow."""
    return str(error).strip().split("\n", 1)[0]
