from __future__ import annotations

import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from scarcity_ray.buffer import Receipt, Rejection, UpdateBuffer, staleness_weight
from scarcity_ray.config import BufferConfig
from scarcity_ray.errors import UsageError


def buffer_with(**config: object) -> UpdateBuffer:
    return UpdateBuffer(BufferConfig(**config), vector_dim=2)


def vector(value: float) -> np.ndarray:
    return np.array([value, -value], dtype=np.float32)


def test_an_accepted_update_waits_with_all_its_fields() -> None:
    buffer = buffer_with()
    assert buffer.add("a", "d_basket_0", [1.5, 2.5], 0, now=7.0) is True
    buffer.advance_round()
    (entry,) = buffer.get_basket_updates("d_basket_0")
    assert (entry.client_id, entry.basket_id, entry.round_id, entry.timestamp) == ("a", "d_basket_0", 0, 7.0)
    assert (entry.staleness, entry.update.tolist()) == (1, [1.5, 2.5])
    assert buffer.get_basket_updates("unknown") == ()


def test_the_buffer_keeps_its_own_copy() -> None:
    buffer = buffer_with()
    mine = vector(1)
    buffer.add("a", "b", mine, now=0)
    mine[:] = 9
    (entry,) = buffer.get_basket_updates("b")
    assert entry.update.tolist() == [1, -1]
    with pytest.raises(ValueError, match="read-only"):
        entry.update[0] = 9


def test_rounds_in_the_future_and_too_stale_are_refused() -> None:
    buffer = buffer_with(max_staleness=2)
    buffer.advance_round(10)
    answers = {r: buffer.offer("a", "b", vector(r), r, now=0) for r in (7, 8, 10, 11, -1, 10**30, -(10**30))}
    assert answers == {
        7: Rejection.TOO_STALE,
        8: None,
        10: None,
        11: Rejection.FUTURE_ROUND,
        -1: Rejection.TOO_STALE,
        10**30: Rejection.FUTURE_ROUND,
        -(10**30): Rejection.TOO_STALE,
    }
    for odd in ("3", 3.0, True, np.bool_(True), [1], 1j):
        assert buffer.offer("a", "b", vector(5), odd, now=0) is Rejection.NOT_NUMERIC
    assert buffer.offer("a", "b", vector(5), np.int64(9), now=0) is None


def test_no_round_before_the_first_is_accepted() -> None:
    assert buffer_with().offer("a", "b", vector(1), -1, now=0) is Rejection.TOO_STALE


def test_a_replay_stays_a_replay_after_its_update_was_popped() -> None:
    buffer = buffer_with()
    assert buffer.add("a", "b", vector(1), now=0)
    assert buffer.offer("a", "b", vector(1), now=0) is Rejection.REPLAYED
    buffer.pop_basket_updates("b")
    assert buffer.offer("a", "b", vector(1), now=0) is Rejection.REPLAYED
    assert buffer.offer("a", "b", vector(1).astype(np.float64).tolist(), 0, now=0) is Rejection.REPLAYED
    assert buffer.add("other", "b", vector(1), now=0)
    buffer.advance_round()
    assert buffer.add("a", "b", vector(1), now=0)
    assert buffer.offer("a", "b", vector(1), 0, now=0) is Rejection.REPLAYED


def test_the_participation_cap_counts_accepted_updates_also_popped_and_withdrawn_ones() -> None:
    buffer = buffer_with(participation_cap=3)
    assert buffer.add("a", "b", vector(1), now=0)
    buffer.pop_basket_updates("b")
    assert buffer.add("a", "b", vector(2), now=0)
    buffer.withdraw("a")
    assert not buffer.add("a", "b", [np.nan, 0], now=0)
    assert buffer.add("a", "b", vector(3), now=0)
    assert buffer.offer("a", "b", vector(4), now=0) is Rejection.PARTICIPATION_CAP
    buffer.advance_round()
    assert buffer.add("a", "b", vector(4), now=0)


def test_every_refusal_is_counted_under_one_reason() -> None:
    buffer = buffer_with(participation_cap=1)
    buffer.advance_round(9)
    for update, round_id in (
        ("text", 9),
        (vector(1), 9),
        (vector(1), 9),
        (vector(2), 9),
        (vector(3), 99),
        (vector(3), 0),
        ([1.0], 9),
        ([np.inf, 1.0], 9),
    ):
        buffer.offer("a", "b", update, round_id, now=0)
    buffer.count_rejection(Rejection.BAD_SIGNATURE)
    stats = buffer.get_stats()
    assert {reason: count for reason, count in stats["rejections"].items() if count} == {
        reason: 1
        for reason in (
            "not_numeric",
            "replayed",
            "participation_cap",
            "future_round",
            "too_stale",
            "wrong_shape",
            "not_finite",
            "bad_signature",
        )
    }
    assert (stats["accepted"], stats["rejected"]) == (1, 8)
    assert set(stats["rejections"]) == {str(reason) for reason in Rejection}


def test_one_client_has_one_row_weighted_by_staleness_and_not_renormalised() -> None:
    buffer = buffer_with()
    buffer.add("a", "b", [8.0, 0.0], now=0)
    buffer.advance_round(3)
    buffer.add("a", "b", [0.0, 2.0], now=0)
    assert buffer.clients("b") == ("a",)
    assert buffer.row("b", "a").tolist() == [2.0, 1.0]
    assert buffer.row("b", "a", 8).tolist() == pytest.approx([8 / 3 / 2, 2 / 6**0.5 / 2])
    assert buffer.row("b", "a").dtype == np.float32
    with pytest.raises(UsageError):
        buffer.row("b", "nobody")


updates = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.lists(st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=False), min_size=2, max_size=2),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=100, deadline=None)
@given(updates)
def test_a_row_never_exceeds_the_largest_norm_of_the_updates_behind_it(sent: list) -> None:
    buffer = buffer_with(participation_cap=3)
    buffer.advance_round(5)
    accepted = [(r, u) for r, u in sent if buffer.add("a", "b", u, r, now=0)]
    row = buffer.row("b", "a")
    expected = sum((np.array(u) * (1 + 5 - r) ** -0.5 for r, u in accepted), np.zeros(2)) / len(accepted)
    np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-30)
    assert (
        np.linalg.norm(row.astype(float))
        <= max(np.linalg.norm(u) for _, u in accepted) * (1 + 2**-22) + 1e-44
    )


def test_staleness_weights_are_fedbuffs() -> None:
    assert [staleness_weight(t) for t in (0, 1, 3, 8)] == pytest.approx([1, 2**-0.5, 0.5, 1 / 3])


def test_what_is_buffered_waits_however_long() -> None:
    buffer = buffer_with(max_staleness=1)
    buffer.add("a", "b", vector(1), now=0)
    buffer.advance_round(3)
    assert buffer.oldest_staleness("b") == 3
    np.testing.assert_allclose(buffer.row("b", "a"), vector(1) / 2)
    assert not buffer.add("a", "b", vector(2), 1, now=0)
    with pytest.raises(UsageError):
        buffer.advance_round(1)


def test_memory_of_replays_is_bounded() -> None:
    buffer = buffer_with(max_staleness=2)
    for round_id in range(50):
        buffer.advance_round(round_id)
        buffer.add("a", "b", vector(round_id), now=0)
    assert [key.round_id for key in buffer.take_client("a").accepted] == [47, 48, 49]


def test_a_leaving_clients_updates_are_withdrawn_and_counted() -> None:
    buffer = buffer_with()
    for value in (1, 2):
        buffer.add("a", "b", vector(value), now=0)
    buffer.add("c", "b", vector(1), now=0)
    assert buffer.withdraw("a") == 2
    assert buffer.withdraw("a") == 0
    assert buffer.clients("b") == ("c",)
    assert buffer.get_stats()["withdrawn"] == 2
    assert buffer.offer("a", "b", vector(1), now=0) is Rejection.REPLAYED


def test_a_moving_client_takes_its_updates_along() -> None:
    source, target = buffer_with(participation_cap=2), buffer_with(participation_cap=2)
    source.add("a", "old", vector(1), now=3.0)
    source.pop_basket_updates("old")
    source.add("a", "old", vector(2), now=4.0)
    carry = pickle.loads(pickle.dumps(source.take_client("a")))
    assert target.put_client(carry, "new") == 1
    (entry,) = target.get_basket_updates("new")
    assert (entry.basket_id, entry.timestamp, entry.update.tolist()) == ("new", 4.0, [2, -2])
    assert target.offer("a", "new", vector(1), now=5) is Rejection.REPLAYED
    assert target.offer("a", "new", vector(3), now=5) is Rejection.PARTICIPATION_CAP
    assert source.get_stats()["buffered"] == 0


def test_what_is_old_moves_all_the_same() -> None:
    source, target = buffer_with(max_staleness=1), buffer_with(max_staleness=1)
    source.add("a", "old", vector(1), now=0)
    target.advance_round(5)
    assert target.put_client(source.take_client("a"), "new") == 1
    assert target.get_stats()["buffered"] == 1


steps = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.integers(0, 2), st.integers(-1, 4), st.integers(0, 3)),
        st.tuples(st.sampled_from(["pop", "advance", "withdraw", "move"]), st.integers(0, 2)),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_an_accepted_update_leaves_exactly_once(program: list) -> None:
    buffer = buffer_with(max_staleness=1, participation_cap=2)
    waiting: dict[tuple[str, int, int], str] = {}
    for step in program:
        if step[0] == "offer":
            _, client, round_id, value = step
            if buffer.add(f"c{client}", f"b{client % 2}", vector(value + 1), round_id, now=0):
                assert (f"c{client}", round_id, value + 1) not in waiting
                waiting[f"c{client}", round_id, value + 1] = f"b{client % 2}"
            continue
        before = dict(waiting)
        if step[0] == "pop":
            left = [
                (u.client_id, u.round_id, int(u.update[0])) for u in buffer.pop_basket_updates(f"b{step[1]}")
            ]
            assert sorted(left) == sorted(k for k, b in before.items() if b == f"b{step[1]}")
        elif step[0] == "advance":
            left = []
            buffer.advance_round()
        elif step[0] == "withdraw":
            left = [key for key in before if key[0] == f"c{step[1]}"]
            assert buffer.withdraw(f"c{step[1]}") == len(left)
        else:
            left = []
            buffer.put_client(buffer.take_client(f"c{step[1]}"), "b1")
            waiting.update({key: "b1" for key in before if key[0] == f"c{step[1]}"})
        for key in left:
            del waiting[key]
        held = {
            (u.client_id, u.round_id, int(u.update[0])): b
            for b in ("b0", "b1")
            for u in buffer.get_basket_updates(b)
        }
        assert held == waiting
        stats = buffer.get_stats()
        assert stats["accepted"] + stats["put"] == stats["buffered"] + sum(
            stats[name] for name in ("popped", "withdrawn", "taken")
        )


def test_a_receipt_is_true_if_accepted() -> None:
    assert Receipt(True, None, "b", 0)
    assert not Receipt(False, Rejection.READ_ONLY, None, 0)
    assert Rejection("read_only") is Rejection.READ_ONLY
