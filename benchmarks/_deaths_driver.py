"""A driver of `benchmarks.deaths`: ``python -m benchmarks._deaths_driver ADDRESS FOLDER KIND VERB``.

It begins the federation of a folder, attaches to it, or restores it, whichever is possible, and then goes
through rounds (VERB ``work``) until the file ``stop`` is there, or gives up all faults and releases what
waits (``settle``). Each step is a line in ``log.jsonl``, written before the call that it tells of, and after.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig, Rejection
from scarcity_ray.baskets import Receipt
from scarcity_ray.config import load
from scarcity_ray.errors import ActorLost, LedgerHeld, UsageError
from scarcity_ray_client import Client, Trained, Workload

NAME = "deaths"
CLIENTS = tuple((f"c{i:02d}", f"d{i // 4}") for i in range(16))
IDS = tuple(client_id for client_id, _ in CLIENTS)
ROUNDS = 400
"""Of one federation; each of its clients' updates has a coordinate of its own."""
ATTEMPTS = 6
"""Of a release in one round."""


class Silence:
    """Noise that is zero: a release shows which updates are in it."""

    def standard_normal(self, shape: Any, stream: str) -> NDArray[np.float64]:
        return np.zeros(shape)

    def uniform_words(self, stream: str) -> Callable[[int], NDArray[np.uint64]]:
        return lambda count: np.zeros(count, np.uint64)


def row(client_id: str, round_id: int) -> NDArray[np.float32]:
    """A client's update of a round: 1 where no other has anything."""
    made = np.zeros(ROUNDS * len(IDS), np.float32)
    made[round_id * len(IDS) + IDS.index(client_id)] = 1.0
    return made


def config(folder: Path) -> HierarchicalFederationConfig:
    """Masks, a journal and snapshots; every update is on the disk before it is acknowledged."""
    return load(
        HierarchicalFederationConfig,
        {
            "vector_dim": ROUNDS * len(IDS),
            "auto_aggregate": False,
            "ledger_path": str(folder / "ledger.sqlite"),
            "storage_path": str(folder / "state"),
            "retention": {"releases": ROUNDS},
            "journal_path": str(folder / "journal"),
            "durability": "update",
            "total_epsilon": 500.0,
            "gossip_budget_share": 0.0,
            "basket": {"min_clients": 2, "max_clients": 4},
            "buffer": {"participation_cap": 1},
            "layer1": {"aggregation_method": "mean", "min_updates": 2, "byzantine_fraction": 0.0},
            "layer2": {"central_dp_epsilon": 1.0, "assumed_corrupt_fraction": 0.0},
            "runtime": {"baskets_per_actor": 1, "cpus_per_actor": 0.01},
        },
    )


class Training(Workload[NDArray[np.float32]]):
    """Clients whose training takes a moment, and gives their row of the round."""

    def clients(self) -> list[Client]:
        return [Client(client_id, domain, data=client_id, num_cpus=0.5) for client_id, domain in CLIENTS]

    def initial_model(self) -> NDArray[np.float32]:
        return np.zeros(ROUNDS * len(IDS), np.float32)

    def train(
        self, model: NDArray[np.float32], client: Client, round_id: int
    ) -> Trained[NDArray[np.float32]]:
        time.sleep(0.05)
        return Trained(delta=row(client.client_id, round_id))

    def evaluate(self, model: NDArray[np.float32]) -> dict[str, float]:
        return {}


class Log:
    """Lines in the order in which things happened."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.jsonl"
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, what: str, **more: Any) -> None:
        line = json.dumps({"what": what, "at": time.time(), "pid": os.getpid(), **more})
        os.write(self._file, line.encode() + b"\n")

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


class Worker:
    """One driver at work."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder, self.log = address, folder, Log(folder)
        self.chance = random.Random(os.getpid())
        self.fed = self.opened()

    def opened(self) -> HierarchicalFederation:
        """The federation, by the way that there is; a call shows that all its roles come back."""
        self.log("open", how="attach")
        fed: HierarchicalFederation | None = None
        try:
            fed = HierarchicalFederation.attach(NAME, address=self.address)
            self.round_id = int(fed.get_stats()["current_round"])
        except UsageError as refusal:
            self.log("not attached", why=str(refusal))
        except ActorLost as lost:
            self.log("not attached", why=str(lost))
            assert fed is not None
            fed.terminate()
        else:
            return self._watched(fed, "attach")
        if not (self.folder / "state").exists():
            self.log("open", how="begin")
            fed = HierarchicalFederation(
                config(self.folder), address=self.address, name=NAME, noise=Silence()
            )
            self.round_id = 0
            return self._watched(fed, "begin")
        self.log("open", how="restore")
        for take_over in (False, True):
            with suppress(LedgerHeld):
                fed = HierarchicalFederation.restore(
                    str(self.folder / "state"),
                    address=self.address,
                    noise=Silence(),
                    take_over_ledger=take_over,
                )
                break
        else:
            raise LedgerHeld("held by nobody that can be taken over")
        self.round_id = int(fed.get_stats()["current_round"])
        return self._watched(fed, "restore")

    def _watched(self, fed: HierarchicalFederation, how: str) -> HierarchicalFederation:
        """Each submission is noted before and after, also those that `fit` makes."""
        submit = fed._driver.submit

        def noted(batch: Any, **how: bool) -> list[Receipt]:
            round_id = self.round_id if batch.round_id is None else int(batch.round_id)
            self.log("send", clients=batch.client_ids, round=round_id)
            receipts = submit(batch, **how)
            told = [None if r.accepted else str(r.reason) for r in receipts]
            self.log("sent", clients=batch.client_ids, round=round_id, refused=told)
            return receipts

        vars(fed._driver)["submit"] = noted
        # A driver that has died may not have come to it, or left one of them away.
        fed.register_clients(CLIENTS)
        self.log("opened", how=how, round=self.round_id)
        return fed

    def _noted(self, what: str, do: Callable[..., Any], *args: Any, **named: Any) -> Any:
        return self.doing(what, lambda: do(*args, **named))

    def doing(self, what: str, do: Callable[[], Any], **more: Any) -> Any:
        """A call, with a line before and after."""
        self.log("begin", call=what, **more)
        answer = do()
        self.log("end", call=what)
        return answer

    def send(self, clients: Sequence[str], round_id: int) -> None:
        """Send the clients' updates of a round; the same bytes if they were sent before."""
        if clients:
            rows = np.stack([row(client_id, round_id) for client_id in clients])
            self.doing("submit", lambda: self.fed.submit_updates(clients, rows, round_id))

    def unanswered(self) -> dict[int, list[str]]:
        """Updates that were sent, and of which no receipt says that they were accepted or known."""
        open_: dict[tuple[int, str], None] = {}
        known = {str(Rejection.REPLAYED), str(Rejection.TOO_STALE)}
        for line in self.log.lines():
            if line["what"] == "send":
                open_ |= {(line["round"], client): None for client in line["clients"]}
            elif line["what"] == "sent":
                for client, refused in zip(line["clients"], line["refused"], strict=True):
                    if refused is None or refused in known:
                        open_.pop((line["round"], client), None)
        found: dict[int, list[str]] = {}
        for round_id, client in open_:
            found.setdefault(round_id, []).append(client)
        return found

    def release(self) -> None:
        """Ask for releases until nothing waits."""
        for _ in range(ATTEMPTS):
            model = self.doing("aggregate", self.fed.force_aggregate)
            latest = self.doing("latest", self.fed.get_global_meta_model)
            if latest is not None:
                self.log("seen", version=latest.version, round=latest.round_id)
            waits = self.fed.waiting_for()
            if model is not None:
                return
            self.log("no release", why=str(waits))
        self.log("gave up", round=self.round_id)

    def rounds(self) -> None:
        """Rounds of calls, until somebody says stop."""
        for round_id, clients in self.unanswered().items():
            self.send(clients, round_id)
        while not (self.folder / "stop").exists() and self.round_id < ROUNDS - 1:
            began, chance = time.time(), self.chance
            away = []
            if chance.random() < 0.15:
                away = [chance.choice(IDS)]
                leave = partial(self.fed.unregister_client, away[0])
                self.doing("unregister", leave, client=away[0], round=self.round_id)
            clients = [c for c in IDS if c not in away]
            chance.shuffle(clients)
            for part in (clients[:7], clients[7:]):
                self.send(part, self.round_id)
            if chance.random() < 0.2:
                self.send(clients[:3], self.round_id)
            if chance.random() < 0.2:
                self.rearrange()
            self.release()
            for client in away:
                domain = dict(CLIENTS)[client]
                self.doing("register", partial(self.fed.register_client, client, domain))
            self.round_id = self.doing("advance_round", self.fed.advance_round)
            self.log("round", began=began, round=self.round_id)
        self.log("finished")

    def rearrange(self) -> None:
        """Split or disband a basket; halves of which one could not aggregate alone are not made."""
        basket_id = self.chance.choice(self.fed._driver.operations.routing_table().places).basket_id
        move = self.chance.choice([self.fed.split_basket, self.fed.disband_basket])
        found = self.fed.get_basket(basket_id)
        if move == self.fed.disband_basket or (found is not None and len(found.clients) == 4):
            with suppress(UsageError):
                self.doing(move.__name__, partial(move, basket_id))

    def fit(self) -> None:
        """Rounds of training tasks."""
        began, driver = [time.time()], self.fed._driver
        for call in ("aggregate", "advance_round"):
            vars(driver)[call] = partial(self._noted, call, getattr(driver, call))

        def told(record: Any) -> None:
            self.log("round", began=began[0], round=record.round_id)
            began[0] = time.time()
            if (self.folder / "stop").exists():
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            self.fed.fit(Training(), rounds=ROUNDS - 1, resume=True, on_round=told)
        self.log("finished")

    def settle(self) -> None:
        """All faults have ceased: what is in doubt is sent again, and what waits is released."""
        for round_id, clients in self.unanswered().items():
            self.send(clients, round_id)
        for _ in range(3):
            if self.fed.force_aggregate() is None:
                break
        # The next round is a round as any other, and no update is left behind by a basket that lacked rows.
        for _ in range(2):
            self.round_id = self.fed.advance_round()
            self.send(IDS, self.round_id)
            self.release()
        stats = self.fed.get_stats()
        kept = {k: v for k, v in stats.items() if isinstance(v, int | float | str)}
        self.log("settled", stats=kept, faults=list(self.fed.faults), round=self.round_id)
        self.fed.terminate()


def main() -> None:
    address, folder, kind, verb = sys.argv[1:]
    warnings.simplefilter("ignore")
    worker = Worker(address, Path(folder))
    {"settle": worker.settle, "work": worker.fit if kind == "fit" else worker.rounds}[verb]()


if __name__ == "__main__":
    from benchmarks import _deaths_driver

    _deaths_driver.main()
