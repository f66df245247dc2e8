"""What a release takes: calls by the number of hosts, and each signature once a host; nothing is timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scarcity_ray.actors import secure_session
from scarcity_ray.runtime.local import _LocalHandle
from scarcity_ray.secagg import IdentityKeyPair

D = 6


@pytest.fixture
def released(open_federation: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], Any]:
    """One release: its calls by role and method, and how often each role verified each signature."""

    def release(baskets: int, per_actor: int) -> tuple[Counter[Any], Counter[Any]]:
        fed = open_federation(
            {
                "vector_dim": D,
                "auto_aggregate": False,
                "gossip_budget_share": 0.0,
                "basket": {"min_clients": 2},
                "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0, "min_updates": 2},
                "runtime": {"baskets_per_actor": per_actor},
            }
        )
        clients = [(f"{b}_{i}", f"d{b:02}") for b in range(baskets) for i in range(2)]
        fed.register_clients(clients)
        assert all(fed.submit_updates([c for c, _ in clients], np.full((2 * baskets, D), 0.1)))
        fed._driver.run_layer1(None, force=True)
        calls: Counter[Any] = Counter()
        verified: Counter[Any] = Counter()
        within: list[str] = []
        call, verify = _LocalHandle.call, IdentityKeyPair.verify_with

        def counting(self: _LocalHandle, method: str, *args: object) -> Any:
            if self.roles is not fed._runtime.peers.roles:  # an earlier test's, not ended yet
                return call(self, method, *args)
            calls[self.name, args[1] if method == "once" else method] += 1
            within.append(self.name)
            try:
                return call(self, method, *args)
            finally:
                within.pop()

        def verifying(*signed: bytes) -> bool:
            verified[within[-1], signed] += 1
            return verify(*signed)

        with monkeypatch.context() as patch:
            patch.setattr(_LocalHandle, "call", counting)
            patch.setattr(IdentityKeyPair, "verify_with", staticmethod(verifying))
            assert fed.force_aggregate() is not None
        return calls, verified

    return release


def test_calls_of_a_release_are_constant_in_the_baskets_of_a_host(released: Any) -> None:
    few, _ = released(4, 2)
    many, _ = released(12, 6)
    assert few == many
    assert few["basket:0", "mask"] == few["basket:1", "mask"] == 1


def test_long_masked_inputs_are_asked_for_in_several_calls(
    released: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secure_session, "MASKED_BYTES", 2 * 4 * D + 1)
    calls, _ = released(5, 5)
    assert calls["basket:0", "mask"] == 3
    monkeypatch.setattr(secure_session, "MASKED_BYTES", 1)
    calls, _ = released(5, 5)
    assert calls["basket:0", "mask"] == 5


@pytest.mark.parametrize("per_actor", [12, 4])
def test_each_host_verifies_each_signature_once(released: Any, per_actor: int) -> None:
    """Six of each basket: facts, advert, key shares, masked input, confirmation, unmask shares."""
    _, verified = released(12, per_actor)
    assert set(verified.values()) == {1}
    assert len({signed for _, signed in verified}) == 6 * 12
    hosts = 12 // per_actor
    assert len(verified) == 6 * 12 + hosts * 3 * 12, "of all six the aggregator's, of three each host's"
