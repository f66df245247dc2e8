"""Run with `python -m pytest` in this folder: a rule with a fault fails, with the list of its faults."""

from __future__ import annotations

from custom_rules import MedianOfMeans, ThresholdedMean

from scarcity_ray.testing import check_rule


def test_median_of_means() -> None:
    """It has no fault, and stands sign flips better than the mean."""
    report = check_rule(MedianOfMeans)
    assert report.errors["sign_flip"] < report.mean_errors["sign_flip"]


def test_thresholded_mean() -> None:
    """It has no fault, and one row may move it about as far as it states."""
    report = check_rule(ThresholdedMean, {"radius": 0.4})
    assert all(movement.found > 0.9 * movement.stated for movement in report.movements), "the bound is tight"
