"""What the actors of a federation are called."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from scarcity_ray.runtime.rpc import RoleName

if TYPE_CHECKING:
    from scarcity_ray.actors.accountant import Accountant
    from scarcity_ray.actors.basket import BasketHost
    from scarcity_ray.actors.directory import Directory
    from scarcity_ray.actors.global_aggregator import GlobalAggregator

ACCOUNTANT: RoleName[Accountant] = RoleName("accountant")
DIRECTORY: RoleName[Directory] = RoleName("directory")
GLOBAL: RoleName[GlobalAggregator] = RoleName("global")


@cache
def basket_actor(slot: int) -> RoleName[BasketHost]:
    """The name of the basket actor with number `slot`.

    >>> basket_actor(3)
    'basket:3'
    """
    return RoleName(f"basket:{slot}")
