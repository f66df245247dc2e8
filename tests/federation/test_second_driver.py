"""A second driver sees the same federation, signs for nobody it does not hold, and gets each model once."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest

from scarcity_ray import (
    HierarchicalFederation,
    IdentityKeyPair,
    Rejection,
    SigningScope,
    UsageError,
    sign_update,
)

DIMENSION = 4


@pytest.mark.ray
def test_a_second_driver_shares_the_federation(ray_cluster: None, open_federation: Any, clock: Any) -> None:
    name = f"shared_{uuid.uuid4().hex[:8]}"
    with pytest.raises(UsageError, match=name):
        HierarchicalFederation.attach(name)
    first = open_federation(
        {
            "vector_dim": DIMENSION,
            "gossip_budget_share": 0.0,
            "runtime": {"baskets_per_actor": 1},
        },
        runtime="ray",
        name=name,
    )
    with pytest.raises(UsageError, match="attach"):
        open_federation({}, runtime="ray", name=name)
    keypair = IdentityKeyPair.generate()
    first.register_client("keyed", "a", identity_keypair=keypair)
    second = HierarchicalFederation.attach(name, clock=clock)
    assert second.config == first.config
    first.register_clients([(f"a{i}", "a") for i in range(4)])
    # A domain that came after the second driver did, in an actor of its own.
    first.register_clients([(f"b{i}", "b") for i in range(5)])
    assert second.advance_round() == 1
    assert first.get_stats()["current_round"] == second.get_stats()["current_round"] == 1

    row = np.full(DIMENSION, 0.2, np.float32)
    assert second.offer_update("keyed", row).reason is Rejection.BAD_SIGNATURE
    scope = second.signing_scope()
    assert scope == first.signing_scope()
    forged = sign_update(IdentityKeyPair.generate().sign, scope, "keyed", 1, row)
    assert second.offer_update("keyed", row, signature=forged).reason is Rejection.BAD_SIGNATURE
    for wrong_round in (0, 1):
        other = sign_update(keypair.sign, scope, "keyed", wrong_round ^ 1, row)
        receipt = second.offer_update("keyed", row, wrong_round, signature=other)
        assert receipt.reason is Rejection.BAD_SIGNATURE
    elsewhere = sign_update(keypair.sign, SigningScope("another federation"), "keyed", 1, row)
    assert not second.offer_update("keyed", row, signature=elsewhere)
    signature = sign_update(keypair.sign, scope, "keyed", 1, row)
    assert second.offer_update("keyed", row, signature=signature)
    with pytest.raises(UsageError, match="another key"):
        second.register_client("keyed", "a", identity_keypair=IdentityKeyPair.generate())

    for domain, count in (("a", 4), ("b", 5)):
        for i in range(count):
            driver = (first, second)[i % 2]
            receipt = driver.offer_update(f"{domain}{i}", np.full(DIMENSION, 0.1 + 0.01 * i), 1)
            assert receipt.accepted, receipt
    given = first.maybe_aggregate(), second.maybe_aggregate()
    assert given[0] is not None
    assert given[1] is not None
    np.testing.assert_array_equal(given[0], given[1])
    assert first.maybe_aggregate() is None
    assert second.maybe_aggregate() is None
    assert set(second.run_gossip_round()) == {"a", "b"}

    second.close()
    assert first.get_stats()["n_clients"] == 10
    with pytest.raises(UsageError, match="closed"):
        second.get_stats()
    first.close()
    with pytest.raises(UsageError, match=name):
        HierarchicalFederation.attach(name)


def test_a_named_federation_needs_a_cluster(open_federation: Any) -> None:
    with pytest.raises(UsageError, match="local"):
        open_federation({}, name="named")
