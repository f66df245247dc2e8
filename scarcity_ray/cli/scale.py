"""``scarcity-ray plan --scale``: a round's seconds and memory for few to many clients and nodes."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.errors import UsageError
from scarcity_ray.forecast import Rates, Scale, scale_of

CLIENTS = (1_000, 10_000, 100_000, 1_000_000)
NODES = (1, 10, 100, 1_000)
GIB = 2**30
_WIDTH = 132


def scale_command(
    federation: HierarchicalFederationConfig, form: str, rates: Rates, clients: int | None, cores: int
) -> ExitCode:
    """Print a row for each number of clients and nodes.

    Args:
        clients: Plan for so many alone.
        cores: Of a node.
    """
    found: list[Scale] = []
    refused: list[tuple[int, str]] = []
    for count in CLIENTS if clients is None else (clients,):
        try:
            found += [scale_of(federation, count, n, cores_per_node=cores, rates=rates) for n in NODES]
        except UsageError as error:
            refused.append((count, str(error)))
    if form == "json":
        for row in found:
            click.echo(json.dumps({**asdict(row), "seconds": row.seconds, "bound": row.bound}))
        for count, why in refused:
            click.echo(json.dumps({"clients": count, "refused": why}))
    else:
        _print(found, refused, federation.vector_dim, cores)
    return ExitCode.DONE if found else ExitCode.BAD_USAGE


def _print(found: list[Scale], refused: list[tuple[int, str]], d: int, cores: int) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _WIDTH)
    title = f"a round of updates of {d} numbers, on nodes of {cores} cores; training and network are left out"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for heading in ("clients", "nodes", "baskets", "actors", "seconds", "bound by", "driver", "directory"):
        table.add_column(heading, justify="left" if heading == "bound by" else "right", no_wrap=True)
    for heading in ("aggregator", "an actor", "through driver"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found:
        memory = row.driver_bytes, row.directory_bytes, row.aggregator_bytes, row.actor_bytes
        table.add_row(
            *(f"{count:,}" for count in (row.clients, row.nodes, row.baskets, row.actors)),
            f"{row.seconds:.3g}",
            row.bound,
            *(f"{size / GIB:.2f} GiB" for size in memory),
            f"{row.through_driver_bytes / 1e6:,.1f} MB",
        )
    console.print(table)
    for count, why in refused:
        console.print(f"{count:,} clients: {why}", markup=False)
