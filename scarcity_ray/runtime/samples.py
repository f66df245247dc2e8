"""Metrics as plain data: a metric, a sample of it, a panel that shows some. Nothing here knows Ray."""

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


@dataclass(frozen=True)
class Query:
    """One query of a panel.

    Attributes:
        expr: In PromQL.
        legend: Of each series, with ``{{label}}``.
    """

    expr: str
    legend: str


@dataclass(frozen=True)
class PanelSpec:
    """One panel of a dashboard.

    Attributes:
        unit: As Grafana names it.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
