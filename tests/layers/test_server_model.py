"""The server's model from release to release: optimiser, average, and deltas under a moving clip norm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.layers.server_model import ServerModel
from scarcity_ray.layers.server_optimizers import FedAdam, ServerSGD, polynomial_average, server_optimizer

ONE = np.ones(1, np.float32)


@given(
    clip_norms=st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0, 10.0]) | st.floats(0.1, 10), max_size=8),
    seed=st.integers(0, 99),
)
def test_each_delta_counts_as_clipped_to_the_least_clip_norm_since_its_release(clip_norms, seed):
    rng = np.random.default_rng(seed)
    start, deltas = rng.standard_normal(3), rng.standard_normal((len(clip_norms), 3)).astype(np.float32)
    model, told = ServerModel.begin(start, ServerSGD(learning_rate=2.0)), [*clip_norms, 0.7]
    for number, delta in enumerate(deltas):
        model = model.step(delta, (told[number], told[number + 1]))
        since = [min(told[i : number + 2]) / told[i] for i in range(number + 1)]
        moved = 2.0 * np.array(since) @ deltas[: number + 1]
        np.testing.assert_allclose(model.current, start + moved, atol=1e-5)
        norms = [norm for norm, _ in model.parts]
        assert norms == sorted(norms)
        assert norms[-1] <= told[number + 1]


def test_while_the_clip_norm_rises_deltas_count_in_full():
    rising, plain = (ServerModel.begin(np.zeros(2), averaging_decay=3.0) for _ in range(2))
    for number in range(5):
        delta = np.array([1.0, number], np.float32)
        rising, plain = rising.step(delta, (1.0 + number, 2.0 + number)), plain.step(delta)
    np.testing.assert_allclose(rising.handed_out, plain.handed_out, rtol=1e-6)


def test_averaging_weighs_late_models_by_a_power_of_their_round():
    model = ServerModel.begin(100 * ONE, averaging_decay=3.0)
    for _ in range(50):
        model = model.step(ONE)
    t = np.arange(1, 51)
    weights = t * (t + 1) * (t + 2)  # proportional to them: the mean of t under them is
    assert model.current[0] == 150
    assert model.handed_out[0] == pytest.approx(100 + (weights * t).sum() / weights.sum(), rel=1e-4)


@pytest.mark.parametrize(
    "optimizer",
    [FedAdam(), ServerSGD(momentum=0.9), server_optimizer("sgd", schedule={"name": "step", "rounds": 1})],
)
@pytest.mark.parametrize("clip_norms", [None, (1.0, 2.0)])
def test_without_averaging_what_clients_train_from_is_handed_out(optimizer, clip_norms):
    model, (state, vector) = ServerModel.begin(ONE, optimizer), (optimizer.init(1), ONE)
    for number in range(3):
        model = model.step(ONE, clip_norms)
        state, vector = optimizer.step(state, vector, ONE, number)
        np.testing.assert_allclose(model.current, vector, rtol=1e-6)
        assert model.handed_out is model.current


def test_nothing_given_is_changed_by_a_step():
    start, delta = np.zeros(2, np.float32), np.ones(2, np.float32)
    first = ServerModel.begin(start, averaging_decay=1.0)
    second = first.step(delta, (2.0, 1.0)).step(delta, (1.0, 0.5))
    assert (first.num_releases, second.num_releases) == (0, 2)
    assert not start.any()
    assert not first.current.any()
    assert delta.tolist() == [1.0, 1.0]
    for vector in (second.current, second.handed_out):
        with pytest.raises(ValueError, match="read-only"):
            vector[0] = 1.0
    np.testing.assert_array_equal(
        second.handed_out, polynomial_average(first.step(delta, (2.0, 1.0)).current, second.current, 2, 1.0)
    )


@pytest.mark.parametrize("decay", [-1.0, np.nan, np.inf, "x", True])
def test_an_averaging_decay_that_is_no_number_from_zero_is_refused(decay):
    with pytest.raises(UsageError, match="averaging_decay"):
        ServerModel.begin(ONE, averaging_decay=decay)
