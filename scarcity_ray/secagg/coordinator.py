"""The coordinator's side of one attempt: it carries messages, sums masked inputs, and removes masks.

A method that closes a phase may be called again and gives the same answer; messages for a closed phase are
refused. Below the threshold the attempt aborts. Before `confirmations` is called no unmask share can exist:
an abort costs nothing, and the inputs may be used in another attempt. Afterwards they may not.

The coordinator holds one vector, the running sum, and never a plain input: each masked input is added and
dropped, and masks are removed from the sum alone. It learns the sum, and who dropped when.

It trusts no party. Messages that are malformed, late, doubled or falsely signed are refused with
`ProtocolViolation` and leave the attempt as it was. A party whose messages are refused counts as dropped.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NoReturn

import numpy as np

from scarcity_ray.errors import ProtocolViolation, SecureAggregationAborted, UsageError
from scarcity_ray.secagg import commitments
from scarcity_ray.secagg.context import SessionContext
from scarcity_ray.secagg.dealing import Unmasking, gather, require_dealt_to
from scarcity_ray.secagg.fixed_point import RingArray, ring_dtype
from scarcity_ray.secagg.graph import Graph
from scarcity_ray.secagg.key_agreement import agree, private_key_from
from scarcity_ray.secagg.masking import apply_masks, terms_to_remove
from scarcity_ray.secagg.messages import (
    Advert,
    Confirmation,
    Inbox,
    KeyShares,
    MaskedInput,
    SignedMessage,
    UnmaskShares,
    checked,
)
from scarcity_ray.secagg.phases import COORDINATOR_TRANSITIONS, PHASES, Phase

_PROBE = private_key_from(bytes(32))
"""Agrees with every key but those of low order."""


class Coordinator:
    """The coordinator of one attempt.

    Guarantees:
        sum_is_exact_for_every_dropout_pattern_down_to_the_threshold
        aborts_below_the_threshold_in_every_phase
        abort_is_retryable_until_confirmations_are_handed_out
        refused_messages_change_nothing
        holds_no_vector_but_the_sum
    """

    def __init__(self, context: SessionContext) -> None:
        context.check()
        self._context = context
        self._digest = context.digest()
        self._keys = context.keys()
        self._phase = Phase.ADVERTISE
        self._aborted: SecureAggregationAborted | None = None
        self._adverts: dict[str, Advert] = {}
        self._key_shares: dict[str, KeyShares] = {}
        self._masked: set[str] = set()
        self._confirmations: dict[str, Confirmation] = {}
        self._unmasking: Unmasking | None = None
        self._roster_digest = self._sharers_digest = self._survivors_digest = b""
        self._graph: Graph | None = None
        self._sum: RingArray | None = None

    @property
    def phase(self) -> Phase:
        """The phase whose messages it takes now."""
        return self._phase

    def awaited(self) -> tuple[str, ...]:
        """Sorted ids of the parties whose message the present phase still lacks."""
        if self._phase not in PHASES[:-1]:
            return ()
        return tuple(sorted(set(self._expected(self._phase)) - set(self._heard(self._phase))))

    def add_advert(self, advert: Advert) -> None:
        """Takes a party's advert."""
        message = checked(advert, Advert)
        self._accept(message, Phase.ADVERTISE)
        agree(_PROBE, message.cipher_public)
        agree(_PROBE, message.mask_public)
        self._adverts[message.party_id] = message

    def adverts(self) -> tuple[Advert, ...]:
        """Closes the roster: all adverts in the order of their ids, for every party that advertised."""
        if self._closes("adverts"):
            roster = tuple(sorted(self._adverts))
            self._roster_digest = commitments.roster_digest(self._digest, self._adverts.values())
            self._graph = Graph(self._context, roster, self._roster_digest)
        return tuple(self._adverts[party] for party in sorted(self._adverts))

    def add_key_shares(self, key_shares: KeyShares) -> None:
        """Takes a party's encrypted shares."""
        message = checked(key_shares, KeyShares)
        self._accept(message, Phase.SHARE_KEYS)
        if message.roster_digest != self._roster_digest:
            raise ProtocolViolation(f"{message.party_id!r} shared its keys for another roster")
        require_dealt_to(message, self._neighbourhoods().neighbourhood(message.party_id))
        self._key_shares[message.party_id] = message

    def sharers(self) -> tuple[str, ...]:
        """Closes the set of those who shared their keys: sorted ids of who is to be given an inbox."""
        ids = tuple(sorted(self._key_shares))
        if self._closes("sharers"):
            self._sharers_digest = commitments.sharers_digest(self._roster_digest, ids)
            self._sum = np.zeros(self._context.dimension, dtype=ring_dtype(self._context.ring_bits))
        return ids

    def inbox(self, party_id: str) -> Inbox:
        """The shares that one sharer is to hold, and who shared; closes the set of sharers if it is open."""
        sharers = self.sharers()
        if party_id not in self._key_shares:
            raise UsageError(f"{party_id!r} did not share its keys, so it has no inbox")
        senders = self._neighbourhoods().present(party_id, self._key_shares)
        dealt = {sender: self._key_shares[sender] for sender in senders}
        return gather(party_id, self._digest, sharers, dealt)

    def add_masked(self, masked: MaskedInput) -> None:
        """Takes a party's masked input: adds it to the sum in place, and keeps no reference to it."""
        message = checked(masked, MaskedInput)
        if self._sum is not None and (
            message.vector.dtype != self._sum.dtype or message.vector.shape != self._sum.shape
        ):
            raise ProtocolViolation(f"the masked input of {message.party_id!r} has another type or shape")
        self._accept(message, Phase.MASK)
        if message.sharers_digest != self._sharers_digest:
            raise ProtocolViolation(f"{message.party_id!r} masked its input for another set of sharers")
        total = self._running_sum()
        np.add(total, message.vector, out=total)
        self._masked.add(message.party_id)

    def survivors(self) -> tuple[str, ...]:
        """Closes the sum: sorted ids of those whose masked inputs are in it."""
        ids = tuple(sorted(self._masked))
        if self._closes("survivors"):
            self._survivors_digest = commitments.survivors_digest(self._sharers_digest, ids)
        return ids

    def add_confirmation(self, confirmation: Confirmation) -> None:
        """Takes a party's signed set of survivors."""
        message = checked(confirmation, Confirmation)
        self._accept(message, Phase.CONFIRM)
        if message.survivors_digest != self._survivors_digest:
            raise ProtocolViolation(f"{message.party_id!r} confirmed another set of survivors")
        self._confirmations[message.party_id] = message

    def confirmations(self) -> tuple[Confirmation, ...]:
        """Hands out the signed sets of survivors; parties may answer with unmask shares from then on.

        So a privacy charge must be durable before this is called, and a later abort is not retryable.
        """
        if self._closes("confirmations"):
            self._unmasking = Unmasking(
                self._context,
                self._digest,
                self._roster_digest,
                self._neighbourhoods(),
                self._adverts,
                self._key_shares,
                frozenset(self._masked),
            )
        return tuple(self._confirmations[party] for party in sorted(self._confirmations))

    def add_unmask_shares(self, unmask_shares: UnmaskShares) -> None:
        """Takes a party's shares, each of which must be the one that its owner committed to."""
        message = checked(unmask_shares, UnmaskShares)
        self._accept(message, Phase.UNMASK)
        if message.survivors_digest != self._survivors_digest:
            raise ProtocolViolation(f"{message.party_id!r} unmasks for another set of survivors")
        self._shares().add(message)

    def finish(self) -> RingArray:
        """Removes every mask and hands over the sum mod 2**bits, once.

        Returns:
            uint32 or uint64 (d,), the exact sum of the survivors' inputs.
        """
        if self._phase is Phase.DONE:
            raise UsageError("the sum of this attempt was handed over before")
        self._closes("finish")
        total = self._running_sum()
        try:
            seeds, scalars = self._shares().rebuild()
        except ProtocolViolation as fault:
            self._abort(str(fault))
        terms = terms_to_remove(
            seeds, scalars, self._neighbourhoods(), self._masked, self._adverts, self._sharers_digest
        )
        apply_masks(total, terms)
        self._sum = None
        self._drop_messages()
        return total

    def require_threshold(self, phase: Phase | str) -> None:
        """Aborts unless enough parties have spoken in ``phase``, and can rebuild every secret in use.

        Raises:
            SecureAggregationAborted: with ``retryable`` true until confirmations were handed out.
        """
        if self._aborted is not None:
            raise self._aborted
        wanted = Phase(phase)
        heard = self._heard(wanted)
        least = self._context.threshold
        if len(heard) < least:
            self._abort(f"phase {wanted.value}: {len(heard)} parties, below the threshold of {least}")
        if wanted is not Phase.ADVERTISE:
            lost = self._neighbourhoods().uncovered(heard).intersection(self._key_shares)
            if lost:
                self._abort(f"phase {wanted.value}: too few hold shares of {min(lost)!r} to rebuild its mask")

    def close(self) -> None:
        """Drops the sum and every message; an attempt that was not finished is aborted."""
        if self._phase is not Phase.DONE and self._aborted is None:
            self._aborted = self._abortion("the attempt was closed")
            self._phase = Phase.ABORTED
        self._sum = None
        self._drop_messages()

    def __repr__(self) -> str:
        return f"Coordinator(phase={self._phase.value!r}, heard={len(self._heard(self._phase))})"

    def _accept(self, message: SignedMessage, phase: Phase) -> None:
        """Refuses what is late, early, doubled, of a party that should be silent, or not authentic."""
        if self._aborted is not None:
            raise self._aborted
        kind = type(message).__name__
        if self._phase is not phase:
            raise ProtocolViolation(f"a {kind} is not taken in phase {self._phase.value!r}")
        if message.party_id not in self._expected(phase):
            raise ProtocolViolation(f"a {kind} of {message.party_id!r} is not awaited")
        if message.party_id in self._heard(phase):
            raise ProtocolViolation(f"a second {kind} of {message.party_id!r}")
        commitments.require_authentic(self._keys, self._digest, message)

    def _closes(self, step: str) -> bool:
        """Whether this call closes the phase, after checking that it may; False if it was closed before."""
        if self._aborted is not None:
            raise self._aborted
        before, after = COORDINATOR_TRANSITIONS[step]
        if PHASES.index(self._phase) < PHASES.index(before):
            raise UsageError(f"{step}() comes after phase {before.value!r}; this is {self._phase.value!r}")
        if self._phase is not before:
            return False
        self.require_threshold(before)
        self._phase = after
        return True

    def _expected(self, phase: Phase) -> Collection[str]:
        """The parties that may send in a phase: those that sent in the one before."""
        if phase is Phase.ADVERTISE:
            return self._keys
        return self._heard(PHASES[PHASES.index(phase) - 1])

    def _heard(self, phase: Phase) -> Collection[str]:
        heard: dict[Phase, Collection[str]] = {
            Phase.ADVERTISE: self._adverts,
            Phase.SHARE_KEYS: self._key_shares,
            Phase.MASK: self._masked,
            Phase.CONFIRM: self._confirmations,
        }
        return heard.get(phase, self._unmasking.holders if self._unmasking else ())

    def _shares(self) -> Unmasking:
        if self._unmasking is None:
            raise UsageError("nothing was unmasked yet, or no longer")
        return self._unmasking

    def _neighbourhoods(self) -> Graph:
        if self._graph is None:
            raise UsageError("the roster is not closed yet; call adverts() first")
        return self._graph

    def _running_sum(self) -> RingArray:
        if self._sum is None:
            raise UsageError("there is no sum yet, or no longer")
        return self._sum

    def _abortion(self, reason: str) -> SecureAggregationAborted:
        return SecureAggregationAborted(reason, retryable=self._phase not in (Phase.UNMASK, Phase.DONE))

    def _abort(self, reason: str) -> NoReturn:
        self._aborted = self._abortion(reason)
        self._phase = Phase.ABORTED
        self._sum = None
        self._drop_messages()
        raise self._aborted

    def _drop_messages(self) -> None:
        self._key_shares, self._unmasking = {}, None
