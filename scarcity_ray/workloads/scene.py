"""One job's data and clients, the same for the federation and for the runs it is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.workloads.attacks import AttackConfig, flip_labels
from scarcity_ray.workloads.config import RunConfig, WorkloadConfig
from scarcity_ray.workloads.digits import NUM_CLASSES, Dataset, load_digits
from scarcity_ray.workloads.population import Population, baskets_in_order, make_population
from scarcity_ray.workloads.softmax import TrainingInputs


@dataclass(frozen=True)
class Scene:
    """Who trains on what.

    Attributes:
        dataset: For its test part.
        population: The clients and their examples.
        baskets: (clients,) int64, the basket of each client.
        workload: Rounds, steps and rates.
        seed: Of the attacks' draws and of simulated noise.
    """

    dataset: Dataset
    population: Population
    baskets: NDArray[np.int64]
    workload: WorkloadConfig
    seed: int

    @property
    def tasks(self) -> list[tuple[int, int]]:
        """The rows that each training task trains."""
        clients, each = self.workload.clients, self.workload.clients_per_task
        return [(first, min(first + each, clients)) for first in range(0, clients, each)]

    def training(self, model: NDArray[np.float32], attack: AttackConfig) -> TrainingInputs:
        """What the training tasks of a round share, when clients start from `model`, (d,) or one a client."""
        population = self.population
        return TrainingInputs(
            model=model,
            features=population.features,
            labels=flip_labels(attack, population.labels, population.byzantine, NUM_CLASSES),
            present=population.present,
            num_classes=NUM_CLASSES,
            local_steps=self.workload.local_steps,
            learning_rate=self.workload.learning_rate,
        )


def make_scene(config: RunConfig) -> Scene:
    """Load the data, deal it out, and place every client in the basket that it will be assigned to.

    Raises:
        UsageError: If the workload's extra is not installed.
        ConfigError: If there are more clients than examples in some domain.
    """
    workload, seed = config.workload, config.federation.seed
    dataset = load_digits(workload.features, workload.test_share, seed, workload.random_features)
    population = make_population(
        dataset.train_features,
        dataset.train_labels,
        domain_sizes=workload.domain_sizes,
        skew=workload.label_skew,
        byzantine_share=workload.byzantine_share,
        seed=seed,
    )
    basket = config.federation.basket
    domains = ("any",) * workload.clients if basket.allow_cross_domain else population.domains
    return Scene(dataset, population, baskets_in_order(domains, basket.max_clients), workload, seed)
