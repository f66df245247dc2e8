"""JSON log lines and OpenTelemetry spans: off until they are asked for, with ids and no values."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, UsageError
from scarcity_ray.monitoring.logs import JsonLines, use_json_logs
from scarcity_ray.monitoring.traces import start_traces
from scarcity_ray.tracing import TRACES, current, span
from tests.monitoring.test_status import NOW, config_of

logger = logging.getLogger("scarcity_ray")


@pytest.fixture
def lines() -> Iterator[Any]:
    stream, was = io.StringIO(), (logger.level, logger.propagate)
    handler = use_json_logs(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.level, logger.propagate = was


def test_every_line_is_one_json_object(lines: Any) -> None:
    for message in ("plain", 'a "b"\nc\u2028\x00'):
        logger.info("%s", message)
    try:
        raise ValueError("inside")
    except ValueError:
        logger.exception("it failed")
    told = lines()
    assert [line["level"] for line in told] == ["info"] * 2 + ["error"]
    assert "ValueError: inside" in told[-1]["exception"]
    assert told[1]["message"] == 'a "b"\nc\u2028\x00'
    # By itself: pytest-xdist cannot send what pytest captures of a lone surrogate.
    record = logging.makeLogRecord({"msg": "\udcff"})
    assert json.loads(JsonLines().format(record).encode())["message"] == "\udcff"


def test_lines_of_an_operation_share_its_id(lines: Any) -> None:
    with span("round", federation="f", round=3, nothing=None):
        logger.info("begun")
        with span("layer1"):
            logger.info("within")
    logger.info("outside")
    begun, within, outside = lines()
    assert {key: begun[key] for key in ("federation", "round", "operation")} == {
        "federation": "f",
        "round": 3,
        "operation": "round",
    }
    assert begun["operation_id"] == within["operation_id"]
    assert (within["phase"], within["round"]) == ("layer1", 3)
    assert "operation" not in outside
    assert "nothing" not in begun
    assert dict(current()) == {}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The spans of this process so far, in memory."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


def released(tmp_path: Any) -> str:
    """A federation that makes one release; its id."""
    clients = [(f"ward-{n}", f"region-{n % 3}") for n in range(12)]
    with HierarchicalFederation(config_of(tmp_path), runtime="local", clock=lambda: NOW) as fed:
        fed.register_clients(clients)
        fed.submit_updates([client for client, _ in clients], np.ones((12, 8)) / 9)
        assert fed.force_aggregate() is not None
        return fed.federation_id


def test_a_release_is_a_span_with_its_phases(tmp_path: Any, exported: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv(TRACES, "1")
    federation_id = released(tmp_path)
    spans = {found.name: found for found in exported.get_finished_spans()}
    outer = spans["scarcity_ray.aggregate"]
    assert outer.attributes["scarcity_ray.federation"] == federation_id
    for phase in ("scarcity_ray.layer1", "scarcity_ray.layer2"):
        assert spans[phase].parent.span_id == outer.context.span_id
        assert (
            spans[phase].attributes["scarcity_ray.operation_id"]
            == outer.attributes["scarcity_ray.operation_id"]
        )
    told = {str(value) for found in spans.values() for value in found.attributes.values()}
    assert not any("ward" in value for value in told)


def test_nothing_is_traced_until_it_is_asked_for(tmp_path: Any, exported: Any, monkeypatch: Any) -> None:
    for off in ("", "0"):
        monkeypatch.setenv(TRACES, off)
        with span("round"):
            pass
    assert exported.get_finished_spans() == ()


def test_traces_without_the_extra_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UsageError, match=r"pip install 'scarcity-ray\[otel\]'"):
        start_traces()
