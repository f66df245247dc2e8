"""``scarcity-ray ledger``: who was charged what and when, whether that record is intact, and who holds it.

Guarantees:
    reading_never_writes: No row, no epoch; a running federation goes on undisturbed. Only `take_over` writes.
    only_checked_rows_are_shown: What stands before a broken row may be given, nothing from it on.
    export_replaces_no_file: The ledger itself included.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.directory import check_name
from scarcity_ray.errors import LedgerError, UsageError
from scarcity_ray.privacy.accounting.accountant import PrivacyAccountant
from scarcity_ray.privacy.accounting.modes import Accounting, rho_of_mu
from scarcity_ray.privacy.ledger.chain import Row
from scarcity_ray.privacy.ledger.events import (
    Event,
    Genesis,
    GossipCharge,
    LeftOut,
    PolicyGiven,
    ReleaseCharge,
    Renewal,
    SiteHeads,
    VoidedRelease,
    WriterEpoch,
)
from scarcity_ray.privacy.ledger.holder import Standing, in_utc, times
from scarcity_ray.privacy.ledger.ledger import Ledger
from scarcity_ray.privacy.ledger.replay import export, history, neighbours_of

_WIDTH = 120
"""Columns of a table that no terminal limits."""
_NAMED = 5
"""Clients that a row of the table names; the others are counted."""


def show_command(path: str, last: int, form: str) -> ExitCode:
    """Print the newest rows and where they leave the budget."""
    with closing(Ledger.read(path)) as ledger:
        rows = ledger.head_seq + 1
        lines: list[dict[str, Any]] = []
        standing = Standing()
        for row, accountant in islice(history(ledger), rows):
            standing.note(row)
            if row.seq >= rows - last:
                lines.append(_summary(row, accountant))
        if form == "json":
            for line in lines:
                click.echo(_as_json(line))
        else:
            _print_rows(str(ledger.path), lines, accountant, rows)
            for words in _whose(standing, ledger.is_held()):
                click.echo(words)
    return ExitCode.DONE


def verify_command(path: str, head: str | None, form: str) -> ExitCode:
    """Walk the chain, and look for a head hash that was kept elsewhere."""
    wanted = None if head is None else _hash(head)
    try:
        with closing(Ledger.read(path)) as ledger:
            place, standing = None, Standing()
            for row, spent in history(ledger):
                standing.note(row)
                accountant = spent
                place = row.seq if row.hash == wanted else place
            if wanted is not None and place is None:
                ledger.verify(wanted)
            is_held, neighbours = ledger.is_held(), neighbours_of(ledger.genesis)
    except LedgerError as error:
        if form == "json":
            click.echo(_as_json({"holds": False, "error": type(error).__name__, "reason": str(error)}))
            return ExitCode.FAILED
        raise
    rows, accounting = standing.seq + 1, accountant.accounting.value
    if form == "json":
        facts = {
            "holds": True,
            "rows": rows,
            "accounting": accounting,
            "neighbours": neighbours,
            "head": standing.hash,
            "row_of_given_head": place,
            "federation_id": standing.federation_id,
            "name": standing.name,
            "incarnation": standing.incarnation,
            "period": accountant.period,
            "ceilings": len(accountant.ceilings),
            "left_out": accountant.ceilings.left_out,
            "is_held": is_held,
            "holder": None if standing.holder is None else asdict(standing.holder),
        }
        click.echo(_as_json(facts))
        return ExitCode.DONE
    click.echo(f"{ledger.path}: the chain holds, {rows} rows; none was changed, removed or moved.")
    click.echo(f"It adds up {accounting}.")
    click.echo(f"Its neighbours are {neighbours}.")
    click.echo(f"It is in budget period {accountant.period}.")
    for line in _ceilings(accountant):
        click.echo(line)
    for line in _whose(standing, is_held):
        click.echo(line)
    if place is None:
        click.echo(
            "No head hash was given, so a ledger that was cut, rolled back or replaced would pass too: give "
            "the ledger_head of the newest global model with --head."
        )
    else:
        click.echo(
            f"The head hash given is row {place}'s, with {rows - 1 - place} rows after it: nothing up to "
            "there was cut, rolled back or replaced."
        )
    click.echo(f"head {standing.hash}")
    return ExitCode.DONE


def take_over_command(path: str, operator: str, form: str) -> ExitCode:
    """End whoever holds the ledger, and leave it free."""
    check_name("operator", operator)
    with closing(Ledger.read(path)) as reader:
        before, was_held = reader.standing.holder, reader.is_held()
    with closing(Ledger.open(path, now=time.time(), take_over=True, operator=operator)) as ledger:
        standing, where = ledger.standing, str(ledger.path)
    if form == "json":
        was = None if before is None else asdict(before)
        facts = {"federation_id": standing.federation_id, "incarnation": standing.incarnation}
        click.echo(_as_json({"taken_over": True, "was_held": was_held, "holder_before": was, **facts}))
        return ExitCode.DONE
    click.echo(printable(f"{where}: taken over from {before}; it charges nothing any more."))
    click.echo("The ledger is free: the next federation that is opened on it goes on with what is left.")
    return ExitCode.DONE


def export_command(path: str, out: str | None) -> ExitCode:
    """Write every row as one JSON object a line, each checked before it is written."""
    with closing(Ledger.read(path)) as ledger, target_of(out) as target:
        for line in export(ledger):
            target.write(_as_json(line) + "\n")
    return ExitCode.DONE


@contextmanager
def target_of(out: str | None) -> Iterator[TextIO]:
    """Standard output, or a new file that only its owner can read and that is whole or not there."""
    if out is None:
        yield sys.stdout
        return
    try:
        handle = os.open(out, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        raise UsageError(f"--out: {out} is there already and is not replaced; name another file") from None
    except OSError as error:
        raise UsageError(f"--out: {out} cannot be made ({error.strerror}); name another file") from error
    try:
        with open(handle, "w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        Path(out).unlink(missing_ok=True)
        raise LedgerError(f"{out}: the export could not be written ({error.strerror}); make room") from error
    except BaseException:
        Path(out).unlink(missing_ok=True)
        raise


def _summary(row: Row, accountant: PrivacyAccountant) -> dict[str, Any]:
    """One row as plain data: sigma and sensitivity in the model's units, epsilon spent after the row."""
    event = row.event
    given = getattr(event, "details", None)
    details: dict[str, object] = given if isinstance(given, dict) else {}
    scale = _number(details.get("scale"))
    sigma, sensitivity = _number(details.get("sigma")), _number(details.get("sensitivity"))
    mu = event.mu if isinstance(event, ReleaseCharge | GossipCharge) else None
    concentrated = accountant.accounting is Accounting.ZCDP
    if scale:
        in_steps = [_number(details.get(name)) for name in ("grid_sigma", "grid_sensitivity")]
        sigma, sensitivity = (None if steps is None else steps / scale for steps in in_steps)
    elif sensitivity is None and sigma and mu is not None and math.isfinite(mu):
        sensitivity = mu * sigma
    return {
        "seq": row.seq,
        "at": row.at,
        "kind": row.kind,
        "what": _what(event, row.kind, details),
        "who": _who(event, row.epoch, len(accountant.ceilings.left_out)),
        "charge_id": row.charge_id,
        "mu": None if concentrated else mu,
        "rho": rho_of_mu(mu) if concentrated and mu is not None else None,
        "sigma": sigma,
        "sensitivity": sensitivity,
        "epsilon_spent": accountant.epsilon_spent(),
        "accounting": accountant.accounting.value,
        "epoch": row.epoch,
        "hash": row.hash,
    }


def _what(event: Event, kind: str, details: dict[str, object]) -> str:
    words = [kind]
    if isinstance(event, GossipCharge) and "kind" in details:
        words.append(str(details["kind"]))
    if "round" in details:
        words.append(f"round {details['round']}")
    if isinstance(event, Genesis | Renewal):
        words.append(f"epsilon {event.total_epsilon}, delta {event.total_delta}")
    if isinstance(event, PolicyGiven):
        words.append(f"{event.unit}, epsilon {event.lifetime_epsilon:g} at delta {event.delta:g} at most")
    if isinstance(event, LeftOut):
        words.append(f"{len(event.clients)} clients at ceilings of their own")
    return ", ".join(words)


def _who(event: Event, epoch: int, num_left_out: int) -> str:
    match event:
        case Genesis():
            return f"federation {event.name or event.federation_id}"
        case WriterEpoch(operator=None):
            return f"process {event.pid}, epoch {epoch}"
        case WriterEpoch():
            return f"process {event.pid}, epoch {epoch}, taken over by {event.operator}"
        case ReleaseCharge():
            return "all clients" + (f" but {num_left_out} at their ceilings" if num_left_out else "")
        case GossipCharge():
            return f"{event.charged} of {event.asked} clients"
        case Renewal():
            return event.operator
        case PolicyGiven():
            return f"client {event.client_id}"
        case SiteHeads():
            return f"{len(event.heads)} clients"
        case LeftOut():
            shown = ", ".join(event.clients[:_NAMED])
            return shown + (f" and {len(event.clients) - _NAMED} more" if len(event.clients) > _NAMED else "")
        case VoidedRelease():
            return "nobody: a session that was given up"
    return ""


def _whose(standing: Standing, is_held: bool | None) -> list[str]:
    """Lines that say whose ledger it is and who holds it."""
    called = f" ({standing.name})" if standing.name else ""
    holds = {True: "held by", False: "free; last opened by", None: "perhaps held by"}[is_held]
    lines = [
        f"federation {standing.federation_id}{called}, opened {times(standing.incarnation)}",
        f"{holds} {standing.holder or 'nobody'}",
    ]
    return [printable(line) for line in lines]


def _ceilings(accountant: PrivacyAccountant) -> list[str]:
    """A line about the clients' own ceilings, if there are any."""
    ceilings = accountant.ceilings
    if not len(ceilings):
        return []
    named = f": {', '.join(ceilings.left_out)}" if ceilings.left_out else ""
    return [
        printable(
            f"{len(ceilings)} clients have ceilings of their own; {len(ceilings.left_out)} of them are left "
            f"out, for good{named}"
        )
    ]


def _print_rows(path: str, lines: list[dict[str, Any]], accountant: PrivacyAccountant, rows: int) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    title = Text(f"{path}: rows {rows - len(lines)} to {rows - 1}")
    table = Table(box=None, title=title, title_justify="left")
    table.add_column("row", justify="right")
    for name in ("when (UTC)", "what", "who"):
        table.add_column(name, overflow="fold")
    for name in ("sigma", "sensitivity", "epsilon after"):
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(
            str(line["seq"]),
            in_utc(line["at"]).removesuffix(" UTC"),
            *(Text(printable(line[name])) for name in ("what", "who")),
            *(_short(line[name]) for name in ("sigma", "sensitivity", "epsilon_spent")),
        )
    console.print(table)
    spent, total = _short(accountant.epsilon_spent()), _short(accountant.total_epsilon)
    console.print(
        f"\nepsilon {spent} of {total} spent at delta {accountant.total_delta:g} "
        f"in budget period {accountant.period}, added up in {accountant.accounting.value}\n"
        f"head {lines[-1]['hash']}",
        markup=False,
        soft_wrap=True,
    )
    for words in _ceilings(accountant):
        console.print(words, markup=False, soft_wrap=True)


def _hash(text: str) -> str:
    digits = text.strip().lower()
    if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise UsageError(
            f"--head: {text!r} is no head hash; 64 hexadecimal digits, as in a global model's ledger_head"
        )
    return digits


def _number(value: object) -> float | None:
    """A number as a row keeps it, infinities as text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return math.inf if value == "inf" else None


def _as_json(line: dict[str, Any]) -> str:
    finite = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(finite, allow_nan=False)


def printable(text: str) -> str:
    """The text with control characters escaped: names come from strangers, and could steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
