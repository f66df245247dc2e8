"""One round of a federation as arithmetic: clients' rows in baskets become a release, without its noise.

The rule, the clip norms, the weights and the noise's scale are those of a federation with the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.layers.layer1 import Layer1Aggregator, Layer1Input
from scarcity_ray.plan import BasketFacts, FederationPlan, persons_of
from scarcity_ray.robust import clip_vector, row_norms

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Releases:
    """Releases of a federation, round after round.

    Attributes:
        plan: Of the federation; its clip norms do not adapt here.
        baskets: (clients,) the basket of each client.
        persons: (clients,) its persons (records), where they are the unit of privacy; None: ``min_persons``.
    """

    plan: FederationPlan
    baskets: NDArray[np.int64]
    persons: NDArray[np.int64] | None = None
    aggregator: Layer1Aggregator = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "aggregator", Layer1Aggregator(self.plan.config.layer1))

    def of(self, rows: Rows, number: int = 0) -> tuple[NDArray[np.float64], float]:
        """The release of one row a client before its noise, (d,), and the noise's standard deviation.

        `number` counts the releases before it, which matters where noise falls from one to the next.

        Rows that are not finite are refused; a basket with too few others waits. Where all wait: zeros, 0.
        """
        facts, vectors = [], {}
        for basket in np.unique(self.baskets).tolist():
            places = np.flatnonzero(self.baskets == basket)
            came = places[np.isfinite(row_norms(rows[places]))]
            present, name, members = rows[came], str(basket), len(places)
            waits = len(present) < self.plan.least_rows(members)
            f = self.plan.num_byzantine(members)
            counts = None if self.persons is None or waits else persons_of(self.persons[came].tolist())
            facts.append(BasketFacts(name, "", members, 0 if waits else len(present), f, num_persons=counts))
            if not waits:
                vectors[name] = self.of_basket(present, members)
        if not vectors:
            return np.zeros(rows.shape[1]), 0.0
        release = self.plan.after(number).release(facts)
        total = np.sum([release.weights[name] * vector for name, vector in vectors.items()], axis=0)
        return total, release.grid_sigma(list(release.weights)) / release.scale

    def of_basket(self, rows: Rows, members: int | None = None) -> Rows:
        """What one basket makes of its finite rows, (d,)."""
        given = Layer1Input(rows, num_members=members)
        made = self.aggregator.aggregate_basket(given).aggregate
        return clip_vector(made, self.plan.config.layer2.clip_norm)
