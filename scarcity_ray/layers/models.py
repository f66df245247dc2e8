"""What the two layers produce."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.plan import BasketFacts
from scarcity_ray_client import NoisedMean
from scarcity_ray_client.receipts import CountedRoot, ReleaseRecord


@dataclass(frozen=True)
class Placing:
    """How one client's row relates to a basket's aggregate. It is computed from private values.

    Attributes:
        selected: Whether it entered the aggregate, as a whole or with some of its values.
        distance: From the aggregate as the rule gave it, before it was clipped.
        z: How many robust standard deviations that lies above the median distance.
        trimmed: Share of coordinates in which it lies outside all values averaged (estimated above 1024
            coordinates); None for rules that average whole rows, and after a pre-aggregation.
        agreement: In [0, 1]; see `robust.agreement`.
    """

    selected: bool
    distance: float
    z: float
    trimmed: float | None
    agreement: float


@dataclass(frozen=True, eq=False)
class BasketModel:
    """A basket's aggregate: the result of Layer 1.

    It is not noised, so it lies outside the central privacy claim. Only the basket's own actor holds it, and
    `HierarchicalFederation.get_basket_model` shows it only if the config allows.

    Attributes:
        aggregate: float32, shape (d,), norm at most ``layer1.clip_norm``; of tensors, one on
            their device.
        n_contributors: Clients whose rows went into the rule.
        round_id: Round in which it was made.
        timestamp: Seconds since the epoch.
        confidence: Share of the basket's members behind it, in (0, 1].
        num_byzantine: The f that the rule ran with.
        n_members: Registered members at that time.
        selected: Client ids that a selecting rule chose; all contributors for the others.
        max_row_share: Largest share of one row in a weighted mean; None for every other rule.
        meta: Means of the reported meta-parameters, each mapped to [-1, 1]; float64, shape (k,).
        clip_norm: Of its rows; None: ``layer1.clip_norm``.
        bit: With adaptive clipping, the share of its clients' rows whose norm was at most `clip_norm` before
            clipping, less 1/2; else 0.
        placings: By client id; empty where no report was asked for.
        num_persons: See `BasketFacts`.
        receipts: Keys of the receipts for the updates in it, 32 bytes each, sorted; empty without receipts.
        manifest: Digest of what is retained of it (`baskets.retained`); empty if nothing is.
    """

    basket_id: str
    aggregate: NDArray[np.float32]
    n_contributors: int
    round_id: int
    timestamp: float
    confidence: float
    num_byzantine: int = 0
    n_members: int = 0
    selected: tuple[str, ...] = ()
    max_row_share: float | None = None
    meta: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    clip_norm: float | None = None
    bit: float = 0.0
    placings: dict[str, Placing] = field(default_factory=dict)
    num_persons: int | None = None
    receipts: bytes = b""
    manifest: bytes = b""

    def facts(self, domain_id: str, num_members: int) -> BasketFacts:
        """What is public about it in a release for which the basket has `num_members`."""
        return BasketFacts(
            basket_id=self.basket_id,
            domain_id=domain_id,
            num_members=num_members,
            num_rows=self.n_contributors,
            num_byzantine=self.num_byzantine,
            max_row_share=self.max_row_share,
            clip_norm=self.clip_norm,
            num_persons=self.num_persons,
        )


@dataclass(frozen=True, eq=False)
class GlobalMetaModel:
    """A release of Layer 2: public from here on, protected by central differential privacy.

    Attributes:
        aggregate: float32, shape (d,): the noised weighted mean of the baskets' aggregates.
        n_baskets: Baskets whose aggregates are in it.
        n_clients_total: Clients behind those aggregates.
        round_id: Round in which it was made.
        timestamp: Seconds since the epoch.
        privacy_spent: Epsilon spent at total_delta by everything so far, this release included.
        version: 1 for a federation's first release, then one more each time.
        noise_sigma: Standard deviation of the noise on each coordinate of `aggregate`.
        meta_params: What was learned of each declared meta-parameter.
        meta_means: The same before it was brought into its range, with the size of its noise.
        ledger_head: Hash of the ledger after this release was charged.
        clip_norm: With adaptive clipping, the clip norm of the next rows; else None.
        receipts: With receipts, each counted basket's signed root over those for the updates in it.
    """

    aggregate: NDArray[np.float32]
    n_baskets: int
    n_clients_total: int
    round_id: int
    timestamp: float
    privacy_spent: float
    version: int = 1
    noise_sigma: float = 0.0
    meta_params: dict[str, float] = field(default_factory=dict)
    meta_means: dict[str, NoisedMean] = field(default_factory=dict)
    ledger_head: str = ""
    clip_norm: float | None = None
    receipts: tuple[CountedRoot, ...] = ()

    def release_record(self) -> ReleaseRecord:
        """What an audit of receipts needs of it (docs/receipts.md)."""
        return ReleaseRecord(self.version, self.ledger_head, self.receipts)
