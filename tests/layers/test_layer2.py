"""Layer 2: weights, noise of the right scale, and the same sum masked and plain."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scarcity_ray.config import BasketConfig, HierarchicalFederationConfig, Layer1Config, Layer2Config
from scarcity_ray.errors import UsageError
from scarcity_ray.layers import BasketModel, GlobalMetaModel, Layer2Aggregator
from scarcity_ray.layers.layer2 import add_share, contribution, decode_meta, noised_mean
from scarcity_ray.plan import FederationPlan
from scarcity_ray.privacy.sampling.discrete_gaussian import DiscreteGaussian
from scarcity_ray.privacy.sampling.noise import SeededNoise, SystemNoise
from scarcity_ray.secagg import Coordinator, IdentityKeyPair, Participant, Party, SessionContext
from scarcity_ray.secagg.fixed_point import to_signed

ALARM = 1e-6


def model(basket="a", vector=(0.1, -0.2, 0.3), *, contributors=5, members=5, meta=()):
    return BasketModel(
        basket_id=basket,
        aggregate=np.asarray(vector, np.float32),
        n_contributors=contributors,
        round_id=1,
        timestamp=2.0,
        confidence=1.0,
        n_members=members,
        meta=np.asarray(meta, np.float64),
    )


def quiet(**layer2):
    return Layer2Aggregator(Layer2Config(central_dp_epsilon=math.inf, **layer2))


@given(data=st.data())
def test_without_noise_it_is_the_weighted_mean_of_the_clipped_models(data):
    d = data.draw(st.integers(1, 6))
    by_size = data.draw(st.booleans())
    trust = data.draw(st.dictionaries(st.sampled_from(["d0", "d1"]), st.floats(0.1, 4)))
    clip = data.draw(st.sampled_from([0.5, 1.0, 7.0]))
    rng = np.random.Generator(np.random.PCG64DXSM(data.draw(st.integers(0, 10**6))))
    models = [
        model(f"b{i}", rng.standard_normal(d), members=data.draw(st.integers(1, 90)))
        for i in range(data.draw(st.integers(2, 6)))
    ]
    domains = {m.basket_id: f"d{i % 3}" for i, m in enumerate(models)}
    config = {"weight_by_size": by_size, "basket_trust": trust, "clip_norm": clip}
    found = quiet(**config).aggregate(models, domains=domains)
    weights = [(m.n_members if by_size else 1) * trust.get(domains[m.basket_id], 1.0) for m in models]
    vectors = [m.aggregate * min(1.0, clip / np.linalg.norm(m.aggregate)) for m in models]
    expected = np.average(vectors, axis=0, weights=weights)
    # Half a grid step a basket, and float32 at the end.
    np.testing.assert_allclose(found.aggregate, expected, atol=clip * (len(models) * 2.0**-23 + 2.0**-22))
    assert found.noise_sigma == 0.0


def test_negative_sums_come_out_negative():
    found = quiet().aggregate([model("a", [-0.5, 0.25]), model("b", [-0.5, 0.25])])
    np.testing.assert_allclose(found.aggregate, [-0.5, 0.25], atol=1e-6)


def test_a_global_model_says_what_is_in_it():
    models = [model("a", contributors=4), model("b", contributors=7)]
    found = Layer2Aggregator(noise=SeededNoise(1)).aggregate(models, round_id=3, timestamp=9.0)
    assert isinstance(found, GlobalMetaModel)
    assert (found.n_baskets, found.n_clients_total, found.round_id, found.timestamp) == (2, 11, 3, 9.0)
    assert (found.privacy_spent, found.version, found.meta_params) == (1.0, 1, {})
    assert found.aggregate.dtype == np.float32
    assert found.noise_sigma > 0


def test_too_few_doubled_or_unequal_models_are_refused():
    for models in (
        [model("a")],
        [],
        [model("a"), model("a")],
        [model("a"), model("b", [1.0])],
    ):
        with pytest.raises(UsageError):
            quiet().aggregate(models)
    with pytest.raises(UsageError, match="basket_trust"):
        quiet(basket_trust={"": 0.0}).aggregate([model("a"), model("b")])
    with pytest.raises(UsageError, match="vector_dim"):
        Layer2Aggregator(HierarchicalFederationConfig(vector_dim=9)).aggregate([model("a"), model("b")])


def has_scale(sample, sigma):
    """Whether a sample's variance is sigma^2, two-sided at the stated false-alarm rate."""
    statistic = float(np.sum((sample / sigma) ** 2))
    p = stats.chi2.cdf(statistic, len(sample))
    return ALARM / 2 < p < 1 - ALARM / 2


@pytest.mark.parametrize("noise", [SystemNoise(), SeededNoise(5)])
@pytest.mark.parametrize("rule", ["mean", "krum"])
def test_the_noise_has_the_scale_of_the_release_plan_and_no_other(noise, rule):
    d = 4000
    config = HierarchicalFederationConfig(
        vector_dim=d,
        total_epsilon=20.0,
        basket=BasketConfig(min_clients=5),
        layer1=Layer1Config(aggregation_method=rule, clip_norm=0.5, num_byzantine=1),
        layer2=Layer2Config(central_dp_epsilon=2.0),
    )
    models = [model(b, np.zeros(d), contributors=5 + i, members=9 + i) for i, b in enumerate("abc")]
    found = Layer2Aggregator(config, noise=noise).aggregate(models)
    plan = FederationPlan(config)
    # By hand: greatest weight times the rule's sensitivity, over mu; the weights add up to 1.
    members = [9, 10, 11]
    by_rule = [2 * 0.5 / n if rule == "mean" else 2 * 0.5 for n in (5, 6, 7)]
    sigma = max(m / 30 * s for m, s in zip(members, by_rule, strict=True)) / plan.mu_release
    assert found.noise_sigma == pytest.approx(sigma, rel=1e-3)
    assert has_scale(found.aggregate.astype(np.float64), sigma)
    assert not has_scale(found.aggregate.astype(np.float64), sigma * 1.5)
    assert not has_scale(found.aggregate.astype(np.float64), sigma / 1.5)


@pytest.mark.parametrize("source", [SystemNoise(), SeededNoise(5)])
def test_in_one_process_each_model_adds_its_share(source):
    d = 4000
    shares = Layer2Config(noise="distributed_discrete_gaussian")
    models = [model(b, np.zeros(d)) for b in "abcd"]
    found = Layer2Aggregator(shares, noise=source).aggregate(models)
    alone = Layer2Aggregator(Layer2Config(noise="discrete_gaussian"), noise=source).aggregate(models)
    # Threshold 3 of 4, one of them corrupt: two shares make what one party would add, and four are added.
    assert found.noise_sigma == pytest.approx(alone.noise_sigma * math.sqrt(4 / 2), rel=1e-9)
    assert has_scale(found.aggregate.astype(np.float64), found.noise_sigma)
    assert not has_scale(found.aggregate.astype(np.float64), alone.noise_sigma)
    assert not has_scale(found.aggregate.astype(np.float64), found.noise_sigma * math.sqrt(3 / 4))


def test_a_share_is_added_in_the_ring_and_to_a_copy():
    plan = FederationPlan(
        HierarchicalFederationConfig(
            vector_dim=50, layer2=Layer2Config(noise="distributed_discrete_gaussian", central_dp_epsilon=0.01)
        )
    )
    release = plan.release([model(b, np.zeros(50)).facts("d", 5) for b in "ab"])
    for dtype in (np.uint32, np.uint64):
        part = np.full(50, np.iinfo(dtype).max - 3, dtype)
        noised = add_share(part, release, SeededNoise(2), "s")
        drawn = DiscreteGaussian(release.share_sigma).sample(50, SeededNoise(2).uniform_words("s"))
        wrapped = [
            (int(p) + int(x)) % (int(np.iinfo(dtype).max) + 1) for p, x in zip(part, drawn, strict=True)
        ]
        assert noised.tolist() == wrapped
        assert noised.dtype == dtype
        assert (part == np.iinfo(dtype).max - 3).all()
    assert add_share(part, replace(release, share_sigma=0.0), SeededNoise(2), "s") is part


@pytest.mark.parametrize("noise", ["gaussian", "discrete_gaussian"])
def test_after_dropouts_sum_and_noise_are_divided_by_the_surviving_weight(noise):
    layer2 = Layer2Config(noise=noise)
    plan = FederationPlan(HierarchicalFederationConfig(vector_dim=2000, layer2=layer2))
    models = [model(b, np.full(2000, 0.01), members=m) for b, m in zip("abc", (10, 20, 30), strict=True)]
    release = plan.release([m.facts("d", m.n_members) for m in models])
    parts = {m.basket_id: contribution(m, m.basket_id, release, plan) for m in models}
    survivors = ("a", "b")
    ring_sum = parts["a"] + parts["b"]
    vector, sigma = noised_mean(ring_sum, release, survivors, SeededNoise(1), "s")
    assert sigma == pytest.approx(release.grid_sigma(survivors) / release.scale / 0.5)
    assert has_scale(vector - 0.01, sigma)
    assert not has_scale(vector - 0.01, sigma * 1.5)
    assert not has_scale(vector - 0.01, sigma / 1.5)


def test_the_discrete_choice_adds_exact_discrete_noise_to_the_integers():
    layer2 = Layer2Config(noise="discrete_gaussian")
    plan = FederationPlan(HierarchicalFederationConfig(vector_dim=300, layer2=layer2))
    release = plan.release([model(b, np.full(300, 0.1)).facts("d", 5) for b in "ab"])
    sigma = release.grid_sigma(("a", "b"))
    # What is claimed, in rational arithmetic: Delta^2 / (2 sigma^2) <= mu^2 / 2.
    sensitivity = Fraction(release.grid_sensitivity(("a", "b")))
    assert sensitivity / Fraction(sigma) <= Fraction(release.mu)
    assert sensitivity / Fraction(sigma) > Fraction(release.mu) * (1 - Fraction(1, 2**50))
    ring_sum = np.zeros(300, np.uint32) + np.uint32(7)
    vector, released_sigma = noised_mean(ring_sum, release, ("a", "b"), SeededNoise(5), "layer2/1")
    steps = np.rint(vector * release.scale * release.surviving_weight(("a", "b"))).astype(np.int64)
    drawn = DiscreteGaussian(sigma).sample(300, SeededNoise(5).uniform_words("layer2/1"))
    np.testing.assert_array_equal(steps, 7 + drawn)
    assert released_sigma == sigma / release.scale
    again, _ = noised_mean(ring_sum, release, ("a", "b"), SystemNoise(), "layer2/1")
    assert not np.array_equal(vector, again)


@pytest.mark.parametrize("noise", ["gaussian", "discrete_gaussian"])
def test_without_a_claim_there_is_no_noise_of_either_kind(noise):
    layer2 = Layer2Config(noise=noise, central_dp_epsilon=math.inf)
    config = HierarchicalFederationConfig(vector_dim=5, layer2=layer2, total_epsilon=math.inf)
    release = FederationPlan(config).release([model("a", np.ones(5)).facts("d", 5)])
    vector, sigma = noised_mean(np.full(5, 3, np.uint32), release, ("a",), SystemNoise(), "s")
    assert sigma == 0.0
    np.testing.assert_array_equal(vector * release.scale, 3)


@pytest.mark.parametrize("ring", [np.uint32, np.uint64])
@pytest.mark.parametrize("noise", ["gaussian", "discrete_gaussian"])
def test_the_rings_edge_betrays_nothing(noise, ring):
    """A corrupt basket adds half the ring, so that neighbours' sums lie on either side of its edge."""
    d = 2000
    plan = FederationPlan(HierarchicalFederationConfig(vector_dim=d, layer2=Layer2Config(noise=noise)))
    release = plan.release([model(b, np.zeros(d)).facts("d", 5) for b in "ab"])
    half = 2 ** (8 * np.dtype(ring).itemsize - 1)
    # One coordinate's sum, d times over: each time with noise of its own.
    move = int(release.grid_sensitivity(("a", "b")) / 2)
    found = {}
    for sign in (-1, 1):
        ring_sum = np.full(d, half + sign * move, ring)
        vector, _ = noised_mean(ring_sum, release, ("a", "b"), SystemNoise(), "s")
        steps = vector * release.scale * release.surviving_weight(("a", "b"))
        assert (np.abs(steps) <= half).all()
        found[sign] = float(np.mean(steps > 0.0))
    # mu-GDP: no test tells them apart with an advantage above 2 Phi(mu / 2) - 1; without the wrap it is 1.
    most = 2.0 * stats.norm.cdf(release.mu / 2.0) - 1.0
    assert abs(found[1] - found[-1]) < most + 5.0 / math.sqrt(d)


def test_noise_falls_on_the_grid_so_that_no_low_order_bits_are_left():
    plan = FederationPlan(HierarchicalFederationConfig(vector_dim=50))
    models = [model(b, np.full(50, 0.123)) for b in "ab"]
    release = plan.release([m.facts("d", 5) for m in models])
    ring_sum = sum(contribution(m, m.basket_id, release, plan) for m in models)
    vector, _ = noised_mean(ring_sum, release, ("a", "b"), SystemNoise(), "s")
    steps = vector * release.scale * release.surviving_weight(("a", "b"))
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-6)


def test_a_contribution_never_exceeds_its_weight_times_the_clip_norm():
    plan = FederationPlan(HierarchicalFederationConfig(vector_dim=30, layer2=Layer2Config(clip_norm=0.3)))
    rng = np.random.Generator(np.random.PCG64DXSM(0))
    for scale in (1e-9, 0.1, 1.0, 1e30):
        one = model("a", scale * rng.standard_normal(30), members=3)
        release = plan.release([one.facts("d", 3), model("b", members=9).facts("d", 9)])
        part = to_signed(contribution(one, "a", release, plan)) / release.scale
        room = math.sqrt(30) / 2 / release.scale
        assert np.linalg.norm(part) <= release.weights["a"] * 0.3 * (1 + 1e-6) + room


def test_a_basket_without_a_model_gives_the_zero_vector_and_has_no_weight():
    plan = FederationPlan(HierarchicalFederationConfig(vector_dim=4))
    release = plan.release([model("a", [0.1] * 4).facts("d", 5)])
    stale = plan.release([model("a").facts("d", 5), model("b", contributors=0).facts("d", 9)])
    assert stale.weights == {"a": 1.0, "b": 0.0}
    part = contribution(None, "b", release, plan)
    assert not part.any()
    assert part.shape == (4,)


def masked_sum(parts, ring_bits):
    identities = {b: IdentityKeyPair.generate() for b in parts}
    context = SessionContext(
        federation_id="tests",
        session_id=bytes(16),
        round_id=0,
        attempt=0,
        model_hash=hashlib.sha256(b"").digest(),
        dimension=len(next(iter(parts.values()))),
        ring_bits=ring_bits,
        threshold=len(parts),
        parties=tuple(Party(b, identities[b].public_bytes) for b in parts),
    )
    coordinator = Coordinator(context)
    people = {b: Participant(context, b, identities[b]) for b in sorted(parts)}
    for person in people.values():
        coordinator.add_advert(person.advertise())
    adverts = coordinator.adverts()
    for person in people.values():
        coordinator.add_key_shares(person.share_keys(adverts))
    coordinator.sharers()
    for b, person in people.items():
        coordinator.add_masked(person.mask(coordinator.inbox(b), parts[b]))
    survivors = coordinator.survivors()
    for person in people.values():
        coordinator.add_confirmation(person.confirm(survivors))
    confirmations = coordinator.confirmations()
    for person in people.values():
        coordinator.add_unmask_shares(person.unmask(confirmations))
    return coordinator.finish()


@pytest.mark.parametrize("noise", ["gaussian", "discrete_gaussian"])
@pytest.mark.parametrize(("epsilon", "ring_bits"), [(1.0, 32), (0.01, 64)])
def test_the_plain_sum_and_the_secure_sum_give_the_same_bytes(epsilon, ring_bits, noise):
    config = HierarchicalFederationConfig(
        vector_dim=20,
        layer2=Layer2Config(central_dp_epsilon=epsilon, noise=noise),
        meta_parameters={"rate": (0.0, 1.0)},
    )
    plan = FederationPlan(config)
    rng = np.random.Generator(np.random.PCG64DXSM(4))
    models = [model(b, rng.standard_normal(20), members=3 + i, meta=[0.5]) for i, b in enumerate("abcd")]
    release = plan.release([m.facts("", m.n_members) for m in models])
    assert release.ring_bits == ring_bits
    parts = {m.basket_id: contribution(m, m.basket_id, release, plan) for m in models}
    total = masked_sum(parts, ring_bits)
    vector, _ = noised_mean(total, release, tuple("abcd"), SeededNoise(3), "layer2/0")
    plain = Layer2Aggregator(config, noise=SeededNoise(3)).aggregate(models)
    assert plain.aggregate.tobytes() == vector[:20].astype(np.float32).tobytes()
    assert plain.meta_params == decode_meta(vector, release, plan)
