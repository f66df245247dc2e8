"""What a client reports of its metrics, and the mean that is read from noised means of the reports."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcity_ray_client import NoisedMean, PrivateEvaluation, UsageError

ASKED = PrivateEvaluation({"auc": (0.0, 1.0), "loss": (0.5, 4.5)}, max_examples=200)


@settings(max_examples=60)
@given(
    found=st.dictionaries(
        st.sampled_from(["auc", "loss", "other"]), st.floats(allow_nan=True, allow_infinity=True)
    ),
    examples=st.one_of(st.integers(-5, 10**9), st.just(10**400)),
)
def test_no_report_leaves_its_range(found: dict[str, float], examples: int) -> None:
    report, ranges = ASKED.report(found, examples), ASKED.meta_parameters()
    assert report.keys() == ranges.keys()
    for name, (low, high) in ranges.items():
        assert low <= report[name] <= high


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_client_without_the_metric_weighs_nothing(value: float | None) -> None:
    found = {"loss": 1.5} if value is None else {"loss": 1.5, "auc": value}
    report = ASKED.report(found, 100)
    assert (report["auc_times_examples"], report["auc_examples"]) == (0.0, 0.0)
    assert (report["loss_times_examples"], report["loss_examples"]) == (-0.25, 0.5)


def released(evaluation: PrivateEvaluation, values: dict[str, float], sigma: float) -> dict[str, NoisedMean]:
    """A release's means, with noise of this deviation on [-1, 1]."""
    halves = {name: (high - low) / 2 for name, (low, high) in evaluation.meta_parameters().items()}
    return {name: NoisedMean(values[name], sigma * halves[name]) for name in halves}


@settings(max_examples=60)
@given(
    clients=st.lists(
        st.tuples(st.floats(0.5, 4.5), st.integers(1, 1000), st.floats(0.01, 1.0), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_without_noise_it_is_the_weighted_mean(clients: list[tuple[float, int, float, bool]]) -> None:
    """Against NumPy's, with weights that the baskets bring and clients that lack the metric."""
    reports = [ASKED.report({"loss": loss} if has else {}, n) for loss, n, _, has in clients]
    shares = np.array([share for _, _, share, _ in clients])
    means = {name: float(np.mean([r[name] for r in reports] * shares)) for name in reports[0]}
    found = ASKED.read(released(ASKED, means, 0.0))
    weights = [min(n, 200) * share * has for _, n, share, has in clients]
    assert found["auc"].mean is None
    assert found["loss"].examples == pytest.approx(np.mean(weights), abs=1e-12)
    if not any(weights):
        assert found["loss"].mean is None
        return
    assert found["loss"].mean == pytest.approx(np.average([c[0] for c in clients], weights=weights))
    assert found["loss"].standard_error == 0.0


@pytest.mark.parametrize(("over_noise", "least", "most"), [(25.0, 0.94, 0.96), (6.0, 0.94, 0.98)])
@pytest.mark.parametrize("place", [-0.6, 0.0, 0.8])
def test_the_error_is_within_the_stated_one_as_often_as_a_normal_variable(
    place: float, over_noise: float, least: float, most: float
) -> None:
    """The share of 20,000 estimates within 1.96 standard errors.

    Near the bound on the count the ratio is not quite normal (0.96 to 0.97). The draws are fixed; fresh ones
    would pass a bound by chance, five standard deviations of 0.0016 each, once in a million.
    """
    rng, asked, count = np.random.default_rng(5), PrivateEvaluation({"auc": (0.0, 1.0)}, 200), 0.8
    sigma, inside, told = count / over_noise, 0, 0
    for noise in rng.standard_normal((20_000, 2)):
        found = asked.read(
            {
                "auc_times_examples": NoisedMean(place * count + 2 * sigma * noise[0], 2 * sigma),
                "auc_examples": NoisedMean(count + sigma * noise[1], sigma),
            }
        )["auc"]
        if found.mean is not None and found.standard_error is not None:
            told += 1
            inside += abs(found.mean - (0.5 + place / 2)) < 1.96 * found.standard_error
    assert told > 19_000
    assert least < inside / told < most


def test_a_mean_of_a_count_that_noise_dominates_is_unknown() -> None:
    values = {
        "auc_times_examples": 0.1,
        "auc_examples": 0.4,
        "loss_times_examples": 0.9,
        "loss_examples": 0.3,
    }
    loud, quiet = (ASKED.read(released(ASKED, values, sigma)) for sigma in (0.21, 0.19))
    assert (loud["auc"].mean, loud["auc"].standard_error) == (None, None)
    assert str(loud["auc"]).startswith("unknown")
    assert quiet["auc"].mean == pytest.approx(0.625)
    assert quiet["auc"].standard_error == pytest.approx(0.5 * math.hypot(0.19, 0.25 * 0.095) / 0.4)
    assert (quiet["auc"].examples, quiet["auc"].examples_error) == pytest.approx((80.0, 19.0))
    assert quiet["loss"].mean is None
    assert ASKED.read(released(ASKED, values, 0.01))["loss"].mean == 4.5, "within its range"


def test_what_cannot_be_measured_is_refused() -> None:
    for metrics in (
        {},
        None,
        {"": (0, 1)},
        {"auc": (1, 0)},
        {"auc": (0, math.inf)},
        {"auc": "01"},
        {3: (0, 1)},
    ):
        with pytest.raises(UsageError, match="metrics"):
            PrivateEvaluation(metrics, 10)  # type: ignore[arg-type]
    for most in (0, 1.5, True, None):
        with pytest.raises(UsageError, match="max_examples"):
            PrivateEvaluation({"auc": (0, 1)}, most)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one name"):
        PrivateEvaluation({"a_times": (0, 1), "a": (0, 1)}, 10)
