"""A run's folder: its config, a line a round, the model and the summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from scarcity_ray.config import to_plain
from scarcity_ray.errors import UsageError
from scarcity_ray.workloads.config import RunConfig
from scarcity_ray.workloads.digits import NUM_CLASSES, frequencies
from scarcity_ray.workloads.records import RoundRecord, Summary

_JOBS_CACHE = frozenset({"working_dir_files", "runtime_resources"})
"""Folders of a Ray session in which a submitted job's working directory is unpacked."""


class RunFolder:
    """The folder of one run.

    Attributes:
        path: The folder, absolute; it exists, and was empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def new(cls, config: RunConfig, chosen: str | None, now: datetime) -> RunFolder:
        """Make the folder of a run.

        Args:
            config: Its name and ``run.out`` make the folder's name, with the time.
            chosen: A folder to use instead; it must be empty or not there yet.

        Raises:
            UsageError: If the chosen folder holds something, or the folder cannot be made.
        """
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
        return cls(path)

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

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved config; it can be run again as it stands."""
        text = yaml.safe_dump(to_plain(config), sort_keys=False)
        (self.path / "config.yaml").write_text(text, encoding="utf-8")

    def append_round(self, record: RoundRecord) -> None:
        """Add a line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.as_json()) + "\n")

    def write_summary(self, summary: Summary) -> None:
        """Write ``summary.json``."""
        text = json.dumps(summary.as_json(), indent=2)
        (self.path / "summary.json").write_text(text + "\n", encoding="utf-8")

    def write_model(self, model: NDArray[np.float32], config: RunConfig, epsilon_spent: float) -> None:
        """Write ``model.arrow``: a row a feature, a float32 column a digit (`read_model` reads it)."""
        claim = {"epsilon_spent": repr(epsilon_spent), "delta": repr(config.federation.total_delta)}
        self._write_table([model], config, claim, {})

    def write_basket_models(self, models: Mapping[str, NDArray[np.float32]], config: RunConfig) -> None:
        """Write ``model.arrow`` with the baskets' own models below each other and a column of baskets."""
        ids = sorted(models)
        rows = config.workload.dimension // NUM_CLASSES
        column = pa.array([basket for basket in ids for _ in range(rows)], pa.string())
        claim = {"privacy": "basket models lie outside the privacy claim"}
        self._write_table([models[basket] for basket in ids], config, claim, {"basket": column})

    def _write_table(
        self,
        models: Sequence[NDArray[np.float32]],
        config: RunConfig,
        claim: Mapping[str, str],
        first: Mapping[str, Any],
    ) -> None:
        weights = np.concatenate([model.reshape(-1, NUM_CLASSES) for model in models])
        kept = config.workload.features
        features = f"pixels / 16 - 0.5, cosine transform (DCT-II, orthonormal), the {kept} lowest frequencies"
        inputs = [f"frequency_{down}_{across}" for down, across in frequencies(kept)]
        if config.workload.random_features:
            features += "; then scarcity_ray.workloads.digits.random_fourier"
            inputs = [f"fourier_{number}" for number in range(config.workload.random_features)]
        columns = {**first, "input": pa.array([*inputs, "bias"] * len(models), pa.string())}
        columns |= {f"digit_{c}": pa.array(weights[:, c], pa.float32()) for c in range(NUM_CLASSES)}
        facts = {
            "format": "scarcity_ray softmax regression 1",
            "run": config.name,
            "features": features,
            **claim,
        }
        table = pa.table(columns).replace_schema_metadata(facts)
        with (
            pa.OSFile(str(self.path / "model.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)


def read_model(path: str | Path, basket: str | None = None) -> NDArray[np.float32]:
    """The flat model of a ``model.arrow``, or a basket's own, float32 ((features + 1) * 10,)."""
    with pa.OSFile(str(path), "rb") as source:
        table = pa.ipc.open_file(source).read_all()
    if basket is not None:
        table = table.filter(pa.array([name == basket for name in table["basket"].to_pylist()]))
    columns = [table[f"digit_{c}"].to_numpy() for c in range(NUM_CLASSES)]
    return np.stack(columns, axis=1).astype(np.float32).ravel()
