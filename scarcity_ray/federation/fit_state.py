"""Where a `fit` stands between two rounds, as it is stored, so that another process can go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scarcity_ray.errors import StorageError, UsageError
from scarcity_ray.federation.evaluation import BestModel, MeanMetrics, Progress
from scarcity_ray.federation.fit_terms import FitTerms, RoundRecord
from scarcity_ray.layers.server_model import ServerModelState
from scarcity_ray.layers.server_optimizers import ServerState
from scarcity_ray.storage.codec import Codec
from scarcity_ray.storage.snapshots import Snapshots
from scarcity_ray_client import Cause, PrivateMetric, Refusal

_NAME = "fit"
_MAY_DIFFER = {"rounds", "start", "deadline_seconds", "on_round", "on_progress", "on_release", "resume"}
"""Terms that another process may change as it goes on."""


@dataclass(frozen=True, eq=False)
class FitState:
    """A fit between two rounds.

    Attributes:
        terms: What decides how it goes on, as text by name.
        round_id: The federation's round in which its next round begins.
        rng: State of the bit generator that draws clients.
        model: The server's, with its optimiser's state.
        version: Of the last release that is in it.
        clip_norm: Of the next updates.
        history: Its rounds so far.
        refusals: By client and reason.
        progress: Of early stopping, with the best model.
        noted: What it has warned of.
        run: Its name, by which the sites' own ledgers know its rows.
    """

    terms: Mapping[str, str]
    round_id: int
    rng: Mapping[str, Any]
    model: ServerModelState
    version: int
    clip_norm: float
    history: tuple[RoundRecord, ...]
    refusals: Mapping[str, Mapping[str, int]]
    progress: Progress
    noted: tuple[str, ...]
    run: str


@dataclass(frozen=True, eq=False, kw_only=True)
class RoundFacts:
    """What a round's training came to, for its `RoundRecord`; stored before it is aggregated.

    Attributes:
        refused: Client and reason of each update that did not come or was refused.
        unmeasured: Private evaluations that failed.
    """

    round_id: int
    num_sampled: int
    num_accepted: int
    num_surplus: int
    refused: tuple[tuple[str, str], ...]
    first_refusals: tuple[Refusal, ...]
    unmeasured: tuple[Refusal, ...]
    metrics: Mapping[str, MeanMetrics]
    gossip_messages: int


_CODEC = Codec(
    BestModel, Cause, FitState, MeanMetrics, PrivateMetric, Progress, Refusal, RoundFacts, RoundRecord,
    ServerModelState, ServerState,
)  # fmt: skip


def write_fit(kept: Snapshots, state: FitState) -> None:
    """Store where a fit stands.

    Raises:
        StorageError: If it cannot be written.
    """
    kept.write(_NAME, state, _CODEC)


def stored_fit(kept: Snapshots | None, terms: FitTerms, dimension: int) -> FitState | None:
    """Where the stored fit stands; None if none had begun.

    Raises:
        UsageError: If nothing is kept, or it is a fit of another model or on other terms.
        StorageError: If it is torn, or another federation's.
    """
    if kept is None:
        raise UsageError(
            "resume: nothing is kept, as storage_path is not configured; configure it, or leave out"
        )
    state = kept.read(_NAME, _CODEC)
    if state is None:
        return None
    if not isinstance(state, FitState):
        raise StorageError(f"{kept.path}: {_NAME} is no fit; put back a copy of the folder")
    asked = terms_of(terms)
    other = [
        f"{name} was {state.terms.get(name)}, not {asked.get(name)}"
        for name in sorted(state.terms.keys() | asked.keys())
        if state.terms.get(name) != asked.get(name)
    ]
    if state.model.current.size != dimension:
        other.insert(0, f"its model has {state.model.current.size} numbers, not {dimension}")
    if other:
        raise UsageError(f"resume: the stored fit is another one: {'; '.join(other)}; give the same")
    return state


def write_facts(kept: Snapshots, facts: RoundFacts) -> None:
    """Store a round's facts.

    Raises:
        StorageError: If they cannot be written.
    """
    kept.write("fit-round", facts, _CODEC)


def stored_facts(kept: Snapshots) -> RoundFacts | None:
    """The facts that were stored last.

    Raises:
        StorageError: If they are torn, or another federation's.
    """
    facts = kept.read("fit-round", _CODEC)
    return facts if isinstance(facts, RoundFacts) else None


def terms_of(terms: FitTerms) -> dict[str, str]:
    """What decides how a fit goes on, as text by name."""
    return {
        name: type(value).__name__ if name == "adversary" else repr(value)
        for name, value in vars(terms).items()
        if name not in _MAY_DIFFER
    }
