"""A role's memory of what it answered: a call is done once, however often it arrives."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.runtime import rpc
from scarcity_ray.runtime.rpc import IdempotencyKey, Role


class Counter(Role):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[Any] = []

    def add(self, what: Any) -> int:
        self.done.append(what)
        return len(self.done)

    def stumble(self, what: Any) -> int:
        self.done.append(what)
        if len(self.done) == 1:
            raise KeyError("half way")
        return len(self.done)


def test_a_call_made_again_is_answered_and_not_done_again() -> None:
    counter = Counter()
    assert [counter.once(IdempotencyKey("a", 1), "add", "x") for _ in range(3)] == [1, 1, 1]
    assert counter.once(IdempotencyKey("a", 2), "add", "x") == 2, "the same again, and another call"
    assert counter.done == ["x", "x"]


def test_a_call_that_failed_is_done_again() -> None:
    counter = Counter()
    with pytest.raises(KeyError):
        counter.once(IdempotencyKey("a", 1), "stumble", "x")
    assert [counter.once(IdempotencyKey("a", 1), "stumble", "x") for _ in range(2)] == [2, 2]


def test_an_overtaken_call_is_refused() -> None:
    counter = Counter()
    counter.once(IdempotencyKey("a", 1), "add", "first")
    counter.once(IdempotencyKey("a", 2), "add", "second")
    with pytest.raises(ProtocolViolation, match="gone on"):
        counter.once(IdempotencyKey("a", 1), "add", "first")
    with pytest.raises(KeyError):
        Counter().once(IdempotencyKey("a", 3), "stumble", "x")
    assert counter.done == ["first", "second"]


def test_an_answer_of_none_is_an_answer() -> None:
    counter = Counter()
    counter.nothing = lambda: counter.done.append(0)  # type: ignore[attr-defined]
    assert [counter.once(IdempotencyKey("a", 1), "nothing") for _ in range(2)] == [None, None]
    assert counter.done == [0]


def test_memory_is_bounded_and_the_longest_silent_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "CALLERS", 2)
    counter = Counter()
    for caller in ("a", "b"):
        counter.once(IdempotencyKey(caller, 1), "add", caller)
    counter.once(IdempotencyKey("a", 1), "add", "a")
    counter.once(IdempotencyKey("c", 1), "add", "c")
    assert counter.done == ["a", "b", "c"]
    counter.once(IdempotencyKey("a", 1), "add", "a")
    counter.once(IdempotencyKey("b", 1), "add", "b again")
    assert counter.done == ["a", "b", "c", "b again"]
    assert len(counter._answers) == 2


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3)), max_size=12))
def test_each_callers_calls_are_done_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    """Each step makes its caller's next call, as often as it says; then all calls ever made arrive again."""
    counter, numbers, made = Counter(), itertools.count(1), []
    for caller, times in steps:
        call = IdempotencyKey(caller, next(numbers))
        answers = {counter.once(call, "add", call) for _ in range(times)}
        made.append(call)
        assert answers == {len(made)}
    for call in made:
        try:
            counter.once(call, "add", call)
        except ProtocolViolation:
            continue
    assert counter.done == made
