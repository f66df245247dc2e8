"""Why a basket has too few clients, or a release too few baskets, and the single changes that would help.

Each change is tried by the planner before it is proposed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from scarcity_ray.config import AggregationMethod, Layer2Config
from scarcity_ray.errors import ConfigError
from scarcity_ray.plan import FederationPlan, corrupt_of, make_plan, session_shape
from scarcity_ray.plan.session import HIDDEN_AMONG

SIZES_LOOKED_AT = 1000
"""Further members that are tried with a rule."""
SIGNING = "`scarcity-ray roster sign`, then fed.sign_roster(...)"


@dataclass(frozen=True)
class ReleaseNeed:
    """How many baskets a release needs, and why.

    Attributes:
        number: Baskets that are registered.
        num_unsigned: Those that count as corrupt until they are signed for.
        signed: Whether rosters need the operator's signature.
    """

    layer2: Layer2Config
    number: int
    num_unsigned: int
    signed: bool

    def least(self, number: int | None = None) -> int:
        """Fresh baskets without which there is no release; if `number` were registered."""
        if not self.layer2.use_secure_aggregation:
            return self.layer2.min_baskets
        parties = self.number if number is None else number
        shape = session_shape(self.layer2, parties, registered=parties, unsigned=self.num_unsigned)
        return max(self.layer2.min_baskets, shape.least_weighted)

    @property
    def binds(self) -> bool:
        """Whether the assumed corrupt baskets are the reason that so many are needed."""
        return self.least() > self.layer2.min_baskets

    @property
    def why(self) -> str:
        """The setting that asks for so many."""
        if not self.binds:
            return "layer2.min_baskets"
        unsigned = f", and {self.num_unsigned} not signed for" if self.num_unsigned else ""
        return (
            f"{corrupt_of(self.layer2, self.number)} of the {self.number} registered may be corrupt, "
            f"layer2.assumed_corrupt_fraction{unsigned}"
        )

    def ways(self, fresh: int, num_empty: int) -> Iterator[str]:
        """Changes with which the fresh baskets suffice."""
        if not self.binds:
            return
        signed = " (and have the next roster signed)" if self.signed else ""
        if num_empty and self.least(self.number - num_empty) <= fresh:
            yield (
                "advance_round, until which a basket that has lost all its clients counts among those "
                f"registered{signed}"
            )
        if self.num_unsigned:
            yield f"sign the roster ({SIGNING})"
        most = self._most_registered(fresh)
        if most is not None:
            hides = session_shape(self.layer2, most).hides
            caution = "" if hides else ", too few to hide one from an aggregator that colludes with another"
            yield (
                f"close idle ones until {most} are registered (disband_basket where the domain has others, "
                f"else unregister_client their clients, then advance_round){signed}{caution}"
            )
        if fresh >= self.layer2.min_baskets:
            yield (
                "set layer2.assumed_corrupt_fraction: 0, which protects no basket from an aggregator that "
                "colludes with others"
            )

    def _most_registered(self, fresh: int) -> int | None:
        """The most registered baskets with which so many fresh ones would do, if that takes closing some."""
        if self.num_unsigned or fresh < self.layer2.min_baskets:
            return None
        for number in range(self.number - 1, fresh - 1, -1):
            few_corrupt = corrupt_of(self.layer2, number) + HIDDEN_AMONG <= fresh
            if (few_corrupt or number == fresh) and self.least(number) <= fresh:
                return number
        return None


def rows_needed(plan: FederationPlan, members: int) -> str:
    """How many rows a basket of so many clients needs, and what asks for them."""
    layer1, least, f = plan.config.layer1, plan.least_rows(members), plan.num_byzantine(members)
    if least == layer1.min_updates and plan.rule_rows(f) < least:
        return f"layer1.min_updates asks for {least} rows"
    return f"{layer1.aggregation_method.value} with f = {f} needs {least} rows, one a client"


def ways_for_few_members(plan: FederationPlan, members: int, domain_id: str) -> Iterator[str]:
    """Changes that let a basket of so few clients aggregate: more clients, or a rule that needs fewer."""
    most = min(plan.config.basket.max_clients, members + SIZES_LOOKED_AT)
    size = next((n for n in range(members + 1, most + 1) if plan.least_rows(n) <= n), None)
    if size is not None:  # f may grow with the members
        yield f"register {size - members} more in domain {domain_id}"
    yield from _other_rules(plan, members)


def _other_rules(plan: FederationPlan, members: int) -> Iterator[str]:
    """Other settings of Layer 1 with which so many members suffice, the gentlest; tried by the planner."""
    config, layer1 = plan.config, plan.config.layer1
    trusting = {"byzantine_fraction": 0.0, "num_byzantine": None, "num_selected": None}
    candidates: list[dict[str, Any]] = [
        trusting,
        {
            **trusting,
            "aggregation_method": AggregationMethod.MEAN,
            "rule_args": {},
            "rule_timeout_seconds": None,
            "clipping_radius": None,
            "pre": (),
        },
    ]
    candidates += [{**candidate, "min_updates": members} for candidate in candidates]
    for changes in candidates:
        try:
            tried = make_plan(replace(config, layer1=replace(layer1, **changes)))
        except ConfigError:
            continue
        if tried.least_rows(members) <= members:
            said = [
                f"layer1.{name}: {value if not isinstance(value, AggregationMethod) else value.value}"
                for name, value in changes.items()
                if value not in (None, (), {}) and value != getattr(layer1, name)
            ]
            caution = "" if math.isclose(layer1.byzantine_fraction, 0.0) else ", which stands no attacker"
            yield f"set {' and '.join(said)}{caution}"
            return
