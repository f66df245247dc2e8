"""Random programs of a simulated federation; `world` says what must be true at the end of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings

from tests.simulation.program import Act, Fault, Kind, Program, Setting, Step, programs
from tests.simulation.world import run, watched


@pytest.fixture(scope="module", autouse=True)
def simulated() -> Iterator[None]:
    with watched():
        yield


@settings(max_examples=settings.default.max_examples * 10)  # type: ignore[union-attr]
@given(programs)
def test_nothing_is_lost_or_counted_twice(program: Program) -> None:
    run(program)


@pytest.mark.slow
@settings(max_examples=settings.default.max_examples * 67)  # type: ignore[union-attr]
@given(programs)
def test_nothing_is_lost_or_counted_twice_in_many_programs(program: Program) -> None:
    run(program)


def test_a_program_runs_the_same_every_time() -> None:
    """Keys and ids are random; which calls are made, and what goes wrong, is not."""
    faults = (Fault(Kind.LOST_ANSWER, 3), Fault(Kind.OTHER_DIES, 8, 1))
    program = Program(
        (Step(Act.SEND_ALL), Step(Act.SPLIT, faults=faults), Step(Act.AGGREGATE, driver=1)),
        Setting(masked=True, lazy=True),
    )
    first, second = run(program).network, run(program).network
    assert first.happened == second.happened
    assert len(first.happened) == 2
    assert first.trace == second.trace
