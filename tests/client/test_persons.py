"""A client's update as the mean over its persons: how far one of them moves it, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray_client import Client, Trained, Workload, train_client
from scarcity_ray_client import persons as persons_module
from scarcity_ray_client.errors import UsageError
from scarcity_ray_client.persons import (
    LinearModel,
    SoftmaxModel,
    TanhMlp,
    local_steps,
    person_gradient,
    person_mean,
    standardise,
)

C = 1.3
MODELS = {
    "logistic": LinearModel("logistic"),
    "least_squares": LinearModel("least_squares", intercept=False),
    "softmax": SoftmaxModel(3),
    "mlp": TanhMlp(4, 3),
}
FEATURES = 3


def data(rng, keys, scale=1.0):
    """Records with these keys: features, and targets that every model takes."""
    return scale * rng.normal(size=(len(keys), FEATURES)), rng.integers(0, 2, len(keys))


def replaced(rng, keys, x, y, scale):
    """The data with person 0 replaced: by somebody with other records, and another number of them."""
    others = keys != 0
    count = int(rng.integers(1, 9))
    new_x, new_y = data(rng, np.zeros(count), scale)
    place = int(rng.integers(0, others.sum() + 1))
    return tuple(
        np.insert(kept[others], [place] * count, new, axis=0)
        for kept, new in ((keys, np.zeros(count, keys.dtype)), (x, new_x), (y, new_y))
    )


@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-3, 1.0, 1e3, 1e200]))
def test_no_person_moves_the_mean_further_than_the_bound(seed, scale):
    rng = np.random.default_rng(seed)
    number = int(rng.integers(2, 8))
    keys = np.concatenate([np.arange(number), rng.integers(0, number, 6)])
    rows = scale * rng.normal(size=(len(keys), 4))
    first = person_mean(rows, keys, clip_norm=C, min_persons=2)
    other_keys = np.concatenate([keys[keys != 0], np.zeros(3, keys.dtype)])
    other_rows = np.concatenate([rows[keys != 0], -scale * rng.normal(size=(3, 4))])
    second = person_mean(other_rows, other_keys, clip_norm=C, min_persons=2)
    assert first.num_persons == second.num_persons == number
    assert np.linalg.norm(first.row - second.row) <= 2 * C / number * (1 + 1e-12)
    assert np.linalg.norm(first.row) <= C * (1 + 1e-12)


@pytest.mark.parametrize("name", MODELS)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.1, 5.0, 1e160]))
def test_no_person_moves_the_gradient_further_than_the_bound(name, seed, scale):
    rng, model = np.random.default_rng(seed), MODELS[name]
    keys = np.concatenate([np.arange(5), rng.integers(0, 5, 5)])
    x, y = data(rng, keys, scale)
    w = rng.normal(size=model.num_parameters(FEATURES))
    other_keys, other_x, other_y = replaced(rng, keys, x, y, scale)
    sides = [
        person_gradient(model, w, *side, clip_norm=C, min_persons=2)
        for side in ((x, y, keys), (other_x, other_y, other_keys))
    ]
    assert np.linalg.norm(sides[0].row - sides[1].row) <= 2 * C / 5 * (1 + 1e-12)


def test_the_bound_is_reached_by_a_single_person():
    rows = np.zeros((10, 2))
    means = []
    for end in (-50.0, 50.0):
        rows[3] = end, 0.0
        means.append(person_mean(rows, clip_norm=C, min_persons=10).row)
    assert np.linalg.norm(means[0] - means[1]) == pytest.approx(2 * C / 10)


@pytest.mark.parametrize("name", MODELS)
def test_a_contribution_is_a_function_of_one_persons_records(name, monkeypatch):
    """To the last bit, whatever else is there, in whatever order, in blocks of any size."""
    rng, model = np.random.default_rng(3), MODELS[name]
    keys = rng.integers(1, 30, 200)
    keys[:3] = 0
    x, y = data(rng, keys)
    w = rng.normal(size=model.num_parameters(FEATURES))
    seen = []
    whole = persons_module._clipped_sum

    def spy(sums, groups, clip_norm, persons=slice(None)):
        if persons.start in (0, None):
            seen.append(sums[0].copy())
        return whole(sums, groups, clip_norm, persons)

    monkeypatch.setattr(persons_module, "_clipped_sum", spy)
    full = person_gradient(model, w, x, y, keys, clip_norm=C, min_persons=2)
    monkeypatch.setattr(persons_module, "BLOCK", 40)
    pieces = person_gradient(model, w, x, y, keys, clip_norm=C, min_persons=2)
    np.testing.assert_allclose(pieces.row, full.row, rtol=1e-12, atol=1e-15)
    assert pieces.clipped_share == full.clipped_share
    for others in (1, 17, 150):
        chosen = np.concatenate([np.arange(3), 3 + rng.permutation(197)[:others]])
        person_gradient(model, w, x[chosen], y[chosen], keys[chosen], clip_norm=C, min_persons=2)
    assert all(one.tobytes() == seen[0].tobytes() for one in seen)


def loss(name, model, w, x, target):
    scores = model.scores(w, x[None])[0]
    if name == "least_squares":
        return 0.5 * (scores - target) ** 2
    if name == "logistic":
        return np.logaddexp(0.0, scores) - target * scores
    return np.logaddexp.reduce(scores) - scores[target]


@pytest.mark.parametrize("name", MODELS)
def test_closed_forms_are_the_gradients(name):
    rng, model = np.random.default_rng(5), MODELS[name]
    x, y = data(rng, np.arange(6))
    w = 0.5 * rng.normal(size=model.num_parameters(FEATURES))
    gradients = model.gradients(w, x, y)
    assert gradients.shape == (6, len(w))
    step = 1e-6
    for record, place in itertools.product(range(6), range(len(w))):
        ends = [w + sign * step * np.eye(len(w))[place] for sign in (1, -1)]
        losses = [loss(name, model, end, x[record], y[record]) for end in ends]
        slope = (losses[0] - losses[1]) / (2 * step)
        assert gradients[record, place] == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("link", ["logistic", "least_squares"])
@given(seed=st.integers(0, 2**32), steps=st.sampled_from([1, 2, 7, 40]), l2=st.sampled_from([0.0, 0.3]))
def test_no_person_moves_several_steps_further_than_the_bound(link, seed, steps, l2):
    """At the greatest rate, with outliers of any size, over many steps."""
    rng, model = np.random.default_rng(seed), LinearModel(link)
    bound, norm = rng.choice([0.05, 1.0, 20.0]), rng.choice([0.3, 2.0])
    rate = 2.0 / (model.curvature * (norm**2 + 1) + l2) * (1 - 1e-12)
    keys = np.concatenate([np.arange(4), rng.integers(0, 4, 4)])
    x, y = data(rng, keys, float(rng.choice([0.5, 100.0])))
    y = y * rng.choice([1.0, 50.0]) if link == "least_squares" else y
    start = rng.normal(size=FEATURES + 1)
    given = {
        "steps": steps,
        "learning_rate": rate,
        "clip_norm": float(bound),
        "feature_norm": float(norm),
        "l2": l2,
        "min_persons": 2,
    }
    first = local_steps(model, start, x, y, keys, **given)
    other_keys, other_x, other_y = replaced(rng, keys, x, y, 100.0)
    second = local_steps(model, start, other_x, other_y, other_keys, **given)
    assert first.contribution_norm == pytest.approx(steps * rate * bound)
    assert np.linalg.norm(first.row - second.row) <= 2 * first.contribution_norm / 4 * (1 + 1e-9)
    if l2 == 0.0:
        assert np.linalg.norm(first.row) <= first.contribution_norm * (1 + 1e-9)


def test_a_step_is_the_gradient_where_nothing_is_clipped():
    rng = np.random.default_rng(1)
    x, y = data(rng, np.arange(50))
    model, w = MODELS["logistic"], rng.normal(size=4)
    given = {"steps": 1, "learning_rate": 0.25, "clip_norm": 50.0, "feature_norm": 2.0, "min_persons": 10}
    step = local_steps(model, w, x, y, np.arange(50) // 2, **given)
    shorter = x * np.minimum(1.0, 2.0 / np.linalg.norm(x, axis=1, keepdims=True))
    once = person_gradient(model, w, shorter, y, np.arange(50) // 2, clip_norm=50.0, min_persons=10)
    np.testing.assert_allclose(step.row, -0.25 * once.row, rtol=1e-12)
    assert (step.clipped_share, once.clipped_share, step.num_persons) == (0.0, 0.0, 25)


STEPS = {"steps": 2, "learning_rate": 0.1, "clip_norm": 1.0, "feature_norm": 1.0, "min_persons": 2}


@pytest.mark.parametrize("name", ["softmax", "mlp"])
def test_models_without_a_proof_take_no_local_steps(name):
    model = MODELS[name]
    x, y = data(np.random.default_rng(0), np.arange(5))
    with pytest.raises(UsageError, match=rf"{type(model).__name__} is not accepted; only LinearModel"):
        local_steps(model, np.zeros(model.num_parameters(FEATURES)), x, y, **STEPS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 4.1}, r"at most 2 / \(beta \+ l2\) = 4 "),
        ({"learning_rate": 0.0}, "a positive number"),
        ({"learning_rate": 3.9, "l2": 0.2}, r"at most 2 / \(beta \+ l2\)"),
        ({"steps": 0}, "a positive int"),
        ({"l2": -1.0}, "a number from 0"),
        ({"feature_norm": float("inf")}, "a positive number"),
        ({"clip_norm": 0.0}, "a positive number"),
        ({"min_persons": 6}, "at least min_persons = 6"),
        ({"clip_norm": 1e-9}, "their norm is too large for such small steps"),
    ],
)
def test_steps_that_the_proof_does_not_cover_are_refused(changes, words):
    x, y = data(np.random.default_rng(0), np.arange(5))
    local_steps(LinearModel(), np.ones(4), x, y, **STEPS)
    with pytest.raises(UsageError, match=words):
        local_steps(LinearModel(), np.ones(4), x, y, **{**STEPS, **changes})


def test_a_larger_rate_would_let_one_person_grow():
    """The bound on the rate is needed: beyond it the same two data sets drift apart further than that."""
    sides, steps, rate, limit = [], 4, 3.0, 1e3
    for first in (-1.0, 1.0):
        y = np.concatenate([[limit * first], np.zeros(39)])
        w = 0.0
        for _ in range(steps):
            w -= rate * float(np.mean(np.clip(w - y, -limit, limit)))
        sides.append(w)
    assert abs(sides[0] - sides[1]) > 2 * steps * rate * limit / 40


@pytest.mark.parametrize("model", [LinearModel(), SoftmaxModel(2)])
def test_what_is_not_finite_counts_as_zero_and_stays_with_its_person(model):
    x, y = data(np.random.default_rng(2), np.arange(6))
    x[0] = [np.nan, np.inf, 1.0]
    w = np.ones(model.num_parameters(FEATURES))
    mean = person_gradient(model, w, x, y, clip_norm=C, min_persons=6)
    rest = person_gradient(model, w, x[1:], y[1:], clip_norm=C, min_persons=5)
    np.testing.assert_allclose(mean.row, rest.row * 5 / 6, rtol=1e-12)
    assert mean.clipped_share == pytest.approx((rest.clipped_share * 5 + 1) / 6)
    if isinstance(model, LinearModel):
        moved = local_steps(model, w, x, y, **STEPS)
        assert np.isfinite(moved.row).all()


@pytest.mark.parametrize("target", [-1.0, 2.0, np.nan, -np.inf])
@pytest.mark.parametrize("model", [SoftmaxModel(2), TanhMlp(3, 2)])
def test_a_target_that_is_no_class_counts_as_zero_and_stops_nobody(model, target):
    """An error would tell all who wait for the update what one person's record holds."""
    x, y = data(np.random.default_rng(2), np.arange(6))
    w = np.random.default_rng(3).normal(size=model.num_parameters(FEATURES))
    mean = person_gradient(model, w, x, np.append(y[:5], target), clip_norm=C, min_persons=6)
    rest = person_gradient(model, w, x[:5], y[:5], clip_norm=C, min_persons=5)
    np.testing.assert_allclose(mean.row, rest.row * 5 / 6, rtol=1e-12)


def test_persons_are_told_apart_by_integers_and_texts():
    rows = np.arange(8.0).reshape(4, 2) / 10
    texts = ["x", "x", "y", "x"]
    for keys in ([7, 7, -1, 7], texts, np.array(texts, object), [0.5, 0.5, 1.0, 0.5]):
        mean = person_mean(rows, keys, clip_norm=C, min_persons=2)
        np.testing.assert_allclose(mean.row, (rows[[0, 1, 3]].mean(axis=0) + rows[2]) / 2)
        assert mean.num_persons == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((np.ones((3, 2)),), {"clip_norm": 1.0, "min_persons": 4}), "persons: 3 are not accepted; at least"),
        (((np.ones((3, 2)), [1, 1, 1]), {"clip_norm": 1.0, "min_persons": 2}), "persons: 1 are not"),
        (((np.ones(3),), {"clip_norm": 1.0, "min_persons": 1}), "contributions: the shape"),
        (((np.ones((3, 2)), [1, 2]), {"clip_norm": 1.0, "min_persons": 1}), "a key a record"),
        (((np.ones((3, 2)), [1.0, np.nan, 2.0]), {"clip_norm": 1.0, "min_persons": 1}), "none is missing"),
        (((np.ones((3, 2)), [None, "a", "b"]), {"clip_norm": 1.0, "min_persons": 1}), "none is missing"),
        (((np.ones((3, 2)), ["a", np.nan, "b"]), {"clip_norm": 1.0, "min_persons": 1}), "none is missing"),
        (((np.ones((3, 2)), ["a", 1, "b"]), {"clip_norm": 1.0, "min_persons": 1}), "integers or texts"),
        (
            ((np.ones((3, 2)), np.ma.masked_equal([1, 2, 3], 2)), {"clip_norm": 1.0, "min_persons": 1}),
            "none is missing",
        ),
        (((np.ones((3, 2)),), {"clip_norm": -1.0, "min_persons": 1}), "clip_norm"),
        (((np.ones((0, 2)),), {"clip_norm": 1.0, "min_persons": 1}), "persons: 0 are not accepted"),
    ],
)
def test_what_is_no_mean_over_enough_persons_is_refused(arguments, words):
    given, named = arguments
    with pytest.raises(UsageError, match=words):
        person_mean(*given, **named)


def test_shapes_that_do_not_belong_together_are_refused():
    x, y = data(np.random.default_rng(0), np.arange(5))
    given = {"clip_norm": 1.0, "min_persons": 2}
    for model, w, features, targets, words in (
        (LinearModel(), np.ones(3), x, y, r"\(4,\) for 3 features"),
        (LinearModel(), np.ones(4), x, y[:3], "features, targets"),
    ):
        with pytest.raises(UsageError, match=words):
            person_gradient(model, w, features, targets, **given)
    with pytest.raises(UsageError, match="logistic or least_squares"):
        LinearModel("probit")  # type: ignore[arg-type]


def test_a_batchs_own_statistics_are_refused():
    x = np.random.default_rng(4).normal(3.0, 2.0, size=(60, 2))
    x[0, 0] = np.nan
    x = np.hstack([x, np.zeros((60, 1))])
    public = standardise(x, [3.0, 3.0, 0.0], [2.0, 2.0, 1.0], norm=1.5)
    assert public[0, 0] == 0.0
    assert np.linalg.norm(public, axis=1).max() <= 1.5 * (1 + 1e-12)
    with pytest.raises(UsageError, match="mean: the data's own mean"):
        standardise(x, np.nanmean(x, axis=0), [2.0, 2.0, 1.0])
    for ddof in (0, 1):
        with pytest.raises(UsageError, match="scale: the data's own scale"):
            standardise(x, [3.0, 3.0, 0.0], np.maximum(np.nanstd(x, axis=0, ddof=ddof), 1e-3))
    for mean, scale in (([1.0], 1.0), (0.0, [1.0, 0.0, 1.0]), (np.nan, 1.0)):
        with pytest.raises(UsageError):
            standardise(x, mean, scale)
    assert standardise(np.ones((3, 2)), 0.0, 1.0).tolist() == np.ones((3, 2)).tolist()


@pytest.mark.parametrize("women", [249, 250, 251])
def test_no_person_decides_whether_round_constants_are_taken(women):
    """0.5 is a public constant; that the column's own mean and scale are as much is one person's doing."""
    column = (np.arange(500) < women).astype(float)[:, None]
    assert standardise(column, 0.5, 0.5).sum() == 2 * women - 500


class Hospital(Workload[dict[str, np.ndarray]]):
    """One full-batch step over a site's patients at the released model."""

    def clients(self):
        return [Client("h", "hospitals", num_examples=20)]

    def initial_model(self):
        return {"weights": np.zeros(4, np.float32)}

    def train(self, model, client, round_id):
        x, y = data(np.random.default_rng(8), np.arange(40))
        keys = np.arange(40) // 2
        mean = person_gradient(LinearModel(), model["weights"], x, y, keys, clip_norm=C, min_persons=20)
        return Trained(delta=-mean.row, num_examples=mean.num_persons)

    def evaluate(self, model):
        return {}


def test_a_workload_sends_the_mean_and_the_number_of_persons():
    workload = Hospital()
    update = train_client(workload, workload.codec(), np.zeros(4), workload.clients()[0], 0)
    assert update.num_examples == 20
    x, y = data(np.random.default_rng(8), np.arange(40))
    exact = person_gradient(LinearModel(), np.zeros(4), x, y, np.arange(40) // 2, clip_norm=C, min_persons=20)
    assert np.linalg.norm(update.delta + exact.row) <= 2.0**-24 * np.linalg.norm(exact.row)
