from __future__ import annotations

import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from scarcity_ray.baskets import JudgedUpdate, Receipt, Rejection, UpdateBuffer, staleness_weight
from scarcity_ray.baskets.least import Least
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


def test_the_row_of_one_fresh_update_is_its_sum_bit_by_bit() -> None:
    buffer = buffer_with()
    buffer.add("a", "b", [-0.0, 0.1], now=0)
    (entry,) = buffer.get_basket_updates("b")
    summed = (np.zeros(2) + 1.0 * entry.update.astype(np.float64)).astype(np.float32)
    assert buffer.row("b", "a").tobytes() == summed.tobytes()
    assert not np.shares_memory(buffer.row("b", "a"), entry.update)


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


def effects(buffer: UpdateBuffer) -> tuple[object, ...]:
    """All that accepting an update changes: what waits, what is remembered, what counts, what is counted."""
    waiting = [(u.client_id, u.round_id, u.update.tobytes(), u.num_examples) for u in held(buffer)]
    remembered = [buffer._guard.keys_of(client) for client in "ac"]
    caps = [buffer._guard.count(client, round_id) for client in "ac" for round_id in range(9)]
    return waiting, remembered, caps, buffer.get_stats()["accepted"]


def held(buffer: UpdateBuffer) -> tuple:
    return buffer.get_basket_updates("b")


OFFERS = {
    "not_numeric": ("text", 3, None, None),
    "wrong_shape": ([1.0], 3, None, None),
    "not_finite": ([np.inf, 1.0], 3, None, None),
    "future_round": ([5.0, 5.0], 4, None, None),
    "too_stale": ([5.0, 5.0], 0, None, None),
    "replayed": ([1.0, -1.0], 3, None, None),
    "sequence_used": ([5.0, 5.0], 3, 7, None),
    "participation_cap": ([5.0, 5.0], 2, None, None),
    "not_numeric sequence": ([5.0, 5.0], 3, -1, None),
    "not_numeric examples": ([5.0, 5.0], 3, None, 0),
    "accepted": ([5.0, 5.0], 3, 8, 40),
}


@pytest.mark.parametrize(("update", "round_id", "sequence", "num_examples"), OFFERS.values(), ids=OFFERS)
def test_every_effect_of_acceptance_is_there_exactly_if_the_update_was_accepted(
    request: pytest.FixtureRequest, update: object, round_id: int, sequence: object, num_examples: object
) -> None:
    buffer = buffer_with(max_staleness=2, participation_cap=2)
    buffer.advance_round(3)
    assert buffer.offer("a", "b", vector(1), 3, now=0, sequence=7) is None
    for value in (1, 2):
        assert buffer.offer("a", "b", vector(value), 2, now=0) is None
    before = effects(buffer)
    offered = {"now": 5.0, "sequence": sequence, "num_examples": num_examples}
    reason = buffer.offer("a", "b", update, round_id, **offered)
    after = effects(buffer)
    name = request.node.callspec.id
    if name != "accepted":
        assert reason == name.split()[0]
        assert after == before
        assert buffer.get_stats()["rejected"] == 1
        return
    assert reason is None
    assert [b != a for b, a in zip(before, after, strict=True)] == [True] * 4
    assert buffer.offer("a", "b", update, round_id, **offered) is Rejection.REPLAYED
    assert buffer.offer("a", "b", [6.0, 6.0], round_id, now=5.0) is Rejection.PARTICIPATION_CAP
    assert [entry.num_examples for entry in held(buffer)] == [None, None, None, 40]


def test_judging_changes_nothing_and_accepting_does_it_all() -> None:
    buffer = buffer_with(participation_cap=1)
    before = effects(buffer), buffer.get_stats()
    judged = buffer.judge("a", vector(1), 0, sequence=np.int64(3), num_examples=np.uint8(9))
    assert isinstance(judged, JudgedUpdate)
    assert (judged.key.sequence, judged.num_examples) == (3, 9)
    assert buffer.judge("a", Rejection.WRONG_SHAPE) is Rejection.WRONG_SHAPE
    assert buffer.refusal(judged) is None
    assert (effects(buffer), buffer.get_stats()) == before
    buffer.accept(judged, "b", now=1.0)
    assert buffer.refusal(judged) is Rejection.REPLAYED
    assert len(held(buffer)) == 1
    for sequence, num_examples in ((2**64, None), (None, 2**64), (True, None), (None, 1.0), ("1", None)):
        told = {"sequence": sequence, "num_examples": num_examples}
        assert buffer.judge("a", vector(1), 0, **told) is Rejection.NOT_NUMERIC


def test_a_client_says_how_many_examples_it_has_with_its_newest_update_that_says_so() -> None:
    buffer = buffer_with()
    for value, told in ((1, 10), (2, 3), (3, None)):
        buffer.offer("a", "b", vector(value), now=0, num_examples=told)
    assert buffer.num_examples("b", "a") == 3
    buffer.add("c", "b", vector(1), now=0)
    assert buffer.num_examples("b", "c") is None
    with pytest.raises(UsageError):
        buffer.num_examples("b", "nobody")


class Closed(dict):
    """A mapping that can be asked for one key, and never be looked through."""

    def _refuse(self, *_: object) -> None:
        raise AssertionError("somebody looks at all of them")

    __iter__ = keys = values = items = _refuse  # type: ignore[assignment]


def test_nothing_that_happens_once_an_update_or_a_client_looks_at_the_others_that_wait() -> None:
    buffer = buffer_with()
    for i in range(50):
        buffer.add(f"c{i:02d}", "b", vector(i + 1), now=float(i))
    waiting = buffer._baskets["b"]
    waiting.clients = Closed(waiting.clients)
    buffer.add("new", "b", vector(1), now=3.0)
    buffer.row("b", "new")
    assert (buffer.num_updates("b"), buffer.num_clients("b")) == (51, 51)
    assert (buffer.oldest_timestamp("b"), buffer.oldest_staleness("b")) == (0.0, 0)
    buffer.advance_round()
    assert buffer.withdraw("c00") == 1
    buffer.put_client(buffer.take_client("c01"), "b")
    assert (buffer.oldest_timestamp("b"), buffer.oldest_staleness("b")) == (1.0, 1)
    assert buffer.get_stats()["buffered"] == 50
    with pytest.raises(AssertionError, match="all of them"):
        buffer.clients("b")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["offer", "offer", "offer", "pop", "advance", "withdraw", "move", "send away"]),
            st.integers(0, 3),
            st.integers(0, 3),
            st.integers(0, 9),
        ),
        max_size=40,
    )
)
def test_what_is_kept_up_is_what_counting_anew_gives(program: list) -> None:
    buffer, other = buffer_with(max_staleness=3), buffer_with(max_staleness=3)
    for step, client, lag, value in program:
        if step == "offer":
            round_id = buffer.round_id - lag
            buffer.add(f"c{client}", f"b{client % 2}", vector(value), round_id, now=float(value))
        elif step == "pop":
            buffer.pop_basket_updates(f"b{client % 2}")
        elif step == "advance":
            buffer.advance_round()
            other.advance_round()
        elif step == "withdraw":
            buffer.withdraw(f"c{client}")
        elif step == "move":
            buffer.put_client(buffer.take_client(f"c{client}"), "b1")
        else:
            other.put_client(buffer.take_client(f"c{client}"), "b0")
        for store in (buffer, other):
            for basket in ("b0", "b1"):
                waiting = store.get_basket_updates(basket)
                assert store.num_updates(basket) == len(waiting)
                assert store.num_clients(basket) == len({entry.client_id for entry in waiting})
                assert store.clients(basket) == tuple(sorted({entry.client_id for entry in waiting}))
                oldest = min((entry.timestamp for entry in waiting), default=None)
                assert store.oldest_timestamp(basket) == oldest
                stalest = max((store.round_id - entry.round_id for entry in waiting), default=0)
                assert store.oldest_staleness(basket) == stalest
            by_basket = store.get_stats()["buffered_by_basket"]
            assert sum(by_basket.values()) == store.get_stats()["buffered"]
            assert all(by_basket.values())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60))
def test_the_least_is_that_of_the_values_added_and_not_removed(program: list[tuple[bool, int]]) -> None:
    least, values = Least[int](), []
    for adds, value in program:
        if adds:
            least.add(value)
            values.append(value)
        elif value in values:
            least.remove(value)
            values.remove(value)
        assert least.least() == min(values, default=None)


def test_a_receipt_is_true_if_accepted() -> None:
    assert Receipt(True, None, "b", 0)
    assert not Receipt(False, Rejection.READ_ONLY, None, 0)
    assert Rejection("read_only") is Rejection.READ_ONLY
