"""``scarcity-ray init``: the folder that it makes trains as it is, and spoils nothing."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.cli import init
from scarcity_ray.cli.main import main
from scarcity_ray.config import load
from scarcity_ray.config.gateway import GatewayConfig
from scarcity_ray_client import load_site_file, load_workload, train_client

KINDS = {"numpy": "numpy", "sklearn": "sklearn", "torch": "torch"}


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(main, ["init", *arguments])

    return run


def made(call, kind, name="wards"):
    assert call(name, "--kind", kind).exit_code == 0
    job = yaml.safe_load(Path(name, "job.yaml").read_text())
    return job, load_workload(job["workload"]["class"], job["workload"]["args"], name)


def test_a_folder_holds_four_files_and_says_how_to_train(call):
    done = call("wards")
    assert done.exit_code == 0
    assert "cd wards && scarcity-ray run job.yaml --runtime local" in done.stdout
    assert sorted(os.listdir()) == ["wards"]
    assert sorted(os.listdir("wards")) == ["README.md", "data.csv", "job.yaml", "workload.py"]
    assert Path("wards/README.md").read_text().startswith("# wards\n")
    assert yaml.safe_load(Path("wards/job.yaml").read_text())["name"] == "wards"


def test_with_sites_the_servers_folder_holds_no_patient_of_a_site(call):
    """Nor does a site's hold another's; and the job is one that can be served."""
    assert call("town", "--sites", "3").exit_code == 0
    folders = ["hospital_1", "hospital_2", "hospital_3", "server"]
    assert sorted(os.listdir("town")) == ["README.md", *folders]
    tables = {f: Path("town", f, "data.csv").read_text().splitlines()[1:] for f in folders}
    whose = {f: {line.split(",")[0] for line in lines} for f, lines in tables.items()}
    assert [whose[f] for f in folders[:3]] == [{"hospital_1"}, {"hospital_2"}, {"hospital_3"}]
    assert not whose["server"] & set(folders)
    assert len(set().union(*(set(lines) for lines in tables.values()))) == sum(map(len, tables.values()))
    assert len({Path("town", f, "workload.py").read_text() for f in folders}) == 1
    job = yaml.safe_load(Path("town/server/job.yaml").read_text())
    load(GatewayConfig, job["gateway"], "gateway")
    assert job["federation"]["privacy"]["noise"] == "site"
    for place in folders[:3]:
        load_site_file(Path("town", place, "workload.yaml"), place, "f")


def test_a_site_is_told_of_rows_that_nothing_is_learned_of(call):
    assert call("town", "--sites", "2").exit_code == 0
    table = Path("town/hospital_1/data.csv")
    head, *rows = table.read_text().splitlines()
    worded = [",".join([*row.split(",")[:2], "old", *row.split(",")[3:]]) for row in rows]
    table.write_text("\n".join([head, *worded]))
    with pytest.warns(UserWarning, match=r"data.csv: age is not a number in (\d+) of \1 rows"):
        load_site_file(Path("town/hospital_1/workload.yaml"), "hospital_1", "f")


def test_a_served_job_is_planned_whatever_table_the_server_has(call):
    assert call("town", "--sites", "2").exit_code == 0
    table = Path("town/server/data.csv")  # one practice alone, of which no release could be made
    head, first, *_ = table.read_text().splitlines()
    table.write_text("\n".join([head] + [first] * 10))
    planned = CliRunner().invoke(main, ["plan", "town/server/job.yaml", "--format", "json"])
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["baskets"]["number"] == 2


@pytest.mark.parametrize("content", [None, "Größe;Alter\n".encode("latin-1")])
def test_a_table_that_cannot_be_read_is_named(call, content):
    _, workload = made(call, "numpy")
    Path("wards/data.csv").unlink()
    if content is not None:
        Path("wards/data.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"data.csv: no CSV in UTF-8 beside workload.py or in"):
        workload.clients()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_trains_a_client_and_is_measured(call, kind):
    pytest.importorskip(KINDS[kind])
    _, workload = made(call, kind)
    clients, codec, model = workload.clients(), workload.codec(), workload.initial_model()
    assert len(clients) == 160
    assert Counter(client.domain_id for client in clients) == dict.fromkeys(init.REGIONS, 40)
    assert {client.num_examples for client in clients} == {20}
    vector = codec.encode(model)
    deltas = [train_client(workload, codec, vector, client, 0).delta for client in clients[:20]]
    after = codec.decode(vector + sum(deltas) / len(deltas))
    assert workload.evaluate(after)["log_loss"] < workload.evaluate(model)["log_loss"]
    lines = Path("wards/workload.py").read_text().splitlines()
    assert 40 <= len([line for line in lines if line.strip()]) <= 62
    assert max(map(len, lines)) <= 110


@pytest.mark.long
def test_a_made_folder_learns_under_its_budget(call):
    job, workload = made(call, "numpy")
    settings = {**job["federation"], "ledger_path": "ledger.sqlite", "total_delta": 1e-5}
    settings |= {"vector_dim": workload.codec().dimension, "auto_aggregate": False}
    settings["layer2"] |= {"central_dp_delta": 1e-5}
    config = load(HierarchicalFederationConfig, settings)
    with HierarchicalFederation(config, runtime="local") as federation:
        result = federation.fit(workload, rounds=3)
    assert result.history[-1].evaluation["accuracy"] > 0.7
    assert not result.refusals


@pytest.mark.long
def test_a_made_job_runs_by_command(call):
    made(call, "numpy")
    arguments = ["run", "wards/job.yaml", "--runtime", "local", "--rounds", "2", "--out", "out"]
    done = CliRunner().invoke(main, [*arguments, "--set", "federation.ledger_path=ledger.sqlite"])
    assert done.exit_code == 0, done.output
    exported = CliRunner().invoke(main, ["export", "out/model.npz", "--to", "numpy"])
    assert exported.exit_code == 0
    with np.load("out/model.arrays.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays} == {"weights": (6, 2), "bias": (2,)}


def test_the_table_is_the_same_each_time(call):
    made(call, "numpy", "one")
    made(call, "sklearn", "two")
    assert Path("one/data.csv").read_bytes() == Path("two/data.csv").read_bytes()


@pytest.mark.long
def test_a_made_job_protects_persons_where_it_is_asked_to(call):
    assert call("wards", "--persons").exit_code == 0
    job = yaml.safe_load(Path("wards/job.yaml").read_text())
    workload = load_workload(job["workload"]["class"], job["workload"]["args"], "wards")
    clients = workload.clients()
    assert {(c.num_examples, c.num_persons) for c in clients} == {(20, 15)}
    table = Path("wards/data.csv")
    table.write_text(table.read_text().replace("north,72,", "north,,", 1))
    arguments = ["run", "wards/job.yaml", "--runtime", "local", "--rounds", "2", "--out", "out"]
    done = CliRunner().invoke(main, [*arguments, "--set", "federation.ledger_path=ledger.sqlite"])
    assert done.exit_code == 0, done.output
    assert "for one person (a whole client: " in " ".join(done.stdout.split())
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["metrics"]["accuracy"] > 0.75
    assert not summary["rejected"], "one person's wrong row stops nobody"
    assert summary["privacy"].items() >= {"unit": "person", "noise": "central", "min_persons": 15}.items()
    page = Path("out/report.html").read_text()
    assert "epsilon spent for one person, at delta 1e-06" in page
    assert "a whole client, where the smallest has 15 persons" in page
    refused = call("others", "--persons", "--kind", "torch")
    assert (refused.exit_code, os.path.exists("others")) == (2, False)
    assert "--persons: with --kind torch is not accepted" in refused.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("practice,region", "practice,county"),
            "data.csv has no column ['region']; it has ['practice', 'county'",
        ),
        (("north,72,", "north,,"), "data.csv, row 2: age is not a number"),
        ((",no\n", ",maybe\n"), "data.csv, row 2: readmitted is not one of ['no', 'yes']"),
    ],
)
def test_a_table_that_is_not_as_the_job_says_is_named(call, change, words):
    _, workload = made(call, "numpy")
    table = Path("wards/data.csv")
    table.write_text(table.read_text().replace(*change))
    with pytest.raises(ValueError, match=re.escape(words)):
        workload.evaluate(workload.train(workload.initial_model(), workload.clients()[0], 0).model)


def test_a_table_needs_no_domain_and_may_have_a_mark_of_its_byte_order(call):
    made(call, "numpy")
    Path("wards/own.csv").write_text("\ufeffshop,sold,label\na,1,x\na,2,y\nb,3,x\n", encoding="utf-8")
    own = {"path": "own.csv", "client": "shop", "domain": None, "label": "label", "classes": ["x", "y"]}
    workload = load_workload("workload:Table", {**own, "features": {"sold": [0, 1]}}, "wards")
    assert [(c.client_id, c.domain_id, c.num_examples) for c in workload.clients()] == [
        ("a", "all", 2),
        ("b", "all", 1),
    ]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../out", "/tmp/out", "a/b", "a\nb", "-x", "~", "$(id)", "a b", "x" * 101, ".hidden"],
)
def test_a_hostile_name_is_refused(call, name, tmp_path):
    done = call("--", name)
    assert done.exit_code == 2
    assert "NAME" in done.stderr
    assert os.listdir(tmp_path) == []


def test_what_is_there_already_is_never_changed(call):
    Path("wards").mkdir()
    Path("wards/notes.txt").write_text("mine")
    Path("file").write_text("mine")
    Path("elsewhere").mkdir()
    Path("link").symlink_to("elsewhere")
    for name, words in [
        ("wards", "the folder wards is there already, with notes.txt"),
        ("file", "file is there already, and is no folder"),
        ("link", "link is there already, and is no folder"),
    ]:
        done = call(name)
        assert done.exit_code == 2
        assert words in done.stderr
    assert os.listdir("wards") == ["notes.txt"]
    assert os.listdir("elsewhere") == []
    assert sorted(os.listdir()) == ["elsewhere", "file", "link", "wards"]
    Path("empty").mkdir()
    assert call("empty").exit_code == 0


def test_a_folder_is_made_whole_or_not_at_all(call, monkeypatch):
    def full(file, persons):
        file.write("practice,region")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(init, "write_made_up_table", full)
    done = call("wards")
    assert done.exit_code == 2
    assert "wards: No space left on device" in done.stderr
    assert os.listdir() == []
