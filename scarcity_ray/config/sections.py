"""The sections of a federation's configuration, with their defaults."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictStr

from scarcity_ray.config.fields import (
    AggregationMethod,
    Arguments,
    CentralNoise,
    ClipNorm,
    Delta,
    Durability,
    Epsilon,
    Int,
    JournalPath,
    Kept,
    KeyPath,
    Labels,
    LedgerPath,
    Method,
    Noise,
    NoisePlace,
    NonNegativeFloat,
    NonNegativeInt,
    Place,
    PositiveFloat,
    PositiveInt,
    PrivacyUnit,
    PublicKey,
    StoragePath,
    Unit,
)
from scarcity_ray.config.validation import settings
from scarcity_ray.errors import ConfigError
from scarcity_ray.ledger_url import LedgerUrl


@settings
class BasketConfig:
    """How clients are grouped (docs/specification.md#baskets)."""

    min_clients: PositiveInt = 3
    """Members from which a basket is ACTIVE."""
    max_clients: PositiveInt = 100
    """Members at which a basket is full; the next client opens a new one."""
    stale_threshold: PositiveFloat = 600.0
    """Seconds without activity after which a basket is STALE."""
    allow_cross_domain: StrictBool = False
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
    """Members whose vectors a client receives in a round at most."""
    pull_interval: NonNegativeFloat = 2.0
    """Seconds between two pulls by a client that nobody pushed to."""
    push_drift_threshold: NonNegativeFloat = 0.1
    """L2 distance from the last pushed state at which a client pushes again."""
    clip_norm: ClipNorm = 1.0
    """L2 norm to which a state is clipped before it is noised and released."""
    local_dp_epsilon: Epsilon = 0.5
    """Local epsilon of one federation round's release (drift test and vector together)."""
    local_dp_delta: Delta = 1e-5
    """Delta of the same release."""
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
    """Seconds since a basket's last aggregation after which as many rows as its rule needs are enough."""
    participation_cap: PositiveInt = 3
    """Updates that a client may send in one round; one where persons (records) are the unit of privacy."""
    max_bytes: PositiveInt | None = None
    """Bytes of updates that wait on one basket actor at most; further ones are refused as `busy`. None: a
    quarter of the machine's memory, over its number of CPUs (docs/drivers.md#back-pressure)."""


@settings
class Layer1Config:
    """How a basket's rows become one vector."""

    aggregation_method: Method = AggregationMethod.KRUM
    """A rule's name; or ``module:Class``, or an installed entry point's name, of one from outside
    (docs/custom_rules.md)."""
    rule_args: Arguments = field(default_factory=dict)
    """What a rule from outside is made with, by name."""
    rule_timeout_seconds: PositiveFloat | None = None
    """Seconds after which a rule from outside is given up, and its basket waits; None: 300."""
    min_updates: PositiveInt = 3
    """Rows without which a basket is not aggregated, whatever its rule needs."""
    clip_norm: ClipNorm = 1.0
    """L2 norm to which each row is clipped."""
    byzantine_fraction: Annotated[StrictFloat, Field(ge=0, lt=0.5)] = 0.2
    """Share of a basket's registered members taken to be Byzantine (f = floor)."""
    num_byzantine: NonNegativeInt | None = None
    """A fixed f, in place of the fraction."""
    num_selected: PositiveInt | None = None
    """Multi-Krum's m; None: the most that the rule allows, n - f - 2."""
    clipping_radius: PositiveFloat | None = None
    """Centred clipping's radius around the zero delta; None: clip_norm."""
    max_examples: PositiveInt | None = None
    """Examples beyond which a client weighs no more, under the rule weighted; None: 1000."""
    pre: tuple[Literal["nnm", "bucketing", "arc"], ...] = ()
    """Pre-aggregation in order: nearest-neighbour mixing, bucketing, adaptive clipping."""
    bucket_size: Annotated[Int, Field(ge=2)] = 2
    """Rows in one of bucketing's buckets."""
    momentum: Annotated[StrictFloat, Field(ge=0, lt=1)] = 0.0
    """Share of a client's earlier noised rows in what the rule sees; above 0 only with noise: site."""

    def byzantine_among(self, num_members: int) -> int:
        """The f of a basket of `num_members` registered clients."""
        if self.num_byzantine is not None:
            return self.num_byzantine
        return math.floor(self.byzantine_fraction * num_members + 1e-9)


@settings
class Layer2Config:
    """How baskets' aggregates become the global model."""

    enabled: StrictBool = True
    """Whether there is a global model at all; without, each basket trains by gossip alone, for itself."""
    use_secure_aggregation: StrictBool = True
    """Whether nobody sees a basket's aggregate, only their sum; without, the aggregator sees each."""
    central_dp_epsilon: Epsilon = 1.0
    """Epsilon of one release, from which its noise follows."""
    central_dp_delta: Delta = 1e-5
    """Delta of one release."""
    noise: Noise = CentralNoise.GAUSSIAN
    """Continuous Gaussian noise rounded to the ring's grid, with exact accounting; or discrete Gaussian
    noise, drawn exactly, with the whole ledger in zCDP; or that in shares, of which each basket adds
    one before it masks, so that nobody sees a sum without noise. A ledger keeps what it was made with."""
    clip_norm: ClipNorm = 1.0
    """L2 norm to which each basket's aggregate is clipped."""
    adaptive_clipping: StrictBool = False
    """Whether the clip norm follows a quantile of the updates' norms. It starts at layer1.clip_norm, to which
    layer2.clip_norm (and layer1.clipping_radius) keep their ratio."""
    clip_quantile: Annotated[StrictFloat, Field(gt=0, lt=1)] = 0.5
    """The share of the updates' norms that should lie below the clip norm."""
    clip_learning_rate: Annotated[StrictFloat, Field(gt=0, le=1)] = 0.2
    """Of the clip norm's geometric step: a release moves it by at most a factor e to this power."""
    clip_norm_range: tuple[ClipNorm, ClipNorm] = (1e-3, 1e3)
    """The least and the greatest clip norm of Layer 1 that adaptation may reach."""
    min_baskets: Annotated[Int, Field(ge=2)] = 2
    """Baskets with a fresh aggregate without which there is no release."""
    min_baskets_trigger: PositiveInt | None = None
    """Fresh baskets that make Layer 2 due; None: all active baskets."""
    update_interval_seconds: PositiveFloat = 60.0
    """Seconds since the last release after which `min_baskets` fresh baskets are enough."""
    weight_by_size: StrictBool = True
    """Weigh baskets by their members; otherwise uniformly."""
    basket_trust: Mapping[str, NonNegativeFloat] = field(default_factory=dict)
    """The operator's factor per domain on a basket's weight; 1 where not named."""
    threshold_fraction: Annotated[StrictFloat, Field(gt=0.5, le=1)] = 2 / 3
    """Share of a session's baskets that must survive: t = floor(fraction n) + 1, at most n."""
    assumed_corrupt_fraction: Annotated[StrictFloat, Field(ge=0, lt=0.5)] = 0.1
    """Share of the registered baskets that may collude with the aggregator (rounded up). A sum holds two
    fresh baskets more than that; noise in shares counts on none of theirs; sets the mask graph above 64
    baskets."""
    assumed_dropout_fraction: Annotated[StrictFloat, Field(ge=0, lt=0.5)] = 0.1
    """Share of the baskets that may drop out at random; sets the mask graph above 64 baskets."""
    session_timeout_seconds: PositiveFloat = 3600.0
    """Seconds after which a basket actor wipes the keys of a secure session that nobody has ended."""
    distribute_to_baskets: StrictBool = True
    """Whether each release is sent to the basket actors."""


@settings
class PrivacyConfig:
    """Whom the privacy claim protects (docs/privacy_units.md)."""

    unit: Unit = PrivacyUnit.CLIENT
    """A whole client; or one person of a client, or one record, where a client's row is the mean over its
    persons (records) of contributions of bounded norm."""
    person_clip_norm: ClipNorm | None = None
    """Norm that no contribution of a person (record) exceeds; None: layer1.clip_norm."""
    min_persons: PositiveInt | None = None
    """Persons (records) behind a row without which it is refused; required where they are the unit."""
    noise_decay: Annotated[StrictFloat, Field(ge=0.01, le=1)] = 1.0
    """Sigma of the last release (noised row) that a budget buys, over that of the first: below 1 noise falls
    from each to the next, and layer2.central_dp_epsilon (row_epsilon) is what they are charged on average."""
    noise: Place = NoisePlace.CENTRAL
    """Whether each release is noised; or each row, by its client, before it leaves (docs/site_noise.md)."""
    row_epsilon: Epsilon | None = None
    """Of one noised row, with `row_delta`; required with noise: site, where rows alone spend the budget."""
    row_delta: Delta | None = None
    """None: total_delta."""


@settings
class RuntimeConfig:
    """The placement of the roles' processes."""

    baskets_per_actor: PositiveInt | None = None
    """Baskets in one actor; None: as many actors as the cluster has CPUs share all baskets."""
    cpus_per_actor: NonNegativeFloat = 0.1
    """Of Ray's, that each basket actor reserves."""
    gpus_per_actor: Annotated[StrictFloat, Field(ge=0, le=1)] = 0.0
    """Of Ray's GPUs, that each basket actor reserves, a part too; above 0 its Layer 1 is computed there, by
    PyTorch, and fewer than the cluster's CPUs are started where the GPUs hold fewer (docs/gpu.md)."""
    resources_per_actor: Mapping[str, PositiveFloat] = field(default_factory=dict)
    """Of Ray's custom resources, by name, that each basket actor reserves."""
    placement: Mapping[StrictStr, Labels] = field(default_factory=dict)
    """Labels of the nodes that may hold a domain's baskets, by domain; such a domain has basket actors of its
    own, one without `baskets_per_actor` (docs/clusters.md)."""
    check_memory: StrictBool = True
    """Whether a federation, `fit` and `serve` refuse a round that would need more memory than the nodes have
    (docs/limits.md)."""


@settings
class RetentionConfig:
    """How long what has served its purpose is kept (docs/data_duties.md); the ledger is kept for good."""

    releases: Annotated[Int, Field(ge=2)] = 8
    """Global models that storage_path holds; older ones are deleted."""
    receipt_rounds: PositiveInt = 16
    """Rounds for which baskets can tell what became of an update with a receipt."""
    metrics_rounds: PositiveInt | None = None
    """Rounds that a run's metrics.jsonl holds; None: all."""


@settings
class HierarchicalFederationConfig:
    """Everything about a federation (docs/specification.md#the-federation)."""

    basket: BasketConfig = field(default_factory=BasketConfig)
    gossip: GossipConfig = field(default_factory=GossipConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    layer1: Layer1Config = field(default_factory=Layer1Config)
    layer2: Layer2Config = field(default_factory=Layer2Config)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    total_epsilon: Epsilon = 10.0
    """Epsilon that the ledger may spend in all; `.inf` means no noise and no claim."""
    total_delta: Delta = 1e-4
    """Delta of the whole claim."""
    auto_aggregate: StrictBool = True
    """Whether triggers act without `maybe_aggregate`: at submissions, and where gossip has a share of the
    budget, for which all having sent waits, also at the end of `run_gossip_round` and in `advance_round`."""
    vector_dim: PositiveInt = 64
    """Numbers in the model's vector."""
    gossip_budget_share: Annotated[StrictFloat, Field(ge=0, lt=1)] = 0.2
    """Share of the budget (in mu squared, or in rho) set aside for each client's gossip; 0 turns gossip off.
    Without Layer 2 nothing else spends, and any share above 0 means all of it."""
    meta_parameters: Mapping[str, tuple[StrictFloat, StrictFloat]] = field(default_factory=dict)
    """Scalars that clients may report beside updates, each with its least and greatest value."""
    expose_basket_models: StrictBool = True
    """Whether `get_basket_model` answers; basket models lie outside the privacy claim."""
    strict: StrictBool = False
    """Whether a spent budget raises `PrivacyBudgetExhausted` instead of refusing quietly."""
    seed: NonNegativeInt = 0
    """Seed of the simulation streams (peers, splits); never of keys or privacy noise."""
    ledger_path: LedgerPath | None = None
    """The ledger's file, or the URL of a PostgreSQL database (``postgresql://USER@HOST/DATABASE``); None, on
    a cluster of one machine: a file in this user's state folder, an own one for each federation, by its name
    if it has one."""
    storage_path: StoragePath | None = None
    """Where the federation's state is kept, to go on from after a restart (docs/resume.md): a folder that all
    machines see, or a URI (``s3://BUCKET/...``, ``gs://BUCKET/...``). None: only the budget is kept."""
    journal_path: JournalPath | None = None
    """Where accepted updates are kept until they are aggregated: a folder on a local disk of each machine
    with baskets, or the URL of a PostgreSQL database, which outlives such a disk (docs/faults.md). None: the
    folder ``journal`` in `storage_path`, if that is a folder."""
    journal_key_path: KeyPath | None = None
    """A file with 32 random bytes on each machine with baskets, mode 0600, by which what the journal holds is
    encrypted (docs/faults.md). None: it is not."""
    durability: Kept | None = None
    """When accepted updates are on the disk. None: ``update`` with `storage_path`, ``none`` without."""
    receipts: StrictBool = False
    """Whether baskets sign receipts for accepted updates and publish, with a release, what was in it
    (docs/receipts.md)."""
    retain_rounds: NonNegativeInt = 0
    """Rounds for which baskets keep, in `storage_path`, the noised rows that they gave to their rule, for
    ``scarcity-ray audit replay`` (docs/receipts.md); with ``privacy.noise: site`` alone."""
    operator_key: PublicKey | None = None
    """The operator's Ed25519 public key, 64 hexadecimal digits, whose private half no role and no driver need
    hold: the roster of baskets and renewals of the budget must be signed with it. None: the directory is
    believed in who the baskets are, and whoever can call the accountant may renew."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)

    def __post_init__(self) -> None:
        if self.runtime.placement and self.basket.allow_cross_domain:
            raise ConfigError(
                "basket.allow_cross_domain",
                True,
                "false, since runtime.placement keeps domains on nodes of their own",
            )
        if self.keeps_updates is not Durability.NONE and self.journal_place is None:
            raise ConfigError(
                "journal_path",
                None,
                "a folder on a local disk, or a database's URL, since durability is "
                + repr(self.keeps_updates.value)
                + (
                    " by default with storage_path (or set durability: none)"
                    if self.durability is None
                    else ""
                ),
            )

    @property
    def keeps_updates(self) -> Durability:
        """When accepted updates are on the disk; the default follows from `storage_path`."""
        if self.durability is not None:
            return self.durability
        return Durability.NONE if self.storage_path is None else Durability.UPDATE

    @property
    def journal_place(self) -> str | None:
        """Where accepted updates are kept, a folder absolute; None if nothing says where."""
        if isinstance(self.journal_path, LedgerUrl):
            return self.journal_path
        if self.journal_path is not None:
            return os.path.abspath(os.path.expanduser(self.journal_path))
        if self.storage_path is None or "://" in self.storage_path:
            return None
        return os.path.abspath(os.path.join(os.path.expanduser(self.storage_path), "journal"))
