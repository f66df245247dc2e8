"""`HierarchicalFederation`: the driver's API of a federation (docs/specification.md#the-federation)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.messages import FederationIdentity
from scarcity_ray.actors.names import ACCOUNTANT, DIRECTORY, basket_actor
from scarcity_ray.baskets import Receipt
from scarcity_ray.baskets.reports import Member
from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.config.arguments import check_clock, instance_of, number_of, seconds_of
from scarcity_ray.directory import BasketInfo, ClientInfo, check_name
from scarcity_ray.errors import UsageError
from scarcity_ray.federation.arguments import (
    basket_of,
    batch_of,
    check_opening,
    check_place,
    check_precision,
    examples_of,
    id_of,
    ids_of,
    members_of,
    numbers_of,
    policies_of,
    signature_of,
    single_update,
)
from scarcity_ray.federation.driver import Driver
from scarcity_ray.federation.evaluation import EarlyStopping
from scarcity_ray.federation.fit_terms import Adversary, FitResult, FitTerms, RoundRecord
from scarcity_ray.federation.fitting import Fitting
from scarcity_ray.federation.opening import (
    check_federation_name,
    configured_ledger,
    default_ledger,
    federation_name,
    open_runtime,
    tell_ledger,
)
from scarcity_ray.federation.pipeline import PendingReceipt
from scarcity_ray.federation.publishing import publishing
from scarcity_ray.federation.stored import check_unused, stored_federation, with_absolute_places
from scarcity_ray.federation.supervisor import Supervisor, end_abandoned_opening
from scarcity_ray.federation.task_cohort import TaskCohort
from scarcity_ray.federation.training_round import TrainingProgress
from scarcity_ray.federation.waiting import WaitingFor
from scarcity_ray.forecast import Told, warnings_at_start
from scarcity_ray.gossip.passes import draw_block
from scarcity_ray.layers.models import BasketModel, GlobalMetaModel
from scarcity_ray.layers.server_optimizers import ServerOptimizer, ServerSGD
from scarcity_ray.ledger_url import is_ledger_url
from scarcity_ray.plan import FederationPlan, make_plan
from scarcity_ray.privacy.ledger.answers import CeilingStanding
from scarcity_ray.privacy.ledger.events import renewal_message
from scarcity_ray.privacy.sampling.noise import NoiseSource, SystemNoise
from scarcity_ray.runtime import Runtime
from scarcity_ray.runtime.collector import collector_paused
from scarcity_ray.runtime.rpc import TasksBeside
from scarcity_ray.runtime.samples import Sample
from scarcity_ray.secagg import IdentityKeyPair, Roster
from scarcity_ray.updates import SigningScope
from scarcity_ray_client import PrivateEvaluation, Workload
from scarcity_ray_client.errors import shown
from scarcity_ray_client.policy import SignedPolicy
from scarcity_ray_client.receipts import ReceiptProof, SignedReceipt
from scarcity_ray_client.site_ledger import Extension, Head
from scarcity_ray_client.wire import KeyRequest

Clock = Callable[[], float]
Model = TypeVar("Model")
T = TypeVar("T")


class HierarchicalFederation:
    """A federation: clients in baskets, gossip within them, two layers of aggregation, one privacy budget.

    Args:
        config: Everything about it; the defaults if None.
        runtime: ``"ray"``, or ``"local"`` for all roles in this process, without Ray.
        address: A Ray cluster's address. Without one, ``RAY_ADDRESS`` or a connection that exists already is
            used, else a cluster is started on this machine.
        name: Makes the actors outlive this driver, so that others can `attach` by this name.
        clock: Gives the time in seconds since the epoch.
        noise: Where privacy noise comes from. For tests only: anything but the operating system's entropy
            voids the privacy claim.
        take_over_ledger: Whether to take the ledger from another running federation, which can then charge
            and release nothing.
        operator_keypair: The operator's identity, whose public half is ``operator_key``: this driver signs
            new rosters and renewals with it. Without it an operator signs elsewhere (`sign_roster`,
            `renewal_message`).

    Raises:
        ConfigError: If the config's values cannot work together, or there is no durable place for the ledger
            of a finite budget.
        LedgerHeld: If another running federation holds the ledger.
        LedgerError: If the ledger cannot be used.
        UsageError: If a federation of this name is running already, or no cluster answers.
    """

    def __init__(
        self,
        config: HierarchicalFederationConfig | None = None,
        *,
        runtime: Literal["ray", "local"] = "ray",
        address: str | None = None,
        name: str | None = None,
        clock: Clock = time.time,
        noise: NoiseSource | None = None,
        take_over_ledger: bool = False,
        operator_keypair: IdentityKeyPair | None = None,
    ) -> None:
        check_opening(config, clock, noise)
        if not isinstance(take_over_ledger, bool):
            raise UsageError(f"take_over_ledger must be True or False, got {shown(take_over_ledger)}")
        config = with_absolute_places(config or HierarchicalFederationConfig())
        _check_operator(config, operator_keypair)
        check_unused(config)
        plan, told = make_plan(config), Told()
        told.tell(warnings_at_start(plan))
        called = federation_name(config, name)
        configured = configured_ledger(config, called)
        place = open_runtime(runtime, name, address)
        try:
            end_abandoned_opening(place)
            if place.names():
                raise UsageError(
                    f"federation {name!r} is running; use HierarchicalFederation.attach({name!r})"
                )
            ledger = configured or default_ledger(config, called, place.machines)
            node = None if is_ledger_url(ledger) else place.home
            identity = FederationIdentity(
                "",
                config,
                ledger,
                node,
                noise or SystemNoise(draw_block),
                called,
                private_ledger=configured is None,
            )
            self._begin(place, identity, plan, clock, told, owner=True, operator=operator_keypair)
            opened = self._driver.start(take_over_ledger)
            tell_ledger(opened, is_default=configured is None, is_named=called is not None)
        except BaseException as failure:
            self._undo(place, failure)
            raise

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        address: str | None = None,
        clock: Clock = time.time,
        operator_keypair: IdentityKeyPair | None = None,
    ) -> HierarchicalFederation:
        """Join a running federation that was made with a `name`, from another driver or a restarted one.

        Keys of clients stay with the driver that registered them: this one passes ``signature=`` for them.

        Raises:
            UsageError: If no federation of this name is running.
        """
        check_clock(clock)
        place = open_runtime("ray", check_federation_name(name), address)
        try:
            identity = place.card() if place.names() else None
            if not isinstance(identity, FederationIdentity):
                raise UsageError(f"no federation named {name!r} is running on this cluster")
            _check_operator(identity.config, operator_keypair)
            self = cls.__new__(cls)
            plan, told = make_plan(identity.config), Told()
            told.note(warnings_at_start(plan))
            self._begin(place, identity, plan, clock, told, owner=False, operator=operator_keypair)
        except BaseException:
            place.close()
            raise
        return self

    @classmethod
    def restore(
        cls,
        storage_path: str,
        *,
        runtime: Literal["ray", "local"] = "ray",
        address: str | None = None,
        clock: Clock = time.time,
        noise: NoiseSource | None = None,
        ledger_path: str | None = None,
        journal_path: str | None = None,
        take_over_ledger: bool = False,
        operator_keypair: IdentityKeyPair | None = None,
    ) -> HierarchicalFederation:
        """Go on with a federation whose roles have all ended, from what is stored of it (docs/resume.md).

        It has its members, round, releases, gossip states, budget and name again; `faults` says what is lost.
        Keys of clients are with who made them: registering a client again with its keypair hands it over.

        Args:
            storage_path: That of its configuration, or where it was moved to.
            ledger_path: Where the ledger was moved to, or its URL if that has a password.
            journal_path: Likewise, of the journals.

        Raises:
            StorageError: If nothing, something torn or another federation's is stored there.
            LedgerError: If its ledger cannot be used; one is never begun anew.
            UsageError: If the federation is running.
        """
        check_opening(None, clock, noise)
        check_place("storage_path", storage_path)
        check_place("ledger_path", ledger_path, is_needed=False)
        check_place("journal_path", journal_path, is_needed=False)
        record, config = stored_federation(storage_path)
        if ledger_path is not None:
            config = replace(config, ledger_path=ledger_path)
        if journal_path is not None:
            config = with_absolute_places(replace(config, journal_path=journal_path))
        _check_operator(config, operator_keypair)
        place = open_runtime(runtime, record.name, address)
        self = cls.__new__(cls)
        try:
            end_abandoned_opening(place)
            if place.names():
                raise UsageError(f"federation {record.name!r} is running; attach to it")
            ledger = configured_ledger(config, record.name) or record.ledger_path
            identity = FederationIdentity(
                record.federation_id,
                config,
                ledger,
                None if is_ledger_url(ledger) else place.home,
                noise or SystemNoise(draw_block),
                record.name,
                private_ledger=record.private_ledger and ledger_path is None,
                first_head=record.first_head,
            )
            plan, told = make_plan(config), Told()
            told.note(warnings_at_start(plan))
            self._begin(place, identity, plan, clock, told, owner=True, operator=operator_keypair)
            opened = self._driver.restore(take_over_ledger, (*record.continued, record.run))
            tell_ledger(opened, is_default=False, is_named=record.name is not None)
        except BaseException as failure:
            self._undo(place, failure)
            raise
        return self

    def _begin(
        self,
        runtime: Runtime,
        identity: FederationIdentity,
        plan: FederationPlan,
        clock: Clock,
        told: Told,
        *,
        owner: bool,
        operator: IdentityKeyPair | None = None,
    ) -> None:
        self.config = identity.config
        self.plan = plan
        self._runtime = runtime
        self._owner = owner
        self._closed = False
        self._driver = Driver(Supervisor(runtime, identity, plan), clock, told, operator)
        if not owner:
            self._driver.attach()

    def _undo(self, runtime: Runtime, failure: BaseException) -> None:
        """End the roles that a failed start has begun here; the caller raises `failure`."""
        self._closed = True
        try:
            if runtime.has_begun:
                self._driver.supervisor.stop()
        except Exception as error:
            failure.add_note(f"and what had started could not be ended: {error}")
        finally:
            runtime.close()

    def __enter__(self) -> HierarchicalFederation:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the federation; the driver that made it ends its actors, one that attached does not.

        Raises:
            ScarcityError: What an update of `submit_update_async` met. The federation is closed all the same;
                the notes name the updates that have no receipt (docs/drivers.md#receipts-that-come-later).
        """
        if not self._closed:
            try:
                self._driver.pipeline.close()
            finally:
                try:
                    if self._owner:
                        self._driver.supervisor.stop()
                finally:
                    self._closed = True
                    self._runtime.close()

    def terminate(self) -> None:
        """End the federation's actors, whichever driver made them. Its ledger stays.

        Raises:
            ScarcityError: As `close`; the actors are ended all the same.
        """
        if self._closed:
            raise UsageError("this federation is closed")
        try:
            self._driver.pipeline.close()
        finally:
            self._driver.supervisor.stop()

    def register_client(
        self,
        client_id: str,
        domain_id: str,
        features: ArrayLike | None = None,
        identity_keypair: IdentityKeyPair | None = None,
        *,
        num_examples: int | None = None,
        policy: SignedPolicy | None = None,
    ) -> str:
        """Add a client to a basket of its domain; the basket's id.

        With a keypair, every update of the client must be signed. This driver keeps the keypair and signs;
        other drivers pass ``signature=``. Only the public half leaves this driver.

        Under the rule ``weighted`` a client's weight is its number of examples, given here for all its
        updates or with a single one, and at most ``layer1.max_examples``; without a number it is 1. Where
        persons (records) are the unit of privacy, it is the number of these behind each update, and a client
        with a key states it with every update, so that it is signed.

        With a `policy`, the client's ceiling over all budget periods, the client is left out before a release
        would pass it, for good (docs/ceilings.md). It is kept in the ledger; only a stricter one under the
        same key replaces it.

        Raises:
            UsageError: For an invalid id, fewer persons than ``privacy.min_persons``, a client registered in
                another domain or with another key, or a policy that is forged, looser, or another client's.
        """
        if identity_keypair is not None and not isinstance(identity_keypair, IdentityKeyPair):
            raise UsageError(
                f"identity_keypair must be an IdentityKeyPair, got {type(identity_keypair).__name__}"
            )
        public = identity_keypair.public_bytes if identity_keypair is not None else None
        vector = None if features is None else numbers_of("features", features).astype(np.float64)
        client_id, domain_id = check_name("client id", client_id), check_name("domain id", domain_id)
        member = Member(client_id, domain_id, public, vector, num_examples=examples_of(num_examples))
        driver, privacy = self._open(), self.config.privacy
        if member.num_examples is not None and member.num_examples < (privacy.min_persons or 1):
            raise UsageError(
                f"client {client_id!r}: num_examples: {num_examples!r} is not accepted; at least "
                f"privacy.min_persons = {privacy.min_persons}, as each {privacy.unit.value} counts on so many"
            )
        driver.set_policies(policies_of([(client_id, public, policy)]))
        (basket_id,) = driver.operations.run(Directory.register, (member,), driver.client.now())
        if identity_keypair is not None:
            driver.keypairs[client_id] = identity_keypair
        return basket_id

    @collector_paused()
    def register_clients(
        self, clients: Sequence[tuple[str, str]], *, policies: Mapping[str, SignedPolicy] | None = None
    ) -> list[str]:
        """Add many clients, each with its domain, in few calls; their baskets.

        Args:
            policies: Signed ceilings by client; see `register_client`.
        """
        driver, members = self._open(), members_of(clients)
        asked = {} if policies is None else policies
        if not isinstance(asked, Mapping):
            raise UsageError(f"policies: {shown(asked)} is not accepted; signed policies by client")
        if strangers := sorted(asked.keys() - {member.client_id for member in members}):
            raise UsageError(f"policies: {shown(strangers)} are not among the clients")
        driver.set_policies(policies_of([(client_id, None, asked[client_id]) for client_id in sorted(asked)]))
        baskets = driver.operations.run(Directory.register, members, driver.client.now())
        return list(baskets)

    def unregister_client(self, client_id: str) -> bool:
        """Remove a client; what it has buffered is withdrawn. True if it was found."""
        driver, client_id = self._open(), id_of(client_id)
        found = driver.operations.run(Directory.unregister, client_id, driver.client.now())
        driver.keypairs.pop(client_id, None)
        return found

    def change_client_key(self, client_id: str, asked: KeyRequest) -> None:
        """Have a registered client sign with another key, as `KeyRequest.signed` asks; again changes nothing.

        What it has buffered stays, and so does its policy, which the old key has signed.

        Raises:
            UsageError: If it is not registered with a key, or one of both keys has not signed.
        """
        driver, client_id = self._open(), id_of(client_id)
        asked = instance_of("asked", asked, KeyRequest)
        driver.operations.run(Directory.change_key, client_id, asked, driver.client.now())
        driver.keypairs.pop(client_id, None)

    def site_ledger_head(self, client_id: str) -> Head | None:
        """How far the accountant knows a client's own ledger (`SiteLedger.heed`); None: it was never told."""
        client_id = id_of(client_id)
        return self._open().site_heads([client_id]).get(client_id)

    def note_site_ledger(self, client_id: str, told: Extension) -> bool:
        """Tell the accountant how far a client's own ledger is (`SiteLedger.extension`), durably.

        To be called with each row that is sent. What goes on where the ledger was known to be is noted.

        Returns:
            Whether it was; False for an older copy of the ledger, or another file.
        """
        return not self._open().note_site_ledgers({id_of(client_id): instance_of("told", told, Extension)})

    def split_basket(self, basket_id: str) -> tuple[str, str]:
        """Split a basket in two; its clients take their updates and gossip state along."""
        driver = self._open()
        return driver.operations.run(Directory.split, basket_of(basket_id), driver.client.now())

    def disband_basket(self, basket_id: str) -> None:
        """Close a basket; its clients go to others of their domain, with their updates and gossip state."""
        driver = self._open()
        driver.operations.run(Directory.disband, basket_of(basket_id), driver.client.now())

    def fit(
        self,
        workload: Workload[Model],
        *,
        rounds: int,
        clients_per_round: int | None = None,
        extra_clients: int = 0,
        deadline_seconds: float | None = None,
        clients_per_task: int = 1,
        optimizer: ServerOptimizer | None = None,
        averaging_decay: float | None = None,
        start: Model | None = None,
        stopping: EarlyStopping | None = None,
        evaluate_clients: bool = False,
        private_evaluation: PrivateEvaluation | None = None,
        adversary: Adversary | None = None,
        seed: int | None = None,
        site_ledgers: str | None = None,
        on_round: Callable[[RoundRecord], None] | None = None,
        on_progress: Callable[[TrainingProgress], None] | None = None,
        on_release: Callable[[Model, int], None] | None = None,
        resume: bool = False,
    ) -> FitResult[Model]:
        """Train a workload's model: its clients are registered, train where their data lies, and send.

        It ends early when the privacy budget is spent, and when `evaluate` raises after a release. Clients
        whose `num_persons` is below ``privacy.min_persons`` are left out of all rounds, and counted in the
        first.

        The local runtime trains one client after another and cannot interrupt one: what ends after the
        deadline is too late there, too.

        Args:
            workload: Model, clients and training (docs/workloads.md).
            rounds: At most.
            clients_per_round: Drawn anew each round; None: all. No privacy amplification is claimed for it.
            extra_clients: Drawn beside them; the round ends when `clients_per_round` have trained.
            deadline_seconds: Of a round's training: who has not answered is counted, and stopped. None: all
                are waited for.
            clients_per_task: Up to so many clients that need the same of a node share a task; for small ones.
            optimizer: Turns each release into the next model; adds it if None.
            averaging_decay: Hand out the models' `polynomial_average` of this decay; None: the last model.
            start: A model to go on from, such as the last one of a run before; None: `initial_model`.
            stopping: Keeps the best model, and ends the rounds without improvement.
            evaluate_clients: Have a round's clients run `evaluate_client` on its model. What they measure
                comes here without noise: **outside the privacy claim**.
            private_evaluation: Have a round's clients report metrics of `evaluate_client` on the model that
                they are handed, beside their updates: in the same secure sum, **inside the privacy claim**.
                The configuration must have its `meta_parameters`.
            adversary: Plays the lab's Byzantine clients. **Every update then comes to this process.**
            seed: Of the drawing of clients; ``seed`` of the configuration if None.
            site_ledgers: With ``privacy.noise: site``, a folder on each machine where clients train, in which
                each keeps a ledger of its own (`scarcity_ray_client.SiteLedger`); all need a `Client.policy`.
            on_round: Told of each round.
            on_progress: Told how far a round's training is, at each change and at least every ten seconds.
            on_release: Given the model that is handed out after a release, and its round, before it is
                evaluated. Save it there, and no later error or death loses what the budget has paid for.
            resume: Go on with the fit of a restored federation, on the same terms; `rounds` count from its
                beginning, and `on_round` is first told of those that were made. Clients whose update of the
                interrupted round is still there do not train again. Where none had begun, it begins.

        Raises:
            UsageError: For a workload or argument that cannot work, or a round in which every client failed;
                the text has the first one's traceback.
        """
        driver = self._open()
        with publishing(self, self._runtime, driver, on_round) as on_told:
            terms = FitTerms(
                rounds=rounds,
                clients_per_round=clients_per_round,
                extra_clients=extra_clients,
                deadline_seconds=deadline_seconds,
                clients_per_task=clients_per_task,
                optimizer=ServerSGD() if optimizer is None else optimizer,
                averaging_decay=averaging_decay,
                start=start,
                stopping=stopping,
                evaluate_clients=evaluate_clients,
                private_evaluation=private_evaluation,
                adversary=adversary,
                seed=self.config.seed if seed is None else seed,
                site_ledgers=site_ledgers,
                on_round=on_told,
                on_progress=on_progress,
                on_release=on_release,
                resume=resume,
            )
            return Fitting(driver, partial(TaskCohort, self._runtime.tasks()), workload, terms).run()

    def advance_round(self) -> int:
        """Move to the next round; its number.

        With ``auto_aggregate``, triggers are checked at each submission and, where gossip has a share of the
        budget, at the end of `run_gossip_round` and here. In that case the trigger "all members have sent"
        counts only after the round's gossip.
        """
        return self._open().advance_round()

    def submit_update(
        self,
        client_id: str,
        update: ArrayLike,
        round_id: int | None = None,
        *,
        signature: bytes | None = None,
        meta: Mapping[str, float] | None = None,
        sequence: int | None = None,
        num_examples: int | None = None,
    ) -> bool:
        """Submit a client's update; whether it was accepted. `offer_update` also says why not."""
        check_precision(self.config.privacy, (update,))
        batch = single_update(
            self.config.meta_parameters, client_id, update, round_id, signature, meta, sequence, num_examples
        )
        return self._open().submit(batch)[0].accepted

    def offer_update(
        self,
        client_id: str,
        update: ArrayLike,
        round_id: int | None = None,
        *,
        signature: bytes | None = None,
        meta: Mapping[str, float] | None = None,
        sequence: int | None = None,
        num_examples: int | None = None,
    ) -> Receipt:
        """Submit a client's update and get a receipt.

        Args:
            update: Finite numbers of shape (vector_dim,): an array of NumPy, pandas, PyTorch or JAX, a list.
            round_id: The round it was made for; the current one if None.
            signature: The client's, by `sign_update` over all arguments and `signing_scope`; needed if the
                client has a key that this driver does not hold.
            meta: Values of declared meta-parameters.
            sequence: The client's own number for this update, unique within the round.
            num_examples: Training examples behind this update; see `register_client`.

        Raises:
            UsageError: For a meta-parameter that was not declared.
            PrivacyBudgetExhausted: With ``strict``, once the budget is spent.
        """
        check_precision(self.config.privacy, (update,))
        batch = single_update(
            self.config.meta_parameters, client_id, update, round_id, signature, meta, sequence, num_examples
        )
        return self._open().submit(batch)[0]

    def submit_update_async(
        self,
        client_id: str,
        update: ArrayLike,
        round_id: int | None = None,
        *,
        signature: bytes | None = None,
        meta: Mapping[str, float] | None = None,
        sequence: int | None = None,
        num_examples: int | None = None,
    ) -> PendingReceipt:
        """Send a client's update without waiting for its receipt (docs/drivers.md#receipts-that-come-later).

        The update is copied. It is on its way when this returns, or goes with the next message, once the one
        before is answered: when this is called again, a receipt is asked for, or the federation is called in
        any other way, which waits for all receipts first. Until its receipt is here, an update is not
        acknowledged. Where 256 wait, or 32 MiB of them, the next one waits in this call.

        The arguments are those of `offer_update`.

        Raises:
            UsageError: For a meta-parameter that was not declared.
            ScarcityError: What an update before this one met; then this one is not taken.
        """
        check_precision(self.config.privacy, (update,))
        batch = single_update(
            self.config.meta_parameters, client_id, update, round_id, signature, meta, sequence, num_examples
        )
        if self._closed:
            raise UsageError("this federation is closed")
        return self._driver.submit_later(batch)

    def submit_updates(
        self,
        client_ids: Sequence[str],
        matrix: ArrayLike,
        round_id: int | None = None,
        *,
        signatures: Sequence[bytes | None] | None = None,
        meta: Sequence[Mapping[str, float] | None] | None = None,
        sequences: Sequence[int | None] | None = None,
        num_examples: Sequence[int | None] | None = None,
    ) -> list[Receipt]:
        """Submit many updates at once, which is fast; receipts as from `offer_update`, in order.

        Each row is judged by itself. The arguments are those of `offer_update`, one entry a row; None stands
        for a missing entry.

        Args:
            matrix: (n, vector_dim) numbers, fastest as one float32 array; or n rows of any kind.
            round_id: The same for all; the current round if None.

        Raises:
            UsageError: If the arguments' lengths differ, one is no sequence, or a meta-parameter was not
                declared.
        """
        check_precision(self.config.privacy, matrix if isinstance(matrix, list | tuple) else (matrix,))
        ranges = self.config.meta_parameters
        batch = batch_of(ranges, client_ids, matrix, round_id, signatures, meta, sequences, num_examples)
        return self._open().submit(batch)

    def signing_scope(self) -> SigningScope:
        """The scope that clients sign with their updates; see `sign_update`.

        It changes when the budget is renewed, and when a federation is opened again on the ledger.
        """
        return self._open().signing_scope()

    def prove_receipt(self, receipt: SignedReceipt) -> ReceiptProof:
        """What the baskets know of an accepted update, for ``scarcity-ray audit receipt`` (docs/receipts.md).

        They tell it for 16 rounds after its aggregate was used, or was not. Nothing changes by asking.

        Raises:
            UsageError: Without ``receipts: true``, or for anything but a receipt.
        """
        driver = self._open()
        if not isinstance(receipt, SignedReceipt):
            raise UsageError(f"receipt: {shown(receipt)} is not accepted; what Receipt.signed() gave")
        return driver.prove_receipt(receipt)

    def run_gossip_round(self) -> dict[str, int]:
        """One gossip round in all baskets; messages delivered, by domain.

        With ``auto_aggregate``, baskets that are due aggregate at its end.
        """
        return self._open().run_gossip()

    def maybe_aggregate(self) -> NDArray[np.float32] | None:
        """Aggregate where triggers say so; the newest global model if this driver has not had it yet.

        Without Layer 2 (``layer2.enabled: false``) baskets aggregate and None is returned.
        """
        return self._open().aggregate(force=False)

    def force_aggregate(self) -> NDArray[np.float32] | None:
        """As `maybe_aggregate`, whatever the triggers say.

        Each rule still needs its rows, and a release at least ``layer2.min_baskets`` baskets; with secure
        aggregation also two more than may be corrupt (c + 2, `plan.session`).
        """
        return self._open().aggregate(force=True)

    def waiting_for(self) -> WaitingFor:
        """Why there is no (newer) global model, as data, and as ``str()`` in words.

        `get_stats` has the same under ``waiting_for``, as plain data.
        """
        return self._open().waiting_for()

    def get_global_model(self) -> NDArray[np.float32] | None:
        """The last release; None if there is none yet."""
        model = self.get_global_meta_model()
        return None if model is None else model.aggregate

    def get_global_meta_model(self) -> GlobalMetaModel | None:
        """The last release with all that is known of it."""
        return self._open().latest_release()

    def get_basket_model(self, basket_id: str) -> NDArray[np.float32] | None:
        """A basket's latest aggregate; None if it has none yet. It lies outside the privacy claim.

        Raises:
            UsageError: With ``expose_basket_models: false``, or for a name that stands for no one basket.
        """
        model = self.get_basket_meta_model(basket_id)
        return None if model is None else model.aggregate

    def get_basket_meta_model(self, basket_id: str) -> BasketModel | None:
        """A basket's latest aggregate with all that is known of it."""
        client = self._open().client
        place = client.call(DIRECTORY, Directory.resolve, basket_of(basket_id))
        return client.call(basket_actor(place.slot), BasketHost.basket_model, place.basket_id)

    def get_local_states(self, client_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The clients' own states after gossip, which they train on from where there is no Layer 2.

        A state is the client's last update, clipped and mixed with vectors that its peers released. It
        reveals no more of the peers than these vectors do, but all of the client's own update. Clients
        without a state (no update yet, or lost with the basket's actor) are left out.

        Raises:
            UsageError: With Layer 2, where clients train on from the global model.
        """
        return self._open().local_states(ids_of(client_ids))

    def get_meta_params(self) -> dict[str, float]:
        """The learned meta-parameters, with ``clip_norm`` if it adapts; empty before the first release."""
        model = self.get_global_meta_model()
        if model is None:
            return {}
        adapted = {} if model.clip_norm is None else {"clip_norm": model.clip_norm}
        return {**model.meta_params, **adapted}

    def get_client(self, client_id: str) -> ClientInfo | None:
        """What is known of a client."""
        client = self._open().report_activity()
        return client.call(DIRECTORY, Directory.client, id_of(client_id), client.now())

    def get_clients(self, limit: int = 1000) -> list[ClientInfo]:
        """What is known of up to `limit` clients, the first by id, without their features."""
        driver = self._open()
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise UsageError(f"limit: {shown(limit)} is not accepted; an integer from 1")
        client = driver.report_activity()
        return client.call(DIRECTORY, Directory.clients, limit, client.now())

    def get_ceilings(self, client_ids: Sequence[str]) -> dict[str, CeilingStanding]:
        """Where those of the clients stand that have a ceiling of their own (docs/ceilings.md)."""
        client = self._open().client
        return client.call(ACCOUNTANT, Accountant.ceilings_of, tuple(ids_of(client_ids)), client.now())

    def get_basket(self, basket_id: str) -> BasketInfo | None:
        """What is known of a basket."""
        client = self._open().report_activity()
        return client.call(DIRECTORY, Directory.basket, id_of(basket_id), client.now())

    def get_stale_baskets(self, threshold: float | None = None) -> list[str]:
        """Baskets without activity for `threshold` seconds (``basket.stale_threshold`` by default)."""
        idle = None if threshold is None else seconds_of("threshold", threshold)
        client = self._open().report_activity()
        return client.call(DIRECTORY, Directory.stale_baskets, idle, client.now())

    def get_privacy_budget(self, client_id: str | None = None) -> tuple[float, float]:
        """Remaining (epsilon, delta); (0, 0) once the next release does not fit.

        Args:
            client_id: The client whose gossip is counted beside the releases; None: the one that has spent
                most, which is the federation's claim.

        Raises:
            UsageError: For a client that neither is registered nor was ever charged.
        """
        if client_id is None:
            status = self._open().budget()
            return status.remaining_epsilon, status.remaining_delta
        client = self._open().client
        name, now = id_of(client_id), client.now()
        if client.call(DIRECTORY, Directory.client, name, now) is None and not client.call(
            ACCOUNTANT, Accountant.was_charged, name, now
        ):
            raise UsageError(f"client_id: {shown(client_id)} neither is registered nor was ever charged")
        return client.call(ACCOUNTANT, Accountant.remaining, name, now)

    def renew_budget(
        self, total_epsilon: float, total_delta: float, *, operator: str, signature: bytes | None = None
    ) -> None:
        """Open a new budget period: the operator's act, recorded in the ledger under the operator's name.

        Args:
            total_epsilon: The new period's, as `total_delta` is.
            operator: The name of who decides it.
            signature: The operator's, over `renewal_message`; needed if ``operator_key`` is configured, and
                made here if this driver holds the operator's keypair. Without ``operator_key`` everybody who
                can reach the Ray cluster can renew.

        Raises:
            UsageError: For impossible totals, an operator without a name, or a missing or wrong signature.
        """
        check_name("operator", operator)
        held = self._open().operator
        if signature is None and held is not None:
            signature = held.sign(self.renewal_message(total_epsilon, total_delta, operator=operator))
        call_id = f"renewal/{uuid.uuid4().hex}"
        self._open().renew_budget(total_epsilon, total_delta, operator, call_id, signature_of(signature))

    def renewal_message(self, total_epsilon: float, total_delta: float, *, operator: str) -> bytes:
        """What the operator signs to renew the budget with these totals in the current period."""
        check_name("operator", operator)
        epsilon, delta = number_of("total_epsilon", total_epsilon), number_of("total_delta", total_delta)
        return renewal_message(self.federation_id, self._open().budget().period, epsilon, delta, operator)

    def get_roster(self) -> Roster | None:
        """The roster that waits for a signature, else the newest; None before the first basket."""
        registry = self._open().registry()
        return registry.draft or registry.newest

    def sign_roster(self, signed: Roster | IdentityKeyPair) -> None:
        """Adopt a roster that the operator has signed, or sign the waiting one with the operator's keypair.

        Raises:
            UsageError: If none waits, or it is not the next one, or not signed by ``operator_key``.
        """
        driver = self._open()
        if isinstance(signed, IdentityKeyPair):
            draft = driver.registry().draft
            if draft is None:
                raise UsageError("no roster waits for a signature")
            signed = draft.signed(signed)
        driver.adopt_roster(instance_of("signed", signed, Roster))

    def get_stats(self) -> dict[str, Any]:
        """Health (docs/specification.md#models-and-statistics), and what was refused or lost.

        ``waiting_for`` says what the next global model lacks, ``warnings`` what this driver was warned of.
        ``clipping``, ``trust`` and ``outliers`` of each basket are computed from private values, lie outside
        the privacy claim, and are there with ``expose_basket_models`` only.
        """
        return self._open().stats()

    def publish_metrics(self, samples: Iterable[Sample]) -> None:
        """Give metrics to Ray, whose own endpoints serve them; nothing where there is no Ray. See `fit`."""
        self._open()
        self._runtime.publish(samples)

    def map_tasks(
        self, function: Callable[..., Any], items: Sequence[Any], shared: object | None = None
    ) -> list[Any]:
        """``[function(item, shared) for item in items]`` as tasks of the runtime; `shared` is stored once."""
        return self.tasks_beside(function, items, shared).results()

    def tasks_beside(
        self, function: Callable[..., T], items: Sequence[Any], shared: object | None = None
    ) -> TasksBeside[T]:
        """As `map_tasks`, of which some are made while the caller does other work (`TasksBeside.go_on`)."""
        self._open()
        if not callable(function):
            raise UsageError(f"function must be callable, got {shown(function)}")
        return TasksBeside(self._runtime.compute, function, items, shared)

    @property
    def faults(self) -> tuple[str, ...]:
        """What was lost with roles that died, oldest first, whichever driver noticed (`FaultWarning`)."""
        if not self._closed:
            self._driver.pipeline.go_on()  # What they took is named if its receipt is here.
            self._driver.client.hear_faults()
        return tuple(self._driver.client.faults)

    @property
    def lost_updates(self) -> tuple[tuple[str, int], ...]:
        """Accepted updates of this driver that died with basket actors: who must send again, and the round.

        Nothing is in it where a journal brought them back (``journal_path``, docs/faults.md).
        """
        return tuple(self._driver.supervisor.acknowledged.lost)

    @property
    def federation_id(self) -> str:
        """The federation's random id, which is made with its ledger and kept in it."""
        return self._driver.supervisor.identity.federation_id

    def _open(self) -> Driver:
        if self._closed:
            raise UsageError("this federation is closed")
        if self._driver.pipeline.is_used:
            self._driver.pipeline.drain()
        return self._driver


def _check_operator(config: HierarchicalFederationConfig, operator: IdentityKeyPair | None) -> None:
    if operator is None:
        return
    if not isinstance(operator, IdentityKeyPair):
        raise UsageError(f"operator_keypair must be an IdentityKeyPair, got {type(operator).__name__}")
    if config.operator_key != operator.public_bytes.hex():
        raise UsageError(
            f"operator_keypair is not that of operator_key = {config.operator_key!r}; its "
            f"public half is {operator.public_bytes.hex()!r}"
        )
