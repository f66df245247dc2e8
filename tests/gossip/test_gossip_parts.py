from __future__ import annotations

from collections import Counter
from copy import deepcopy

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from scarcity_ray.gossip import GossipMessage, MaterialityDetector, PeerSampler
from scarcity_ray.gossip.materiality import ROUGHNESS, HalfVector
from scarcity_ray.gossip.protocol import ROUNDING, GossipStep

sizes = st.integers(1, 25)


def ids(n: int) -> list[str]:
    return [f"c{i:02}" for i in range(n)]


@given(sizes, st.integers(1, 8), st.integers(0, 30), st.integers(1, 10))
def test_peers_are_never_oneself_nor_twice_and_balanced(n: int, k: int, rounds: int, window: int) -> None:
    sampler = PeerSampler(window, seed=3, basket_id="b")
    for _ in range(rounds):
        sampler.advance_round()
    members = ids(n)
    everyone = sampler.sample_all(members, k)
    assert everyone.shape == (n, min(k, n - 1))
    for row, client in zip(everyone, members, strict=True):
        peers = sampler.sample(members, k, exclude=client)
        assert peers == tuple(members[i] for i in row)
        assert client not in peers
        assert len(set(peers)) == len(peers)
    assert set(Counter(everyone.ravel().tolist()).values()) <= {min(k, n - 1)}


@given(st.integers(2, 25), st.integers(1, 6))
def test_a_client_meets_everybody_before_it_meets_anybody_again(n: int, k: int) -> None:
    sampler = PeerSampler(rotation_window=100, seed=1, basket_id="b")
    met: list[str] = []
    while len(met) < n - 1:
        met += sampler.sample(ids(n), k, exclude="c00")
        sampler.advance_round()
    assert len(set(met[: n - 1])) == n - 1


def test_rotation_starts_anew_after_its_window_and_differs_between_baskets() -> None:
    def history(basket: str, seed: int) -> list[tuple[str, ...]]:
        sampler = PeerSampler(rotation_window=2, seed=seed, basket_id=basket)
        found = []
        for _ in range(20):
            found.append(sampler.sample(ids(40), 3, exclude="c07"))
            sampler.advance_round()
        return found

    assert history("a", 0) == history("a", 0)
    assert history("a", 0) != history("b", 0)
    assert history("a", 0) != history("a", 1)
    assert len({peer for peers in history("a", 0) for peer in peers}) > 12


def test_sampling_excludes_whom_it_is_told_to() -> None:
    sampler = PeerSampler()
    assert set(sampler.sample(ids(6), 10, exclude=["c00", "c03"])) == {"c01", "c02", "c04", "c05"}
    assert set(sampler.sample(ids(3), 10, exclude="stranger")) == set(ids(3))
    assert set(sampler.sample(ids(3), 10, exclude=())) == set(ids(3))
    assert sampler.sample([], 3, exclude=()) == ()
    assert sampler.sample(["a"], 3, exclude="a") == ()


def test_every_peer_is_equally_likely() -> None:
    counts = Counter()
    for seed in range(3000):
        counts.update(PeerSampler(seed=seed).sample(ids(7), 2, exclude="c00"))
    expected = 3000 * 2 / 6
    deviation = sum((counts[peer] - expected) ** 2 / expected for peer in ids(7)[1:])
    # chi-squared with 5 degrees of freedom exceeds 36.5 with probability below 1e-6
    assert deviation < 36.5


rows = st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3).map(lambda v: np.array(v, np.float32))


@given(rows, rows, st.floats(0, 20))
def test_without_noise_a_state_is_pushed_iff_its_drift_reaches_the_threshold(
    pushed: np.ndarray, state: np.ndarray, threshold: float
) -> None:
    detector = MaterialityDetector(threshold)
    assert detector.should_push("a", state) == (np.sqrt(float((state.astype(float) ** 2).sum())) >= threshold)
    detector.update_state("a", pushed)
    drift = np.sqrt(float(((state.astype(float) - pushed) ** 2).sum()))
    allowed = ROUGHNESS * float(np.linalg.norm(pushed.astype(float))) + 1e-30
    assert detector.drifts(["a"], state[None])[0] == pytest.approx(drift, rel=1e-6, abs=allowed)
    assert detector.should_push("a", state, sigma=2.0, noise=50.0)
    assert not detector.should_push("a", state, sigma=2.0, noise=-50.0)
    detector.forget("a")
    assert detector.last_pushed("a") is None


@given(rows, rows)
def test_the_drift_of_clipped_states_never_leaves_twice_the_clip_norm(a: np.ndarray, b: np.ndarray) -> None:
    a, b = (v / max(1.0, float(np.linalg.norm(v.astype(float)))) for v in (a, b))
    detector = MaterialityDetector(0.1, 2.0)
    detector.update_state("a", a.astype(np.float32))
    for state in (b, -a * (1 + 2**-20), 3.0 * b):  # the last two are longer than any that was clipped
        assert 0 <= detector.drifts(["a"], state.astype(np.float32)[None])[0] <= 2.0


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=600),
    st.sampled_from([0.0, 1e-28, 1e-10, 1.0, 1e15, 3e38]),
)
def test_half_the_room_holds_a_vector_to_its_roughness_and_no_more_than_it(
    values: list[float], size: float
) -> None:
    vector = (np.array(values) * size).astype(np.float32)
    halved = HalfVector.of(vector)
    assert halved.words.dtype == np.int16
    kept, exact = halved.whole().astype(float), vector.astype(float)
    norm = float(np.linalg.norm(exact))
    assert np.linalg.norm(kept - exact) <= ROUGHNESS * norm + 1e-31
    assert np.linalg.norm(kept) <= norm * (1 + 2**-28)
    again = HalfVector.of(halved.whole(), deepcopy(halved))
    np.testing.assert_array_equal(again.whole(), halved.whole())


def test_the_detector_keeps_its_own_copy() -> None:
    detector = MaterialityDetector(0.5)
    state = np.ones(2, np.float32)
    detector.update_state("a", state)
    state[:] = 0
    assert detector.should_push("a", state)


def test_messages_know_their_age() -> None:
    message = GossipMessage("a", "b", np.zeros(1, np.float32), 0, timestamp=10.0, round_id=0)
    assert message.age(12.5) == 2.5
    assert not message.is_expired(2.5, 12.5)
    assert message.is_expired(2.4, 12.5)


@pytest.mark.parametrize("excess", [-1e-3, 0.0, 2.0**-24, 1e-6, 1e-3, 5.0])
def test_what_is_released_has_at_most_the_clip_norm_to_float32_rounding(excess: float) -> None:
    row = np.linspace(-1, 1, 1001)
    row = (row / np.linalg.norm(row) * (1 + excess)).astype(np.float32)
    norms = np.array([np.linalg.norm(row.astype(float))])
    step = GossipStep(("a",), [row], norms, frozenset())
    (clipped,) = step.clipped(["a"], 1.0)
    assert np.linalg.norm(clipped.astype(float)) <= 1 + ROUNDING
