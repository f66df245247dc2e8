"""The roles of one federation: which there are, in what order they start, and how one that died comes back.

What a role held in memory dies with it. Coming back, it is made with what the others know, so that it is
never there and empty: a basket actor with its members (buffered updates, gossip states and aggregates of its
baskets are lost), the directory with the baskets that the actors hold, the global aggregator with the last
release that anybody has, the accountant with its ledger.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from scarcity_ray.errors import ActorLost
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.plan import FederationPlan
from scarcity_ray.privacy.answers import BudgetStatus
from scarcity_ray.roles.accountant import Accountant
from scarcity_ray.roles.basket_host import BasketHost
from scarcity_ray.roles.directory import Directory
from scarcity_ray.roles.global_aggregator import GlobalAggregator
from scarcity_ray.roles.handles import ACCOUNTANT, DIRECTORY, GLOBAL, Handle, basket_actor, gather
from scarcity_ray.roles.messages import Admission, FederationIdentity, Whereabouts
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

    @property
    def has_layer2(self) -> bool:
        """Whether there is a global aggregator."""
        return self.identity.config.layer2.enabled

    def handle(self, name: str) -> Handle:
        """A role to call."""
        return self.runtime.peers.handle(name)

    def start(self) -> None:
        """Start a new federation's roles side by side.

        Raises:
            UsageError: If the federation is there already.
            ActorLost: If a role cannot be started.
        """
        slots = [self._basket_spec(slot, 0) for slot in range(self._first_slots)]
        roles = [self._directory_spec(self._first_slots), self._accountant_spec(False)]
        if self.has_layer2:
            roles.append(self._global_spec())
        self.runtime.start([*roles, *slots], card=self.identity)
        self._started.update(spec.name for spec in slots)

    def adopt(self, slots: Iterable[int]) -> None:
        """Note basket actors that another driver has started."""
        self._started.update(basket_actor(slot) for slot in slots)

    def missing(self, slots: Iterable[int]) -> list[int]:
        """The basket actors among `slots` that were not started yet, as far as this driver knows."""
        return [slot for slot in sorted(set(slots)) if basket_actor(slot) not in self._started]

    def start_slots(self, slots: Iterable[int], round_id: int, budget: BudgetStatus) -> None:
        """Start basket actors for new baskets; they begin with the last release, as the others have it."""
        latest = self._newest(None)
        self._start([self._basket_spec(slot, round_id, budget, latest=latest) for slot in slots])

    def tell_baskets(self, method: str, num_slots: int, *args: object) -> list[Any]:
        """Call every basket actor; all answers."""
        return gather([self.handle(basket_actor(slot)).call(method, *args) for slot in range(num_slots)])

    def recover(
        self, names: Collection[str], num_slots: int, now: float, latest: GlobalMetaModel | None
    ) -> Iterator[str]:
        """Bring roles back that died; yields what was lost with each that is back, as a sentence.

        Basket actors start side by side: a node that dies takes many. A role that another driver has already
        brought back is left as it is.

        Args:
            names: The roles.
            num_slots: Basket actors that the driver knows of.
            now: Seconds since the epoch.
            latest: The last release that the driver knows of.

        Raises:
            ActorLost: If one cannot come back; or for another role, which must come back first.
            LedgerError: If the accountant's ledger is missing or damaged.
        """
        if ACCOUNTANT in names:
            self._start([self._accountant_spec(True)])
            self.handle(ACCOUNTANT).call("status", now).result()
            yield "the accountant died; nothing is lost, it continues from its ledger"
        if DIRECTORY in names:
            yield self._recover_directory(num_slots, now)
        if GLOBAL in names:
            yield self._recover_global(num_slots, latest)
        slots = sorted(slot for name in names if (slot := _slot(name)) is not None)
        if slots:
            yield from self._recover_baskets(slots, now, latest)

    def is_role(self, name: str) -> bool:
        """Whether a name is one of the federation's roles (a task that was lost is none)."""
        singles = (ACCOUNTANT, DIRECTORY, GLOBAL) if self.has_layer2 else (ACCOUNTANT, DIRECTORY)
        return name in singles or _slot(name) is not None

    def stop(self) -> None:
        """End every role, whichever driver started it."""
        for name in self.runtime.names():
            self.runtime.kill(name)
        self.runtime.withdraw()

    def _recover_baskets(
        self, slots: Sequence[int], now: float, latest: GlobalMetaModel | None
    ) -> Iterator[str]:
        directory = self.handle(DIRECTORY)
        where: Whereabouts = directory.call("whereabouts").result()
        budget: BudgetStatus = self.handle(ACCOUNTANT).call("status", now).result()
        held: dict[int, tuple[Admission, ...]] = {
            slot: directory.call("members_of_slot", slot).result() for slot in slots
        }
        newest = self._newest(latest)
        failure: ActorLost | None = None
        try:
            self._start([self._basket_spec(s, where.round_id, budget, held[s], newest) for s in slots])
        except ActorLost as lost:
            failure = lost
        back = [s for s in slots if failure is None or self.runtime.is_alive(basket_actor(s))]
        for slot in back:
            names = [admission.place.basket_id for admission in held[slot]] or ["none that is known"]
            yield (
                f"{basket_actor(slot)} died; buffered updates, gossip states and unreleased aggregates of "
                f"its baskets ({', '.join(names)}) are lost: send the updates of this round again"
            )
        for slot in back:
            identities = self.handle(basket_actor(slot)).call("admit", held[slot]).result()
            directory.call("record_identities", identities).result()
        if failure is not None:
            raise failure

    def _recover_directory(self, num_slots: int, now: float) -> str:
        slots = {slot for name in self.runtime.names() if (slot := _slot(name)) is not None}
        round_id, lost = 0, []
        admissions: dict[str, Admission] = {}
        for slot in sorted(slots | set(range(num_slots))):
            try:
                at, held = self.handle(basket_actor(slot)).call("admissions").result()
            except ActorLost:
                if self.runtime.is_alive(basket_actor(slot)):
                    raise
                lost.append(basket_actor(slot))
                continue
            round_id = max(round_id, at)
            admissions.update((admission.place.basket_id, admission) for admission in held)
        known = max(slots | {num_slots - 1}, default=-1) + 1
        self._start([self._directory_spec(known, round_id, _each_client_once(admissions), now)])
        both = f"; who was in the baskets of {', '.join(lost)}, which died too, is lost: register them again"
        return (
            "the directory died; membership is restored from the basket actors, "
            f"clients' activity counts begin anew{both if lost else ''}"
        )

    def _recover_global(self, num_slots: int, latest: GlobalMetaModel | None) -> str:
        self.tell_baskets("sessions_abandon", num_slots)
        models = [latest, *self.tell_baskets("last_global", num_slots)]
        last = max((m for m in models if m is not None), key=lambda model: model.version, default=None)
        self._start([self._global_spec(last)])
        if last is None:
            return "the global aggregator died; it knows of no release, and one that nobody has seen is lost"
        return (
            f"the global aggregator died; it continues from release {last.version}, "
            "and a later one that nobody has seen is lost"
        )

    def _newest(self, latest: GlobalMetaModel | None) -> GlobalMetaModel | None:
        """The later of `latest` and what the global aggregator, if it is there, has released last."""
        if not self.has_layer2 or not self.identity.config.layer2.distribute_to_baskets:
            return None
        try:
            told: GlobalMetaModel | None = self.handle(GLOBAL).call("latest").result()
        except ActorLost:
            return latest
        return max((m for m in (latest, told) if m is not None), key=lambda m: m.version, default=None)

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
            "gossip_share": self.plan.gossip_share,
            "accounting": self.plan.accounting,
            "mu_reserved": self.plan.mu_reserved,
            "must_exist": must_exist,
        }
        return RoleSpec(ACCOUNTANT, Accountant, arguments, node=self.identity.ledger_node)

    def _directory_spec(
        self, num_slots: int, round_id: int = 0, admissions: Sequence[Admission] = (), now: float = 0.0
    ) -> RoleSpec:
        arguments = {
            "identity": self.identity,
            "num_slots": num_slots,
            "round_id": round_id,
            "admissions": admissions,
            "now": now,
        }
        return RoleSpec(DIRECTORY, Directory, arguments)

    def _global_spec(self, latest: GlobalMetaModel | None = None) -> RoleSpec:
        arguments = {
            "plan": self.plan,
            "federation_id": self.identity.federation_id,
            "peers": self.runtime.peers,
            "noise": self.identity.noise,
            "latest": latest,
        }
        return RoleSpec(GLOBAL, GlobalAggregator, arguments)

    def _basket_spec(
        self,
        slot: int,
        round_id: int,
        budget: BudgetStatus | None = None,
        admissions: Sequence[Admission] = (),
        latest: GlobalMetaModel | None = None,
    ) -> RoleSpec:
        config = self.identity.config
        runtime = config.runtime
        arguments = {
            "slot": slot,
            "plan": self.plan,
            "federation_id": self.identity.federation_id,
            "peers": self.runtime.peers,
            "compute": self.runtime.compute,
            "noise": self.identity.noise,
            "round_id": round_id,
            "read_only": budget is not None and budget.read_only,
            "run": self.identity.run,
            "budget_period": 0 if budget is None else budget.period,
            "admissions": admissions,
            "latest": latest if config.layer2.distribute_to_baskets else None,
        }
        return RoleSpec(
            basket_actor(slot),
            BasketHost,
            arguments,
            cpus=runtime.cpus_per_actor,
            resources=dict(runtime.resources_per_actor),
            spread=True,
        )


def _slot(name: str) -> int | None:
    prefix, _, number = name.partition(":")
    return int(number) if prefix == "basket" and number.isdigit() else None


def _each_client_once(admissions: Mapping[str, Admission]) -> tuple[Admission, ...]:
    """The admissions by basket; a client that a death caught between two baskets stays in the first."""
    seen: set[str] = set()
    kept = []
    for _, admission in sorted(admissions.items()):
        members = tuple(m for m in admission.members if m.client_id not in seen)
        seen.update(member.client_id for member in members)
        kept.append(replace(admission, members=members))
    return tuple(kept)
