"""The clients of a job, their examples and their baskets.

Domains differ in their labels, clients of one domain resemble each other, and attackers are drawn from all
clients. A `Scene` is the same for the federation and for the runs that it is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import stream
from scarcity_ray.errors import ConfigError
from scarcity_ray.workloads.attacks import AttackConfig, flip_labels
from scarcity_ray.workloads.config import RunConfig, WorkloadConfig
from scarcity_ray.workloads.digits import NUM_CLASSES, Dataset, load_digits
from scarcity_ray.workloads.softmax import TrainingInputs

BALANCING_STEPS = 200


@dataclass(frozen=True)
class Population:
    """The clients in order of registration, their examples padded to one rectangle.

    Attributes:
        domains: The domain of each client.
        features: (clients, examples, features + 1) float32; the last feature is 1 (bias), padding is 0.
        labels: (clients, examples) int64; padding is 0.
        present: (clients, examples) float32; 1 for an example, 0 for padding.
        byzantine: (clients,) bool.
    """

    client_ids: tuple[str, ...]
    domains: tuple[str, ...]
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    present: NDArray[np.float32]
    byzantine: NDArray[np.bool_]

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        return len(self.client_ids)


def domain_shares(labels: NDArray[np.int64], num_domains: int, skew: float, seed: int) -> NDArray[np.float64]:
    """How many examples of each class go to each domain, (domains, classes), before rounding.

    Rows of Dirichlet(skew) proportions (Hsu, Qi, Brown 2019), balanced by alternating scaling (Sinkhorn,
    Knopp 1967) until every domain holds as many examples as the others and every class is used up.

    Guarantees:
        Every class is used up and domains are of like size.
    """
    classes = np.bincount(labels).astype(np.float64)
    rng = stream(seed, "population", "label skew")
    table = rng.gamma(skew, size=(num_domains, classes.size)) + 1e-6
    for _ in range(BALANCING_STEPS):
        table *= (classes.sum() / num_domains) / table.sum(axis=1, keepdims=True)
        table *= classes / table.sum(axis=0)
    return table


def split_by_domain(
    labels: NDArray[np.int64], num_domains: int, skew: float, seed: int
) -> list[NDArray[np.int64]]:
    """Indices of the examples of each domain, shuffled; every example is in exactly one domain."""
    shares = domain_shares(labels, num_domains, skew, seed)
    rng = stream(seed, "population", "domains")
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(num_domains)]
    for label in range(shares.shape[1]):
        indices = rng.permutation(np.flatnonzero(labels == label))
        borders = np.rint(np.cumsum(shares[:, label])).astype(np.int64)[:-1]
        for domain, part in enumerate(np.split(indices, borders)):
            parts[domain].append(part)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def make_population(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    domain_sizes: tuple[int, ...],
    skew: float,
    byzantine_share: float,
    seed: int,
) -> Population:
    """Split the examples among clients; the Byzantine ones are drawn at random over all clients.

    Domains differ in their labels (`split_by_domain`); inside a domain the shuffled examples are dealt out
    evenly, so that its clients resemble each other. Clients of all domains register in a random order.

    Args:
        domain_sizes: Clients of each domain.
        skew: Dirichlet parameter of the domains' labels.

    Raises:
        ConfigError: If some domain has fewer examples than clients.

    Guarantees:
        Every example has one client.
        Clients of a domain hold like numbers.
        The Byzantine number is exact.
    """
    num_clients = sum(domain_sizes)
    owners: list[tuple[str, str, NDArray[np.int64]]] = []
    for domain, indices in enumerate(split_by_domain(labels, len(domain_sizes), skew, seed)):
        if len(indices) < domain_sizes[domain]:
            raise ConfigError(
                "workload.clients",
                num_clients,
                f"fewer: domain {domain} has {len(indices)} examples for {domain_sizes[domain]} clients",
            )
        for number, part in enumerate(np.array_split(indices, domain_sizes[domain])):
            owners.append((f"domain_{domain}_client_{number:03d}", f"domain_{domain}", part))
    rng = stream(seed, "population", "registration")
    owners = [owners[i] for i in rng.permutation(num_clients)]
    longest = max(len(part) for _, _, part in owners)
    padded = np.zeros((num_clients, longest, features.shape[1] + 1), dtype=np.float32)
    padded_labels = np.zeros((num_clients, longest), dtype=np.int64)
    present = np.zeros((num_clients, longest), dtype=np.float32)
    for row, (_, _, part) in enumerate(owners):
        padded[row, : len(part), :-1] = features[part]
        padded[row, : len(part), -1] = 1.0
        padded_labels[row, : len(part)] = labels[part]
        present[row, : len(part)] = 1.0
    byzantine = np.zeros(num_clients, dtype=np.bool_)
    chosen = stream(seed, "population", "byzantine").permutation(num_clients)
    byzantine[chosen[: round(byzantine_share * num_clients)]] = True
    return Population(
        client_ids=tuple(name for name, _, _ in owners),
        domains=tuple(domain for _, domain, _ in owners),
        features=padded,
        labels=padded_labels,
        present=present,
        byzantine=byzantine,
    )


def baskets_in_order(domains: tuple[str, ...], max_clients: int) -> NDArray[np.int64]:
    """The basket of each client when baskets fill up in the order of registration, (clients,) int64."""
    numbers: dict[tuple[str, int], int] = {}
    seen: dict[str, int] = {}
    baskets = np.empty(len(domains), dtype=np.int64)
    for row, domain in enumerate(domains):
        place = seen.get(domain, 0)
        seen[domain] = place + 1
        baskets[row] = numbers.setdefault((domain, place // max_clients), len(numbers))
    return baskets


@dataclass(frozen=True)
class Scene:
    """The data, clients and settings of a run.

    Attributes:
        dataset: Of which a run uses the test part.
        baskets: (clients,) int64, the basket of each client.
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
        """The inputs of a round's training tasks, if clients start from `model`, (d,) or one a client."""
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
