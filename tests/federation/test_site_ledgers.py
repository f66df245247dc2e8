"""Ledgers at the sites and the accountant's heads: what is sent is told, an older copy sends nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, UsageError
from scarcity_ray_client import Client, IdentityKeyPair, Policy, SiteLedger, SiteLedgers
from scarcity_ray_client.accounting.modes import Accounting
from scarcity_ray_client.noise.source import SystemNoise
from scarcity_ray_client.site_ledger import Extension, Head
from tests.federation.test_site_noise import NAMES, Mean, recorded, settings

KEYS = {name: IdentityKeyPair.generate() for name in NAMES}


class Ceilinged(Mean):
    """Every site has a ceiling; `most` rows of each fit."""

    def __init__(self, fed: HierarchicalFederation, rows: dict[str, float]) -> None:
        mu = fed.plan.mu_row
        self.epsilons = {
            name: fed.plan.accounting.epsilon_of(mu * rows.get(name, 50.0) ** 0.5, 1e-6) * (1 + 1e-9)
            for name in NAMES
        }

    def clients(self) -> list[Client]:
        policies = {
            name: Policy(name, "person", epsilon, 1e-6).signed(KEYS[name])
            for name, epsilon in self.epsilons.items()
        }
        return [replace(client, policy=policies[client.client_id]) for client in super().clients()]


def ledgers_of(fed: HierarchicalFederation, workload: Ceilinged, folder: Path) -> SiteLedgers:
    policies = {client.client_id: client.policy.policy for client in workload.clients() if client.policy}
    return SiteLedgers(str(folder), fed.federation_id, policies, fed.plan.accounting)


def test_a_site_keeps_what_it_sent_and_the_accountant_hears_of_it(
    open_federation: Any, tmp_path: Path
) -> None:
    fed = open_federation(settings())
    workload = Ceilinged(fed, {})
    fed.fit(workload, rounds=2, site_ledgers=str(tmp_path / "sites"))
    ledgers = ledgers_of(fed, workload, tmp_path / "sites")
    for name in NAMES:
        ledger = ledgers.open(name)
        assert ledger.head == fed.site_ledger_head(name)
        assert ledger.head.num_rows == 4
        # Both ledgers have charged the same: the site's, and the federation's to this client.
        mus = [line["body"]["mu"] for line in recorded(fed, "row") if name in line["clients"]]
        assert ledger.epsilon_spent == fed.plan.accounting.epsilon_of(
            float(np.sqrt(sum(m * m for m in mus))), 1e-6
        )
        ledger.close()


def test_a_federation_that_begins_again_on_its_ledger_sends_rows_of_its_new_model(
    open_federation: Any, tmp_path: Path
) -> None:
    """Its rounds begin at 0 again, and the rows that were sent in the first round 0 answer another model."""
    released = []
    for _ in range(2):
        fed = open_federation(settings(ledger_path=str(tmp_path / "ledger.sqlite")), noise=SystemNoise())
        workload = Ceilinged(fed, {})
        result = fed.fit(workload, rounds=1, site_ledgers=str(tmp_path / "sites"))
        assert result.history[0].round_id == 0
        released.append(fed.get_global_model())
        fed.close()
    assert (released[0] != released[1]).all()
    with ledgers_of(fed, workload, tmp_path / "sites").open("a0") as ledger:
        assert ledger.head.num_rows == 4


def test_a_restored_backup_sends_nothing_and_is_counted(open_federation: Any, tmp_path: Path) -> None:
    fed = open_federation(settings())
    workload, folder = Ceilinged(fed, {}), tmp_path / "sites"
    path = ledgers_of(fed, workload, folder).path_of("a0")
    fed.fit(workload, rounds=1, site_ledgers=str(folder))
    shutil.copytree(folder, tmp_path / "backup")
    fed.fit(workload, rounds=1, site_ledgers=str(folder))
    known = fed.site_ledger_head("a0")
    for old in folder.glob(f"{path.name}*"):
        old.unlink()
    for copy in (tmp_path / "backup").glob(f"{path.name}*"):
        shutil.copy(copy, folder / copy.name)
    result = fed.fit(workload, rounds=1, site_ledgers=str(folder))
    assert result.refusals == {"a0": {"ledger_rolled_back": 1}}
    assert "older copy" in result.history[0].first_refusals[0].detail
    assert fed.site_ledger_head("a0") == known
    # So it is with a file that was lost and begun anew.
    for old in folder.glob(f"{path.name}*"):
        old.unlink()
    result = fed.fit(workload, rounds=1, site_ledgers=str(folder))
    assert result.refusals == {"a0": {"ledger_rolled_back": 1}}


def test_the_sites_own_ledger_stops_it_whatever_the_federation_allows(
    open_federation: Any, tmp_path: Path
) -> None:
    """The site's file knows a stricter policy than the federation was ever given."""
    fed = open_federation(settings())
    workload, folder = Ceilinged(fed, {}), tmp_path / "sites"
    strict = Ceilinged(fed, {"a0": 1.5})
    ledgers_of(fed, strict, folder).open("a0").close()
    with pytest.raises(UsageError, match="allows more than the one in force"):
        ledgers_of(fed, workload, folder).open("a0")
    ledger = ledgers_of(fed, strict, folder).open("a0")
    assert ledger.is_proof
    answers = [ledger.send("a0", k, fed.plan.mu_row, lambda: np.zeros(3, np.float32)) for k in range(3)]
    assert [isinstance(answer, np.ndarray) for answer in answers] == [True, False, False]


def test_a_site_outside_tells_its_head_with_each_row(open_federation: Any, tmp_path: Path) -> None:
    fed = open_federation(settings())
    fed.register_client("a0", "a", num_examples=100)
    policy = Policy("a0", "person", 1.0, 1e-6)
    asked: dict[str, Any] = {"federation_id": fed.federation_id, "is_proof": True}
    ledger = SiteLedger.open(tmp_path / "own.sqlite", policy, accounting=Accounting.ZCDP, **asked)
    assert fed.site_ledger_head("a0") is None
    for round_id in range(2):
        assert ledger.heed(fed.site_ledger_head("a0"))
        row = ledger.send("a0", round_id, 0.1, lambda: np.zeros(fed.config.vector_dim, np.float32))
        assert fed.note_site_ledger("a0", ledger.extension(fed.site_ledger_head("a0")))
        assert fed.offer_update("a0", row, num_examples=100).reason in (None, "replayed")
    assert fed.site_ledger_head("a0") == ledger.head
    assert len(recorded(fed, "site_heads")) == 2
    assert not fed.note_site_ledger("a0", Extension(0, ()))
    assert not fed.note_site_ledger("a0", Extension(9, (bytes(32),)))
    with pytest.raises(UsageError, match="an instance of Extension"):
        fed.note_site_ledger("a0", Head())
    # Told again, nothing is written.
    assert fed.note_site_ledger("a0", ledger.extension(fed.site_ledger_head("a0")))
    assert len(recorded(fed, "site_heads")) == 2


def test_ledgers_at_the_sites_need_site_noise_and_ceilings(open_federation: Any, tmp_path: Path) -> None:
    fed = open_federation(settings())
    with pytest.raises(UsageError, match=r"have no Client\.policy"):
        fed.fit(Mean(), rounds=1, site_ledgers=str(tmp_path))
    central = open_federation(settings(privacy={"noise": "central", "row_epsilon": None, "row_delta": None}))
    with pytest.raises(UsageError, match="which is a promise there"):
        central.fit(Mean(), rounds=1, site_ledgers=str(tmp_path))
