"""A release's order: public facts, masked inputs, the durable charge, unmask shares, noise once, release."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest

from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.global_aggregator import GlobalAggregator
from scarcity_ray.actors.messages import Admission, BasketPlace
from scarcity_ray.baskets.reports import Member
from scarcity_ray.baskets.submission import SubmissionBatch
from scarcity_ray.config import (
    BasketConfig,
    BufferConfig,
    HierarchicalFederationConfig,
    Layer1Config,
    Layer2Config,
)
from scarcity_ray.errors import ActorLost
from scarcity_ray.plan import make_plan
from scarcity_ray.privacy.ledger.answers import Charge
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray.secagg import Party, RosterChain

D, NOW = 8, 1000.0
BASKETS = tuple(f"d_basket_{i}" for i in range(4))


class Accountant:
    """Allows until told otherwise, and remembers what it was asked."""

    def __init__(self):
        self.charges = {}
        self.dropped = {}
        self.voided = set()
        self.refuse = False
        self.read_only = False
        self.is_last = False

    def read_only_reason(self, now):
        return "the budget is spent" if self.read_only else ""

    def leave_out(self, now):
        return 0

    def charge_release(self, charge_id, mu, now, details, num_left_out, step):
        if self.refuse:
            return Charge(False, "it does not fit", 0.5, "head")
        repeated = charge_id in self.charges
        if charge_id in self.voided:
            return Charge(False, "given up", 0.5, "head")
        self.charges[charge_id] = mu
        dropped = self.dropped.setdefault(charge_id, tuple(details.get("dropped", ())))
        spent, head = 0.5 * len(self.charges), f"head{len(self.charges)}"
        return Charge(True, "", spent, head, repeated, self.is_last, dropped=dropped)

    def dropped_from(self, charge_id, now):
        return self.dropped.get(charge_id, ())

    def void_release(self, charge_id, now, details):
        if charge_id in self.charges:
            return False
        self.voided.add(charge_id)
        return True


class CountingNoise(SeededNoise):
    """Writes into the calls' log when noise is drawn."""

    def __init__(self, log):
        super().__init__(3)
        self.log = log

    def standard_normal(self, shape, stream):
        self.log.append(("noise", "draw", (stream,)))
        return super().standard_normal(shape, stream)


class World:
    """Four baskets, one an actor, with a fresh model each."""

    def __init__(self, peers, compute, *, secure=True, epsilon=1.0):
        config = HierarchicalFederationConfig(
            vector_dim=D,
            buffer=BufferConfig(participation_cap=50),
            basket=BasketConfig(min_clients=2),
            layer1=Layer1Config(aggregation_method="mean", min_updates=2),
            layer2=Layer2Config(use_secure_aggregation=secure, central_dp_epsilon=epsilon),
            total_epsilon=10.0 if math.isfinite(epsilon) else math.inf,
        )
        self.peers = peers
        self.plan = make_plan(config)
        self.accountant = Accountant()
        noise = CountingNoise(peers.log)
        peers.roles = {"accountant": self.accountant}
        self.places = []
        self.members = {}
        self.rows = {}
        for slot, basket in enumerate(BASKETS):
            host = BasketHost(slot, self.plan, "fed", peers, compute, noise)
            members = tuple(Member(f"{basket}/c{i}", "d") for i in range(3 + slot))
            place = BasketPlace(basket, "d", slot)
            identity = host.admit([Admission(place, members)])[basket]
            self.members[basket] = tuple(m.client_id for m in members)
            self.places.append(BasketPlace(basket, "d", slot, identity))
            peers.roles[f"basket:{slot}"] = host
        self.aggregator = GlobalAggregator(self.plan, "fed", peers, noise, self._session_ids())
        self.counter = itertools.count()
        self.chain = RosterChain("fed")
        self.train()

    def _session_ids(self):
        numbers = itertools.count(1)
        return lambda size: next(numbers).to_bytes(size, "big")

    def train(self):
        """Give every basket a new model."""
        rng = np.random.Generator(np.random.PCG64DXSM(next(self.counter)))
        for place in self.places:
            rows = (0.1 * rng.standard_normal((len(self.members[place.basket_id]), D))).astype(np.float32)
            host = self.host(place.slot)
            batch = SubmissionBatch(self.members[place.basket_id], rows)
            receipts = host.submit([place.basket_id] * len(rows), batch, NOW).receipts
            assert all(receipt.accepted for receipt in receipts), receipts
            (outcome,) = host.run_layer1(None, True, NOW)
            assert outcome.aggregated
            self.rows[place.basket_id] = rows

    def host(self, slot):
        return self.peers.roles[f"basket:{slot}"]

    def reopen(self, slot):
        """Give an actor its basket anew, without updates and without a model."""
        place = self.places[slot]
        self.host(slot).close_basket(place.basket_id)
        members = tuple(Member(c, "d") for c in self.members[place.basket_id])
        identity = self.host(slot).admit([Admission(place, members)])[place.basket_id]
        self.places[slot] = BasketPlace(place.basket_id, "d", slot, identity)

    def fresh(self):
        return [
            basket for slot, basket in enumerate(BASKETS) if self.host(slot).reports(NOW)[basket].facts.fresh
        ]

    def brief(self):
        """Tell the basket actors what a driver tells them before a session."""
        parties = tuple(Party(place.basket_id, place.identity) for place in self.places)
        if self.chain.newest is None or self.chain.newest.parties != parties:
            self.chain.follow([self.chain.next(parties)])
        for place in self.places:
            host = self.host(place.slot)
            assert not host.know_parties(self.chain.kept).refusal
            if self.aggregator.latest() is not None:
                host.adopt(self.aggregator.latest())

    def run(self, *, force=True, now=NOW):
        self.brief()
        self.peers.log.clear()
        return self.aggregator.run(self.places, 5, force, now, self.chain.newest)

    def methods(self):
        return [method for _, method, _ in self.peers.log]

    def expected(self, baskets=BASKETS):
        members = [len(self.rows[b]) for b in baskets]
        means = [self.rows[b].mean(axis=0) for b in baskets]
        return np.average(means, axis=0, weights=members)


@pytest.fixture
def world_of(peers, compute_of):
    return functools.partial(World, peers, compute_of())


def test_a_release_is_charged_before_the_first_unmask_call_and_noised_once_after_it(world_of):
    world = world_of()
    outcome = world.run()
    methods = world.methods()
    assert outcome.model is not None
    assert methods.count("charge_release") == 1 + len(BASKETS), "each basket actor makes sure of it"
    assert len(world.accountant.charges) == 1
    assert methods.index("charge_release") > max(world.peers.calls("confirm"))
    assert methods.index("charge_release") < min(world.peers.calls("unmask"))
    assert methods.count("draw") == 1
    assert methods.index("draw") > methods.index("charge_release")
    assert min(world.peers.calls("end_session")) > max(world.peers.calls("unmask"))
    assert (outcome.model.version, outcome.model.n_baskets, outcome.model.round_id) == (1, 4, 5)
    assert outcome.model.n_clients_total == 3 + 4 + 5 + 6
    assert outcome.model.ledger_head == "head1"
    assert world.aggregator.latest() is outcome.model
    assert world.fresh() == []


def test_a_plain_sum_is_charged_before_it_is_released_too(world_of):
    world = world_of(secure=False)
    assert world.run().model is not None
    methods = world.methods()
    assert methods.index("charge_release") > max(world.peers.calls("contribute"))
    assert methods.index("draw") > methods.index("charge_release")
    ended = [args[1] for _, method, args in world.peers.log if method == "end_session"]
    assert ended == [BASKETS] * 4, "all are told that theirs may be released"


@pytest.mark.parametrize("secure", [True, False])
def test_without_noise_the_release_is_the_mean_weighted_by_members(world_of, secure):
    world = world_of(secure=secure, epsilon=math.inf)
    model = world.run().model
    np.testing.assert_allclose(model.aggregate, world.expected(), atol=2e-6)


def test_the_charge_carries_the_releases_own_mu_and_what_the_noise_is_scaled_to(world_of):
    world = world_of()
    model = world.run().model
    (_, _, (charge_id, mu, _, details, *_)), *_ = [
        entry for entry in world.peers.log if entry[1] == "charge_release"
    ]
    assert mu == world.plan.mu_release
    assert charge_id in world.accountant.charges
    assert details["grid_sigma"] == pytest.approx(details["grid_sensitivity"] / mu, rel=1e-15)
    assert model.noise_sigma == pytest.approx(details["grid_sigma"] / details["scale"])


def test_a_refused_charge_releases_nothing(world_of):
    world = world_of()
    world.accountant.refuse = True
    outcome = world.run()
    assert outcome.model is None
    assert outcome.read_only
    assert outcome.reason == "it does not fit"
    assert not {"unmask", "draw"} & set(world.methods())
    assert world.aggregator.latest() is None
    assert world.fresh() == list(BASKETS)


def test_a_spent_budget_opens_no_session(world_of):
    world = world_of()
    world.accountant.read_only = True
    outcome = world.run()
    assert outcome.model is None
    assert outcome.read_only
    assert "advertise" not in world.methods()


@pytest.mark.parametrize("charged", [False, True])
def test_what_was_masked_is_masked_again_only_if_its_session_is_given_up(world_of, charged):
    """Whoever has masked cannot know that nobody unmasked; the accountant says it once it is back."""
    world = world_of()
    world.peers.lose("accountant", "charge_release", after=charged)
    world.peers.lose("accountant", "void_release")
    with pytest.raises(ActorLost) as lost:
        world.run()
    assert lost.value.role == "accountant"
    assert not {"unmask", "draw"} & set(world.methods())
    assert world.methods().count("end_session") == 4
    assert world.fresh() == []

    world.peers.faults.clear()
    (first,) = [args[0] for _, method, args in world.peers.log if method == "charge_release"]
    outcome = world.run()
    assert (outcome.model is None, bool(outcome.unpublished)) == (charged, charged)
    assert len(world.accountant.charges) == 1
    assert (first in world.accountant.charges) is charged

    world.train()
    assert world.run().model is not None
    assert len(world.accountant.charges) == 2


@pytest.mark.parametrize("who", ["accountant", "baskets"])
def test_what_was_charged_and_is_no_release_is_told(world_of, who):
    """The accountant dies before it answers, or too few baskets are left to unmask."""
    world = world_of()
    if who == "accountant":
        world.peers.lose("accountant", "charge_release", after=True)
        with pytest.raises(ActorLost):
            world.run()
        world.peers.faults.clear()
    else:
        for slot in (0, 1):
            world.peers.lose(f"basket:{slot}", "unmask")
        assert world.run().unpublished == {"": 1}
        world.peers.faults.clear()
    assert world.run().unpublished == {"": 1}
    world.train()
    released = world.run()
    assert (released.model.version, released.unpublished) == (1, {"": 1}), "the driver before may have died"
    world.train()
    assert world.run().unpublished == {"": 1}


@pytest.mark.parametrize("is_last", [True, False])
def test_an_accountant_that_is_lost_after_the_charge_does_not_hide_the_release(world_of, is_last):
    """The charge's answer says whether another fits: nothing is asked once all have charged."""
    world = world_of()
    world.accountant.is_last = is_last
    outcome = world.run()
    assert outcome.model is world.aggregator.latest() is not None
    assert outcome.read_only is is_last
    asked = [method for role, method, _ in world.peers.log if role == "accountant"]
    assert asked[: 2 + len(BASKETS)] == ["read_only_reason"] + ["leave_out"] * (1 + len(BASKETS))
    assert asked[2 + len(BASKETS) :] == ["charge_release"] * (1 + len(BASKETS))


@pytest.mark.parametrize("phase", ["advertise", "share_keys", "mask", "confirm"])
def test_a_session_below_its_threshold_costs_nothing_and_is_retried(world_of, phase):
    world = world_of()
    for slot in (0, 1):
        world.peers.lose(f"basket:{slot}", phase)
    outcome = world.run()
    assert outcome.model is None
    assert not outcome.read_only
    assert (outcome.aborted, outcome.lost_roles) == (True, ("basket:0", "basket:1"))
    assert not {"charge_release", "unmask", "draw"} & set(world.methods())
    assert world.aggregator.stats()["n_layer2_aborts"] == 1
    assert world.fresh() == list(BASKETS)
    world.peers.faults.clear()
    assert world.run().model.version == 1


def test_an_abort_while_unmasking_keeps_its_charge_and_spends_the_models(world_of):
    world = world_of()
    for slot in (0, 1):
        world.peers.lose(f"basket:{slot}", "unmask", after=True)
    assert world.run().model is None
    assert "draw" not in world.methods()
    assert len(world.accountant.charges) == 1
    assert world.fresh() == []
    world.peers.faults.clear()
    world.train()
    assert world.run().model.version == 1
    assert len(world.accountant.charges) == 2


def test_a_dropout_within_the_threshold_is_left_out_and_named(world_of):
    world = world_of(epsilon=math.inf)
    world.peers.lose("basket:2", "mask")
    outcome = world.run()
    left = [b for b in BASKETS if b != BASKETS[2]]
    assert outcome.model.n_baskets == 3
    assert outcome.dropped == (BASKETS[2],)
    assert "basket:2" in outcome.lost_roles
    np.testing.assert_allclose(outcome.model.aggregate, world.expected(left), atol=2e-6)


def test_a_basket_without_a_fresh_model_takes_part_with_nothing(world_of):
    world = world_of(epsilon=math.inf)
    world.reopen(0)
    model = world.run().model
    assert model.n_baskets == 3
    np.testing.assert_allclose(model.aggregate, world.expected(BASKETS[1:]), atol=2e-6)


def test_too_few_fresh_baskets_after_dropouts_release_nothing_though_the_threshold_is_met(world_of):
    world = world_of()
    world.reopen(0)
    world.peers.lose("basket:3", "mask")
    outcome = world.run()
    assert outcome.model is None
    assert not {"charge_release", "unmask", "draw"} & set(world.methods())
    assert outcome.aborted
    world.peers.faults.clear()
    assert world.run().model.n_baskets == 3


def test_with_fewer_fresh_baskets_than_hide_each_other_from_the_corrupt_no_session_begins(world_of):
    """Of four registered one may be corrupt, so two fresh ones would show each other's to it."""
    world = world_of()
    world.reopen(0)
    world.reopen(1)
    outcome = world.run()
    assert (outcome.model, outcome.aborted) == (None, False)
    assert "2 fresh baskets; a release needs 3 while 1 of those registered may be corrupt" in outcome.reason
    assert not {"sign_facts", "advertise"} & set(world.methods())


def test_it_waits_until_a_trigger_fires_unless_forced(world_of):
    world = world_of()
    world.run()
    world.train()
    world.reopen(0)
    waits = world.run(force=False, now=NOW + 1)
    assert waits.model is None
    assert "3 of 4" in waits.reason
    assert world.run(force=False, now=NOW + 1000).model.version == 2


def test_it_holds_no_baskets_plain_aggregate_while_it_runs_or_after(world_of):
    world = world_of()
    plain = [world.host(slot).basket_model(basket).aggregate.tobytes() for slot, basket in enumerate(BASKETS)]
    seen = []

    def arrays(thing, depth=0):
        if isinstance(thing, np.ndarray):
            seen.append(thing.astype(np.float32).tobytes())
        elif isinstance(thing, dict):
            for value in thing.values():
                arrays(value, depth)
        elif isinstance(thing, list | tuple):
            for value in thing:
                arrays(value, depth)
        elif depth < 3 and hasattr(thing, "__dict__") and "scarcity" in type(thing).__module__:
            arrays(vars(thing), depth + 1)

    for slot in range(4):
        world.peers.say(f"basket:{slot}", "mask", lambda m: (arrays(m), m)[1])
    world.run()
    arrays({k: v for k, v in vars(world.aggregator).items() if k != "_peers"})
    assert seen
    assert not set(plain) & set(seen)


def test_it_comes_back_with_its_last_release(world_of):
    world = world_of()
    world.run()
    again = GlobalAggregator(world.plan, "fed", world.peers, SeededNoise(1), latest=world.aggregator.latest())
    world.aggregator = again
    world.train()
    assert world.run().model.version == 2
