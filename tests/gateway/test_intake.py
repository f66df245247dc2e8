"""What a gateway answers to what a basket said of an upload."""

from __future__ import annotations

import numpy as np
import pytest

from scarcity_ray.baskets import Receipt, Rejection
from scarcity_ray.gateway.enrolments import Enrolment
from scarcity_ray.gateway.intake import Upload, _answered
from scarcity_ray_client.wire import ErrorAnswer, ErrorCode, UpdateHeader


@pytest.mark.parametrize("reason", [Rejection.BUSY, Rejection.NOT_STORED, Rejection.UNKNOWN_CLIENT])
def test_a_refusal_that_may_pass_is_to_be_sent_again(reason: Rejection) -> None:
    header = UpdateHeader("ann", 3, 0, 1, None, bytes(64))
    upload = Upload(Enrolment("ann", "a", bytes(32)), header, np.zeros(2, np.float32), "0" * 64)
    answer, outcome = _answered(upload, Receipt(False, reason, "b", 3), was_claimed=False)
    assert isinstance(answer, ErrorAnswer)
    assert answer.code is ErrorCode.BUSY
    assert (outcome.answer, outcome.reason) == (None, None)
