"""`submit_updates` and `offer_update` read the same things and give the same answers, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings

from scarcity_ray import (
    HierarchicalFederation,
    HierarchicalFederationConfig,
    IdentityKeyPair,
    Rejection,
    sign_update,
)
from scarcity_ray.baskets.submission import SubmissionBatch
from scarcity_ray.config import load

DIMENSION = 4
NAMES = [f"c{i}" for i in range(8)]
KEY = IdentityKeyPair.generate()
KEYED = "c6"


class Tensor:
    """As PyTorch's: gives itself as an array, and its rows and entries are tensors."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values if dtype is None else self.values.astype(dtype)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Tensor]:
        return (Tensor(value) for value in self.values)


def opened(open_federation: Any, **sections: Any) -> HierarchicalFederation:
    fed: HierarchicalFederation = open_federation(
        {
            "vector_dim": DIMENSION,
            "auto_aggregate": False,
            "buffer": {"max_staleness": 1, "participation_cap": 2},
            "meta_parameters": {"rate": [0, 1]},
            **sections,
        }
    )
    for name in NAMES[:-1]:
        fed.register_client(
            name, "a" if name < "c3" else "b", identity_keypair=KEY if name == KEYED else None
        )
    return fed


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[HierarchicalFederation]]:
    """Two federations to whom the same happens, one update at a time and many at a time."""

    def open_one(section: dict[str, Any]) -> HierarchicalFederation:
        path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
        config = load(HierarchicalFederationConfig, {"ledger_path": str(path), **section})
        return HierarchicalFederation(config, runtime="local", clock=lambda: 1e6)

    feds = [opened(open_one), opened(open_one)]
    yield feds
    for fed in feds:
        fed.close()


numbers = st.floats(-2, 2, width=16) | st.integers(-3, 3) | st.sampled_from([np.nan, 1e39, 10**400])
vectors = st.lists(numbers, min_size=DIMENSION, max_size=DIMENSION) | st.lists(
    numbers, max_size=DIMENSION + 1
)
plain = st.lists(st.integers(-2, 2), min_size=DIMENSION, max_size=DIMENSION)
kinds = st.sampled_from(
    [
        np.float32,
        np.float64,
        np.int64,
        np.float16,
        bool,
        complex,
        object,
        str,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
    ]
)
arrays = st.builds(lambda values, kind: np.array(values).astype(kind), plain, kinds)
rows = st.one_of(
    arrays,
    vectors,
    vectors.map(tuple),
    arrays.map(Tensor),
    plain.map(lambda values: list(Tensor(values))),
    plain.map(pd.Series),
    plain.map(lambda values: [values]),
    plain.map(lambda values: np.array([values])),
    st.sampled_from([None, "crash", b"1234", 1.0, True, {}, np.ma.masked_array([1.0] * 4, [1, 0, 0, 0])]),
)
updates = st.tuples(
    st.sampled_from(NAMES),
    rows,
    st.none() | st.sampled_from([0, 1, True, "1", -1, 2**70]),
    st.none() | st.sampled_from([1, 40, 10**9, 0, 1.5, "many"]),
    st.none() | st.sampled_from([b"", bytes(64), "sign"]),
    st.none() | st.sampled_from([{}, {"rate": 0.5}, {"rate": "high"}]),
)


def signature_of(fed: HierarchicalFederation, update: Any, round_id: int) -> Any:
    """The keyed client's own signature where the draw asks for one, if that can be signed at all."""
    client_id, sent, sequence, num_examples, signature, meta = update
    if signature != "sign":
        return signature
    try:
        return sign_update(
            KEY.sign,
            fed.signing_scope(),
            client_id,
            round_id,
            sent,
            sequence=sequence,
            num_examples=num_examples,
            meta=meta,
        )
    except ValueError:
        return b""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(many=st.lists(updates, min_size=1, max_size=6), back=st.sampled_from([None, 0, 1, 2, -1]))
def test_many_updates_get_the_receipts_that_each_would_get_alone(
    pair: list[HierarchicalFederation], many: list[Any], back: int | None
) -> None:
    single, batch = pair
    now = single.advance_round()
    assert batch.advance_round() == now
    round_id = None if back is None else now - back
    signed = [[signature_of(fed, one, now - (back or 0)) for one in many] for fed in pair]
    alone = [
        single.offer_update(
            client_id,
            sent,
            round_id,
            sequence=sequence,
            num_examples=num_examples,
            signature=signature,
            meta=meta,
        )
        for (client_id, sent, sequence, num_examples, _, meta), signature in zip(many, signed[0], strict=True)
    ]
    ids, sent, sequences, num_examples, _, meta = (list(column) for column in zip(*many, strict=True))
    together = batch.submit_updates(
        ids,
        sent,
        round_id,
        sequences=sequences,
        num_examples=num_examples,
        signatures=signed[1],
        meta=meta,
    )
    assert together == alone
    assert all((receipt.reason is None) == receipt.accepted for receipt in alone)
    for client_id in {KEYED, *ids} - {NAMES[-1]}:
        trusts = {fed.get_client(client_id).trust_score for fed in pair}  # type: ignore[union-attr]
        assert len(trusts) == 1
    stats = [fed.get_stats() for fed in pair]
    for key in ("rejections", "n_updates_buffered", "n_updates_rejected"):
        assert stats[0][key] == stats[1][key]


GOOD = np.arange(1.0, 1.0 + 3 * DIMENSION).reshape(3, DIMENSION) / 16


@pytest.mark.parametrize(
    "matrix",
    [
        GOOD,
        GOOD.astype(np.float32),
        np.asfortranarray(GOOD),
        GOOD.astype(">f8"),
        GOOD.astype(ml_dtypes.bfloat16),
        GOOD.astype(object),
        GOOD.tolist(),
        tuple(map(tuple, GOOD)),
        list(GOOD),
        [GOOD[0].astype(np.float32), GOOD[1], GOOD[2].tolist()],
        [GOOD[0].astype(ml_dtypes.bfloat16), Tensor(GOOD[1]), pd.Series(GOOD[2])],
        Tensor(GOOD),
        pd.DataFrame(GOOD),
        np.array([*GOOD, None], dtype=object)[:3],
    ],
    ids=lambda m: f"{type(m).__name__}-{getattr(m, 'dtype', '')}",
)
def test_however_many_rows_lie_they_are_what_each_is_alone(matrix: Any, open_federation: Any) -> None:
    fed = opened(open_federation)
    assert [bool(receipt) for receipt in fed.submit_updates(NAMES[:3], matrix)] == [True] * 3
    for name, row in zip(NAMES, GOOD, strict=False):
        assert fed.offer_update(name, row).reason is Rejection.REPLAYED


BAD = {
    "short": (GOOD[1][:2], Rejection.WRONG_SHAPE),
    "none": (None, Rejection.NOT_NUMERIC),
    "2-D": (GOOD[1][None], Rejection.WRONG_SHAPE),
    "nan": (GOOD[1] * np.nan, Rejection.NOT_FINITE),
    "text": ("crash", Rejection.NOT_NUMERIC),
    "bool": (np.ones(DIMENSION, bool), Rejection.NOT_NUMERIC),
    "scalar": (0.5, Rejection.WRONG_SHAPE),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
def test_one_bad_row_costs_no_other(bad: Any, reason: Rejection, open_federation: Any) -> None:
    fed = opened(open_federation)
    sent = [GOOD[0], bad, GOOD[2]]
    receipts = fed.submit_updates(NAMES[:3], sent)
    assert [receipt.reason for receipt in receipts] == [None, reason, None]
    assert fed.offer_update(NAMES[1], bad).reason is reason
    frame = pd.DataFrame(GOOD).astype(object)
    frame.iloc[1, 2] = "text"
    fed.advance_round()
    reasons = [receipt.reason for receipt in fed.submit_updates(NAMES[:3], frame)]
    assert reasons == [None, Rejection.NOT_NUMERIC, None]
    assert {r.reason for r in fed.submit_updates(NAMES[:3], GOOD > 0.5)} == {Rejection.NOT_NUMERIC}


def test_a_matrix_of_numbers_is_handed_on_as_it_lies(
    open_federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = opened(open_federation)
    seen: list[SubmissionBatch] = []
    submit = fed._driver.submit
    monkeypatch.setattr(fed._driver, "submit", lambda batch: seen.append(batch) or submit(batch))
    matrix = GOOD.astype(np.float32)
    assert all(fed.submit_updates(NAMES[:3], matrix))
    (batch,) = seen
    assert isinstance(batch.rows, np.ndarray)
    assert np.shares_memory(batch.rows, matrix)
    assert batch.take(range(3)) is batch
    assert batch.take([2, 0]).client_ids == ("c2", "c0")
