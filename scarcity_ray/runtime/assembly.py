"""The roles of one federation: which there are, in what order they start, and how one that died comes back.

What a role held in memory dies with it. Coming back, it is told what the others know: a basket actor its
members (buffered updates, gossip states and aggregates of its baskets are lost), the directory the baskets
that the actors hold, the global aggregator the last release if one was distributed, the accountant its ledger.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scarcity_ray.plan import FederationPlan
from scarcity_ray.roles.accountant import Accountant
from scarcity_ray.roles.basket_host import BasketHost
from scarcity_ray.roles.directory import Directory
from scarcity_ray.roles.global_aggregator import GlobalAggregator
from scarcity_ray.roles.handles import ACCOUNTANT, DIRECTORY, GLOBAL, Handle, basket_actor, gather
from scarcity_ray.roles.messages import FederationIdentity, Whereabouts
from scarcity_ray.runtime.base import RoleSpec, Runtime


class Assembly:
    """Starts, recovers and ends the roles of one federation on a runtime.

    Args:
        runtime: Where they live.
        identity: The federation's own facts.
        plan: Its numbers.
    """

    def __init__(self, runtime: Runtime, identity: FederationIdentity, plan: FederationPlan) -> None:
        self.runtime = runtime
        self.identity = identity
        self.plan = plan
        config = identity.config
        self._first_slots = 0 if config.runtime.baskets_per_actor else runtime.default_basket_actors
        self._started: set[str] = set()

    def handle(self, name: str) -> Handle:
        """A role to call."""
        return self.runtime.peers.handle(name)

    def start(self, now: float) -> None:
        """Start a new federation's roles side by side, then open its ledger.

        Raises:
            LedgerError: If the ledger cannot be used.
            ActorLost: If a role cannot be started.
        """
        slots = [self._basket_spec(slot, 0, False) for slot in range(self._first_slots)]
        self._start([self._accountant_spec(False), self._directory_spec(), self._global_spec(), *slots])
        status = self.handle(ACCOUNTANT).call("status", now).result()
        if status.read_only:
            self.tell_baskets("set_read_only", self._first_slots, True)

    def adopt(self, slots: Iterable[int]) -> None:
        """Note basket actors that another driver has started."""
        self._started.update(basket_actor(slot) for slot in slots)

    def ensure_slots(self, slots: Iterable[int], now: float) -> None:
        """Start the basket actors that new baskets need."""
        missing = [slot for slot in sorted(set(slots)) if basket_actor(slot) not in self._started]
        if not missing:
            return
        where: Whereabouts = self.handle(DIRECTORY).call("whereabouts").result()
        read_only = self.handle(ACCOUNTANT).call("status", now).result().read_only
        self._start([self._basket_spec(slot, where.round_id, read_only) for slot in missing])

    def tell_baskets(self, method: str, num_slots: int, *args: object) -> list[Any]:
        """Call every basket actor; all answers."""
        return gather([self.handle(basket_actor(slot)).call(method, *args) for slot in range(num_slots)])

    def recover(self, name: str, num_slots: int, now: float) -> str:
        """Bring a role back that died; returns what was lost, as a sentence.

        A role that another driver has already brought back is left as it is.
        """
        if name == ACCOUNTANT:
            self._start([self._accountant_spec(True)])
            self.handle(ACCOUNTANT).call("status", now).result()
            return "the accountant died; nothing is lost, it continues from its ledger"
        if name == DIRECTORY:
            return self._recover_directory(num_slots, now)
        if name == GLOBAL:
            return self._recover_global(num_slots)
        return self._recover_basket(int(name.rsplit(":", 1)[1]), now)

    def stop(self, num_slots: int) -> None:
        """End every role."""
        for name in (GLOBAL, DIRECTORY, ACCOUNTANT, *(basket_actor(slot) for slot in range(num_slots))):
            self.runtime.kill(name)

    def _recover_basket(self, slot: int, now: float) -> str:
        name = basket_actor(slot)
        directory = self.handle(DIRECTORY)
        where: Whereabouts = directory.call("whereabouts").result()
        read_only = self.handle(ACCOUNTANT).call("status", now).result().read_only
        self._start([self._basket_spec(slot, where.round_id, read_only)])
        admissions = directory.call("members_of_slot", slot).result()
        identities = self.handle(name).call("admit", admissions).result()
        directory.call("record_identities", identities).result()
        held = ", ".join(admission.place.basket_id for admission in admissions) or "none"
        return (
            f"{name} died; buffered updates, gossip states and unreleased aggregates of its baskets ({held}) "
            "are lost: send the updates of this round again"
        )

    def _recover_directory(self, num_slots: int, now: float) -> str:
        self._start([self._directory_spec()])
        held = self.tell_baskets("admissions", num_slots)
        rounds = [round_id for round_id, _ in held]
        admissions = [admission for _, part in held for admission in part]
        self.handle(DIRECTORY).call("restore", max(rounds, default=0), admissions, now).result()
        return (
            "the directory died; membership is restored from the basket actors, "
            "clients' activity counts and trust begin anew"
        )

    def _recover_global(self, num_slots: int) -> str:
        self._start([self._global_spec()])
        models = [model for model in self.tell_baskets("last_global", num_slots) if model is not None]
        latest = max(models, key=lambda model: model.version, default=None)
        self.handle(GLOBAL).call("restore", latest).result()
        if latest is None:
            return "the global aggregator died; the last global model is lost unless a driver kept it"
        return f"the global aggregator died; it continues from release {latest.version}"

    def _start(self, specs: list[RoleSpec]) -> None:
        self.runtime.start(specs)
        self._started.update(spec.name for spec in specs)

    def _accountant_spec(self, must_exist: bool) -> RoleSpec:
        config = self.identity.config
        arguments = {
            "path": self.identity.ledger_path,
            "federation_id": self.identity.federation_id,
            "total_epsilon": config.total_epsilon,
            "total_delta": config.total_delta,
            "gossip_share": config.gossip_budget_share,
            "mu_release": self.plan.mu_release,
            "must_exist": must_exist,
        }
        return RoleSpec(ACCOUNTANT, Accountant, arguments, node=self.identity.ledger_node)

    def _directory_spec(self) -> RoleSpec:
        return RoleSpec(DIRECTORY, Directory, {"identity": self.identity, "num_slots": self._first_slots})

    def _global_spec(self) -> RoleSpec:
        arguments = {
            "plan": self.plan,
            "federation_id": self.identity.federation_id,
            "peers": self.runtime.peers,
            "noise": self.identity.noise,
        }
        return RoleSpec(GLOBAL, GlobalAggregator, arguments)

    def _basket_spec(self, slot: int, round_id: int, read_only: bool) -> RoleSpec:
        runtime = self.identity.config.runtime
        arguments = {
            "slot": slot,
            "plan": self.plan,
            "federation_id": self.identity.federation_id,
            "peers": self.runtime.peers,
            "compute": self.runtime.compute,
            "noise": self.identity.noise,
            "round_id": round_id,
            "read_only": read_only,
        }
        return RoleSpec(
            basket_actor(slot),
            BasketHost,
            arguments,
            cpus=runtime.cpus_per_actor,
            resources=dict(runtime.resources_per_actor),
            spread=True,
        )
