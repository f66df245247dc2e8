"""The gateways and the register of a served federation, started and kept alive beside its rounds."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.config.gateway import GatewayConfig
from scarcity_ray.errors import ActorLost
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.federation.served_round import Heard, OpenRound, Site
from scarcity_ray.gateway.console import add_console
from scarcity_ray.gateway.driver_thread import OnDriver, OwnDriver, SharedDriver
from scarcity_ray.gateway.gateway import Gateway
from scarcity_ray.gateway.intake import site_of
from scarcity_ray.gateway.operator_source import OperatorSource
from scarcity_ray.gateway.operators import Operators
from scarcity_ray.gateway.register import REGISTER, Register
from scarcity_ray.gateway.register_client import RegisterClient
from scarcity_ray.gateway.site_desk import ServedTerms
from scarcity_ray.runtime import LocalRuntime
from scarcity_ray.runtime.base import RoleSpec
from scarcity_ray.runtime.rpc import Call, Role, RoleName, query

logger = logging.getLogger("scarcity_ray")

LOOK_SECONDS = 2.0
"""Between two looks whether gateways live."""


def register_folder(config: HierarchicalFederationConfig, state: Path) -> Path:
    """Where the gateways' register lies: beside the federation's state, or the run's if that is a bucket.

    Args:
        state: The run's own folder of state.
    """
    storage = config.storage_path
    place = state if storage is None or "://" in storage else Path(storage).expanduser().absolute()
    return place / "gateway"


def register_spec(config: GatewayConfig, folder: Path, federation_id: str, node: str | None) -> RoleSpec:
    """The register's role."""
    arguments = {
        "folder": str(folder),
        "federation_id": federation_id,
        "nonce_seconds": config.nonce_seconds,
        "overlap_seconds": config.rotation_overlap_seconds,
        "keys": None if config.tls == "off" else os.path.abspath(os.path.expanduser(config.keys)),
        "is_mutual": config.tls == "mutual",
    }
    return RoleSpec(REGISTER, Register, arguments, node=node)


def url_of(config: GatewayConfig, port: int) -> str:
    """Under which sites reach the gateways."""
    if config.url is not None:
        return config.url
    scheme = "http" if config.tls == "off" else "https"
    host = socket.getfqdn() if config.host in ("0.0.0.0", "::") else config.host
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


class FrontDoor:
    """What a served federation's rounds see of its gateways.

    Args:
        register: The gateways'.
        gateways: Those that listen.
    """

    def __init__(self, register: RegisterClient, gateways: Gateways) -> None:
        self.register, self._gateways = register, gateways
        self.url = gateways.url

    def sites(self) -> Sequence[Site]:
        """All sites that are enrolled and not revoked."""
        return [site_of(one) for one in self.register.call(Register.enrolled) if one.revoked is None]

    def revoked(self) -> Sequence[str]:
        """Clients that were revoked, by id."""
        enrolled = self.register.call(Register.enrolled)
        return [one.client_id for one in enrolled if one.revoked is not None]

    def invited(self) -> Sequence[str]:
        """Sites that may enrol and have not."""
        return self.register.call(Register.invited)

    def publish(self, opened: OpenRound, model: NDArray[np.float32] | None) -> None:
        """Tell sites of a round; the model stays if None is given."""
        self.register.call(Register.publish, opened, model)

    def heard(self, round_id: int) -> Heard:
        """What came of a round so far."""
        return self.register.call(Register.heard, round_id)

    def keep_only(self, round_id: int, accepted: Sequence[str]) -> None:
        """Have sites send again whose updates of a round are in no basket any more."""
        self.register.call(Register.keep_only, round_id, tuple(accepted))

    def wait(self, seconds: float) -> None:
        """Let sites send for so long."""
        self._gateways.wait(seconds)

    def close(self) -> None:
        """End the gateways."""
        self._gateways.close()


class Gateways(Protocol):
    """The gateways of one federation.

    Attributes:
        url: Under which sites reach them.
    """

    url: str

    def wait(self, seconds: float) -> None:
        """Let them work for so long, and see that they live."""

    def close(self) -> None:
        """End them."""


class LocalGateways:
    """One gateway in this process; its calls to the driver are done while a round waits."""

    def __init__(
        self, serving: Serving, federation: HierarchicalFederation, register: RegisterClient
    ) -> None:
        self._shared = SharedDriver()
        self._gateway = serving.gateway(federation, register, self._shared, put=None)
        self.url = url_of(serving.config, self._gateway.start())

    def wait(self, seconds: float) -> None:
        """Do what the gateway asks of the driver, for so long."""
        self._shared.wait(seconds)

    def close(self) -> None:
        """End the gateway; what it waits for is refused."""
        self._shared.close()
        self._gateway.stop()


class RayGateways:
    """A gateway as an actor on each node, with a driver of its own; one that died is started again."""

    def __init__(self, serving: Serving, federation: HierarchicalFederation, register: RoleSpec) -> None:
        self._runtime = federation._runtime
        address = None  # an actor's process is connected to its cluster
        name = federation._open().supervisor.identity.name
        specs, self.url = [], ""
        for number, node in enumerate(self._runtime.nodes()):
            arguments = {"serving": serving, "federation": name, "address": address, "register": register}
            spec = RoleSpec(gateway_actor(number), GatewayRole, arguments, node=node)
            self._runtime.start([spec])
            port = Call(GatewayRole.port).send(self._runtime.peers, gateway_actor(number)).result()
            self.url = self.url or url_of(serving.config, port)
            # One that is started again listens where it did.
            again = replace(serving, config=replace(serving.config, port=port))
            specs.append(replace(spec, arguments={**arguments, "serving": again}))
        self._specs, self._seen = specs, time.monotonic()

    def wait(self, seconds: float) -> None:
        """Wait; gateways that died are started again."""
        time.sleep(seconds)
        now = time.monotonic()
        if now - self._seen < LOOK_SECONDS:
            return
        self._seen = now
        for spec in self._specs:
            if not self._runtime.is_alive(spec.name):
                logger.warning("%s died and is started again; uploads in parts go on there", spec.name)
                try:
                    self._runtime.start([spec])
                except ActorLost as lost:
                    logger.warning("%s: %s", spec.name, lost)

    def close(self) -> None:
        """End the gateways, once they have answered what is under way."""
        for spec in self._specs:
            with suppress(ActorLost):
                Call(GatewayRole.stop).send(self._runtime.peers, RoleName(spec.name)).result()
            self._runtime.kill(spec.name)


class GatewayRole(Role):
    """A gateway as an actor.

    Args:
        serving: How to serve.
        federation: Its name; the gateway joins it as a driver.
        address: Of the cluster, if this process is not connected to it.
        register: The register's role, to start it if it is dead.
    """

    def __init__(self, serving: Serving, federation: str, address: str | None, register: RoleSpec) -> None:
        super().__init__()
        self._federation = HierarchicalFederation.attach(federation, address=address)
        runtime = self._federation._runtime
        client = RegisterClient(runtime, register)
        self._gateway = serving.gateway(self._federation, client, OwnDriver(), runtime.compute.put)
        self._port = self._gateway.start()

    @query
    def port(self) -> int:
        """Where it listens."""
        return self._port

    def stop(self) -> None:
        """Take no more, and answer what is under way for a moment."""
        self._gateway.stop()


def gateway_actor(number: int) -> RoleName[GatewayRole]:
    """The name of a gateway's actor."""
    return RoleName(f"gateway:{number}")


@dataclass(frozen=True)
class Serving:
    """How a federation is served; the same for each gateway.

    Attributes:
        folder: Of the register and of unfinished uploads, absolute.
        terms: What the federation asks of sites.
    """

    config: GatewayConfig
    folder: Path
    terms: ServedTerms

    def gateway(
        self,
        federation: HierarchicalFederation,
        register: RegisterClient,
        on_driver: OnDriver,
        put: Callable[[object], Any] | None,
    ) -> Gateway:
        """A gateway that does not listen yet."""
        made = Gateway(
            self.config, self.terms, federation._open(), register, self.folder / "uploads", on_driver, put
        )
        if self.config.operators is not None:
            add_console(
                made.web.app,
                OperatorSource(federation, register, on_driver, made.web.counts),
                Operators(self.config.operators),
                secure=self.config.tls != "off",
                session_key=register.call(Register.session_key),
            )
        return made

    def open(self, federation: HierarchicalFederation) -> FrontDoor:
        """Start the register and the gateways, unless they run."""
        runtime = federation._runtime
        federation_id = federation._open().supervisor.identity.federation_id
        spec = register_spec(self.config, self.folder, federation_id, runtime.home)
        register = RegisterClient(runtime, spec)
        register.start()
        if self.config.operators is None:  # nobody could let it go on
            register.call(Register.pause, False)
        if isinstance(runtime, LocalRuntime):
            return FrontDoor(register, LocalGateways(self, federation, register))
        return FrontDoor(register, RayGateways(self, federation, spec))
