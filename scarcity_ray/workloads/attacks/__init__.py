"""What Byzantine clients do, as objects: from the updates that colluders see to the rows that they send."""

from scarcity_ray.workloads.attacks.attack import Attack, BasketRule, View
from scarcity_ray.workloads.attacks.colluding import (
    InnerProductManipulation,
    LittleIsEnough,
    Mimic,
    alie_strength,
)
from scarcity_ray.workloads.attacks.crafting import (
    ATTACKS,
    AttackConfig,
    AttackName,
    craft,
    flip_labels,
    make_attack,
    views,
)
from scarcity_ray.workloads.attacks.independent import (
    Gaussian,
    Honest,
    LabelFlip,
    NotFinite,
    ScaledGradient,
    SignFlip,
)
from scarcity_ray.workloads.attacks.searching import StrongestOf, strongest

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackConfig",
    "AttackName",
    "BasketRule",
    "Gaussian",
    "Honest",
    "InnerProductManipulation",
    "LabelFlip",
    "LittleIsEnough",
    "Mimic",
    "NotFinite",
    "ScaledGradient",
    "SignFlip",
    "StrongestOf",
    "View",
    "alie_strength",
    "craft",
    "flip_labels",
    "make_attack",
    "strongest",
    "views",
]
