"""Shamir shares against the field's algebra, Lagrange over fractions, and the ``shamirs`` package."""

from __future__ import annotations

import itertools
import os
from fractions import Fraction

import numpy as np
import pytest
import shamirs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scarcity_ray.secagg import shamir

SECRETS = st.binary(min_size=32, max_size=32)


def limbs_of(share: bytes) -> list[int]:
    """An independent reading of the 34 bytes: sixteen little-endian words, and a flag bit each."""
    flags = int.from_bytes(share[32:], "little")
    return [int.from_bytes(share[2 * i : 2 * i + 2], "little") + 65536 * (flags >> i & 1) for i in range(16)]


def lagrange_over_fractions(points: list[int], values: list[int]) -> int:
    """The polynomial's value at 0 over the rationals, then read mod p."""
    total = Fraction(0)
    for i, x in enumerate(points):
        term = Fraction(values[i])
        for j, other in enumerate(points):
            if j != i:
                term *= Fraction(other, other - x)
        total += term
    return total.numerator * pow(total.denominator, -1, 65537) % 65537


@given(secrets=st.lists(SECRETS, min_size=1, max_size=3), data=st.data())
def test_any_threshold_shares_rebuild_the_secret(secrets, data):
    points = data.draw(st.lists(st.integers(1, 65536), min_size=1, max_size=9, unique=True))
    threshold = data.draw(st.integers(1, len(points)))
    dealt = shamir.split(secrets, threshold, points, os.urandom)
    chosen = data.draw(st.permutations(range(len(points))))[: data.draw(st.integers(threshold, len(points)))]
    rebuilt = shamir.rebuild([points[i] for i in chosen], [[row[i] for i in chosen] for row in dealt])
    assert rebuilt == secrets
    assert all(shamir.is_share(share) for row in dealt for share in row)


@given(secret=SECRETS, threshold=st.integers(1, 5))
def test_shares_lie_on_a_polynomial_by_lagrange_over_fractions(secret, threshold):
    points = [1, 2, 5, 7, 40000, 65536]
    (row,) = shamir.split([secret], threshold, points, os.urandom)
    for chosen in itertools.islice(itertools.combinations(range(6), threshold), 4):
        columns = zip(*(limbs_of(row[i]) for i in chosen), strict=True)
        found = [lagrange_over_fractions([points[i] for i in chosen], list(column)) for column in columns]
        assert b"".join(limb.to_bytes(2, "little") for limb in found) == secret


@settings(max_examples=settings.default.max_examples // 3)
@given(secret=SECRETS)
def test_the_shamirs_package_reads_our_shares_and_we_read_its(secret):
    points, threshold = [1, 2, 3, 4, 5, 6, 7], 4
    (row,) = shamir.split([secret], threshold, points, os.urandom)
    words = [int.from_bytes(secret[2 * i : 2 * i + 2], "little") for i in range(16)]
    for limb in range(16):
        foreign = [shamirs.share(x, limbs_of(s)[limb], 65537) for x, s in zip(points, row, strict=True)]
        assert shamirs.interpolate(foreign[1:5], threshold=threshold) == words[limb]
    theirs = [shamirs.shares(word, quantity=7, modulus=65537, threshold=threshold) for word in words]
    values = np.array([[int(column[h].value) for column in theirs] for h in range(7)])
    encoded = [shamir._to_bytes(values[h][None, :])[0].tobytes() for h in range(7)]
    held = [int(theirs[0][h].index) for h in range(7)]
    assert shamir.rebuild(held[2:6], [encoded[2:6]]) == [secret]


@given(values=st.lists(st.integers(1, 65536), min_size=1, max_size=8))
def test_inverse_is_the_field_inverse(values):
    array = np.array(values)
    assert np.all(array * shamir._inverse(array) % 65537 == 1)


@given(points=st.lists(st.integers(1, 65536), min_size=1, max_size=10, unique=True), data=st.data())
def test_lagrange_weights_reproduce_every_polynomial_of_lower_degree(points, data):
    coefficients = data.draw(st.lists(st.integers(0, 65536), min_size=1, max_size=len(points)))
    values = [sum(c * pow(x, k, 65537) for k, c in enumerate(coefficients)) % 65537 for x in points]
    weights = shamir.lagrange_at_zero(points)
    assert sum(int(w) * v for w, v in zip(weights, values, strict=True)) % 65537 == coefficients[0]


@given(one=SECRETS, other=SECRETS)
def test_shares_add_as_the_secrets_do(one, other):
    points = [1, 2, 3]
    first, second = shamir.split([one, other], 2, points, os.urandom)
    added = [
        shamir._to_bytes((np.array(limbs_of(a)) + np.array(limbs_of(b)))[None, :] % 65537)[0].tobytes()
        for a, b in zip(first, second, strict=True)
    ]
    weights = shamir.lagrange_at_zero(points[:2])
    for limb in range(16):
        total = sum(int(w) * limbs_of(s)[limb] for w, s in zip(weights, added, strict=False)) % 65537
        words = [int.from_bytes(x[2 * limb : 2 * limb + 2], "little") for x in (one, other)]
        assert total == sum(words) % 65537


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_fewer_shares_are_uniform_whatever_the_secret(secret):
    """Chi-square of 16000 limbs of one holder's share in 64 cells; false alarm 1e-7 a case."""
    limbs = np.concatenate(
        [limbs_of(shamir.split([secret], 2, [1, 2], os.urandom)[0][0]) for _ in range(1000)]
    )
    counts = np.bincount(np.minimum(limbs * 64 // 65537, 63), minlength=64)
    assert stats.chisquare(counts).pvalue > 1e-7


def test_uniformity_test_catches_shares_that_reveal_the_secret():
    limbs = np.concatenate(
        [limbs_of(shamir.split([bytes(32)], 1, [1], os.urandom)[0][0]) for _ in range(1000)]
    )
    counts = np.bincount(np.minimum(limbs * 64 // 65537, 63), minlength=64)
    assert stats.chisquare(counts).pvalue < 1e-7


def test_biased_word_is_rejected():
    """The one 32-bit word that would make 0 likelier is drawn again."""
    answers = iter([b"\xff" * 4 + (5).to_bytes(4, "little"), (65538).to_bytes(4, "little")])
    drawn = shamir._uniform(2, lambda _: next(answers))
    assert drawn.tolist() == [5.0, 1.0]


def test_every_field_element_survives_its_encoding():
    values = np.array([0, 1, 65535, 65536] * 4)
    share = shamir._to_bytes(values[None, :])[0].tobytes()
    assert len(share) == shamir.SHARE_BYTES
    assert limbs_of(share) == values.tolist()
    assert shamir.is_share(share)


def test_second_encodings_are_no_shares():
    assert not shamir.is_share(b"\x01" + bytes(31) + b"\x01\x00")
    assert not shamir.is_share(bytes(33))


def test_wrong_shares_give_no_secret_or_another_one():
    (row,) = shamir.split([bytes(32)], 2, [1, 2, 3], os.urandom)
    wrong = bytes([row[0][0] ^ 1]) + row[0][1:]
    assert shamir.rebuild([1, 2], [[wrong, row[1]]]) != [bytes(32)]


def test_many_holders_are_exact():
    points = list(range(1, 501))
    secrets = [os.urandom(32), b"\xff" * 32]
    dealt = shamir.split(secrets, 334, points, os.urandom)
    assert shamir.rebuild(points[100:434], [row[100:434] for row in dealt]) == secrets
