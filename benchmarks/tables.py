"""An example's table: centralised, local only, plain FedAvg, clipping alone, rules; attacks and noise.

``python -m benchmarks tables hospitals [--seeds 5] [--format json]``. Reads ``examples/NAME/job.yaml``,
changed by ``--set PATH=VALUE`` as in `scarcity-ray run`, and trains its workload as arithmetic, without Ray:
the job's rounds, baskets, clip norms and budget, each rule with the noise that its own sensitivity needs.
With noise the average of the models is measured, if the job has an ``averaging_decay``. Per seed another
split, other attackers, other noise. Metrics are those of the workload's test set after the last round: the
mean over the seeds, with the lowest.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.lab.releases import Releases, Rows
from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig, stream
from scarcity_ray.layers.server_model import ServerModel
from scarcity_ray.plan import make_plan
from scarcity_ray.workloads.attacks import AttackConfig, craft, poisons
from scarcity_ray.workloads.config import Job, TrainingConfig, load_job
from scarcity_ray_client import Client, Update, Workload, train_clients

EXAMPLES = Path(__file__).parents[1] / "examples"
CENTRALISED, LOCAL_ONLY, FEDAVG = "centralised", "local only", "FedAvg, nothing clipped"
RULES = ("mean", "trimmed_mean", "geometric_median", "multi_krum")
"""Beside the job's own."""
ABOUT = frozenset({"seed", "n", "d", "name", "attack", "noise"})
"""What a line says beside its metrics."""
LOCAL_ROUNDS = 10
"""In which a client that learns alone trains on; more overfits the small ones."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A job's workload and clients at one seed."""

    workload: Workload[Any]
    federation: HierarchicalFederationConfig
    training: TrainingConfig
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


def scene_of(job: Job, seed: int) -> Scene:
    clients, share = job.clients, 0.0 if job.config.lab is None else job.config.lab.byzantine_share
    byzantine = np.zeros(len(clients), np.bool_)
    byzantine[stream(seed, "byzantine").permutation(len(clients))[: round(share * len(clients))]] = True
    return Scene(job.workload, job.config.federation, job.config.training, clients, byzantine, seed)


def job_of(example: str, seed: int, overrides: Sequence[str] = ()) -> Job:
    """An example's job with the split of a seed."""
    return load_job(EXAMPLES / example / "job.yaml", (*overrides, f"workload.args.split={seed}"))


def federated(scene: Scene, rule: str, attack: AttackConfig, noisy: bool) -> dict[str, float]:
    """The metrics after all rounds; of the rule `FEDAVG` the mean by examples of the rows as they come."""
    workload, codec, training = scene.workload, scene.workload.codec(), scene.training
    model = ServerModel.begin(
        codec.encode(workload.initial_model()),
        training.server_optimizer(),
        training.averaging_decay if noisy else None,
    )
    rng = stream(scene.seed, "tables", attack.name)
    liars = scene.byzantine & (attack.name != "none")
    poisoning = liars & poisons(attack)
    poisoned = frozenset(
        client.client_id for client, lies in zip(scene.clients, poisoning, strict=True) if lies
    )
    baskets, releases = np.zeros(len(scene.clients), np.int64), None
    if rule != FEDAVG:
        layer1 = replace(scene.federation.layer1, aggregation_method=AggregationMethod(rule))
        releases = Releases(make_plan(replace(scene.federation, layer1=layer1)), scene.baskets)
        baskets = releases.baskets
    shares = np.array([client.num_examples for client in scene.clients], np.float64)
    shares /= shares.sum()
    for number in range(training.rounds):
        rows = trained(scene, model.current, number, poisoned)
        if liars.any() and not poisoning.any():
            rows = craft(attack, rows, liars, baskets, rng, _mean if releases is None else releases.of_basket)
        if releases is None:
            delta: NDArray[np.float64] = shares @ rows.astype(np.float64)
        else:
            delta, sigma = releases.of(rows)
            delta = delta + noisy * sigma * rng.standard_normal(delta.size)
        model = model.step(delta)
    return dict(workload.evaluate(codec.decode(model.handed_out)))


def trained(scene: Scene, vectors: Rows, number: int, poisoned: frozenset[str] = frozenset()) -> Rows:
    """(clients, d) what training gives from a vector (d,), or from (clients, d), one each."""
    codec = scene.workload.codec()
    rows = np.empty((len(scene.clients), codec.dimension), np.float32)
    outcomes = train_clients(scene.workload, codec, vectors, scene.clients, number, poisoned)
    for row, outcome in zip(rows, outcomes, strict=True):
        if not isinstance(outcome, Update):
            raise SystemExit(str(outcome))
        row[:] = outcome.delta
    return rows


def _mean(rows: Rows) -> Rows:
    return rows.mean(axis=0)


def local_only(scene: Scene) -> list[dict[str, float]]:
    """Each client's own model on the common test set."""
    codec = scene.workload.codec()
    vectors = np.tile(codec.encode(scene.workload.initial_model()), (len(scene.clients), 1))
    for number in range(LOCAL_ROUNDS):
        vectors = vectors + trained(scene, vectors, number)
    return [dict(scene.workload.evaluate(codec.decode(vector))) for vector in vectors]


def lines(
    example: str, seeds: int, overrides: Sequence[str] = (), only: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """One JSON line for each run; of the rows in `only`, or of all."""
    for seed in range(seeds):
        job = job_of(example, seed, overrides)
        scene = scene_of(job, seed)
        own = str(job.config.federation.layer1.aggregation_method)
        rows = only or list(dict.fromkeys((CENTRALISED, LOCAL_ONLY, FEDAVG, *RULES, own)))
        about = {"seed": seed, "n": len(scene.clients), "d": scene.federation.vector_dim}
        if CENTRALISED in rows:
            pooled = dict(scene.workload.evaluate(scene.workload.centralised()))
            yield about | {"name": CENTRALISED, "attack": "none", "noise": False} | pooled
        if LOCAL_ONLY in rows:
            alone = local_only(scene)
            means = {key: float(np.mean([each.get(key, math.nan) for each in alone])) for key in alone[0]}
            yield about | {"name": LOCAL_ONLY, "attack": "none", "noise": False} | means
        attacks = [AttackConfig(name="none"), *(() if job.config.lab is None else job.config.lab.attacks)]
        for attack in {attack.name: attack for attack in attacks}.values():
            for rule in (row for row in rows if row not in (CENTRALISED, LOCAL_ONLY)):
                for noisy in (False, True)[: 1 if rule == FEDAVG else 2]:
                    ran = {"name": rule, "attack": attack.name, "noise": noisy}
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
    parser.add_argument("--metric", action="append", help="default: all that evaluate gives")
    parser.add_argument("--row", action="append", help="such as 'trimmed_mean'; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="in the job's file")
    chosen = parser.parse_args()
    found = []
    for line in lines(chosen.example, chosen.seeds, chosen.set, chosen.row or ()):
        found.append(line)
        if chosen.format == "json":
            print(json.dumps(line), flush=True)
    if chosen.format == "markdown":
        metrics = chosen.metric or [name for name in found[0] if name not in ABOUT]
        print("\n\n".join(markdown(found, metric) for metric in metrics))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
