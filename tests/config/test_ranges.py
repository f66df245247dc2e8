"""Every field of every config: its default, what it accepts, and what it refuses by name."""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest

from scarcity_ray.config import (
    AggregationMethod,
    BasketConfig,
    BufferConfig,
    GossipConfig,
    HierarchicalFederationConfig,
    Layer1Config,
    Layer2Config,
    PrivacyConfig,
    RetentionConfig,
    RuntimeConfig,
    load,
)
from scarcity_ray.errors import ConfigError

SECTIONS = {
    "basket": BasketConfig,
    "gossip": GossipConfig,
    "buffer": BufferConfig,
    "layer1": Layer1Config,
    "layer2": Layer2Config,
    "privacy": PrivacyConfig,
    "runtime": RuntimeConfig,
    "retention": RetentionConfig,
}

# What is promised (docs/specification.md) and what users of the older package know.
PROMISED = {
    BasketConfig: {
        "min_clients": 3,
        "max_clients": 100,
        "stale_threshold": 600.0,
        "allow_cross_domain": False,
    },
    GossipConfig: {
        "peers_per_round": 5,
        "pull_interval": 2.0,
        "push_drift_threshold": 0.1,
        "clip_norm": 1.0,
        "local_dp_epsilon": 0.5,
        "local_dp_delta": 1e-5,
        "max_messages_per_day": 24,
        "message_ttl": 300.0,
        "mixing": None,
        "rotation_window": 10,
    },
    BufferConfig: {
        "max_staleness": 5,
        "min_updates_trigger": None,
        "time_trigger_seconds": 60.0,
        "participation_cap": 3,
        "max_bytes": None,
    },
    Layer1Config: {
        "aggregation_method": AggregationMethod.KRUM,
        "min_updates": 3,
        "clip_norm": 1.0,
        "byzantine_fraction": 0.2,
        "num_byzantine": None,
    },
    Layer2Config: {
        "use_secure_aggregation": True,
        "central_dp_epsilon": 1.0,
        "central_dp_delta": 1e-5,
        "clip_norm": 1.0,
        "min_baskets": 2,
        "weight_by_size": True,
    },
    HierarchicalFederationConfig: {
        "total_epsilon": 10.0,
        "total_delta": 1e-4,
        "auto_aggregate": True,
        "vector_dim": 64,
        "expose_basket_models": True,
        "strict": False,
    },
}

OUT_OF_RANGE = {
    BasketConfig: {
        "min_clients": [0, -1, 2**31],
        "max_clients": [0, 1, 2],
        "stale_threshold": [0.0, -1.0, math.inf, math.nan],
    },
    GossipConfig: {
        "peers_per_round": [0],
        "pull_interval": [-0.1, math.inf, math.nan],
        "push_drift_threshold": [-0.1, math.inf, math.nan],
        "clip_norm": [0.0, -1.0, 1e-21, 1e21, math.inf, math.nan],
        "local_dp_epsilon": [0.0, -1.0, math.nan],
        "local_dp_delta": [0.0, 1.0, -1e-5, math.nan, math.inf],
        "max_messages_per_day": [0],
        "message_ttl": [0.0, math.inf, math.nan],
        "mixing": ["best", "", "NOISE_AWARE"],
        "rotation_window": [0],
    },
    BufferConfig: {
        "max_staleness": [-1],
        "min_updates_trigger": [0],
        "time_trigger_seconds": [0.0, math.inf, math.nan],
        "participation_cap": [0],
        "max_bytes": [0],
    },
    Layer1Config: {
        "aggregation_method": ["kruhm", "", "KRUM"],
        "min_updates": [0],
        "clip_norm": [0.0, -1.0, 1e-21, 1e21, math.inf, math.nan],
        "byzantine_fraction": [-0.01, 0.5, 1.0, math.nan],
        "num_byzantine": [-1],
        "num_selected": [0],
        "clipping_radius": [0.0, -1.0, math.inf, math.nan],
        "pre": ["nnm", 3],
        "bucket_size": [1, 0],
        "momentum": [-0.1, 1.0, math.nan],
    },
    PrivacyConfig: {
        "unit": ["patient", "", "PERSON"],
        "noise": ["local", "", "SITE"],
        "person_clip_norm": [0.0, -1.0, math.inf, math.nan],
        "min_persons": [0],
        "noise_decay": [0.0, 0.009, 1.001, math.nan],
        "row_epsilon": [0.0, -1.0, math.nan],
        "row_delta": [0.0, 1.0, math.nan],
    },
    Layer2Config: {
        "central_dp_epsilon": [0.0, -1.0, math.nan],
        "central_dp_delta": [0.0, 1.0, math.nan],
        "noise": ["laplace", "", "GAUSSIAN"],
        "clip_norm": [0.0, -1.0, 1e-21, 1e21, math.inf, math.nan],
        "clip_quantile": [0.0, 1.0, math.nan],
        "clip_learning_rate": [0.0, 1.01, math.nan],
        "clip_norm_range": [3.0, "x"],
        "min_baskets": [1, 0],
        "min_baskets_trigger": [0],
        "update_interval_seconds": [0.0, math.inf, math.nan],
        "session_timeout_seconds": [0.0, -1.0, math.inf, math.nan],
        "threshold_fraction": [0.5, 1.01, math.nan],
        "assumed_corrupt_fraction": [-0.01, 0.5, math.nan],
        "assumed_dropout_fraction": [-0.01, 0.5, math.nan],
    },
    RetentionConfig: {"releases": [1, 0], "receipt_rounds": [0], "metrics_rounds": [0]},
    RuntimeConfig: {
        "baskets_per_actor": [0],
        "cpus_per_actor": [-0.1, math.inf, math.nan],
        "gpus_per_actor": [-0.1, 1.5, math.nan],
    },
    HierarchicalFederationConfig: {
        "total_epsilon": [0.0, -1.0, math.nan],
        "total_delta": [0.0, 1.0, math.nan],
        "vector_dim": [0, -3, 2**31, 10**400],
        "gossip_budget_share": [-0.1, 1.0, math.nan],
        "seed": [-1],
        "storage_path": ["ftp://host/x", "", "a\0b"],
        "journal_path": ["s3://bucket/x", ""],
        "journal_key_path": ["", "a\0b"],
        "durability": ["always"],
        "retain_rounds": [-1, 2**63],
    },
}

EDGES = {
    BasketConfig: {"min_clients": [1, 100], "max_clients": [3]},
    GossipConfig: {
        "pull_interval": [0.0, 0],
        "clip_norm": [1e-20, 1e20],
        "local_dp_epsilon": [math.inf, 1e-9],
        "mixing": ["average", "noise_aware", "clipped_gossip", "nearest_neighbors", None],
    },
    BufferConfig: {"max_staleness": [0], "min_updates_trigger": [None, 1]},
    Layer1Config: {
        "aggregation_method": ["mean", "fedavg", AggregationMethod.BULYAN],
        "byzantine_fraction": [0.0, 0.49999, 0],
        "num_byzantine": [None, 0],
    },
    Layer2Config: {
        "threshold_fraction": [1.0, 0.5001],
        "central_dp_epsilon": [math.inf],
        "noise": ["gaussian", "discrete_gaussian"],
    },
    RuntimeConfig: {"cpus_per_actor": [0.0], "gpus_per_actor": [0.0, 0.25, 1.0]},
    HierarchicalFederationConfig: {
        "total_epsilon": [math.inf],
        "gossip_budget_share": [0.0, 0.999],
        "seed": [0],
        "ledger_path": [None, "x"],
        "storage_path": [None],
        "journal_path": [None, "x"],
        "durability": [None, "none"],
    },
}


def cases(table):
    return [
        pytest.param(cls, name, value, id=f"{cls.__name__}.{name}={str(value)[:20]}")
        for cls, entries in table.items()
        for name, values in entries.items()
        for value in (values if isinstance(values, list) else [values])
    ]


@pytest.mark.parametrize(("cls", "name", "value"), cases(PROMISED))
def test_the_defaults_are_the_promised_ones(cls, name, value):
    assert getattr(cls(), name) == value
    assert type(getattr(cls(), name)) is type(value)


@pytest.mark.parametrize(("cls", "name", "value"), cases(OUT_OF_RANGE))
def test_a_value_out_of_range_is_refused_by_name(cls, name, value):
    with pytest.raises(ConfigError) as refusal:
        cls(**{name: value})
    assert refusal.value.path == name
    assert refusal.value.accepted
    section = next((s for s, c in SECTIONS.items() if c is cls), None)
    if section is not None:
        with pytest.raises(ConfigError) as refusal:
            HierarchicalFederationConfig(**{section: {name: value}})
        assert refusal.value.path == f"{section}.{name}"


@pytest.mark.parametrize(("cls", "name", "value"), cases(EDGES))
def test_the_edges_of_a_range_are_accepted(cls, name, value):
    assert getattr(cls(**{name: value}), name) == value


def test_every_field_with_a_range_has_its_refusals_tested():
    for cls, entries in OUT_OF_RANGE.items():
        ranged = {
            f.name
            for f in dataclasses.fields(cls)
            if isinstance(f.default, int | float | str) and not isinstance(f.default, bool)
        }
        assert ranged <= set(entries), cls


WRONG_TYPES = {
    "Int": (["3", 3.0, 3.5, True, None, [3], np.array([1, 2]), np.bool_(True), {}], "vector_dim"),
    "Float": (["1.0", True, None, [1.0], {}, 1j], "total_epsilon"),
    "Flag": ([0, 1, "yes", None, 1.0], "auto_aggregate"),
    "Text": ([3, b"x", ["x"]], "ledger_path"),
    "section": ([3, "x", [1], None, GossipConfig()], "layer1"),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, v) for values, name in WRONG_TYPES.values() for v in values]
)
def test_a_wrong_type_is_refused_by_name(name, value):
    with pytest.raises(ConfigError) as refusal:
        HierarchicalFederationConfig(**{name: value})
    assert refusal.value.path == name


@pytest.mark.parametrize("value", [["krum"], {}, 3, None, True])
def test_a_method_of_a_wrong_type_is_refused_by_name(value):
    with pytest.raises(ConfigError) as refusal:
        Layer1Config(aggregation_method=value)
    assert refusal.value.path == "aggregation_method"
    assert "krum" in refusal.value.accepted


def test_numpy_numbers_become_plain_ones():
    config = HierarchicalFederationConfig(
        vector_dim=np.int64(8), total_epsilon=np.float64(3.0), seed=np.uint8(2), total_delta=np.float32(0.25)
    )
    assert type(config.vector_dim) is int
    assert type(config.seed) is int
    assert isinstance(config.total_epsilon, float)
    assert config.total_delta == 0.25
    assert type(GossipConfig(pull_interval=2).pull_interval) is float


def test_not_a_number_reads_as_such_in_the_error():
    with pytest.raises(ConfigError, match=r"total_epsilon: 'nan' is not accepted"):
        HierarchicalFederationConfig(total_epsilon=math.nan)


def test_a_basket_that_cannot_fill_is_refused():
    with pytest.raises(ConfigError) as refusal:
        BasketConfig(min_clients=5, max_clients=4)
    assert (refusal.value.path, refusal.value.value) == ("max_clients", 4)
    with pytest.raises(ConfigError):
        BasketConfig(min_clients=1, max_clients=1)
    assert BasketConfig(min_clients=1, max_clients=2).max_clients == 2


def test_an_argument_by_position_is_named_in_the_error():
    with pytest.raises(ConfigError) as refusal:
        BasketConfig(3, 100, -1.0)
    assert refusal.value.path == "stale_threshold"
    with pytest.raises(ConfigError):
        BasketConfig(1, 2, 3.0, False, 5)


def test_a_negative_trust_names_its_domain():
    with pytest.raises(ConfigError) as refusal:
        HierarchicalFederationConfig(layer2={"basket_trust": {"finance": 1.0, "health": -1.0}})
    assert refusal.value.path == "layer2.basket_trust.health"


@pytest.mark.parametrize("given", [(0.0,), (0.0, 1.0, 2.0), ("a", "b"), 3.0])
def test_a_meta_parameter_needs_a_range(given):
    with pytest.raises(ConfigError) as refusal:
        HierarchicalFederationConfig(meta_parameters={"rate": given})
    assert refusal.value.path.startswith("meta_parameters.rate")


@pytest.mark.parametrize("cls", [*SECTIONS.values(), HierarchicalFederationConfig])
def test_a_config_is_frozen_and_survives_pickling(cls):
    config = cls()
    for name in (f.name for f in dataclasses.fields(cls)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, getattr(config, name))
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config) == config


def test_a_storage_path_makes_updates_durable_and_a_bucket_needs_a_local_journal(tmp_path):
    kept = HierarchicalFederationConfig(storage_path=str(tmp_path))
    assert HierarchicalFederationConfig().keeps_updates == "none"
    assert (kept.keeps_updates, kept.journal_place) == ("update", str(tmp_path / "journal"))
    with pytest.raises(ConfigError, match="journal_path: None is not accepted; a folder on a local disk"):
        HierarchicalFederationConfig(storage_path="s3://bucket/town")
    apart = HierarchicalFederationConfig(storage_path="s3://bucket/town", journal_path=str(tmp_path))
    assert apart.journal_place == str(tmp_path)
    assert HierarchicalFederationConfig(storage_path="s3://b/t", durability="none").journal_place is None


def test_replacing_a_field_checks_it_again():
    with pytest.raises(ConfigError) as refusal:
        dataclasses.replace(Layer1Config(), clip_norm=-1.0)
    assert refusal.value.path == "clip_norm"


def test_two_configs_share_no_mapping():
    trust = {"a": 1.0}
    config = Layer2Config(basket_trust=trust)
    trust["a"] = 5.0
    assert config.basket_trust == {"a": 1.0}
    assert Layer2Config().basket_trust is not Layer2Config().basket_trust


@pytest.mark.parametrize(
    "placement",
    [
        {"eu": {}},
        {"eu": {"region": "in(eu,us)"}},
        {"eu": {"region": "!us"}},
        {"eu": {"a b": "c"}},
        {"eu": "eu"},
    ],
)
def test_placement_takes_labels_with_one_value_each(placement):
    with pytest.raises(ConfigError, match=r"runtime\.placement"):
        load(HierarchicalFederationConfig, {"runtime": {"placement": placement}})


def test_placement_keeps_domains_apart():
    placed = {"runtime": {"placement": {"hospitals": {"region": "eu", "example.org/disk": "ssd"}}}}
    made = load(HierarchicalFederationConfig, placed)
    assert made.runtime.placement["hospitals"]["region"] == "eu"
    with pytest.raises(ConfigError, match="allow_cross_domain"):
        load(HierarchicalFederationConfig, {**placed, "basket": {"allow_cross_domain": True}})
