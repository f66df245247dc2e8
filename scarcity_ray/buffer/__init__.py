"""What waits for Layer 1: updates, how they are judged and accepted, and the triggers."""

from scarcity_ray.buffer.replay import ReplayGuard, ReplayKey
from scarcity_ray.buffer.triggers import TriggerEngine, TriggerReason, basket_due, global_due
from scarcity_ray.buffer.update import BufferedUpdate, Receipt, Rejection, content_digest, read_row
from scarcity_ray.buffer.update_buffer import ClientUpdates, JudgedUpdate, UpdateBuffer, staleness_weight

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
