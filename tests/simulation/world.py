"""One simulated federation: its drivers, its clients, what happens to it, and what must be true then.

Each update that a client makes has the value 1 in a coordinate of its own, and there is no noise. So a
release shows which updates are in it. At the end all faults cease, a new driver comes, and:

* no update is in two releases, or in one and still waiting; no client is in one release twice;
* an update whose receipt says accepted is in a release, waits for one, or is excused: its client left, its
  aggregate was discarded or superseded (both are counted in the statistics), its basket's actor died (named
  in the faults), or its session was charged and failed;
* an update whose every receipt says refused is in none; a refusal has its reason;
* an update sent without waiting has a receipt once it is asked for, or once its driver has left, or it says
  whether it was sent; one that was not is in none;
* every release has a charge of its own, which was in the ledger when its noise was drawn and is there still;
  nobody's charges exceed the budget; gossip's noise is drawn once a charge;
* versions and rounds rise, and two models of one version that somebody has seen are the same;
* directory and basket actors agree on who is where, and whoever was registered is;
* the next round is a round as any other: all updates are accepted and are in the next release.

Known limits, excused where the federation is not `stored`: a basket actor's death loses what it had accepted,
with the memory that it had; the directory and a basket actor that are dead at one time lose the membership,
too (`amnesia`). A stored one loses nothing: what its roles did is excused only once it is in their journals.
But with ``durability: round`` a power failure takes the updates accepted since the journal was last synced,
and a lost disk takes what a basket actor's death takes elsewhere. Each driver must name those of them that it
had sent.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig, Receipt, Rejection
from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.global_aggregator import RELEASE, GlobalAggregator
from scarcity_ray.actors.kept import CODEC
from scarcity_ray.actors.names import ACCOUNTANT, DIRECTORY, GLOBAL, basket_actor
from scarcity_ray.baskets.basket import Basket
from scarcity_ray.baskets.journalled import BasketJournal
from scarcity_ray.baskets.latest_aggregate import LatestAggregate
from scarcity_ray.baskets.update_buffer import BasketBuffer
from scarcity_ray.config import load
from scarcity_ray.errors import ActorLost, LedgerError, ScarcityError, StorageError, UsageError
from scarcity_ray.federation import driver, hierarchical
from scarcity_ray.federation.pipeline import PendingReceipt
from scarcity_ray.forecast import Told
from scarcity_ray.layers.models import BasketModel, GlobalMetaModel
from scarcity_ray.privacy.ledger.events import GossipCharge, ReleaseCharge, Renewal
from scarcity_ray.privacy.ledger.ledger import Ledger
from scarcity_ray.storage import journal, snapshots
from tests.simulation.disk import Database, Disk, SimulatedOs, connections_of
from tests.simulation.network import Frame, Gone, Network, Place
from tests.simulation.program import NUM_CLIENTS, ON_DISK, Act, Fault, Kind, Program, Setting, Step

DIMENSION = 128
CLIENTS = tuple(f"{'cd'[i % 2]}{i}" for i in range(NUM_CLIENTS))
"""Two domains of three clients."""


class Violation(AssertionError):
    """Something that must be true is not."""


@dataclass
class Update:
    """What one client made for one round.

    Attributes:
        accepted: A receipt says so.
        in_doubt: Attempts without a receipt.
        told: The driver that had the receipt.
    """

    client: int
    round_id: int
    accepted: bool = False
    in_doubt: int = 0
    told: HierarchicalFederation | None = None

    @property
    def may_be_in(self) -> bool:
        return self.accepted or self.in_doubt > 0


@dataclass
class Attempt:
    """A driver that sends an update, and what was true as it did.

    Attributes:
        possible: Whether the update may have been accepted before.
        others: Whether another one of its client and round may.
        member: Whether its client was registered.
        intrusions: How often another driver had acted.
        start: The round.
        receipt: If it does not wait for it.
    """

    number: int
    possible: bool
    others: bool
    member: bool | None
    intrusions: int
    start: int
    receipt: PendingReceipt | None = None


@dataclass
class Silence:
    """Noise that is zero, and is counted as it is drawn."""

    drawn: Counter[str] = field(default_factory=Counter)

    def standard_normal(self, shape: Any, stream: str) -> Any:
        self.drawn[stream] += 1
        return np.zeros(shape)

    def uniform_words(self, stream: str) -> Any:
        return lambda count: np.zeros(count, np.uint64)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def inside(vector: Any) -> list[int]:
    """The updates in an aggregate."""
    return [int(i) for i in np.flatnonzero(np.abs(vector) > 1e-3)]


def _rows(sent: list[int]) -> np.ndarray[Any, Any]:
    rows = np.zeros((len(sent), DIMENSION), np.float32)
    rows[range(len(sent)), sent] = 1.0
    return rows


class World:
    """A federation that is driven through a program."""

    current: World | None = None
    """The one that the process's hooks report to (`watched`)."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        World.current = self
        self.setting = setting
        self.folder, self.ledger = folder, folder / "ledger.sqlite"
        self.clock, self.noise = Clock(), Silence()
        self.disk = Disk(self._writer_dies)
        self.place = Place(self._role_dies, self.disk.unwound)
        self.network = Network(
            self.place,
            False,
            {
                Kind.MEANWHILE: self._meanwhile,
                Kind.CLOCK: self._jump,
                Kind.ALL_DIE: lambda _: self._all_die(),
                Kind.POWER_FAILS: self._power_fails,
                Kind.DISK_IS_LOST: self._disk_is_lost,
                Kind.LATE_SNAPSHOT: lambda _: self._late_snapshots(),
            },
        )
        self.is_down = False
        self.place.network = self.network
        self.updates: list[Update] = []
        self.first: dict[int, int] = {}
        self.member: list[bool | None] = [None] * NUM_CLIENTS
        self.round = 0
        self.drivers: list[HierarchicalFederation | None] = [None, None]
        self.releases: list[tuple[str, GlobalMetaModel]] = []
        self.seen: dict[int, bytes] = {}
        self.excused: dict[int, str] = {}
        self.forgotten: set[int] = set()
        self.counted: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        self.losses: set[str] = set()
        self.lost: dict[int, HierarchicalFederation | None] = {}
        self.unsynced: dict[str, set[int]] = {}
        self.power_lost: set[int] = set()
        self.undead: list[Any] = []
        self.amnesia = self.has_moved = False
        self.intrusions = 0
        self.later: dict[HierarchicalFederation, list[Attempt]] = {}
        self.faults_since: tuple[Fault, ...] = ()
        self.withdrawn: set[int] = set()
        self.membership_in_doubt: set[int] = set()
        self.spent: dict[int, set[str]] = {}
        self._unsaved: dict[str, list[Callable[[], None]]] = {}
        self._step: Step | None = None
        config = load(HierarchicalFederationConfig, settings_of(setting, folder))
        with self._acting("opening", object()):
            clock: Any = self.clock
            self.fed = HierarchicalFederation(config, runtime="local", clock=clock, noise=self.noise)
            self.fed.register_clients([(c, c[0]) for c in CLIENTS])
        self.member = [True] * NUM_CLIENTS
        self.drivers[0] = self.fed
        self.network.lazy = setting.lazy

    # What happens.

    def step(self, step: Step) -> None:
        """One act of a driver, with its faults."""
        self.clock.now += 1.0
        self._step = step
        self.network.expect(step.faults)
        self.disk.expect(step.faults)
        self.act(step.driver, step.act, step.k)
        self.faults_since = (*self.faults_since, *step.faults) if self.later else ()
        self.network.expect(())
        self.disk.expect(())

    def act(self, driver: int, act: Act, k: int) -> None:
        """What a driver does; it may be stopped in it."""
        token = self.drivers[driver] or object()
        self.intrusions += any(fed is not token for fed in self.later)
        self.has_moved = self.has_moved or act in (Act.SPLIT, Act.DISBAND)
        with self._acting(f"driver {driver}", token) as frame:
            try:
                if act is Act.RESTORE and len(self.network.stack) == 1:
                    self._all_die()
                    frame.is_dead = False
                if self.is_down:
                    self._restore()
                fed = self.drivers[driver]
                if fed is None:
                    frame.driver = fed = self.drivers[driver] = self.another_driver()
                ACTS[act](self, fed, k % NUM_CLIENTS)
                self._look(fed._driver.supervisor.latest)
            except Gone:
                pass
            except ActorLost as error:
                self._require(self._faults(), f"without a fault: {error}")
            except (LedgerError, StorageError) as error:
                self._require(
                    self._is_disk_at_fault(), f"without a fault of the disk: {type(error).__name__}: {error}"
                )
            except UsageError as error:
                self._require(act in (Act.SPLIT, Act.DISBAND), f"{act}: {error}")
            except ScarcityError as error:
                raise Violation(f"{act} raised {type(error).__name__}: {error}") from error
            self._take_receipts(self.drivers[driver])
            if frame.is_dead or (fed := self.drivers[driver]) is None or fed._closed:
                self.drivers[driver] = None
            self.later = {fed: sent for fed, sent in self.later.items() if sent and fed in self.drivers}

    def _faults(self) -> tuple[Fault, ...]:
        """Those of this step, and of the steps in which something was on its way that it may meet."""
        return (*self.faults_since, *(() if self._step is None else self._step.faults))

    def _is_disk_at_fault(self) -> bool:
        return any(fault.kind in ON_DISK for fault in self._faults())

    def _restore(self) -> None:
        """Everything has died; a new driver restores the federation."""
        self.place.begin()
        where = str(self.folder / "state")
        restore = HierarchicalFederation.restore
        clock: Any = self.clock
        self.fed = restore(where, runtime="local", clock=clock, noise=self.noise)
        self.is_down = False

    def another_driver(self) -> HierarchicalFederation:
        """One that has just attached."""
        other = HierarchicalFederation.__new__(HierarchicalFederation)
        identity = self.fed._driver.supervisor.identity
        other._begin(self.place, identity, self.fed.plan, self.clock, Told(), owner=False)  # type: ignore[arg-type]
        return other

    def send(self, fed: HierarchicalFederation, sent: list[int]) -> None:
        """Clients send updates; what their receipts must say."""
        attempts = [self._attempt(i) for i in sent]
        for round_id in dict.fromkeys(self.updates[i].round_id for i in sent):
            chosen = [a for a in attempts if self.updates[a.number].round_id == round_id]
            ids = [CLIENTS[self.updates[a.number].client] for a in chosen]
            receipts = fed.submit_updates(ids, _rows([a.number for a in chosen]), round_id)
            for attempt, receipt in zip(chosen, receipts, strict=True):
                self._judge(fed, attempt, receipt)

    def send_later(self, fed: HierarchicalFederation, sent: list[int]) -> None:
        """Clients send updates whose receipts the driver does not wait for."""
        for i in sent:
            update, attempt = self.updates[i], self._attempt(i)
            try:
                attempt.receipt = fed.submit_update_async(
                    CLIENTS[update.client], _rows([i])[0], update.round_id
                )
            except ScarcityError:  # It was not taken.
                update.in_doubt -= 1
                raise
            self.later.setdefault(fed, []).append(attempt)

    def ask_for_receipts(self, fed: HierarchicalFederation) -> None:
        """A driver waits for the receipts that it did not wait for."""
        for attempt in reversed(self.later.get(fed, [])):
            assert attempt.receipt is not None
            attempt.receipt.result()

    def _take_receipts(self, fed: HierarchicalFederation | None) -> None:
        """What the receipts must say that came meanwhile."""
        if fed is None:
            return
        attempts, self.later[fed] = self.later.get(fed, []), []
        for attempt in attempts:
            pending = attempt.receipt
            assert pending is not None
            if pending._receipt is not None:
                self._judge(fed, attempt, pending._receipt)
            elif pending._error is not None:
                self.updates[attempt.number].in_doubt -= not pending.was_sent
            else:
                self._require(not fed._closed, f"update {attempt.number} is on its way for ever")
                self.later[fed].append(attempt)

    def _attempt(self, i: int) -> Attempt:
        update = self.updates[i]
        known = update.may_be_in, self._others_may_be_in(i), self.member[update.client]
        update.in_doubt += 1
        return Attempt(i, *known, self.intrusions, self.round)

    def _judge(self, fed: HierarchicalFederation, attempt: Attempt, receipt: Receipt) -> None:
        """What an attempt's receipt must say."""
        i, update = attempt.number, self.updates[attempt.number]
        update.in_doubt -= 1
        is_alone = self.intrusions == attempt.intrusions
        what = f"{CLIENTS[update.client]}'s update {i} of round {update.round_id}"
        if receipt.accepted:
            is_known = i not in self.forgotten | self.power_lost
            twice = update.accepted and is_known and not self.amnesia
            self._require(not twice, f"{what} was accepted twice")
            update.accepted, update.told = True, fed
            # That its client had left was forgotten, too; or it came back before the update was here.
            if i in self.forgotten or not is_alone:
                self.withdrawn.discard(i)
        elif is_alone and not self.amnesia:
            allowed = {
                Rejection.REPLAYED: attempt.possible,
                Rejection.PARTICIPATION_CAP: attempt.others,
                Rejection.UNKNOWN_CLIENT: attempt.member is not True,
                Rejection.TOO_STALE: max(attempt.start, self._true_round()) - update.round_id > 5,
                Rejection.READ_ONLY: self.setting.releases < 8 or len(self.releases) > 4,
                Rejection.NOT_STORED: self._is_disk_at_fault(),
            }
            assert receipt.reason is not None
            self._require(allowed.get(receipt.reason), f"{what} was refused: {receipt.reason}")

    def _true_round(self) -> int:
        directory = self.role(DIRECTORY)
        return self.round if directory is None else int(directory._round_id)

    @contextmanager
    def changing(self, client: int, *, to: bool) -> Iterator[None]:
        """A client joins or leaves; nobody knows which came last if two do at once, or its driver dies."""
        intrusions = self.intrusions
        if self.member[client] is not to:
            self.member[client] = None
        try:
            yield
        except BaseException:
            self.membership_in_doubt.add(client)
            raise
        known = self.intrusions == intrusions and client not in self.membership_in_doubt
        self.member[client] = to if known else None
        if known and not to and len(self.network.stack) == 1:
            released = {i for _, model in self.releases for i in inside(model.aggregate)}
            mine = {i for i, u in enumerate(self.updates) if u.client == client and u.may_be_in}
            # A release that was charged and drawn, and could not be stored, is stored later.
            charged = self._charges()
            drawn = {i for i, charges in self.spent.items() if charges & charged}
            self.withdrawn |= mine - released - drawn

    def new_update(self, client: int) -> int:
        """The coordinate of an update that a client has just made."""
        self.updates.append(Update(client, self.round))
        return len(self.updates) - 1

    def update_of_round(self, client: int) -> int:
        """A client's update of the round, which it has made or makes now."""
        made = [i for i, u in enumerate(self.updates) if (u.client, u.round_id) == (client, self.round)]
        return made[0] if made else self.new_update(client)

    def role(self, name: str) -> Any:
        return self.place.process(name)

    def hosts(self) -> dict[str, BasketHost]:
        return {n: self.role(n) for n in self.place.names() if n.startswith("basket:")}

    # What the hooks tell.

    @contextmanager
    def _acting(self, name: str, driver: object) -> Iterator[Frame]:
        frame = Frame(name, None, driver)
        self.network.stack.append(frame)
        try:
            yield frame
        finally:
            self.network.left(self.network.stack.pop())

    def _meanwhile(self, fault: Fault) -> None:
        if self.is_down:
            return
        names = [frame.name for frame in self.network.stack]
        for other in (0, 1):
            if f"driver {other}" not in names and other < len(self.drivers):
                self.intrusions += 1
                step, self._step = self._step, Step(fault.act, fault.k, other, (fault,))
                self.act(other, fault.act, fault.k)
                self._step = step
                return

    def _jump(self, fault: Fault) -> None:
        self.clock.now += (3600.0, -3600.0, 86_400.0, 61.0, -1.0, 1e7, -1e7, 601.0)[fault.k]

    def _writer_dies(self, why: str) -> None:
        frame = self.network.stack[-1]
        self.network.happened.append(f"{frame.name}: {why}")
        self.network.die(frame)

    def _all_die(self) -> None:
        """Every process of the federation is killed, if it is stored."""
        if not self.setting.stored:
            return
        self.undead += filter(None, (self.role(name) for name in (DIRECTORY, GLOBAL)))
        for name in self.place.names():
            self.place.crash(name)
        for frame in self.network.stack:
            frame.is_dead = frame.is_dead or frame.process is None
        self.drivers = [None] * len(self.drivers)
        self.is_down = True

    def _power_fails(self, fault: Fault) -> None:
        """Everything dies, and what was not synced is lost."""
        self._all_die()
        for name, updates in self.unsynced.items():
            self._journal_of(name).power_fails(fault.k / 8)
            self.power_lost |= updates
            self._excuse([*updates], "not synced")
        self.unsynced.clear()

    def _disk_is_lost(self, fault: Fault) -> None:
        """A basket actor is killed, and its journal is nowhere."""
        names = sorted(self.hosts())
        if self.setting.stored and names:
            name = names[fault.k % len(names)]
            self._lose(name, self.role(name))
            self.place.crash(name)
            self._journal_of(name).is_lost()
            self.unsynced.pop(name, None)

    def _late_snapshots(self) -> None:
        """What processes of earlier openings know is written late, as an object store may, and they die."""
        faults, self.disk.faults = self.disk.faults, {}
        for role in self.undead:
            if isinstance(role, Directory):
                assert role._kept is not None
                name, kept, state = "directory", role._kept._kept, role._state()
            else:
                name, kept, state = RELEASE, role._kept, role.latest()
            for _ in range(3 if state is not None else 0):
                kept.write(name, state, CODEC, keep=99)
        self.disk.faults = faults

    def _role_dies(self, name: str, process: Any, end: Callable[[], None]) -> None:
        self.deaths[name] += 1
        # It may have died between the commit and its end; the client is leaving either way.
        self.excused |= self.unsaved_farewells(name)
        self._unsaved.pop(name, None)
        if self.setting.stored:
            if name == ACCOUNTANT:
                self.disk.database(self.ledger).crash(end)
            else:
                self._journal_of(name).crash(end) if name.startswith("basket:") else end()
            return
        if isinstance(process, BasketHost):
            self._lose(name, process)
        self.disk.database(self.ledger).crash(end) if name == ACCOUNTANT else end()
        dead = {DIRECTORY, *(basket_actor(s) for s in range(self._num_slots()))} - set(self.place.names())
        if DIRECTORY in dead and len(dead) > 1:
            self.amnesia = True
            self.member = [None] * NUM_CLIENTS

    def _lose(self, name: str, process: BasketHost) -> None:
        """What a basket actor has is lost."""
        waits = [b.latest.model.aggregate for b in process._baskets.values() if b.latest.model is not None]
        own = self.held_by(process)
        # Of one that is on its way again the driver that sends it may know nothing yet.
        self.lost |= {i: None if self.updates[i].in_doubt else self.updates[i].told for i in own}
        held = {*own, *(i for aggregate in waits for i in inside(aggregate))}
        if held:
            self.losses.add(name)
        self.excused |= dict.fromkeys(held, f"{name} died")
        self.forgotten |= {
            i for i, u in enumerate(self.updates) if CLIENTS[u.client] in self._members_of(process)
        }

    def _journal_of(self, name: str) -> Database:
        folder = self.folder / "state" / "journal" / self.fed.federation_id
        return self.disk.database(folder / f"basket-{name.partition(':')[2]}.sqlite")

    def when_saved(self, do: Callable[[], None]) -> None:
        """Do something once what a role has done is in its journal; at once, if it has none."""
        name = self.network.stack[-1].name
        if self.setting.stored and name.startswith("basket:"):
            self._unsaved.setdefault(name, []).append(do)
        else:
            do()

    def saved(
        self, accepted: Collection[int] = (), *, is_aggregated: bool = False, is_undone: bool = False
    ) -> None:
        """A basket actor has written its journal, or undone what it could not write."""
        name = self.network.stack[-1].name
        if is_aggregated or self._journal_of(name).synced is None:
            self.unsynced.pop(name, None)
        else:
            self.unsynced.setdefault(name, set()).update(accepted)
        for do in self._unsaved.pop(self.network.stack[-1].name, ()):
            if not is_undone:
                do()

    def _num_slots(self) -> int:
        return max(
            [int(n.split(":")[1]) + 1 for n in (*self.deaths, *self.place.names()) if ":" in n], default=0
        )

    def _members_of(self, host: BasketHost) -> set[str]:
        """Clients of whom the actor alone knows what it accepted."""
        left = {*host._migration._left, *(memory.client_id for memory in host._memories.all())}
        return left.union(*(basket.members for basket in host._baskets.values()))

    def _others_may_be_in(self, i: int) -> bool:
        of = self.updates[i]
        return any(
            u.may_be_in and u.client == of.client and u.round_id == of.round_id
            for j, u in enumerate(self.updates)
            if j != i
        )

    def held_by(self, host: BasketHost) -> list[int]:
        """The updates that wait in an actor, in buffers, fresh aggregates, and boxes of clients that move."""
        held: list[int] = []
        for basket in host._baskets.values():
            for update in basket._buffer.updates():
                held += inside(update.update)
            if basket.latest.fresh is not None:
                held += inside(basket.latest.fresh.aggregate)
        arrived = {
            c for other in self.hosts().values() for b in other._baskets.values() for c in b._buffer.clients()
        }
        for moved in host._migration._left.values():
            if moved.client_id not in arrived:
                held += [i for update in moved.updates.updates for i in inside(update.update)]
        return held

    def note_release(self, charge_id: str, model: GlobalMetaModel) -> None:
        with contextlib.closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)) as ledger:
            row = ledger.execute("SELECT record FROM ledger WHERE charge_id = ?", (charge_id,)).fetchone()
        self._require(row is not None, f"release {model.version} was drawn before its charge was on the disk")
        self.releases.append((charge_id, model))

    def _look(self, model: GlobalMetaModel | None) -> None:
        """Somebody sees a model."""
        if model is not None:
            bytes_ = model.aggregate.tobytes()
            self._require(
                self.seen.setdefault(model.version, bytes_) == bytes_,
                f"two models of version {model.version}",
            )

    def excuse(self, updates: list[int], why: str) -> None:
        self.when_saved(partial(self._excuse, updates, why))

    def unsaved_farewells(self, role: str) -> dict[int, str]:
        """Updates that go with a client that leaves, which a role has not written yet, as far as it told."""
        told = [do.args for do in self._unsaved.get(role, ()) if isinstance(do, partial)]
        return {i: why for updates, why in told if why in ("withdrawn", "discarded") for i in updates}

    def _excuse(self, updates: list[int], why: str) -> None:
        for update in updates:
            self.excused.setdefault(update, why)
        self.counted[why] += 1

    def spend(self, updates: list[int], charge_id: str) -> None:
        for update in updates:
            self.spent.setdefault(update, set()).add(charge_id)

    def _require(self, holds: object, what: str) -> None:
        if not holds:
            raise Violation(what)

    # What must be true at the end.

    def settle(self) -> None:
        """All faults cease, and a new driver finds everything in order."""
        self._step = None
        self.network.expect(())
        self.disk.expect(())
        self.network.lazy = False
        with self._acting("settling", object()):
            if self.is_down:
                self._restore()
            self.network.quiet()
            for sender in list(self.later):
                self.ask_for_receipts(sender)
                self._take_receipts(sender)
            fed = self.another_driver()
            stats = fed.get_stats()
            if self.setting.stored:
                latest = self.role(GLOBAL).latest()
                self._look(latest)
                known = 0 if latest is None else latest.version
                self._require(known >= max(self.seen, default=0), "a release that was seen is forgotten")
            self._check_places()
            self._check_members(fed)
            self._check_budget(stats)
            waiting = Counter(i for host in self.hosts().values() for i in self.held_by(host))
            twice = [i for i, count in waiting.items() if count > 1]
            self._require(self.setting.gossip or not twice, f"updates {twice} wait twice")
            self._check_losses(fed, stats, waiting)
            for _ in range(3):
                if fed.force_aggregate() is None:
                    break
            if not self.setting.gossip:
                self._check_updates()
            self._check_next_round(fed)
            self._check_ledger()

    def _check_places(self) -> None:
        where = self.role(DIRECTORY).routing_table()
        self._require(where.news.pending is None, "an operation is pending for ever")
        decided: dict[str, dict[str, set[str]]] = {name: {} for name in self.hosts()}
        for place in where.places:
            clients = self.role(DIRECTORY)._manager.get_basket_clients(place.basket_id)
            decided.setdefault(basket_actor(place.slot), {})[place.basket_id] = set(clients)
        there = {
            n: {b: set(basket.members) for b, basket in h._baskets.items()} for n, h in self.hosts().items()
        }
        self._require(decided == there, f"the directory says {decided}, the actors {there}")
        members = Counter(c for baskets in decided.values() for ids in baskets.values() for c in ids)
        self._require(all(n == 1 for n in members.values()), f"somebody is in two baskets: {members}")
        rounds = {host._round_id for host in self.hosts().values()} | {where.round_id}
        self._require(len(rounds) == 1, f"rounds {rounds}")
        self._require(
            self.amnesia or where.round_id >= self.round, f"round {where.round_id} after {self.round}"
        )
        self.round = where.round_id

    def _check_members(self, fed: HierarchicalFederation) -> None:
        for known, client in zip(self.member, CLIENTS, strict=True):
            there = fed.get_client(client) is not None
            self._require(known in (None, there), f"{client} is {'' if there else 'not '}registered")

    def _check_budget(self, stats: dict[str, Any]) -> None:
        spent, total = stats["privacy_consumed_epsilon"], self.fed.config.total_epsilon
        self._require(spent <= total * (1 + 1e-9), f"epsilon {spent} of {total}")

    def _check_losses(
        self, fed: HierarchicalFederation, stats: dict[str, Any], waiting: Collection[int]
    ) -> None:
        """What was lost is named or counted, and what waits was not lost."""
        for name in self.losses:
            named = any(name in fault and "lost" in fault for fault in fed.faults)
            self._require(named, f"{name} died with updates, and the faults say {fed.faults}")
        for i, told in self.lost.items():
            if not self.setting.gossip and told in self.drivers and told is not None and told.faults:
                update = self.updates[i]
                named = (CLIENTS[update.client], update.round_id) in told.lost_updates
                self._require(named, f"update {i} was lost, and {told.lost_updates} are named")
        for sender in filter(None, self.drivers):
            # One that was released, and forgotten with its actor, is named, too, and may be sent again; so is
            # one that was moving, and nobody knows how far it came.
            missing = {*sender.lost_updates}
            told_of = {
                i for i in waiting if (CLIENTS[self.updates[i].client], self.updates[i].round_id) in missing
            }
            wrong = set[int]() if self.has_moved else told_of - self.lost.keys() - self.forgotten
            self._require(not wrong, f"updates {wrong} wait, and are named as lost")
        if not any(name.startswith("basket:") for name in self.deaths) and not self._had_full_disk():
            for key, why in (("superseded", "superseded"), ("discarded", "discarded")):
                told = stats[f"n_basket_models_{key}"]
                self._require(told == self.counted[why], f"{self.counted[why]} were {key}, told are {told}")

    def _had_full_disk(self) -> bool:
        return any(Kind.DISK_FULL in what for what in self.network.happened)

    def _check_updates(self) -> None:
        """Every update is where its receipts say, once."""
        held = Counter(i for host in self.hosts().values() for i in self.held_by(host))
        released: Counter[int] = Counter()
        for _, model in self.releases:
            there = inside(model.aggregate)
            released.update(there)
            clients = Counter(self.updates[i].client for i in there)
            self._require(
                len(clients) == model.n_clients_total,
                f"release {model.version} counts {model.n_clients_total} clients and has updates {there} of "
                f"{[CLIENTS[c] for c in clients]}",
            )
        released_by = {charge_id for charge_id, _ in self.releases}
        for number, charges in self.spent.items():
            if charges & self._charges() - released_by:
                # A failure after the charge costs the charge and the aggregates.
                self.excused.setdefault(number, "charged and not released")
        for host in self.hosts().values():
            for basket_id, basket in host._baskets.items():
                waits = basket.latest._fresh and basket.latest.fresh is None
                self._require(not waits, f"the aggregate of {basket_id} is handed in for ever")
        for i, update in enumerate(self.updates):
            what = f"{CLIENTS[update.client]}'s update {i} of round {update.round_id}"
            count = released[i] + held[i]
            twice = count > 1 and i not in self.forgotten and not self.amnesia
            self._require(not twice, f"{what} counts {released[i]} times and waits {held[i]} times")
            self._require(not count or update.may_be_in, f"{what} counts, and was never accepted")
            left = released[i] and i in self.withdrawn and not update.in_doubt
            self._require(not left, f"{what} counts, though its client had left")
            lost = update.accepted and not count and i not in self.excused
            self._require(not lost, f"{what} was accepted and is nowhere")

    def _charges(self) -> set[str]:
        query = (
            "SELECT charge_id FROM ledger WHERE charge_id LIKE 'layer2/%' AND record NOT LIKE '%\"void\"%'"
        )
        with contextlib.closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)) as ledger:
            return {str(charge_id) for (charge_id,) in ledger.execute(query)}

    def _check_next_round(self, fed: HierarchicalFederation) -> None:
        """The next round is a round as any other."""
        fed.register_clients([(c, c[0]) for c in CLIENTS])
        self.member = [True] * NUM_CLIENTS
        read_only = fed.get_stats()["read_only"]
        before = self.round
        self.round = fed.advance_round()
        self._require(self.round == before + 1, f"round {self.round} after {before}")
        self._check_places()
        sent = [self.new_update(c) for c in range(NUM_CLIENTS)]
        if read_only:
            return
        self.network.stack[-1].driver = fed
        self.send(fed, sent)
        refused = [CLIENTS[self.updates[i].client] for i in sent if not self.updates[i].accepted]
        self._require(not refused, f"refused in the next round: {refused}")
        if self.setting.gossip:
            fed.run_gossip_round()
        made = len(self.releases)
        fed.force_aggregate()
        ready = sum(len(b.members) >= 2 for h in self.hosts().values() for b in h._baskets.values())
        small = any(len(b.members) == 1 for h in self.hosts().values() for b in h._baskets.values())
        if self.setting.auto or small or ready < (3 if self.setting.masked else 2):
            return
        self._require(len(self.releases) > made, f"no release of the next round: {fed.waiting_for()}")
        if not self.setting.gossip:
            there = inside(self.releases[-1][1].aggregate)
            self._require(
                set(sent) <= set(there), f"updates {sent} are not all in the release, which has {there}"
            )

    def _check_ledger(self) -> None:
        """Every release has a charge of its own, and no period's charges exceed its budget."""
        with contextlib.closing(Ledger.read(self.ledger)._store) as kept:
            ledger = Ledger(kept)
            ledger.verify()
            rows = list(ledger.rows())
        ids = {row.charge_id for row in rows if isinstance(row.event, ReleaseCharge)}
        used = Counter(charge_id for charge_id, _ in self.releases)
        self._require(all(n == 1 for n in used.values()), f"one charge, two releases: {used}")
        self._require(set(used) <= ids, "a release's charge is not in the ledger any more")
        cap = self.fed.plan.mu_total**2 * (1 + 1e-9)
        central, own, names = 0.0, Counter[str](), list[str]()
        covered: Counter[tuple[str, str]] = Counter()
        for row in rows:
            match row.event:
                case Renewal():
                    central, own = 0.0, Counter[str]()
                case ReleaseCharge(mu=mu):
                    central += mu**2
                case GossipCharge(mu=mu, members=members, details=details):
                    names.extend(members.newcomers)
                    for place in members.places.tolist():
                        own[names[place]] += mu**2  # type: ignore[assignment]
                        covered[str(details["kind"]), names[place]] += 1  # type: ignore[index]
            worst = central + max(own.values(), default=0.0)
            self._require(worst <= cap, f"row {row.seq}: mu squared {worst} of {cap}")
        drawn: Counter[tuple[str, str]] = Counter()
        for stream, count in self.noise.drawn.items():
            if stream.startswith("gossip/"):
                _, kind, client, _ = stream.split("/")
                drawn[kind, client] += count
        self._require(not drawn - covered, f"gossip was drawn without a charge: {drawn - covered}")
        layer2 = sum(n for stream, n in self.noise.drawn.items() if stream.startswith("layer2/"))
        self._require(layer2 <= len(ids), f"{layer2} drawings for {len(ids)} charges")


Do = Callable[[World, HierarchicalFederation, int], Any]


def _basket(fed: HierarchicalFederation, k: int) -> str:
    places = fed._driver.operations.routing_table().places
    return places[k % len(places)].basket_id if places else "none"


def _leave(world: World, fed: HierarchicalFederation, k: int) -> None:
    with world.changing(k, to=False):
        fed.unregister_client(CLIENTS[k])
        world._take_receipts(fed)  # What was refused before is not withdrawn.


def _join(world: World, fed: HierarchicalFederation, k: int) -> None:
    with world.changing(k, to=True):
        fed.register_client(CLIENTS[k], CLIENTS[k][0])


def _round(world: World, fed: HierarchicalFederation, k: int) -> None:
    before = world.round
    reached = fed.advance_round()
    world._require(world.amnesia or reached > before, f"round {reached} after {before}")
    world.round = max(world.round, reached)


def _send_all(world: World, fed: HierarchicalFederation, k: int) -> None:
    world.send(fed, [world.update_of_round(c) for c in range(NUM_CLIENTS)])


def _send_old(world: World, fed: HierarchicalFederation, k: int) -> None:
    mine = [i for i, u in enumerate(world.updates) if u.client == k]
    world.send(fed, mine[:1])


def _close(world: World, fed: HierarchicalFederation, k: int) -> None:
    fed._owner = False
    fed.close()


def _aggregate(world: World, fed: HierarchicalFederation, k: int) -> None:
    fed.force_aggregate()


def _restored(world: World, fed: HierarchicalFederation, k: int) -> None:
    fed.get_stats()


ACTS: dict[Act, Do] = {
    Act.SEND_ALL: _send_all,
    Act.SEND_DOMAIN: lambda w, f, k: w.send(f, [w.update_of_round(c) for c in range(k % 2, NUM_CLIENTS, 2)]),
    Act.SEND: lambda w, f, k: w.send(f, [w.update_of_round(k)]),
    Act.SEND_ANOTHER: lambda w, f, k: w.send(f, [w.new_update(k)]),
    Act.SEND_OLD: _send_old,
    Act.SEND_LATER: lambda w, f, k: w.send_later(f, [w.update_of_round(c) for c in range(NUM_CLIENTS)]),
    Act.SEND_ONE_LATER: lambda w, f, k: w.send_later(f, [w.update_of_round(k)]),
    Act.RECEIPTS: lambda w, f, k: w.ask_for_receipts(f),
    Act.CLOSE: _close,
    Act.AGGREGATE: _aggregate,
    Act.MAYBE: lambda w, f, k: f.maybe_aggregate(),
    Act.ROUND: _round,
    Act.LEAVE: _leave,
    Act.JOIN: _join,
    Act.SPLIT: lambda w, f, k: f.split_basket(_basket(f, k)),
    Act.DISBAND: lambda w, f, k: f.disband_basket(_basket(f, k)),
    Act.GOSSIP: lambda w, f, k: f.run_gossip_round(),
    Act.STATS: lambda w, f, k: f.get_stats(),
    Act.RENEW: lambda w, f, k: f.renew_budget(f.config.total_epsilon, f.config.total_delta, operator="op"),
    Act.RESTORE: _restored,
}


def settings_of(setting: Setting, folder: Path) -> dict[str, Any]:
    """The configuration of a program's federation."""
    return {
        "vector_dim": DIMENSION,
        "ledger_path": str(folder / "ledger.sqlite"),
        "storage_path": str(folder / "state") if setting.stored else None,
        "durability": setting.durability if setting.stored else None,
        "auto_aggregate": setting.auto,
        "total_epsilon": 12.0 if setting.releases >= 8 else 4.0,
        "total_delta": 1e-5,
        "gossip_budget_share": 0.3 if setting.gossip else 0.0,
        "basket": {"min_clients": 2, "max_clients": 3},
        "buffer": {"participation_cap": 1},
        "gossip": {"push_drift_threshold": 0.0, "mixing": "average", "local_dp_epsilon": 0.5},
        "layer1": {"aggregation_method": "mean", "min_updates": 2, "byzantine_fraction": 0.0},
        "layer2": {
            "central_dp_epsilon": 2.0,
            "use_secure_aggregation": setting.masked,
            "assumed_corrupt_fraction": 0.0,
        },
        "runtime": {"baskets_per_actor": setting.baskets_per_actor},
    }


@contextmanager
def watched() -> Iterator[None]:
    """Simulated places in the place of the local runtime and SQLite, and hooks that tell what is lost."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(hierarchical, "open_runtime", lambda *_: World.current.place)  # type: ignore[union-attr]
        connect = sqlite3.connect
        kind = connections_of(lambda: None if World.current is None else World.current.disk)
        patch.setattr(sqlite3, "connect", lambda *args, **more: connect(*args, **{"factory": kind, **more}))
        release, stored = GlobalAggregator._release, GlobalAggregator._stored
        replace, save, undo = LatestAggregate.replace, BasketJournal.save, BasketHost._undo
        take_back = LatestAggregate.take_back
        discard, spend, withdraw = LatestAggregate.discard_if_of, LatestAggregate.spend, BasketBuffer.withdraw

        def world() -> World:
            assert World.current is not None
            return World.current

        def noted_release(self: GlobalAggregator, ring_sum: Any, terms: Any, *more: Any) -> GlobalMetaModel:
            vars(self)["charged"] = terms.charge_id
            return release(self, ring_sum, terms, *more)

        def noted_stored(self: GlobalAggregator, model: GlobalMetaModel) -> GlobalMetaModel:
            """The release is out, unless it was not stored."""
            try:
                stored(self, model)
            except BaseException:
                kept = None if self._kept is None else self._kept.read(RELEASE, CODEC)
                if kept is not None and kept.version == model.version:
                    world().note_release(vars(self)["charged"], model)
                raise
            world().note_release(vars(self)["charged"], model)
            return model

        def noted_save(self: BasketJournal, baskets: Iterable[Basket], **more: Any) -> None:
            baskets = list(baskets)
            changes = [basket.unsaved for basket in baskets if basket.unsaved is not None]
            accepted = [i for change in changes for one in change.accepted for i in inside(one.judged.update)]
            save(self, baskets, **more)
            world().saved(accepted, is_aggregated=any(change.has_consumed for change in changes))

        def noted_undo(self: BasketHost, kept: BasketJournal) -> None:
            gone = world().unsaved_farewells(world().network.stack[-1].name)
            world().saved(is_undone=True)
            undo(self, kept)
            # A commit that failed may be in the file for all that: then the journal says that they are gone.
            for update in gone.keys() - set(world().held_by(self)):
                world().excused.setdefault(update, gone[update])

        def noted_replace(self: LatestAggregate, model: BasketModel, contributors: Any) -> None:
            before, superseded = self.model, self.superseded
            replace(self, model, contributors)
            if before is not None and self.superseded > superseded:
                world().excuse(inside(before.aggregate), "superseded")

        def noted_take_back(self: LatestAggregate, model: BasketModel | None) -> None:
            superseded = self.superseded
            take_back(self, model)
            if model is not None and self.superseded > superseded:
                world().excuse(inside(model.aggregate), "superseded")

        def noted_discard(self: LatestAggregate, client_id: str) -> None:
            fresh = self._fresh
            discard(self, client_id)
            if fresh and not self._fresh and self.model is not None:
                world().excuse(inside(self.model.aggregate), "discarded")

        def noted_spend(self: LatestAggregate, model: BasketModel | None) -> None:
            charge_id = self._charge_id
            spend(self, model)
            if model is not None:
                world().spend(inside(model.aggregate), charge_id)

        def noted_withdraw(self: BasketBuffer, client_id: str) -> int:
            gone = [i for u in self.updates() if u.client_id == client_id for i in inside(u.update)]
            world().excuse(gone, "withdrawn")
            return withdraw(self, client_id)

        patch.setattr(journal, "PAGE_BYTES", 1024)
        patch.setattr(driver, "warnings_at_release", lambda *args: [])
        patch.setattr(snapshots, "os", SimulatedOs(lambda: world().disk))
        patch.setattr(GlobalAggregator, "_release", noted_release)
        patch.setattr(GlobalAggregator, "_stored", noted_stored)
        patch.setattr(BasketJournal, "save", noted_save)
        patch.setattr(BasketHost, "_undo", noted_undo)
        patch.setattr(LatestAggregate, "replace", noted_replace)
        patch.setattr(LatestAggregate, "take_back", noted_take_back)
        patch.setattr(LatestAggregate, "discard_if_of", noted_discard)
        patch.setattr(LatestAggregate, "spend", noted_spend)
        patch.setattr(BasketBuffer, "withdraw", noted_withdraw)
        try:
            yield
        finally:
            World.current = None


def run(program: Program) -> World:
    """Drive a new federation through a program, inside `watched`.

    Raises:
        Violation: If something is not as it must be; its note is the program, with what happened.
    """
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    world: World | None = None
    try:
        world = World(program.setting, folder)
        for step in program.steps:
            world.step(step)
        world.settle()
        return world
    except Exception as error:
        happened = [] if world is None else world.network.happened
        error.add_note("\n".join([str(program), "what happened:", *happened]))
        raise
    finally:
        if world is not None:
            for name in world.place.names():
                world.place.inner.kill(name)
        World.current = None
        shutil.rmtree(folder)
