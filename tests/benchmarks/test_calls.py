"""The count of calls, files and messages that an operation takes."""

from __future__ import annotations

import json

import pytest

from benchmarks import calls
from benchmarks.calls import DRIVER, OPERATIONS, Trace, measured, trace
from scarcity_ray.actors.names import basket_actor
from scarcity_ray.runtime.base import RoleSpec
from scarcity_ray.runtime.local import LocalRuntime


@pytest.fixture(scope="module")
def seen() -> dict[str, Trace]:
    return {name: operation for name, _, operation in measured()}


def test_both_operations_are_counted_to_the_last_role(seen):
    assert tuple(seen) == OPERATIONS
    for name, role in (("submit_update", basket_actor(0)), ("maybe_aggregate", "accountant")):
        receivers = {receiver for _, receiver, _ in seen[name].messages}
        assert role in receivers, receivers
        assert bool(seen[name].to_buffer) == (name == "submit_update")
        assert len(set(seen[name].files)) <= seen[name].changes_of_file < len(seen[name].files)


def test_a_driver_asks_each_role_for_each_thing_once(seen):
    for operation in seen.values():
        sent = {key: number for key, number in operation.messages.items() if key[0] == DRIVER}
        assert sent == dict.fromkeys(sent, 1)


class Asker:
    """A role that asks another twice, by a comprehension in a lambda."""

    def __init__(self, peers):
        self._peers = peers

    def ask(self, other):
        return (lambda: [self._peers.handle(other).call("answer", i).result() for i in range(2)])()

    def answer(self, number):
        return number


def test_messages_are_counted_with_their_sender():
    runtime = LocalRuntime()
    make = {"peers": runtime.peers}
    runtime.start([RoleSpec(name, Asker, make) for name in ("a", "b")])
    seen = trace(lambda: runtime.peers.handle("a").call("ask", "b").result())
    assert dict(seen.messages) == {(DRIVER, "a", "ask"): 1, ("a", "b", "answer"): 2}
    assert (seen.messages.total(), seen.asked_again) == (3, 1)
    after = trace(lambda: runtime.peers.handle("b").call("answer", 1).result())
    assert dict(after.messages) == {(DRIVER, "b", "answer"): 1}


def test_changes_of_file_are_counted_between_neighbours():
    assert Trace(["a", "a", "b", "a"]).changes_of_file == 2
    assert Trace().changes_of_file == 0


def test_the_profile_is_taken_off_when_the_operation_fails():
    import sys

    with pytest.raises(ZeroDivisionError):
        trace(lambda: 1 // 0)
    assert sys.getprofile() is None


@pytest.mark.parametrize("output", ["table", "json"])
def test_rows_are_printed_as_the_other_benchmarks_do(output, monkeypatch, capsys):
    made = Trace(["a", "b"])
    made.messages[DRIVER, "directory", "locate"] = 2
    monkeypatch.setattr(calls, "measured", lambda: iter([("submit_update", 0.001, made)]))
    monkeypatch.setattr("sys.argv", ["calls", "--format", output, "--messages"])
    assert calls.main() == 0
    lines = capsys.readouterr().out.splitlines()
    if output == "table":
        assert lines[0].split()[:2] == ["calls", "files"]
        assert "driver > directory.locate" in lines[2]
        return
    first, message = map(json.loads, lines)
    assert {"name", "n", "d", "seconds", "versus", "ratio"} <= first.keys()
    assert (first["calls"], first["round_trips"], first["asked_again"]) == (2, 2, 1)
    assert message["round_trips"] == 2
