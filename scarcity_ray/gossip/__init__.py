"""Gossip within a basket: peers, materiality, one noised release a round, and mixing."""

from scarcity_ray.gossip.client_state import GossipCarry, MemberRecord
from scarcity_ray.gossip.materiality import MaterialityDetector
from scarcity_ray.gossip.message import GossipMessage
from scarcity_ray.gossip.mixing import MIXINGS, Scene, default_mixing, mix
from scarcity_ray.gossip.neighbour_sums import Received
from scarcity_ray.gossip.peers import PeerSampler
from scarcity_ray.gossip.protocol import GossipProtocol
from scarcity_ray.gossip.spread import Spread, estimate_spread
from scarcity_ray.gossip.step import GossipOutcome

__all__ = [
    "MIXINGS",
    "GossipCarry",
    "GossipMessage",
    "GossipOutcome",
    "GossipProtocol",
    "MaterialityDetector",
    "MemberRecord",
    "PeerSampler",
    "Received",
    "Scene",
    "Spread",
    "default_mixing",
    "estimate_spread",
    "mix",
]
