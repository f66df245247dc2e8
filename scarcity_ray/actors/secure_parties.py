"""A basket actor's side of secure aggregation: its baskets as parties, phase by phase.

`SecureParties` is told who is registered and what was released last (by drivers), has each basket state its
facts for an attempt, and takes part in one attempt at a time with those baskets whose terms hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from numpy.typing import NDArray

from scarcity_ray.actors import signed_facts
from scarcity_ray.actors.charging import BasketCharges
from scarcity_ray.actors.messages import operator_key_of
from scarcity_ray.actors.session_terms import LastRelease, SessionTerms, check_types, least_weighted
from scarcity_ray.actors.signed_facts import Occasion, SignedFacts
from scarcity_ray.baskets.basket import Basket
from scarcity_ray.directory.records import OrderNumber
from scarcity_ray.errors import ActorLost, LedgerError, ProtocolViolation, UsageError
from scarcity_ray.layers.layer2 import add_share, contribution
from scarcity_ray.layers.models import BasketModel
from scarcity_ray.plan import FederationPlan
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.secagg import (
    Advert,
    Confirmation,
    Endorsement,
    Inbox,
    MaskedInput,
    Participant,
    PublicView,
    Roster,
    RosterChain,
    UnmaskShares,
)

T = TypeVar("T")

Answers: TypeAlias = dict[str, T | ProtocolViolation]
"""What each party says in a phase, or why it says nothing."""


@dataclass(frozen=True)
class PartyKnowledge:
    """What a basket actor answers when it is told who is registered.

    Attributes:
        version: Of the last release that was distributed to it; 0 for none.
        epoch: Of the roster that it has pinned; 0 for none.
        refusal: Why it went no further, or nothing.
        overtaken: If the roster was of a directory that it obeys no longer: the lowest order that it obeys.
    """

    version: int
    keys: dict[str, bytes]
    epoch: int
    refusal: str = ""
    overtaken: OrderNumber | None = None


@dataclass(frozen=True)
class Frozen:
    """What a basket has stated for an attempt, and the very aggregate that it is about, if it has one."""

    stated: SignedFacts
    model: BasketModel | None


class Attempt:
    """One attempt at a session: this actor's participants, and what they have handed in to the sum."""

    def __init__(
        self,
        terms: SessionTerms,
        plan: FederationPlan,
        noise: NoiseSource,
        opened_at: float,
        least_weighted: int = 0,
    ) -> None:
        self.terms = terms
        self.session_id = terms.session_id
        self.opened_at = opened_at
        self.participants: dict[str, Participant] = {}
        self.handed_in: dict[str, BasketModel] = {}
        self._plan = plan
        self._noise = noise
        self._least_weighted = least_weighted
        self._contributed: dict[str, BasketModel | None] = {}

    def pin(self, party: str, basket: Basket, frozen: Frozen | None) -> None:
        """Fix what the party will contribute; the noise is scaled to the facts that it has stated.

        Raises:
            ProtocolViolation: If the session says anything else of the party than it said itself, or if what
                it said is no longer true.
        """
        if frozen is None or self.terms.facts.get(party) != frozen.stated:
            raise ProtocolViolation(f"the session misstates the facts of basket {party!r}")
        if frozen.stated.facts != basket.facts() or frozen.model is not basket.latest.fresh:
            raise _changed(party)
        self._contributed[party] = frozen.model

    def hand_in(self, party: str, basket: Basket) -> NDArray[Any]:
        """Note that the party's aggregate goes into the session's sum; its part of that sum, in the ring.

        Where noise comes in shares the part holds one. A share is drawn anew whenever this is called, so once
        an attempt. Of an attempt that was aborted the global aggregator keeps the masked inputs, and these
        tell it nothing of input or share: the self mask on each is the keystream of a seed made for this
        attempt, whose shares are given out as it unmasks alone, after which the attempt is not repeated. So
        of all attempts at a release one noised sum is learned, and its shares are independent of whatever
        else was ever masked.

        Raises:
            ProtocolViolation: If the aggregate was replaced, discarded or handed in since the session froze
                it.
        """
        model = self._contributed[party]
        if model is not None:
            if model is not basket.latest.fresh:
                raise _changed(party)
            basket.latest.hand_in(model)
            self.handed_in[party] = model
        context, release = self.terms.context, self.terms.release
        part = contribution(model, party, release, self._plan)
        return add_share(part, release, self._noise, f"layer2/{context.round_id}/{context.attempt}/{party}")

    def confirm(self, party: str, survivors: tuple[str, ...]) -> Confirmation:
        """A party's signature on the survivors, of whom there must be enough with something to hide."""
        release = self.terms.release
        weighted = release.num_weighted(p for p in set(survivors) if p in release.weights)
        if weighted < self._least_weighted:
            raise ProtocolViolation(
                f"{weighted} survivors of weight; at least {self._least_weighted} are needed"
            )
        return self.participants[party].confirm(survivors)

    def spend(self, party: str, basket: Basket) -> None:
        """Note that the party's contribution may be released now."""
        basket.latest.spend(self._contributed.get(party))

    def close(self) -> None:
        """Wipe every participant's secrets."""
        for participant in self.participants.values():
            participant.close()
        self.participants.clear()


class SecureParties:
    """An actor's baskets in secure aggregation: in one attempt at a time, as the global aggregator runs them.

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

    Attributes:
        chain: The rosters that are pinned.
        attempt: What the actor takes part in.
    """

    def __init__(
        self,
        plan: FederationPlan,
        federation_id: str,
        baskets: Mapping[str, Basket],
        noise: NoiseSource,
        charges: BasketCharges,
        last: LastRelease,
    ) -> None:
        self._plan = plan
        self._federation_id = federation_id
        self._baskets = baskets
        self._noise = noise
        self._charges = charges
        self._last = last
        self.chain = RosterChain(federation_id, operator_key_of(plan.config))
        self.attempt: Attempt | None = None
        self._frozen: dict[str, Frozen] = {}
        self._unsettled: dict[str, dict[str, BasketModel]] = {}
        self._now = 0.0

    def own_keys(self) -> dict[str, bytes]:
        """Ed25519 public bytes of the baskets that are here."""
        return {basket_id: basket.identity.public_bytes for basket_id, basket in self._baskets.items()}

    def tick(self, now: float) -> None:
        """Learn the time, wipe the keys of a session whose time is up, and settle what ended unsettled."""
        self._now = now
        limit = self._plan.config.layer2.session_timeout_seconds
        if self.attempt is not None and not abs(now - self.attempt.opened_at) < limit:
            self.abandon()
        self._settle()

    def know(
        self, rosters: Sequence[Roster], endorsements: Sequence[Endorsement], life: int, obeyed: OrderNumber
    ) -> PartyKnowledge:
        """See `BasketHost.know_parties`; `obeyed` is the lowest order of a directory that the actor obeys."""
        own = self.own_keys()
        if rosters and life < obeyed.life:
            late = "this roster is of a directory that has died since"
            return PartyKnowledge(self._last.version, own, self.chain.epoch, late, obeyed)
        stolen = self.chain.misnamed(rosters, own)
        if stolen:
            self._count_refusal(stolen)
            refusal = (
                f"the roster names its baskets under keys that are not theirs: {', '.join(stolen)}; "
                "if it died and came back, the operator must sign the next roster"
            )
        else:
            refusal = self.chain.follow(rosters)
        self.chain.endorse(endorsements)
        return PartyKnowledge(self._last.version, own, self.chain.epoch, refusal)

    def sign_facts(self, occasion: Occasion, parties: Sequence[str]) -> Answers[SignedFacts]:
        """Each party's signed statement of its facts, in place of any that it made before."""
        refusal = self._occasion_refusal(occasion)
        self._frozen.clear()

        def sign(party: str) -> SignedFacts:
            basket = self._baskets[party]
            if refusal:
                basket.count_refused_session()
                raise ProtocolViolation(refusal)
            stated = signed_facts.state(basket.facts(), occasion, basket.identity)
            self._frozen[party] = Frozen(stated, basket.latest.fresh)
            return stated

        return _by_party(parties, self._baskets, sign)

    def advertise(self, terms: SessionTerms, parties: Sequence[str]) -> Answers[Advert]:
        """Fresh keys for each party that is here; what is the same for all is checked once."""
        self.abandon()
        refusal: str | None = None
        try:
            check_types(terms)
            view = PublicView(terms.context)
            least = least_weighted(terms, self._last.plan, self.chain.newest, self._last.ledger_head)
            attempt = self._begin(terms, least)
            known, model_hash = self.chain.known(), self._last.agreement_hash(terms.release)
        except ProtocolViolation as violation:
            refusal = str(violation)

        def join(party: str) -> Advert:
            basket = self._baskets[party]
            try:
                if refusal is not None:
                    raise ProtocolViolation(refusal)
                attempt.pin(party, basket, self._frozen.pop(party, None))
                participant = Participant(
                    terms.context,
                    party,
                    basket.identity,
                    guard=basket.guard,
                    known_parties=known,
                    model_hash=model_hash,
                    view=view,
                )
                attempt.participants[party] = participant
                return participant.advertise()
            except ProtocolViolation:
                basket.count_refused_session()
                raise

        return _by_party(parties, self._baskets, join)

    def each(self, session_id: str, parties: Sequence[str], step: Callable[[Attempt, str], T]) -> Answers[T]:
        """What each of the parties that takes part says in a phase."""
        attempt = self._current(session_id)
        if attempt is None:
            return {}
        return _by_party(parties, attempt.participants, lambda party: step(attempt, party))

    def mask(self, session_id: str, party: str, inbox: Inbox) -> MaskedInput | None:
        """A party's masked contribution; None if it is not here."""
        attempt, basket = self._current(session_id), self._baskets.get(party)
        if attempt is None or basket is None or party not in attempt.participants:
            return None
        return attempt.participants[party].mask(inbox, attempt.hand_in(party, basket))

    def unmask(
        self, session_id: str, parties: Sequence[str], confirmations: tuple[Confirmation, ...], now: float
    ) -> Answers[UnmaskShares]:
        """Each party's shares, once the release is charged; from here on its aggregate is spent."""
        self.tick(now)
        attempt = self._current(session_id)
        if attempt is None:
            return {}
        try:
            self._charges.release(attempt.terms.charge_id, attempt.terms.release.mu, now)
        except ProtocolViolation:
            self._count_refusal(parties)
            raise
        self._spend(attempt, parties)
        return self.each(session_id, parties, lambda at, party: at.participants[party].unmask(confirmations))

    def contribute(self, terms: SessionTerms, parties: Sequence[str]) -> Answers[tuple[str, NDArray[Any]]]:
        """The contributions as they are, where the federation's config has secure aggregation off."""
        if terms.masked:
            raise UsageError("this session is masked")
        if self._plan.config.layer2.use_secure_aggregation:
            raise UsageError("this federation releases nothing without secure aggregation")
        attempt = self._begin(terms)

        def hand_in(party: str) -> tuple[str, NDArray[Any]]:
            basket = self._baskets[party]
            attempt.pin(party, basket, self._frozen.pop(party, None))
            return party, attempt.hand_in(party, basket)

        return _by_party(parties, self._baskets, hand_in)

    def end(self, session_id: str, spent: Sequence[str]) -> None:
        """Wipe what is left of a session, and give back what is certain to be in no release.

        By the global aggregator's word the aggregates of the `spent` may be in one; that the others' are not
        is for the accountant to say. Without masks there is nothing to hide from it.
        """
        attempt = self._current(session_id)
        if attempt is None:
            return
        self._spend(attempt, spent)
        self.abandon()
        left = {party: model for party, model in attempt.handed_in.items() if party not in spent}
        if not self._plan.config.layer2.use_secure_aggregation:
            self._resolve(left, in_no_release=True)
        elif left:
            self._unsettled[attempt.terms.charge_id] = left
            self._settle()

    def abandon(self) -> None:
        """Wipe the keys of a session that nobody will end."""
        if self.attempt is not None:
            self.attempt.close()
        self.attempt = None

    def _begin(self, terms: SessionTerms, least: int = 0) -> Attempt:
        self.abandon()
        self.attempt = Attempt(terms, self._plan, self._noise, self._now, least)
        return self.attempt

    def _current(self, session_id: str) -> Attempt | None:
        here = self.attempt is not None and self.attempt.session_id == session_id
        return self.attempt if here else None

    def _occasion_refusal(self, occasion: Occasion) -> str:
        """Why nothing is stated for an occasion, or nothing."""
        if type(occasion) is not Occasion or occasion.federation_id != self._federation_id:
            return "the session is another federation's"
        if occasion.ledger_head != self._last.ledger_head:
            return "the session is about another last release than this basket actor was given"
        pinned = b"" if self.chain.newest is None else self.chain.newest.digest()
        if self._plan.config.layer2.use_secure_aggregation and occasion.roster != pinned:
            return "the session is about another roster than this basket actor has pinned"
        return ""

    def _count_refusal(self, parties: Sequence[str]) -> None:
        """Count a session that the parties went no further with."""
        for party in set(parties) & set(self._baskets):
            self._baskets[party].count_refused_session()

    def _spend(self, attempt: Attempt, parties: Sequence[str]) -> None:
        for party in parties:
            if party in self._baskets:
                attempt.spend(party, self._baskets[party])

    def _settle(self) -> None:
        """Have the charges of sessions that have ended given up; what cannot be is spent."""
        for charge_id, models in list(self._unsettled.items()):
            try:
                given_up = self._charges.void(charge_id, self._now)
            except (ActorLost, LedgerError):
                return
            del self._unsettled[charge_id]
            self._resolve(models, in_no_release=given_up)

    def _resolve(self, models: Mapping[str, BasketModel], *, in_no_release: bool) -> None:
        for party, model in models.items():
            if party in self._baskets:
                latest = self._baskets[party].latest
                (latest.take_back if in_no_release else latest.spend)(model)


def _changed(party: str) -> ProtocolViolation:
    return ProtocolViolation(f"basket {party!r} no longer has the aggregate that the session froze")


def _by_party(parties: Sequence[str], here: Mapping[str, object], step: Callable[[str], T]) -> Answers[T]:
    """The answer of each party that is here; one that refuses answers with that, and holds up no other."""
    answers: Answers[T] = {}
    for party in parties:
        if party in here:
            try:
                answers[party] = step(party)
            except ProtocolViolation as violation:
                answers[party] = violation
    return answers
