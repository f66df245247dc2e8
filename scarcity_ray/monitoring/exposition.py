"""Samples in the text format that Prometheus scrapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scarcity_ray.runtime.samples import Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(samples: Iterable[Sample]) -> bytes:
    """The samples as Prometheus reads them, label values escaped, for `CONTENT_TYPE`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Samples(samples))
    return generate_latest(registry)


class _Samples(Collector):
    def __init__(self, samples: Iterable[Sample]) -> None:
        self._families: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            self._families[sample.metric.name].append(sample)

    def collect(self) -> Iterator[Metric]:
        for samples in self._families.values():
            metric = samples[0].metric
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.description, labels=metric.labels)
            for sample in samples:
                family.add_metric([sample.labels[name] for name in metric.labels], sample.value)
            yield family


__all__ = ["CONTENT_TYPE", "exposition"]
