"""A job's file: what loads, and what its errors say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scarcity_ray.config import AggregationMethod, load, to_plain
from scarcity_ray.errors import ConfigError
from scarcity_ray.workloads.config import RunConfig, WorkloadConfig, load_run

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
QUICKSTART = CONFIGS[0].with_name("quickstart.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads_and_its_resolved_form_loads_to_the_same(path):
    config = load_run(path)
    assert config.name == path.stem
    again = load(RunConfig, yaml.safe_load(yaml.safe_dump(to_plain(config))))
    assert again == config


def test_the_quickstart_is_what_the_issue_asks_for():
    config = load_run(QUICKSTART)
    assert config.workload.domains >= 4
    assert len(config.basket_sizes) >= 12
    assert config.federation.total_epsilon <= 10
    assert config.workload.byzantine_share == 0.2
    assert config.workload.attack.name == "sign_flip"
    assert config.workload.attack.scale == 10
    assert config.workload.gossip
    assert config.federation.layer2.use_secure_aggregation


def test_production_is_strict_durable_and_hides_basket_models():
    federation = load_run(QUICKSTART.with_name("production.yaml")).federation
    assert federation.strict
    assert federation.ledger_path is not None
    assert federation.layer2.use_secure_aggregation
    assert not federation.expose_basket_models


def test_the_defaults_are_the_quickstarts():
    assert load_run(QUICKSTART, ["workload.compare_attacks=[]", "workload.attack.scale=null"]).workload == (
        WorkloadConfig()
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("workload.round=5", "workload.round: 5 is not accepted; unknown key, did you mean 'rounds'"),
        ("federation.layer1.byzantine_fraktion=0.1", "did you mean 'byzantine_fraction'"),
        ("workload.rounds=many", "workload.rounds: 'many' is not accepted; input should be a valid integer"),
        ("workload.rounds=0", "workload.rounds: 0 is not accepted"),
        ("workload.rounds=1.5", "workload.rounds: 1.5 is not accepted"),
        ("workload.attack.name=sybil", "workload.attack.name: 'sybil' is not accepted; .*sign_flip"),
        ("workload.attack.scale=-1", "workload.attack.scale: -1 is not accepted"),
        ("workload.features=65", "workload.features: 65 is not accepted; .*64"),
        ("workload.features=23", r"federation.vector_dim: 250 .* 240 = \(workload.features \+ 1\) \* 10"),
        ("federation.auto_aggregate=true", "federation.auto_aggregate: True is not accepted; false"),
        (
            "federation.basket.max_clients=64",
            "federation.basket.max_clients: 64 .* smallest basket would have 1",
        ),
        (
            "federation.layer1.aggregation_method=bulyan",
            "layer1.*: .* is not accepted; .*bulyan with f = 2 needs 11",
        ),
        ("federation.layer2.min_baskets=21", "federation.layer2.min_baskets: 21 is not accepted; at most 20"),
        (
            "federation.layer2.central_dp_epsilon=11",
            "federation.layer2.central_dp_epsilon: 11.0 is not accepted",
        ),
        ("run.runtime=dask", "run.runtime: 'dask' is not accepted; .*'ray' or 'local'"),
        ("name=../up", "name: '../up' is not accepted"),
        ("workload=3", "workload: 3 is not accepted"),
        ("name.first=3", "name.first: '3' is not accepted; a path through sections"),
        ("workload.rounds", "--set: 'workload.rounds' is not accepted; PATH=VALUE"),
        ("workload..rounds=3", "--set: .* PATH=VALUE"),
        ("workload.clients=2147483647", "workload.clients: 2147483647 is not accepted; .* 1000000"),
        ("workload.domains=2147483647", "workload.domains: 2147483647 is not accepted; .* 1000000"),
        ("workload.rounds=[1", "workload.rounds: .* a YAML value"),
        ("workload.rounds=2001-99-99", "workload.rounds: '2001-99-99' is not accepted; a YAML value"),
        ("workload.rounds=" + 3000 * "[", "workload.rounds: .{200,230} a YAML value"),
    ],
)
def test_errors_name_the_path_the_value_and_what_would_be_accepted(override, message):
    overrides = [override]
    if "bulyan" in override:
        overrides += ["federation.basket.max_clients=10", "federation.basket.min_clients=10"]
        overrides += ["workload.clients=200"]
    with pytest.raises(ConfigError, match=message):
        load_run(QUICKSTART, overrides)


def test_a_missing_file_and_a_file_that_is_no_mapping_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_run(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="mapping of sections"):
        load_run(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("workload: {}\n")
    with pytest.raises(ConfigError, match=r"^name: None is not accepted; a value: this key has no default"):
        load_run(tmp_path / "empty.yaml")
    (tmp_path / "typo.yaml").write_text("federatoin: {total_epsilon: 3}\nnaem: x\n")
    with pytest.raises(ConfigError, match="unknown key, did you mean"):
        load_run(tmp_path / "typo.yaml")


def test_overrides_are_read_as_yaml_reads_them():
    config = load_run(
        QUICKSTART,
        [
            "federation.total_delta=1e-6",
            "federation.layer1.num_byzantine=null",
            "federation.layer2.basket_trust={domain_0: 0.5}",
            "federation.layer1.aggregation_method=median",
            "federation.basket.max_clients=13",
            "workload.compare_attacks=[nan]",
        ],
    )
    assert config.federation.total_delta == 1e-6
    assert config.federation.layer1.num_byzantine is None
    assert dict(config.federation.layer2.basket_trust) == {"domain_0": 0.5}
    assert config.federation.layer1.aggregation_method is AggregationMethod.MEDIAN
    assert config.workload.compare_attacks == ("nan",)


def test_domain_and_basket_sizes_add_up():
    config = load_run(
        QUICKSTART,
        ["workload.clients=255", "federation.basket.max_clients=16", "federation.basket.min_clients=11"],
    )
    assert config.workload.domain_sizes == (64, 64, 64, 63)
    assert sum(config.basket_sizes) == 255
    assert sorted(set(config.basket_sizes)) == [15, 16]


def test_a_name_alone_is_a_job(tmp_path):
    (tmp_path / "name.yaml").write_text("name: mine\n")
    config = load_run(tmp_path / "name.yaml")
    assert config == RunConfig(name="mine")
    assert config.federation.vector_dim == config.workload.dimension
    (tmp_path / "other.yaml").write_text("name: mine\nworkload: {features: 20}\nfederation: {seed: 3}\n")
    assert load_run(tmp_path / "other.yaml").federation.vector_dim == 210


@pytest.mark.parametrize("content", ["workload: 3", "federation: 3", "workload: null", "federation: [1]"])
def test_what_is_no_section_is_told_as_before(content, tmp_path):
    (tmp_path / "broken.yaml").write_text(f"name: mine\n{content}\n")
    with pytest.raises(ConfigError, match=f"^{content.split(':')[0]}: .* is not accepted"):
        load_run(tmp_path / "broken.yaml")


@pytest.mark.parametrize("text", ["[postgresql://ann:secret@db/x", "[postgresql://ann:secret@db/x]"])
def test_an_override_that_is_refused_repeats_no_password(text):
    for path in ("federation.ledger_path", "name.first"):
        with pytest.raises(ConfigError) as refusal:
            load_run(QUICKSTART, [f"{path}={text}"])
        assert "secret" not in repr(refusal.value) + str(refusal.value)
