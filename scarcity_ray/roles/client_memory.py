"""What must be remembered of a client that leaves, so that coming back gains it nothing.

The basket actor that a client leaves keeps its memory, whatever becomes of the basket, and the directory is
told it as well: when either dies the other has it, and gives it to the one that comes back in its place. A
client that comes back, to whichever basket, is admitted with it. It holds no value of any update: digests,
counts and times.

*Guarantees*
    - Leaving and coming back neither replays an update nor resets a participation cap, a drift test, a
      release or a daily limit: not through a closed basket, a split, or the death of the directory or of a
      basket actor.
    - Memory is bounded: keys of rounds whose updates are too stale to be accepted are dropped, so are release
      times of yesterday, and a client of which nothing is left but full trust is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace

from scarcity_ray.basket.trust import FIRST_TRUST
from scarcity_ray.buffer import ReplayKey
from scarcity_ray.gossip import MemberRecord


@dataclass(frozen=True)
class ClientMemory:
    """What is remembered of one client.

    Attributes:
        client_id: Who.
        slot: The basket actor that keeps it.
        trust: How far it was trusted when it left.
        offences: Hashes of malformed updates that it had signed, by round, for which it was trusted less.
        accepted: Keys of its accepted updates, for replays and the cap.
        gossip: What it tested and released, without the vectors.
    """

    client_id: str
    slot: int = 0
    trust: float = FIRST_TRUST
    offences: Mapping[int, frozenset[bytes]] = field(default_factory=dict)
    accepted: tuple[ReplayKey, ...] = ()
    gossip: MemberRecord = field(default_factory=MemberRecord)

    def with_earlier(self, earlier: ClientMemory | None) -> ClientMemory:
        """This memory, and what an earlier one of the same client knows beyond it."""
        if earlier is None:
            return self
        gossip = deepcopy(self.gossip)
        gossip.absorb(earlier.gossip)
        accepted = tuple(sorted({*self.accepted, *earlier.accepted}, key=repr))
        offences = dict(self.offences)
        for number, marks in earlier.offences.items():
            offences[number] = offences.get(number, frozenset()) | marks
        return replace(self, offences=offences, accepted=accepted, gossip=gossip)

    def since(self, round_id: int, now: float) -> ClientMemory | None:
        """What still matters; None if nothing does.

        Args:
            round_id: The oldest round whose updates are accepted.
            now: Seconds since the epoch.
        """
        gossip = deepcopy(self.gossip)
        gossip.forget_old_releases(now)
        accepted = tuple(key for key in self.accepted if key.round_id >= round_id)
        offences = {number: marks for number, marks in self.offences.items() if number >= round_id}
        blank = not accepted and not offences and not gossip.release_times and gossip.tested_round < round_id
        if blank and self.trust == FIRST_TRUST:
            return None
        kept = MemberRecord() if blank else gossip
        return replace(self, offences=offences, accepted=accepted, gossip=kept)


class ClientMemories:
    """The memories that one role keeps, by client."""

    def __init__(self, memories: Iterable[ClientMemory] = ()) -> None:
        self._known: dict[str, ClientMemory] = {}
        self.note(memories)

    def note(self, memories: Iterable[ClientMemory]) -> None:
        """Keep memories, each together with what was kept of its client before."""
        for memory in memories:
            self._known[memory.client_id] = memory.with_earlier(self._known.get(memory.client_id))

    def get(self, client_id: str) -> ClientMemory | None:
        """What is remembered of a client."""
        return self._known.get(client_id)

    def pop(self, client_id: str) -> ClientMemory | None:
        """What is remembered of a client, which is forgotten here."""
        return self._known.pop(client_id, None)

    def all(self) -> tuple[ClientMemory, ...]:
        """All memories, by client."""
        return tuple(memory for _, memory in sorted(self._known.items()))

    def forget_before(self, round_id: int, now: float) -> None:
        """Forget what can make no difference any more (`ClientMemory.since`)."""
        kept = (memory.since(round_id, now) for memory in self._known.values())
        self._known = {memory.client_id: memory for memory in kept if memory is not None}


__all__ = ["ClientMemories", "ClientMemory"]
