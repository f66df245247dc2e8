"""The round and the model, as one gateway knows them from the register."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.errors import ScarcityError
from scarcity_ray.federation.served_round import OpenRound
from scarcity_ray_client.wire import RoundState

logger = logging.getLogger("scarcity_ray")

LOOK_SECONDS = 0.2
"""Between two looks into the register."""


class RoundBoard:
    """Looks into the register, and wakes whoever waits for a round.

    Args:
        look: The register's round if it has another number than the given one.
        fetch: Its model.
    """

    def __init__(
        self, look: Callable[[int], OpenRound | None], fetch: Callable[[], NDArray[np.float32]]
    ) -> None:
        self._look, self._fetch = look, fetch
        self._changed = asyncio.Condition()
        self.round: OpenRound | None = None
        self.model = b""
        self.model_sha256 = ""

    async def run(self) -> None:
        """Look until cancelled."""
        loop, is_told = asyncio.get_running_loop(), False
        while True:
            try:
                found = await loop.run_in_executor(None, self._seen)
                is_told = False
            except ScarcityError as error:
                found = None
                if not is_told:
                    logger.warning("gateway: the register does not answer, the last round stands: %s", error)
                is_told = True
            if found is not None:
                async with self._changed:
                    self.round, model = found
                    if model is not None:
                        self.model, self.model_sha256 = model, self.round.model_sha256
                    self._changed.notify_all()
            await asyncio.sleep(LOOK_SECONDS)

    async def wait(self, after: int | None, seconds: float, run: str | None = None) -> OpenRound | None:
        """The round, once it is another than `after` or there will be none; what stands after `seconds`.

        Args:
            run: In which the asker has done that round; in another run it is news again. None: in any.
        """
        async with self._changed:
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait_for(lambda: self._is_news(after, run))
            except TimeoutError:
                pass
            return self.round

    def _is_news(self, after: int | None, run: str | None) -> bool:
        now = self.round
        if now is None:
            return False
        if now.state in (RoundState.FINISHED, RoundState.STOPPED):
            return True
        is_other = after is None or now.round_id > after or is_another_run(now, run)
        return now.state is RoundState.OPEN and is_other

    def _seen(self) -> tuple[OpenRound, bytes | None] | None:
        found = self._look(-1 if self.round is None else self.round.number)
        if found is None:
            return None
        if found.model_sha256 in ("", self.model_sha256):
            return found, None
        model = self._fetch().tobytes()
        # Another may have been published between the two: then it is looked again.
        return (found, model) if hashlib.sha256(model).hexdigest() == found.model_sha256 else None


def is_another_run(now: OpenRound, run: str | None) -> bool:
    """Whether the round is of another run of the server than the one stated, as text."""
    return run is not None and str(now.scope.run) != run
