"""With the same keys and the same entropy a session says the same bytes, release after release."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scarcity_ray.secagg import (
    Coordinator,
    IdentityKeyPair,
    Participant,
    Party,
    PublicView,
    SessionContext,
)

SAID = {
    None: "13b2863ffc6508e8e4282dc47669cedeaa524157af714d1d7794daf8b7d03ec4",
    6: "9215fd98e93580752f3041cb8d79d38fbc583f92d534e6e467aad246fc75d355",
}
"""SHA-256 of all signatures and of the sum, by degree, as the release before 2026-12 gave them."""


def run(degree: int | None, *, is_hosted: bool) -> str:
    count = 14
    names = [f"basket_{i:02}" for i in range(count)]
    identities = {
        name: IdentityKeyPair(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))
        for name in names
    }
    context = SessionContext(
        federation_id="tests",
        session_id=bytes(range(16)),
        round_id=7,
        attempt=2,
        model_hash=bytes(32),
        dimension=300,
        ring_bits=32,
        threshold=9,
        parties=tuple(Party(name, identities[name].public_bytes) for name in names),
        degree=degree,
        share_threshold=None if degree is None else 4,
    )
    view = PublicView(context) if is_hosted else None
    parties = {
        name: Participant(context, name, identities[name], entropy=random.Random(name).randbytes, view=view)
        for name in names
    }
    inputs = {name: np.arange(300, dtype=np.uint32) * np.uint32(i + 1) for i, name in enumerate(names)}
    coordinator, said = Coordinator(context), hashlib.sha256()

    def hear(message, take):
        said.update(message.signature)
        take(message)

    for name in names:
        hear(parties[name].advertise(), coordinator.add_advert)
    adverts = coordinator.adverts()
    for name in names[:-1]:
        hear(parties[name].share_keys(adverts), coordinator.add_key_shares)
    for name in coordinator.sharers()[:-1]:
        hear(parties[name].mask(coordinator.inbox(name), inputs[name]), coordinator.add_masked)
    survivors = coordinator.survivors()
    for name in survivors[1:]:
        hear(parties[name].confirm(survivors), coordinator.add_confirmation)
    confirmations = coordinator.confirmations()
    for name in survivors[1:]:
        hear(parties[name].unmask(confirmations), coordinator.add_unmask_shares)
    total = coordinator.finish()
    assert (total == np.sum([inputs[name] for name in survivors], axis=0, dtype=np.uint32)).all()
    said.update(total.tobytes())
    return said.hexdigest()


@pytest.mark.parametrize("is_hosted", [False, True], ids=["alone", "hosted"])
@pytest.mark.parametrize("degree", [None, 6], ids=["complete", "sparse"])
def test_a_session_says_the_same_bytes_in_every_release(degree, is_hosted):
    assert run(degree, is_hosted=is_hosted) == SAID[degree]
