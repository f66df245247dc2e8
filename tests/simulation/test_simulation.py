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


@pytest.mark.long
@settings(max_examples=settings.default.max_examples * 10)  # type: ignore[union-attr]
@given(programs)
def test_nothing_is_lost_or_counted_twice(program: Program) -> None:
    run(program)


@pytest.mark.slow
@settings(max_examples=settings.default.max_examples * 67)  # type: ignore[union-attr]
@given(programs)
def test_nothing_is_lost_or_counted_twice_in_many_programs(program: Program) -> None:
    run(program)


FOUND = (
    # Without storage the directory took what it had been told of a basket actor's death with it.
    Program(
        (
            Step(Act.SEND_ALL),
            Step(Act.SPLIT),
            Step(Act.AGGREGATE, faults=(Fault(Kind.CALLEE_DIES_AFTER, 3),)),
            Step(Act.SEND_ALL, driver=1, faults=(Fault(Kind.CALLEE_DIES),)),
        ),
        Setting(masked=True, gossip=True, baskets_per_actor=2),
    ),
    # A client whose replay memory died with its basket actor leaves, comes back and sends again.
    Program(
        (
            Step(Act.SEND_ALL, faults=(Fault(Kind.CALLEE_DIES, 8),)),
            Step(Act.LEAVE, 1),
            Step(Act.DISBAND, 1),
            Step(Act.JOIN, 1),
            Step(Act.SEND, 1),
            Step(Act.SEND_ALL),
        ),
        Setting(auto=True),
    ),
    # The directory and then a basket actor die in one call: nobody knew any more whose updates went with it.
    Program(
        (
            Step(Act.SEND_ALL),
            Step(Act.SEND_ALL, faults=(Fault(Kind.CALLEE_DIES), Fault(Kind.CALLEE_DIES, 1))),
        ),
        Setting(baskets_per_actor=1),
    ),
    # Updates that had moved once were on their way again, out of the basket actor that died.
    Program(
        (
            Step(Act.SEND_ALL),
            Step(Act.DISBAND),
            Step(Act.SPLIT, 3, faults=(Fault(Kind.CALLEE_DIES, 13),)),
        ),
        Setting(baskets_per_actor=1),
    ),
    # A directory that died beside a basket actor in a split.
    Program(
        (
            Step(Act.SEND_ALL),
            Step(Act.LEAVE),
            Step(Act.SPLIT, faults=(Fault(Kind.OTHER_DIES, 2, 7), Fault(Kind.OTHER_DIES, 0, 1))),
            Step(Act.JOIN),
            Step(Act.SEND),
        ),
        Setting(baskets_per_actor=2),
    ),
    # A commit that failed on a full disk was in the journal for all that.
    Program(
        (
            Step(Act.SEND_ALL),
            Step(Act.LEAVE, faults=(Fault(Kind.DISK_FULL, 1),)),
            Step(Act.SPLIT),
            Step(Act.JOIN),
            Step(Act.SEND),
        ),
        Setting(stored=True),
    ),
    # What a driver had sent had moved twice, by another one's hand, when it heard of the death.
    Program(
        (
            Step(Act.SEND_ALL, driver=1),
            Step(Act.SEND_ALL),
            Step(Act.LEAVE),
            Step(Act.DISBAND),
            Step(Act.JOIN),
            Step(Act.SEND, faults=(Fault(Kind.CALLEE_DIES, 1),)),
            Step(Act.DISBAND, 3),
        ),
        Setting(),
    ),
    # A basket actor died between the commit of a leaving client's withdrawal and its answer.
    Program(
        (Step(Act.SEND_ALL), Step(Act.LEAVE, faults=(Fault(Kind.DISK_DIES_AFTER, 6),))),
        Setting(stored=True),
    ),
    # A client left after a release that holds its update was drawn, and before a full disk let it be stored.
    Program(
        (
            Step(Act.SEND_ALL),
            Step(Act.DISBAND, faults=(Fault(Kind.CALLEE_DIES, 4),)),
            Step(Act.AGGREGATE),
            Step(Act.AGGREGATE, faults=(Fault(Kind.DISK_FULL, 11),)),
            Step(Act.LEAVE),
        ),
        Setting(baskets_per_actor=2, stored=True),
    ),
    # A client's arrival could not be written, and its arrival by an earlier operation was taken for it.
    Program(
        (
            Step(Act.SPLIT),
            Step(Act.DISBAND, 4),
            Step(Act.SEND_ALL),
            Step(Act.SPLIT, 3, faults=(Fault(Kind.DISK_FULL, 2),)),
            Step(Act.STATS),
        ),
        Setting(stored=True),
    ),
    # A basket actor died between the commit that discards a leaving client's aggregate and its answer.
    Program(
        (
            Step(Act.SEND_DOMAIN),
            Step(Act.AGGREGATE),
            Step(Act.LEAVE, faults=(Fault(Kind.DISK_DIES_AFTER, 7),)),
            Step(Act.AGGREGATE),
        ),
        Setting(stored=True),
    ),
    # What one driver had sent, and another one was sending again, was lost after its release.
    Program(
        (
            Step(Act.SEND_ALL),
            Step(Act.AGGREGATE, faults=(Fault(Kind.CALLEE_DIES, 1),)),
            Step(Act.SEND_ALL, driver=1, faults=(Fault(Kind.CALLEE_DIES, 15),)),
        ),
        Setting(auto=True, baskets_per_actor=2),
    ),
    # The directory died when the basket actors had heard of a round, and could not go on to it yet.
    Program(
        (
            Step(Act.SPLIT),
            Step(Act.SEND_ALL),
            Step(Act.GOSSIP),
            Step(Act.AGGREGATE),
            Step(Act.ROUND, faults=(Fault(Kind.CALLEE_DIES, 7), Fault(Kind.CALLEE_DIES, 18))),
        ),
        Setting(),
    ),
    # A driver sent on before it heard that an actor had died, and named as lost what the next one has.
    Program(
        (
            Step(Act.SEND),
            Step(Act.STATS, driver=1, faults=(Fault(Kind.OTHER_DIES, 0, 1),)),
            Step(Act.SEND_ALL),
            Step(Act.STATS),
        ),
        Setting(),
    ),
    # A driver was interrupted as it sent what had waited: it was sent again as something new, and refused.
    Program(
        (
            Step(Act.SEND_LATER, driver=1),
            Step(Act.RECEIPTS, driver=1, faults=(Fault(Kind.INTERRUPTED, 2),)),
            Step(Act.AGGREGATE, driver=1),
        ),
        Setting(lazy=True),
    ),
)
"""What long runs have found."""


@pytest.mark.parametrize("program", FOUND)
def test_what_was_found_once_is_not_found_again(program: Program) -> None:
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
