"""The page docs/first_federation.md works as printed: two hospitals train, and have the model."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAINS = {"scarcity-ray": "scarcity_ray.cli.main", "scarcity-ray-client": "scarcity_ray_client.command"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_the_page_of_the_first_federation_works_as_printed(tmp_path: Path) -> None:
    page = (ROOT / "docs/first_federation.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith("cd ")]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "HOME": str(tmp_path),
    }

    def begin(line: str, folder: Path) -> subprocess.Popen[bytes]:
        name, *arguments = shlex.split(line)
        code = f"from {MAINS[name]} import main; main()"
        return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=folder, env=environ)

    def done(line: str, folder: Path) -> None:
        assert begin(line, folder).wait(60) == 0, line

    init, keys, serve, *kits, run = lines
    done(init, tmp_path)
    server = tmp_path / "first/server"
    job = server / "job.yaml"
    job.write_text(job.read_text().replace("8443", str(port)))
    done(keys, server)
    processes = [begin(serve, server)]
    try:
        until = time.monotonic() + 60
        while not (server / "runs/first/state/gateway/register.sqlite").exists():
            assert time.monotonic() < until
            assert processes[0].poll() is None
            time.sleep(0.1)
        assert len(kits) == 2
        for kit in kits:
            done(kit, server)
        processes += [begin(run, tmp_path / "first" / name) for name in ("hospital_1", "hospital_2")]
        assert [process.wait(90) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    models = [tmp_path / "first" / name / "kit/model.npz" for name in ("hospital_1", "hospital_2")]
    assert all(model.exists() for model in models)
