"""Checks an attempt's public messages once for all the participants that one host has.

Adverts, lists of who spoke, and confirmations are the same for every party, and so is what is computed from
them: whether they are well formed and authentic, their digests, and the graph. A participant gets these from
its host's view. It checks for itself what depends on the party: that its own advert is on the list, which
messages of its neighbours must be authentic, and whether it has neighbours enough.

This is as secure as checking everything again. A check is a function of the message, and the view answers
only for a message that is equal in every field to one that it has checked, or for the same immutable tuple.
Participants of one host share its memory in any case; those of different hosts share no view. A participant
that is alone makes a view of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scarcity_ray.errors import ProtocolViolation, UsageError
from scarcity_ray.secagg import commitments
from scarcity_ray.secagg.context import SessionContext
from scarcity_ray.secagg.graph import Graph
from scarcity_ray.secagg.messages import Advert, Confirmation, SignedMessage, checked_batch


@dataclass(frozen=True, slots=True)
class Roll:
    """All adverts of an attempt, and what follows from them.

    Attributes:
        adverts: By party.
        ids: Sorted.
        digest: Of all adverts.
    """

    adverts: Mapping[str, Advert]
    ids: tuple[str, ...]
    digest: bytes
    graph: Graph


class PublicView:
    """The public messages of one attempt, checked once for all participants of one host.

    Attributes:
        digest: Of the context.
        members: Ids of its parties.

    Raises:
        ProtocolViolation: if the context, as the coordinator announced it, is malformed.

    Guarantees:
        a_host_verifies_each_signature_once
        what_one_party_alone_is_shown_is_checked_for_it
    """

    def __init__(self, context: SessionContext) -> None:
        if type(context) is not SessionContext:
            raise ProtocolViolation(f"expected SessionContext, got {type(context).__name__}")
        try:
            context.check()
        except (UsageError, AttributeError) as error:
            raise ProtocolViolation(f"a malformed session context: {error}") from None
        self.context = context
        self.digest = context.digest()
        self.members = frozenset(party.party_id for party in context.parties)
        self._authentic: set[SignedMessage] = set()
        self._roll: tuple[object, Roll] | None = None
        self._sharers: tuple[object, bytes, bytes] | None = None
        self._survivors: tuple[object, bytes, bytes, frozenset[str]] | None = None
        self._confirmations: tuple[object, dict[str, Confirmation]] | None = None

    def roll(self, adverts: tuple[Advert, ...]) -> Roll:
        """The roll of an attempt's adverts; that they are authentic is checked apart, for neighbours.

        Raises:
            ProtocolViolation: if they are malformed or two are of one party.
        """
        if self._roll is None or self._roll[0] is not adverts:
            batch = checked_batch(adverts, Advert, len(self.context.parties))
            by_party = {advert.party_id: advert for advert in batch}
            ids = tuple(sorted(by_party))
            digest = commitments.roster_digest(self.digest, batch)
            self._roll = adverts, Roll(by_party, ids, digest, Graph(self.context, ids, digest))
        return self._roll[1]

    def require_authentic(self, messages: Iterable[Advert | Confirmation]) -> None:
        """Refuses a message of an unknown party, of another session, or with a false signature."""
        for message in messages:
            if message not in self._authentic:
                commitments.require_authentic(self.context, self.digest, message)
                self._authentic.add(message)

    def sharers_digest(self, roll: Roll, sharers: tuple[str, ...]) -> bytes:
        """The digest of who shared keys, a tuple that was checked."""
        known = self._sharers
        if known is None or known[0] is not sharers or known[1] != roll.digest:
            known = self._sharers = sharers, roll.digest, commitments.sharers_digest(roll.digest, sharers)
        return known[2]

    def survivors(
        self, graph: Graph, sharers_digest: bytes, survivors: tuple[str, ...]
    ) -> tuple[bytes, frozenset[str]]:
        """The digest of a checked tuple of survivors, and those among them with too few neighbours in it."""
        known = self._survivors
        if known is None or known[0] is not survivors or known[1] != sharers_digest:
            digest = commitments.survivors_digest(sharers_digest, survivors)
            present = frozenset(survivors)
            alone = frozenset(party for party in survivors if not graph.is_covered(party, present))
            known = self._survivors = survivors, sharers_digest, digest, alone
        return known[2], known[3]

    def confirmations(self, confirmations: tuple[Confirmation, ...]) -> dict[str, Confirmation]:
        """Confirmations by party, in the order of their ids.

        Raises:
            ProtocolViolation: if they are malformed or two are of one party.
        """
        if self._confirmations is None or self._confirmations[0] is not confirmations:
            batch = checked_batch(confirmations, Confirmation, len(self.context.parties))
            ordered = sorted(batch, key=lambda message: message.party_id)
            self._confirmations = confirmations, {message.party_id: message for message in ordered}
        return self._confirmations[1]
