"""FedProx's term: the gradient of its penalty, and what it does to training."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray_client import UsageError, proximal_gradient


@given(seed=st.integers(0, 10**6), mu=st.floats(0.0, 10.0))
def test_it_is_the_gradient_of_the_penalty(seed, mu):
    here, start = np.random.default_rng(seed).standard_normal((2, 3, 2))
    found = proximal_gradient(here, start, mu)
    for place in np.ndindex(here.shape):
        step = np.zeros_like(here)
        step[place] = 1e-4
        above, below = (mu / 2 * np.sum((here + sign * step - start) ** 2) for sign in (1, -1))
        assert found[place] == pytest.approx((above - below) / 2e-4, abs=1e-6)


def test_a_client_stays_where_loss_and_penalty_balance():
    """Of the loss (w - 4)^2 / 2 from a start of 0, the minimum with the penalty is 4 / (1 + mu)."""
    for mu in (0.0, 1.0, 3.0):
        start = np.zeros(1, np.float32)
        w = start.copy()
        for _ in range(300):
            w -= np.float32(0.1) * ((w - 4) + proximal_gradient(w, start, mu))
        assert w.dtype == np.float32
        assert w[0] == pytest.approx(4 / (1 + mu), rel=1e-5)


def test_it_changes_nothing_given_and_refuses_what_it_cannot_weigh():
    here, start = np.ones(2), np.zeros(2)
    proximal_gradient(here, start, 0.5)
    assert here.tolist() == [1, 1]
    assert start.tolist() == [0, 0]
    for mu in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="mu"):
            proximal_gradient(here, start, mu)
    with pytest.raises(UsageError, match="start: the shape"):
        proximal_gradient(here, np.zeros((2, 1)), 0.5)
