"""Every error survives pickling, with its type, its attributes and its text."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray import errors
from scarcity_ray.errors import ScarcityError

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


def test_the_tree_is_the_one_that_is_drawn():
    drawn = errors.__doc__ or ""
    for cls in ERRORS:
        assert cls.__name__ in drawn
        assert cls.__mro__[1].__name__ in ("Exception", *(e.__name__ for e in ERRORS))


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
