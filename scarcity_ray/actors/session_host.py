"""A basket actor's face in secure aggregation: what the global aggregator calls, phase by phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from scarcity_ray.actors.charging import BasketCharges
from scarcity_ray.actors.last_release import LastRelease
from scarcity_ray.actors.messages import PartyKnowledge, operator_key_of
from scarcity_ray.actors.secure_parties import Belief, HostedSessions
from scarcity_ray.actors.session_terms import SessionTerms
from scarcity_ray.actors.signed_facts import Occasion, SignedFacts
from scarcity_ray.baskets.basket import Basket
from scarcity_ray.directory.records import OrderNumber
from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.plan import FederationPlan
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.runtime.rpc import Role
from scarcity_ray.secagg import (
    Advert,
    Confirmation,
    Endorsement,
    KeyShares,
    MaskedInput,
    Party,
    Roster,
    RosterChain,
    UnmaskShares,
)


class SessionHost(Role):
    """The sessions of several baskets as part of a role.

    Args:
        plan: The federation's numbers.
        federation_id: The federation.
        baskets: The actor's baskets by id, now and later.
        noise: Where shares of noise come from.
        charges: What it asks of the accountant.
        last: The last release that was distributed here.
    """

    def __init__(
        self,
        plan: FederationPlan,
        federation_id: str,
        baskets: dict[str, Basket],
        noise: NoiseSource,
        charges: BasketCharges,
        last: LastRelease,
    ) -> None:
        super().__init__()
        self._plan = plan
        self._federation_id = federation_id
        self._baskets = baskets
        self._charges = charges
        self._last = last
        self._sessions = HostedSessions(plan, federation_id, baskets, noise, charges.void)
        self._chain = RosterChain(federation_id, operator_key_of(plan.config))

    def know_parties(
        self, rosters: Sequence[Roster], endorsements: Sequence[Endorsement] = (), life: int = 0
    ) -> PartyKnowledge:
        """Learn who is registered: the next epochs of the roster, oldest first, and who is vouched for.

        They come from a driver, which has them from the directory: never from the global aggregator, whose
        sessions they are held against. Until a roster is pinned, no session is joined.

        Refused, and counted, is a roster that names a basket that is here under a key that is not its own;
        and any of a directory that died (`life`), which the one after it knows nothing of.
        """
        own, number = self.own_keys(), self._obeys()
        if rosters and life < number.life:
            late = "this roster is of a directory that has died since"
            return PartyKnowledge(self._last.version, own, self._chain.epoch, late, number)
        stolen = self._chain.misnamed(rosters, own)
        if stolen:
            self._sessions.count_refusal(stolen)
            refusal = (
                f"the roster names its baskets under keys that are not theirs: {', '.join(stolen)}; "
                "if it died and came back, the operator must sign the next roster"
            )
        else:
            refusal = self._chain.follow(rosters)
        self._chain.endorse(endorsements)
        return PartyKnowledge(self._last.version, own, self._chain.epoch, refusal)

    def rosters(self) -> tuple[Roster, ...]:
        """The newest epochs that this actor has pinned, for a directory that came back empty."""
        return self._chain.kept

    def endorse(self, basket_id: str, parties: Sequence[Party]) -> tuple[Endorsement, ...]:
        """A basket vouches for the halves that it is split into."""
        basket = self._baskets.get(basket_id)
        if basket is None:
            return ()
        vouched = (Endorsement(self._federation_id, basket_id, party) for party in parties)
        return tuple(endorsement.signed(basket.identity) for endorsement in vouched)

    def session_facts(self, occasion: Occasion, parties: Sequence[str]) -> dict[str, SignedFacts]:
        """Before a session: what each party that is here states and signs about itself for this attempt.

        Nothing is stated, and the refusal counted, for an occasion of another roster or last release than
        this actor knows of.
        """
        return self._sessions.state(occasion, parties, self._belief(None))

    def session_open(self, terms: SessionTerms, parties: Sequence[str]) -> dict[str, Advert]:
        """Secure aggregation, phase 1: fresh keys for each party that is here.

        A session is refused, and the refusal counted, that names a basket or a key that is not on the roster,
        that is about another last release than the one that was distributed here, whose numbers do not follow
        from what the parties have signed about themselves, or in which a corrupt few could read a basket.
        """
        return self._sessions.open(terms, parties, self._belief(self._last.agreement_hash(terms)))

    def session_share(
        self, session_id: str, parties: Sequence[str], adverts: tuple[Advert, ...]
    ) -> dict[str, KeyShares]:
        """Phase 2: each party's encrypted shares."""
        return self._sessions.each(session_id, parties, lambda p: p.share_keys(adverts))

    def session_mask(self, session_id: str, party: str, inbox: Any) -> MaskedInput | None:
        """Phase 3: one party's masked contribution; from here on its aggregate may be in the sum."""
        return self._sessions.mask(session_id, party, inbox)

    def session_confirm(
        self, session_id: str, parties: Sequence[str], survivors: tuple[str, ...]
    ) -> dict[str, Confirmation]:
        """Phase 4: each party signs the survivors that it was shown."""
        return self._sessions.confirm(session_id, parties, survivors)

    def session_unmask(
        self, session_id: str, parties: Sequence[str], confirmations: tuple[Confirmation, ...], now: float
    ) -> dict[str, UnmaskShares]:
        """Phase 5: each party's shares, once the release is charged; from here on its aggregate is spent."""
        self._sessions.tick(now)
        terms = self._sessions.terms_of(session_id)
        if terms is None:
            return {}
        try:
            self._charges.release(terms.charge_id, terms.release.mu, now)
        except ProtocolViolation:
            self._sessions.count_refusal(parties)
            raise
        self._sessions.spend(session_id, parties)
        return self._sessions.each(session_id, parties, lambda p: p.unmask(confirmations))

    def session_plain(
        self, terms: SessionTerms, parties: Sequence[str]
    ) -> dict[str, tuple[str, NDArray[Any]]]:
        """The contributions as they are, where secure aggregation is off."""
        return self._sessions.plain(terms, parties)

    def session_spend(self, session_id: str, parties: Sequence[str]) -> dict[str, None]:
        """Note that the parties' contributions may be released now."""
        self._sessions.spend(session_id, parties)
        return {}

    def session_end(self, session_id: str, spent: Sequence[str]) -> None:
        """Wipe what is left of a session; `spent` are the parties whose aggregates may have been released."""
        self._sessions.end(session_id, spent)

    def sessions_abandon(self) -> None:
        """Wipe the keys of a session that nobody will end: its global aggregator is gone."""
        self._sessions.abandon()

    def own_keys(self) -> dict[str, bytes]:
        """Ed25519 public bytes of the baskets that are here."""
        return {basket_id: basket.identity.public_bytes for basket_id, basket in self._baskets.items()}

    def _obeys(self) -> OrderNumber:
        """The lowest order of a directory that is obeyed here."""
        return OrderNumber()

    def _belief(self, model_hash: bytes | None) -> Belief:
        plan = self._plan.at(self._last.clip_norm)
        return Belief(plan, self._chain, self._last.ledger_head, model_hash)


__all__ = ["SessionHost"]
