"""What all roles have in common: a call that is made again is answered again, and done once.

A connection can break when a role has done what it was asked and its answer is on the way; the caller cannot
tell that from a call that never arrived (Ray's ``ActorUnavailableError`` says nothing about it). It makes the
call again under the same number, and a role that has done it gives the answer that was lost.

What a role remembers dies with it, and so does what the call did: whoever finds it back, or made anew, makes
the call again and has it done once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from scarcity_ray.errors import ProtocolViolation

CALLERS = 256
"""Callers whose last answer a role remembers; beyond them the longest silent are forgotten."""


@dataclass(frozen=True)
class CallId:
    """One call of one caller, however often it is made.

    Attributes:
        caller: Who calls; it makes its next call when it has the answer to the last, or has given it up.
        number: Rises from call to call.
    """

    caller: str
    number: int


@dataclass(frozen=True)
class _Answer:
    number: int
    value: Any = None
    is_known: bool = False


class Role:
    """A role's memory of the last answer to each of its callers.

    Guarantees:
        a_call_made_again_is_answered_and_not_done_again
        a_call_that_failed_is_done_again: What raises has changed nothing, or can go on from where it stopped.
        an_overtaken_call_is_refused: One that arrives after its caller has made the next.
    """

    def __init__(self) -> None:
        self._answers: OrderedDict[str, _Answer] = OrderedDict()

    def once(self, call: CallId, method: str, *args: object) -> Any:
        """Call `method`, unless this call was answered before; its answer.

        Raises:
            ProtocolViolation: If its caller has made a later call since, or for a method that is the role's
            own.
        """
        if method.startswith("_"):
            raise ProtocolViolation(f"{method} is the role's own")
        last = self._answers.get(call.caller)
        if last is not None and call.number < last.number:
            raise ProtocolViolation(f"{method}: its caller has gone on since it made this call")
        if last is None or call.number > last.number or not last.is_known:
            self._answers[call.caller] = _Answer(call.number)
            last = _Answer(call.number, getattr(self, method)(*args), True)
            self._answers[call.caller] = last
        self._answers.move_to_end(call.caller)
        while len(self._answers) > CALLERS:
            self._answers.popitem(last=False)
        return last.value


__all__ = ["CallId", "Role"]
