"""A basket's public facts, which it signs for one attempt at a release.

Weights, sensitivity, noise and the least number of baskets follow from these facts. Someone who could forge
them could leave a basket's aggregate alone in the sum. So each basket signs its own facts, for one occasion:
federation, session, attempt, round, roster and the ledger's head at the last release that it knows. A nonce
makes each statement unique. All parties check every statement, and compute the release from these alone.

A corrupt basket can still lie about itself, with bounded gain: its facts must be possible ones
(`implausible`), it is not counted among the honest (`plan.session`), and the noise protects the clients of
every other basket whatever it says.

Guarantees:
    facts_of_another_occasion_are_refused: Of another session, attempt, round, roster, federation or head.
    facts_that_no_basket_can_have_are_refused
    a_changed_fact_is_refused: Any field of them.
"""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace

from scarcity_ray.config import AggregationMethod
from scarcity_ray.plan import BasketFacts, FederationPlan
from scarcity_ray.secagg import IdentityKeyPair, SessionContext
from scarcity_ray.secagg.transcript import digest, encode, encode_fields
from scarcity_ray_client.receipts import CountedRoot

NONCE_BYTES = 16
SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Occasion:
    """The attempt that facts are stated for.

    Attributes:
        attempt: Within the session.
        roster: Digest of the roster, 32 bytes; it covers the epoch.
        ledger_head: Of the last distributed release; empty if there is none.
    """

    federation_id: str
    session_id: bytes
    round_id: int
    attempt: int
    roster: bytes
    ledger_head: str

    @classmethod
    def of(cls, context: SessionContext, ledger_head: str) -> Occasion:
        """The occasion of a session's attempt."""
        session = context.session_id, context.round_id, context.attempt
        return cls(context.federation_id, *session, context.roster, ledger_head)


@dataclass(frozen=True)
class SignedFacts:
    """Facts with a nonce (16 bytes, new in each statement) and the basket's signature (64 bytes).

    Attributes:
        counted: With receipts, what is published with the release, if the basket has a part in it. It has a
            signature of its own, which who audits a receipt checks.
    """

    facts: BasketFacts
    nonce: bytes = b""
    signature: bytes = b""
    counted: CountedRoot | None = None

    def content(self, occasion: Occasion) -> bytes:
        """What is signed."""
        facts = self.facts
        return _stated_at(occasion) + encode_fields(
            facts.basket_id,
            facts.domain_id,
            facts.num_members,
            facts.num_rows,
            facts.num_byzantine,
            "" if facts.max_row_share is None else facts.max_row_share.hex(),
            "" if facts.clip_norm is None else facts.clip_norm.hex(),
            "" if facts.num_persons is None else facts.num_persons,
            self.nonce,
        )


@functools.lru_cache(maxsize=8)
def _stated_at(occasion: Occasion) -> bytes:
    """What every statement for an occasion begins with."""
    return encode("facts", *astuple(occasion))


def state(
    facts: BasketFacts, occasion: Occasion, identity: IdentityKeyPair, counted: CountedRoot | None = None
) -> SignedFacts:
    """A basket's statement of its facts for one occasion."""
    stated = SignedFacts(facts, secrets.token_bytes(NONCE_BYTES), counted=counted)
    return replace(stated, signature=identity.sign(stated.content(occasion)))


def refusal(party: str, key: bytes, stated: object, occasion: Occasion, plan: FederationPlan) -> str:
    """Why a party's statement for an occasion is not accepted; empty if it is.

    It must be signed with the key that the roster has for the party.
    """
    if type(stated) is not SignedFacts or not is_formed(stated.facts) or not _is_signed(stated):
        return f"the facts of {party!r} are missing or malformed"
    if stated.facts.basket_id != party:
        return f"the facts given for {party!r} are about another basket"
    impossible = implausible(stated.facts, plan)
    if impossible:
        return f"the facts of {party!r} are such as no basket has: {impossible}"
    if not IdentityKeyPair.verify_with(key, stated.content(occasion), stated.signature):
        return f"the facts of {party!r} are not signed by it for this attempt"
    return ""


def implausible(facts: BasketFacts, plan: FederationPlan) -> str:
    """Why no basket of this federation can have these well-formed facts; empty if one can."""
    most = plan.config.basket.max_clients
    if facts.basket_id.rpartition("_basket_")[0] != facts.domain_id:
        return f"its domain is not {facts.domain_id!r}"
    if facts.num_members > most or facts.num_rows > most:
        return f"more than basket.max_clients = {most} members"
    if facts.fresh and facts.num_rows < plan.rule_rows(facts.num_byzantine):
        return f"{facts.num_rows} rows, fewer than its rule needs"
    if facts.clip_norm is not None and not plan.may_clip_to(facts.clip_norm):
        return f"rows of norm {facts.clip_norm:.4g}, to which nothing is clipped here"
    if facts.fresh and (facts.num_persons is None) is not (plan.person_clip_norm is None):
        return "a number of persons behind its rows where none belongs, or none where one does"
    if facts.num_persons is not None and not plan.has_enough_persons(facts.num_persons):
        return f"a row of {facts.num_persons} persons, fewer than privacy.min_persons"
    if facts.max_row_share is not None:
        if plan.config.layer1.aggregation_method is not AggregationMethod.WEIGHTED:
            return "a share of one row, where rows are not weighted"
        if facts.max_row_share * facts.num_rows < 1.0 - 1e-6:
            return f"{facts.num_rows} rows of which none has a share above {facts.max_row_share:.4g}"
    return ""


def facts_digest(stated: Mapping[str, SignedFacts], occasion: Occasion) -> bytes:
    """Hash of every party's statement (32 bytes), for the session's context."""
    return digest("all_facts", *(stated[party].content(occasion) for party in sorted(stated)))


def is_formed(facts: object) -> bool:
    """Whether these are facts, each of the type and in the range that it must be."""
    if type(facts) is not BasketFacts:
        return False
    counts = (facts.num_members, facts.num_rows, facts.num_byzantine, facts.num_persons or 0)
    share, clip_norm = facts.max_row_share, facts.clip_norm
    return (
        type(facts.basket_id) is str
        and type(facts.domain_id) is str
        and all(type(count) is int and 0 <= count < 2**31 for count in counts)
        and (share is None or (type(share) is float and 0.0 < share <= 1.0))
        and (clip_norm is None or (type(clip_norm) is float and 0.0 < clip_norm < math.inf))
    )


def _is_signed(stated: SignedFacts) -> bool:
    sized = ((stated.nonce, NONCE_BYTES), (stated.signature, SIGNATURE_BYTES))
    counted = stated.counted is None or (type(stated.counted) is CountedRoot and stated.counted.is_formed)
    return counted and all(type(part) is bytes and len(part) == size for part, size in sized)
