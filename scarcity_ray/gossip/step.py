"""What a gossip round holds between its caller's calls, and what comes out of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.gossip.message import GossipMessage
from scarcity_ray.gossip.mixing import Scene, mix
from scarcity_ray.gossip.neighbour_sums import Received
from scarcity_ray.gossip.spread import estimate_spread
from scarcity_ray.plan import GossipPlan
from scarcity_ray.robust.arrays.blocks import Rows
from scarcity_ray.robust.measures.rows import clip_rows, row_norms


@dataclass(frozen=True, eq=False)
class GossipOutcome:
    """What one gossip round of a basket did.

    Attributes:
        delivered: Messages that reached a local state.
        sent: Messages put into inboxes, by push or pull.
        expired: Messages that grew too old.
        released: Clients that released a new vector.
        client_ids: The members with a state, as given to `begin`.
        states: Their states after mixing, n float32 rows: a new (n, d) array, or the `out` of `exchange`.
        mixed: Those who received something.
    """

    delivered: int
    sent: int
    expired: int
    released: tuple[str, ...]
    client_ids: tuple[str, ...]
    states: Rows
    mixed: tuple[str, ...]


@dataclass
class GossipStep:
    """A gossip round under way.

    Attributes:
        client_ids: Members with a state, sorted.
        states: Their states, n float32 rows.
        norms: (n,) their norms.
        to_test: Clients whose drift test is to be charged.
        to_push: Clients whose vector is to be charged.
    """

    client_ids: tuple[str, ...]
    states: Rows
    norms: NDArray[np.float64]
    to_test: frozenset[str]
    to_push: frozenset[str] = frozenset()

    def clipped(self, ids: Collection[str], clip_norm: float) -> Iterator[NDArray[np.float32]]:
        """The clipped states of `ids`, in the order of `client_ids`, one at a time."""
        wanted = set(ids)
        for index, client_id in enumerate(self.client_ids):
            if client_id in wanted:
                yield clip_rows([self.states[index]], self.norms[index : index + 1], clip_norm)[0]

    def mix(
        self,
        inboxes: Sequence[Sequence[GossipMessage]],
        live: Mapping[str, GossipMessage],
        mixing: str,
        plan: GossipPlan,
        num_members: int,
        out: Rows,
    ) -> None:
        """Mix what was delivered into the states.

        Args:
            inboxes: For each client the messages that reached it.
            live: The federation round's released vectors by sender, sorted: what the spread is judged by.
            mixing: Its name.
            plan: Noise scale, clip norms, Layer 1's rule.
            num_members: Members of the basket.
            out: n float32 rows for the result; may be the states themselves.
        """
        for row, state in zip(out, self.states, strict=True):
            if row is not state:
                row[...] = state
        messages = {id(m): m for m in live.values()}
        messages.update((id(m), m) for inbox in inboxes for m in inbox)
        if not messages:
            return
        number = {key: index for index, key in enumerate(messages)}
        vectors = [message.summary_vector for message in messages.values()]
        scales = _clip_scales(row_norms(vectors), plan.receive_norm)
        mixed = [place for place, inbox in enumerate(inboxes) if inbox]
        scene = Scene(
            states=[out[place] for place in mixed],
            state_scales=_clip_scales(self.norms[mixed], plan.clip_norm),
            received=Received.of(vectors, [[number[id(m)] for m in inboxes[place]] for place in mixed]),
            vector_scales=scales,
            spread=estimate_spread(
                vectors[: len(live)], scales[: len(live)], plan, plan.num_byzantine(num_members)
            ),
            plan=plan,
            num_members=num_members,
            num_rows=len(self.client_ids),
        )
        mix(mixing, scene, scene.states)


def _clip_scales(norms: NDArray[np.float64], clip_norm: float) -> NDArray[np.float64]:
    scales: NDArray[np.float64] = np.divide(
        clip_norm, norms, out=np.ones_like(norms), where=norms > clip_norm
    )
    return scales


__all__ = ["GossipOutcome", "GossipStep"]
