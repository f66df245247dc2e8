"""A model becomes one vector and comes back: trees of arrays of every kind, by property."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scarcity_ray_client import ModelCodec, ModelRefused, ModelWarning, UsageError
from scarcity_ray_client.models.trees import children, named_leaves, with_leaves

FLOATS = ("float64", "float32", "float16", "bfloat16")
Pair = namedtuple("Pair", ["left", "right"])


@dataclass(frozen=True)
class Layer:
    weight: object
    bias: object = None


@dataclass
class Net:
    layers: list = field(default_factory=list)
    steps: int = 0


def arrays(kinds):
    def of(kind):
        shape = hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
        if kind == "bfloat16":
            small = hnp.arrays(np.float32, shape, elements=st.floats(-(2.0**99), 2.0**99, width=32))
            return small.map(lambda array: array.astype(ml_dtypes.bfloat16))
        if kind.startswith("float"):
            width = int(kind[5:])
            most = float(np.finfo(np.float16 if width == 16 else np.float32).max)
            return hnp.arrays(kind, shape, elements=st.floats(-most, most, width=width))
        return hnp.arrays(kind, shape)

    return st.sampled_from(kinds).flatmap(of)


LEAVES = st.one_of(
    arrays(FLOATS),
    arrays(("int64", "uint8", "bool")),
    st.none(),
    st.integers(-9, 9),
    st.floats(-9, 9, width=32),
)
NAMES = st.text("abcdef_", min_size=1, max_size=4)


def containers(inner):
    return st.one_of(
        st.dictionaries(NAMES, inner, max_size=3),
        st.dictionaries(NAMES, inner, max_size=3).map(OrderedDict),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
        st.tuples(inner, inner).map(lambda pair: Layer(*pair)),
    )


TREES = st.recursive(LEAVES, containers, max_leaves=6).map(
    lambda tree: {"first": np.float32([1.5]), "rest": tree}
)


def same_structure(one, other):
    assert type(one) is type(other)
    inner, others = children(one), children(other)
    if inner is None:
        if isinstance(one, np.ndarray):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
        return
    for (key, child), (key_again, child_again) in zip(inner, others, strict=True):
        assert key == key_again
        same_structure(child, child_again)


def kind_of(leaf):
    return np.asarray(leaf).dtype.name


@given(TREES)
def test_names_shapes_and_dtypes_are_kept(tree):
    codec = ModelCodec(tree)
    again = codec.decode(codec.encode(tree))
    same_structure(tree, again)
    assert [part.name for part in codec.parts] == [name for name, _ in named_leaves(tree)]
    assert codec.dimension == sum(np.size(x) for _, x in named_leaves(tree) if kind_of(x) in FLOATS)


@given(TREES)
def test_float32_survives_exactly_and_other_floats_to_the_nearest(tree):
    codec = ModelCodec(tree)
    again = dict(named_leaves(codec.decode(codec.encode(tree))))
    for name, leaf in named_leaves(tree):
        if kind_of(leaf) in FLOATS:
            nearest = np.asarray(np.asarray(leaf).astype(np.float32)).astype(np.asarray(leaf).dtype)
            np.testing.assert_array_equal(np.asarray(again[name]), nearest)
            if kind_of(leaf) != "float64":
                np.testing.assert_array_equal(np.asarray(again[name]), np.asarray(leaf))


@given(TREES, st.integers(0, 2**32 - 1))
def test_a_vector_that_was_decoded_is_encoded_again(tree, seed):
    codec = ModelCodec(tree)
    vector = np.random.default_rng(seed).normal(size=codec.dimension).astype(np.float32)
    once = codec.encode(codec.decode(vector))
    np.testing.assert_array_equal(once, codec.encode(codec.decode(once)))
    if all(part.dtype in ("float32", "float64") for part in codec.trained):
        np.testing.assert_array_equal(once, vector)


@given(TREES)
def test_integers_are_never_averaged(tree):
    codec = ModelCodec(tree)
    again = dict(named_leaves(codec.decode(codec.encode(tree) + 1.0)))
    trained = {part.name for part in codec.trained}
    for name, leaf in named_leaves(tree):
        assert (name in trained) == (kind_of(leaf) in FLOATS)
        if name not in trained:
            np.testing.assert_array_equal(again[name], leaf)


@given(TREES)
def test_decoded_models_share_no_memory(tree):
    codec = ModelCodec(tree)
    vector = codec.encode(tree)
    vector.setflags(write=False)
    one, other = codec.decode(vector), codec.decode(vector)
    before = copy.deepcopy(other)
    for _, leaf in named_leaves(one):
        if isinstance(leaf, np.ndarray):
            assert leaf.flags.writeable
            leaf[...] = 1
    for model in (other, codec.decode(vector)):
        for (_, leaf), (_, due) in zip(named_leaves(model), named_leaves(before), strict=True):
            np.testing.assert_array_equal(leaf, due)


@given(TREES)
def test_a_codec_travels(tree):
    codec = pickle.loads(pickle.dumps(ModelCodec(tree)))
    np.testing.assert_array_equal(codec.encode(tree), ModelCodec(tree).encode(tree))


@given(TREES)
def test_a_delta_is_what_changed(tree):
    codec = ModelCodec(tree)
    start = codec.decode(codec.encode(tree))
    after = codec.decode(codec.encode(tree) * np.float32(0.5))
    assert not codec.delta(start, start).any()
    due = codec.encode(after).astype(np.float64) - codec.encode(start)
    np.testing.assert_array_equal(codec.delta(start, after), due.astype(np.float32))
    moved = codec.read_delta(codec.decode(codec.delta(start, after)))
    assert moved.shape == (codec.dimension,)


def test_a_small_change_of_a_float64_is_not_rounded_away():
    codec = ModelCodec({"w": np.array([1.0])})
    change = codec.delta({"w": np.array([1.0])}, {"w": np.array([1.0 + 1e-12])})
    assert change == pytest.approx([1e-12], rel=1e-3)


def test_tied_weights_are_counted_once_and_stay_tied():
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    for tied in (weight, weight.view(), weight[:]):
        codec = ModelCodec({"encoder": weight, "bias": np.zeros(1), "decoder": tied})
        assert codec.dimension == 7
        assert [part.tied_to for part in codec.parts] == ["", "", "encoder"]
        model = codec.decode(np.ones(7, np.float32))
        assert model["encoder"] is model["decoder"]
        untied = {**model, "decoder": model["encoder"] + 1}
        with pytest.raises(ModelRefused, match="decoder: it was tied to encoder"):
            codec.encode(untied)
        codec.encode({**model, "decoder": model["encoder"].copy()})


def test_parts_that_overlap_in_part_are_refused_and_neighbours_are_not():
    whole = np.zeros(6, np.float32)
    for overlap in (whole[2:], whole[:3], whole[::-1], whole.reshape(2, 3)):
        with pytest.raises(ModelRefused, match="shares part of its memory"):
            ModelCodec({"a": whole, "b": overlap})
    assert ModelCodec({"a": whole[:3], "b": whole[3:]}).dimension == 6


class Foreign:
    pass


NOT_CARRIED = {
    "text": "relu",
    "bytes": b"x",
    "texts": np.array(["a"]),
    "objects": np.array([1.0, None], dtype=object),
    "complex": np.ones(2, complex),
    "a complex number": 1j,
    "dates": np.array(["2026-01-01"], dtype="datetime64[D]"),
    "records": np.zeros(2, dtype=[("a", "f4")]),
    "long double": np.ones(2, np.longdouble),
    "float8": np.ones(2, ml_dtypes.float8_e4m3fn),
    "masked": np.ma.masked_array([1.0, 2.0], mask=[True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "set": {1.0},
    "function": len,
    "object": Foreign(),
    "class": Layer,
    "long integer": 2**80,
}


@pytest.mark.parametrize("what", NOT_CARRIED)
def test_what_cannot_be_carried_is_refused_by_name(what):
    with pytest.raises(ModelRefused) as refused:
        ModelCodec({"good": np.ones(2), "layers": [{"bad": NOT_CARRIED[what]}]})
    assert (refused.value.part, refused.value.flaw) == ("layers.0.bad", "unsupported")
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


def test_sparse_names_and_nesting_are_refused_by_name():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(ModelRefused, match=r"w: a sparse array .* is not carried"):
        ModelCodec({"w": sparse.eye(2)})
    with pytest.raises(ModelRefused, match=r"a\.b: two parts"):
        ModelCodec({"a.b": np.ones(1), "a": {"b": np.ones(1)}})
    with pytest.raises(ModelRefused, match="is no str or int"):
        ModelCodec({("a", "b"): np.ones(1)})
    around: list = [np.ones(1)]
    around.append(around)
    with pytest.raises(ModelRefused, match="nested too deep"):
        ModelCodec(around)


def test_a_model_with_nothing_to_train_is_refused_and_told_what_it_holds():
    for model in ({}, None, {"w": np.zeros(3, int)}):
        with pytest.raises(ModelRefused, match="no part of it is trained"):
            ModelCodec(model)
    with pytest.raises(ModelRefused, match=r"w \(int64\)"):
        ModelCodec({"w": np.zeros(3, int)})


DUE = {"w": np.zeros((2, 2), np.float32), "inner": [np.zeros(3)], "count": 0}
OTHERS = {
    "inner.0": {"w": DUE["w"], "inner": [np.zeros(4)], "count": 0},
    "w": {"w": np.zeros((2, 2), np.int64), "inner": [np.zeros(3)], "count": 0},
    "extra": {**DUE, "extra": np.zeros(1)},
    "inner.1": {**DUE, "inner": [np.zeros(3), np.zeros(1)]},
    "array": np.zeros(7),
}


@pytest.mark.parametrize("part", OTHERS)
def test_a_model_of_another_structure_is_refused_by_name(part):
    codec = ModelCodec(DUE)
    for call in (codec.encode, codec.read_delta, lambda model: codec.delta(DUE, model)):
        if part == "array" and call == codec.read_delta:
            continue  # a bare vector is a delta
        with pytest.raises(ModelRefused) as refused:
            call(OTHERS[part])
        assert (refused.value.part, refused.value.flaw) == (part, "different")
    with pytest.raises(ModelRefused, match="w: the model lacks it"):
        codec.encode({"inner": DUE["inner"]})


def test_numbers_that_are_not_finite_are_refused_by_name():
    codec = ModelCodec(DUE)
    for bad in (np.nan, np.inf, 1e39):
        broken = {**DUE, "inner": [np.array([0.0, bad, 0.0])]}
        calls = [codec.encode, codec.read_delta]
        if bad != 1e39:
            calls.append(lambda model: codec.delta(DUE, model))
        for call in calls:
            with pytest.raises(ModelRefused) as refused:
                call(broken)
            assert (refused.value.part, refused.value.flaw) == ("inner.0", "not_finite")


def test_a_vector_that_is_none_of_the_codecs_is_refused():
    codec = ModelCodec(DUE)
    for vector in (np.zeros(6), np.zeros((7, 1)), np.full(7, np.nan), np.full(7, 1e39)):
        with pytest.raises(UsageError, match="vector: shape"):
            codec.decode(vector)
    half = ModelCodec({"w": np.zeros(2, np.float16)})
    with pytest.raises(ModelRefused, match="w: 70000 is too great for its float16"):
        half.decode(np.array([1.0, 7e4]))


def test_floats_of_another_width_are_taken_for_the_parts_own():
    codec = ModelCodec({"w": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(codec.encode({"w": np.array([0.1, 0.2])}), np.float32([0.1, 0.2]))


def test_the_order_of_keys_is_no_matter():
    codec = ModelCodec({"a": np.float32([1]), "b": np.float32([2])})
    assert codec.encode({"b": np.float32([2]), "a": np.float32([1])}).tolist() == [1, 2]


def test_what_is_named_as_kept_stays_out_of_the_vector():
    model = {"embedding.table": np.ones((3, 2)), "head": np.zeros(2)}
    codec = ModelCodec(model, keep=["embedding.*"])
    assert codec.dimension == 2
    np.testing.assert_array_equal(codec.decode(np.ones(2))["embedding.table"], model["embedding.table"])
    assert codec.read_delta({"head": np.ones(2)}).tolist() == [1, 1]
    with pytest.raises(UsageError, match=r"'embeding\.\*' fits none of embedding.table, head"):
        ModelCodec(model, keep=["embeding.*"])


def test_running_statistics_are_told_of_and_a_variance_is_never_negative():
    model = {"bn.running_mean": np.zeros(2), "bn.running_var": np.ones(2), "bn.num_batches_tracked": 7}
    with pytest.warns(ModelWarning, match=r"bn.running_mean.*GroupNorm"):
        codec = ModelCodec(model)
    made = codec.decode(np.array([-1.0, -1.0, -1.0, 2.0]))
    assert made["bn.running_mean"].tolist() == [-1.0, -1.0]
    assert made["bn.running_var"].tolist() == [0.0, 2.0]
    assert made["bn.num_batches_tracked"] == 7


@given(TREES)
def test_a_tree_taken_apart_is_put_together_again(tree):
    same_structure(tree, with_leaves(tree, dict(named_leaves(tree))))


def test_a_decoded_frozen_dataclass_is_one():
    codec = ModelCodec(Net([Layer(np.ones((2, 2), np.float32))], steps=3))
    made = codec.decode(np.zeros(4))
    assert isinstance(made, Net)
    assert isinstance(made.layers[0], Layer)
    assert made.steps == 3
