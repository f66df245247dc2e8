"""Ledger events: typed values whose bytes in a ledger, and so its hashes, never change."""

from __future__ import annotations

import math
import os
import secrets
import socket
import sqlite3
from pathlib import Path

import pytest

from scarcity_ray.privacy import Accounting, DurableBudget, Ledger

OLD = Path(__file__).parent / "data" / "ledger_before_ids.sql"


@pytest.fixture
def fixed(monkeypatch):
    """A ledger's bytes without what differs each time."""
    monkeypatch.setattr(secrets, "token_hex", lambda size: "ab" * size)
    monkeypatch.setattr(secrets, "randbits", lambda bits: 7)
    monkeypatch.setattr(socket, "gethostname", lambda: "host")
    monkeypatch.setattr(os, "getpid", lambda: 42)


def begin(path, **changes):
    given = {
        "name": None,
        "total_epsilon": 10,
        "total_delta": 1e-5,
        "gossip_share": 0.25,
        "must_exist": False,
    }
    return DurableBudget.open(path, now=1.0, **{**given, **changes})


def test_the_bytes_of_a_ledger_are_those_that_earlier_versions_wrote(tmp_path, fixed):
    path = tmp_path / "ledger.sqlite"
    budget = begin(path, operator_key="cd" * 32)
    budget.charge_release("r0", 0.2, now=2.0, details={"sigma": math.inf, "round": 1})
    budget.charge_gossip("g0", ["ann", "bo"], 0.1, now=3.0, details={"kind": "push"})
    budget.charge_gossip("g1", ["bo", "cy"], 0.1, now=4.0, details={})
    budget.void_release("r1", now=5.0, details={"asked_by": "basket:0"})
    budget.renew(12, 1e-5, now=6.0, operator="dee", renewal_id="x", details={"signature": "ef"})
    budget.renew(13.5, 2e-5, now=7.0, operator="dee")
    budget.charge_release("r0", 0.2, now=8.0, details={})
    budget.close()
    begin(path, operator_key="cd" * 32, name="hospital").close()
    Ledger.open(path, now=9.0, take_over=True, operator="eve").close()
    assert Ledger.read(path).verify() == "6d443b737381e788c4d41940fb8aa9de0039afcc56cbc9f843c5412aabda0707"
    path = tmp_path / "zcdp.sqlite"
    begin(path, name="hospital", total_epsilon=math.inf, accounting=Accounting.ZCDP).close()
    assert Ledger.read(path).verify() == "859b8d37961b21a4894d50168d96cbab8adfc04ba40aa2908fc65c345862e31a"


def test_a_ledger_of_before_there_were_ids_goes_on_with_the_same_bytes(tmp_path, fixed):
    path = tmp_path / "ledger.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(OLD.read_text())
    connection.close()
    begin(path, total_epsilon=12.0).close()
    assert Ledger.read(path).verify() == "6f59278b553308b90a6436716d577eb420e0d673c35f64467cde3f78fba055b6"
