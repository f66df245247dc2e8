"""The two layers of aggregation: within baskets, then across them; when each is due; what a release moves."""

from scarcity_ray.layers.layer1 import Layer1Aggregator, Layer1Input
from scarcity_ray.layers.layer2 import Layer2Aggregator
from scarcity_ray.layers.models import BasketModel, GlobalMetaModel
from scarcity_ray.layers.server_optimizers import ServerOptimizer, ServerState, server_optimizer
from scarcity_ray.layers.triggers import TriggerEngine, TriggerReason, basket_due, global_due

__all__ = [
    "BasketModel",
    "GlobalMetaModel",
    "Layer1Aggregator",
    "Layer1Input",
    "Layer2Aggregator",
    "ServerOptimizer",
    "ServerState",
    "TriggerEngine",
    "TriggerReason",
    "basket_due",
    "global_due",
    "server_optimizer",
]
