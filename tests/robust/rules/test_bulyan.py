from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.robust import inline_blocks, pairwise
from scarcity_ray.robust.rules import get_rule
from scarcity_ray.robust.rules.base import Setting
from scarcity_ray.robust.rules.bulyan import (
    MOST_PATHS,
    MOST_STEPS,
    ShrinkingScores,
    bulyan_selection,
    settled_selection,
)
from scarcity_ray.robust.rules.krum import krum_scores


def distances_for(seed, n, d=5):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)) if seed % 2 else rng.integers(-2, 3, (n, d))
    rows = rows * np.where(rng.random((n, 1)) < 0.2, 1e20, 1.0)
    rows[rng.integers(n)] = rows[rng.integers(n)]
    return pairwise(inline_blocks(rows.astype(np.float32)))


@given(st.integers(0, 2**32 - 1), st.integers(3, 25), st.data())
def test_after_any_removals_scores_are_those_computed_anew_over_the_rows_left(seed, n, data):
    distances = distances_for(seed, n)
    neighbours = data.draw(st.integers(1, n - 1))
    running = ShrinkingScores(distances, neighbours)
    order = np.random.default_rng(seed).permutation(n)
    for removed in range(neighbours):
        left = np.sort(order[removed:])
        anew = krum_scores(distances[np.ix_(left, left)], neighbours - removed)
        assert (np.flatnonzero(running.left) == left).all()
        np.testing.assert_allclose(running.scores[left], anew, rtol=1e-13)
        if running.num_neighbours > 1:
            running.remove(int(order[removed]))


@pytest.mark.parametrize(("n", "f"), [(3, 0), (7, 1), (30, 4), (120, 24), (303, 75)])
def test_bulyan_on_running_scores_selects_what_bulyan_on_scores_computed_anew_selects(n, f):
    for seed in range(4):
        distances = distances_for(seed, n, d=40)
        left = list(range(n))
        expected = []
        for _ in range(n - 2 * f):
            scores = krum_scores(distances[np.ix_(left, left)], min(max(1, len(left) - f - 2), len(left) - 1))
            expected.append(left.pop(int(np.argmax(scores <= scores.min() * (1 + 2.0**-42)))))
        assert bulyan_selection(distances, f)[0] == expected


@pytest.mark.parametrize("error", [3e-5, 1e-4])
def test_of_rows_picked_in_doubtful_order_only_those_at_the_border_are_measured_again(error):
    """However many share the lead, nothing is asked if all of them are picked in the end."""
    n, f = 60, 12
    questions, rivals = 0, 0
    for seed in range(12):
        rows = np.random.default_rng(seed).standard_normal((n, 200)).astype(np.float32)
        distances = pairwise(inline_blocks(rows))
        asked = []

        def exact(indices, distances=distances, asked=asked):
            asked.append(len(indices))
            return distances[indices]

        settled = get_rule("bulyan").settle(distances, error, Setting(n, f), exact)
        assert list(settled.rows) == sorted(bulyan_selection(distances, f)[0])
        assert sum(asked) <= n // 4
        questions += bool(asked)
        rivals += not approximate_order_is_known(distances, f, error)
    assert questions <= 4 < rivals


def approximate_order_is_known(distances, f, error):
    """Whether no other row's score came within the error of the one that was picked, in any step."""
    left = list(range(len(distances)))
    for _ in range(len(distances) - 2 * f):
        scores = krum_scores(distances[np.ix_(left, left)], len(left) - f - 2)
        if np.sort(scores)[1] * (1 - error) <= scores.min() * (1 + error):
            return False
        left.pop(int(np.argmin(scores)))
    return True


@pytest.mark.parametrize("spread", [1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize("pairs", [0, 5, 25])
def test_rows_whose_scores_nearly_tie_cost_no_more_than_a_few_steps_a_row(monkeypatch, spread, pairs):
    """Pairs of rows that nearly tie keep several paths open for long; all of them at once, many paths."""
    n, f, removed = 60, 12, []
    remove = ShrinkingScores.remove

    def counting(self, row):
        removed.append(row)
        remove(self, row)

    monkeypatch.setattr(ShrinkingScores, "remove", counting)
    rng = np.random.default_rng(pairs)
    ranks = np.concatenate([np.repeat(np.arange(pairs), 2), np.arange(2 * pairs, n)])
    distances = 1.0 + spread * np.add.outer(ranks, ranks) + 1e-7 * rng.random((n, n))
    distances = np.triu(distances, 1) + np.triu(distances, 1).T
    for error in (1e-8, 1e-6, 1e-4):
        removed.clear()
        picked, rows = settled_selection(distances, f, np.full(n, error))
        assert len(removed) <= MOST_STEPS * n + MOST_PATHS + n
        assert (picked is None) == (len(rows) > 0)
        assert picked is None or picked == sorted(bulyan_selection(distances, f)[0])
