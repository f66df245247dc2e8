"""A basket actor's charges: gossip before its noise is drawn, a release before it is unmasked.

The global aggregator charges a release before it asks for unmask shares. A basket actor does not trust it to:
it asks for the same charge, by the attempt's name, and gives no share without it. The accountant records a
charge once, whoever asks first. The name contains the digest of the attempt's whole context, and an attempt
is unmasked once (`secagg.participant`), so every sum has its own charge. An attempt that was given up before
it was charged (`BasketCharges.void`) is never charged.

Guarantees:
    one_drawing_a_charge: For a client named by two baskets of the actor, too.
    a_ledger_that_was_taken_over_is_told: By the first charge, with the reason.
    nothing_is_unmasked_that_was_not_charged: A basket actor gives no share of a release that does not fit.
    nothing_is_unmasked_that_a_client_left_out_is_in: The charge says how many were left out when it was made,
        and a basket actor gives no share if it had heard of fewer as it began the session.
    nothing_is_unmasked_that_was_charged_as_another_sum: The charge names the baskets that dropped out, and a
        basket actor gives no share if it knows of others. So no release of that session holds one of these.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.names import ACCOUNTANT, basket_actor
from scarcity_ray.baskets.basket import Basket
from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.plan import GossipPlan
from scarcity_ray.privacy.schedule import Step
from scarcity_ray.runtime.rpc import Call, Peers


class BasketCharges:
    """One basket actor's charges.

    Attributes:
        ledger_head: The ledger's head in the last answer; empty before the first.
        read_only_reason: Why the accountant charges nothing any more; empty while it does.
        left_out: The clients that are left out at their ceilings, as far as this actor has heard.
    """

    def __init__(self, slot: int, peers: Peers) -> None:
        self._slot = slot
        self._name = basket_actor(slot)
        self._peers = peers
        self._incarnation = uuid.uuid4().hex
        self.ledger_head = ""
        self.read_only_reason = ""
        self.left_out: set[str] = set()
        self._answered: Counter[str] = Counter()

    def gossip(
        self,
        kind: str,
        clients: Mapping[str, Sequence[str]],
        mu: float,
        sigma: float,
        round_id: int,
        now: float,
    ) -> frozenset[str]:
        """Charge each client's own message; the clients whose charge fitted.

        A call repeated because no answer came gets the first answer; each answer allows one drawing.

        Args:
            kind: ``drift`` or ``vector``.
            clients: By basket.
            mu: The charge of one message; 0 where the states are noised already, so that nothing is drawn.
            sigma: Of its noise, for the ledger's record.
        """
        ids = tuple(sorted({client for basket in clients.values() for client in basket}))
        if not ids or mu == 0.0:
            return frozenset(ids)
        charge_id = f"gossip/{kind}/{self._incarnation}/{self._answered[kind]}"
        details = {"round": round_id, "slot": self._slot, "kind": kind, "sigma": sigma}
        charge = Call(Accountant.charge_gossip, charge_id, ids, mu, now, details)
        allowed, self.ledger_head, self.read_only_reason = charge.send(self._peers, ACCOUNTANT).result()
        # The next call gets a charge of its own: this one covers no second drawing.
        self._answered[kind] += 1
        return frozenset(allowed)

    def hear_left_out(self, now: float) -> None:
        """Have the clients left out whose ceilings have no room for the next release, and hear who they are.

        Raises:
            ActorLost: If the accountant does not answer.
        """
        heard = len(self.left_out)
        if Call(Accountant.leave_out, now).send(self._peers, ACCOUNTANT).result() > heard:
            self.left_out.update(Call(Accountant.left_out, heard, now).send(self._peers, ACCOUNTANT).result())

    def release(
        self,
        charge_id: str,
        mu: float,
        step: Step | None,
        now: float,
        num_left_out: int,
        dropped: Sequence[str] = (),
    ) -> None:
        """Ensure that a session's release is charged, before any share is given.

        Args:
            num_left_out: How many clients this actor knew to be left out as it began the session.
            dropped: The parties of the session that are not in the sum.

        Raises:
            ProtocolViolation: If it does not fit, the ledger does not stand at its step, it is not charged
                to a client whose row it may hold, or it was charged as another sum.
            ActorLost: If the accountant does not answer.
        """
        details: dict[str, Any] = {"asked_by": self._name}
        if dropped:
            details["dropped"] = sorted(dropped)
        asked = Call(Accountant.charge_release, charge_id, mu, now, details, num_left_out, step)
        charge = asked.send(self._peers, ACCOUNTANT).result()
        self.ledger_head = charge.head_hash
        if not charge.allowed:
            raise ProtocolViolation(f"{self._name}: nothing is charged for this session")
        if set(charge.dropped) != set(dropped):
            raise ProtocolViolation(
                f"{self._name}: this session was charged as one without {list(charge.dropped)}, and "
                f"{sorted(dropped)} dropped out of it"
            )
        if charge.num_left_out != num_left_out:
            raise ProtocolViolation(
                f"{self._name}: {charge.num_left_out} clients were left out when this session was charged, "
                f"and {num_left_out} when it began"
            )

    def void(self, charge_id: str, now: float) -> tuple[bool, tuple[str, ...]]:
        """Have a release refused for ever, so that no honest basket gives a share of it; whether it is.

        False if it was charged: then it may be unmasked, or already was, without the baskets that are named.

        Raises:
            ActorLost: If the accountant does not answer.
        """
        asked = Call(Accountant.void_release, charge_id, now, {"asked_by": self._name})
        if asked.send(self._peers, ACCOUNTANT).result():
            return True, ()
        return False, Call(Accountant.dropped_from, charge_id, now).send(self._peers, ACCOUNTANT).result()

    def able_to_send(self, client_ids: Sequence[str], now: float) -> frozenset[str]:
        """Those of the clients, each named once here, whose budget has room for another noised row."""
        ids = tuple(sorted(set(client_ids)))
        return frozenset(Call(Accountant.able_to_send, ids, now).send(self._peers, ACCOUNTANT).result())

    def is_spent(self, now: float) -> bool:
        """Whether the accountant says that the budget is spent."""
        return Call(Accountant.read_only_reason, now).send(self._peers, ACCOUNTANT).result() != ""


def charged_gossip(
    baskets: Mapping[str, Basket], plan: GossipPlan, charges: BasketCharges, round_id: int, now: float
) -> dict[str, int]:
    """One gossip round in every basket, with one charge of each kind for all; delivered messages by basket.

    Raises:
        ActorLost: If the accountant does not answer; nothing was drawn or sent, and the call may be repeated.
    """
    ordered, at = sorted(baskets.items()), (round_id, now)
    to_test = _each_once({b: basket.gossip_begin(round_id, now) for b, basket in ordered})
    tested = charges.gossip("drift", to_test, plan.mu_drift, plan.sigma_drift, *at)
    to_push = _each_once(
        {b: basket.gossip_test([c for c in to_test[b] if c in tested]) for b, basket in ordered}
    )
    pushing = charges.gossip("vector", to_push, plan.mu_vector, plan.sigma_vector, *at)
    return {b: basket.gossip_exchange([c for c in to_push[b] if c in pushing], now) for b, basket in ordered}


def _each_once(clients: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The clients by basket, each in the first basket that names it: a charge covers one drawing."""
    seen: set[str] = set()
    kept: dict[str, list[str]] = {}
    for basket_id, ids in clients.items():
        kept[basket_id] = [client_id for client_id in ids if client_id not in seen]
        seen.update(ids)
    return kept
