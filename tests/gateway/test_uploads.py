"""Uploads in parts, against a model of what lies on the disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import StorageError
from scarcity_ray.gateway.uploads import UploadKey, Uploads

BODIES = [bytes(range(size)) for size in (1, 7, 40)]
KEYS = [UploadKey(f"c{i}", i, hashlib.sha256(body).hexdigest()) for i, body in enumerate(BODIES)]
MOST = 60


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["part", "wrong_offset", "too_long", "take", "drop", "restart"]),
            st.integers(0, 40),
        ),
        max_size=20,
    )
)
def test_a_part_is_appended_where_the_upload_ends_or_not_at_all(acts: list[tuple[int, str, int]]) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")) as place:
        uploads = Uploads(Path(place) / "uploads", MOST, 100.0)
        sent = [0, 0, 0]
        for which, act, count in acts:
            key, body, offset = KEYS[which], BODIES[which], sent[which]
            if act == "part":
                part = body[offset : offset + count]
                standing = uploads.append(key, offset, part, len(body))
                if sum(sent) + len(part) > MOST:
                    assert standing is None, "no room"
                else:
                    sent[which] += len(part)
                    assert standing is not None
            elif act == "wrong_offset":
                standing = uploads.append(key, offset + 1 + count, b"x", len(body))
                assert standing is not None
            elif act == "too_long":
                standing = uploads.append(key, offset, bytes(len(body) + 1), len(body))
                assert standing is not None
            elif act == "take" and offset == len(body):
                assert uploads.take(key) == body
            elif act == "drop":
                uploads.drop(key)
                sent[which] = 0
            elif act == "restart":
                uploads = Uploads(Path(place) / "uploads", MOST, 100.0)
            assert [uploads.standing(one).offset for one in KEYS] == sent
            assert uploads.num_bytes == sum(sent) <= MOST


def test_what_is_read_back_has_the_digest_that_it_was_named_by(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads", MOST, 100.0)
    uploads.append(KEYS[1], 0, b"another", 7)
    assert uploads.take(KEYS[1]) is None
    assert uploads.standing(KEYS[1]).offset == 0
    assert uploads.num_bytes == 0


def test_an_upload_that_does_not_grow_is_dropped(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads", MOST, 100.0)
    uploads.append(KEYS[1], 0, b"abc", 7)
    uploads.append(KEYS[2], 0, b"abc", 40)
    os.utime(tmp_path / "uploads" / KEYS[1].file, (0, 0))
    assert uploads.sweep(time.time()) == 1
    assert [uploads.standing(key).offset for key in KEYS[1:]] == [0, 3]


def test_the_folder_is_this_users_alone(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir(mode=0o755)
    with pytest.raises(StorageError, match="chmod 700"):
        Uploads(tmp_path / "uploads", MOST, 100.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Uploads(tmp_path / "file", MOST, 100.0)


def test_a_client_has_few_unfinished_uploads(tmp_path: Path) -> None:
    """One that begins many, of no bytes or of many, fills neither the disk nor the folder."""
    uploads = Uploads(tmp_path / "uploads", MOST, 100.0)
    assert uploads.append(KEYS[1], 0, b"abc", 7) is not None
    for number in range(20):
        key = UploadKey("greedy", 3, hashlib.sha256(bytes([number])).hexdigest())
        standing = uploads.append(key, 0, bytes(20 * (number % 2)), 40)
        assert standing is not None
        os.utime(tmp_path / "uploads" / key.file, (number, number))
    assert len(list((tmp_path / "uploads").iterdir())) == 1 + 2
    assert uploads.standing(KEYS[1]).offset == 3, "another's stays"
    assert uploads.num_bytes == 3 + 20
