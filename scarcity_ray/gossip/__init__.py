"""Gossip within a basket: peers, materiality, one noised release a round, and mixing."""

from scarcity_ray.gossip.materiality import MaterialityDetector
from scarcity_ray.gossip.member import GossipCarry
from scarcity_ray.gossip.message import GossipMessage
from scarcity_ray.gossip.mixing import mix_average, mix_noise_aware
from scarcity_ray.gossip.peers import PeerSampler
from scarcity_ray.gossip.protocol import GossipOutcome, GossipProtocol

__all__ = [
    "GossipCarry",
    "GossipMessage",
    "GossipOutcome",
    "GossipProtocol",
    "MaterialityDetector",
    "PeerSampler",
    "mix_average",
    "mix_noise_aware",
]
