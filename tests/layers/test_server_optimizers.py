"""Server optimisers against the papers' formulas, written out coordinate by coordinate in Python's floats."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.layers.server_optimizers import (
    SCHEDULES,
    SERVER_OPTIMIZERS,
    ConstantRate,
    CosineDecay,
    ExponentialDecay,
    FedAdagrad,
    FedAdam,
    FedYogi,
    ServerSGD,
    ServerState,
    StepDecay,
    polynomial_average,
    server_optimizer,
)

rates = st.floats(1e-4, 10.0)
weights = st.floats(0.0, 0.999)
small = st.floats(1e-6, 1.0)
schedules = st.one_of(
    st.just(ConstantRate()),
    st.builds(ExponentialDecay, decay=st.floats(0.01, 1.0), rounds=st.integers(1, 50)),
    st.builds(CosineDecay, rounds=st.integers(1, 50), floor=st.floats(0.0, 1.0)),
    st.builds(StepDecay, rounds=st.integers(1, 50), decay=st.floats(0.01, 1.0)),
)
common = {"learning_rate": rates, "schedule": schedules}
adaptive = {**common, "beta_1": weights, "tau": small}
optimizers = st.one_of(
    st.builds(ServerSGD, **common, momentum=weights),
    st.builds(FedAdagrad, **adaptive),
    st.builds(FedYogi, **adaptive, beta_2=weights),
    st.builds(FedAdam, **adaptive, beta_2=weights),
)


def deltas_of(seed: int, rounds: int, dimension: int) -> np.ndarray:
    """Of any size and sign, with zeros among them."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rounds, dimension)) * 10.0 ** rng.integers(-6, 3, (rounds, dimension))
    return np.where(rng.random((rounds, dimension)) < 0.1, 0.0, values).astype(np.float32)


def run(optimizer, deltas, start):
    state, model, models = optimizer.init(deltas.shape[1]), start, []
    for number, delta in enumerate(deltas):
        state, model = optimizer.step(state, model, delta, number)
        models.append(model)
    return state, models


def factor_by_hand(schedule, t: int) -> float:
    match schedule:
        case ConstantRate():
            return 1.0
        case ExponentialDecay(decay, rounds):
            return math.exp(t / rounds * math.log(decay))
        case CosineDecay(rounds, floor):
            if t >= rounds:
                return floor
            return floor + 0.5 * (1.0 - floor) * (1.0 + math.cos(t / rounds * math.pi))
        case StepDecay(rounds, decay):
            product = 1.0
            for _ in range(t // rounds):
                product *= decay
            return product
    raise AssertionError(schedule)


def model_by_hand(optimizer, deltas, start) -> list[float]:
    """Algorithm 2 of Reddi et al. 2021 (FedAvgM for SGD), one coordinate at a time."""
    models = []
    for coordinate in range(deltas.shape[1]):
        x = float(start[coordinate])
        m = 0.0
        v = 0.0 if isinstance(optimizer, ServerSGD) else optimizer.tau**2
        for t in range(deltas.shape[0]):
            g = float(deltas[t, coordinate])
            eta = optimizer.learning_rate * factor_by_hand(optimizer.schedule, t)
            if isinstance(optimizer, ServerSGD):
                m = optimizer.momentum * m + g
                x += eta * m
            else:
                m = optimizer.beta_1 * m + (1 - optimizer.beta_1) * g
                if isinstance(optimizer, FedAdagrad):
                    v = v + g * g
                elif isinstance(optimizer, FedYogi):
                    sign = (v > g * g) - (v < g * g)
                    v = v - (1 - optimizer.beta_2) * g * g * sign
                else:
                    v = optimizer.beta_2 * v + (1 - optimizer.beta_2) * g * g
                x += eta * m / (math.sqrt(v) + optimizer.tau)
            x = float(np.float32(x))
        models.append(x)
    return models


@given(optimizer=optimizers, seed=st.integers(0, 10**6), rounds=st.integers(1, 12))
def test_each_step_is_the_formula_of_the_paper(optimizer, seed, rounds):
    deltas = deltas_of(seed, rounds, 5)
    start = deltas_of(seed + 1, 1, 5)[0]
    _, models = run(optimizer, deltas, start)
    expected = np.array(model_by_hand(optimizer, deltas, start))
    scale = max(1e-6, float(np.abs([start, *models]).max()))
    np.testing.assert_allclose(models[-1], expected, rtol=1e-6, atol=1e-6 * scale)
    assert models[-1].dtype == np.float32


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        # tau = 0.5, v begins at 0.25, deltas 2 then -1, eta = 1; by hand:
        (FedAdagrad(learning_rate=1, tau=0.5), 2 / (math.sqrt(4.25) + 0.5) - 1 / (math.sqrt(5.25) + 0.5)),
        # beta_1 = beta_2 = 0.5: m = 1, 0; Yogi's v = 0.25 + 2 = 2.25, then 2.25 - 0.5
        (FedYogi(learning_rate=1, tau=0.5, beta_1=0.5, beta_2=0.5), 1 / (1.5 + 0.5)),
        # Adam's v = 0.125 + 2 = 2.125
        (FedAdam(learning_rate=1, tau=0.5, beta_1=0.5, beta_2=0.5), 1 / (math.sqrt(2.125) + 0.5)),
        (ServerSGD(momentum=0.5), 2.0 + (0.5 * 2.0 - 1.0)),
    ],
)
def test_two_rounds_worked_out_by_hand(optimizer, expected):
    _, models = run(optimizer, np.array([[2.0], [-1.0]], np.float32), np.zeros(1))
    assert models[-1][0] == pytest.approx(expected, rel=1e-6)


def test_defaults_are_those_of_the_papers_experiments():
    assert (FedAdam().beta_1, FedAdam().beta_2, FedAdam().tau) == (0.9, 0.99, 1e-3)
    assert (FedYogi().beta_1, FedYogi().beta_2, FedYogi().tau) == (0.9, 0.99, 1e-3)
    assert (FedAdagrad().beta_1, FedAdagrad().tau) == (0.0, 1e-3)
    assert FedAdam().init(3).second_moment.tolist() == [1e-3**2] * 3
    assert FedAdam().init(3).momentum.tolist() == [0.0] * 3


@given(optimizer=optimizers, seed=st.integers(0, 10**6))
def test_nothing_given_is_changed_and_nothing_given_back_can_be(optimizer, seed):
    delta, model = deltas_of(seed, 2, 4)
    kept = delta.copy(), model.copy()
    state = optimizer.init(4)
    before = state.momentum.copy(), state.second_moment.copy()
    following, after = optimizer.step(state, model, delta, 3)
    assert np.array_equal(delta, kept[0])
    assert np.array_equal(model, kept[1])
    assert np.array_equal(state.momentum, before[0])
    assert np.array_equal(state.second_moment, before[1])
    for array in (after, following.momentum, following.second_moment, state.momentum, state.second_moment):
        assert not array.flags.writeable
        assert not np.shares_memory(array, model)
    with pytest.raises(FrozenInstanceError):
        following.momentum = delta


def test_a_state_holds_copies_of_what_it_is_made_of():
    momentum = np.zeros(2)
    state = ServerState(momentum, np.zeros(0))
    momentum[0] = 5.0
    assert state.momentum[0] == 0.0


@given(
    optimizer=optimizers,
    place=st.integers(0, 3),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    which=st.sampled_from(["model", "delta"]),
)
def test_what_is_not_finite_is_refused(optimizer, place, value, which):
    given_vectors = {"model": np.ones(4, np.float32), "delta": np.ones(4, np.float32)}
    given_vectors[which][place] = value
    with pytest.raises(UsageError, match=rf"{which}: not finite at \[{place}\]"):
        optimizer.step(optimizer.init(4), **given_vectors, round_id=0)
    with pytest.raises(UsageError, match="momentum: not finite"):
        ServerState(np.array([value]), np.zeros(0))


@pytest.mark.parametrize("optimizer", [kind() for kind in SERVER_OPTIMIZERS.values()])
@pytest.mark.parametrize(
    "vector",
    [None, "text", [1j, 1j], ["1", "2"], [True, False], [[1.0, 2.0]], [1.0], [], [10**400, 1], {}, [[1], 2]],
)
def test_other_vectors_are_refused(optimizer, vector):
    state, good = optimizer.init(2), np.zeros(2, np.float32)
    with pytest.raises(UsageError, match="model"):
        optimizer.step(state, vector, good, 0)
    with pytest.raises(UsageError, match="delta"):
        optimizer.step(state, good, vector, 0)


def test_a_step_out_of_float32_is_refused_and_may_be_made_again():
    optimizer = ServerSGD()
    state, most = optimizer.init(1), np.full(1, np.finfo(np.float32).max)
    with pytest.raises(UsageError, match="leaves the range of float32"):
        optimizer.step(state, most, most, 0)
    _, model = optimizer.step(state, most, -most, 0)
    assert model.tolist() == [0.0]


@pytest.mark.parametrize("round_id", [-1, 1.0, True, None, "0", 2**63])
def test_a_round_is_a_whole_number_from_zero(round_id):
    optimizer = FedAdam()
    with pytest.raises(UsageError, match="round_id"):
        optimizer.step(optimizer.init(1), [0.0], [0.0], round_id)


def test_a_state_of_another_optimizer_or_dimension_is_refused():
    with pytest.raises(UsageError, match="state: was not made by a FedAdam"):
        FedAdam().step(ServerSGD().init(2), [0.0, 0.0], [0.0, 0.0], 0)
    with pytest.raises(UsageError, match="state: was not made by a ServerSGD"):
        ServerSGD().step(FedYogi().init(2), [0.0, 0.0], [0.0, 0.0], 0)
    with pytest.raises(UsageError, match="model: the shape"):
        FedAdam().step(FedAdam().init(3), [0.0, 0.0], [0.0, 0.0], 0)
    with pytest.raises(UsageError, match="state"):
        FedAdam().step(None, [0.0, 0.0], [0.0, 0.0], 0)
    for dimension in (0, -1, 1.5, True, None):
        with pytest.raises(UsageError, match="dimension"):
            FedAdam().init(dimension)


@given(optimizer=optimizers, seed=st.integers(0, 10**6))
def test_the_same_arguments_give_the_same_bytes(optimizer, seed):
    deltas, start = deltas_of(seed, 4, 3), deltas_of(seed + 1, 1, 3)[0]
    once, models = run(optimizer, deltas, start)
    state, stopped = run(optimizer, deltas[:2], start)
    state, model = pickle.loads(pickle.dumps((state, stopped[-1])))
    for number in (2, 3):
        state, model = pickle.loads(pickle.dumps(optimizer)).step(state, model, deltas[number], number)
    assert model.tobytes() == models[-1].tobytes()
    assert state.momentum.tobytes() == once.momentum.tobytes()
    assert state.second_moment.tobytes() == once.second_moment.tobytes()


@given(seed=st.integers(0, 10**6), doublings=st.integers(-3, 3))
def test_plain_sgd_adds_the_delta(seed, doublings):
    """To the bits of float32 where the learning rate is a power of two, as the quickstart's 2 is."""
    delta, model = deltas_of(seed, 2, 6)
    optimizer = ServerSGD(learning_rate=2.0**doublings)
    _, after = optimizer.step(optimizer.init(6), model, delta, 0)
    assert after.tobytes() == (model + np.float32(2.0**doublings) * delta).tobytes()


@given(schedule=schedules, round_id=st.integers(0, 2**63 - 1))
def test_a_schedule_lies_between_zero_and_one_and_begins_at_one(schedule, round_id):
    assert 0.0 <= schedule.factor(round_id) <= 1.0
    assert schedule.factor(0) == 1.0


@given(schedule=schedules, round_id=st.integers(0, 200))
def test_a_schedule_is_its_formula_and_never_rises(schedule, round_id):
    assert schedule.factor(round_id) == pytest.approx(factor_by_hand(schedule, round_id), rel=1e-9, abs=1e-12)
    assert schedule.factor(round_id + 1) <= schedule.factor(round_id) + 1e-15


@pytest.mark.parametrize(
    "make",
    [
        lambda: ServerSGD(learning_rate=0.0),
        lambda: ServerSGD(learning_rate=math.inf),
        lambda: ServerSGD(learning_rate="1"),
        lambda: ServerSGD(momentum=1.0),
        lambda: ServerSGD(momentum=-0.1),
        lambda: ServerSGD(schedule=0.5),
        lambda: FedAdam(tau=0.0),
        lambda: FedAdam(beta_1=1.0),
        lambda: FedAdam(beta_2=1.0),
        lambda: FedYogi(beta_2=math.nan),
        lambda: FedAdagrad(tau=None),
        lambda: ExponentialDecay(decay=0.0),
        lambda: ExponentialDecay(decay=1.1),
        lambda: CosineDecay(rounds=0),
        lambda: CosineDecay(rounds=10, floor=1.5),
        lambda: StepDecay(rounds=2.5),
    ],
)
def test_a_setting_that_cannot_work_is_refused(make):
    with pytest.raises(UsageError, match="is not accepted"):
        make()


def test_an_optimizer_is_made_by_name():
    for name, kind in SERVER_OPTIMIZERS.items():
        assert server_optimizer(name) == kind()
    made = server_optimizer("sgd", momentum=0.9, schedule={"name": "step", "rounds": 5})
    assert made == ServerSGD(momentum=0.9, schedule=StepDecay(rounds=5))
    assert replace(made, momentum=0.0).schedule == StepDecay(rounds=5)


@pytest.mark.parametrize(
    ("name", "given_settings", "told"),
    [
        ("adamw", {}, "one of sgd, fedadagrad, fedyogi, fedadam"),
        (None, {}, "one of sgd"),
        (["sgd"], {}, "one of sgd"),
        ("sgd", {"tau": 1.0}, "sgd takes learning_rate, schedule, momentum"),
        ("fedadam", {"schedule": {"name": "linear"}}, f"one of {', '.join(SCHEDULES)}"),
        ("fedadam", {"schedule": {}}, "schedule: None is not accepted"),
        ("fedadam", {"schedule": {"name": "cosine"}}, "needs rounds"),
        ("fedadam", {"schedule": {"name": "constant", 3: 1}}, "takes no settings"),
        ("fedadam", {"schedule": "cosine"}, "schedule: 'cosine' is not accepted"),
    ],
)
def test_other_names_and_settings_are_refused(name, given_settings, told):
    with pytest.raises(UsageError, match=told):
        server_optimizer(name, **given_settings)


@pytest.mark.parametrize("name", ["scaffold", "SCAFFOLD", "Scaffold"])
def test_scaffold_is_refused_by_name_and_says_why(name):
    with pytest.raises(UsageError, match=r"control variates.*which the privacy budget has not paid for"):
        server_optimizer(name)
    with pytest.raises(UsageError, match="proximal_gradient"):
        server_optimizer("fedprox")


@given(seed=st.integers(0, 10**6), rounds=st.integers(1, 30), decay=st.integers(0, 4))
def test_the_polynomial_average_weighs_the_newest_model_by_a_power_of_its_round(seed, rounds, decay):
    models = deltas_of(seed, rounds, 2)
    average = np.full(2, 7.0, np.float32)
    for number, model in enumerate(models, 1):
        average = polynomial_average(average, model, number, float(decay))
    t = np.arange(1, rounds + 1)
    power = np.prod([t + i for i in range(decay)], axis=0) * np.ones(rounds)
    expected = power @ models.astype(np.float64) / power.sum()
    np.testing.assert_allclose(average, expected, rtol=1e-4, atol=1e-5 * np.abs(models).max() + 1e-30)
