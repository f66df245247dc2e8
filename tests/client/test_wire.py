"""What a site and a gateway say to each other: round trips, and what is refused."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray_client import IdentityKeyPair, MessageRefused, PrivateEvaluation, SigningScope, SiteNoise
from scarcity_ray_client.accounting.modes import Accounting
from scarcity_ray_client.site_ledger import Extension, Head
from scarcity_ray_client.updates import sign_update
from scarcity_ray_client.wire import (
    CLOCK_SECONDS,
    EMPTY_DIGEST,
    CertificateAnswer,
    CertificateRequest,
    EnrolAnswer,
    EnrolRequest,
    ErrorAnswer,
    ErrorCode,
    EvaluationRequest,
    KeyRequest,
    MeAnswer,
    ModelFacts,
    RoundAnswer,
    RoundFate,
    RoundState,
    SignedRequest,
    UpdateAnswer,
    UpdateHeader,
    digest_of,
    is_answer,
    is_named,
    read_update_body,
    sign_answer,
    update_body,
    update_name,
)

KEY, OTHER = IdentityKeyPair.generate(), IdentityKeyPair.generate()
SCOPE = SigningScope("federation", 2, 2**63 - 5)
counts = st.integers(0, 2**53)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(1e-6, 1e6)
metrics = st.dictionaries(texts, numbers, max_size=3)
ranges = st.dictionaries(texts, st.tuples(numbers, numbers), max_size=3)
hashes = st.binary(min_size=32, max_size=32)
signatures = st.binary(min_size=64, max_size=64)
answers = st.one_of(
    st.builds(ErrorAnswer, st.sampled_from(ErrorCode), texts, st.none() | numbers, st.none() | numbers),
    st.builds(
        RoundAnswer,
        st.sampled_from(RoundState),
        texts,
        counts,
        st.builds(SigningScope, texts, counts, st.integers(0, 2**64 - 1)),
        counts,
        texts,
        st.sampled_from(Accounting),
        st.none() | st.builds(ModelFacts, counts, counts, hashes.map(bytes.hex), counts),
        st.none() | numbers,
        ranges,
        st.sampled_from([None, PrivateEvaluation({"accuracy": (0.0, 1.0)}, 200)]),
        st.none() | st.builds(SiteNoise, positive, positive, st.integers(1, 99), st.integers(1, 99)),
        st.none() | numbers,
        st.none() | numbers,
        st.none() | counts,
        st.none() | st.builds(Head, counts, hashes),
        st.booleans(),
    ),
    st.builds(UpdateAnswer, texts, counts, counts, texts, st.none() | texts),
    st.builds(EvaluationRequest, metrics, counts),
    st.builds(
        MeAnswer,
        texts,
        texts,
        st.none() | texts,
        st.none() | counts,
        st.none() | numbers,
        st.none() | numbers,
        st.none() | numbers,
        st.lists(st.builds(RoundFate, counts, texts), max_size=2).map(tuple),
    ),
    st.builds(EnrolRequest, texts, texts, hashes, signatures, texts, st.none() | counts, st.none() | texts),
    st.builds(EnrolAnswer, texts, texts, texts),
    st.builds(CertificateRequest, texts),
    st.builds(CertificateAnswer, texts),
    st.builds(KeyRequest, hashes, signatures, signatures),
)
headers = st.builds(
    UpdateHeader,
    texts,
    counts,
    counts,
    counts,
    st.none() | metrics,
    signatures,
    metrics,
    st.none() | st.builds(Extension, counts, st.lists(hashes, max_size=3).map(tuple)),
)
rows = st.lists(st.floats(width=32), min_size=1, max_size=5).map(lambda row: np.array(row, np.float32))


def a_round() -> RoundAnswer:
    return RoundAnswer(RoundState.OPEN, "", 3, SCOPE, 4, "client", Accounting.ZCDP)


@given(answers)
def test_what_is_written_is_read_back(said):
    assert type(said).from_json(said.to_json()) == said


@given(headers, rows)
def test_an_update_is_read_back(header, row):
    body = update_body(header, row)
    read, numbers = read_update_body(body, len(row))
    assert read == header
    assert numbers.tobytes() == row.tobytes()
    assert update_body(header, row) == body  # the same upload again


@given(headers, rows)
def test_an_update_is_named_by_its_head_or_by_all_of_it(header, row):
    body = update_body(header, row)
    assert is_named(body, update_name(body))
    assert is_named(body, digest_of(body))
    assert update_name(body) != digest_of(body)
    assert update_name(body + bytes(4)) == update_name(body)
    other = update_body(replace(header, sequence=header.sequence ^ 1), row)
    assert not is_named(other, update_name(body))


@given(headers, rows, st.data())
def test_a_cut_update_is_refused(header, row, data):
    body = update_body(header, row)
    with pytest.raises(MessageRefused):
        read_update_body(body[: data.draw(st.integers(0, len(body) - 1))], len(row))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data):
    for read in (RoundAnswer.from_json, EnrolRequest.from_json, lambda data: read_update_body(data, 3)):
        with pytest.raises(MessageRefused):
            read(data)


def test_a_newer_version_is_refused_by_name():
    newer = a_round().to_json().replace(b'"version":1', b'"version":2')
    with pytest.raises(MessageRefused, match="round is of version 2, and this release reads 1") as refused:
        RoundAnswer.from_json(newer)
    assert refused.value.flaw == "newer"


@pytest.mark.parametrize(
    "change",
    [
        {"round_id": True},
        {"round_id": -1},
        {"round_id": 1.0},
        {"reason": 7},
        {"reason": "x" * 1001},
        {"state": "dancing"},
        {"scope": {}},
        {"clip_norm": "1"},
        {"unknown": 1},
        {"version": None},
        {"noise": {"mu": 0, "clip_norm": 1, "min_persons": 1, "dimension": 4, "is_discrete": True}},
        {"site_ledger": {"num_rows": 1, "head": "AA"}},
        {"private_evaluation": {"metrics": {}, "max_examples": 1}},
        {"meta_parameters": {"rate": [1]}},
    ],
)
def test_nothing_malformed_is_read(change):
    content = json.loads(a_round().to_json()) | change
    with pytest.raises(MessageRefused):
        RoundAnswer.from_json(json.dumps(content).encode())
    lacking = {name: value for name, value in content.items() if name != "vector_dim"}
    with pytest.raises(MessageRefused):
        RoundAnswer.from_json(json.dumps(lacking).encode())


@pytest.mark.parametrize("flaw", ["NaN", "Infinity", "1e999", "[" * 100_000])
def test_no_number_beyond_all_numbers_and_no_depth_is_read(flaw):
    with pytest.raises(MessageRefused):
        EvaluationRequest.from_json(f'{{"version":1,"metrics":{{"a":{flaw}}},"num_examples":1}}'.encode())


def test_an_overlong_header_is_refused_before_it_is_read():
    with pytest.raises(MessageRefused, match="longer than"):
        read_update_body(struct.pack("<I", 2**31), 3)


def test_an_updates_signature_is_checked_from_its_header():
    row = np.arange(4, dtype=np.float32)
    said = {"sequence": 0, "num_examples": 30, "meta": {"rate": 0.5}}
    signature = sign_update(KEY.sign, SCOPE, "ann", 3, row, **said)
    header = UpdateHeader("ann", 3, 0, 30, {"rate": 0.5}, signature)
    assert KEY.verify(header.statement(SCOPE, row).encode(), header.signature)
    assert not KEY.verify(replace(header, num_examples=31).statement(SCOPE, row).encode(), signature)


def test_a_signature_is_for_one_request():
    body = digest_of(b"body")
    signed = SignedRequest.signed(KEY, "federation", "POST", "/v1/round?after=2", "ann ä/", 1000.9, body)
    read = SignedRequest.from_headers(signed.headers())
    assert read == signed
    asked = (KEY.public_bytes, "federation", "POST", "/v1/round?after=2")
    assert read.is_valid(*asked)
    for place, other in enumerate((OTHER.public_bytes, "another", "GET", "/v1/round?after=3")):
        assert not read.is_valid(*(other if at == place else value for at, value in enumerate(asked)))
    for changed in (
        {"client_id": "bob"},
        {"nonce": "0" * 32},
        {"time_seconds": 1001},
        {"body_digest": EMPTY_DIGEST},
    ):
        assert not replace(read, **changed).is_valid(*asked)
    assert SignedRequest.signed(KEY, "federation", "GET", "/", "ann", 1000).nonce != signed.nonce


@pytest.mark.parametrize("name", ["Client", "Nonce", "Time", "Signature"])
@pytest.mark.parametrize("value", [None, "", "%00", "é" * 32, "1" * 2000])
def test_a_malformed_header_is_refused(name, value):
    headers = SignedRequest.signed(KEY, "federation", "GET", "/", "ann", 1000).headers()
    headers[f"Scarcity-{name}"] = value
    if value is None:
        del headers[f"Scarcity-{name}"]
    with pytest.raises(MessageRefused):
        SignedRequest.from_headers(headers)


def test_a_wrong_clock_is_told_with_how_much():
    signed = SignedRequest.signed(KEY, "federation", "GET", "/", "ann", 1000)
    assert signed.clock_error(1000 + CLOCK_SECONDS) is None
    error = signed.clock_error(1000 + 7200)
    assert error.code is ErrorCode.CLOCK
    assert "7200 s behind" in error.message
    assert error.gateway_seconds == 8200
    assert "ahead of" in signed.clock_error(0).message


def test_an_answer_is_to_one_request():
    asked = SignedRequest.signed(KEY, "federation", "GET", "/v1/me", "ann", 1000)
    where = "federation", "GET", "/v1/me"
    told = sign_answer(OTHER, asked.occasion(*where), 200, b"yes")
    assert is_answer(OTHER.public_bytes, asked.occasion(*where), 200, b"yes", told)
    occasions = [
        SignedRequest.signed(KEY, "federation", "GET", "/v1/me", "ann", 1000).occasion(*where),
        replace(asked, signature=bytes(64)).occasion(*where),
        asked.occasion("federation", "GET", "/v1/round"),
        asked.occasion("federation", "PUT", "/v1/me"),
        asked.occasion("another", "GET", "/v1/me"),
    ]
    for occasion in occasions:
        assert not is_answer(OTHER.public_bytes, occasion, 200, b"yes", told)
    assert not is_answer(OTHER.public_bytes, asked.occasion(*where), 403, b"yes", told)
    assert not is_answer(OTHER.public_bytes, asked.occasion(*where), 200, b"no", told)
    assert not is_answer(KEY.public_bytes, asked.occasion(*where), 200, b"yes", told)
    for torn in ("", "=", "é", told[:-4]):
        assert not is_answer(OTHER.public_bytes, asked.occasion(*where), 200, b"yes", torn)


def test_an_enrolment_is_for_its_token_key_and_csr():
    asked = EnrolRequest.signed(KEY, "token", "ann", "csr", 30, "policy")
    assert asked.is_valid
    for changed in (
        {"token": "other"},
        {"client_id": "bob"},
        {"csr": "other"},
        {"num_examples": 31},
        {"policy": None},
        {"public_key": OTHER.public_bytes},
    ):
        assert not replace(asked, **changed).is_valid
    assert "token" not in repr(asked).replace("token=", "")


def test_a_new_key_is_signed_by_both():
    asked = KeyRequest.signed(KEY, OTHER, "federation", "ann")
    assert asked.is_valid(KEY.public_bytes, "federation", "ann")
    assert not asked.is_valid(KEY.public_bytes, "another", "ann")
    assert not asked.is_valid(KEY.public_bytes, "federation", "bob")
    assert not asked.is_valid(OTHER.public_bytes, "federation", "ann")
    assert not replace(asked, proof_by_new=asked.proof_by_old).is_valid(KEY.public_bytes, "federation", "ann")


def test_every_error_has_a_status():
    assert {code.status for code in ErrorCode} <= set(range(400, 600))
