"""What a client signs: the bytes themselves, that they say one thing only, and that nothing else is read."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray import IdentityKeyPair, MessageRefused, UsageError, sign_update, update_message
from scarcity_ray_client.updates import (
    SigningScope,
    UpdateStatement,
    canonical_report,
    content_digest,
    read_row,
    update_statement,
)
from scarcity_ray_client.updates.signing import GREATEST, MAGIC, VERSION

PACKAGE = Path(__file__).resolve().parents[2] / "client" / "scarcity_ray_client"
GOLDEN = bytes.fromhex(
    "73636172636974795f7261792f75706461746500"  # scarcity_ray/update, zero
    "0001"  # version 1
    "0000000a"
    "3966396663646133ceb5"  # federation id, 10 bytes: 9f9fcda3 and a Greek letter
    "0000000000000002"  # budget period
    "0123456789abcdef"  # run
    "000000000000002a"  # round 42
    "0000000a"
    "686f73706974616c5f31"  # client id: hospital_1
    "01"
    "0000000000000007"  # sequence 7
    "ee4ac73c2bd27756ab82780f27c73a7bc4d3f0bb6acb37e008bc27eccd7e588b"  # SHA-256 of 00 00 80 3f 00 00 00 c0
    "00000003"
    "3c6634"  # <f4
    "01"
    "0000000000000002"  # one axis of length 2
    "01"
    "00000000000001f4"  # 500 examples
    "01"
    "00000002"  # a report of two
    "00000005"
    "6465636179"
    "0000000000000000"  # decay 0
    "00000004"
    "72617465"
    "3fe0000000000000"  # rate 0.5
)


def golden_statement() -> UpdateStatement:
    return update_statement(
        SigningScope("9f9fcda3\u03b5", 2, 0x0123456789ABCDEF),
        "hospital_1",
        42,
        [1.0, -2.0],
        sequence=7,
        num_examples=500,
        meta={"rate": 0.5, "decay": -0.0, "lost": float("nan")},
    )


def test_the_bytes_are_fixed_for_good() -> None:
    """Clients in the field sign these: to change them is to make version 2."""
    assert golden_statement().encode() == GOLDEN
    assert UpdateStatement.decode(GOLDEN) == golden_statement()
    least = update_statement(SigningScope("f"), "c", 0, [0.0])
    assert least.encode().hex() == (
        MAGIC.hex() + "0001" + "00000001" + "66" + "00" * 24 + "00000001" + "63" + "00"
        "df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119"
        "00000003" + "3c6634" + "01" + "0000000000000001" + "00" + "00"
    )


numbers = st.integers(0, GREATEST)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
reports = st.none() | st.dictionaries(
    texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3
).map(canonical_report)
statements = st.builds(
    UpdateStatement,
    scope=st.builds(SigningScope, federation_id=texts, budget_period=numbers, run=numbers),
    round_id=numbers,
    client_id=texts,
    digest=st.binary(min_size=32, max_size=32),
    shape=st.lists(numbers, max_size=3).map(tuple),
    dtype=st.sampled_from(["<f4", "<f8", ""]),
    sequence=st.none() | numbers,
    num_examples=st.none() | numbers,
    report=reports,
)


@given(statements)
def test_a_message_is_decoded_to_the_statement_that_it_was_made_of(statement: UpdateStatement) -> None:
    assert UpdateStatement.decode(statement.encode()) == statement


@given(statements, statements)
def test_two_statements_that_differ_in_any_field_have_different_messages(
    one: UpdateStatement, other: UpdateStatement
) -> None:
    for field in fields(UpdateStatement):
        changed = replace(one, **{field.name: getattr(other, field.name)})
        assert (changed.encode() == one.encode()) == (changed == one)
    for field in fields(SigningScope):
        scope = replace(one.scope, **{field.name: getattr(other.scope, field.name)})
        assert (replace(one, scope=scope).encode() == one.encode()) == (scope == one.scope)


def decoded(message: bytes) -> UpdateStatement | str:
    try:
        return UpdateStatement.decode(message)
    except MessageRefused as refused:
        return refused.flaw


@given(statements, st.data())
def test_nothing_else_is_decoded(statement: UpdateStatement, data: st.DataObject) -> None:
    """Whatever a message is changed into is refused, or is the one message of another statement."""
    message = bytearray(statement.encode())
    at = data.draw(st.integers(0, len(message) - 1))
    message[at] ^= data.draw(st.integers(1, 255))
    read = decoded(bytes(message))
    if isinstance(read, str):
        assert read in ("torn", "foreign", "newer")
    else:
        assert read != statement
        assert read.encode() == bytes(message)


@given(statements, st.data())
def test_a_torn_message_is_refused_as_torn(statement: UpdateStatement, data: st.DataObject) -> None:
    message = statement.encode()
    cut = data.draw(st.integers(0, len(message) - 1))
    for torn in (message[:cut], message + b"\0"):
        with pytest.raises(MessageRefused) as caught:
            UpdateStatement.decode(torn)
        assert caught.value.flaw == "torn"


def test_a_foreign_or_newer_message_is_refused_as_such() -> None:
    later = MAGIC + (VERSION + 1).to_bytes(2, "big") + GOLDEN[22:]
    none = MAGIC + bytes(2) + GOLDEN[22:]
    swapped = GOLDEN[:-33] + GOLDEN[-16:] + GOLDEN[-33:-16]
    for message, flaw in (
        (later, "newer"),
        (none, "foreign"),
        (b"scarcity_ray/facts\0\0\0" + GOLDEN[21:], "foreign"),
        (GOLDEN.replace(b"\x01\0\0\0\0\0\0\x01\xf4", b"\x02\0\0\0\0\0\0\x01\xf4"), "foreign"),
        (swapped, "foreign"),
        (GOLDEN[:-33] + GOLDEN[-33:-16] * 2, "foreign"),
        (GOLDEN[:-8] + b"\x80" + bytes(7), "foreign"),
        (GOLDEN[:-8] + b"\x7f\xf8" + bytes(6), "foreign"),
        (GOLDEN.replace(b"hospital", b"hospit\xff\xff"), "foreign"),
    ):
        assert message != GOLDEN
        with pytest.raises(MessageRefused, match=f"the message is {flaw}: "):
            UpdateStatement.decode(message)


def test_what_no_message_can_hold_is_refused() -> None:
    scope = SigningScope("f")
    for given_ in (
        {"round_id": -1},
        {"round_id": 2**64},
        {"round_id": 1.0},
        {"round_id": True},
        {"sequence": -1},
        {"sequence": "1"},
        {"num_examples": 2**64},
        {"client_id": "\ud800"},
        {"client_id": 3},
        {"update": "text"},
        {"update": [None]},
        {"meta": {"\ud800": 1.0}},
        {"meta": {3: 1.0}},
        {"scope": SigningScope("f", budget_period=-1)},
    ):
        arguments = {"scope": scope, "client_id": "c", "round_id": 0, "update": [1.0], **given_}
        with pytest.raises(UsageError, match="is not accepted"):
            update_message(**arguments)


@pytest.mark.parametrize("kind", [">f4", "<f8", ">f8", "<f2", "<i8", "u1"])
def test_the_digest_is_of_the_row_that_is_aggregated(kind: str) -> None:
    sent = np.arange(6).astype(kind)
    row = read_row(sent, 6)
    assert isinstance(row, np.ndarray)
    statement = update_statement(SigningScope("f"), "c", 0, sent)
    assert (statement.digest, statement.shape) == (content_digest(row), (6,))
    assert statement == update_statement(SigningScope("f"), "c", 0, sent.tolist())


def test_a_vector_that_is_float32_already_is_hashed_where_it_lies() -> None:
    row = np.ones(1_000_000, np.float32)
    content_digest(row)
    tracemalloc.start()
    try:
        content_digest(row)
        update_message(SigningScope("f"), "c", 0, row)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_signature_is_the_keys_own_of_the_message() -> None:
    key = IdentityKeyPair.generate()
    signature = sign_update(key.sign, SigningScope("f", 1, 2), "c", 3, [1.0], sequence=4)
    assert key.verify(update_message(SigningScope("f", 1, 2), "c", 3, [1.0], sequence=4), signature)
    assert not key.verify(update_message(SigningScope("f", 1, 2), "c", 3, [1.0], sequence=5), signature)


def test_signing_needs_numpy_and_the_standard_library_alone() -> None:
    """Imported as a client library would, without the package's own `__init__`."""
    script = (
        "import sys, types; package = types.ModuleType('scarcity_ray_client');"
        "package.__path__ = [sys.argv[1]];"
        "sys.modules['scarcity_ray_client'] = package; before = set(sys.modules);"
        "from scarcity_ray_client.updates import SigningScope, sign_update;"
        "assert sign_update(len, SigningScope('f'), 'c', 0, [1.0]) > 100;"
        "roots = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names);"
        "print(sorted(root for root in roots if not root.startswith('_')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(PACKAGE)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['numpy', 'scarcity_ray_client']"
