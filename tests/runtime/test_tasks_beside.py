"""Tasks that are begun while their caller does other work (`runtime.rpc.TasksBeside`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from scarcity_ray.runtime.rpc import TasksBeside


@dataclass
class Began:
    number: int
    beside: bool
    over: bool = False

    def is_over(self) -> bool:
        return self.over

    def result(self) -> int:
        assert self.over or not self.beside, "others keep the machine busy: it would never end"
        self.over = True
        return self.number


@dataclass
class Machine:
    """Tasks that end when the test says so."""

    parallelism: int
    begun: list[Began] = field(default_factory=list)

    def put(self, value: object) -> Any:
        return value

    def submit(self, function: Callable[..., Any], item: int, *shared: object) -> Began:
        return self.submit_beside(function, item, beside=False)

    def submit_beside(
        self, function: Callable[..., Any], item: int, *shared: object, beside: bool = True
    ) -> Began:
        self.begun.append(Began(item, beside))
        return self.begun[-1]

    def on(self, labels: object) -> Machine:
        return self


@pytest.mark.parametrize(("cpus", "at_once"), [(1, 0), (2, 1), (5, 2)])
def test_half_of_the_cpus_work_beside_and_all_of_them_on_the_rest(cpus: int, at_once: int) -> None:
    machine = Machine(cpus)
    tasks = TasksBeside(machine, abs, range(5))
    for _ in range(2):
        tasks.go_on()
    assert [one.beside for one in machine.begun] == [True] * at_once
    for one in machine.begun:
        one.over = True
    tasks.go_on()
    assert len(machine.begun) == 2 * at_once
    for one in machine.begun:
        one.over = True
    assert tasks.results() == [0, 1, 2, 3, 4]
    assert [one.beside for one in machine.begun] == [True] * 2 * at_once + [False] * (5 - 2 * at_once)


def test_each_is_made_once() -> None:
    machine = Machine(8)
    tasks = TasksBeside(machine, abs, range(3))
    for _ in range(3):
        tasks.go_on()
    for one in machine.begun:
        one.over = True
    assert tasks.results() == tasks.results() == [0, 1, 2]
    assert [one.number for one in machine.begun] == [0, 1, 2]


def test_one_that_starves_beside_is_made_anew_once_the_others_are_over() -> None:
    machine = Machine(2)
    tasks = TasksBeside(machine, abs, range(3))
    tasks.go_on()
    assert tasks.results() == [0, 1, 2]
    assert [(one.number, one.beside) for one in machine.begun] == [
        (0, True),
        (1, False),
        (2, False),
        (0, False),
    ]
