"""The driver of `test_restored_cluster`: ``python -m ... begin|restore FOLDER``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.privacy.sampling.noise import SeededNoise
from tests.federation.test_fitting import SETTINGS, Towards

ROUNDS = 4


def config(folder: Path) -> HierarchicalFederationConfig:
    """With a journal, and masks."""
    folder.mkdir(exist_ok=True)
    return load(
        HierarchicalFederationConfig,
        {
            **SETTINGS,
            "layer2": {**SETTINGS["layer2"], "use_secure_aggregation": True},
            "ledger_path": str(folder / "ledger.sqlite"),
            "storage_path": str(folder / "state"),
        },
    )


def main(verb: str, folder: Path) -> None:
    """Begin or go on, telling each round as it is done."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False)
    given: dict[str, Any] = {"noise": SeededNoise(1), "clock": lambda: 1e9}
    if verb == "begin":
        federation = HierarchicalFederation(config(folder), name="town", **given)
    else:
        federation = HierarchicalFederation.restore(str(folder / "state"), **given)
    result = federation.fit(
        Towards(),
        rounds=ROUNDS,
        resume=verb == "restore",
        on_round=lambda record: print(f"round {record.round_id} {record.versions}", flush=True),
    )
    print("model", result.vector.tobytes().hex())
    print("spent", repr(result.epsilon_spent), flush=True)
    federation.terminate()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], Path(sys.argv[2]))
