"""Snapshots: the newest states of roles and drivers, in a folder or an object store (`pyarrow.fs`).

A snapshot is one file, ``NAME.EPOCH.VERSION``: a line of JSON (kind, format version, and the SHA-256 and
length of the rest), a line of JSON (whose it is, the state, the shapes of its arrays), then the arrays. The
newest is the one of the highest epoch, and in it of the highest version. An epoch is one opening of the
federation's ledger, which one federation at a time can hold. A federation that is restored takes all states
over into its own epoch before it reads them, so what an earlier one still writes is never read again.

Where a change is small and the state large (`ChangingState`), changes are appended to a file beside it,
``NAME.EPOCH.VERSION.log``, each in the form of a snapshot.

Files hold clients' rows without noise where gossip keeps them: the folder is made for its user alone, and who
may read the store may read these.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from scarcity_ray.errors import StorageError
from scarcity_ray.storage.codec import Codec, arrays_in, bytes_of, shapes_of
from scarcity_ray.storage.formats import FORMATS, check_format

KIND = "scarcity_ray snapshot"
_FILE = re.compile(r"(?P<name>[A-Za-z0-9_-]+)\.(?P<epoch>\d{8})\.(?P<version>\d{12})")
_LONGEST_HEAD = 1 << 20
_LOG = ".log"
SHORTEST_LOG_BYTES = 1 << 16
"""A log may become so long, however short the snapshot is."""


class Store(Protocol):
    """Files by name, each written at once or not at all."""

    def names(self) -> list[str]:
        """Of the files that are there, in any order."""

    def read(self, name: str) -> bytes:
        """A file's content."""

    def write(self, name: str, parts: Sequence[bytes | memoryview]) -> None:
        """Write a file; it is durable when this returns."""

    def append(self, name: str, parts: Sequence[bytes | memoryview], at: int) -> bool:
        """Write to the end of a file, which is at `at`; False if a file cannot grow here.

        What a write that failed has left after `at` is cut off first.
        """

    def copy(self, name: str, to: str) -> None:
        """Have a file's content under another name too."""

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
        self._sync_folder()

    def append(self, name: str, parts: Sequence[bytes | memoryview], at: int) -> bool:
        """Write to the end of a file."""
        with open(os.open(self._path / name, os.O_WRONLY | os.O_CREAT, 0o600), "wb", buffering=0) as file:
            file.truncate(at)
            file.seek(at)
            content = memoryview(b"".join(parts))
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        if not at:
            self._sync_folder()
        return True

    def copy(self, name: str, to: str) -> None:
        """Have a file's content under another name too."""
        self.write(to, [self.read(name)])

    def check_room(self, num_bytes: int) -> None:
        """Write so much, and remove it again."""
        self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = self._path / f".room.{uuid.uuid4().hex}"
        try:
            with open(beside, "xb", opener=_for_this_user) as file:
                file.write(bytes(num_bytes))
        finally:
            beside.unlink(missing_ok=True)

    def _sync_folder(self) -> None:
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

    def append(self, name: str, parts: Sequence[bytes | memoryview], at: int) -> bool:
        """False: an object is written whole."""
        return False

    def copy(self, name: str, to: str) -> None:
        """Have an object's content under another name too."""
        self._files.copy_file(f"{self._path}/{name}", f"{self._path}/{to}")

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
        return self._write(name, self._parts(name, value, codec), keep)

    def _write(self, name: str, parts: Sequence[bytes | memoryview], keep: int) -> int:
        store = open_store(self.path)
        there = self._names(store)
        before = _places(there, name)
        version = max((number for epoch, number in before if epoch == self.epoch), default=0) + 1
        file = _file_name(name, self.epoch, version)
        with self._writing(file):
            store.write(file, parts)
            for epoch, number in sorted([*before, (self.epoch, version)])[:-keep]:
                old = _file_name(name, epoch, number)
                store.remove(old)
                if old + _LOG in there:
                    store.remove(old + _LOG)
        return version

    def check_room(self, num_bytes: int) -> None:
        """Refuse before something is done whose result could not be kept.

        Raises:
            StorageError: If the folder's disk lacks so much, or is read-only. An object store is not asked.
        """
        store = open_store(self.path)
        if isinstance(store, LocalFolder):
            with self._writing("a release"):
                store.check_room(num_bytes)

    def take_over(self) -> None:
        """Have all states in this epoch, as an earlier one has left them.

        Raises:
            StorageError: If they cannot be read, or not be written.
        """
        store = open_store(self.path)
        there = set(self._names(store))
        for left in there:
            if left.startswith("."):  # A write that was stopped.
                store.remove(left)
        names = {match["name"] for match in map(_FILE.fullmatch, there) if match is not None}
        for name in sorted(names):
            # The newest first: wherever this is stopped, what is newest is newest here too.
            for epoch, version in _line(_places(there, name)):
                if epoch == self.epoch:
                    continue
                old, file = _file_name(name, epoch, version), _file_name(name, self.epoch, version)
                with self._writing(file):
                    if old + _LOG in there:
                        store.copy(old + _LOG, file + _LOG)
                    store.copy(old, file)

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
        line = reversed(_line(self._found(store, name)))
        return [self._read(store, _file_name(name, *place), codec) for place in line]

    def read_every(self, codec: Codec) -> Iterator[Any]:
        """What was ever written and not removed, of all names and epochs, by file name.

        Raises:
            StorageError: As `read`.
        """
        store = open_store(self.path)
        for file in sorted(filter(_FILE.fullmatch, self._names(store))):
            yield self._read(store, file, codec)

    def read_file(self, file: str, codec: Codec) -> Any:
        """The state in a file of this folder, whatever its name and whoever wrote it.

        Raises:
            StorageError: As `read`.
        """
        return self._read(open_store(self.path), file, codec)

    def write_file(self, file: str, value: object, codec: Codec) -> None:
        """Write a state to a file of this folder, for `read_file`.

        Raises:
            StorageError: As `write`.
        """
        with self._writing(file):
            open_store(self.path).write(file, self._parts("", value, codec))

    def states(self) -> set[str]:
        """The names of all states that are here."""
        return {m["name"] for m in map(_FILE.fullmatch, self._names(open_store(self.path))) if m is not None}

    def remove(self, name: str) -> None:
        """Remove all versions of a state.

        Raises:
            StorageError: If it cannot be.
        """
        store = open_store(self.path)
        for place in self._found(store, name):
            file = _file_name(name, *place)
            with self._writing(file):
                store.remove(file)

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
            content = self._content(store, file)
            self._checked(file, content, 0, len(content))
            self._logged(store, file + _LOG)

    def is_empty(self) -> bool:
        """Whether nothing is kept here."""
        return not any(map(_FILE.fullmatch, self._names(open_store(self.path))))

    def _names(self, store: Store) -> list[str]:
        """Of all files that are there."""
        try:
            return store.names()
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read ({error}); see that it is there") from error

    def _found(self, store: Store, name: str) -> list[tuple[int, int]]:
        """Epoch and version of each file of a state."""
        return _places(self._names(store), name)

    @contextmanager
    def _writing(self, file: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self.path}/{file}: cannot be written ({error}); make room there, or give the user the "
                "right to write, and resume"
            ) from error

    def _parts(self, name: str, value: object, codec: Codec) -> list[bytes | memoryview]:
        """A state as a file holds it."""
        plain, arrays = codec.encode(value)
        held = {
            "owner": self.owner,
            "name": name,
            "state": plain,
            "arrays": shapes_of(arrays),
        }
        body: list[bytes | memoryview] = [json.dumps(held).encode() + b"\n", *map(bytes_of, arrays)]
        digest = hashlib.sha256()
        for part in body:
            digest.update(part)
        head = {
            "kind": KIND,
            "version": FORMATS[KIND],
            "sha256": digest.hexdigest(),
            "bytes": sum(map(len, body)),
        }
        return [json.dumps(head).encode() + b"\n", *body]

    def _read(self, store: Store, file: str, codec: Codec) -> Any:
        content = self._content(store, file)
        return self._decoded(file, self._checked(file, content, 0, len(content)), codec)

    def _decoded(self, file: str, part: _Part, codec: Codec) -> Any:
        try:
            return codec.decode(part.held["state"], arrays_in(part.content, part.at, part.held["arrays"]))
        except ValueError as error:
            raise StorageError(
                f"{self.path}/{file}: holds something else than this release keeps ({error}); use that which "
                "wrote it"
            ) from error

    def _content(self, store: Store, file: str) -> bytes:
        try:
            return store.read(file)
        except OSError as error:
            raise StorageError(
                f"{self.path}/{file}: cannot be read ({error}); see that it is there"
            ) from error

    def _checked(self, file: str, content: bytes, start: int, stop: int) -> _Part:
        """The snapshot, or the change, that lies between two places of a file."""
        where = f"{self.path}/{file}"
        head, at = _head_of(content, start)
        check_format(where, KIND, head.get("kind"), head.get("version"))
        if hashlib.sha256(memoryview(content)[at:stop]).hexdigest() != head.get("sha256"):
            raise StorageError(
                f"{where}: torn or changed: the checksum of its {stop - at} bytes does not fit; put back a "
                "copy, or remove the file to go on from the one before it, without what happened since"
            )
        end = content.index(b"\n", at) + 1
        held: dict[str, Any] = json.loads(content[at:end])
        if self.owner and held["owner"] != self.owner:
            raise StorageError(
                f"{where}: of federation {held['owner']!r:.80}, and this is {self.owner!r}; name the "
                "storage_path of this one, or the ledger of that one"
            )
        return _Part(held, content, end)

    def _logged(self, store: Store, file: str) -> list[_Part]:
        """The changes in a log, but for what a write that was stopped has left at its end."""
        found: list[_Part] = []
        if file not in self._names(store):
            return found
        content, start = self._content(store, file), 0
        while start < len(content):
            head, at = _head_of(content, start)
            length = head.get("bytes", 0)
            stop = at + length if type(length) is int else len(content)
            if content.find(b"\n", start) < 0 or stop > len(content):
                break
            found.append(self._checked(file, content, start, stop))
            start = stop
        return found


class ChangingState:
    """A state that changes a little at a time: its last snapshot, and the changes since.

    Where files cannot grow (an object store), each change has it written whole.

    Guarantees:
        a_change_costs_its_own_size: On average. The state is written whole again when the changes since are
            as long.
        a_change_that_was_stopped_is_not_there_and_those_before_are

    Raises:
        StorageError: From all methods, as those of `Snapshots`.
    """

    def __init__(self, kept: Snapshots, name: str, codec: Codec) -> None:
        self._kept, self._name, self._codec = kept, name, codec
        self._log = ""
        self._end = self._most = 0

    def read(self) -> tuple[Any | None, list[Any]]:
        """The newest snapshot, None if there is none, and the changes since."""
        kept, store = self._kept, open_store(self._kept.path)
        found = kept._found(store, self._name)
        if not found:
            return None, []
        file = _file_name(self._name, *max(found))
        changes = [kept._decoded(file + _LOG, part, self._codec) for part in kept._logged(store, file + _LOG)]
        return kept._read(store, file, self._codec), changes

    def write(self, state: object) -> None:
        """Write the state whole."""
        parts = self._kept._parts(self._name, state, self._codec)
        version = self._kept._write(self._name, parts, keep=2)
        self._log, self._end = _file_name(self._name, self._kept.epoch, version) + _LOG, 0
        self._most = max(SHORTEST_LOG_BYTES, sum(map(len, parts)))

    def change(self, change: object, state: Callable[[], object]) -> None:
        """Write a change, or the whole state that it has led to."""
        parts = self._kept._parts(self._name, change, self._codec)
        length = sum(map(len, parts))
        if self._log and self._end + length <= self._most:
            with self._kept._writing(self._log):
                if open_store(self._kept.path).append(self._log, parts, self._end):
                    self._end += length
                    return
        self.write(state())


class _Part(NamedTuple):
    """A snapshot or change: whose it is, the state, its arrays' shapes; and where these begin in a file."""

    held: dict[str, Any]
    content: bytes
    at: int


def _head_of(content: bytes, start: int) -> tuple[dict[str, Any], int]:
    """The head that begins at `start`, empty if none does, and where it ends."""
    line = content[start : max(content.find(b"\n", start, start + _LONGEST_HEAD), start)]
    try:
        head = json.loads(line)
    except ValueError:
        head = None
    return head if isinstance(head, dict) else {}, start + len(line) + 1


def _places(files: Iterable[str], name: str) -> list[tuple[int, int]]:
    """Epoch and version of each file of a state."""
    matches = filter(None, map(_FILE.fullmatch, files))
    return [(int(m["epoch"]), int(m["version"])) for m in matches if m["name"] == name]


def _line(places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The newest of a state's files and those before it, without what earlier epochs wrote too late."""
    line: list[tuple[int, int]] = []
    for epoch, version in sorted(places, reverse=True):
        if not line or version < line[-1][1]:
            line.append((epoch, version))
    return line


def _file_name(name: str, epoch: int, version: int) -> str:
    return f"{name}.{epoch:08d}.{version:012d}"


def _for_this_user(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
