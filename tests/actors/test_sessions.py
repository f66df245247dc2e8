"""A session of secure aggregation over hosts that fall silent, lie, or speak for others."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scarcity_ray.actors.messages import BasketPlace
from scarcity_ray.actors.secure_session import PartyCalls, PlainSession, SecureSession
from scarcity_ray.actors.session_terms import SessionTerms
from scarcity_ray.errors import ProtocolViolation, SecureAggregationAborted
from scarcity_ray.plan import ReleasePlan
from scarcity_ray.secagg import IdentityKeyPair, Participant, Party, SessionContext

PHASES = ("advertise", "share_keys", "mask", "confirm", "unmask")
IN_THE_SUM = PHASES[3:]
"""Whoever falls silent from these phases on has its input in the sum."""
D, BITS, N, T = 6, 32, 5, 3


@functools.cache
def identity(index):
    return IdentityKeyPair.generate()


class Host:
    """The participants of one basket actor."""

    def __init__(self, vectors):
        self.vectors = vectors
        self.people = {}
        self.ended = []

    def advertise(self, terms, parties):
        self.people = {p: Participant(terms.context, p, identity(int(p[1:]))) for p in parties}
        return {p: person.advertise() for p, person in self.people.items()}

    def share_keys(self, session_id, parties, adverts):
        return {p: self.people[p].share_keys(adverts) for p in parties}

    def mask(self, session_id, inboxes):
        return {p: self.people[p].mask(inbox, self.vectors[p]) for p, inbox in inboxes.items()}

    def confirm(self, session_id, parties, survivors):
        return {p: self.people[p].confirm(survivors) for p in parties}

    def unmask(self, session_id, parties, confirmations, now):
        return {p: self.people[p].unmask(confirmations) for p in parties}

    def contribute(self, terms, parties):
        return {p: (p, self.vectors[p]) for p in parties}

    def end_session(self, session_id, spent):
        self.ended.append(spent)


def names(n):
    return [f"p{i}" for i in range(n)]


def start(peers, *, masked=True, slots=None, threshold=T, n=N):
    """A session of n parties, one an actor unless `slots` says otherwise, and their inputs."""
    rng = np.random.Generator(np.random.PCG64DXSM(8))
    vectors = {p: rng.integers(0, 2**BITS, D, dtype=np.uint32) for p in names(n)}
    slots = slots or list(range(n))
    peers.roles = {
        f"basket:{slot}": Host({p: vectors[p] for p, s in zip(names(n), slots, strict=True) if s == slot})
        for slot in set(slots)
    }
    context = SessionContext(
        federation_id="tests",
        session_id=bytes(16),
        round_id=0,
        attempt=1,
        model_hash=hashlib.sha256(b"").digest(),
        dimension=D,
        ring_bits=BITS,
        threshold=threshold,
        parties=tuple(Party(p, identity(i).public_bytes) for i, p in enumerate(names(n))),
    )
    release = ReleasePlan(
        dict.fromkeys(names(n), 1 / n), dict.fromkeys(names(n), 1.0), BITS, 1.0, D, 1.0, 1.0
    )
    places = [
        BasketPlace(p, "d", slot, identity(i).public_bytes)
        for i, (p, slot) in enumerate(zip(names(n), slots, strict=True))
    ]
    kind = SecureSession if masked else PlainSession
    terms = SessionTerms(context, release, {}, masked)
    return kind(terms, names(n), PartyCalls(places, peers)), vectors


def total(vectors, parties):
    return sum((vectors[p].astype(object) for p in parties), np.zeros(D, object)) % 2**BITS


def test_without_faults_the_sum_is_exact_and_every_actor_is_told_the_end(peers):
    session, vectors = start(peers, slots=[0, 0, 1, 1, 1])
    assert session.collect() == tuple(names(N))
    assert (session.unmask(0.0) == total(vectors, names(N))).all()
    session.end()
    assert [host.ended for host in peers.roles.values()] == [[tuple(names(N))]] * 2
    assert session._calls.lost_roles == session._calls.violations == []


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("silent", [(0,), (1, 4)])
def test_dropouts_in_any_phase_down_to_the_threshold_give_the_exact_sum(peers, phase, silent):
    session, vectors = start(peers)
    for index in silent:
        peers.lose(f"basket:{index}", phase)
    survivors = session.collect()
    left = [p for i, p in enumerate(names(N)) if phase in IN_THE_SUM or i not in silent]
    assert list(survivors) == left
    assert (session.unmask(0.0) == total(vectors, left)).all()
    assert session._calls.lost_roles == [f"basket:{index}" for index in silent]


@pytest.mark.parametrize("phase", PHASES)
def test_below_the_threshold_it_aborts_and_before_the_unmask_request_nothing_is_spent(peers, phase):
    session, _ = start(peers)
    for index in (0, 2, 3):
        peers.lose(f"basket:{index}", phase)
    if phase == "unmask":
        session.collect()
        with pytest.raises(SecureAggregationAborted) as abort:
            session.unmask(0.0)
        assert not abort.value.retryable
    else:
        with pytest.raises(SecureAggregationAborted) as abort:
            session.collect()
        assert abort.value.retryable
        assert not peers.calls("unmask")
    session.end()
    spent = tuple(names(N)) if phase == "unmask" else ()
    assert all(host.ended == [spent] for host in peers.roles.values())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drops=st.dictionaries(st.integers(0, N - 1), st.sampled_from(PHASES), max_size=N - T))
def test_any_pattern_of_dropouts_down_to_the_threshold_gives_the_exact_sum(peers, drops):
    peers.log.clear()
    peers.faults.clear()
    session, vectors = start(peers)
    for index, phase in drops.items():
        for later in PHASES[PHASES.index(phase) :]:
            peers.lose(f"basket:{index}", later)
    session.collect()
    left = [p for i, p in enumerate(names(N)) if drops.get(i, PHASES[4]) in IN_THE_SUM]
    assert (session.unmask(0.0) == total(vectors, left)).all()


GARBAGE = [3, "x", b"", ["p0"], ("p0", 1), {"p0": 3}, {"p0": None}, {"p9": 3}, {3: 4}, {}, object()]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("answer", GARBAGE, ids=lambda answer: repr(answer).partition(" at 0x")[0])
def test_a_host_that_answers_garbage_is_left_out_and_counted(peers, phase, answer):
    session, vectors = start(peers)
    peers.say("basket:0", phase, answer if not callable(answer) else lambda honest: answer)
    session.collect()
    left = names(N) if phase in IN_THE_SUM else names(N)[1:]
    assert (session.unmask(0.0) == total(vectors, left)).all()
    if answer != {}:
        assert session._calls.violations
    assert session._calls.lost_roles == []


@pytest.mark.parametrize("phase", PHASES)
def test_another_partys_message_is_counted_and_its_owner_keeps_its_place(peers, phase):
    session, vectors = start(peers, slots=[0, 1, 2, 3, 4])
    heard = {}
    peers.say("basket:1", phase, lambda honest: heard.setdefault("p1", honest))
    peers.say("basket:0", phase, lambda honest: heard.setdefault("p0", honest))
    session.collect()
    session.unmask(0.0)

    # The same keys do not come again, so the second session is given messages of the first, too.
    again, vectors = start(peers)
    peers.faults.clear()
    peers.say("basket:0", phase, {"p0": heard["p1"]["p1"]})
    again.collect()
    left = names(N) if phase in IN_THE_SUM else names(N)[1:]
    assert (again.unmask(0.0) == total(vectors, left)).all()
    assert len(again._calls.violations) == 1


@pytest.mark.parametrize("phase", PHASES)
def test_a_host_cannot_speak_over_another(peers, phase):
    session, vectors = start(peers)
    peers.say("basket:4", phase, lambda honest: {**honest, "p0": 3, "p1": None})
    session.collect()
    assert (session.unmask(0.0) == total(vectors, names(N))).all()
    assert len(session._calls.violations) == 1
    assert "basket:4" in session._calls.violations[0]


def test_a_party_that_refuses_is_left_out_and_counted(peers):
    session, vectors = start(peers)

    def refuse(args, work):
        raise ProtocolViolation("no")

    peers.faults["basket:2", "share_keys"] = refuse
    assert session.collect() == ("p0", "p1", "p3", "p4")
    assert session._calls.violations == ["no"]
    assert (session.unmask(0.0) == total(vectors, ["p0", "p1", "p3", "p4"])).all()


def test_an_altered_masked_input_is_refused_by_its_signature(peers):
    session, vectors = start(peers)
    peers.say("basket:1", "mask", lambda m: {"p1": replace(m["p1"], vector=m["p1"].vector + np.uint32(1))})
    assert session.collect() == ("p0", "p2", "p3", "p4")
    assert (session.unmask(0.0) == total(vectors, ["p0", "p2", "p3", "p4"])).all()
    assert len(session._calls.violations) == 1


@pytest.mark.parametrize(
    "answer",
    [
        3,
        {"p0": 3},
        {"p0": ("p1", np.zeros(D, np.uint32))},
        {"p0": ("p0", np.zeros(D, np.uint64))},
        {"p0": ("p0", np.zeros(D + 1, np.uint32))},
        {"p0": ("p0", [0] * D)},
        {"p0": ("p0",)},
        {"p1": ("p1", np.ones(D, np.uint32))},
    ],
    ids=repr,
)
def test_a_plain_sum_takes_each_partys_own_vector_and_nothing_else(peers, answer):
    session, vectors = start(peers, masked=False)
    peers.say("basket:0", "contribute", answer)
    assert session.collect() == tuple(names(N)[1:])
    assert (session.unmask(0.0) == total(vectors, names(N)[1:])).all()
    assert len(session._calls.violations) == 1
    session.end()
    assert all(host.ended == [tuple(names(N)[1:])] for host in peers.roles.values())


def test_a_plain_sum_leaves_out_who_is_lost_and_equals_the_masked_one(peers):
    session, _ = start(peers, masked=False)
    peers.lose("basket:3", "contribute")
    assert session.collect() == ("p0", "p1", "p2", "p4")
    plain = session.unmask(0.0)
    masked, _ = start(peers)
    peers.faults.clear()
    peers.lose("basket:3", "advertise")
    masked.collect()
    assert plain.tobytes() == masked.unmask(0.0).tobytes()
    assert plain.dtype == np.uint32
