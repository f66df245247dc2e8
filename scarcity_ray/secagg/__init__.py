"""Secure aggregation: the coordinator learns the sum of the parties' vectors, and nothing else.

Bonawitz et al. 2017 with double masks in the ring of integers mod 2**32 or 2**64, t-of-n Shamir shares of
both of a party's secrets, signed ephemeral keys bound to the session's context, and a signed survivor-set
round before anything is unmasked; for many parties on the sparse graph of Bell et al. 2020. What is defended
against whom, and which test shows it, is in ``docs/threat_model.md``.

::

    participant, coordinator   the two sides of an attempt, state machines over the five phases (phases)
    context, admission         what an attempt is about, and whether a party joins it
    messages, commitments      what is said, and the hashes that tie the phases together (in transcript)
    graph, masking, dealing    who masks with whom; the masks; shares of the secrets that make them
    keyring, key_agreement     a party's keys of one attempt, and what is derived from them
    shamir, fixed_point        secret sharing over GF(65537); real numbers in the ring
    roster                     whose keys are registered
    public_view                what a host checks once for all the parties that it hosts

A party signs with its `scarcity_ray_client.identity`.
"""

from __future__ import annotations

from scarcity_ray.secagg.admission import SessionGuard
from scarcity_ray.secagg.context import (
    Party,
    SessionContext,
    colluders_tolerated,
    least_threshold,
    threshold_for,
)
from scarcity_ray.secagg.coordinator import Coordinator
from scarcity_ray.secagg.fixed_point import decode, encode, ring_dtype, to_signed
from scarcity_ray.secagg.graph import GraphChoice, choose_graph
from scarcity_ray.secagg.key_agreement import Agreements
from scarcity_ray.secagg.messages import (
    Advert,
    Confirmation,
    Inbox,
    KeyShares,
    MaskedInput,
    UnmaskShares,
)
from scarcity_ray.secagg.participant import Participant
from scarcity_ray.secagg.phases import Phase, State
from scarcity_ray.secagg.public_view import PublicView
from scarcity_ray.secagg.roster import Endorsement, Roster, RosterChain
from scarcity_ray_client.identity import IdentityKeyPair

__all__ = [
    "Advert",
    "Agreements",
    "Confirmation",
    "Coordinator",
    "Endorsement",
    "GraphChoice",
    "IdentityKeyPair",
    "Inbox",
    "KeyShares",
    "MaskedInput",
    "Participant",
    "Party",
    "Phase",
    "PublicView",
    "Roster",
    "RosterChain",
    "SessionContext",
    "SessionGuard",
    "State",
    "UnmaskShares",
    "choose_graph",
    "colluders_tolerated",
    "decode",
    "encode",
    "least_threshold",
    "ring_dtype",
    "threshold_for",
    "to_signed",
]
