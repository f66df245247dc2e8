"""One session of secure aggregation as the global aggregator drives it: phases of calls to the basket actors.

What a basket actor that does not answer means, and what the messages hold, is decided by `secagg`; here calls
are made side by side, and whoever fails to answer is left out of the next phase.

A basket actor speaks for its own parties only: what it says beside that, or in another party's name, is noted
as a violation and dropped, and so is what is no message at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.actors.messages import BasketPlace
from scarcity_ray.actors.names import basket_actor
from scarcity_ray.actors.session_host import SessionHost
from scarcity_ray.actors.session_terms import SessionTerms
from scarcity_ray.actors.signed_facts import Occasion
from scarcity_ray.errors import ActorLost, ProtocolViolation, SecureAggregationAborted
from scarcity_ray.runtime.rpc import Call, Future, Peers
from scarcity_ray.secagg import Coordinator

Receive = Callable[[str, Any], None]
"""Takes the message that was given for a party."""


class PartyCalls:
    """Calls to the basket actors for their parties, side by side.

    Args:
        places: The parties' places.
        peers: The basket actors.

    Attributes:
        lost_roles: Basket actors that did not answer.
        violations: What was refused, in words.
    """

    def __init__(self, places: Iterable[BasketPlace], peers: Peers) -> None:
        self.lost_roles: list[str] = []
        self.violations: list[str] = []
        self._peers = peers
        self._slots = {place.basket_id: place.slot for place in places}

    def facts(self, occasion: Occasion) -> dict[str, Any]:
        """What each party says is its signed statement of its facts; nothing in it is checked yet."""
        stated: dict[str, Any] = {}
        self._phase(
            self._slots, lambda batch: Call(SessionHost.session_facts, occasion, batch), stated.__setitem__
        )
        return stated

    def _phase(
        self,
        parties: Iterable[str],
        call_for: Callable[[tuple[str, ...]], Call[SessionHost, Any]],
        receive: Receive,
    ) -> None:
        """One call an actor for all its parties; each answered message goes to `receive`, by party."""
        batches: dict[int, list[str]] = defaultdict(list)
        for party in sorted(parties):
            batches[self._slots[party]].append(party)
        calls = {
            slot: call_for(tuple(batch)).send(self._peers, basket_actor(slot))
            for slot, batch in sorted(batches.items())
        }
        answers: dict[str, Any] = {}
        for slot, call in calls.items():
            answers.update(self._own_messages(slot, batches[slot], self._answer(slot, call)))
        for party in sorted(answers):
            self._take(receive, party, answers[party])

    def _own_messages(self, slot: int, parties: Sequence[str], answer: object) -> dict[str, Any]:
        if answer is None:
            return {}
        if not isinstance(answer, dict):
            self.violations.append(f"{basket_actor(slot)} answered with a {type(answer).__name__}")
            return {}
        if set(answer) - set(parties):
            self.violations.append(f"{basket_actor(slot)} answered for parties that it does not hold")
        messages = {party: answer[party] for party in parties if party in answer}
        refusals = [party for party, message in messages.items() if isinstance(message, ProtocolViolation)]
        self.violations.extend(str(messages.pop(party)) for party in refusals)
        return messages

    def _answer(self, slot: int, call: Future[Any]) -> Any:
        try:
            return call.result()
        except ActorLost:
            role = basket_actor(slot)
            if role not in self.lost_roles:
                self.lost_roles.append(role)
        except ProtocolViolation as violation:
            self.violations.append(str(violation))
        return None

    def _take(self, receive: Receive, party: str, message: Any) -> None:
        try:
            receive(party, message)
        except ProtocolViolation as violation:
            self.violations.append(str(violation))


class SecureSession(PartyCalls):
    """Drives one session: `collect`, then (once the charge is durable) `unmask`, then always `end`.

    Args:
        terms: What the parties are told.
        places: The parties' places, in the order of the context.
        peers: The basket actors.
        least_weighted: Survivors of weight above 0 without which it aborts.
    """

    def __init__(
        self, terms: SessionTerms, places: Sequence[BasketPlace], peers: Peers, least_weighted: int = 0
    ) -> None:
        super().__init__(places, peers)
        self._least_weighted = least_weighted
        self.session_id = terms.session_id
        self._terms = terms
        self._coordinator = Coordinator(terms.context)
        self._plain: NDArray[Any] | None = None
        self._summed: tuple[str, ...] = ()
        self._spent: tuple[str, ...] = ()

    def collect(self) -> tuple[str, ...]:
        """Run all phases before unmasking; the parties whose inputs are in the sum.

        Raises:
            SecureAggregationAborted: Below the threshold; nothing was asked for that cannot be asked again.
        """
        if not self._terms.masked:
            self._summed = self._collect_plain()
            self._require_weight(self._summed)
            return self._summed
        coordinator = self._coordinator
        self._phase(
            self._slots,
            lambda batch: Call(SessionHost.session_open, self._terms, batch),
            _owned(coordinator.add_advert),
        )
        adverts = coordinator.adverts()
        self._phase(
            [advert.party_id for advert in adverts],
            lambda batch: Call(SessionHost.session_share, self.session_id, batch, adverts),
            _owned(coordinator.add_key_shares),
        )
        self._each_mask(coordinator.sharers())
        survivors = coordinator.survivors()
        self._require_weight(survivors)
        self._phase(
            survivors,
            lambda batch: Call(SessionHost.session_confirm, self.session_id, batch, survivors),
            _owned(coordinator.add_confirmation),
        )
        coordinator.require_threshold("confirm")
        self._summed = survivors
        return survivors

    def unmask(self, now: float) -> NDArray[Any]:
        """Ask for the unmask shares and return the survivors' sum in the ring.

        Args:
            now: Seconds since the epoch, for the basket actors, who ask the accountant for the charge.

        Raises:
            SecureAggregationAborted: If too few answer; the inputs are spent all the same.
        """
        self._spent = self._summed
        if self._plain is not None:
            self._phase(
                self._slots,
                lambda batch: Call(SessionHost.session_spend, self.session_id, batch),
                lambda party, spent: None,
            )
            return self._plain
        confirmations = self._coordinator.confirmations()
        self._phase(
            [confirmation.party_id for confirmation in confirmations],
            lambda batch: Call(SessionHost.session_unmask, self.session_id, batch, confirmations, now),
            _owned(self._coordinator.add_unmask_shares),
        )
        return self._coordinator.finish()

    def end(self) -> None:
        """Wipe what is left of the session, here and in every actor, and say whose inputs are spent."""
        self._coordinator.close()
        wipe = Call(SessionHost.session_end, self.session_id, self._spent)
        for slot in sorted(set(self._slots.values())):
            wipe.send(self._peers, basket_actor(slot))

    def _require_weight(self, survivors: Sequence[str]) -> None:
        weighted = self._terms.release.num_weighted(survivors)
        if weighted < self._least_weighted:
            raise SecureAggregationAborted(
                f"{weighted} fresh baskets survived, a release needs {self._least_weighted}"
            )

    def _collect_plain(self) -> tuple[str, ...]:
        survivors: list[str] = []
        context = self._terms.context
        total = np.zeros(context.dimension, np.uint32 if context.ring_bits == 32 else np.uint64)

        def add(party: str, message: object) -> None:
            owner, part = message if isinstance(message, tuple) and len(message) == 2 else (None, None)
            if owner != party or not isinstance(part, np.ndarray):
                raise ProtocolViolation(f"{party!r} gave no contribution of its own")
            if part.dtype != total.dtype or part.shape != total.shape:
                raise ProtocolViolation(f"the contribution of {party!r} has another type or shape")
            np.add(total, part, out=total)
            survivors.append(party)

        self._phase(self._slots, lambda batch: Call(SessionHost.session_plain, self._terms, batch), add)
        self._plain = total
        return tuple(sorted(survivors))

    def _each_mask(self, parties: Sequence[str]) -> None:
        """One call a party, so that one masked vector at a time is held beside the sum."""
        calls = [
            (
                party,
                Call(SessionHost.session_mask, self.session_id, party, self._coordinator.inbox(party)).send(
                    self._peers, basket_actor(self._slots[party])
                ),
            )
            for party in parties
        ]
        for party, call in calls:
            masked = self._answer(self._slots[party], call)
            if masked is not None:
                self._take(_owned(self._coordinator.add_masked), party, masked)


def _owned(add: Callable[[Any], None]) -> Receive:
    """Pass a message on if it is in the name of the party that it was given for."""

    def receive(party: str, message: Any) -> None:
        if getattr(message, "party_id", None) != party:
            raise ProtocolViolation(f"what was given for {party!r} is no message of its own")
        add(message)

    return receive
