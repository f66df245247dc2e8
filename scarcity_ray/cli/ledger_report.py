"""``scarcity-ray ledger report``: a ledger for an ethics board, in words, from its checked rows alone."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.cli.ledger import printable, target_of
from scarcity_ray.config import PrivacyUnit
from scarcity_ray.privacy.accounting.accountant import PrivacyAccountant
from scarcity_ray.privacy.ledger.chain import Row
from scarcity_ray.privacy.ledger.events import (
    GossipCharge,
    LeftOut,
    PolicyGiven,
    ReleaseCharge,
    Renewal,
    WriterEpoch,
)
from scarcity_ray.privacy.ledger.holder import Standing, in_utc
from scarcity_ray.privacy.ledger.ledger import Ledger
from scarcity_ray.privacy.ledger.replay import NEIGHBOURS, history, neighbours_of

FALSE_ALARMS = 0.01
"""At which share of false accusations the chance of a true one is told."""


@dataclass
class Period:
    """One period of the budget.

    Attributes:
        began: Seconds since the epoch, as is `last`, of the newest row.
        epsilon, delta: That may be spent in it.
        by: Who renewed the budget, or that the ledger was opened.
        releases: Models that were charged.
        client_charges: Of gossip, or of noised rows, each of several clients.
        spent: Epsilon, of the client that has spent most.
    """

    began: float
    last: float
    epsilon: float
    delta: float
    by: str
    releases: int = 0
    client_charges: int = 0
    spent: float = 0.0

    def shown(self) -> dict[str, object]:
        """As the template prints it."""
        return {
            "began": in_utc(self.began),
            "last": in_utc(self.last),
            "epsilon": f"{self.epsilon:g}",
            "delta": f"{self.delta:g}",
            "by": printable(self.by).replace("|", "\\|"),
            "releases": self.releases,
            "client_charges": self.client_charges,
            "spent": f"{self.spent:.4g}",
        }


def report_command(path: str, out: str | None) -> ExitCode:
    """Write what was claimed, spent and agreed to, as Markdown."""
    with closing(Ledger.read(path)) as ledger:
        facts = _facts(ledger)
    templates = Environment(loader=PackageLoader("scarcity_ray.cli"), undefined=StrictUndefined)
    with target_of(out) as target:
        target.write(templates.get_template("ledger_report.md.j2").render(facts) + "\n")
    return ExitCode.DONE


def _facts(ledger: Ledger) -> dict[str, object]:
    """What the template prints."""
    standing, periods, notes = Standing(), list[Period](), list[str]()
    for row, after in history(ledger):
        standing.note(row)
        if not periods or isinstance(row.event, Renewal):
            by = row.event.operator if isinstance(row.event, Renewal) else "its opening"
            periods.append(Period(row.at, row.at, after.total_epsilon, after.total_delta, by))
        _count(periods[-1], row, after)
        notes += _noted(row)
        accountant = after
    neighbours, mu = neighbours_of(ledger.genesis), accountant.lifetime_mu()
    unit = next((unit for unit, words in NEIGHBOURS.items() if words == neighbours), PrivacyUnit.CLIENT)
    recognised = accountant.accounting.true_positives_of(mu, FALSE_ALARMS)
    return {
        "name": printable(standing.name or standing.federation_id),
        "newest": in_utc(periods[-1].last),
        "rows": standing.seq + 1,
        "federation_id": printable(standing.federation_id),
        "hash": standing.hash,
        "infinite": math.isinf(accountant.lifetime_epsilon()) or math.isinf(accountant.total_epsilon),
        "spent": f"{accountant.lifetime_epsilon():.4g}",
        "delta": f"{accountant.least_delta:g}",
        "one": "client as a whole" if unit is PrivacyUnit.CLIENT else unit.value,
        "relies": unit is not PrivacyUnit.CLIENT,
        "neighbours": neighbours,
        "advantage": f"{100 * accountant.accounting.advantage_of(mu):.3g}",
        "recognised": f"{100 * recognised:.3g}",
        "false_alarms": f"{100 * FALSE_ALARMS:g}",
        "periods": [period.shown() for period in periods],
        "named": accountant.num_clients,
        "ceilings": len(accountant.ceilings),
        "left_out": len(accountant.ceilings.left_out),
        "notes": [printable(note) for note in notes],
    }


def _count(period: Period, row: Row, after: PrivacyAccountant) -> None:
    period.last, period.spent = row.at, after.epsilon_spent()
    match row.event:
        case ReleaseCharge():
            period.releases += 1
        case GossipCharge():
            period.client_charges += 1


def _noted(row: Row) -> list[str]:
    """What a row says of clients, or of people who stepped in."""
    when = in_utc(row.at)
    match row.event:
        case PolicyGiven() as given:
            limit = f"epsilon {given.lifetime_epsilon:g} at delta {given.delta:g} for a {given.unit}"
            return [f"{when}: {given.client_id} accepts at most {limit}, signed with its key."]
        case LeftOut(clients=clients):
            return [f"{when}: {name} has reached its ceiling and is left out, for good." for name in clients]
        case WriterEpoch(operator=str(operator)):
            return [f"{when}: the ledger was taken over by {operator}."]
    return []
