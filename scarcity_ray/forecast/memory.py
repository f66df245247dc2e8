"""Whether a round fits into the memory of the machines that it would run on.

What each role holds is `scale_of`'s, measured on Ray (docs/limits.md). Rows that are trained as tasks, or
come through gateways, go to their baskets without passing the driver, which then counts without them. A
round that does not fit ends in a process that the operating system or Ray kills, after others have trained
for it; so it is refused before.

Guarantees:
    a_round_is_refused_only_beyond_all_memory_or_one_role_beyond_a_node
    a_refusal_names_each_role_and_what_to_change
    one_process_counts_its_start_once
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.errors import UsageError
from scarcity_ray.forecast.feasibility import FLOAT_BYTES
from scarcity_ray.forecast.scale import MIB, CallRates, scale_of

MODEL_BYTES = 64
"""A number of the model in the driver as it is stepped: the optimiser's state and steps in float64, copies of
the model in float32. Measured with `ServerSGD`; Adam's second moment adds 24."""

ONE_PROCESS_BYTES = 180 * MIB
"""All roles in one process, before they hold anything."""
ONE_PROCESS_COPIES = 3.2
"""Copies of the clients' rows there."""


def least_clients(config: HierarchicalFederationConfig) -> int:
    """Clients of the smallest release that a configuration allows."""
    return config.layer2.min_baskets * config.basket.min_clients


def memory_of_roles(
    config: HierarchicalFederationConfig,
    clients: int,
    actors: int | None,
    *,
    batch: int = 0,
    has_model: bool = True,
    is_one_process: bool = False,
) -> Mapping[str, tuple[int, float]]:
    """How many processes each role has, and the bytes that one of them holds at most in a round.

    Args:
        clients: That take part in a round, in full baskets.
        actors: Basket actors; None: as the configuration says.
        batch: Updates that the driver holds at once.
        has_model: Whether the driver keeps the model and steps it, as `fit` and `serve` do.
        is_one_process: Whether all roles are in the driver's process. It starts once, and steps the model
            when of the rows only one copy is left.

    Raises:
        UsageError: If so many clients make no release.
    """
    scale = scale_of(config, clients, 1, cores_per_node=1, actors=actors, batch=batch)
    model = has_model * MODEL_BYTES * config.vector_dim
    if is_one_process:
        known, row_bytes = CallRates(), FLOAT_BYTES * config.vector_dim
        held = ONE_PROCESS_BYTES + scale.directory_bytes + scale.aggregator_bytes - 2 * known.single_bytes
        held += clients * (known.driver_client_bytes + known.basket_client_bytes)
        held += (ONE_PROCESS_COPIES * clients + known.driver_copies * min(batch, clients)) * row_bytes
        held += max(0.0, model - (ONE_PROCESS_COPIES - 1.0) * clients * row_bytes)
        return {"this process": (1, held)}
    return {
        "driver": (1, scale.driver_bytes + model),
        "directory": (1, scale.directory_bytes),
        "global aggregator": (1, scale.aggregator_bytes),
        "basket actor": (scale.actors, scale.actor_bytes),
    }


def beyond_memory(
    config: HierarchicalFederationConfig,
    clients: int,
    actors: int | None,
    node_bytes: Sequence[float],
    *,
    has_model: bool = True,
    is_one_process: bool = False,
) -> str:
    """Why a round does not fit into the nodes' memory, in figures; empty if it fits or makes no release.

    Args:
        clients: That take part in a round.
        actors: Basket actors; None: as the configuration says.
        node_bytes: Memory of each node, objects included; empty if it is not known.
        has_model: Whether the driver keeps the model, as `fit` and `serve` do.
        is_one_process: Whether all roles are in the driver's process.
    """
    try:
        roles = memory_of_roles(config, clients, actors, has_model=has_model, is_one_process=is_one_process)
    except UsageError:
        return ""
    if not node_bytes:
        return ""
    total = sum(count * size for count, size in roles.values())
    largest, size = max(((name, size) for name, (_, size) in roles.items()), key=lambda role: role[1])
    if total <= sum(node_bytes) and size <= max(node_bytes):
        return ""
    parts = ", ".join(
        f"{name} {size / MIB:,.0f} MiB" + (f" x {count}" if count > 1 else "")
        for name, (count, size) in roles.items()
    )
    where = "here"
    if len(roles) > 1:
        most = f"{max(node_bytes) / MIB:,.0f} on one (the {largest} is one process)"
        where = f"on {len(node_bytes)} nodes, at most {most}"
    return (
        f"a round of {clients} clients at vector_dim {config.vector_dim:,} needs about "
        f"{total / MIB:,.0f} MiB ({parts}), and there are {sum(node_bytes) / MIB:,.0f} MiB {where}: "
        "more nodes or memory, fewer clients in a round, a smaller model, "
        "or runtime.check_memory: false to try"
    )
