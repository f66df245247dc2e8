"""The documents' whole example of a workflow, as it stands."""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import Any

import numpy as np
import pytest

EXAMPLE = """
from scarcity_ray import (
    HierarchicalFederation, 
    HierarchicalFederationConfig
)
import numpy as np

# Initialize
fed = HierarchicalFederation(HierarchicalFederationConfig(
    total_epsilon=10.0,
    vector_dim=64
))

# Register clients
for i in range(10):
    domain = "healthcare" if i < 5 else "finance"
    fed.register_client(f"client_{i}", domain_id=domain)

# Training loop
for round_id in range(100):
    # Each client computes local update
    for i in range(10):
        update = compute_local_update(f"client_{i}")
        fed.submit_update(f"client_{i}", update, round_id=round_id)
    
    # Run gossip within baskets
    fed.run_gossip_round()
    
    # Check for aggregation
    global_model = fed.maybe_aggregate()
    if global_model is not None:
        print(f"Round {round_id}: New global model!")
    
    fed.advance_round()

# Final state
print(fed.get_stats())
"""  # noqa: W291, W293
"""The document's text with `scarcity.federation` replaced by `scarcity_ray`, trailing blanks and all."""


@pytest.mark.long
def test_the_full_workflow_runs_as_it_stands(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Ray it has 60 rounds in place of 100: 53 spend the budget."""
    rounds = 100 if runtime == "local" else 60
    written = EXAMPLE.replace("range(100)", f"range({rounds})")
    rng = np.random.default_rng(5)
    truth = rng.normal(size=64) / 8.0

    def compute_local_update(client_id: str) -> np.ndarray[Any, Any]:
        return truth + 0.05 * rng.normal(size=64)

    if runtime == "local":
        _default_to_the_local_runtime(monkeypatch)
    names: dict[str, Any] = {"compute_local_update": compute_local_update}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(written, "the specified example", "exec"), names)
    fed = names["fed"]
    try:
        models = [int(n) for n in re.findall(r"Round (\d+): New global model!", printed.getvalue())]
        stats = fed.get_stats()
        assert "'n_clients': 10" in printed.getvalue()
        # Every round releases until the budget is spent; then the federation is read-only, without an error.
        assert models == list(range(len(models)))
        assert len(models) == fed.plan.num_releases == stats["n_layer2_aggregations"]
        assert 10 <= len(models) < rounds
        assert stats["read_only"] is True
        assert fed.get_privacy_budget() == (0.0, 0.0)
        assert stats["privacy_consumed_epsilon"] <= 10.0
        assert stats["current_round"] == rounds
        assert stats["n_gossip_messages"] > 0
        # What was learned is the clients' common direction, under noise of the planned scale.
        meta = fed.get_global_meta_model()
        error = float(np.linalg.norm(meta.aggregate - truth / np.linalg.norm(truth)))
        assert error < 1.0 + meta.noise_sigma * (8.0 + 6.0)
    finally:
        fed.close()


def _default_to_the_local_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """The document names no runtime: where it means the default, let that be the local one."""
    from scarcity_ray import HierarchicalFederation

    defaults = dict(HierarchicalFederation.__init__.__kwdefaults__ or {})
    monkeypatch.setattr(HierarchicalFederation.__init__, "__kwdefaults__", {**defaults, "runtime": "local"})


@pytest.mark.skipif(not os.path.exists("../shared/spec/hierarchical.md"), reason="the document is not here")
def test_the_example_is_the_documents_own_text() -> None:
    with open("../shared/spec/hierarchical.md", encoding="utf-8") as file:
        document = file.read()
    example = (
        document.split("## Example: Full Workflow", 1)[1].split("```python\n", 1)[1].split("\n```", 1)[0]
    )
    assert example.replace("scarcity.federation", "scarcity_ray").strip() == EXAMPLE.strip()
