"""The checks of a party before it joins an attempt, and of every list of parties that it is shown.

A malicious coordinator can attack in three ways. It can invent parties (a Sybil session), so that an honest
input stands alone among invented ones: a party compares the ids with identities that it knows from elsewhere.
It can show lists too small to hide in: a party insists on the threshold. It can ask for the same input again,
to sum it in two ways: a party remembers its sessions (`SessionGuard`).

A guard lives as long as the identity. It admits the attempts of a session in rising order, and none once an
unmask share of the session was released: the coordinator may hold the sum by then, and a second sum over the
same inputs with other survivors would reveal the difference.

An attempt that released nothing has revealed nothing, since its keys were made for it and are gone. So the
guard keeps only the newest of these sessions, and aborts use nothing up. Released sessions must not be
forgotten. Each of them was charged, so the budget limits how many there can be.

A guard knows only of the shares that its own party gave. A threshold of other parties may have unmasked a sum
that holds the party's input. So whoever hosts the party masks no input again before it knows that nobody will
unmask the attempt in which it was masked before (`actors.secure_parties`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container

from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.secagg.context import SessionContext


def require_roll(party_ids: tuple[str, ...], what: str, *, of: Container[str], at_least: int) -> None:
    """Refuses a list of parties that is unsorted, doubled, foreign, or too short.

    Args:
        what: What it lists, for the refusal.
        of: Who may be on it.
        at_least: The threshold.
    """
    if list(party_ids) != sorted(set(party_ids)):
        raise ProtocolViolation(f"the {what} are not in sorted order, or one is there twice")
    for party in party_ids:
        if party not in of:
            raise ProtocolViolation(f"the {what} name {party!r}, who cannot be among them")
    if len(party_ids) < at_least:
        raise ProtocolViolation(f"{len(party_ids)} {what} are below the threshold of {at_least}")


class SessionGuard:
    """Refuses repeated sessions, attempts out of order, attempts after a release, and other federations'.

    Memory is bounded: ``capacity`` sessions (>= 1) that released nothing, and as many that did. Beyond that
    the released ones of the oldest rounds are forgotten, and every session of such a round is refused from
    then on. Those of the newest round that released anything are always kept.

    Guarantees:
        an_attempt_is_admitted_once
        nothing_is_admitted_after_a_release
        released_sessions_stay_refused
        aborts_use_nothing_up
    """

    def __init__(self, federation_id: str, capacity: int = 1024) -> None:
        self._federation_id = federation_id
        self._capacity = capacity
        self._begun: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._released: dict[bytes, int] = {}
        self._oldest_round = 0

    def admit(self, context: SessionContext) -> None:
        """Takes note of an attempt that is about to begin, before any key is made.

        Raises:
            ProtocolViolation: if the attempt is foreign, repeated, out of order, or after a release.
        """
        if context.federation_id != self._federation_id:
            raise ProtocolViolation("the session belongs to another federation")
        if context.round_id < self._oldest_round:
            raise ProtocolViolation(f"round {context.round_id} is too old to be told from a repetition")
        if context.session_id in self._released:
            raise ProtocolViolation("shares of this session were released; its inputs are not summed again")
        begun = self._begun.get(context.session_id)
        if begun is not None and (context.round_id != begun[0] or context.attempt <= begun[1]):
            raise ProtocolViolation("this attempt of the session was begun before")
        self._begun[context.session_id] = context.round_id, context.attempt
        self._begun.move_to_end(context.session_id)
        while len(self._begun) > self._capacity:
            self._begun.popitem(last=False)

    def mark_released(self, context: SessionContext) -> None:
        """Takes note that unmask shares are about to be released.

        Raises:
            ProtocolViolation: if they were before, or the attempt is not the newest admitted.
        """
        if context.session_id in self._released:
            raise ProtocolViolation("shares of this session were released before")
        if self._begun.get(context.session_id) != (context.round_id, context.attempt):
            raise ProtocolViolation("this attempt is not the newest of its session")
        del self._begun[context.session_id]
        self._released[context.session_id] = context.round_id
        newest = max(self._released.values())
        while len(self._released) > self._capacity:
            oldest = min(self._released.values())
            if oldest == newest:
                return
            self._released = {key: at for key, at in self._released.items() if at > oldest}
            self._oldest_round = oldest + 1
