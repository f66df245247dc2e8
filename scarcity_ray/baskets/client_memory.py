"""What must be remembered of a client that leaves, so that coming back gains it nothing.

The basket actor that a client leaves keeps its memory, whatever becomes of the basket, and the directory is
told it as well: when either dies the other has it, and gives it to the one that comes back in its place. A
client that comes back, to whichever basket, is admitted with it. It holds no value of any update: digests,
counts and times.

Guarantees:
    Leaving and coming back neither replays an update nor resets a participation cap, a drift test, a release
        or a daily limit: not through a closed basket, a split, or the death of the directory or of a basket
        actor.
    Of two memories of a client the one of its last leaving says its trust, in whatever order they are told.
    Memory is bounded: keys of rounds whose updates are too stale to be accepted are dropped, so are release
        times of yesterday, and a client of which nothing is left but full trust is forgotten. Of others the
        trust is kept, of the last `MOST_TRUSTS` that left; who is dropped is counted.
    A new round looks at clients that left lately, and at no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from scarcity_ray.baskets.update_buffer import ReplayKey
from scarcity_ray.directory.records import FIRST_TRUST, OrderNumber
from scarcity_ray.gossip import GossipState

MOST_TRUSTS = 1_000_000
"""Clients that left of which nothing but less than full trust is remembered, at most: some 300 bytes each."""
NO_OFFENCES: Mapping[int, frozenset[bytes]] = {}
NO_GOSSIP = GossipState()
"""Shared by all memories of trust alone; a memory's record is never changed, only replaced."""


@dataclass(frozen=True, slots=True)
class ClientMemory:
    """What is remembered of one client.

    Attributes:
        slot: The basket actor that keeps it.
        trust: How far it was trusted when it left.
        offences: Hashes of malformed updates that it had signed, by round, for which it was trusted less.
        accepted: Keys of its accepted updates, for replays and the cap.
        gossip: What it tested and released, without the vectors.
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
        """What this memory and another of the same client know; trust is that of the later leaving.

        Where both are of one leaving this one's trust counts.
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
        """What still matters from the oldest round on whose updates are accepted; None if nothing does."""
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
        num_dropped: Clients whose trust was forgotten since too many others left later.
    """

    def __init__(self, memories: Iterable[ClientMemory] = ()) -> None:
        self._recent: dict[str, ClientMemory] = {}
        self._trusts: dict[str, ClientMemory] = {}
        self.num_dropped = 0
        self.note(memories)

    def note(self, memories: Iterable[ClientMemory]) -> None:
        """Keep memories, each together with what was kept of its client before."""
        for memory in memories:
            self._keep(memory.joined_with(self.pop(memory.client_id)))

    def get(self, client_id: str) -> ClientMemory | None:
        """What is remembered of a client."""
        return self._recent.get(client_id) or self._trusts.get(client_id)

    def pop(self, client_id: str) -> ClientMemory | None:
        """What is remembered of a client, which is forgotten here."""
        return self._recent.pop(client_id, None) or self._trusts.pop(client_id, None)

    def all(self) -> tuple[ClientMemory, ...]:
        """All memories: of trust alone in the order of leaving, then the others by client."""
        return (*self._trusts.values(), *(memory for _, memory in sorted(self._recent.items())))

    def forget_before(self, round_id: int, now: float) -> None:
        """Forget what can make no difference any more (`ClientMemory.since`)."""
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
