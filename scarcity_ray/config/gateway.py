"""The section ``gateway:`` of a job that is served to sites outside the cluster (docs/gateway.md)."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, StrictInt, StrictStr

from scarcity_ray.config.fields import NonNegativeInt, PositiveFloat, PositiveInt
from scarcity_ray.config.validation import settings
from scarcity_ray.errors import ConfigError

NumBytes = Annotated[StrictInt, Field(gt=0, lt=2**53)]


@settings
class GatewayConfig:
    """Where sites reach the federation, and what a gateway takes from them."""

    host: StrictStr = "0.0.0.0"
    """The address that each gateway listens on."""
    port: Annotated[NonNegativeInt, Field(le=65535)] = 8443
    """0: one that is free."""
    url: StrictStr | None = None
    """Under which sites reach it, for a kit and what is printed; None: made of this machine's name."""
    tls: Literal["mutual", "server", "off"] = "mutual"
    """``server`` only where a proxy ends TLS and asks for certificates; ``off`` on a loopback address."""
    keys: StrictStr = "keys"
    """The folder of certificates (``scarcity-ray keys init``)."""
    operators: StrictStr | None = None
    """The file of operators (``scarcity-ray operators add``), who may use the console; None: no console."""
    round_seconds: PositiveFloat | None = None
    """After which a round closes with the rows that a release needs; None: all sites that are up are waited
    for."""
    up_seconds: PositiveFloat = 180.0
    """A site that was not heard of for so long is not waited for."""
    max_update_bytes: NumBytes | None = None
    """Of an upload's body; None: what a row of the model needs, and 1 MiB for its header."""
    bytes_in_flight: NumBytes = 512 * 2**20
    """Of all bodies that a gateway holds in memory."""
    upload_disk_bytes: NumBytes = 8 * 2**30
    """Of all unfinished uploads on a gateway's disk."""
    upload_seconds: PositiveFloat = 3600.0
    """After which an unfinished upload that does not grow is dropped."""
    max_connections: PositiveInt = 2000
    """Of all sites together; one more is closed."""
    open_requests: PositiveInt = 1000
    """That a gateway answers at once, long polls included."""
    open_requests_per_client: PositiveInt = 8
    """Of `open_requests`, those of one client at most."""
    requests_per_second: PositiveFloat = 50.0
    """Of one client, on average."""
    request_burst: PositiveInt = 200
    """Requests of one client at once, above its average."""
    handshake_seconds: PositiveFloat = 10.0
    """In which TLS's handshake must be done."""
    header_seconds: PositiveFloat = 10.0
    """In which a request's headers must have come."""
    body_seconds: PositiveFloat = 30.0
    """In which a body must go on, and beyond its size over `least_bytes_per_second` be there."""
    least_bytes_per_second: PositiveFloat = 16 * 1024
    """A body that is slower than this is given up."""
    poll_seconds: PositiveFloat = 60.0
    """Of a long poll, at most."""
    nonce_seconds: PositiveFloat = 600.0
    """For which a request's nonce is remembered."""
    rotation_overlap_seconds: PositiveFloat = 86_400.0
    """For which a certificate still holds once its successor is issued."""

    def absolute(self) -> GatewayConfig:
        """With places that mean the same in each process and folder."""
        operators = self.operators
        return replace(
            self,
            keys=os.path.abspath(os.path.expanduser(self.keys)),
            operators=operators and os.path.abspath(os.path.expanduser(operators)),
        )

    def __post_init__(self) -> None:
        if self.tls == "off" and not is_loopback(self.host):
            raise ConfigError(
                "tls", "off", f"mutual, or host: 127.0.0.1, as others reach {self.host} without TLS"
            )
        if self.nonce_seconds < 600.0:
            raise ConfigError(
                "nonce_seconds", self.nonce_seconds, "at least 600, twice what a clock may be off"
            )


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address.

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0"), is_loopback("localhost")
    (True, False, True)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
