"""A basket actor's side of the sessions of secure aggregation: its baskets' participants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from scarcity_ray.errors import ProtocolViolation, UsageError
from scarcity_ray.layers.layer2 import add_share, contribution
from scarcity_ray.layers.models import BasketModel
from scarcity_ray.plan import FederationPlan, session_shape
from scarcity_ray.privacy.noise import NoiseSource
from scarcity_ray.roles.basket import Basket
from scarcity_ray.roles.sessions import SessionTerms
from scarcity_ray.secagg import Advert, MaskedInput, Participant


class HostedSession:
    """The participants of one session that live in this actor, and what they contributed.

    Args:
        terms: What the global aggregator says of the session.
        plan: The federation's numbers.
        noise: Where shares of noise come from.
        opened_at: Seconds since the epoch.
    """

    def __init__(
        self, terms: SessionTerms, plan: FederationPlan, noise: NoiseSource, opened_at: float
    ) -> None:
        self.terms = terms
        self.opened_at = opened_at
        self._plan = plan
        self._noise = noise
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
            self.terms.context,
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
        frozen = self.terms.facts[party]
        model = basket.latest.fresh if frozen.fresh else None
        if frozen.fresh and (model is None or model.facts(frozen.domain_id, frozen.num_members) != frozen):
            raise ProtocolViolation(f"basket {party!r} no longer has the aggregate that the session froze")
        self.contributed[party] = model

    def mask(self, party: str, inbox: Any) -> MaskedInput | None:
        """A party's masked contribution; None if it is not here."""
        participant = self.participants.get(party)
        return None if participant is None else participant.mask(inbox, self.plain(party))

    def plain(self, party: str) -> NDArray[Any]:
        """The party's contribution in the ring, with its share of the noise where noise comes in shares.

        A share is drawn anew whenever this is called, so once an attempt. Of an attempt that was aborted the
        global aggregator keeps the masked inputs, and these tell it nothing of input or share: the self mask
        on each is the keystream of a seed made for this attempt, whose shares are given out in `unmask`
        alone, after which the attempt is not repeated. So of all attempts at a release one noised sum is
        learned, and its shares are independent of whatever else was ever masked.
        """
        context, release = self.terms.context, self.terms.release
        part = contribution(self.contributed[party], party, release, self._plan)
        return add_share(part, release, self._noise, f"layer2/{context.round_id}/{context.attempt}/{party}")

    def close(self) -> None:
        """Wipe every participant's secrets."""
        for participant in self.participants.values():
            participant.close()
        self.participants.clear()


class HostedSessions:
    """The session that an actor takes part in: at most one at a time, as the global aggregator runs them.

    A session whose global aggregator died is never ended. Its keys are wiped when the actor is told so, when
    the next session begins, or, where the drivers died too, when the actor is next told a time that lies
    ``layer2.session_timeout_seconds`` from when it began (before it, too: a time that was wrong once keeps no
    keys for ever). What was handed in to it may be in a release that nobody here
    has heard of (other actors may have unmasked it), so it stays handed in.

    Guarantees:
        a_session_of_other_numbers_is_refused: Weights, threshold, graph and scale of the noise are those that
            the actor makes of the facts that the session states; each basket's own must be true.
        a_session_that_nobody_ends_keeps_no_keys: They are wiped when it is abandoned, the next begins, or its
            time is up.
        one_aggregate_is_masked_in_one_session_at_a_time

    Args:
        plan: The federation's numbers.
        baskets: The actor's baskets, now and later.
        noise: Where shares of noise come from.
    """

    def __init__(self, plan: FederationPlan, baskets: Mapping[str, Basket], noise: NoiseSource) -> None:
        self._plan = plan
        self._baskets = baskets
        self._noise = noise
        self._now = 0.0
        self._sessions: dict[str, HostedSession] = {}

    def tick(self, now: float) -> None:
        """Learn the time, and wipe the keys of a session whose time is up.

        Args:
            now: Seconds since the epoch.
        """
        self._now = now
        limit = self._plan.config.layer2.session_timeout_seconds
        if any(not abs(now - session.opened_at) < limit for session in self._sessions.values()):
            self.abandon()

    def open(
        self,
        terms: SessionTerms,
        parties: Sequence[str],
        plan: FederationPlan,
        known: Mapping[str, bytes],
        model_hash: bytes | None,
    ) -> dict[str, Advert]:
        """Fresh keys for each party that is here.

        Args:
            terms: The session's.
            parties: Who of this actor is to take part.
            plan: The federation's numbers after the last release that the actor was told of.
            known: Identity keys by basket, from another source than the coordinator.
            model_hash: What the session must be about, by the actor's own reckoning; None skips that check.
        """
        session = self._begin(terms)
        refusal = _refusal(terms, plan)

        def join(party: str) -> Advert:
            basket = self._baskets[party]
            try:
                if refusal is not None:
                    raise ProtocolViolation(refusal)
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
        self._baskets[party].latest.hand_in(session.contributed.get(party))
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
            self._baskets[party].latest.hand_in(session.contributed[party])
            return party, session.plain(party)

        return by_party([p for p in parties if p in self._baskets], hand_in)

    def spend(self, session_id: str, parties: Sequence[str]) -> None:
        """Note that the parties' contributions may be released now."""
        session = self._sessions.get(session_id)
        for party in parties:
            if session is not None and party in self._baskets:
                self._baskets[party].latest.spend(session.contributed.get(party))

    def end(self, session_id: str, spent: Sequence[str]) -> None:
        """Wipe what is left of a session, and give back what was not spent."""
        self.spend(session_id, spent)
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        for party, model in session.contributed.items():
            if party in self._baskets and party not in spent:
                self._baskets[party].latest.take_back(model)
        session.close()

    def terms_of(self, session_id: str) -> SessionTerms | None:
        """What was said of a session; None if it is not here."""
        session = self._sessions.get(session_id)
        return None if session is None else session.terms

    def count_refusal(self, parties: Sequence[str]) -> None:
        """Count a session that the parties went no further with."""
        for party in set(parties) & set(self._baskets):
            self._baskets[party].count_refused_session()

    def abandon(self) -> None:
        """Wipe the keys of a session that nobody will end."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def _begin(self, terms: SessionTerms) -> HostedSession:
        self.abandon()
        session = HostedSession(terms, self._plan, self._noise, self._now)
        self._sessions[terms.session_id] = session
        return session


def _refusal(terms: SessionTerms, plan: FederationPlan) -> str | None:
    """Why a session's numbers are not those of this federation, or None.

    Noise in shares is to protect from the global aggregator, so its scale is not taken from it.
    """
    context, ids = terms.context, [party.party_id for party in terms.context.parties]
    shape = session_shape(plan.config.layer2, len(ids))
    if (context.threshold, context.degree, context.share_threshold) != (
        shape.threshold,
        shape.degree,
        shape.share_threshold,
    ):
        return f"a session of {len(ids)} baskets needs another threshold or graph"
    if any(party not in terms.facts or terms.facts[party].basket_id != party for party in ids):
        return "the session states no facts about one of its parties"
    if not terms.release.agrees_with(plan.release([terms.facts[party] for party in ids])):
        return "the release's numbers do not follow from the facts that the session states"
    if (context.dimension, context.ring_bits) != (terms.release.length, terms.release.ring_bits):
        return "the session's ring is not the release's"
    return None


def by_party(parties: Sequence[str], step: Callable[[str], Any]) -> dict[str, Any]:
    """Each party's answer; one that refuses answers with its refusal and holds up no other."""
    answers: dict[str, Any] = {}
    for party in parties:
        try:
            answers[party] = step(party)
        except ProtocolViolation as violation:
            answers[party] = violation
    return answers
