"""Every error survives pickling, with its type, its attributes and its text."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray import errors
from scarcity_ray.errors import ScarcityError
from scarcity_ray_client import errors as client_errors

ERRORS = sorted(
    (e for e in vars(errors).values() if inspect.isclass(e) and issubclass(e, ScarcityError)),
    key=lambda e: e.__name__,
)

VALUES = st.one_of(
    st.integers(), st.floats(allow_nan=False), st.text(), st.none(), st.lists(st.integers(), max_size=3)
)
BY_ANNOTATION = {
    "str": st.text(),
    "int": st.integers(),
    "bool": st.booleans(),
    "object": VALUES,
}


def arguments_of(cls):
    """A strategy for the arguments of an error: those of its own constructor, or one message."""
    if not inspect.isfunction(cls.__init__):
        return st.lists(st.text(), max_size=1).map(tuple)
    parameters = list(inspect.signature(cls).parameters.values())
    return st.tuples(*(BY_ANNOTATION[p.annotation] for p in parameters))


ROOT = Path(__file__).resolve().parents[2]
ROOTS = ("ScarcityError", "ScarcityWarning")


def drawn(text: str) -> dict[str, str]:
    """Each class of a drawn tree, and the one under which it hangs."""
    found: dict[str, str] = {}
    path: list[str] = []
    for line in text.splitlines():
        if root := re.match(r"    (\w+)(?= \(|$)", line):
            path = [root[1]]
        elif leaf := re.match(r"    ([│ ]*)[├└]── (\w+)", line):
            path = [*path[: 1 + len(leaf[1]) // 4], leaf[2]]
            found[leaf[2]] = path[-2]
    return found


def defined(package: Path) -> dict[str, str]:
    """Each class statement of a package that derives from one of the roots, and its first base."""
    bases = {
        node.name: [ast.unparse(base) for base in node.bases]
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.bases
    }
    known = set(ROOTS) | {"UsageError"}
    while more := {name for name, over in bases.items() if over[0] in known} - known:
        known |= more
    return {name: bases[name][0] for name in known & bases.keys() if name not in ROOTS}


def test_the_trees_are_the_ones_that_are_drawn() -> None:
    client = defined(ROOT / "client" / "scarcity_ray_client")
    assert drawn(client_errors.__doc__ or "") == client
    handed_on = {name: client[name] for name in vars(errors).keys() & client.keys()}
    assert drawn(errors.__doc__ or "") == defined(ROOT / "scarcity_ray") | handed_on


def test_a_tree_is_read_as_it_is_drawn() -> None:
    tree = "    A\n    ├── B   words\n    │   └── C\n    └── D\n\n    W (a UserWarning)\n    └── V"
    assert drawn(tree) == {"B": "A", "C": "B", "D": "A", "V": "W"}


@pytest.mark.parametrize("cls", ERRORS)
@given(data=st.data())
def test_an_error_survives_pickling(cls, data):
    arguments = data.draw(arguments_of(cls))
    error = cls(*arguments)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is cls
        assert again.args == error.args
        assert vars(again) == vars(error)
        assert str(again) == str(error)
        assert repr(again) == repr(error)
    assert str(copy.deepcopy(error)) == str(error)


@pytest.mark.parametrize("cls", ERRORS)
def test_an_errors_arguments_are_its_attributes(cls):
    if inspect.isfunction(cls.__init__):
        names = list(inspect.signature(cls).parameters)
        values = ["first", 3, True][: len(names)]
        error = cls(*values)
        assert [getattr(error, name) for name in names] == values


def test_defaults_survive_too():
    error = pickle.loads(pickle.dumps(errors.ActorLost("basket:0")))
    assert (error.role, error.detail, error.retryable) == ("basket:0", "", True)
    assert str(error) == "basket:0 was lost"
    abort = pickle.loads(pickle.dumps(errors.SecureAggregationAborted("too few")))
    assert (str(abort), abort.retryable) == ("too few", True)
    missing = pickle.loads(pickle.dumps(errors.LedgerMissing("gone")))
    assert isinstance(missing, errors.LedgerError)


def test_the_causes_of_an_error_do_not_keep_it_from_travelling():
    error = errors.UsageError("outer")
    error.__cause__ = KeyError(lambda: None)
    assert str(pickle.loads(pickle.dumps(error))) == "outer"


def test_config_errors_and_usage_errors_are_value_errors():
    for cls in (errors.ConfigError, errors.UsageError, errors.TooFewUpdates):
        assert issubclass(cls, ValueError)
