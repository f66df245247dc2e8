"""Samples into Ray's metrics, which each node's agent serves to Prometheus with ``ray_`` before the name."""

from __future__ import annotations

from collections.abc import Iterable

from ray.util.metrics import Counter, Gauge

from scarcity_ray.runtime.samples import Metric, Sample

_made: dict[str, Counter | Gauge] = {}
"""By name: Ray knows a metric once a process."""


class RayMetrics:
    """One driver's samples on their way to Ray: gauges are set, counters moved on by what is new."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def publish(self, samples: Iterable[Sample]) -> None:
        """Record samples; a counter that stands lower than before has begun anew."""
        for sample in samples:
            labels = dict(sample.labels)
            made = _of(sample.metric)
            if isinstance(made, Gauge):
                made.set(sample.value, tags=labels)
                continue
            key = sample.metric.name, tuple(sorted(labels.items()))
            before = self._told.get(key, 0.0)
            news = sample.value - before if sample.value >= before else sample.value
            self._told[key] = sample.value
            if news > 0:
                made.inc(news, tags=labels)


def _of(metric: Metric) -> Counter | Gauge:
    if metric.name not in _made:
        # Ray puts _total behind a counter's name itself.
        kind, name = (Counter, metric.name.removesuffix("_total"))
        if metric.kind == "gauge":
            kind, name = Gauge, metric.name
        _made[metric.name] = kind(name, metric.description, metric.labels)
    return _made[metric.name]
