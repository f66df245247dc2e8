"""The terms of a secure aggregation session: what its parties are told, and how each of them checks it.

All numbers of a session follow from the facts that the baskets have signed, the roster and the plan. The
global aggregator computes them to propose a session. Every basket actor computes them again, with the same
function, and refuses a session with other numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.actors import signed_facts
from scarcity_ray.actors.signed_facts import Occasion, SignedFacts
from scarcity_ray.errors import ConfigError, ProtocolViolation
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.plan import BasketFacts, FederationPlan, ReleasePlan, SessionShape, session_shape
from scarcity_ray.privacy.schedule import Step
from scarcity_ray.secagg import Roster, SessionContext


@dataclass(frozen=True)
class SessionTerms:
    """What every party of a session is told before it takes part.

    Attributes:
        context: Parties, ring, threshold and the hash of what they agree on.
        release: Weights and scale.
        facts: Each party's public facts as it has signed them; all numbers follow from these.
        masked: Whether inputs are masked; if not, they are added up as they are.
    """

    context: SessionContext
    release: ReleasePlan
    facts: Mapping[str, SignedFacts]
    masked: bool

    @property
    def session_id(self) -> str:
        """The session's id in hexadecimal."""
        return self.context.session_id.hex()

    @property
    def charge_id(self) -> str:
        """The name of this attempt's charge; the digest distinguishes it from any other attempt.

        Under a schedule of noise it names the release's step, which the digest covers too.
        """
        step = self.release.step
        name = f"layer2/{self.session_id}/{self.context.digest().hex()}"
        return name if step is None else f"{name}/step {step.number}"


class LastRelease:
    """The newest release that an actor knows of, and what follows from it.

    Guarantees:
        an_earlier_release_never_replaces_a_later_one: By its version.
        a_clip_norm_that_the_config_does_not_allow_is_never_adopted
    """

    def __init__(self, plan: FederationPlan, model: GlobalMetaModel | None = None) -> None:
        self._plan = plan
        self.model = model

    @property
    def version(self) -> int:
        """Its version; 0 for none."""
        return self.model.version if self.model is not None else 0

    @property
    def ledger_head(self) -> str:
        """The ledger's head at that release; empty before the first, and if releases are not distributed."""
        if self.model is None or not self._plan.config.layer2.distribute_to_baskets:
            return ""
        return self.model.ledger_head

    @property
    def clip_norm(self) -> float:
        """The clip norm of new rows; Layer 1 clips older ones again."""
        if self.model is None or self.model.clip_norm is None:
            return self._plan.config.layer1.clip_norm
        return self.model.clip_norm

    @property
    def aggregate(self) -> NDArray[np.float32]:
        """The released vector; empty before the first."""
        return np.zeros(0, np.float32) if self.model is None else self.model.aggregate

    @property
    def plan(self) -> FederationPlan:
        """The federation's numbers at that clip norm."""
        return self._plan.at(self.clip_norm)

    def adopt(self, model: GlobalMetaModel) -> bool:
        """Adopt a release, unless a later one is here already; whether it was adopted.

        Raises:
            ProtocolViolation: If it cannot be this federation's; nothing changes then.
        """
        if type(model) is not GlobalMetaModel or type(model.version) is not int:
            raise ProtocolViolation(f"this is no release: {type(model).__name__}")
        numbers, d = model.aggregate, self._plan.config.vector_dim
        is_vector = isinstance(numbers, np.ndarray) and numbers.dtype == np.float32 and numbers.shape == (d,)
        if not (is_vector and np.isfinite(numbers).all() and isinstance(model.ledger_head, str)):
            raise ProtocolViolation(
                f"release {model.version} is no {d} finite float32, or has no ledger's head"
            )
        clip_norm = model.clip_norm
        if clip_norm is not None:
            adaptive = self._plan.config.layer2.adaptive_clipping
            if not (adaptive and type(clip_norm) is float and self._plan.may_clip_to(clip_norm)):
                raise ProtocolViolation(
                    f"release {model.version} tells a clip norm that is none here: {clip_norm!r}"
                )
        newer = model.version >= self.version
        if newer:
            self.model = model
        return newer

    def agreement_hash(self, release: ReleasePlan) -> bytes | None:
        """A session's hash as this actor computes it; None if releases are not distributed."""
        if not self._plan.config.layer2.distribute_to_baskets:
            return None
        return agreement_hash(self.aggregate, replace(release, clip_norm=self.clip_norm))


def agreement_hash(latest: NDArray[np.float32], release: ReleasePlan) -> bytes:
    """SHA-256 of what all parties must agree on before they mask: the last model and the session's numbers.

    A party refuses a session with another hash than its own. Parties with different hashes derive different
    masks, so that nothing unmasks.

    Args:
        latest: The last release, float32, shape (d,); empty before the first.
        release: The session's numbers, as the party was told them.
    """
    digest = hashlib.sha256(latest.tobytes())
    for name, value in sorted(asdict(release).items()):
        digest.update(repr((name, sorted(value.items()) if isinstance(value, dict) else value)).encode())
    return digest.digest()


def session_numbers(
    facts: Sequence[BasketFacts], plan: FederationPlan, registered: Collection[str]
) -> tuple[ReleasePlan, SessionShape]:
    """The release that follows from the parties' facts, and the shape of its session.

    Without secure aggregation no basket is counted as corrupt.

    Raises:
        ConfigError: If no release follows from them.
    """
    unsigned = sum(party.basket_id not in registered for party in facts)
    release = plan.release(facts, registered=len(registered), unsigned=unsigned)
    layer2 = plan.config.layer2
    if not layer2.use_secure_aggregation:
        layer2 = replace(layer2, assumed_corrupt_fraction=0.0)
    shape = session_shape(
        layer2, len(facts), registered=len(registered), idle=release.num_idle, unsigned=unsigned
    )
    return release, shape


def check_types(terms: object) -> None:
    """Refuse terms that are not exactly of the right types, before any of their methods is called.

    Raises:
        ProtocolViolation: Names what is not.
    """
    if type(terms) is not SessionTerms:
        raise ProtocolViolation(f"these are no terms of a session: {type(terms).__name__}")
    for name, wanted in (("context", SessionContext), ("release", ReleasePlan), ("facts", dict)):
        if type(getattr(terms, name)) is not wanted:
            raise ProtocolViolation(f"the session's {name} is no {wanted.__name__}")
    if terms.masked is not True:
        raise ProtocolViolation("the session's inputs are not to be masked")


def least_weighted(terms: SessionTerms, plan: FederationPlan, roster: Roster | None, ledger_head: str) -> int:
    """Check a session's numbers; the number of parties of weight that its sum must have at least.

    The global aggregator is trusted for nothing: the registered baskets come from the roster, and all numbers
    are computed from the facts that the parties signed.

    Raises:
        ProtocolViolation: If the session's numbers do not follow from the roster and the signed facts.
    """
    context = terms.context
    ids = [party.party_id for party in context.parties]
    step = terms.release.step
    if plan.schedule.is_constant is not (step is None):
        raise ProtocolViolation("the session's step is not one of this federation's schedule of noise")
    if step is not None and not (type(step) is Step and step.is_formed):
        raise ProtocolViolation("the session's step is malformed")
    plan = plan.at_step(step)
    if roster is None or context.roster != roster.digest():
        raise ProtocolViolation("the session is about another roster than this basket actor has pinned")
    occasion = Occasion.of(context, ledger_head)
    if sorted(terms.facts) != ids:
        raise ProtocolViolation("the session does not state the facts of exactly its parties")
    for party in context.parties:
        stated = terms.facts[party.party_id]
        if refusal := signed_facts.refusal(party.party_id, party.identity_public, stated, occasion, plan):
            raise ProtocolViolation(refusal)
    if signed_facts.facts_digest(terms.facts, occasion) != context.facts:
        raise ProtocolViolation("the facts are not those that the session is bound to")
    try:
        release, shape = session_numbers([terms.facts[party].facts for party in ids], plan, roster.keys())
    except ConfigError as error:
        raise ProtocolViolation(f"no release follows from the facts: {error}") from None
    if not terms.release.agrees_with(release):
        raise ProtocolViolation("the release's numbers do not follow from the facts that the parties signed")
    stated_shape = (context.threshold, context.degree, context.share_threshold)
    if stated_shape != (shape.threshold, shape.degree, shape.share_threshold):
        raise ProtocolViolation(f"a session of {len(ids)} baskets needs another threshold or graph")
    if (context.dimension, context.ring_bits) != (release.length, release.ring_bits):
        raise ProtocolViolation("the session's ring is not the release's")
    if refusal := shape.refusal(len(ids) - release.num_idle):
        raise ProtocolViolation(refusal)
    return shape.least_weighted
