"""The basket actor: a share of the federation's baskets, and their side of everything.

It starts Layer 1's tasks, charges gossip to the accountant before anything is drawn, and keeps each basket's
keys. It calls the accountant and nobody else, so no two roles ever wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scarcity_ray.buffer import Receipt, Rejection
from scarcity_ray.layers.layer1 import Layer1Aggregator
from scarcity_ray.layers.models import BasketModel, GlobalMetaModel
from scarcity_ray.plan import BasketFacts, FederationPlan
from scarcity_ray.privacy.noise import NoiseSource
from scarcity_ray.roles.basket import Basket, MemberCarry
from scarcity_ray.roles.charging import BasketCharges, charged_gossip
from scarcity_ray.roles.handles import Compute, Peers, basket_actor
from scarcity_ray.roles.last_release import LastRelease
from scarcity_ray.roles.layer1_tasks import blocks_where_faster
from scarcity_ray.roles.local_states import Row
from scarcity_ray.roles.messages import (
    ActivityReport,
    Admission,
    BasketPlace,
    BasketReport,
    ConductReport,
    Layer1Outcome,
    SubmissionResult,
)
from scarcity_ray.roles.session_host import SessionHost
from scarcity_ray.roles.standings import merged_activity
from scarcity_ray.roles.submission import SubmissionBatch
from scarcity_ray.roles.waiting import Backlog
from scarcity_ray.updates import read_rows


class BasketHost(SessionHost):
    """Several baskets as a role.

    Args:
        slot: Its number among the basket actors.
        plan: The federation's numbers.
        federation_id: The federation.
        peers: The other roles.
        compute: Where Layer 1's tasks run.
        noise: Where the noise of gossip and of the baskets' shares comes from.
        round_id: Current round.
        read_only: Whether the budget is spent.
        admissions: Baskets and members that it has from the start, coming back after it was lost.
        latest: The last release, coming back after it was lost.
        run: Random, of the federation as it was begun.
        budget_period: The ledger's.
    """

    def __init__(
        self,
        slot: int,
        plan: FederationPlan,
        federation_id: str,
        peers: Peers,
        compute: Compute,
        noise: NoiseSource,
        round_id: int = 0,
        read_only: bool = False,
        admissions: Sequence[Admission] = (),
        latest: GlobalMetaModel | None = None,
        run: int = 0,
        budget_period: int = 0,
    ) -> None:
        super().__init__(plan, {}, noise, BasketCharges(slot, peers), LastRelease(plan, latest))
        self._slot = slot
        self._federation_id = federation_id
        self._noise = noise
        self._round_id = round_id
        self._read_only = read_only
        self._run = run
        self._budget_period = budget_period
        self._blocks_of = blocks_where_faster(compute)
        self._closed: BasketReport | None = None
        self._clip()
        self.admit(admissions)

    def admit(self, admissions: Sequence[Admission]) -> dict[str, bytes]:
        """Open baskets that are not here yet, take in members; the baskets' identity keys.

        Members that are here already keep what they have.
        """
        for admission in admissions:
            basket = self._baskets.get(admission.place.basket_id) or self._open(admission.place)
            for member in admission.members:
                basket.admit(member)
        return {a.place.basket_id: self._baskets[a.place.basket_id].identity.public_bytes for a in admissions}

    def dismiss(self, basket_id: str, client_id: str) -> int:
        """Let a client go; how many buffered updates were withdrawn."""
        basket = self._baskets.get(basket_id)
        return basket.dismiss(client_id) if basket is not None else 0

    def take(self, basket_id: str, client_ids: Sequence[str]) -> tuple[MemberCarry, ...]:
        """Hand over what belongs to clients that move, or that left and came back elsewhere."""
        basket = self._baskets.get(basket_id)
        return tuple(basket.take(client_id) for client_id in client_ids) if basket is not None else ()

    def put(self, basket_id: str, carries: Sequence[MemberCarry]) -> None:
        """Take over what belongs to clients that are admitted here."""
        for carry in carries:
            self._baskets[basket_id].put(carry)

    def close_basket(self, basket_id: str) -> ActivityReport:
        """Forget a basket that is no longer live, but not what it counted; what it had not told yet."""
        basket = self._baskets.pop(basket_id, None)
        if basket is None:
            return ActivityReport()
        self._closed = basket.report().closed(BasketFacts("", "", 0), self._closed)
        return basket.take_activity()

    def submit(self, baskets: Sequence[str], batch: SubmissionBatch, now: float) -> SubmissionResult:
        """Judge a batch of updates, each for the basket at the same position.

        An update for a basket that is not here is answered as one of an unknown client: its sender's driver
        has an old address.
        """
        self._sessions.tick(now)
        receipts = []
        rows = read_rows(batch.rows, self._plan.config.vector_dim)
        for index, basket_id in enumerate(baskets):
            basket = self._baskets.get(basket_id)
            if basket is None:
                receipts.append(Receipt(False, Rejection.UNKNOWN_CLIENT, None, self._round_id))
            else:
                receipts.append(basket.submit(batch[index], self._read_only, now, rows[index]))
        here = sorted(set(baskets) & set(self._baskets))
        due = (b for b in here if self._baskets[b].due(now, submitting=True) is not None)
        return SubmissionResult(tuple(receipts), tuple(due))

    def run_layer1(
        self, basket_ids: Sequence[str] | None, force: bool, now: float
    ) -> tuple[Layer1Outcome, ...]:
        """Layer 1 in the given baskets (all by default) that are due, or that have enough if forced."""
        self._sessions.tick(now)
        if self._read_only:
            return ()
        chosen = sorted(self._baskets if basket_ids is None else set(basket_ids) & set(self._baskets))
        return tuple(self._baskets[b].layer1(self._aggregator, force, now) for b in chosen)

    def run_gossip(self, now: float) -> dict[str, int]:
        """One gossip round in every basket; delivered messages a basket. See `charged_gossip`."""
        self._sessions.tick(now)
        if self._read_only or self._plan.gossip_share == 0.0:
            return dict.fromkeys(sorted(self._baskets), 0)
        return charged_gossip(self._baskets, self._plan.gossip, self._charges, self._round_id, now)

    def advance_round(self, round_id: int) -> None:
        """Move to a later round."""
        self._round_id = round_id
        for basket in self._baskets.values():
            basket.advance_round(round_id)

    def set_read_only(self, read_only: bool) -> None:
        """Refuse updates, gossip and aggregation from now on, or no longer."""
        self._read_only = read_only

    def set_budget_period(self, budget_period: int) -> None:
        """Take updates that are signed for this period of the budget, and no others, from now on."""
        self._budget_period = budget_period
        for basket in self._baskets.values():
            basket.scope = replace(basket.scope, budget_period=budget_period)

    def local_states(self, baskets: Sequence[str], client_ids: Sequence[str]) -> dict[str, Row]:
        """The local states of clients, each of the basket at the same position; those that there are."""
        found: dict[str, Row] = {}
        for basket_id, client_id in zip(baskets, client_ids, strict=True):
            basket = self._baskets.get(basket_id)
            state = None if basket is None else basket.local_state(client_id)
            if state is not None:
                found[client_id] = state
        return found

    def basket_model(self, basket_id: str) -> BasketModel | None:
        """A basket's latest aggregate."""
        return self._baskets[basket_id].latest.model if basket_id in self._baskets else None

    def adopt(self, model: GlobalMetaModel) -> None:
        """Take a release that is distributed to the baskets, unless a later one is here already."""
        if self._last.adopt(model):
            self._clip()

    def last_global(self) -> GlobalMetaModel | None:
        """The last release that was distributed here."""
        return self._last.model

    def reports(self, now: float) -> dict[str, BasketReport]:
        """Counts and public facts of every basket; under this actor's name, what closed baskets counted."""
        self._sessions.tick(now)
        reports = {basket_id: basket.report() for basket_id, basket in sorted(self._baskets.items())}
        return reports if self._closed is None else {basket_actor(self._slot): self._closed, **reports}

    def backlogs(self, now: float) -> tuple[Backlog, ...]:
        """What every basket has for its next aggregate; asking changes nothing."""
        return tuple(basket.backlog(now) for _, basket in sorted(self._baskets.items()))

    def conduct(self) -> dict[str, ConductReport]:
        """How all members stand to their basket's aggregates; nothing where basket models are private."""
        if not self._plan.config.expose_basket_models:
            return {}
        return {basket_id: basket.conduct() for basket_id, basket in sorted(self._baskets.items())}

    def take_activity(self) -> ActivityReport:
        """What was seen since this was last asked."""
        return merged_activity([basket.take_activity() for _, basket in sorted(self._baskets.items())])

    def admissions(self) -> tuple[int, tuple[Admission, ...]]:
        """Round and members with their trust, for a directory that came back empty."""
        return self._round_id, tuple(
            Admission(
                BasketPlace(basket_id, basket.domain_id, self._slot, basket.identity.public_bytes),
                basket.known_members(),
            )
            for basket_id, basket in sorted(self._baskets.items())
        )

    def _clip(self) -> None:
        layer1 = self._plan.at(self._last.clip_norm).config.layer1
        self._aggregator = Layer1Aggregator(layer1, blocks_of=self._blocks_of)
        for basket in self._baskets.values():
            basket.states.clip_norm = self._last.clip_norm

    def _open(self, place: BasketPlace) -> Basket:
        basket = Basket(
            place.basket_id,
            place.domain_id,
            self._plan,
            self._federation_id,
            self._noise,
            self._round_id,
            self._run,
            self._budget_period,
        )
        basket.states.clip_norm = self._last.clip_norm
        self._baskets[place.basket_id] = basket
        return basket
