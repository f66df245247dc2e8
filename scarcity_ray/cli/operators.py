"""``scarcity-ray operators``: who may watch or run a federation at its gateways."""

from __future__ import annotations

import json

import click

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.cli.ledger import printable
from scarcity_ray.gateway.operators import OperatorRole, Operators
from scarcity_ray.privacy.ledger.holder import in_utc


def add_command(name: str, role: str, path: str) -> ExitCode:
    """Add an operator, and print the token."""
    operators = Operators(path)
    token = operators.add(name, OperatorRole(role))
    click.echo(f"operator {name} may {role}; the token, which is shown this once:", err=True)
    click.echo(token)
    return ExitCode.DONE


def revoke_command(name: str, path: str) -> ExitCode:
    """Remove an operator."""
    Operators(path).revoke(name)
    click.echo(f"operator {printable(name)} is removed; gateways refuse the token from the next request on")
    return ExitCode.DONE


def list_command(path: str, form: str) -> ExitCode:
    """Print who there is, without tokens or their hashes."""
    for operator in Operators(path).all():
        told = {"name": operator.name, "role": operator.role.value, "added": operator.added}
        line = f"{printable(operator.name)}  {operator.role.value}  since {in_utc(operator.added)}"
        click.echo(json.dumps(told) if form == "json" else line)
    return ExitCode.DONE
