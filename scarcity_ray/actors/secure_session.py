"""One session of secure aggregation as the global aggregator drives it: phases of calls to the basket actors.

`secagg` defines the messages and the thresholds. Here the calls of a phase are made in parallel, and a party
that does not answer is left out of the next phase. A phase is one call to each actor, whatever number of
parties it has; only masked inputs are asked for in several calls where they are long.

A basket actor speaks for its own parties only: an answer for any other party, or one that is no message, is
noted as a violation and dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.messages import BasketPlace
from scarcity_ray.actors.names import basket_actor
from scarcity_ray.actors.session_terms import SessionTerms
from scarcity_ray.errors import ActorLost, ProtocolViolation, SecureAggregationAborted
from scarcity_ray.runtime.rpc import Call, Future, Peers
from scarcity_ray.secagg import Coordinator

Receive = Callable[[str, Any], None]
"""Takes the message that was given for a party; nothing in it is checked yet."""


MASKED_BYTES = 1 << 24
"""Masked inputs that one answer holds at most, in bytes; one input may be longer."""


class PartyCalls:
    """Calls to the basket actors for their parties, in parallel.

    Attributes:
        lost_roles: Basket actors that did not answer.
        violations: Descriptions of what was refused.
    """

    def __init__(self, places: Iterable[BasketPlace], peers: Peers) -> None:
        self.lost_roles: list[str] = []
        self.violations: list[str] = []
        self._peers = peers
        self._slots = {place.basket_id: place.slot for place in places}

    def phase(
        self,
        parties: Iterable[str],
        call_for: Callable[[tuple[str, ...]], Call[BasketHost, Any]],
        receive: Receive,
        most: int | None = None,
    ) -> None:
        """One call to each actor for all its parties; each answer goes to `receive`, by party.

        Args:
            most: Parties in one call; an actor with more is called more than once.
        """
        batches: dict[int, list[str]] = defaultdict(list)
        for party in sorted(parties):
            batches[self._slots[party]].append(party)
        calls = [
            (slot, batch, call_for(batch).send(self._peers, basket_actor(slot)))
            for slot, here in sorted(batches.items())
            for batch in _pieces(here, most or len(here))
        ]
        while calls:
            slot, batch, call = calls.pop(0)
            for party, message in self._own_messages(slot, batch, self._answer(slot, call)).items():
                self._take(receive, party, message)

    def end(self, parties: Iterable[str], session_id: str, spent: tuple[str, ...]) -> None:
        """Tell the parties' actors that a session has ended, without waiting for them."""
        wipe = Call(BasketHost.end_session, session_id, spent)
        for slot in sorted({self._slots[party] for party in parties}):
            wipe.send(self._peers, basket_actor(slot))

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


class SecureSession:
    """One masked sum: `collect`, then (once the charge is durable) `unmask`, then always `end`.

    It aborts with fewer survivors of weight above 0 than `least_weighted`.
    """

    def __init__(
        self, terms: SessionTerms, parties: Sequence[str], calls: PartyCalls, least_weighted: int = 0
    ) -> None:
        self._terms = terms
        self._parties = parties
        self._id = terms.session_id
        self._calls = calls
        self._least_weighted = least_weighted
        self._coordinator = Coordinator(terms.context)
        self._survivors: tuple[str, ...] = ()
        self._spent: tuple[str, ...] = ()

    def collect(self) -> tuple[str, ...]:
        """Run the phases before unmasking; the parties whose inputs are in the sum.

        Raises:
            SecureAggregationAborted: Below the threshold; the inputs may be used in another session.
        """
        coordinator = self._coordinator
        self._calls.phase(
            self._parties,
            lambda batch: Call(BasketHost.advertise, self._terms, batch),
            _owned(coordinator.add_advert),
        )
        adverts = coordinator.adverts()
        self._calls.phase(
            [advert.party_id for advert in adverts],
            lambda batch: Call(BasketHost.share_keys, self._id, batch, adverts),
            _owned(coordinator.add_key_shares),
        )
        words = self._terms.context.dimension * self._terms.context.ring_bits // 8
        self._calls.phase(
            coordinator.sharers(),
            lambda batch: Call(BasketHost.mask, self._id, {p: coordinator.inbox(p) for p in batch}),
            _owned(coordinator.add_masked),
            most=max(1, MASKED_BYTES // words),
        )
        self._survivors = survivors = coordinator.survivors()
        _require_weight(self._terms, survivors, self._least_weighted)
        self._calls.phase(
            survivors,
            lambda batch: Call(BasketHost.confirm, self._id, batch, survivors),
            _owned(coordinator.add_confirmation),
        )
        coordinator.require_threshold("confirm")
        return survivors

    def unmask(self, now: float) -> NDArray[Any]:
        """Ask for the unmask shares and return the survivors' sum in the ring.

        Args:
            now: Seconds since the epoch, for the basket actors' own charges.

        Raises:
            SecureAggregationAborted: If too few answer; the inputs are spent all the same.
        """
        self._spent = self._survivors
        confirmations = self._coordinator.confirmations()
        self._calls.phase(
            [confirmation.party_id for confirmation in confirmations],
            lambda batch: Call(BasketHost.unmask, self._id, batch, confirmations, now),
            _owned(self._coordinator.add_unmask_shares),
        )
        return self._coordinator.finish()

    def end(self) -> None:
        """Wipe the session's secrets, here and in every actor, and tell the actors whose inputs are spent."""
        self._coordinator.close()
        self._calls.end(self._parties, self._terms.session_id, self._spent)


class PlainSession:
    """A sum of inputs as they are, where secure aggregation is off; used as `SecureSession` is."""

    def __init__(
        self, terms: SessionTerms, parties: Sequence[str], calls: PartyCalls, least_weighted: int = 0
    ) -> None:
        self._terms = terms
        self._parties = parties
        self._calls = calls
        self._least_weighted = least_weighted
        context = terms.context
        self._sum = np.zeros(context.dimension, np.uint32 if context.ring_bits == 32 else np.uint64)
        self._survivors: list[str] = []
        self._spent: tuple[str, ...] = ()

    def collect(self) -> tuple[str, ...]:
        """Add up what each party contributes."""
        self._calls.phase(
            self._parties,
            lambda batch: Call(BasketHost.contribute, self._terms, batch),
            self._add,
        )
        survivors = tuple(self._survivors)
        _require_weight(self._terms, survivors, self._least_weighted)
        return survivors

    def _add(self, party: str, message: object) -> None:
        owner, part = message if isinstance(message, tuple) and len(message) == 2 else (None, None)
        if owner != party or not isinstance(part, np.ndarray):
            raise ProtocolViolation(f"{party!r} gave no contribution of its own")
        if part.dtype != self._sum.dtype or part.shape != self._sum.shape:
            raise ProtocolViolation(f"the contribution of {party!r} has another type or shape")
        np.add(self._sum, part, out=self._sum)
        self._survivors.append(party)

    def unmask(self, now: float) -> NDArray[Any]:
        """The sum; the contributions are spent from now on."""
        self._spent = tuple(self._survivors)
        return self._sum

    def end(self) -> None:
        """Tell the actors whose contributions are spent."""
        self._calls.end(self._parties, self._terms.session_id, self._spent)


def _require_weight(terms: SessionTerms, survivors: Sequence[str], least_weighted: int) -> None:
    weighted = terms.release.num_weighted(survivors)
    if weighted < least_weighted:
        raise SecureAggregationAborted(f"{weighted} fresh baskets survived, a release needs {least_weighted}")


def _pieces(parties: Sequence[str], most: int) -> list[tuple[str, ...]]:
    return [tuple(parties[at : at + most]) for at in range(0, len(parties), most)]


def _owned(add: Callable[[Any], None]) -> Receive:
    """Pass a message on if it names the party that it was given for."""

    def receive(party: str, message: Any) -> None:
        if getattr(message, "party_id", None) != party:
            raise ProtocolViolation(f"what was given for {party!r} is no message of its own")
        add(message)

    return receive
