"""Receipts in a federation: what an audit shows is what happened to each update, by a count kept beside."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.baskets.receipt_book import ReceiptBook
from scarcity_ray.cli.main import main
from scarcity_ray.config import load
from scarcity_ray.errors import UsageError
from scarcity_ray.layers.models import BasketModel
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray_client.merkle import MerkleTree
from scarcity_ray_client.receipts import MEANINGS, Fate, ReleaseRecord, Verdict, audit_receipt
from scarcity_ray_client.updates import content_digest

pytestmark = pytest.mark.filterwarnings("ignore::scarcity_ray.ScarcityWarning")

DIMENSION = 64
CLIENTS = [f"{domain}{i}" for domain in "ab" for i in range(3)]
PLAIN: dict[str, Any] = {
    "vector_dim": DIMENSION,
    "receipts": True,
    "auto_aggregate": False,
    "total_epsilon": math.inf,
    "gossip_budget_share": 0.0,
    "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0, "min_updates": 1},
    "layer2": {"central_dp_epsilon": math.inf, "min_baskets": 2},
    "buffer": {"participation_cap": 9},
}


class Town:
    """A federation, the receipts that its clients hold, and the releases that it has published."""

    def __init__(self, folder: Path | None = None, **others: Any) -> None:
        kept = {} if folder is None else {"journal_path": str(folder / "journal"), "durability": "round"}
        where = {} if folder is None else {"ledger_path": str(folder / "ledger.sqlite")}
        config = load(HierarchicalFederationConfig, {**PLAIN, **kept, **where, **others})
        self.fed = HierarchicalFederation(config, runtime="local", noise=SeededNoise(1), clock=lambda: 1e6)
        self.fed.register_clients([(client, client[0]) for client in CLIENTS])
        self.receipts: list[Any] = []
        self.releases: list[ReleaseRecord] = []
        self.times = np.zeros(DIMENSION, np.int64)

    def send(self, clients: list[str]) -> None:
        """Send an update for each, with a coordinate of its own: where a release is not 0, it is in it."""
        clients = clients[: DIMENSION - len(self.receipts)]
        rows = np.eye(DIMENSION, dtype=np.float32)[len(self.receipts) :][: len(clients)]
        told = self.fed.submit_updates(clients, rows)
        assert all(told)
        self.receipts += [receipt.signed() for receipt in told]

    def layer1(self) -> None:
        self.fed._driver.run_layer1(None, True)

    def release(self) -> None:
        """Release what is fresh, if there is enough for it."""
        outcome = self.fed._driver.run_layer2(True)
        if outcome.model is not None:
            self.releases.append(outcome.model.release_record())
            self.times += outcome.model.aggregate > 1e-4

    def verdict(self, receipt: Any) -> Verdict:
        return audit_receipt(receipt, self.releases, self.fed.prove_receipt(receipt))


@pytest.fixture
def town_of() -> Any:
    towns: list[Town] = []

    def made(*given: Any, **others: Any) -> Town:
        towns.append(Town(*given, **others))
        return towns[-1]

    yield made
    for town in towns:
        town.fed.close()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["send", "layer1", "release", "leave", "join", "round", "split", "kill"]),
        st.integers(0, 5),
    ),
    min_size=4,
    max_size=10,
)


@pytest.mark.long
@given(STEPS)
def test_every_update_in_a_release_is_shown_once_and_no_other(tmp_path_factory: Any, steps: Any) -> None:
    """The oracle is the released numbers: each update has a coordinate of its own."""
    has_journal = any(name == "kill" for name, _ in steps)
    town = Town(tmp_path_factory.mktemp("town") if has_journal else None)
    fed = town.fed
    try:
        town.send(CLIENTS[:5])
        for name, number in [*steps, ("layer1", 0), ("release", 0)]:
            there = sorted(fed._driver.operations.locate(CLIENTS))
            client = CLIENTS[number]
            match name:
                case "send":
                    town.send(there[number % 2 :: 2])
                case "layer1":
                    town.layer1()
                case "release":
                    town.release()
                case "leave":
                    fed.unregister_client(client)
                case "join":
                    if client not in there:
                        fed.register_client(client, client[0])
                case "round":
                    fed.advance_round()
                case "kill":
                    fed._runtime.kill("basket:0")
                case "split":
                    with suppress(UsageError):
                        fed.split_basket(fed._driver.operations.locate(there[:1])[there[0]][0])
        for receipt, times in zip(town.receipts, town.times.tolist(), strict=False):
            verdict = town.verdict(receipt)
            assert not verdict.faults
            assert len(verdict.releases) == times <= 1
            assert verdict.is_counted_once is (times == 1)
            if times == 0:
                assert verdict.words.startswith("not counted in any of the releases given; ")
                assert "no basket knows" not in verdict.words
    finally:
        fed.close()


def test_each_receipt_is_for_its_own_update_and_opens_with_its_salt(town_of: Any) -> None:
    town = town_of()
    rows = np.eye(DIMENSION, dtype=np.float32)[: len(CLIENTS)]
    town.send(CLIENTS)
    for client, row, receipt in zip(CLIENTS, rows, town.receipts, strict=True):
        assert receipt.refusal() == ""
        assert receipt.statement.client_id == client
        assert receipt.digest == content_digest(row)
        assert receipt.statement.federation_id == town.fed.federation_id
    assert len({receipt.salt for receipt in town.receipts}) == len(CLIENTS)
    assert len({receipt.signature for receipt in town.receipts}) == 2, "one a basket"
    again = town.fed.offer_update("a0", rows[0])
    assert not again
    assert again.signed() is None


def test_what_was_not_counted_is_said(town_of: Any) -> None:
    town = town_of()
    town.send(["a0", "a1", "b0"])
    assert MEANINGS[Fate.WAITING] in town.verdict(town.receipts[0]).words
    town.fed.unregister_client("a0")
    assert MEANINGS[Fate.WITHDRAWN] in town.verdict(town.receipts[0]).words
    town.layer1()
    assert MEANINGS[Fate.AGGREGATED] in town.verdict(town.receipts[1]).words
    town.send(["a1", "b0"])
    town.layer1()
    assert MEANINGS[Fate.SUPERSEDED] in town.verdict(town.receipts[1]).words
    town.fed.unregister_client("a1")
    assert MEANINGS[Fate.DISCARDED] in town.verdict(town.receipts[3]).words
    town.send(["a2"])
    town.layer1()
    town.release()
    assert town.verdict(town.receipts[5]).words == "counted once, in release 1"
    stranger = replace(town.receipts[0], statement=replace(town.receipts[0].statement, client_id="z"))
    assert not town.verdict(stranger).is_counted_once


def test_receipts_outlive_the_actor(town_of: Any, tmp_path: Path) -> None:
    """Killed before the aggregate, before the release and after it; it has another key each time."""
    town = town_of(tmp_path)
    town.send(CLIENTS)
    for step in (town.layer1, town.release, lambda: None):
        town.fed._runtime.kill("basket:0")
        step()
    assert all(town.verdict(receipt).is_counted_once for receipt in town.receipts)
    root = town.releases[0].roots[0]
    assert root.basket_key != town.receipts[0].basket_key


def test_without_a_journal_a_death_is_not_hidden(town_of: Any) -> None:
    town = town_of()
    town.send(CLIENTS)
    town.fed._runtime.kill("basket:0")
    town.layer1()
    town.release()
    assert "no basket knows the update any more" in town.verdict(town.receipts[0]).words


def test_who_does_not_ask_for_receipts_gets_none(town_of: Any) -> None:
    town = town_of(receipts=False)
    rows = np.eye(DIMENSION, dtype=np.float32)[:2]
    assert [r.signed() for r in town.fed.submit_updates(["a0", "b0"], rows)] == [None, None]
    town.layer1()
    model = town.fed._driver.run_layer2(True).model
    assert model is not None
    assert model.receipts == ()
    other = town_of()
    other.send(["a0"])
    with pytest.raises(UsageError, match="configure receipts: true"):
        town.fed.prove_receipt(other.receipts[0])
    with pytest.raises(UsageError, match=r"what Receipt\.signed"):
        town.fed.prove_receipt(3)  # type: ignore[arg-type]


def test_the_command_says_what_is_shown(town_of: Any, tmp_path: Path) -> None:
    town = town_of()
    town.send(CLIENTS)
    town.layer1()
    town.release()
    roster = town.fed.get_roster()
    assert roster is not None
    files = {
        "receipt": town.receipts[0].to_text(),
        "releases": "\n".join(release.to_text() for release in town.releases),
        "proof": town.fed.prove_receipt(town.receipts[0]).to_text(),
        "roster": roster.to_json(),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    at = {name: str(tmp_path / name) for name in files}
    asked = ["audit", "receipt", at["receipt"], "--release", at["releases"], "--proof", at["proof"]]
    told = CliRunner().invoke(main, [*asked, "--roster", at["roster"], "--format", "json"])
    assert told.exit_code == 0, told.output
    assert '"counted_once": true, "verdict": "counted once, in release 1"' in told.output
    assert "believed as given" in CliRunner().invoke(main, asked).output
    assert CliRunner().invoke(main, asked[:-2]).exit_code == 1
    (tmp_path / "proof").write_text(files["receipt"])
    wrong = CliRunner().invoke(main, asked)
    assert wrong.exit_code == 2
    assert "this is no scarcity_ray receipt proof" in wrong.output


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 9), min_size=1), st.booleans(), st.integers(0, 3)), max_size=6)
)
def test_a_restored_book_proves_what_the_book_before_did(noted: Any) -> None:
    book, saved = ReceiptBook(), {}
    for held, is_handed_in, round_id in noted:
        keys = b"".join(bytes([i]) * 32 for i in sorted(held))
        root = MerkleTree([keys[i : i + 32] for i in range(0, len(keys), 32)]).root if is_handed_in else b""
        book.settle(keys, Fate.HANDED_IN if is_handed_in else Fate.WITHDRAWN, round_id, root)
    book.forget_before(1)
    saved = {name: settled for name, settled in book.unsaved.items() if settled is not None}
    again = ReceiptBook()
    again.restore(saved)
    for i in range(10):
        assert again.prove(bytes([i]) * 32) == book.prove(bytes([i]) * 32)


def test_what_was_handed_in_is_found_by_its_root() -> None:
    book, key = ReceiptBook(), bytes(32)
    model = BasketModel("b", np.zeros(1, np.float32), 1, 0, 0.0, 1.0, receipts=key)
    book.settle_model(model, Fate.DISCARDED, 0)
    for _ in range(2):
        book.settle_model(model, Fate.HANDED_IN, 0)
    proof = book.prove(key)
    assert proof.fate is Fate.HANDED_IN
    assert len(book.unsaved) == 2
    assert proof.paths[book.root_of(model).hex()].shows(key, book.root_of(model))
