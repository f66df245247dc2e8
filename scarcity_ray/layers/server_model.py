"""The server's model from release to release: what clients train from, and what is handed out.

All of it is post-processing of releases and costs no privacy.

Guarantees:
    without_averaging_what_clients_train_from_is_handed_out
    each_delta_counts_as_clipped_to_the_least_clip_norm_since_its_release
    nothing_given_is_changed_by_a_step
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scarcity_ray.config.arguments import number_of
from scarcity_ray.errors import UsageError
from scarcity_ray.layers.server_optimizers import (
    ServerOptimizer,
    ServerSGD,
    ServerState,
    polynomial_average,
)
from scarcity_ray_client.errors import shown

FloatVector = NDArray[np.float32]
Parts = tuple[tuple[float, NDArray[np.float64]], ...]


@dataclass(frozen=True, eq=False)
class ServerModelState:
    """What of a `ServerModel` changes from step to step; see there."""

    current: FloatVector
    handed_out: FloatVector
    state: ServerState
    num_releases: int
    parts: Parts


@dataclass(frozen=True, eq=False)
class ServerModel:
    """Where the server's model stands; `begin` makes the first, `step` the next.

    Under adaptive clipping, a `ServerSGD` without momentum scales each delta by the least clip norm since its
    release over its own clip norm. Noise is proportional to the clip norm and signal is not, so what was
    released while the clip norm was ten times too large is mostly noise, which would stay in the sum. Scaled,
    it has the noise of the present clip norm. Other optimisers mix deltas and take them as they are.

    Attributes:
        optimizer: From a release to the next model.
        averaging_decay: Of the `polynomial_average` that is handed out; None: `current` is.
        current: (d,) float32, read-only: clients train from it.
        handed_out: (d,) float32, read-only.
        num_releases: Steps so far.
        state: The optimiser's.
        parts: Under adaptive clipping the model in parts that add up to it, each with the clip norm that it
            counts at, rising; the start counts at 0.
    """

    optimizer: ServerOptimizer
    averaging_decay: float | None
    current: FloatVector
    handed_out: FloatVector
    state: ServerState
    num_releases: int = 0
    parts: Parts = ()

    @classmethod
    def begin(
        cls, start: ArrayLike, optimizer: ServerOptimizer | None = None, averaging_decay: float | None = None
    ) -> ServerModel:
        """The model before the first release.

        Args:
            start: (d,).
            optimizer: `ServerSGD()`, which adds the delta, if None.
            averaging_decay: A number from 0, or None.

        Raises:
            UsageError: For another averaging decay.
        """
        if averaging_decay is not None and not 0.0 <= number_of("averaging_decay", averaging_decay) < np.inf:
            raise UsageError(f"averaging_decay: {shown(averaging_decay)} is not accepted; a number from 0")
        made = optimizer or ServerSGD()
        current = _read_only(np.array(start, np.float32))
        return cls(made, averaging_decay, current, current, made.init(current.size))

    def kept(self) -> ServerModelState:
        """What changes from step to step, to be stored."""
        return ServerModelState(self.current, self.handed_out, self.state, self.num_releases, self.parts)

    def resumed(self, kept: ServerModelState) -> ServerModel:
        """The model of these settings where `kept` stood."""
        return replace(
            self,
            current=_read_only(np.array(kept.current, np.float32)),
            handed_out=_read_only(np.array(kept.handed_out, np.float32)),
            state=kept.state,
            num_releases=kept.num_releases,
            parts=kept.parts,
        )

    def step(self, delta: ArrayLike, clip_norms: tuple[float, float] | None = None) -> ServerModel:
        """The model after a release.

        Args:
            delta: (d,) as released.
            clip_norms: Under adaptive clipping, that of the release and the one that follows from it.

        Raises:
            UsageError: As `ServerOptimizer.step` does.

        >>> one = np.ones(1, np.float32)
        >>> ServerModel.begin([0.0], averaging_decay=0.0).step(one).step(one).handed_out
        array([1.5], dtype=float32)
        >>> ServerModel.begin([0.0]).step(one, clip_norms=(1.0, 0.5)).step(one, clip_norms=(0.5, 0.5)).current
        array([1.5], dtype=float32)
        """
        state, current = self.optimizer.step(self.state, self.current, delta, self.num_releases)
        parts, optimizer = self.parts, self.optimizer
        if clip_norms is not None and isinstance(optimizer, ServerSGD) and optimizer.momentum == 0.0:
            used, following = clip_norms
            rate = optimizer.learning_rate * optimizer.schedule.factor(self.num_releases)
            before = parts or ((0.0, self.current.astype(np.float64)),)
            parts = _counted_at(following, (*before, (used, rate * np.asarray(delta, np.float64))))
            current = _read_only(np.sum([vector for _, vector in parts], axis=0).astype(np.float32))
        handed_out, num = current, self.num_releases + 1
        if self.averaging_decay is not None:
            average = polynomial_average(self.handed_out, current, num, self.averaging_decay)
            handed_out = _read_only(average)
        return replace(
            self, current=current, handed_out=handed_out, state=state, num_releases=num, parts=parts
        )


def _counted_at(clip_norm: float, parts: Parts) -> Parts:
    """The parts, those above `clip_norm` scaled to it and put together."""
    kept = tuple(part for part in parts if part[0] <= clip_norm)
    scaled = [(clip_norm / norm) * vector for norm, vector in parts if norm > clip_norm]
    return (*kept, (clip_norm, np.sum(scaled, axis=0))) if scaled else kept


def _read_only(vector: FloatVector) -> FloatVector:
    vector.setflags(write=False)
    return vector
