"""One client's training: an update that says what changed, or a refusal with client, round and cause."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcity_ray_client import (
    Cause,
    Client,
    ModelCodec,
    Refusal,
    Trained,
    Update,
    UsageError,
    Workload,
    train_client,
)
from scarcity_ray_client.training import MOST_PRINTED, MOST_TOLD

START = {"w": np.array([1.0, 2.0], np.float32), "b": np.array(3.0, np.float16), "steps": 4}
VECTOR = np.array([1.0, 2.0, 3.0], np.float32)
CLIENT = Client("ward_3", "hospitals", num_examples=7)


class Tried(Workload):
    def __init__(self, training) -> None:
        self.training = training

    def clients(self):
        return [CLIENT]

    def initial_model(self):
        return copy.deepcopy(START)

    def train(self, model, client, round_id):
        return self.training(model)

    def evaluate(self, model):
        return {}

    def poison(self, model, client, round_id):
        return Trained(delta=-VECTOR)


def tried(training, vector=VECTOR, **more):
    workload = Tried(training)
    return train_client(workload, workload.codec(), vector, CLIENT, 5, **more)


def moved(model):
    model["w"] += 1
    return {**model, "b": np.float16(3.5)}


@pytest.mark.parametrize(
    "training",
    [
        lambda model: Trained(model=moved(model)),
        lambda model: Trained(delta={"w": np.ones(2), "b": 0.5}),
        lambda model: Trained(delta={"w": np.ones(2), "b": 0.5, "steps": 9}),
        lambda model: Trained(delta=np.array([1.0, 1.0, 0.5])),
        lambda model: Trained(model={"w": [2.0, 3.0] * np.ones(2), "b": np.array(3.5), "steps": 0}),
    ],
)
def test_a_delta_is_what_training_changed(training):
    update = tried(training)
    assert isinstance(update, Update), update
    assert update.delta.tolist() == [1.0, 1.0, 0.5]
    assert update.delta.dtype == np.float32
    assert (update.client_id, update.round_id, update.num_examples, update.metrics) == ("ward_3", 5, 7, {})
    again = pickle.loads(pickle.dumps(update))
    assert again.delta.tolist() == update.delta.tolist()


def test_nothing_trained_is_a_delta_of_zeros_also_where_the_model_was_rounded():
    update = tried(lambda model: Trained(model=model), vector=np.array([0.1, 0.2, 0.3]))
    assert not update.delta.any()


def test_metrics_and_examples_go_along():
    update = tried(
        lambda model: Trained(
            model=model, metrics={"loss": np.float32(0.5), "auc": float("nan")}, num_examples=3
        )
    )
    assert (update.metrics, update.num_examples) == ({"loss": 0.5}, 3)


def test_an_attacker_is_asked_for_its_poison():
    assert tried(lambda model: Trained(model=model), attacker=True).delta.tolist() == (-VECTOR).tolist()


def leaves_by(error):
    def training(model):
        raise error

    return training


def deep(levels=3000):
    return deep(levels - 1) if levels else 0


REFUSED = {
    "raised": (leaves_by(ValueError("no such column: age")), Cause.RAISED, "ValueError: no such column: age"),
    "exited": (leaves_by(SystemExit(3)), Cause.RAISED, "SystemExit: 3"),
    "recursion": (lambda model: deep(), Cause.RAISED, "RecursionError"),
    "memory": (lambda model: np.ones(2**57), Cause.OUT_OF_MEMORY, "Unable to allocate"),
    "nothing": (lambda model: None, Cause.WRONG_RESULT, "it gave a NoneType; return Trained(model=...)"),
    "a bare model": (lambda model: model, Cause.WRONG_RESULT, "it gave a dict; return Trained(model=...)"),
    "a tuple": (lambda model: (model, {}), Cause.WRONG_RESULT, "it gave a tuple"),
    "both": (lambda model: Trained(model=model, delta=model), Cause.RAISED, "either model= or delta="),
    "nan": (
        lambda model: Trained(model={**model, "w": np.array([np.nan, 1.0])}),
        Cause.NOT_FINITE,
        "w: 1 of 2",
    ),
    "inf": (lambda model: Trained(delta={"w": np.ones(2), "b": np.inf}), Cause.NOT_FINITE, "b: 1 of 1"),
    "shape": (
        lambda model: Trained(model={**model, "w": np.ones(3)}),
        Cause.WRONG_MODEL,
        "w: it is float64 of shape (3,); float32 of shape (2,) is due",
    ),
    "dtype": (
        lambda model: Trained(model={**model, "w": np.ones(2, int)}),
        Cause.WRONG_MODEL,
        "w: it is int64",
    ),
    "lacking": (lambda model: Trained(model={"w": np.ones(2)}), Cause.WRONG_MODEL, "b: the model lacks it"),
    "more": (lambda model: Trained(model={**model, "v": 1.0}), Cause.WRONG_MODEL, "v: the model has no part"),
    "length": (lambda model: Trained(delta=np.ones(4)), Cause.WRONG_MODEL, "array"),
    "text": (lambda model: Trained(model="better"), Cause.WRONG_MODEL, "array"),
    "metrics": (
        lambda model: Trained(model=model, metrics={"loss": "low"}),
        Cause.WRONG_RESULT,
        "'loss': 'low'",
    ),
    "no metrics": (lambda model: Trained(model=model, metrics=0.5), Cause.WRONG_RESULT, "metrics: a float"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_names_client_round_and_cause(what):
    training, cause, words = REFUSED[what]
    refusal = tried(training)
    assert isinstance(refusal, Refusal)
    assert refusal.cause is cause
    assert str(refusal).startswith(f"client 'ward_3', round 5: {cause}: ")
    assert words in str(refusal)
    assert (cause in (Cause.RAISED, Cause.OUT_OF_MEMORY)) == bool(refusal.traceback)
    assert len(refusal.traceback) <= MOST_TOLD
    assert pickle.loads(pickle.dumps(refusal)) == refusal


def test_the_line_that_is_told_is_the_workloads_own():
    refusal = tried(lambda model: np.linalg.inv(np.zeros((2, 2))))
    assert "Singular matrix" in refusal.detail
    assert "test_training.py" in refusal.detail
    assert "linalg" in refusal.traceback


@pytest.mark.parametrize(
    "training",
    [
        lambda model: Trained(delta=model),
        lambda model: Trained(delta=moved(model)),
        lambda model: Trained(delta={"w": model["w"][:], "b": 0.5}),
        lambda model: Trained(delta=copy.deepcopy(model)),
        lambda model: Trained(delta=VECTOR.copy()),
    ],
)
def test_a_model_given_as_delta_is_refused_where_it_can_be_told(training):
    refusal = tried(training)
    assert isinstance(refusal, Refusal)
    assert refusal.cause is Cause.WRONG_RESULT
    assert "give model=, or subtract" in refusal.detail


def test_the_first_delta_from_zeros_is_no_model():
    zeros = np.zeros(3, np.float32)
    assert not tried(lambda model: Trained(delta={"w": np.zeros(2), "b": 0.0}), vector=zeros).delta.any()


ANYTHING = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.floats(width=32), max_size=4).map(np.array),
    st.builds(object),
)
NESTED = st.recursive(
    ANYTHING,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["w", "b", "steps", "x", 3, None, ("a",)]), inner, max_size=4),
    ),
    max_leaves=5,
)


@settings(deadline=None)
@given(NESTED, NESTED, st.sampled_from(["bare", "model", "delta", "metrics"]))
def test_nothing_that_a_workload_does_raises(value, other, place):
    def training(model):
        return {
            "bare": lambda: value,
            "model": lambda: Trained(model=value, metrics=other),
            "delta": lambda: Trained(delta=value),
            "metrics": lambda: Trained(model=model, metrics=value),
        }[place]()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given_back = tried(training)
    assert isinstance(given_back, Update | Refusal)
    if isinstance(given_back, Update):
        assert np.isfinite(given_back.delta).all()


def test_an_interrupt_is_no_refusal():
    with pytest.raises(KeyboardInterrupt):
        tried(leaves_by(KeyboardInterrupt()))


def test_a_vector_that_is_not_the_codecs_is_no_fault_of_the_client():
    with pytest.raises(UsageError, match="vector: shape"):
        tried(lambda model: Trained(model=model), vector=np.zeros(4))


def test_what_training_prints_is_bounded(capsys):
    def training(model):
        for _ in range(1000):
            print("x" * 1000)
            print("y" * 1000, file=sys.stderr)
        return Trained(model=model)

    assert isinstance(tried(training), Update)
    for text in capsys.readouterr():
        assert MOST_PRINTED <= len(text) < MOST_PRINTED + 200
        assert text.endswith("[client 'ward_3' prints more than 65536 characters: dropped]\n")
    print("after")
    assert capsys.readouterr().out == "after\n"


def test_a_workload_gets_a_model_of_its_own():
    seen = []
    workload = Tried(lambda model: seen.append(model) or Trained(model=moved(model)))
    codec = ModelCodec(START)
    for _ in range(2):
        train_client(workload, codec, VECTOR, CLIENT, 0)
    assert seen[0]["w"].tolist() == seen[1]["w"].tolist() == [2.0, 3.0]
    assert VECTOR.tolist() == [1.0, 2.0, 3.0]
