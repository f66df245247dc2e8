"""Rebuilding the secrets that unmask the sum, from shares that their owners committed to.

Of a survivor only the seed is rebuilt, of a party that dropped only the mask key: the coordinator accepts
exactly the shares it asked for, each holder gives one of the two a party, and a majority of each
neighbourhood is needed, so no secret's other half can be gathered as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.secagg import shamir
from scarcity_ray.secagg.commitments import Secret, commit_to_seed, commit_to_share
from scarcity_ray.secagg.context import SessionContext
from scarcity_ray.secagg.graph import Graph
from scarcity_ray.secagg.key_agreement import private_key_from, public_key_of
from scarcity_ray.secagg.messages import Advert, KeyShares, UnmaskShares


class Unmasking:
    """The shares of one attempt's last phase."""

    def __init__(
        self,
        context: SessionContext,
        roster_digest: bytes,
        graph: Graph,
        adverts: Mapping[str, Advert],
        key_shares: Mapping[str, KeyShares],
        survivors: Collection[str],
    ) -> None:
        """Takes what the earlier phases fixed."""
        self._context = context
        self._context_digest = context.digest()
        self._roster_digest = roster_digest
        self._graph = graph
        self._adverts = adverts
        self._key_shares = key_shares
        self._survivors = survivors
        self._given: dict[Secret, dict[str, dict[str, bytes]]] = {Secret.SEED: {}, Secret.KEY: {}}

    @property
    def holders(self) -> Collection[str]:
        """Who gave their shares."""
        return self._given[Secret.SEED].keys()

    def add(self, message: UnmaskShares) -> None:
        """Takes a holder's shares.

        Raises:
            ProtocolViolation: unless they are exactly those asked for, and those that were dealt to it.
        """
        holder = message.party_id
        held = self._graph.present(holder, self._key_shares)
        seeds = tuple(owner for owner in held if owner in self._survivors)
        keys = tuple(owner for owner in held if owner not in self._survivors)
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
        dropped = set(self._key_shares) - set(self._survivors)
        return self._rebuild(Secret.SEED, self._survivors), self._rebuild(Secret.KEY, dropped)

    def _rebuild(self, secret: Secret, owners: Collection[str]) -> dict[str, bytes]:
        least, given = self._context.rebuild_threshold, self._given[secret]
        by_holders: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for owner in sorted(owners):
            by_holders[self._graph.present(owner, self.holders)[:least]].append(owner)
        rebuilt: dict[str, bytes] = {}
        for holders, group in by_holders.items():
            points = [self._context.point(holder) for holder in holders]
            shares = [[given[holder][owner] for holder in holders] for owner in group]
            for owner, value in zip(group, shamir.rebuild(points, shares), strict=True):
                if value is None or not self._matches_advert(secret, owner, value):
                    raise ProtocolViolation(
                        f"{owner!r} dealt shares that do not rebuild what it committed to"
                    )
                rebuilt[owner] = value
        return rebuilt

    def _require_dealt(self, owner: str, holder: str, secret: Secret, share: bytes) -> None:
        dealt = self._key_shares[owner]
        column = dealt.seed_share_commitments if secret is Secret.SEED else dealt.key_share_commitments
        given = commit_to_share(self._roster_digest, owner, holder, secret, share)
        if given != column[dealt.holders.index(holder)] or not shamir.is_share(share):
            raise ProtocolViolation(f"{holder!r} gave a false share of {owner!r}")

    def _matches_advert(self, secret: Secret, owner: str, value: bytes) -> bool:
        advert = self._adverts[owner]
        if secret is Secret.SEED:
            return commit_to_seed(self._context_digest, owner, value) == advert.seed_commitment
        return public_key_of(private_key_from(value)) == advert.mask_public
