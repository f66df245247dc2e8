"""Finding a Ray cluster: the address given, else the connection there is, else ``RAY_ADDRESS``, else a new.

Never a stale cluster file: without any address a cluster is started, not guessed. An address where no cluster
answers is a `UsageError` within seconds; Ray itself waits for minutes, and may end the process then.
"""

from __future__ import annotations

import os
import socket
from contextlib import closing
from typing import Any

import ray

from scarcity_ray.errors import UsageError
from scarcity_ray.runtime.ray_handles import first_line

ANSWER_SECONDS = 5.0
"""Within this time a cluster's port must accept a connection and greet."""
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def connect(address: str | None) -> bool:
    """Connect this process to a cluster; whether that was needed, so that `ray.shutdown` is ours to call.

    Raises:
        UsageError: If no cluster answers at the address, or this process is connected to another one.
    """
    if ray.is_initialized():
        _refuse_another(address)
        return False
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options["include_dashboard"] = False
    elif address != "auto":
        _expect_greeting(address)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"no Ray cluster can be used at {address!r}: {first_line(error)}") from None
    return True


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


def _expect_greeting(address: str) -> None:
    """Check that a gRPC server is at the address: its first bytes are an HTTP/2 SETTINGS frame."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if "://" in host or not host or not port.isdigit():
        raise UsageError(
            f"{address!r} is no address of a Ray cluster; accepted: HOST:PORT of its head "
            "(port 6379 by default), 'auto' for one that runs on this machine, 'local' for a new one"
        )
    try:
        with closing(socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS)) as stream:
            stream.settimeout(ANSWER_SECONDS)
            stream.sendall(_HTTP2_PREFACE)
            greeting = stream.recv(9)
    except OSError as error:
        raise UsageError(f"no Ray cluster answers at {address!r}: {error}") from None
    if len(greeting) < 9 or greeting[3] != 4:
        raise UsageError(f"what answers at {address!r} is no Ray cluster (is it the dashboard's port?)")
