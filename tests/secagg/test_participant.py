"""What an honest party refuses, and what it keeps to itself."""

from __future__ import annotations

import copy
import gc
import pickle
from dataclasses import replace

import pytest

from scarcity_ray.errors import ProtocolViolation, UsageError
from scarcity_ray.secagg import IdentityKeyPair, Participant, Party, SessionContext, SessionGuard, State
from scarcity_ray.secagg.phases import COORDINATOR_TRANSITIONS, PARTICIPANT_TRANSITIONS

STEPS = tuple(PARTICIPANT_TRANSITIONS)


def arguments(session, step):
    """Sound arguments of ``step`` for basket_0, whatever its state."""
    coordinator = session.coordinator
    return {
        "advertise": lambda: (),
        "share_keys": lambda: (coordinator.adverts(),),
        "mask": lambda: (coordinator.inbox("basket_0"), session.vectors["basket_0"]),
        "confirm": lambda: (coordinator.survivors(),),
        "unmask": lambda: (coordinator.confirmations(),),
    }[step]()


@pytest.mark.parametrize("step", STEPS)
def test_steps_out_of_order_are_refused(session_of, step):
    """A whole session later, with arguments that are all sound: only the right step is taken, once."""
    session = session_of(3)
    session.until("unmask")
    reached = session_of(3, vectors=session.vectors).until(step).participants["basket_0"]
    for other in STEPS:
        if other != step:
            with pytest.raises(ProtocolViolation, match=f"cannot {other} when"):
                getattr(reached, other)(*arguments(session, other))


def test_transitions_are_one_line_from_first_to_last():
    for table in (PARTICIPANT_TRANSITIONS, COORDINATOR_TRANSITIONS):
        before = [pair[0] for pair in table.values()]
        after = [pair[1] for pair in table.values()]
        assert before[1:] == after[:-1]
        assert after[-1] == "done"


def test_unmasks_once(session_of):
    """Late unmasking, or a second survivor set: one attempt gives its shares once."""
    session = session_of(4).until("unmask")
    confirmations = session.coordinator.confirmations()
    participant = session.participants["basket_0"]
    participant.unmask(confirmations)
    with pytest.raises(ProtocolViolation, match="cannot unmask when done"):
        participant.unmask(confirmations)


def test_never_gives_both_shares_of_one_party(session_of):
    session = session_of(5, drops={"basket_3": "mask"}).until("unmask")
    confirmations = session.coordinator.confirmations()
    for party in session.alive("unmask"):
        given = session.participants[party].unmask(confirmations)
        assert set(given.seed_owners) == {"basket_0", "basket_1", "basket_2", "basket_4"}
        assert set(given.key_owners) == {"basket_3"}


def test_signs_one_survivor_set_only(session_of):
    """Membership splitting: a second set of survivors gets no second signature."""
    session = session_of(4).until("confirm")
    participant = session.participants["basket_0"]
    participant.confirm(session.coordinator.survivors())
    with pytest.raises(ProtocolViolation, match="cannot confirm when confirmed"):
        participant.confirm(("basket_0", "basket_1", "basket_2"))


def test_refuses_when_two_parties_were_shown_different_survivors(session_of):
    """Membership splitting: the coordinator shows basket_0 another set than the others."""
    session = session_of(4).until("confirm")
    shown = {p: ("basket_0", "basket_1", "basket_2", "basket_3") for p in session.participants}
    shown["basket_3"] = ("basket_0", "basket_1", "basket_3")
    confirmations = tuple(session.participants[p].confirm(shown[p]) for p in sorted(shown))
    for party in ("basket_0", "basket_1", "basket_2"):
        with pytest.raises(ProtocolViolation, match="'basket_3' confirmed another set"):
            session.participants[party].unmask(confirmations)
    with pytest.raises(ProtocolViolation, match="'basket_0' confirmed another set"):
        session.participants["basket_3"].unmask(tuple(confirmations[i] for i in (0, 1, 3)))
    with pytest.raises(ProtocolViolation, match="below the threshold"):
        session.participants["basket_3"].unmask(confirmations[3:])


def test_refuses_below_the_threshold(session_of):
    session = session_of(4, threshold=3)
    session.advertise()
    participant = session.participants["basket_0"]
    adverts = session.coordinator.adverts()
    with pytest.raises(ProtocolViolation, match="2 adverts are below the threshold of 3"):
        participant.share_keys(adverts[:2])
    session.share_keys()
    inbox = session.coordinator.inbox("basket_0")
    few = cut_inbox(replace(inbox, sharers=inbox.sharers[:2]), inbox.sharers[:2])
    with pytest.raises(ProtocolViolation, match="2 sharers are below the threshold of 3"):
        participant.mask(few, session.vectors["basket_0"])
    session.mask()
    with pytest.raises(ProtocolViolation, match="2 survivors are below the threshold of 3"):
        participant.confirm(("basket_0", "basket_1"))
    session.confirm()
    confirmations = session.coordinator.confirmations()
    with pytest.raises(ProtocolViolation, match="2 confirmations are below the threshold of 3"):
        participant.unmask(confirmations[:2])
    participant.unmask(confirmations)


@pytest.mark.parametrize("forged", ["basket_0", "basket_2"])
def test_forged_confirmations_are_refused(session_of, forged):
    """The coordinator signs in the place of a party, the victim's own name included."""
    session = session_of(4, threshold=3).until("unmask")
    confirmations = tuple(
        replace(message, signature=bytes(64)) if message.party_id == forged else message
        for message in session.coordinator.confirmations()
    )
    with pytest.raises(ProtocolViolation, match=f"'{forged}' carries a false signature"):
        session.participants["basket_0"].unmask(confirmations)


def cut_inbox(inbox, keep):
    """An inbox with the shares of some senders left out."""
    kept = [i for i, sender in enumerate(inbox.senders) if sender in keep]
    columns = ("senders", "sealed", "seed_share_commitments", "key_share_commitments")
    return replace(inbox, **{name: tuple(getattr(inbox, name)[i] for i in kept) for name in columns})


def test_an_inbox_that_withholds_shares_is_refused(session_of):
    session = session_of(4, threshold=3).until("mask")
    inbox = cut_inbox(session.coordinator.inbox("basket_0"), ("basket_0", "basket_1", "basket_2"))
    with pytest.raises(ProtocolViolation, match="exactly the shares"):
        session.participants["basket_0"].mask(inbox, session.vectors["basket_0"])


def test_an_inbox_of_another_party_or_session_is_refused(session_of):
    session = session_of(4, threshold=3).until("mask")
    participant, vector = session.participants["basket_0"], session.vectors["basket_0"]
    inbox = session.coordinator.inbox("basket_0")
    for wrong in (session.coordinator.inbox("basket_1"), replace(inbox, context_digest=bytes(32))):
        with pytest.raises(ProtocolViolation, match="another party's or another session's"):
            participant.mask(wrong, vector)


def test_sum_of_one_party_never(context_of):
    for num_parties in range(2, 12):
        with pytest.raises(UsageError, match="threshold"):
            context_of(num_parties, threshold=1)
        with pytest.raises(UsageError, match="threshold"):
            context_of(num_parties, threshold=num_parties // 2)
    with pytest.raises(UsageError, match="parties"):
        context_of(1, threshold=1)


def test_a_roster_that_changes_its_advert_is_refused(session_of, identity_of):
    """A coordinator that replays another of this party's own signed adverts in the place of the real one."""
    session = session_of(3)
    session.advertise()
    adverts = session.coordinator.adverts()
    other = Participant(session.context, "basket_0", identity_of(0)).advertise()
    with pytest.raises(ProtocolViolation, match="own advert"):
        session.participants["basket_0"].share_keys((other, *adverts[1:]))
    with pytest.raises(ProtocolViolation, match="leave this party out"):
        session.participants["basket_0"].share_keys(adverts[1:])


def test_a_forged_advert_is_refused(session_of):
    """A coordinator that puts its own keys in the place of a party's (man in the middle)."""
    session = session_of(3)
    session.advertise()
    adverts = list(session.coordinator.adverts())
    adverts[1] = replace(adverts[1], mask_public=adverts[2].mask_public)
    with pytest.raises(ProtocolViolation, match="false signature"):
        session.participants["basket_0"].share_keys(tuple(adverts))


def test_another_input_type_or_shape_is_the_callers_mistake(session_of):
    session = session_of(3).until("mask")
    inbox = session.coordinator.inbox("basket_0")
    vector = session.vectors["basket_0"]
    for wrong in (vector[:-1], vector.astype("uint64"), vector.astype(float), list(vector), vector[None]):
        with pytest.raises(UsageError):
            session.participants["basket_0"].mask(inbox, wrong)
    before = vector.copy()
    session.participants["basket_0"].mask(inbox, vector)
    assert (vector == before).all()


def test_foreign_sessions_are_refused(context_of, identity_of):
    context = context_of(3)
    stranger = IdentityKeyPair.generate()
    for wrong in (("basket_0", identity_of(1)), ("basket_0", stranger), ("stranger", stranger)):
        with pytest.raises(ProtocolViolation, match="does not name"):
            Participant(context, *wrong)
    with pytest.raises(ProtocolViolation, match="SessionContext"):
        Participant("context", "basket_0", identity_of(0))
    with pytest.raises(ProtocolViolation, match="another federation"):
        Participant(context, "basket_0", identity_of(0), guard=SessionGuard("ours"))


def test_sybils_are_refused_by_who_knows_the_parties(context_of, identity_of):
    """Small-group differencing with invented parties: the sum would be one honest input."""
    known = {f"basket_{i}": identity_of(i).public_bytes for i in range(3)}
    Participant(context_of(3), "basket_0", identity_of(0), known_parties=known)
    invented = Party("basket_1", IdentityKeyPair.generate().public_bytes)
    parties = (context_of(3).parties[0], invented, context_of(3).parties[2])
    with pytest.raises(ProtocolViolation, match="'basket_1' is not the party known"):
        Participant(context_of(3, parties=parties), "basket_0", identity_of(0), known_parties=known)
    with pytest.raises(ProtocolViolation, match="'basket_3' is not the party known"):
        Participant(context_of(4), "basket_0", identity_of(0), known_parties=known)


def test_a_party_that_was_given_another_model_does_not_join(context_of, identity_of):
    """Model inconsistency: the coordinator gives one party a model of its own, and the others' context."""
    context = context_of(3)
    Participant(context, "basket_0", identity_of(0), model_hash=context.model_hash)
    with pytest.raises(ProtocolViolation, match="another model"):
        Participant(context, "basket_0", identity_of(0), model_hash=bytes(32))


def test_parties_in_different_contexts_make_no_sum(session_of, context_of, identity_of):
    """Model inconsistency: the context differs as well; the adverts already contradict each other."""
    session = session_of(3)
    session.advertise()
    other = Participant(context_of(3, model_hash=bytes(32)), "basket_0", identity_of(0))
    other.advertise()
    with pytest.raises(ProtocolViolation):
        other.share_keys(session.coordinator.adverts())


def test_parties_shown_different_sharers_make_masks_that_do_not_cancel(session_of):
    """A split view of phase 2: the sum of what two views mask is noise, and the views are found out."""
    session = session_of(4, threshold=3).until("mask")
    full = session.coordinator.inbox("basket_0")
    cut = cut_inbox(replace(full, sharers=full.sharers[:3]), full.sharers[:3])
    message = session.participants["basket_0"].mask(cut, session.vectors["basket_0"])
    with pytest.raises(ProtocolViolation, match="another set of sharers"):
        session.coordinator.add_masked(message)
    survivors = ("basket_0", "basket_1", "basket_2")
    shown = [session.participants["basket_0"].confirm(survivors)]
    for party in survivors[1:]:
        session.participants[party].mask(session.coordinator.inbox(party), session.vectors[party])
        shown.append(session.participants[party].confirm(survivors))
    for party in survivors:
        with pytest.raises(ProtocolViolation, match="confirmed another set"):
            session.participants[party].unmask(tuple(shown))


def test_a_context_that_skipped_its_checks_is_refused(context_of, identity_of):
    """Unpickling does not run __post_init__."""
    context = context_of(3)
    object.__setattr__(context, "threshold", 1)
    with pytest.raises(ProtocolViolation, match="threshold"):
        Participant(context, "basket_0", identity_of(0))
    with pytest.raises(ProtocolViolation, match="malformed"):
        Participant(object.__new__(SessionContext), "basket_0", identity_of(0))


def secrets_of(participant):
    return {
        "seed": participant._keyring.seed,
        "scalar": participant._keyring.scalar,
        **{f"held {dealer}": held for dealer, held in participant._keyring.held.items()},
    }


@pytest.mark.parametrize("step", STEPS)
def test_keys_are_in_no_repr_and_no_pickle_and_wiped_on_close(session_of, step):
    session = session_of(3).until(step)
    participant = session.participants["basket_0"]
    secrets = secrets_of(participant)
    for secret in secrets.values():
        if any(secret):
            assert bytes(secret).hex() not in repr(participant)
            assert repr(bytes(secret)) not in repr(participant)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(UsageError):
            attempt(participant)
    participant.close()
    participant.close()
    assert not any(any(secret) for secret in secrets.values())
    assert participant.state is State.CLOSED
    with pytest.raises(ProtocolViolation, match="when closed"):
        getattr(participant, step)(*arguments(session_of(3).until("unmask"), step))


def test_each_secret_is_wiped_when_its_use_is_over(session_of):
    session = session_of(3).until("share_keys")
    keyring = session.participants["basket_0"]._keyring
    seed, scalar = keyring.seed, keyring.scalar
    assert any(scalar)
    session.share_keys()
    assert not any(scalar)
    assert any(seed)
    assert keyring.share_secrets
    assert keyring.mask_secrets
    session.open("mask")
    session.mask()
    assert not any(seed)
    assert not keyring.share_secrets
    assert not keyring.mask_secrets
    held = dict(keyring.held)
    assert all(any(shares) for shares in held.values())
    session.confirm()
    session.unmask()
    assert len(held) == 3
    assert not any(any(shares) for shares in held.values())
    assert keyring.held == {}


def test_a_keyring_shows_and_pickles_nothing(session_of):
    keyring = session_of(3).participants["basket_0"]._keyring
    assert repr(keyring) == "Keyring(...)"
    with pytest.raises(UsageError):
        pickle.dumps(keyring)


def test_leaving_the_with_block_closes(session_of):
    participant = session_of(3).participants["basket_0"]
    with participant:
        participant.advertise()
    assert participant.state is State.CLOSED


def test_no_two_attempts_share_a_key(session_of):
    one, two = session_of(3).until("share_keys"), session_of(3, attempt=1).until("share_keys")
    keys = [
        key
        for session in (one, two)
        for advert in session.coordinator.adverts()
        for key in (advert.cipher_public, advert.mask_public, advert.seed_commitment)
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.long
def test_holds_no_vector_but_the_sum(session_of):
    """The coordinator keeps no reference to a masked input, and never had a plain one."""
    session = session_of(4, dimension=4097).until("mask")
    for party, participant in session.participants.items():
        session.coordinator.add_masked(
            participant.mask(session.coordinator.inbox(party), session.vectors[party])
        )
    gc.collect()

    def reachable(root):
        seen, stack = {}, [root]
        while stack:
            item = stack.pop()
            if id(item) in seen or isinstance(item, type) or type(item).__name__ in ("module", "function"):
                continue
            seen[id(item)] = item
            stack.extend(gc.get_referents(item))
        return seen.values()

    vectors = [item for item in reachable(session.coordinator) if getattr(item, "nbytes", 0) >= 4097]
    assert [id(vector) for vector in vectors] == [id(session.coordinator._sum)]
