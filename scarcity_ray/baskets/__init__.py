"""One basket: its members' updates and local states, how they are judged, and what it reports."""

from scarcity_ray.baskets.submission import Receipt
from scarcity_ray.baskets.update_buffer import BufferedUpdate, ReplayGuard, UpdateBuffer
from scarcity_ray.updates import Rejection

__all__ = ["BufferedUpdate", "Receipt", "Rejection", "ReplayGuard", "UpdateBuffer"]
