"""What the Layer 1 benchmark compares is the same rule on both sides, and every rule is in it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks._textbook import TEXTBOOK
from benchmarks._timing import CASES, byzantine
from benchmarks.layer1 import measure_size
from scarcity_ray.robust import aggregate
from scarcity_ray.robust.rules import RULES


@pytest.mark.parametrize("name", sorted(TEXTBOOK))
def test_a_textbook_version_gives_what_the_rule_gives(name):
    n = 23
    method, pre = CASES[name]
    f = byzantine(method, n)
    rows = np.random.default_rng(4).standard_normal((n, 300)).astype(np.float32)
    rows[:f] *= 3.0
    ours = aggregate(rows, method=method, num_byzantine=f, pre=pre).vector
    tolerance = 1e-3 if name == "geometric_median" else 1e-5
    np.testing.assert_allclose(TEXTBOOK[name](rows.astype(np.float64), f), ours, rtol=0, atol=tolerance)


def test_every_rule_is_measured_and_each_row_has_what_a_row_has():
    measured = list(measure_size(20, 300))
    assert set(RULES) - {"fedavg", "weighted"} <= {row["name"] for row in measured}
    assert set(CASES) <= {row["name"] for row in measured}
    for row in measured:
        assert set(row) == {"name", "n", "d", "seconds", "versus", "ratio"}
        assert row["ratio"] > 0.0
