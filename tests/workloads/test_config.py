"""A job's file: what loads, and what its errors say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from scarcity_ray.config import AggregationMethod, load, to_plain
from scarcity_ray.errors import ConfigError, UsageError
from scarcity_ray.workloads.config import RunConfig, TrainingConfig, load_job, load_run

pytest.importorskip("sklearn")
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
QUICKSTART = CONFIGS[0].with_name("quickstart.yaml")
DECENTRALISED = CONFIGS[0].with_name("decentralised.yaml")

TINY = """
from dataclasses import replace

import numpy as np
from scarcity_ray_client import Client, Trained, Workload

class Tiny(Workload):
    def __init__(self, clients: int = 6, dimension: int = 3):
        self.count, self.dimension = clients, dimension
    def clients(self):
        return [Client(f"site_{i}", f"region_{i % 2}", data=i) for i in range(self.count)]
    def initial_model(self):
        return {"w": np.zeros(self.dimension, np.float32)}
    def train(self, model, client, round_id):
        return Trained(delta=np.full(self.dimension, client.data / 10, np.float32))
    def evaluate(self, model):
        return {"mean": float(model["w"].mean()), "loss": 1.0}
"""
JOB = """
name: tiny
federation:
  basket: {max_clients: 3, min_clients: 3}
  layer1: {aggregation_method: mean}
workload: {class: "tiny_workload:Tiny"}
"""


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "tiny_workload.py").write_text(TINY)
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path / "job.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads_and_its_resolved_form_loads_to_the_same(path):
    if path.stem == "hospitals":
        pytest.importorskip("statsmodels", reason="the hospitals' data are in statsmodels")
    config = load_run(path)
    assert config.name == path.stem
    again = load(RunConfig, yaml.safe_load(yaml.safe_dump(to_plain(config))))
    assert again == config


def test_the_quickstart_is_what_the_issue_asks_for():
    job = load_job(QUICKSTART)
    config = job.config
    assert len(job.domain_sizes) >= 4
    assert len(job.basket_sizes) >= 12
    assert config.federation.total_epsilon <= 10
    assert config.lab.byzantine_share == 0.2
    assert config.lab.attack.name == "sign_flip"
    assert config.lab.attack.scale == 10
    assert config.federation.gossip_budget_share > 0
    assert config.federation.layer2.use_secure_aggregation


def test_production_is_strict_durable_and_hides_basket_models():
    federation = load_run(QUICKSTART.with_name("production.yaml")).federation
    assert federation.strict
    assert federation.ledger_path is not None
    assert federation.layer2.use_secure_aggregation
    assert not federation.expose_basket_models


def test_a_workload_of_ones_own_is_found_beside_the_file_and_its_model_gives_the_dimension(tiny):
    job = load_job(tiny, ["workload.args.dimension=7"])
    assert type(job.workload).__name__ == "Tiny"
    assert job.config.federation.vector_dim == job.codec.dimension == 7
    assert job.config.workload.folder == str(tiny.parent)
    assert (job.config.training, job.config.lab) == (TrainingConfig(), None)
    assert not job.config.federation.auto_aggregate
    assert load_run(tiny, ["workload.args.dimension=7", "federation.vector_dim=7"]) == job.config


def test_the_working_folder_comes_after_the_files(tiny, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "job.yaml").write_text(JOB.replace("tiny_workload", "tiny_there"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "tiny_there.py").write_text(TINY)
    monkeypatch.chdir(tmp_path / "there")
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    assert load_run(elsewhere / "job.yaml").workload.folder == str(tmp_path / "there")


def test_a_file_from_before_workloads_is_refused_by_name_with_what_to_write_now(tmp_path):
    (tmp_path / "old.yaml").write_text("name: old\nworkload: {dataset: digits, rounds: 60, gossip: true}\n")
    with pytest.raises(ConfigError) as refusal:
        load_run(tmp_path / "old.yaml")
    for words in (
        "workload.dataset: 'digits' is not accepted",
        "workload.class: scarcity_ray.workloads.digits:Digits",
        "rounds: training.rounds",
        "gossip: federation.gossip_budget_share, 0 for none",
    ):
        assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("workload.args.clients=7", "max_clients: 3 is not accepted; .* smallest basket would have 1"),
        ("training.clients_per_round=7", "training.clients_per_round: 7 is not accepted; .* at most 6"),
        ("training.extra_clients=1", "training.clients_per_round: None is not accepted; .* at most 6"),
        ("federation.vector_dim=4", "federation.vector_dim: 4 is not accepted; 3, the numbers of tiny"),
        ("lab={byzantine_share: 0.01}", "lab.byzantine_share: 0.01 is not accepted; 0, or a share"),
        ("lab={byzantine_share: 0.95}", "lab.byzantine_share: 0.95 .* leaves one honest"),
        ("lab={attack: {name: poison}}", "lab.attack.name: 'poison' .* write poison in tiny_workload:Tiny"),
        ("lab={compare_attacks: [poison]}", "lab.compare_attacks: 'poison' is not accepted"),
        ("lab={compare: [centralised]}", "lab.compare: 'centralised' .* write centralised in tiny"),
        (
            "training.private_evaluation={metrics: {auc: [0, 1]}, max_examples: 9}",
            "write evaluate_client in tiny",
        ),
        (
            "training.private_evaluation={metrics: {auc: [1, 0]}, max_examples: 9}",
            "private_evaluation.metrics",
        ),
        ("lab={compare: [best]}", "lab.compare.0: 'best' is not accepted"),
        ("lab={compare_attacks: [sybil]}", "lab.compare_attacks: 'sybil' is not accepted"),
    ],
)
def test_what_a_workload_does_not_give_is_told_before_anything_starts(tiny, override, message):
    with pytest.raises(ConfigError, match=message):
        load_run(tiny, [override])


def test_what_clients_measure_privately_is_declared_for_the_federation(tiny):
    measured = "    def evaluate_client(self, model, client):\n        return {'mean': 0.25}\n"
    (tiny.parent / "measured.py").write_text(TINY + measured)
    asked = (
        "workload.class=measured:Tiny",
        "training.private_evaluation={metrics: {mean: [0, 1]}, max_examples: 9}",
    )
    config = load_run(tiny, (*asked, "federation.meta_parameters={rate: [0, 2]}"))
    due = {"mean_times_examples": (-1.0, 1.0), "mean_examples": (0.0, 1.0)}
    assert config.federation.meta_parameters == {"rate": (0.0, 2.0), **due}
    assert load_run(
        tiny, (*asked, "federation.meta_parameters={mean_examples: [0, 1]}")
    ).federation == replace(config.federation, meta_parameters={"mean_examples": (0.0, 1.0), **due})
    with pytest.raises(ConfigError, match=r"meta_parameters\.mean_examples: .* leave it out"):
        load_run(tiny, (*asked, "federation.meta_parameters={mean_examples: [0, 2]}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.patience=3", "training.patience: 3 is not accepted; nothing, as layer2.enabled is false"),
        ("training.optimizer={name: fedadam}", "training.optimizer: .* nothing, as layer2.enabled is false"),
        ("lab.compare=[plain_mean]", "lab.compare: 'plain_mean' .* a run without a global model"),
    ],
)
def test_what_needs_a_global_model_is_refused_where_there_is_none(override, message):
    with pytest.raises(ConfigError, match=message):
        load_run(DECENTRALISED, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("workload.clas=x:Y", "workload.clas: 'x:Y' is not accepted; unknown key, did you mean 'class'"),
        ("workload.rounds=5", "workload.rounds: 5 is not accepted; moved .*: training.rounds"),
        ("training.round=5", "training.round: 5 is not accepted; unknown key, did you mean 'rounds'"),
        ("federation.layer1.byzantine_fraktion=0.1", "did you mean 'byzantine_fraction'"),
        ("training.rounds=many", "training.rounds: 'many' is not accepted; input should be a valid integer"),
        ("training.rounds=0", "training.rounds: 0 is not accepted"),
        ("training.rounds=1.5", "training.rounds: 1.5 is not accepted"),
        ("training.mode=least", "training.mode: 'least' is not accepted; .*'max' or 'min'"),
        ("training.optimizer={name: scaffold}", "training.optimizer: .*SCAFFOLD"),
        ("training.optimizer.learning_rate=-1", "training.optimizer: .*learning_rate: -1.0 is not accepted"),
        ("training.optimizer={1: 2}", "training.optimizer.*: .* is not accepted"),
        ("lab.attack.name=sybil", "lab.attack.name: 'sybil' is not accepted; .*sign_flip"),
        ("lab.attack.scale=-1", "lab.attack.scale: -1 is not accepted"),
        ("federation.vector_dim=240", "federation.vector_dim: 240 is not accepted; 250, .*or leave it out"),
        ("federation.auto_aggregate=true", "federation.auto_aggregate: True is not accepted; false"),
        (
            "federation.basket.max_clients=64",
            "federation.basket.max_clients: 64 .* smallest basket would have 1",
        ),
        (
            "federation.layer1.aggregation_method=bulyan",
            "layer1.*: .* is not accepted; .*bulyan with f = 2 needs 11",
        ),
        ("federation.layer2.min_baskets=21", "federation.layer2.min_baskets: 21 .* at most 20.* --sites N"),
        (
            "federation.layer2.central_dp_epsilon=11",
            "federation.layer2.central_dp_epsilon: 11.0 is not accepted",
        ),
        ("run.runtime=dask", "run.runtime: 'dask' is not accepted; .*'ray' or 'local'"),
        ("name=../up", "name: '../up' is not accepted"),
        ("workload=3", "workload: 3 is not accepted"),
        ("name.first=3", "name.first: '3' is not accepted; a path through sections"),
        ("training.rounds", "--set: 'training.rounds' is not accepted; PATH=VALUE"),
        ("training..rounds=3", "--set: .* PATH=VALUE"),
        ("training.rounds=[1", "training.rounds: .* a YAML value"),
        ("training.rounds=2001-99-99", "training.rounds: '2001-99-99' is not accepted; a YAML value"),
        ("training.rounds=" + 3000 * "[", "training.rounds: .{200,230} a YAML value"),
    ],
)
def test_errors_name_the_path_the_value_and_what_would_be_accepted(override, message):
    overrides = [override]
    if "bulyan" in override:
        overrides += ["federation.basket.max_clients=10", "federation.basket.min_clients=10"]
        overrides += ["workload.args.clients=200"]
    with pytest.raises(ConfigError, match=message):
        load_run(QUICKSTART, overrides)


def test_a_missing_file_and_a_file_that_is_no_mapping_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_run(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="mapping of sections"):
        load_run(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("workload: {class: 'tiny:Tiny'}\n")
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
            "lab.compare_attacks=[nan]",
        ],
    )
    assert config.federation.total_delta == 1e-6
    assert config.federation.layer1.num_byzantine is None
    assert dict(config.federation.layer2.basket_trust) == {"domain_0": 0.5}
    assert config.federation.layer1.aggregation_method is AggregationMethod.MEDIAN
    assert config.lab.compare_attacks == ("nan",)


def test_domain_and_basket_sizes_add_up():
    changes = ["federation.basket.max_clients=16", "federation.basket.min_clients=11"]
    job = load_job(QUICKSTART, ["workload.args.clients=255", *changes])
    assert sorted(job.domain_sizes.values()) == [63, 64, 64, 64]
    assert sum(job.basket_sizes) == 255
    assert sorted(set(job.basket_sizes)) == [15, 16]


def test_a_workload_that_cannot_be_made_is_told_with_its_argument():
    for override, message in (
        ("workload.args.features=65", "features: 65 is not accepted; an integer from 1 to 64"),
        ("workload.args.feature=3", "unexpected keyword argument 'feature'; Digits.*features"),
        ("workload.class=no_such:Digits", "no module 'no_such'"),
    ):
        with pytest.raises(UsageError, match=message):
            load_run(QUICKSTART, [override])


@pytest.mark.parametrize("content", ["workload: 3", "federation: 3", "workload: null", "federation: [1]"])
def test_what_is_no_section_is_told_as_before(content, tmp_path):
    whole = content if "workload" in content else f"workload: {{class: 'tiny:Tiny'}}\n{content}"
    (tmp_path / "broken.yaml").write_text(f"name: mine\n{whole}\n")
    with pytest.raises(ConfigError, match=f"^{content.split(':')[0]}: .* is not accepted"):
        load_run(tmp_path / "broken.yaml")


@pytest.mark.parametrize("text", ["[postgresql://ann:secret@db/x", "[postgresql://ann:secret@db/x]"])
def test_an_override_that_is_refused_repeats_no_password(text):
    for path in ("federation.ledger_path", "name.first"):
        with pytest.raises(ConfigError) as refusal:
            load_run(QUICKSTART, [f"{path}={text}"])
        assert "secret" not in repr(refusal.value) + str(refusal.value)


CUSTOM_RULE = CONFIGS[0].parents[1] / "examples" / "custom_rule" / "job.yaml"


def test_a_job_with_a_rule_and_an_attack_from_outside_keeps_their_folder(tmp_path):
    config = load_run(CUSTOM_RULE)
    assert config.workload.folder == str(CUSTOM_RULE.parent)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    assert load_run(tmp_path / "config.yaml") == config


def test_a_rule_that_is_not_found_is_refused_by_its_place_in_the_file():
    rule = "federation.layer1.aggregation_method"
    with pytest.raises(
        ConfigError, match=f"^{rule}: 'nowhere:Rule' is not accepted; rule 'nowhere:Rule': no"
    ):
        load_run(QUICKSTART, [f"{rule}=nowhere:Rule"])


@pytest.mark.parametrize(
    ("method", "body", "message"),
    [
        ("clients", "raise OSError('no disk')", r"clients: OSError: no disk \(.*tiny_workload.py"),
        ("clients", "return None", r"clients: clients\(\) gave a NoneType; give a list of Client"),
        ("clients", "return iter([])", r"clients: clients\(\) gave no client"),
        ("initial_model", "raise KeyError('w')", "codec: KeyError: 'w'"),
        ("initial_model", "return {}", "codec: model: no part of it is trained"),
    ],
)
def test_a_workload_that_raises_is_told_by_its_name_and_method(tiny, method, body, message):
    source = TINY.replace(f"    def {method}(self):", f"    def {method}(self):\n        {body}")
    (tiny.parent / "tiny_workload.py").write_text(source)
    with pytest.raises(UsageError, match=f"^workload 'tiny_workload:Tiny': {message}"):
        load_job(tiny)


def test_clients_may_come_from_an_iterator(tiny):
    source = TINY.replace("return [Client(", "return iter([Client(").replace(
        "range(self.count)]", "range(self.count)])"
    )
    (tiny.parent / "tiny_workload.py").write_text(source)
    assert len(load_job(tiny).clients) == 6


def test_clients_that_cannot_evaluate_are_not_asked_to(tiny):
    with pytest.raises(
        ConfigError, match=r"^training.evaluate_clients: True is not accepted; false, or a work"
    ):
        load_job(tiny, ["training.evaluate_clients=true"])
