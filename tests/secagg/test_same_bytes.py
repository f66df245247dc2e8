"""With the same keys and the same entropy a session says the same bytes, release after release."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scarcity_ray.secagg import (
    Agreements,
    Coordinator,
    IdentityKeyPair,
    KeyShares,
    Participant,
    Party,
    PublicView,
    SessionContext,
)

SAID = {
    None: (
        "e157b05a75b812bf7ceee5e0a0fce814762ecc1baaf38c696bc7b22569dbc04a",
        "15f3b88d7c08af169e3205eafbb588dc3a709139fa837530e21948af4ed3380f",
    ),
    6: (
        "cc4f57d982c55ca7a04cc278b776c4af908c9b3b970cd6fcf47d0590294957f3",
        "cc1a2d193de262a06666c7c1682058ba60902946d878fe35a606d24bb15b5362",
    ),
}
"""By degree, SHA-256 of the sum and all signatures but those of dealt shares, and of these; as of 2026-11."""


def run(degree: int | None, is_hosted: bool = False, **host: Agreements) -> tuple[str, str]:
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
        name: Participant(
            context, name, identities[name], entropy=random.Random(name).randbytes, view=view, **host
        )
        for name in names
    }
    inputs = {name: np.arange(300, dtype=np.uint32) * np.uint32(i + 1) for i, name in enumerate(names)}
    coordinator, said, dealt = Coordinator(context), hashlib.sha256(), hashlib.sha256()

    def hear(message, take):
        (dealt if isinstance(message, KeyShares) else said).update(message.signature)
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
    return said.hexdigest(), dealt.hexdigest()


@pytest.mark.parametrize("is_hosted", [False, True], ids=["alone", "hosted"])
@pytest.mark.parametrize("degree", [None, 6], ids=["complete", "sparse"])
def test_a_session_says_the_same_bytes_in_every_release(degree, is_hosted):
    assert run(degree, is_hosted) == SAID[degree]


@pytest.mark.parametrize("degree", [None, 6], ids=["complete", "sparse"])
def test_agreements_of_a_host_change_nothing_but_how_shares_travel(degree):
    said, dealt = run(degree, True, agreements=Agreements())
    assert said == SAID[degree][0]
    assert dealt != SAID[degree][1]
