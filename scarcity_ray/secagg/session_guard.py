"""What a party remembers across sessions, so that its input is never summed in two ways.

One guard lives as long as the identity. It admits each attempt of each session once, in rising order,
and nothing more of a session once an unmask share of it was released: from then on the coordinator may
hold the sum, and a second sum over the same inputs and another set of survivors would give their
difference away.
"""

from __future__ import annotations

from dataclasses import dataclass

from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.secagg.context import SessionContext


@dataclass(slots=True)
class _Seen:
    round_id: int
    attempt: int
    released: bool = False


class SessionGuard:
    """Refuses repeated sessions, attempts out of order, and attempts after a release.

    Memory is bounded: beyond ``capacity`` sessions those of the oldest round are forgotten, and every
    session of that round or an earlier one is refused from then on.

    Guarantees:
        * `an_attempt_is_admitted_once`
        * `nothing_is_admitted_after_a_release`
        * `forgotten_sessions_stay_refused`
    """

    def __init__(self, federation_id: str, capacity: int = 1024) -> None:
        """Starts with an empty memory.

        Args:
            federation_id: The only federation whose sessions are admitted.
            capacity: Sessions remembered (>= 1).
        """
        self._federation_id = federation_id
        self._capacity = capacity
        self._seen: dict[bytes, _Seen] = {}
        self._oldest_round = 0

    def admit(self, context: SessionContext) -> None:
        """Takes note of an attempt that is about to begin, before any key is made.

        Raises:
            ProtocolViolation: if the attempt is foreign, repeated, out of order, or after a release.
        """
        if context.federation_id != self._federation_id:
            raise ProtocolViolation("the session belongs to another federation")
        if context.round_id < self._oldest_round:
            raise ProtocolViolation(f"round {context.round_id} is too old to be told from a repetition")
        seen = self._seen.get(context.session_id)
        if seen is None:
            self._seen[context.session_id] = _Seen(context.round_id, context.attempt)
            self._forget()
            return
        if seen.released:
            raise ProtocolViolation("shares of this session were released; its inputs are not summed again")
        if context.round_id != seen.round_id or context.attempt <= seen.attempt:
            raise ProtocolViolation("this attempt of the session was begun before")
        seen.attempt = context.attempt

    def mark_released(self, context: SessionContext) -> None:
        """Takes note that unmask shares are about to be released.

        Raises:
            ProtocolViolation: if they were before, or the attempt is not the newest admitted.
        """
        seen = self._seen.get(context.session_id)
        if seen is None or seen.attempt != context.attempt:
            raise ProtocolViolation("this attempt is not the newest of its session")
        if seen.released:
            raise ProtocolViolation("shares of this session were released before")
        seen.released = True

    def _forget(self) -> None:
        while len(self._seen) > self._capacity:
            oldest = min(seen.round_id for seen in self._seen.values())
            self._seen = {key: seen for key, seen in self._seen.items() if seen.round_id > oldest}
            self._oldest_round = oldest + 1
