"""What a ledger's rows add up to, for people and scripts."""

from __future__ import annotations

import json

from scarcity_ray.privacy import DurableBudget, Ledger
from scarcity_ray.privacy.ledger.replay import export


def test_export_says_who_what_when_and_epsilon_after(tmp_path):
    path = tmp_path / "ledger.sqlite"
    budget = DurableBudget.open(
        path,
        name="hospital",
        total_epsilon=5.0,
        total_delta=1e-5,
        gossip_share=0.5,
        must_exist=False,
        now=1.0,
    )
    spent = []

    def note():
        spent.append(budget.status(0.1).epsilon_spent)

    budget.charge_release("r0", 0.3, now=2.0, details={"sigma": 4.0, "sensitivity": 1.2})
    note()
    budget.charge_gossip("g0", ["bo", "ann"], 0.2, now=3.0, details={})
    note()
    budget.charge_gossip("g1", ["cy", "ann"], 0.2, now=4.0, details={})
    note()
    budget.renew(6.0, 1e-5, now=5.0, operator="dee")
    note()
    lines = list(export(Ledger.read(path)))
    assert [line["kind"] for line in lines] == ["genesis", "writer", "release", "gossip", "gossip", "renewal"]
    assert [line["at"] for line in lines] == [1.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert lines[2]["body"]["details"] == {"sigma": 4.0, "sensitivity": 1.2}
    assert [sorted(line["clients"]) for line in lines[3:5]] == [["ann", "bo"], ["ann", "cy"]]
    assert [line["epsilon_spent"] for line in lines[2:]] == spent
    assert lines[2]["epsilon_spent"] == lines[2]["body"]["epsilon_spent"]
    assert lines[-1]["hash"] == budget.status(0.1).head_hash
    assert json.loads(json.dumps(lines)) == lines
