"""What gossip remembers of one client, and takes along when the client moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from scarcity_ray.gossip.materiality import MaterialityDetector
from scarcity_ray.gossip.message import GossipMessage

DAY = 86_400.0
"""Seconds over which `max_messages_per_day` counts."""


@dataclass
class GossipState:
    """One client's gossip.

    Attributes:
        tested_round: Federation round of its last drift test; -1 before the first.
        wants_push: What that test decided.
        released_round: Federation round of its last release; -1 before the first.
        release: Its last released message, if it is still kept.
        recipients: Who has received that message.
        num_releases: Releases so far; the next sequence number.
        release_times: Of its releases within the last day, in seconds.
        last_pull: When it last pulled, in seconds.
        has_left: Whether it left the basket; the record stays while the round or the daily limit needs it.
    """

    tested_round: int = -1
    wants_push: bool = False
    released_round: int = -1
    release: GossipMessage | None = None
    recipients: set[str] = field(default_factory=set)
    num_releases: int = 0
    release_times: list[float] = field(default_factory=list)
    last_pull: float | None = None
    has_left: bool = False

    def forget_old_releases(self, now: float) -> None:
        """Drop release times that are more than a day away; a clock may be set back."""
        self.release_times = [time for time in self.release_times if abs(now - time) < DAY]

    def released_in(self, round_id: int) -> GossipMessage | None:
        """The message released in a federation round, if there is one."""
        return self.release if self.release is not None and self.release.round_id == round_id else None

    def must_push(self, round_id: int) -> bool:
        """Whether the round's drift test decided to push and nothing was released yet."""
        return self.tested_round == round_id and self.wants_push and self.released_round != round_id

    def note_release(self, message: GossipMessage) -> None:
        """Remember what was just released."""
        self.release, self.recipients = message, set()
        self.released_round = message.round_id
        self.num_releases += 1
        self.release_times.append(message.timestamp)

    def absorb(self, other: GossipState) -> None:
        """Merge another state of the same client into this one; the newer value counts."""
        if other.tested_round > self.tested_round:
            self.tested_round, self.wants_push = other.tested_round, other.wants_push
        self.released_round = max(self.released_round, other.released_round)
        if other.release is not None and (
            self.release is None or other.release.sequence_number > self.release.sequence_number
        ):
            self.release, self.recipients = other.release, set(other.recipients)
        self.num_releases = max(self.num_releases, other.num_releases)
        self.release_times = sorted((Counter(self.release_times) | Counter(other.release_times)).elements())
        pulls = [time for time in (self.last_pull, other.last_pull) if time is not None]
        self.last_pull = max(pulls, default=None)

    def without_vectors(self) -> GossipState:
        """A copy without the released vector and its recipients."""
        return replace(self, release=None, recipients=set(), release_times=list(self.release_times))


@dataclass(frozen=True, eq=False)
class GossipMigration:
    """What a client takes along to another basket, so that it releases nothing twice; plain data.

    Attributes:
        last_pushed: The clipped state it last pushed, as the detector remembers it, float32 (d,); None before
            the first push.
    """

    client_id: str
    state: GossipState
    last_pushed: npt.NDArray[np.float32] | None


class GossipStates:
    """The gossip states of a basket's present and former clients; `detector` holds what they last pushed."""

    def __init__(self, basket_id: str, detector: MaterialityDetector) -> None:
        self.by_client: dict[str, GossipState] = {}
        self._basket_id = basket_id
        self._detector = detector

    def present(self, client_id: str, now: float) -> GossipState:
        """The state of a client that takes part now."""
        state = self.by_client.setdefault(client_id, GossipState())
        state.has_left = False
        state.forget_old_releases(now)
        return state

    def live_releases(
        self, client_ids: Iterable[str], round_id: int, ttl: float, now: float
    ) -> dict[str, GossipMessage]:
        """The unexpired messages that these clients released in a federation round, by sender."""
        known = {c: self.by_client[c].released_in(round_id) for c in client_ids if c in self.by_client}
        return {c: m for c, m in known.items() if m is not None and not m.is_expired(ttl, now)}

    def leave(self, client_id: str) -> None:
        """Note that a client left."""
        if client_id in self.by_client:
            self.by_client[client_id].has_left = True

    def take(self, client_id: str) -> GossipMigration:
        """Remove a client and give what must go along with it."""
        moved = self.state_of(client_id)
        self.by_client.pop(client_id, None)
        self._detector.forget(client_id)
        return moved

    def state_of(self, client_id: str) -> GossipMigration:
        """What must go along with a client that moves."""
        state = self.by_client.get(client_id, GossipState())
        return GossipMigration(client_id, state, self._detector.last_pushed(client_id))

    def put(self, moved: GossipMigration) -> None:
        """Add a client with the state that it brings, merged with an earlier state of it here."""
        arriving = deepcopy(moved.state)
        if arriving.release is not None:
            arriving.release = replace(arriving.release, basket_id=self._basket_id)
        state = self.by_client.setdefault(moved.client_id, GossipState())
        if moved.last_pushed is not None and state.num_releases <= arriving.num_releases:
            self._detector.update_state(moved.client_id, moved.last_pushed)
        state.absorb(arriving)
        state.has_left = False

    def forget_gone(self, round_id: int, now: float) -> None:
        """Forget clients that left, once neither the round nor the daily limit needs their state."""
        for client_id, state in list(self.by_client.items()):
            state.forget_old_releases(now)
            if state.has_left and state.tested_round < round_id and not state.release_times:
                del self.by_client[client_id]
                self._detector.forget(client_id)
