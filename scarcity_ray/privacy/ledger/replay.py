"""From a ledger's rows to the accountant that they describe, and to a list for people and scripts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from scarcity_ray.errors import LedgerCorrupted, LedgerError
from scarcity_ray.privacy.accounting.accountant import PrivacyAccountant
from scarcity_ray.privacy.accounting.modes import Accounting
from scarcity_ray.privacy.ledger.chain import NO_OLDER_COPY, Row
from scarcity_ray.privacy.ledger.ledger import Ledger
from scarcity_ray.privacy.ledger.members import unpack_gossip


def totals_of(row: Row) -> tuple[float, float]:
    """The totals that a genesis or renewal row states: (total_epsilon, total_delta)."""
    return float(row.body["total_epsilon"]), float(row.body["total_delta"])


def accounting_of(genesis: Row) -> Accounting:
    """What a ledger adds up; those of before there was a choice add up Gaussian DP.

    Raises:
        LedgerError: If this version knows no such accounting.
    """
    stated = genesis.body.get("accounting", Accounting.GAUSSIAN_DP.value)
    try:
        return Accounting(stated)
    except ValueError:
        raise LedgerError(
            f"the ledger states the accounting {stated!r}, and this version knows "
            f"{', '.join(Accounting)}; read it with the version that wrote it"
        ) from None


def accountant_of(genesis: Row) -> PrivacyAccountant:
    """The accountant at a ledger's beginning; the whole of delta serves releases whose mu is known."""
    return PrivacyAccountant(
        *totals_of(genesis),
        gossip_share=float(genesis.body["gossip_share"]),
        delta_reserve=0.0,
        accounting=accounting_of(genesis),
    )


def replay(accountant: PrivacyAccountant, row: Row) -> None:
    """Apply what a row recorded: it has happened, so it counts whether or not it fits."""
    if row.kind == "release":
        accountant.note_release(float(row.body["mu"]))
    elif row.kind == "gossip":
        members = unpack_gossip(row.payload)
        accountant.enrol(members.newcomers)
        accountant.note_gossip(members.places, float(row.body["mu"]))
    elif row.kind == "renewal":
        accountant.renew(*totals_of(row))


def history(ledger: Ledger) -> Iterator[tuple[Row, PrivacyAccountant]]:
    """Every row, oldest first, with the one accountant as it stands after that row.

    Raises:
        LedgerCorrupted: If the chain breaks, or a row does not state what its kind must; the rows before it
            have been given by then.
    """
    accountant: PrivacyAccountant | None = None
    for row in ledger.checked():
        try:
            if accountant is None:
                accountant = accountant_of(row)
            replay(accountant, row)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise LedgerCorrupted(
                f"{ledger.path}: row {row.seq} does not state what its kind must ({error!r}); {NO_OLDER_COPY}"
            ) from error
        yield row, accountant


def export(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Every row as plain data, oldest first: who, what, when, and the epsilon spent after it.

    Returns:
        For each row its ``seq``, ``kind``, ``charge_id``, ``epoch``, ``at``, ``hash`` and ``body``; for a
        gossip charge the ``clients`` charged; the ``epsilon_spent`` of its period, worst case over all
        clients; and the ``accounting`` by which it was added up. A charge's ``body`` states ``mu`` as the
        chain has it, in zCDP sqrt(2 rho). Infinities stand as ``"inf"``, as in the
        ledger.

    Raises:
        LedgerCorrupted: As `history`.
    """
    names: list[str] = []
    stand, spent = (-1, 0.0), 0.0
    for row, accountant in history(ledger):
        now = (accountant.period, accountant.mu_spent())
        if now != stand:
            stand, spent = now, accountant.epsilon_spent()
        line: dict[str, Any] = {
            "seq": row.seq,
            "at": row.at,
            "kind": row.kind,
            "charge_id": row.charge_id,
            "epoch": row.epoch,
            "body": row.body,
            "epsilon_spent": spent if math.isfinite(spent) else str(spent),
            "accounting": accountant.accounting.value,
            "hash": row.hash,
        }
        if row.kind == "gossip":
            members = unpack_gossip(row.payload)
            names.extend(members.newcomers)
            line["clients"] = [names[place] for place in members.places.tolist()]
        yield line


__all__ = ["accountant_of", "accounting_of", "export", "history", "replay", "totals_of"]
