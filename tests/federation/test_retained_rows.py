"""Noised rows that are retained: the rule gives the same bytes again, and what was changed is named."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.baskets import retained
from scarcity_ray.baskets.retained import CODEC, RetainedAggregate, replay, rows_folder
from scarcity_ray.cli.main import main
from scarcity_ray.config import load
from scarcity_ray.errors import ConfigError, UsageError
from scarcity_ray.storage.snapshots import Snapshots
from scarcity_ray_client.receipts import ReleaseRecord
from tests.federation.test_site_noise import DIMENSION, NAMES, settings

pytestmark = pytest.mark.filterwarnings("ignore::scarcity_ray.ScarcityWarning")


FIXTURES = Path(__file__).parents[1] / "storage" / "fixtures"
FIXTURE, RELEASE = FIXTURES / "retained-1.rows", FIXTURES / "release_record-2.jsonl"


def made(folder: Path, **others: Any) -> HierarchicalFederation:
    kept = {
        "storage_path": str(folder / "state"),
        "ledger_path": str(folder / "l.sqlite"),
        "auto_aggregate": False,
    }
    content = settings(receipts=True, retain_rounds=2, total_epsilon=9.0, **{**kept, **others})
    fed = HierarchicalFederation(load(HierarchicalFederationConfig, content), runtime="local")
    for name in NAMES:
        fed.register_client(name, name[0], num_examples=100)
    return fed


def released(fed: HierarchicalFederation, folder: Path, rounds: int) -> list[Any]:
    """Makes rounds, each with a release; the receipts, and the files of an audit."""
    rng, receipts = np.random.default_rng(3), []
    for _ in range(rounds):
        rows = rng.normal(0, 1.0, (len(NAMES), DIMENSION)).astype(np.float32)
        told = fed.submit_updates(NAMES, rows, num_examples=[100] * len(NAMES))
        assert all(told), told
        receipts += [receipt.signed() for receipt in told]
        assert fed.force_aggregate() is not None
        model = fed.get_global_meta_model()
        assert model is not None
        with open(folder / "releases.jsonl", "a") as file:
            file.write(model.release_record().to_text() + "\n")
        fed.advance_round()
    (folder / "roster.json").write_text(fed.get_roster().to_json())
    return receipts


def audit(folder: Path, *arguments: str) -> Result:
    at = {"rows": [str(folder / "state"), "--output", str(folder / "rows.file")]}
    replaying = [str(folder / "rows.file"), "--release", str(folder / "releases.jsonl")]
    return CliRunner().invoke(main, ["audit", arguments[0], *at.get(arguments[0], replaying), *arguments[1:]])


@pytest.mark.parametrize(
    "layer1",
    [
        {"aggregation_method": "krum", "num_byzantine": 0, "momentum": 0.5},
        {"aggregation_method": "weighted"},
        {"aggregation_method": "median", "pre": ["bucketing"], "bucket_size": 2},
    ],
    ids=lambda layer1: layer1["aggregation_method"],
)
def test_a_replay_gives_the_same_bytes(layer1: dict[str, Any], tmp_path: Path) -> None:
    with made(tmp_path, layer1={"clip_norm": 2.0, **layer1}) as fed:
        (receipt, *_) = released(fed, tmp_path, 3)[-len(NAMES) :]
        (tmp_path / "receipt.json").write_text(receipt.to_text())
    assert audit(tmp_path, "rows").exit_code == 0
    shown = audit(
        tmp_path,
        "replay",
        *("--roster", str(tmp_path / "roster.json"), "--receipt", str(tmp_path / "receipt.json")),
        *("--format", "json"),
    )
    told = json.loads(shown.output)
    assert shown.exit_code == 0, told
    assert [(said["round"], said["number"], said["release"]) for said in told] == [
        (round_id, round_id + 1, round_id + 1) for round_id in (1, 1, 2, 2)
    ], "two rounds are kept"
    assert sum("receipt of client" in note for said in told for note in said["notes"]) == 1
    words = audit(tmp_path, "replay", "--roster", str(tmp_path / "roster.json")).output
    assert words.count("the same bytes, as signed for release") == 4


def shuffled(kept: RetainedAggregate) -> RetainedAggregate:
    return replace(kept, clients=kept.clients[::-1], rows=kept.rows[::-1])


def with_rule(kept: RetainedAggregate, **values: Any) -> RetainedAggregate:
    return replace(kept, config={**kept.config, "layer1": {**kept.config["layer1"], **values}})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda k: replace(k, rows=(k.rows[0] + np.float32(1), *k.rows[1:])), {"rows"}),
        (shuffled, {"order of the rows", "rows"}),
        (lambda k: with_rule(k, aggregation_method="mean"), {"rule", "aggregate"}),
        (lambda k: with_rule(k, momentum=0.6), {"arguments of the rule", "rows"}),
        (lambda k: with_rule(k, clip_norm=0.5), {"clip norm", "aggregate"}),
        (lambda k: replace(k, num_byzantine=1), {"f"}),
        (lambda k: replace(k, aggregate=k.aggregate * 2), {"aggregate"}),
        (lambda k: replace(k, momenta={}), {"momentum", "rows"}),
        (lambda k: replace(k, updates=k.updates[1:]), {"updates", "order of the rows"}),
        (lambda k: replace(k, seed=3), {"seed"}),
    ],
)
def test_an_input_that_was_changed_is_named(
    change: Callable[[RetainedAggregate], RetainedAggregate],
    named: set[str],
    kept_aggregate: RetainedAggregate,
) -> None:
    faults = {fault.partition(":")[0] for fault in replay(change(kept_aggregate)).faults}
    assert named <= faults
    forged = replay(change(kept_aggregate).with_manifest())
    assert change(kept_aggregate).with_manifest().digest != kept_aggregate.digest, "it is in no release"
    assert forged.aggregate == replay(change(kept_aggregate)).aggregate


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retained")
    layer1 = {"aggregation_method": "krum", "num_byzantine": 0, "momentum": 0.5, "clip_norm": 2.0}
    with made(folder, layer1=layer1) as fed:
        released(fed, folder, 2)
    return folder


@pytest.fixture
def kept_aggregate(storage: Path) -> RetainedAggregate:
    every = list(Snapshots(rows_folder(str(storage / "state"))).read_every(CODEC))
    kept: RetainedAggregate = every[-1][0]
    words = "the momentum of 3 clients is the basket's word: taken as retained"
    assert (replay(kept).faults, replay(kept).notes) == ((), (words,))
    return kept


def test_a_forged_manifest_is_in_no_release(storage: Path, kept_aggregate: RetainedAggregate) -> None:
    forged = with_rule(kept_aggregate, aggregation_method="mean").with_manifest()
    Snapshots(str(storage), "x").write_file("rows.file", [forged], CODEC)
    shown = audit(storage, "replay")
    assert shown.exit_code == 1
    assert "fault: its manifest is signed in none of the releases given" in shown.output
    Snapshots(str(storage), "x").write_file("rows.file", ["else"], CODEC)
    assert "these are no retained rows" in audit(storage, "replay").output


def test_rows_that_are_in_two_releases_are_told_of(
    storage: Path, kept_aggregate: RetainedAggregate, tmp_path: Path
) -> None:
    Snapshots(str(tmp_path), "x").write_file("rows.file", [kept_aggregate], CODEC)
    once = (storage / "releases.jsonl").read_text()
    (tmp_path / "releases.jsonl").write_text(once)
    assert audit(tmp_path, "replay").exit_code == 0
    last = ReleaseRecord.from_text(once.splitlines()[-1])
    again = replace(last, version=last.version + 1)
    (tmp_path / "releases.jsonl").write_text(f"{once}{again.to_text()}\n")
    shown = audit(tmp_path, "replay")
    assert shown.exit_code == 1
    assert f"fault: counted 2 times, in releases [{last.version}, {again.version}]" in shown.output


def test_no_code_is_loaded_from_a_retained_file(kept_aggregate: RetainedAggregate) -> None:
    rule = "scarcity_ray.testing.nowhere:Rule"
    theirs = with_rule(kept_aggregate, aggregation_method=rule)
    with pytest.raises(UsageError, match="is not of this package: read it"):
        replay(theirs)
    with pytest.raises(UsageError, match="nowhere"):
        replay(theirs, rule)
    for torn in (replace(kept_aggregate, rows=("x",)), replace(kept_aggregate, config={})):
        with pytest.raises(UsageError, match="torn or were changed"):
            replay(torn)


@given(st.data())
def test_a_hostile_file_is_refused_or_differs(data: Any) -> None:
    """One value of it is another, and its checksum is right."""
    content = FIXTURE.read_bytes()
    at = content.index(b"\n", content.index(b"\n") + 1) + 1
    held = json.loads(content.split(b"\n", 2)[1])
    places = [(held, key) for key in held]
    for node, key in places:
        inner = node[key]
        if isinstance(inner, dict | list):
            places += [(inner, k) for k in (inner if isinstance(inner, dict) else range(len(inner)))]
    node, key = data.draw(st.sampled_from(places))
    node[key] = data.draw(st.sampled_from([None, 7, -1, 1e300, "x", "\x1b[31m", [], {}, [[0]], True, 10**30]))
    body = json.dumps(held).encode() + b"\n" + content[at:]
    head = {"kind": "scarcity_ray snapshot", "version": 1, "sha256": hashlib.sha256(body).hexdigest()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.file"
        file.write_bytes(json.dumps({**head, "bytes": len(body)}).encode() + b"\n" + body)
        told = CliRunner().invoke(main, ["audit", "replay", str(file), "--release", str(RELEASE)])
    assert isinstance(told.exception, SystemExit | None), told.exception
    assert "\x1b" not in told.output
    assert told.exit_code in (0, 1, 2)


def test_rows_without_noise_are_never_retained(tmp_path: Path) -> None:
    storage = {"storage_path": str(tmp_path), "durability": "none", "retain_rounds": 1, "receipts": True}
    content = {"gossip_budget_share": 0.0, **storage}
    with pytest.raises(ConfigError, match=r"retain_rounds: 1 is not accepted; 0 without privacy.noise: site"):
        HierarchicalFederation(load(HierarchicalFederationConfig, content), runtime="local")
    for name, value, needed in (
        ("receipts", False, "receipts: true"),
        ("storage_path", None, "storage_path"),
        ("runtime", {"gpus_per_actor": 0.5}, "runtime.gpus_per_actor: 0"),
    ):
        content = settings(**storage, ledger_path=str(tmp_path / "l.sqlite")) | {name: value}
        with pytest.raises(ConfigError, match=f"retain_rounds: 1 is not accepted; 0 without {needed}"):
            HierarchicalFederation(load(HierarchicalFederationConfig, content), runtime="local")


def test_what_is_retained_is_this_users_alone(storage: Path) -> None:
    folder = storage / "state" / "rows"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert retained.rows_folder("s3://bucket/town/") == "s3://bucket/town/rows"
    assert "no such rows are retained" in audit(storage, "rows", "--round", "77").output
