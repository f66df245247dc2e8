"""Clients' reputation: a trust in [0, 1] that follows their conduct. It is reported; no aggregate uses it.

Agreement with a basket's aggregate is computed from private values, so trust that follows it lies outside the
privacy claim, as basket models do. With ``expose_basket_models: false`` trust follows from public facts
alone: accepted updates, and malformed ones that the client has signed. An unsigned update never lowers trust.

The basket decides a client's trust. The directory keeps what it was last told, from which a restarted basket
actor continues; a restarted directory is told by the basket actors.

Guarantees:
    trust_stays_in_0_1
    trust_is_monotone_in_each_agreement_and_in_what_it_was_before
    who_always_agrees_tends_to_1_who_never_does_to_0_whatever_the_trust_before
    A malformed update that the client has signed halves trust, at most ``buffer.participation_cap`` times a
        round.
    trust_goes_with_a_client_that_moves: Leaving and coming back does not restore it.
    Activity is reported once; trust is reported as it stands.
    Without agreement, trust does not depend on the values of accepted updates.
    A malformed update that its client has signed costs trust once, however often it is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scarcity_ray.baskets.reports import ActivityReport, ClientActivity
from scarcity_ray.directory.records import FIRST_TRUST
from scarcity_ray.updates import Rejection

AGREEMENT_RATE = 0.1
"""Weight of the latest agreement: the average has a half-life of about seven aggregates."""
REFUSAL_FACTOR = 0.5
"""Factor on trust for one malformed update that the client has signed."""
ACCEPTANCE_GAIN = 0.01
"""Trust gained by one accepted update, up to 1, where agreement is not computed."""
MISCONDUCT = frozenset({Rejection.WRONG_SHAPE, Rejection.NOT_FINITE})
"""Rejections that an honest client never gets for an update that it signed."""


def after_agreement(trust: float, agreement: float) -> float:
    """The exponential average of agreement (in [0, 1], see `robust.agreement`), one aggregate later.

    >>> round(after_agreement(1.0, 0.0), 3)
    0.9
    """
    return (1.0 - AGREEMENT_RATE) * trust + AGREEMENT_RATE * agreement


def after_refusal(trust: float) -> float:
    """Trust after a malformed or non-finite update that the client itself has signed."""
    return REFUSAL_FACTOR * trust


def after_acceptance(trust: float) -> float:
    """Trust after an accepted update, where agreement is not computed."""
    return min(1.0, trust + ACCEPTANCE_GAIN)


@dataclass
class Reputation:
    """A client's trust and conduct.

    Attributes:
        accepted: Updates accepted since the last report to the directory.
        seen: When the last of them came, in seconds since the epoch.
        offences: Hashes of the malformed updates that it has signed, by round.
    """

    trust: float = FIRST_TRUST
    accepted: int = 0
    seen: float = 0.0
    offences: dict[int, frozenset[bytes]] = field(default_factory=dict)


class Reputations:
    """The reputation of each of a basket's clients.

    Args:
        by_agreement: Whether trust follows agreement with the basket's aggregates.
    """

    def __init__(self, by_agreement: bool) -> None:
        self._by_agreement = by_agreement
        self._clients: dict[str, Reputation] = {}
        self._untold: set[str] = set()

    def admit(self, client_id: str, trust: float, offences: Mapping[int, frozenset[bytes]] = {}) -> None:
        """Add a client with what is remembered of it; a known client keeps its record."""
        if trust != FIRST_TRUST or offences:
            self._clients.setdefault(client_id, Reputation(trust, offences=dict(offences)))

    def trust(self, client_id: str) -> float:
        """A client's trust."""
        reputation = self._clients.get(client_id)
        return FIRST_TRUST if reputation is None else reputation.trust

    def get(self, client_id: str) -> Reputation | None:
        """A client's record; None for one with the trust of a new client."""
        return self._clients.get(client_id)

    def accept(self, client_id: str, now: float) -> None:
        """Note an accepted update."""
        self._untold.add(client_id)
        reputation = self._clients.setdefault(client_id, Reputation())
        reputation.accepted += 1
        reputation.seen = now
        if not self._by_agreement:
            reputation.trust = after_acceptance(reputation.trust)

    def refuse(self, client_id: str) -> None:
        """Note a malformed update."""
        reputation = self._touch(client_id)
        reputation.trust = after_refusal(reputation.trust)

    def offend(self, client_id: str, round_id: int, message: bytes, *, since: int, most: int) -> None:
        """Note a malformed update that its client has signed.

        Args:
            round_id: The round that it was signed for.
            message: The signed bytes.
            since: The first open round; offences of earlier ones are forgotten.
            most: Offences of one round that count.
        """
        reputation = self._clients.setdefault(client_id, Reputation())
        known = reputation.offences.get(round_id, frozenset())
        mark = hashlib.sha256(message).digest()
        if mark in known or len(known) >= most:
            return
        reputation.offences = {r: marks for r, marks in reputation.offences.items() if r >= since}
        reputation.offences[round_id] = known | {mark}
        self.refuse(client_id)

    def agree(self, agreements: Mapping[str, float]) -> None:
        """Note how far each client agreed with an aggregate."""
        for client_id, agreement in agreements.items():
            reputation = self._touch(client_id)
            reputation.trust = after_agreement(reputation.trust, agreement)

    def take(self, client_id: str) -> Reputation | None:
        """Remove and return the reputation of a client that moves or leaves."""
        self._untold.discard(client_id)
        return self._clients.pop(client_id, None)

    def put(self, client_id: str, reputation: Reputation) -> None:
        """Add a client that moved here."""
        self._clients[client_id] = reputation
        self._untold.add(client_id)

    def tell(self) -> dict[str, ClientActivity]:
        """The clients' activity since the last call, for those that have any."""
        told = {}
        for client_id in sorted(self._untold):
            reputation = self._clients[client_id]
            told[client_id] = ClientActivity(reputation.accepted, reputation.seen, reputation.trust)
            reputation.accepted, reputation.seen = 0, 0.0
        self._untold.clear()
        return told

    def _touch(self, client_id: str) -> Reputation:
        self._untold.add(client_id)
        return self._clients.setdefault(client_id, Reputation())


def merged_activity(reports: Sequence[ActivityReport]) -> ActivityReport:
    """One report of several baskets; a client is in one of them."""
    return ActivityReport(
        {client: activity for report in reports for client, activity in report.clients.items()},
        {basket: at for report in reports for basket, at in report.baskets.items()},
    )
