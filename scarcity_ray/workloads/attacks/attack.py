"""What an attack is, and what the attackers see.

The attackers of a basket know everything: the honest updates of this round, the rule, and each other. An
attack is a pure function of that; what it learns in one round and keeps for later is another attack
(`Attack.learned`), so that nothing changes in place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
BasketRule = Callable[[Rows], Rows]
"""What a basket makes of its clients' rows, (n, d) in their order -> (d,)."""


@dataclass(frozen=True, eq=False)
class View:
    """What the attackers of one basket see in one round.

    Attributes:
        own: (b, d) float32, what they would send if they were honest.
        honest: (h, d) float32, what the honest clients send, h at least 1.
        rng: For attacks that draw.
        outcome: The basket's aggregate if the attackers send these (b, d) rows; None where they do not know
            the rule.
    """

    own: Rows
    honest: Rows
    rng: np.random.Generator
    outcome: Callable[[Rows], Rows] | None = None

    def harm(self, rows: Rows) -> float:
        """How far the aggregate ends from the honest mean if the attackers send `rows`; inf if not finite.

        Raises:
            TypeError: If they do not know the rule.
        """
        if self.outcome is None:
            raise TypeError("harm is known to those who know the rule only")
        distance = float(np.linalg.norm(self.outcome(rows) - self.honest.mean(axis=0)))
        return distance if np.isfinite(distance) else np.inf


class Attack(ABC):
    """What the attackers of a basket send.

    Attributes:
        colludes: Whether the rows depend on other clients' updates.
        knows_rule: Whether it needs `View.outcome`.
    """

    colludes: bool = False
    knows_rule: bool = False

    @abstractmethod
    def rows(self, view: View) -> Rows:
        """The (b, d) float32 rows that the attackers send."""

    def learned(self, view: View) -> Attack:
        """The attack with what a round teaches fixed: a strength, a victim. Itself where there is nothing."""
        return self

    def labels(self, labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
        """What the attackers take for their examples' labels."""
        return labels
