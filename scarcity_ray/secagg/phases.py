"""The five phases of an attempt, as the tables that participant and coordinator obey.

Bonawitz et al. 2017 call them advertise keys, share keys, masked input collection, consistency check and
unmasking. A participant::

    step        from        to          says                 learns
    advertise   NEW         ADVERTISED  Advert               nothing
    share_keys  ADVERTISED  SHARED      KeyShares            who is there, and their ephemeral keys
    mask        SHARED      MASKED      MaskedInput          who shared; one share of each of their secrets
    confirm     MASKED      CONFIRMED   Confirmation         whose inputs will be in the sum
    unmask      CONFIRMED   DONE        UnmaskShares         that enough others were shown the same set
    close       any         CLOSED      nothing              nothing; every key is wiped

and the coordinator::

    phase       takes              closed by        says                  checked on closing
    ADVERTISE   add_advert         adverts()        all adverts           the threshold
    SHARE_KEYS  add_key_shares     sharers()        inbox(p) for each     it, and that every sharer's
    MASK        add_masked         survivors()      ids in the sum        secrets can be rebuilt by those
    CONFIRM     add_confirmation   confirmations()  signed survivor sets  who have spoken in the phase
    UNMASK      add_unmask_shares  finish()         the sum
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """The states of a participant."""

    NEW = "new"
    ADVERTISED = "advertised"
    SHARED = "shared"
    MASKED = "masked"
    CONFIRMED = "confirmed"
    DONE = "done"
    CLOSED = "closed"


PARTICIPANT_TRANSITIONS: dict[str, tuple[State, State]] = {
    "advertise": (State.NEW, State.ADVERTISED),
    "share_keys": (State.ADVERTISED, State.SHARED),
    "mask": (State.SHARED, State.MASKED),
    "confirm": (State.MASKED, State.CONFIRMED),
    "unmask": (State.CONFIRMED, State.DONE),
}


class Phase(StrEnum):
    """The phases of the coordinator."""

    ADVERTISE = "advertise"
    SHARE_KEYS = "share_keys"
    MASK = "mask"
    CONFIRM = "confirm"
    UNMASK = "unmask"
    DONE = "done"
    ABORTED = "aborted"


COORDINATOR_TRANSITIONS: dict[str, tuple[Phase, Phase]] = {
    "adverts": (Phase.ADVERTISE, Phase.SHARE_KEYS),
    "sharers": (Phase.SHARE_KEYS, Phase.MASK),
    "survivors": (Phase.MASK, Phase.CONFIRM),
    "confirmations": (Phase.CONFIRM, Phase.UNMASK),
    "finish": (Phase.UNMASK, Phase.DONE),
}
PHASES = (Phase.ADVERTISE, Phase.SHARE_KEYS, Phase.MASK, Phase.CONFIRM, Phase.UNMASK, Phase.DONE)
