from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from scarcity_ray.robust.native.cache_folder import UnsafeFolder, kernel_folder, one_at_a_time, private_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders have no owner here")


@pytest.fixture
def home(tmp_path):
    """A folder whose parents are the user's or root's."""
    return tmp_path


def test_a_folder_is_made_with_access_for_its_owner_alone(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    earlier = os.umask(0)
    try:
        folder = kernel_folder("abc")
    finally:
        os.umask(earlier)
    made = [folder, *(parent for parent in folder.parents if parent.is_relative_to(home / "cache"))]
    assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o700] * 4
    assert kernel_folder("abc") == folder


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o750])
def test_a_folder_that_another_user_could_write_to_or_replace_is_refused(home, mode):
    """Whether it is the folder itself or one above, which could be given another one in its place."""
    folder = home / "kernels"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UnsafeFolder, match="open to other users"):
        private_folder(folder)
    if mode != 0o750:
        with pytest.raises(UnsafeFolder, match="writable by other users"):
            private_folder(folder / "key")


def test_a_folder_of_another_user_is_refused(home, monkeypatch):
    folder = private_folder(home / "kernels")
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(UnsafeFolder, match="another user"):
        private_folder(folder)


def test_a_folder_below_one_of_another_user_is_refused(home, monkeypatch):
    folder = private_folder(home / "kernels")
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(home, 4711, -1)
    with pytest.raises(UnsafeFolder, match="above"):
        private_folder(folder)


def test_a_link_is_refused(home):
    (home / "elsewhere").mkdir(mode=0o700)
    (home / "kernels").symlink_to(home / "elsewhere")
    with pytest.raises(UnsafeFolder, match="a link"):
        private_folder(home / "kernels")


def test_a_sticky_folder_above_is_no_danger(home):
    shared = home / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    assert private_folder(shared / "kernels").is_dir()


def test_one_process_at_a_time_compiles(home):
    """Another process waits, until the first one has ended."""
    script = f"""
import time
from pathlib import Path
from scarcity_ray.robust.native.cache_folder import one_at_a_time
with one_at_a_time(Path({str(home)!r})):
    print("in", flush=True)
    input()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "in\n"
        import fcntl

        with (home / "lock").open("w") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        other.stdin.write("\n")
        other.stdin.flush()
        with one_at_a_time(home):
            assert other.wait(10) == 0
