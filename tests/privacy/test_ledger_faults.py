"""The budget on a disk that stops at any system call, with torn writes, and with a power cut."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FAULTS = Path(__file__).parent / "faults"
STRIDE = 2 if os.environ.get("CI") else 6
"""The disk stops at every second system call in CI, by hand at all, elsewhere at every sixth."""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler to stop the disk at a system call")
    built = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", built, FAULTS / "faults.c", "-ldl"], check=True
    )
    return built


@pytest.fixture
def folder(tmp_path):
    """In memory where that is possible: what is synced is told by the library, not by a disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as place:
        yield Path(place)


def stopped_everywhere(library, folder, scenario, stride):
    done = subprocess.run(
        [sys.executable, FAULTS / "driver.py", library, folder, scenario, str(stride)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
@pytest.mark.parametrize("stride", [STRIDE, pytest.param(1, marks=pytest.mark.slow)])
def test_nothing_that_was_allowed_is_lost_whatever_call_is_the_last(library, folder, stride):
    report = stopped_everywhere(library, folder, "synced", stride)
    assert report["complaints"] == []
    assert report["stops"] > 100 / stride


@pytest.mark.long
def test_a_ledger_that_does_not_sync_each_commit_is_caught(library, folder):
    report = stopped_everywhere(library, folder, "unsynced", STRIDE)
    assert any(wrong.startswith("lost") for _, _, state, wrong in report["complaints"] if state == "synced")
