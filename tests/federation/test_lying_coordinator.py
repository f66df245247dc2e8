"""A coordinator of honest code, that chooses its session, its words, or when it says them.

It is given the baskets' own code to run against, and one or more baskets that tell it everything. What it
must not get is a sum in which fewer than two honest baskets' aggregates are.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation
from scarcity_ray.actors import global_aggregator, signed_facts
from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.secure_session import PartyCalls, SecureSession
from scarcity_ray.actors.session_terms import SessionTerms, agreement_hash
from scarcity_ray.errors import ProtocolViolation, SecureAggregationAborted
from scarcity_ray.layers.layer2 import noised_mean
from scarcity_ray.plan import BasketFacts, ReleasePlan
from scarcity_ray.privacy.accounting.zcdp import rho_of_shares
from scarcity_ray.runtime.rpc import Call
from scarcity_ray.secagg import Roster, SessionContext

D = 4
Forge = Callable[[SessionTerms], SessionTerms]


@pytest.fixture
def fed_of(open_federation: Any) -> Callable[..., HierarchicalFederation]:
    def make(baskets: int, silent: int = 0, per_actor: int = 3, **layer2: Any) -> HierarchicalFederation:
        """Baskets with fresh aggregates, the first `silent` of them without."""
        fed: HierarchicalFederation = open_federation(
            {
                "vector_dim": D,
                "auto_aggregate": False,
                "gossip_budget_share": 0.0,
                "total_epsilon": 50.0,
                "basket": {"min_clients": 2},
                "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0, "min_updates": 2},
                "layer2": layer2,
                "runtime": {"baskets_per_actor": per_actor},
            }
        )
        clients = [(f"{b}_{i}", f"d{b:02}") for b in range(baskets) for i in range(2)]
        fed.register_clients(clients)
        sending = [c for c, domain in clients if int(domain[1:]) >= silent]
        assert all(fed.submit_updates(sending, np.full((len(sending), D), 0.1)))
        fed._driver.run_layer1(None, force=True)
        return fed

    return make


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every sum that is handed to the coordinator."""
    seen: list[Any] = []

    def noting(ring_sum: Any, *rest: Any) -> Any:
        seen.append(ring_sum)
        return noised_mean(ring_sum, *rest)

    monkeypatch.setattr(global_aggregator, "noised_mean", noting)
    return seen


def role(fed: HierarchicalFederation, name: str) -> Any:
    return fed._runtime.peers.roles[name]  # type: ignore[attr-defined]


def refused(fed: HierarchicalFederation) -> int:
    return int(fed.get_stats()["n_sessions_refused"])


def without_its_own_checks(fed: HierarchicalFederation, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The aggregator as it would be if it did not mind; the baskets' side stays as it is."""
    aggregator = role(fed, "global")
    monkeypatch.setattr(aggregator, "_waits", lambda *args: "")
    honest = global_aggregator.session_numbers

    def willing(*args: Any) -> Any:
        release, shape = honest(*args)
        return release, replace(shape, hides=False, least_weighted=1, num_corrupt=0)

    monkeypatch.setattr(global_aggregator, "session_numbers", willing)
    return aggregator


def telling(fed: HierarchicalFederation, lie: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """The aggregator announces other terms than follow from what it was told."""
    aggregator = without_its_own_checks(fed, monkeypatch)
    honest = aggregator._terms
    monkeypatch.setattr(aggregator, "_terms", lambda *args: lie(honest(*args)))


@pytest.mark.long
@pytest.mark.parametrize("noise", ["gaussian", "distributed_discrete_gaussian"])
@pytest.mark.parametrize("invited", [2, 3, 4])
def test_a_session_of_a_chosen_few_of_twenty_is_refused(
    fed_of: Any, sums: list[Any], monkeypatch: pytest.MonkeyPatch, noise: str, invited: int
) -> None:
    """Of twenty baskets two may be corrupt: both are in a session of four, and of the rest one may go."""
    fed = fed_of(20, noise=noise)
    where, roster = fed._driver.tell_parties()
    aggregator = without_its_own_checks(fed, monkeypatch)
    aggregator._noise = fed._driver.supervisor.identity.noise
    outcome = aggregator.run(where.places[:invited], 0, True, fed._driver.client.now(), roster)
    assert outcome.model is None
    assert sums == []
    # With shares honest code finds no scale for some, and does not even ask.
    assert refused(fed) in ((invited,) if noise == "gaussian" else (0, invited))
    assert fed.get_stats()["privacy_consumed_epsilon"] == 0.0
    assert fed.force_aggregate() is not None


def test_a_roster_of_a_chosen_few_is_not_the_one_that_is_pinned(
    fed_of: Any, sums: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have to be registered baskets only that the coordinator knows: the basket's roster decides."""
    fed = fed_of(20)
    where, roster = fed._driver.tell_parties()
    few = where.places[:2]
    names = {place.basket_id for place in few}
    aggregator = without_its_own_checks(fed, monkeypatch)
    for forged in (
        replace(roster, parties=tuple(p for p in roster.parties if p.party_id in names)),
        roster.next(p for p in roster.parties if p.party_id in names),
        Roster(roster.federation_id, 1, bytes(32), tuple(p for p in roster.parties if p.party_id in names)),
        None,
    ):
        before = refused(fed)
        assert aggregator.run(few, 0, True, fed._driver.client.now(), forged).model is None
        assert refused(fed) == before + 2
    assert sums == []


@pytest.mark.parametrize(("baskets", "missing"), [(20, 5), (50, 20)])
def test_who_is_missing_is_made_up_for_in_the_shares(
    fed_of: Any, monkeypatch: pytest.MonkeyPatch, baskets: int, missing: int
) -> None:
    """The corrupt are a share of all, so fewer honest shares are counted on in a smaller session."""
    fed = fed_of(baskets, noise="distributed_discrete_gaussian", per_actor=50)
    where, roster = fed._driver.tell_parties()
    terms: list[SessionTerms] = []
    honest = SecureSession.__init__

    def noting(self: Any, said: SessionTerms, *rest: Any) -> None:
        terms.append(said)
        honest(self, said, *rest)

    monkeypatch.setattr(SecureSession, "__init__", noting)
    present = where.places[missing:]
    outcome = role(fed, "global").run(present, 0, True, fed._driver.client.now(), roster)
    assert outcome.model is not None
    (said,) = terms
    corrupt = math.ceil(0.1 * baskets)
    assert said.release.num_honest == said.context.threshold - corrupt
    real = rho_of_shares(
        said.release.share_sigma,
        said.context.threshold - corrupt,
        said.release.grid_sensitivity([place.basket_id for place in present]),
        said.release.length,
    )
    assert real <= 0.5 * said.release.mu**2


def restated(terms: SessionTerms, party: str, **changes: Any) -> SessionTerms:
    """The facts of a party with a change, under its old signature, and all that follows from them."""
    said = terms.facts[party]
    return replace(terms, facts={**terms.facts, party: replace(said, facts=replace(said.facts, **changes))})


VICTIM, OTHER = "d00_basket_0", "d01_basket_0"
LIES: dict[str, Forge] = {
    "all others are idle": lambda t: replace(
        t,
        facts={
            b: s if b == VICTIM else replace(s, facts=BasketFacts(b, s.facts.domain_id, s.facts.num_members))
            for b, s in t.facts.items()
        },
    ),
    "one other is idle": lambda t: restated(t, OTHER, num_rows=0),
    "another is larger": lambda t: restated(t, OTHER, num_members=90),
    "another has more rows": lambda t: restated(t, OTHER, num_rows=90),
    "another reckons with liars": lambda t: restated(t, OTHER, num_byzantine=1),
    "another clips to more": lambda t: restated(t, OTHER, clip_norm=9.0),
    "another weighs its rows": lambda t: restated(t, OTHER, max_row_share=0.5),
    "another domain": lambda t: restated(t, OTHER, domain_id="d05"),
    "a fact is left out": lambda t: replace(t, facts={b: s for b, s in t.facts.items() if b != OTHER}),
    "no facts": lambda t: replace(t, facts={}),
    "unsigned facts": lambda t: replace(t, facts={b: s.facts for b, s in t.facts.items()}),
    "no signature": lambda t: replace(
        t, facts={**t.facts, OTHER: replace(t.facts[OTHER], signature=bytes(64))}
    ),
    "facts of a stranger": lambda t: replace(t, facts={**t.facts, "d99_basket_0": t.facts[OTHER]}),
    "facts in each other's place": lambda t: replace(
        t, facts={**t.facts, OTHER: t.facts[VICTIM], VICTIM: t.facts[OTHER]}
    ),
    "no word of its own": lambda t: replace(
        t, facts={b: replace(s, nonce=bytes(16)) for b, s in t.facts.items()}
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("lie", LIES)
def test_a_session_of_misstated_facts_is_refused_by_everybody(
    fed_of: Any, sums: list[Any], monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    """Whether the digest that they are bound by follows from the lie or is the honest one."""
    fed = fed_of(12)

    def lying(terms: SessionTerms, follows: bool) -> SessionTerms:
        told = LIES[lie](terms)
        try:
            release = fed.plan.release([said.facts for said in told.facts.values()], registered=12)
            occasion = signed_facts.Occasion.of(terms.context, "")
            bound = signed_facts.facts_digest(told.facts, occasion) if follows else terms.context.facts
            return replace(told, release=release, context=replace(told.context, facts=bound))
        except (AttributeError, ValueError, ZeroDivisionError):
            return told

    for attempt, follows in enumerate((True, False), 1):
        with monkeypatch.context() as patch:
            telling(fed, partial(lying, follows=follows), patch)
            assert fed.force_aggregate() is None
        assert sums == []
        assert refused(fed) == 12 * attempt
        assert fed.get_stats()["privacy_consumed_epsilon"] == 0.0
    assert fed.force_aggregate() is not None


@pytest.mark.parametrize("own", ["left out", "idle", "of another attempt", "older than its aggregate"])
def test_a_basket_whose_own_facts_are_misstated_refuses(
    fed_of: Any, monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    """Its own signature does not suffice for that: it must be what it said for this attempt, and still so."""
    fed = fed_of(6)
    _, roster = fed._driver.tell_parties()
    host = role(fed, "basket:0")
    basket = host._baskets[VICTIM]

    def lying(terms: SessionTerms) -> SessionTerms:
        occasion = signed_facts.Occasion.of(terms.context, "")
        if own == "left out":
            facts = {b: s for b, s in terms.facts.items() if b != VICTIM}
            return replace(terms, facts=facts)
        if own == "older than its aggregate":
            basket.latest._fresh = False
            return terms
        said = basket.facts() if own != "idle" else replace(basket.facts(), num_rows=0)
        again = signed_facts.state(said, occasion, basket.identity)
        told = {**terms.facts, VICTIM: again}
        release = fed.plan.release([s.facts for s in told.values()], registered=6)
        bound = signed_facts.facts_digest(told, occasion)
        return replace(terms, facts=told, release=release, context=replace(terms.context, facts=bound))

    telling(fed, lying, monkeypatch)
    fed.force_aggregate()
    reports = {b: r for slot in range(2) for b, r in role(fed, f"basket:{slot}").reports(0.0).items()}
    assert reports[VICTIM].sessions_refused == 1
    assert roster is not None


def test_facts_that_were_signed_for_another_attempt_are_of_no_use(
    fed_of: Any, sums: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator keeps what all said when they were idle, to say it again when one is not."""
    fed = fed_of(12)
    kept: list[SessionTerms] = []

    def aborting(terms: SessionTerms) -> SessionTerms:
        kept.append(terms)
        return replace(terms, facts={})

    telling(fed, aborting, monkeypatch)
    assert fed.force_aggregate() is None
    monkeypatch.undo()
    first = kept[0]

    def replaying(terms: SessionTerms) -> SessionTerms:
        old = {b: s for b, s in first.facts.items() if b != VICTIM}
        told = {**old, VICTIM: terms.facts[VICTIM]}
        occasion = signed_facts.Occasion.of(terms.context, "")
        bound = signed_facts.facts_digest(told, occasion)
        return replace(terms, facts=told, context=replace(terms.context, facts=bound))

    before = refused(fed)
    telling(fed, replaying, monkeypatch)
    assert fed.force_aggregate() is None
    telling(fed, lambda terms: first, monkeypatch)
    assert fed.force_aggregate() is None
    assert refused(fed) == before + 24
    assert sums == []


def test_two_halves_that_are_told_two_stories_make_no_sum(
    fed_of: Any, sums: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corrupt basket signs two statements; each half is given all that follows from one of them."""
    fed = fed_of(8, per_actor=4)
    liar = "d07_basket_0"
    identity = role(fed, "basket:1")._baskets[liar].identity
    honest = PartyCalls.phase

    def two_stories(self: PartyCalls, parties: Any, call_for: Any, receive: Any, most: Any = None) -> None:
        if call_for(()).method == "advertise":
            terms = call_for(()).args[0]
            occasion = signed_facts.Occasion.of(terms.context, "")
            said = replace(terms.facts[liar].facts, num_members=50)
            told = {**terms.facts, liar: signed_facts.state(said, occasion, identity)}
            release = fed.plan.release([s.facts for s in told.values()], registered=8)
            bound = signed_facts.facts_digest(told, occasion)
            other = replace(
                terms,
                facts=told,
                release=release,
                context=replace(
                    terms.context, facts=bound, model_hash=agreement_hash(np.zeros(0, np.float32), release)
                ),
            )
            first = {f"d0{i}_basket_0" for i in range(4)}

            def given(batch: tuple[str, ...]) -> Call[BasketHost, Any]:
                return Call(BasketHost.advertise, terms if batch[0] in first else other, batch)

            return honest(self, parties, given, receive)
        return honest(self, parties, call_for, receive, most)

    monkeypatch.setattr(PartyCalls, "phase", two_stories)
    assert fed.force_aggregate() is None
    assert sums == []
    stats = role(fed, "global").stats()
    assert stats["n_layer2_aborts"] == 1
    assert stats["n_layer2_violations"] == 4, "the adverts of the second half are about another context"
    assert refused(fed) == 1, "the liar's own honest code; each half was told something consistent"


def test_corrupt_baskets_that_call_themselves_fresh_are_not_counted(
    fed_of: Any, sums: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten, one may be corrupt: three with something to hide are needed, and one of them is dropped."""
    fed = fed_of(10, silent=7)
    assert fed.force_aggregate() is not None, "three of weight"
    assert len(sums) == 1
    fed.advance_round()
    for b in range(7, 10):
        assert all(fed.submit_updates([f"{b}_0", f"{b}_1"], np.full((2, D), 0.1)))
    fed._driver.run_layer1(None, force=True)
    host = next(
        h for n, h in fed._runtime.peers.roles.items() if "d09_basket_0" in getattr(h, "_baskets", {})
    )
    honest = host.mask
    monkeypatch.setattr(
        host, "mask", lambda s, given: honest(s, {p: i for p, i in given.items() if p != "d09_basket_0"})
    )
    without_its_own_checks(fed, monkeypatch)
    assert fed.force_aggregate() is None, "nine of ten survive, two of them with weight"
    assert len(sums) == 1
    violations = role(fed, "global").stats()["violations"]
    assert any("2 survivors of weight; at least 3 are needed" in violation for violation in violations)


@pytest.mark.parametrize("baskets", [2, 3])
@pytest.mark.parametrize("noise", ["gaussian", "distributed_discrete_gaussian"])
def test_two_or_three_baskets_release_by_default(fed_of: Any, baskets: int, noise: str) -> None:
    fed = fed_of(baskets, noise=noise)
    assert fed.force_aggregate() is not None
    assert fed.get_global_meta_model().n_baskets == baskets


def test_two_baskets_of_three_wait_for_the_third_and_say_why(fed_of: Any) -> None:
    fed = fed_of(3, silent=1)
    outcome = fed._driver.run_layer2(True)
    assert outcome.model is None
    assert "2 fresh baskets; a release needs 3 while 1 of those registered may be corrupt" in outcome.reason
    alone = fed_of(3, silent=1, assumed_corrupt_fraction=0.0)
    assert alone.force_aggregate() is not None


def test_a_basket_that_does_not_sign_for_the_last_release_is_left_out(fed_of: Any) -> None:
    """Facts are bound to the ledger's head: an actor that knows another release states nothing."""
    fed = fed_of(6)
    assert fed.force_aggregate() is not None
    host = role(fed, "basket:1")
    head = role(fed, "global").latest().ledger_head
    assert head
    assert host._last.ledger_head == head
    occasion = signed_facts.Occasion(
        fed.federation_id, bytes(16), 0, 9, host._secure.chain.newest.digest(), ""
    )
    answers = host.sign_facts(occasion, tuple(host._baskets))
    assert all(isinstance(answer, ProtocolViolation) for answer in answers.values())
    assert refused(fed) == len(answers)


def fresh_of(fed: HierarchicalFederation) -> list[str]:
    found = [(b, x) for h in hosts(fed) for b, x in h._baskets.items()]
    return sorted(b for b, x in found if x.latest.fresh is not None)


def hosts(fed: HierarchicalFederation) -> list[Any]:
    return [r for name, r in sorted(fed._runtime.peers.roles.items()) if name.startswith("basket:")]  # type: ignore[attr-defined]


def send(fed: HierarchicalFederation, baskets: Any, value: float = 0.1) -> None:
    clients = [f"{b}_{i}" for b in baskets for i in range(2)]
    assert all(fed.submit_updates(clients, np.full((len(clients), D), value)))
    fed._driver.run_layer1(None, force=True)


def asking_only(monkeypatch: pytest.MonkeyPatch, signers: Any) -> None:
    """From the confirmations on these alone are asked; the others hear nothing more of the session."""
    honest = PartyCalls.phase

    def phase(self: Any, parties: Any, call_for: Any, receive: Any, most: Any = None) -> None:
        confirming = call_for(()).method == "confirm"
        honest(self, [p for p in parties if p in signers or not confirming], call_for, receive, most)

    monkeypatch.setattr(PartyCalls, "phase", phase)


def saying_nothing_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = SecureSession.end

    def end(self: SecureSession) -> None:
        self._spent = ()
        honest(self)

    monkeypatch.setattr(SecureSession, "end", end)


def run(fed: HierarchicalFederation) -> Any:
    where, roster = fed._driver.tell_parties()
    return role(fed, "global").run(where.places, 0, True, fed._driver.client.now(), roster)


def test_two_sums_whose_difference_is_one_basket_are_never_made(
    fed_of: Any, sums: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four fresh ones are summed, as the idle and the victim sign; the other three are not told of it.

    They cannot know that they are in that sum. Summed again without the victim they would give it away.
    """
    fed = fed_of(10, silent=6)
    role(fed, "global")._waits = lambda *args: ""
    saying_nothing_is_spent(monkeypatch)
    with monkeypatch.context() as patch:
        asking_only(patch, {f"d{b:02}_basket_0" for b in (0, 1, 2, 3, 4, 5, 9)})
        assert run(fed).model is not None
    assert fresh_of(fed) == []
    assert run(fed).model is None
    assert len(sums) == 1


def test_a_session_that_was_given_up_is_never_unmasked(
    fed_of: Any, sums: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, the other way round: some are told that it has ended first, and have it given up."""
    fed = fed_of(10, silent=6)
    role(fed, "global")._waits = lambda *args: ""
    honest = SecureSession.collect

    def collect(self: SecureSession) -> Any:
        survivors = honest(self)
        fed._runtime.peers.handle("basket:2").call("end_session", self._id, ())  # type: ignore[attr-defined]
        return survivors

    with monkeypatch.context() as patch:
        patch.setattr(SecureSession, "collect", collect)
        outcome = run(fed)
    assert outcome.model is None
    assert outcome.aborted, "there is budget: it is no reason to stop"
    assert not outcome.read_only
    assert sums == []
    assert fresh_of(fed) == [f"d0{b}_basket_0" for b in range(6, 10)]
    assert fed.get_stats()["privacy_consumed_epsilon"] == 0.0
    assert run(fed).model is not None


def test_nothing_is_unmasked_that_was_charged_as_another_sum(fed_of: Any, sums: list[Any]) -> None:
    """It would have a basket use its aggregate again, which is in the sum."""
    fed = fed_of(10)
    aggregator = role(fed, "global")
    honest, victim = aggregator._charge, "d04_basket_0"

    def charge(terms: Any, survivors: Any, *rest: Any) -> Any:
        return honest(terms, [party for party in survivors if party != victim], *rest)

    aggregator._charge = charge
    assert run(fed).model is None
    assert sums == []
    assert fed.get_stats()["privacy_consumed_epsilon"] > 0.0


@pytest.mark.parametrize("renews", [False, True])
def test_no_sum_is_charged_in_a_way_that_its_baskets_do_not_hear_of(
    fed_of: Any, sums: list[Any], monkeypatch: pytest.MonkeyPatch, renews: bool
) -> None:
    """Under the name that it would have in a later period; or, before a renewal, as another sum."""
    fed = fed_of(10, silent=6)
    aggregator = role(fed, "global")
    aggregator._waits = lambda *args: ""
    honest = aggregator._charge
    signers = {f"d{b:02}_basket_0" for b in (0, 1, 2, 3, 4, 5, 9)}

    def charge(terms: Any, survivors: Any, now: float, num_left_out: int) -> Any:
        if renews:
            charge = honest(terms, sorted(signers), now, num_left_out)
            fed.renew_budget(50.0, 1e-5, operator="anybody")
            return charge
        named = f"{terms.charge_id} in period 0", terms.release.mu, now, {}, num_left_out, None
        return aggregator._peers.handle("accountant").call("charge_release", *named).result()

    saying_nothing_is_spent(monkeypatch)
    with monkeypatch.context() as patch:
        asking_only(patch, signers)
        aggregator._charge = charge
        outcome = run(fed)
    assert (outcome.model is None) is renews
    assert len(sums) == (not renews)
    aggregator._charge = honest
    fed._driver.client.call_baskets(Call(BasketHost.abandon_session))
    again = fresh_of(fed)
    assert again == ([f"d0{b}_basket_0" for b in (6, 7, 8)] if renews else [])


def test_a_basket_that_has_confirmed_nothing_charges_nothing(
    fed_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its actor would record a session as one that nobody dropped out of."""
    fed = fed_of(10)

    def collect(self: SecureSession) -> Any:
        host = fed._runtime.peers.handle("basket:0")  # type: ignore[attr-defined]
        host.call("advertise", self._terms, ())
        with pytest.raises(ProtocolViolation, match="confirmed 0 sets"):
            host.call("unmask", self._id, (VICTIM,), (), fed._driver.client.now()).result()
        raise SecureAggregationAborted("enough is seen")

    monkeypatch.setattr(SecureSession, "collect", collect)
    assert run(fed).aborted
    assert fed.get_stats()["privacy_consumed_epsilon"] == 0.0


@pytest.mark.parametrize("is_charged", [True, False])
def test_what_a_session_without_an_end_was_given_is_used_again_only_if_it_was_not_charged(
    fed_of: Any, sums: list[Any], monkeypatch: pytest.MonkeyPatch, is_charged: bool
) -> None:
    """Its actors settle it when the next session is prepared; what was given up is never unmasked."""
    fed = fed_of(10, silent=6)
    aggregator = role(fed, "global")
    aggregator._waits = lambda *args: ""
    stopped: list[SecureSession] = []
    with monkeypatch.context() as patch:
        patch.setattr(SecureSession, "end", lambda self: None)
        if is_charged:
            asking_only(patch, {f"d{b:02}_basket_0" for b in (0, 1, 2, 3, 4, 5, 9)})
            assert run(fed).model is not None
        else:
            honest = SecureSession.collect

            def collect(self: SecureSession) -> Any:
                honest(self)
                stopped.append(self)
                raise SecureAggregationAborted("the aggregator stops here")

            patch.setattr(SecureSession, "collect", collect)
            assert run(fed).model is None
    fed._driver.client.call_baskets(Call(BasketHost.abandon_session))
    assert fresh_of(fed) == ([] if is_charged else [f"d{b:02}_basket_0" for b in range(6, 10)])
    now = fed._driver.client.now()
    for session in stopped:
        terms = session._terms
        assert not aggregator._charge(terms, list(terms.release.weights), now, 0).allowed
    assert (run(fed).model is None) is is_charged
    assert len(sums) == 1


def test_two_attempts_of_one_name_are_two_charges_and_share_no_aggregate(
    fed_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = fed_of(20, noise="distributed_discrete_gaussian")
    aggregator = role(fed, "global")
    aggregator._noise = fed._driver.supervisor.identity.noise
    aggregator._entropy = lambda size: b"S" * size
    aggregator._waits = lambda *args: ""
    saying_nothing_is_spent(monkeypatch)
    names = [f"d{b:02}_basket_0" for b in range(20)]
    with monkeypatch.context() as patch:
        asking_only(patch, names[:14])
        assert run(fed).model is not None
    once = fed.get_stats()["privacy_consumed_epsilon"]
    aggregator._last.model = None
    assert fresh_of(fed) == [], "also the six that were not asked to sign"
    for latest in (h._baskets[b].latest for h in hosts(fed) for b in names[14:] if b in h._baskets):
        latest.replace(replace(latest.model), [])
    where, roster = fed._driver.tell_parties()
    assert aggregator.run(where.places[14:], 0, True, fed._driver.client.now(), roster).model is not None
    assert fed.get_stats()["privacy_consumed_epsilon"] > once


def test_what_is_masked_is_what_was_stated(fed_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client leaves for a basket that opens later, whose new aggregate has the counts of its old one."""
    fed = fed_of(3, per_actor=1)
    send(fed, range(3), 0.2)
    here, there = "d00_basket_0", "d01_basket_0"
    honest = PartyCalls.phase

    def phase(self: Any, parties: Any, call_for: Any, receive: Any, most: Any = None) -> None:
        if call_for(()).method != "advertise":
            return honest(self, parties, call_for, receive, most)
        honest(self, [here], call_for, receive, most)
        fed._driver.run_layer1(None, force=True)
        role(fed, "basket:0")._baskets[here].latest.discard_if_of("0_0")
        latest = role(fed, "basket:1")._baskets[there].latest
        latest.replace(replace(latest.model), ["0_0", "1_0"])
        return honest(self, [p for p in parties if p != here], call_for, receive, most)

    monkeypatch.setattr(PartyCalls, "phase", phase)
    aggregator = without_its_own_checks(fed, monkeypatch)
    assert run(fed).model is None
    told = " ".join(aggregator.stats()["violations"])
    assert f"basket {there!r} no longer has the aggregate that the session froze" in told


def test_an_aggregate_that_is_discarded_between_opening_and_masking_is_not_masked(
    fed_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = fed_of(6)
    honest = PartyCalls.phase

    def phase(self: Any, parties: Any, call_for: Any, receive: Any, most: Any = None) -> None:
        def discarding(batch: Any) -> Any:
            call = call_for(batch)
            if call.method == "mask":
                role(fed, "basket:0")._baskets[VICTIM].latest.discard_if_of("0_0")
            return call

        honest(self, parties, discarding, receive, most)

    monkeypatch.setattr(PartyCalls, "phase", phase)
    outcome = run(fed)
    assert outcome.model.n_baskets == 5
    assert outcome.dropped == (VICTIM,)


class AgreesWithAll(ReleasePlan):
    """Numbers whose own word is taken for it that they are right."""

    def agrees_with(self, other: ReleasePlan) -> bool:
        return True


class Named(SessionContext):
    """A context that chooses its digest, and so the name of its charge."""

    def digest(self) -> bytes:
        return bytes(32)


def fields_of(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


DISGUISES: dict[str, Forge] = {
    "release": lambda t: replace(t, release=AgreesWithAll(**fields_of(t.release))),
    "context": lambda t: replace(t, context=Named(**fields_of(t.context))),
    "facts": lambda t: replace(t, facts=OrderedDict(t.facts)),
    "a number": lambda t: replace(t, release=replace(t.release, mu=np.float64(t.release.mu))),
    "masked": lambda t: replace(t, masked=False),
    "nothing": lambda t: None,  # type: ignore[arg-type, return-value]
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_only_what_is_of_the_very_type_is_asked_anything(
    fed_of: Any, sums: list[Any], monkeypatch: pytest.MonkeyPatch, disguise: str
) -> None:
    fed = fed_of(6)
    honest = PartyCalls.phase

    def phase(self: Any, parties: Any, call_for: Any, receive: Any, most: Any = None) -> None:
        def given(batch: Any) -> Any:
            return Call(BasketHost.advertise, DISGUISES[disguise](call_for(batch).args[0]), batch)

        opening = call_for(()).method == "advertise"
        honest(self, parties, given if opening else call_for, receive, most)

    with monkeypatch.context() as patch:
        patch.setattr(PartyCalls, "phase", phase)
        assert run(fed).model is None
    assert sums == []
    assert refused(fed) == 6
    assert run(fed).model is not None


@pytest.mark.parametrize("noise", ["gaussian", "distributed_discrete_gaussian"])
def test_a_basket_with_facts_that_none_can_have_is_left_out_by_name(fed_of: Any, noise: str) -> None:
    """It stops nobody, and adds to nobody's noise."""
    fed = fed_of(8, per_actor=4, noise=noise)
    liar = role(fed, "basket:1")._baskets["d07_basket_0"]
    honest = liar.facts
    liar.facts = lambda: replace(honest(), clip_norm=1e30)
    outcome = run(fed)
    assert outcome.model is not None
    assert outcome.dropped == ("d07_basket_0",)
    assert "the facts of 'd07_basket_0'" in " ".join(role(fed, "global").stats()["violations"])


@pytest.mark.parametrize("change", [{"num_members": None}, {"num_rows": "x"}, {"num_rows": [1]}], ids=repr)
def test_a_basket_actor_whose_facts_are_none_stops_nobody(fed_of: Any, change: dict[str, Any]) -> None:
    """Also where they are asked for without a signature, to see whether a release is due."""
    fed = fed_of(8, per_actor=1)
    liar = role(fed, "basket:7")
    honest = liar.facts
    liar.facts = lambda parties, now: {p: replace(f, **change) for p, f in honest(parties, now).items()}
    outcome = run(fed)
    assert outcome.model is not None
    assert role(fed, "global").stats()["violations"] == [
        "the facts of 'd07_basket_0' are missing or malformed"
    ]
