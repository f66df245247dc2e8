"""A basket's latest aggregate, and whether a release may still use it.

An aggregate is *fresh* until it enters a release, a newer one supersedes it, or a contributor leaves the
basket: the client may join another one, and must not be in one release twice. An aggregate that was handed in
to a session is not used again until it is certain that the session made no release
(`actors.secure_parties`). If a newer one replaces it meanwhile, it counts as superseded only then.

Guarantees:
    An aggregate enters at most one release.
    An aggregate that contains a client who left the basket enters no further release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scarcity_ray.layers.models import BasketModel


@dataclass(frozen=True, eq=False)
class AggregateRecord:
    """A basket's latest aggregate as its journal keeps it.

    Attributes:
        model: None before the first.
        is_fresh: Whether a release may still use it.
        contributors: The clients in it, sorted.
        charge_id: Of the release that it was handed in for and that may have been made; empty if none.
    """

    model: BasketModel | None
    is_fresh: bool
    contributors: tuple[str, ...] = ()
    charge_id: str = ""


class LatestAggregate:
    """The aggregate of one basket.

    Attributes:
        model: The latest aggregate, fresh or not; None before the first.
        made: Aggregates made so far.
        superseded: Fresh ones that a newer one replaced.
        discarded: Fresh ones discarded because a contributor left.
        is_unsaved: Whether it has changed since `record` was called.
    """

    def __init__(self) -> None:
        self.model: BasketModel | None = None
        self.made = 0
        self.superseded = 0
        self.discarded = 0
        self._contributors: frozenset[str] = frozenset()
        self._fresh = False
        self._handed_in: BasketModel | None = None
        self._charge_id = ""
        self._replaced: set[BasketModel] = set()
        self.is_unsaved = False

    @property
    def fresh(self) -> BasketModel | None:
        """The aggregate that the next release may use."""
        return self.model if self._fresh and self.model is not self._handed_in else None

    def show(self, model: BasketModel | None, made: int, superseded: int, discarded: int) -> None:
        """Show an aggregate from before a restart; it is not fresh."""
        self.model, self.made, self.superseded, self.discarded = model, made, superseded, discarded

    def replace(self, model: BasketModel, contributors: Sequence[str]) -> None:
        """Replace the aggregate by a new one."""
        if self._fresh and self.model is not None:
            if self.model is self._handed_in:
                self._replaced.add(self.model)
            else:
                self.superseded += 1
        self.made += 1
        self.model, self._fresh, self.is_unsaved = model, True, True
        self._contributors = frozenset(contributors)

    def hand_in(self, model: BasketModel | None, charge_id: str = "") -> None:
        """Note that `model` goes into a session, and no other may use it; None changes nothing.

        Args:
            charge_id: Of the release that the session would make.
        """
        if model is not None:
            self._handed_in, self._charge_id, self.is_unsaved = model, charge_id, True

    def take_back(self, model: BasketModel | None) -> None:
        """Note that the session that `model` was handed in to certainly makes no release."""
        if model is self._handed_in:
            self._handed_in, self.is_unsaved = None, True
        if model in self._replaced:
            self._replaced.discard(model)
            self.superseded += 1

    def spend(self, model: BasketModel | None) -> None:
        """Note that `model` has entered a release, or may have; it never enters another."""
        if model is None:
            return
        self._replaced.discard(model)
        if model is self.model:
            self._fresh, self.is_unsaved = False, True

    def discard_if_of(self, client_id: str) -> None:
        """Discard a fresh aggregate to which the client contributed."""
        if self._fresh and client_id in self._contributors:
            self._fresh, self.is_unsaved = False, True
            self.discarded += 1

    def record(self) -> AggregateRecord:
        """What outlives the actor."""
        self.is_unsaved = False
        contributors = tuple(sorted(self._contributors))
        return AggregateRecord(self.model, self._fresh, contributors, self.handed_in_for)

    def restore(self, record: AggregateRecord) -> None:
        """Take up what `record` gave; one that was handed in stays so until its session is settled."""
        self.model, self._fresh, self.is_unsaved = record.model, record.is_fresh, False
        self._contributors = frozenset(record.contributors)
        self._charge_id = record.charge_id
        self._handed_in = record.model if record.charge_id else None

    @property
    def handed_in_for(self) -> str:
        """The charge of the release that the fresh aggregate was handed in for; empty if it was not."""
        is_in = self._fresh and self.model is self._handed_in
        return self._charge_id if is_in else ""
