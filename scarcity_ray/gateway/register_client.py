"""How gateways and the server's rounds call the register, which is started again if it is dead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from scarcity_ray.errors import ActorLost
from scarcity_ray.gateway.register import REGISTER, Register
from scarcity_ray.runtime import LocalRuntime
from scarcity_ray.runtime.base import RoleSpec, Runtime
from scarcity_ray.runtime.rpc import Call

P = ParamSpec("P")
T = TypeVar("T")
RESTARTS = 3
"""Times that one call may start the register again."""


class RegisterClient:
    """Calls the register.

    A call whose answer is lost is made again, so that each of its methods may be done twice: a nonce is then
    refused, a claim finds its own, and what is noted is noted again.

    Args:
        spec: Of the register, to start it.

    Attributes:
        is_here: Whether it is in this process, so that a call of it takes a fraction of a millisecond.
    """

    def __init__(self, runtime: Runtime, spec: RoleSpec) -> None:
        self._runtime, self._spec = runtime, spec
        self.is_here = isinstance(runtime, LocalRuntime)

    def start(self) -> None:
        """Start the register, unless it runs."""
        self._runtime.start([self._spec])

    def call(self, method: Callable[Concatenate[Register, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method.

        Raises:
            ActorLost: If the register cannot be started again.
        """
        call = Call(method, *args, **kwargs)
        for attempt in range(RESTARTS + 1):
            try:
                return call.send(self._runtime.peers, REGISTER).result()
            except ActorLost as lost:
                if not lost.retryable or attempt == RESTARTS:
                    raise
                self.start()
        raise ActorLost(REGISTER)
