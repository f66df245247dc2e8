"""The contract: clients are checked as they are made, results hold one thing, metrics are numbers."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scarcity_ray_client
from scarcity_ray_client import (
    Client,
    IdentityKeyPair,
    Policy,
    Trained,
    UsageError,
    Workload,
    checked_clients,
    checked_metrics,
)

SIGNED_BY_ANOTHER = Policy("ward_4", "client", 3.0, 1e-6).signed(IdentityKeyPair.generate())
GOOD = {"client_id": "ward_3", "domain_id": "hospitals"}
WRONG = {
    "client_id": ["", None, 3, "\ud800"],
    "domain_id": ["", None],
    "features": [[np.nan], ["a"], 3, [float("inf")], [10**400]],
    "data": [Path("/data"), {"a": float("nan")}, {1}, b"x", np.ones(2)],
    "num_examples": [0, -1, 2.0, True, None, 2**63],
    "num_persons": [0, -1, 2.0, True, 2**63],
    "num_cpus": [-1, float("nan"), float("inf"), "2", True, None],
    "num_gpus": [-0.5, None],
    "resources": [{"hospital_a": -1}, {"": 1}, ["hospital_a"], None, {"hospital_a": "1"}, {3: 1}],
    "labels": [{"region": 3}, "region", {"": "north"}, None],
    "policy": ["epsilon 3", Policy("ward_3", "client", 3.0, 1e-6), SIGNED_BY_ANOTHER],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_a_client_is_checked_as_it_is_made(name, value):
    with pytest.raises(UsageError, match=re.escape(f"{name}: ")) as refused:
        Client(**{**GOOD, name: value})
    assert "is not accepted; " in str(refused.value)
    if name != "client_id":
        assert "ward_3" in str(refused.value)


def test_a_refused_value_is_told_of_however_large_or_nested_it_is():
    nested: list = []
    for _ in range(100_000):  # Python 3.13 lets C code recurse 5,000 deep and more
        nested = [nested]
    for name, value in (("num_examples", -(10**5000)), ("data", nested), ("data", {"x" * 10**6: Path()})):
        with pytest.raises(UsageError, match=f"{name}: ") as refused:
            Client(**{**GOOD, name: value})
        assert len(str(refused.value)) < 300


def test_a_client_has_what_it_was_given_and_travels():
    client = Client(
        "ward_3",
        "hospitals",
        features=np.array([1, 2.5]),
        data={"path": "/data/ward_3.csv", "rows": [0, 10]},
        num_examples=40,
        num_gpus=0.5,
        resources={"hospital_a": 1},
        labels={"region": "north"},
    )
    assert client.features == (1.0, 2.5)
    assert client == pickle.loads(pickle.dumps(client))
    assert hash(client) == hash(pickle.loads(pickle.dumps(client)))
    assert Client(**GOOD).num_cpus == 1.0
    with pytest.raises(AttributeError):
        client.num_examples = 3


def test_trained_holds_a_model_or_a_delta():
    assert Trained(model={"w": 1.0}).delta is None
    for wrong in ({}, {"model": 1.0, "delta": 1.0}):
        with pytest.raises(UsageError, match="either model= or delta="):
            Trained(**wrong)
    for wrong in (0, -1, 2.0, True, 2**63):
        for name in ("num_examples", "num_persons"):
            with pytest.raises(UsageError, match=f"{name}: .* a positive int"):
                Trained(model=1.0, **{name: wrong})


NUMBER = st.one_of(st.integers(), st.floats(), st.booleans(), st.floats(width=32).map(np.float32))


@given(st.dictionaries(st.text("ab_", min_size=1), NUMBER))
def test_metrics_are_finite_floats_by_name(metrics):
    read = checked_metrics(metrics)
    assert all(type(value) is float and np.isfinite(value) for value in read.values())
    for name, value in metrics.items():
        if abs(value) <= 1e38:
            assert read[name] == float(value)
        if isinstance(value, float) and not np.isfinite(value):
            assert name not in read


def test_a_metric_beyond_all_floats_is_left_out():
    assert checked_metrics({"loss": 10**400, "high": float("inf"), "auc": 0.5}) == {"auc": 0.5}


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        0.5,
        [0.5],
        {"loss": "low"},
        {"loss": None},
        {3: 0.5},
        {"loss": [1]},
        {"loss": np.ones(2)},
        {"loss": np.ones(0)},
        {"": 1.0},
        {"loss": 1j},
        {"l" * 201: 1.0},
        {str(number): 1.0 for number in range(10_001)},
    ],
)
def test_what_are_no_metrics_is_refused(wrong):
    with pytest.raises(UsageError, match="metrics: "):
        checked_metrics(wrong)


def test_clients_are_some_and_each_has_an_id_of_its_own():
    one, two = Client("a", "x"), Client("b", "x")
    assert checked_clients([one, two]) == (one, two)
    assert checked_clients(client for client in (one, two)) == (one, two)
    for wrong, words in (
        ([], "no client"),
        ([one, two, Client("a", "y")], "'a' is taken"),
        ([one, "b"], "is a str"),
        (None, "gave a NoneType"),
        (np.array(3.0), "gave a ndarray"),
    ):
        with pytest.raises(UsageError, match=words):
            checked_clients(wrong)


def test_what_is_optional_says_that_it_is_not_offered():
    class Least(Workload):
        def clients(self):
            return [Client(**GOOD)]

        def initial_model(self):
            return {"w": np.zeros(2, np.float32)}

        def train(self, model, client, round_id):
            return Trained(model=model)

        def evaluate(self, model):
            return {}

    least = Least()
    assert least.evaluate_client({}, Client(**GOOD)) is None
    assert least.poison({}, Client(**GOOD), 0) is None
    assert least.codec().dimension == 2


def test_every_public_name_is_documented_and_its_guarantees_are_tested():
    assert scarcity_ray_client.__all__ == sorted(set(scarcity_ray_client.__all__), key=str)
    for name in scarcity_ray_client.__all__:
        assert (inspect.getdoc(getattr(scarcity_ray_client, name)) or "").strip(), name
    package = Path(scarcity_ray_client.__file__).parent
    promised = {
        "_".join(re.findall(r"\w+", line.lower()))
        for path in package.rglob("*.py")
        if path.parent.name != "updates"  # whose sentences are held by several tests each
        for block in re.findall(
            r"\nGuarantees:\n((?: +[A-Z].*\.\n)+)",
            re.sub(r"\n +Guarantees", "\nGuarantees", path.read_text()),
        )
        for line in block.splitlines()
    }
    tests = Path(__file__).parents[1].rglob("test_*.py")
    tested = {name for path in tests for name in re.findall(r"def test_(\w+)", path.read_text())}
    assert len(promised) > 12
    assert promised <= tested
