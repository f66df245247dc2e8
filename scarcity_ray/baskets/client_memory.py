"""What is remembered of a client that leaves, so that it gains nothing by coming back.

Both the basket actor that the client leaves and the directory keep the memory; if one dies, its successor
gets it from the other. A client that comes back, to any basket, is admitted with it. A memory holds digests,
counts and times, and no values of updates.

Guarantees:
    Leaving and coming back neither replays an update nor resets a participation cap, a drift test, a release
        or a daily limit, also if a basket was closed or split, or the directory or a basket actor died.
    When two memories of a client are joined, its trust is that of its last leaving.
    Memory is bounded: keys of rounds that are too stale and release times older than a day are dropped. A
        client with nothing left but full trust is forgotten; of the others, the trust of the last
        `MOST_TRUSTS` that left is kept.
    A new round looks only at clients that left recently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from scarcity_ray.baskets.update_buffer import ReplayKey
from scarcity_ray.directory.records import FIRST_TRUST, OrderNumber
from scarcity_ray.gossip import GossipState

MOST_TRUSTS = 1_000_000
"""Former clients of which only the (lowered) trust is remembered, at some 300 bytes each."""
NO_OFFENCES: Mapping[int, frozenset[bytes]] = {}
NO_GOSSIP = GossipState()
"""Shared by all memories of trust alone, and never changed."""


@dataclass(frozen=True, slots=True)
class ClientMemory:
    """What is remembered of one client.

    Attributes:
        slot: The basket actor that keeps it.
        trust: In [0, 1], when it left.
        offences: Hashes of the malformed updates that it had signed, by round (`Reputations.offend`).
        accepted: Keys of its accepted updates, for replays and the cap.
        gossip: Its tests and releases, without the vectors.
        number: Of the operation in which it left.
    """

    client_id: str
    slot: int = 0
    trust: float = FIRST_TRUST
    offences: Mapping[int, frozenset[bytes]] = field(default_factory=lambda: NO_OFFENCES)
    accepted: tuple[ReplayKey, ...] = ()
    gossip: GossipState = field(default_factory=lambda: NO_GOSSIP)
    number: OrderNumber = field(default_factory=OrderNumber)

    @property
    def is_of_trust_alone(self) -> bool:
        """Whether nothing but trust is remembered."""
        return not self.accepted and not self.offences and self.gossip == NO_GOSSIP

    def joined_with(self, other: ClientMemory | None) -> ClientMemory:
        """This memory joined with another one of the same client.

        The trust is that of the later leaving; if both are of one leaving, this memory's.
        """
        if other is None:
            return self
        newest = self if self.number >= other.number else other
        if self.is_of_trust_alone and other.is_of_trust_alone:
            return newest
        gossip = self.gossip.without_vectors()
        gossip.absorb(other.gossip)
        accepted = tuple(sorted({*self.accepted, *other.accepted}, key=repr))
        offences = dict(self.offences)
        for number, marks in other.offences.items():
            offences[number] = offences.get(number, frozenset()) | marks
        return replace(newest, offences=offences, accepted=accepted, gossip=gossip)

    def since(self, round_id: int, now: float) -> ClientMemory | None:
        """The memory without what is older than the round or a day; None if nothing is left."""
        gossip = self.gossip.without_vectors()
        gossip.forget_old_releases(now)
        accepted = tuple(key for key in self.accepted if key.round_id >= round_id)
        offences = {number: marks for number, marks in self.offences.items() if number >= round_id}
        if accepted or offences or gossip.release_times or gossip.tested_round >= round_id:
            return replace(self, offences=offences, accepted=accepted, gossip=gossip)
        if self.trust == FIRST_TRUST:
            return None
        return replace(self, offences=NO_OFFENCES, accepted=(), gossip=NO_GOSSIP)


class ClientMemories:
    """The memories that one role keeps, by client.

    Attributes:
        num_dropped: Clients whose trust was forgotten because too many others left later.
    """

    def __init__(self, memories: Iterable[ClientMemory] = ()) -> None:
        self._recent: dict[str, ClientMemory] = {}
        self._trusts: dict[str, ClientMemory] = {}
        self.num_dropped = 0
        self.note(memories)

    def note(self, memories: Iterable[ClientMemory]) -> None:
        """Keep memories, each joined with an earlier one of its client."""
        for memory in memories:
            self._keep(memory.joined_with(self.pop(memory.client_id)))

    def get(self, client_id: str) -> ClientMemory | None:
        """What is remembered of a client."""
        return self._recent.get(client_id) or self._trusts.get(client_id)

    def pop(self, client_id: str) -> ClientMemory | None:
        """What is remembered of a client, which is then forgotten here."""
        return self._recent.pop(client_id, None) or self._trusts.pop(client_id, None)

    def all(self) -> tuple[ClientMemory, ...]:
        """All memories: of trust alone in the order of leaving, then the others by client."""
        return (*self._trusts.values(), *(memory for _, memory in sorted(self._recent.items())))

    def forget_before(self, round_id: int, now: float) -> None:
        """Drop what is no longer needed (`ClientMemory.since`)."""
        known, self._recent = self._recent, {}
        for memory in known.values():
            kept = memory.since(round_id, now)
            if kept is not None:
                self._keep(kept)

    def _keep(self, memory: ClientMemory) -> None:
        if memory.trust == FIRST_TRUST or not memory.is_of_trust_alone:
            self._recent[memory.client_id] = memory
            return
        self._trusts[memory.client_id] = memory
        if len(self._trusts) > MOST_TRUSTS:
            del self._trusts[next(iter(self._trusts))]
            self.num_dropped += 1
