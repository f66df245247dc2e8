"""Checks an attempt's public messages once for all the participants that one host has.

Adverts, lists of who spoke, and confirmations are the same for every party, and so is what follows from
them: whether they are well formed and authentic, whether enough parties are on a list, their digests, and
the graph. A participant gets these from its host's view. It checks for itself what depends on the party:
that its identity is in the session and itself on each list, its own advert, which messages of its neighbours
must be authentic, and whether it has neighbours enough.

This is as secure as checking everything again. A check is a function of the message and of the attempt's
context, and a view is of one attempt. It answers only for a message that is equal in every field to one that
it has checked, or for the very tuple that it has checked, whose content cannot change. Only what passed is
remembered, so a message that was refused is judged anew. Participants of one host share its memory in any
case; those of different hosts share no view, and each host judges for itself. A participant that is alone
makes a view of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from scarcity_ray.errors import ProtocolViolation, UsageError
from scarcity_ray.secagg import commitments
from scarcity_ray.secagg.admission import require_roll
from scarcity_ray.secagg.context import SessionContext
from scarcity_ray.secagg.graph import Graph
from scarcity_ray.secagg.messages import Advert, Confirmation, checked_batch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Roll:
    """All adverts of an attempt, and what follows from them.

    Attributes:
        adverts: By party.
        digest: Of all adverts.
    """

    adverts: Mapping[str, Advert]
    digest: bytes
    graph: Graph


@dataclass(frozen=True, slots=True)
class Listed:
    """The parties on a list that was checked.

    Attributes:
        digest: Of the list and all before it.
        uncovered: Parties of whose neighbourhood too few are on the list (`Graph.uncovered`).
    """

    members: frozenset[str]
    digest: bytes
    uncovered: frozenset[str]


class _Last(Generic[T]):
    """The last answer, for the very objects that it was about."""

    __slots__ = ("_about", "_answer")

    def __init__(self) -> None:
        self._about: tuple[object, ...] = ()
        self._answer: list[T] = []

    def of(self, about: tuple[object, ...], compute: Callable[[], T]) -> T:
        """Compute the answer, unless it is known; nothing is remembered where that raises."""
        if not self._answer or any(mine is not asked for mine, asked in zip(self._about, about, strict=True)):
            self._answer = [compute()]
            self._about = about
        return self._answer[0]


class PublicView:
    """The public messages of one attempt, checked once for all participants of one host.

    Attributes:
        digest: Of the context.
        keys: Identity keys of its parties, by id.

    Raises:
        ProtocolViolation: if the context, as the coordinator announced it, is malformed.

    Guarantees:
        a_host_verifies_each_signature_once
        what_one_party_alone_is_shown_is_checked_for_it
        what_was_verified_in_one_attempt_vouches_for_nothing_in_another
        a_refused_message_is_refused_again
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
        self.keys = context.keys()
        self._authentic: dict[type, dict[str, Advert | Confirmation]] = {Advert: {}, Confirmation: {}}
        self._known: _Last[bool] = _Last()
        self._roll: _Last[Roll] = _Last()
        self._told: tuple[str, ...] = ()
        self._sharers: _Last[Listed] = _Last()
        self._survivors: _Last[Listed] = _Last()
        self._confirmations: _Last[tuple[dict[str, Confirmation], frozenset[str]]] = _Last()

    def require_known(self, known_parties: Mapping[str, bytes]) -> None:
        """Refuses a context that names a stranger, or another key for a known id.

        Args:
            known_parties: Identity keys by id, from another source than the coordinator; the host changes
                the mapping no more.
        """

        def compare() -> bool:
            for party_id, key in self.keys.items():
                if known_parties.get(party_id) != key:
                    raise ProtocolViolation(f"{party_id!r} is not the party known by that id")
            return True

        self._known.of((known_parties,), compare)

    def roll(self, adverts: tuple[Advert, ...]) -> Roll:
        """The roll of an attempt's adverts; that they are authentic is checked apart, for neighbours.

        Raises:
            ProtocolViolation: if they are malformed, two are of one party, or they are too few.
        """

        def call() -> Roll:
            batch = checked_batch(adverts, Advert, len(self.keys))
            by_party = {advert.party_id: advert for advert in batch}
            ids = tuple(sorted(by_party))
            self._require_roll(ids, "adverts", self.keys)
            digest = commitments.roster_digest(self.digest, batch)
            return Roll(by_party, digest, Graph(self.context, ids, digest))

        return self._roll.of((adverts,), call)

    def require_authentic(self, messages: Iterable[Advert | Confirmation]) -> None:
        """Refuses a message of an unknown party, of another session, or with a false signature."""
        for message in messages:
            known = self._authentic[type(message)]
            if known.get(message.party_id) is not message and known.get(message.party_id) != message:
                commitments.require_authentic(self.keys, self.digest, message)
                known[message.party_id] = message

    def sharers(self, roll: Roll, sharers: tuple[str, ...]) -> Listed:
        """Who shared keys, of a tuple of ids; each inbox may bring the same ones in a tuple of its own.

        Raises:
            ProtocolViolation: if it is no sorted list of parties of the roll, or below the threshold.
        """

        def check() -> Listed:
            self._require_roll(sharers, "sharers", roll.adverts)
            members = frozenset(sharers)
            digest = commitments.sharers_digest(roll.digest, sharers)
            return Listed(members, digest, roll.graph.uncovered(members))

        sharers = self._told = self._told if self._told == sharers else sharers
        return self._sharers.of((roll, sharers), check)

    def survivors(self, roll: Roll, sharers: Listed, survivors: tuple[str, ...]) -> Listed:
        """Whose inputs are in the sum.

        Raises:
            ProtocolViolation: if it is no sorted tuple of sharers, or below the threshold.
        """

        def check() -> Listed:
            if type(survivors) is not tuple or any(type(party) is not str for party in survivors):
                raise ProtocolViolation("expected a tuple of party ids")
            self._require_roll(survivors, "survivors", sharers.members)
            members = frozenset(survivors)
            digest = commitments.survivors_digest(sharers.digest, survivors)
            return Listed(members, digest, roll.graph.uncovered(members))

        return self._survivors.of((roll, sharers, survivors), check)

    def confirmations(
        self, roll: Roll, survivors: Listed, confirmations: tuple[Confirmation, ...]
    ) -> tuple[Mapping[str, Confirmation], frozenset[str]]:
        """Confirmations by party, and the parties of whose neighbourhood too few have confirmed.

        Raises:
            ProtocolViolation: if they are malformed, two are of one party, they are too few, or one is of
                another set of survivors.
        """

        def check() -> tuple[dict[str, Confirmation], frozenset[str]]:
            batch = checked_batch(confirmations, Confirmation, len(self.keys))
            by_party = {message.party_id: message for message in batch}
            self._require_roll(tuple(sorted(by_party)), "confirmations", survivors.members)
            for message in batch:
                if message.survivors_digest != survivors.digest:
                    raise ProtocolViolation(f"{message.party_id!r} confirmed another set of survivors")
            return by_party, roll.graph.uncovered(by_party)

        return self._confirmations.of((roll, survivors, confirmations), check)

    def _require_roll(self, party_ids: tuple[str, ...], what: str, of: Collection[str]) -> None:
        require_roll(party_ids, what, of=of, at_least=self.context.threshold)
