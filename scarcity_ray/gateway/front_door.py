"""The gateways and the register of a served federation, started and kept alive beside its rounds."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.config.gateway import GatewayConfig
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.federation.served_round import Heard, OpenRound, Site
from scarcity_ray.gateway.driver_thread import SharedDriver
from scarcity_ray.gateway.gateway import Gateway
from scarcity_ray.gateway.intake import site_of
from scarcity_ray.gateway.register import REGISTER, Register
from scarcity_ray.gateway.register_client import RegisterClient
from scarcity_ray.gateway.site_desk import ServedTerms
from scarcity_ray.runtime.base import RoleSpec


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


class LocalDoor:
    """One gateway in this process, for the local runtime; its calls are done while a round waits.

    Args:
        federation: On the local runtime.
        folder: Of the register and of unfinished uploads.
        terms: What the federation asks of sites.
        note: Told of each judged update.
        add: Adds more paths.
    """

    def __init__(
        self,
        federation: HierarchicalFederation,
        config: GatewayConfig,
        folder: Path,
        terms: ServedTerms,
        note: Callable[[str, int, str | None], None] | None = None,
        add: Callable[[Any, LocalDoor], None] | None = None,
    ) -> None:
        driver, runtime = federation._open(), federation._runtime
        spec = register_spec(config, folder, driver.supervisor.identity.federation_id, None)
        self.register = RegisterClient(runtime, spec)
        self.shared = SharedDriver()
        self._config = config
        self.register.start()
        self.gateway = Gateway(
            config,
            terms,
            driver,
            self.register,
            folder / "uploads",
            self.shared,
            note=note,
            add=None if add is None else lambda app: add(app, self),
        )
        self.url = url_of(config, self.gateway.start())

    def sites(self) -> Sequence[Site]:
        """All sites that are enrolled and not revoked."""
        return [site_of(one) for one in self.register.call(Register.enrolled) if one.revoked is None]

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
        self.shared.wait(seconds)

    def close(self) -> None:
        """End the gateway; what it waits for is refused."""
        self.shared.close()
        self.gateway.stop()
