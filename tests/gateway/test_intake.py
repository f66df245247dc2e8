"""What a gateway answers to what a basket said of an upload."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scarcity_ray.baskets import Receipt, Rejection
from scarcity_ray.baskets.submission import SubmissionBatch
from scarcity_ray.federation.site_cohort import SiteCohort, SiteTerms
from scarcity_ray.gateway.enrolments import Enrolment
from scarcity_ray.gateway.intake import Accepted, Intake, Upload, _answered
from scarcity_ray.gateway.slots import Claim, ClaimKind
from scarcity_ray_client import IdentityKeyPair, SigningScope, sign_update
from scarcity_ray_client.wire import ErrorAnswer, ErrorCode, UpdateHeader


@pytest.mark.parametrize("reason", [Rejection.BUSY, Rejection.NOT_STORED, Rejection.UNKNOWN_CLIENT])
def test_a_refusal_that_may_pass_is_to_be_sent_again(reason: Rejection) -> None:
    header = UpdateHeader("ann", 3, 0, 1, None, bytes(64))
    upload = Upload(Enrolment("ann", "a", bytes(32)), header, np.zeros(2, np.float32), "0" * 64)
    answer, outcome = _answered(upload, Receipt(False, reason, "b", 3))
    assert isinstance(answer, ErrorAnswer)
    assert answer.code is ErrorCode.BUSY
    assert (outcome.answer, outcome.reason) == (None, None)


def test_a_row_that_its_site_has_not_signed_is_not_charged_to_it() -> None:
    """The driver charges a noised row before its basket judges it."""
    key, scope = IdentityKeyPair.generate(), SigningScope("f", 0, 1)
    row, other = np.ones(2, np.float32), np.zeros(2, np.float32)
    signature = sign_update(key.sign, scope, "ann", 3, row, sequence=0, num_examples=1)
    header = UpdateHeader("ann", 3, 0, 1, None, signature)
    site = Enrolment("ann", "a", key.public_bytes)
    charged = []

    def submit(batch: SubmissionBatch, *, aggregate: bool) -> list[Receipt]:
        charged.append(batch.rows)
        return [Receipt(True, None, "b", 3)] * len(batch)

    plan = SimpleNamespace(site_noise="noise")
    driver: Any = SimpleNamespace(
        supervisor=SimpleNamespace(plan=plan), signing_scope=lambda: scope, submit=submit
    )
    said = {"claim": Claim(ClaimKind.FRESH), "settle": None}
    register: Any = SimpleNamespace(call=lambda method, told: [said[method.__name__] for _ in told])
    uploads = [Upload(site, header, sent, "0" * 64) for sent in (other, row)]
    refused, accepted = Intake(driver, register, None).take(uploads)
    assert isinstance(refused, ErrorAnswer)
    assert (refused.code, refused.message) == (ErrorCode.REFUSED, "bad_signature")
    assert isinstance(accepted, Accepted)
    assert [rows.tolist() for rows in charged] == [[[1.0, 1.0]]]


def test_a_site_that_is_revoked_as_it_sends_is_not_registered_again() -> None:
    """It was admitted, and the server has unregistered it before its upload was judged."""
    told: dict[str, Any] = {"claim": [Claim(ClaimKind.FRESH)], "is_revoked": True, "settle": [None]}
    register: Any = SimpleNamespace(call=lambda method, *_: told[method.__name__])
    supervisor = SimpleNamespace(plan=SimpleNamespace(site_noise=None))

    def submit(batch: SubmissionBatch, *, aggregate: bool) -> list[Receipt]:
        return [Receipt(False, Rejection.UNKNOWN_CLIENT, None, 3)]

    driver: Any = SimpleNamespace(supervisor=supervisor, submit=submit)  # nothing is registered with it
    header = UpdateHeader("ann", 3, 0, 1, None, bytes(64))
    upload = Upload(Enrolment("ann", "a", bytes(32)), header, np.zeros(2, np.float32), "0" * 64)
    (answer,) = Intake(driver, register, None).take([upload])
    assert isinstance(answer, ErrorAnswer)
    assert answer.code is ErrorCode.BUSY, "its next request says that it is revoked"


def test_a_site_that_was_registered_again_as_it_was_revoked_leaves_with_the_next_round() -> None:
    left: list[str] = []
    run = SimpleNamespace(run=lambda method, client_id, now: left.append(client_id))
    driver = SimpleNamespace(operations=run, client=SimpleNamespace(now=lambda: 0.0))
    terms = SimpleNamespace(adversary=None, clients_per_round=None, extra_clients=0)
    door: Any = SimpleNamespace(revoked=lambda: ["ann"])
    fit: Any = SimpleNamespace(driver=driver, terms=terms)
    cohort = SiteCohort(fit, door, SiteTerms(None, 60.0))
    for round_id in (1, 2):
        cohort.begin(round_id, is_resumed=False, is_trained=False)
        cohort._unregister_revoked()
        cohort._unregister_revoked()
    assert left == ["ann", "ann"]
