"""``scarcity-ray roster``: makes the operator's key and signs rosters, away from the cluster."""

from __future__ import annotations

from pathlib import Path

import click

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.errors import UsageError
from scarcity_ray.secagg import IdentityKeyPair, Roster


def key_command(path: str, password: str) -> ExitCode:
    """Make the operator's identity, encrypted with a password of 16 bytes or more; print its public half."""
    operator = IdentityKeyPair.generate()
    operator.save(path, password.encode())
    click.echo(operator.public_bytes.hex())
    return ExitCode.DONE


def sign_command(path: str, key: str, out: str | None, password: str) -> ExitCode:
    """Sign a roster, and show who is on it, since that is what the signature says.

    Args:
        path: Of the roster, as `Roster.to_json` wrote it.
        key: The file of the operator's identity.
        out: Where the signed roster goes; standard output if None.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the roster {path}: {error}") from None
    roster = Roster.from_json(text)
    signed = roster.signed(IdentityKeyPair.load(key, password.encode())).to_json()
    click.echo(f"epoch {roster.epoch} of {roster.federation_id!r}, {len(roster.parties)} baskets:", err=True)
    for party in roster.parties:
        click.echo(f"  {party.party_id}  {party.identity_public.hex()}", err=True)
    if out is None:
        click.echo(signed)
        return ExitCode.DONE
    try:
        with open(out, "x") as file:
            file.write(signed + "\n")
    except OSError as error:
        raise UsageError(f"cannot make {out}: {error.strerror}") from None
    return ExitCode.DONE
