"""A basket actor in sessions: one basket's refusal holds up no other, and no session outlives the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig, Layer1Config, Layer2Config
from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.global_aggregator import GlobalAggregator
from scarcity_ray.actors.secure_session import PartyCalls
from scarcity_ray.actors.session_terms import SessionTerms
from scarcity_ray.baskets.submission import SubmissionBatch
from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.plan import BasketFacts
from scarcity_ray.secagg import Advert, Coordinator, Participant, State

CLIENTS = [(f"{domain}{i}", domain) for domain in "abc" for i in range(3)]


@pytest.fixture
def federation_of(request: pytest.FixtureRequest) -> Iterator[Callable[..., HierarchicalFederation]]:
    with ExitStack() as opened:

        def with_aggregates(**layer2: Any) -> HierarchicalFederation:
            """Three baskets in one actor, each with a fresh aggregate."""
            config = HierarchicalFederationConfig(
                vector_dim=4,
                auto_aggregate=False,
                layer1=Layer1Config(aggregation_method="mean"),
                layer2=Layer2Config(**layer2),
            )
            fed = opened.enter_context(HierarchicalFederation(config, runtime="local"))
            fed.register_clients(CLIENTS)
            fed.submit_updates([client for client, _ in CLIENTS], np.ones((9, 4)))
            fed._driver.run_layer1(None, force=True)
            return fed

        yield with_aggregates


def terms_of(fed: HierarchicalFederation, **said: Any) -> SessionTerms:
    """What the global aggregator would say as it opens a session; `said` is stated in place of the truth."""
    where, roster = fed._driver.tell_parties()
    places = sorted(where.places, key=lambda place: place.basket_id)
    aggregator = _roles(fed)[1]
    occasion = aggregator._occasion(0, roster)
    stated = aggregator._pin_facts(PartyCalls(places, fed._driver.supervisor.peers), places, occasion)
    stated |= said
    return aggregator._terms(places, stated, occasion, *aggregator._agree(places, stated, roster))


def facts_of(host: BasketHost, now: float = 0.0) -> dict[str, BasketFacts]:
    return {basket: report.facts for basket, report in host.reports(now).items()}


@pytest.mark.parametrize("masked", [True, False])
def test_a_stale_basket_is_left_out_and_its_neighbours_take_part(federation_of: Any, masked: bool) -> None:
    fed = federation_of(use_secure_aggregation=masked)
    host, _ = _roles(fed)
    terms = terms_of(fed)
    stale = "b_basket_0"
    host._baskets[stale].latest._fresh = False
    opened: dict[str, Any] = (host.advertise if masked else host.contribute)(terms, tuple(terms.facts))
    assert isinstance(opened.pop(stale), ProtocolViolation)
    assert set(opened) == {"a_basket_0", "c_basket_0"}
    assert all(isinstance(answer, Advert if masked else tuple) for answer in opened.values())


def masked_in(
    host: BasketHost, terms: SessionTerms, parties: tuple[str, ...]
) -> tuple[Coordinator, list[Participant]]:
    """Take a session up to its masked inputs."""
    coordinator = Coordinator(terms.context)
    for advert in host.advertise(terms, parties).values():
        coordinator.add_advert(advert)
    keys = [*host._secure.attempt.participants.values()]
    for shares in host.share_keys(terms.session_id, parties, coordinator.adverts()).values():
        coordinator.add_key_shares(shares)
    inboxes = {party: coordinator.inbox(party) for party in coordinator.sharers()}
    for masked in host.mask(terms.session_id, inboxes).values():
        coordinator.add_masked(masked)
    return coordinator, keys


def is_charged(fed: HierarchicalFederation, terms: SessionTerms) -> bool:
    """Whether the release of a session can still be charged, or is."""
    accountant = fed._runtime.peers.roles["accountant"]  # type: ignore[attr-defined]
    allowed: bool = accountant.charge_release(terms.charge_id, terms.release.mu, 1e9, {}).allowed
    return allowed


def has_secrets(participant: Participant) -> bool:
    keyring = participant._keyring
    return any(keyring.seed) or any(keyring.scalar) or bool(keyring.held or keyring.mask_secrets)


TOUCHES: dict[str, Callable[[BasketHost, float], Any]] = {
    "reports": lambda host, at: host.reports(at),
    "submit": lambda host, at: host.submit((), SubmissionBatch((), np.zeros((0, 4))), at),
    "run_layer1": lambda host, at: host.run_layer1((), False, at),
    "run_gossip": lambda host, at: host.run_gossip(at),
    "unmask": lambda host, at: host.unmask("another", (), (), at),
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
@pytest.mark.parametrize("late", [60.0, -60.0, 1e12])
def test_a_session_whose_time_is_up_keeps_no_keys(
    federation_of: Any, touch: Callable[[BasketHost, float], Any], late: float
) -> None:
    fed = federation_of(session_timeout_seconds=60.0)
    host, _ = _roles(fed)
    host.reports(1e9)
    terms, facts = terms_of(fed), facts_of(host, 1e9)
    _, keys = masked_in(host, terms, tuple(facts))
    for soon in (0.0, 59.9, -59.9):
        touch(host, 1e9 + soon)
        assert all(has_secrets(participant) for participant in keys)
    touch(host, 1e9 + late)
    assert not any(has_secrets(participant) for participant in keys)
    assert [p.state for p in keys] == [State.CLOSED] * 3
    assert host.confirm(terms.session_id, tuple(facts), tuple(facts)) == {}
    assert all(f.fresh for f in facts_of(host, 1e9).values()), "the session was given up"
    assert not is_charged(fed, terms)


def test_a_session_keeps_its_own_time(federation_of: Any) -> None:
    """The next one is not measured by when the last began."""
    fed = federation_of(session_timeout_seconds=60.0)
    host, _ = _roles(fed)
    facts = facts_of(host, 1e9)
    host.advertise(terms_of(fed), tuple(facts))
    facts_of(host, 1e9 + 50.0)
    _, keys = masked_in(host, terms_of(fed), tuple(facts))
    host.reports(1e9 + 100.0)
    assert all(has_secrets(participant) for participant in keys)


@pytest.mark.parametrize("how", ["the next begins", "it is abandoned"])
def test_a_session_that_nobody_ends_keeps_no_keys(federation_of: Any, how: str) -> None:
    fed = federation_of()
    host, _ = _roles(fed)
    terms, facts = terms_of(fed), facts_of(host)
    coordinator, keys = masked_in(host, terms, tuple(facts))
    assert all(has_secrets(participant) for participant in keys)
    survivors = coordinator.survivors()
    if how == "it is abandoned":
        host.abandon_session()
    else:
        opened = host.advertise(replace(terms, context=replace(terms.context, attempt=99)), tuple(facts))
        assert all(isinstance(answer, ProtocolViolation) for answer in opened.values())
    assert [p.state for p in keys] == [State.CLOSED] * 3
    assert not any(has_secrets(participant) for participant in keys)
    assert host.confirm(terms.session_id, survivors, survivors) == {}
    host.end_session(terms.session_id, ())
    assert all(f.fresh for f in facts_of(host).values()), "the session was given up"
    assert not is_charged(fed, terms)


def test_what_a_session_without_an_end_was_given_is_settled_when_the_accountant_answers(
    federation_of: Any,
) -> None:
    fed = federation_of()
    host, _ = _roles(fed)
    terms, facts = terms_of(fed), facts_of(host)
    masked_in(host, terms, tuple(facts))
    roles = fed._runtime.peers.roles  # type: ignore[attr-defined]
    accountant = roles.pop("accountant")
    host.abandon_session()
    host.end_session(terms.session_id, ())
    assert not any(f.fresh for f in facts_of(host).values()), "what was handed in may be in a release"
    roles["accountant"] = accountant
    assert is_charged(fed, terms)
    assert not any(f.fresh for f in facts_of(host).values()), "what was charged is spent"


def test_one_aggregate_is_masked_in_one_session_at_a_time(federation_of: Any) -> None:
    fed = federation_of()
    host, _ = _roles(fed)
    first = terms_of(fed)
    parties = tuple(first.facts)
    coordinator = Coordinator(first.context)
    for advert in host.advertise(first, parties).values():
        coordinator.add_advert(advert)
    second = terms_of(fed)
    assert first.session_id != second.session_id
    masked_in(host, second, parties)
    assert host.share_keys(first.session_id, parties, coordinator.adverts()) == {}
    facts = facts_of(host, host._secure.now)
    assert not any(said.fresh for said in facts.values()), "it is handed in to one"
    again = host.advertise(second, parties)
    assert all(isinstance(answer, ProtocolViolation) for answer in again.values())
    assert not is_charged(fed, second), "before it is masked in a third one"


def _roles(federation: HierarchicalFederation) -> tuple[BasketHost, GlobalAggregator]:
    roles = federation._runtime.peers.roles  # type: ignore[attr-defined]
    return roles["basket:0"], roles["global"]


def test_each_attempt_begins_with_nothing_verified_and_nothing_agreed(federation_of: Any) -> None:
    """What a host checks and agrees on once, it does once an attempt; the keys of the last are wiped."""
    fed = federation_of()
    host, _ = _roles(fed)
    views, agreed = [], []
    for _ in range(2):
        terms = terms_of(fed)
        host.advertise(terms, tuple(terms.facts))
        at = [*host._secure.attempt.participants.values()]
        assert len({id(p._view) for p in at}) == len({id(p._keyring._agreements) for p in at}) == 1
        views.append(at[0]._view)
        agreed.append(at[0]._keyring._agreements)
    assert views[0] is not views[1]
    assert agreed[0] is not agreed[1]
    assert not any(views[1]._authentic.values())
    assert not agreed[0]._own
    assert any(agreed[1]._own)


def test_many_updates_carry_their_meta_parameters() -> None:
    config = HierarchicalFederationConfig(
        vector_dim=2,
        total_epsilon=float("inf"),
        layer1=Layer1Config(aggregation_method="mean"),
        layer2=Layer2Config(central_dp_epsilon=float("inf")),
        meta_parameters={"rate": (0.0, 1.0)},
    )
    with HierarchicalFederation(config, runtime="local") as federation:
        clients = [(f"{domain}{i}", domain) for domain in "ab" for i in range(3)]
        federation.register_clients(clients)
        receipts = federation.submit_updates(
            [client for client, _ in clients], np.ones((6, 2)), meta=[{"rate": 0.25}] * 6
        )
        assert all(receipts)
        assert federation.maybe_aggregate() is not None
        assert federation.get_meta_params() == pytest.approx({"rate": 0.25}, abs=1e-5)
