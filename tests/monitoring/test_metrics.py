"""Metrics as Prometheus reads them: names, types, labels and values."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scarcity_ray.monitoring.exposition import exposition
from scarcity_ray.monitoring.metrics import METRICS, PREFIX
from scarcity_ray.runtime.samples import Sample

HOSTILE = 'a"b\\c\nd} 1\n# TYPE x counter'


def test_names_are_prefixed_described_and_unlike() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS) > 30
    for metric in METRICS:
        assert metric.name.startswith(PREFIX)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.labels[0] == "federation"
        assert metric.description.endswith(".")
        assert not {"client", "client_id", "site"} & set(metric.labels)


def test_what_is_written_is_read_back_whatever_a_label_holds() -> None:
    samples = [
        Sample(metric, place + 0.5, dict.fromkeys(metric.labels, HOSTILE))
        for place, metric in enumerate(METRICS)
    ]
    families = list(text_string_to_metric_families(exposition(samples).decode()))
    read = {sample.name: sample for family in families for sample in family.samples}
    assert set(read) == {metric.name for metric in METRICS}
    for sample in samples:
        found = read[sample.metric.name]
        assert (found.value, found.labels) == (sample.value, dict(sample.labels))
    assert {family.type for family in families} == {"gauge", "counter"}


@pytest.mark.parametrize("value", [0.0, -1.0, 1e300, math.inf])
def test_every_number_survives(value: float) -> None:
    (family,) = text_string_to_metric_families(
        exposition([Sample(METRICS[0], value, dict.fromkeys(METRICS[0].labels, "x"))]).decode()
    )
    assert family.samples[0].value == value
