"""A job's file: a workload, how it is trained, simulated attackers, and where it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, StrictBool, StrictFloat, StrictStr

from scarcity_ray.config import HierarchicalFederationConfig, load, parse_yaml, read_yaml, settings
from scarcity_ray.config.fields import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from scarcity_ray.config.gateway import GatewayConfig
from scarcity_ray.config.validation import LONGEST
from scarcity_ray.errors import ConfigError, ScarcityError, UsageError
from scarcity_ray.federation.evaluation import EarlyStopping
from scarcity_ray.layers.server_optimizers import ServerOptimizer, server_optimizer
from scarcity_ray.ledger_url import without_password
from scarcity_ray.plan import make_plan
from scarcity_ray.workloads.attacks import AttackConfig, make_attack, poisons
from scarcity_ray_client import (
    Client,
    ModelCodec,
    PrivateEvaluation,
    Workload,
    checked_clients,
    load_workload,
)
from scarcity_ray_client.loading import is_import_path, search_beside, told

T = TypeVar("T")
RunName = Literal[
    "federation", "noiseless", "clean", "plain_mean", "clipped_mean", "centralised", "local_only"
]
FORMAT_VERSION = 1
"""Of the files in a run's folder: ``config.yaml``, ``metrics.jsonl`` and ``summary.json`` state it."""
WITHOUT_LAYER2 = frozenset({"rounds", "clients_per_round", "clients_per_task", "metric", "mode"})
"""Settings of the training that hold where clients learn by gossip alone."""
NOT_SERVED = frozenset({"clients_per_round", "extra_clients", "deadline_seconds", "clients_per_task"})
"""Settings of the training of clients that the cluster trains (sites': ``gateway.round_seconds``)."""
DIGITS = "scarcity_ray.workloads.digits:Digits"
MOVED = {
    "dataset": f"workload.class: {DIGITS}",
    **dict.fromkeys(
        ("features", "random_features", "test_share", "domains", "clients", "label_skew", "local_steps"),
        "workload.args.{}",
    ),
    "learning_rate": "workload.args.{}",
    **dict.fromkeys(("rounds", "averaging_decay", "clients_per_task"), "training.{}"),
    "server_learning_rate": "training.optimizer.learning_rate",
    **dict.fromkeys(("byzantine_share", "attack", "compare_attacks"), "lab.{}"),
    "gossip": "federation.gossip_budget_share, 0 for none",
}
"""Where the keys of files from before `Workload` have gone."""


@settings
class WorkloadConfig:
    """Which class is trained."""

    class_: Annotated[StrictStr, Field(alias="class")]
    """Its import path, ``my_module:Mortality``."""
    args: Mapping[StrictStr, Any] = field(default_factory=dict)
    """Keyword arguments that it is made with."""
    folder: StrictStr | None = None
    """Where modules are sought first, a rule's and attacks' too; None: beside the job's file, then in the
    working folder."""


@settings
class PrivateEvaluationConfig:
    """What clients measure and report in the secure sum: arguments of `PrivateEvaluation`."""

    metrics: Mapping[StrictStr, tuple[StrictFloat, StrictFloat]]
    """The least and greatest value of each of `evaluate_client`'s metrics."""
    max_examples: PositiveInt
    """Up to so many examples a client counts by."""

    def __post_init__(self) -> None:
        try:
            self.made()
        except UsageError as error:
            raise ConfigError("metrics", dict(self.metrics), str(error)) from None

    def made(self) -> PrivateEvaluation:
        """As `fit` takes it."""
        return PrivateEvaluation(self.metrics, self.max_examples)


@settings
class TrainingConfig:
    """How it is trained; the names are those of `HierarchicalFederation.fit`."""

    rounds: PositiveInt = 20
    """At most; the budget may end it earlier."""
    clients_per_round: PositiveInt | None = None
    """Clients drawn anew each round; None: all."""
    extra_clients: NonNegativeInt = 0
    """Clients drawn beside them; the round ends when `clients_per_round` have trained."""
    deadline_seconds: PositiveFloat | None = None
    """Of a round's training; None: all are waited for."""
    clients_per_task: PositiveInt = 1
    """Clients that one task trains; small ones of one machine share it."""
    optimizer: Mapping[StrictStr, Any] = field(default_factory=lambda: {"name": "sgd", "learning_rate": 1.0})
    """From a release to the next model: arguments of `server_optimizer`."""
    averaging_decay: NonNegativeFloat | None = None
    """The model handed out averages the models with weights like t^decay; None: it is the last."""
    metric: Annotated[StrictStr, Field(min_length=1)] | None = None
    """The headline, one of those that `evaluate` gives; None: the first."""
    mode: Literal["max", "min"] = "max"
    """Whether the metric should be great or small."""
    patience: PositiveInt | None = None
    """Rounds without a gain after which training ends; the best model is kept."""
    min_delta: NonNegativeFloat = 0.0
    """What counts as a gain is above it."""
    evaluate_clients: StrictBool = False
    """Whether clients measure each release on their own data: outside the privacy claim."""
    private_evaluation: PrivateEvaluationConfig | None = None
    """What clients measure of the models that they are handed, inside the privacy claim; its
    `meta_parameters` are added to the federation's."""

    def __post_init__(self) -> None:
        try:
            self.server_optimizer()
        except (UsageError, TypeError) as error:
            raise ConfigError("optimizer", dict(self.optimizer), str(error)) from None

    def server_optimizer(self) -> ServerOptimizer:
        """The optimiser that `optimizer` names."""
        return server_optimizer(**self.optimizer)

    def stopping(self, metric: str) -> EarlyStopping:
        """Keeps the best model by a metric, and ends the training if `patience` says so."""
        return EarlyStopping(metric, self.mode, self.patience, self.min_delta)


@settings
class LabConfig:
    """Simulated attackers, and the runs beside; a job in production has no such section."""

    byzantine_share: Annotated[StrictFloat, Field(ge=0, lt=1)] = 0.2
    """Share of all clients that attack, drawn at random from the federation's seed."""
    attack: AttackConfig = field(default_factory=AttackConfig)
    compare: tuple[RunName, ...] = ()
    """Runs beside, simulated: see `comparison.RUNS`."""
    compare_attacks: tuple[StrictStr, ...] = ()
    """Attacks under which the configured federation, and the means of `compare`, are simulated too."""

    def __post_init__(self) -> None:
        try:
            self.attacks  # noqa: B018
        except ConfigError as error:
            raise ConfigError("compare_attacks", error.value, error.accepted) from None

    @property
    def attacks(self) -> tuple[AttackConfig, ...]:
        """The job's attack, none without attackers, and those of `compare_attacks` that are others."""
        own = self.attack if self.byzantine_share else AttackConfig(name="none")
        others = [name for name in dict.fromkeys(self.compare_attacks) if name != own.name]
        return (own, *(load(AttackConfig, {"name": name}) for name in others))


@settings
class PlaceConfig:
    """The runtime of a job, and the folder of its results."""

    runtime: Literal["ray", "local"] = "ray"
    """`local`: all in one process, without Ray."""
    address: StrictStr | None = None
    """Address of a Ray cluster; None: RAY_ADDRESS, or a cluster of this machine's own."""
    out: StrictStr = "runs"
    """Folder in which each run makes its own."""
    tensorboard: StrictBool = False
    """Whether the run's folder gets TensorBoard's events, too."""


@settings
class RunConfig:
    """A job's whole file."""

    name: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the run's folder."""
    workload: WorkloadConfig
    federation: HierarchicalFederationConfig = field(
        default_factory=lambda: HierarchicalFederationConfig(auto_aggregate=False)
    )
    """Where a file leaves these out, vector_dim is the model's and auto_aggregate false."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    lab: LabConfig | None = None
    """Simulated attackers, and runs beside; none in production."""
    run: PlaceConfig = field(default_factory=PlaceConfig)
    gateway: GatewayConfig | None = None
    """Where sites outside the cluster reach it, for ``scarcity-ray serve``."""

    def __post_init__(self) -> None:
        if self.federation.auto_aggregate:
            raise ConfigError(
                "federation.auto_aggregate", True, "false, because a job aggregates once a round itself"
            )


@dataclass(frozen=True, eq=False)
class Job:
    """A job that can begin: its file's contents, and the workload that it names.

    Attributes:
        config: With the workload's folder and the model's dimension filled in.
        clients: The workload's.
        codec: The workload's.
    """

    config: RunConfig
    workload: Workload[Any]
    clients: tuple[Client, ...]
    codec: ModelCodec[Any]

    @property
    def domain_sizes(self) -> dict[str, int]:
        """Clients of each domain."""
        sizes: dict[str, int] = {}
        for client in self.clients:
            sizes[client.domain_id] = sizes.get(client.domain_id, 0) + 1
        return sizes

    @property
    def basket_sizes(self) -> tuple[int, ...]:
        """Clients of each basket, once all are registered."""
        basket = self.config.federation.basket
        groups = (len(self.clients),) if basket.allow_cross_domain else tuple(self.domain_sizes.values())
        most = basket.max_clients
        return tuple(min(most, size - start) for size in groups for start in range(0, size, most))


def load_run(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The contents of a job's file; see `load_job`."""
    return load_job(path, overrides).config


def load_job(path: str | Path, overrides: Iterable[str] = (), *, is_served: bool = False) -> Job:
    """Read a job's file, with some values replaced, make its workload, and check what can be checked.

    Args:
        path: A YAML file with the sections of `RunConfig`.
        overrides: ``path=value`` each, the value as YAML would read it, e.g. ``training.rounds=5``.
        is_served: Whether its clients are sites outside the cluster: the workload is not asked for any.

    Raises:
        ConfigError: If the file or an override is not accepted; the error names the path.
        UsageError: If the workload cannot be made, or gives clients or a model that cannot be used.
    """
    content = read_content(path, overrides)
    _refuse_moved(content)
    federation = content.get("federation", {})
    is_given = isinstance(federation, dict) and "vector_dim" in federation
    if isinstance(federation, dict):
        content["federation"] = {"auto_aggregate": False, **federation}
    folder = _folder(content, Path(path).resolve().parent)
    search_beside(folder / "job.yaml")
    config = load(RunConfig, content)
    if is_given:
        _check_plan(config.federation)
    workload = load_workload(config.workload.class_, config.workload.args, folder)
    name = config.workload.class_
    clients = () if is_served else asked(name, "clients", lambda: checked_clients(workload.clients()))
    codec = asked(name, "codec", workload.codec)
    due = codec.dimension
    if is_given and config.federation.vector_dim != due:
        raise ConfigError(
            "federation.vector_dim",
            config.federation.vector_dim,
            f"{due}, the numbers of {name}'s model; or leave it out",
        )
    config = replace(config, workload=replace(config.workload, folder=_home(config, folder)))
    config = replace(config, federation=replace(config.federation, vector_dim=due))
    config = _with_private_evaluation(config, workload)
    _check_plan(config.federation)
    job = Job(config, workload, clients, codec)
    if is_served:
        _check_served(config)
        return replace(job, config=replace(config, gateway=(config.gateway or GatewayConfig()).absolute()))
    _check_clients(job)
    _check_lab(job)
    if not config.federation.layer2.enabled:
        _check_without_layer2(job)
    return job


def _check_plan(federation: HierarchicalFederationConfig) -> None:
    """Refuse values that cannot work together; some depend on the model's dimension."""
    try:
        make_plan(federation)
    except ConfigError as error:
        raise error.under("federation") from None
    except UsageError as error:
        rule = str(federation.layer1.aggregation_method)
        raise ConfigError("federation.layer1.aggregation_method", rule, str(error)) from None


def read_content(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A YAML file's content, with some values replaced, and without the version that a run's own file states.

    Raises:
        ConfigError: If the file or an override cannot be read, or a newer release wrote the file.
    """
    content = read_yaml(path)
    stated = content.pop("format_version", FORMAT_VERSION)
    if type(stated) is not int or not 1 <= stated <= FORMAT_VERSION:
        due = f"1 to {FORMAT_VERSION} here; use the release that wrote the file, or a newer one"
        raise ConfigError("format_version", stated, due)
    for override in overrides:
        _replace(content, override)
    return content


def _refuse_moved(content: Mapping[str, Any]) -> None:
    """Refuse keys from before `Workload` by name, with what to write now."""
    section = content.get("workload")
    if not isinstance(section, dict) or not (old := [key for key in section if key in MOVED]):
        return
    now = "; ".join(f"{key}: {MOVED[key].format(key)}" for key in old)
    first = "" if "class" in section else f"a job names its class now, workload.class: {DIGITS}. "
    raise ConfigError(
        f"workload.{old[0]}", section[old[0]], f"{first}moved (docs/workloads.md), write instead: {now}"
    )


def _folder(content: Mapping[str, Any], beside: Path) -> Path:
    """Where the job's modules are sought first."""
    section = content.get("workload")
    named = section.get("folder") if isinstance(section, dict) else None
    return beside / Path(named).expanduser() if isinstance(named, str) else beside


def asked(workload: str, method: str, answer: Callable[[], T]) -> T:
    """What a workload's method gives.

    Raises:
        UsageError: If it raises; the text names the workload, the method and the line.
    """
    try:
        return answer()
    except Exception as error:
        cause = str(error) if isinstance(error, ScarcityError) else told(error)
        raise UsageError(f"workload {workload!r}: {method}: {cause}") from error


def _home(config: RunConfig, folder: Path) -> str | None:
    """The folder in which the modules that the job names were found; None: they are installed."""
    attacks = () if config.lab is None else config.lab.attacks
    specs = config.workload.class_, config.federation.layer1.aggregation_method, *(a.name for a in attacks)
    tops = {spec.partition(":")[0].partition(".")[0] for spec in map(str, specs) if is_import_path(spec)}
    for place in folder, Path.cwd():
        for top in tops - {"scarcity_ray"}:
            if (place / f"{top}.py").exists() or (place / top / "__init__.py").exists():
                return str(place)
    return None


def _with_private_evaluation(config: RunConfig, workload: Workload[Any]) -> RunConfig:
    """The contents with the meta-parameters that its private evaluation needs."""
    asked, federation = config.training.private_evaluation, config.federation
    if asked is None or not federation.layer2.enabled:
        return config
    if type(workload).evaluate_client is Workload.evaluate_client:
        raise ConfigError(
            "training.private_evaluation",
            dict(asked.metrics),
            f"a workload that offers it: write evaluate_client in {config.workload.class_}, or leave it out",
        )
    declared, due = dict(federation.meta_parameters), asked.made().meta_parameters()
    for name in due.keys() & declared.keys():
        if tuple(declared[name]) != due[name]:
            raise ConfigError(
                f"federation.meta_parameters.{name}",
                declared[name],
                f"{list(due[name])}, which training.private_evaluation needs; or leave it out",
            )
    return replace(config, federation=replace(federation, meta_parameters={**declared, **due}))


def _check_clients(job: Job) -> None:
    """The clients against the baskets that they fill, what the rule needs, and how many are to train."""
    federation, training = job.config.federation, job.config.training
    plan, layer2, count = make_plan(federation), federation.layer2, len(job.clients)
    smallest = min(job.basket_sizes)
    if smallest < plan.least_rows(smallest):
        raise ConfigError(
            "federation.basket.max_clients",
            federation.basket.max_clients,
            f"a value that divides the {max(job.domain_sizes.values())} clients of a domain: the smallest "
            f"basket would have {smallest}, and {federation.layer1.aggregation_method} needs "
            f"{plan.least_rows(smallest)}",
        )
    if layer2.enabled and len(job.basket_sizes) < layer2.min_baskets:
        raise ConfigError(
            "federation.layer2.min_baskets",
            layer2.min_baskets,
            f"at most {len(job.basket_sizes)}, the baskets that {count} clients fill; a smaller "
            "basket.max_clients or more domains make more baskets, and a few large clients are best "
            "a domain each, with privacy.unit: person (scarcity-ray init NAME --sites N makes such a job)",
        )
    if training.evaluate_clients and not _offers(job, "evaluate_client"):
        raise ConfigError(
            "training.evaluate_clients",
            True,
            f"false, or a workload that offers it: write evaluate_client in {job.config.workload.class_}",
        )
    if (training.clients_per_round or count) + training.extra_clients > count:
        raise ConfigError(
            "training.clients_per_round",
            training.clients_per_round,
            f"with training.extra_clients together at most {count}, the workload's clients",
        )


def _check_served(config: RunConfig) -> None:
    """Refuse what is for clients that this cluster trains."""
    given, default = config.training, TrainingConfig()
    if not config.federation.layer2.enabled:
        raise ConfigError("federation.layer2.enabled", False, "true: sites are given one global model")
    if config.lab is not None:
        raise ConfigError("lab", "a lab", "nothing: attackers are simulated with `scarcity-ray run` alone")
    for name in sorted(NOT_SERVED):
        if getattr(given, name) != getattr(default, name):
            raise ConfigError(
                f"training.{name}",
                getattr(given, name),
                "nothing, as sites train and not this cluster: leave it out",
            )


def _check_without_layer2(job: Job) -> None:
    """Without a global model some settings have nothing to act on, and clients train on any node."""
    config, default = job.config, TrainingConfig()
    given = config.training
    if any(client.resources or client.labels or client.num_gpus for client in job.clients):
        raise ConfigError(
            "federation.layer2.enabled",
            False,
            "true: clients ask for resources, labels or GPUs, and without Layer 2 they train on any node",
        )
    for name in sorted({setting.name for setting in fields(default)} - WITHOUT_LAYER2):
        if getattr(given, name) != getattr(default, name):
            raise ConfigError(
                f"training.{name}", getattr(given, name), "nothing, as layer2.enabled is false: leave it out"
            )


def _check_lab(job: Job) -> None:
    """Whether there can be so many attackers, and the workload offers what the lab wants of it."""
    lab, name = job.config.lab, job.config.workload.class_
    if lab is None:
        return
    count, byzantine = len(job.clients), round(lab.byzantine_share * len(job.clients))
    if byzantine == count or (not byzantine and lab.byzantine_share > 0.0):
        raise ConfigError(
            "lab.byzantine_share",
            lab.byzantine_share,
            f"0, or a share that makes at least one of the {count} clients Byzantine and leaves one honest",
        )
    for attack in lab.attacks:
        make_attack(attack)
    for place, wanted, method in (
        ("lab.attack.name", poisons(lab.attacks[0]), "poison"),
        ("lab.compare_attacks", any(map(poisons, lab.attacks[1:])), "poison"),
        ("lab.compare", "centralised" in lab.compare, "centralised"),
    ):
        if wanted and not _offers(job, method):
            raise ConfigError(
                place, method, f"a workload that offers it: write {method} in {name}, or leave it out"
            )
    if not job.config.federation.layer2.enabled:
        for run in lab.compare:
            if run in ("plain_mean", "clipped_mean"):
                raise ConfigError(
                    "lab.compare", run, "a run without a global model, as layer2.enabled is false"
                )


def _offers(job: Job, method: str) -> bool:
    return getattr(type(job.workload), method) is not getattr(Workload, method)


def _replace(content: dict[str, Any], override: str) -> None:
    where, equals, text = override.partition("=")
    *sections, key = where.strip().split(".")
    if not equals or not key or not all(sections):
        raise ConfigError("--set", override, "PATH=VALUE, for example training.rounds=5")
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
