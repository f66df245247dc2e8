"""What `cluster/compose.yaml` runs in containers, run as processes: keys, one gateway, kits, three sites."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "cluster" / "compose.yaml"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_the_parts_of_compose_train_together_as_processes(tmp_path: Path) -> None:
    services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    shutil.copytree(ROOT / "cluster" / "home", tmp_path / "job")
    for name in ("job/keys", "job/run", "kits", "north", "south", "west"):
        (tmp_path / name).mkdir(mode=0o700)
    programs, port = tmp_path / "bin", free_port()
    programs.mkdir()
    for name, module in (("scarcity-ray", "scarcity_ray.cli.main"), ("scarcity-ray-client", "")):
        called = f"-c 'from {module} import main; main()'" if module else "-m scarcity_ray_client"
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {called} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}

    def words(name: str) -> list[str]:
        command = [word.replace("$$", "$") for word in services[name]["command"]]
        served = f"serve job.yaml --set gateway.port={port} --set gateway.url=https://localhost:{port}"
        for here, there in (
            ("/work/job.yaml", str(tmp_path / "job" / "job.yaml")),
            ("/work/", f"{tmp_path}/"),
            ("--host gateway", "--host localhost"),
            ("serve job.yaml", served),
        ):
            command = [word.replace(here, there) for word in command]
        return command if command[0] == "sh" else ["scarcity-ray-client", *command]

    def begun(name: str) -> subprocess.Popen[bytes]:
        log = (tmp_path / f"{name}.txt").open("wb")
        return subprocess.Popen(words(name), cwd=tmp_path / "job", env=environment, stdout=log, stderr=log)

    running: list[subprocess.Popen[bytes]] = []
    try:
        assert begun("keys").wait(60) == 0
        running.append(gateway := begun("gateway"))
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        deadline = time.monotonic() + 120.0
        while True:
            assert gateway.poll() is None, (tmp_path / "gateway.txt").read_text()
            try:
                urllib.request.urlopen(f"https://127.0.0.1:{port}/healthz", context=trusting, timeout=5)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert begun("kits").wait(120) == 0, (tmp_path / "kits.txt").read_text()
        running += [begun(site) for site in ("north", "south", "west")]
        assert gateway.wait(300) == 0, (tmp_path / "gateway.txt").read_text()
        for site in running[1:]:
            assert site.wait(120) == 0
    finally:
        for process in running:
            process.kill()
    summary = json.loads((tmp_path / "job" / "run" / "made" / "summary.json").read_text())
    assert summary["rounds"] == 10
    assert summary["metrics"]["accuracy"] > 0.8
