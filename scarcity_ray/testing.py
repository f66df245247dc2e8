"""Tests for a rule of one's own: `check_rule` tries it as a federation would, and as an attacker would.

It needs no test framework; under pytest a faulty rule fails the test with a list of its faults::

    def test_my_rule():
        print(check_rule("my_module:MyRule"))

What passes has not been proved. In particular a search that finds no movement above a stated sensitivity is
no proof of it.

Guarantees:
    a_planted_fault_is_found: One of each kind.
    the_packages_own_rules_pass: Restated as rules from outside, at the sensitivity that is proved for them.
    The same seed finds the same.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import stream
from scarcity_ray.errors import RuleFailed, ScarcityError, UsageError
from scarcity_ray.robust.measures.rows import clip_rows, clip_vector, row_norms
from scarcity_ray.robust.rules.plugin import AggregationRule, PluginRule, load_rule
from scarcity_ray.workloads.attacks import (
    Attack,
    Gaussian,
    InnerProductManipulation,
    LittleIsEnough,
    Mimic,
    SignFlip,
    View,
)

Rows = NDArray[np.float32]

CLOSE = 1e-3
"""By this share of the rows' size a result may differ where it should not: float32 sums in another order."""
ROUNDING = 1e-4
"""By this share a movement may exceed a stated sensitivity: float32 again."""
STEPS = 60
"""Steps of one search for the largest movement, after the structured starts."""
ATTACKS: dict[str, Attack] = {
    "sign_flip": SignFlip(),
    "gaussian": Gaussian(),
    "ipm": InnerProductManipulation(),
    "alie": LittleIsEnough(),
    "mimic": Mimic(),
}


class RuleFaulty(ScarcityError, AssertionError):
    """A rule that breaks what a federation asks of it, or what it states itself.

    Attributes:
        rule: Its name.
        faults: A sentence for each.
    """

    def __init__(self, rule: str, faults: tuple[str, ...]) -> None:
        super().__init__(rule, faults)
        self.rule = rule
        self.faults = faults

    def __str__(self) -> str:
        return "\n- ".join([f"rule {self.rule}:", *self.faults])


@dataclass(frozen=True)
class Movement:
    """The largest movement found by replacing one row, of n, for the clip norm 1.

    Attributes:
        found: Distance of the two results, each clipped as Layer 1 clips it.
        stated: The sensitivity that the rule states there, 2 at most.
    """

    num_rows: int
    num_byzantine: int
    found: float
    stated: float


@dataclass(frozen=True)
class RuleReport:
    """What was measured of a rule without faults.

    Attributes:
        movements: For each setting that was searched.
        errors: Under each attack, how far the result is from the honest mean, in root mean square deviations
            of the honest rows, with n = `num_rows` and f = `num_byzantine`. Only reported: how much is too
            much depends on the model.
        mean_errors: The same of the plain mean of the clipped rows.
    """

    rule: str
    movements: tuple[Movement, ...]
    num_rows: int
    num_byzantine: int
    errors: Mapping[str, float]
    mean_errors: Mapping[str, float]

    def __str__(self) -> str:
        lines = [f"rule {self.rule}: no fault found", "largest movement by one row, of clip norm 1:"]
        lines += [
            f"  n = {m.num_rows}, f = {m.num_byzantine}: found {m.found:.3g}, stated {m.stated:.3g}"
            for m in self.movements
        ]
        lines.append(f"error with n = {self.num_rows}, f = {self.num_byzantine} (the plain mean's):")
        lines += [f"  {name}: {e:.3g} ({self.mean_errors[name]:.3g})" for name, e in self.errors.items()]
        return "\n".join(lines)


def check_rule(
    rule: AggregationRule | type[AggregationRule] | str,
    args: Mapping[str, Any] | None = None,
    *,
    num_columns: int = 5,
    most_byzantine: int = 2,
    timeout_seconds: float = 30.0,
    seed: int = 0,
) -> RuleReport:
    """Look for faults in a rule from outside.

    It looks for: an exception, a hang, a wrong shape or type, values that are not finite, a row written to,
    state kept in the object or elsewhere, randomness other than `rng`, an odd least n, an equivariance or
    invariance that is claimed and does not hold, and a row whose replacement moves the result by more than
    the stated sensitivity.

    Args:
        rule: Its class, its import path, or an object, of which a copy is made for each call.
        args: What it is made with, by name; not for an object.
        num_columns: d of the rows that are tried, besides 1.
        most_byzantine: The greatest f tried.
        timeout_seconds: Of one call.
        seed: Of all rows that are tried.

    Raises:
        RuleFaulty: With everything that was found.
        UsageError: If the rule cannot be loaded.
    """
    return _Check(_plugin(rule, args, timeout_seconds), seed, num_columns, most_byzantine).report()


def _plugin(
    rule: AggregationRule | type[AggregationRule] | str, args: Mapping[str, Any] | None, limit: float
) -> PluginRule:
    if isinstance(rule, str):
        return load_rule(rule, args, limit)
    if isinstance(rule, AggregationRule):
        if args:
            raise UsageError("args are for a class or an import path; this rule is made already")
        return PluginRule(type(rule).__name__, partial(copy.deepcopy, rule), limit, None)
    if not inspect.isclass(rule) or not issubclass(rule, AggregationRule):
        raise UsageError(f"{rule!r} is no rule; derive scarcity_ray.AggregationRule")
    cls, given = rule, dict(args or {})
    return PluginRule(cls.__name__, lambda: cls(**copy.deepcopy(given)), limit, None)


class _Check:
    """One run of all checks; `faults` has each once, in the order found."""

    def __init__(self, rule: PluginRule, seed: int, num_columns: int, most_byzantine: int) -> None:
        self.rule, self.seed, self.num_columns = rule, seed, num_columns
        self.most_byzantine = most_byzantine
        self.stated = rule.stated
        self.faults: dict[str, None] = {}

    def report(self) -> RuleReport:
        settings = self._settings()
        for n, f in settings:
            for label, rows in self._inputs(n):
                self._try(label, rows, f)
            if not self.faults:
                self._claims(n, f)
        movements = () if self.faults else tuple(self._movement(n, f) for n, f in settings)
        if self.faults:
            raise RuleFaulty(self.rule.name, tuple(self.faults))
        f = self.most_byzantine
        n = max(self._least(f), 4 * f + 6)
        errors = {name: self._error(attack, n, f, self._run) for name, attack in ATTACKS.items()}
        mean = {name: self._error(attack, n, f, _mean) for name, attack in ATTACKS.items()}
        return RuleReport(self.rule.name, movements, n, f, errors, mean)

    def _fault(self, what: str) -> None:
        self.faults.setdefault(what)

    def _least(self, f: int) -> int:
        return self.rule.least_rows(f)

    def _settings(self) -> list[tuple[int, int]]:
        """The (n, f) that are tried: the least n of each f and a few rows more."""
        try:
            least = [self._least(f) for f in range(self.most_byzantine + 1)]
        except UsageError as error:
            raise RuleFaulty(self.rule.name, (str(error),)) from error
        if least != sorted(least):
            self._fault(f"least_rows must not fall as f grows; for f = 0, 1, ... it gave {least}")
        if least != [self._least(f) for f in range(self.most_byzantine + 1)]:
            self._fault("least_rows must depend on f alone; asked twice, it gave two answers")
        return [(n, f) for f, fewest in enumerate(least) for n in (fewest, fewest + 3)]

    def _inputs(self, n: int) -> Iterator[tuple[str, Rows]]:
        """Rows within the ball of radius 1, as training gives them and as it seldom does."""
        rng = stream(self.seed, "inputs", n)
        for d in dict.fromkeys((self.num_columns, 1)):
            normal = _within(rng.normal(size=(n, d)) / np.sqrt(d))
            yield f"random rows of length {d}", normal
            yield f"n equal rows of length {d}", np.repeat(normal[:1], n, axis=0)
            yield f"rows of zeros of length {d}", np.zeros((n, d), np.float32)
            far = normal * np.float32(1e-6)
            far[0] = np.eye(1, d, dtype=np.float32)[0]
            yield f"tiny rows and a long one of length {d}", far
            yield f"rows of two kinds of length {d}", np.repeat(normal[:2], (n + 1) // 2, axis=0)[:n]

    def _try(self, label: str, rows: Rows, f: int) -> None:
        """One input: what comes back, what is left of the rows, and whether the same comes back again."""
        where = f"n = {len(rows)}, f = {f}, {label}"
        sent, before = rows.copy(), _global_randomness()
        try:
            first = self.rule.whole(sent, f, self._rng())
        except RuleFailed as failed:
            return self._fault(f"{failed.why}{f': {failed.detail}' if failed.detail else ''} ({where})")
        if sent.tobytes() != rows.tobytes():
            self._fault(f"it wrote to its rows; work on a copy, rows.copy() ({where})")
        if _global_randomness() != before:
            self._fault(f"it drew from a global random state; draw from rng alone ({where})")
        other = np.roll(rows, 1, axis=1)[::-1] * np.float32(0.5)
        self._run(other, f)
        if self._run(rows, f).tobytes() != first.tobytes():
            self._fault(
                f"the same rows, f and rng gave another result: it draws randomness of its own, or keeps "
                f"something outside its object ({where})"
            )
            return
        held = self.rule.holding()
        again = [held.whole(given.copy(), f, self._rng()) for given in (rows, other, rows)]
        if again[0].tobytes() != again[2].tobytes():
            self._fault(f"its object keeps something from one call to the next ({where})")

    def _claims(self, n: int, f: int) -> None:
        """The invariance and the equivariances that the rule claims, on rows in general position."""
        rng = stream(self.seed, "claims", n, f)
        rows = _within(rng.normal(size=(n, self.num_columns)) / np.sqrt(self.num_columns)) / np.float32(4.0)
        shift = _within(rng.normal(size=(1, self.num_columns)))[0] / np.float32(4.0)
        plain = self._run(rows, f)
        claimed: list[tuple[str, bool, Rows, Rows]] = [
            ("permutation_invariant", self.stated.permutation_invariant, rows[rng.permutation(n)], plain),
            ("translation_equivariant", self.stated.translation_equivariant, rows + shift, plain + shift),
            ("scale_equivariant", self.stated.scale_equivariant, rows * np.float32(3.0), plain * 3.0),
        ]
        for name, is_claimed, changed, expected in claimed:
            if is_claimed and (apart := _distance(self._run(changed, f), expected)) > CLOSE:
                self._fault(f"it claims {name}, and is off by {apart:.3g} (n = {n}, f = {f})")

    def _movement(self, n: int, f: int) -> Movement:
        """Search for two neighbours whose results are far apart: structured starts, then random steps."""
        try:
            stated = self.rule.sensitivity(n, f, 1.0)
        except UsageError as error:
            self._fault(str(error))
            return Movement(n, f, 0.0, 0.0)
        rng = stream(self.seed, "movement", n, f)
        best = max(self._starts(n, rng), key=partial(self._apart, f))
        found = self._apart(f, best)
        for step in range(STEPS):
            tried = best.copy()
            row = int(rng.integers(n + 1))
            tried[row] += rng.normal(size=tried.shape[1]) * 2.0 ** -(step % 8)
            tried = _within(tried)
            if (apart := self._apart(f, tried)) >= found:
                best, found = tried, apart
        for clip_norm in (1.0, 1e-3, 1e3):
            scaled = best * np.float32(clip_norm)
            bound = self.rule.sensitivity(n, f, clip_norm)
            if (apart := self._apart(f, scaled, clip_norm)) > bound * (1.0 + ROUNDING):
                self._fault(
                    f"one row moves the result by {apart:.4g}, more than the stated sensitivity {bound:.4g} "
                    f"(n = {n}, f = {f}, clip norm {clip_norm:g})"
                )
        return Movement(n, f, found, stated)

    def _starts(self, n: int, rng: np.random.Generator) -> Iterator[Rows]:
        """(n + 1, d) each: n rows, and what the first is replaced by."""
        d = self.num_columns
        axis = np.eye(1, d)[0]
        for ups in {0, 1, n // 2, (n + 1) // 2, n - 1}:
            signs = np.where(np.arange(n) < ups, 1.0, -1.0)
            for size in (1.0, 1e-3):
                rows = np.concatenate([signs[:, np.newaxis] * axis * size, axis[np.newaxis]])
                rows[0] = -axis
                yield _within(rows)
        for _ in range(8):
            rows = rng.normal(size=(n + 1, d))
            yield _within(rows / row_norms(rows.astype(np.float32))[:, np.newaxis])

    def _apart(self, f: int, rows: Rows, clip_norm: float = 1.0) -> float:
        """How far the results for two neighbours are apart: all rows but the last, or but the first."""
        replaced = rows[:-1].copy()
        replaced[0] = rows[-1]
        one, other = (clip_vector(self._run(each, f), clip_norm) for each in (rows[:-1], replaced))
        return _distance(one, other)

    def _error(self, attack: Attack, n: int, f: int, run: Callable[[Rows, int], Rows]) -> float:
        rng = stream(self.seed, "attack", n, f)
        all_rows = _within((0.3 + rng.normal(size=(n, self.num_columns)) * 0.2) / np.sqrt(self.num_columns))
        honest, own = all_rows[f:], all_rows[:f]
        lies = attack.rows(View(own, honest, rng)) if f else own
        result = run(_within(np.concatenate([lies, honest])), f)
        middle = honest.mean(axis=0)
        return _distance(result, middle) / float(np.sqrt(np.mean(row_norms(honest - middle) ** 2)))

    def _run(self, rows: Rows, f: int) -> Rows:
        try:
            return self.rule.whole(rows.copy(), f, self._rng())
        except RuleFailed as failed:
            raise RuleFaulty(self.rule.name, (*self.faults, str(failed))) from failed

    def _rng(self) -> np.random.Generator:
        return stream(self.seed, "rule")


def _within(rows: NDArray[np.floating[Any]] | Sequence[Any]) -> Rows:
    """The rows clipped to norm 1."""
    given = np.asarray(rows, np.float32)
    return clip_rows(given, row_norms(given), 1.0)


def _mean(rows: Rows, f: int) -> Rows:
    mean: Rows = rows.mean(axis=0)
    return mean


def _distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.linalg.norm(np.subtract(one, other, dtype=np.float64)))


def _global_randomness() -> tuple[object, ...]:
    state = np.random.get_state(legacy=False)  # noqa: NPY002
    return state["state"]["key"].tobytes(), state["state"]["pos"], random.getstate()


__all__ = ["Movement", "RuleFaulty", "RuleReport", "check_rule"]
