"""What a gateway tells and does for the federation's operators (`console.Source`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

from scarcity_ray.errors import LedgerError, UsageError
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.gateway.driver_thread import OnDriver
from scarcity_ray.gateway.register import Register
from scarcity_ray.gateway.register_client import RegisterClient
from scarcity_ray.ledger_url import is_ledger_url
from scarcity_ray.monitoring.status import Enrolment, State, federation_status, observe
from scarcity_ray.privacy.ledger.ledger import Ledger
from scarcity_ray.privacy.ledger.replay import export
from scarcity_ray_client.wire import RoundState

_STATES = {
    RoundState.OPEN: State.OPEN,
    RoundState.WAITING: State.WAITING,
    RoundState.PAUSED: State.PAUSED,
    RoundState.FINISHED: State.FINISHED,
    RoundState.STOPPED: State.STOPPED,
}


class OperatorSource:
    """A served federation, for the console.

    Args:
        on_driver: Where the federation may be called.
        counts: The gateway's own counts.
    """

    def __init__(
        self,
        federation: HierarchicalFederation,
        register: RegisterClient,
        on_driver: OnDriver,
        counts: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._federation, self._register = federation, register
        self._on_driver, self._counts = on_driver, counts

    def status(self) -> dict[str, Any]:
        """The federation's status."""
        now, ask = time.time(), self._register.call
        opened = ask(Register.current, -1)
        rounds, totals = ask(Register.history)
        enrolled = {
            one.client_id: Enrolment(
                float(one.certificate_expires) if one.certificates else None, one.revoked is not None
            )
            for one in ask(Register.enrolled)
        }
        name = self._federation._open().supervisor.identity.name or ""
        closes = None if opened is None or opened.closes_at is None else max(0.0, opened.closes_at - now)
        heard = None if opened is None else ask(Register.heard, opened.round_id)
        seen = self._on_driver(
            lambda: observe(
                self._federation,
                now,
                name=name,
                state=None if opened is None or not enrolled else _STATES[opened.state],
                sentence="" if opened is None else opened.reason,
                closes_in_seconds=closes,
                rounds=rounds,
                totals=totals,
                enrolments=enrolled,
                last_seen={} if heard is None else heard.last_seen,
                gateway=self._counts(),
            )
        )
        return federation_status(seen)

    def operate(self, act: str, arguments: Mapping[str, Any], operator: str) -> dict[str, Any]:
        """Do an operator's act; what came of it.

        Raises:
            UsageError: If it cannot be done.
        """
        if act in ("pause", "resume"):
            self._register.call(Register.pause, act == "pause")
            return {"paused": act == "pause"}
        if act == "unregister":
            client_id = arguments.get("client_id")
            if not isinstance(client_id, str):
                raise UsageError("client_id: name the site")
            revoked = self._register.call(Register.revoke, client_id)
            found = self._on_driver(lambda: self._federation.unregister_client(client_id))
            return {"client_id": client_id, "found": revoked or found}
        if act != "renew":
            raise UsageError(f"{act}: there is no such act")
        epsilon, delta, signature = (arguments.get(k) for k in ("total_epsilon", "total_delta", "signature"))
        if not isinstance(epsilon, int | float) or not isinstance(delta, int | float):
            raise UsageError("total_epsilon and total_delta: give both as numbers")
        try:
            signed = None if signature is None else bytes.fromhex(str(signature))
        except ValueError:
            raise UsageError("signature: it is no hexadecimal text") from None
        self._on_driver(
            lambda: self._federation.renew_budget(
                float(epsilon), float(delta), operator=operator, signature=signed
            )
        )
        return {"total_epsilon": epsilon, "total_delta": delta}

    def ledger_rows(self) -> Iterator[dict[str, Any]]:
        """Every row of the privacy ledger.

        Raises:
            UsageError: If the ledger cannot be read from here.
        """
        path = str(self._federation._open().supervisor.identity.ledger_path)
        where = "its database" if is_ledger_url(path) else "the accountant's machine"
        try:
            with closing(Ledger.read(path)) as ledger:
                yield from export(ledger)
        except LedgerError:
            raise UsageError(
                f"the ledger cannot be read from this gateway: run `scarcity-ray ledger export` on {where}"
            ) from None
