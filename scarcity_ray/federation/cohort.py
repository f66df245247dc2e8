"""The clients of a fit, as it sees them: they train somewhere, and their updates reach the baskets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.federation.driver import Driver
from scarcity_ray.federation.evaluation import MeanMetrics
from scarcity_ray.federation.fit_state import FitState, RoundFacts
from scarcity_ray.federation.fit_terms import FitTerms
from scarcity_ray.layers.server_model import ServerModel
from scarcity_ray_client import ModelCodec, Refusal, Workload

Model = TypeVar("Model")


class Phases:
    """Seconds of a round by phase."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.now = clock

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        began = self.now()
        try:
            yield
        finally:
            self.seconds[phase] += self.now() - began


@dataclass(frozen=True, eq=False)
class Fit(Generic[Model]):
    """What a cohort needs to know of its fit.

    Attributes:
        note: Warns of something once.
    """

    driver: Driver
    workload: Workload[Model]
    codec: ModelCodec[Model]
    terms: FitTerms
    phases: Phases
    note: Callable[[str], None]


@dataclass(frozen=True)
class ClientsEvaluation:
    """What a round's clients measured of a model: means by domain, and who gave none.

    Attributes:
        failed: The first refusal, if every client failed.
        num_clients: That were asked.
    """

    metrics: Mapping[str, MeanMetrics]
    refusals: Sequence[Refusal] = ()
    failed: Refusal | None = None
    num_clients: int = 0


class Cohort(Protocol):
    """The clients of one fit: tasks of the cluster (`TaskCohort`), or sites outside of it (`SiteCohort`).

    Attributes:
        run: The fit's name, by which the sites' own ledgers know its rows.
    """

    run: str

    @property
    def num_bytes(self) -> int:
        """What of a round's updates came to this process."""

    def register(self) -> None:
        """Register the clients with the federation."""

    def resume(self, state: FitState) -> None:
        """Go on where a stored fit stands."""

    def draws(self) -> Mapping[str, Any]:
        """State of the bit generator that draws clients."""

    def leave_out(self) -> bool:
        """Ask clients at ceilings of their own no more; whether there are any."""

    def begin(self, round_id: int, *, is_resumed: bool, is_trained: bool) -> None:
        """Begin a round.

        Args:
            is_resumed: Whether it was interrupted: updates of it may be in the baskets.
            is_trained: Whether its training is over, as it was interrupted later.
        """

    def train(self, model: ServerModel, version: int, clip_norm: float) -> None:
        """Have clients train on a model, and their updates in the baskets.

        Args:
            version: Of the last release that is in the model; 0: none.
            clip_norm: To which Layer 1 will clip.
        """

    def facts(self, gossip_messages: int) -> RoundFacts:
        """What the round's training came to."""

    def left_out(self) -> Sequence[Refusal]:
        """Clients that were not asked in this round, those left out for good in the first alone."""

    def notes(self) -> Sequence[str]:
        """What the round's training said of the workload."""

    def evaluate(self, handed_out: NDArray[np.float32]) -> ClientsEvaluation:
        """Have the round's clients evaluate a model where their data lie."""
