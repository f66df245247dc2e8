from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from scarcity_ray.errors import UsageError
from scarcity_ray.gossip import GossipProtocol
from scarcity_ray.privacy.sampling.noise import SeededNoise


def states(n: int, dimension: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.Generator(np.random.PCG64DXSM(n))
    return {f"c{i:02}": rng.standard_normal(dimension).astype(np.float32) for i in range(n)}


def balanced(protocol: GossipProtocol) -> bool:
    s = protocol.get_stats()
    return s["sent"] == s["delivered"] + s["expired"] + s["dropped"] + s["pending"]


def test_a_basket_of_one_client_does_nothing(make, noise, gossip) -> None:
    protocol = make(sigma_drift=1.0, sigma_vector=1.0)
    alone = states(1)
    assert protocol.begin(["c00"], alone["c00"][None], 0, 0.0, num_members=1) == ()
    outcome = gossip(protocol, alone)
    assert (outcome.delivered, outcome.released, outcome.mixed) == (0, (), ())
    assert outcome.states.tolist() == [alone["c00"].tolist()]
    assert not noise.drawn


def test_a_basket_without_states_does_nothing(make, gossip) -> None:
    outcome = gossip(make(), {}, members=["a", "b"])
    assert (outcome.delivered, outcome.client_ids, outcome.states.shape) == (0, (), (0, 4))


def test_two_clients_gossip(make, gossip) -> None:
    protocol = make(clip_norm=10.0, mixing="average")
    outcome = gossip(protocol, {"a": np.array([1.0, 0, 0, 0]), "b": np.array([0, 1.0, 0, 0])})
    assert (outcome.delivered, outcome.mixed) == (2, ("a", "b"))
    assert outcome.states.tolist() == [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]]


def test_states_move_towards_each_other(make, gossip) -> None:
    mine = states(20)
    outcome = gossip(make(clip_norm=10.0, peers_per_round=5), mine)
    assert outcome.delivered == 100
    before = np.stack(list(mine.values()))
    assert outcome.states.var(axis=0).sum() < before.var(axis=0).sum() / 2
    np.testing.assert_allclose(outcome.states.mean(axis=0), before.mean(axis=0), atol=0.5)


def test_a_state_that_did_not_change_is_not_pushed_again(make, gossip) -> None:
    protocol = make(push_drift_threshold=0.1, pull_interval=0.0)
    same = {"a": np.array([0.5, 0, 0, 0]), "b": np.array([0, 0.01, 0, 0])}
    assert gossip(protocol, same, round_id=0).released == ("a",)
    assert gossip(protocol, same, round_id=1).released == ()
    assert gossip(protocol, same, round_id=1).delivered == 0


def test_messages_wait_for_members_without_a_state(make, gossip) -> None:
    protocol = make(peers_per_round=5, message_ttl=10.0)
    mine, members = states(2), ["c00", "c01", "late", "later"]
    outcome = gossip(protocol, mine, members=members)
    assert (outcome.delivered, outcome.sent, protocol.get_stats()["pending"]) == (2, 6, 4)
    outcome = gossip(protocol, {**mine, "late": np.zeros(4)}, members=members, now=10.0)
    assert "late" in outcome.mixed
    assert protocol.get_stats()["pending"] == 3
    outcome = gossip(protocol, mine, members=members, now=10.1)
    assert outcome.expired == 2
    assert (protocol.get_stats()["pending"], balanced(protocol)) == (1, True)


def test_an_expired_release_is_not_sent_again(make, gossip) -> None:
    protocol = make(peers_per_round=1, message_ttl=10.0)
    assert gossip(protocol, states(5), now=0.0).delivered == 5
    assert gossip(protocol, states(5), now=10.0).delivered == 5
    assert gossip(protocol, states(5), now=10.1).delivered == 0


def test_who_got_nothing_pulls_once_in_the_interval(make, gossip) -> None:
    protocol = make(push_drift_threshold=0.5, peers_per_round=1, pull_interval=5.0, clip_norm=1.0)
    quiet = {f"q{i}": np.zeros(4) for i in range(6)}
    loud = {"l0": np.eye(4)[0], "l1": np.eye(4)[1]}
    outcome = gossip(protocol, quiet | loud, now=0.0)
    assert outcome.released == ("l0", "l1")
    pulls = protocol.get_stats()["pulls"]
    assert pulls >= 4
    assert outcome.delivered == 2 + pulls
    soon = gossip(protocol, quiet | loud, now=4.9)
    assert protocol.get_stats()["pulls"] - pulls <= 8 - pulls
    assert balanced(protocol)
    gossip(protocol, quiet | loud, now=5.0)
    gossip(protocol, quiet | loud, now=10.0)
    assert soon.delivered <= 8
    assert protocol.get_stats()["sent"] <= 2 * 7


def test_a_client_receives_a_released_vector_at_most_once(make, gossip) -> None:
    protocol = make(peers_per_round=3, pull_interval=0.0)
    total = sum(gossip(protocol, states(6), now=float(i)).delivered for i in range(10))
    assert total == 6 * 5


def test_a_leaving_clients_messages_are_dropped_and_counted(make, gossip) -> None:
    protocol = make(peers_per_round=5)
    mine = states(2)
    gossip(protocol, mine, members=["c00", "c01", "x", "y"])
    assert protocol.drop_client("x") == 2
    assert protocol.drop_client("c00") == 1
    assert protocol.drop_client("nobody") == 0
    gossip(protocol, {}, members=["y"], round_id=0)
    stats = protocol.get_stats()
    assert (stats["dropped"], stats["pending"]) == (4, 0)
    assert balanced(protocol)


def test_given_states_are_never_written_to(make, gossip) -> None:
    protocol = make(clip_norm=0.1)
    matrix = np.stack(list(states(3).values()))
    before = matrix.copy()
    matrix.setflags(write=False)
    protocol.test_drift(protocol.begin(["a", "b", "c"], matrix, 0, 0.0))
    outcome = protocol.exchange(["a", "b", "c"], ["a", "b", "c"], 0.0)
    assert (matrix == before).all()
    assert outcome.states.flags.writeable
    assert not np.shares_memory(outcome.states, matrix)


@pytest.mark.parametrize(
    ("ids", "matrix"),
    [
        (["b", "a"], np.zeros((2, 4), np.float32)),
        (["a", "a"], np.zeros((2, 4), np.float32)),
        (["a"], np.zeros((2, 4), np.float32)),
        (["a"], np.zeros((1, 3), np.float32)),
        (["a"], np.full((1, 4), np.nan, np.float32)),
        (["a"], np.full((1, 4), np.inf, np.float32)),
    ],
)
def test_states_that_do_not_fit_are_refused(make, ids: list, matrix: np.ndarray) -> None:
    with pytest.raises(UsageError):
        make().begin(ids, matrix, 0, 0.0)


def test_rounds_only_go_forward(make) -> None:
    protocol = make()
    protocol.advance_round(3)
    with pytest.raises(UsageError, match="before"):
        protocol.begin([], np.empty((0, 4), np.float32), 2, 0.0)


def test_the_same_calls_give_the_same_bytes(make, gossip) -> None:
    def run() -> list[bytes]:
        protocol = make(sigma_drift=0.3, sigma_vector=0.7, source=SeededNoise(4), push_drift_threshold=0.9)
        current, found = states(9), []
        for round_id in range(5):
            for repeat in range(2):
                outcome = gossip(protocol, current, round_id=round_id, now=round_id * 10.0 + repeat)
                current = dict(zip(outcome.client_ids, outcome.states, strict=True))
                found.append(outcome.states.tobytes())
        return found

    assert run() == run()


events = st.lists(
    st.one_of(
        st.tuples(st.just("gossip"), st.sets(st.sampled_from("abcde")), st.sets(st.sampled_from("abcde"))),
        st.tuples(st.sampled_from(["leave", "move"]), st.sampled_from("abcde")),
        st.tuples(st.just("round")),
        st.tuples(st.just("wait"), st.floats(0, 400)),
    ),
    max_size=25,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events, st.integers(1, 4))
def test_messages_are_never_lost_or_made_up(make, gossip, program: list, k: int) -> None:
    protocols = [make(peers_per_round=k, pull_interval=1.0, basket_id=f"d_basket_{i}") for i in range(2)]
    home = dict.fromkeys("abcde", 0)
    now, round_id = 0.0, 0
    released: set[tuple[str, int]] = set()
    for event in program:
        if event[0] == "round":
            round_id += 1
        elif event[0] == "wait":
            now += event[1]
        elif event[0] == "leave":
            protocols[home[event[1]]].drop_client(event[1])
        elif event[0] == "move":
            carry = protocols[home[event[1]]].take_client(event[1])
            home[event[1]] = 1 - home[event[1]]
            protocols[home[event[1]]].put_client(carry)
        else:
            for index, protocol in enumerate(protocols):
                members = {c for c in event[1] | event[2] if home[c] == index}
                with_state = {c: np.full(4, ord(c) / 100) for c in event[2] & members}
                before = protocol.get_stats()["delivered"]
                outcome = gossip(protocol, with_state, round_id=round_id, now=now, members=sorted(members))
                assert protocol.get_stats()["delivered"] - before == outcome.delivered
                assert not released & {(c, round_id) for c in outcome.released}
                released |= {(c, round_id) for c in outcome.released}
                assert (outcome.delivered == 0) == (outcome.mixed == ())
                assert len(members) > 1 or outcome.delivered == 0
        assert all(balanced(protocol) for protocol in protocols)
