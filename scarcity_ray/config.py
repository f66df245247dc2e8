"""The configuration: frozen dataclasses with ranges, and their loading from YAML.

Every value is checked when a config is made, from Python or from a file, and every refusal is a
`ConfigError` that names the path, the value and what would be accepted. Combinations of values are
checked by `scarcity_ray.plan`, which knows what follows from them.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

import numpy as np
import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from scarcity_ray.errors import ConfigError

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


def _unbox_integer(value: object) -> object:
    """NumPy integers become ints; everything else is left for the type check to judge."""
    if isinstance(value, bool | float | str):
        return value
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return value


def _enum_member(value: object) -> object:
    if isinstance(value, str) and value in {m.value for m in AggregationMethod}:
        return AggregationMethod(value)
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
Method = Annotated[AggregationMethod, BeforeValidator(_enum_member)]


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
            raise _config_error(error, cls, prefix="") from None

    made.__init__ = __init__  # type: ignore[method-assign, assignment]
    return made  # type: ignore[return-value]


@settings
class BasketConfig:
    """How clients are grouped (spec/basket.md)."""

    min_clients: PositiveInt = 3
    """Members from which a basket is ACTIVE."""
    max_clients: PositiveInt = 100
    """Members at which a basket is full; the next client opens a new one."""
    stale_threshold: PositiveFloat = 600.0
    """Seconds without activity after which a basket is STALE."""
    allow_cross_domain: Flag = False
    """Whether a newcomer may fill a basket of another domain."""

    def __post_init__(self) -> None:
        if self.max_clients < max(2, self.min_clients):
            raise ConfigError(
                "max_clients", self.max_clients, f"at least max(2, min_clients) = {max(2, self.min_clients)}"
            )


@settings
class GossipConfig:
    """How the members of a basket exchange noised states."""

    peers_per_round: PositiveInt = 5
    pull_interval: NonNegativeFloat = 2.0
    """Seconds between two pulls by a client that nobody pushed to."""
    push_drift_threshold: NonNegativeFloat = 0.1
    """L2 distance from the last pushed state at which a client pushes again."""
    clip_norm: ClipNorm = 1.0
    local_dp_epsilon: Epsilon = 0.5
    """Local epsilon of one federation round's release (drift test and vector together)."""
    local_dp_delta: Delta = 1e-5
    max_messages_per_day: PositiveInt = 24
    """Vectors that a client releases in 24 hours at most."""
    message_ttl: PositiveFloat = 300.0
    """Seconds after which an undelivered message expires."""
    mixing: Literal["noise_aware", "average", "clipped_gossip", "nearest_neighbors"] | None = None
    """How received vectors move a state; None: clipped_gossip where Layer 1 reckons with Byzantine clients
    (byzantine_fraction or num_byzantine above 0), else noise_aware."""
    rotation_window: PositiveInt = 10
    """Rounds over which a client's peers rotate before they repeat."""


@settings
class BufferConfig:
    """How long updates wait, and what makes Layer 1 due."""

    max_staleness: NonNegativeInt = 5
    """Rounds after which an update is too old."""
    min_updates_trigger: PositiveInt | None = None
    """Clients with buffered updates that make Layer 1 due; None: all members."""
    time_trigger_seconds: PositiveFloat = 60.0
    participation_cap: PositiveInt = 3
    """Updates that a client may send in one round."""


@settings
class Layer1Config:
    """How a basket's rows become one vector."""

    aggregation_method: Method = AggregationMethod.KRUM
    min_updates: PositiveInt = 3
    clip_norm: ClipNorm = 1.0
    byzantine_fraction: Annotated[Float, Field(ge=0, lt=0.5)] = 0.2
    """Share of a basket's registered members taken to be Byzantine (f = floor)."""
    num_byzantine: NonNegativeInt | None = None
    """A fixed f, in place of the fraction."""
    num_selected: PositiveInt | None = None
    """Multi-Krum's m; None: the most that the rule allows, n - f - 2."""
    clipping_radius: PositiveFloat | None = None
    """Centred clipping's radius around the zero delta; None: clip_norm."""
    pre: tuple[Literal["nnm", "bucketing", "arc"], ...] = ()
    """Pre-aggregation in order: nearest-neighbour mixing, bucketing, adaptive clipping."""
    bucket_size: Annotated[Int, Field(ge=2)] = 2
    """Rows in one of bucketing's buckets."""


@settings
class Layer2Config:
    """How baskets' aggregates become the global model."""

    use_secure_aggregation: Flag = True
    central_dp_epsilon: Epsilon = 1.0
    central_dp_delta: Delta = 1e-5
    clip_norm: ClipNorm = 1.0
    min_baskets: Annotated[Int, Field(ge=2)] = 2
    """Baskets with a fresh aggregate without which there is no release."""
    min_baskets_trigger: PositiveInt | None = None
    """Fresh baskets that make Layer 2 due; None: all active baskets."""
    update_interval_seconds: PositiveFloat = 60.0
    """Seconds since the last release after which `min_baskets` fresh baskets are enough."""
    weight_by_size: Flag = True
    """Weigh baskets by their members; otherwise uniformly."""
    basket_trust: Mapping[str, NonNegativeFloat] = field(default_factory=dict)
    """The operator's factor per domain on a basket's weight; 1 where not named."""
    threshold_fraction: Annotated[Float, Field(gt=0.5, le=1)] = 2 / 3
    """Share of a session's baskets that must survive: t = floor(fraction n) + 1, at most n."""
    assumed_corrupt_fraction: Annotated[Float, Field(ge=0, lt=0.5)] = 0.1
    """Share of the baskets that may collude with the aggregator; sets the mask graph above 64 baskets."""
    assumed_dropout_fraction: Annotated[Float, Field(ge=0, lt=0.5)] = 0.1
    """Share of the baskets that may drop out at random; sets the mask graph above 64 baskets."""
    distribute_to_baskets: Flag = True
    """Whether each release is sent to the basket actors."""


@settings
class RuntimeConfig:
    """Where the roles run."""

    baskets_per_actor: PositiveInt | None = None
    """Baskets in one actor; None: as many actors as the cluster has CPUs share all baskets."""
    cpus_per_actor: NonNegativeFloat = 0.1
    resources_per_actor: Mapping[str, PositiveFloat] = field(default_factory=dict)


@settings
class HierarchicalFederationConfig:
    """Everything about a federation (spec/hierarchical.md)."""

    basket: BasketConfig = field(default_factory=BasketConfig)
    gossip: GossipConfig = field(default_factory=GossipConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    layer1: Layer1Config = field(default_factory=Layer1Config)
    layer2: Layer2Config = field(default_factory=Layer2Config)
    total_epsilon: Epsilon = 10.0
    total_delta: Delta = 1e-4
    auto_aggregate: Flag = True
    vector_dim: PositiveInt = 64
    gossip_budget_share: Annotated[Float, Field(ge=0, lt=1)] = 0.2
    """Share of the budget (in mu squared) set aside for each client's gossip."""
    meta_parameters: Mapping[str, tuple[Float, Float]] = field(default_factory=dict)
    """Scalars that clients may report beside updates, each with its least and greatest value."""
    expose_basket_models: Flag = True
    """Whether `get_basket_model` answers; basket models lie outside the privacy claim."""
    strict: Flag = False
    """Whether a spent budget raises `PrivacyBudgetExhausted` instead of refusing quietly."""
    seed: NonNegativeInt = 0
    """Seed of the simulation streams (peers, splits); never of keys or privacy noise."""
    ledger_path: Text | None = None
    """The ledger's file; None: a fresh one in the temporary folder of the accountant's node."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def stream(seed: int, *labels: str | int) -> np.random.Generator:
    """A named random stream for simulation (peers, splits, data, attacks); never for keys or privacy noise.

    The same seed and labels give the same stream on every machine and in either runtime.

    >>> bool(stream(0, "peers", "basket_0", 3).random() == stream(0, "peers", "basket_0", 3).random())
    True
    """
    name = "\x1f".join([str(seed), *map(str, labels)])
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.Generator(np.random.PCG64DXSM(int.from_bytes(digest, "little")))


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-5 as a number, as YAML 1.2 does, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise ConfigError(
                    key_node.value, "given twice", f"one entry (line {key_node.start_mark.line + 1})"
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML file whose top level is a mapping.

    Raises:
        ConfigError: If the file cannot be read or is not such a file; the error names the line.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(str(path), error.strerror, "a readable YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), str(error).replace("\n", " "), "a well-formed YAML file") from None
    if not isinstance(content, dict):
        raise ConfigError(str(path), type(content).__name__, "a mapping of sections at the top level")
    return content


def load(cls: type[T], content: Mapping[str, Any], path: str = "") -> T:
    """Build the config dataclass `cls` from plain data.

    Args:
        cls: One of the dataclasses made by `settings`.
        content: Mappings, lists, strings and numbers, as YAML gives them.
        path: What to put in front of the paths in errors.

    Raises:
        ConfigError: For an unknown key, a wrong type or a value out of range.

    >>> load(BasketConfig, {"min_clients": 5}).min_clients
    5
    >>> load(BasketConfig, {"min_client": 5})
    Traceback (most recent call last):
    ...
    scarcity_ray.errors.ConfigError: min_client: 5 is not accepted; unknown key, did you mean 'min_clients'? \
(known: allow_cross_domain, max_clients, min_clients, stale_threshold)
    """
    try:
        return TypeAdapter(cls).validate_python(content)
    except ValidationError as error:
        raise _config_error(error, cls, prefix=path) from None
    except ConfigError as error:
        raise ConfigError(_join(path, error.path), error.value, error.accepted) from None


def to_plain(config: object) -> Any:
    """The config as mappings, lists, strings and numbers, ready for YAML or JSON."""
    if is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, Mapping):
        return {key: to_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(value) for value in config]
    return config.value if isinstance(config, Enum) else config


def _join(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if prefix and path else prefix or path


def _config_error(error: ValidationError, cls: Any, prefix: str) -> ConfigError:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    names, place = _known_keys(cls, []), first["loc"][0] if first["loc"] else ""
    if isinstance(place, int) and place < len(names) and first["type"] != "invalid_key":
        location[0] = names[place]
    inner = (first.get("ctx") or {}).get("error")
    if isinstance(inner, ConfigError):
        return ConfigError(_join(_join(prefix, ".".join(location)), inner.path), inner.value, inner.accepted)
    path = _join(prefix, ".".join(location)) or cls.__name__
    if first["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        known = _known_keys(cls, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return ConfigError(path, first["input"], f"unknown key, {hint}(known: {', '.join(sorted(known))})")
    value = first["input"]
    if isinstance(value, float) and math.isnan(value):
        value = "nan"
    return ConfigError(path, value, first["msg"][0].lower() + first["msg"][1:])


def _known_keys(cls: Any, location: list[str]) -> list[str]:
    for name in location:
        hints = {f.name: f.default_factory for f in fields(cls)}
        factory = hints.get(name)
        if not is_dataclass(factory):
            return []
        cls = factory
    return [f.name for f in fields(cls)]


__all__ = [
    "AggregationMethod",
    "BasketConfig",
    "BufferConfig",
    "GossipConfig",
    "HierarchicalFederationConfig",
    "Layer1Config",
    "Layer2Config",
    "RuntimeConfig",
    "load",
    "read_yaml",
    "settings",
    "stream",
    "to_plain",
]
