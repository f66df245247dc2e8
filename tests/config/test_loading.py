"""Configs from YAML: numbers, keys, files, and paths in errors; and back."""

from __future__ import annotations

import dataclasses
import math
import typing

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.config import (
    AggregationMethod,
    BasketConfig,
    GossipConfig,
    HierarchicalFederationConfig,
    Layer1Config,
    load,
    read_yaml,
    stream,
    to_plain,
)
from scarcity_ray.errors import ConfigError


@pytest.fixture
def read(tmp_path):
    def read(text: str | bytes) -> dict:
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_yaml(path)

    return read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-1.5e-3", -1.5e-3),
        ("+1e3", 1e3),
        ("2.e+2", 200.0),
        ("1_000e1", 10_000.0),
        (".inf", math.inf),
        ("0.5", 0.5),
        ("12", 12),
        ("'1e-5'", "1e-5"),
        ("1e5x", "1e5x"),
        ("e5", "e5"),
    ],
)
def test_numbers_read_as_people_write_them(read, text, value):
    found = read(f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


def test_a_delta_in_scientific_notation_loads(read):
    config = load(GossipConfig, read("local_dp_delta: 1e-6\nlocal_dp_epsilon: .inf"))
    assert (config.local_dp_delta, config.local_dp_epsilon) == (1e-6, math.inf)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [("a: 1\nb: 2\na: 3", "a", 3), ("x:\n  a: 1\n  a: 1", "a", 3), ("a: 1\n'a': 2", "a", 2)],
)
def test_a_key_given_twice_is_refused_with_its_line(read, text, key, line):
    with pytest.raises(ConfigError, match=f"line {line}") as refusal:
        read(text)
    assert refusal.value.path == key


def test_merged_anchors_are_no_doubled_keys(read):
    content = read("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3")
    assert content["use"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "- 1\n- 2",
        "",
        "just text",
        b"a: \xff\xfe",
        "a: !!python/object/apply:os.system [echo]",
        "? [1, 2]\n: 3",
        "a: \x00",
        "a: 2001-99-99",
        "a: 1" + 5000 * "0",
        5000 * "[",
        "a: " + 3000 * "{a: " + "1" + 3000 * "}",
    ],
)
def test_a_file_that_is_no_config_names_itself(read, text, tmp_path):
    with pytest.raises(ConfigError) as refusal:
        read(text)
    assert refusal.value.path == str(tmp_path / "config.yaml")
    assert len(str(refusal.value)) < 600


def nested(times):
    """A list that takes 9^times letters to write out, and a moment to make."""
    value = list("aaaaaaaaa")
    for _ in range(times):
        value = [value] * 9
    return value


@pytest.mark.parametrize("value", [nested(12), "x" * 10_000, 10**400, {"a": nested(12)}, [10**9000]])
def test_a_long_value_is_not_repeated_at_length(value):
    for content in (
        *({"seed": value}, {"sed": value}, {"layer1": value}, {"layer2": {"noise": value}}),
        *({"layer1": {"num_byzantine": value}}, {"layer1": {"aggregation_method": value}}),
    ):
        with pytest.raises(ConfigError) as refusal:
            load(HierarchicalFederationConfig, content)
        assert len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    "content",
    [
        {"postgresql://ann:secret@db/budgets": 1},
        {"layer2": {"basket_trust": {"postgresql://ann:secret@db/budgets": "x"}}},
        {"operator_key": "postgresql://ann:secret@db/budgets"},
        {"ledger_path": ["postgresql://ann:secret@db/budgets"]},
        {"ledger_path": "postgresql:ann:secret@db/budgets"},
    ],
)
def test_a_password_in_a_wrong_place_is_not_repeated(content):
    with pytest.raises(ConfigError) as refusal:
        load(HierarchicalFederationConfig, content)
    assert "secret" not in repr(refusal.value) + str(refusal.value)


@pytest.mark.parametrize("path", ["", "a\0b", "\ud800"])
def test_what_can_name_no_file_is_no_ledger_path(path):
    with pytest.raises(ConfigError, match=r"ledger_path: .* the path of a file"):
        HierarchicalFederationConfig(ledger_path=path)


def test_a_file_that_cannot_be_read_names_itself(tmp_path):
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError) as refusal:
            read_yaml(path)
        assert refusal.value.path == str(path)


@pytest.mark.parametrize(
    ("content", "path", "hint"),
    [
        ({"vector_dims": 3}, "vector_dims", "'vector_dim'"),
        ({"gosip": {}}, "gosip", "'gossip'"),
        ({"layer1": {"byzantine_fraktion": 0.1}}, "layer1.byzantine_fraktion", "'byzantine_fraction'"),
        ({"layer2": {"min_basket": 3}}, "layer2.min_basket", "'min_baskets'"),
        ({"gossip": {"zzz": 3}}, "gossip.zzz", "known: clip_norm"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(content, path, hint):
    with pytest.raises(ConfigError, match="unknown key") as refusal:
        load(HierarchicalFederationConfig, content)
    assert refusal.value.path == path
    assert hint in refusal.value.accepted
    with pytest.raises(ConfigError) as direct:
        HierarchicalFederationConfig(**content)
    assert direct.value.path == path


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ({"layer1": {"clip_norm": -1}}, "layer1.clip_norm"),
        ({"basket": {"min_clients": 9, "max_clients": 4}}, "basket.max_clients"),
        ({"layer2": {"basket_trust": {"health": "much"}}}, "layer2.basket_trust.health"),
        ({"meta_parameters": {"rate": [0, "x"]}}, "meta_parameters.rate.1"),
        ({"runtime": {"resources_per_actor": {"gpu": 0}}}, "runtime.resources_per_actor.gpu"),
        ({"basket": None}, "basket"),
        ({3: 4}, "3"),
    ],
)
def test_an_error_names_the_whole_path(content, path):
    with pytest.raises(ConfigError) as refusal:
        load(HierarchicalFederationConfig, content)
    assert refusal.value.path == path
    with pytest.raises(ConfigError) as refusal:
        load(HierarchicalFederationConfig, content, path="federation")
    assert refusal.value.path == f"federation.{path}"
    assert str(refusal.value).startswith(f"federation.{path}: ")


def test_content_of_another_kind_is_refused_by_the_name_of_what_was_wanted():
    with pytest.raises(ConfigError) as refusal:
        load(BasketConfig, [1])  # type: ignore[arg-type]
    assert refusal.value.path == "BasketConfig"


def fields_of(cls):
    types = typing.get_type_hints(cls, include_extras=True)
    return {f.name: types[f.name] for f in dataclasses.fields(cls)}


@st.composite
def configs(draw):
    """Any acceptable federation, as plain data."""
    positive = st.floats(1e-6, 1e6)
    names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
    least = draw(st.integers(1, 50))
    low = draw(st.floats(-1e6, 1e6))
    return {
        "basket": {
            "min_clients": least,
            "max_clients": draw(st.integers(max(2, least), 200)),
            "stale_threshold": draw(positive),
            "allow_cross_domain": draw(st.booleans()),
        },
        "gossip": {
            "clip_norm": draw(positive),
            "local_dp_epsilon": draw(st.one_of(positive, st.just(math.inf))),
            "local_dp_delta": draw(st.floats(1e-12, 0.5)),
            "mixing": draw(st.sampled_from(["noise_aware", "average", "clipped_gossip", None])),
        },
        "buffer": {"min_updates_trigger": draw(st.none() | st.integers(1, 9))},
        "layer1": {
            "aggregation_method": draw(st.sampled_from([m.value for m in AggregationMethod])),
            "byzantine_fraction": draw(st.floats(0, 0.49)),
            "num_byzantine": draw(st.none() | st.integers(0, 9)),
        },
        "layer2": {
            "basket_trust": draw(st.dictionaries(names, st.floats(0, 10), max_size=3)),
            "threshold_fraction": draw(st.floats(0.51, 1.0)),
        },
        "runtime": {"resources_per_actor": draw(st.dictionaries(names, positive, max_size=2))},
        "total_epsilon": draw(st.one_of(positive, st.just(math.inf))),
        "meta_parameters": {draw(names): [low, low + draw(positive)]},
        "seed": draw(st.integers(0, 2**63 - 1)),
        "ledger_path": draw(st.none() | names),
    }


@given(content=configs())
def test_what_is_written_as_yaml_loads_as_the_same_config(content):
    config = load(HierarchicalFederationConfig, content)
    plain = to_plain(config)
    assert load(HierarchicalFederationConfig, plain) == config
    assert load(HierarchicalFederationConfig, yaml.safe_load(yaml.safe_dump(plain))) == config
    assert set(plain) == set(fields_of(HierarchicalFederationConfig))
    for name, given_value in content["layer1"].items():
        assert plain["layer1"][name] == given_value


def test_plain_data_is_plain():
    def leaves(value):
        if isinstance(value, dict):
            assert all(type(key) is str for key in value)
            return [leaf for inner in value.values() for leaf in leaves(inner)]
        if isinstance(value, list):
            return [leaf for inner in value for leaf in leaves(inner)]
        return [value]

    config = HierarchicalFederationConfig(
        layer1=Layer1Config(aggregation_method="bulyan"), meta_parameters={"rate": (0.0, 1.0)}
    )
    kinds = {type(leaf) for leaf in leaves(to_plain(config))}
    assert kinds <= {int, float, str, bool, type(None)}


def test_a_stream_depends_on_seed_and_labels_alone():
    draws = {
        (seed, *labels): stream(seed, *labels).integers(2**63)
        for seed in (0, 1)
        for labels in ((), ("a",), ("a", "b"), ("ab",), ("a", 1), ("a", 11), ("a", 1, 1))
    }
    assert len(set(draws.values())) == len(draws)
    assert stream(1, "a", 1).integers(2**63) == draws[1, "a", 1]


@pytest.mark.parametrize("key", ["sampling_rate", "sample_rate", "subsampling"])
def test_subsampling_is_refused_by_name(key):
    with pytest.raises(ConfigError, match="not offered: all persons in each step need less noise") as refusal:
        load(HierarchicalFederationConfig, {"privacy": {"unit": "person", key: 0.1}})
    assert refusal.value.path == f"privacy.{key}"
