"""The sparse graph: its shape, its parameters' failure probabilities, and sessions on it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scarcity_ray.errors import ProtocolViolation, SecureAggregationAborted, UsageError
from scarcity_ray.secagg import choose_graph, threshold_for
from scarcity_ray.secagg.graph import Graph, least_excess

STEPS = ("advertise", "share_keys", "mask", "confirm", "unmask")


def roster_of(count):
    return tuple(sorted(f"basket_{i}" for i in range(count)))


@given(count=st.integers(5, 40), half=st.integers(1, 6), seed=st.binary(min_size=32, max_size=32))
def test_neighbourhood_is_mutual_and_of_the_stated_degree(context_of, count, half, seed):
    degree = min(2 * half, (count - 2) // 2 * 2)
    context = context_of(count, degree=degree, share_threshold=degree // 2 + 1)
    roster = roster_of(count)
    graph = Graph(context, roster, seed)
    for party in roster:
        neighbourhood = graph.neighbourhood(party)
        assert party in neighbourhood
        assert neighbourhood == tuple(sorted(set(neighbourhood)))
        assert len(neighbourhood) == min(degree + 1, count)
        assert all(party in graph.neighbourhood(other) for other in neighbourhood)
        present = set(roster[::2])
        assert graph.present(party, present) == tuple(p for p in neighbourhood if p in present)
        assert graph.is_covered(party, present) == (
            len(graph.present(party, present)) >= context.rebuild_threshold
        )


def test_graph_depends_on_every_advert(context_of):
    context = context_of(40, degree=4, share_threshold=3)
    roster = roster_of(40)
    shapes = {
        tuple(Graph(context, roster, bytes([seed] * 32)).neighbourhood(party) for party in roster)
        for seed in range(5)
    }
    assert len(shapes) == 5


def test_a_roster_within_one_neighbourhood_is_complete(context_of):
    context = context_of(8, degree=6, share_threshold=4)
    graph = Graph(context, roster_of(7), bytes(32))
    assert all(graph.neighbourhood(party) == roster_of(7) for party in roster_of(7))


def test_neighbours_are_a_uniform_sample(context_of):
    """Chi-square of how often each other party is a neighbour over 2000 graphs; false alarm 1e-7.

    Counts of one graph are drawn without replacement, so each cell's variance is smaller than a
    multinomial's by (n-1-k)/(n-2); the statistic is scaled by its inverse.
    """
    context = context_of(20, degree=4, share_threshold=3)
    roster = roster_of(20)
    counts = dict.fromkeys(roster, 0)
    for seed in range(2000):
        for other in Graph(context, roster, seed.to_bytes(32, "big")).neighbourhood(roster[0]):
            counts[other] += 1
    assert counts.pop(roster[0]) == 2000
    expected = 2000 * 4 / 19
    statistic = sum((count - expected) ** 2 / expected for count in counts.values()) * 18 / 15
    assert 1e-7 / 2 < stats.chi2.sf(statistic, 18) < 1 - 1e-7 / 2


@given(
    population=st.integers(1, 80),
    marked=st.integers(0, 80),
    drawn=st.integers(0, 80),
    bits=st.integers(1, 60),
)
def test_least_excess_by_an_independent_hypergeometric(population, marked, drawn, bits):
    marked, drawn = min(marked, population), min(drawn, population)
    x = least_excess(population, marked, drawn, bits)
    law = stats.hypergeom(population, marked, drawn)
    assert law.sf(x - 1) <= 2.0**-bits * (1 + 1e-9)
    if x > 0:
        assert law.sf(x - 2) > 2.0**-bits * (1 - 1e-9)


@pytest.mark.parametrize("num_parties", [65, 100, 300, 1000])
@pytest.mark.parametrize(("corrupt", "dropout"), [(0.0, 0.1), (0.1, 0.1), (0.05, 0.2), (0.1, 0.2)])
def test_tails_are_below_the_stated_probabilities(num_parties, corrupt, dropout):
    threshold = threshold_for(num_parties, 2 / 3)
    choice = choose_graph(num_parties, threshold, corrupt_fraction=corrupt, dropout_fraction=dropout)
    k, t = choice.degree, choice.share_threshold
    bad = stats.hypergeom(threshold - 1, math.ceil(corrupt * num_parties), min(k, threshold - 1))
    gone = stats.hypergeom(num_parties - 1, math.ceil(dropout * num_parties), k)
    assert num_parties * bad.sf(2 * t - k - 2) <= 2.0**-80
    assert num_parties * gone.sf(k - t) <= 2.0**-20
    assert num_parties * bad.sf(t - choice.least_hidden_among) <= 2.0**-80
    assert choice.least_hidden_among >= k - t + 2


def test_degree_grows_slowly_with_the_number_of_parties():
    def degree(num_parties):
        threshold = threshold_for(num_parties, 2 / 3)
        return choose_graph(num_parties, threshold, corrupt_fraction=0.05, dropout_fraction=0.1).degree

    assert degree(10_000) < 2 * degree(500)


def test_up_to_64_parties_the_graph_is_complete():
    choice = choose_graph(64, 43, corrupt_fraction=0.1, dropout_fraction=0.1)
    assert (choice.degree, choice.share_threshold) == (None, None)


def test_where_no_degree_will_do_the_graph_is_complete():
    assert choose_graph(70, 47, corrupt_fraction=0.45, dropout_fraction=0.45).degree is None


def test_fractions_outside_of_their_range_are_refused():
    with pytest.raises(UsageError, match="dropout_fraction"):
        choose_graph(100, 67, corrupt_fraction=0.1, dropout_fraction=1.0)


@pytest.mark.long
@given(
    drops=st.dictionaries(st.integers(0, 11).map("basket_{}".format), st.sampled_from(STEPS), max_size=5),
    share_threshold=st.integers(4, 5),
)
def test_a_sparse_session_gives_the_exact_sum_or_aborts(session_of, drops, share_threshold):
    session = session_of(12, drops=drops, threshold=7, degree=6, share_threshold=share_threshold)
    total, aborted = None, None
    try:
        total = session.run()
    except SecureAggregationAborted as error:
        aborted = error
    if aborted is not None:
        assert "too few hold shares" in aborted.reason
        assert aborted.retryable is ("phase unmask" not in aborted.reason)
        return
    in_sum = [p for p in session.vectors if drops.get(p) not in STEPS[:3]]
    expected = np.sum([session.vectors[p] for p in in_sum], axis=0, dtype=np.uint32)
    np.testing.assert_array_equal(total, expected)


def test_messages_name_the_neighbourhood_alone(session_of):
    session = session_of(14, degree=4, share_threshold=3).until("mask")
    for party in session.participants:
        assert len(session.coordinator.inbox(party).senders) == 5


def test_a_party_whose_neighbours_all_vanish_is_not_unmasked(session_of):
    """The coordinator drops every neighbour of one party, to be left with its input alone."""
    session = session_of(14, threshold=8, degree=4, share_threshold=3).until("mask")
    graph = session.coordinator._graph
    victim = "basket_0"
    isolated = tuple(sorted(set(session.participants) - set(graph.neighbourhood(victim)) | {victim}))
    session.mask()
    with pytest.raises(ProtocolViolation, match="too few neighbours"):
        session.participants[victim].confirm(isolated)


def test_neighbours_refuse_to_unmask_an_isolated_party(session_of):
    """One neighbour is kept; it would give a share of the victim's seed, and refuses to."""
    session = session_of(14, threshold=8, degree=4, share_threshold=3).until("mask")
    session.mask()
    graph = session.coordinator._graph
    victim = "basket_0"
    kept, *gone = (p for p in graph.neighbourhood(victim) if p != victim)
    survivors = tuple(sorted(set(session.participants) - set(gone)))
    with pytest.raises(ProtocolViolation, match="too few neighbours"):
        session.participants[kept].confirm(survivors)


def test_neighbours_must_confirm_and_not_just_anyone(session_of):
    """Enough confirmations in number, none of a neighbour."""
    session = session_of(14, threshold=8, degree=4, share_threshold=3).until("unmask")
    neighbours = session.coordinator._graph.neighbourhood("basket_0")
    far = tuple(
        message
        for message in session.coordinator.confirmations()
        if message.party_id not in neighbours or message.party_id == "basket_0"
    )
    assert len(far) == 10
    with pytest.raises(ProtocolViolation, match="neighbourhood confirmed"):
        session.participants["basket_0"].unmask(far)


def test_neighbours_must_share_and_not_just_anyone(session_of):
    """Enough sharers in number, none of them a neighbour: nothing would mask the input but the seed."""
    session = session_of(14, threshold=8, degree=4, share_threshold=3).until("mask")
    inbox = session.coordinator.inbox("basket_0")
    own = inbox.senders.index("basket_0")
    columns = ("senders", "sealed", "seed_share_commitments", "key_share_commitments")
    lonely = replace(
        inbox,
        sharers=tuple(p for p in inbox.sharers if p not in inbox.senders or p == "basket_0"),
        **{name: (getattr(inbox, name)[own],) for name in columns},
    )
    with pytest.raises(ProtocolViolation, match="neighbourhood shared"):
        session.participants["basket_0"].mask(lonely, session.vectors["basket_0"])


@pytest.mark.slow
def test_five_hundred_parties_with_a_fifth_dropping(session_of):
    threshold = threshold_for(500, 2 / 3)
    choice = choose_graph(500, threshold, corrupt_fraction=0.1, dropout_fraction=0.2)
    drops = {f"basket_{5 * i}": STEPS[i % 5] for i in range(100)}
    session = session_of(
        500,
        drops=drops,
        threshold=threshold,
        dimension=100_000,
        degree=choice.degree,
        share_threshold=choice.share_threshold,
    )
    in_sum = [p for p in session.vectors if drops.get(p) not in STEPS[:3]]
    expected = np.sum([session.vectors[p] for p in in_sum], axis=0, dtype=np.uint32)
    np.testing.assert_array_equal(session.run(), expected)
