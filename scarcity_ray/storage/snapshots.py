"""Snapshots: the newest states of roles and drivers, in a folder or an object store (`pyarrow.fs`).

A snapshot is one file, ``NAME.EPOCH.VERSION``: a line of JSON (kind, format version, and the SHA-256 of the
rest), a line of JSON (whose it is, the state, the shapes of its arrays), then the arrays. The newest is the
one of the highest epoch, and in it of the highest version. An epoch is one opening of the federation's
ledger, which one federation at a time can hold: what an earlier one still writes is never read again.

Files hold clients' rows without noise where gossip keeps them: the folder is made for its user alone, and who
may read the store may read these.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np

from scarcity_ray.errors import StorageError
from scarcity_ray.storage.codec import Array, Codec
from scarcity_ray.storage.formats import FORMATS, check_format

KIND = "scarcity_ray snapshot"
_FILE = re.compile(r"(?P<name>[A-Za-z0-9_-]+)\.(?P<epoch>\d{8})\.(?P<version>\d{12})")
_LONGEST_HEAD = 1 << 20


class Store(Protocol):
    """Files by name, each written at once or not at all."""

    def names(self) -> list[str]:
        """Of the files that are there, in any order."""

    def read(self, name: str) -> bytes:
        """A file's content."""

    def write(self, name: str, parts: Sequence[bytes | memoryview]) -> None:
        """Write a file; it is durable when this returns."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


class LocalFolder:
    """A folder of a file system: written beside, synchronised, renamed.

    Guarantees:
        a_stop_at_any_moment_leaves_the_old_file_or_the_new_one
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def names(self) -> list[str]:
        """Of the files that are there."""
        return os.listdir(self._path) if self._path.is_dir() else []

    def read(self, name: str) -> bytes:
        """A file's content."""
        return (self._path / name).read_bytes()

    def write(self, name: str, parts: Sequence[bytes | memoryview]) -> None:
        """Write a file."""
        self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = self._path / f".{name}.{uuid.uuid4().hex}"
        try:
            with open(beside, "xb", opener=_for_this_user) as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self._path / name)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        folder = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self._path / name).unlink(missing_ok=True)


class ObjectFolder:
    """A prefix of an object store, in which one PUT makes a whole object."""

    def __init__(self, files: Any, path: str) -> None:
        self._files = files
        self._path = path.rstrip("/")

    def names(self) -> list[str]:
        """Of the objects that are there."""
        from pyarrow.fs import FileSelector

        found = self._files.get_file_info(FileSelector(self._path, allow_not_found=True))
        return [info.base_name for info in found]

    def read(self, name: str) -> bytes:
        """An object's content."""
        with self._files.open_input_stream(f"{self._path}/{name}") as stream:
            content: bytes = stream.read()
        return content

    def write(self, name: str, parts: Sequence[bytes | memoryview]) -> None:
        """Write an object; it appears when its stream is closed."""
        with self._files.open_output_stream(f"{self._path}/{name}") as stream:
            stream.write(b"".join(parts))

    def remove(self, name: str) -> None:
        """Remove an object."""
        self._files.delete_file(f"{self._path}/{name}")


def open_store(path: str) -> Store:
    """The store at a folder's path or URI.

    Raises:
        StorageError: If nothing can be stored there.
    """
    if "://" not in path:
        return LocalFolder(os.path.abspath(os.path.expanduser(path)))
    if path.lower().startswith("file://"):
        return LocalFolder(unquote(urlsplit(path).path))
    import pyarrow
    from pyarrow.fs import FileSystem

    try:
        return ObjectFolder(*FileSystem.from_uri(path))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise StorageError(f"{path}: storage_path cannot be used ({error}); name another place") from error


@dataclass(frozen=True)
class Snapshots:
    """The snapshots of one federation in one place; can be pickled.

    Guarantees:
        a_torn_file_is_refused_by_its_path
        another_federations_file_is_refused_by_its_path
        an_earlier_epochs_late_write_is_never_the_newest

    Attributes:
        path: The folder or URI.
        owner: The federation's id, which each file names; empty to read whose they are (`owner_of`).
        epoch: Of what is written here.
    """

    path: str
    owner: str = ""
    epoch: int = 0

    def of(self, owner: str, epoch: int) -> Snapshots:
        """The same place, for a federation in an epoch."""
        return replace(self, owner=owner, epoch=epoch)

    def write(self, name: str, value: object, codec: Codec, *, keep: int = 2) -> int:
        """Write the next version of a state, then remove all but the `keep` newest; its version.

        Raises:
            StorageError: If it cannot be written: the disk is full, or read-only.
        """
        store = open_store(self.path)
        before = self._found(store, name)
        version = max((number for epoch, number in before if epoch == self.epoch), default=0) + 1
        plain, arrays = codec.encode(value)
        held = {
            "owner": self.owner,
            "name": name,
            "state": plain,
            "arrays": [[array.dtype.str, list(array.shape)] for array in arrays],
        }
        body: list[bytes | memoryview] = [json.dumps(held).encode() + b"\n", *map(_bytes_of, arrays)]
        digest = hashlib.sha256()
        for part in body:
            digest.update(part)
        head = {"kind": KIND, "version": FORMATS[KIND], "sha256": digest.hexdigest()}
        file = _file_name(name, self.epoch, version)
        try:
            store.write(file, [json.dumps(head).encode() + b"\n", *body])
            for epoch, number in sorted([*before, (self.epoch, version)])[:-keep]:
                store.remove(_file_name(name, epoch, number))
        except OSError as error:
            raise StorageError(
                f"{self.path}/{file}: cannot be written ({error}); make room there, or give the user the "
                "right to write, and resume"
            ) from error
        return version

    def read(self, name: str, codec: Codec) -> Any | None:
        """The newest version of a state; None if there is none.

        Raises:
            StorageError: If it is torn, or another federation's, or of a newer release.
        """
        store = open_store(self.path)
        found = self._found(store, name)
        return self._read(store, _file_name(name, *max(found)), codec) if found else None

    def read_all(self, name: str, codec: Codec) -> list[Any]:
        """All versions that are kept, oldest first.

        Raises:
            StorageError: As `read`.
        """
        store = open_store(self.path)
        found = sorted(self._found(store, name))
        return [self._read(store, _file_name(name, *place), codec) for place in found]

    def verify(self) -> None:
        """Check the newest version of each state, but for what it means.

        Raises:
            StorageError: As `read`.
        """
        store = open_store(self.path)
        newest: dict[str, str] = {}
        for file in sorted(filter(_FILE.fullmatch, self._names(store))):
            newest[file.partition(".")[0]] = file
        for file in newest.values():
            self._checked(store, file)

    def is_empty(self) -> bool:
        """Whether nothing is kept here."""
        return not any(map(_FILE.fullmatch, self._names(open_store(self.path))))

    def _names(self, store: Store) -> list[str]:
        try:
            return store.names()
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read ({error}); see that it is there") from error

    def _found(self, store: Store, name: str) -> list[tuple[int, int]]:
        """Epoch and version of each file of a state."""
        matches = filter(None, map(_FILE.fullmatch, self._names(store)))
        return [(int(m["epoch"]), int(m["version"])) for m in matches if m["name"] == name]

    def _read(self, store: Store, file: str, codec: Codec) -> Any:
        held, content, at = self._checked(store, file)
        arrays = []
        for dtype, shape in held["arrays"]:
            array: Array = np.frombuffer(content, dtype, math.prod(shape), at).reshape(shape)
            arrays.append(array)
            at += array.nbytes
        try:
            return codec.decode(held["state"], arrays)
        except ValueError as error:
            raise StorageError(
                f"{self.path}/{file}: holds something else than this release keeps ({error}); use that which "
                "wrote it"
            ) from error

    def _checked(self, store: Store, file: str) -> tuple[dict[str, Any], bytes, int]:
        """A file's state and arrays' shapes, its content, and where the arrays begin in it."""
        where = f"{self.path}/{file}"
        try:
            content = store.read(file)
        except OSError as error:
            raise StorageError(f"{where}: cannot be read ({error}); see that it is there") from error
        line = content[: max(content.find(b"\n", 0, _LONGEST_HEAD), 0)]
        body = memoryview(content)[len(line) + 1 :]
        try:
            head = json.loads(line)
        except ValueError:
            head = None
        head = head if isinstance(head, dict) else {}
        check_format(where, KIND, head.get("kind"), head.get("version"))
        if hashlib.sha256(body).hexdigest() != head.get("sha256"):
            raise StorageError(
                f"{where}: torn or changed: the checksum of its {len(body)} bytes does not fit; put back a "
                "copy, or remove the file to go on from the one before it, without what happened since"
            )
        at = content.index(b"\n", len(line) + 1) + 1
        held: dict[str, Any] = json.loads(content[len(line) + 1 : at])
        if self.owner and held["owner"] != self.owner:
            raise StorageError(
                f"{where}: of federation {held['owner']!r:.80}, and this is {self.owner!r}; name the "
                "storage_path of this one, or the ledger of that one"
            )
        return held, content, at


def _bytes_of(array: Array) -> memoryview:
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _file_name(name: str, epoch: int, version: int) -> str:
    return f"{name}.{epoch:08d}.{version:012d}"


def _for_this_user(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
