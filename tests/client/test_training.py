"""One client's training: an update that says what changed, or a refusal with client, round and cause."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
import warnings
from asyncio import CancelledError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray_client import (
    Cause,
    Client,
    ModelCodec,
    Noising,
    Refusal,
    SiteNoise,
    Trained,
    Update,
    UsageError,
    Workload,
    evaluate_client,
    person_mean,
    train_client,
    train_clients,
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


def test_where_persons_are_the_unit_an_update_is_a_delta_of_enough_persons():
    delta = {"delta": np.ones(3)}
    for sent, cause, words in [
        ({"model": START}, Cause.WRONG_RESULT, "model= is not accepted where persons"),
        ({**delta, "num_examples": 900}, Cause.WRONG_RESULT, "num_persons is missing"),
        (
            {"delta": np.ones(3, np.float16), "num_persons": 10},
            Cause.WRONG_RESULT,
            "rounded to float16 or bfloat16 (array)",
        ),
        ({**delta, "num_persons": 9}, Cause.TOO_FEW_PERSONS, "9 is below privacy.min_persons = 10"),
    ]:
        refusal = tried(lambda model, sent=sent: Trained(**sent), min_persons=10)
        assert refusal.cause is cause
        assert words in refusal.detail
        assert isinstance(tried(lambda model, sent=sent: Trained(**sent)), Update)
    assert isinstance(tried(lambda model: Trained(delta=VECTOR, num_persons=10), min_persons=10), Update)
    update = tried(lambda model: Trained(**delta, num_persons=10), min_persons=10)
    assert (update.num_persons, update.num_examples) == (10, 7)
    few = tried(lambda model: person_mean(np.ones((9, 3)), clip_norm=1.0, min_persons=10), min_persons=10)
    assert few.cause is Cause.TOO_FEW_PERSONS
    assert tried(None, min_persons=10, attacker=True).num_persons is None


class Drawn:
    """No noise, and who asked for it."""

    def __init__(self):
        self.streams = []

    def uniform_words(self, stream):
        self.streams.append(stream)
        return lambda count: np.full(count, 2**63, np.uint64)


SITE_NOISE = SiteNoise(mu=1.0, clip_norm=1.0, min_persons=10, dimension=3)


def test_nothing_but_the_noised_row_is_given_where_rows_are_noised():
    noising = Noising(SITE_NOISE)
    given = dict(min_persons=10, noising=noising)
    first, second = (tried(lambda model: Trained(delta=VECTOR, num_persons=10), **given) for _ in range(2))
    assert (first.delta != second.delta).any(), "the operating system's entropy"
    assert first.num_persons == 10
    grid = first.delta.astype(float) / SITE_NOISE.step(10)
    assert (grid == np.rint(grid)).all()
    few = tried(lambda model: Trained(delta=VECTOR, num_persons=9), **given)
    assert (type(few), few.cause) == (Refusal, Cause.TOO_FEW_PERSONS)
    assert tried(None, attacker=True, **given).delta.tolist() == (-VECTOR).tolist(), "an attacker adds none"
    told = tried(lambda model: Trained(delta=VECTOR, num_persons=10, metrics={"loss": 0.5}), **given)
    assert told.cause is Cause.WRONG_RESULT
    assert "without noise" in told.detail
    # A process of its own that does not say min_persons again is checked all the same.
    for sent in ({"model": START}, {"delta": np.ones(3, np.float16), "num_persons": 10}, {"delta": VECTOR}):
        assert tried(lambda model, sent=sent: Trained(**sent), noising=noising).cause is Cause.WRONG_RESULT


def test_a_row_is_kept_before_it_leaves_and_a_ledger_may_refuse():
    class Kept:
        def __init__(self):
            self.rows = {}

        def send(self, client_id, round_id, mu, make):
            if round_id == 6:
                return Refusal(client_id, round_id, Cause.BUDGET_SPENT, "this client's ceiling")
            return self.rows.setdefault((client_id, round_id, mu), make())

    kept, drawn = Kept(), Drawn()
    noising = Noising(SITE_NOISE, drawn, kept)
    workload = Tried(lambda model: Trained(delta=VECTOR, num_persons=10))
    given = workload, workload.codec(), VECTOR, CLIENT
    update = train_client(*given, 5, min_persons=10, noising=noising)
    assert (kept.rows["ward_3", 5, 1.0] == update.delta).all()
    refusal = train_client(*given, 6, min_persons=10, noising=noising)
    assert refusal.cause is Cause.BUDGET_SPENT
    assert drawn.streams == ["row/ward_3/5"], "nothing is drawn that is not charged"


@pytest.mark.parametrize("fails", [False, True])
def test_of_each_client_noise_is_drawn_once(fails):
    class Many(Tried):
        def train_many(self, models, clients, round_id):
            results = [self.training(model) for model in models]
            return results[: -1 if fails else None]

    drawn, clients = Drawn(), [Client(name, "hospitals") for name in "abc"]
    workload = Many(lambda model: Trained(delta=VECTOR, num_persons=10))
    found = train_clients(
        workload, workload.codec(), VECTOR, clients, 0, {"b"}, print, 10, Noising(SITE_NOISE, drawn)
    )
    assert all(isinstance(update, Update) for update in found)
    assert sorted(drawn.streams) == ["row/a/0", "row/c/0"]


@pytest.mark.parametrize("min_persons", [None, 10])
def test_an_attacker_is_asked_for_its_poison(min_persons):
    sent = tried(lambda model: Trained(model=model), attacker=True, min_persons=min_persons)
    assert sent.delta.tolist() == (-VECTOR).tolist()


def leaves_by(error):
    def training(*given):
        raise error

    return training


def noted(error):
    error.add_note("read the manual")
    return error


def deep(levels=3000):
    return deep(levels - 1) if levels else 0


REFUSED = {
    "raised": (leaves_by(ValueError("no such column: age")), Cause.RAISED, "ValueError: no such column: age"),
    "exited": (leaves_by(SystemExit(3)), Cause.RAISED, "SystemExit: 3"),
    "cancelled": (leaves_by(CancelledError("late")), Cause.RAISED, "CancelledError: late"),
    "many lines": (leaves_by(noted(OSError("no\nfile\x1b[2J"))), Cause.RAISED, "OSError: no file [2J (/"),
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
    "a name without end": (
        lambda model: Trained(model=model, metrics={"a" * 201: 1.0}),
        Cause.WRONG_RESULT,
        "of at most 200 characters",
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


class Together(Tried):
    """Client c adds 1 + c to each number, all in one product; `fault` is what client 2 or all do instead."""

    def __init__(self, fault="", *, gives="delta") -> None:
        super().__init__(None)
        self.fault, self.gives, self.calls = fault, gives, []

    def clients(self):
        return [Client(f"c{i}", "d", data=i, num_examples=10 + i) for i in range(5)]

    def row(self, client):
        return np.float32(1 + client.data) * np.ones(3, np.float32)

    def trained(self, model, client):
        if self.gives == "delta":
            return Trained(delta=self.row(client), metrics={"loss": client.data})
        moved = {"w": model["w"] + self.row(client)[:2], "b": model["b"] + self.row(client)[2], "steps": 4}
        return Trained(model=moved, metrics={"loss": client.data})

    def train(self, model, client, round_id):
        self.calls.append(client.client_id)
        if self.fault == "raises" and client.data == 2:
            raise RuntimeError("no data")
        return self.trained(model, client)

    def train_many(self, models, clients, round_id):
        self.calls.append(len(clients))
        if self.fault in ("raises", "exits"):
            raise RuntimeError("no data") if self.fault == "raises" else SystemExit(3)
        if self.fault == "in place":
            models[0]["w"] += 1
        made = [self.trained(model, client) for model, client in zip(models, clients, strict=True)]
        made[2] = {
            "nan": lambda: Trained(delta=np.full(3, np.nan)),
            "shape": lambda: Trained(model={"w": np.zeros(3), "b": 0.0, "steps": 4}),
            "model": lambda: Trained(delta=models[2]),
            "nothing": lambda: None,
        }.get(self.fault, lambda: made[2])()
        return {"fewer": made[1:], "more": itertools.cycle(made), "no list": 3}.get(self.fault, made)

    def evaluate_client(self, model, client):
        return {"sum": model["w"].sum()} if client.data else None


def together(fault="", vectors=VECTOR, gives="delta", **more):
    workload = Together(fault, gives=gives)
    return workload, train_clients(workload, workload.codec(), vectors, workload.clients(), 5, **more)


@pytest.mark.parametrize("gives", ["delta", "model"])
@pytest.mark.parametrize("vectors", [VECTOR, np.outer(np.arange(5), VECTOR).astype(np.float32)])
def test_clients_trained_together_give_what_each_gives_alone(vectors, gives):
    workload, updates = together(vectors=vectors, gives=gives)
    assert workload.calls == [5]
    rows = vectors if vectors.ndim == 2 else [vectors] * 5
    for client, row, update in zip(workload.clients(), rows, updates, strict=True):
        alone = train_client(workload, workload.codec(), row, client, 5)
        assert update.delta.tolist() == alone.delta.tolist()
        told, said = ({**vars(one), "delta": None} for one in (update, alone))
        assert told == said


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("nan", Cause.NOT_FINITE),
        ("shape", Cause.WRONG_MODEL),
        ("model", Cause.WRONG_RESULT),
        ("nothing", Cause.WRONG_RESULT),
    ],
)
def test_a_failure_of_one_client_refuses_that_client_alone(fault, cause):
    workload, outcomes = together(fault)
    assert workload.calls == [5]
    assert [type(outcome) for outcome in outcomes] == [Update, Update, Refusal, Update, Update]
    assert str(outcomes[2]).startswith(f"client 'c2', round 5: {cause}: ")


@pytest.mark.parametrize("fault", ["raises", "exits", "fewer", "more", "no list", "in place"])
def test_clients_of_a_train_many_that_fails_are_trained_alone(fault, caplog):
    workload, outcomes = together(fault)
    assert workload.calls == [5, "c0", "c1", "c2", "c3", "c4"]
    failed = [outcome.client_id for outcome in outcomes if isinstance(outcome, Refusal)]
    assert failed == (["c2"] if fault == "raises" else [])
    assert "train_many of Together fails and each client is trained alone: " in caplog.text
    assert outcomes[4].delta.tolist() == [5.0, 5.0, 5.0]


def test_poisoned_clients_send_what_poison_gives():
    workload, outcomes = together(poisoned={"c1", "nobody"})
    assert workload.calls == [4]
    assert [outcome.delta[0] for outcome in outcomes] == [1.0, -1.0, 3.0, 4.0, 5.0]
    assert outcomes[1].client_id == "c1"
    workload.poison = lambda model, client, round_id: None
    refused = train_clients(workload, workload.codec(), VECTOR, workload.clients(), 5, {"c1"})[1]
    assert (refused.cause, "has no poison" in refused.detail) == (Cause.WRONG_RESULT, True)


def test_without_a_train_many_each_client_has_a_model_of_its_own():
    workload = Tried(lambda model: Trained(model=moved(model)))
    updates = train_clients(workload, workload.codec(), VECTOR, [CLIENT] * 3, 5)
    assert [update.delta.tolist() for update in updates] == [[1.0, 1.0, 0.5]] * 3
    models = [copy.deepcopy(START)] * 3
    assert [trained.model["w"][0] for trained in workload.train_many(models, [CLIENT] * 3, 5)] == [2.0] * 3
    with pytest.raises(UsageError, match="2 rows are not accepted; one for each of 3 clients"):
        train_clients(workload, workload.codec(), np.zeros((2, 3)), [CLIENT] * 3, 5)


def test_a_client_evaluates_the_federations_model():
    workload = Together()
    codec, (first, second, *_) = workload.codec(), workload.clients()
    assert evaluate_client(workload, codec, VECTOR, first, 5) == {}
    assert evaluate_client(workload, codec, VECTOR, second, 5) == {"sum": 3.0}
    for wrong, cause in (({"loss": "low"}, Cause.WRONG_RESULT), (3, Cause.WRONG_RESULT)):
        workload.evaluate_client = lambda model, client, wrong=wrong: wrong
        assert evaluate_client(workload, codec, VECTOR, second, 5).cause is cause
    workload.evaluate_client = leaves_by(ValueError("no table"))
    refused = evaluate_client(workload, codec, VECTOR, second, 5)
    assert refused.cause is Cause.RAISED


def test_an_interrupt_is_no_refusal():
    with pytest.raises(KeyboardInterrupt):
        tried(leaves_by(KeyboardInterrupt()))


def test_a_vector_that_is_not_the_codecs_is_no_fault_of_the_client():
    with pytest.raises(UsageError, match="vector: shape"):
        tried(lambda model: Trained(model=model), vector=np.zeros(4))


def test_what_training_prints_is_bounded(capsys):
    def training(model):
        sys.stdout.buffer.flush()  # what a stream has besides is there too
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
