"""A client's record on its way between roles."""

from __future__ import annotations

import pickle
from dataclasses import fields

import numpy as np

from scarcity_ray.baskets.client_memory import ClientMemory
from scarcity_ray.baskets.reports import Member


def test_a_member_arrives_as_it_was_sent() -> None:
    sent = Member("ann", "clinic", bytes(32), np.arange(3.0), 0.25, 17, ClientMemory("ann", trust=0.5))
    told = {field.name: getattr(sent, field.name) for field in fields(Member)}
    assert all(told[field.name] != field.default for field in fields(Member) if field.name != "features")
    arrived = pickle.loads(pickle.dumps(sent))
    there = {field.name: getattr(arrived, field.name) for field in fields(Member)}
    np.testing.assert_array_equal(there.pop("features"), told.pop("features"))
    assert there == told
