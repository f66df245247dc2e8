"""Saved models come back whole, without pickle, and a file that is none is refused."""

from __future__ import annotations

import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from scarcity_ray_client import ModelRefused, UsageError, export_model, load_model, save_model
from scarcity_ray_client.models.trees import named_leaves
from tests.client.test_codec import TREES, same_structure


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TREES)
def test_a_saved_tree_comes_back_whole(tmp_path, tree):
    save_model(tmp_path / "m.npz", tree)
    again = load_model(tmp_path / "m.npz", like=tree)
    same_structure(tree, again)
    by_name = load_model(tmp_path / "m.npz")
    for (name, leaf), (_, due) in zip(named_leaves(again), named_leaves(tree), strict=True):
        np.testing.assert_array_equal(leaf, due)
        np.testing.assert_array_equal(np.asarray(by_name[name], np.float64), np.asarray(due, np.float64))
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def test_a_saved_model_is_exported_by_name(tmp_path):
    save_model(tmp_path / "m.npz", {"a": [np.float32([1, 2])], "b": np.ones(2, ml_dtypes.bfloat16)})
    export_model(tmp_path / "m.npz", tmp_path / "named.npz", "numpy")
    with np.load(tmp_path / "named.npz", allow_pickle=False) as named:
        assert {name: named[name].tolist() for name in named} == {"a.0": [1, 2], "b": [1, 1]}


def test_another_model_is_refused_by_name(tmp_path):
    save_model(tmp_path / "m.npz", {"w": np.ones(2)})
    for like, part in (
        ({"w": np.ones(3)}, "w"),
        ({"w": np.ones(2, int)}, "w"),
        ({"v": np.ones(2)}, "v"),
        ({}, "w"),
        ({"w": np.ones(2), "more": 1.0}, "more"),
    ):
        with pytest.raises(ModelRefused) as refused:
            load_model(tmp_path / "m.npz", like=like)
        assert refused.value.part == part


def test_a_file_that_is_no_saved_model_is_refused(tmp_path):
    whole = tmp_path / "m.npz"
    save_model(whole, {"w": np.arange(1000.0)})
    content = whole.read_bytes()
    files = {"torn": content[:700], "empty": b"", "text": b"hello", "pickle": b"\x80\x04N."}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    np.savez(tmp_path / "foreign.npz", w=np.ones(2))
    np.savez(tmp_path / "objects.npz", header=np.array([None], dtype=object))
    for change in ({"version": 99}, {"format": "other"}, {"parts": [{"name": "w"}]}, {"parts": 3}):
        header = json.loads(np.load(whole)["header"].tobytes()) | change
        np.savez(
            tmp_path / f"{next(iter(change))}.npz",
            header=np.frombuffer(json.dumps(header).encode(), np.uint8),
        )
    with zipfile.ZipFile(tmp_path / "shape.npz", "w") as archive, zipfile.ZipFile(whole) as good:
        archive.writestr("header.npy", good.read("header.npy"))
        with archive.open("0.npy", "w") as file:
            np.save(file, np.ones(3))
    deep = np.frombuffer(b"[" * 100_000, np.uint8)
    np.savez(tmp_path / "deep.npz", header=deep)
    np.savez_compressed(tmp_path / "deflated.npz", header=deep)
    for name, place, byte in (("newer", 6, 213), ("encrypted", 8, 1)):
        data = bytearray(content)
        data[data.rindex(b"PK\1\2") + place] = byte
        (tmp_path / f"{name}.npz").write_bytes(data)
    data = bytearray((tmp_path / "deflated.npz").read_bytes())
    data[60:90] = bytes(30)
    (tmp_path / "torn_within.npz").write_bytes(data)
    array = b"\x93NUMPY\1\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000000,)}"
    with zipfile.ZipFile(tmp_path / "endless.npz", "w") as archive:
        archive.writestr("header.npy", array.ljust(127) + b"\n")
    for path in [*tmp_path.iterdir(), tmp_path / "absent.npz"]:
        if path != whole:
            with pytest.raises(UsageError, match=path.name):
                load_model(path)
