"""Masked inputs are uniform in the ring and independent of the input, also to who knows all masks but one.

What the coordinator learns in a sound session leaves one mask on each input: it rebuilds a survivor's
self mask, or the pair masks of a party that dropped, never both. So the input must look uniform after
either has been taken away. Each test's false-alarm rate is 1e-7 or less; each must reject a party that
skips the mask in question.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scarcity_ray.secagg import Participant
from scarcity_ray.secagg.masking import MaskTerm, apply_masks, self_mask_key

ALARM = 1e-7
WORDS = 100_000


class Recording(Participant):
    """Keeps the terms of its masks, which the tests then take away."""

    def _mask_terms(self, sharers_digest, senders):
        self.terms = super()._mask_terms(sharers_digest, senders)
        self.applied = self.skip(self.terms)
        return self.applied

    def skip(self, terms):
        return terms


class WithoutSelfMask(Recording):
    def skip(self, terms):
        return terms[1:]


class WithoutPairMasks(Recording):
    def skip(self, terms):
        return terms[:1]


class WithoutAnyMask(Recording):
    def skip(self, terms):
        return []


def inputs(ring_bits):
    """Small signed numbers, as fixed point gives them: half of the words 3, half of them -5."""
    vector = np.full(WORDS, 3, dtype=np.int64)
    vector[1::2] = -5
    return vector.astype(f"int{ring_bits}").view(f"uint{ring_bits}")


def masked_by(session_of, kind, ring_bits):
    vectors = {f"basket_{i}": inputs(ring_bits) for i in range(3)}
    session = session_of(
        3, kinds={"basket_1": kind}, vectors=vectors, dimension=WORDS, ring_bits=ring_bits
    ).until("mask")
    party = session.participants["basket_1"]
    message = party.mask(session.coordinator.inbox("basket_1"), vectors["basket_1"])
    return message.vector.copy(), party


def without(vector, terms):
    apply_masks(vector, [MaskTerm(term.key, not term.add) for term in terms])
    return vector


def pvalues(vector):
    """Chi-square of every byte of the words, KS of the words, chi-square of byte against input."""
    raw = vector.view(np.uint8).reshape(WORDS, -1)
    found = [stats.chisquare(np.bincount(raw[:, k], minlength=256)).pvalue for k in range(raw.shape[1])]
    found.append(stats.kstest(vector / 2.0 ** (8 * raw.shape[1]), "uniform").pvalue)
    for k in range(raw.shape[1]):
        table = np.stack([np.bincount(raw[half::2, k], minlength=256) for half in (0, 1)])
        found.append(stats.chi2_contingency(table + 1).pvalue)
    return found


VIEWS = {
    "all masks on": lambda party: [],
    "self mask known": lambda party: party.applied[:1] if party.applied[:1] == party.terms[:1] else [],
    "pair masks known": lambda party: [term for term in party.applied if term in party.terms[1:]],
}


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize("view", VIEWS)
def test_masked_input_is_uniform_to_whoever_lacks_one_mask(session_of, view, ring_bits):
    vector, party = masked_by(session_of, Recording, ring_bits)
    found = pvalues(without(vector, VIEWS[view](party)))
    assert min(found) > ALARM / len(found)


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize(
    ("kind", "view"),
    [
        (WithoutSelfMask, "pair masks known"),
        (WithoutPairMasks, "self mask known"),
        (WithoutAnyMask, "all masks on"),
    ],
)
def test_a_skipped_mask_is_seen(session_of, kind, view, ring_bits):
    vector, party = masked_by(session_of, kind, ring_bits)
    found = pvalues(without(vector, VIEWS[view](party)))
    assert min(found) < ALARM / len(found)


@pytest.mark.parametrize("known", [0, 1])
def test_one_unknown_pair_mask_of_two_suffices(session_of, known):
    """All but one of the others collude with the coordinator, and the self mask is rebuilt."""
    vector, party = masked_by(session_of, Recording, 32)
    found = pvalues(without(vector, [party.terms[0], party.terms[1 + known]]))
    assert min(found) > ALARM / len(found)


def test_a_party_that_skips_a_mask_spoils_the_sum(session_of):
    for kind in (WithoutSelfMask, WithoutPairMasks, WithoutAnyMask):
        session = session_of(3, kinds={"basket_1": kind})
        expected = np.sum(list(session.vectors.values()), axis=0, dtype=np.uint32)
        assert not np.array_equal(session.run(), expected)


def test_recording_changes_nothing(session_of):
    session = session_of(3, kinds={"basket_1": Recording})
    np.testing.assert_array_equal(
        session.run(), np.sum(list(session.vectors.values()), axis=0, dtype=np.uint32)
    )
    party = session.participants["basket_1"]
    assert len({term.key for term in party.terms}) == 3
    assert party.terms[0].key != self_mask_key(bytes(32), party._sharers.digest, "basket_1")
