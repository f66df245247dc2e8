"""Forged, malformed, replayed, doubled, late and reordered messages are refused, and change nothing."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from scarcity_ray.errors import ProtocolViolation, SecureAggregationAborted, UsageError
from scarcity_ray.secagg import Advert, Participant

STEPS = ("advertise", "share_keys", "mask", "confirm", "unmask")
TAKES = {
    "advertise": "add_advert",
    "share_keys": "add_key_shares",
    "mask": "add_masked",
    "confirm": "add_confirmation",
    "unmask": "add_unmask_shares",
}
HOSTILE = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.just("\ud800"),
    st.binary(max_size=100),
    st.just(bytearray(32)),
    st.lists(st.binary(max_size=3), max_size=2),
    st.tuples(st.binary(max_size=40)),
    st.tuples(st.text(max_size=3), st.text(max_size=3)),
    st.just(()),
    st.just(np.zeros(5, dtype=np.float64)),
    st.just(np.array([None, "x"], dtype=object)),
    st.just(np.zeros((1, 5), dtype=np.uint32)),
    st.just(np.zeros(4, dtype=np.uint32)),
    st.just(np.zeros(5, dtype=np.uint64)),
    st.just(np.zeros(5, dtype=">u4")),
    st.just(np.zeros(10, dtype=np.uint32)[::2]),
)


def say(session, party, step):
    """What ``party`` says at ``step``, without handing it to the coordinator."""
    coordinator, participant = session.coordinator, session.participants[party]
    match step:
        case "advertise":
            return participant.advertise()
        case "share_keys":
            return participant.share_keys(coordinator.adverts())
        case "mask":
            return participant.mask(coordinator.inbox(party), session.vectors[party])
        case "confirm":
            return participant.confirm(coordinator.survivors())
        case _:
            return participant.unmask(coordinator.confirmations())


FEWER = settings(
    max_examples=settings.default.max_examples // 3,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
"""Of each step."""


def expected_sum(session, parties=None):
    return np.sum([session.vectors[p] for p in parties or session.vectors], axis=0, dtype=np.uint32)


@pytest.mark.parametrize("step", STEPS)
@FEWER
@given(data=st.data())
def test_refused_messages_change_nothing(session_of, step, data):
    """Any field of any message replaced by anything else, at the coordinator."""
    session = session_of(3).until(step)
    take = getattr(session.coordinator, TAKES[step])
    messages = [say(session, party, step) for party in sorted(session.participants)]
    name = data.draw(st.sampled_from([field.name for field in fields(messages[0])]))
    hostile = data.draw(HOSTILE)
    assume(repr(hostile) != repr(getattr(messages[0], name)))
    with pytest.raises(ProtocolViolation):
        take(replace(messages[0], **{name: hostile}))
    with pytest.raises(ProtocolViolation):
        take(data.draw(HOSTILE))
    for message in messages:
        take(message)
    for later in STEPS[STEPS.index(step) + 1 :]:
        getattr(session, later)()
    np.testing.assert_array_equal(session.coordinator.finish(), expected_sum(session))


@pytest.mark.parametrize("step", STEPS[1:])
@FEWER
@given(data=st.data())
def test_refused_answers_of_the_coordinator_change_nothing(session_of, step, data):
    """Any field of what the coordinator says replaced by anything else, at the participant."""
    session = session_of(3).until(step)
    coordinator, victim = session.coordinator, session.participants["basket_0"]
    index = data.draw(st.integers(0, 2))
    hostile = data.draw(HOSTILE)

    def spoil(batch: tuple) -> object:
        shape = data.draw(st.sampled_from(["field", "item", "batch", "short", "double"]))
        if shape == "field":
            name = data.draw(st.sampled_from([field.name for field in fields(batch[index])]))
            return (*batch[:index], replace(batch[index], **{name: hostile}), *batch[index + 1 :])
        if shape == "item":
            return (*batch[:index], hostile, *batch[index + 1 :])
        if shape == "short":
            return batch[:1]
        return (*batch, batch[0]) if shape == "double" else hostile

    match step:
        case "share_keys":
            spoiled = spoil(coordinator.adverts())
            with pytest.raises(ProtocolViolation):
                victim.share_keys(spoiled)
        case "mask":
            inbox = coordinator.inbox("basket_0")
            name = data.draw(st.sampled_from([field.name for field in fields(inbox)]))
            with pytest.raises(ProtocolViolation):
                victim.mask(replace(inbox, **{name: hostile}), session.vectors["basket_0"])
        case "confirm":
            survivors = coordinator.survivors()
            for bad in (
                hostile,
                survivors[:1],
                survivors[::-1],
                (*survivors, survivors[-1]),
                (*survivors, hostile),
            ):
                with pytest.raises(ProtocolViolation):
                    victim.confirm(bad)
        case _:
            spoiled = spoil(coordinator.confirmations())
            with pytest.raises(ProtocolViolation):
                victim.unmask(spoiled)
    for later in STEPS[STEPS.index(step) :]:
        getattr(session, later)()
    np.testing.assert_array_equal(coordinator.finish(), expected_sum(session))


@pytest.mark.parametrize("step", STEPS)
def test_a_single_flipped_bit_anywhere_is_refused(session_of, step):
    session = session_of(3).until(step)
    take = getattr(session.coordinator, TAKES[step])
    message = say(session, "basket_0", step)
    for field in fields(message):
        value = getattr(message, field.name)
        if isinstance(value, bytes):
            changed = bytes([value[0] ^ 1]) + value[1:]
        elif isinstance(value, tuple) and value and isinstance(value[0], bytes):
            changed = (bytes([value[0][0] ^ 1]) + value[0][1:], *value[1:])
        elif isinstance(value, np.ndarray):
            changed = value.copy()
            changed[0] ^= 1
        else:
            continue
        with pytest.raises(ProtocolViolation):
            take(replace(message, **{field.name: changed}))
    take(message)


@pytest.mark.parametrize("step", STEPS)
def test_forged_messages_are_refused(session_of, step):
    """Another party's message under this party's name, its signature included."""
    session = session_of(3).until(step)
    take = getattr(session.coordinator, TAKES[step])
    message = say(session, "basket_1", step)
    for name in ("basket_0", "stranger"):
        with pytest.raises(ProtocolViolation):
            take(replace(message, party_id=name))


@pytest.mark.parametrize("step", STEPS)
def test_replayed_messages_of_another_attempt_are_refused(session_of, step):
    first, second = session_of(3).until(step), session_of(3, attempt=1).until(step)
    message = say(first, "basket_0", step)
    with pytest.raises(ProtocolViolation, match="another session"):
        getattr(second.coordinator, TAKES[step])(message)


@pytest.mark.parametrize("step", STEPS)
def test_doubled_messages_are_refused(session_of, step):
    session = session_of(3).until(step)
    take = getattr(session.coordinator, TAKES[step])
    message = say(session, "basket_0", step)
    take(message)
    with pytest.raises(ProtocolViolation, match="a second"):
        take(message)


@pytest.mark.parametrize("step", STEPS[:-1])
def test_late_messages_are_refused_and_are_not_in_the_sum(session_of, step):
    session = session_of(4, drops={"basket_0": step}, threshold=3).until(step)
    message = say(session, "basket_0", step)
    getattr(session, step)()
    getattr(session, STEPS[STEPS.index(step) + 1])()
    with pytest.raises(ProtocolViolation, match="not taken in phase"):
        getattr(session.coordinator, TAKES[step])(message)
    for later in STEPS[STEPS.index(step) + 2 :]:
        getattr(session, later)()
    total = session.coordinator.finish()
    in_sum = session.vectors if step == "confirm" else [p for p in session.vectors if p != "basket_0"]
    np.testing.assert_array_equal(total, expected_sum(session, in_sum))


@settings(max_examples=settings.default.max_examples // 3)
@given(order=st.permutations(range(5)))
def test_order_within_a_phase_does_not_matter(session_of, order):
    session = session_of(5)
    for step in STEPS:
        session.open(step)
        messages = [say(session, f"basket_{i}", step) for i in order]
        for message in messages:
            getattr(session.coordinator, TAKES[step])(message)
    np.testing.assert_array_equal(session.coordinator.finish(), expected_sum(session))


@pytest.mark.parametrize("step", STEPS)
def test_messages_of_another_phase_are_refused(session_of, step):
    session = session_of(3).until(step)
    message = say(session, "basket_0", step)
    for other, take in TAKES.items():
        if other != step:
            with pytest.raises(ProtocolViolation):
                getattr(session.coordinator, take)(message)


def test_a_party_that_fell_silent_is_not_heard_again(session_of):
    session = session_of(4, drops={"basket_0": "share_keys"}).until("mask")
    with pytest.raises(UsageError, match="no inbox"):
        session.coordinator.inbox("basket_0")


def test_low_order_keys_are_refused_at_the_door(session_of, identity_of):
    """A key of order 1, signed by its party: it would make every peer's secret zero."""
    session = session_of(3)
    advert = session.participants["basket_0"].advertise()
    for name in ("cipher_public", "mask_public"):
        bad = replace(advert, **{name: bytes(32)})
        bad = replace(bad, signature=identity_of(0).sign(bad.signed_content()))
        with pytest.raises(ProtocolViolation, match="low order"):
            session.coordinator.add_advert(bad)


def test_messages_survive_pickling(session_of):
    """They are carried through Ray: plain records, equal after the journey."""
    session = session_of(3)
    for step in STEPS:
        session.open(step)
        for party in sorted(session.participants):
            message = pickle.loads(pickle.dumps(say(session, party, step)))
            getattr(session.coordinator, TAKES[step])(message)
    np.testing.assert_array_equal(session.coordinator.finish(), expected_sum(session))


def test_read_only_vectors_are_taken(session_of):
    """Ray hands out read-only arrays."""
    session = session_of(3).until("mask")
    for party, vector in session.vectors.items():
        vector.flags.writeable = False
        message = say(session, party, "mask")
        message.vector.flags.writeable = False
        session.coordinator.add_masked(message)
    session.confirm()
    session.unmask()
    np.testing.assert_array_equal(session.coordinator.finish(), expected_sum(session))


def test_an_incomplete_record_is_refused(session_of):
    """Unpickling can make records without their fields."""
    with pytest.raises(ProtocolViolation, match="malformed"):
        session_of(3).coordinator.add_advert(object.__new__(Advert))


def test_a_false_share_is_found_and_the_others_suffice(session_of, identity_of):
    session = session_of(4, threshold=3).until("unmask")
    messages = {p: say(session, p, "unmask") for p in sorted(session.participants)}
    liar = messages.pop("basket_1")
    false = replace(liar, seed_shares=(bytes(34), *liar.seed_shares[1:]))
    false = replace(false, signature=identity_of(1).sign(false.signed_content()))
    with pytest.raises(ProtocolViolation, match="'basket_1' gave a false share of 'basket_0'"):
        session.coordinator.add_unmask_shares(false)
    for message in messages.values():
        session.coordinator.add_unmask_shares(message)
    np.testing.assert_array_equal(session.coordinator.finish(), expected_sum(session))


def test_swapped_shares_are_found(session_of, identity_of):
    """Share swapping: one owner's share in the place of another's, signed by its holder."""
    session = session_of(4).until("unmask")
    message = say(session, "basket_2", "unmask")
    first, second, *rest = message.seed_shares
    swapped = replace(message, seed_shares=(second, first, *rest))
    swapped = replace(swapped, signature=identity_of(2).sign(swapped.signed_content()))
    with pytest.raises(ProtocolViolation, match="false share"):
        session.coordinator.add_unmask_shares(swapped)


def test_a_coordinator_that_swaps_sealed_shares_is_found(session_of):
    session = session_of(4).until("mask")
    inbox = session.coordinator.inbox("basket_0")
    first, second, *rest = inbox.sealed
    with pytest.raises(ProtocolViolation, match="do not decrypt"):
        session.participants["basket_0"].mask(
            replace(inbox, sealed=(second, first, *rest)), session.vectors["basket_0"]
        )


def signed_by(identity, message):
    return replace(message, signature=identity.sign(message.signed_content()))


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_party_that_dropped_does_not_speak_again(session_of, identity_of, step):
    """basket_0 drops one step earlier, and then sends what it should not be able to, soundly signed."""
    before = STEPS[STEPS.index(step) - 1]
    session = session_of(4, drops={"basket_0": before}, threshold=3).until(step)
    other = say(session, "basket_1", step)
    message = signed_by(identity_of(0), replace(other, party_id="basket_0"))
    with pytest.raises(ProtocolViolation, match="is not awaited"):
        getattr(session.coordinator, TAKES[step])(message)


def test_shares_for_another_roster_are_refused(session_of, identity_of):
    session = session_of(3).until("share_keys")
    message = replace(say(session, "basket_0", "share_keys"), roster_digest=bytes(32))
    with pytest.raises(ProtocolViolation, match="another roster"):
        session.coordinator.add_key_shares(signed_by(identity_of(0), message))


def test_shares_for_other_holders_are_refused(session_of, identity_of):
    session = session_of(3).until("share_keys")
    message = say(session, "basket_0", "share_keys")
    columns = ("holders", "sealed", "seed_share_commitments", "key_share_commitments")
    for wrong in (
        replace(message, holders=message.holders[::-1]),
        replace(message, sealed=message.sealed[:-1]),
        replace(message, seed_share_commitments=message.seed_share_commitments[:-1]),
        replace(message, key_share_commitments=(*message.key_share_commitments, bytes(32))),
        replace(message, **{name: getattr(message, name)[:2] for name in columns}),
    ):
        with pytest.raises(ProtocolViolation, match="exactly its neighbourhood"):
            session.coordinator.add_key_shares(signed_by(identity_of(0), wrong))
    session.coordinator.add_key_shares(message)


def test_a_confirmation_of_another_set_is_refused(session_of):
    session = session_of(4, threshold=3).until("confirm")
    other = session.participants["basket_0"].confirm(("basket_0", "basket_1", "basket_2"))
    with pytest.raises(ProtocolViolation, match="'basket_0' confirmed another set"):
        session.coordinator.add_confirmation(other)


def test_shares_for_another_set_or_of_other_parties_are_refused(session_of, identity_of):
    session = session_of(4, threshold=3, drops={"basket_3": "mask"}).until("unmask")
    message = say(session, "basket_0", "unmask")
    other = replace(message, survivors_digest=bytes(32))
    with pytest.raises(ProtocolViolation, match="another set of survivors"):
        session.coordinator.add_unmask_shares(signed_by(identity_of(0), other))
    for wrong in (
        replace(message, seed_owners=message.seed_owners[:-1], seed_shares=message.seed_shares[:-1]),
        replace(message, seed_shares=message.seed_shares[:-1]),
        replace(message, key_owners=(), key_shares=()),
        replace(message, seed_owners=message.seed_owners[::-1]),
        replace(message, key_owners=("basket_2",)),
        replace(message, key_shares=()),
        replace(
            message,
            seed_owners=(*message.seed_owners, "basket_3"),
            seed_shares=(*message.seed_shares, *message.key_shares),
        ),
    ):
        with pytest.raises(ProtocolViolation, match="exactly the shares"):
            session.coordinator.add_unmask_shares(signed_by(identity_of(0), wrong))
    session.coordinator.add_unmask_shares(message)


class InconsistentDealer(Participant):
    """Shares out another seed than it committed to and masks with."""

    def share_keys(self, adverts):
        seed = bytes(self._keyring.seed)
        self._keyring.seed[:] = bytes(32)
        message = super().share_keys(adverts)
        self._keyring.seed[:] = seed
        return message


class InconsistentKeyDealer(Participant):
    """Shares out another mask key than the one whose public half it announced."""

    def share_keys(self, adverts):
        self._keyring.scalar[:] = bytes(range(32))
        return super().share_keys(adverts)


@pytest.mark.parametrize(
    ("kind", "drops"), [(InconsistentDealer, {}), (InconsistentKeyDealer, {"basket_3": "mask"})]
)
def test_a_dealer_whose_shares_do_not_rebuild_is_named_and_nothing_comes_out(session_of, kind, drops):
    session = session_of(4, kinds={"basket_3": kind}, drops=drops, threshold=3)
    with pytest.raises(
        SecureAggregationAborted, match="'basket_3' dealt shares that do not rebuild"
    ) as caught:
        session.run()
    assert not caught.value.retryable
    assert session.coordinator._sum is None


class WrongDealer(Participant):
    """Deals shares that contradict its own commitments."""

    def share_keys(self, adverts):
        message = super().share_keys(adverts)
        commitments = message.seed_share_commitments
        message = replace(message, seed_share_commitments=(commitments[1], commitments[0], *commitments[2:]))
        return replace(message, signature=self._identity.sign(message.signed_content()))


def test_a_dealer_that_contradicts_itself_is_named_before_anything_is_unmasked(session_of):
    session = session_of(4, kinds={"basket_3": WrongDealer}).until("mask")
    inbox = session.coordinator.inbox("basket_0")
    with pytest.raises(ProtocolViolation, match="'basket_3' contradict its commitments"):
        session.participants["basket_0"].mask(inbox, session.vectors["basket_0"])
