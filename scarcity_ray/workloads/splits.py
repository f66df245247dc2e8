"""Splits of one labelled data set among the clients of several domains.

Domains differ in their labels, clients of one domain resemble each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import stream
from scarcity_ray.errors import UsageError

BALANCING_STEPS = 200


@dataclass(frozen=True, eq=False)
class Share:
    """One client's examples.

    Attributes:
        domain: Its domain's number.
        number: The client's, within its domain.
        indices: Of its examples, (n,) int64.
    """

    domain: int
    number: int
    indices: NDArray[np.int64]


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


def split_among_clients(
    labels: NDArray[np.int64], num_clients: int, num_domains: int, skew: float, seed: int
) -> list[Share]:
    """Split the examples among clients, who come in a random order.

    Domains differ in their labels (`split_by_domain`); inside a domain the shuffled examples are dealt out
    evenly, so that its clients resemble each other.

    Args:
        labels: (n,) int64, of all examples.
        skew: Dirichlet parameter of the domains' labels; the smaller, the less alike the domains.

    Raises:
        UsageError: If some domain has fewer examples than clients.

    Guarantees:
        Every example has one client.
        Clients of a domain hold like numbers.
    """
    least, more = divmod(num_clients, num_domains)
    shares: list[Share] = []
    for domain, indices in enumerate(split_by_domain(labels, num_domains, skew, seed)):
        size = least + (domain < more)
        if len(indices) < size:
            raise UsageError(
                f"clients: {num_clients} is not accepted; fewer: domain {domain} has {len(indices)} examples "
                f"for {size} clients"
            )
        parts = np.array_split(indices, size) if size else []
        shares += [Share(domain, number, part) for number, part in enumerate(parts)]
    order = stream(seed, "population", "registration").permutation(num_clients)
    return [shares[place] for place in order]
