"""``scarcity-ray audit``: what receipts and retained rows show, away from the cluster (docs/receipts.md)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from scarcity_ray.baskets.retained import CODEC, RetainedAggregate, replay, rows_folder
from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.errors import UsageError
from scarcity_ray.secagg import Roster
from scarcity_ray.storage.snapshots import Snapshots
from scarcity_ray.updates import content_digest
from scarcity_ray_client.errors import shown
from scarcity_ray_client.receipts import (
    CountedRoot,
    ReceiptProof,
    ReleaseRecord,
    SignedReceipt,
    audit_receipt,
)


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
    records = _records(releases)
    told = None if proof is None else ReceiptProof.from_text(_text(proof))
    keys = _keys(rosters, receipt.statement.federation_id)
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


def rows_command(storage: str, output: str, basket: str | None, round_id: int | None) -> ExitCode:
    """Write what a federation retains, or a part of it, to one file."""
    kept = [
        one
        for written in Snapshots(rows_folder(storage)).read_every(CODEC)
        for one in written
        if basket in (None, one.basket_id) and round_id in (None, one.round_id)
    ]
    if not kept:
        raise UsageError(
            f"{storage}: no such rows are retained here; retain_rounds keeps those of so many rounds, where "
            "rows are noised at the source"
        )
    if len(owners := {one.federation_id for one in kept}) > 1:
        raise UsageError(f"{storage}: rows of federations {sorted(owners)}; give each its own storage_path")
    where = Path(output).absolute()
    Snapshots(str(where.parent), kept[0].federation_id).write_file(where.name, kept, CODEC)
    baskets = len({one.basket_id for one in kept})
    click.echo(f"{len(kept)} aggregates of {baskets} baskets are in {output}")
    return ExitCode.DONE


def replay_command(
    path: str,
    releases: Sequence[str],
    rosters: Sequence[str],
    receipts: Sequence[str],
    rule: str | None,
    form: str,
) -> ExitCode:
    """Run baskets' rules again, and compare with what they have signed.

    Args:
        path: From `rows_command`.
        releases: Files with the records of releases, one a line.
        rosters: Files of rosters, whose keys alone are believed; without any, those given are.
        receipts: Files of receipts whose updates are looked for.
        rule: A rule from outside that may be run.
    """
    where = Path(path).absolute()
    try:
        kept = Snapshots(str(where.parent)).read_file(where.name, CODEC)
    except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: torn or changed: {error!r:.150}") from None
    if not (isinstance(kept, list) and kept and all(isinstance(one, RetainedAggregate) for one in kept)):
        raise UsageError(f"{path}: these are no retained rows; `scarcity-ray audit rows` writes them")
    roots = [(record.version, root) for record in _records(releases) for root in record.roots]
    keys = _keys(rosters, kept[0].federation_id)
    shown_to = [SignedReceipt.from_text(_text(name)) for name in receipts]
    told = [_replayed(one, roots, keys, shown_to, rule) for one in kept]
    if form == "json":
        click.echo(json.dumps(told))
    else:
        for said in told:
            click.echo(
                f"basket {shown(said['basket'])}, round {said['round']}, aggregate {said['number']}: "
                f"{said['rule']} with f = {said['f']} on {said['num_rows']} rows, clip norm "
                f"{said['clip_norm']}"
            )
            for note in said["notes"]:
                click.echo(f"  {note}")
            for fault in said["faults"]:
                click.echo(f"  fault: {fault}")
            if not said["faults"]:
                click.echo(f"  the same bytes, as signed for release {said['release']}: {said['aggregate']}")
        if keys is None:
            click.echo("The baskets' keys are believed as given; --roster checks them.")
    return ExitCode.FAILED if any(said["faults"] for said in told) else ExitCode.DONE


def _replayed(
    kept: RetainedAggregate,
    roots: Sequence[tuple[int, CountedRoot]],
    keys: dict[str, frozenset[bytes]] | None,
    receipts: Sequence[SignedReceipt],
    rule: str | None,
) -> dict[str, Any]:
    """What the replay of one aggregate shows."""
    replayed = replay(kept, rule)
    faults, notes = list(replayed.faults), list(replayed.notes)
    signed_for = {version: root for version, root in roots if root.manifest == kept.digest}
    release = max(signed_for, default=None)
    for version, root in signed_for.items():
        if not root.is_valid or (root.federation_id, root.basket_id) != (kept.federation_id, kept.basket_id):
            faults.append(f"release {version}: its root is not signed by this basket")
        elif keys is not None and root.basket_key not in keys.get(root.basket_id, ()):
            faults.append(f"release {version}: the basket's key is on no roster")
        elif root.root != kept.receipts:
            faults.append(f"updates: not those whose receipts release {version} counts")
    if len(signed_for) > 1:
        faults.append(f"counted {len(signed_for)} times, in releases {sorted(signed_for)}")
    if release is None:
        faults.append("its manifest is signed in none of the releases given (--release)")
    for receipt in receipts:
        at = [u for u in kept.updates if u.receipt == receipt.key]
        if at and content_digest(at[0].update) != receipt.digest:
            faults.append(f"updates: another row than in the receipt of client {shown(at[0].client_id)}")
        elif at:
            notes.append(f"has the row of the receipt of client {shown(at[0].client_id)}")
    return {
        "basket": kept.basket_id,
        "round": kept.round_id,
        "number": kept.number,
        "rule": kept.config["layer1"]["aggregation_method"],
        "f": kept.num_byzantine,
        "num_rows": len(kept.rows),
        "clip_norm": kept.config["layer1"]["clip_norm"],
        "release": release,
        "aggregate": replayed.aggregate,
        "faults": faults,
        "notes": notes,
    }


def _records(releases: Sequence[str]) -> list[ReleaseRecord]:
    """The records in files, one a line."""
    return [
        ReleaseRecord.from_text(line)
        for name in releases
        for line in _text(name).splitlines()
        if line.strip()
    ]


def _keys(rosters: Sequence[str], federation_id: str) -> dict[str, frozenset[bytes]] | None:
    """By basket, the keys that rosters name; None without rosters."""
    if not rosters:
        return None
    known = defaultdict[str, set[bytes]](set)
    for name in rosters:
        roster = Roster.from_json(_text(name))
        if roster.federation_id != federation_id:
            raise UsageError(f"--roster: {name} is another federation's; name this federation's")
        for party in roster.parties:
            known[party.party_id].add(party.identity_public)
    return {basket_id: frozenset(found) for basket_id, found in known.items()}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
