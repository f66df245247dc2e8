"""Slots, nonces and fates, also over a register's death."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import StorageError, UsageError
from scarcity_ray.federation.served_round import Measured, OpenRound
from scarcity_ray.gateway.enrolments import Enrolments
from scarcity_ray.gateway.register import Asked, Claim, ClaimKind, Outcome, Register, Slot
from scarcity_ray_client import IdentityKeyPair, SigningScope
from scarcity_ray_client.wire import EnrolRequest, ErrorAnswer, RoundState, SignedRequest


def register(folder: Path, federation_id: str = "f") -> Register:
    return Register(str(folder / "gateway"), federation_id, 600.0, 60.0, None, is_mutual=False)


def digest(number: int) -> str:
    return hashlib.sha256(bytes([number])).hexdigest()


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "accept", "refuse", "unknown", "restart"]),
        st.integers(0, 1),  # sequence
        st.integers(0, 2),  # body
    ),
    max_size=14,
)


@given(ACTS)
def test_a_slot_is_one_body(acts: list[tuple[str, int, int]]) -> None:
    """Against a model: a slot's body, and its answer once it is accepted; a restart changes nothing."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")) as place:
        book = register(Path(place))
        known: dict[int, tuple[int, bytes | None]] = {}
        met_again: set[tuple[int, int]] = set()
        for act, sequence, body in acts:
            slot = Slot(3, "a", sequence, digest(10 * sequence + body))  # its header states the sequence
            if act == "restart":
                book.close()
                book = register(Path(place))
                continue
            (claim,) = book.claim([slot])
            is_known = (sequence, body) in met_again  # it may have been accepted, though a copy was refused
            if sequence not in known:
                assert claim.kind is (ClaimKind.AGAIN if is_known else ClaimKind.FRESH)
                known[sequence] = body, None
            elif known[sequence][0] != body:
                is_known = is_known and known[sequence][1] is None
                assert claim.kind is (ClaimKind.AGAIN if is_known else ClaimKind.TAKEN)
                continue
            elif (answer := known[sequence][1]) is not None:
                assert (claim.kind, claim.answer) == (ClaimKind.ANSWERED, answer)
                assert book.standing(3, "a", slot.digest) == answer
                continue
            else:
                assert claim.kind is ClaimKind.AGAIN
                met_again.add((sequence, body))
            if act == "accept":
                answer = f"{sequence}/{body}".encode()
                book.settle([Outcome(slot, answer)])
                known[sequence] = body, answer
            elif act == "refuse":
                book.settle([Outcome(slot, reason="not_finite")])
                del known[sequence]
            else:
                book.settle([Outcome(slot)])
        heard = book.heard(3)
        counted = any(answer is not None for _, answer in known.values())
        assert (heard.accepted == {"a"}) is counted
        book.close()


def test_a_nonce_is_taken_once(tmp_path: Path) -> None:
    book = register(tmp_path)
    identity = IdentityKeyPair.generate()
    with Enrolments.opened(tmp_path / "gateway") as enrolments:
        token = enrolments.invite("a", "north")
        enrolments.enrol(EnrolRequest.signed(identity, token, "a", "csr"), lambda csr, client: CERTIFICATE)
    now = time.time()
    signed = SignedRequest.signed(identity, "f", "GET", "/v1/me", "a", now)
    asked = Asked(signed, "GET", "/v1/me", None)
    forged = Asked(signed, "GET", "/v1/round", None)
    stranger = Asked(SignedRequest.signed(identity, "f", "GET", "/v1/me", "b", now), "GET", "/v1/me", None)
    codes = [one.code.value for one in book.admit([forged, stranger], now) if isinstance(one, ErrorAnswer)]
    assert codes == ["wrong_signature", "forbidden"]
    first, second = book.admit([asked, asked], now)
    assert not isinstance(first, ErrorAnswer), "who has not signed has not used the nonce up"
    assert first.client_id == "a"
    assert isinstance(second, ErrorAnswer)
    assert second.code.value == "replayed"
    book.close()
    book = register(tmp_path)
    (third,) = book.admit([asked], now + 1)
    assert isinstance(third, ErrorAnswer), "nor after a restart"
    assert book.revoke("a")
    assert book.heard(0).last_seen == {"a": now}, "who was heard of before it died"
    again = SignedRequest.signed(identity, "f", "GET", "/v1/me", "a", now)
    (fourth,) = book.admit([Asked(again, "GET", "/v1/me", None)], now)
    assert isinstance(fourth, ErrorAnswer)
    assert fourth.code.value == "revoked"
    book.close()


def test_a_new_round_is_told_to_whoever_asks(tmp_path: Path) -> None:
    book = register(tmp_path)
    assert book.current() is None
    opened = OpenRound(RoundState.OPEN, "", 4, SigningScope("f"), 1.0)
    book.publish(opened, np.ones(3, np.float32))
    told = book.current()
    assert told is not None
    assert (told.round_id, told.model_sha256) == (4, hashlib.sha256(np.ones(3, "<f4").tobytes()).hexdigest())
    assert book.current(told.number) is None, "nothing new"
    book.settle([Outcome(Slot(4, "a", 0, digest(1)), b"yes", None, {"loss": 1.0}, 5)])
    book.note_evaluation(4, Measured("a", {"accuracy": 0.5}, 5))
    heard = book.heard(4)
    assert [one.metrics for one in heard.trained] == [{"loss": 1.0}]
    assert [one.metrics for one in heard.evaluated] == [{"accuracy": 0.5}]
    book.keep_only(4, ())
    assert book.heard(4).accepted == frozenset(), "what no basket has is to be sent again"
    book.pause(True)
    assert book.heard(4).is_paused
    book.close()


def test_a_register_is_one_federations_and_this_users(tmp_path: Path) -> None:
    book = register(tmp_path)
    identity = IdentityKeyPair.generate()
    with Enrolments.opened(tmp_path / "gateway") as enrolments:
        token = enrolments.invite("a", "north")
        enrolments.enrol(EnrolRequest.signed(identity, token, "a", "csr"), lambda csr, client: CERTIFICATE)
    book.close()
    with pytest.raises(UsageError, match="is of federation f"):
        register(tmp_path, "other")
    (tmp_path / "gateway").chmod(0o755)
    with pytest.raises(StorageError, match="chmod 700"):
        register(tmp_path)


def _certificate() -> str:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    built = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([]))
    built = built.public_key(key.public_key()).serial_number(1).not_valid_before(now)
    made = built.not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


CERTIFICATE = _certificate()


def test_a_call_that_fails_leaves_the_register_usable(tmp_path: Path) -> None:
    """A transaction that a hostile number left open would refuse every site from then on."""
    book = register(tmp_path)
    for _ in range(2):
        with pytest.raises(OverflowError):
            book.claim([Slot(3, "a", 0, digest(0)), Slot(3, "a", 2**63, digest(0))])
    (claim,) = book.claim([Slot(3, "a", 0, digest(1))])
    assert claim.kind is ClaimKind.FRESH, "nothing of the failed call stands"


def test_one_clients_refusals_do_not_grow_what_a_round_hears(tmp_path: Path) -> None:
    book = register(tmp_path)
    for number in range(500):
        book.settle([Outcome(Slot(3, "a", number, digest(0)), reason="bad_signature")])
    assert book.heard(3).refusals == (("a", "bad_signature"),) * 100


@pytest.mark.parametrize("refused_first", [True, False])
def test_a_refused_copy_takes_no_accepted_slot(tmp_path: Path, refused_first: bool) -> None:
    """Two bodies of one name are judged at a time: the signed row, and one that was put in its place."""
    made, slot = register(tmp_path), Slot(0, "a", 0, digest(1))
    made.claim([slot, slot])
    outcomes = [Outcome(slot, reason="bad_signature"), Outcome(slot, b"receipt")]
    for outcome in outcomes if refused_first else outcomes[::-1]:
        made.settle([outcome])
    assert made.claim([slot]) == (Claim(ClaimKind.ANSWERED, b"receipt"),)
    assert made.claim([Slot(0, "a", 0, digest(2))])[0].kind is ClaimKind.TAKEN


@pytest.mark.parametrize("names", [("head", "whole"), ("whole", "head")])
def test_one_body_has_one_slot_under_both_its_names(tmp_path: Path, names: tuple[str, str]) -> None:
    """A client that was upgraded between an upload and its answer, or downgraded."""
    head, whole = digest(1), digest(2)
    slots = {"head": Slot(0, "a", 0, head, head), "whole": Slot(0, "a", 0, whole, head)}
    first, second = (slots[name] for name in names)
    made = register(tmp_path)
    assert made.claim([first])[0].kind is ClaimKind.FRESH
    if names == ("whole", "head"):
        assert made.claim([second])[0].kind is ClaimKind.TAKEN, "its client says the other name then"
        second = first
    assert made.claim([second])[0].kind is ClaimKind.AGAIN
    assert made.settle([Outcome(first, b"receipt")]) == (b"receipt",)
    assert made.claim([second]) == (Claim(ClaimKind.ANSWERED, b"receipt"),)


def test_a_client_that_is_refused_often_does_not_fill_the_register(tmp_path: Path) -> None:
    made = register(tmp_path)
    for number in range(100):
        slot = Slot(3, "a", number, digest(number))
        made.claim([slot, slot])
        made.settle([Outcome(slot, reason="not_finite")])
    assert made._db.execute("SELECT COUNT(*) FROM known_names").fetchone() == (32,)
    assert made._db.execute("SELECT COUNT(*) FROM slots").fetchone() == (0,)


def test_what_a_round_has_heard_outlives_the_register(tmp_path: Path) -> None:
    book = register(tmp_path)
    book.publish(OpenRound(RoundState.OPEN, "", 4, SigningScope("f"), 1.0), np.ones(3, np.float32))
    book.settle([Outcome(Slot(4, "a", 0, digest(1)), b"yes", None, {"loss": 1.0}, 5)])
    book.note_evaluation(4, Measured("b", {"accuracy": 0.5}, 7))
    book.pause(True)
    before = book.heard(4)
    book.close()
    book = register(tmp_path)
    heard = book.heard(4)
    assert heard.trained == before.trained == (Measured("a", {"loss": 1.0}, 5),)
    assert heard.evaluated == before.evaluated == (Measured("b", {"accuracy": 0.5}, 7),)
    assert heard.is_paused, "as an operator has said"
    assert not heard.is_published, "and the server tells it the round again"
    book.publish(OpenRound(RoundState.OPEN, "", 5, SigningScope("f"), 1.0), None)
    assert book.heard(4).trained == (), "of a round that is over"
