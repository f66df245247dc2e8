"""A journal that is encrypted by a key kept apart: on a disk, and in a database whose readers have no key."""

from __future__ import annotations

import os
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import Rejection
from scarcity_ray.errors import ActorLost, StorageError
from scarcity_ray.storage.sealing import KEY_BYTES, Sealing, read_key
from tests.federation.test_journalled_baskets import CLIENTS, kill, opened, rows

pytestmark = pytest.mark.filterwarnings("ignore::scarcity_ray.ScarcityWarning")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(os.urandom(KEY_BYTES))
    path.chmod(0o600)
    return path


def begun(folder: Path, **others: Any) -> Any:
    fed = opened(folder, journal=True, **others)
    fed.register_clients([(client, client[0]) for client in CLIENTS])
    return fed


def test_no_row_is_in_the_clear(tmp_path: Path, key: Path) -> None:
    """And all is there after a death, with the key."""
    sent = np.random.default_rng(1).normal(0, 0.1, (len(CLIENTS), 3)).astype(np.float32)
    for key_path in (None, str(key)):
        folder = tmp_path / ("sealed" if key_path else "clear")
        with begun(folder, journal_key_path=key_path) as fed:
            assert all(fed.submit_updates(CLIENTS, sent, 0))
            content = b"".join(path.read_bytes() for path in folder.rglob("basket-0*"))
            assert (sent[0].tobytes() in content) is (key_path is None)
            kill(fed)
            assert fed.offer_update("a0", sent[0], 0).reason is Rejection.REPLAYED
            assert fed.get_stats()["n_updates_buffered"] == len(CLIENTS)
            fed._driver.run_layer1(None, True)
            kill(fed)
            np.testing.assert_allclose(fed.force_aggregate(), sent.mean(axis=0), rtol=1e-4)


def test_without_its_key_a_journal_is_refused_by_name(tmp_path: Path, key: Path) -> None:
    with begun(tmp_path, journal_key_path=str(key)) as fed:
        assert all(fed.submit_updates(CLIENTS, rows(), 0))
        kept = key.read_bytes()
        for write, told in (
            (lambda: key.write_bytes(os.urandom(KEY_BYTES)), "encrypted with another key, moved, or changed"),
            (lambda: key.write_bytes(kept[1:]), "has 32 bytes, this file 31"),
            (lambda: key.chmod(0o640), r"others can read the journal's key \(mode 0640"),
            (key.unlink, "the journal's key cannot be read .*head -c 32 /dev/urandom"),
        ):
            write()
            kill(fed)
            with pytest.raises((ActorLost, StorageError), match=told):
                fed.get_stats()
        key.write_bytes(kept)
        key.chmod(0o600)
        assert fed.get_stats()["n_updates_buffered"] == len(CLIENTS)


def test_what_is_sealed_opens_in_its_place_alone(key: Path) -> None:
    sealing = Sealing(read_key(str(key)), "a")
    sealed = sealing.seal(b"row", "basket", 1)
    assert sealing.open(sealed, "basket", 1) == b"row"
    assert sealing.seal(b"row", "basket", 1) != sealed
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    wrong = ((sealed, "basket", 2), (sealed, "basket"), (sealed,), (changed, "basket", 1), (b"", "basket", 1))
    for other, (kept, *place) in (
        (Sealing(read_key(str(key)), "b"), (sealed, "basket", 1)),
        *((sealing, one) for one in wrong),
    ):
        with pytest.raises(ValueError, match="another key, moved, or changed"):
            other.open(kept, *place)


@pytest.mark.parametrize(
    "command",
    [
        "UPDATE batches SET basket = (SELECT max(basket) FROM batches)",
        "UPDATE batches SET number = number + 100",
        "UPDATE records SET name = 'b0' WHERE kind = 'client' AND name = 'a0'",
    ],
)
def test_what_is_moved_within_an_encrypted_journal_is_refused(
    tmp_path: Path, key: Path, command: str
) -> None:
    """A client's update that is moved to another basket would be in a release twice."""
    with begun(tmp_path, journal_key_path=str(key)) as fed:
        assert all(fed.submit_updates(CLIENTS, rows(), 0))
        fed._driver.run_layer1(None, True)
        assert all(fed.submit_updates(CLIENTS, rows() + 1.0, 0))
        kill(fed)
        (file,) = tmp_path.rglob("basket-0.sqlite")
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute(command).rowcount
            connection.create_function("crc", 1, zlib.crc32)  # who moves updates mends the checksums, too
            connection.execute("UPDATE batches SET checked = crc(columns)")
            connection.execute("UPDATE records SET checked = crc(value)")
            connection.commit()
        with pytest.raises((ActorLost, StorageError), match=r"torn or was changed .*moved"):
            fed.get_stats()
