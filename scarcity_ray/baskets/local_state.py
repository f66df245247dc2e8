"""The local states of a basket's clients, and their reports of meta-parameters.

A client's local state is formed from its buffered updates and outlives the buffer. Gossip mixes received
vectors into it, and Layer 1 aggregates the states of the clients with buffered updates. Without Layer 2 the
client trains on from its state, and updates do not become stale, since there is no global model.

*Momentum* (``layer1.momentum``, beta): a client's state is its momentum m, which each aggregate that it takes
part in moves to beta m + (1 - beta) row, from m = 0 (Karimireddy, He, Jaggi 2021, "Learning from History"). A
liar hides in the spread of honest states, and momentum averages their noise: after many rows its variance is
(1 - beta) / (1 + beta) of one row's. Rows are noised already where there is momentum, so it costs no privacy.
Early states are short, by 1 - beta^t after t rows.

Guarantees:
    A newly formed state has at most the clip norm.
    A report of meta-parameters enters one aggregate.
    a_row_enters_its_clients_momentum_once: However often its state is formed while it waits.
    momentum_travels_with_its_client_and_dies_with_its_registration
    a_state_that_is_formed_when_it_is_asked_for_is_the_one_of_its_last_update
    a_known_norm_is_that_of_the_state: Through mixing, new updates, rounds and moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.baskets.reports import ClippingReport
from scarcity_ray.baskets.update_buffer import BasketBuffer
from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.layers.meta_parameters import mean_reports
from scarcity_ray.robust import clip_vector, row_norm

Row = NDArray[np.float32]
MetaReport = NDArray[np.float64]
"""A client's meta-parameters as `encode_report` gives them."""


class LocalStates:
    """The states of one basket, whose updates wait in `buffer`; new ones are clipped to `clip_norm`.

    A state is computed when it is first asked for, so that many updates of a client in a round cost one.
    """

    def __init__(self, config: HierarchicalFederationConfig, buffer: BasketBuffer) -> None:
        self.clip_norm = config.layer1.clip_norm
        self._config = config
        self._buffer = buffer
        self._rows: dict[str, Row] = {}
        # Clients whose state is to be computed from what waits, with the clip norm at its last update.
        self._unformed: dict[str, float] = {}
        self._meta: dict[str, MetaReport] = {}
        self._norms: dict[str, float] = {}
        # Norms of states that nothing was written to since they were formed.
        self._lengths: dict[str, float] = {}
        self._momenta: dict[str, Row] = {}

    def ids(self) -> tuple[str, ...]:
        """Clients that have a state, sorted."""
        return tuple(sorted(self._rows.keys() | self._unformed.keys()))

    def rows(self, client_ids: Sequence[str]) -> list[Row]:
        """Their states themselves, not copies: to be read only."""
        self._compute(client_ids)
        return [self._rows[client_id] for client_id in client_ids]

    def rows_to_mix(self, client_ids: Sequence[str]) -> list[Row]:
        """Their states themselves, to be written to by gossip."""
        rows = self.rows(client_ids)
        for client_id in client_ids:
            self._lengths.pop(client_id, None)
        return rows

    def lengths(self, client_ids: Sequence[str]) -> NDArray[np.float64]:
        """Norms of their states, (n,), to float32 rounding; those that are known are not computed."""
        self._compute(client_ids)
        known = self._lengths
        return np.array([known.get(c) or row_norm(self._rows[c]) for c in client_ids], np.float64)

    def get(self, client_id: str) -> Row | None:
        """A client's state."""
        self._compute([client_id])
        return self._rows.get(client_id)

    def report_of(self, client_id: str) -> MetaReport | None:
        """A client's report that waits for an aggregate."""
        return self._meta.get(client_id)

    def form(self, client_id: str, meta: MetaReport | None = None) -> None:
        """Form a client's state from what it has buffered, and keep its report if there is a new one."""
        self._unformed[client_id] = self.clip_norm
        if meta is not None:
            self._meta[client_id] = meta

    def keep_momenta(self, client_ids: Sequence[str]) -> None:
        """Note that the clients' buffered rows are in an aggregate, and about to leave the buffer."""
        self._compute(client_ids)
        if self._config.layer1.momentum:
            for client_id in client_ids:
                row = clip_vector(self._buffer.row(client_id), self.clip_norm)
                self._momenta[client_id] = self._with_momentum(client_id, row)

    def _compute(self, client_ids: Sequence[str]) -> None:
        vote = self._buffer.row if self._config.layer2.enabled else self._buffer.newest
        for client_id in client_ids:
            clip_norm = self._unformed.pop(client_id, None)
            if clip_norm is None:
                continue
            row = vote(client_id)
            norm = row_norm(row)
            self._rows[client_id] = self._with_momentum(client_id, clip_vector(row, clip_norm, norm))
            self._lengths.pop(client_id, None)
            if not self._config.layer1.momentum:
                self._lengths[client_id] = min(norm, clip_norm)
            if self._config.expose_basket_models:
                self._norms[client_id] = norm

    def _with_momentum(self, client_id: str, row: Row) -> Row:
        beta = np.float32(self._config.layer1.momentum)
        if not beta:
            return row
        moved: Row = (np.float32(1.0) - beta) * row
        if client_id in self._momenta:
            moved += beta * self._momenta[client_id]
        return moved

    def age(self) -> None:
        """Form the states of clients with buffered updates again, with their new staleness weights.

        The effect of earlier gossip is dropped: it was relative to an older global model.
        """
        for client_id in self._buffer.clients() if self._config.layer2.enabled else ():
            self.form(client_id)

    def raw_norms(self, client_ids: Sequence[str]) -> list[float] | None:
        """Norms of the clients' rows before clipping and gossip; None without adaptive clipping."""
        if not self._config.layer2.adaptive_clipping:
            return None
        return [row_norm(self._buffer.row(client_id)) for client_id in client_ids]

    def clipping(self, client_ids: Sequence[str]) -> ClippingReport | None:
        """Norms of the clients' rows; None if basket models are private, or no norm is known."""
        self._compute(client_ids)
        norms = [self._norms[client_id] for client_id in client_ids if client_id in self._norms]
        if not norms:
            return None
        clipped = sum(norm > self.clip_norm for norm in norms)
        return ClippingReport(len(norms), clipped, median(norms), self.clip_norm)

    def mean_meta(self, client_ids: Sequence[str]) -> MetaReport:
        """The mean of the clients' reports; a client without one counts as zero."""
        length = len(self._config.meta_parameters)
        return mean_reports([self._meta.get(c, np.zeros(length)) for c in client_ids], length)

    def forget_reports(self, client_ids: Sequence[str]) -> None:
        """Note that the clients' reports have entered an aggregate."""
        for client_id in client_ids:
            self._meta.pop(client_id, None)

    def take(self, client_id: str) -> tuple[Row | None, MetaReport | None, Row | None]:
        """Remove and return a client's state, waiting report and momentum; its updates wait still."""
        self._compute([client_id])
        for known in (self._norms, self._lengths):
            known.pop(client_id, None)
        held = self._rows.pop(client_id, None), self._meta.pop(client_id, None)
        return *held, self._momenta.pop(client_id, None)

    def forget(self, client_id: str) -> None:
        """Remove a client's state, waiting report and momentum."""
        self._unformed.pop(client_id, None)
        for held in (self._norms, self._lengths, self._rows, self._meta, self._momenta):
            held.pop(client_id, None)

    def momentum(self, client_id: str) -> Row | None:
        """A client's momentum; None before its first aggregate."""
        return self._momenta.get(client_id)

    def put(
        self, client_id: str, row: Row | None, meta: MetaReport | None, momentum: Row | None = None
    ) -> None:
        """Add what `take` returned elsewhere."""
        if momentum is not None:
            self._momenta[client_id] = np.array(momentum, np.float32)
        if row is not None:
            for known in (self._unformed, self._lengths):
                known.pop(client_id, None)
            self._rows[client_id] = np.array(row, np.float32)
        if meta is not None:
            self._meta[client_id] = meta
