"""A federation whose journal is in PostgreSQL: a node's loss, a zombie, the database's own loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, Rejection
from scarcity_ray.ledger_url import LedgerUrl
from tests.federation.test_journalled_baskets import CLIENTS, kill, opened, rows

pytestmark = pytest.mark.filterwarnings("ignore::scarcity_ray.ScarcityWarning")


def begun(folder: Path, url: str, **others: Any) -> HierarchicalFederation:
    fed = opened(folder, journal=False, journal_path=url, durability="update", **others)
    fed.register_clients([(client, client[0]) for client in CLIENTS])
    return fed


@pytest.mark.long
def test_an_acknowledged_update_outlives_the_node_of_its_basket(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is looked for on a node: no disk there has any part in it."""
    with begun(tmp_path, postgres_url) as fed:
        monkeypatch.setattr(fed._runtime, "holder_of", lambda path: pytest.fail("a disk was asked"))
        assert all(fed.submit_updates(CLIENTS, rows(), 0))
        zombie = fed._runtime.peers.roles["basket:0"]
        fed._runtime.peers.roles.pop("basket:0")
        assert fed.offer_update("a0", rows()[0], 0).reason is Rejection.REPLAYED
        assert fed.faults[0].endswith("8 updates that wait and 0 fresh aggregates; nothing was lost")
        assert fed._runtime.peers.roles["basket:0"] is not zombie
        assert not zombie._journal._journal._server.is_lost
    assert not list(tmp_path.rglob("basket-*"))


def test_a_zombie_acknowledges_nothing(tmp_path: Path, postgres_url: str) -> None:
    with begun(tmp_path, postgres_url) as fed:
        roles = fed._runtime.peers.roles
        zombie = roles.pop("basket:0")
        assert all(fed.submit_updates(CLIENTS[:4], rows(4), 0))
        successor, roles["basket:0"] = roles["basket:0"], zombie
        refused = fed.submit_updates(CLIENTS[4:], rows(8)[4:], 0)
        assert {receipt.reason for receipt in refused} == {Rejection.NOT_STORED}
        roles["basket:0"] = successor
        assert all(fed.submit_updates(CLIENTS[4:], rows(8)[4:], 0))
        np.testing.assert_allclose(fed.force_aggregate(), rows().mean(axis=0), rtol=1e-4)
        zombie.close()


def test_a_stored_federation_goes_on_elsewhere(tmp_path: Path, postgres_url: str) -> None:
    """Its password is not stored, so whoever restores it brings the URL."""
    storage = str(tmp_path / "state")
    with begun(tmp_path, postgres_url, storage_path=storage) as fed:
        assert all(fed.submit_updates(CLIENTS, rows(), 0))
        fed.terminate()
    assert LedgerUrl(postgres_url).hidden_in("x") == "x"
    password = postgres_url.split("@")[0].rsplit(":", 1)[1]
    stored = [path for path in Path(storage).rglob("*") if path.is_file()]
    assert stored
    assert not [path for path in stored if password.encode() in path.read_bytes()]
    with HierarchicalFederation.restore(storage, runtime="local", journal_path=postgres_url) as fed:
        assert fed.faults == ()
        np.testing.assert_allclose(fed.force_aggregate(), rows().mean(axis=0), rtol=1e-4)


def test_a_journal_that_is_gone_is_told_update_by_update(tmp_path: Path, postgres_url: str) -> None:
    import psycopg

    with begun(tmp_path, postgres_url) as fed:
        assert all(fed.submit_updates(CLIENTS[:2], rows(2), 0))
        with psycopg.connect(postgres_url) as admin:
            admin.execute("DELETE FROM scarcity_ray.journals")
        kill(fed)
        assert fed.get_stats()["n_updates_buffered"] == 0
        assert "nothing of its journal is left" in fed.faults[0]
        assert fed.lost_updates == (("a0", 0), ("a1", 0))
        assert all(fed.submit_updates(CLIENTS[:2], rows(2), 0))
