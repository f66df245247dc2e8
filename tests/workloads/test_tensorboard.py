"""A run's rounds as TensorBoard reads them."""

from __future__ import annotations

import builtins
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scarcity_ray.errors import UsageError
from scarcity_ray.workloads.config import load_run
from scarcity_ray.workloads.records import RoundRecord
from scarcity_ray.workloads.run_folder import RunFolder

pytest.importorskip("sklearn")
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def record_of(number: int) -> RoundRecord:
    return RoundRecord(
        *(number, {"auc": 0.5 + number}, 1.5 * number, 2.0, 10, 9, {"not_finite": 1}, 3, True, 1.0),
        *({"gossip": 0.25}, 1.0),
        clients={"north": {"loss": 0.75}},
    )


def scalars_in(folder: Path) -> Iterator[tuple[int, str, float]]:
    """TensorFlow's records: length, its checksum, an event, its checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    (file,) = folder.iterdir()
    content, at = file.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
        yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)
        at += 16 + length


def test_each_round_is_on_disk_when_it_is_over(tmp_path):
    pytest.importorskip("tensorboardX")
    folder = RunFolder.new(load_run(QUICKSTART, ["run.tensorboard=true"]), str(tmp_path), NOW)
    for number in (1, 2):
        folder.append_round(record_of(number))
        assert max(step for step, _, _ in scalars_in(tmp_path / "tensorboard")) == number
    assert {tag: value for step, tag, value in scalars_in(tmp_path / "tensorboard") if step == 2} == {
        "metrics/auc": 2.5,
        "clients/north/loss": 0.75,
        "privacy/epsilon_spent": 3.0,
        "updates/accepted": 9.0,
        "updates/refused": 1.0,
        "updates/clip_norm": 1.0,
        "seconds/gossip": 0.25,
    }


def test_without_the_extra_the_command_that_installs_it_is_told_before_a_folder_is_made(
    tmp_path, monkeypatch
):
    original = builtins.__import__

    def without(name: str, *args: object, **named: object) -> object:
        if name == "tensorboardX":
            raise ImportError(name)
        return original(name, *args, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    config = load_run(QUICKSTART, ["run.tensorboard=true"])
    with pytest.raises(UsageError, match=r"pip install 'scarcity-ray\[tensorboard\]'"):
        RunFolder.new(config, str(tmp_path / "new"), NOW)
    assert not (tmp_path / "new").exists()


@pytest.mark.long
def test_no_events_are_written_unless_they_are_asked_for(tmp_path):
    RunFolder.new(load_run(QUICKSTART), str(tmp_path), NOW).append_round(record_of(1))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
