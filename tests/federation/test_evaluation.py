"""Clients' metrics put together, early stopping and the best model."""

from __future__ import annotations

import math
import pickle
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.federation.evaluation import (
    OUTSIDE_CLAIM,
    ClientEvaluation,
    EarlyStopping,
    MeanMetrics,
    Progress,
    mean_metrics,
    mean_metrics_by_domain,
)
from scarcity_ray_client.metrics import accuracy

values = st.floats(-1e6, 1e6)
reports = st.dictionaries(st.sampled_from(["accuracy", "auc", "loss"]), values)
evaluations = st.lists(
    st.builds(
        ClientEvaluation,
        client_id=st.just("c"),
        domain_id=st.sampled_from("xyz"),
        metrics=reports,
        num_examples=st.integers(1, 10**6),
    ),
    max_size=8,
)


@given(given_evaluations=evaluations)
def test_a_mean_weighs_each_client_by_its_examples(given_evaluations):
    found = mean_metrics(given_evaluations)
    for name, mean in found.metrics.items():
        have = [e for e in given_evaluations if name in e.metrics]
        total = sum(e.num_examples for e in have)
        exact = sum((Fraction(e.metrics[name]) * e.num_examples for e in have), Fraction(0)) / total
        assert mean == pytest.approx(float(exact), rel=1e-12, abs=1e-9)
        assert min(e.metrics[name] for e in have) <= mean <= max(e.metrics[name] for e in have)
        assert found.num_examples[name] == total


def test_the_mean_of_accuracies_is_the_accuracy_of_all_examples():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 3, 100), rng.integers(0, 3, 100)
    parts = [slice(0, 7), slice(7, 40), slice(40, 100)]
    found = mean_metrics(
        ClientEvaluation("c", "x", {"accuracy": accuracy(labels[part], predicted[part])}, len(labels[part]))
        for part in parts
    )
    assert found.metrics["accuracy"] == pytest.approx(accuracy(labels, predicted), rel=1e-12)


@given(given_evaluations=evaluations)
def test_each_client_counts_in_its_own_domain_and_once_overall(given_evaluations):
    overall, domains = mean_metrics(given_evaluations), mean_metrics_by_domain(given_evaluations)
    assert list(domains) == sorted({e.domain_id for e in given_evaluations})
    for domain, found in domains.items():
        assert found == mean_metrics(e for e in given_evaluations if e.domain_id == domain)
    for name, mean in overall.metrics.items():
        parts = [found for found in domains.values() if name in found.metrics]
        assert overall.num_clients[name] == sum(part.num_clients[name] for part in parts)
        assert overall.num_examples[name] == sum(part.num_examples[name] for part in parts)
        whole = sum(part.metrics[name] * part.num_examples[name] for part in parts)
        assert mean == pytest.approx(whole / overall.num_examples[name], rel=1e-9, abs=1e-6)


@given(given_evaluations=evaluations)
def test_a_client_that_lacks_a_metric_does_not_count_in_its_mean(given_evaluations):
    without = ClientEvaluation("new", "x", {"auc": math.nan, "other": math.inf}, 10**6)
    assert without.metrics == {}
    assert mean_metrics([*given_evaluations, without]) == mean_metrics(given_evaluations)
    assert mean_metrics([without]) == mean_metrics([]) == MeanMetrics()


@given(signs=st.lists(st.sampled_from([1, -1]), min_size=1, max_size=9), counts=st.integers(1, 2**62))
def test_no_number_that_a_client_sends_stops_the_mean(signs, counts):
    most = sys.float_info.max
    found = mean_metrics(
        ClientEvaluation(str(i), "x", {"loss": sign * most}, counts + i) for i, sign in enumerate(signs)
    )
    assert math.isfinite(found.metrics["loss"])


@pytest.mark.parametrize("count", [0, -1, 1.0, True, None, 2**63])
def test_a_count_that_is_none_is_refused_and_names_the_client(count):
    with pytest.raises(UsageError, match=r"'site_7': num_examples"):
        ClientEvaluation("site_7", "x", {}, count)


@pytest.mark.parametrize("metrics", [None, 0.5, {"loss": "low"}, {3: 0.5}, [("loss", 1)]])
def test_metrics_that_are_none_are_refused(metrics):
    with pytest.raises(UsageError, match="metrics"):
        ClientEvaluation("c", "x", metrics, 1)
    with pytest.raises(UsageError, match="metrics"):
        EarlyStopping("loss").step(Progress(), 0, metrics, np.zeros(1))


def test_what_is_measured_on_clients_is_said_to_lie_outside_the_claim():
    assert "outside the privacy claim" in OUTSIDE_CLAIM
    assert "outside the privacy claim" in mean_metrics.__doc__
    assert "outside the privacy claim" in mean_metrics_by_domain.__doc__


def run(stopping, series):
    progress, steps = Progress(), []
    for round_id, value in enumerate(series):
        metrics = {} if value is None else {"auc": value, "other": 1.0}
        progress = stopping.step(progress, round_id, metrics, np.full(2, round_id, np.float32))
        steps.append(progress)
    return steps


histories = st.lists(
    st.one_of(st.none(), st.just(math.nan), st.integers(0, 8).map(lambda i: i / 8)), min_size=1, max_size=15
)
modes = st.sampled_from(["max", "min"])


@given(series=histories, mode=modes, min_delta=st.sampled_from([0.0, 0.25]))
def test_the_best_model_is_that_of_the_best_value_and_the_first_of_equals(series, mode, min_delta):
    steps = run(EarlyStopping("auc", mode, patience=1, min_delta=min_delta), series)
    for number, progress in enumerate(steps):
        seen = [(v, t) for t, v in enumerate(series[: number + 1]) if v is not None and not math.isnan(v)]
        if not seen:
            assert progress.best is None
            continue
        value, t = min(seen, key=lambda pair: (-pair[0] if mode == "max" else pair[0], pair[1]))
        assert (progress.best.value, progress.best.round_id) == (value, t)
        assert progress.best.model.tolist() == [t, t]
        assert progress.best.metrics == {"auc": value, "other": 1.0}


def stops_by_hand(series, mode, patience, min_delta) -> int | None:
    """The first evaluation after `patience` in a row, none of them better by more than min_delta."""
    sign, reference, since = (1 if mode == "max" else -1), None, 0
    for t, value in enumerate(series):
        better = (
            value is not None
            and not math.isnan(value)
            and (reference is None or sign * (value - reference) > min_delta)
        )
        if better:
            reference, since = value, 0
        else:
            since += 1
        if since == patience:
            return t
    return None


@given(
    series=histories,
    mode=modes,
    patience=st.integers(1, 4),
    min_delta=st.sampled_from([0.0, 0.125, 0.25]),
)
def test_it_stops_after_patience_evaluations_in_a_row_without_improvement(series, mode, patience, min_delta):
    steps = run(EarlyStopping("auc", mode, patience, min_delta), series)
    stop = stops_by_hand(series, mode, patience, min_delta)
    assert [t for t, progress in enumerate(steps) if progress.stop] == (
        [] if stop is None else list(range(stop, len(series)))
    )
    assert len({progress.stop for progress in steps if progress.stop}) <= 1


def test_many_small_gains_add_up_to_an_improvement():
    stopping = EarlyStopping("auc", patience=3, min_delta=0.25)
    assert all(progress.stop is None for progress in run(stopping, [0.0, 0.125, 0.25, 0.375, 0.5, 0.625]))
    assert run(stopping, [0.0, 0.0625, 0.125, 0.1875])[-1].stop


@given(series=histories, mode=modes)
def test_without_patience_it_never_stops(series, mode):
    assert run(EarlyStopping("auc", mode), series)[-1].stop is None


def test_a_metric_that_never_came_is_named_with_those_that_did():
    progress = Progress()
    for round_id in range(2):
        progress = EarlyStopping("acuracy", patience=2).step(
            progress, round_id, {"accuracy": 0.5, "loss": 1.0}, np.zeros(1)
        )
    assert progress.stop == "no evaluation of 2 gave acuracy as a finite number; given: accuracy, loss"
    assert progress.best is None


def test_the_machine_changes_nothing_that_it_is_given():
    stopping, model, metrics = EarlyStopping("auc", patience=5), np.zeros(2, np.float32), {"auc": 0.5}
    first = stopping.step(Progress(), 0, metrics, model)
    model[0], metrics["auc"] = 9.0, 0.0
    assert first.best.model.tolist() == [0.0, 0.0]
    assert first.best.metrics == {"auc": 0.5}
    assert not first.best.model.flags.writeable
    second = stopping.step(first, 1, {"auc": 0.75}, model)
    assert (first.best.value, first.waited, second.best.value) == (0.5, 0, 0.75)
    again = stopping.step(pickle.loads(pickle.dumps(first)), 1, {"auc": 0.75}, model)
    assert (again.best.value, again.reference, again.waited) == (0.75, 0.75, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metric", ""),
        ("metric", None),
        ("mode", "up"),
        ("mode", None),
        ("patience", 0),
        ("patience", 1.5),
        ("patience", True),
        ("min_delta", -0.1),
        ("min_delta", math.inf),
        ("min_delta", math.nan),
        ("min_delta", "0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(name, value):
    with pytest.raises(UsageError, match=name):
        EarlyStopping(**{"metric": "auc", name: value})
