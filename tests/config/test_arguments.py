"""A refused value is shown in a line, whatever it is."""

from __future__ import annotations

import pytest

from scarcity_ray_client.errors import MOST_SHOWN, shown


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no representation")


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        b"x" * 10**6,
        nested(60),
        {"deep": nested(60)},
        [10**5000],
        -(10**5000),
        list(range(10**6)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_however_large_or_nested_is_cut_short(value: object) -> None:
    assert len(shown(value)) <= MOST_SHOWN


def test_a_value_that_cannot_be_written_out_is_named_by_its_class() -> None:
    assert "Broken" in shown(Broken())


@pytest.mark.parametrize("value", [None, True, 7, 1e-5, "a", b"a", (1, 2), {"a": [1]}])
def test_a_short_value_is_shown_as_python_writes_it(value: object) -> None:
    assert shown(value) == repr(value)
