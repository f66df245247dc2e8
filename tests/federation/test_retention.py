"""What `retention` and `buffer.max_staleness` say is deleted is gone from the disk, and no more is."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray_client.receipts import audit_receipt

CLIENTS = [(f"{domain}{i}", domain) for domain in "ab" for i in range(3)]


def test_releases_receipts_and_answers_are_deleted_when_they_have_served(tmp_path: Path) -> None:
    plain: dict[str, Any] = {
        "vector_dim": 4,
        "auto_aggregate": False,
        "receipts": True,
        "total_epsilon": math.inf,
        "gossip_budget_share": 0.0,
        "storage_path": str(tmp_path / "storage"),
        "ledger_path": str(tmp_path / "ledger.sqlite"),
        "buffer": {"max_staleness": 1},
        "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0},
        "layer2": {"central_dp_epsilon": math.inf},
        "retention": {"releases": 3, "receipt_rounds": 2},
    }
    names = [client for client, _ in CLIENTS]
    with HierarchicalFederation(load(HierarchicalFederationConfig, plain), runtime="local") as federation:
        federation.register_clients(CLIENTS)
        receipts, records, kept = [], [], []
        for round_id in range(5):
            told = federation.submit_updates(names, np.full((6, 4), 0.1), round_id)
            assert all(told)
            receipts.append(told[0].signed())
            assert federation.force_aggregate() is not None
            model = federation.get_global_meta_model()
            assert model is not None
            records.append(model.release_record())
            federation.advance_round()
            kept.append(len(list((tmp_path / "storage").glob("release.*"))))
        assert kept == [1, 2, 3, 3, 3]
        said = [
            audit_receipt(receipt, records, federation.prove_receipt(receipt), None).words
            for receipt in receipts
        ]
        assert [words.startswith("counted in release") for words in said] == [False, False, False, True, True]
        (journal,) = (tmp_path / "storage" / "journal").rglob("basket-*.sqlite")
    with closing(sqlite3.connect(journal)) as connection:
        rows = connection.execute("SELECT round, rows IS NULL FROM batches").fetchall()
    assert {round_id for round_id, _ in rows} == {4}, "older answers are of no use, as such updates are stale"
    assert all(is_consumed for _, is_consumed in rows), "numbers go once they are in an aggregate"
