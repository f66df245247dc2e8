"""What is signed that nobody has read: what the basket actors state themselves, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scarcity_ray.actors.messages import closed
from scarcity_ray.actors.unattended_signing import Statement, objection
from scarcity_ray.secagg import IdentityKeyPair, Party, Roster

OPERATOR = IdentityKeyPair.generate()
KEYS = {name: IdentityKeyPair.generate() for name in "abc"}
PUBLIC = {name: key.public_bytes for name, key in KEYS.items()}


def roster(names: str, epoch: int = 1, previous: bytes = bytes(32)) -> Roster:
    return Roster("fed", epoch, previous, tuple(Party(n, PUBLIC[n]) for n in names))


def statements(names: str, **of_first: object) -> list[Statement]:
    said = [Statement({name: PUBLIC[name]}) for name in names]
    return [replace(said[0], **of_first), *said[1:]]  # type: ignore[arg-type]


def why(draft: Roster, said: list[Statement], *seen: Roster) -> str:
    return objection(draft, said, seen, OPERATOR.public_bytes)


def test_who_is_added_says_so_itself() -> None:
    assert why(roster("abc"), statements("abc")) == ""
    assert "c is on it" in why(roster("abc"), statements("ab"))
    assert "c is not on it" in why(roster("ab"), statements("abc"))
    thief = Statement({"c": PUBLIC["a"]})
    assert "c is on it" in why(roster("abc"), [*statements("abc"), thief]), "two state it"
    first = roster("abc").signed(OPERATOR)
    assert why(first.next(first.parties), statements("ab"), first) == "", "who is dead was signed for"
    anew = {**PUBLIC, "c": IdentityKeyPair.generate().public_bytes}
    parties = tuple(Party(name, key) for name, key in anew.items())
    assert "c is on it" in why(first.next(parties), statements("abc"), first)
    assert why(first.next(parties), [*statements("ab"), Statement({"c": anew["c"]})], first) == ""


def test_who_is_removed_has_signed_that_it_closed() -> None:
    first = roster("abc").signed(OPERATOR)
    fewer = first.next(first.parties[:2])
    assert "c is not on it any more" in why(fewer, statements("ab"), first)
    for key, is_enough in (("c", True), ("a", False)):
        signature = KEYS[key].sign(closed("c"))
        assert (why(fewer, statements("ab", closed={"c": signature}), first) == "") is is_enough


@pytest.mark.parametrize("who", ["an actor", "the driver"])
def test_nothing_is_signed_twice_for_one_epoch(who: str) -> None:
    first = roster("ab").signed(OPERATOR)
    second = first.next(roster("abc").parties).signed(OPERATOR)
    seen = (first, second) if who == "the driver" else (first,)
    said = statements("abc", rosters=(first, second) if who == "an actor" else ())
    other = first.next(roster("abc").parties)
    assert "does not follow" in why(other, said, *seen)
    assert "does not follow" in why(roster("abc"), said, *seen)
    assert why(second.next(roster("abc").parties), said, *seen) == ""
    forged = second.next(first.parties).signed(KEYS["a"])
    assert why(second.next(roster("abc").parties), said, *seen, forged) == "", "only what the operator signed"
