"""The bytes that are predicted are those of the messages of a real session."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from scarcity_ray.secagg import Party
from scarcity_ray.secagg.messages import session_volume


def size_of(message):
    total = 0
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        items = value if isinstance(value, tuple) else (value,)
        total += sum(item.nbytes if isinstance(item, np.ndarray) else len(item) for item in items)
    return total


@pytest.mark.parametrize(("num_parties", "degree"), [(2, None), (9, None), (12, 6)])
@pytest.mark.parametrize("ring_bits", [32, 64])
def test_volume_is_that_of_the_messages_of_a_session(num_parties, degree, ring_bits, identity_of, session_of):
    names = [f"hospital_basket_{place:02}" for place in range(num_parties)]
    vectors = {name: np.zeros(77, np.dtype(f"uint{ring_bits}")) for name in names}
    session = session_of(
        num_parties,
        vectors=vectors,
        dimension=77,
        ring_bits=ring_bits,
        threshold=max(2, num_parties // 2 + 1),
        parties=tuple(Party(name, identity_of(i).public_bytes) for i, name in enumerate(names)),
        degree=degree,
        share_threshold=None if degree is None else degree // 2 + 1,
    )
    coordinator, party = session.coordinator, names[0]
    participant = session.participants[party]

    session.until("share_keys")
    adverts = coordinator.adverts()
    for name in names:
        coordinator.add_key_shares(shares := session.participants[name].share_keys(adverts))
    coordinator.sharers()
    inbox = coordinator.inbox(party)
    for name in names:
        masked = session.participants[name].mask(coordinator.inbox(name), vectors[name])
        coordinator.add_masked(masked)
    survivors = coordinator.survivors()
    session.confirm()
    confirmations = coordinator.confirmations()
    unmask_shares = participant.unmask(confirmations)

    volume = session_volume(
        num_parties, degree=degree, dimension=77, ring_bits=ring_bits, id_bytes=len(party)
    )
    sent = (adverts[0], shares, masked, confirmations[0], unmask_shares)
    assert volume.sent == sum(map(size_of, sent))
    received = (*adverts, inbox, *confirmations)
    assert volume.received == sum(map(size_of, received)) + sum(map(len, survivors))
