"""OpenTelemetry traces of operations and their phases, where they are asked for (extra ``otel``)."""

from __future__ import annotations

import atexit

from scarcity_ray.errors import UsageError
from scarcity_ray.tracing import TRACES


def start_traces() -> None:
    """Export this process's spans by OTLP over HTTP, as the standard ``OTEL_*`` variables say.

    ``OTEL_EXPORTER_OTLP_ENDPOINT`` is the collector, this machine's port 4318 by default. A program that has
    set a tracer provider keeps it.

    Raises:
        UsageError: If the extra ``otel`` is not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UsageError(
            f"{TRACES}: traces need {error.name}; pip install 'scarcity-ray[otel]', or unset {TRACES}"
        ) from None
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    provider = TracerProvider(resource=Resource.create({"service.name": "scarcity_ray"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    atexit.register(provider.shutdown)


__all__ = ["start_traces"]
