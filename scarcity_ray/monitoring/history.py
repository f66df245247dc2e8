"""The last rounds: what came of each client in each, and what each round took. Bounded, in memory.

Guarantees:
    no_more_than_the_last_rounds_are_kept
    an_outcome_that_comes_late_counts_in_its_own_round
    an_accepted_update_is_not_forgotten_for_a_later_refusal
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

KEPT_ROUNDS = 100
ACCEPTED = "accepted"
UNKNOWN = "unknown_client"
"""Counted and not kept by client: such an id is anybody's, and there may be any number of them."""
STRIP = {ACCEPTED: "+", "refused": "-", "outlier": "o", "nothing": "."}
"""A client's round as one character: accepted, refused, accepted but far from the others, nothing heard."""


@dataclass
class Round:
    """One round.

    Attributes:
        outcomes: By client, `ACCEPTED` or why its update was refused.
        outliers: Clients whose update was far from the others'; only where basket models are exposed.
        facts: What `RoundHistory.note_round` was told.
    """

    round_id: int
    outcomes: dict[str, str] = field(default_factory=dict)
    outliers: frozenset[str] = frozenset()
    facts: dict[str, Any] = field(default_factory=dict)


class RoundHistory:
    """What a driver or gateway has seen of the last rounds; any thread may tell it.

    It begins empty with its process: what came before is in the run's folder and in the ledger.

    Attributes:
        totals: Since it began: updates accepted, and refused by reason.
    """

    def __init__(self, kept_rounds: int = KEPT_ROUNDS) -> None:
        self.totals: Counter[str] = Counter()
        self._kept_rounds = kept_rounds
        self._rounds: dict[int, Round] = {}
        self._lock = threading.Lock()

    def note_outcome(self, client_id: str, round_id: int, reason: str | None) -> None:
        """An update was judged.

        Args:
            reason: Why it was refused; None: it was accepted.
        """
        outcome = ACCEPTED if reason is None else str(reason)
        with self._lock:
            self.totals[outcome] += 1
            entry = None if outcome == UNKNOWN else self._round(round_id)
            if entry is not None and entry.outcomes.get(client_id) != ACCEPTED:
                entry.outcomes[client_id] = outcome

    def note_round(
        self,
        round_id: int,
        *,
        released: bool,
        seconds: float,
        phases: Mapping[str, float] | None = None,
        num_bytes: int | None = None,
        accepted: int | None = None,
        refusals: Mapping[str, int] | None = None,
        epsilon_spent: float | None = None,
        validation: Mapping[str, Mapping[str, float]] | None = None,
        private_validation: Mapping[str, Mapping[str, float | None]] | None = None,
        outliers: Iterable[str] = (),
    ) -> None:
        """A round is over.

        Args:
            phases: Seconds by phase.
            num_bytes: Of updates that came, as they came.
            accepted: Whose update was accepted, where `note_outcome` is not told of each; None: as it was.
            refusals: By reason, likewise.
            validation: Metrics by domain, as clients measured them: outside the privacy claim.
            private_validation: Metrics inside the claim, each with its mean and standard error.
            outliers: See `Round`.
        """
        with self._lock:
            entry = self._round(round_id)
            if entry is None:
                return
            counted = Counter(entry.outcomes.values())
            self.totals.update({} if accepted is None else {ACCEPTED: accepted})
            self.totals.update(refusals or {})
            entry.outliers = frozenset(outliers)
            entry.facts = {
                "released": released,
                "seconds": seconds,
                "phases": dict(phases or {}),
                "num_bytes": num_bytes,
                "accepted": counted.pop(ACCEPTED, 0) if accepted is None else accepted,
                "refusals": dict(counted if refusals is None else refusals),
                "epsilon_spent": epsilon_spent,
                "validation": {domain: dict(found) for domain, found in (validation or {}).items()},
                "private_validation": {n: dict(found) for n, found in (private_validation or {}).items()},
            }

    def rounds(self) -> list[Round]:
        """The kept rounds, oldest first; a copy."""
        with self._lock:
            return [
                Round(number, dict(entry.outcomes), entry.outliers, dict(entry.facts))
                for number, entry in sorted(self._rounds.items())
            ]

    def _round(self, round_id: int) -> Round | None:
        """The round's entry; None for one that is too old to keep."""
        entry = self._rounds.get(round_id)
        if entry is None and (not self._rounds or round_id > max(self._rounds) - self._kept_rounds):
            entry = self._rounds[round_id] = Round(round_id)
            newest = max(self._rounds)
            for old in [number for number in self._rounds if number <= newest - self._kept_rounds]:
                del self._rounds[old]
        return entry


def strip_of(client_id: str, rounds: Iterable[Round]) -> str:
    """A client's rounds, oldest first, a character each (`STRIP`).

    >>> strip_of("a", [Round(1, {"a": "accepted"}), Round(2), Round(3, {"a": "replayed"})])
    '+.-'
    """
    return "".join(_mark(client_id, entry) for entry in rounds)


def _mark(client_id: str, entry: Round) -> str:
    outcome = entry.outcomes.get(client_id)
    if outcome is None:
        return STRIP["nothing"]
    if outcome != ACCEPTED:
        return STRIP["refused"]
    return STRIP["outlier"] if client_id in entry.outliers else STRIP[ACCEPTED]


__all__ = ["ACCEPTED", "KEPT_ROUNDS", "STRIP", "Round", "RoundHistory", "strip_of"]
