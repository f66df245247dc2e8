"""One gateway: the sites' paths on a port, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from scarcity_ray.config.gateway import GatewayConfig
from scarcity_ray.errors import UsageError
from scarcity_ray.federation.driver import Driver
from scarcity_ray.gateway.certificates import Certificates
from scarcity_ray.gateway.driver_thread import OnDriver
from scarcity_ray.gateway.intake import Intake
from scarcity_ray.gateway.register import Register
from scarcity_ray.gateway.register_client import RegisterClient
from scarcity_ray.gateway.site_desk import ServedTerms, SiteDesk
from scarcity_ray.gateway.uploads import Uploads
from scarcity_ray.gateway.web_app import Terse, WebApp
from scarcity_ray_client.identity import IdentityKeyPair

logger = logging.getLogger("scarcity_ray")

BACKLOG = 1024
LINGER_SECONDS = 5.0
"""For which an early answer waits until its request's body was sent."""
KEEP_ALIVE_SECONDS = 75.0
"""For which a connection is kept between two requests."""
GRACE_SECONDS = 2.0
"""In which requests under way are answered when a gateway stops."""
START_SECONDS = 30.0


class Gateway:
    """A gateway of a federation.

    Args:
        config: The section ``gateway:``.
        terms: What the federation asks of sites.
        driver: Of the federation.
        register: The gateways'.
        folder: Of its unfinished uploads.
        on_driver: Where the driver may be called.
        put: Stores a value in the runtime's object store; None: it has none.

    Raises:
        UsageError: If its certificate cannot be used.
        StorageError: If the folder cannot be used.
    """

    def __init__(
        self,
        config: GatewayConfig,
        terms: ServedTerms,
        driver: Driver,
        register: RegisterClient,
        folder: Path,
        on_driver: OnDriver,
        put: Callable[[object], Any] | None = None,
    ) -> None:
        self._config = config
        self._tls: ssl.SSLContext | None = None
        if config.tls != "off":
            self._tls = Certificates(config.keys).server_context(config.tls == "mutual")
        uploads = Uploads(folder, config.upload_disk_bytes, config.upload_seconds)
        intake = Intake(driver, register, put)
        signer = IdentityKeyPair.of_seed(register.call(Register.answer_seed))
        desk = SiteDesk(driver, register)
        self.web = WebApp(config, terms, register, intake, desk, uploads, on_driver, signer)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._started = threading.Event()
        self._failure: OSError | None = None
        self._end = asyncio.Event()
        self.port = 0

    def start(self) -> int:
        """Listen; the port.

        Raises:
            UsageError: If the address cannot be had.
        """
        self._thread.start()
        self._started.wait(START_SECONDS)
        if self._failure is not None:
            host, port = self._config.host, self._config.port
            raise UsageError(
                f"gateway.port: cannot listen on {host} port {port}: {self._failure.strerror}; end what "
                "listens there, or give another: --set gateway.port=N"
            )
        return self.port

    def stop(self) -> None:
        """Take no more, answer what is under way for a moment, and end."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(GRACE_SECONDS + 5.0)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._started.set()
            self._loop.close()

    async def _serve(self) -> None:
        config = self._config
        runner = web.AppRunner(
            self.web.app,
            access_log=None,
            handle_signals=False,
            lingering_time=LINGER_SECONDS,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            auto_decompress=False,  # a body is the bytes that were signed
            handler_cancellation=True,
        )
        await runner.setup()
        try:
            listening = _listening(config.host, config.port)
        except OSError as error:
            self._failure = error
            await runner.cleanup()
            return
        self.port = listening.getsockname()[1]
        made = runner.server
        if made is None:
            raise UsageError("aiohttp's runner made no server")
        listening.listen(BACKLOG)
        accepting = asyncio.create_task(
            self.web.connections.accept(
                listening,
                lambda: Terse(made, loop=self._loop, **made._kwargs),
                self._tls,
                config.handshake_seconds,
            )
        )
        watching = asyncio.create_task(self.web.watch())
        self._started.set()
        await self._end.wait()
        self.web.is_stopping = True
        watching.cancel()
        accepting.cancel()
        with suppress(asyncio.CancelledError):
            await accepting
        listening.close()
        await runner.shutdown()
        for _ in range(int(GRACE_SECONDS / 0.05)):
            if not self.web.pressure.open:
                break
            await asyncio.sleep(0.05)
        await runner.cleanup()
        self.web.close()


def _listening(host: str, port: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setblocking(False)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made
