from __future__ import annotations

import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from scarcity_ray.baskets import Receipt, Rejection
from scarcity_ray.baskets.update_buffer import (
    BasketBuffer,
    JudgedUpdate,
    Least,
    ReplayGuard,
    ReplayKey,
    UpdateBuffer,
    staleness_weight,
)
from scarcity_ray.config import BufferConfig
from scarcity_ray.errors import UsageError


def buffer_with(basket_id: str = "b", **config: object) -> BasketBuffer:
    return BasketBuffer(BufferConfig(**config), 2, basket_id)


def add(
    buffer: BasketBuffer, client_id: str, update: object, round_id: object = None, *, now: float = 0
) -> bool:
    return buffer.offer(client_id, update, round_id, now=now) is None


def vector(value: float) -> np.ndarray:
    return np.array([value, -value], dtype=np.float32)


def test_an_accepted_update_waits_with_all_its_fields() -> None:
    buffer = buffer_with("d_basket_0")
    assert add(buffer, "a", [1.5, 2.5], 0, now=7.0) is True
    buffer.advance_round()
    (entry,) = buffer.updates()
    assert (entry.client_id, entry.basket_id, entry.round_id, entry.timestamp) == ("a", "d_basket_0", 0, 7.0)
    assert (entry.staleness, entry.update.tolist()) == (1, [1.5, 2.5])


def test_the_buffer_keeps_its_own_copy() -> None:
    buffer = buffer_with()
    mine = vector(1)
    add(buffer, "a", mine, now=0)
    mine[:] = 9
    (entry,) = buffer.updates()
    assert entry.update.tolist() == [1, -1]
    with pytest.raises(ValueError, match="read-only"):
        entry.update[0] = 9


def test_rounds_in_the_future_and_too_stale_are_refused() -> None:
    buffer = buffer_with(max_staleness=2)
    buffer.advance_round(10)
    answers = {r: buffer.offer("a", vector(r), r, now=0) for r in (7, 8, 10, 11, -1, 10**30, -(10**30))}
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
        assert buffer.offer("a", vector(5), odd, now=0) is Rejection.NOT_NUMERIC
    assert buffer.offer("a", vector(5), np.int64(9), now=0) is None


def test_no_round_before_the_first_is_accepted() -> None:
    assert buffer_with().offer("a", vector(1), -1, now=0) is Rejection.TOO_STALE


def test_a_replay_stays_a_replay_after_its_update_was_popped() -> None:
    buffer = buffer_with()
    assert add(buffer, "a", vector(1), now=0)
    assert buffer.offer("a", vector(1), now=0) is Rejection.REPLAYED
    buffer.pop()
    assert buffer.offer("a", vector(1), now=0) is Rejection.REPLAYED
    assert buffer.offer("a", vector(1).astype(np.float64).tolist(), 0, now=0) is Rejection.REPLAYED
    assert add(buffer, "other", vector(1), now=0)
    buffer.advance_round()
    assert add(buffer, "a", vector(1), now=0)
    assert buffer.offer("a", vector(1), 0, now=0) is Rejection.REPLAYED


def test_the_participation_cap_counts_accepted_updates_also_popped_and_withdrawn_ones() -> None:
    buffer = buffer_with(participation_cap=3)
    assert add(buffer, "a", vector(1), now=0)
    buffer.pop()
    assert add(buffer, "a", vector(2), now=0)
    buffer.withdraw("a")
    assert not add(buffer, "a", [np.nan, 0], now=0)
    assert add(buffer, "a", vector(3), now=0)
    assert buffer.offer("a", vector(4), now=0) is Rejection.PARTICIPATION_CAP
    buffer.advance_round()
    assert add(buffer, "a", vector(4), now=0)


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
        buffer.offer("a", update, round_id, now=0)
    assert buffer.rejections == {
        reason: 1
        for reason in (
            "not_numeric",
            "replayed",
            "participation_cap",
            "future_round",
            "too_stale",
            "wrong_shape",
            "not_finite",
        )
    }
    assert (buffer.counts["accepted"], buffer.rejections.total()) == (1, 7)


def test_one_client_has_one_row_weighted_by_staleness_and_not_renormalised() -> None:
    buffer = buffer_with()
    add(buffer, "a", [8.0, 0.0], now=0)
    buffer.advance_round(3)
    add(buffer, "a", [0.0, 2.0], now=0)
    assert buffer.clients() == ("a",)
    assert buffer.row("a").tolist() == [2.0, 1.0]
    buffer.advance_round(8)
    assert buffer.row("a").tolist() == pytest.approx([8 / 3 / 2, 2 / 6**0.5 / 2])
    assert buffer.row("a").dtype == np.float32
    with pytest.raises(UsageError):
        buffer.row("nobody")


def test_the_row_of_one_fresh_update_is_its_sum_bit_by_bit() -> None:
    buffer = buffer_with()
    add(buffer, "a", [-0.0, 0.1], now=0)
    (entry,) = buffer.updates()
    summed = (np.zeros(2) + 1.0 * entry.update.astype(np.float64)).astype(np.float32)
    assert buffer.row("a").tobytes() == summed.tobytes()
    assert not np.shares_memory(buffer.row("a"), entry.update)


updates = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.lists(st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=False), min_size=2, max_size=2),
    ),
    min_size=1,
    max_size=3,
)


@given(updates)
def test_a_row_never_exceeds_the_largest_norm_of_the_updates_behind_it(sent: list) -> None:
    buffer = buffer_with(participation_cap=3)
    buffer.advance_round(5)
    accepted = [(r, u) for r, u in sent if add(buffer, "a", u, r, now=0)]
    row = buffer.row("a")
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
    add(buffer, "a", vector(1), now=0)
    buffer.advance_round(3)
    assert buffer.oldest_staleness() == 3
    np.testing.assert_allclose(buffer.row("a"), vector(1) / 2)
    assert not add(buffer, "a", vector(2), 1, now=0)
    with pytest.raises(UsageError):
        buffer.advance_round(1)


def test_memory_of_replays_is_bounded() -> None:
    buffer = buffer_with(max_staleness=2)
    for round_id in range(50):
        buffer.advance_round(round_id)
        add(buffer, "a", vector(round_id), now=0)
    assert [key.round_id for key in buffer.take_client("a").accepted] == [47, 48, 49]


def test_a_leaving_clients_updates_are_withdrawn_and_counted() -> None:
    buffer = buffer_with()
    for value in (1, 2):
        add(buffer, "a", vector(value), now=0)
    add(buffer, "c", vector(1), now=0)
    assert buffer.withdraw("a") == 2
    assert buffer.withdraw("a") == 0
    assert buffer.clients() == ("c",)
    assert buffer.counts["withdrawn"] == 2
    assert buffer.offer("a", vector(1), now=0) is Rejection.REPLAYED


def test_a_moving_client_takes_its_updates_along() -> None:
    source, target = (buffer_with(name, participation_cap=2) for name in ("old", "new"))
    add(source, "a", vector(1), now=3.0)
    source.pop()
    add(source, "a", vector(2), now=4.0)
    moved = pickle.loads(pickle.dumps(source.take_client("a")))
    target.put_client(moved)
    (entry,) = target.updates()
    assert (entry.basket_id, entry.timestamp, entry.update.tolist()) == ("new", 4.0, [2, -2])
    assert target.offer("a", vector(1), now=5) is Rejection.REPLAYED
    assert target.offer("a", vector(3), now=5) is Rejection.PARTICIPATION_CAP
    assert source.num_updates == 0


def test_what_is_old_moves_all_the_same() -> None:
    source, target = buffer_with(max_staleness=1), buffer_with(max_staleness=1)
    add(source, "a", vector(1), now=0)
    target.advance_round(5)
    target.put_client(source.take_client("a"))
    assert target.num_updates == 1


steps = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.integers(0, 2), st.integers(-1, 4), st.integers(0, 3)),
        st.tuples(st.sampled_from(["pop", "advance", "withdraw", "move"]), st.integers(0, 2)),
    ),
    max_size=40,
)


@given(steps)
def test_an_accepted_update_leaves_exactly_once(program: list) -> None:
    buffers = {name: buffer_with(name, max_staleness=1, participation_cap=2) for name in ("b0", "b1")}
    waiting: dict[tuple[str, int, int], str] = {}
    home = {f"c{client}": f"b{client % 2}" for client in range(3)}
    for step in program:
        client = f"c{step[1]}"
        if step[0] == "offer":
            _, _, round_id, value = step
            if add(buffers[home[client]], client, vector(value + 1), round_id):
                assert (client, round_id, value + 1) not in waiting
                waiting[client, round_id, value + 1] = home[client]
            continue
        left = []
        if step[0] == "pop":
            name = f"b{step[1] % 2}"
            left = [(u.client_id, u.round_id, int(u.update[0])) for u in buffers[name].updates()]
            buffers[name].pop()
            assert sorted(left) == sorted(key for key, basket in waiting.items() if basket == name)
        elif step[0] == "advance":
            for buffer in buffers.values():
                buffer.advance_round()
        elif step[0] == "withdraw":
            left = [key for key in waiting if key[0] == client]
            assert buffers[home[client]].withdraw(client) == len(left)
        else:
            buffers["b1"].put_client(buffers[home[client]].take_client(client))
            home[client] = "b1"
            waiting.update({key: "b1" for key in waiting if key[0] == client})
        for key in left:
            del waiting[key]
        held = {
            (u.client_id, u.round_id, int(u.update[0])): name
            for name, buffer in buffers.items()
            for u in buffer.updates()
        }
        assert held == waiting
        for buffer in buffers.values():
            counts = buffer.counts
            assert counts["accepted"] + counts["put"] == buffer.num_updates + sum(
                counts[name] for name in ("popped", "withdrawn", "taken")
            )


def effects(buffer: BasketBuffer) -> tuple[object, ...]:
    """All that accepting an update changes: what waits, what is remembered, what counts, what is counted."""
    waiting = [(u.client_id, u.round_id, u.update.tobytes(), u.num_examples) for u in buffer.updates()]
    remembered = [buffer._guard.keys_of(client) for client in "ac"]
    caps = [len(buffer._guard.accepted(client, round_id)) for client in "ac" for round_id in range(9)]
    return waiting, remembered, caps, dict(buffer.counts)


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
    assert buffer.offer("a", vector(1), 3, now=0, sequence=7) is None
    for value in (1, 2):
        assert buffer.offer("a", vector(value), 2, now=0) is None
    before = effects(buffer)
    offered = {"now": 5.0, "sequence": sequence, "num_examples": num_examples}
    reason = buffer.offer("a", update, round_id, **offered)
    after = effects(buffer)
    name = request.node.callspec.id
    if name != "accepted":
        assert reason == name.split()[0]
        assert after == before
        assert buffer.rejections.total() == 1
        return
    assert reason is None
    assert [b != a for b, a in zip(before, after, strict=True)] == [True] * 4
    assert buffer.offer("a", update, round_id, **offered) is Rejection.REPLAYED
    assert buffer.offer("a", [6.0, 6.0], round_id, now=5.0) is Rejection.PARTICIPATION_CAP
    assert [entry.num_examples for entry in buffer.updates()] == [None, None, None, 40]


def test_judging_changes_nothing_and_accepting_does_it_all() -> None:
    buffer = buffer_with(participation_cap=1)
    before = effects(buffer)
    judged = buffer.judge("a", vector(1), 0, sequence=np.int64(3), num_examples=np.uint8(9))
    assert isinstance(judged, JudgedUpdate)
    assert (judged.key.sequence, judged.num_examples) == (3, 9)
    assert buffer.judge("a", Rejection.WRONG_SHAPE) is Rejection.WRONG_SHAPE
    assert buffer.refusal(judged) is None
    assert (effects(buffer), buffer.rejections) == (before, {})
    buffer.accept(judged, now=1.0)
    assert buffer.refusal(judged) is Rejection.REPLAYED
    assert len(buffer.updates()) == 1
    for sequence, num_examples in ((2**64, None), (None, 2**64), (True, None), (None, 1.0), ("1", None)):
        told = {"sequence": sequence, "num_examples": num_examples}
        assert buffer.judge("a", vector(1), 0, **told) is Rejection.NOT_NUMERIC


def test_a_client_says_how_many_examples_it_has_with_its_newest_update_that_says_so() -> None:
    buffer = buffer_with()
    for value, told in ((1, 10), (2, 3), (3, None)):
        buffer.offer("a", vector(value), now=0, num_examples=told)
    assert buffer.num_examples("a") == 3
    add(buffer, "c", vector(1), now=0)
    assert buffer.num_examples("c") is None
    with pytest.raises(UsageError):
        buffer.num_examples("nobody")


class Closed(dict):
    """A mapping that can be asked for one key, and never be looked through."""

    def _refuse(self, *_: object) -> None:
        raise AssertionError("somebody looks at all of them")

    __iter__ = keys = values = items = _refuse  # type: ignore[assignment]


def test_nothing_that_happens_once_an_update_or_a_client_looks_at_the_others_that_wait() -> None:
    buffer = buffer_with()
    for i in range(50):
        add(buffer, f"c{i:02d}", vector(i + 1), now=float(i))
    buffer._waiting = Closed(buffer._waiting)
    add(buffer, "new", vector(1), now=3.0)
    buffer.row("new")
    assert (buffer.num_updates, buffer.num_clients) == (51, 51)
    assert (buffer.oldest_timestamp(), buffer.oldest_staleness()) == (0.0, 0)
    buffer.advance_round()
    assert buffer.withdraw("c00") == 1
    buffer.put_client(buffer.take_client("c01"))
    assert (buffer.oldest_timestamp(), buffer.oldest_staleness()) == (1.0, 1)
    assert buffer.num_updates == 50
    with pytest.raises(AssertionError, match="all of them"):
        buffer.clients()


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
    buffer, other = buffer_with(max_staleness=3), buffer_with("other", max_staleness=3)
    for step, number, lag, value in program:
        client = f"c{number}"
        if step == "offer":
            add(buffer, client, vector(value), buffer.round_id - lag, now=float(value))
        elif step == "pop":
            (buffer, other)[number % 2].pop()
        elif step == "advance":
            buffer.advance_round()
            other.advance_round()
        elif step == "withdraw":
            buffer.withdraw(client)
        elif step == "move":
            buffer.put_client(buffer.take_client(client))
        else:
            other.put_client(buffer.take_client(client))
        for store in (buffer, other):
            waiting = store.updates()
            assert store.num_updates == len(waiting)
            assert store.num_clients == len({entry.client_id for entry in waiting})
            assert store.clients() == tuple(sorted({entry.client_id for entry in waiting}))
            assert store.oldest_timestamp() == min((entry.timestamp for entry in waiting), default=None)
            stalest = max((store.round_id - entry.round_id for entry in waiting), default=0)
            assert store.oldest_staleness() == stalest


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
        assert least.value == min(values, default=None)


def test_a_receipt_is_true_if_accepted() -> None:
    assert Receipt(True, None, "b", 0)
    assert not Receipt(False, Rejection.READ_ONLY, None, 0)
    assert Rejection("read_only") is Rejection.READ_ONLY


def test_the_replay_guard_checks_marks_and_clears() -> None:
    guard = ReplayGuard()
    key = ReplayKey("a", 3, b"digest")
    assert guard.check(key)
    guard.mark(key)
    guard.mark(key)
    assert not guard.check(key)
    assert guard.check(key._replace(client_id="b"))
    assert guard.check(key._replace(round_id=4))
    assert len(guard.accepted("a", 3)) == 1
    assert guard.keys_of("a") == (key,)
    guard.clear_round(3)
    assert guard.check(key)
    assert len(guard.accepted("a", 3)) == 0


def test_a_sequence_number_is_used_until_its_round_is_cleared() -> None:
    guard = ReplayGuard()
    key = ReplayKey("a", 3, b"digest", 7)
    guard.mark(key)
    assert guard.accepted("a", 3) == {b"digest": 7}
    assert not any(guard.accepted(*other) for other in (("b", 3), ("a", 4)))
    assert not guard.check(key._replace(sequence=8))
    assert guard.keys_of("a") == (key,)
    guard.clear_before(4)
    assert not guard.accepted("a", 3)
    assert guard.check(key)


def test_several_baskets_have_a_buffer_each_and_share_what_was_accepted() -> None:
    buffer = UpdateBuffer(BufferConfig(max_staleness=3), 2, round_id=4)
    assert buffer.add("a", "b0", vector(1), 3, now=0)
    assert buffer.add("a", "b1", vector(2), now=0)
    assert not buffer.add("a", "b1", vector(1), 3, now=0)
    assert not buffer.add("a", "b0", "text", now=0)
    buffer.advance_round()
    assert [entry.staleness for name in ("b0", "b1") for entry in buffer.get_basket_updates(name)] == [2, 1]
    assert [entry.basket_id for entry in buffer.pop_basket_updates("b0")] == ["b0"]
    assert buffer.pop_basket_updates("b0") == buffer.pop_basket_updates("nowhere") == ()
    stats = buffer.get_stats()
    assert stats["buffered_by_basket"] == {"b1": 1}
    assert {name: stats[name] for name in ("round_id", "buffered", "accepted", "popped", "rejected")} == {
        "round_id": 5,
        "buffered": 1,
        "accepted": 2,
        "popped": 1,
        "rejected": 2,
    }
    assert stats["rejections"]["replayed"] == stats["rejections"]["not_numeric"] == 1
    assert set(stats["rejections"]) == {str(reason) for reason in Rejection}
    with pytest.raises(UsageError):
        buffer.advance_round(4)
