"""Starts, restarts and ends the roles of one federation.

A role loses its memory when it dies. It is restarted with what the other roles know: a basket actor with its
members, and its journal if the machine is there that holds it (without one, buffered updates and unreleased
aggregates of its baskets are lost), the directory with the baskets that the actors hold, the global
aggregator with the last release that any role has, and the accountant with its ledger. Where the federation
has a storage_path, roles go on from what they keep there, and after the death of all of them `restore` starts
them again.
"""

from __future__ import annotations

import hashlib
import uuid
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Unpack

from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.global_aggregator import RELEASE, GlobalAggregator
from scarcity_ray.actors.kept import CODEC
from scarcity_ray.actors.messages import Fault, FederationIdentity, RoutingTable, SlotState
from scarcity_ray.actors.names import ACCOUNTANT, DIRECTORY, GLOBAL, basket_actor
from scarcity_ray.actors.recovery import HostState, Recovered, recovered_from
from scarcity_ray.baskets.reports import NAMED
from scarcity_ray.config import Durability
from scarcity_ray.directory.records import OrderNumber
from scarcity_ray.errors import ActorLost, StorageError, UsageError
from scarcity_ray.federation.acknowledged import Acknowledged
from scarcity_ray.federation.stored import write_record
from scarcity_ray.forecast.feasibility import FLOAT_BYTES
from scarcity_ray.forecast.memory import beyond_memory, least_clients
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.ledger_url import is_ledger_url
from scarcity_ray.plan import FederationPlan
from scarcity_ray.privacy.ledger.answers import BudgetStatus
from scarcity_ray.privacy.ledger.budget import DurableBudget
from scarcity_ray.privacy.ledger.ledger import Opening as LedgerOpening
from scarcity_ray.runtime.base import RoleSpec, Runtime
from scarcity_ray.runtime.rpc import Call, Future, gather
from scarcity_ray.storage.journal import JournalPlace
from scarcity_ray.storage.snapshots import Snapshots


@dataclass(frozen=True)
class Opening:
    """The card of a federation while its roles are being started; no driver can attach to it yet.

    Attributes:
        driver: Who starts them.
    """

    driver: str


def end_abandoned_opening(runtime: Runtime) -> None:
    """End the roles of a named federation whose driver died as it opened or restored it."""
    card = runtime.card() if runtime.names() else None
    if isinstance(card, Opening) and not runtime.is_driver_alive(card.driver):
        for name in runtime.names():
            runtime.kill(name)
        runtime.withdraw()


class Supervisor:
    """Starts, restarts and ends the roles of one federation on a runtime.

    Attributes:
        num_slots: Number of basket actors that this driver knows of.
        latest: The newest global model that it has seen.
        ledger_head: The last head of the ledger that it was told; empty before.
        acknowledged: The updates of this driver that baskets have accepted.
        lost: What `restore` could not give back.
    """

    def __init__(self, runtime: Runtime, identity: FederationIdentity, plan: FederationPlan) -> None:
        self.runtime = runtime
        self.peers = runtime.peers
        self.identity = identity
        self.plan = plan
        self.has_layer2 = identity.config.layer2.enabled
        self.num_slots = 0
        self.latest: GlobalMetaModel | None = None
        self.ledger_head = ""
        self.acknowledged = Acknowledged()
        self.lost: Sequence[Fault] = ()
        self._started: set[str] = set()

    def start(self, take_over: bool, now: float) -> BudgetStatus:
        """Start a new federation's accountant, which opens the ledger, then the others; the budget's status.

        Args:
            take_over: Whether to take the ledger from another running federation.
            now: Seconds since the epoch.

        Raises:
            UsageError: If the federation is running already, asks for a GPU where there is none, or for more
                memory than there is even in its smallest release.
            LedgerError: If the ledger cannot be used.
            ActorLost: If a role cannot be started.
        """
        suiting = self._suiting_actors()
        self.num_slots = 0 if self.identity.config.runtime.baskets_per_actor else suiting
        self.check_memory(least_clients(self.identity.config), has_model=False)
        opened = self._open_ledger(now, must_exist=False, take_over=take_over)
        slots = [self._basket_spec(slot, opened) for slot in range(self.num_slots)]
        roles = [self._directory_spec(self.num_slots)]
        if self.has_layer2:
            roles.append(self._global_spec())
        if self.kept is not None:
            # Before others can attach: if this driver dies now, what they do can be restored.
            write_record(self.kept, self.identity)
        self.runtime.start([*roles, *slots], card=self.identity)
        self._started.update(spec.name for spec in slots)
        return opened

    def check_memory(self, clients: int, *, has_model: bool = True) -> None:
        """Refuse a round of so many clients that would end in a killed process.

        Raises:
            UsageError: With what each role needs, and what there is.
        """
        config, runtime = self.identity.config, self.runtime
        if not (config.runtime.check_memory and self.has_layer2):
            return
        each = config.runtime.baskets_per_actor
        actors = None if each else self.num_slots or runtime.default_basket_actors
        held = {"has_model": has_model, "is_one_process": runtime.is_one_process}
        if why := beyond_memory(config, clients, actors, runtime.node_bytes(), **held):
            raise UsageError(why)

    def restore(self, take_over: bool, now: float, continues: Sequence[int]) -> BudgetStatus:
        """Start a stored federation's roles, which go on from what is kept of them; the budget's status.

        Args:
            take_over: As in `start`.
            now: Seconds since the epoch.
            continues: The runs that ended, whose journals are continued.

        Raises:
            StorageError: If the ledger is another federation's.
            UsageError: If the federation is running already, or asks for a GPU where there is none.
            LedgerError: If the ledger cannot be used, or is an older copy than the last stored release.
            ActorLost: If a role cannot be started.
        """
        if self.kept is None:
            raise UsageError("storage_path is not configured: nothing is kept")
        self._suiting_actors()
        self.kept.verify()
        stored_id, last = self.identity.federation_id, self.kept.read(RELEASE, CODEC)
        heads = None if last is None else {last.ledger_head: f"the release stored in {self.kept.path}"}
        opened = self._open_ledger(now, must_exist=True, take_over=take_over, known_heads=heads)
        if opened.federation_id != stored_id:
            raise StorageError(
                f"{self.kept.path}: of federation {stored_id!r}, and the ledger {opened.ledger_path} is of "
                f"{opened.federation_id!r}; give the ledger_path of that one"
            )
        self.kept.take_over()
        # Before any journal is: a restore that is stopped is made again, and continues all these.
        write_record(self.kept, self.identity, continues)
        last = self.kept.read(RELEASE, CODEC)
        lost_releases = self._lost_releases(last, now)
        self.runtime.start([self._directory_spec(0)])
        where = Call(Directory.routing_table).send(self.peers, DIRECTORY).result()
        self.num_slots = where.num_slots if isinstance(where, RoutingTable) else 0
        slots = range(max(self.num_slots, 1))
        states = {s: Call(Directory.slot_state, s).send(self.peers, DIRECTORY).result() for s in slots}
        round_id = Call(Directory.current_round).send(self.peers, DIRECTORY).result()
        place, life = (
            self._journal_place(),
            {"round_id": round_id, "latest": last if self._distributes else None},
        )
        life |= {"journal": None if place is None else replace(place, continues=tuple(continues))}
        homes = {slot: self._journal_home(slot) for slot in slots}
        journalled = {slot for slot in slots if self._has_journal(homes[slot])}
        specs = [self._basket_spec(s, opened, homes[s], state=states[s], **life) for s in slots]
        roles = [self._global_spec(last, len(lost_releases))] if self.has_layer2 else []
        self.runtime.start([*roles, *specs], card=self.identity)
        self._started.update(spec.name for spec in specs)
        self.num_slots, self.latest = len(slots), last
        for slot in slots:
            self._checked_in(slot)
        write_record(self.kept, self.identity)
        self.lost = [
            *(
                self._waiting_lost(s, states[s], round_id, last)
                for s in slots
                if states[s].admissions and s not in journalled
            ),
            *(
                regained
                for s in sorted(journalled)
                if (regained := self._regained(s, states[s], always=False))
            ),
            *lost_releases,
        ]
        return opened

    def _lost_releases(self, last: GlobalMetaModel | None, now: float) -> list[Fault]:
        """Releases charged since the `last` one there is: their noise may have been drawn, and is gone."""
        head = "" if last is None else last.ledger_head
        asked = Call(Accountant.releases_since, head or self.identity.first_head, now)
        return lost_releases(head, asked.send(self.peers, ACCOUNTANT).result())

    def _open_ledger(self, now: float, *, must_exist: bool, **opening: Unpack[LedgerOpening]) -> BudgetStatus:
        """Start the first role, whose ledger says who the federation is."""
        accountant = self._accountant_spec(must_exist=must_exist, **opening)
        self.runtime.start([accountant], card=Opening(self.runtime.driver))
        opened = Call(Accountant.status, now).send(self.peers, ACCOUNTANT).result()
        self.ledger_head = opened.head_hash
        self.identity = replace(
            self.identity,
            federation_id=opened.federation_id,
            incarnation=opened.incarnation,
            run=opened.run,
            first_head=self.identity.first_head or opened.head_hash,
        )
        return opened

    @property
    def kept(self) -> Snapshots | None:
        """Where this federation keeps its state; None if it has no storage."""
        path = self.identity.config.storage_path
        return (
            None if path is None else Snapshots(path, self.identity.federation_id, self.identity.incarnation)
        )

    @property
    def _distributes(self) -> bool:
        return self.has_layer2 and self.identity.config.layer2.distribute_to_baskets

    def adopt(self, slots: Iterable[int]) -> None:
        """Note basket actors that another driver has started."""
        self._started.update(basket_actor(slot) for slot in slots)

    def missing(self, slots: Iterable[int]) -> list[int]:
        """The basket actors among `slots` that were not started yet, as far as this driver knows."""
        return [slot for slot in sorted(set(slots)) if basket_actor(slot) not in self._started]

    def recover(
        self, names: Collection[str], now: float, known: Sequence[Fault] = ()
    ) -> Iterator[list[Fault]]:
        """Restart dead roles; yields what was lost, for the caller to note in the directory.

        The faults of basket actors are yielded before these are restarted, so that they are noted even if
        this driver dies in between. The directory is restarted with its own. Basket actors start in parallel.
        A role that another driver has already restarted is left as it is.

        Args:
            names: The roles.
            now: Seconds since the epoch.
            known: The faults that this driver knows, for a restarted directory.

        Raises:
            ActorLost: If a role cannot be restarted; or for another role, which must be restarted first.
            LedgerError: If the accountant's ledger is missing or damaged, an older copy (a role knows a newer
                head), or taken over by another federation.
        """
        if ACCOUNTANT in names:
            known_heads, incarnation = self._known_heads(names), self.identity.incarnation
            self._start(
                [self._accountant_spec(must_exist=True, incarnation=incarnation, known_heads=known_heads)]
            )
            Call(Accountant.status, now).send(self.peers, ACCOUNTANT).result()
            yield [_fault("the accountant died; it continues from its ledger, which has lost nothing")]
        if DIRECTORY in names:
            self._recover_directory(now, known)
            yield []
        if GLOBAL in names:
            yield self._recover_global(now)
        slots = sorted(slot for name in names if (slot := _slot(name)) is not None)
        if slots:
            yield from self._recover_baskets(slots, now)

    def tell_faults(self, faults: Sequence[Fault]) -> None:
        """Have the basket actors that are there keep faults, for a restarted directory."""
        if not faults:
            return
        call = Call(BasketHost.note_faults, tuple(faults))
        for answer in [call.send(self.peers, basket_actor(slot)) for slot in sorted(self._slots())]:
            # One that is dead is told when it starts.
            with suppress(ActorLost):
                answer.result()

    def note_told(self, slots: Iterable[int]) -> None:
        """Have basket actors note that what they lack was told, once the faults are in the directory."""
        for answer in [Call(BasketHost.note_told).send(self.peers, basket_actor(slot)) for slot in slots]:
            # One that is dead tells it again.
            with suppress(ActorLost):
                answer.result()

    def is_role(self, name: str) -> bool:
        """Whether a name is one of the federation's roles (a task that was lost is none)."""
        singles = (ACCOUNTANT, DIRECTORY, GLOBAL) if self.has_layer2 else (ACCOUNTANT, DIRECTORY)
        return name in singles or _slot(name) is not None

    def stop(self) -> None:
        """End every role, whichever driver started it."""
        for name in self.runtime.names():
            self.runtime.kill(name)
        self.runtime.withdraw()

    def _known_heads(self, gone: Collection[str]) -> dict[str, str]:
        """Former heads of the ledger, which it must contain, each with the role that knows it.

        A role that lies here can only make the ledger be refused; the error names it.
        """
        told = (self.ledger_head, "" if self.latest is None else self.latest.ledger_head)
        heads = {head: "the driver" for head in told if head}
        answers: dict[str, Future[tuple[str, ...]]] = {}
        if self.has_layer2 and GLOBAL not in gone:
            answers[GLOBAL] = Call(GlobalAggregator.ledger_heads).send(self.peers, GLOBAL)
        for actor in sorted({basket_actor(slot) for slot in self._slots()} - set(gone)):
            answers[actor] = Call(BasketHost.ledger_heads).send(self.peers, actor)
        for name, answer in answers.items():
            # A role that is lost too is left out.
            with suppress(ActorLost):
                heads |= {head: name for head in answer.result() if head not in heads}
        return heads

    def _slots(self) -> set[int]:
        """The slots of the basket actors that this driver or the runtime knows of."""
        there = {slot for name in self.runtime.names() if (slot := _slot(name)) is not None}
        return there | set(range(self.num_slots))

    def _recover_baskets(self, slots: Sequence[int], now: float) -> Iterator[list[Fault]]:
        round_id = Call(Directory.current_round).send(self.peers, DIRECTORY).result()
        budget = Call(Accountant.status, now).send(self.peers, ACCOUNTANT).result()
        states = {s: Call(Directory.slot_state, s).send(self.peers, DIRECTORY).result() for s in slots}
        last = self._released()
        was_there = [s for s in slots if states[s].keys or basket_actor(s) in self._started]
        homes = {s: self._journal_home(s) for s in slots}
        journalled = {slot for slot, home in homes.items() if self._has_journal(home)}
        faults = [self._basket_fault(slot, states[slot]) for slot in was_there if slot not in journalled]
        yield faults
        failure: ActorLost | None = None
        try:
            life = {"round_id": round_id, "latest": last}
            states = {s: replace(state, faults=(*state.faults, *faults)) for s, state in states.items()}
            specs = [self._basket_spec(s, budget, homes.get(s), state=states[s], **life) for s in slots]
            self._start(specs)
        except ActorLost as lost:
            failure = lost
        back = [slot for slot in slots if failure is None or self.runtime.is_alive(basket_actor(slot))]
        strangers = [slot for slot in back if not self._checked_in(slot)]
        for slot in strangers:
            self.runtime.kill(basket_actor(slot))
        came_back = [s for s in was_there if s in journalled and s in {*back} - {*strangers}]
        yield [fault for s in came_back if (fault := self._regained(s, states[s])) is not None]
        self.note_told(s for s in back if s not in strangers)
        if strangers and failure is None:
            failure = ActorLost(basket_actor(strangers[0]), "the directory died as it started")
        if failure is not None:
            raise failure

    def _waiting_lost(
        self, slot: int, state: SlotState, round_id: int, last: GlobalMetaModel | None
    ) -> Fault:
        """What a restored basket actor without a journal lacks."""
        name, place = basket_actor(slot), self._journal_place()
        why = "durability is none" if place is None else f"no machine that is there has {place.where}"
        loss = (
            f"updates that waited in {', '.join(state.baskets)}, and their unreleased aggregates, are lost, "
            f"as {name} has no journal ({why}): send the updates of this round again, as `fit` does itself"
        )
        if last is not None and last.round_id == round_id:
            loss += (
                f", but not those that release {last.version} of this round may hold: its replay memory is "
                "gone too, and they would count twice"
            )
        if round_id and not Call(BasketHost.has_snapshot).send(self.peers, name).result():
            loss += (
                f"; so are gossip, replays, caps and trust, as {name} finds nothing in storage_path on its "
                "machine: name a folder that all machines see"
            )
        # The same loss of the same round is told once, however often the federation is restored.
        return Fault(f"restored {name}/{round_id}/{zlib.crc32(loss.encode())}", loss)

    def _journal_home(self, slot: int) -> str | None:
        """The node that has a basket actor's journal; None if none that is there has."""
        place = self._journal_place()
        if place is None or place.is_database:
            return None
        return self.runtime.holder_of(str(place.path(self.identity.federation_id, slot)))

    def _has_journal(self, home: str | None) -> bool:
        """Whether a basket actor comes back from its journal, on the node `home` or in a database."""
        place = self._journal_place()
        return home is not None or (place is not None and place.is_database)

    def _journal_place(self) -> JournalPlace | None:
        config = self.identity.config
        if config.keeps_updates is Durability.NONE or config.journal_place is None:
            return None
        is_synced = config.keeps_updates is Durability.UPDATE
        return JournalPlace(
            config.journal_place,
            is_synced,
            epoch=self.identity.incarnation,
            key_path=config.journal_key_path or "",
            row_bytes=FLOAT_BYTES * config.vector_dim,
        )

    def _regained(self, slot: int, state: SlotState, *, always: bool = True) -> Fault | None:
        """What a restarted basket actor has from its journal, and what it could not keep.

        None if all was kept, unless it is `always` told.
        """
        name = basket_actor(slot)
        regained = Call(BasketHost.what_was_regained).send(self.peers, name).result()
        lost = [
            f"{sum(lost.values())} updates of clients that {why} meanwhile are withdrawn: {_listed(lost)}"
            for lost, why in ((regained.withdrawn, "left"), (regained.dropped, "lost their basket"))
            if lost
        ]
        found = (
            f"{name} died and came back from its journal, with {regained.updates} updates that wait and "
            f"{regained.aggregates} fresh aggregates"
        )
        is_gone = regained.is_new and not regained.set_aside and bool(state.admissions)
        if is_gone:
            lost.append(f"nothing of its journal is left from before, so {self._waited(state)}")
        if regained.may_lack:
            lost.append(
                "its machine was started anew since, and with durability: round, updates that were accepted "
                "after the last sync may be gone: send the updates of this round again"
            )
        if regained.set_aside:
            lost.append(
                "its journal was of an opening that this one does not continue: it is "
                f"{regained.set_aside} now, and the updates in it are not used"
            )
        if regained.messages and self.kept is None:
            lost.append(f"{regained.messages} messages of gossip that had not reached a client are lost")
        if not (lost or always):
            return None
        told = f"{found}; {'; '.join(lost) if lost else 'nothing was lost'}"
        return (
            replace(_fault(told), baskets=state.baskets, clients=state.clients) if is_gone else _fault(told)
        )

    def _basket_fault(self, slot: int, state: SlotState) -> Fault:
        """What was lost with a basket actor; the id holds its baskets' keys, new after each death."""
        name = basket_actor(slot)
        keys = hashlib.sha256(b"".join(sorted(state.keys))).hexdigest() if state.keys else uuid.uuid4().hex
        no_journal = " and its journal is on no machine that is there" if self._journal_place() else ""
        loss = f"{name} died{no_journal}; {self._waited(state)}"
        return Fault(f"{name}/{keys}", loss, state.baskets, state.clients)

    def _waited(self, state: SlotState) -> str:
        """What is lost with a basket actor, update by update, and what to do."""
        baskets = ", ".join(state.baskets) or "none that is known"
        lost = self.acknowledged.lose(state.baskets, state.clients)
        named = f": {named_updates(lost)}" if lost else ""
        return (
            f"buffered updates, gossip states and unreleased aggregates of its baskets ({baskets}) are "
            f"lost{named}: send the updates of this round again"
        )

    def _checked_in(self, slot: int) -> bool:
        """Record the keys of a restarted actor in the directory.

        False if the directory died and was restarted while the actor started: it does not know the actor.
        """
        state = Call(Directory.slot_state, slot).send(self.peers, DIRECTORY).result()
        number, identities = Call(BasketHost.check_in).send(self.peers, basket_actor(slot)).result()
        if number.life < state.number.life:
            return False
        Call(Directory.record_identities, slot, identities).send(self.peers, DIRECTORY).result()
        return True

    def _recover_directory(self, now: float, known: Sequence[Fault]) -> None:
        slots = sorted(self._slots())
        lost: list[str] = []
        states: dict[int, HostState] = {}
        for slot in slots:
            try:
                states[slot] = Call(BasketHost.step_down).send(self.peers, basket_actor(slot)).result()
            except ActorLost:
                if self.runtime.is_alive(basket_actor(slot)):
                    raise
                lost.append(basket_actor(slot))
        told = [fault for state in states.values() for fault in state.faults]
        known = list({fault.fault_id: fault for fault in (*known, *told)}.values())
        if lost and self.kept is not None:
            fault = _fault(
                f"the directory and {', '.join(lost)} died; it goes on from what it has stored, and activity "
                "counts since the last change of membership or round are lost"
            )
            self._start([self._directory_spec(0, now=now, faults=[*known, fault])])
            return
        recovered = recovered_from(states)
        if lost:
            # A driver may hold an order that those who died alone knew of. Lives are counted from 0: the
            # clock's seconds are later than any, unless this happens again and it was set back in between.
            recovered = replace(recovered, number=max(recovered.number, OrderNumber(max(0, int(now)))))
        loss = (
            "the directory died; membership is restored from the basket actors, clients' activity counts "
            "begin anew"
        )
        died = _fault(loss) if not lost else self._membership_lost(loss, lost, recovered)
        losses = list[str]()
        if recovered.dead:
            names = ", ".join(sorted(recovered.dead))
            losses.append(f"nobody holds {names} any more: registered until `disband_basket` names them")
        if recovered.contested:
            names = ", ".join(recovered.contested)
            losses.append(f"several baskets claim {names}, who are in none now: register them again")
        faults = [*known, died, *map(_fault, losses)]
        num_slots = max(slots, default=-1) + 1
        self._start([self._directory_spec(num_slots, now=now, recovered=recovered, faults=faults)])

    def _membership_lost(self, loss: str, actors: Sequence[str], recovered: Recovered) -> Fault:
        """That basket actors died with the directory, so that nobody knows who was in their baskets."""
        survivors = tuple(admission.place.basket_id for admission in recovered.admissions)
        housed = (member.client_id for admission in recovered.admissions for member in admission.members)
        gone = self.acknowledged.lose_all_but(survivors, housed)
        named = f", and {named_updates(gone)}" if gone else ""
        loss += (
            f"; who was in the baskets of {', '.join(actors)}, which died too, is lost{named}: register them "
            "again, and send again"
        )
        return replace(_fault(loss), survivors=survivors)

    def _recover_global(self, now: float) -> list[Fault]:
        actors = [basket_actor(slot) for slot in range(self.num_slots)]
        told = gather([Call(BasketHost.abandon_session).send(self.peers, actor) for actor in actors])
        stored = None if self.kept is None else self.kept.read(RELEASE, CODEC)
        last = _newest(self.latest, *told, stored)
        # Before it is there: without the accountant nothing is done, and all of this is done again.
        lost = self._lost_releases(last, now)
        self._start([self._global_spec(last, len(lost))])
        known = "knows of no release" if last is None else f"continues from release {last.version}"
        died = f"the global aggregator died; it {known}{'' if lost else ', and nothing is lost'}"
        return [_fault(died), *lost]

    def _released(self) -> GlobalMetaModel | None:
        """The last distributed release that this driver or the global aggregator knows of."""
        if not self._distributes:
            return None
        try:
            return _newest(self.latest, Call(GlobalAggregator.latest).send(self.peers, GLOBAL).result())
        except ActorLost:
            return self.latest

    def _start(self, specs: list[RoleSpec]) -> None:
        self.runtime.start(specs)
        self._started.update(spec.name for spec in specs)

    def _accountant_spec(self, *, must_exist: bool, **opening: Unpack[LedgerOpening]) -> RoleSpec:
        config, path = self.identity.config, self.identity.ledger_path
        opening |= {"name": self.identity.name, "operator_key": config.operator_key}
        open_budget = partial(
            DurableBudget.open,
            path,
            total_epsilon=config.total_epsilon,
            total_delta=config.total_delta,
            gossip_share=self.plan.own_share,
            accounting=self.plan.accounting,
            unit=config.privacy.unit,
            must_exist=must_exist,
            **opening,
        )
        arguments = {
            "open_budget": open_budget,
            "schedule": self.plan.reserved,
            "folder": None if must_exist or is_ledger_url(path) else Path(path).parent,
            "private_folder": self.identity.private_ledger,
            "operator_key": config.operator_key,
            "row_schedule": self.plan.row_schedule,
        }
        return RoleSpec(ACCOUNTANT, Accountant, arguments, node=self.identity.ledger_node)

    def _suiting_actors(self) -> int:
        """As many basket actors as there are CPUs, or as the GPUs hold beside those of placed domains.

        Raises:
            UsageError: If they ask for a GPU and the cluster has none; they would wait for it.
        """
        config = self.identity.config.runtime
        each = config.gpus_per_actor
        gpus = self.runtime.gpus if each else None
        if gpus is None:
            return self.runtime.default_basket_actors
        if gpus < each:
            raise UsageError(
                f"runtime.gpus_per_actor is {each:g}, and the cluster has no GPU: add a node with one (Ray "
                "counts those that it finds; else ray start --num-gpus 1), or set it to 0"
            )
        room = int(gpus) * int(1.0 / each + 1e-9) - len(config.placement)
        return min(self.runtime.default_basket_actors, max(1, room))

    def _directory_spec(self, num_slots: int, **life: object) -> RoleSpec:
        identity = replace(self.identity, actors_key=b"")
        arguments = {"identity": identity, "num_slots": num_slots, "kept": self.kept, **life}
        return RoleSpec(DIRECTORY, Directory, arguments)

    def _global_spec(self, latest: GlobalMetaModel | None = None, unpublished: int = 0) -> RoleSpec:
        life = {"latest": latest, "unpublished": unpublished}
        return RoleSpec(GLOBAL, GlobalAggregator, {**self._shared(), **life})

    def _basket_spec(
        self,
        slot: int,
        budget: BudgetStatus,
        node: str | None = None,
        state: SlotState | None = None,
        **life: object,
    ) -> RoleSpec:
        """A basket actor; one with a journal is started on the node that has it."""
        runtime = self.identity.config.runtime
        domain = None if state is None else state.placed_domain
        labels: Mapping[str, str] = {} if domain is None else runtime.placement.get(domain, {})
        arguments = {
            **self._shared(),
            "slot": slot,
            "compute": self.runtime.compute.on(labels) if labels else self.runtime.compute,
            "read_only": budget.read_only,
            "run": self.identity.run,
            "budget_period": budget.period,
            "actors_key": self.identity.actors_key,
            "journal": self._journal_place(),
            **life,
        }
        if state is not None:
            arguments["state"] = state
        return RoleSpec(
            basket_actor(slot),
            BasketHost,
            arguments,
            cpus=runtime.cpus_per_actor,
            resources=dict(runtime.resources_per_actor),
            spread=node is None,
            node=node,
            labels=labels,
            gpus=runtime.gpus_per_actor,
        )

    def _shared(self) -> dict[str, object]:
        return {
            "plan": self.plan,
            "federation_id": self.identity.federation_id,
            "peers": self.runtime.peers,
            "noise": self.identity.noise,
            "kept": self.kept,
        }


def lost_releases(head: str, num_releases: int) -> list[Fault]:
    """That so many were charged after the release with this head of the ledger, and are stored nowhere.

    Each has an id, by which it is told once, whoever finds out and however often.
    """
    loss = (
        "1 release was charged and never published: as it may have been seen, the updates in it are in no "
        "other, and the charge stays"
    )
    return [Fault(f"lost release/{head}/{number}", loss) for number in range(1, num_releases + 1)]


def _newest(*models: GlobalMetaModel | None) -> GlobalMetaModel | None:
    return max((m for m in models if m is not None), key=lambda model: model.version, default=None)


def _slot(name: str) -> int | None:
    prefix, _, number = name.partition(":")
    return int(number) if prefix == "basket" and number.isdigit() else None


def _fault(loss: str) -> Fault:
    return Fault(uuid.uuid4().hex, loss)


def _listed(lost: Mapping[str, int]) -> str:
    """Clients with their numbers of updates."""
    return ", ".join(f"{client_id} ({count})" for client_id, count in sorted(lost.items()))


def named_updates(lost: Sequence[tuple[str, int]]) -> str:
    """Updates by client and round."""
    named = ", ".join(f"{client_id} (round {round_id})" for client_id, round_id in lost[:NAMED])
    more = len(lost) - NAMED
    return f"{named} and {more} more of this driver's (`lost_updates`)" if more > 0 else named
