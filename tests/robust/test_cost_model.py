from __future__ import annotations

import pytest

from scarcity_ray.robust import estimated_seconds, get_pre_aggregation, get_rule
from scarcity_ray.robust.rules import RULES


@pytest.mark.parametrize("method", sorted(RULES))
def test_the_estimate_grows_with_rows_and_columns_and_pre_aggregation_never_makes_it_less(method):
    rule, nnm = get_rule(method), get_pre_aggregation("nnm")
    for n in (1, 2, 20, 300):
        for d in (1, 10**6):
            plain = estimated_seconds(rule, n, d)
            assert 0.0 <= plain < estimated_seconds(rule, n + 1, d)
            assert plain < estimated_seconds(rule, n, 2 * d)
            assert plain <= estimated_seconds(rule, n, d, [nnm])
