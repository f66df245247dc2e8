"""The configuration of a job: its data, training, attack and place; and how its file is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictStr

from scarcity_ray.config import HierarchicalFederationConfig, load, parse_yaml, read_yaml, settings
from scarcity_ray.config.fields import Int, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from scarcity_ray.config.validation import LONGEST
from scarcity_ray.errors import ConfigError
from scarcity_ray.ledger_url import without_password
from scarcity_ray.plan import make_plan
from scarcity_ray.workloads.attacks import AttackConfig, AttackName
from scarcity_ray.workloads.digits import NUM_CLASSES, NUM_PIXELS

MOST_CLIENTS = 10**6
"""Beyond it a plan, which looks at each basket, takes minutes and gigabytes."""


@settings
class WorkloadConfig:
    """Federated softmax regression on scikit-learn's digits."""

    dataset: Literal["digits"] = "digits"
    features: Annotated[Int, Field(ge=1, le=NUM_PIXELS)] = 24
    """Projected features; the model has (features + 1) * 10 coordinates, unless there are random ones."""
    random_features: NonNegativeInt = 0
    """Random Fourier features made of the projected ones; the model then has (random_features + 1) * 10."""
    test_share: Annotated[StrictFloat, Field(gt=0, lt=1)] = 0.25
    """Share of the examples that no client holds; accuracy is measured on it."""
    domains: Annotated[Int, Field(ge=1, le=MOST_CLIENTS)] = 4
    clients: Annotated[Int, Field(ge=1, le=MOST_CLIENTS)] = 260
    label_skew: PositiveFloat = 1.0
    """Dirichlet parameter of the domains' labels; the smaller, the less alike the domains."""
    byzantine_share: Annotated[StrictFloat, Field(ge=0, lt=1)] = 0.2
    """Share of all clients that attack, drawn at random."""
    attack: AttackConfig = field(default_factory=AttackConfig)
    compare_attacks: tuple[AttackName, ...] = ()
    """Attacks under which comparison runs are reported, beside the run's own and ALIE."""
    rounds: PositiveInt = 60
    gossip: StrictBool = True
    """Whether each round holds a gossip round."""
    local_steps: PositiveInt = 5
    """Gradient steps that a client takes in a round."""
    learning_rate: PositiveFloat = 1.0
    """Length of a client's gradient step."""
    server_learning_rate: PositiveFloat = 2.0
    """Factor on a global delta when it is added to the model."""
    averaging_decay: NonNegativeFloat = 3.0
    """The model handed out averages the iterates with weights like t^decay."""
    clients_per_task: PositiveInt = 65
    """Clients that one training task trains."""

    @property
    def dimension(self) -> int:
        """Coordinates of the model."""
        return ((self.random_features or self.features) + 1) * NUM_CLASSES

    @property
    def model_input(self) -> str:
        """Which of the two kinds of features the model has a row for."""
        return "random_features" if self.random_features else "features"

    @property
    def domain_sizes(self) -> tuple[int, ...]:
        """Clients of each domain."""
        least, more = divmod(self.clients, self.domains)
        return tuple(least + (domain < more) for domain in range(self.domains))


@settings
class PlaceConfig:
    """The runtime of a job, and the folder of its results."""

    runtime: Literal["ray", "local"] = "ray"
    address: StrictStr | None = None
    """Address of a Ray cluster; None: RAY_ADDRESS, or a cluster of this machine's own."""
    out: StrictStr = "runs"
    """Folder in which each run makes its own."""


@settings
class RunConfig:
    """A whole file in `configs/`."""

    name: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    federation: HierarchicalFederationConfig = field(
        default_factory=lambda: HierarchicalFederationConfig(**_fitting(WorkloadConfig()))
    )
    """Where a file leaves these out, vector_dim is the workload's and auto_aggregate false."""
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    run: PlaceConfig = field(default_factory=PlaceConfig)

    def __post_init__(self) -> None:
        if self.federation.vector_dim != self.workload.dimension:
            raise ConfigError(
                "federation.vector_dim",
                self.federation.vector_dim,
                f"{self.workload.dimension} = (workload.{self.workload.model_input} + 1) * {NUM_CLASSES}",
            )
        if self.federation.auto_aggregate:
            raise ConfigError(
                "federation.auto_aggregate", True, "false, because a job aggregates once a round itself"
            )
        self._check_baskets()

    @property
    def basket_sizes(self) -> tuple[int, ...]:
        """Clients of each basket, once all are registered."""
        cross = self.federation.basket.allow_cross_domain
        most = self.federation.basket.max_clients
        groups = (self.workload.clients,) if cross else self.workload.domain_sizes
        return tuple(min(most, size - start) for size in groups for start in range(0, size, most))

    def _check_baskets(self) -> None:
        try:
            plan = make_plan(self.federation)
        except ConfigError as error:
            raise error.under("federation") from None
        federation, layer2 = self.federation, self.federation.layer2
        smallest = min(self.basket_sizes)
        if smallest < plan.least_rows(smallest):
            raise ConfigError(
                "federation.basket.max_clients",
                federation.basket.max_clients,
                f"a value that divides the {max(self.workload.domain_sizes)} clients of a domain: "
                f"the smallest basket would have {smallest}, and "
                f"{federation.layer1.aggregation_method.value} needs {plan.least_rows(smallest)}",
            )
        if layer2.enabled and len(self.basket_sizes) < layer2.min_baskets:
            raise ConfigError(
                "federation.layer2.min_baskets",
                layer2.min_baskets,
                f"at most {len(self.basket_sizes)}, the baskets that {self.workload.clients} clients fill",
            )


def load_run(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a run's file, with some values replaced.

    Args:
        path: A YAML file with the sections of `RunConfig`.
        overrides: ``path=value`` each, the value as YAML would read it, e.g. ``workload.rounds=5``.

    Raises:
        ConfigError: If the file or an override is not accepted; the error names the path.
    """
    content = read_content(path, overrides)
    federation = content.get("federation", {})
    if isinstance(federation, dict) and isinstance(content.get("workload", {}), dict):
        workload = load(WorkloadConfig, content.get("workload", {}), "workload")
        content["federation"] = {**_fitting(workload), **federation}
    return load(RunConfig, content)


def read_content(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A YAML file's content, with some values replaced.

    Raises:
        ConfigError: If the file or an override cannot be read.
    """
    content = read_yaml(path)
    for override in overrides:
        _replace(content, override)
    return content


def _fitting(workload: WorkloadConfig) -> dict[str, Any]:
    """Settings that a federation needs to train this."""
    return {"vector_dim": workload.dimension, "auto_aggregate": False}


def _replace(content: dict[str, Any], override: str) -> None:
    where, equals, text = override.partition("=")
    *sections, key = where.strip().split(".")
    if not equals or not key or not all(sections):
        raise ConfigError("--set", override, "PATH=VALUE, for example workload.rounds=5")
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            found = f"{section} holds a {type(inner).__name__}"
            raise ConfigError(where, without_password(text)[:LONGEST], f"a path through sections; {found}")
        content = inner
    try:
        content[key] = parse_yaml(text)
    except ValueError:
        raise ConfigError(where, without_password(text)[:LONGEST], "a YAML value") from None
