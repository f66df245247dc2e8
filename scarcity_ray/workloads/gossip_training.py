"""Training without Layer 2: every client keeps a model of its own, and gossip alone connects them.

Decentralised gradient descent (Lian et al. 2017; Koloskova et al. 2020, algorithm 1): in a round each client
takes its local steps from its own model and then moves towards its peers' models. A client sends the
difference of its model to the public start that all share, clipped to ``layer1.clip_norm`` and, before noise,
to ``gossip.clip_norm``. Clipping projects on a ball around that start, so this is constrained consensus
optimisation (Nedić, Ozdaglar, Parrilo 2010). A basket's own model is Layer 1's robust aggregate of its
members' models, outside the privacy claim.

`GossipTraining` does it through a federation; `simulate_gossip` is the same as a plain array program with
noise from a seed, for comparisons that no privacy claim covers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import HierarchicalFederationConfig, stream
from scarcity_ray.gossip import GossipProtocol
from scarcity_ray.plan import FederationPlan, make_plan
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray.robust import clip_rows, row_norms
from scarcity_ray.workloads.attacks import AttackConfig, craft
from scarcity_ray.workloads.population import Scene
from scarcity_ray.workloads.simulate import basket_rule
from scarcity_ray.workloads.softmax import right_answers, train_clients

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class BasketStanding:
    """How one basket's members do on unseen examples.

    Attributes:
        clients, byzantine: Members, and how many of them are Byzantine.
        members: Mean accuracy of the honest members' own models.
        members_at_home: The same when labels are as frequent as in the basket's domain.
        model: Accuracy of the basket's own model; None where there is none or it is not exposed.
        model_at_home: The same when labels are as frequent as in the basket's domain.
    """

    clients: int
    byzantine: int
    members: float
    members_at_home: float
    model: float | None = None
    model_at_home: float | None = None


@dataclass(frozen=True)
class GossipRun:
    """A simulated run.

    Attributes:
        curve: Mean accuracy of honest clients after each round.
        standings: By basket number, at the end.
    """

    curve: list[float]
    standings: dict[int, BasketStanding]


def starting_models(models: Rows, scene: Scene) -> Rows:
    """The models that clients train from: their own; attackers, who know all, take the honest mean."""
    starts, byzantine = models.copy(), scene.population.byzantine
    for basket in np.unique(scene.baskets[byzantine]):
        inside = scene.baskets == basket
        honest = inside & ~byzantine
        starts[inside & byzantine] = models[honest].mean(axis=0) if honest.any() else 0.0
    return starts


def standings_of(
    scene: Scene, models: Rows, basket_models: Mapping[int, Rows] | None = None
) -> dict[int, BasketStanding]:
    """How each basket stands, by its number.

    `basket_models` are the baskets' own models, those that are known.
    """
    labels, classes = scene.dataset.test_labels, int(scene.dataset.train_labels.max()) + 1
    tested = np.bincount(labels, minlength=classes) / len(labels)
    right = right_answers(models, scene.dataset.test_features, labels)
    standings = {}
    for basket in np.unique(scene.baskets).tolist():
        inside = scene.baskets == basket
        honest = inside & ~scene.population.byzantine
        held = scene.population.labels[inside][scene.population.present[inside] > 0]
        share = np.bincount(held, minlength=classes) / max(1, len(held))
        home = np.divide(share, tested, out=np.zeros(classes), where=tested > 0)[labels]
        home /= home.sum()
        standing = BasketStanding(
            clients=int(inside.sum()),
            byzantine=int((inside & ~honest).sum()),
            members=float(right[honest].mean()) if honest.any() else 0.0,
            members_at_home=float((right[honest] @ home).mean()) if honest.any() else 0.0,
        )
        own = (basket_models or {}).get(basket)
        if own is not None:
            answers = right_answers(own[None], scene.dataset.test_features, labels)[0]
            standing = replace(standing, model=float(answers.mean()), model_at_home=float(answers @ home))
        standings[basket] = standing
    return standings


def mean_accuracy(standings: Mapping[int, BasketStanding]) -> float:
    """Mean over all honest clients."""
    honest = [standing.clients - standing.byzantine for standing in standings.values()]
    return float(np.average([standing.members for standing in standings.values()], weights=honest))


class GossipTraining:
    """Rounds of training through a federation without Layer 2.

    The scene's clients are registered with the federation, and `basket_ids` are of the baskets that
    ``scene.baskets`` numbers.

    Attributes:
        models: (clients, d) float32, each client's own.
        basket_models: The baskets' latest own models by number, where they are exposed.
    """

    def __init__(
        self, scene: Scene, federation: Any, config: HierarchicalFederationConfig, basket_ids: list[str]
    ) -> None:
        self.models = np.zeros((scene.population.num_clients, config.vector_dim), np.float32)
        self.basket_models: dict[int, Rows] = {}
        self._scene = scene
        self._federation = federation
        self._config = config
        self._basket_ids = basket_ids
        self._rule = basket_rule(make_plan(config))

    def train(self, number: int) -> Rows:
        """The rows that clients send in a round: their own models after local steps, or an attack."""
        scene, workload = self._scene, self._scene.workload
        starts = starting_models(self.models, scene)
        inputs = scene.training(starts, workload.attack)
        trained = starts + np.concatenate(self._federation.map_tasks(train_clients, scene.tasks, inputs))
        rng = stream(scene.seed, "attack", number)
        return craft(workload.attack, trained, scene.population.byzantine, scene.baskets, rng, self._rule)

    def collect(self) -> dict[int, BasketStanding]:
        """Aggregate in the baskets and take the clients' models and the baskets' own from the federation."""
        self._federation.force_aggregate()
        states = self._federation.get_local_states(self._scene.population.client_ids)
        for row, client_id in enumerate(self._scene.population.client_ids):
            if client_id in states:
                self.models[row] = states[client_id]
        if self._config.expose_basket_models:
            found = {n: self._federation.get_basket_model(b) for n, b in enumerate(self._basket_ids)}
            self.basket_models.update((n, model) for n, model in found.items() if model is not None)
        return standings_of(self._scene, self.models, self.basket_models)

    def by_name(self, standings: Mapping[int, BasketStanding]) -> dict[str, dict[str, Any]]:
        """Standings as plain data, by basket id."""
        return {self._basket_ids[number]: asdict(standing) for number, standing in standings.items()}


def simulate_gossip(
    scene: Scene, attack: AttackConfig, federation: HierarchicalFederationConfig, gossip: bool = True
) -> GossipRun:
    """Train by gossip alone as a plain array program.

    Every client is charged until its budget is spent, as in a federation. Basket models are left out.

    Guarantees:
        The same arguments give the same accuracies.
    """
    plan = FederationPlan(federation)
    population, rule = scene.population, basket_rule(plan)
    members = {b: np.flatnonzero(scene.baskets == b) for b in np.unique(scene.baskets).tolist()}
    protocols = {
        basket: GossipProtocol(
            federation.gossip, plan.gossip, str(basket), SeededNoise(scene.seed), seed=federation.seed
        )
        for basket in members
    }
    models = np.zeros((population.num_clients, federation.vector_dim), np.float32)
    curve, standings = [], standings_of(scene, models)
    for number in range(scene.workload.rounds):
        starts = starting_models(models, scene)
        trained = starts + train_clients((0, population.num_clients), scene.training(starts, attack))
        rng = stream(scene.seed, "simulate", attack.name, number)
        sent = craft(attack, trained, population.byzantine, scene.baskets, rng, rule)
        norms = row_norms(sent)
        finite = np.isfinite(norms)
        models[finite] = clip_rows(list(sent[finite]), norms[finite], federation.layer1.clip_norm)
        if gossip and plan.gossip_share and number < plan.num_gossip_rounds:
            for basket, protocol in protocols.items():
                _gossip_once(protocol, models, members[basket], number)
        standings = standings_of(scene, models)
        curve.append(mean_accuracy(standings))
    return GossipRun(curve, standings)


def _gossip_once(protocol: GossipProtocol, models: Rows, rows: NDArray[np.intp], number: int) -> None:
    order = rows[np.argsort([str(row) for row in rows.tolist()], kind="stable")]
    ids = [str(row) for row in order.tolist()]
    wanting = protocol.begin(ids, list(models[order]), number, float(number))
    pushing = protocol.test_drift(wanting)
    models[order] = protocol.exchange(pushing, ids, float(number)).states
