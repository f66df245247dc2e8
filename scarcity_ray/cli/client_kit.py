"""``scarcity-ray client-kit``: invites sites to a served federation, lists them, and revokes them.

It writes into the gateways' register beside them: what it does counts at each site's next request.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.cli.run import config_of
from scarcity_ray.config import HierarchicalFederationConfig, load
from scarcity_ray.config.gateway import GatewayConfig
from scarcity_ray.errors import UsageError
from scarcity_ray.gateway.certificates import Certificates
from scarcity_ray.gateway.enrolments import Enrolments
from scarcity_ray.gateway.front_door import register_folder, url_of
from scarcity_ray.workloads.config import read_content
from scarcity_ray_client.errors import shown
from scarcity_ray_client.identity import IdentityKeyPair
from scarcity_ray_client.site_home import Kit


@dataclass(frozen=True)
class Front:
    """Where a served federation's gateways and their register are.

    Attributes:
        register: The register's folder.
    """

    config: GatewayConfig
    register: Path

    @classmethod
    def of(cls, place: str) -> Front:
        """Of a job's file, or of the folder of the run that serves it.

        Raises:
            UsageError: If it is neither, or the register's folder does not follow from it.
        """
        folder = Path(place).expanduser().absolute()
        content = read_content(config_of(folder) if folder.is_dir() else folder)
        if "gateway" not in content:
            raise UsageError(f"{place}: it has no section gateway, so that nothing is served")
        config = load(GatewayConfig, content["gateway"] or {}, "gateway")
        federation = content.get("federation") or {}
        settings = {"vector_dim": 1, "auto_aggregate": False, **federation}
        kept = load(HierarchicalFederationConfig, settings, "federation")
        storage = kept.storage_path
        if not folder.is_dir() and (storage is None or "://" in storage):
            raise UsageError(
                f"{place}: give the folder of the run that serves it (begin scarcity-ray serve first), as "
                "the register lies there without federation.storage_path"
            )
        return cls(config, register_folder(kept, folder / "state"))

    @contextmanager
    def sites(self) -> Iterator[Enrolments]:
        """The register's enrolments."""
        with Enrolments.opened(self.register) as opened:
            yield opened


def make_command(
    place: str,
    client_id: str,
    domain_id: str,
    features: tuple[float, ...],
    days: float,
    out: str | None,
    authority: str | None,
    again: bool,
) -> ExitCode:
    """Write one site's kit, with a token that enrols it once.

    Args:
        features: By which its domain's clients are grouped; empty: none.
        days: For which the token can be used.
        out: The zip file; None: named after the client, in the working folder.
        authority: PEM file of whoever signs the certificate that sites see; None: the federation's own.
        again: Whether a client that is enrolled, or was revoked, may enrol anew.
    """
    front = Front.of(place)
    config = front.config
    if config.url is None and config.port == 0:
        raise UsageError("gateway.port: 0 is another one at each start; set gateway.url, which kits state")
    try:
        trusted = Path(authority).read_text() if authority else Certificates(config.keys).server_authority()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--authority {authority}: {error}") from None
    target = Path(out) if out else Path(f"{_file_name(client_id)}.zip")
    if target.exists():
        raise UsageError(f"{target} exists; name another file (--out)")
    with front.sites() as sites:
        token = sites.invite(client_id, domain_id, features or None, days * 86400.0, again)
        federation_id = sites.federation_id
        answers = IdentityKeyPair.of_seed(sites.answer_seed()).public_bytes.hex()
    url = url_of(config, config.port)
    Kit(url, federation_id, client_id, domain_id, trusted, token, answers).write(target)
    click.echo(f"{target}: client {client_id!r} of domain {domain_id!r} may enrol at {url} for {days:g} days")
    click.echo("It holds a token: send it as you would send a password. At the site:")
    click.echo(f"  scarcity-ray-client run {target.name} WORKLOAD.yaml")
    return ExitCode.DONE


def list_command(place: str, form: str) -> ExitCode:
    """Print who is enrolled, invited or revoked."""
    with Front.of(place).sites() as sites:
        enrolled, invited = sites.enrolled(), sites.invited()
    now = time.time()
    for one in enrolled:
        days = (one.certificate_expires - now) / 86400.0
        state = "enrolled" if one.revoked is None else "revoked"
        if form == "json":
            told = {"client_id": one.client_id, "domain_id": one.domain_id, "state": state}
            click.echo(json.dumps({**told, "certificate_days_left": round(days, 1)}))
        else:
            ends = f", certificate {days:.0f} days" if one.revoked is None else ""
            click.echo(f"{one.client_id}  {one.domain_id}  {state}{ends}")
    for other in invited:
        days = (other.expires - now) / 86400.0
        if form == "json":
            told = {"client_id": other.client_id, "domain_id": other.domain_id, "state": "invited"}
            click.echo(json.dumps({**told, "token_days_left": round(days, 1)}))
        else:
            click.echo(f"{other.client_id}  {other.domain_id}  invited, token {days:.0f} days")
    return ExitCode.DONE


def revoke_command(place: str, client_id: str) -> ExitCode:
    """Refuse a site from its next request on."""
    with Front.of(place).sites() as sites:
        if not sites.revoke(client_id):
            raise UsageError(
                f"client {shown(client_id)} is neither enrolled nor invited, or was revoked before"
            )
    click.echo(f"client {client_id!r} is refused from its next request on; what it sent before stays")
    return ExitCode.DONE


def _file_name(client_id: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in client_id)
