"""Attacks that know the rule and try out their own strength on it.

The optimised ALIE and IPM of Allouah et al. 2023 (section 6), after Shejwalkar, Houmansadr 2021: of all
strengths, the one whose row takes the known rule's result furthest from the honest mean. They search a
geometric grid and refine around its best; the paper's line search assumes one maximum, which selection rules
do not have.

Guarantees:
    No strength on the grid does more harm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scarcity_ray.errors import UsageError
from scarcity_ray.workloads.attacks.attack import Attack, Rows, View

LEAST = 0.1
GRID = 10
REFINEMENTS = 2


@dataclass(frozen=True)
class StrongestOf(Attack):
    """A family of attacks, at the strength that does the known rule most harm.

    Attributes:
        family: From a strength to an attack.
        most: The greatest strength tried.
    """

    family: Callable[[float], Attack]
    most: float = 20.0
    colludes = True
    knows_rule = True

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        return self.learned(view).rows(view)

    def learned(self, view: View) -> Attack:
        """The family's attack at the strength found.

        Raises:
            UsageError: If the view says nothing of the rule.
        """
        if view.outcome is None:
            raise UsageError("an optimised attack searches against a known rule, and none was given")
        return self.family(strongest(lambda strength: view.harm(self.family(strength).rows(view)), self.most))


def strongest(harm: Callable[[float], float], most: float) -> float:
    """The strength of most harm on `GRID` geometric steps from `LEAST` to `most`, then refined.

    Each of `REFINEMENTS` rounds tries the geometric means of the best and its neighbours. Of equals the least
    is taken.

    >>> round(strongest(lambda x: -abs(x - 3.0), 20.0), 1)
    3.0
    """
    tried = {
        float(strength): harm(float(strength)) for strength in np.geomspace(min(LEAST, most), most, GRID)
    }
    for _ in range(REFINEMENTS):
        strengths = sorted(tried)
        place = strengths.index(max(strengths, key=tried.__getitem__))
        for neighbour in strengths[max(place - 1, 0) : place] + strengths[place + 1 : place + 2]:
            between = float(np.sqrt(strengths[place] * neighbour))
            tried[between] = harm(between)
    return max(sorted(tried), key=tried.__getitem__)
