"""The two layers of aggregation: within baskets, then across them."""

from scarcity_ray.layers.layer1 import Layer1Aggregator
from scarcity_ray.layers.layer2 import Layer2Aggregator
from scarcity_ray.layers.models import BasketModel, GlobalMetaModel

__all__ = ["BasketModel", "GlobalMetaModel", "Layer1Aggregator", "Layer2Aggregator"]
