"""The types of config fields with their ranges, and the decorator that checks them."""

from __future__ import annotations

import functools
import operator
import os
import re
from collections.abc import Callable
from dataclasses import field
from enum import StrEnum
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from scarcity_ray.config.refusals import refusal
from scarcity_ray.errors import ConfigError, UsageError
from scarcity_ray.ledger_url import LedgerUrl, is_ledger_url, without_password

T = TypeVar("T")


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


class CentralNoise(StrEnum):
    """The noise on a release; what is not Gaussian puts the whole ledger into zCDP."""

    GAUSSIAN = "gaussian"
    DISCRETE_GAUSSIAN = "discrete_gaussian"
    DISTRIBUTED_DISCRETE_GAUSSIAN = "distributed_discrete_gaussian"


def _unbox_integer(value: object) -> object:
    """NumPy integers become ints; everything else is left for the type check to judge."""
    if isinstance(value, bool | float | str):
        return value
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return value


def _member_of(kind: type[StrEnum]) -> Callable[[object], object]:
    def member(value: object) -> object:
        return kind(value) if isinstance(value, str) and value in set(kind) else value

    return member


def _ledger_path(value: str) -> str:
    if not value or "\0" in value or not _is_encodable(value):
        raise ConfigError("", without_password(value), "the path of a file, or the URL of a database")
    try:
        return LedgerUrl(value) if is_ledger_url(value) else value
    except UsageError as error:
        raise ConfigError("", without_password(value), str(error)) from None


def _is_encodable(path: str) -> bool:
    try:
        return bool(os.fsencode(path))
    except UnicodeEncodeError:
        return False


def _public_key(value: str) -> str:
    if re.fullmatch("[0-9a-f]{64}", value) is None:
        raise ConfigError("", value, "an Ed25519 public key: 64 lower-case hexadecimal digits")
    return value


def _clip_norm(value: float) -> float:
    if not 1e-20 <= value <= 1e20:
        raise ConfigError("", value if value == value else "nan", "a number from 1e-20 to 1e20")
    return value


Int = Annotated[int, BeforeValidator(_unbox_integer), Strict()]
PositiveInt = Annotated[Int, Field(ge=1, le=2**31 - 1)]
NonNegativeInt = Annotated[Int, Field(ge=0, le=2**63 - 1)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Float = Annotated[float, Strict()]
PositiveFloat = Annotated[Float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[Float, Field(ge=0, allow_inf_nan=False)]
ClipNorm = Annotated[Float, AfterValidator(_clip_norm)]
"""A norm at which float32 vectors keep their relative precision."""
Epsilon = Annotated[Float, Field(gt=0)]
"""A privacy parameter; ``inf`` means no noise and no claim."""
Delta = Annotated[Float, Field(gt=0, lt=1)]
LedgerPath = Annotated[Text, AfterValidator(_ledger_path)]
"""A file, or a `LedgerUrl`, whose password is shown nowhere."""
PublicKey = Annotated[Text, AfterValidator(_public_key)]
"""An Ed25519 public key in hexadecimal."""
Method = Annotated[AggregationMethod, BeforeValidator(_member_of(AggregationMethod))]
Noise = Annotated[CentralNoise, BeforeValidator(_member_of(CentralNoise))]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def settings(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass whose constructor checks types and ranges (`ConfigError`)."""
    made = pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)
    original = made.__init__

    @functools.wraps(original)
    def __init__(self: T, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        try:
            original(self, *args, **kwargs)
        except ValidationError as error:
            raise refusal(error, cls, prefix="") from None

    made.__init__ = __init__  # type: ignore[method-assign, assignment]
    return made  # type: ignore[return-value]
