"""What a party checks before it joins an attempt, and of every list of parties that it is shown.

The coordinator names the parties. Against one that invents them (a Sybil session, in which an honest input
would stand alone among invented ones) a party compares them with identities that it knows from elsewhere;
against one that shows lists too small to hide in, it holds the threshold; and against one that asks for the
same input again, to sum it in two ways, it remembers its sessions.

One guard lives as long as the identity. It admits the attempts of a session in rising order, and nothing more
of a session once an unmask share of it was released: from then on the coordinator may hold the sum, and a
second sum over the same inputs and another set of survivors would give their difference away.

An attempt that was not released has told nothing: its keys were made for it and are gone. So of those the
newest few sessions are enough, and aborts, however many, use nothing up. What was released is what must not
be forgotten; each release was charged, so nobody can have more of them made than the budget allows.

A guard knows only of the shares that its own party gave. A threshold of others may have unmasked a sum that
holds the party's input: whoever holds the party masks no input again before it knows that nobody will unmask
the attempt in which it was masked before (`actors.secure_parties`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Mapping

from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.secagg.context import SessionContext
from scarcity_ray.secagg.identity import IdentityKeyPair


def require_joinable(
    context: SessionContext,
    party_id: str,
    identity: IdentityKeyPair,
    known_parties: Mapping[str, bytes] | None,
    model_hash: bytes | None,
) -> None:
    """Refuses a context that names not this party, names strangers, or another model.

    Args:
        context: As the coordinator announced it; well formed.
        party_id: This party's id.
        identity: This party's identity.
        known_parties: Identity keys by id, from another source than the coordinator; None skips that check.
        model_hash: Hash of the global model that this party started from; None skips that check.
    """
    position = context.position(party_id)
    if position is None or context.parties[position].identity_public != identity.public_bytes:
        raise ProtocolViolation(f"this session does not name {party_id!r} with this identity")
    if model_hash is not None and context.model_hash != model_hash:
        raise ProtocolViolation("this session is about another model than this party was given")
    if known_parties is not None:
        for party in context.parties:
            if known_parties.get(party.party_id) != party.identity_public:
                raise ProtocolViolation(f"{party.party_id!r} is not the party known by that id")


def require_roll(
    party_ids: tuple[str, ...], what: str, *, of: Container[str], including: str, at_least: int
) -> None:
    """Refuses a list of parties that is unsorted, doubled, foreign, without this party, or too short.

    Args:
        party_ids: The list.
        what: What it lists, for the refusal.
        of: Who may be on it.
        including: Who must be on it: this party.
        at_least: The threshold.
    """
    if list(party_ids) != sorted(set(party_ids)):
        raise ProtocolViolation(f"the {what} are not in sorted order, or one is there twice")
    for party in party_ids:
        if party not in of:
            raise ProtocolViolation(f"the {what} name {party!r}, who cannot be among them")
    if including not in party_ids:
        raise ProtocolViolation(f"the {what} leave this party out")
    if len(party_ids) < at_least:
        raise ProtocolViolation(f"{len(party_ids)} {what} are below the threshold of {at_least}")


class SessionGuard:
    """Refuses repeated sessions, attempts out of order, and attempts after a release.

    Memory is bounded: ``capacity`` sessions that released nothing, and as many that did; beyond that the
    released ones of the oldest rounds are forgotten, and every session of such a round is refused from then
    on. Those of the newest round that released anything are kept, however many were charged in it.

    Guarantees:
        * `an_attempt_is_admitted_once`
        * `nothing_is_admitted_after_a_release`
        * `released_sessions_stay_refused`
        * `aborts_use_nothing_up`
    """

    def __init__(self, federation_id: str, capacity: int = 1024) -> None:
        """Starts with an empty memory.

        Args:
            federation_id: The only federation whose sessions are admitted.
            capacity: Sessions of either kind that are remembered (>= 1).
        """
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
