"""A run's rounds as TensorBoard events, by tensorboardX, which Ray's own libraries write them with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from scarcity_ray.errors import UsageError
from scarcity_ray.workloads.records import RoundRecord

MISSING_EXTRA = (
    "run.tensorboard: true needs tensorboardX; install it with: pip install 'scarcity-ray[tensorboard]'"
)


def require_tensorboard() -> None:
    """Raise `UsageError` with the command that installs it, where tensorboardX is missing."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise UsageError(MISSING_EXTRA) from None


class EventFolder:
    """A folder of events, which it makes; each round is on disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        path.mkdir()
        self._writer = EventsWriter(str(path / "events"))

    def write(self, record: RoundRecord) -> None:
        """Write a round's numbers."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in _scalars(record):
            event = Event(wall_time=time.time(), step=record.round, summary=scalar(name, value))
            self._writer.write_event(event)
        self._writer.flush()


def _scalars(record: RoundRecord) -> Iterator[tuple[str, float]]:
    yield from _under("metrics", record.metrics)
    for domain, means in record.clients.items():
        yield from _under(f"clients/{domain}", means)
    for domain, means in record.training.items():
        yield from _under(f"training/{domain}", means)
    yield "privacy/epsilon_spent", record.epsilon_spent
    yield "updates/accepted", record.accepted
    yield "updates/refused", record.num_rejected
    yield "updates/clip_norm", record.clip_norm
    yield from _under("seconds", record.seconds)


def _under(group: str, values: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    return ((f"{group}/{name}", value) for name, value in values.items())
