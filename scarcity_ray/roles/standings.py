"""What a basket remembers of its clients' conduct: trust, and what the directory has not been told yet.

The basket's memory is the one that counts. The directory keeps the last trust that it was told, so that a
basket actor that comes back after its death continues from there, and a directory that comes back is told by
the basket actors.

*Guarantees*
    - Trust goes with a client that moves, and leaving and coming back does not restore it.
    - What was seen is told once; trust is told as it stands, so telling it twice changes nothing.
    - Where agreement is not asked for, trust does not depend on the values of accepted updates.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from scarcity_ray.basket.trust import FIRST_TRUST, after_acceptance, after_agreement, after_refusal
from scarcity_ray.buffer import Rejection
from scarcity_ray.roles.messages import ActivityReport, ClientActivity

MISCONDUCT = frozenset(
    {Rejection.WRONG_SHAPE, Rejection.NOT_FINITE, Rejection.NOT_NUMERIC, Rejection.BAD_SIGNATURE}
)
"""Rejections that anybody can check and that an honest client never earns."""


@dataclass
class Standing:
    """One client's conduct.

    Attributes:
        trust: In [0, 1].
        accepted: Updates accepted since the directory was last told.
        seen: Seconds since the epoch when the last of them came.
        untold: Whether anything has changed since.
    """

    trust: float = FIRST_TRUST
    accepted: int = 0
    seen: float = 0.0
    untold: bool = False


class Standings:
    """The conduct of a basket's clients.

    Args:
        by_agreement: Whether trust follows agreement with the basket's aggregates.
    """

    def __init__(self, by_agreement: bool) -> None:
        self._by_agreement = by_agreement
        self._clients: dict[str, Standing] = {}

    def admit(self, client_id: str, trust: float) -> None:
        """Know a client, with the trust that the directory has; what is known here already stands."""
        if trust != FIRST_TRUST:
            self._clients.setdefault(client_id, Standing(trust))

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

    def agree(self, agreements: Mapping[str, float]) -> None:
        """Note how far each client agreed with an aggregate."""
        for client_id, agreement in agreements.items():
            standing = self._touch(client_id)
            standing.trust = after_agreement(standing.trust, agreement)

    def take(self, client_id: str) -> Standing | None:
        """Hand over a client that moves."""
        return self._clients.pop(client_id, None)

    def put(self, client_id: str, standing: Standing) -> None:
        """Take over a client that moved here."""
        self._clients[client_id] = standing

    def tell(self, members: Collection[str]) -> dict[str, ClientActivity]:
        """What the directory has not been told; those who have left are forgotten with it."""
        told = {
            client_id: ClientActivity(standing.accepted, standing.seen, standing.trust)
            for client_id, standing in self._clients.items()
            if standing.untold
        }
        self._clients = {c: Standing(s.trust) for c, s in self._clients.items() if c in members}
        return told

    def _touch(self, client_id: str) -> Standing:
        standing = self._clients.setdefault(client_id, Standing())
        standing.untold = True
        return standing


def merged_activity(reports: Sequence[ActivityReport]) -> ActivityReport:
    """One report of several baskets; a client is in one of them."""
    clients: dict[str, ClientActivity] = {}
    baskets: dict[str, float] = {}
    for report in reports:
        clients.update(report.clients)
        baskets.update(report.baskets)
    return ActivityReport(clients, baskets)


__all__ = ["MISCONDUCT", "Standing", "Standings", "merged_activity"]
