"""Metrics as plain data: what a metric is, and a sample of it. Nothing here knows Ray or Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: With its unit, as Prometheus names metrics; a counter's ends in ``_total``.
        kind: A gauge goes up and down; a counter only rises, and begins anew with its process.
        description: For whoever reads it on a dashboard.
        labels: Names of its labels, ``federation`` first. None of them is ever a client's id.
    """

    name: str
    kind: Literal["gauge", "counter"]
    description: str
    labels: tuple[str, ...] = ("federation",)


@dataclass(frozen=True)
class Sample:
    """A value of a metric now; of a counter, how far it has come.

    Attributes:
        labels: A value for each of the metric's labels.
    """

    metric: Metric
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
