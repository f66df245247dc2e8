"""Rules from outside the package: what a user's class gives, and how it is run.

A user derives `AggregationRule` and names it in ``layer1.aggregation_method``, by its import path or by an
entry point of the group ``scarcity_ray.rules``. `PluginRule` runs it: on a copy of the rows, as a new object
for each call, in a thread with a time limit. What it gives is checked and copied. A rule that raises, hangs
or gives anything but a finite vector ends in `RuleFailed`; the basket then waits, and keeps its updates.

**Sensitivity.** Whatever the rule computes, Layer 1 clips its result to the clip norm C. So a basket's vector
is in the ball of radius C for either of two neighbours, and two points of a ball are at most 2C apart. That
proof uses nothing of the rule, so 2C is what every rule is charged that states no smaller bound. It uses two
things of the caller's claim: that a client is in one basket, and that whether a basket has a vector at all is
public. The first asks that a rule carries nothing from one call into another, by which a client would move
other baskets too. Nothing carries over in the rule's object, which is new for each call; that nothing does in
its module, in a file or elsewhere is its author's word. The second makes a rule's failure public, as a
client's dropping out is. A smaller bound is its author's claim, and needs a reference to its proof; clipping
the result to a ball moves no two points further apart, so it leaves such a bound as it is.

Guarantees:
    a_hostile_rule_leaves_a_finite_vector_within_the_clip_norm_or_none: Of the model's length.
    a_rule_that_spoils_its_rows_spoils_a_copy
    a_rules_object_keeps_nothing_between_calls
    A rule that raises or hangs fails, and says why.
"""

from __future__ import annotations

import copy
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import RULES_GROUP
from scarcity_ray.errors import RuleFailed, UsageError
from scarcity_ray.robust.arrays.blocks import Matrix, Rows, Vector
from scarcity_ray.robust.rules.base import Rule, Selection, Setting
from scarcity_ray_client.loading import Plugin, SourceFolder, is_import_path, load_plugin, source_folder, told

TIMEOUT_SECONDS = 300.0
"""What ``layer1.rule_timeout_seconds: null`` means."""


class AggregationRule(ABC):
    """A rule of one's own: a function of n rows, f and a random generator.

    An object is made for each call. It must keep nothing between calls, draw randomness from `rng` alone, and
    leave the rows as they are; `scarcity_ray.testing.check_rule` looks for all of that.

    Attributes:
        sensitivity_reference: Where the bound that `sensitivity` gives is proved; needed for a smaller one
            than 2C.
        permutation_invariant: Whether the order of the rows does not matter.
        translation_equivariant: Whether rows that are all moved by a vector move the result by it.
        scale_equivariant: Whether rows that are all multiplied by a positive number multiply the result.
    """

    sensitivity_reference: str = ""
    permutation_invariant: bool = True
    translation_equivariant: bool = False
    scale_equivariant: bool = False

    @abstractmethod
    def least_rows(self, num_byzantine: int) -> int:
        """The rows without which the rule does not tolerate `num_byzantine` Byzantine ones, at least 1.

        With fewer the basket waits. It must not depend on anything else.
        """

    @abstractmethod
    def aggregate(
        self, rows: NDArray[np.float32], num_byzantine: int, rng: np.random.Generator
    ) -> NDArray[np.floating[Any]]:
        """The result, (d,) of float32 or float64 and finite.

        Args:
            rows: (n, d) float32 and finite, one a client, each no longer than the clip norm; n is at least
                `least_rows(num_byzantine)`. Behind pre-aggregation they are the mixed rows.
            num_byzantine: f, the rows that may be anything at all.
            rng: All the randomness of this call; no client can foresee it.
        """

    def sensitivity(self, num_rows: int, num_byzantine: int, clip_norm: float) -> float:
        """How far one row, replaced, moves the result at most, for rows of norm at most `clip_norm`.

        Override it only with a proof, for the result as it is computed, and give `sensitivity_reference`.
        """
        return 2.0 * clip_norm


PLUGIN: Plugin[AggregationRule] = Plugin(
    "rule",
    AggregationRule,  # type: ignore[type-abstract]
    "scarcity_ray",
)


class Origin(NamedTuple):
    """Where a rule comes from, to make it again in another process.

    Attributes:
        path: Its import path, or the name of its entry point.
        args: What it is made with.
    """

    path: str
    args: Mapping[str, Any]
    timeout_seconds: float


class PluginRule(Rule):
    """A rule from outside, as `robust` runs it.

    Another process loads it again, from its module's folder as that travels.

    Args:
        make: Makes the user's object.
        origin: None for an object that was given as such.

    Attributes:
        stated: A user's object, for what it states; none that aggregates.
    """

    def __init__(
        self, name: str, make: Callable[[], AggregationRule], timeout_seconds: float, origin: Origin | None
    ) -> None:
        self.name = name
        self._make = make
        self.stated = make()
        self._timeout_seconds = timeout_seconds
        self._origin = origin
        self._running: threading.Thread | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self._origin is None:
            raise UsageError(f"rule {self.name}: give its import path, so that other processes find it too")
        return _load_elsewhere, (*self._origin, source_folder(self.stated))

    def holding(self) -> PluginRule:
        """The same rule, all of whose calls are made of one object."""
        held = self._make()
        return PluginRule(self.name, lambda: held, self._timeout_seconds, None)

    @property
    def reference(self) -> str:
        """Where its author says that its sensitivity is proved; empty for 2C."""
        return str(self.stated.sensitivity_reference or "").strip()

    def least_rows(self, num_byzantine: int) -> int:
        """See `Rule.least_rows`.

        Raises:
            UsageError: If the rule gives no number of at least 1.
        """
        least = self._ask("least_rows", num_byzantine)
        if not isinstance(least, int | np.integer) or isinstance(least, bool) or least < 1:
            raise UsageError(
                f"rule {self.name}: least_rows({num_byzantine}) gave {least!r}, no int from 1 on"
            )
        return int(least)

    def sensitivity(self, num_rows: int, num_byzantine: int, clip_norm: float) -> float:
        """The bound that its author states, 2C at most.

        Raises:
            UsageError: If it is no positive number, or below 2C without a reference.
        """
        stated = self._ask("sensitivity", num_rows, num_byzantine, clip_norm)
        is_number = isinstance(stated, int | float | np.floating) and not isinstance(stated, bool)
        if not is_number or not 0.0 < stated < math.inf:
            raise UsageError(f"rule {self.name}: sensitivity gave {stated!r}, not a positive number")
        if stated < 2.0 * clip_norm and not self.reference:
            raise UsageError(
                f"rule {self.name}: it states the sensitivity {stated:g}, less than 2 clip_norm = "
                f"{2.0 * clip_norm:g}, without saying where that is proved; set sensitivity_reference"
            )
        return min(float(stated), 2.0 * clip_norm)

    def claim(self, settings: Iterable[tuple[int, int]], clip_norm: float) -> str:
        """What the privacy claim takes on its author's word, as a sentence.

        Args:
            settings: (n, f) of baskets; the first for which the author states less than 2C is told.
            clip_norm: C.
        """
        word = f"the rule {self.name} is from outside the package: its author's word is taken that it keeps "
        word += "nothing between calls"
        bounds = ((n, f, self.sensitivity(n, f, clip_norm)) for n, f in settings)
        for n, f, bound in bounds:
            if bound < 2.0 * clip_norm:
                word += (
                    f", and that with n = {n}, f = {f} one client moves its result by at most {bound:.4g}, "
                    f"not {2.0 * clip_norm:.4g} (proof: {self.reference})"
                )
                break
        return f"{word}; and whether it fails is taken to be public"

    def _ask(self, method: str, *args: float) -> Any:
        try:
            return getattr(self.stated, method)(*args)
        except Exception as error:
            raise UsageError(f"rule {self.name}: {method}{args} raised {told(error)}") from error

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        return Selection(tuple(range(setting.num_rows)))

    def combine(self, block: Rows, selection: Selection, num_byzantine: int) -> Vector:
        """Not for a rule that sees whole rows: see `whole`."""
        raise UsageError(f"rule {self.name} needs whole rows, not blocks of columns")

    def whole(self, rows: NDArray[np.float32], num_byzantine: int, rng: np.random.Generator) -> Vector:
        """The rule's result for (n, d) rows, which it may spoil: (d,) float32 and finite.

        Raises:
            RuleFailed: If it raises, does not end in time, or gives anything else.
        """
        result = self._in_time(lambda: self._make().aggregate(rows, num_byzantine, rng))
        # No method of the rule's own object is called here, where no limit of time holds.
        if not issubclass(type(result), np.ndarray):
            kind = type(result).__name__
            raise RuleFailed(self.name, f"it gave a {kind}, not an array of float32 or float64")
        given = np.asarray(result)
        if given.dtype.kind != "f":
            raise RuleFailed(self.name, f"it gave an array of {given.dtype.name}, not of float32 or float64")
        if given.shape != rows.shape[1:]:
            raise RuleFailed(self.name, f"it gave shape {given.shape}, not {rows.shape[1:]}")
        with np.errstate(over="ignore", invalid="ignore"):
            vector = given.astype(np.float32)
        if not np.isfinite(vector).all():
            raise RuleFailed(self.name, "it gave values that are not finite in float32")
        return vector

    def _in_time(self, call: Callable[[], object]) -> object:
        """What the call gives, in a thread of its own: Python cannot end one that hangs, so it is left."""
        if self._running is not None and self._running.is_alive():
            raise RuleFailed(
                self.name, f"an earlier call runs on, after {self._timeout_seconds:g} s and more"
            )
        answers: list[object] = []
        failures: list[RuleFailed] = []

        def work() -> None:
            try:
                answers.append(call())
            except BaseException as error:  # whatever it is; its text is the rule's own code, too
                failed = RuleFailed(self.name, f"it raised {type(error).__name__}", told(error))
                failed.__cause__ = error
                failures.append(failed)

        self._running = threading.Thread(target=work, name=f"rule {self.name}", daemon=True)
        self._running.start()
        self._running.join(self._timeout_seconds)
        if failures:
            raise failures[0]
        if not answers:
            limit = f"{self._timeout_seconds:g} s (layer1.rule_timeout_seconds)"
            raise RuleFailed(self.name, f"it did not end within {limit}")
        self._running = None
        return answers[0]


def load_rule(
    path: str,
    args: Mapping[str, Any] | None = None,
    timeout_seconds: float | None = None,
) -> PluginRule:
    """Import a rule from outside, and make it once.

    Args:
        path: ``module:Class``, or the name of an entry point.
        args: What it is made with, by name.
        timeout_seconds: None: `TIMEOUT_SECONDS`.

    Raises:
        UsageError: If that cannot be done; the text names the path, the cause and the remedy.
    """
    offered = () if is_import_path(path) else entry_points(group=RULES_GROUP, name=path)
    places = sorted({found.value for found in offered})
    if len(places) > 1:
        raise UsageError(f"rule {path!r}: packages offer {' and '.join(places)} under this name; write one")
    spec = places[0] if places else path
    kept = copy.deepcopy(dict(args or {}))
    made = load_plugin(PLUGIN, spec, copy.deepcopy(kept))
    cls = type(made)
    limit = TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds
    origin = Origin(path, kept, limit)
    rule = PluginRule(path, lambda: cls(**copy.deepcopy(kept)), limit, origin)
    rule.least_rows(0)
    return rule


def _load_elsewhere(
    path: str, args: Mapping[str, Any], timeout_seconds: float, source: SourceFolder | None
) -> PluginRule:
    """`load_rule` in the process of a role, which may be on another machine than the driver."""
    if source is not None:
        source.install()
    try:
        return load_rule(path, args, timeout_seconds)
    except UsageError as error:
        raise UsageError(
            f"{error} (this is a role's process, whose machine must have the module too: install it there, "
            "or start with Ray's runtime_env, working_dir or py_modules)"
        ) from error
