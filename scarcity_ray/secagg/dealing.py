"""Dealing, gathering, opening and rebuilding shares: what phases 2 and 5 do with a party's two secrets.

Each holder gets one ciphertext with two shares, of the dealer's self-mask seed and of its mask key. The
dealer also commits publicly to every share. A holder that was dealt another share than the committed one
refuses before anything is unmasked; a holder that later gives another share is caught by the coordinator. So
a wrong share can always be blamed on one party. Whether all committed shares lie on one polynomial shows only
when the secret is rebuilt; a dealer whose shares do not is named, and that attempt is lost.

Of a survivor only the seed is rebuilt, and of a party that dropped only the mask key. The coordinator accepts
exactly the shares it asked for, each holder gives one of the two, and rebuilding needs a majority of the
neighbourhood, so nobody can gather both secrets of a party.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat

from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.secagg import shamir
from scarcity_ray.secagg.commitments import Secret, commit_to_seed, commit_to_share, share_binding
from scarcity_ray.secagg.context import SessionContext
from scarcity_ray.secagg.graph import Graph
from scarcity_ray.secagg.key_agreement import (
    Entropy,
    expand,
    private_key_from,
    public_key_of,
    seal,
    unseal,
)
from scarcity_ray.secagg.messages import Advert, Inbox, KeyShares, UnmaskShares


def deal(
    dealer: str,
    secrets: Mapping[Secret, bytes | bytearray],
    holders: Mapping[str, int],
    threshold: int,
    shared_secrets: Mapping[str, bytes],
    context_digest: bytes,
    roster_digest: bytes,
    entropy: Entropy,
) -> KeyShares:
    """Shares both secrets (32 bytes each) among the holders; the message is not signed yet.

    Args:
        holders: Shamir point of each holder, in sorted order of their ids.
        threshold: Shares that rebuild a secret.
        shared_secrets: By holder, the pseudorandom key of the shares between the two (`Agreements`).
    """
    seed_shares, key_shares = shamir.split(
        (secrets[Secret.SEED], secrets[Secret.KEY]), threshold, list(holders.values()), entropy
    )
    bindings = [share_binding(roster_digest, dealer, holder) for holder in holders]
    return KeyShares(
        party_id=dealer,
        context_digest=context_digest,
        roster_digest=roster_digest,
        holders=tuple(holders),
        sealed=tuple(
            seal(expand(shared_secrets[holder], binding), seed_share + key_share, binding)
            for holder, binding, seed_share, key_share in zip(
                holders, bindings, seed_shares, key_shares, strict=True
            )
        ),
        seed_share_commitments=tuple(map(commit_to_share, bindings, repeat(Secret.SEED), seed_shares)),
        key_share_commitments=tuple(map(commit_to_share, bindings, repeat(Secret.KEY), key_shares)),
    )


def require_dealt_to(message: KeyShares, holders: tuple[str, ...]) -> None:
    """Refuses shares that were not dealt to exactly these holders, one of each secret each."""
    columns = (message.sealed, message.seed_share_commitments, message.key_share_commitments)
    if message.holders != holders or any(len(column) != len(holders) for column in columns):
        raise ProtocolViolation(f"{message.party_id!r} did not share with exactly its neighbourhood")


def gather(
    holder: str, context_digest: bytes, sharers: tuple[str, ...], dealt: Mapping[str, KeyShares]
) -> Inbox:
    """Collects what each dealer dealt to one holder.

    Args:
        sharers: All who shared, sorted.
        dealt: By dealer in sorted order, messages that `require_dealt_to` let through.
    """
    column = {dealer: bisect_left(message.holders, holder) for dealer, message in dealt.items()}
    return Inbox(
        party_id=holder,
        context_digest=context_digest,
        sharers=sharers,
        senders=tuple(dealt),
        sealed=tuple(dealt[dealer].sealed[i] for dealer, i in column.items()),
        seed_share_commitments=tuple(dealt[d].seed_share_commitments[i] for d, i in column.items()),
        key_share_commitments=tuple(dealt[d].key_share_commitments[i] for d, i in column.items()),
    )


def open_shares(
    inbox: Inbox, shared_secrets: Mapping[str, bytes], roster_digest: bytes
) -> dict[str, bytearray]:
    """Decrypts what each dealer sent to this holder, and compares it with the dealer's commitments.

    Args:
        inbox: Checked for type, recipient and senders.
        shared_secrets: By dealer, the pseudorandom key of the shares between the two (`Agreements`).

    Returns:
        By dealer, its seed share and its key share (68 bytes).

    Raises:
        ProtocolViolation: naming the dealer whose shares do not decrypt or contradict its commitments.
    """
    columns = (inbox.senders, inbox.sealed, inbox.seed_share_commitments, inbox.key_share_commitments)
    if len({len(column) for column in columns}) != 1:
        raise ProtocolViolation("the inbox's columns differ in length")
    holder = inbox.party_id
    held: dict[str, bytearray] = {}
    for dealer, sealed, *committed in zip(*columns, strict=True):
        binding = share_binding(roster_digest, dealer, holder)
        plain = unseal(expand(shared_secrets[dealer], binding), sealed, binding)
        if plain is None:
            raise ProtocolViolation(f"the shares of {dealer!r} do not decrypt")
        of_seed, of_key = halves(plain)
        expected = [
            commit_to_share(binding, Secret.SEED, of_seed),
            commit_to_share(binding, Secret.KEY, of_key),
        ]
        if committed != expected or not (shamir.is_share(of_seed) and shamir.is_share(of_key)):
            raise ProtocolViolation(f"the shares of {dealer!r} contradict its commitments")
        held[dealer] = bytearray(plain)
    return held


def halves(pair: Sequence[int]) -> tuple[bytes, bytes]:
    """A dealt pair's seed share and key share (34 bytes each)."""
    return bytes(pair[: shamir.SHARE_BYTES]), bytes(pair[shamir.SHARE_BYTES :])


@dataclass
class Unmasking:
    """The shares of one attempt's last phase, and what the earlier phases fixed."""

    context: SessionContext
    context_digest: bytes
    roster_digest: bytes
    graph: Graph
    adverts: Mapping[str, Advert]
    key_shares: Mapping[str, KeyShares]
    survivors: Collection[str]
    _given: dict[Secret, dict[str, dict[str, bytes]]] = field(
        default_factory=lambda: {Secret.SEED: {}, Secret.KEY: {}}
    )

    @property
    def holders(self) -> Collection[str]:
        """The parties that gave their shares."""
        return self._given[Secret.SEED].keys()

    def add(self, message: UnmaskShares) -> None:
        """Takes a holder's shares.

        Raises:
            ProtocolViolation: unless they are exactly those asked for, and those that were dealt to it.
        """
        holder = message.party_id
        held = self.graph.present(holder, self.key_shares)
        seeds = tuple(owner for owner in held if owner in self.survivors)
        keys = tuple(owner for owner in held if owner not in self.survivors)
        if (message.seed_owners, message.key_owners) != (seeds, keys) or (
            len(message.seed_shares) != len(seeds) or len(message.key_shares) != len(keys)
        ):
            raise ProtocolViolation(f"{holder!r} did not give exactly the shares that are asked of it")
        given = {
            Secret.SEED: dict(zip(seeds, message.seed_shares, strict=True)),
            Secret.KEY: dict(zip(keys, message.key_shares, strict=True)),
        }
        for secret, shares in given.items():
            for owner, share in shares.items():
                self._require_dealt(owner, holder, secret, share)
        for secret, shares in given.items():
            self._given[secret][holder] = shares

    def rebuild(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """The seeds of the survivors and the mask keys of those who dropped, by owner.

        Raises:
            ProtocolViolation: naming the dealer whose shares do not rebuild what it committed to.
        """
        dropped = set(self.key_shares) - set(self.survivors)
        return self._rebuild(Secret.SEED, self.survivors), self._rebuild(Secret.KEY, dropped)

    def _rebuild(self, secret: Secret, owners: Collection[str]) -> dict[str, bytes]:
        least, given = self.context.rebuild_threshold, self._given[secret]
        by_holders: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for owner in sorted(owners):
            by_holders[self.graph.present(owner, self.holders)[:least]].append(owner)
        rebuilt: dict[str, bytes] = {}
        for holders, group in by_holders.items():
            points = [self.graph.points[holder] for holder in holders]
            shares = [[given[holder][owner] for holder in holders] for owner in group]
            for owner, value in zip(group, shamir.rebuild(points, shares), strict=True):
                if value is None or not self._matches_advert(secret, owner, value):
                    raise ProtocolViolation(
                        f"{owner!r} dealt shares that do not rebuild what it committed to"
                    )
                rebuilt[owner] = value
        return rebuilt

    def _require_dealt(self, owner: str, holder: str, secret: Secret, share: bytes) -> None:
        dealt = self.key_shares[owner]
        column = dealt.seed_share_commitments if secret is Secret.SEED else dealt.key_share_commitments
        given = commit_to_share(share_binding(self.roster_digest, owner, holder), secret, share)
        if given != column[bisect_left(dealt.holders, holder)] or not shamir.is_share(share):
            raise ProtocolViolation(f"{holder!r} gave a false share of {owner!r}")

    def _matches_advert(self, secret: Secret, owner: str, value: bytes) -> bool:
        advert = self.adverts[owner]
        if secret is Secret.SEED:
            return commit_to_seed(self.context_digest, owner, value) == advert.seed_commitment
        return public_key_of(private_key_from(value)) == advert.mask_public
