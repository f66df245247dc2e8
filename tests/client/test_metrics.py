"""Metrics against scikit-learn's, and the AUC against all pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scarcity_ray_client import UsageError
from scarcity_ray_client.metrics import (
    accuracy,
    auc,
    binary_metrics,
    brier_score,
    calibration_error,
    f1,
    log_loss,
)

oracle = pytest.importorskip("sklearn.metrics")


@st.composite
def tables(draw, classes=None):
    """Labels, probabilities with ties, and weights with zeros; by class if there are more than two."""
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    count = classes or 2
    labels = rng.integers(0, count, n)
    steps = draw(st.sampled_from([2, 5, 1000]))
    weights = rng.integers(0, 4, n).astype(float)
    weights[rng.integers(n)] = 1.0
    if classes is None:
        return labels, rng.integers(0, steps + 1, n) / steps, weights
    raw = rng.random((n, count)) + 1e-3
    return labels, raw / raw.sum(axis=1, keepdims=True), weights


ALL = (auc, brier_score, calibration_error, log_loss)


@given(table=tables())
def test_where_scikit_learn_has_the_metric_the_number_is_the_same(table):
    labels, chance, weights = table
    predicted = (chance >= 0.5).astype(int)
    given_weights = {"sample_weight": weights}
    assert accuracy(labels, predicted, weights) == pytest.approx(
        oracle.accuracy_score(labels, predicted, **given_weights)
    )
    assert log_loss(labels, chance, weights) == pytest.approx(
        oracle.log_loss(labels, chance, labels=[0, 1], **given_weights)
    )
    assert brier_score(labels, chance, weights) == pytest.approx(
        oracle.brier_score_loss(labels, chance, pos_label=1, **given_weights), abs=1e-12
    )
    expected = oracle.f1_score(labels, predicted, zero_division=math.nan, **given_weights)
    assert f1(labels, predicted, weights) == pytest.approx(expected, nan_ok=True)
    heavy = labels[weights > 0]
    if 0 < heavy.sum() < heavy.size:
        assert auc(labels, chance, weights) == pytest.approx(
            oracle.roc_auc_score(labels, chance, **given_weights)
        )
    else:
        assert math.isnan(auc(labels, chance, weights))


@given(table=tables(classes=4))
def test_metrics_of_several_classes_are_those_of_scikit_learn(table):
    labels, by_class, weights = table
    assert log_loss(labels, by_class, weights) == pytest.approx(
        oracle.log_loss(labels, by_class, labels=range(4), sample_weight=weights)
    )
    hits = np.eye(4)[labels] - by_class
    assert brier_score(labels, by_class, weights) == pytest.approx(
        np.average((hits**2).sum(axis=1), weights=weights)
    )


@given(table=tables())
def test_two_columns_say_the_same_as_one(table):
    labels, chance, weights = table
    both = np.stack([1 - chance, chance], axis=1)
    assert brier_score(labels, both, weights) == pytest.approx(brier_score(labels, chance, weights))
    assert log_loss(labels, both, weights) == pytest.approx(log_loss(labels, chance, weights))


@given(table=tables())
def test_the_auc_is_the_share_of_pairs_in_order_with_ties_counted_half(table):
    labels, chance, weights = table
    won = whole = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            pair = weights[i] * weights[j]
            whole += pair
            won += pair * (1.0 if chance[i] > chance[j] else 0.5 if chance[i] == chance[j] else 0.0)
    assert auc(labels, chance, weights) == pytest.approx(won / whole if whole else math.nan, nan_ok=True)


@given(table=tables(), bins=st.integers(1, 20))
def test_the_calibration_error_is_its_formula(table, bins):
    """Bin b holds the probabilities in ((b - 1)/B, b/B]; the first one 0 too."""
    labels, chance, weights = table
    error = 0.0
    for b in range(1, bins + 1):
        inside = [
            i
            for i in range(len(labels))
            if min(bins, max(1, math.ceil(chance[i] * bins))) == b and weights[i] > 0
        ]
        if inside:
            share = np.average(labels[inside], weights=weights[inside])
            told = np.average(chance[inside], weights=weights[inside])
            error += weights[inside].sum() / weights.sum() * abs(share - told)
    assert calibration_error(labels, chance, weights, bins=bins) == pytest.approx(error, abs=1e-12)


def test_calibration_of_several_classes_is_that_of_the_predicted_one():
    by_class = [[0.8, 0.1, 0.1], [0.8, 0.2, 0.0], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]]
    assert calibration_error([0, 1, 2, 1], by_class, bins=10) == pytest.approx((3 * (0.8 - 2 / 3) + 0.6) / 4)


@given(table=tables())
def test_an_integer_weight_counts_as_that_many_copies(table):
    labels, chance, weights = table
    copies = np.repeat(np.arange(len(labels)), weights.astype(int))
    for metric in ALL:
        assert metric(labels, chance, weights) == pytest.approx(
            metric(labels[copies], chance[copies]), nan_ok=True, abs=1e-12
        )
    predicted = (chance > 0.5).astype(int)
    for metric in (accuracy, f1):
        assert metric(labels, predicted, weights) == pytest.approx(
            metric(labels[copies], predicted[copies]), nan_ok=True
        )


@given(table=tables(), seed=st.integers(0, 10**6))
def test_the_order_of_examples_does_not_matter(table, seed):
    labels, chance, weights = table
    order = np.random.default_rng(seed).permutation(len(labels))
    for metric in ALL:
        assert metric(labels, chance, weights) == pytest.approx(
            metric(labels[order], chance[order], weights[order]), nan_ok=True, abs=1e-12
        )


@given(table=tables(), power=st.integers(1, 5))
def test_the_auc_depends_on_the_order_of_scores_alone(table, power):
    labels, chance, weights = table
    assert auc(labels, chance**power * 100 - 7, weights) == pytest.approx(
        auc(labels, chance, weights), nan_ok=True
    )
    assume(0 < (labels * weights).sum() < weights.sum())
    assert auc(labels, -chance, weights) == pytest.approx(1 - auc(labels, chance, weights))


def test_a_certain_mistake_costs_much_and_not_infinitely():
    for kind in (np.float32, np.float64):
        loss = log_loss([0, 1], np.array([1.0, 1.0], kind))
        assert loss == pytest.approx(-math.log(np.finfo(kind).eps) / 2, rel=1e-3)


def test_all_by_name_leaves_out_what_is_not_defined():
    assert set(binary_metrics([1, 1], [0.9, 0.2])) == {
        "accuracy",
        "brier_score",
        "calibration_error",
        "f1",
        "log_loss",
    }
    found = binary_metrics([0, 1, 1], [0.2, 0.7, 0.4], [1, 1, 2], threshold=0.3)
    assert found["accuracy"] == found["f1"] == found["auc"] == 1.0


@pytest.mark.parametrize("metric", [auc, brier_score, calibration_error, log_loss, f1, binary_metrics])
@pytest.mark.parametrize(
    ("labels", "told", "weights"),
    [
        ([], [], None),
        ([0, 1], [0.5], None),
        ([0, 2], [0, 1], None),
        ([0, -1], [0, 1], None),
        ([0, 0.5], [0, 1], None),
        (["no", "yes"], [0, 1], None),
        ([0, 1], ["a", "b"], None),
        ([0, 1], [0, math.nan], None),
        ([0, 1], [0, math.inf], None),
        ([0, math.nan], [0, 1], None),
        ([0, 1], [0, 1], [1]),
        ([0, 1], [0, 1], [1, -1]),
        ([0, 1], [0, 1], [0, 0]),
        ([0, 1], [0, 1], [1, math.nan]),
        ([0, 1], [0, 1], "ab"),
        ([[0, 1]], [[0, 1]], None),
        ([0, 1], [[1], [0, 1]], None),
        (None, None, None),
        (1, 1, None),
    ],
)
def test_input_of_the_wrong_kind_is_refused(metric, labels, told, weights):
    with pytest.raises(UsageError):
        metric(labels, told, weights)


@pytest.mark.parametrize("metric", [brier_score, calibration_error, log_loss])
@pytest.mark.parametrize(
    "told", [[1.5, 0.5], [-0.1, 0.5], [[0.5, 0.6], [0.5, 0.5]], [[1.0], [1.0]], [[[1.0]]]]
)
def test_what_is_no_probability_is_refused(metric, told):
    with pytest.raises(UsageError, match="probabilities"):
        metric([0, 1], told)


def test_labels_of_any_kind_have_an_accuracy_and_bins_are_a_number():
    assert accuracy(["a", "b"], ["a", "c"]) == 0.5
    with pytest.raises(UsageError, match="predicted"):
        accuracy(["a", "b"], ["a"])
    for bins in (0, 1.5, True, "10"):
        with pytest.raises(UsageError, match="bins"):
            calibration_error([0, 1], [0, 1], bins=bins)
