"""A basket actor's side of one session of secure aggregation: its baskets' participants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from scarcity_ray.errors import ProtocolViolation
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


def by_party(parties: Sequence[str], step: Callable[[str], Any]) -> dict[str, Any]:
    """Each party's answer; one that refuses answers with its refusal and holds up no other."""
    answers: dict[str, Any] = {}
    for party in parties:
        try:
            answers[party] = step(party)
        except ProtocolViolation as violation:
            answers[party] = violation
    return answers
