"""A basket actor's side of secure aggregation: its baskets as parties, phase by phase.

Drivers tell `SecureParties` which baskets are registered and what was released last. Each basket signs its
facts for an attempt, and joins it if the session's terms are right. An actor takes part in one attempt at a
time.
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
    Agreements,
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
"""Each party's message in a phase, or why it refuses."""


@dataclass(frozen=True)
class PartyKnowledge:
    """A basket actor's answer to `BasketHost.know_parties`.

    Attributes:
        version: Of the last release that was distributed to it; 0 for none.
        keys: Identity keys of its baskets.
        epoch: Of the roster that it has pinned; 0 for none.
        refusal: Why it pinned no newer one, or empty.
        overtaken: If the roster came from a directory that died: the lowest order that the actor obeys.
    """

    version: int
    keys: dict[str, bytes]
    epoch: int
    refusal: str = ""
    overtaken: OrderNumber | None = None


@dataclass(frozen=True)
class Frozen:
    """The facts that a basket has signed for an attempt, and the aggregate that they are about, if any."""

    stated: SignedFacts
    model: BasketModel | None


class Attempt:
    """One attempt at a session: this actor's participants, and the aggregates that they have handed in."""

    def __init__(
        self,
        terms: SessionTerms,
        plan: FederationPlan,
        noise: NoiseSource,
        opened_at: float,
        least_weighted: int = 0,
        num_left_out: int = 0,
    ) -> None:
        self.terms = terms
        self.session_id = terms.session_id
        self.charge_id = terms.charge_id
        self.opened_at = opened_at
        self.num_left_out = num_left_out
        self.participants: dict[str, Participant] = {}
        self.handed_in: dict[str, BasketModel] = {}
        self._survivors: dict[str, tuple[str, ...]] = {}
        self._counted: tuple[str, ...] | None = None
        self._plan = plan
        self._noise = noise
        self._least_weighted = least_weighted
        self._contributed: dict[str, BasketModel | None] = {}

    def pin(self, party: str, basket: Basket, frozen: Frozen | None) -> None:
        """Fix what the party will contribute; the noise is scaled to the facts that it has stated.

        Raises:
            ProtocolViolation: If the session's facts of the party are not those that it signed, or are no
                longer true.
        """
        if frozen is None or self.terms.facts.get(party) != frozen.stated:
            raise ProtocolViolation(f"the session misstates the facts of basket {party!r}")
        if frozen.stated.facts != basket.facts() or frozen.model is not basket.latest.fresh:
            raise _changed(party)
        self._contributed[party] = frozen.model

    def hand_in(self, party: str, basket: Basket) -> NDArray[Any]:
        """Note that the party's aggregate goes into the session's sum; its part of that sum, in the ring.

        Where noise comes in shares, the part contains a new one. The masked inputs of an aborted attempt tell
        the global aggregator nothing of input or share: each has a self mask from a seed made for this
        attempt, whose shares are only given out to unmask it, and an attempt that was unmasked is not
        repeated. So of all attempts at a release one noised sum is learned, with noise shares that are in no
        other.

        Raises:
            ProtocolViolation: If the aggregate was replaced, discarded or handed in after the session froze
                it.
        """
        model = self._contributed[party]
        if model is not None:
            if model is not basket.latest.fresh:
                raise _changed(party)
            basket.latest.hand_in(model, self.charge_id)
            self.handed_in[party] = model
        context, release = self.terms.context, self.terms.release
        part = contribution(model, party, release, self._plan)
        return add_share(part, release, self._noise, f"layer2/{context.round_id}/{context.attempt}/{party}")

    def confirm(self, party: str, survivors: tuple[str, ...]) -> Confirmation:
        """A party's signature on the survivors, of whom enough must have weight.

        They are counted once for all parties that are told the same tuple, which one of them has signed.
        """
        release = self.terms.release
        if survivors is not self._counted:
            weighted = release.num_weighted(p for p in set(survivors) if p in release.weights)
            if weighted < self._least_weighted:
                raise ProtocolViolation(
                    f"{weighted} survivors of weight; at least {self._least_weighted} are needed"
                )
        confirmation = self.participants[party].confirm(survivors)
        self._counted = self._survivors[party] = survivors
        return confirmation

    def dropped(self) -> list[str]:
        """Who took part and is not in the sum that this actor's parties have confirmed.

        Raises:
            ProtocolViolation: If they have confirmed none, or different sums.
        """
        confirmed = set(self._survivors.values())
        if len(confirmed) != 1:
            raise ProtocolViolation(f"baskets of one actor have confirmed {len(confirmed)} sets of survivors")
        everybody = {party.party_id for party in self.terms.context.parties}
        return sorted(everybody.difference(confirmed.pop()))

    def spend(self, party: str, basket: Basket) -> None:
        """Note that the party's contribution may be released from now on."""
        basket.latest.spend(self._contributed.get(party))

    def close(self) -> None:
        """Wipe every participant's secrets."""
        for participant in self.participants.values():
            participant.close()
        self.participants.clear()


class SecureParties:
    """An actor's baskets as parties of secure aggregation.

    *Keys of a session that nobody ends* (its global aggregator died, or the message was lost) are wiped when
    the actor is told so, when the next session is prepared, or when the actor is next told a time that is at
    least ``layer2.session_timeout_seconds`` away from the session's begin.

    *A masked aggregate is used again only once its session can no longer be unmasked.* The actor does not
    believe the global aggregator that a session ended without a release, and may hear of no end at all: a
    threshold of other baskets may have unmasked a sum with this basket's part, and a second sum over the
    others would reveal that part. So the actor asks the accountant to void the attempt's charge. A charge
    is either made or voided, durably. If it is voided, no honest basket gives a share of the attempt, since
    each asks for that charge first (`actors.charging`); the corrupt baskets are fewer than the shares that a
    mask needs, so the masked input stays uniformly random to them. If it was made, it names the baskets that
    had dropped out, the same ones in every budget period, and honest baskets give shares for that sum alone:
    of a basket that is named they give the key's, never the seed's, so its masked input stays as random, and
    its aggregate is used again. Any other is spent. While the accountant does not answer, the aggregate stays
    handed in.

    Guarantees:
        a_session_of_other_numbers_is_refused: Weights, threshold, graph and noise scale must be those that
            the actor computes from the facts that the parties signed for this attempt.
        a_basket_whose_own_facts_are_misstated_refuses: Also if they are left out.
        no_sum_holds_fewer_of_weight_than_are_needed: Counted over the survivors.
        a_session_that_nobody_ends_keeps_no_keys
        what_a_session_without_an_end_was_given_is_settled_when_the_accountant_answers
        one_aggregate_is_masked_in_one_session_at_a_time
        what_was_masked_is_masked_again_only_if_its_session_is_given_up: Whatever the aggregator says. Or if
            the session was charged as one that its basket had dropped out of.
        what_is_masked_is_what_was_stated: The same aggregate, not one with the same counts.

    Attributes:
        chain: The pinned rosters.
        attempt: The attempt that the actor takes part in.
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
        """Identity keys of the actor's baskets, Ed25519 public bytes."""
        return {basket_id: basket.identity.public_bytes for basket_id, basket in self._baskets.items()}

    def tick(self, now: float) -> None:
        """Take the time, wipe the keys of a session that has timed out, and settle ended sessions."""
        self._now = now
        limit = self._plan.config.layer2.session_timeout_seconds
        if self.attempt is not None and not abs(now - self.attempt.opened_at) < limit:
            self.abandon()
        if self._unsettled:
            self._settle()

    def know(
        self, rosters: Sequence[Roster], endorsements: Sequence[Endorsement], life: int, obeyed: OrderNumber
    ) -> PartyKnowledge:
        """See `BasketHost.know_parties`; `obeyed` is the lowest order that the actor obeys."""
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

    @property
    def now(self) -> float:
        """The time that the actor was told last."""
        return self._now

    def sign_facts(self, occasion: Occasion, parties: Sequence[str]) -> Answers[SignedFacts]:
        """Each party's signed facts, which replace earlier ones."""
        refusal = self._occasion_refusal(occasion)
        self._frozen.clear()

        def sign(party: str) -> SignedFacts:
            basket = self._baskets[party]
            if refusal:
                basket.count_refused_session()
                raise ProtocolViolation(refusal)
            counted = basket.counted_root(occasion.session_id.hex(), occasion.round_id)
            stated = signed_facts.state(basket.facts(), occasion, basket.identity, counted)
            self._frozen[party] = Frozen(stated, basket.latest.fresh)
            return stated

        return _by_party(parties, self._baskets, sign)

    def advertise(self, terms: SessionTerms, parties: Sequence[str]) -> Answers[Advert]:
        """Fresh keys for each party that is here; checks that are the same for all are made once."""
        self.abandon()
        refusal: str | None = None
        try:
            check_types(terms)
            view, agreements = PublicView(terms.context), Agreements()
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
                    agreements=agreements,
                )
                attempt.participants[party] = participant
                return participant.advertise()
            except ProtocolViolation:
                basket.count_refused_session()
                raise

        return _by_party(parties, self._baskets, join)

    def each(self, session_id: str, parties: Sequence[str], step: Callable[[Attempt, str], T]) -> Answers[T]:
        """The message of each party that takes part in the session."""
        attempt = self._current(session_id)
        if attempt is None:
            return {}
        return _by_party(parties, attempt.participants, lambda party: step(attempt, party))

    def mask(self, session_id: str, inboxes: Mapping[str, Inbox]) -> Answers[MaskedInput]:
        """The masked contribution of each party that was given an inbox and still has its basket here."""

        def hand_in(attempt: Attempt, party: str) -> MaskedInput:
            part = attempt.hand_in(party, self._baskets[party])
            return attempt.participants[party].mask(inboxes[party], part)

        return self.each(session_id, [party for party in inboxes if party in self._baskets], hand_in)

    def unmask(
        self, session_id: str, parties: Sequence[str], confirmations: tuple[Confirmation, ...], now: float
    ) -> Answers[UnmaskShares]:
        """Each party's shares, once the release is charged; from here on its aggregate is spent."""
        self.tick(now)
        attempt = self._current(session_id)
        if attempt is None:
            return {}
        try:
            charge_id, release = attempt.charge_id, attempt.terms.release
            charge = release.mu, release.step, now, attempt.num_left_out, attempt.dropped()
            self._charges.release(charge_id, *charge)
        except ProtocolViolation:
            self._count_refusal(parties)
            raise
        self._spend(attempt, parties)
        return self.each(session_id, parties, lambda at, party: at.participants[party].unmask(confirmations))

    def contribute(self, terms: SessionTerms, parties: Sequence[str]) -> Answers[tuple[str, NDArray[Any]]]:
        """The unmasked contributions, if the federation's config has secure aggregation off."""
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
        """Wipe a session's keys, and free the aggregates that are certainly in no release.

        Those of the `spent` parties may be in one. For the others the accountant is asked; without secure
        aggregation the global aggregator is believed, if it says that the session has ended.
        """
        attempt = self._current(session_id)
        if attempt is None:
            return
        self._spend(attempt, spent)
        for party in spent:
            attempt.handed_in.pop(party, None)
        if not self._plan.config.layer2.use_secure_aggregation:
            self._resolve(attempt.handed_in, in_no_release=True)
            attempt.handed_in.clear()
        self.abandon()

    def abandon(self) -> None:
        """Wipe the keys of the current session, and settle what was handed in to it."""
        attempt = self._wipe()
        if attempt is not None and attempt.handed_in:
            self._unsettled[attempt.charge_id] = attempt.handed_in
        self._settle()

    def take_up(self) -> None:
        """Note what baskets that were made again from a journal had handed in to sessions, to settle it."""
        self._wipe()
        self._frozen.clear()
        self._unsettled.clear()
        for basket_id, basket in self._baskets.items():
            charge_id, model = basket.latest.handed_in_for, basket.latest.model
            if charge_id and model is not None:
                self._unsettled.setdefault(charge_id, {})[basket_id] = model

    def _wipe(self) -> Attempt | None:
        """End the current session; it is returned without its keys."""
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            attempt.close()
        return attempt

    def _begin(self, terms: SessionTerms, least: int = 0) -> Attempt:
        self.abandon()
        num_left_out = len(self._charges.left_out)
        self.attempt = Attempt(terms, self._plan, self._noise, self._now, least, num_left_out)
        return self.attempt

    def _current(self, session_id: str) -> Attempt | None:
        here = self.attempt is not None and self.attempt.session_id == session_id
        return self.attempt if here else None

    def _occasion_refusal(self, occasion: Occasion) -> str:
        """Why no facts are signed for an occasion; empty if they are."""
        if type(occasion) is not Occasion or occasion.federation_id != self._federation_id:
            return "the session is another federation's"
        if occasion.ledger_head != self._last.ledger_head:
            return "the session is about another last release than this basket actor was given"
        pinned = b"" if self.chain.newest is None else self.chain.newest.digest()
        if self._plan.config.layer2.use_secure_aggregation and occasion.roster != pinned:
            return "the session is about another roster than this basket actor has pinned"
        return ""

    def _count_refusal(self, parties: Sequence[str]) -> None:
        """Count a session that the parties refused."""
        for party in set(parties) & set(self._baskets):
            self._baskets[party].count_refused_session()

    def _spend(self, attempt: Attempt, parties: Sequence[str]) -> None:
        for party in parties:
            if party in self._baskets:
                attempt.spend(party, self._baskets[party])

    def _settle(self) -> None:
        """Void the charges of ended sessions; where one was made already, the aggregates are spent."""
        for charge_id, models in list(self._unsettled.items()):
            try:
                given_up, dropped = self._charges.void(charge_id, self._now)
            except (ActorLost, LedgerError):
                return
            del self._unsettled[charge_id]
            unused = {party: model for party, model in models.items() if given_up or party in dropped}
            self._resolve(unused, in_no_release=True)
            self._resolve({p: m for p, m in models.items() if p not in unused}, in_no_release=False)

    def _resolve(self, models: Mapping[str, BasketModel], *, in_no_release: bool) -> None:
        for party, model in models.items():
            if party in self._baskets:
                latest = self._baskets[party].latest
                (latest.take_back if in_no_release else latest.spend)(model)


def _changed(party: str) -> ProtocolViolation:
    return ProtocolViolation(f"basket {party!r} no longer has the aggregate that the session froze")


def _by_party(parties: Sequence[str], here: Mapping[str, object], step: Callable[[str], T]) -> Answers[T]:
    """The answer of each party that is here: its message, or its refusal, which stops no other party."""
    answers: Answers[T] = {}
    for party in parties:
        if party in here:
            try:
                answers[party] = step(party)
            except ProtocolViolation as violation:
                answers[party] = violation
    return answers
