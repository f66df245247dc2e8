"""Training without Layer 2: every client keeps a model of its own, and gossip alone connects them.

Decentralised gradient descent (Lian et al. 2017; Koloskova et al. 2020, algorithm 1): in a round each client
takes its local steps from its own model and then moves towards its peers' models. A client sends its model
less the initial model that all share, clipped to ``layer1.clip_norm`` and, before noise, to
``gossip.clip_norm``. Clipping projects on a ball around that start, so this is constrained consensus
optimisation (Nedić, Ozdaglar, Parrilo 2010). A basket's own model is Layer 1's robust aggregate of its
members' models, outside the privacy claim.

`GossipTraining` does it through a federation; `simulate_gossip` is the same as a plain array program with
noise from a seed, for comparisons that no privacy claim covers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import HierarchicalFederationConfig, stream
from scarcity_ray.errors import UsageError
from scarcity_ray.gossip import GossipProtocol
from scarcity_ray.plan import FederationPlan, make_plan
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray.robust import clip_rows, row_norms
from scarcity_ray.workloads.attacks import AttackConfig
from scarcity_ray.workloads.scene import Rows, Scene, Travelling
from scarcity_ray.workloads.simulate import SimulatedRun, basket_rule, mean_of_metrics
from scarcity_ray_client import Refusal

SAMPLE = 20
"""Honest clients whose mean stands for all after a round; at the end all are evaluated."""


@dataclass(frozen=True)
class BasketStanding:
    """How one basket's members do, by the headline metric.

    Attributes:
        clients, byzantine: Members, and how many of them are Byzantine.
        members: Mean of `Workload.evaluate` over the honest members' own models.
        members_at_home: Mean of their `evaluate_client`; None where the workload has none.
        model: `evaluate` of the basket's own model; None where there is none or it is not exposed.
        model_at_home: Mean of its `evaluate_client` over the honest members.
    """

    clients: int
    byzantine: int
    members: float | None
    members_at_home: float | None
    model: float | None = None
    model_at_home: float | None = None


@dataclass(frozen=True)
class TrainingInputs:
    """What all training tasks of a round share: `Scene.trained`'s arguments but the places."""

    scene: Travelling
    vectors: Rows
    number: int
    attack: AttackConfig


def train_some(places: Sequence[int], inputs: TrainingInputs) -> tuple[Rows, list[Refusal]]:
    """The models of some clients after training from their own, NaN if it failed; a task of the runtime."""
    starts, refusals = inputs.vectors[np.asarray(places)], list[Refusal]()
    scene = inputs.scene.read()
    return starts + scene.trained(starts, places, inputs.number, inputs.attack, refusals), refusals


def starting_models(models: Rows, scene: Scene) -> Rows:
    """The models that clients train from: their own; attackers, who know all, take the honest mean."""
    starts, byzantine = models.copy(), scene.byzantine
    for basket in np.unique(scene.baskets[byzantine]):
        inside = scene.baskets == basket
        honest = inside & ~byzantine
        starts[inside & byzantine] = models[honest].mean(axis=0) if honest.any() else scene.start
    return starts


def standings_of(
    scene: Scene, models: Rows, basket_models: Mapping[int, Rows] | None = None
) -> dict[int, BasketStanding]:
    """How each basket stands, by its number.

    `basket_models` are the baskets' own models, those that are known.
    """
    standings = {}
    for basket in np.unique(scene.baskets).tolist():
        inside = scene.baskets == basket
        honest = np.flatnonzero(inside & ~scene.byzantine).tolist()
        own = (basket_models or {}).get(basket)
        standings[basket] = BasketStanding(
            int(inside.sum()),
            int(inside.sum()) - len(honest),
            mean_of_metrics([scene.evaluate(models[place]) for place in honest]).get(scene.metric),
            _at_home(scene, {place: models[place] for place in honest}),
            None if own is None else scene.evaluate(own).get(scene.metric),
            None if own is None else _at_home(scene, dict.fromkeys(honest, own)),
        )
    return standings


def _at_home(scene: Scene, models: Mapping[int, Rows]) -> float | None:
    """Mean of `evaluate_client` of a model for each client."""
    found = [scene.evaluate_client(model, place) for place, model in models.items()]
    return mean_of_metrics(found).get(scene.metric)


def mean_over_honest(standings: Mapping[int, BasketStanding]) -> float | None:
    """Mean of `BasketStanding.members` over all honest clients."""
    known = [(s.members, s.clients - s.byzantine) for s in standings.values() if s.members is not None]
    count = sum(honest for _, honest in known)
    return math.fsum(value * honest for value, honest in known) / count if count else None


def sampled_metrics(scene: Scene, models: Rows) -> dict[str, float]:
    """The metrics of `SAMPLE` honest clients' own models, the mean."""
    honest = np.flatnonzero(~scene.byzantine)
    places = honest[np.linspace(0, len(honest) - 1, min(SAMPLE, len(honest))).astype(np.int64)]
    return mean_of_metrics([scene.evaluate(models[place]) for place in places])


class GossipTraining:
    """Rounds of training through a federation without Layer 2.

    The scene's clients are registered with the federation, and `basket_ids` are of the baskets that
    ``scene.baskets`` numbers.

    Attributes:
        models: (clients, d) float32, each client's own.
    """

    def __init__(
        self,
        scene: Scene,
        attack: AttackConfig,
        federation: Any,
        config: HierarchicalFederationConfig,
        basket_ids: list[str],
    ) -> None:
        self.models: NDArray[np.float32] = np.repeat(scene.start[None], len(scene.clients), axis=0)
        self._scene, self._travelling, self._attack = scene, Travelling.of(scene, attack), attack
        self._federation, self._config = federation, config
        self._basket_ids = basket_ids
        self._rule = basket_rule(make_plan(config))

    def train(self, number: int) -> tuple[list[str], Rows, list[Refusal]]:
        """Who sends in a round, and the rows: own models after local steps less the start, or an attack.

        Third come the trainings that gave none.

        Raises:
            UsageError: If all trainings failed; the text has the first one's traceback.
        """
        scene, each = self._scene, self._scene.training.clients_per_task
        places = scene.chosen(number)
        inputs = TrainingInputs(self._travelling, starting_models(self.models, scene), number, self._attack)
        tasks = [places[first : first + each].tolist() for first in range(0, len(places), each)]
        made, refused = zip(*self._federation.map_tasks(train_some, tasks, inputs), strict=True)
        refusals = [refusal for some in refused for refusal in some]
        if len(refusals) == len(places):
            raise UsageError(f"no client trained; the first: {refusals[0]}\n{refusals[0].traceback}")
        rows = np.concatenate(made) - scene.start
        came = np.isfinite(rows).all(axis=1)
        sent = scene.sent(rows, places, self._attack, stream(scene.seed, "attack", number), self._rule)
        return [scene.clients[place].client_id for place in places[came]], sent[came], refusals

    def chosen(self, number: int) -> NDArray[np.int64]:
        """The places of the clients that train in a round."""
        return self._scene.chosen(number)

    def collect(self) -> dict[str, float]:
        """Aggregate in the baskets, take the clients' models from the federation, and evaluate some."""
        self._federation.force_aggregate()
        states = self._federation.get_local_states([client.client_id for client in self._scene.clients])
        for row, client in enumerate(self._scene.clients):
            if client.client_id in states:
                self.models[row] = self._scene.start + states[client.client_id]
        return sampled_metrics(self._scene, self.models)

    def basket_models(self) -> dict[int, Rows]:
        """The baskets' own models by number, where they are exposed."""
        if not self._config.expose_basket_models:
            return {}
        found = {n: self._federation.get_basket_model(b) for n, b in enumerate(self._basket_ids)}
        return {n: self._scene.start + model for n, model in found.items() if model is not None}


def simulate_gossip(
    scene: Scene, attack: AttackConfig, federation: HierarchicalFederationConfig, gossip: bool = True
) -> tuple[SimulatedRun, dict[int, BasketStanding]]:
    """Train by gossip alone as a plain array program.

    Every client is charged until its budget is spent, as in a federation. Basket models are left out.

    Guarantees:
        The same arguments give the same metrics.
    """
    plan = FederationPlan(federation)
    rule, start = basket_rule(plan), scene.start
    members = {b: np.flatnonzero(scene.baskets == b) for b in np.unique(scene.baskets).tolist()}
    protocols = {
        basket: GossipProtocol(
            federation.gossip, plan.gossip, str(basket), SeededNoise(scene.seed), seed=federation.seed
        )
        for basket in members
    }
    moved = np.zeros((len(scene.clients), start.size), np.float32)
    curve, metrics = [], {}
    for number in range(scene.training.rounds):
        places = scene.chosen(number)
        starts = starting_models(start + moved, scene)[places]
        rows = starts + scene.trained(starts, places.tolist(), number, attack) - start
        rng = stream(scene.seed, "simulate", attack.name, number)
        sent = scene.sent(rows, places, attack, rng, rule)
        norms = row_norms(sent)
        finite = np.isfinite(norms)
        moved[places[finite]] = clip_rows(list(sent[finite]), norms[finite], federation.layer1.clip_norm)
        if gossip and plan.gossip_share and number < plan.num_gossip_rounds:
            for basket, protocol in protocols.items():
                _gossip_once(protocol, moved, members[basket], number)
        metrics = sampled_metrics(scene, start + moved)
        curve.append(metrics.get(scene.metric, math.nan))
    standings = standings_of(scene, start + moved)
    reached = mean_over_honest(standings)
    if reached is not None:
        metrics = {**metrics, scene.metric: reached}
    return SimulatedRun(tuple(curve), metrics), standings


def _gossip_once(protocol: GossipProtocol, models: Rows, rows: NDArray[np.intp], number: int) -> None:
    order = rows[np.argsort([str(row) for row in rows.tolist()], kind="stable")]
    ids = [str(row) for row in order.tolist()]
    wanting = protocol.begin(ids, list(models[order]), number, float(number))
    pushing = protocol.test_drift(wanting)
    models[order] = protocol.exchange(pushing, ids, float(number)).states
