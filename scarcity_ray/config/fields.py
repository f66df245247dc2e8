"""The types of settings with their ranges, and the random streams that a seed names."""

from __future__ import annotations

import hashlib
import json
import operator
import os
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from importlib.metadata import entry_points
from typing import Annotated, Any

import numpy as np
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    Strict,
    StrictFloat,
    StrictStr,
    WithJsonSchema,
)

from scarcity_ray.ledger_url import LedgerUrl, is_ledger_url
from scarcity_ray_client.loading import is_import_path


class AggregationMethod(StrEnum):
    """The rules by which Layer 1 turns a basket's rows into one vector."""

    MEAN = "mean"
    FEDAVG = "fedavg"
    WEIGHTED = "weighted"
    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed_mean"
    KRUM = "krum"
    MULTI_KRUM = "multi_krum"
    BULYAN = "bulyan"
    GEOMETRIC_MEDIAN = "geometric_median"
    CENTERED_CLIPPING = "centered_clipping"
    MEAMED = "meamed"
    MDA = "mda"
    CAF = "caf"


class RulePath(str):
    """A rule from outside the package: ``module:Class``, or the name of an installed entry point."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """The path as plain text, as a member of `AggregationMethod` has its name."""
        return str(self)


RULES_GROUP = "scarcity_ray.rules"
"""The group of entry points by which an installed package offers rules under a name."""


class CentralNoise(StrEnum):
    """The noise on a release; what is not Gaussian puts the whole ledger into zCDP."""

    GAUSSIAN = "gaussian"
    DISCRETE_GAUSSIAN = "discrete_gaussian"
    DISTRIBUTED_DISCRETE_GAUSSIAN = "distributed_discrete_gaussian"


class NoisePlace(StrEnum):
    """Where noise is added for the privacy claim."""

    CENTRAL = "central"
    SITE = "site"


class PrivacyUnit(StrEnum):
    """What neighbours differ in: whom the privacy claim protects."""

    CLIENT = "client"
    RECORD = "record"
    PERSON = "person"


class Durability(StrEnum):
    """When an acknowledged update is on the disk: never, at its round's end, before it is acknowledged."""

    NONE = "none"
    ROUND = "round"
    UPDATE = "update"


def _unbox_integer(value: object) -> object:
    """NumPy integers become ints; everything else is left for the type check to judge."""
    try:
        return value if isinstance(value, bool | float | str) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return value


def _member_of(kind: type[StrEnum]) -> Callable[[object], StrEnum]:
    """A validator that, unlike the enum itself, never writes out a refused value, however long."""

    def member(value: object) -> StrEnum:
        if isinstance(value, str) and value in set(kind):
            return kind(value)
        raise ValueError(f"one of {', '.join(kind)}")

    return member


def _method(value: object) -> AggregationMethod | RulePath:
    if isinstance(value, RulePath):
        return value
    if isinstance(value, str) and value in set(AggregationMethod):
        return AggregationMethod(value)
    if isinstance(value, str) and (is_import_path(value) or entry_points(group=RULES_GROUP, name=value)):
        return RulePath(value)
    installed = "".join(f", {name}" for name in sorted(entry_points(group=RULES_GROUP).names))
    raise ValueError(f"one of {', '.join(AggregationMethod)}{installed}, or module:Class for a rule of yours")


def _plain(value: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        json.dumps(dict(value))
    except (TypeError, ValueError, RecursionError):
        raise ValueError("values that a YAML file can hold: numbers, texts, lists, mappings") from None
    return value


def _can_name_a_file(value: str) -> bool:
    try:
        return bool(os.fsencode(value)) and "\0" not in value
    except UnicodeEncodeError:
        return False


def _ledger_path(value: str) -> str:
    if not _can_name_a_file(value):
        raise ValueError("the path of a file, or the URL of a database")
    return LedgerUrl(value) if is_ledger_url(value) else value


_STORES = ("file", "s3", "gs", "gcs")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def _storage_path(value: str) -> str:
    scheme = _SCHEME.match(value)
    if not _can_name_a_file(value) or (scheme is not None and scheme[1].lower() not in _STORES):
        raise ValueError("a folder, or the URI of one: file:///..., s3://BUCKET/..., gs://BUCKET/...")
    return value


def _journal_path(value: str) -> str:
    if is_ledger_url(value):
        return LedgerUrl(value)
    if not _can_name_a_file(value) or _SCHEME.match(value):
        raise ValueError(
            "a folder on a disk of the machine's own, since it is written before each answer, or the URL of "
            "a PostgreSQL database"
        )
    return value


def _key_path(value: str) -> str:
    if not _can_name_a_file(value):
        raise ValueError("the path of a file")
    return os.path.abspath(os.path.expanduser(value))


def _public_key(value: str) -> str:
    if len(value) != 64 or set(value.lower()) - set("0123456789abcdef"):
        raise ValueError("an Ed25519 public key as 64 hexadecimal digits")
    return value.lower()


def _clip_norm(value: float) -> float:
    if not 1e-20 <= value <= 1e20:
        raise ValueError("a number from 1e-20 to 1e20")
    return value


Int = Annotated[int, BeforeValidator(_unbox_integer), Strict()]
PositiveInt = Annotated[Int, Field(ge=1, le=2**31 - 1)]
NonNegativeInt = Annotated[Int, Field(ge=0, le=2**63 - 1)]
PositiveFloat = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)]
ClipNorm = Annotated[
    StrictFloat,
    AfterValidator(_clip_norm),
    WithJsonSchema({"type": "number", "minimum": 1e-20, "maximum": 1e20}),
]
"""A norm at which float32 vectors keep their relative precision."""
Epsilon = Annotated[StrictFloat, Field(gt=0)]
"""A privacy parameter; ``inf`` means no noise and no claim."""
Delta = Annotated[StrictFloat, Field(gt=0, lt=1)]
LedgerPath = Annotated[StrictStr, AfterValidator(_ledger_path), PlainSerializer(str)]
"""A file, or a `LedgerUrl`, whose password is shown nowhere."""
StoragePath = Annotated[StrictStr, AfterValidator(_storage_path)]
"""A folder, or the URI of one that `pyarrow.fs` knows."""
JournalPath = Annotated[StrictStr, AfterValidator(_journal_path), PlainSerializer(str)]
"""A folder on a local disk, or a `LedgerUrl`."""
KeyPath = Annotated[StrictStr, AfterValidator(_key_path)]
"""A file of the machine's own, made absolute."""
Kept = Annotated[Durability, BeforeValidator(_member_of(Durability))]
PublicKey = Annotated[StrictStr, AfterValidator(_public_key)]
"""An Ed25519 public key, as 64 hexadecimal digits."""
Method = Annotated[
    AggregationMethod | RulePath,
    PlainValidator(_method, json_schema_input_type=AggregationMethod | str),
    PlainSerializer(str),
]
"""A rule by name, or by the path of one from outside."""
_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
Labels = Annotated[
    Mapping[
        Annotated[StrictStr, Field(pattern=rf"^([a-z0-9.-]{{1,253}}/)?{_LABEL}$")],
        Annotated[StrictStr, Field(pattern=rf"^{_LABEL}$")],
    ],
    Field(min_length=1),
]
"""Labels of nodes, as Kubernetes and Ray write them: each names one value."""
Arguments = Annotated[Mapping[str, Any], AfterValidator(_plain)]
"""What a class from outside is made with, by name."""
Noise = Annotated[CentralNoise, BeforeValidator(_member_of(CentralNoise))]
Place = Annotated[NoisePlace, BeforeValidator(_member_of(NoisePlace))]
Unit = Annotated[PrivacyUnit, BeforeValidator(_member_of(PrivacyUnit))]


def stream(seed: int, *labels: str | int) -> np.random.Generator:
    """A named random stream for simulation (peers, splits, data, attacks); never for keys or privacy noise.

    The same seed and labels give the same stream on every machine and in either runtime.

    >>> bool(stream(0, "peers", "basket_0", 3).random() == stream(0, "peers", "basket_0", 3).random())
    True
    """
    name = "\x1f".join([str(seed), *map(str, labels)])
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.Generator(np.random.PCG64DXSM(int.from_bytes(digest, "little")))
