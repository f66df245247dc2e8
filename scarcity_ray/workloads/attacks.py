"""Attacks of Byzantine clients by name, and the rows that a federation receives under one.

The attackers of a basket are omniscient: they know the honest updates of this round, the rule, and each
other. An attack is a pure function of that. What it learns in one round and keeps is a new attack
(`Attack.learned`). First come the attacks that a client can make alone, then those of colluders who all send
one row, then those that optimise their strength against the rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Annotated, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainValidator

from scarcity_ray.config import settings
from scarcity_ray.config.fields import Arguments, PositiveFloat
from scarcity_ray.errors import ConfigError, UsageError
from scarcity_ray_client.loading import Plugin, is_import_path, load_plugin, told

Rows = NDArray[np.float32]
BasketRule = Callable[[Rows], Rows]
"""What a basket makes of its clients' rows, (n, d) in their order -> (d,)."""


@dataclass(frozen=True, eq=False)
class View:
    """The knowledge of one basket's attackers in one round.

    Attributes:
        own: (b, d) float32, what they would send if they were honest.
        honest: (h, d) float32, what the honest clients send, h at least 1.
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
    """An attack: the rows that the attackers of a basket send.

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
        """The attack with what it found in a round, a strength or a victim, fixed for later rounds."""
        return self

    def labels(self, labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
        """The labels that the attackers train on."""
        return labels


@dataclass(frozen=True)
class Honest(Attack):
    """No attack: its honest update."""

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        return view.own


@dataclass(frozen=True)
class SignFlip(Attack):
    """Minus `scale` times its honest update (Li et al. 2019, RSA, section 5: sign-flipping)."""

    scale: float = 10.0

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        return -np.float32(self.scale) * view.own


@dataclass(frozen=True)
class ScaledGradient(Attack):
    """`scale` times its honest update (Bhagoji et al. 2019, explicit boosting)."""

    scale: float = 10.0

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        return np.float32(self.scale) * view.own


@dataclass(frozen=True)
class Gaussian(Attack):
    """Noise of `scale` times the honest root mean square (Blanchard et al. 2017, section 6, in size)."""

    scale: float = 10.0

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        size = self.scale * float(np.sqrt(np.mean(np.square(view.honest, dtype=np.float64))))
        return (size * view.rng.standard_normal(view.own.shape)).astype(np.float32)


@dataclass(frozen=True)
class NotFinite(Attack):
    """Nothing but NaN or infinity: no paper's attack, but the cheapest, and fatal to an unguarded mean."""

    value: float

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        return np.full_like(view.own, self.value)


@dataclass(frozen=True)
class LabelFlip(Attack):
    """The honest update to turned labels: c becomes num_classes - 1 - c (Karimireddy, He, Jaggi 2022)."""

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`; the labels were turned before."""
        return view.own

    def labels(self, labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
        """See `Attack.labels`."""
        return num_classes - 1 - labels


@dataclass(frozen=True)
class LittleIsEnough(Attack):
    """ALIE: honest mean - z times honest deviation, per coordinate (Baruch et al. 2019, algorithm 3).

    Attributes:
        z: None: the paper's, from the numbers of clients (`alie_strength`).
    """

    z: float | None = None
    colludes = True

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        z = alie_strength(len(view.own) + len(view.honest), len(view.own)) if self.z is None else self.z
        row = view.honest.mean(axis=0) - np.float32(z) * view.honest.std(axis=0)
        return np.broadcast_to(row, view.own.shape)


def alie_strength(num_rows: int, num_byzantine: int) -> float:
    """The z that still hides in the crowd: Phi^-1((n - m - s) / (n - m)), s = floor(n/2 + 1) - m.

    >>> round(alie_strength(50, 12), 3)
    0.336
    """
    supporters = num_rows // 2 + 1 - num_byzantine
    honest = num_rows - num_byzantine
    share = (honest - supporters) / honest
    return NormalDist().inv_cdf(min(max(share, 0.5), 0.999))


@dataclass(frozen=True)
class InnerProductManipulation(Attack):
    """IPM: minus `scale` times the honest mean (Xie, Koyejo, Gupta 2020, section 4)."""

    scale: float = 1.0
    colludes = True

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        return np.broadcast_to(-np.float32(self.scale) * view.honest.mean(axis=0), view.own.shape)


@dataclass(frozen=True)
class Mimic(Attack):
    """All send what one honest client sends (Karimireddy, He, Jaggi 2022, section 3 and appendix).

    The victim is the honest client furthest along the direction in which the honest updates differ most. The
    paper estimates that direction over the first rounds (Oja); here a round's own is found exactly, and
    `learned` fixes the victim.

    Attributes:
        victim: Place of the victim among the honest clients; None: chosen anew each round.
    """

    victim: int | None = None
    colludes = True

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        place = most_deviant(view.honest) if self.victim is None else self.victim
        return np.broadcast_to(view.honest[place], view.own.shape)

    def learned(self, view: View) -> Mimic:
        """See `Attack.learned`."""
        return Mimic(most_deviant(view.honest))


def most_deviant(rows: Rows) -> int:
    """The row with the largest part along the first principal direction of all (h, d) rows.

    >>> most_deviant(np.array([[0, 1], [1, 0], [9, 0], [0, 0]], np.float32))
    2
    """
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred @ centred.T)
    return int(np.argmax(np.abs(vectors[:, -1])))


LEAST = 0.1
GRID = 10
REFINEMENTS = 2


@dataclass(frozen=True)
class StrongestOf(Attack):
    """A family of attacks, at the strength that does the known rule most harm.

    With ALIE and IPM these are the optimised attacks of Allouah et al. 2023 (section 6), after Shejwalkar,
    Houmansadr 2021. They search a geometric grid and refine around its best; the paper's line search assumes
    one maximum, which selection rules do not have.

    Guarantees:
        No strength on the grid does more harm.

    Attributes:
        family: Makes the attack of a given strength.
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


AttackName = Literal[
    "none",
    "sign_flip",
    "scaled_gradient",
    "gaussian",
    "inf",
    "nan",
    "label_flip",
    "poison",
    "ipm",
    "alie",
    "mimic",
    "optimised_ipm",
    "optimised_alie",
]


NAMES: tuple[AttackName, ...] = get_args(AttackName)


def _attack_name(value: object) -> str:
    if isinstance(value, str) and (value in NAMES or is_import_path(value)):
        return value
    raise ValueError(f"one of {', '.join(NAMES)}, or module:Class for an attack of yours")


@settings
class AttackConfig:
    """Which attack the Byzantine clients make: one of `NAMES`, or ``module:Class`` of an `Attack`."""

    name: Annotated[str, PlainValidator(_attack_name, json_schema_input_type=str)] = "sign_flip"
    """One of `NAMES`, or ``module:Class`` of an `Attack`."""
    scale: PositiveFloat | None = None
    """The attack's strength; None: its own default (see `ATTACKS`)."""
    args: Arguments = field(default_factory=dict)
    """What an attack from outside is made with, by name."""

    def __post_init__(self) -> None:
        if self.name in NAMES and self.args:
            raise ConfigError("args", dict(self.args), f"none for {self.name}; only an attack from outside")
        if self.name not in NAMES and self.scale is not None:
            raise ConfigError("scale", self.scale, f"null for {self.name}; say it in args")


ATTACKS: dict[str, Callable[[float | None], Attack]] = {
    "none": lambda scale: Honest(),
    "sign_flip": lambda scale: SignFlip(scale or 10.0),
    "scaled_gradient": lambda scale: ScaledGradient(scale or 10.0),
    "gaussian": lambda scale: Gaussian(scale or 10.0),
    "inf": lambda scale: NotFinite(np.inf),
    "nan": lambda scale: NotFinite(np.nan),
    "label_flip": lambda scale: LabelFlip(),
    "poison": lambda scale: LabelFlip(),
    "ipm": lambda scale: InnerProductManipulation(scale or 1.0),
    "alie": LittleIsEnough,
    "mimic": lambda scale: Mimic(),
    "optimised_ipm": lambda scale: StrongestOf(InnerProductManipulation, scale or 20.0),
    "optimised_alie": lambda scale: StrongestOf(LittleIsEnough, scale or 20.0),
}
"""From a name and a `scale` to the attack; `scale` is the greatest strength tried for the optimised ones."""

PLUGIN: Plugin[Attack] = Plugin("attack", Attack, __name__)  # type: ignore[type-abstract]


def make_attack(attack: AttackConfig) -> Attack:
    """The attack that a config names.

    Raises:
        UsageError: For one from outside that cannot be loaded.
    """
    if attack.name not in NAMES:
        return load_plugin(PLUGIN, attack.name, attack.args)
    return ATTACKS[attack.name](attack.scale)


def poisons(attack: AttackConfig) -> bool:
    """Whether attackers train on poisoned data, in a job by `Workload.poison`."""
    return attack.name in ("poison", "label_flip")


def craft(
    attack: AttackConfig,
    deltas: Rows,
    byzantine: NDArray[np.bool_],
    baskets: NDArray[np.int64],
    rng: np.random.Generator,
    rule: BasketRule | None = None,
) -> Rows:
    """The rows that are sent if every client computed `deltas` and the Byzantine ones attack.

    Args:
        deltas: (clients, d) float32, never changed.
        byzantine: (clients,) bool.
        baskets: (clients,) the basket of each client.
        rule: What a basket makes of its rows, for the attacks that know it.

    Returns:
        (clients, d) float32.

    Raises:
        UsageError: If the attack needs to know the rule, and none is given; or if one from outside raises or
            gives anything but such rows.

    Guarantees:
        Honest rows stay as they are.
    """
    made = make_attack(attack)
    if isinstance(made, Honest | LabelFlip) or not byzantine.any():
        return deltas
    sent = deltas.copy()
    for _, liars, view in views(deltas, byzantine, baskets, rng, rule):
        sent[liars] = made.rows(view) if attack.name in NAMES else _checked_rows(made, view, attack.name)
    return sent


def _checked_rows(made: Attack, view: View, name: str) -> Rows:
    try:
        rows = made.rows(view)
    except Exception as error:
        raise UsageError(f"attack {name!r} raised {told(error)}") from error
    if not isinstance(rows, np.ndarray) or rows.shape != view.own.shape or rows.dtype.kind != "f":
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise UsageError(f"attack {name!r} gave {found}, not rows of float32 {view.own.shape}")
    with np.errstate(over="ignore"):
        return rows.astype(np.float32)


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
