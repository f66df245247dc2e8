"""What the privacy claim rests on: who is drawn for, how often, and with how much noise."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from scipy import stats

from scarcity_ray.errors import UsageError
from scarcity_ray.privacy.sampling.noise import SystemNoise

STATES = {f"c{i}": np.eye(4)[i % 4] * (0.1 + i) for i in range(6)}


def vector_streams(noise, round_id: int = 0) -> list[str]:
    return [f"gossip/vector/{c}/{round_id}" for c in STATES if noise.drawn[f"gossip/vector/{c}/{round_id}"]]


def test_a_client_releases_one_vector_a_federation_round(make, noise, gossip) -> None:
    protocol = make(sigma_drift=1e-9, sigma_vector=0.5, peers_per_round=1)
    outcomes = [gossip(protocol, STATES, round_id=3, now=float(i)) for i in range(4)]
    assert [len(o.released) for o in outcomes] == [6, 0, 0, 0]
    assert [o.delivered for o in outcomes] == [6, 6, 6, 6]
    assert set(noise.drawn.values()) == {1}
    assert sorted(noise.drawn) == sorted(
        f"gossip/{kind}/{c}/3" for kind in ("drift", "vector") for c in STATES
    )
    changed = {c: -state for c, state in STATES.items()}
    assert gossip(protocol, changed, round_id=4).released == tuple(STATES)


def test_the_same_vector_is_sent_again_to_new_peers_only(make, gossip) -> None:
    protocol = make(sigma_vector=0.5, peers_per_round=2)
    delivered = [gossip(protocol, STATES, now=float(i) * 10).delivered for i in range(6)]
    assert delivered == [12, 12, 6, 0, 0, 0]


def test_nothing_is_drawn_or_released_for_a_client_that_was_not_allowed(make, noise) -> None:
    protocol = make(sigma_drift=1e-9, sigma_vector=0.5)
    matrix = np.stack(list(STATES.values())).astype(np.float32)
    assert protocol.begin(tuple(STATES), matrix, 0, 0.0) == tuple(STATES)
    assert not noise.drawn
    assert protocol.test_drift(["c1", "c2"]) == ("c1", "c2")
    assert sorted(noise.drawn) == ["gossip/drift/c1/0", "gossip/drift/c2/0"]
    outcome = protocol.exchange(["c2"], tuple(STATES), 0.0)
    assert outcome.released == ("c2",)
    assert vector_streams(noise) == ["gossip/vector/c2/0"]
    assert outcome.delivered == 5
    assert protocol.begin(tuple(STATES), matrix, 0, 1.0) == ("c0", "c3", "c4", "c5")
    assert protocol.test_drift([]) == ("c1",)
    assert protocol.exchange([], tuple(STATES), 1.0).released == ()
    assert vector_streams(noise) == ["gossip/vector/c2/0"]


def test_only_those_who_were_asked_for_can_be_allowed(make) -> None:
    protocol = make()
    with pytest.raises(UsageError, match="begun"):
        protocol.test_drift([])
    with pytest.raises(UsageError, match="begun"):
        protocol.exchange([], ["a"], 0.0)
    protocol.begin(("a", "b"), np.zeros((2, 4), np.float32), 0, 0.0)
    with pytest.raises(UsageError, match="stranger"):
        protocol.test_drift(["a", "stranger"])
    protocol.test_drift(["a"])
    with pytest.raises(UsageError, match="b"):
        protocol.test_drift(["b"])
    with pytest.raises(UsageError, match="b"):
        protocol.exchange(["b"], ["a", "b"], 0.0)
    with pytest.raises(UsageError, match="every client"):
        protocol.exchange([], ["a"], 0.0)
    protocol.advance_round(1)
    with pytest.raises(UsageError, match="begun"):
        protocol.exchange(["a"], ["a", "b"], 0.0)


@pytest.mark.parametrize("k", [1, 2, 5, 50])
def test_the_number_of_peers_changes_no_charge(make, gossip, k: int) -> None:
    protocol = make(sigma_vector=0.5, peers_per_round=k)
    gossip(protocol, STATES)
    stats_ = protocol.get_stats()
    assert (stats_["drift_tests"], stats_["releases"], stats_["sent"]) == (6, 6, 6 * min(k, 5))


def test_a_client_that_moves_in_mid_round_does_not_release_twice(make, noise, gossip) -> None:
    old, new = make(sigma_vector=0.5), make(sigma_vector=0.5, basket_id="d_basket_1")
    gossip(old, STATES, round_id=2, now=1.0)
    new.advance_round(2)
    new.put_client(pickle.loads(pickle.dumps(old.take_client("c0"))))
    outcome = gossip(new, {"c0": STATES["c0"], "x": STATES["c1"]}, round_id=2, now=2.0)
    assert outcome.released == ("x",)
    assert outcome.delivered == 2
    assert noise.drawn["gossip/vector/c0/2"] == 1
    assert gossip(new, {"c0": STATES["c0"], "x": STATES["c1"]}, round_id=3, now=2.0).released == ("c0", "x")


def test_a_client_that_comes_back_in_mid_round_does_not_release_twice(make, noise, gossip) -> None:
    protocol = make(sigma_vector=0.5, max_messages_per_day=2)
    gossip(protocol, STATES, round_id=0)
    protocol.drop_client("c0")
    others = {c: s for c, s in STATES.items() if c != "c0"}
    gossip(protocol, others, round_id=0)
    assert gossip(protocol, STATES, round_id=0).released == ()
    assert noise.drawn["gossip/vector/c0/0"] == 1
    assert "c0" in gossip(protocol, STATES, round_id=1).released
    protocol.drop_client("c0")
    gossip(protocol, others, round_id=2)
    assert "c0" not in gossip(protocol, STATES, round_id=3).released


def test_the_last_pushed_state_moves_along(make, gossip) -> None:
    old = make(push_drift_threshold=0.5)
    new = make(push_drift_threshold=0.5, basket_id="d_basket_1")
    gossip(old, {"a": np.array([1.0, 0, 0, 0]), "b": np.zeros(4)})
    new.put_client(old.take_client("a"))
    assert gossip(new, {"a": np.array([1.0, 0.1, 0, 0]), "c": np.zeros(4)}, round_id=1).released == ()
    assert gossip(new, {"a": np.array([0, 1.0, 0, 0]), "c": np.zeros(4)}, round_id=2).released == ("a",)


def test_a_client_releases_at_most_its_limit_in_any_24_hours(make, gossip) -> None:
    protocol = make(max_messages_per_day=2)
    hours = [0, 10, 20, 24, 33, 34, 35]
    released = [
        len(gossip(protocol, {"a": np.ones(4), "b": np.ones(4)}, round_id=i, now=h * 3600.0).released)
        for i, h in enumerate(hours)
    ]
    assert released == [2, 2, 0, 2, 0, 2, 0]
    assert protocol.get_stats()["rate_limited"] == 6


def released_vector(make, gossip, state: np.ndarray, source: object, sigma: float) -> np.ndarray:
    """What one client releases, read back from the plain average that its peer forms."""
    protocol = make(
        dimension=len(state), sigma_vector=sigma, source=source, mixing="average", push_drift_threshold=1e-6
    )
    outcome = gossip(protocol, {"a": state, "b": np.zeros(len(state))})
    assert outcome.released == ("a",)
    return 2.0 * outcome.states[1].astype(np.float64)


class Scaled:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def standard_normal(self, shape, stream):
        return self.factor * SystemNoise().standard_normal(shape, stream)


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.5, False), (2 / 3, False), (0.9, False)])
def test_the_vectors_noise_has_the_planned_scale(make, gossip, factor: float, right: bool) -> None:
    # Two-sided, false alarm 1e-6: the sum of d squares is chi-squared, the sum of d values normal.
    d, sigma = 20_000, 3.0
    state = np.full(d, 100.0)
    vector = released_vector(make, gossip, state, Scaled(factor), sigma)
    z = (vector - 1.0 / math.sqrt(d)) / sigma
    p_scale = 2 * min(stats.chi2.cdf((z**2).sum(), d), stats.chi2.sf((z**2).sum(), d))
    p_mean = 2 * stats.norm.sf(abs(z.sum()) / math.sqrt(d))
    assert (p_scale > 5e-7 and p_mean > 5e-7) == right


def test_a_state_is_clipped_before_it_is_released(make, gossip) -> None:
    for scale in (1e-3, 1.0, 1e4, 1e30):
        vector = released_vector(make, gossip, np.array([3.0, 4.0]) * scale, SystemNoise(), sigma=0.0)
        np.testing.assert_allclose(vector, np.array([0.6, 0.8]) * min(1.0, 5 * scale), rtol=1e-6)
        assert np.linalg.norm(vector) <= 1 + 2**-21


@pytest.mark.long
@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.5, False)])
def test_the_push_decision_is_taken_on_a_drift_with_the_planned_noise(
    make, factor: float, right: bool
) -> None:
    # Binomial, two-sided, false alarm 1e-6. Drift 1 (clipped), threshold 2, sigma 1: P(push) = Phi(-1).
    n = 10_000
    protocol = make(dimension=1, sigma_drift=1.0, push_drift_threshold=2.0, source=Scaled(factor))
    ids = [f"c{i:05}" for i in range(n)]
    asked = protocol.begin(ids, np.full((n, 1), 7.0, np.float32), 0, 0.0)
    pushed = len(protocol.test_drift(asked))
    assert (stats.binomtest(pushed, n, stats.norm.sf(1.0)).pvalue > 1e-6) == right


def test_no_noise_is_drawn_when_no_privacy_is_claimed(make, noise, gossip) -> None:
    assert gossip(make(sigma_drift=0.0, sigma_vector=0.0), STATES).delivered > 0
    assert not noise.drawn
