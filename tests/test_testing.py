"""`scarcity_ray.testing.check_rule` finds a planted fault of each kind, and none in the package's rules."""

from __future__ import annotations

import random
import time
from typing import ClassVar

import numpy as np
import pytest

from scarcity_ray import AggregationRule, UsageError, aggregate
from scarcity_ray.privacy.sensitivity import rule_sensitivity
from scarcity_ray.robust import least_rows
from scarcity_ray.testing import RuleFaulty, check_rule


class Fine(AggregationRule):
    """The mean, which each planted fault below changes in one way."""

    translation_equivariant = True
    scale_equivariant = True
    seen: ClassVar[list[float]] = []

    def __init__(self) -> None:
        self.calls = 0

    def least_rows(self, num_byzantine: int) -> int:
        return 2 * num_byzantine + 1

    def aggregate(self, rows, num_byzantine, rng):
        return rows.mean(axis=0, dtype=np.float64)


class Raises(Fine):
    def aggregate(self, rows, num_byzantine, rng):
        return rows[len(rows)]


class Exits(Fine):
    def aggregate(self, rows, num_byzantine, rng):
        raise SystemExit(3)


class Hangs(Fine):
    def aggregate(self, rows, num_byzantine, rng):
        time.sleep(2.0)


class WrongShape(Fine):
    def aggregate(self, rows, num_byzantine, rng):
        return rows.mean(axis=1)


class WrongType(Fine):
    def aggregate(self, rows, num_byzantine, rng):
        return rows.mean(axis=0).tolist()


class Integers(Fine):
    def aggregate(self, rows, num_byzantine, rng):
        return rows.mean(axis=0).astype(np.int64)


class DividesByZero(Fine):
    def aggregate(self, rows, num_byzantine, rng):
        apart = rows - rows.mean(axis=0)
        with np.errstate(all="ignore"):
            return (rows / np.abs(apart).sum(axis=1)[:, np.newaxis]).mean(axis=0)


class Writes(Fine):
    def aggregate(self, rows, num_byzantine, rng):
        rows -= rows.mean(axis=0)
        return rows[0]


class Remembers(Fine):
    def aggregate(self, rows, num_byzantine, rng):
        self.calls += 1
        return rows.mean(axis=0) / self.calls


class RemembersInItsClass(Fine):
    def aggregate(self, rows, num_byzantine, rng):
        self.seen.append(float(rows.sum()))
        return rows.mean(axis=0) + np.float32(len(self.seen) * 1e-3)


class DrawsOfItsOwn(Fine):
    def aggregate(self, rows, num_byzantine, rng):
        return rows.mean(axis=0) + np.random.default_rng().normal(size=rows.shape[1])


class DrawsGlobally(Fine):
    def aggregate(self, rows, num_byzantine, rng):
        np.random.rand()  # noqa: NPY002
        return rows.mean(axis=0)


class ShufflesGlobally(Fine):
    def aggregate(self, rows, num_byzantine, rng):
        random.random()
        return rows.mean(axis=0)


class NoLeast(Fine):
    def least_rows(self, num_byzantine):
        return 0


class LeastFalls(Fine):
    def least_rows(self, num_byzantine):
        return 9 - num_byzantine


class First(Fine):
    def aggregate(self, rows, num_byzantine, rng):
        return rows[0]


class NotMoved(Fine):
    scale_equivariant = False

    def aggregate(self, rows, num_byzantine, rng):
        return np.tanh(rows).mean(axis=0)


class NotScaled(Fine):
    translation_equivariant = False

    def aggregate(self, rows, num_byzantine, rng):
        return rows.mean(axis=0) * np.linalg.norm(rows)


class Claims(Fine):
    sensitivity_reference = "a wrong proof"

    def sensitivity(self, num_rows, num_byzantine, clip_norm):
        return 2.0 * clip_norm / (num_rows + 1)


class ClaimsAtOneClipNorm(Fine):
    sensitivity_reference = "a proof for C = 1"

    def sensitivity(self, num_rows, num_byzantine, clip_norm):
        return 2.0 / num_rows


class ClaimsWithoutProof(Claims):
    sensitivity_reference = " "


class ClaimsForThePick(Fine):
    """Krum moves from one cluster to another by one row; its author takes it for a mean."""

    translation_equivariant = scale_equivariant = permutation_invariant = False
    sensitivity_reference = "krum averages, does it not"

    def least_rows(self, num_byzantine):
        return 2 * num_byzantine + 3

    def sensitivity(self, num_rows, num_byzantine, clip_norm):
        return 1.5 * clip_norm

    def aggregate(self, rows, num_byzantine, rng):
        return aggregate(rows, method="krum", num_byzantine=num_byzantine).vector


PLANTED = {
    Raises: "it raised IndexError",
    Exits: "it raised SystemExit",
    WrongShape: "it gave shape",
    WrongType: "it gave a list",
    Integers: "it gave an array of int64",
    DividesByZero: "not finite",
    Writes: "it wrote to its rows",
    Remembers: "its object keeps something",
    RemembersInItsClass: "outside its object",
    DrawsOfItsOwn: "draws randomness of its own",
    DrawsGlobally: "drew from a global random state",
    ShufflesGlobally: "drew from a global random state",
    NoLeast: "least_rows(0) gave 0",
    LeastFalls: "least_rows must not fall",
    First: "claims permutation_invariant",
    NotMoved: "claims translation_equivariant",
    NotScaled: "claims scale_equivariant",
    Claims: "more than the stated sensitivity",
    ClaimsAtOneClipNorm: "clip norm 1000",
    ClaimsWithoutProof: "without saying where that is proved",
    ClaimsForThePick: "more than the stated sensitivity",
}


@pytest.mark.long
@pytest.mark.parametrize("faulty", PLANTED, ids=lambda cls: cls.__name__)
def test_a_planted_fault_is_found(faulty):
    with pytest.raises(RuleFaulty) as refused:
        check_rule(faulty, most_byzantine=1)
    assert PLANTED[faulty] in str(refused.value)
    assert isinstance(refused.value, AssertionError)


def test_a_rule_that_hangs_is_found_within_its_time():
    with pytest.raises(RuleFaulty, match="did not end within"):
        check_rule(Hangs, timeout_seconds=0.05)


class Restated(AggregationRule):
    """A rule of the package's, as if it came from outside."""

    sensitivity_reference = "docs/sensitivity.md"

    def __init__(self, method: str) -> None:
        self.method = method
        self.permutation_invariant = method != "krum"  # two rows may be each other's nearest: a tie

    def least_rows(self, num_byzantine: int) -> int:
        return least_rows(self.method, num_byzantine)

    def sensitivity(self, num_rows: int, num_byzantine: int, clip_norm: float) -> float:
        return rule_sensitivity(
            self.method, num_rows=num_rows, num_byzantine=num_byzantine, clip_norm=clip_norm
        )

    def aggregate(self, rows, num_byzantine, rng):
        return aggregate(rows, method=self.method, num_byzantine=num_byzantine).vector


@pytest.mark.long
@pytest.mark.parametrize("method", ["mean", "trimmed_mean", "median", "krum"])
def test_the_packages_own_rules_pass(method):
    report = check_rule(Restated, {"method": method}, most_byzantine=1)
    assert all(movement.found <= movement.stated * 1.0001 for movement in report.movements)
    if method in ("mean", "trimmed_mean"):  # their bounds are reached
        assert all(movement.found > 0.99 * movement.stated for movement in report.movements)
    if method != "mean":
        assert report.errors["sign_flip"] < report.mean_errors["sign_flip"]
    assert "rule Restated: no fault found" in str(report)


def test_an_object_a_class_and_a_path_are_rules_and_nothing_else_is():
    one, other = (check_rule(rule, most_byzantine=0) for rule in (Fine(), Fine))
    assert one == other
    with pytest.raises(UsageError, match="derive scarcity_ray"):
        check_rule(dict)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no module 'no_such_module'"):
        check_rule("no_such_module:Rule")
    with pytest.raises(UsageError, match="made already"):
        check_rule(Fine(), {"a": 1})


@pytest.mark.long
def test_the_same_seed_finds_the_same():
    one, other, another = (check_rule(Fine, most_byzantine=0, seed=seed) for seed in (1, 1, 2))
    assert one == other != another
