"""Gossip within a basket: peers, materiality, one noised release a round, and mixing."""

from scarcity_ray.gossip.client_state import GossipMigration, GossipState
from scarcity_ray.gossip.materiality import MaterialityDetector
from scarcity_ray.gossip.message import GossipMessage
from scarcity_ray.gossip.mixing import MIXINGS, MixingInput, Spread, default_mixing, estimate_spread, mix
from scarcity_ray.gossip.neighbour_sums import Received
from scarcity_ray.gossip.peers import PeerSampler
from scarcity_ray.gossip.protocol import GossipOutcome, GossipProtocol

__all__ = [
    "MIXINGS",
    "GossipMessage",
    "GossipMigration",
    "GossipOutcome",
    "GossipProtocol",
    "GossipState",
    "MaterialityDetector",
    "MixingInput",
    "PeerSampler",
    "Received",
    "Spread",
    "default_mixing",
    "estimate_spread",
    "mix",
]
