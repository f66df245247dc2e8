"""A gateway's connections, each with a deadline for its next request's headers: aiohttp's server has none.

`asyncio` itself ends a TLS handshake that takes too long (``ssl_handshake_timeout``), and who reads a body
gives it up (`web_app`). What is left is a connection that sends nothing, or headers byte by byte; and sockets
that are opened and say nothing, by the thousand, which `accept` counts from before their handshake.

Who shows a certificate is counted by it, who shows none by its address, so that neither takes all there are.
Behind a proxy that ends TLS all come from one address, and it is the proxy's to count them.

Guarantees:
    headers_that_do_not_come_in_time_end_the_connection
    connections_beyond_the_cap_are_closed
    no_peer_takes_all_connections
    sockets_before_their_handshake_are_capped: Of all, and of one address.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import cast

from scarcity_ray.gateway.certificates import fingerprint_of

logger = logging.getLogger("scarcity_ray")

BARE_SHARE = 0.25
"""Of all connections, what those without a certificate may be, who enrol or operate."""


HANDSHAKE_SHARE = 0.5
"""Of all connections, what may be before its handshake; half of these of one address: it may be a proxy's."""
ACCEPT_AGAIN_SECONDS = 0.2
"""After which a socket is accepted again once the process had no file handle left."""


class Connection(asyncio.Protocol):
    """Hands everything on to aiohttp's protocol, and ends the connection if its headers take too long.

    Attributes:
        fingerprint: SHA-256 of the peer's certificate, hexadecimal; None: it has shown none.
    """

    def __init__(self, inner: asyncio.Protocol, table: Connections) -> None:
        self._inner, self._table = inner, table
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_asking = False
        self.fingerprint: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A connection whose handshake is done."""
        self._transport = cast(asyncio.Transport, transport)
        found = transport.get_extra_info("ssl_object")
        shown = found.getpeercert(binary_form=True) if isinstance(found, ssl.SSLObject) else None
        self.fingerprint = None if shown is None else fingerprint_of(shown)
        if not self._table.add(self._transport, self):
            self._transport.abort()
            return
        self._inner.connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Something of a request: the clock of its headers runs from its first byte."""
        if not self._is_asking and self._timer is None:
            self._wait_for_headers()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """The peer sends no more."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_timer()
        if self._transport is not None and self._table.remove(self._transport):
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """The peer reads too slowly."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The peer has read."""
        self._inner.resume_writing()

    def begun(self) -> None:
        """A request's headers are there."""
        self._is_asking = True
        self._stop_timer()

    def ended(self) -> None:
        """The request is answered: what comes next is another one."""
        self._is_asking = False

    def _wait_for_headers(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._table.header_seconds, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        self._table.num_given_up += 1
        if self._transport is not None:
            self._transport.abort()


class Connections:
    """All connections of one gateway.

    Args:
        most: Of all.
        most_of_one: Of one certificate, and of one address without any; None: not counted.

    Attributes:
        num_given_up: Connections whose headers did not come in time.
        num_turned_away: Sockets that were closed before their handshake, as there were too many such.
    """

    def __init__(self, header_seconds: float, most: int, most_of_one: int | None) -> None:
        self.header_seconds, self._most, self._most_of_one = header_seconds, most, most_of_one
        self.num_given_up = self.num_turned_away = 0
        self._shaking: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: dict[asyncio.BaseTransport, tuple[Connection, str]] = {}
        self._of: Counter[str] = Counter()
        self._num_bare = 0

    def __len__(self) -> int:
        return len(self._open)

    def factory(self, make: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """Makes the protocol of a new connection around one that `make` makes."""
        return lambda: Connection(make(), self)

    async def accept(
        self,
        listening: socket.socket,
        make: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        handshake_seconds: float,
    ) -> None:
        """Take connections until cancelled; `make` makes what is behind each."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                taken, peer = await loop.sock_accept(listening)
            except OSError as error:
                logger.warning("gateway: no connection can be accepted: %s", error.strerror)
                await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            address, most = str(peer[0]), int(self._most * HANDSHAKE_SHARE)
            if self._shaking.total() >= most or self._shaking[address] >= max(1, most // 2):
                self.num_turned_away += 1
                taken.close()
                continue
            self._shaking[address] += 1
            task = loop.create_task(self._shake(taken, address, make, tls, handshake_seconds))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _shake(
        self,
        taken: socket.socket,
        address: str,
        make: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        handshake_seconds: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            taken.setblocking(False)
            await loop.connect_accepted_socket(
                self.factory(make),
                taken,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else handshake_seconds,
            )
        except (OSError, asyncio.CancelledError):  # the peer's: no TLS, a foreign certificate, silence
            taken.close()
        finally:
            self._shaking[address] -= 1
            if not self._shaking[address]:
                del self._shaking[address]

    def of(self, transport: asyncio.BaseTransport | None) -> Connection | None:
        """The connection with a transport."""
        found = None if transport is None else self._open.get(transport)
        return None if found is None else found[0]

    def add(self, transport: asyncio.BaseTransport, connection: Connection) -> bool:
        """Count a connection; whether there was room."""
        is_bare = connection.fingerprint is None
        peer = connection.fingerprint or str((transport.get_extra_info("peername") or ("",))[0])
        if len(self._open) >= self._most:
            return False
        if self._most_of_one is not None and (
            self._of[peer] >= self._most_of_one or (is_bare and self._num_bare >= self._most * BARE_SHARE)
        ):
            return False
        self._open[transport] = connection, peer
        self._of[peer] += 1
        self._num_bare += is_bare
        return True

    def remove(self, transport: asyncio.BaseTransport) -> bool:
        """Forget a connection; whether it was there."""
        found = self._open.pop(transport, None)
        if found is None:
            return False
        connection, peer = found
        self._num_bare -= connection.fingerprint is None
        self._of[peer] -= 1
        if not self._of[peer]:
            del self._of[peer]
        return True
