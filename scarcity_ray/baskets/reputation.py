"""What a basket remembers of its clients' conduct: trust, and what the directory has not been told yet.

The basket's memory is the one that counts. The directory keeps the last trust that it was told, so that a
basket actor that comes back after its death continues from there, and a directory that comes back is told by
the basket actors.

*Guarantees*
    - Trust goes with a client that moves, and leaving and coming back does not restore it.
    - What was seen is told once; trust is told as it stands, so telling it twice changes nothing.
    - Where agreement is not asked for, trust does not depend on the values of accepted updates.
    - A malformed update that its client has signed costs trust once, however often somebody sends it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scarcity_ray.baskets import Rejection
from scarcity_ray.baskets.reports import ActivityReport, ClientActivity
from scarcity_ray.directory.trust import FIRST_TRUST, after_acceptance, after_agreement, after_refusal

MISCONDUCT = frozenset({Rejection.WRONG_SHAPE, Rejection.NOT_FINITE})
"""Rejections that an honest client never earns, if it has signed what was refused."""


@dataclass
class Standing:
    """One client's conduct.

    Attributes:
        trust: In [0, 1].
        accepted: Updates accepted since the directory was last told.
        seen: Seconds since the epoch when the last of them came.
        offences: Hashes of the malformed updates that it has signed, by round.
    """

    trust: float = FIRST_TRUST
    accepted: int = 0
    seen: float = 0.0
    offences: dict[int, frozenset[bytes]] = field(default_factory=dict)


class Standings:
    """The conduct of a basket's clients.

    Args:
        by_agreement: Whether trust follows agreement with the basket's aggregates.
    """

    def __init__(self, by_agreement: bool) -> None:
        self._by_agreement = by_agreement
        self._clients: dict[str, Standing] = {}
        self._untold: set[str] = set()

    def admit(self, client_id: str, trust: float, offences: Mapping[int, frozenset[bytes]] = {}) -> None:
        """Know a client, with what is remembered of it; what is known here already stands."""
        if trust != FIRST_TRUST or offences:
            self._clients.setdefault(client_id, Standing(trust, offences=dict(offences)))

    def trust(self, client_id: str) -> float:
        """A client's trust."""
        standing = self._clients.get(client_id)
        return FIRST_TRUST if standing is None else standing.trust

    def accept(self, client_id: str, now: float) -> None:
        """Note an accepted update."""
        standing = self._touch(client_id)
        standing.accepted += 1
        standing.seen = now
        if not self._by_agreement:
            standing.trust = after_acceptance(standing.trust)

    def refuse(self, client_id: str) -> None:
        """Note an update that anybody can see is none."""
        standing = self._touch(client_id)
        standing.trust = after_refusal(standing.trust)

    def offend(self, client_id: str, round_id: int, message: bytes, *, since: int, most: int) -> None:
        """Note a malformed update that its client has signed, as the client's own act.

        Args:
            client_id: The client.
            round_id: The round that it was signed for.
            message: What was signed.
            since: The first round for which anything is accepted; what was signed before is forgotten.
            most: Of a round are held against the client at most.
        """
        standing = self._clients.setdefault(client_id, Standing())
        known = standing.offences.get(round_id, frozenset())
        mark = hashlib.sha256(message).digest()
        if mark in known or len(known) >= most:
            return
        standing.offences = {r: marks for r, marks in standing.offences.items() if r >= since}
        standing.offences[round_id] = known | {mark}
        self.refuse(client_id)

    def agree(self, agreements: Mapping[str, float]) -> None:
        """Note how far each client agreed with an aggregate."""
        for client_id, agreement in agreements.items():
            standing = self._touch(client_id)
            standing.trust = after_agreement(standing.trust, agreement)

    def take(self, client_id: str) -> Standing | None:
        """Hand over a client that moves or leaves."""
        self._untold.discard(client_id)
        return self._clients.pop(client_id, None)

    def put(self, client_id: str, standing: Standing) -> None:
        """Take over a client that moved here."""
        self._clients[client_id] = standing
        self._untold.add(client_id)

    def tell(self) -> dict[str, ClientActivity]:
        """What the directory has not been told; it looks at clients of which there is news alone."""
        told = {}
        for client_id in sorted(self._untold):
            standing = self._clients[client_id]
            told[client_id] = ClientActivity(standing.accepted, standing.seen, standing.trust)
            standing.accepted, standing.seen = 0, 0.0
        self._untold.clear()
        return told

    def _touch(self, client_id: str) -> Standing:
        self._untold.add(client_id)
        return self._clients.setdefault(client_id, Standing())


def merged_activity(reports: Sequence[ActivityReport]) -> ActivityReport:
    """One report of several baskets; a client is in one of them."""
    clients: dict[str, ClientActivity] = {}
    baskets: dict[str, float] = {}
    for report in reports:
        clients.update(report.clients)
        baskets.update(report.baskets)
    return ActivityReport(clients, baskets)


__all__ = ["MISCONDUCT", "Standing", "Standings", "merged_activity"]
