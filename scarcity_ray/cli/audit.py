"""``scarcity-ray audit``: what a receipt shows, away from the cluster (docs/receipts.md)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import click

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.errors import UsageError
from scarcity_ray.secagg import Roster
from scarcity_ray_client.errors import shown
from scarcity_ray_client.receipts import ReceiptProof, ReleaseRecord, SignedReceipt, audit_receipt


def receipt_command(
    path: str, releases: Sequence[str], proof: str | None, rosters: Sequence[str], form: str
) -> ExitCode:
    """Say whether the update of a receipt was counted, once, or why not.

    Args:
        path: Of the receipt.
        releases: Files with the records of releases, one a line.
        proof: The file of what the baskets say.
        rosters: Files of rosters, whose keys alone are believed; without any, those given are.
    """
    receipt = SignedReceipt.from_text(_text(path))
    records = [
        ReleaseRecord.from_text(line)
        for name in releases
        for line in _text(name).splitlines()
        if line.strip()
    ]
    told = None if proof is None else ReceiptProof.from_text(_text(proof))
    keys: dict[str, frozenset[bytes]] | None = None
    if rosters:
        known = defaultdict[str, set[bytes]](set)
        for name in rosters:
            roster = Roster.from_json(_text(name))
            if roster.federation_id != receipt.statement.federation_id:
                raise UsageError(f"--roster: {name} is another federation's; name this federation's")
            for party in roster.parties:
                known[party.party_id].add(party.identity_public)
        keys = {basket_id: frozenset(found) for basket_id, found in known.items()}
    verdict = audit_receipt(receipt, records, told, keys)
    if form == "json":
        said = {
            "counted_once": verdict.is_counted_once,
            "verdict": verdict.words,
            "releases": list(verdict.releases),
            "faults": list(verdict.faults),
            "keys_checked": keys is not None,
        }
        click.echo(json.dumps(said))
    else:
        statement = receipt.statement
        click.echo(
            f"client {shown(statement.client_id)}, round {statement.round_id}, accepted by basket "
            f"{shown(statement.basket_id)} of federation {shown(statement.federation_id)}"
        )
        click.echo(verdict.words)
        for fault in verdict.faults:
            click.echo(f"fault: {fault}")
        if keys is None:
            click.echo("The baskets' keys are believed as given; --roster checks them.")
    return ExitCode.DONE if verdict.is_counted_once else ExitCode.FAILED


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
