"""The public parameters of one attempt of a session, to which every key and signature is bound.

All parties must hold the same context. Its digest is in every signed message and in the derivation of every
key, so a message, a share or a mask that was made for one federation, session, attempt, model, membership or
parameter set is useless in any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scarcity_ray.errors import UsageError
from scarcity_ray.secagg.transcript import DIGEST_BYTES, digest
from scarcity_ray_client.identity import PUBLIC_BYTES

RING_BITS = (32, 64)
MAX_PARTIES = 10_000
MAX_DIMENSION = 2**32
MAX_ID_LENGTH = 256


@dataclass(frozen=True, slots=True, order=True)
class Party:
    """A party of secure aggregation: a basket and the public half of its identity.

    Attributes:
        party_id: Unique in the session.
        identity_public: Ed25519 public key (32 bytes).
    """

    party_id: str
    identity_public: bytes


@dataclass(frozen=True, slots=True)
class SessionContext:
    """The public parameters of one attempt.

    Attributes:
        session_id: 16 to 64 bytes, fresh for each sum that is wanted; shared by its attempts.
        attempt: 0, 1, ... within the session.
        model_hash: Hash of the global model that the inputs start from (32 bytes); parties who were
            shown different models derive masks that do not cancel (Pasquini et al. 2022).
        dimension: Words in each input vector.
        ring_bits: 32 or 64; sums are taken mod 2**ring_bits.
        threshold: Least number of parties whose inputs a sum may contain, and least number that must
            take part in every phase; more than half of the parties, and never one.
        parties: Kept sorted by id.
        degree: Neighbours a party has in the graph of masks and shares (even), or None: all others.
        share_threshold: Shares that rebuild a secret within a neighbourhood (a party and its neighbours);
            None on the complete graph, where it is ``threshold``.
        roster: Digest of the roster that says who is registered (`scarcity_ray.secagg.roster`), 32 bytes.
        facts: Digest of all that the parties state and sign about themselves, 32 bytes: in every key, and
            signed back by each party with its advert, so that nobody can be told two stories.

    Guarantees:
        any_changed_field_changes_the_digest
        threshold_is_a_majority_and_never_one
    """

    federation_id: str
    session_id: bytes
    round_id: int
    attempt: int
    model_hash: bytes
    dimension: int
    ring_bits: int
    threshold: int
    parties: tuple[Party, ...]
    degree: int | None = None
    share_threshold: int | None = None
    roster: bytes = bytes(DIGEST_BYTES)
    facts: bytes = bytes(DIGEST_BYTES)

    def __post_init__(self) -> None:
        if isinstance(self.parties, tuple | list) and all(type(p) is Party for p in self.parties):
            object.__setattr__(self, "parties", tuple(sorted(self.parties, key=lambda p: p.party_id)))
        self.check()

    def check(self) -> None:
        """Refuses values that the protocol cannot run with, also when they came from outside.

        Raises:
            UsageError: naming the field.
        """
        _require(_is_name(self.federation_id), "federation_id", "1 to 256 characters of valid text")
        _require(
            type(self.session_id) is bytes and 16 <= len(self.session_id) <= 64,
            "session_id",
            "16 to 64 bytes",
        )
        _require(_is_int(self.round_id, 0, 2**63 - 1), "round_id", "an int >= 0")
        _require(_is_int(self.attempt, 0, 2**31 - 1), "attempt", "an int >= 0")
        for name in ("model_hash", "roster", "facts"):
            value = getattr(self, name)
            _require(type(value) is bytes and len(value) == DIGEST_BYTES, name, "32 bytes")
        _require(_is_int(self.dimension, 1, MAX_DIMENSION), "dimension", f"an int in 1..{MAX_DIMENSION}")
        _require(type(self.ring_bits) is int and self.ring_bits in RING_BITS, "ring_bits", "32 or 64")
        _require(
            type(self.parties) is tuple and 2 <= len(self.parties) <= MAX_PARTIES,
            "parties",
            f"2 to {MAX_PARTIES} of them",
        )
        for party in self.parties:
            _require(is_party(party), "parties", "Party(party_id, 32 bytes of an Ed25519 public key)")
        ids = [party.party_id for party in self.parties]
        _require(ids == sorted(set(ids)), "parties", "unique ids in sorted order")
        _require(
            len({party.identity_public for party in self.parties}) == len(ids), "parties", "unique identities"
        )
        least = least_threshold(len(ids))
        _require(
            _is_int(self.threshold, least, len(ids)),
            "threshold",
            f"an int in {least}..{len(ids)} for {len(ids)} parties (a majority, and never one)",
        )
        self._check_graph(len(ids))

    def _check_graph(self, num_parties: int) -> None:
        if self.degree is None:
            _require(self.share_threshold is None, "share_threshold", "None on the complete graph")
            return
        _require(
            _is_int(self.degree, 2, num_parties - 2) and self.degree % 2 == 0,
            "degree",
            f"None or an even int in 2..{num_parties - 2}",
        )
        least = self.degree // 2 + 1
        _require(
            _is_int(self.share_threshold, least, self.degree + 1),
            "share_threshold",
            f"an int in {least}..{self.degree + 1} at degree {self.degree} (a majority of the neighbourhood)",
        )

    def keys(self) -> dict[str, bytes]:
        """Identity keys of the parties, by id."""
        return {party.party_id: party.identity_public for party in self.parties}

    @property
    def rebuild_threshold(self) -> int:
        """Shares that rebuild one party's secret."""
        return self.threshold if self.share_threshold is None else self.share_threshold

    def digest(self) -> bytes:
        """The hash of every field (32 bytes)."""
        return digest(
            "context",
            self.federation_id,
            self.session_id,
            self.round_id,
            self.attempt,
            self.model_hash,
            self.dimension,
            self.ring_bits,
            self.threshold,
            self.degree or 0,
            self.share_threshold or 0,
            self.roster,
            self.facts,
            *(part for party in self.parties for part in (party.party_id, party.identity_public)),
        )


def least_threshold(num_parties: int) -> int:
    """The smallest safe threshold: two sets of this size always share a party, and it is never one."""
    return max(2, num_parties // 2 + 1)


def colluders_tolerated(num_parties: int, threshold: int) -> int:
    """Parties that may collude with a deviating coordinator on the complete graph.

    While 2 * threshold > num_parties + c, at most one of a party's two secrets can be rebuilt, and whatever
    is learned of an honest input is a sum over ``threshold - c`` or more honest ones
    (`scarcity_ray.secagg.graph` has the proof).

    Returns:
        The largest such c: ``2 * threshold - num_parties - 1``.
    """
    return 2 * threshold - num_parties - 1


def threshold_for(num_parties: int, fraction: float) -> int:
    """The threshold that more than ``fraction`` of the parties must reach.

    With ``fraction = 2/3`` it tolerates under a third of the parties dropping out, and under a third
    colluding with the coordinator (Bonawitz et al. 2017, theorem 6.5).

    Returns:
        ``floor(fraction * num_parties) + 1``, at most ``num_parties`` and at least `least_threshold`.
    """
    if num_parties < 2:
        raise UsageError(f"secure aggregation needs at least two parties, got {num_parties}")
    if not 0.0 <= fraction <= 1.0:
        raise UsageError(f"threshold fraction {fraction!r} is not in [0, 1]")
    wanted = math.floor(fraction * num_parties + 1e-9) + 1
    return max(least_threshold(num_parties), min(num_parties, wanted))


def is_party(value: object) -> bool:
    """Whether something from outside is a party with a name of valid text and a key of the right length."""
    return (
        type(value) is Party
        and _is_name(value.party_id)
        and type(value.identity_public) is bytes
        and len(value.identity_public) == PUBLIC_BYTES
    )


def _require(holds: bool, name: str, accepted: str) -> None:
    if not holds:
        raise UsageError(f"session context: {name} must be {accepted}")


def _is_int(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_name(value: object) -> bool:
    if type(value) is not str or not 1 <= len(value) <= MAX_ID_LENGTH:
        return False
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in value)
