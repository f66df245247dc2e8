"""Programs of a simulated federation: what its drivers and clients do, and what goes wrong at which call.

A program is plain data, so that it can be drawn at random, shrunk, printed and written into a test.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from itertools import chain, cycle, islice
from typing import Any

from hypothesis import strategies as st

NUM_CLIENTS = 6


class Act(StrEnum):
    """What a driver does in one step; `Step.k` names the client, or the basket."""

    SEND_ALL = "every client sends its update of the round"
    SEND_DOMAIN = "every client of one domain sends its update of the round"
    SEND = "a client sends its update of the round, again if it has sent it"
    SEND_ANOTHER = "a client sends a second, different update of the round"
    SEND_OLD = "a client sends again what it sent first"
    SEND_LATER = "every client sends its update of the round, one by one, and waits for no receipt"
    SEND_ONE_LATER = (
        "a client sends its update of the round, again if it has sent it, and waits for no receipt"
    )
    RECEIPTS = "the receipts that the driver did not wait for are asked for, the last one first"
    CLOSE = "the driver leaves the federation"
    AGGREGATE = "force_aggregate"
    MAYBE = "maybe_aggregate"
    ROUND = "advance_round"
    LEAVE = "unregister_client"
    JOIN = "register_client"
    SPLIT = "split_basket"
    DISBAND = "disband_basket"
    GOSSIP = "run_gossip_round"
    STATS = "get_stats"
    RENEW = "renew_budget"
    RESTORE = "everything dies, drivers too, and the federation is restored, if it is stored"


class Kind(StrEnum):
    """What goes wrong at one call."""

    LOST_ANSWER = "it is done, and its answer is lost"
    LOST_CALL = "it is lost"
    LATE = "the connection breaks, and it arrives later"
    CALLEE_DIES = "the callee dies before it"
    CALLEE_DIES_AFTER = "the callee dies after its effect, before it answers"
    CALLER_DIES = "the caller dies before it"
    CALLER_DIES_AFTER = "the caller dies after it"
    CALLER_DIES_LATE = "the caller dies, and it arrives later"
    INTERRUPTED = "the driver is interrupted before it, and is used again"
    OTHER_DIES = "another role dies"
    MEANWHILE = "another driver acts before it"
    CLOCK = "the clock jumps"
    ALL_DIE = "everything dies, drivers too, if the federation is stored"
    POWER_FAILS = "everything dies, and what was not synced is lost, if the federation is stored"
    DISK_IS_LOST = "a basket actor's machine is gone for good, with its journal"
    LATE_SNAPSHOT = "a process of an earlier opening, which was thought dead, writes its snapshots"
    # At a write:
    DISK_DIES = "who writes dies before the write"
    DISK_TORN = "who writes dies in the middle of the write"
    DISK_DIES_AFTER = "who writes dies after the write"
    DISK_FULL = "the disk is full"


ON_DISK = frozenset({Kind.DISK_DIES, Kind.DISK_TORN, Kind.DISK_DIES_AFTER, Kind.DISK_FULL})


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong in a step.

    Attributes:
        at: At the call of this number in the step, from 0, counting those between roles too; for one on disk
            at the write of this number.
        k: Which other role, how much later, how far the clock jumps, or which client or basket.
        act: What another driver does meanwhile.
    """

    kind: Kind
    at: int = 0
    k: int = 0
    act: Act = Act.SEND_ALL

    def __str__(self) -> str:
        where = "write" if self.kind in ON_DISK else "call"
        more = f" ({self.act.name}({self.k}))" if self.kind is Kind.MEANWHILE else f" (k={self.k})"
        return f"{where} {self.at}: {self.kind}{more}"


@dataclass(frozen=True)
class Step:
    """One driver's act, and what goes wrong in it."""

    act: Act
    k: int = 0
    driver: int = 0
    faults: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        return "; ".join([f"driver {self.driver}: {self.act.name}({self.k})", *map(str, self.faults)])


@dataclass(frozen=True)
class Setting:
    """The federation of a program.

    Attributes:
        masked: Whether Layer 2 uses secure aggregation.
        auto: Whether updates that arrive make layers due.
        gossip: Whether there is gossip; it mixes rows, so that no coordinate shows a client then.
        lazy: Whether calls are done when their answers are asked for, the last one sent first, in place of at
            once.
        baskets_per_actor: As in the configuration.
        releases: How many fit into the budget.
        stored: Whether it has a `storage_path`, and so a journal.
        durability: Of the journal, as in the configuration.
    """

    masked: bool = False
    auto: bool = False
    gossip: bool = False
    lazy: bool = False
    baskets_per_actor: int = 1
    releases: int = 8
    stored: bool = False
    durability: str = "update"

    def __str__(self) -> str:
        said = [
            f.name if getattr(self, f.name) is True else f"{f.name} {getattr(self, f.name)}"
            for f in fields(self)
            if getattr(self, f.name) != f.default
        ]
        return ", ".join(said) or "as ever"


@dataclass(frozen=True)
class Program:
    """What happens to one federation."""

    steps: tuple[Step, ...]
    setting: Setting = Setting()

    def __str__(self) -> str:
        return "\n".join([f"federation: {self.setting}", *map(str, self.steps)])


OFTEN = (Act.SEND_ALL, Act.AGGREGATE, Act.ROUND, Act.LEAVE, Act.JOIN, Act.SPLIT, Act.DISBAND, Act.GOSSIP)
TOGETHER: tuple[tuple[Act, ...], ...] = (
    (Act.SEND_ALL, Act.AGGREGATE),
    (Act.ROUND, Act.SEND_ALL),
    (Act.SEND_ALL, Act.SPLIT, Act.AGGREGATE),
    (Act.SEND_ALL, Act.DISBAND, Act.AGGREGATE),
    (Act.SEND_DOMAIN, Act.AGGREGATE, Act.LEAVE, Act.AGGREGATE),
    (Act.SEND_ALL, Act.LEAVE, Act.SPLIT, Act.JOIN, Act.SEND),
    (Act.SEND_ALL, Act.LEAVE, Act.DISBAND, Act.JOIN, Act.SEND),
    (Act.SEND_ALL, Act.GOSSIP, Act.AGGREGATE, Act.ROUND),
    (Act.SEND_ALL, Act.LEAVE, Act.JOIN, Act.ROUND, Act.SEND),
    (Act.SEND_ALL, Act.RESTORE, Act.AGGREGATE),
    (Act.SEND_ALL, Act.AGGREGATE, Act.RESTORE, Act.SEND),
    (Act.SEND_LATER, Act.RECEIPTS, Act.AGGREGATE),
    (Act.SEND_LATER, Act.AGGREGATE),
    (Act.SEND_LATER, Act.CLOSE, Act.AGGREGATE),
    (Act.SEND_ONE_LATER, Act.LEAVE, Act.JOIN, Act.SEND_ONE_LATER, Act.SPLIT),
)
"""Acts that mean something one after the other, of one client or basket."""

# Hypothesis removes up to five of its choices at once as it shrinks, so an episode must be few choices.
_EPISODES = [
    (acts, k, driver)
    for acts in (*((act,) for act in (*OFTEN, *Act)), *TOGETHER, *TOGETHER)
    for k in range(NUM_CLIENTS)
    for driver in range(2)
]
_AT = (*range(25), *range(13))
"""Few operations make more than 25 calls; a place beyond the last one is never reached."""


def _of(kind: Kind) -> list[Fault]:
    """As many faults of each kind."""
    acts = (*OFTEN, *Act) if kind is Kind.MEANWHILE else (Act.SEND_ALL,)
    all_of_them = [Fault(kind, 0, k, act) for act in acts for k in range(NUM_CLIENTS + 2)]
    return list(islice(cycle(all_of_them), len((*OFTEN, *Act)) * (NUM_CLIENTS + 2)))


at_calls = st.builds(
    replace,
    st.sampled_from([f for kind in Kind if kind not in ON_DISK for f in _of(kind)]),
    at=st.sampled_from(_AT),
)
on_disk = st.builds(
    replace,
    st.sampled_from([f for kind in Kind if kind in ON_DISK for f in _of(kind)]),
    at=st.sampled_from([*range(25), *range(6), *range(6)]),
)
some_faults = st.sampled_from([(), (at_calls,), (at_calls,), (on_disk,), (at_calls, at_calls)])


@st.composite
def episodes(draw: st.DrawFn) -> list[Step]:
    """One act, or some that belong together."""
    acts, k, driver = draw(st.sampled_from(_EPISODES))
    return [Step(act, k, driver, tuple(map(draw, draw(some_faults)))) for act in acts]


setting_parts: dict[str, Any] = {
    "masked": st.sampled_from([False, False, False, True]),
    "auto": st.booleans(),
    "gossip": st.sampled_from([False, False, False, True]),
    "lazy": st.booleans(),
    "baskets_per_actor": st.integers(1, 2),
    "releases": st.sampled_from([8, 8, 2]),
    "stored": st.sampled_from([False, False, True]),
    "durability": st.sampled_from(["update", "update", "round"]),
}
programs = st.builds(
    Program,
    st.lists(episodes(), min_size=1, max_size=6).map(lambda several: tuple(chain.from_iterable(several))),
    st.builds(Setting, **setting_parts),
)
