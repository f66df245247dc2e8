"""A round's training, without a runtime: who waits, trains, and has answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.federation.training_round import (
    Answer,
    Group,
    TrainingRound,
    evaluate_group,
    grouped,
    train_group,
)
from scarcity_ray.runtime.base import TaskEnd
from scarcity_ray.updates import content_digest
from scarcity_ray_client import Cause, Client, Refusal, Trained, Workload


def clients(count: int) -> list[Client]:
    return [Client(f"c{i}", "d") for i in range(count)]


def alone(count: int) -> list[Group]:
    return [(client,) for client in clients(count)]


def answered(training: TrainingRound, group: Group, *refusals: Refusal) -> None:
    failed = {refusal.client_id for refusal in refusals}
    answers = [Answer(c.client_id, training.round_id, 1, {}) for c in group if c.client_id not in failed]
    training.note(TaskEnd(training.key(group), [*refusals, *answers], "ref"), is_late=False)


def test_clients_in_flight_are_bounded() -> None:
    training = TrainingRound(0, alone(10), 10, most_in_flight=4)
    begun: list[Group] = training.next()
    assert len(begun) == 4
    assert training.next() == []
    answered(training, begun[0])
    assert training.next() == [], "an update that is not submitted takes its place"
    assert training.take() == []
    answered(training, begun[1])
    assert len(training.take()) == 2
    assert len(training.next()) == 2
    assert not training.is_over


def test_whoever_has_not_answered_is_counted_once() -> None:
    training = TrainingRound(7, alone(5), 5, most_in_flight=3)
    first, second, third = training.next()
    answered(training, first)
    training.note(TaskEnd(training.key(second), cause=Cause.LOST, detail="killed"), is_late=False)
    assert training.close(lambda late: ["no node"] * len(late)) == [training.key(third)]
    assert training.is_over
    assert [(r.client_id, r.cause) for r in training.refusals] == [
        ("c1", Cause.LOST),
        ("c2", Cause.TIMED_OUT),
        ("c3", Cause.TIMED_OUT),
        ("c4", Cause.TIMED_OUT),
    ]
    assert (
        str(training.refusals[1])
        == "client 'c2', round 7: timed_out: it had not ended at the deadline; no node"
    )
    assert [answer.client_id for answer, _ in training.take()] == ["c0"]
    assert training.all_raised() is None


def test_nobody_is_late_before_the_deadline() -> None:
    training = TrainingRound(0, alone(5), 2, most_in_flight=3)
    first, second, third = training.next()
    answered(training, first)
    answered(training, second)
    assert training.is_over
    assert training.close(None) == [training.key(third)]
    assert training.refusals == []
    assert training.num_surplus == 3


def test_all_raised_means_all_that_were_drawn() -> None:
    training = TrainingRound(0, alone(2), 2, most_in_flight=8)
    one, two = training.next()
    answered(training, one, Refusal("c0", 0, Cause.RAISED, "x"))
    assert training.all_raised() is None
    training.note(TaskEnd(training.key(two), cause=Cause.RAISED, detail="y"), is_late=False)
    first = training.all_raised()
    assert first is not None
    assert first.detail == "x"


def test_only_the_first_tracebacks_are_kept_however_many_raise() -> None:
    training = TrainingRound(0, alone(30), 30, most_in_flight=30)
    for group in training.next():
        answered(training, group, Refusal(group[0].client_id, 0, Cause.RAISED, "x", "trace" * 100))
    assert [bool(refusal.traceback) for refusal in training.refusals] == [True] * 20 + [False] * 10


def test_only_clients_that_need_the_same_share_a_task() -> None:
    large = [Client(f"l{i}", "d", num_cpus=2.0) for i in range(3)]
    at_home = [Client(f"h{i}", "d", resources={"hospital": 1.0}, labels={"a": "b"}) for i in range(2)]
    north = [Client("n0", "d", labels={"region": "north"})]
    drawn = [large[0], *clients(5), at_home[0], large[1], *north, at_home[1], large[2]]
    ids = [[client.client_id for client in group] for group in grouped(drawn, 4, 1)]
    assert ids == [["l0", "l1", "l2"], ["c0", "c1", "c2", "c3"], ["c4"], ["h0", "h1"], ["n0"]]
    assert [len(group) for group in grouped(clients(10), 4, 4)] == [3, 3, 3, 1], "four at a time"
    assert grouped(clients(3), 1, 2) == alone(3)


@given(
    drawn=st.lists(
        st.builds(Client, st.uuids().map(str), st.just("d"), num_cpus=st.sampled_from([1.0, 2.0]))
    ),
    most=st.integers(1, 5),
    parallelism=st.integers(1, 4),
)
def test_each_client_is_in_one_group(drawn: list[Client], most: int, parallelism: int) -> None:
    groups = grouped(drawn, most, parallelism)
    assert sorted(c.client_id for group in groups for c in group) == sorted(c.client_id for c in drawn)
    assert all(1 <= len(group) <= most for group in groups)


def test_whoever_shares_a_task_is_counted_by_itself() -> None:
    one, two, three = groups = grouped(clients(9), 3, 1)
    training = TrainingRound(2, groups, 9, most_in_flight=6)
    assert training.next() == [one, two]
    assert training.key(one) == "2.c0"
    answered(training, one, Refusal("c1", 2, Cause.NOT_FINITE, "w"))
    assert training.num_answers == 2
    assert training.next() == [], "two updates and a group of three leave no room"
    training.note(TaskEnd(training.key(two), cause=Cause.LOST, detail="killed"), is_late=False)
    held: Sequence[tuple[Answer, object]] = training.take()
    assert [(answer.client_id, row.index) for answer, row in held] == [("c0", 0), ("c2", 1)]  # type: ignore[attr-defined]
    assert training.next() == [three]
    assert training.close(lambda late: [""] * len(late)) == [training.key(three)]
    causes = {refusal.client_id: refusal.cause for refusal in training.refusals}
    assert causes == {"c1": Cause.NOT_FINITE} | dict.fromkeys(("c3", "c4", "c5"), Cause.LOST) | dict.fromkeys(
        ("c6", "c7", "c8"), Cause.TIMED_OUT
    )
    assert training.refusals[1].detail == "killed (its task is shared by 3 clients)"


def test_whatever_clients_are_called_their_tasks_have_names_of_their_own() -> None:
    ids = ["a", "b", "a+1"]
    clients = [Client(name, "d", num_cpus=1.0 + (name == "a+1")) for name in ids]
    training = TrainingRound(0, grouped(clients, 2, 1), 3, most_in_flight=6)
    for group in training.next():
        answered(training, group)
    assert sorted(answer.client_id for answer, _ in training.take()) == sorted(ids)


def test_a_group_larger_than_the_bound_trains_by_itself() -> None:
    training = TrainingRound(0, grouped(clients(8), 4, 1), 8, most_in_flight=2)
    for _ in range(2):
        (group,) = training.next()
        answered(training, group)
        assert len(training.take()) == 4
    assert training.is_over


def test_progress_tells_who_is_waited_for_and_how_long() -> None:
    training = TrainingRound(3, alone(4), 4, most_in_flight=3)
    first, _, third = training.next()
    told = training.progress(1.0)
    assert (told.round_id, told.num_done, told.num_due) == (3, 0, 4)
    assert (told.seconds_left, told.slowest_client) == (None, "c0")
    answered(training, first)
    answered(training, third, Refusal("c2", 3, Cause.RAISED, "x"))
    told = training.progress(6.0)
    assert (told.num_done, told.seconds_left, told.slowest_client) == (2, 6.0, "c1")
    training.close(lambda late: [""] * len(late))
    told = training.progress(9.0)
    assert (told.num_done, told.seconds_left, told.slowest_client) == (4, 0.0, None)


class Counting(Workload[dict[str, np.ndarray]]):
    def clients(self) -> list[Client]:
        return clients(3)

    def initial_model(self) -> dict[str, np.ndarray]:
        return {"w": np.zeros(2)}

    def train(self, model: dict[str, np.ndarray], client: Client, round_id: int) -> Trained:
        number = float(client.client_id[1:])
        return Trained(delta=np.full(2, np.nan if number == 1 else number), metrics={"n": number})

    def evaluate(self, model: dict[str, np.ndarray]) -> dict[str, float]:
        return {}

    def poison(self, model: dict[str, np.ndarray], client: Client, round_id: int) -> Trained:
        return Trained(delta=-np.ones(2))

    def evaluate_client(self, model: dict[str, np.ndarray], client: Client) -> dict[str, float]:
        return {"sum": 1 / int(client.client_id[1:])}


def test_a_task_tells_what_is_small_and_stores_a_row_for_each_update() -> None:
    workload, vector = Counting(), np.zeros(2, np.float32)
    held = workload, workload.codec()
    answers, rows = train_group(held, vector, tuple(clients(3)), 4, frozenset({"c2"}))
    assert rows is not None
    np.testing.assert_array_equal(rows, [[0.0, 0.0], [-1.0, -1.0]])
    assert [type(answer) for answer in answers] == [Answer, Refusal, Answer]
    assert answers[2] == Answer("c2", 4, 1, {}, content_digest(rows[1]))
    assert train_group(held, vector, tuple(clients(2)[1:]), 4, frozenset())[1] is None
    told, nothing = evaluate_group(held, vector, tuple(clients(3)), 4)
    assert nothing is None
    assert isinstance(told[0], Refusal)
    assert told[0].cause is Cause.RAISED
    assert told[2] == Answer("c2", 4, 1, {"sum": 0.5})
