"""One basket: its members' updates and local states, how they are judged, and what it reports."""

from scarcity_ray.baskets.replay import ReplayGuard, ReplayKey
from scarcity_ray.baskets.update import BufferedUpdate, Receipt, Rejection, content_digest, read_row
from scarcity_ray.baskets.update_buffer import ClientUpdates, JudgedUpdate, UpdateBuffer, staleness_weight
from scarcity_ray.layers.triggers import TriggerEngine, TriggerReason, basket_due, global_due

__all__ = [
    "BufferedUpdate",
    "ClientUpdates",
    "JudgedUpdate",
    "Receipt",
    "Rejection",
    "ReplayGuard",
    "ReplayKey",
    "TriggerEngine",
    "TriggerReason",
    "UpdateBuffer",
    "basket_due",
    "content_digest",
    "global_due",
    "read_row",
    "staleness_weight",
]
