"""Clients' training, from the federation's vector to an update or a counted refusal for each."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Generic, Protocol, TextIO, TypeVar

import numpy as np
import numpy.typing as npt

from scarcity_ray_client.errors import ModelRefused, TooFewPersons, UsageError
from scarcity_ray_client.loading import told
from scarcity_ray_client.models import FloatVector, ModelCodec
from scarcity_ray_client.noise.source import NoiseSource, SystemNoise
from scarcity_ray_client.site_noise import SiteNoise
from scarcity_ray_client.workload import Client, Trained, Workload, checked_metrics

Model = TypeVar("Model")
Made = TypeVar("Made")

logger = logging.getLogger("scarcity_ray")

MOST_PRINTED = 64 * 1024
"""Characters that one training may print."""
MOST_TOLD = 4000
"""Characters of a traceback that travel."""


class Cause(StrEnum):
    """Why a client's training gave no update. The last five are told by whoever runs the training."""

    RAISED = "raised"
    NOT_FINITE = "not_finite"
    WRONG_MODEL = "wrong_model"
    WRONG_RESULT = "wrong_result"
    TOO_FEW_PERSONS = "too_few_persons"
    OUT_OF_MEMORY = "out_of_memory"
    AT_CEILING = "at_ceiling"
    LEDGER_ROLLED_BACK = "ledger_rolled_back"
    TIMED_OUT = "timed_out"
    LOST = "lost"
    BUDGET_SPENT = "budget_spent"


class Outbox(Protocol):
    """Where clients' noised rows are kept, with what they cost, before they leave."""

    def send(
        self, client_id: str, round_id: int, mu: float, make: Callable[[], FloatVector]
    ) -> FloatVector | Refusal:
        """The row that `make` noises, charged and kept durably; asked again, the same row, and nothing drawn.

        A `Refusal` where the client's own ledger does not allow the charge; `make` is not called then.
        """


@dataclass(frozen=True)
class Noising:
    """What noises the rows of some clients' trainings.

    Attributes:
        site_noise: The federation's; where noise falls from row to row, that of a client's first.
        mus: What a row of each client is charged, where that is not the same for all.
        source: Where the noise comes from; anything but the operating system's entropy is for tests.
        outbox: Of these clients; None: rows are not kept.
    """

    site_noise: SiteNoise
    source: NoiseSource = field(default_factory=SystemNoise)
    outbox: Outbox | None = None
    mus: Mapping[str, float] | None = None

    def sent(self, update: Update) -> Update | Refusal:
        """The update with its row noised, once: whoever calls this has been charged for one draw."""
        client_id, round_id, noise = update.client_id, update.round_id, self.site_noise
        if self.mus is not None:
            noise = replace(noise, mu=self.mus[client_id])

        def make() -> FloatVector:
            stream = f"row/{client_id}/{round_id}"
            return noise.noised(update.delta, update.num_persons or 0, self.source, stream)

        if self.outbox is None:
            return replace(update, delta=make())
        row = self.outbox.send(client_id, round_id, noise.mu, make)
        return row if isinstance(row, Refusal) else replace(update, delta=row)


@dataclass(frozen=True, eq=False)
class Update:
    """What a client's training gave; two of them are compared field by field, as arrays are.

    Attributes:
        client_id: Whose.
        round_id: Of which round's model.
        delta: (d,) float32: model after - model before.
        num_examples: Examples that were trained on.
        metrics: Finite numbers by name.
        num_persons: Whose mean the delta is, as the training told.
    """

    client_id: str
    round_id: int
    delta: FloatVector
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    num_persons: int | None = None


@dataclass(frozen=True)
class Refusal:
    """That a client's training gave no update, and why.

    What an error says may hold values of the client's data, and travels as it is.

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
    min_persons: int | None = None,
    noising: Noising | None = None,
) -> Update | Refusal:
    """Trains the federation's model on one client's data.

    Guarantees:
        Nothing that a workload does raises.
        A refusal names client, round and cause.
        A delta is what training changed.
        A model given as delta is refused where it can be told.
        What training prints is bounded.
        Where persons are the unit an update is a delta of enough persons.
        Nothing but the noised row is given where rows are noised.

    Args:
        workload: Whose `train` is called.
        codec: The workload's.
        vector: The federation's model, (d,).
        client: Whose data.
        round_id: The round.
        attacker: Call `Workload.poison` instead, for the lab; what it gives may be of nobody.
        min_persons: The federation's ``privacy.min_persons``; None: that of `noising`, and without it a
            client is the unit of privacy.
        noising: Noises the row, where the federation has ``privacy: {noise: site}``; an attacker's is not.

    Raises:
        UsageError: If `vector` is none of this codec's, which is no fault of the client.
        ModelRefused: If the model's dtypes cannot hold the vector.
    """
    start = _Start(codec, vector, None if attacker else min_persons, None if attacker else noising)

    def train() -> Update | Refusal:
        with _bounded_output(f"client {client.client_id!r}"):
            trained = (workload.poison if attacker else workload.train)(start.model, client, round_id)
        if trained is None and attacker:
            raise _WrongResult("the workload has no poison for it; write poison(model, client, round_id)")
        return _update(codec, trained, start, client, round_id)

    return _or_refusal(train, client, round_id)


def train_clients(
    workload: Workload[Model],
    codec: ModelCodec[Model],
    vectors: npt.ArrayLike,
    clients: Sequence[Client],
    round_id: int,
    poisoned: Collection[str] = frozenset(),
    on_failure: Callable[[str], None] | None = None,
    min_persons: int | None = None,
    noising: Noising | None = None,
) -> list[Update | Refusal]:
    """Trains clients: several by `Workload.train_many` where the workload has one, else one after another.

    Guarantees:
        A failure of one client refuses that client alone.
        Clients of a train_many that fails are trained alone.
        Clients trained together give what each gives alone.
        Poisoned clients send what poison gives.
        Of each client noise is drawn once.

    Args:
        workload: Whose `train_many` or `train` is called.
        codec: The workload's.
        vectors: The federation's model, (d,), or (n, d), one a client.
        clients: n of them.
        round_id: The round.
        poisoned: Ids of clients that attack: `Workload.poison` is called for each of them.
        on_failure: Told if `train_many` as a whole failed, and why; None: a warning is logged.
        min_persons: As in `train_client`, as `noising` is.

    Returns:
        One for each client, in their order.

    Raises:
        UsageError: If `vectors` are none of this codec's.
        ModelRefused: If the model's dtypes cannot hold a vector.
    """
    given = np.asarray(vectors)
    if given.ndim == 2 and len(given) != len(clients):
        raise UsageError(
            f"vectors: {len(given)} rows are not accepted; one for each of {len(clients)} clients"
        )
    rows = given if given.ndim == 2 else [given] * len(clients)
    outcomes: dict[int, Update | Refusal] = {}
    honest = [place for place, client in enumerate(clients) if client.client_id not in poisoned]
    if len(honest) > 1 and type(workload).train_many is not Workload.train_many:
        if given.ndim == 2:
            starts = [_Start(codec, rows[place], min_persons, noising) for place in honest]
        else:
            starts = [_Start(codec, given, min_persons, noising)] * len(honest)
        heard = on_failure or logger.warning
        them = [clients[place] for place in honest]
        together = _together(workload, codec, starts, them, round_id, heard)
        outcomes = dict(zip(honest, together, strict=False))
    for place, client in enumerate(clients):
        if place not in outcomes:
            outcomes[place] = train_client(
                workload,
                codec,
                rows[place],
                client,
                round_id,
                attacker=client.client_id in poisoned,
                min_persons=min_persons,
                noising=noising,
            )
    return [outcomes[place] for place in range(len(clients))]


def evaluate_client(
    workload: Workload[Model], codec: ModelCodec[Model], vector: npt.ArrayLike, client: Client, round_id: int
) -> dict[str, float] | Refusal:
    """What `Workload.evaluate_client` measures of the federation's model; empty where it gives None.

    Raises:
        UsageError: If `vector` is none of this codec's.
        ModelRefused: If the model's dtypes cannot hold the vector.
    """
    model = codec.decode(vector)

    def evaluate() -> dict[str, float]:
        with _bounded_output(f"client {client.client_id!r}"):
            found = workload.evaluate_client(model, client)
        return {} if found is None else _metrics(found)

    return _or_refusal(evaluate, client, round_id)


class _WrongResult(Exception):
    """What a method of the workload gave is not what is due."""


class _Start(Generic[Model]):
    """A model that is handed to a training, its numbers (d,) before, and what is asked of the update."""

    def __init__(
        self,
        codec: ModelCodec[Model],
        vector: npt.ArrayLike,
        min_persons: int | None,
        noising: Noising | None,
    ) -> None:
        self.noising = noising
        # What is noised for one person's sake is checked to be a mean over persons, whoever calls.
        least = None if noising is None else noising.site_noise.min_persons
        self.min_persons = least if min_persons is None else min_persons
        self.model = codec.decode(vector)
        self.numbers = codec.encode(self.model)


def _or_refusal(made: Callable[[], Made | Refusal], client: Client, round_id: int) -> Made | Refusal:
    try:
        return made()
    except ModelRefused as error:
        cause, detail = Cause.NOT_FINITE if error.flaw == "not_finite" else Cause.WRONG_MODEL, str(error)
    except _WrongResult as error:
        cause, detail = Cause.WRONG_RESULT, str(error)
    except TooFewPersons as error:
        cause, detail = Cause.TOO_FEW_PERSONS, str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also those of asyncio and of exit
        out = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        whole = "".join(traceback.format_exception(error))[-MOST_TOLD:]
        return Refusal(
            client.client_id, round_id, Cause.OUT_OF_MEMORY if out else Cause.RAISED, told(error), whole
        )
    return Refusal(client.client_id, round_id, cause, detail)


def _together(
    workload: Workload[Model],
    codec: ModelCodec[Model],
    starts: Sequence[_Start[Model]],
    clients: Sequence[Client],
    round_id: int,
    heard: Callable[[str], None],
) -> list[Update | Refusal]:
    """One outcome for each client; none at all where `train_many` as a whole failed."""
    try:
        with _bounded_output(f"train_many of {len(clients)} clients"):
            given = workload.train_many([start.model for start in starts], clients, round_id)
            many = list(itertools.islice(given, len(clients) + 1))
        if len(many) != len(clients):
            raise _WrongResult(f"it gave {'more' if len(many) > len(clients) else len(many)} results")
        if starts[0] is starts[-1] and not np.array_equal(codec.encode(starts[0].model), starts[0].numbers):
            raise _WrongResult("it changed the model that its clients share; copy it first")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        why = str(error) if isinstance(error, _WrongResult) else told(error)
        heard(f"train_many of {type(workload).__name__} fails and each client is trained alone: {why}")
        return []

    def checked(trained: object, start: _Start[Model], client: Client) -> Update | Refusal:
        return _or_refusal(lambda: _update(codec, trained, start, client, round_id), client, round_id)

    return list(map(checked, many, starts, clients))


def _update(
    codec: ModelCodec[Model],
    trained: object,
    start: _Start[Model],
    client: Client,
    round_id: int,
) -> Update | Refusal:
    if not isinstance(trained, Trained):
        raise _WrongResult(
            f"it gave a {type(trained).__name__}; return Trained(model=...) or Trained(delta=...)"
        )
    metrics = _metrics(trained.metrics)
    if metrics and start.noising is not None:
        raise _WrongResult(
            "metrics= are made of the client's data and would leave without noise beside a noised row "
            "(privacy.noise: site); leave them out, and evaluate the released model on data of nobody's"
        )
    if start.min_persons is not None:
        _check_persons(trained, start.min_persons, codec)
    if trained.model is not None:
        delta = codec.delta_from(start.numbers, trained.model)
    else:
        delta = codec.read_delta(trained.delta)
        if trained.delta is start.model or codec.share_memory(trained.delta, start.model):
            raise _WrongResult(
                "delta= lies where the model that was handed in does; give model=, "
                "or subtract into new arrays"
            )
        if start.min_persons is None and (delta == start.numbers).all() and delta.any():
            raise _WrongResult("delta= equals the model that was handed in; give model=, or subtract")
    count = trained.num_examples or client.num_examples
    update = Update(client.client_id, round_id, delta, count, metrics, trained.num_persons)
    return update if start.noising is None else start.noising.sent(update)


def _check_persons(trained: Trained[Model], min_persons: int, codec: ModelCodec[Model]) -> None:
    """Refuse what the claim about one person does not cover, or is not told of (docs/privacy_units.md)."""
    if trained.model is not None:
        raise _WrongResult(
            "model= is not accepted where persons or records are the unit of privacy: the difference of two "
            "models is no mean over them; give Trained(delta=-mean.row, num_persons=mean.num_persons), with "
            "mean by person_gradient or person_mean"
        )
    if trained.num_persons is None:
        raise _WrongResult(
            "num_persons is missing, which persons or records as the unit of privacy need; give "
            "Trained(delta=-mean.row, num_persons=mean.num_persons), with mean by person_gradient or "
            "person_mean"
        )
    if narrow := codec.narrow(trained.delta):
        raise _WrongResult(
            f"delta= is rounded to float16 or bfloat16 ({', '.join(narrow)}): one person may move that "
            "further than the claim allows for; give float32 or float64"
        )
    if trained.num_persons < min_persons:
        raise TooFewPersons(
            f"num_persons: {trained.num_persons} is below privacy.min_persons = {min_persons}"
        )


def _metrics(metrics: object) -> dict[str, float]:
    try:
        return checked_metrics(metrics)
    except UsageError as error:
        raise _WrongResult(str(error)) from None


class _Bounded(io.TextIOBase):
    """Hands on what Python code prints until it is too much."""

    def __init__(self, target: TextIO, name: str) -> None:
        self._target, self._name, self._left = target, name, MOST_PRINTED

    def write(self, text: str) -> int:
        if self._left > 0:
            self._target.write(text[: self._left])
            self._left -= len(text)
            if self._left <= 0:
                self._target.write(f"\n[{self._name} prints more than {MOST_PRINTED} characters: dropped]\n")
        return len(text)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._target.encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

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


__all__ = [
    "Cause",
    "Noising",
    "Outbox",
    "Refusal",
    "Update",
    "evaluate_client",
    "train_client",
    "train_clients",
]
