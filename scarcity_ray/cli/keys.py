"""``scarcity-ray keys``: makes, shows and renews what the gateways speak TLS with."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import click

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.gateway.certificates import CLIENT_CA, SERVER, SERVER_CA, Certificates

WARNED_DAYS = 30


def init_command(folder: str, hosts: tuple[str, ...]) -> ExitCode:
    """Make both authorities and the gateways' certificate in a new folder."""
    made = Certificates.make(folder, hosts)
    click.echo(f"{made.folder}: two authorities, and a certificate for {', '.join(made.facts(SERVER).hosts)}")
    click.echo("Keep server_ca.key elsewhere once sites are enrolled: only `keys renew` needs it.")
    return ExitCode.DONE


def show_command(folder: str, form: str) -> ExitCode:
    """Print each certificate's hosts, end and fingerprint; an error if one has expired."""
    held, now = Certificates(folder), time.time()
    worst = ExitCode.DONE
    for name in (SERVER_CA, CLIENT_CA, SERVER):
        facts = held.facts(name)
        days = (facts.expires - now) / 86400.0
        if days <= 0.0:
            worst = ExitCode.FAILED
        if form == "json":
            click.echo(json.dumps({**asdict(facts), "days_left": round(days, 1)}))
            continue
        state = "EXPIRED" if days <= 0.0 else f"{days:.0f} days left"
        soon = (
            f" - renew it: scarcity-ray keys renew {folder}" if name == SERVER and days < WARNED_DAYS else ""
        )
        hosts = f" for {', '.join(facts.hosts)}" if facts.hosts else ""
        click.echo(f"{name:10}  {state}{hosts}{soon}\n{'':10}  sha256 {facts.fingerprint}")
    return worst


def renew_command(folder: str, hosts: tuple[str, ...]) -> ExitCode:
    """Put a new key and certificate in place of the gateways'."""
    held = Certificates(folder)
    held.renew_server(hosts)
    click.echo(f"{held.folder}: a new certificate for {', '.join(held.facts(SERVER).hosts)}")
    click.echo("Gateways take it when they start: end scarcity-ray serve, and go on with --resume.")
    return ExitCode.DONE
