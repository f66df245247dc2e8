"""How trust follows what a client does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.directory.trust import FIRST_TRUST, after_acceptance, after_agreement, after_refusal

SHARE = st.floats(0, 1)
ACTS = st.lists(SHARE | st.sampled_from(["refused", "accepted"]), max_size=60)


def follow(trust: float, acts: list[float | str]) -> float:
    for act in acts:
        if act == "refused":
            trust = after_refusal(trust)
        elif act == "accepted":
            trust = after_acceptance(trust)
        else:
            trust = after_agreement(trust, float(act))
    return trust


@given(trust=SHARE, acts=ACTS)
def test_trust_stays_in_0_1(trust: float, acts: list[float | str]) -> None:
    assert 0.0 <= follow(trust, acts) <= 1.0


@given(trust=SHARE, more=SHARE, acts=ACTS, data=st.data())
def test_trust_is_monotone_in_each_agreement_and_in_what_it_was_before(
    trust: float, more: float, acts: list[float | str], data: st.DataObject
) -> None:
    better = [act if isinstance(act, str) else data.draw(st.floats(act, 1)) for act in acts]
    assert follow(max(trust, more), better) >= follow(trust, acts) - 1e-12


@given(trust=SHARE, acts=ACTS)
def test_who_always_agrees_tends_to_1_who_never_does_to_0_whatever_the_trust_before(
    trust: float, acts: list[float | str]
) -> None:
    start = follow(trust, acts)
    assert follow(start, [1.0] * 200) > 1 - 1e-8
    assert follow(start, [0.0] * 200) < 1e-8


@given(trust=SHARE)
def test_a_refused_update_halves_trust(trust: float) -> None:
    assert after_refusal(trust) == trust / 2


def test_only_agreement_or_accepted_updates_give_trust_back() -> None:
    assert FIRST_TRUST == 1.0
    assert after_acceptance(after_refusal(FIRST_TRUST)) == pytest.approx(0.51)
    assert follow(0.5, ["accepted"] * 60) == 1.0
