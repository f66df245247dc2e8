"""Everything stops at once, anywhere in a round; what is restored goes on as if nothing had happened."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scarcity_ray import FaultWarning, HierarchicalFederation
from scarcity_ray.config import HierarchicalFederationConfig, load
from scarcity_ray.federation.evaluation import EarlyStopping
from scarcity_ray.federation.fit_terms import FitResult
from scarcity_ray.layers.server_optimizers import FedAdam
from scarcity_ray.privacy.ledger.events import ReleaseCharge
from scarcity_ray.privacy.ledger.ledger import Ledger
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray.runtime import LocalRuntime, local
from tests.federation.test_fitting import SETTINGS, Towards

ROUNDS = 2
KEPT = {"durability": "update"}
MASKED = {"layer2": {**SETTINGS["layer2"], "use_secure_aggregation": True}}
GOSSIP = {
    "auto_aggregate": False,
    "gossip_budget_share": 0.3,
    "gossip": {"push_drift_threshold": 0.01, "peers_per_round": 1},
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing waits on disk": ({"durability": "none"}, {"optimizer": FedAdam(), "averaging_decay": 1.0}),
    "journal": ({**KEPT, **MASKED}, {"stopping": EarlyStopping("distance", "min"), "clients_per_round": 5}),
    "gossip": ({**KEPT, **GOSSIP}, {}),
}


MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""What is synced is told by the library, not by a disk."""


class Killed(BaseException):
    """Everything died."""


class Lives:
    """A federation on the local runtime whose processes all die at one call of a role, or after it."""

    def __init__(self, folder: Path, changes: dict[str, Any]) -> None:
        content = {**SETTINGS, **changes}
        self.config = load(
            HierarchicalFederationConfig,
            {
                **content,
                "ledger_path": str(folder / "ledger.sqlite"),
                "storage_path": str(folder / "state"),
            },
        )
        self.folder = folder
        self.fed: HierarchicalFederation | None = None
        self.calls = 0

    def begin(self) -> HierarchicalFederation:
        self.fed = HierarchicalFederation(
            self.config, runtime="local", noise=SeededNoise(1), clock=lambda: 1e9
        )
        return self.fed

    def restore(self) -> HierarchicalFederation:
        self.kill()
        self.fed = HierarchicalFederation.restore(
            str(self.folder / "state"), runtime="local", noise=SeededNoise(1), clock=lambda: 1e9
        )
        return self.fed

    def num_charged(self) -> int:
        with closing(Ledger.read(str(self.folder / "ledger.sqlite"))) as ledger:
            return sum(isinstance(row.event, ReleaseCharge) for row in ledger.rows())

    def kill(self) -> None:
        if self.fed is not None:
            for name in self.fed._runtime.names():
                self.fed._runtime.kill(name)
            self.fed = None

    def killed_at(self, act: Callable[[], Any], at: int, *, after: bool) -> Any:
        """What `act` gives, or None if it was killed at its call number `at`."""
        self.calls, call = 0, local._LocalHandle.call

        def counted(handle: Any, method: str, *args: object) -> Any:
            self.calls += 1
            if self.calls == at and not after:
                raise Killed
            answer = call(handle, method, *args)
            if self.calls >= at:
                raise Killed
            return answer

        with mock.patch.object(local._LocalHandle, "call", counted):
            try:
                return act()
            except Killed:
                return None


def fitted(fed: HierarchicalFederation, terms: dict[str, Any], **more: Any) -> FitResult[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fed.fit(Towards(), rounds=ROUNDS, **terms, **more)


def told(result: FitResult[Any]) -> list[Any]:
    """What a run tells of its rounds, but for times and counts of bytes."""
    return [
        (r.round_id, r.versions, r.evaluation, r.num_accepted, r.gossip_messages, r.clip_norm)
        for r in result.history
    ]


def oracle(name: str, folder: Path, known: dict[str, Any] = {}) -> tuple[FitResult[Any], int]:  # noqa: B006
    """An uninterrupted run, and how many calls it makes."""
    if name not in known:
        lives = Lives(folder, CASES[name][0])
        fed = lives.begin()
        result = lives.killed_at(lambda: fitted(fed, CASES[name][1]), 10**9, after=True)
        lives.kill()
        known[name] = result, lives.calls
    return known[name]


def same(result: FitResult[Any], whole: FitResult[Any]) -> None:
    np.testing.assert_array_equal(result.vector, whole.vector)
    assert told(result) == told(whole)
    assert (result.best_round, result.stopped, result.explanation) == (
        whole.best_round, whole.stopped, whole.explanation,
    )  # fmt: skip


@pytest.mark.long
@given(name=st.sampled_from(list(CASES)), share=st.floats(0.0, 1.0, exclude_max=True), after=st.booleans())
@example(name="journal", share=0.0, after=False)
@example(name="gossip", share=0.999, after=True)
def test_an_interrupted_fit_goes_on_as_if_nothing_had_happened(name: str, share: float, after: bool) -> None:
    """Bit by bit, with injected noise; or a release was charged and not published, which is said."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as place, warnings.catch_warnings():
        warnings.simplefilter("ignore", FaultWarning)
        folder = Path(place)
        (folder / "whole").mkdir()
        whole, calls = oracle(name, folder / "whole")
        lives = Lives(folder, CASES[name][0])
        fed = lives.begin()
        assert (
            lives.killed_at(lambda: fitted(fed, CASES[name][1]), 1 + int(share * calls), after=after) is None
        )
        fed = lives.restore()
        result = fitted(fed, CASES[name][1], resume=True)
        if any("charged and never published" in loss for loss in fed.faults):
            versions = [version for record in result.history for version in record.versions]
            assert versions == list(range(1, len(versions) + 1))
            assert lives.num_charged() == len(versions) + 1
        else:
            same(result, whole)
            # Of a gossip that was charged and not drawn the charge stays, and it is charged again.
            assert result.epsilon_spent >= whole.epsilon_spent
            assert name == "gossip" or result.epsilon_spent == whole.epsilon_spent
        lives.kill()


def test_a_driver_that_dies_as_roles_start_leaves_a_federation_that_can_be_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    def died(self: LocalRuntime, specs: Any, *, card: object = None) -> None:
        begin(self, specs, card=card)
        if len(specs) > 1:
            raise Died

    begin = LocalRuntime.start
    config = load(
        HierarchicalFederationConfig,
        {**SETTINGS, "ledger_path": str(tmp_path / "ledger.sqlite"), "storage_path": str(tmp_path / "state")},
    )
    with monkeypatch.context() as patch:
        patch.setattr(LocalRuntime, "start", died)
        with pytest.raises(Died):
            HierarchicalFederation(config, runtime="local")
    with HierarchicalFederation.restore(str(tmp_path / "state"), runtime="local") as fed:
        fed.register_client("c", "d")
        assert fed.get_stats()["n_clients"] == 1
