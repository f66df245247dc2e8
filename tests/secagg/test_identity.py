"""Identities sign, verify, and keep their private half to themselves."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.secagg import IdentityKeyPair

ALICE, BOB = IdentityKeyPair.generate(), IdentityKeyPair.generate()


@settings(max_examples=30, deadline=None)
@given(message=st.binary(max_size=100), other=st.binary(max_size=100))
def test_signature_verifies_only_for_its_message_and_key(message, other):
    signature = ALICE.sign(message)
    assert ALICE.verify(message, signature)
    assert IdentityKeyPair.verify_with(ALICE.public_bytes, message, signature)
    assert not BOB.verify(message, signature)
    assert ALICE.verify(other, signature) == (other == message)
    assert not ALICE.verify(message, bytes([signature[0] ^ 1]) + signature[1:])


@pytest.mark.parametrize("public", [b"", bytes(31), "text", None])
@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), "text", None])
def test_malformed_keys_and_signatures_verify_nothing(public, signature):
    assert not IdentityKeyPair.verify_with(public, b"message", signature)


def test_private_key_is_in_no_repr_and_no_pickle():
    private = ALICE._private.private_bytes_raw()
    shown = repr(ALICE) + str(ALICE)
    assert private.hex() not in shown
    assert ALICE.fingerprint in shown
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(UsageError):
            attempt(ALICE)
