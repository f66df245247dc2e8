"""From a ledger's rows to the accountant that they describe, and to a list for people and scripts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scarcity_ray.config import PrivacyUnit
from scarcity_ray.errors import LedgerCorrupted, LedgerError
from scarcity_ray.privacy.accounting.accountant import PrivacyAccountant
from scarcity_ray.privacy.accounting.modes import Accounting
from scarcity_ray.privacy.ledger.chain import NO_OLDER_COPY, Row
from scarcity_ray.privacy.ledger.events import (
    Genesis,
    GossipCharge,
    LeftOut,
    PolicyGiven,
    ReleaseCharge,
    Renewal,
)
from scarcity_ray.privacy.ledger.ledger import Ledger

NEIGHBOURS = {
    PrivacyUnit.CLIENT: "replace-one client",
    PrivacyUnit.PERSON: "replace-one person of one client",
    PrivacyUnit.RECORD: "replace-one record of one client",
}
"""What neighbours differ in, as a ledger's first row states it."""


def accounting_of(genesis: Genesis) -> Accounting:
    """The accounting of a ledger; Gaussian DP in ledgers from before there was a choice.

    Raises:
        LedgerError: If this version knows no such accounting.
    """
    try:
        return Accounting.GAUSSIAN_DP if genesis.accounting is None else Accounting(genesis.accounting)
    except ValueError:
        raise LedgerError(
            f"the ledger states the accounting {genesis.accounting!r}, and this version knows "
            f"{', '.join(Accounting)}; read it with the version that wrote it"
        ) from None


def neighbours_of(genesis: Genesis) -> str:
    """What a ledger's neighbours differ in; whole clients in ledgers from before there was a choice."""
    return genesis.neighbours or NEIGHBOURS[PrivacyUnit.CLIENT]


def accountant_of(genesis: Genesis) -> PrivacyAccountant:
    """The accountant at a ledger's beginning, without a reserve of delta."""
    return PrivacyAccountant(
        genesis.total_epsilon,
        genesis.total_delta,
        gossip_share=genesis.gossip_share,
        delta_reserve=0.0,
        accounting=accounting_of(genesis),
    )


def replay(accountant: PrivacyAccountant, row: Row, place: object) -> None:
    """Apply what a row of the ledger at `place` recorded: it happened, so it counts whether or not it fits.

    Raises:
        LedgerCorrupted: If it states what cannot have happened.
    """
    with _stating(place, row.seq):
        match row.event:
            case ReleaseCharge(mu=mu):
                accountant.note_release(mu)
            case GossipCharge(mu=mu, members=members):
                accountant.enrol(members.newcomers)
                accountant.note_gossip(members.places, mu)
            case PolicyGiven() as given:
                if not given.signed.is_valid:
                    raise ValueError(f"the policy of {given.client_id!r} is not signed by its key")
                accountant.set_ceiling(
                    given.client_id, given.lifetime_epsilon, given.delta, is_newcomer=given.is_newcomer
                )
            case LeftOut(clients=clients):
                accountant.leave_out(clients)
            case Renewal(total_epsilon=total_epsilon, total_delta=total_delta):
                accountant.renew(total_epsilon, total_delta)


@contextmanager
def _stating(place: object, seq: int) -> Iterator[None]:
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise LedgerCorrupted(
            f"{place}: row {seq} does not state what its kind must ({error!r}); {NO_OLDER_COPY}"
        ) from error


def history(ledger: Ledger) -> Iterator[tuple[Row, PrivacyAccountant]]:
    """Every row, oldest first, with the one accountant as it stands after that row.

    Raises:
        LedgerCorrupted: If the chain breaks, or a row does not state what its kind must; the rows before it
            have been given by then.
    """
    with _stating(ledger.path, 0):
        accountant = accountant_of(ledger.genesis)
    for row in ledger.checked():
        replay(accountant, row, ledger.path)
        yield row, accountant


def export(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Every row as plain data, oldest first: who, what, when, and the epsilon spent after it.

    Returns:
        For each row its ``seq``, ``kind``, ``charge_id``, ``epoch``, ``at``, ``hash`` and ``body``; for a
        gossip charge the ``clients`` charged; the ``epsilon_spent`` of its period, worst case over all
        clients; and the ``accounting`` by which it was added up. A charge's ``body`` states ``mu``, in zCDP
        sqrt(2 rho). Infinities are written as ``"inf"``, as in the ledger.

    Raises:
        LedgerCorrupted: As `history`.
    """
    names, known = list[str](), set[str]()
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
        if isinstance(row.event, GossipCharge):
            newcomers = row.event.members.newcomers
            names.extend(newcomers)
            known.update(newcomers)
            line["clients"] = [names[place] for place in row.event.members.places.tolist()]
        elif isinstance(row.event, PolicyGiven) and row.event.client_id not in known:
            names.append(row.event.client_id)
            known.add(row.event.client_id)
        yield line
