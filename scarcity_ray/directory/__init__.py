"""Who is in which basket, and how far each client is trusted (docs/specification.md#baskets)."""

from scarcity_ray.directory.manager import BasketManager
from scarcity_ray.directory.records import BasketInfo, BasketStatus, ClientInfo, Move, check_name

__all__ = ["BasketInfo", "BasketManager", "BasketStatus", "ClientInfo", "Move", "check_name"]
