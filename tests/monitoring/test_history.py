"""The history of rounds: bounded, and true whenever it is told."""

from __future__ import annotations

from scarcity_ray.monitoring.history import UNKNOWN, RoundHistory, strip_of


def test_no_more_than_the_last_rounds_are_kept() -> None:
    history = RoundHistory(kept_rounds=3)
    for round_id in range(10):
        history.note_outcome("a", round_id, None)
    assert [entry.round_id for entry in history.rounds()] == [7, 8, 9]
    history.note_outcome("a", 2, None)
    history.note_round(3, released=True, seconds=1.0)
    assert [entry.round_id for entry in history.rounds()] == [7, 8, 9]
    assert history.totals["accepted"] == 11


def test_an_outcome_that_comes_late_counts_in_its_own_round() -> None:
    history = RoundHistory()
    history.note_outcome("a", 5, None)
    history.note_outcome("a", 4, "too_stale")
    assert strip_of("a", history.rounds()) == "-+"


def test_an_accepted_update_is_not_forgotten_for_a_later_refusal() -> None:
    history = RoundHistory()
    for reason in ("bad_signature", None, "replayed"):
        history.note_outcome("a", 1, reason)
    assert strip_of("a", history.rounds()) == "+"
    assert dict(history.totals) == {"bad_signature": 1, "accepted": 1, "replayed": 1}


def test_strangers_are_counted_and_not_kept() -> None:
    history = RoundHistory()
    for number in range(100):
        history.note_outcome(f"stranger-{number}", 1, UNKNOWN)
    assert history.rounds() == []
    assert history.totals[UNKNOWN] == 100


def test_a_fits_counts_are_totals_too() -> None:
    history = RoundHistory()
    for round_id in range(2):
        history.note_round(round_id, released=True, seconds=1.0, accepted=4, refusals={"raised": 1})
    assert dict(history.totals) == {"accepted": 8, "raised": 2}
