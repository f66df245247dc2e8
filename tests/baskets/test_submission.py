"""A basket and the updates that are submitted to it, one after the other."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from scarcity_ray import HierarchicalFederationConfig, IdentityKeyPair, Rejection, SigningScope, make_plan
from scarcity_ray.baskets.basket import Basket
from scarcity_ray.baskets.reports import Member
from scarcity_ray.baskets.submission import (
    VIEW_BYTES,
    StoredRow,
    Submission,
    SubmissionBatch,
    is_signed,
    message_of,
    signed,
)
from scarcity_ray.baskets.update_buffer import JudgedUpdate
from scarcity_ray.config import load
from scarcity_ray.layers import Layer1Aggregator, basket_due
from scarcity_ray.privacy.sampling.noise import SystemNoise
from scarcity_ray.updates import content_digest, update_message

PLAN = make_plan(
    load(
        HierarchicalFederationConfig,
        {
            "vector_dim": 2,
            "buffer": {"max_staleness": 2, "time_trigger_seconds": 10.0, "min_updates_trigger": 4},
            "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0, "min_updates": 2},
            "basket": {"min_clients": 2},
        },
    )
)


def basket_of(num_clients: int) -> Basket:
    basket = Basket("b", "d", PLAN, "f", SystemNoise(), 0)
    for i in range(num_clients):
        basket.admit(Member(f"c{i}", "d"))
    return basket


def submit(basket: Basket, client: int, value: float, now: float, round_id: int | None = None) -> bool:
    sent = np.array([value, now])
    return basket.submit(Submission(f"c{client}", sent, round_id), False, now).accepted


class Closed(dict[str, Any]):
    """A mapping that can be asked for one key, and never be looked through."""

    def _refuse(self, *_: object) -> None:
        raise AssertionError("somebody looks at all of them")

    __iter__ = keys = values = items = _refuse  # type: ignore[assignment]


def test_a_submission_and_what_is_due_look_at_no_other_client() -> None:
    basket = basket_of(50)
    for i in range(40):
        assert submit(basket, i, 1.0, float(i))
    basket._buffer._waiting = Closed(basket._buffer._waiting)
    basket.members = Closed(basket.members)
    basket.states._rows = Closed(basket.states._rows)
    basket._reputations._clients = Closed(basket._reputations._clients)
    assert basket.due(2.0) == "count"
    for i in range(40, 50):
        assert submit(basket, i, 1.0, 5.0)
        assert not submit(basket, i, np.nan, 5.0)
    assert basket.due(60.0) == "count"
    assert basket.dismiss("c0") is not None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["submit", "submit", "submit", "advance", "leave", "layer 1"]),
            st.integers(0, 5),
            st.integers(0, 30),
        ),
        max_size=25,
    )
)
def test_what_is_due_is_what_looking_at_every_update_says(program: list[tuple[str, int, int]]) -> None:
    basket, aggregator = basket_of(6), Layer1Aggregator(PLAN.config.layer1)
    round_id, last = 0, None
    for step, client, number in program:
        now = float(number)
        if step == "submit":
            submit(basket, client, float(number), now, max(0, round_id - number % 3))
        elif step == "advance":
            round_id += 1
            basket.advance_round(round_id)
        elif step == "leave":
            basket.dismiss(f"c{client}")
        elif basket.layer1(aggregator, False, now).aggregated:
            last = now
        updates = basket._buffer.updates()
        since = last if last is not None else min((u.timestamp for u in updates), default=now)
        members = len(basket.members)
        expected = basket_due(
            PLAN.config.buffer,
            len({u.client_id for u in updates}),
            abs(now - since),
            n_active=members,
            least=PLAN.least_rows(members),
            oldest_staleness=max((round_id - u.round_id for u in updates), default=0),
        )
        assert basket.due(now) == expected


# Rows that lie in a runtime's object store.


def test_a_stored_row_is_signed_by_its_digest_as_it_would_be_by_itself() -> None:
    pair, scope = IdentityKeyPair.generate(), SigningScope("f", 1, 2)
    row = np.array([0.5, -1.0], np.float32)
    stored = StoredRow("a reference", content_digest(row))
    for batch in (
        SubmissionBatch(("c0", "c1"), (stored, stored), num_examples=(7, 7)),
        SubmissionBatch(("c0", "c1"), np.stack([row, row]), num_examples=(7, 7)),
    ):
        (signature, other) = signed(batch, 3, {"c0": pair}, scope, 2).signatures or ()
        message = update_message(scope, "c0", 3, row, num_examples=7)
        assert is_signed(pair.public_bytes, message, signature)
        assert other is None


def test_a_row_with_its_report_is_signed_and_read_as_one() -> None:
    pair, scope = IdentityKeyPair.generate(), SigningScope("f", 1, 2)
    row = np.array([0.5, -1.0, 0.1, np.nan], np.float32)
    batch = SubmissionBatch(("c0",), (StoredRow("one", content_digest(row)),), 3, has_reports=True)
    batch = signed(batch, 3, {"c0": pair}, scope, 2, 2).fetched(lambda reference: row[None])
    apart = batch.with_reports_apart(2, ["rate", "decay"])
    np.testing.assert_array_equal(apart.rows[0], row[:2])
    assert apart.meta is not None
    report = apart.meta[0]
    assert report is not None
    assert report["rate"] == np.float32(0.1)
    assert math.isnan(report["decay"])
    judged = JudgedUpdate("c0", row[:2], 3, content_digest(row[:2]))
    (signature,) = batch.signatures or ()
    assert is_signed(pair.public_bytes, message_of(judged, report, scope, is_joined=True), signature)
    for other in (
        message_of(judged, {**report, "rate": 0.2}, scope, is_joined=True),
        message_of(judged, report, scope),
        update_message(scope, "c0", 3, row),
    ):
        assert not is_signed(pair.public_bytes, other, signature), "it says this row with a report, no else"
    short = SubmissionBatch(("c0", "c1"), (row[:3], Rejection.NOT_NUMERIC), has_reports=True)
    assert short.with_reports_apart(2, ["rate", "decay"]).rows == short.rows
    assert batch.take([0]).has_reports
    assert batch[0].is_joined


def test_a_stored_row_arrives_as_itself_and_one_that_is_lost_costs_no_other() -> None:
    there, asked = {"two": np.array([[9.0, 9.0], [1.0, 1.0]], np.float32), "odd": 3}, list[str]()

    def get(reference: str) -> object:
        asked.append(reference)
        return there.get(reference)

    rows = (StoredRow("two", b"", 1), StoredRow("gone", b""), np.zeros(2), StoredRow("two", b"", 2))
    batch = SubmissionBatch(("c0", "c1", "c2", "c3", "c4"), (*rows, StoredRow("odd", b"")))
    fetched = batch.fetched(get)
    np.testing.assert_array_equal(fetched.rows[0], 1)
    np.testing.assert_array_equal(fetched.rows[2], 0)
    assert [fetched.rows[i] for i in (1, 3, 4)] == [Rejection.NOT_NUMERIC] * 3
    assert sorted(asked) == ["gone", "odd", "two"], "each reference is fetched once"
    stacked = SubmissionBatch(("c0",), np.zeros((1, 2)))
    assert stacked.fetched(get) is stacked
    basket = basket_of(3)
    receipts = [basket.submit(fetched[i], False, 1.0) for i in range(3)]
    assert [receipt.reason for receipt in receipts] == [None, Rejection.NOT_NUMERIC, None]


@pytest.mark.parametrize("length", [3, VIEW_BYTES // 4])
def test_taken_rows_are_the_batchs_and_long_ones_no_copies(length: int) -> None:
    matrix = np.arange(4.0 * length).reshape(4, length).astype(np.float32)
    batch = SubmissionBatch(tuple("abcd"), matrix, 7, sequences=(4, 5, 6, 7))
    taken = batch.take([3, 1])
    assert (taken.client_ids, taken.round_id, taken.sequences) == (("d", "b"), 7, (7, 5))
    np.testing.assert_array_equal(np.array(taken.rows), matrix[[3, 1]])
    assert np.shares_memory(np.asarray(taken.rows[0]), matrix) is (length > 3)
    assert batch.take(range(4)) is batch
