"""Disks that are full, or turn read-only under a federation: a call is refused, and nothing is lost by it.

On real file systems, where this user may mount some: a small tmpfs that is filled, and an ext4 in a file,
which ``remount,abort`` turns read-only as a disk's error does, with files open on it.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks._deaths_driver import CLIENTS, IDS, Silence, config, row
from benchmarks._deaths_oracle import charges, inside
from scarcity_ray import HierarchicalFederation
from scarcity_ray.actors.global_aggregator import RELEASE
from scarcity_ray.actors.kept import CODEC
from scarcity_ray.errors import LedgerError, StorageError
from scarcity_ray.storage.snapshots import Snapshots

PATHS = {"ledger": "ledger_path", "state": "storage_path", "journal": "journal_path"}
REFUSED = {
    "ledger": ["aggregate"],
    "state": ["aggregate", "advance_round", "stats"],
    "journal": ["aggregate", "advance_round"],
}
"""What such a disk stops; the other calls are answered."""
MEGABYTES = 24


def permitted(*words: str) -> None:
    """Run a command that needs rights, or skip the test."""
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as refused:
        pytest.skip(f"{words[0]} is not permitted here: {refused}")


@dataclass
class Disk:
    """A file system of its own that fails and is mended."""

    folder: Path
    kind: str

    @property
    def _image(self) -> Path:
        return self.folder.with_name("image")

    def mount(self) -> None:
        self.folder.mkdir()
        if self.kind == "full":
            permitted("mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(self.folder))
            return
        with self._image.open("wb") as file:
            file.truncate(MEGABYTES << 20)
        permitted("mkfs.ext4", "-q", str(self._image))
        permitted("mount", "-o", "loop", str(self._image), str(self.folder))

    def fail(self) -> None:
        if self.kind == "read-only":
            permitted("mount", "-o", "remount,abort", str(self.folder))
            return
        with suppress(OSError), (self.folder / "rubbish").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def mend(self) -> None:
        """One that is read-only must not be in use; Ray's processes end a moment after `terminate`."""
        if self.kind == "full":
            (self.folder / "rubbish").unlink()
            return
        deadline = time.monotonic() + 30.0
        while subprocess.run(["umount", str(self.folder)], check=False, capture_output=True).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        subprocess.run(["fsck.ext4", "-p", str(self._image)], check=False, capture_output=True)
        permitted("mount", "-o", "loop", str(self._image), str(self.folder))


@pytest.fixture
def disk(tmp_path: Path, kind: str) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk", kind)
    made.mount()
    yield made
    subprocess.run(["umount", "-l", str(made.folder)], check=True)


def refused(calls: dict[str, Callable[[], Any]]) -> list[str]:
    """The calls that a disk's error stops."""
    stopped: list[str] = []
    for name, call in calls.items():
        try:
            call()
        except (LedgerError, StorageError):
            stopped.append(name)
    return stopped


@pytest.mark.long
@pytest.mark.parametrize("kind", ["full", "read-only"])
@pytest.mark.parametrize("what", PATHS)
def test_nothing_is_lost_by_a_disk_that_fails(
    disk: Disk, tmp_path: Path, runtime: Any, kind: str, what: str
) -> None:
    """Of a full one the same federation goes on; after a read-only one it is restored."""
    settings = config(tmp_path)
    path = Path(str(getattr(settings, PATHS[what])))
    settings = replace(settings, **{PATHS[what]: str(disk.folder / path.name)})
    storage = str(settings.storage_path)
    fed = HierarchicalFederation(settings, runtime=runtime, noise=Silence())
    fed.register_clients(CLIENTS)

    def send(round_id: int, clients: Sequence[str] = IDS) -> list[bool]:
        rows = np.stack([row(client, round_id) for client in clients])
        return [receipt.accepted for receipt in fed.submit_updates(clients, rows, round_id)]

    assert all(send(0))
    assert fed.force_aggregate() is not None
    fed.advance_round()
    assert all(send(1, IDS[:8]))
    disk.fail()
    accepted = send(1, IDS[8:])
    assert any(accepted) is (what != "journal")
    stopped = {
        "aggregate": fed.force_aggregate,
        "advance_round": fed.advance_round,
        "stats": fed.get_stats,
        "budget": fed.get_privacy_budget,
    }
    assert refused(stopped) == REFUSED[what]
    if kind == "read-only":
        fed.terminate()
        fed.close()
    disk.mend()
    if kind == "read-only":
        fed = HierarchicalFederation.restore(storage, runtime=runtime, noise=Silence())
    assert not any(send(1, IDS[:8])), "they are there"
    assert send(1, IDS[8:]) == [not one for one in accepted]
    for _ in range(2):
        fed.force_aggregate()
        fed.advance_round()
        assert all(send(fed.get_stats()["current_round"]))
    assert fed.force_aggregate() is not None
    releases = Snapshots(storage).read_all(RELEASE, CODEC)
    found = Counter(update for model in releases for update in inside(model))
    assert set(found.values()) == {1}
    assert {update for update in found if update[0] < 2} == {(r, c) for r in range(2) for c in IDS}
    assert len(list(charges(Path(str(settings.ledger_path))))) == len(releases)
    fed.terminate()
    fed.close()
