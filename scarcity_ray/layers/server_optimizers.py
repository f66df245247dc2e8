"""Server optimisers: how a released delta becomes the next model.

They see released deltas and nothing else, so they are post-processing and cost no privacy (Dwork, Roth 2014,
Proposition 2.1). A delta takes the place of a negative gradient: it is added.

With g the round's delta, m and v the state, eta the scheduled learning rate, and all by coordinate:

===========  ===============================================================================================
ServerSGD    m <- momentum m + g;  x <- x + eta m         FedAvgM: Hsu, Qi, Brown 2019
FedAdagrad   v <- v + g^2                                 Reddi et al. 2021, Algorithm 2, by these names
FedYogi      v <- v - (1 - beta_2) g^2 sign(v - g^2)      likewise
FedAdam      v <- beta_2 v + (1 - beta_2) g^2             likewise
===========  ===============================================================================================

The last three share m <- beta_1 m + (1 - beta_1) g and then x <- x + eta m / (sqrt(v) + tau), of the new
m and v. As in the paper there is no bias correction; m begins at 0 and v at tau^2, the least it allows.

Guarantees:
    each_step_is_the_formula_of_the_paper
    nothing_given_is_changed_and_nothing_given_back_can_be
    what_is_not_finite_is_refused
    the_same_arguments_give_the_same_bytes
    plain_sgd_adds_the_delta
    a_schedule_lies_between_zero_and_one_and_begins_at_one
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scarcity_ray.config.arguments import instance_of, number_of
from scarcity_ray.errors import UsageError
from scarcity_ray_client.errors import shown

FloatVector = NDArray[np.float32]
DoubleVector = NDArray[np.float64]
Made = TypeVar("Made")


class Schedule(ABC):
    """What the learning rate is multiplied by in each round, from 1 in round 0."""

    def factor(self, round_id: int) -> float:
        """The factor of a round, between 0 and 1.

        Raises:
            UsageError: If `round_id` is no round, from 0.
        """
        return self._factor(_whole("round_id", round_id, 0))

    @abstractmethod
    def _factor(self, round_id: int) -> float: ...


@dataclass(frozen=True)
class ConstantRate(Schedule):
    """Always 1."""

    def _factor(self, round_id: int) -> float:
        return 1.0


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """decay^(t / rounds).

    >>> [ExponentialDecay(decay=0.25, rounds=10).factor(t) for t in (0, 5, 10)]
    [1.0, 0.5, 0.25]
    """

    decay: float
    rounds: int = 1

    def __post_init__(self) -> None:
        _between("decay", self.decay, 0.0, 1.0, above=True)
        _whole("rounds", self.rounds, 1)

    def _factor(self, round_id: int) -> float:
        return float(self.decay ** (round_id / self.rounds))


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """Half a cosine from 1 down to `floor` in `rounds` (Loshchilov, Hutter 2017, equation 5), then `floor`.

    >>> [round(CosineDecay(rounds=10).factor(t), 3) for t in (0, 5, 10, 11)]
    [1.0, 0.5, 0.0, 0.0]
    """

    rounds: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        _whole("rounds", self.rounds, 1)
        _between("floor", self.floor, 0.0, 1.0)

    def _factor(self, round_id: int) -> float:
        done = min(1.0, round_id / self.rounds)
        return self.floor + (1.0 - self.floor) * (1.0 + math.cos(math.pi * done)) / 2.0


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Multiplied by `decay` after every `rounds`.

    >>> [StepDecay(rounds=10, decay=0.5).factor(t) for t in (0, 9, 10, 20)]
    [1.0, 1.0, 0.5, 0.25]
    """

    rounds: int
    decay: float = 0.1

    def __post_init__(self) -> None:
        _whole("rounds", self.rounds, 1)
        _between("decay", self.decay, 0.0, 1.0, above=True)

    def _factor(self, round_id: int) -> float:
        return float(self.decay ** (round_id // self.rounds))


@dataclass(frozen=True, eq=False)
class ServerState:
    """What an optimiser remembers between rounds; read-only copies.

    Attributes:
        momentum: m, (d,).
        second_moment: v, (d,); empty for `ServerSGD`.
    """

    momentum: DoubleVector
    second_moment: DoubleVector

    def __post_init__(self) -> None:
        for name in ("momentum", "second_moment"):
            object.__setattr__(self, name, _copy(name, getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class ServerOptimizer(ABC):
    """Settings of one optimiser, checked as it is made; what changes is in `ServerState`.

    Attributes:
        learning_rate: eta.
        schedule: What eta is multiplied by in each round.

    Raises:
        UsageError: For a setting that cannot work.
    """

    learning_rate: float = 1.0
    schedule: Schedule = ConstantRate()

    def __post_init__(self) -> None:
        rate = number_of("learning_rate", self.learning_rate)
        if not (math.isfinite(rate) and rate > 0.0):
            raise UsageError(f"learning_rate: {shown(rate)} is not accepted; a number above 0")
        if not isinstance(self.schedule, Schedule):
            raise UsageError(
                f"schedule: {shown(self.schedule)} is not accepted; one of {', '.join(SCHEDULES)}"
            )

    def init(self, dimension: int) -> ServerState:
        """The state before the first round, for a model of `dimension` numbers."""
        zeros = np.zeros(_whole("dimension", dimension, 1))
        return ServerState(zeros, self._first_second_moment(zeros))

    def step(
        self, state: ServerState, model: ArrayLike, delta: ArrayLike, round_id: int
    ) -> tuple[ServerState, FloatVector]:
        """The state and the model after a released delta.

        Args:
            state: From `init`, or from the step before.
            model: (d,) as it stands.
            delta: (d,) as released.
            round_id: From 0, for the schedule.

        Raises:
            UsageError: For a vector that is not (d,) finite floats, or a step beyond float32's range. The
                state stays as it was, so that the step may be made again.
        """
        moment = instance_of("state", state, ServerState).momentum
        if state.second_moment.shape != self._first_second_moment(moment).shape:
            raise UsageError(f"state: was not made by a {type(self).__name__}")
        before, change = _copy("model", model, moment.size), _copy("delta", delta, moment.size)
        following, direction = self._direction(state, change)
        rate = self.learning_rate * self.schedule.factor(round_id)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            after = (before + rate * direction).astype(np.float32)
        if not np.isfinite(after).all():
            raise UsageError(f"round {round_id}: the step leaves the range of float32; lower learning_rate")
        after.setflags(write=False)
        return following, after

    @abstractmethod
    def _first_second_moment(self, zeros: DoubleVector) -> DoubleVector: ...

    @abstractmethod
    def _direction(self, state: ServerState, delta: DoubleVector) -> tuple[ServerState, DoubleVector]:
        """The next state, and what the learning rate multiplies."""


@dataclass(frozen=True, kw_only=True)
class ServerSGD(ServerOptimizer):
    """Adds the delta (FedAvg), or with momentum a sum of deltas of fading weight (FedAvgM).

    Momentum adds up: deltas that agree move the model by 1 / (1 - momentum) times their length.

    >>> optimizer = ServerSGD(momentum=0.5)
    >>> state, model = optimizer.step(optimizer.init(1), np.zeros(1), np.ones(1), round_id=0)
    >>> optimizer.step(state, model, np.ones(1), round_id=1)[1]
    array([2.5], dtype=float32)
    """

    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _between("momentum", self.momentum, 0.0, 1.0, below=True)

    def _first_second_moment(self, zeros: DoubleVector) -> DoubleVector:
        return np.zeros(0)

    def _direction(self, state: ServerState, delta: DoubleVector) -> tuple[ServerState, DoubleVector]:
        following = ServerState(self.momentum * state.momentum + delta, state.second_moment)
        return following, following.momentum


@dataclass(frozen=True, kw_only=True)
class _Adaptive(ServerOptimizer):
    """Algorithm 2 of Reddi et al. 2021, but for v.

    Attributes:
        learning_rate: eta. Coordinates move by about eta a round, whatever the delta's length: start near
            0.01.
        beta_1: Weight of the old m.
        tau: Adaptivity: the smaller, the more alike the coordinates' steps.
    """

    learning_rate: float = 0.01
    beta_1: float = 0.9
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        _between("beta_1", self.beta_1, 0.0, 1.0, below=True)
        _between("tau", self.tau, 1e-30, 1e30)

    def _first_second_moment(self, zeros: DoubleVector) -> DoubleVector:
        return np.full_like(zeros, self.tau**2)

    def _direction(self, state: ServerState, delta: DoubleVector) -> tuple[ServerState, DoubleVector]:
        momentum = self.beta_1 * state.momentum + (1.0 - self.beta_1) * delta
        second_moment = self._second_moment(state.second_moment, delta**2)
        return ServerState(momentum, second_moment), momentum / (np.sqrt(second_moment) + self.tau)

    @abstractmethod
    def _second_moment(self, before: DoubleVector, squares: DoubleVector) -> DoubleVector: ...


@dataclass(frozen=True, kw_only=True)
class FedAdagrad(_Adaptive):
    """Steps shrink with the sum of all squares so far; without momentum, as in the paper's experiments."""

    beta_1: float = 0.0

    def _second_moment(self, before: DoubleVector, squares: DoubleVector) -> DoubleVector:
        return before + squares


@dataclass(frozen=True, kw_only=True)
class FedYogi(_Adaptive):
    """v moves towards the squares by a step of their own size, so that it falls slowly.

    Attributes:
        beta_2: 1 - beta_2 is the length of v's step.
    """

    beta_2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        _between("beta_2", self.beta_2, 0.0, 1.0, below=True)

    def _second_moment(self, before: DoubleVector, squares: DoubleVector) -> DoubleVector:
        return before - (1.0 - self.beta_2) * squares * np.sign(before - squares)


@dataclass(frozen=True, kw_only=True)
class FedAdam(_Adaptive):
    """v is a fading mean of squares.

    Attributes:
        beta_2: Weight of the old v.

    >>> optimizer = FedAdam(learning_rate=0.1)
    >>> state, model = optimizer.step(optimizer.init(2), np.zeros(2), [1.0, 0.001], round_id=0)
    >>> [round(float(number), 3) for number in model]
    [0.099, 0.005]
    """

    beta_2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        _between("beta_2", self.beta_2, 0.0, 1.0, below=True)

    def _second_moment(self, before: DoubleVector, squares: DoubleVector) -> DoubleVector:
        return self.beta_2 * before + (1.0 - self.beta_2) * squares


def polynomial_average(
    average: FloatVector, model: FloatVector, num_models: int, decay: float
) -> FloatVector:
    """The average of a run's models with weights that grow like t^decay (Shamir, Zhang 2013).

    It evens out the releases' noise and is post-processing, like the optimisers.

    Args:
        average: (d,) of the models before; anything finite before the first.
        model: (d,) the newest.
        num_models: Models so far, the newest included.
        decay: From 0, the plain mean.

    >>> polynomial_average(np.ones(1, np.float32), np.array([2], np.float32), 2, decay=0.0)
    array([1.5], dtype=float32)
    """
    share = np.float32((decay + 1.0) / (num_models + decay))
    return ((1 - share) * average + share * model).astype(np.float32)


SERVER_OPTIMIZERS: Mapping[str, type[ServerOptimizer]] = {
    "sgd": ServerSGD,
    "fedadagrad": FedAdagrad,
    "fedyogi": FedYogi,
    "fedadam": FedAdam,
}
SCHEDULES: Mapping[str, type[Schedule]] = {
    "constant": ConstantRate,
    "exponential": ExponentialDecay,
    "cosine": CosineDecay,
    "step": StepDecay,
}
ELSEWHERE: Mapping[str, str] = {
    "scaffold": (
        "SCAFFOLD (Karimireddy et al. 2020) needs control variates: state that each client keeps between "
        "rounds, and a second vector from it in each round, which the privacy budget has not paid for; "
        "use FedProx in train (scarcity_ray_client.proximal_gradient) or momentum here"
    ),
    "fedprox": "FedProx is the clients': add scarcity_ray_client.proximal_gradient to the gradient in train",
}
"""What users ask for and cannot have here, and why."""


def server_optimizer(name: str = "sgd", **settings: object) -> ServerOptimizer:
    """An optimiser by name, as a configuration has it.

    Args:
        name: One of `SERVER_OPTIMIZERS`.
        settings: Its attributes; ``schedule`` may be a mapping with the ``name`` of one of `SCHEDULES` and
            its attributes.

    Raises:
        UsageError: For a name, a setting or a value that is not accepted, saying which are.

    >>> server_optimizer("fedadam", learning_rate=0.02, schedule={"name": "cosine", "rounds": 60}).schedule
    CosineDecay(rounds=60, floor=0.0)
    >>> server_optimizer("scaffold")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    scarcity_ray_client.errors.UsageError: server_optimizer: SCAFFOLD (Karimireddy et al. 2020) needs ...
    """
    if isinstance(name, str) and (why := ELSEWHERE.get(name.lower())):
        raise UsageError(f"server_optimizer: {why}")
    given = settings.get("schedule")
    if isinstance(given, Mapping):
        rest = {key: value for key, value in given.items() if key != "name"}
        settings["schedule"] = _made("schedule", SCHEDULES, given.get("name"), rest)
    return _made("server_optimizer", SERVER_OPTIMIZERS, name, settings)


def _made(what: str, kinds: Mapping[str, type[Made]], name: object, settings: Mapping[str, object]) -> Made:
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise UsageError(f"{what}: {shown(name)} is not accepted; one of {', '.join(kinds)}")
    accepted = inspect.signature(kind).parameters
    needed = {key for key, parameter in accepted.items() if parameter.default is parameter.empty}
    if not needed <= set(settings) <= set(accepted):
        raise UsageError(
            f"{what}: {name} takes {', '.join(accepted) or 'no settings'}"
            f"{' and needs ' + ', '.join(sorted(needed)) if needed else ''}; got {shown(list(settings))}"
        )
    return kind(**settings)


def _between(
    what: str, value: object, least: float, most: float, *, above: bool = False, below: bool = False
) -> None:
    """Refuse what does not lie in [least, most], or on an end of it that does not belong to it."""
    number = number_of(what, value)
    if not least <= number <= most or (above and number == least) or (below and number == most):
        ends = f"{'above' if above else 'from'} {least:g} {'to below' if below else 'to'} {most:g}"
        raise UsageError(f"{what}: {shown(value)} is not accepted; a number {ends}")


def _whole(what: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value < 2**63:
        raise UsageError(f"{what}: {shown(value)} is not accepted; a whole number from {least}")
    return int(value)


def _copy(what: str, vector: ArrayLike, size: int | None = None) -> DoubleVector:
    """A read-only copy of finite floats, of a size."""
    try:
        read = np.asarray(vector)
    except (TypeError, ValueError, OverflowError):
        read = np.zeros((), dtype=object)
    if read.dtype.kind not in "fiu":
        raise UsageError(f"{what}: {shown(vector)} is not accepted; a vector of floats")
    if read.ndim != 1 or size not in (None, read.size):
        raise UsageError(
            f"{what}: the shape {read.shape} is not accepted; ({'d' if size is None else size},)"
        )
    if not np.isfinite(read).all():
        raise UsageError(f"{what}: not finite at {np.flatnonzero(~np.isfinite(read))[:8].tolist()}")
    copied = read.astype(np.float64)
    copied.setflags(write=False)
    return copied
