"""Contexts, encodings and graphs: what is bound to what."""

from __future__ import annotations

import math
import pickle

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.secagg import Party, SessionContext, colluders_tolerated, least_threshold, threshold_for
from scarcity_ray.secagg.key_agreement import derive_key
from scarcity_ray.secagg.transcript import encode

FIELD = st.one_of(st.binary(max_size=6), st.text(max_size=6), st.integers(0, 2**70))


@given(one=st.lists(FIELD, max_size=4), other=st.lists(FIELD, max_size=4))
def test_encodings_of_different_fields_differ(one, other):
    same = [(type(x), x) for x in one] == [(type(x), x) for x in other]
    assert (encode("label", *one) == encode("label", *other)) is same


def test_neighbouring_splits_and_types_differ():
    assert len({encode("a", "bc"), encode("ab", "c"), encode("a", b"bc"), encode("a", "b", "c")}) == 4
    assert encode("a", 0) != encode("a", b"") != encode("a", "")


CHANGES = {
    "federation_id": "others",
    "session_id": b"another session!",
    "round_id": 4,
    "attempt": 1,
    "model_hash": bytes(32),
    "dimension": 6,
    "ring_bits": 64,
    "threshold": 7,
    "degree": 6,
    "share_threshold": 5,
    "roster": b"r" * 32,
    "facts": b"f" * 32,
}


def test_any_changed_field_changes_the_digest(context_of):
    base = context_of(9, threshold=6, degree=4, share_threshold=4)
    digests = {base.digest()}
    for name, value in CHANGES.items():
        changes = {"threshold": 6, "degree": 4, "share_threshold": 4} | {name: value}
        digests.add(context_of(9, **changes).digest())
    digests.add(context_of(9, threshold=6).digest())
    swapped = (Party("basket_9", base.parties[0].identity_public), *base.parties[1:])
    digests.add(context_of(9, threshold=6, degree=4, share_threshold=4, parties=swapped).digest())
    assert len(digests) == len(CHANGES) + 3
    assert set(CHANGES) | {"parties"} == set(SessionContext.__slots__)


def test_order_of_the_parties_does_not_matter(context_of):
    context = context_of(5)
    assert context_of(5, parties=context.parties[::-1]) == context
    assert pickle.loads(pickle.dumps(context)) == context


@given(num_parties=st.integers(2, 2000), fraction=st.floats(0, 1))
def test_threshold_is_a_majority_and_never_one(num_parties, fraction):
    threshold = threshold_for(num_parties, fraction)
    assert 2 <= threshold <= num_parties
    assert 2 * threshold > num_parties
    assert threshold >= least_threshold(num_parties)


@given(num_parties=st.integers(2, 500), fraction=st.floats(0, 1))
def test_colluders_tolerated_leave_one_secret_of_each_party(num_parties, fraction):
    """Honest holders give one share of the two secrets, colluding holders both."""
    threshold = threshold_for(num_parties, fraction)
    colluders = colluders_tolerated(num_parties, threshold)
    assert 0 <= colluders < threshold
    assert (num_parties - colluders) + 2 * colluders < 2 * threshold
    assert (num_parties - colluders - 1) + 2 * (colluders + 1) >= 2 * threshold


@pytest.mark.parametrize("num_parties", [2, 3, 6, 9, 10, 12, 50, 99, 100])
def test_two_thirds_is_the_papers_threshold(num_parties):
    assert threshold_for(num_parties, 2 / 3) == min(num_parties, max(2, math.floor(2 * num_parties / 3) + 1))
    assert threshold_for(num_parties, 1.0) == num_parties


@pytest.mark.parametrize(
    "changes",
    [
        {"federation_id": ""},
        {"federation_id": "\ud800"},
        {"session_id": bytes(15)},
        {"session_id": "text of 16 chars"},
        {"round_id": -1},
        {"round_id": True},
        {"attempt": 1.0},
        {"model_hash": bytes(31)},
        {"roster": b""},
        {"facts": bytes(33)},
        {"dimension": 0},
        {"ring_bits": 16},
        {"threshold": 5},
        {"threshold": 2},
        {"parties": ()},
        {"parties": None},
        {"degree": 3, "share_threshold": 3},
        {"degree": 2},
        {"degree": 2, "share_threshold": 1},
        {"share_threshold": 3},
    ],
)
def test_impossible_contexts_are_refused(context_of, changes):
    with pytest.raises(UsageError, match="session context: "):
        context_of(4, **changes)


def test_repeated_parties_are_refused(context_of):
    first, *rest = context_of(4).parties
    with pytest.raises(UsageError, match="unique ids"):
        context_of(4, parties=(first, first, *rest))
    with pytest.raises(UsageError, match="unique identities"):
        context_of(4, parties=(first, Party("twin", first.identity_public), *rest))


def test_thresholds_outside_of_their_range_are_refused():
    with pytest.raises(UsageError):
        threshold_for(1, 0.5)
    with pytest.raises(UsageError):
        threshold_for(5, 1.5)


@given(secret=st.binary(min_size=1, max_size=80), binding=st.lists(FIELD, max_size=3))
def test_derived_keys_are_those_of_hkdf(secret, binding):
    peer = HKDF(hashes.SHA256(), 32, salt=None, info=encode("label", *binding))
    assert derive_key(secret, "label", *binding) == peer.derive(secret)
