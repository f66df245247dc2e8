"""A federation whose ledger is in PostgreSQL: it outlives the accountant and its node, and the server."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from scarcity_ray import HierarchicalFederation
from scarcity_ray.cli.main import main
from scarcity_ray.config import to_plain
from scarcity_ray.errors import LedgerError, LedgerMissing, UsageError
from scarcity_ray.privacy import Ledger

Open = Callable[..., Any]


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def harness(request: pytest.FixtureRequest, postgres_server: Any, open_harnesses: Open) -> Any:
    """One federation a module and runtime; the last test leaves nothing of its ledger."""
    clear(postgres_server.url())
    return open_harnesses(request.param, ledger_path=f"{postgres_server.url()}?federation=town")


@pytest.fixture
def postgres_url(postgres_server: Any) -> str:
    return str(postgres_server.url())


def clear(url: str) -> None:
    import psycopg

    with psycopg.connect(url) as owner:
        owner.execute("DROP SCHEMA IF EXISTS scarcity_ray CASCADE")


def charges(url: str) -> list[str]:
    ledger = Ledger.read(f"{url}?federation=town")
    ledger.verify()
    found = [row.charge_id for row in ledger.rows() if row.charge_id and row.kind != "void"]
    ledger.close()
    return found


@pytest.mark.long
def test_a_federation_keeps_its_ledger_in_a_database(
    harness: Any, postgres_url: str, postgres_server: Any
) -> None:
    fed = harness.fed
    harness.submit(0)
    assert fed.force_aggregate() is not None
    first = charges(postgres_url)
    assert len(first) == 1
    budget = fed.get_privacy_budget()
    # The accountant dies, and its first node with it: it comes back where the driver is.
    assert fed._driver.supervisor.identity.ledger_node is None
    harness.kill("accountant")
    assert fed.get_privacy_budget() == budget
    # The server dies between rounds and is back before the next.
    postgres_server.kill()
    postgres_server.start()
    harness.submit(1)
    assert fed.force_aggregate() is not None
    assert charges(postgres_url)[:1] == first
    # The server is away when a release is due.
    postgres_server.stop()
    version = fed.get_global_meta_model().version
    harness.submit(2)
    with pytest.raises(LedgerError, match="nothing may be released"):
        fed.force_aggregate()
    assert fed.get_global_meta_model().version == version
    postgres_server.start()
    assert fed.force_aggregate() is not None
    assert fed.get_global_meta_model().version == version + 1
    assert len(charges(postgres_url)) == 3
    head = fed.get_global_meta_model().ledger_head
    url = f"{postgres_url}?federation=town"
    done = CliRunner().invoke(main, ["ledger", "verify", url, "--head", head, "--format", "json"])
    assert json.loads(done.stdout)["holds"] is True


def test_the_password_is_shown_nowhere(
    harness: Any, postgres_url: str, postgres_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fed = harness.fed
    harness.kill("accountant")
    assert fed.get_privacy_budget()[0] > 0
    identity = fed._driver.supervisor.identity
    shown = [
        repr(fed.config),
        str(to_plain(fed.config)),
        str(fed.get_stats()),
        repr(identity),
        repr(fed._driver.supervisor._accountant_spec(must_exist=True)),
        repr(fed.plan),
        caplog.text,
    ]
    runner = CliRunner()
    url = f"{postgres_url}?federation=town"
    for words in (["show"], ["verify"], ["export"], ["show", "--format", "json"]):
        done = runner.invoke(main, ["ledger", words[0], url, *words[1:]])
        assert done.exit_code == 0, done.output
        shown.append(done.output)
    for wrong in (f"{url}x", f"{url}&no=thing", f"{postgres_url}@"):
        shown.append(runner.invoke(main, ["ledger", "show", wrong]).output)
    assert all(postgres_server.password not in text for text in shown)
    assert "federation=town" in fed.get_stats()["ledger_path"]


def test_a_database_without_the_ledger_is_never_a_fresh_budget(harness: Any, postgres_url: str) -> None:
    harness.kill("accountant")
    clear(postgres_url)
    for _ in range(2):
        with pytest.raises(LedgerMissing):
            harness.fed.get_privacy_budget()


def test_a_name_and_a_url_must_mean_the_same_federation(open_config: Open) -> None:
    config = open_config(ledger_path="postgresql://h/d?federation=town")
    with pytest.raises(UsageError, match="the URL names federation 'town', the federation is 'city'"):
        HierarchicalFederation(config, name="city", runtime="ray")
    assert replace(config, seed=1).ledger_path == config.ledger_path
