"""What a site is told of the round and of itself, and what it tells of the round's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from scarcity_ray_client.accounting.modes import Accounting
from scarcity_ray_client.errors import MessageRefused, UsageError
from scarcity_ray_client.private_evaluation import PrivateEvaluation
from scarcity_ray_client.site_ledger import HASH_BYTES, Head
from scarcity_ray_client.site_noise import SiteNoise
from scarcity_ray_client.updates import SigningScope
from scarcity_ray_client.wire.fields import Fields, written

MODEL_VERSION, MODEL_ROUND = "Scarcity-Model-Version", "Scarcity-Model-Round"


class RoundState(StrEnum):
    """What a site does now: train, wait, or end."""

    OPEN = "open"
    WAITING = "waiting"
    """No round after the one asked for has begun yet."""
    PAUSED = "paused"
    FINISHED = "finished"
    STOPPED = "stopped"


@dataclass(frozen=True)
class ModelFacts:
    """The model that a round trains from; `sha256` is hexadecimal, of its float32 bytes."""

    version: int
    round_id: int
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class RoundAnswer:
    """The round, as one client is told of it.

    Attributes:
        state: What to do.
        reason: Why it waits, pauses or ended; empty if it is open.
        round_id: The newest; the one to train in if it is open.
        scope: What a signature of an update states.
        vector_dim: d.
        unit: ``client``, ``person`` or ``record``.
        accounting: In which rows' costs add up.
        model: None before there is one.
        closes_in_seconds: None: it waits for all.
        meta_parameters: Least and greatest value by name.
        private_evaluation: What clients measure and report in ``meta``; None: nothing.
        noise: With it the client noises its row; None under central noise.
        row_mu: What a row costs its sender, as `SiteLedger.send` takes it; None: it is not stated.
        clip_norm: To which Layer 1 clips.
        min_persons: None where a client is the unit.
        site_ledger: How far the accountant knows this client's own ledger; None: not at all.
        asks_evaluation: Whether clients are to measure the round's model on their own data and tell.
    """

    state: RoundState
    reason: str
    round_id: int
    scope: SigningScope
    vector_dim: int
    unit: str
    accounting: Accounting
    model: ModelFacts | None = None
    closes_in_seconds: float | None = None
    meta_parameters: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    private_evaluation: PrivateEvaluation | None = None
    noise: SiteNoise | None = None
    row_mu: float | None = None
    clip_norm: float | None = None
    min_persons: int | None = None
    site_ledger: Head | None = None
    asks_evaluation: bool = False

    def to_json(self) -> bytes:
        """As an answer's body."""
        model, asked, noise, head = self.model, self.private_evaluation, self.noise, self.site_ledger
        return written(
            state=self.state.value,
            reason=self.reason,
            round_id=self.round_id,
            scope={
                "federation_id": self.scope.federation_id,
                "budget_period": self.scope.budget_period,
                "run": str(self.scope.run),
            },
            vector_dim=self.vector_dim,
            unit=self.unit,
            accounting=self.accounting.value,
            model=None if model is None else vars(model),
            closes_in_seconds=self.closes_in_seconds,
            meta_parameters={name: list(ends) for name, ends in self.meta_parameters.items()},
            private_evaluation=None
            if asked is None
            else {
                "metrics": {name: list(ends) for name, ends in asked.metrics.items()},
                "max_examples": asked.max_examples,
            },
            noise=None if noise is None else vars(noise),
            row_mu=self.row_mu,
            clip_norm=self.clip_norm,
            min_persons=self.min_persons,
            site_ledger=None if head is None else {"num_rows": head.num_rows, "head": head.head.hex()},
            asks_evaluation=self.asks_evaluation,
        )

    @classmethod
    def from_json(cls, data: bytes) -> RoundAnswer:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = Fields("round", data)
        scope = given.inner("scope")
        return given.end(
            cls(
                given.one_of("state", RoundState),
                given.text("reason"),
                given.count("round_id"),
                scope.end(
                    SigningScope(
                        scope.text("federation_id"), scope.count("budget_period"), scope.digits("run")
                    )
                ),
                given.count("vector_dim"),
                given.text("unit"),
                given.one_of("accounting", Accounting),
                given.maybe("model", lambda name: _model_facts(given.inner(name))),
                given.maybe("closes_in_seconds", given.number),
                given.ranges("meta_parameters"),
                given.maybe("private_evaluation", lambda name: _evaluation(given.inner(name))),
                given.maybe("noise", lambda name: _site_noise(given.inner(name))),
                given.maybe("row_mu", given.number),
                given.maybe("clip_norm", given.number),
                given.maybe("min_persons", given.count),
                given.maybe("site_ledger", lambda name: _head(given.inner(name))),
                given.flag("asks_evaluation"),
            )
        )


@dataclass(frozen=True)
class EvaluationRequest:
    """A client's metrics of a model on its own data, and on how many examples; outside the privacy claim."""

    metrics: Mapping[str, float]
    num_examples: int

    def to_json(self) -> bytes:
        """As a request's body."""
        return written(metrics=dict(sorted(self.metrics.items())), num_examples=self.num_examples)

    @classmethod
    def from_json(cls, data: bytes) -> EvaluationRequest:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = Fields("evaluation", data)
        return given.end(cls(given.numbers("metrics"), given.count("num_examples")))


@dataclass(frozen=True)
class RoundFate:
    """What became of a client's update in a round: ``accepted``, or why not."""

    round_id: int
    fate: str


@dataclass(frozen=True)
class MeAnswer:
    """What a gateway knows of the client that asks.

    Attributes:
        certificate_expires: Unix seconds; None where TLS ends at a proxy.
        epsilon_left: Of the federation's budget, at `delta`; None: it claims nothing.
        ceiling: Epsilon of the client's own policy; None: it has none.
        last_rounds: Oldest first.
    """

    client_id: str
    domain_id: str
    basket_id: str | None
    certificate_expires: int | None
    epsilon_left: float | None
    delta: float | None
    ceiling: float | None = None
    last_rounds: tuple[RoundFate, ...] = ()

    def to_json(self) -> bytes:
        """As an answer's body."""
        return written(**{**vars(self), "last_rounds": [vars(one) for one in self.last_rounds]})

    @classmethod
    def from_json(cls, data: bytes) -> MeAnswer:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = Fields("client's state", data)
        rounds = given.inners("last_rounds")
        return given.end(
            cls(
                given.text("client_id"),
                given.text("domain_id"),
                given.maybe("basket_id", given.text),
                given.maybe("certificate_expires", given.count),
                given.maybe("epsilon_left", given.number),
                given.maybe("delta", given.number),
                given.maybe("ceiling", given.number),
                tuple(one.end(RoundFate(one.count("round_id"), one.text("fate"))) for one in rounds),
            )
        )


def _model_facts(given: Fields) -> ModelFacts:
    return given.end(
        ModelFacts(
            given.count("version"),
            given.count("round_id"),
            given.hexadecimal("sha256", 32).hex(),
            given.count("num_bytes"),
        )
    )


def _site_noise(given: Fields) -> SiteNoise:
    told = (
        given.number("mu"),
        given.number("clip_norm"),
        given.count("min_persons"),
        given.count("dimension"),
        given.flag("is_discrete"),
    )
    try:
        return given.end(SiteNoise(*told))
    except UsageError as error:
        raise MessageRefused("foreign", f"the round's noise: {error}") from None


def _evaluation(given: Fields) -> PrivateEvaluation:
    metrics, most = given.ranges("metrics"), given.count("max_examples")
    try:
        return given.end(PrivateEvaluation(metrics, most))
    except UsageError as error:
        raise MessageRefused("foreign", f"the round's private_evaluation: {error}") from None


def _head(given: Fields) -> Head:
    return given.end(Head(given.count("num_rows"), given.hexadecimal("head", HASH_BYTES)))
