"""Identities sign, verify, and keep their private half to themselves."""

from __future__ import annotations

import copy
import pickle
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.secagg import IdentityKeyPair

ALICE, BOB = IdentityKeyPair.generate(), IdentityKeyPair.generate()


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


PASSWORD = b"sixteen bytes or more"


def test_saved_identity_is_loaded_with_its_password_alone(tmp_path):
    path = tmp_path / "identity.pem"
    ALICE.save(path, PASSWORD)
    assert IdentityKeyPair.load(path, PASSWORD).public_bytes == ALICE.public_bytes
    assert ALICE.verify(b"message", IdentityKeyPair.load(str(path), PASSWORD).sign(b"message"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    pem = path.read_bytes()
    assert pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert ALICE._private.private_bytes_raw() not in pem
    with pytest.raises(UsageError, match="password is wrong"):
        IdentityKeyPair.load(path, PASSWORD + b"!")


def test_an_identity_file_is_never_overwritten(tmp_path):
    path = tmp_path / "identity.pem"
    ALICE.save(path, PASSWORD)
    with pytest.raises(UsageError, match="File exists"):
        BOB.save(path, PASSWORD)
    assert IdentityKeyPair.load(path, PASSWORD).public_bytes == ALICE.public_bytes


@pytest.mark.parametrize("password", [b"", b"short", "text of sixteen characters", None])
def test_weak_passwords_are_refused(tmp_path, password):
    with pytest.raises(UsageError, match="16 random bytes"):
        ALICE.save(tmp_path / "identity.pem", password)
    assert not list(tmp_path.iterdir())


def test_other_files_are_no_identities(tmp_path):
    path = tmp_path / "identity.pem"
    with pytest.raises(UsageError, match="No such file"):
        IdentityKeyPair.load(path, PASSWORD)
    encrypted = serialization.BestAvailableEncryption(PASSWORD)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    for content, complaint in (
        (b"not a key", "not an encrypted identity"),
        (ALICE._private.private_bytes(pem, pkcs8, serialization.NoEncryption()), "not an encrypted identity"),
        (X25519PrivateKey.generate().private_bytes(pem, pkcs8, encrypted), "another kind of key"),
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=complaint):
            IdentityKeyPair.load(path, PASSWORD)
