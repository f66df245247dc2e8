"""Everything stops at once, anywhere in a round; what is restored goes on as if nothing had happened."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
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
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray.runtime import local
from tests.federation.test_fitting import SETTINGS, Towards

ROUNDS = 3
GOSSIP = {"gossip_budget_share": 0.3, "gossip": {"push_drift_threshold": 0.01, "max_messages_per_day": 100}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {"stopping": EarlyStopping("distance", "min")}),
    "optimiser": ({}, {"optimizer": FedAdam(), "averaging_decay": 1.0, "clients_per_round": 5}),
    "masked": ({"layer2": {**SETTINGS["layer2"], "use_secure_aggregation": True}}, {}),
}


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
                "durability": "none",
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
        (r.round_id, r.versions, r.evaluation, r.epsilon_spent, r.num_accepted, r.gossip_messages)
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


@pytest.mark.parametrize("name", list(CASES))
@given(share=st.floats(0.0, 1.0, exclude_max=True), after=st.booleans())
@example(share=0.0, after=False)
@example(share=0.999, after=True)
def test_an_interrupted_fit_goes_on_as_if_nothing_had_happened(name: str, share: float, after: bool) -> None:
    """Bit by bit, with injected noise; or a release was charged and not published, which is said."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
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
            assert result.epsilon_spent > whole.epsilon_spent
            assert [v for r in result.history for v in r.versions] == [1, 2, 3]
        else:
            same(result, whole)
        lives.kill()
