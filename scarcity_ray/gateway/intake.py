"""Uploads on their way to the baskets: a slot is claimed, the basket judges, what it said is noted and told.

All of it may stop after any step. A client that was not answered sends the same bytes again: the slot says
whether they were judged, and the baskets' replay memory whether they are counted.

Guarantees:
    an_update_is_acknowledged_after_its_basket_has_acknowledged_it
    the_same_upload_is_answered_the_same: Whichever gateway is asked, and whichever died before.
    another_body_for_an_accepted_slot_is_refused
    a_refusal_is_told_with_its_reason
    an_upload_whose_fate_is_unknown_is_to_be_sent_again
    a_row_that_its_site_has_not_signed_is_not_charged_to_it
    a_site_that_is_revoked_as_it_sends_is_not_registered_again
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scarcity_ray.baskets import Receipt, Rejection
from scarcity_ray.baskets.submission import StoredRow, SubmissionBatch, is_signed
from scarcity_ray.errors import PrivacyBudgetExhausted, ScarcityError
from scarcity_ray.federation.driver import Driver
from scarcity_ray.federation.served_round import Site
from scarcity_ray.federation.site_cohort import register_site
from scarcity_ray.gateway.enrolments import REVOKED, Enrolment
from scarcity_ray.gateway.register import Register
from scarcity_ray.gateway.register_client import RegisterClient
from scarcity_ray.gateway.slots import Claim, ClaimKind, Outcome, Slot
from scarcity_ray_client.models import FloatVector
from scarcity_ray_client.policy import SignedPolicy
from scarcity_ray_client.updates import content_digest
from scarcity_ray_client.wire import ErrorAnswer, ErrorCode, UpdateAnswer, UpdateHeader

BY_REFERENCE_BYTES = 64 * 1024
"""Rows from this size go to the baskets each by itself, by reference where they can; others in one array."""
RETRY_SECONDS = 2.0

_LATER = {Rejection.NOT_STORED, Rejection.UNKNOWN_CLIENT, Rejection.BUSY}
"""Refusals that may pass."""
_REASONS = {
    Rejection.BUDGET_SPENT: "this site's privacy budget has no room for another noised row",
    Rejection.AT_CEILING: "this site is at the ceiling that it signed: it is left out of all further rounds",
    Rejection.READ_ONLY: "the privacy budget is spent: nothing is accepted until an operator renews it",
    Rejection.REPLAYED: "this very row was counted before",
}


@dataclass(frozen=True, eq=False)
class Upload:
    """An upload that is there in full.

    Attributes:
        digest: Its name, hexadecimal.
        head: SHA-256 of its head, hexadecimal; empty: as `digest`.
    """

    site: Enrolment
    header: UpdateHeader
    row: FloatVector
    digest: str
    head: str = ""

    @property
    def slot(self) -> Slot:
        """Its place."""
        header = self.header
        return Slot(header.round_id, header.client_id, header.sequence, self.digest, self.head)


@dataclass(frozen=True)
class Accepted:
    """The answer to an upload that counts; `is_new` unless it was told before."""

    answer: bytes
    is_new: bool


class Intake:
    """What a gateway does with uploads, in one thread at a time.

    Args:
        driver: Of the federation.
        register: The gateways'.
        put: Stores a value in the runtime's object store; None: rows go to the baskets as they are.
    """

    def __init__(
        self,
        driver: Driver,
        register: RegisterClient,
        put: Callable[[object], Any] | None,
    ) -> None:
        self._driver, self._register, self._put = driver, register, put

    def take(self, uploads: Sequence[Upload]) -> list[Accepted | ErrorAnswer]:
        """Have uploads judged; the answer to each, in order."""
        claims = self._register.call(Register.claim, [upload.slot for upload in uploads])
        answers: list[Accepted | ErrorAnswer | None] = [_known(claim) for claim in claims]
        # One body that is sent twice at a time is judged once: the later copy finds what the first has made.
        judged = [place for place, answer in enumerate(answers) if answer is None]
        receipts = self._judge([uploads[place] for place in judged])
        outcomes = []
        for place, receipt in zip(judged, receipts, strict=True):
            answers[place], outcome = _answered(uploads[place], receipt)
            outcomes.append(outcome)
        if outcomes:
            stands = self._register.call(Register.settle, outcomes)
            for place, answer in zip(judged, stands, strict=True):
                if answer is not None:
                    answers[place] = Accepted(answer, True)
        self._tell_ledgers(uploads, answers)
        return [answer for answer in answers if answer is not None]

    def _judge(self, uploads: Sequence[Upload]) -> list[Receipt | ErrorAnswer]:
        """What the baskets say of uploads; a site that they do not know is registered, and judged again."""
        answers: dict[int, Receipt | ErrorAnswer] = {}
        pending = list(range(len(uploads)))
        for attempt in range(2):
            by_round: dict[int, list[int]] = defaultdict(list)
            for place in pending:
                by_round[uploads[place].header.round_id].append(place)
            for round_id, places in by_round.items():
                signed = [place for place in places if self._may_be_charged(uploads[place])]
                unsigned = [place for place in places if place not in signed]
                answers |= {place: _not_signed(uploads[place]) for place in unsigned}
                if signed:
                    said = self._submitted(round_id, [uploads[place] for place in signed])
                    answers.update(zip(signed, said, strict=True))
            unknown = [
                place
                for place in pending
                if isinstance(found := answers[place], Receipt) and found.reason is Rejection.UNKNOWN_CLIENT
            ]
            pending = [] if attempt else [place for place in unknown if self._registered(uploads[place])]
            if not pending:
                break
        return [answers[place] for place in range(len(uploads))]

    def _may_be_charged(self, upload: Upload) -> bool:
        """Whether its site has signed a row that would be charged to it before its basket sees it.

        Whoever ends TLS may put another row beside a head that the site has signed (`wire`).
        """
        if self._driver.supervisor.plan.site_noise is None:
            return True
        message = upload.header.statement(self._driver.signing_scope(), upload.row).encode()
        return is_signed(upload.site.public_key, message, upload.header.signature)

    def _registered(self, upload: Upload) -> bool:
        """Register an upload's site, unless that was undone as it was revoked after it was admitted."""
        try:
            if self._register.call(Register.is_revoked, upload.site.client_id):
                return False
            register_site(self._driver, site_of(upload.site))
        except ScarcityError:
            return False
        return True

    def _submitted(self, round_id: int, uploads: Sequence[Upload]) -> Sequence[Receipt | ErrorAnswer]:
        is_noised = self._driver.supervisor.plan.site_noise is not None
        rows: Any
        # A noised row is charged before it is judged, by its content: it has to be here.
        is_long = uploads[0].row.nbytes >= BY_REFERENCE_BYTES
        if is_long and (self._put is None or is_noised):
            rows = tuple(upload.row for upload in uploads)
        elif is_long and (put := self._put) is not None:
            rows = tuple(StoredRow(put(one.row[None]), content_digest(one.row)) for one in uploads)
        else:
            rows = np.stack([upload.row for upload in uploads])
        has_meta = any(upload.header.meta is not None for upload in uploads)
        batch = SubmissionBatch(
            tuple(upload.header.client_id for upload in uploads),
            rows,
            round_id,
            tuple(upload.header.signature for upload in uploads),
            tuple(upload.header.meta for upload in uploads) if has_meta else None,
            tuple(upload.header.sequence for upload in uploads),
            tuple(upload.header.num_examples for upload in uploads),
        )
        try:
            return self._driver.submit(batch, aggregate=False)
        except PrivacyBudgetExhausted:
            said = ErrorAnswer(ErrorCode.REFUSED, _REASONS[Rejection.READ_ONLY])
        except ScarcityError:
            # A basket's actor is gone, say: whether it has taken the update is not known.
            said = ErrorAnswer(ErrorCode.BUSY, "send it again", RETRY_SECONDS)
        return [said] * len(uploads)

    def _tell_ledgers(
        self, uploads: Sequence[Upload], answers: Sequence[Accepted | ErrorAnswer | None]
    ) -> None:
        told = {
            upload.header.client_id: upload.header.site_ledger
            for upload, answer in zip(uploads, answers, strict=True)
            if isinstance(answer, Accepted) and upload.header.site_ledger is not None
        }
        if told and self._driver.supervisor.plan.site_noise is not None:
            self._driver.note_site_ledgers({c: extension for c, extension in told.items() if extension})


def _not_signed(upload: Upload) -> Receipt:
    return Receipt(False, Rejection.BAD_SIGNATURE, None, upload.header.round_id)


def site_of(enrolment: Enrolment) -> Site:
    """A site as the federation registers it."""
    policy = enrolment.policy
    return Site(
        enrolment.client_id,
        enrolment.domain_id,
        enrolment.public_key,
        enrolment.features,
        enrolment.num_examples,
        None if policy is None else SignedPolicy.from_text(policy),
    )


def _known(claim: Claim) -> Accepted | ErrorAnswer | None:
    """What a claim answers by itself; None: the upload is to be judged."""
    if claim.kind is ClaimKind.ANSWERED:
        return Accepted(claim.answer, False)
    if claim.kind is ClaimKind.TAKEN:
        return ErrorAnswer(ErrorCode.SLOT_TAKEN, "another body was sent for this sequence of this round")
    if claim.kind is ClaimKind.REVOKED:
        return ErrorAnswer(ErrorCode.REVOKED, REVOKED)
    return None


def _answered(upload: Upload, judged: Receipt | ErrorAnswer) -> tuple[Accepted | ErrorAnswer, Outcome]:
    """What to answer unless the register knows better, and what to tell it."""
    header, slot = upload.header, upload.slot
    if isinstance(judged, ErrorAnswer):
        is_refused = judged.code is ErrorCode.REFUSED
        return judged, Outcome(slot, reason=str(Rejection.READ_ONLY) if is_refused else None)
    signed, reason = judged.signed(), judged.reason
    text = None if signed is None else signed.to_text()
    basket_id = judged.basket_id or ""
    answer = UpdateAnswer(header.client_id, header.round_id, header.sequence, basket_id, text).to_json()
    accepted = Outcome(slot, answer, None, dict(header.metrics), header.num_examples)
    if reason is None:
        return Accepted(answer, True), accepted
    words = _REASONS.get(reason)
    said = str(reason) if words is None else f"{reason}: {words}"
    if reason is Rejection.REPLAYED:
        # If this very body was counted, only the answer to it was lost.
        return ErrorAnswer(ErrorCode.REFUSED, said), replace(accepted, reason=str(reason))
    if reason in _LATER:
        return ErrorAnswer(ErrorCode.BUSY, "send it again", RETRY_SECONDS), Outcome(slot)
    if reason is Rejection.SEQUENCE_USED:
        said = "another body was sent for this sequence of this round"
        return ErrorAnswer(ErrorCode.SLOT_TAKEN, said), Outcome(slot, reason=str(reason))
    code = ErrorCode.ROUND_OVER if reason is Rejection.TOO_STALE else ErrorCode.REFUSED
    return ErrorAnswer(code, said), Outcome(slot, reason=str(reason))
