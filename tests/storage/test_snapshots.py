"""Snapshots: what is read is what was written, and what cannot be is refused by its path."""

from __future__ import annotations

import enum
import math
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pyarrow.fs import LocalFileSystem

from scarcity_ray.errors import StorageError
from scarcity_ray.storage import snapshots
from scarcity_ray.storage.codec import Codec
from scarcity_ray.storage.snapshots import ChangingState, LocalFolder, ObjectFolder, Snapshots


class Colour(enum.StrEnum):
    RED = "red"


class Key(NamedTuple):
    client: str
    digest: bytes


@dataclass(frozen=True)
class Held:
    key: Key
    colour: Colour = Colour.RED
    seen: set[str] = field(default_factory=set)


CODEC = Codec(Colour, Key, Held)
keys = st.builds(Key, st.text(), st.binary())
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), keys,
    st.builds(Held, keys, st.just(Colour.RED), st.sets(st.text())),
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner, inner),
        st.frozensets(st.integers()),
        st.dictionaries(st.one_of(st.text(), st.integers(), st.tuples(st.text(), st.integers())), inner),
    ),
    max_leaves=8,
)


@given(value=values)
def test_what_is_decoded_is_what_was_encoded(value):
    for back in (CODEC.decode(*CODEC.encode(value)), CODEC.unpack(CODEC.pack(value))):
        assert back == value
        assert type(back) is type(value)


@given(
    array=st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]).flatmap(
        lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, min_side=0, max_side=3))
    )
)
def test_arrays_come_back_bit_by_bit(array, tmp_path_factory):
    kept = Snapshots(str(tmp_path_factory.mktemp("kept")), "a")
    kept.write("state", {"row": array, "twice": (array, math.inf)}, CODEC)
    back = kept.read("state", CODEC)
    assert back["row"].dtype == array.dtype
    assert back["row"].shape == array.shape
    assert back["twice"][0].tobytes() == np.ascontiguousarray(array).tobytes()


def test_an_unknown_class_is_refused():
    plain, held = CODEC.encode(Held(Key("a", b"")))
    with pytest.raises(ValueError, match="Held"):
        Codec().decode(plain, held)
    with pytest.raises(TypeError, match="object is nothing that is kept"):
        CODEC.encode([object()])
    with pytest.raises(TypeError):
        CODEC.encode(np.array([object()]))


def test_the_newest_is_read_and_so_many_are_kept(tmp_path):
    kept = Snapshots(str(tmp_path / "new" / "folder"), "a", 1)
    assert kept.is_empty()
    assert kept.read("state", CODEC) is None
    for number in range(12):
        kept.write("state", number, CODEC, keep=3)
    kept.write("other", "else", CODEC)
    assert kept.read("state", CODEC) == 11
    assert kept.read_all("state", CODEC) == [9, 10, 11]
    assert not kept.is_empty()
    folder = tmp_path / "new" / "folder"
    assert len(list(folder.iterdir())) == 4
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()} == {0o600}


def test_an_earlier_epochs_late_write_is_never_the_newest(tmp_path):
    zombie, heir = (Snapshots(str(tmp_path), "a", epoch) for epoch in (1, 2))
    zombie.write("state", "old", CODEC)
    heir.write("state", "new", CODEC)
    for _ in range(3):
        zombie.write("state", "late", CODEC)
    assert heir.read("state", CODEC) == "new"


def test_what_an_earlier_epoch_still_writes_is_not_read_once_it_was_taken_over(tmp_path):
    zombie, heir = (Snapshots(str(tmp_path), "a", epoch) for epoch in (1, 2))
    changing = ChangingState(zombie, "changing", CODEC)
    changing.write(0)
    changing.change(1, lambda: 1)
    for number in range(3):
        zombie.write("many", number, CODEC, keep=3)
    (tmp_path / ".left").write_text("of a write that was stopped")
    heir.take_over()
    for _ in range(3):
        zombie.write("many", "late", CODEC, keep=3)
        changing.change("late", lambda: "late")
    changing.write("late")
    assert heir.read_all("many", CODEC) == [0, 1, 2]
    assert ChangingState(heir, "changing", CODEC).read() == (0, [1])
    heir.take_over()
    assert heir.write("many", 3, CODEC, keep=3) == 4
    assert heir.read_all("many", CODEC) == [1, 2, 3]
    assert not (tmp_path / ".left").exists()


def test_a_change_that_was_stopped_is_not_there_and_those_before_are(tmp_path):
    kept = Snapshots(str(tmp_path), "a")
    state = ChangingState(kept, "state", CODEC)
    state.write("whole")
    for number in range(3):
        state.change([number, np.arange(number)], list)
    (log,) = tmp_path.glob("*.log")
    content = log.read_bytes()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600

    def found():
        kept.verify()
        whole, changes = state.read()
        assert whole == "whole"
        assert [number for number, _ in changes] == list(range(len(changes)))
        return len(changes)

    ends = [found() for cut in range(len(content) + 1) if log.write_bytes(content[:cut]) == cut]
    assert (ends == sorted(ends), set(ends)) == (True, {0, 1, 2, 3})
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 64
        log.write_bytes(changed)
        with suppress(StorageError):  # or it is taken for the end of what was written
            assert found() <= 3
    log.write_bytes(content.replace(b'"version": 1', b'"version": 9', 1))
    with pytest.raises(StorageError, match=rf"^{log}: .*version 9"):
        kept.verify()


def test_a_change_costs_its_own_size(tmp_path, monkeypatch):
    """And one that finds no room leaves nothing behind."""
    state, sizes = ChangingState(Snapshots(str(tmp_path), "a"), "state", CODEC), []
    write = snapshots.LocalFolder.write

    def counted(store, name, parts):
        sizes.append(sum(map(len, parts)))
        write(store, name, parts)

    monkeypatch.setattr(snapshots.LocalFolder, "write", counted)
    held = ["x" * 200_000]
    state.write(list(held))
    for number in range(2_000):
        held.append(number)
        state.change([number], lambda: list(held))
    assert len(sizes) < 4, "the state is written whole now and then"
    with monkeypatch.context() as stopped:
        stopped.setattr(snapshots.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(StorageError, match=r"log: .*No space left.*make room"):
            state.change("lost", list)
    state.change("kept", list)
    whole, changes = state.read()
    assert [*whole, *(number for (number,) in changes[:-1])] == held
    assert changes[-1] == "kept"


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_torn_file_is_refused_by_its_path(cut, tmp_path):
    kept = Snapshots(str(tmp_path), "a")
    kept.write("state", {"row": np.arange(9.0)}, CODEC)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(StorageError, match=rf"^{file}: .*; .*") as refused:
        kept.read("state", CODEC)
    assert "torn" in str(refused.value) or "no scarcity_ray snapshot" in str(refused.value)


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_changed_bit_is_never_read_as_another_state(place, bit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    kept, value = Snapshots(str(folder), "a"), {"row": list(range(9)), "array": np.arange(3)}
    kept.write("state", value, CODEC)
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1 << bit
    file.write_bytes(bytes(content))
    with suppress(StorageError):  # unless it is a space of the first line, say
        back = kept.read("state", CODEC)
        assert (back["row"], back["array"].tolist()) == (value["row"], [0, 1, 2])


def test_another_federations_file_is_refused_by_its_path(tmp_path):
    Snapshots(str(tmp_path), "a").write("state", 1, CODEC)
    with pytest.raises(StorageError, match=r"state.*of federation 'a', and this is 'b'; name"):
        Snapshots(str(tmp_path), "b").read("state", CODEC)
    (file,) = tmp_path.iterdir()
    file.write_text("{}\n")
    with pytest.raises(StorageError, match=r"no scarcity_ray snapshot"):
        Snapshots(str(tmp_path), "a").read("state", CODEC)


def test_a_newer_releases_file_is_refused_by_name(tmp_path):
    kept = Snapshots(str(tmp_path), "a")
    kept.write("state", 1, CODEC)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes().replace(b'"version": 1', b'"version": 9', 1))
    with pytest.raises(StorageError, match=r"version 9, and this release reads 1 to 1; use the release"):
        kept.read("state", CODEC)


def test_a_stop_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    kept = Snapshots(str(tmp_path), "a")
    kept.write("state", "old", CODEC)
    for moment in ("fsync", "replace"):
        with monkeypatch.context() as stopped:
            stopped.setattr(
                snapshots.os, moment, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
            )
            with pytest.raises(StorageError, match=r"No space left.*make room"):
                kept.write("state", "new", CODEC)
        assert kept.read("state", CODEC) == "old"
        assert len(os.listdir(tmp_path)) == 1


def test_an_object_store_is_written_and_read_like_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "open_store", lambda _: ObjectFolder(LocalFileSystem(), str(tmp_path)))
    kept = Snapshots("s3://bucket/town", "a")
    for number in range(4):
        kept.write("state", {"row": np.arange(number)}, CODEC)
    assert kept.read("state", CODEC)["row"].tolist() == [0, 1, 2]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("path", ["{}", "file://{}"])
def test_a_folder_may_be_named_by_path_or_uri(path, tmp_path):
    store = snapshots.open_store(path.format(tmp_path))
    assert isinstance(store, LocalFolder)
    store.write("a", [b"x"])
    assert (tmp_path / "a").read_bytes() == b"x"
