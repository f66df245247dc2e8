"""A run's folder: its config, a line a round, its models and the summary."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from scarcity_ray.config import to_plain
from scarcity_ray.errors import UsageError
from scarcity_ray.secagg import Roster
from scarcity_ray.workloads.config import FORMAT_VERSION, RunConfig
from scarcity_ray.workloads.records import RoundRecord, Summary
from scarcity_ray.workloads.tensorboard import EventFolder, require_tensorboard
from scarcity_ray_client import save_model
from scarcity_ray_client.receipts import ReleaseRecord

CONFIG = "config.yaml"
"""The file of a run's resolved config."""
METRICS = "metrics.jsonl"
"""The file with a line for each round."""
RELEASES = "releases.jsonl"
"""The file with a line for each release, where there are receipts."""
_STATED = {"format_version": FORMAT_VERSION}
_JOBS_CACHE = frozenset({"working_dir_files", "runtime_resources"})
"""Folders of a Ray session in which a submitted job's working directory is unpacked."""


class RunFolder:
    """The folder of one run.

    Attributes:
        path: The folder, absolute; it exists, and was empty when the run began.
        begun: When it was made.
    """

    def __init__(
        self, path: Path, begun: datetime, *, rounds_kept: int | None, tensorboard: bool = False
    ) -> None:
        self.path = path
        self.begun = begun
        self._rounds_kept = rounds_kept
        self._events = EventFolder(path / "tensorboard") if tensorboard else None

    @classmethod
    def new(cls, config: RunConfig, chosen: str | None, now: datetime) -> RunFolder:
        """Make the folder of a run.

        Args:
            config: Its name and ``run.out`` make the folder's name, with the time.
            chosen: A folder to use instead; it must be empty or not there yet.

        Raises:
            UsageError: If the chosen folder holds something, or the folder cannot be made; or if
                ``run.tensorboard`` is true and tensorboardX is not installed.
        """
        if config.run.tensorboard:
            require_tensorboard()
        stamped = Path(config.run.out).expanduser().absolute() / f"{config.name}-{now:%Y%m%d-%H%M%S}"
        path = Path(chosen).expanduser().absolute() if chosen else stamped
        number = 2
        while chosen is None and path.exists():
            path = stamped.with_name(f"{stamped.name}-{number}")
            number += 1
        try:
            path.mkdir(parents=True, exist_ok=True)
            taken = next(path.iterdir(), None)
        except OSError as error:
            raise UsageError(f"--out {path}: {error.strerror}; give a folder that can be written") from None
        if taken is not None:
            raise UsageError(f"--out {path} is not empty (it holds {taken.name}); give a new or empty folder")
        kept = config.federation.retention.metrics_rounds
        return cls(path, now, rounds_kept=kept, tensorboard=config.run.tensorboard)

    @classmethod
    def resumed(cls, config: RunConfig, path: Path, now: datetime) -> RunFolder:
        """The folder of a run that goes on; nothing in it is changed before `begin_again`."""
        if config.run.tensorboard:
            require_tensorboard()
        return cls(path, now, rounds_kept=config.federation.retention.metrics_rounds)

    @property
    def holds_results(self) -> bool:
        """Whether a round was completed, or a model released."""
        return any((self.path / name).exists() for name in (METRICS, "model.npz"))

    def begin_again(self, config: RunConfig) -> None:
        """Write the config, and the rounds again from the first on.

        To be called once it is certain that the run goes on: it runs nowhere else, and has this config.
        """
        self.write_config(config)
        (self.path / METRICS).unlink(missing_ok=True)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        self._events = EventFolder(self.path / "tensorboard") if config.run.tensorboard else None

    @property
    def state(self) -> Path:
        """Where the federation keeps its state, if the config names no other place."""
        return self.path / "state"

    @property
    def passing(self) -> str | None:
        """Why what is written here will not stay, and what to do; None if nothing is known against it."""
        if _JOBS_CACHE.isdisjoint(self.path.parts):
            return None
        return (
            f"{self.path} lies in Ray's cache of submitted jobs, which Ray empties: give --out with an "
            "absolute path on this machine, or copy the results away"
        )

    @property
    def report(self) -> Path:
        """The path of the report."""
        return self.path / "report.html"

    def left(self, command: str = "run") -> str:
        """What a run that ended in the middle has left, in a sentence; "" if no more than its config.

        Args:
            command: That goes on with it.
        """
        held = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
        if not held:
            self.path.rmdir()
        if set(held) <= {CONFIG}:
            return ""
        reached = "No round was completed"
        if METRICS in held and (last := self._last_round()):
            spent = last["epsilon_spent"]
            reached = f"Ended after round {last['round']}"
            reached += "" if spent is None else f", with epsilon {spent:.4g} spent by then"
        go_on = f" Go on with: scarcity-ray {command} --resume {self.path}" if self.state.name in held else ""
        return (
            f"{reached}; a round under way may have been charged. {self.path} holds {', '.join(held)}.{go_on}"
        )

    def _last_round(self) -> dict[str, Any]:
        """The last whole line of the rounds; empty if there is none."""
        for line in reversed((self.path / METRICS).read_text(encoding="utf-8").splitlines()):
            try:
                record: dict[str, Any] = json.loads(line)
            except ValueError:  # torn: the run was killed as it wrote
                continue
            return record
        return {}

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved config; it can be run again as it stands."""
        text = yaml.safe_dump({**_STATED, **to_plain(config)}, sort_keys=False)
        beside = self.path / f".{CONFIG}"
        beside.write_text(text, encoding="utf-8")
        beside.replace(self.path / CONFIG)

    def append_round(self, record: RoundRecord) -> None:
        """Add a line to ``metrics.jsonl``, and to TensorBoard's events where they are wanted.

        With ``retention.metrics_rounds`` the oldest lines go.
        """
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**_STATED, **record.as_json()}) + "\n")
        if self._rounds_kept is not None:
            self._drop_old_rounds(self._rounds_kept)
        if self._events is not None:
            self._events.write(record)

    def append_release(self, record: ReleaseRecord, roster: Roster | None) -> None:
        """Keep what an audit of receipts needs of a release, unless it is kept already.

        Args:
            roster: With the baskets' keys at that time.
        """
        file = self.path / RELEASES
        told = file.read_text(encoding="utf-8") if file.exists() else ""
        whole = told[: told.rfind("\n") + 1]  # without what was torn: the run was killed as it wrote
        if roster is not None:
            (self.path / f"roster-{roster.epoch}.json").write_text(roster.to_json(), encoding="utf-8")
        if not whole or ReleaseRecord.from_text(whole.splitlines()[-1]).version < record.version:
            beside = self.path / f".{RELEASES}"
            beside.write_text(f"{whole}{record.to_text()}\n", encoding="utf-8")
            beside.replace(file)

    def _drop_old_rounds(self, kept: int) -> None:
        path = self.path / METRICS
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if len(lines) > kept:
            beside = self.path / f".{METRICS}"
            beside.write_text("".join(lines[-kept:]), encoding="utf-8")
            beside.replace(path)

    def write_summary(self, summary: Summary) -> None:
        """Write ``summary.json``."""
        text = json.dumps({**_STATED, **summary.as_json()}, indent=2)
        (self.path / "summary.json").write_text(text + "\n", encoding="utf-8")

    def write_model(self, name: str, model: object) -> None:
        """Write a model; `scarcity_ray_client.load_model` reads it."""
        save_model(self.path / name, model)
