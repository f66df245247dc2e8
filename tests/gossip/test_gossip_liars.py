"""Gossip among liars: colluders, a spammer, and one who tells each peer something else."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scarcity_ray.config import GossipConfig, Layer1Config
from scarcity_ray.gossip import GossipMessage, GossipProtocol, MixingInput, Received, Spread, mix
from scarcity_ray.gossip.delivery import Inboxes
from scarcity_ray.plan import GossipPlan
from scarcity_ray.privacy.sampling.noise import SeededNoise

N, D, LIARS = 50, 32, 10
ROBUST = ("clipped_gossip", "nearest_neighbors")


def random(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64DXSM(seed))


def honest_states(seed: int, spread: float = 0.01) -> np.ndarray:
    rng = random(seed)
    centre = np.full(D, 0.5 / math.sqrt(D))
    return (centre + rng.standard_normal((N, D)) * math.sqrt(spread / D)).astype(np.float32)


def protocol(mixing: str | None, seed: int = 0) -> GossipProtocol:
    config = GossipConfig(mixing=mixing, push_drift_threshold=0.0, peers_per_round=5)
    plan = GossipPlan(math.inf, math.inf, 0.0, 0.0, 1.0, D, Layer1Config(byzantine_fraction=0.2))
    return GossipProtocol(config, plan, "d_basket_0", SeededNoise(0), seed=seed)


def one_round(gossip: GossipProtocol, states: np.ndarray, round_id: int = 0) -> np.ndarray:
    ids = [f"c{i:02}" for i in range(len(states))]
    asked = gossip.test_drift(gossip.begin(ids, states, round_id, float(round_id)))
    return np.asarray(gossip.exchange(asked, ids, float(round_id)).states)


def distance(states: np.ndarray, centre: np.ndarray) -> float:
    """Root mean squared distance of the honest states to the honest mean before any gossip."""
    return math.sqrt(float(((states[LIARS:] - centre) ** 2).sum(axis=1).mean()))


@pytest.mark.parametrize("mixing", [None, *ROBUST])
@pytest.mark.parametrize("told", ["opposite", "beside"])
def test_colluding_liars_do_not_keep_honest_clients_apart_nor_lead_them_away(
    mixing: str | None, told: str
) -> None:
    gains = []
    for seed in range(5):
        states = honest_states(seed)
        centre = states[LIARS:].mean(axis=0)
        states[:LIARS] = -centre if told == "opposite" else centre + 0.2 * np.eye(D)[0]
        before = distance(states, centre)
        robust, literal = protocol(mixing, seed), protocol("average", seed)
        after, fooled = states.copy(), states.copy()
        for round_id in range(3):
            after, fooled = one_round(robust, after, round_id), one_round(literal, fooled, round_id)
            after[:LIARS] = fooled[:LIARS] = states[0]
        gains.append((distance(after, centre) / before, distance(fooled, centre) / before))
    robust_gain, literal_gain = np.mean(gains, axis=0)
    assert robust_gain < 0.8
    assert literal_gain > 1.5 * robust_gain


def test_a_spammers_news_count_once() -> None:
    inboxes = Inboxes()
    sent = [GossipMessage("spam", "b", np.full(D, i, np.float32), i, float(i), i) for i in range(9)]
    for message in [*sent[::2], *sent[1::2], GossipMessage("a", "b", np.zeros(D, np.float32), 0, 0.0, 0)]:
        inboxes.put("victim", message)
    delivered = inboxes.collect("victim")
    assert {(m.sender_id, m.sequence_number) for m in delivered} == {("spam", 8), ("a", 0)}
    assert (inboxes.sent, inboxes.delivered, inboxes.dropped, inboxes.pending()) == (10, 2, 8, 0)


def test_a_spammer_who_waits_in_inboxes_for_rounds_is_heard_once(make, gossip) -> None:
    gossiping = make(peers_per_round=5, mixing="average", clip_norm=10.0)
    here = {"spam": np.full(4, 9.0), "x": np.zeros(4)}
    for round_id in range(6):
        here["spam"] = here["spam"] + 0.1
        gossip(gossiping, here, round_id=round_id, now=float(round_id), members=["late", *here])
    outcome = gossip(gossiping, {"late": np.zeros(4)}, 6, 6.0, members=["late", *here])
    clipped = np.full(4, 5.0)
    np.testing.assert_allclose(outcome.states, [(clipped + 0) / 3], rtol=1e-5)
    stats = gossiping.get_stats()
    assert stats["sent"] == stats["delivered"] + stats["expired"] + stats["dropped"] + stats["pending"]
    assert stats["dropped"] == 10


@pytest.mark.parametrize("length", [0.3, 1.0, 1e6])
def test_a_spammers_long_vectors_reach_no_further_than_honest_ones(length: float) -> None:
    states = honest_states(7)
    centre = states[LIARS:].mean(axis=0)
    states[:LIARS] = random(8).standard_normal((LIARS, D)) * length
    for mixing in ROBUST:
        after = one_round(protocol(mixing), states)
        assert distance(after, centre) < distance(states, centre)


@pytest.mark.parametrize("mixing", ROBUST)
def test_a_client_that_equivocates_moves_honest_clients_no_further_apart(mixing: str) -> None:
    """Liars tell half of the peers one thing, and the other half its mirror image."""
    rng, states = random(11), honest_states(11)
    centre = states[LIARS:].mean(axis=0)
    axis = np.eye(D, dtype=np.float32)[3]
    vectors, index = list(states), []
    for receiver in range(N):
        heard = rng.permutation([i for i in range(N) if i != receiver])[:5].tolist()
        lie = states[0] + (1 if receiver % 2 else -1) * 0.8 * axis
        vectors += [lie.astype(np.float32) for i in heard if i < LIARS]
        fresh = iter(range(len(vectors) - sum(i < LIARS for i in heard), len(vectors)))
        index.append([next(fresh) if i < LIARS else i for i in heard])
    plan = GossipPlan(math.inf, math.inf, 0.0, 0.0, 1.0, D, Layer1Config(byzantine_fraction=0.2))
    results = {}
    for name in (mixing, "average"):
        scene = MixingInput(
            states=states,
            state_scales=np.ones(N),
            received=Received.of(vectors, index),
            vector_scales=1 / np.maximum(1, np.linalg.norm(vectors, axis=1)),
            spread=Spread(0.01, 0.02),
            plan=plan,
            num_members=N,
            num_rows=N,
        )
        results[name] = np.empty_like(states)
        mix(name, scene, results[name])
    assert distance(results[mixing], centre) < distance(states, centre)
    assert distance(results["average"], centre) > 1.2 * distance(results[mixing], centre)
