"""A basket actor's side of the sessions of secure aggregation: its baskets' participants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from scarcity_ray.errors import ProtocolViolation, UsageError
from scarcity_ray.layers.layer2 import contribution
from scarcity_ray.layers.models import BasketModel
from scarcity_ray.plan import FederationPlan
from scarcity_ray.roles.basket import Basket
from scarcity_ray.roles.sessions import SessionTerms
from scarcity_ray.secagg import Advert, MaskedInput, Participant


class HostedSession:
    """The participants of one session that live in this actor, and what they contributed."""

    def __init__(self, terms: SessionTerms, plan: FederationPlan) -> None:
        self._terms = terms
        self._plan = plan
        self.participants: dict[str, Participant] = {}
        self.contributed: dict[str, BasketModel | None] = {}

    def open(
        self, party: str, basket: Basket, known: Mapping[str, bytes], model_hash: bytes | None
    ) -> Advert:
        """Make a basket's participant and its advert.

        Raises:
            ProtocolViolation: If the session is not one that the basket may join.
        """
        self.pin(party, basket)
        participant = Participant(
            self._terms.context,
            party,
            basket.identity,
            guard=basket.guard,
            known_parties=known,
            model_hash=model_hash,
        )
        self.participants[party] = participant
        return participant.advertise()

    def pin(self, party: str, basket: Basket) -> None:
        """Fix what the party will contribute; the noise is scaled to the facts that the session froze."""
        frozen = self._terms.facts[party]
        model = basket.fresh_model if frozen.fresh else None
        if frozen.fresh and (model is None or model.facts(frozen.domain_id, frozen.num_members) != frozen):
            raise ProtocolViolation(f"basket {party!r} no longer has the aggregate that the session froze")
        self.contributed[party] = model

    def mask(self, party: str, inbox: Any) -> MaskedInput | None:
        """A party's masked contribution; None if it is not here."""
        participant = self.participants.get(party)
        return None if participant is None else participant.mask(inbox, self.plain(party))

    def plain(self, party: str) -> NDArray[Any]:
        """The party's contribution in the ring."""
        return contribution(self.contributed[party], party, self._terms.release, self._plan)

    def close(self) -> None:
        """Wipe every participant's secrets."""
        for participant in self.participants.values():
            participant.close()
        self.participants.clear()


class HostedSessions:
    """The session that an actor takes part in: at most one at a time, as the global aggregator runs them.

    A session whose global aggregator died is never ended. Its keys are wiped when the actor is told so, and
    no later than when the next session begins. What was handed in to it may be in a release that nobody here
    has heard of (other actors may have unmasked it), so it stays handed in.

    Guarantees:
        a_session_that_nobody_ends_keeps_no_keys: They are wiped when it is abandoned or the next begins.
        one_aggregate_is_masked_in_one_session_at_a_time

    Args:
        plan: The federation's numbers.
        baskets: The actor's baskets, now and later.
    """

    def __init__(self, plan: FederationPlan, baskets: Mapping[str, Basket]) -> None:
        self._plan = plan
        self._baskets = baskets
        self._sessions: dict[str, HostedSession] = {}

    def open(
        self,
        terms: SessionTerms,
        parties: Sequence[str],
        known: Mapping[str, bytes],
        model_hash: bytes | None,
    ) -> dict[str, Advert]:
        """Fresh keys for each party that is here.

        Args:
            terms: The session's.
            parties: Who of this actor is to take part.
            known: Identity keys by basket, from another source than the coordinator.
            model_hash: What the session must be about, by the actor's own reckoning; None skips that check.
        """
        session = self._begin(terms)

        def join(party: str) -> Advert:
            basket = self._baskets[party]
            try:
                return session.open(party, basket, known, model_hash)
            except ProtocolViolation:
                basket.count_refused_session()
                raise

        return by_party([p for p in parties if p in self._baskets], join)

    def each(
        self, session_id: str, parties: Sequence[str], step: Callable[[Participant], Any]
    ) -> dict[str, Any]:
        """What each of the parties that takes part here says in a phase."""
        session = self._sessions.get(session_id)
        if session is None:
            return {}
        participants = session.participants
        return by_party([p for p in parties if p in participants], lambda p: step(participants[p]))

    def mask(self, session_id: str, party: str, inbox: Any) -> MaskedInput | None:
        """A party's masked contribution; None if it is not here."""
        session = self._sessions.get(session_id)
        if session is None or party not in self._baskets:
            return None
        self._baskets[party].hand_in(session.contributed.get(party))
        return session.mask(party, inbox)

    def plain(self, terms: SessionTerms, parties: Sequence[str]) -> dict[str, tuple[str, NDArray[Any]]]:
        """The contributions as they are, where the federation's config has secure aggregation off."""
        if terms.masked:
            raise UsageError("this session is masked")
        if self._plan.config.layer2.use_secure_aggregation:
            raise UsageError("this federation releases nothing without secure aggregation")
        session = self._begin(terms)

        def hand_in(party: str) -> tuple[str, NDArray[Any]]:
            session.pin(party, self._baskets[party])
            self._baskets[party].hand_in(session.contributed[party])
            return party, session.plain(party)

        return by_party([p for p in parties if p in self._baskets], hand_in)

    def spend(self, session_id: str, parties: Sequence[str]) -> None:
        """Note that the parties' contributions may be released now."""
        session = self._sessions.get(session_id)
        for party in parties:
            if session is not None and party in self._baskets:
                self._baskets[party].spend(session.contributed.get(party))

    def end(self, session_id: str, spent: Sequence[str]) -> None:
        """Wipe what is left of a session, and give back what was not spent."""
        self.spend(session_id, spent)
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        for party, model in session.contributed.items():
            if party in self._baskets and party not in spent:
                self._baskets[party].take_back(model)
        session.close()

    def abandon(self) -> None:
        """Wipe the keys of a session that nobody will end."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def _begin(self, terms: SessionTerms) -> HostedSession:
        self.abandon()
        session = self._sessions[terms.session_id] = HostedSession(terms, self._plan)
        return session


def by_party(parties: Sequence[str], step: Callable[[str], Any]) -> dict[str, Any]:
    """Each party's answer; one that refuses answers with its refusal and holds up no other."""
    answers: dict[str, Any] = {}
    for party in parties:
        try:
            answers[party] = step(party)
        except ProtocolViolation as violation:
            answers[party] = violation
    return answers
