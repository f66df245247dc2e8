"""A federation in this process as a console's source, and a console on a free port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
from aiohttp import web

from scarcity_ray import HierarchicalFederation, UsageError
from scarcity_ray.gateway.console import add_console
from scarcity_ray.gateway.operators import Operators
from scarcity_ray.monitoring.history import RoundHistory
from scarcity_ray.monitoring.status import Seen, State, federation_status, observe, outliers_of
from scarcity_ray.privacy.ledger.ledger import Ledger
from scarcity_ray.privacy.ledger.replay import export


class WatchedFederation:
    """A `Source`: a federation whose rounds a test makes."""

    def __init__(self, federation: HierarchicalFederation, now: float, **seen: Any) -> None:
        self.federation, self.now, self.history = federation, now, RoundHistory()
        self.seen: Seen = seen  # type: ignore[assignment]
        self.acts: list[tuple[str, dict[str, Any], str]] = []
        self.failure: Exception | None = None
        self.num_asked = 0

    def status(self) -> dict[str, Any]:
        self.num_asked += 1
        if self.failure is not None:
            raise self.failure
        told = {"rounds": self.history.rounds(), "totals": dict(self.history.totals), **self.seen}
        return federation_status(observe(self.federation, self.now, **told))  # type: ignore[arg-type]

    def operate(self, act: str, arguments: Mapping[str, Any], operator: str) -> dict[str, Any]:
        self.acts.append((act, dict(arguments), operator))
        if act == "pause":
            self.seen |= {"state": State.PAUSED, "sentence": f"{operator} has paused the rounds."}
        elif act == "resume":
            self.seen.pop("state"), self.seen.pop("sentence")
        elif act == "unregister" and not self.federation.unregister_client(arguments.get("client_id", "")):
            raise UsageError(f"no site is called {arguments.get('client_id')!r}")
        elif act == "renew":
            self.federation.renew_budget(
                arguments["total_epsilon"], arguments["total_delta"], operator=operator
            )
        return {"message": f"{act}: done."}

    def ledger_rows(self) -> Iterator[dict[str, Any]]:
        path = self.federation.get_stats()["ledger_path"]
        with closing(Ledger.read(path)) as ledger:
            yield from export(ledger)

    def make_rounds(self, clients: list[tuple[str, str]], rounds: int, dimension: int = 8) -> None:
        """Rounds in which each client but every ninth sends, and one of them lies."""
        rng = np.random.default_rng(5)
        for round_id in range(rounds):
            for place, (client_id, _) in enumerate(clients):
                if (place + round_id) % 9 == 8:
                    continue
                liar = place == 3
                row = rng.standard_normal(dimension) / 4 - (3.0 if liar else 0.0)
                short = (place + round_id) % 17 == 16
                receipt = self.federation.offer_update(client_id, row[1:] if short else row)
                self.history.note_outcome(client_id, round_id, receipt.reason)
            released = self.federation.force_aggregate() is not None
            domains = sorted({domain for _, domain in clients})
            self.history.note_round(
                round_id,
                released=released,
                seconds=41.0 + round_id % 3,
                phases={"waiting": 40.0, "submission": 0.2, "aggregation": 0.8},
                num_bytes=4 * dimension * (len(clients) - 2),
                validation={
                    domain: {"auc": 0.9 - 0.3 / (round_id + 1) - place / 50}
                    for place, domain in enumerate(domains)
                },
                outliers=outliers_of(self.federation.get_stats()),
            )
            self.federation.advance_round()


@contextmanager
def served(source: Any, operators: Operators, port: int = 0, **options: Any) -> Iterator[str]:
    """The console on a loopback address, in a thread; its address."""
    started, ends, told = threading.Event(), asyncio.Event(), list[Any]()

    async def serve() -> None:
        app = web.Application()
        add_console(app, source, operators, secure=False, **options)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        told.extend([asyncio.get_running_loop(), runner.addresses[0][1]])
        started.set()
        await ends.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield f"http://127.0.0.1:{told[1]}"
    finally:
        told[0].call_soon_threadsafe(ends.set)
        thread.join(10)
