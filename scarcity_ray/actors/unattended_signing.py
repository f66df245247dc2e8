"""Checks of a driver with the operator's key, before it signs a roster that no operator has read.

The directory drafts the roster and is not trusted. So the driver asks the basket actors themselves: each
states the keys of its own baskets, which of them have closed, and the rosters that it has pinned.

An actor that colludes with the directory can still invent baskets of its own. An operator who does not trust
the actors reads the draft and signs it by hand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from scarcity_ray.actors.messages import has_closed
from scarcity_ray.secagg import Roster
from scarcity_ray.secagg.roster import NOBODY_BEFORE, is_sound


@dataclass(frozen=True)
class Statement:
    """What a basket actor states about its baskets.

    Attributes:
        keys: Identity keys of its baskets.
        closed: By its former baskets that are still on the roster, a signature that the basket has closed.
        rosters: The newest epochs that it has pinned.
    """

    keys: Mapping[str, bytes]
    closed: Mapping[str, bytes] = field(default_factory=dict)
    rosters: tuple[Roster, ...] = ()


def objection(
    draft: Roster, statements: Iterable[Statement], seen: Iterable[Roster], operator_key: bytes
) -> str:
    """Why a draft must not be signed without an operator's reading it; empty if it may.

    Guarantees:
        who_is_added_says_so_itself
        who_is_removed_has_signed_that_it_closed
        nothing_is_signed_twice_for_one_epoch

    Args:
        seen: Other rosters that the driver knows of.
        operator_key: 32 bytes; a roster that it has signed counts, whoever shows it.
    """
    statements = list(statements)
    shown = (*seen, *(roster for said in statements for roster in said.rosters))
    signed = [r for r in shown if is_sound(r) and r.is_signed_by(operator_key)]
    newest = max(signed, key=lambda roster: roster.epoch, default=None)
    epoch, previous = (0, NOBODY_BEFORE) if newest is None else (newest.epoch, newest.digest())
    if (draft.epoch, draft.previous) != (epoch + 1, previous):
        return f"epoch {epoch} is the last that was signed, and it does not follow from that"
    before, now = {} if newest is None else newest.keys(), draft.keys()
    stated: dict[str, set[bytes]] = defaultdict(set)
    for said in statements:
        for name, key in said.keys.items():
            stated[name].add(key)
    for name, key in now.items():
        if stated.get(name, {before.get(name)}) != {key}:
            return f"{name} is on it under a key that its basket actor, and no other, does not state"
    for name in stated:
        if name not in now:
            return f"{name} is not on it, and a basket actor holds it"
    for name, key in before.items():
        if name not in now and not any(has_closed(name, key, said.closed) for said in statements):
            return f"{name} is not on it any more, and has not signed that it closed"
    return ""
