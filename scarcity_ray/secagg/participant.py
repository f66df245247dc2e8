"""One party's side of one attempt: a state machine of messages, without I/O or clock.

A step that is out of order, or whose input is not sound, raises `ProtocolViolation`, says nothing, and
leaves the state as it was. A step that succeeds cannot be repeated: one attempt gives one answer a phase.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import NoReturn

import numpy as np

from scarcity_ray.errors import ProtocolViolation, UsageError
from scarcity_ray.secagg import commitments
from scarcity_ray.secagg.admission import SessionGuard
from scarcity_ray.secagg.commitments import Secret
from scarcity_ray.secagg.context import SessionContext
from scarcity_ray.secagg.dealing import deal, halves, open_shares
from scarcity_ray.secagg.fixed_point import RingArray, ring_dtype
from scarcity_ray.secagg.key_agreement import Agreements, Entropy
from scarcity_ray.secagg.keyring import Keyring
from scarcity_ray.secagg.masking import MaskTerm, apply_masks, terms_to_apply
from scarcity_ray.secagg.messages import (
    Advert,
    Confirmation,
    Inbox,
    KeyShares,
    MaskedInput,
    S,
    UnmaskShares,
    checked,
)
from scarcity_ray.secagg.phases import PARTICIPANT_TRANSITIONS, State
from scarcity_ray.secagg.public_view import Listed, PublicView
from scarcity_ray_client.identity import IdentityKeyPair


class Participant:
    """A party of one attempt. Usable as a context manager, which closes it.

    Guarantees:
        steps_out_of_order_are_refused
        unmasks_once
        never_gives_both_shares_of_one_party
        refuses_below_the_threshold
        masked_input_is_uniform_to_whoever_lacks_one_mask
        keys_are_in_no_repr_and_no_pickle_and_wiped_on_close
    """

    def __init__(
        self,
        context: SessionContext,
        party_id: str,
        identity: IdentityKeyPair,
        *,
        entropy: Entropy = os.urandom,
        guard: SessionGuard | None = None,
        known_parties: Mapping[str, bytes] | None = None,
        model_hash: bytes | None = None,
        view: PublicView | None = None,
        agreements: Agreements | None = None,
    ) -> None:
        """Enters an attempt.

        Args:
            context: As the coordinator announced it; not trusted.
            entropy: Gives that many unpredictable bytes. Anything but the operating system's is for tests.
            guard: This identity's memory of earlier sessions; without it a repeated session goes unnoticed.
            known_parties: Identity keys by id, from a source that is not the coordinator. With it a session
                that names a stranger, or another key for a known id, is refused.
            model_hash: Hash of the model that this party started from, computed by itself. With it, a context
                about another model is refused.
            view: What this party's host has checked of the same context for all parties that it hosts; None:
                this party checks for itself.
            agreements: What this party's host has agreed on in this attempt for the parties that it hosts;
                None: this party's own.

        Raises:
            ProtocolViolation: if the context is not one that this party may join.
        """
        view = PublicView(context) if view is None or view.context is not context else view
        if view.keys.get(party_id) != identity.public_bytes:
            raise ProtocolViolation(f"this session does not name {party_id!r} with this identity")
        if model_hash is not None and context.model_hash != model_hash:
            raise ProtocolViolation("this session is about another model than this party was given")
        if known_parties is not None:
            view.require_known(known_parties)
        if guard is not None:
            guard.admit(context)
        self._guard = guard
        self._view = view
        self._context = context
        self._digest = view.digest
        self._party_id = party_id
        self._identity = identity
        self._entropy = entropy
        self._state = State.NEW
        self._keyring = Keyring(entropy, agreements)

    @property
    def state(self) -> State:
        """The last step that it completed."""
        return self._state

    def advertise(self) -> Advert:
        """Phase 1: makes this attempt's keys and seed, and announces their public side."""
        after = self._next("advertise")
        keys, me = self._keyring, self._party_id
        seed = commitments.commit_to_seed(self._digest, me, bytes(keys.seed))
        self._advert = self._signed(Advert(me, self._digest, keys.cipher_public, keys.mask_public, seed))
        self._state = after
        return self._advert

    def share_keys(self, adverts: tuple[Advert, ...]) -> KeyShares:
        """Phase 2: shares both secrets out among its neighbourhood.

        Args:
            adverts: The adverts of all who are taking part, its own among them.

        Raises:
            ProtocolViolation: below the threshold; if its own advert is missing or changed; if a
                neighbour's is forged or of another session.
        """
        after = self._next("share_keys")
        roll = self._view.roll(adverts)
        self._require_listed(roll.adverts, "adverts")
        if roll.adverts.get(self._party_id) != self._advert:
            raise ProtocolViolation("the roster lacks this party's own advert, or changes it")
        holders = roll.graph.neighbourhood(self._party_id)
        self._view.require_authentic(roll.adverts[holder] for holder in holders)
        self._keyring.agree_with(roll.adverts[holder] for holder in holders)
        message = deal(
            self._party_id,
            {Secret.SEED: self._keyring.seed, Secret.KEY: self._keyring.scalar},
            {holder: roll.graph.points[holder] for holder in holders},
            self._context.rebuild_threshold,
            self._keyring.share_secrets,
            self._digest,
            roll.digest,
            self._entropy,
        )
        self._roll = roll
        self._keyring.wipe_private_keys()
        self._state = after
        return self._signed(message)

    def mask(self, inbox: Inbox, vector: RingArray) -> MaskedInput:
        """Phase 3: checks the shares it was sent, and masks its input.

        Args:
            inbox: Its neighbours' shares, and who shared at all.
            vector: Its input in the ring, uint32 or uint64 (d,); not changed.

        Raises:
            UsageError: if ``vector`` has another type or shape than the context says.
            ProtocolViolation: below the threshold; if shares do not decrypt or contradict their dealer's
                commitments.
        """
        after = self._next("mask")
        context = self._context
        if not isinstance(vector, np.ndarray) or vector.dtype != ring_dtype(context.ring_bits):
            raise UsageError(f"the input must be a uint{context.ring_bits} array")
        if vector.shape != (context.dimension,):
            raise UsageError(f"the input must have shape ({context.dimension},), not {vector.shape}")
        sharers = self._view.sharers(self._roll, checked(inbox, Inbox).sharers)
        held = self._open(inbox, sharers)
        masked: RingArray = np.array(vector, order="C")
        apply_masks(masked, self._mask_terms(sharers.digest, inbox.senders))
        message = self._signed(MaskedInput(self._party_id, self._digest, sharers.digest, masked))
        self._keyring.wipe_mask_secrets()
        self._keyring.held = held
        self._sharers = sharers
        self._state = after
        return message

    def confirm(self, survivors: tuple[str, ...]) -> Confirmation:
        """Phase 4: signs the set of survivors that it was shown, which it will unmask for and no other.

        Args:
            survivors: Sorted ids of those whose masked inputs are in the sum, its own among them.

        Raises:
            ProtocolViolation: below the threshold; if the set is no subset of those who shared; if this
                party, or a neighbour in the set, has too few neighbours in it to hide among.
        """
        after = self._next("confirm")
        listed = self._view.survivors(self._roll, self._sharers, survivors)
        self._require_listed(listed.members, "survivors")
        alone = listed.members & listed.uncovered
        for party in self._roll.graph.present(self._party_id, alone):
            raise ProtocolViolation(f"{party!r} has too few neighbours among the survivors")
        self._survivors = listed
        self._state = after
        return self._signed(Confirmation(self._party_id, self._digest, listed.digest))

    def unmask(self, confirmations: tuple[Confirmation, ...]) -> UnmaskShares:
        """Phase 5: gives one share for each neighbour, once: the seed's if it survived, else the key's.

        Args:
            confirmations: What the survivors signed, its own among them.

        Raises:
            ProtocolViolation: if any survivor was shown another set; if too few of all, or too few of its
                neighbourhood, confirmed; if a neighbour's confirmation is forged.
        """
        after = self._next("unmask")
        by_party, uncovered = self._view.confirmations(self._roll, self._survivors, confirmations)
        self._require_listed(by_party, "confirmations")
        neighbours = self._roll.graph.present(self._party_id, by_party)
        self._view.require_authentic(by_party[neighbour] for neighbour in neighbours)
        if self._party_id in uncovered:
            raise ProtocolViolation("too few of this party's neighbourhood confirmed the survivors")
        if self._guard is not None:
            self._guard.mark_released(self._context)
        held = self._keyring.held
        survivors = self._survivors.members
        seed_owners = tuple(owner for owner in held if owner in survivors)
        key_owners = tuple(owner for owner in held if owner not in survivors)
        unmask_shares = UnmaskShares(
            self._party_id,
            self._digest,
            self._survivors.digest,
            seed_owners,
            seed_shares=tuple(halves(held[owner])[0] for owner in seed_owners),
            key_owners=key_owners,
            key_shares=tuple(halves(held[owner])[1] for owner in key_owners),
        )
        signed = self._signed(unmask_shares)
        self._keyring.wipe()
        self._state = after
        return signed

    def close(self) -> None:
        """Wipes every key, seed and share. May be called at any time, more than once."""
        self._keyring.wipe()
        self._state = State.CLOSED

    def __enter__(self) -> Participant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Participant({self._party_id!r}, state={self._state.value!r})"

    def __reduce__(self) -> NoReturn:
        raise UsageError("a participant holds keys and is not pickled")

    def _signed(self, message: S) -> S:
        return replace(message, signature=self._identity.sign(message.signed_content()))

    def _next(self, step: str) -> State:
        before, after = PARTICIPANT_TRANSITIONS[step]
        if self._state is not before:
            raise ProtocolViolation(
                f"{self._party_id!r} cannot {step} when {self._state.value}, only when {before.value}"
            )
        return after

    def _require_listed(self, party_ids: Container[str], what: str) -> None:
        if self._party_id not in party_ids:
            raise ProtocolViolation(f"the {what} leave this party out")

    def _open(self, inbox: Inbox, sharers: Listed) -> dict[str, bytearray]:
        """Decrypts and checks what each neighbour sent: seed share and key share, 68 bytes."""
        me = self._party_id
        if inbox.party_id != me or inbox.context_digest != self._digest:
            raise ProtocolViolation("the inbox is another party's or another session's")
        self._require_listed(sharers.members, "sharers")
        if inbox.senders != self._roll.graph.present(me, sharers.members):
            raise ProtocolViolation("the inbox does not hold exactly the shares of this party's neighbours")
        if me in sharers.uncovered:
            raise ProtocolViolation("too few of this party's neighbourhood shared their keys")
        return open_shares(inbox, self._keyring.share_secrets, self._roll.digest)

    def _mask_terms(self, sharers_digest: bytes, senders: tuple[str, ...]) -> list[MaskTerm]:
        keys, me = self._keyring, self._party_id
        others = [sender for sender in senders if sender != me]
        return terms_to_apply(me, bytes(keys.seed), keys.mask_secrets, others, sharers_digest)
