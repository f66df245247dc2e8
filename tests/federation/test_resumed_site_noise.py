"""A fit whose clients noise their rows dies anywhere and goes on: no row is drawn twice under one charge."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from scarcity_ray.baskets.basket import Basket
from scarcity_ray.federation.fit_terms import FitResult
from scarcity_ray.privacy import Ledger
from scarcity_ray.privacy.ledger.replay import export
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray_client import Client, IdentityKeyPair, Policy, SiteNoise, Trained
from tests.federation.test_resume import MEMORY, Lives
from tests.federation.test_site_noise import DIMENSION, NAMES, Mean, settings

ROUNDS = 2
PLAIN = {"layer2": {"use_secure_aggregation": False}}
OWN = np.array([0.1234567, -0.2345678, 0.3456789, 0.0456789], np.float32)
"""A client's row before it is noised."""
KEY = IdentityKeyPair.generate()
CASES: dict[str, dict[str, Any]] = {
    "journal": {"durability": "update"},
    "nothing waits on disk": {"durability": "none"},
    "gossip and momentum": {"durability": "update", "gossip_budget_share": 0.2, "layer1": {"momentum": 0.5}},
    "a schedule": {"durability": "update", "privacy": {"noise_decay": 0.5}},
    "ledgers of the sites": {"durability": "none"},
}


class Wards(Mean):
    """Every client has the same row, and a ceiling that nothing reaches."""

    def clients(self) -> list[Client]:
        return [
            Client(name, name[0], num_persons=100, policy=Policy(name, "person", 50.0, 1e-6).signed(KEY))
            for name in NAMES
        ]

    def train(self, model: dict[str, Any], client: Client, round_id: int) -> Trained[dict[str, Any]]:
        return Trained(delta={"w": OWN.copy()}, num_persons=100)


class Watched:
    """What a fit draws, what was charged at that moment, and what reaches the baskets, over all its lives."""

    def __init__(self, lives: Lives) -> None:
        self.lives = lives
        self.drawn: Counter[str] = Counter()
        self.sent: set[tuple[str, int, bytes]] = set()
        self._known: dict[int, Counter[str]] = {}

    def charged(self) -> Counter[str]:
        """By client, as the ledger has it; read once for all draws between two calls of a role."""
        if self.lives.calls not in self._known:
            self._known = {self.lives.calls: self.read()}
        return self._known[self.lives.calls]

    def read(self) -> Counter[str]:
        with closing(Ledger.read(str(self.lives.folder / "ledger.sqlite"))) as ledger:
            return Counter(c for line in export(ledger) if line["kind"] == "row" for c in line["clients"])

    def fit(self, name: str, at: int, *, after: bool, resume: bool = False) -> FitResult[Any] | None:
        """A fit that is killed at its call number `at`."""
        fed, noised, submit = self.lives.fed, SiteNoise.noised, Basket.submit
        assert fed is not None
        sites = str(self.lives.folder / "sites") if name.startswith("ledgers") else None

        def drawing(site_noise: SiteNoise, row: Any, n: int, noise: Any = None, stream: str = "") -> Any:
            client = stream.split("/")[1]
            self.drawn[client] += 1
            assert self.charged()[client] >= self.drawn[client], "a charge for each draw, and before it"
            # Of each draw other noise, as the operating system's is: a stream's seeded noise is the same.
            return noised(site_noise, row, n, SeededNoise(sum(self.drawn.values())), stream)

        def reaching(basket: Basket, submission: Any, read_only: bool, now: float, row: Any, key: Any) -> Any:
            self.sent.add((submission.client_id, submission.round_id, np.asarray(row).tobytes()))
            return submit(basket, submission, read_only, now, row, key)

        with (
            mock.patch.object(SiteNoise, "noised", drawing),
            mock.patch.object(Basket, "submit", reaching),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            return self.lives.killed_at(
                lambda: fed.fit(Wards(), rounds=ROUNDS, site_ledgers=sites, resume=resume), at, after=after
            )


def whole(name: str, known: dict[str, int] = {}) -> int:  # noqa: B006
    """The calls of an uninterrupted run."""
    if name not in known:
        with tempfile.TemporaryDirectory(dir=MEMORY) as place:
            lives = Lives(Path(place), settings(**PLAIN, **CASES[name]))
            lives.begin()
            assert Watched(lives).fit(name, 10**9, after=True) is not None
            lives.kill()
            known[name] = lives.calls
    return known[name]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::scarcity_ray.FaultWarning")
@pytest.mark.parametrize("share", [0.2, 0.3, 0.45, 0.85])
@pytest.mark.parametrize("name", CASES)
def test_no_row_is_drawn_twice_under_one_charge_or_sent_without_noise(name: str, share: float) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        lives = Lives(Path(place), settings(**PLAIN, **CASES[name]))
        lives.begin()
        watched = Watched(lives)
        assert watched.fit(name, 1 + int(share * whole(name)), after=True) is None
        lives.restore()
        result = watched.fit(name, 10**9, after=True, resume=True)
        assert result is not None
        assert [record.num_accepted for record in result.history] == [len(NAMES)] * ROUNDS
        charged = watched.read()
        assert all(charged[client] >= watched.drawn[client] >= ROUNDS for client in NAMES)
        if name.startswith("ledgers"):
            # What was drawn before it died is sent again as the same bytes.
            assert watched.drawn == dict.fromkeys(NAMES, ROUNDS)
            assert len(watched.sent) == ROUNDS * len(NAMES)
        assert all(np.frombuffer(row, np.float32).size == DIMENSION for _, _, row in watched.sent)
        lives.kill()
        for own in (OWN.tobytes(), OWN.astype(np.float64).tobytes()):
            assert not any(own in row for _, _, row in watched.sent)
            assert not any(own in file.read_bytes() for file in Path(place).rglob("*") if file.is_file())
