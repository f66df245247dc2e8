"""Clients' reputation: how their trust follows what they do, and what of it the directory was not told yet.

Trust is a number in [0, 1] that is reported and never weighs. Agreement with a basket's aggregate is made of
private values, so what trust is made of it lies outside the privacy claim, as basket models do. Where
``expose_basket_models`` is false nobody computes agreement, and trust follows from what anybody may know:
malformed updates that the client has signed, and those that were accepted. What a driver sends on a client's
behalf without its signature costs it nothing.

The basket's memory is the one that counts. The directory keeps the last trust that it was told, so that a
basket actor that comes back after its death continues from there, and a directory that comes back is told by
the basket actors.

Guarantees:
    trust_stays_in_0_1
    trust_is_monotone_in_each_agreement_and_in_what_it_was_before
    who_always_agrees_tends_to_1_who_never_does_to_0_whatever_the_trust_before
    A malformed update that the client has signed halves trust (`Reputations.offend`: of a round, the first
        ``buffer.participation_cap`` of them).
    trust_goes_with_a_client_that_moves: Leaving and coming back does not restore it.
    What was seen is told once; trust is told as it stands, so telling it twice changes nothing.
    Where agreement is not asked for, trust does not depend on the values of accepted updates.
    A malformed update that its client has signed costs trust once, however often somebody sends it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scarcity_ray.baskets.reports import ActivityReport, ClientActivity
from scarcity_ray.directory.records import FIRST_TRUST
from scarcity_ray.updates import Rejection

AGREEMENT_RATE = 0.1
"""Weight of the latest agreement: half of what trust knows is less than seven aggregates old."""
REFUSAL_FACTOR = 0.5
"""What one malformed update that the client has signed leaves of trust."""
ACCEPTANCE_GAIN = 0.01
"""What one accepted update gives back, up to 1, where agreement is not computed."""
MISCONDUCT = frozenset({Rejection.WRONG_SHAPE, Rejection.NOT_FINITE})
"""Rejections that an honest client never earns, if it has signed what was refused."""


def after_agreement(trust: float, agreement: float) -> float:
    """The exponential average of agreement, one aggregate later.

    Args:
        trust: In [0, 1].
        agreement: With the aggregate, in [0, 1]; see `robust.agreement`.

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
    """What one client did, and the trust that it has.

    Attributes:
        accepted: Updates accepted since the directory was last told.
        seen: Seconds since the epoch when the last of them came.
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
        """Know a client, with what is remembered of it; what is known here already stands."""
        if trust != FIRST_TRUST or offences:
            self._clients.setdefault(client_id, Reputation(trust, offences=dict(offences)))

    def trust(self, client_id: str) -> float:
        """A client's trust."""
        reputation = self._clients.get(client_id)
        return FIRST_TRUST if reputation is None else reputation.trust

    def accept(self, client_id: str, now: float) -> None:
        """Note an accepted update."""
        reputation = self._touch(client_id)
        reputation.accepted += 1
        reputation.seen = now
        if not self._by_agreement:
            reputation.trust = after_acceptance(reputation.trust)

    def refuse(self, client_id: str) -> None:
        """Note an update that anybody can see is none."""
        reputation = self._touch(client_id)
        reputation.trust = after_refusal(reputation.trust)

    def offend(self, client_id: str, round_id: int, message: bytes, *, since: int, most: int) -> None:
        """Note a malformed update that its client has signed, as the client's own act.

        Args:
            round_id: The round that it was signed for.
            message: What was signed.
            since: The first round for which anything is accepted; what was signed before is forgotten.
            most: Of a round are held against the client at most.
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
        """Hand over a client that moves or leaves."""
        self._untold.discard(client_id)
        return self._clients.pop(client_id, None)

    def put(self, client_id: str, reputation: Reputation) -> None:
        """Take over a client that moved here."""
        self._clients[client_id] = reputation
        self._untold.add(client_id)

    def tell(self) -> dict[str, ClientActivity]:
        """What the directory has not been told; it looks at clients of which there is news alone."""
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
    clients: dict[str, ClientActivity] = {}
    baskets: dict[str, float] = {}
    for report in reports:
        clients.update(report.clients)
        baskets.update(report.baskets)
    return ActivityReport(clients, baskets)
