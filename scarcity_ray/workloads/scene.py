"""The clients of a job, their baskets and its attackers: the same for the federation and the runs beside."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import stream
from scarcity_ray.plan import FederationPlan
from scarcity_ray.workloads.attacks import AttackConfig, BasketRule, craft, make_attack, poisons
from scarcity_ray.workloads.config import Job, TrainingConfig, asked
from scarcity_ray_client import Client, ModelCodec, Refusal, Update, Workload, checked_metrics, train_clients
from scarcity_ray_client.loading import SourceFolder, source_folder

Rows = NDArray[np.float32]
NO_ATTACK = AttackConfig(name="none")


@dataclass(frozen=True, eq=False)
class Scene:
    """What the runs of a job share.

    Attributes:
        byzantine: (clients,) bool.
        baskets: (clients,) int64, the basket of each client.
        seed: Of the draws of clients, attacks and simulated noise.
        metric: The headline among those of `Workload.evaluate`.
    """

    workload: Workload[Any]
    codec: ModelCodec[Any]
    clients: tuple[Client, ...]
    byzantine: NDArray[np.bool_]
    baskets: NDArray[np.int64]
    training: TrainingConfig
    seed: int
    metric: str

    @classmethod
    def of(cls, job: Job, metric: str) -> Scene:
        """The scene of a job, each client in the basket that it will be assigned to."""
        seed, share = (
            job.config.federation.seed,
            0.0 if job.config.lab is None else job.config.lab.byzantine_share,
        )
        basket, count = job.config.federation.basket, len(job.clients)
        domains = ["any" if basket.allow_cross_domain else client.domain_id for client in job.clients]
        return cls(
            job.workload,
            job.codec,
            job.clients,
            byzantine_clients(count, share, seed),
            baskets_in_order(domains, basket.max_clients),
            job.config.training,
            seed,
            metric,
        )

    @property
    def start(self) -> Rows:
        """(d,) the initial model."""
        return self.codec.encode(self.workload.initial_model())

    def counts(self, plan: FederationPlan) -> list[int]:
        """What each client states with an update: its examples, or its persons where these are the unit.

        A client that names no persons beforehand counts with as many as it must have.
        """
        least = plan.config.privacy.min_persons
        if least is None:
            return [client.num_examples for client in self.clients]
        return [client.num_persons or least for client in self.clients]

    def chosen(self, number: int) -> NDArray[np.int64]:
        """The places of the clients that train in a round."""
        count = self.training.clients_per_round
        if count is None:
            return np.arange(len(self.clients))
        return np.sort(stream(self.seed, "clients", number).permutation(len(self.clients))[:count])

    def trained(
        self,
        vectors: Rows,
        places: Iterable[int],
        number: int,
        attack: AttackConfig,
        refusals: list[Refusal] | None = None,
    ) -> Rows:
        """The deltas of some clients after training from a vector (d,), or (n, d), one each.

        Args:
            refusals: Takes up those of clients that gave no update.

        Returns:
            (n, d) float32; NaN where a training gave no update.
        """
        chosen = list(places)
        clients = [self.clients[place] for place in chosen]
        lying = (self.clients[place].client_id for place in chosen if self.byzantine[place])
        poisoned = frozenset(lying if poisons(attack) else ())
        rows = np.full((len(clients), self.codec.dimension), np.nan, np.float32)
        outcomes = train_clients(self.workload, self.codec, vectors, clients, number, poisoned)
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, Update):
                row[:] = outcome.delta
            elif refusals is not None:
                refusals.append(outcome)
        return rows

    def sent(
        self,
        rows: Rows,
        places: NDArray[np.int64],
        attack: AttackConfig,
        rng: np.random.Generator,
        rule: BasketRule,
    ) -> Rows:
        """What arrives if these clients trained to `rows` and the Byzantine ones attack."""
        came = np.isfinite(rows).all(axis=1)
        who = places[came]
        if not came.any() or self.byzantine[who].all():
            return rows
        arrived = rows.copy()
        arrived[came] = craft(attack, rows[came], self.byzantine[who], self.baskets[who], rng, rule)
        return arrived

    def evaluate(self, vector: Rows) -> dict[str, float]:
        """The metrics of a model; none of one that is not finite."""
        if not np.isfinite(vector).all():
            return {}
        model, name = self.codec.decode(vector), type(self.workload).__name__
        return asked(name, "evaluate", lambda: checked_metrics(self.workload.evaluate(model)))

    def evaluate_client(self, vector: Rows, place: int) -> dict[str, float]:
        """The metrics of a model on a client's data; none where the workload does not offer that."""
        model, name = self.codec.decode(vector), type(self.workload).__name__
        return asked(
            name,
            "evaluate_client",
            lambda: checked_metrics(self.workload.evaluate_client(model, self.clients[place]) or {}),
        )


@dataclass(frozen=True, eq=False)
class Travelling:
    """A scene on its way to a task, with the modules of its workload and attackers.

    Attributes:
        content: The scene, pickled.
        sources: What must be found before it is read and attacked.
    """

    content: bytes
    sources: tuple[SourceFolder, ...]

    @classmethod
    def of(cls, scene: Scene, *attacks: AttackConfig) -> Travelling:
        """The scene, ready to go where it will be under these attacks."""
        folders = [source_folder(found) for found in (*map(make_attack, attacks), scene.workload)]
        sources = {folder.path: folder for folder in folders if folder is not None}
        return cls(pickle.dumps(scene), tuple(sources.values()))

    def read(self) -> Scene:
        """The scene, where it has arrived."""
        for folder in self.sources:
            folder.install()
        scene: Scene = pickle.loads(self.content)
        return scene


class SimulatedAttackers:
    """The job's Byzantine clients, as `fit` asks for them (`federation.fitting.Adversary`).

    Attributes:
        byzantine: Their ids.
        poisons: Whether they train by `Workload.poison`.
    """

    def __init__(self, scene: Scene, attack: AttackConfig, rule_at: Callable[[float], BasketRule]) -> None:
        self.byzantine = frozenset(
            client.client_id for client, lies in zip(scene.clients, scene.byzantine, strict=True) if lies
        )
        self.poisons = poisons(attack)
        self._attack, self._seed, self._rule_at = attack, scene.seed, rule_at

    def sent(
        self,
        round_id: int,
        client_ids: Sequence[str],
        basket_ids: Sequence[str],
        rows: Rows,
        clip_norm: float,
    ) -> Rows:
        """(n, d) float32: what clients send whose training gave `rows`."""
        lying = np.array([client_id in self.byzantine for client_id in client_ids], dtype=np.bool_)
        if lying.all():
            return rows
        _, baskets = np.unique(np.asarray(basket_ids), return_inverse=True)
        rng = stream(self._seed, "attack", round_id)
        return craft(self._attack, rows, lying, baskets.astype(np.int64), rng, self._rule_at(clip_norm))


def byzantine_clients(num_clients: int, share: float, seed: int) -> NDArray[np.bool_]:
    """(clients,) bool: who attacks, drawn at random over all clients.

    Guarantees:
        The Byzantine number is exact.
    """
    byzantine = np.zeros(num_clients, dtype=np.bool_)
    chosen = stream(seed, "population", "byzantine").permutation(num_clients)
    byzantine[chosen[: round(share * num_clients)]] = True
    return byzantine


def baskets_in_order(domains: Sequence[str], max_clients: int) -> NDArray[np.int64]:
    """The basket of each client when baskets fill up in the order of registration, (clients,) int64."""
    numbers: dict[tuple[str, int], int] = {}
    seen: dict[str, int] = {}
    baskets = np.empty(len(domains), dtype=np.int64)
    for row, domain in enumerate(domains):
        place = seen.get(domain, 0)
        seen[domain] = place + 1
        baskets[row] = numbers.setdefault((domain, place // max_clients), len(numbers))
    return baskets
