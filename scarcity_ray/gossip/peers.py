"""Peer sampling: K peers for each client, rotating through the basket."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from scarcity_ray.config import stream


class PeerSampler:
    """Samples peers on a ring that is shuffled anew every `rotation_window` rounds.

    A window draws one random order of the basket (the ring) and one random order of the distances
    1..n-1 on it. In the window's j-th round a client's peers stand at the next K of those distances from it.

    Guarantees:
        peers_are_never_oneself_nor_twice_and_balanced: If all members of a basket ask for K peers, each of
            them is chosen exactly K times.
        a_client_meets_everybody_before_it_meets_anybody_again: Within a window of unchanged membership.
        every_peer_is_equally_likely
        The same seed, basket, round and members give the same peers, in whatever order clients ask.

    Args:
        rotation_window: Rounds between two shuffles.
        seed: Of the simulation stream; peers are no secret.
        basket_id: The basket, so that baskets rotate independently.
    """

    def __init__(self, rotation_window: int = 10, *, seed: int = 0, basket_id: str = "") -> None:
        self.rotation_window = rotation_window
        self.round = 0
        self._seed = seed
        self._basket_id = basket_id

    def advance_round(self) -> None:
        """Go on to the next gossip round."""
        self.round += 1

    def sample(
        self, basket_peers: Collection[str], k: int, exclude: str | Collection[str]
    ) -> tuple[str, ...]:
        """Up to `k` of `basket_peers` without those of `exclude`, in random order.

        Args:
            exclude: The asking client's id; or several ids, of which the first in order counts as asking.
        """
        excluded = {exclude} if isinstance(exclude, str) else set(exclude)
        members = sorted(set(basket_peers) | excluded)
        if not members:
            return ()
        asking = members.index(min(excluded)) if excluded else 0
        ring, distances = self._shuffled(len(members))
        position = int(np.flatnonzero(ring == asking)[0])
        steps = np.roll(distances, -self._offset(k, len(distances)))
        if not excluded:
            steps = np.append(steps, 0)
        found = (members[ring[(position + int(step)) % len(members)]] for step in steps)
        return tuple(peer for peer in found if peer not in excluded)[: max(k, 0)]

    def sample_all(self, members: Sequence[str], k: int) -> npt.NDArray[np.intp]:
        """The peers of every member at once, as `sample` gives them one by one.

        Args:
            members: All members of the basket, sorted.

        Returns:
            (n, min(k, n - 1)) indices into `members`; row i holds the peers of ``members[i]``.
        """
        n = len(members)
        ring, distances = self._shuffled(n)
        steps = np.roll(distances, -self._offset(k, len(distances)))[: max(k, 0)]
        position = np.empty(n, dtype=np.intp)
        position[ring] = np.arange(n)
        peers: npt.NDArray[np.intp] = ring[(position[:, np.newaxis] + steps[np.newaxis, :]) % max(n, 1)]
        return peers

    def _shuffled(self, n: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        rng = stream(self._seed, "peers", self._basket_id, self.round // self.rotation_window)
        ring = rng.permutation(n).astype(np.intp)
        return ring, rng.permutation(max(n - 1, 0)).astype(np.intp) + 1

    def _offset(self, k: int, num_distances: int) -> int:
        return (self.round % self.rotation_window) * k % num_distances if num_distances else 0
