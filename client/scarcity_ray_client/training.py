"""One client's training, from the federation's vector to an update or a counted refusal."""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TextIO, TypeVar

import numpy as np
import numpy.typing as npt

from scarcity_ray_client.errors import ModelRefused, UsageError
from scarcity_ray_client.loading import told
from scarcity_ray_client.models import FloatVector, ModelCodec
from scarcity_ray_client.workload import Client, Trained, Workload, checked_metrics

Model = TypeVar("Model")
MOST_PRINTED = 64 * 1024
"""Characters that one training may print."""
MOST_TOLD = 4000
"""Characters of a traceback that travel."""


class Cause(StrEnum):
    """Why a client's training gave no update. The last three are told by whoever runs the training."""

    RAISED = "raised"
    NOT_FINITE = "not_finite"
    WRONG_MODEL = "wrong_model"
    WRONG_RESULT = "wrong_result"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    LOST = "lost"


@dataclass(frozen=True)
class Update:
    """What a client's training gave.

    Attributes:
        client_id: Whose.
        round_id: Of which round's model.
        delta: (d,) float32: model after - model before.
        num_examples: Examples that were trained on.
        metrics: Finite numbers by name.
    """

    client_id: str
    round_id: int
    delta: FloatVector
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """That a client's training gave no update, and why.

    Attributes:
        client_id: Whose.
        round_id: Of which round.
        cause: To count by.
        detail: What happened, in one line: an error's type, message and line; a parameter's name and flaw.
        traceback: The end of an error's traceback; "" where nothing was raised.
    """

    client_id: str
    round_id: int
    cause: Cause
    detail: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"client {self.client_id!r}, round {self.round_id}: {self.cause}: {self.detail}"


def train_client(
    workload: Workload[Model],
    codec: ModelCodec[Model],
    vector: npt.ArrayLike,
    client: Client,
    round_id: int,
    *,
    attacker: bool = False,
) -> Update | Refusal:
    """Trains the federation's model on one client's data.

    Guarantees:
        Nothing that a workload does raises.
        A refusal names client, round and cause.
        A delta is what training changed.
        A model given as delta is refused where it can be told.
        What training prints is bounded.

    Args:
        workload: Whose `train` is called.
        codec: The workload's.
        vector: The federation's model, (d,).
        client: Whose data.
        round_id: The round.
        attacker: Call `Workload.poison` instead, for the lab.

    Raises:
        UsageError: If `vector` is none of this codec's, which is no fault of the client.
        ModelRefused: If the model's dtypes cannot hold the vector.
    """
    start, before = codec.decode(vector), codec.decode(vector)
    try:
        with _bounded_output(client.client_id):
            trained = (workload.poison if attacker else workload.train)(start, client, round_id)
        delta, metrics, num_examples = _checked(codec, trained, start, before)
        return Update(client.client_id, round_id, delta, num_examples or client.num_examples, metrics)
    except ModelRefused as error:
        cause, detail = Cause.NOT_FINITE if error.flaw == "not_finite" else Cause.WRONG_MODEL, str(error)
    except _WrongResult as error:
        cause, detail = Cause.WRONG_RESULT, str(error)
    except (Exception, SystemExit) as error:
        out = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        whole = "".join(traceback.format_exception(error))[-MOST_TOLD:]
        return Refusal(
            client.client_id, round_id, Cause.OUT_OF_MEMORY if out else Cause.RAISED, told(error), whole
        )
    return Refusal(client.client_id, round_id, cause, detail)


class _WrongResult(Exception):
    """What `train` gave is no `Trained`, or not a good one."""


def _checked(
    codec: ModelCodec[Model], trained: object, start: Model, before: Model
) -> tuple[FloatVector, dict[str, float], int | None]:
    if not isinstance(trained, Trained):
        raise _WrongResult(
            f"it gave a {type(trained).__name__}; return Trained(model=...) or Trained(delta=...)"
        )
    try:
        metrics = checked_metrics(trained.metrics)
    except UsageError as error:
        raise _WrongResult(str(error)) from None
    if trained.model is not None:
        return codec.delta(before, trained.model), metrics, trained.num_examples
    delta = codec.read_delta(trained.delta)
    if trained.delta is start or codec.share_memory(trained.delta, start):
        raise _WrongResult(
            "delta= lies where the model that was handed in does; give model=, or subtract into new arrays"
        )
    if delta.any() and np.array_equal(delta, codec.encode(before)):
        raise _WrongResult("delta= equals the model that was handed in; give model=, or subtract")
    return delta, metrics, trained.num_examples


class _Bounded(io.TextIOBase):
    """Hands on what Python code prints until it is too much."""

    def __init__(self, target: TextIO, name: str) -> None:
        self._target, self._name, self._left = target, name, MOST_PRINTED

    def write(self, text: str) -> int:
        if self._left > 0:
            self._target.write(text[: self._left])
            self._left -= len(text)
            if self._left <= 0:
                self._target.write(
                    f"\n[client {self._name!r} prints more than {MOST_PRINTED} characters: dropped]\n"
                )
        return len(text)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._target.encoding

    def fileno(self) -> int:
        return self._target.fileno()

    def flush(self) -> None:
        self._target.flush()


@contextlib.contextmanager
def _bounded_output(name: str) -> Iterator[None]:
    out: Any = _Bounded(sys.stdout, name)
    err: Any = _Bounded(sys.stderr, name)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


__all__ = ["Cause", "Refusal", "Update", "train_client"]
