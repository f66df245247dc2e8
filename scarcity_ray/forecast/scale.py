"""A round on a cluster: seconds and memory of each role, for any number of clients and nodes.

The driver, the directory, the accountant and the global aggregator are one process each, so their seconds add
up; those of the baskets are shared by as many cores as there are basket actors (Amdahl 1967). What the roles
compute is `cost_model`'s; what calls between processes, pickling and the object store add was measured on Ray
(`python -m benchmarks nodes` compares both, on 1 to 4 nodes). Left out: the clients' own training, and the
network's time, for which the bytes that pass the driver are given.

Guarantees:
    more_clients_never_take_less_and_more_cores_never_more: With as many actors, up to the 64 baskets above
        which masks are between fewer. More nodes can take more, as each basket actor costs calls in a round.
    what_bounds_a_round_is_the_role_that_takes_longest
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.errors import UsageError
from scarcity_ray.forecast.cost_model import MEASURED, Rates, round_seconds
from scarcity_ray.forecast.feasibility import FLOAT_BYTES, Forecast
from scarcity_ray.secagg.context import MAX_PARTIES

SHARE_OF_AGGREGATOR = 0.21
"""Of a secure sum's seconds in one process: checking messages, the sum, unmasking."""
SHARE_OF_BASKETS = 0.5
"""Likewise: keys, shares, masks. Both are below 1 together, as an actor handles many messages at once."""
MIB = 2**20
LONG_DIMENSION = 1_000
"""Shorter vectors seldom take so much work that a process loads compiled kernels."""


@dataclass(frozen=True)
class CallRates:
    """Seconds of one core that processes add to the roles' own work, and bytes; measured on Ray 2.60."""

    round: float = 0.08
    """The driver's calls of one round, whatever its size."""
    actor_round: float = 0.04
    """One basket actor's calls in a round."""
    actor_singles: float = 0.01
    """What each basket actor costs the single roles in a round."""
    sum_element: float = 40e-9
    """One entry of one basket's masked vector in the aggregator: received, and unpickled."""
    update: float = 10e-6
    """One update in the driver: its id, its place, its receipt."""
    update_element: float = 4e-9
    """One entry of an update in the driver: checks, and a copy into the object store."""
    basket: float = 0.5e-3
    """One basket in a round: its aggregate, facts and charges, packed and sent."""
    singles: float = 0.03
    """The directory, the accountant and the global aggregator in a round, whatever its size."""
    waits: float = 0.05
    """In a round, while messages are on their way and nobody computes."""
    single_bytes: float = 82 * MIB
    """A process of the directory or aggregator before it holds anything; what processes share counts once."""
    driver_bytes: float = 94 * MIB
    actor_bytes: float = 85 * MIB
    driver_work_bytes: float = 50 * MIB
    """What compiled kernels and the arrays that they work in add from `LONG_DIMENSION` on."""
    actor_work_bytes: float = 100 * MIB
    copies: float = 2.5
    """Copies of its clients' rows in a basket actor: what waits, local states, the batch on its way."""
    gossip_copies: float = 1.5
    """More where they gossip: what was released, and at half precision what was pushed."""
    driver_copies: float = 1.2
    """Copies of the updates of a batch in the driver, and in Ray's store."""
    basket_client_bytes: float = 5400.0
    driver_client_bytes: float = 1600.0
    directory_client_bytes: float = 1300.0
    party_bytes: float = 100e3
    """One basket in the global aggregator: keys, shares, messages."""


@dataclass(frozen=True)
class Scale:
    """A round in which everybody takes part, on one cluster.

    Attributes:
        clients, nodes, baskets, actors: How many.
        cores: That basket actors share: the lesser of their number and the cluster's cores.
        driver_seconds, singles_seconds, baskets_seconds: Of one core; the baskets' all together.
        calls_seconds: Of these, the basket actors' calls.
        waits_seconds: While messages are on their way.
        seconds: From the first update to the release.
        bound: Which of the three takes longest: more nodes help only the baskets.
        driver_bytes, directory_bytes, aggregator_bytes, actor_bytes: Memory of each process at most.
        through_driver_bytes: Updates, in a round.
    """

    clients: int
    nodes: int
    baskets: int
    actors: int
    cores: int
    driver_seconds: float
    singles_seconds: float
    baskets_seconds: float
    calls_seconds: float
    waits_seconds: float
    driver_bytes: float
    directory_bytes: float
    aggregator_bytes: float
    actor_bytes: float
    through_driver_bytes: int

    @property
    def seconds(self) -> float:
        """From the first update to the release."""
        serial = self.driver_seconds + self.singles_seconds + self.waits_seconds
        return serial + self.shared_seconds

    @property
    def shared_seconds(self) -> float:
        """The baskets' part of it: no basket's work is shared by two cores, all actors' calls are."""
        work = self.baskets_seconds - self.calls_seconds
        return work / min(self.cores, self.baskets) + self.calls_seconds / self.cores

    @property
    def bound(self) -> str:
        """What takes longest: ``driver``, ``single roles`` or ``baskets``."""
        parts = {
            "driver": self.driver_seconds,
            "single roles": self.singles_seconds,
            "baskets": self.shared_seconds,
        }
        return max(parts, key=lambda name: parts[name])


def scale_of(
    config: HierarchicalFederationConfig,
    clients: int,
    nodes: int,
    *,
    cores_per_node: float,
    actors: int | None = None,
    batch: int = 10_000,
    rates: Rates = MEASURED,
    calls: CallRates | None = None,
) -> Scale:
    """A round of so many clients, in full baskets, on so many nodes.

    Args:
        cores_per_node: Below 1 where test nodes share a machine's cores.
        actors: Basket actors; None: as the configuration says, or as many as the cluster has cores.
        batch: Updates that the driver holds at once.
        calls: None: those measured, scaled as `rates` are.

    Raises:
        UsageError: If so many clients cannot be: too few for the least baskets, or too many baskets for a
            secure sum.
        ConfigError: If the configuration's values cannot work together.
    """
    baskets = max(math.ceil(clients / config.basket.max_clients), config.layer2.min_baskets)
    if clients < config.layer2.min_baskets * config.basket.min_clients:
        raise UsageError(f"{clients} clients are too few for the {baskets} baskets of a release")
    if config.layer2.use_secure_aggregation and baskets > MAX_PARTIES:
        raise UsageError(
            f"{clients} clients make {baskets} baskets, and a secure sum is of {MAX_PARTIES} at most: raise "
            f"basket.max_clients to {math.ceil(clients / MAX_PARTIES)}"
        )
    fewer, more = divmod(clients, baskets)
    forecast = Forecast(config, tuple(fewer + (place < more) for place in range(baskets)), 1)
    work, d = round_seconds(forecast, rates), config.vector_dim
    cluster_cores = max(1, int(nodes * cores_per_node))
    each = config.runtime.baskets_per_actor
    actors = actors or (math.ceil(baskets / each) if each else cluster_cores)
    calls = calls or calls_at(rates)
    row_bytes, here = FLOAT_BYTES * d, math.ceil(clients / actors)
    is_long, gossips = d >= LONG_DIMENSION, config.gossip_budget_share > 0.0
    copies = calls.copies + gossips * calls.gossip_copies
    return Scale(
        clients=clients,
        nodes=nodes,
        baskets=baskets,
        actors=actors,
        cores=min(actors, cluster_cores),
        driver_seconds=calls.round + clients * (calls.update + d * calls.update_element),
        singles_seconds=calls.singles
        + actors * calls.actor_singles
        + baskets * d * calls.sum_element
        + SHARE_OF_AGGREGATOR * work.secure_sum
        + work.release,
        baskets_seconds=work.updates
        + work.gossip
        + work.layer1
        + SHARE_OF_BASKETS * work.secure_sum
        + baskets * calls.basket
        + actors * calls.actor_round,
        calls_seconds=actors * calls.actor_round,
        waits_seconds=calls.waits,
        driver_bytes=calls.driver_bytes
        + is_long * calls.driver_work_bytes
        + clients * calls.driver_client_bytes
        + min(clients, batch) * row_bytes * calls.driver_copies,
        directory_bytes=calls.single_bytes + clients * calls.directory_client_bytes,
        aggregator_bytes=calls.single_bytes + baskets * (calls.party_bytes + 2 * row_bytes),
        actor_bytes=calls.actor_bytes
        + is_long * calls.actor_work_bytes
        + here * (calls.basket_client_bytes + copies * row_bytes),
        through_driver_bytes=clients * row_bytes,
    )


def calls_at(rates: Rates) -> CallRates:
    """The calls' rates of a machine on which Python and signatures take as long as in `rates`."""
    factor, known = rates.update / MEASURED.update, CallRates()
    return replace(
        known,
        round=known.round * factor,
        actor_round=known.actor_round * factor,
        update=known.update * factor,
        update_element=known.update_element * rates.update_element / MEASURED.update_element,
        basket=known.basket * factor,
        singles=known.singles * factor,
        actor_singles=known.actor_singles * factor,
        sum_element=known.sum_element * rates.update_element / MEASURED.update_element,
        waits=known.waits * factor,
    )
