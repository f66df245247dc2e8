"""Uploads that are sent in parts, and go on where they were cut.

A part is appended to a file of the gateway, so that the upload survives the connection and the gateway's
process; at another gateway it begins again. What was acknowledged of it is on the disk's file system, not
forced to the disk: after a power failure the length on the disk is what counts. The digest in its name is
checked once all of it is there.

Guarantees:
    a_part_is_appended_where_the_upload_ends_or_not_at_all
    what_is_read_back_has_the_digest_that_it_was_named_by
    uploads_of_a_gateway_that_was_killed_go_on
    files_never_take_more_than_their_cap
    an_upload_that_does_not_grow_is_dropped
    a_client_has_few_unfinished_uploads: One that it begins beyond takes the place of its oldest.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from scarcity_ray.errors import StorageError
from scarcity_ray.private_folder import why_not_private

MOST_OF_CLIENT = 2
"""Unfinished uploads of one client, so that none fills the disk for all: this round's and the last one's."""
_PART = ".part"


@dataclass(frozen=True)
class UploadKey:
    """Which upload: of whom, for which round, of which body (SHA-256, hexadecimal)."""

    client_id: str
    round_id: int
    digest: str

    @property
    def file(self) -> str:
        """Its file's name, which tells nothing of the client and leads nowhere else."""
        said = f"{self.round_id}/{self.digest}/{self.client_id}"
        return f"{self.whose}{hashlib.sha256(said.encode()).hexdigest()}{_PART}"

    @property
    def whose(self) -> str:
        """What all names of the client's files begin with."""
        return hashlib.sha256(self.client_id.encode()).hexdigest()[:32] + "-"


@dataclass(frozen=True)
class Standing:
    """How far an upload is; `length` is what it will have, 0 before its first part has told."""

    offset: int
    length: int


class Uploads:
    """One gateway's unfinished uploads.

    Args:
        folder: Made if it is not there; of this user alone.
        most_bytes: Of all of them.
        most_seconds: That one may lie without growing.

    Raises:
        StorageError: If the folder cannot be used.
    """

    def __init__(self, folder: Path, most_bytes: int, most_seconds: float) -> None:
        self._folder, self._most, self._most_seconds = folder, most_bytes, most_seconds
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            why = why_not_private(folder, "the folder of unfinished uploads")
        except OSError as error:
            why = f"{folder}: {error.strerror}; give a folder that can be written"
        if why:
            raise StorageError(why)
        self._lengths: dict[str, int] = {}
        self._bytes = sum(path.stat().st_size for path in folder.glob(f"*{_PART}"))

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return self._bytes

    def standing(self, key: UploadKey) -> Standing:
        """How far an upload is; nothing was sent of one that is not there."""
        return Standing(self._size(key), self._lengths.get(key.file, 0))

    def append(self, key: UploadKey, offset: int, part: bytes | memoryview, length: int) -> Standing | None:
        """Append a part; None, and nothing changed, if there is no room on the disk.

        Args:
            offset: Where the sender says that the part begins; elsewhere than the upload's end it is not
                appended.
            length: Of the whole body; a part that goes beyond is not appended.

        Returns:
            How far the upload is now.

        Raises:
            StorageError: If the disk refuses.
        """
        size = self._size(key)
        if offset != size or size + len(part) > length:
            return Standing(size, self._lengths.get(key.file, length))
        path = self._folder / key.file
        if not path.exists():
            self._make_room(key)
        if self._bytes + len(part) > self._most:
            return None
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(part)
        except OSError as error:
            # What was written of the part is there, and counts: the sender asks where to go on.
            self._bytes += self._size(key) - size
            raise StorageError(f"an upload cannot be written: {error.strerror}") from None
        self._bytes += len(part)
        self._lengths[key.file] = length
        return Standing(size + len(part), length)

    def take(self, key: UploadKey) -> bytes | None:
        """The body of a whole upload; None, and the file is gone, if it is not what its digest says.

        The file stays until `drop`: if the gateway dies as the update is judged, it is there again.

        Raises:
            StorageError: If it cannot be read.
        """
        try:
            body = (self._folder / key.file).read_bytes()
        except OSError as error:
            raise StorageError(f"an upload cannot be read: {error.strerror}") from None
        if hashlib.sha256(body).hexdigest() == key.digest:
            return body
        self.drop(key)
        return None

    def drop(self, key: UploadKey) -> None:
        """Forget an upload: it was judged, or is not wanted."""
        self._remove(self._folder / key.file)

    def sweep(self, now: float) -> int:
        """Drop uploads that have not grown for too long, by the clock of file times; how many."""
        old = [path for path in self._folder.glob(f"*{_PART}") if _modified(path) < now - self._most_seconds]
        for path in old:
            self._remove(path)
        return len(old)

    def _make_room(self, key: UploadKey) -> None:
        own = sorted(self._folder.glob(f"{key.whose}*{_PART}"), key=_modified)
        for path in own[: max(0, len(own) - MOST_OF_CLIENT + 1)]:
            self._remove(path)

    def _size(self, key: UploadKey) -> int:
        try:
            return (self._folder / key.file).stat().st_size
        except FileNotFoundError:
            return 0

    def _remove(self, path: Path) -> None:
        self._lengths.pop(path.name, None)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return
        self._bytes -= size


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
