"""An example's table: centralised, local only, plain FedAvg, clipping alone, rules; attacks and noise.

``python -m benchmarks tables hospitals [--seeds 5] [--format json]``. Reads ``examples/NAME/job.yaml`` and
trains its workload as arithmetic, without Ray: the job's rounds, baskets, clip norms and budget, each rule
with the noise that its own sensitivity needs. Per seed another split, other attackers, other noise. Metrics
are those of the workload's test set after the last round: the mean over the seeds, with the lowest.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.lab.releases import Releases, Rows
from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig, load, stream
from scarcity_ray.config.yaml_text import read_yaml
from scarcity_ray.plan import make_plan
from scarcity_ray.workloads.attacks import AttackConfig, craft
from scarcity_ray_client import Client, Trained, Workload
from scarcity_ray_client.loading import load_workload

EXAMPLES = Path(__file__).parents[1] / "examples"
FEDAVG = "FedAvg, nothing clipped"
RULES = ("mean", "trimmed_mean", "geometric_median", "multi_krum")
"""Beside the job's own."""
LOCAL_ROUNDS = 10
"""In which a client that learns alone trains on; more overfits the small ones."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A job's workload and clients at one seed."""

    workload: Workload[Any]
    federation: HierarchicalFederationConfig
    rounds: int
    learning_rate: float
    clients: tuple[Client, ...]
    byzantine: NDArray[np.bool_]
    seed: int

    @property
    def baskets(self) -> NDArray[np.int64]:
        """(clients,) the basket of each: a domain's clients fill baskets up in order."""
        names: dict[tuple[str, int], int] = {}
        seen: Counter[str] = Counter()
        found = []
        for client in self.clients:
            key = client.domain_id, seen[client.domain_id] // self.federation.basket.max_clients
            seen[client.domain_id] += 1
            found.append(names.setdefault(key, len(names)))
        return np.array(found)


def scene_of(job: dict[str, Any], folder: Path, seed: int) -> Scene:
    workload = load_workload(job["workload"]["class"], {**job["workload"]["args"], "split": seed}, folder)
    clients = tuple(workload.clients())
    byzantine = np.zeros(len(clients), np.bool_)
    attackers = round(job["lab"]["byzantine_share"] * len(clients))
    byzantine[stream(seed, "byzantine").permutation(len(clients))[:attackers]] = True
    training = job["training"]
    return Scene(
        workload,
        load(HierarchicalFederationConfig, job["federation"], "federation"),
        training["rounds"],
        training["optimizer"]["learning_rate"],
        clients,
        byzantine,
        seed,
    )


def federated(scene: Scene, rule: str, attack: str, noisy: bool) -> dict[str, float]:
    """The metrics after all rounds; of the rule `FEDAVG` the mean by examples of the rows as they come."""
    workload, codec = scene.workload, scene.workload.codec()
    vector = codec.encode(workload.initial_model())
    rng = stream(scene.seed, "tables", attack)
    liars = scene.byzantine & (attack != "none")
    baskets, releases = np.zeros(len(scene.clients), np.int64), None
    if rule != FEDAVG:
        layer1 = replace(scene.federation.layer1, aggregation_method=AggregationMethod(rule))
        releases = Releases(make_plan(replace(scene.federation, layer1=layer1)), scene.baskets)
        baskets = releases.baskets
    shares = np.array([client.num_examples for client in scene.clients], np.float64)
    shares /= shares.sum()
    for number in range(scene.rounds):
        rows = np.empty((len(scene.clients), codec.dimension), np.float32)
        for place, client in enumerate(scene.clients):
            train = workload.poison if attack == "poison" and liars[place] else workload.train
            trained = train(codec.decode(vector), client, number)
            if not isinstance(trained, Trained) or trained.model is None:
                raise SystemExit(f"{client.client_id} gave no model")
            rows[place] = codec.encode(trained.model).astype(np.float64) - vector
        if attack not in ("none", "poison"):
            known = _mean if releases is None else releases.of_basket
            rows = craft(load(AttackConfig, {"name": attack}), rows, liars, baskets, rng, known)
        if releases is None:
            delta: NDArray[np.float64] = shares @ rows.astype(np.float64)
        else:
            delta, sigma = releases.of(rows)
            delta = delta + noisy * sigma * rng.standard_normal(delta.size)
        vector = (vector + scene.learning_rate * delta).astype(np.float32)
    return dict(workload.evaluate(codec.decode(vector)))


def _mean(rows: Rows) -> Rows:
    return rows.mean(axis=0)


def local_only(scene: Scene) -> list[dict[str, float]]:
    """Each client's own model on the common test set."""
    found = []
    for client in scene.clients:
        model = scene.workload.initial_model()
        for number in range(LOCAL_ROUNDS):
            model = scene.workload.train(model, client, number).model
        found.append(dict(scene.workload.evaluate(model)))
    return found


def lines(job: dict[str, Any], folder: Path, seeds: int) -> Iterator[dict[str, Any]]:
    """One JSON line for each run."""
    attacks = list(dict.fromkeys(("none", job["lab"]["attack"]["name"], *job["lab"]["compare_attacks"])))
    own = job["federation"]["layer1"]["aggregation_method"]
    rules = list(dict.fromkeys((*RULES, own)))
    for seed in range(seeds):
        scene = scene_of(job, folder, seed)
        about = {"seed": seed, "n": len(scene.clients), "d": scene.federation.vector_dim}
        pooled = scene.workload.evaluate(scene.workload.centralised())
        yield about | {"name": "centralised", "attack": "none", "noise": False} | dict(pooled)
        alone = local_only(scene)
        means = {key: float(np.mean([each.get(key, math.nan) for each in alone])) for key in alone[0]}
        yield about | {"name": "local only", "attack": "none", "noise": False} | means
        for attack in attacks:
            for rule in (FEDAVG, *rules):
                for noisy in (False, True)[: 1 if rule == FEDAVG else 2]:
                    ran = {"name": rule, "attack": attack, "noise": noisy}
                    yield about | ran | federated(scene, rule, attack, noisy)


def markdown(found: list[dict[str, Any]], metric: str) -> str:
    """One metric: a row for each way to train, a column for each attack without and with noise."""
    columns = list(dict.fromkeys((line["attack"], line["noise"]) for line in found))
    columns.sort(key=lambda column: column[1])
    heads = [f"{attack.replace('_', ' ')}{', DP' if noise else ''}" for attack, noise in columns]
    text = [f"| {metric.replace('_', ' ')} | " + " | ".join(heads) + " |", "|---" + "|--:" * len(heads) + "|"]
    for name in dict.fromkeys(line["name"] for line in found):
        cells = []
        for attack, noise in columns:
            at = (name, attack, noise)
            values = [
                line[metric]
                for line in found
                if (line["name"], line["attack"], line["noise"]) == at and metric in line
            ]
            cells.append(f"{np.mean(values):.3f} ({min(values):.2f})" if values else "")
        text.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("example", choices=sorted(path.parent.name for path in EXAMPLES.glob("*/job.yaml")))
    parser.add_argument("--format", choices=("markdown", "json"), default="markdown")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--metric", action="append", help="default: auc, f1 and calibration_error")
    chosen = parser.parse_args()
    folder = EXAMPLES / chosen.example
    found = []
    for line in lines(read_yaml(folder / "job.yaml"), folder, chosen.seeds):
        found.append(line)
        if chosen.format == "json":
            print(json.dumps(line), flush=True)
    if chosen.format == "markdown":
        metrics = chosen.metric or ["auc", "f1", "calibration_error"]
        print("\n\n".join(markdown(found, metric) for metric in metrics))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
