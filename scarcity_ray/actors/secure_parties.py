"""A basket actor's side of the sessions of secure aggregation: its baskets' participants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from scarcity_ray.actors import signed_facts
from scarcity_ray.actors.session_terms import SessionTerms
from scarcity_ray.actors.signed_facts import Occasion, SignedFacts
from scarcity_ray.baskets.basket import Basket
from scarcity_ray.errors import ActorLost, ConfigError, LedgerError, ProtocolViolation, UsageError
from scarcity_ray.layers.layer2 import add_share, contribution
from scarcity_ray.layers.models import BasketModel
from scarcity_ray.plan import FederationPlan, ReleasePlan, session_shape
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.secagg import (
    Advert,
    Confirmation,
    MaskedInput,
    Participant,
    PublicView,
    Roster,
    RosterChain,
    SessionContext,
)


@dataclass(frozen=True)
class Belief:
    """What a basket actor knows of a session by itself, from drivers and its own state.

    Attributes:
        plan: The federation's numbers after the last release that it was told of.
        chain: The rosters that it has pinned.
        ledger_head: Of that release; empty for none.
        model_hash: Hash of the model that the session starts from; None where releases are not distributed.
    """

    plan: FederationPlan
    chain: RosterChain
    ledger_head: str = ""
    model_hash: bytes | None = None

    @property
    def known(self) -> Mapping[str, bytes]:
        """Identity keys of who may take part."""
        return self.chain.known()


@dataclass(frozen=True)
class Frozen:
    """What a basket has stated for an attempt.

    Attributes:
        stated: Its signed facts.
        model: The aggregate that they are about, that very one; None for a basket without a fresh one.
    """

    stated: SignedFacts
    model: BasketModel | None


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
        self.handed_in: dict[str, BasketModel] = {}
        self.least_weighted = plan.config.layer2.min_baskets

    def open(
        self, party: str, basket: Basket, frozen: Frozen | None, belief: Belief, view: PublicView
    ) -> Advert:
        """Make a basket's participant and its advert.

        Args:
            party: The basket's id.
            basket: It.
            frozen: What it said of itself for this attempt, and of which aggregate.
            belief: What this actor knows by itself.
            view: What it has checked of this attempt, for all its baskets.

        Raises:
            ProtocolViolation: If the session is not one that the basket may join.
        """
        self.pin(party, basket, frozen)
        participant = Participant(
            self.terms.context,
            party,
            basket.identity,
            guard=basket.guard,
            known_parties=belief.known,
            model_hash=belief.model_hash,
            view=view,
        )
        self.participants[party] = participant
        return participant.advertise()

    def pin(self, party: str, basket: Basket, frozen: Frozen | None) -> None:
        """Fix what the party will contribute; the noise is scaled to the facts that it has stated.

        Raises:
            ProtocolViolation: If the session says anything else of the party than it said itself, or if what
                it said is no longer true.
        """
        if frozen is None or self.terms.facts.get(party) != frozen.stated:
            raise ProtocolViolation(f"the session misstates the facts of basket {party!r}")
        if frozen.stated.facts != basket.facts() or frozen.model is not basket.latest.fresh:
            raise ProtocolViolation(f"basket {party!r} no longer has the aggregate that the session froze")
        self.contributed[party] = frozen.model

    def hand_in(self, party: str, basket: Basket) -> None:
        """Note that the party's aggregate goes into the session's sum.

        Raises:
            ProtocolViolation: If it was replaced, discarded or handed in since the session froze it.
        """
        model = self.contributed.get(party)
        if model is None:
            return
        if model is not basket.latest.fresh:
            raise ProtocolViolation(f"basket {party!r} no longer has the aggregate that the session froze")
        basket.latest.hand_in(model)
        self.handed_in[party] = model

    def confirm(self, party: str, survivors: tuple[str, ...]) -> Confirmation:
        """A party's signature on the survivors, of whom there must be enough with something to hide."""
        participant, release = self.participants[party], self.terms.release
        weighted = release.num_weighted(p for p in set(survivors) if p in release.weights)
        if weighted < self.least_weighted:
            raise ProtocolViolation(
                f"{weighted} survivors of weight; at least {self.least_weighted} are needed"
            )
        return participant.confirm(survivors)

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

    *What was masked is used again only once nobody can unmask it.* The global aggregator's word that a
    session ended without a release is worth nothing: a threshold of other baskets may have unmasked a sum
    with this basket's part in it, of which it has heard nothing since it masked, and a second sum over the
    others would give that part away. So the actor asks the accountant to give up the charge of the attempt. A
    charge and a giving up exclude each other, durably. Where it was charged, the aggregate is spent. Where it
    is given up, no honest basket ever gives a share of the attempt, since each asks for that charge first
    (`actors.charging`), by the digest of the attempt's whole context: the corrupt are fewer than the shares
    that a mask takes, so the masked input stays a uniform vector to all. While the accountant does not
    answer, the aggregate stays handed in. That takes the accountant for what it is, as the charge does.

    Guarantees:
        a_session_of_other_numbers_is_refused: Weights, threshold, graph and scale of the noise are those that
            the actor makes of the facts that each party has signed for this attempt.
        a_basket_whose_own_facts_are_misstated_refuses: In whatever way, left out too.
        no_sum_holds_fewer_of_weight_than_are_needed: Of the survivors; the rest is extra.
        a_session_that_nobody_ends_keeps_no_keys: They are wiped when it is abandoned, the next begins, or its
            time is up.
        one_aggregate_is_masked_in_one_session_at_a_time
        what_was_masked_is_masked_again_only_if_its_session_is_given_up: Whatever the aggregator says.
        what_is_masked_is_what_was_stated: The very aggregate, not one with the same counts.

    Args:
        plan: The federation's numbers.
        federation_id: The federation.
        baskets: The actor's baskets, now and later.
        noise: Where shares of noise come from.
        void: Has a charge given up at a time; whether it is. May raise `ActorLost` or `LedgerError`.
    """

    def __init__(
        self,
        plan: FederationPlan,
        federation_id: str,
        baskets: Mapping[str, Basket],
        noise: NoiseSource,
        void: Callable[[str, float], bool],
    ) -> None:
        self._plan = plan
        self._federation_id = federation_id
        self._baskets = baskets
        self._frozen: dict[str, Frozen] = {}
        self._void = void
        self._unsettled: dict[str, dict[str, BasketModel]] = {}
        self._noise = noise
        self._now = 0.0
        self._sessions: dict[str, HostedSession] = {}

    def tick(self, now: float) -> None:
        """Learn the time, wipe the keys of a session whose time is up, and settle what ended unsettled.

        Args:
            now: Seconds since the epoch.
        """
        self._now = now
        limit = self._plan.config.layer2.session_timeout_seconds
        if any(not abs(now - session.opened_at) < limit for session in self._sessions.values()):
            self.abandon()
        self._settle()

    def state(self, occasion: Occasion, parties: Sequence[str], belief: Belief) -> dict[str, SignedFacts]:
        """Each party's signed statement of its facts, in place of any that it made before.

        Args:
            occasion: What the global aggregator asks for it.
            parties: Who of this actor is asked.
            belief: What this actor knows by itself.
        """
        refusal = _occasion_refusal(occasion, belief, self._federation_id)
        self._frozen.clear()

        def say(party: str) -> SignedFacts:
            basket = self._baskets[party]
            if refusal:
                basket.count_refused_session()
                raise ProtocolViolation(refusal)
            stated = signed_facts.state(basket.facts(), occasion, basket.identity)
            self._frozen[party] = Frozen(stated, basket.latest.fresh)
            return stated

        return by_party([p for p in parties if p in self._baskets], say)

    def open(self, terms: SessionTerms, parties: Sequence[str], belief: Belief) -> dict[str, Advert]:
        """Fresh keys for each party that is here; what is the same for all is checked once.

        Args:
            terms: The session's.
            parties: Who of this actor is to take part.
            belief: What this actor knows by itself.
        """
        self.abandon()
        session, view, refusal = None, None, ""
        try:
            _require_terms(terms)
            view = PublicView(terms.context)
            least_weighted = _least_weighted(terms, belief)
            session = self._begin(terms)
            session.least_weighted = least_weighted
        except ProtocolViolation as violation:
            refusal = str(violation)

        def join(party: str) -> Advert:
            basket = self._baskets[party]
            try:
                if session is None or view is None:
                    raise ProtocolViolation(refusal)
                return session.open(party, basket, self._frozen.pop(party, None), belief, view)
            except ProtocolViolation:
                basket.count_refused_session()
                raise

        return by_party([p for p in parties if p in self._baskets], join)

    def confirm(
        self, session_id: str, parties: Sequence[str], survivors: tuple[str, ...]
    ) -> dict[str, Confirmation]:
        """Each party's signature on the survivors that it was shown."""
        session = self._sessions.get(session_id)
        if session is None:
            return {}
        here = [p for p in parties if p in session.participants]
        return by_party(here, lambda p: session.confirm(p, survivors))

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
        session.hand_in(party, self._baskets[party])
        return session.mask(party, inbox)

    def plain(self, terms: SessionTerms, parties: Sequence[str]) -> dict[str, tuple[str, NDArray[Any]]]:
        """The contributions as they are, where the federation's config has secure aggregation off."""
        if terms.masked:
            raise UsageError("this session is masked")
        if self._plan.config.layer2.use_secure_aggregation:
            raise UsageError("this federation releases nothing without secure aggregation")
        session = self._begin(terms)

        def hand_in(party: str) -> tuple[str, NDArray[Any]]:
            session.pin(party, self._baskets[party], self._frozen.pop(party, None))
            session.hand_in(party, self._baskets[party])
            return party, session.plain(party)

        return by_party([p for p in parties if p in self._baskets], hand_in)

    def spend(self, session_id: str, parties: Sequence[str]) -> None:
        """Note that the parties' contributions may be released now."""
        session = self._sessions.get(session_id)
        for party in parties:
            if session is not None and party in self._baskets:
                self._baskets[party].latest.spend(session.contributed.get(party))

    def end(self, session_id: str, spent: Sequence[str]) -> None:
        """Wipe what is left of a session, and give back what is certain to be in no release.

        Args:
            session_id: The session.
            spent: Parties whose aggregates may be in one, by the global aggregator's word; that the others'
                are not is for the accountant to say. Without masks there is nothing to hide from it.
        """
        self.spend(session_id, spent)
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        session.close()
        left = {party: model for party, model in session.handed_in.items() if party not in spent}
        if not self._plan.config.layer2.use_secure_aggregation:
            self._give_back(left)
        elif left:
            self._unsettled[session.terms.charge_id] = left
            self._settle()

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

    def _settle(self) -> None:
        """Have the charges of sessions that have ended given up; what cannot be is spent."""
        for charge_id, models in list(self._unsettled.items()):
            try:
                given_up = self._void(charge_id, self._now)
            except (ActorLost, LedgerError):
                return
            del self._unsettled[charge_id]
            if given_up:
                self._give_back(models)
            else:
                for party, model in models.items():
                    if party in self._baskets:
                        self._baskets[party].latest.spend(model)

    def _give_back(self, models: Mapping[str, BasketModel]) -> None:
        for party, model in models.items():
            if party in self._baskets:
                self._baskets[party].latest.take_back(model)

    def _begin(self, terms: SessionTerms) -> HostedSession:
        self.abandon()
        session = HostedSession(terms, self._plan, self._noise, self._now)
        self._sessions[terms.session_id] = session
        return session


def _occasion_refusal(occasion: Occasion, belief: Belief, federation_id: str) -> str:
    """Why nothing is stated for an occasion, or nothing."""
    layer2 = belief.plan.config.layer2
    if type(occasion) is not Occasion or occasion.federation_id != federation_id:
        return "the session is another federation's"
    if occasion.ledger_head != belief.ledger_head:
        return "the session is about another last release than this basket actor was given"
    if layer2.use_secure_aggregation and occasion.roster != _roster_digest(belief.chain.newest):
        return "the session is about another roster than this basket actor has pinned"
    return ""


def _require_terms(terms: object) -> None:
    """Refuses what is not exactly of the types that it should be, before anything of it is called.

    Raises:
        ProtocolViolation: Naming what is not.
    """
    if type(terms) is not SessionTerms:
        raise ProtocolViolation(f"these are no terms of a session: {type(terms).__name__}")
    for name, wanted in (("context", SessionContext), ("release", ReleasePlan), ("facts", dict)):
        if type(getattr(terms, name)) is not wanted:
            raise ProtocolViolation(f"the session's {name} is no {wanted.__name__}")
    if terms.masked is not True:
        raise ProtocolViolation("the session's inputs are not to be masked")


def _roster_digest(roster: Roster | None) -> bytes:
    return b"" if roster is None else roster.digest()


def _least_weighted(terms: SessionTerms, belief: Belief) -> int:
    """Parties of weight that every sum of a session must hold, once its numbers are found to be right.

    Nothing is taken from the global aggregator but the statements that the parties signed: who is registered
    comes from the roster, and all numbers are computed from the statements.

    Raises:
        ProtocolViolation: If the session's numbers are not those of this federation and these statements.
    """
    context, plan, roster = terms.context, belief.plan, belief.chain.newest
    layer2, ids = plan.config.layer2, [party.party_id for party in context.parties]
    if roster is None or context.roster != roster.digest():
        raise ProtocolViolation("the session is about another roster than this basket actor has pinned")
    registered = roster.keys()
    unsigned = sum(party not in registered for party in ids)
    occasion = Occasion.of(context, belief.ledger_head)
    if sorted(terms.facts) != ids:
        raise ProtocolViolation("the session does not state the facts of exactly its parties")
    for party in context.parties:
        refusal = signed_facts.refusal(
            party.party_id, party.identity_public, terms.facts[party.party_id], occasion, plan
        )
        if refusal:
            raise ProtocolViolation(refusal)
    if signed_facts.facts_digest(terms.facts, occasion) != context.facts:
        raise ProtocolViolation("the facts are not those that the session is bound to")
    try:
        release = plan.release(
            [terms.facts[party].facts for party in ids], registered=len(registered), unsigned=unsigned
        )
    except ConfigError as error:
        raise ProtocolViolation(f"no release follows from the facts: {error}") from None
    if not terms.release.agrees_with(release):
        raise ProtocolViolation("the release's numbers do not follow from the facts that the parties signed")
    shape = session_shape(
        layer2, len(ids), registered=len(registered), idle=release.num_idle, unsigned=unsigned
    )
    if (context.threshold, context.degree, context.share_threshold) != (
        shape.threshold,
        shape.degree,
        shape.share_threshold,
    ):
        raise ProtocolViolation(f"a session of {len(ids)} baskets needs another threshold or graph")
    if (context.dimension, context.ring_bits) != (release.length, release.ring_bits):
        raise ProtocolViolation("the session's ring is not the release's")
    if refusal := shape.refusal(len(ids) - release.num_idle):
        raise ProtocolViolation(refusal)
    return shape.least_weighted


def by_party(parties: Sequence[str], step: Callable[[str], Any]) -> dict[str, Any]:
    """Each party's answer; one that refuses answers with its refusal and holds up no other."""
    answers: dict[str, Any] = {}
    for party in parties:
        try:
            answers[party] = step(party)
        except ProtocolViolation as violation:
            answers[party] = violation
    return answers
