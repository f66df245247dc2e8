"""Attacks by name, and the rows that a whole federation receives under one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import settings
from scarcity_ray.config.fields import PositiveFloat
from scarcity_ray.workloads.attacks.attack import Attack, BasketRule, Rows, View
from scarcity_ray.workloads.attacks.colluding import InnerProductManipulation, LittleIsEnough, Mimic
from scarcity_ray.workloads.attacks.independent import (
    Gaussian,
    Honest,
    LabelFlip,
    NotFinite,
    ScaledGradient,
    SignFlip,
)
from scarcity_ray.workloads.attacks.searching import StrongestOf

AttackName = Literal[
    "none",
    "sign_flip",
    "scaled_gradient",
    "gaussian",
    "inf",
    "nan",
    "label_flip",
    "ipm",
    "alie",
    "mimic",
    "optimised_ipm",
    "optimised_alie",
]


@settings
class AttackConfig:
    """Which attack the Byzantine clients make."""

    name: AttackName = "sign_flip"
    scale: PositiveFloat | None = None
    """The attack's strength; None: its own default (see `ATTACKS`)."""


ATTACKS: dict[str, Callable[[float | None], Attack]] = {
    "none": lambda scale: Honest(),
    "sign_flip": lambda scale: SignFlip(scale or 10.0),
    "scaled_gradient": lambda scale: ScaledGradient(scale or 10.0),
    "gaussian": lambda scale: Gaussian(scale or 10.0),
    "inf": lambda scale: NotFinite(np.inf),
    "nan": lambda scale: NotFinite(np.nan),
    "label_flip": lambda scale: LabelFlip(),
    "ipm": lambda scale: InnerProductManipulation(scale or 1.0),
    "alie": LittleIsEnough,
    "mimic": lambda scale: Mimic(),
    "optimised_ipm": lambda scale: StrongestOf(InnerProductManipulation, scale or 20.0),
    "optimised_alie": lambda scale: StrongestOf(LittleIsEnough, scale or 20.0),
}
"""From a name and a `scale` to the attack; `scale` is the greatest strength tried for the optimised ones."""

NAMES: tuple[AttackName, ...] = get_args(AttackName)


def make_attack(attack: AttackConfig) -> Attack:
    """The attack that a config names."""
    return ATTACKS[attack.name](attack.scale)


def craft(
    attack: AttackConfig,
    deltas: Rows,
    byzantine: NDArray[np.bool_],
    baskets: NDArray[np.int64],
    rng: np.random.Generator,
    rule: BasketRule | None = None,
) -> Rows:
    """What is sent when every client computed `deltas` and the Byzantine ones attack.

    Args:
        deltas: (clients, d) float32, never changed.
        byzantine: (clients,) bool.
        baskets: (clients,) the basket of each client.
        rng: For the attacks that draw.
        rule: What a basket makes of its rows, for the attacks that know it.

    Returns:
        (clients, d) float32.

    Raises:
        UsageError: If the attack needs to know the rule, and none is given.

    Guarantees:
        Honest rows stay as they are.
    """
    made = make_attack(attack)
    if isinstance(made, Honest | LabelFlip) or not byzantine.any():
        return deltas
    sent = deltas.copy()
    for _, liars, view in views(deltas, byzantine, baskets, rng, rule):
        sent[liars] = made.rows(view)
    return sent


def flip_labels(
    attack: AttackConfig, labels: NDArray[np.int64], byzantine: NDArray[np.bool_], num_classes: int
) -> NDArray[np.int64]:
    """Labels to train on: the Byzantine clients may see others than there are."""
    made = make_attack(attack)
    if not isinstance(made, LabelFlip):
        return labels
    flipped = labels.copy()
    flipped[byzantine] = made.labels(labels[byzantine], num_classes)
    return flipped


def views(
    deltas: Rows,
    byzantine: NDArray[np.bool_],
    baskets: NDArray[np.int64],
    rng: np.random.Generator,
    rule: BasketRule | None,
) -> Iterator[tuple[int, NDArray[np.int64], View]]:
    """For each basket with attackers: its number, their places, and what they see.

    In a basket without an honest client they look at the honest ones of all baskets.
    """
    everyone_honest = np.flatnonzero(~byzantine)
    for basket in np.unique(baskets[byzantine]):
        inside = np.flatnonzero(baskets == basket)
        lying = byzantine[inside]
        honest = inside[~lying]
        outcome = None if rule is None else _outcome(rule, deltas[inside], lying)
        seen = deltas[honest if honest.size else everyone_honest]
        yield int(basket), inside[lying], View(deltas[inside[lying]], seen, rng, outcome)


def _outcome(rule: BasketRule, rows: Rows, lying: NDArray[np.bool_]) -> Callable[[Rows], Rows]:
    def outcome(sent: Rows) -> Rows:
        trial = rows.copy()
        trial[lying] = sent
        return rule(trial)

    return outcome
