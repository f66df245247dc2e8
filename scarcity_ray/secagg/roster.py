"""The roster: whose keys are registered, as a chain of epochs that each party pins.

The number of parties assumed corrupt is a share of all that are registered, not of those that a coordinator
invites. So every party must know all registered parties from another source than the coordinator. A roster
lists their ids and keys, has an epoch, and names the roster before it by its hash. A party pins the first
roster that it is given and follows the chain from there: it takes the next epoch if that names the pinned
one, and refuses lower or skipped epochs and another roster of an epoch that it has seen. A dead party stays
registered until it is retired; a party that comes back with a new key needs a new epoch.

Whoever makes the chain decides who is on it. Where an operator's key is configured, each roster must carry
the operator's signature. A party that is not on a signed roster may be endorsed by one that is (a basket that
is split endorses its halves). It may then take part, and counts as corrupt until the operator has signed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scarcity_ray.errors import UsageError
from scarcity_ray.secagg.context import Party, is_party
from scarcity_ray.secagg.transcript import DIGEST_BYTES, digest, encode
from scarcity_ray_client.formats import why_not_read
from scarcity_ray_client.identity import SIGNATURE_BYTES, IdentityKeyPair

FORMAT, VERSION = "scarcity_ray roster", 1
KEPT = 64
"""Newest epochs that a chain keeps, for those who are behind."""
NOBODY_BEFORE = bytes(DIGEST_BYTES)
"""What the first roster names as the one before it."""


@dataclass(frozen=True, slots=True)
class Roster:
    """The registered parties in one epoch.

    Attributes:
        epoch: 1 for the first, then one more each.
        previous: Digest of the roster before it, 32 bytes; zeros for the first.
        parties: All that are registered, kept sorted by id.
        signature: The operator's, 64 bytes; empty without one.

    Guarantees:
        any_changed_field_changes_the_rosters_digest
        a_roster_comes_back_from_its_text
    """

    federation_id: str
    epoch: int
    previous: bytes
    parties: tuple[Party, ...]
    signature: bytes = b""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parties", tuple(sorted(self.parties, key=lambda p: p.party_id)))

    def content(self) -> bytes:
        """What the operator signs."""
        return encode(
            "registered",
            self.federation_id,
            self.epoch,
            self.previous,
            *(part for party in self.parties for part in (party.party_id, party.identity_public)),
        )

    def digest(self) -> bytes:
        """The hash of every field but the signature (32 bytes)."""
        return digest("register", self.content())

    def keys(self) -> dict[str, bytes]:
        """Identity keys by id."""
        return {party.party_id: party.identity_public for party in self.parties}

    def next(self, parties: Iterable[Party]) -> Roster:
        """The epoch after this one, not signed."""
        return Roster(self.federation_id, self.epoch + 1, self.digest(), tuple(parties))

    def signed(self, operator: IdentityKeyPair) -> Roster:
        """The same with the operator's signature."""
        return replace(self, signature=operator.sign(self.content()))

    def is_signed_by(self, operator_key: bytes) -> bool:
        """Whether the signature is that of the holder of `operator_key` (32 bytes)."""
        return IdentityKeyPair.verify_with(operator_key, self.content(), self.signature)

    def to_json(self) -> str:
        """The roster as JSON, to be carried to where the operator's key is."""
        return json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "federation_id": self.federation_id,
                "epoch": self.epoch,
                "previous": self.previous.hex(),
                "parties": {party.party_id: party.identity_public.hex() for party in self.parties},
                "signature": self.signature.hex(),
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Roster:
        """What `to_json` wrote; before version 1 it stated none.

        Raises:
            UsageError: if it is something else, or of a newer version.
        """
        try:
            given = json.loads(text)
            why = why_not_read(FORMAT, VERSION, given.get("format", FORMAT), given.get("version", 1))
            if why:
                raise UsageError(why)
            roster = cls(
                given["federation_id"],
                given["epoch"],
                bytes.fromhex(given["previous"]),
                tuple(Party(name, bytes.fromhex(key)) for name, key in given["parties"].items()),
                bytes.fromhex(given["signature"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"this is no roster: {type(error).__name__}: {error}") from None
        if not is_sound(roster):
            raise UsageError("this is no roster: an id, a key, the epoch or a hash is malformed")
        return roster


@dataclass(frozen=True, slots=True)
class Endorsement:
    """A registered party, the parent, vouches for `party`, which the operator has not signed for yet.

    Attributes:
        signature: By the parent's identity, 64 bytes.
    """

    federation_id: str
    parent_id: str
    party: Party
    signature: bytes = b""

    def content(self) -> bytes:
        """What the parent signs."""
        party = self.party
        return encode("endorsed", self.federation_id, self.parent_id, party.party_id, party.identity_public)

    def signed(self, parent: IdentityKeyPair) -> Endorsement:
        """The same with the parent's signature."""
        return replace(self, signature=parent.sign(self.content()))


class RosterChain:
    """The rosters that somebody has pinned.

    Guarantees:
        lower_skipped_and_forked_epochs_are_refused
        without_the_operators_signature_nothing_is_pinned
        an_endorsed_party_is_known_and_not_registered

    Args:
        federation_id: The only federation whose rosters are taken.
        operator_key: The operator's public key (32 bytes); None: rosters need no signature.
        kept: Where it begins: a chain that was pinned before, oldest first.

    Attributes:
        kept: The newest rosters, oldest first, `KEPT` at most.
    """

    def __init__(
        self, federation_id: str, operator_key: bytes | None = None, kept: Sequence[Roster] = ()
    ) -> None:
        self._federation_id = federation_id
        self._operator_key = operator_key
        self.kept: tuple[Roster, ...] = ()
        self._endorsed: dict[str, Endorsement] = {}
        self.follow(kept)

    @property
    def newest(self) -> Roster | None:
        """The newest pinned roster; None before the first."""
        return self.kept[-1] if self.kept else None

    @property
    def epoch(self) -> int:
        """The newest pinned epoch; 0 before the first."""
        return self.kept[-1].epoch if self.kept else 0

    def next(self, parties: Iterable[Party]) -> Roster:
        """The epoch that comes next, not signed and not pinned."""
        if self.newest is None:
            return Roster(self._federation_id, 1, NOBODY_BEFORE, tuple(parties))
        return self.newest.next(parties)

    def since(self, epoch: int) -> tuple[Roster, ...]:
        """The rosters after `epoch`, or the newest alone for who has none yet."""
        return tuple(r for r in self.kept if r.epoch > epoch) if epoch else self.kept[-1:]

    def follow(self, rosters: Sequence[Roster]) -> str:
        """Pin the next epochs, oldest first; why it stopped, or nothing.

        Those that are pinned already are passed over.
        """
        for roster in rosters:
            refusal = self._refusal(roster)
            if refusal:
                return refusal
            if roster.epoch > self.epoch:
                self.kept = (*self.kept, roster)[-KEPT:]
        return ""

    def misnamed(self, rosters: Sequence[Roster], own: Mapping[str, bytes]) -> tuple[str, ...]:
        """Those of `own` that the last of `rosters` lists with another key, if it is not pinned already.

        The epochs before it may name those who had the id earlier.
        """
        if not rosters or not is_sound(rosters[-1]) or rosters[-1] in self.kept:
            return ()
        named = rosters[-1].keys()
        return tuple(sorted(name for name, key in own.items() if named.get(name, key) != key))

    def endorse(self, endorsements: Iterable[Endorsement]) -> None:
        """Learn for whom registered parties, or parties endorsed before them, vouch; others are ignored."""
        keys = self.known()
        for endorsed in endorsements:
            party, parent = endorsed.party, keys.get(endorsed.parent_id)
            if (
                parent is not None
                and endorsed.federation_id == self._federation_id
                and party.party_id not in keys
                and IdentityKeyPair.verify_with(parent, endorsed.content(), endorsed.signature)
            ):
                self._endorsed[party.party_id] = endorsed
                keys[party.party_id] = party.identity_public

    def endorsements(self) -> tuple[Endorsement, ...]:
        """For whom is vouched that is not registered."""
        registered: Mapping[str, bytes] = {} if self.newest is None else self.newest.keys()
        return tuple(e for party_id, e in self._endorsed.items() if party_id not in registered)

    def known(self) -> dict[str, bytes]:
        """Keys of all who may take part: who is registered, and who is endorsed."""
        registered: Mapping[str, bytes] = {} if self.newest is None else self.newest.keys()
        endorsed = {party_id: e.party.identity_public for party_id, e in self._endorsed.items()}
        return {**endorsed, **registered}

    def _refusal(self, roster: Roster) -> str:
        if not is_sound(roster):
            return "the roster is malformed"
        if roster.federation_id != self._federation_id:
            return f"the roster is of another federation, {roster.federation_id!r}"
        if self._operator_key is not None and not roster.is_signed_by(self._operator_key):
            return f"the roster of epoch {roster.epoch} does not carry the operator's signature"
        newest = self.newest
        if newest is None or roster.digest() in {kept.digest() for kept in self.kept}:
            return ""
        if roster.epoch <= newest.epoch:
            return f"epoch {newest.epoch} is pinned; this is another roster of epoch {roster.epoch}"
        if roster.epoch > newest.epoch + 1:
            return f"epoch {newest.epoch} is pinned; epoch {roster.epoch} skips what lies between"
        if roster.previous != newest.digest():
            return f"epoch {roster.epoch} does not follow from the roster that is pinned"
        return ""


def is_sound(roster: object) -> bool:
    """Whether something from outside is a roster whose fields have the right types and lengths."""
    if type(roster) is not Roster or type(roster.federation_id) is not str:
        return False
    if type(roster.epoch) is not int or not 1 <= roster.epoch < 2**63:
        return False
    if type(roster.previous) is not bytes or len(roster.previous) != DIGEST_BYTES:
        return False
    if type(roster.signature) is not bytes or len(roster.signature) not in (0, SIGNATURE_BYTES):
        return False
    if not all(is_party(party) for party in roster.parties):
        return False
    return len(roster.keys()) == len(roster.parties)
