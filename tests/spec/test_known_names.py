"""The names, defaults and meanings that users of the older package know."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest

import scarcity_ray
from scarcity_ray import (
    AggregationMethod,
    BufferConfig,
    BufferedUpdate,
    CentralDPMechanism,
    GlobalMetaModel,
    GossipConfig,
    GossipMessage,
    IdentityKeyPair,
    Layer1Aggregator,
    Layer1Config,
    Layer2Aggregator,
    Layer2Config,
    LocalDPMechanism,
    MaterialityDetector,
    PeerSampler,
    PrivacyAccountant,
    ReplayGuard,
    TriggerEngine,
    UpdateBuffer,
    detect_outliers,
)
from scarcity_ray.baskets.update_buffer import ReplayKey
from scarcity_ray.layers import BasketModel
from scarcity_ray.privacy.sampling.noise import SeededNoise

DEFAULTS: list[tuple[Any, dict[str, Any]]] = [
    (
        GossipConfig,
        {
            "peers_per_round": 5,
            "pull_interval": 2.0,
            "push_drift_threshold": 0.1,
            "clip_norm": 1.0,
            "local_dp_epsilon": 0.5,
            "local_dp_delta": 1e-5,
            "max_messages_per_day": 24,
            "message_ttl": 300.0,
        },
    ),
    (
        BufferConfig,
        {
            "max_staleness": 5,
            "min_updates_trigger": None,
            "time_trigger_seconds": 60.0,
            "participation_cap": 3,
        },
    ),
    (
        Layer1Config,
        {
            "aggregation_method": AggregationMethod.KRUM,
            "min_updates": 3,
            "clip_norm": 1.0,
            "byzantine_fraction": 0.2,
            "num_byzantine": None,
        },
    ),
    (
        Layer2Config,
        {
            "use_secure_aggregation": True,
            "central_dp_epsilon": 1.0,
            "central_dp_delta": 1e-5,
            "clip_norm": 1.0,
            "min_baskets": 2,
            "weight_by_size": True,
        },
    ),
]

FIELDS: list[tuple[Any, list[str]]] = [
    (
        GossipMessage,
        ["sender_id", "basket_id", "summary_vector", "sequence_number", "timestamp", "round_id"],
    ),
    (BufferedUpdate, ["client_id", "basket_id", "update", "round_id", "timestamp", "staleness"]),
    (BasketModel, ["basket_id", "aggregate", "n_contributors", "round_id", "timestamp", "confidence"]),
    (
        GlobalMetaModel,
        ["aggregate", "n_baskets", "n_clients_total", "round_id", "timestamp", "privacy_spent"],
    ),
]

NAMED = [
    "AggregationMethod",
    "BasketModel",
    "BufferConfig",
    "BufferedUpdate",
    "CentralDPMechanism",
    "GlobalMetaModel",
    "GossipConfig",
    "GossipMessage",
    "IdentityKeyPair",
    "Layer1Aggregator",
    "Layer1Config",
    "Layer2Aggregator",
    "Layer2Config",
    "LocalDPMechanism",
    "MaterialityDetector",
    "PeerSampler",
    "PrivacyAccountant",
    "ReplayGuard",
    "TriggerEngine",
    "UpdateBuffer",
    "detect_outliers",
]


@pytest.mark.parametrize(("kind", "defaults"), DEFAULTS, ids=lambda v: getattr(v, "__name__", ""))
def test_configs_keep_their_defaults(kind: Any, defaults: dict[str, Any]) -> None:
    config = kind()
    assert {name: getattr(config, name) for name in defaults} == defaults


@pytest.mark.parametrize(("kind", "names"), FIELDS, ids=lambda v: getattr(v, "__name__", ""))
def test_data_classes_keep_their_first_fields(kind: Any, names: list[str]) -> None:
    assert [field.name for field in dataclasses.fields(kind)][: len(names)] == names


@pytest.mark.parametrize("name", NAMED)
def test_names_are_exported_from_the_top_level(name: str) -> None:
    assert name in scarcity_ray.__all__
    assert getattr(scarcity_ray, name) is not None


def test_all_is_sorted_and_complete() -> None:
    assert scarcity_ray.__all__ == sorted(scarcity_ray.__all__)
    assert all(hasattr(scarcity_ray, name) for name in scarcity_ray.__all__)


def test_aggregation_method_has_the_seven_rules() -> None:
    known = {"fedavg", "weighted", "median", "trimmed_mean", "krum", "multi_krum", "bulyan"}
    assert known <= {method.value for method in AggregationMethod}


def test_gossip_message_has_an_age_and_expires() -> None:
    message = GossipMessage("a", "b", np.zeros(2, np.float32), 0, timestamp=100.0, round_id=3)
    assert message.age(now=130.0) == 30.0
    assert not message.is_expired(300.0, now=400.0)
    assert message.is_expired(300.0, now=400.1)


@pytest.mark.parametrize("kind", [LocalDPMechanism, CentralDPMechanism])
def test_mechanisms_are_calibrated_analytically(kind: Any) -> None:
    mechanism = kind(epsilon=1.0, delta=1e-5, sensitivity=1.0, noise=SeededNoise(3))
    # Balle, Wang 2018: 3.7306 at (1, 1e-5); the classic formula says 4.84.
    assert mechanism.sigma == pytest.approx(3.7306, abs=2e-4)
    assert mechanism.add_noise(np.zeros(3)).shape == (3,)
    assert mechanism.clip_and_noise(np.ones(3), 0.5).shape == (3,)


def test_materiality_detector_pushes_what_has_drifted() -> None:
    detector = MaterialityDetector(drift_threshold=0.1)
    state = np.array([0.3, 0.4], np.float32)
    assert detector.should_push("a", state)
    detector.update_state("a", state)
    assert not detector.should_push("a", state)
    assert detector.should_push("a", state + np.float32(0.1))


def test_peer_sampler_samples_without_the_excluded() -> None:
    sampler = PeerSampler(rotation_window=10)
    peers = sampler.sample(["a", "b", "c", "d"], 2, exclude="a")
    assert len(set(peers)) == 2
    assert "a" not in peers
    sampler.advance_round()
    assert inspect.signature(PeerSampler).parameters["rotation_window"].default == 10


def test_update_buffer_adds_and_pops_by_basket() -> None:
    buffer = UpdateBuffer(BufferConfig(), 2)
    assert buffer.add("a", "basket", np.ones(2), 0, now=0.0) is True
    assert buffer.add("a", "basket", np.ones(2), 0, now=0.0) is False
    buffer.advance_round()
    assert [update.staleness for update in buffer.get_basket_updates("basket")] == [1]
    assert len(buffer.pop_basket_updates("basket")) == 1
    assert buffer.get_stats()["buffered"] == 0


def test_trigger_engine_fires_once_and_is_cleared() -> None:
    engine = TriggerEngine(BufferConfig(min_updates_trigger=3))
    assert not engine.should_trigger("basket", n_updates=2, time_since_last=1.0)
    assert engine.should_trigger("basket", n_updates=3, time_since_last=1.0)
    assert engine.check_and_clear("basket")
    assert not engine.check_and_clear("basket")


def test_replay_guard_checks_marks_and_clears() -> None:
    guard, key = ReplayGuard(), ReplayKey("a", 3, b"digest")
    assert guard.check(key)
    guard.mark(key)
    assert not guard.check(key)
    guard.clear_round(3)
    assert guard.check(key)


def test_privacy_accountant_checks_spends_remains_and_resets() -> None:
    accountant = PrivacyAccountant(1.0, 1e-5)
    assert accountant.remaining() == (1.0, 1e-5)
    assert accountant.check(0.1, 0.0)
    assert accountant.spend(0.1, 0.0) is True
    assert accountant.spend(5.0, 0.0) is False
    assert accountant.remaining()[0] < 1.0
    accountant.reset()
    assert accountant.remaining() == (1.0, 1e-5)


def test_layer1_aggregator_gives_a_basket_model() -> None:
    rows = np.array([[0.1, 0.0], [0.1, 0.1], [0.0, 0.1], [0.1, 0.1], [-0.9, 0.3]])
    model = Layer1Aggregator(Layer1Config()).aggregate(rows)
    assert isinstance(model, BasketModel)
    assert (model.n_contributors, model.confidence) == (5, 1.0)


def test_layer2_aggregator_gives_a_global_meta_model() -> None:
    layer1 = Layer1Aggregator(Layer1Config(aggregation_method=AggregationMethod.FEDAVG))
    models = [layer1.aggregate(np.full((3, 2), value), basket_id=f"b{value}") for value in (0.1, 0.2)]
    model = Layer2Aggregator(Layer2Config()).aggregate(models)
    assert isinstance(model, GlobalMetaModel)
    assert (model.n_baskets, model.n_clients_total) == (2, 6)


def test_identity_key_pair_signs_and_verifies() -> None:
    keypair = IdentityKeyPair.generate()
    signature = keypair.sign(b"message")
    assert keypair.verify(b"message", signature)
    assert not keypair.verify(b"another", signature)
    assert len(keypair.public_bytes) == 32
    assert len(signature) == 64


def test_detect_outliers_has_its_threshold() -> None:
    assert inspect.signature(detect_outliers).parameters["z_thresh"].default == 4.0
    rows = np.vstack([np.random.default_rng(0).normal(size=(20, 4)), np.full((1, 4), 50.0)])
    assert detect_outliers(rows, np.zeros(4)) == [20]
