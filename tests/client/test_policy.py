"""A client's signed ceiling: whole or refused, whoever has it on the way."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from scarcity_ray_client import IdentityKeyPair, Policy, SignedPolicy, UsageError

OWNER = IdentityKeyPair.generate()
POLICY = Policy("hospital_1", "person", 3.0, 1e-6, "f" * 32, is_newcomer=True)
OTHERS = {
    "client_id": "hospital_2",
    "unit": "record",
    "lifetime_epsilon": 3.0000000000000004,
    "delta": 2e-6,
    "federation_id": "",
    "is_newcomer": False,
}


def test_a_policy_is_signed_as_it_is_written_down():
    """By another implementation of Ed25519's check, over bytes written out by hand."""
    signed = POLICY.signed(OWNER)
    content = ["hospital_1", "person", (3.0).hex(), (1e-6).hex(), "f" * 32, True]
    message = b"scarcity_ray/policy/1\n" + json.dumps(content).replace(", ", ",").encode()
    Ed25519PublicKey.from_public_bytes(signed.public_key).verify(signed.signature, message)
    assert signed.is_valid


@pytest.mark.parametrize("name", [field.name for field in fields(Policy)])
def test_a_policy_that_is_changed_or_forged_is_refused(name):
    signed = POLICY.signed(OWNER)
    changed = replace(signed, policy=replace(POLICY, **{name: OTHERS[name]}))
    assert not changed.is_valid
    with pytest.raises(UsageError, match="not signed by its key"):
        SignedPolicy.from_text(changed.to_text())
    stranger = IdentityKeyPair.generate().public_bytes
    for forged in (
        replace(signed, public_key=stranger),
        replace(signed, signature=bytes(64)),
        replace(signed, signature=signed.signature[:-1]),
        replace(signed, public_key="x"),
    ):
        assert not forged.is_valid


def test_a_policy_is_read_back_from_its_text():
    signed = POLICY.signed(OWNER)
    assert SignedPolicy.from_text(signed.to_text()) == signed
    newer = json.loads(signed.to_text())
    newer["policy"] = newer["policy"].replace("policy/1", "policy/2")
    for text in ("", "[]", "3", '{"policy": 3}', signed.to_text()[:-40], json.dumps(newer), "[" * 10**5):
        with pytest.raises(UsageError, match=r"no signed policy|or of a newer format"):
            SignedPolicy.from_text(text)


def test_what_no_policy_can_be_is_refused():
    for name, values in {
        "client_id": ["", 3, None, "a\nb"],
        "unit": ["patient", None],
        "lifetime_epsilon": [0.0, -1.0, float("inf"), float("nan"), "3", None, True],
        "delta": [0.0, 1.0, -1e-6, float("nan")],
        "federation_id": [None, 3],
        "is_newcomer": [None, 1],
    }.items():
        for value in values:
            with pytest.raises(UsageError, match=f"policy: {name}: .* is not accepted; "):
                replace(POLICY, **{name: value})


def test_looser_is_greater_in_either_number():
    assert not POLICY.loosens(POLICY)
    assert not replace(POLICY, lifetime_epsilon=1.0, delta=1e-7).loosens(POLICY)
    assert replace(POLICY, lifetime_epsilon=3.1, delta=1e-7).loosens(POLICY)
    assert replace(POLICY, lifetime_epsilon=1.0, delta=1e-5).loosens(POLICY)
    assert replace(POLICY, lifetime_epsilon=1.0, unit="record").loosens(POLICY)
