"""Every command of the README and the pages beside it works as printed, or says below why it is not run.

It stands here, before all tests that use the session's Ray cluster: one cluster of a machine can have the
ports that `ray start --head` takes, its agent's for jobs (52365) among them. The commands run in a home and a
working copy of the test's own; the copy's quickstart is shortened to two rounds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "cluster/README.md",
    *(
        f"docs/{name}.md"
        for name in (
            *("tutorial", "command", "job_file", "install", "drivers", "architecture", "privacy"),
            *("ledger", "monitoring", "data_duties", "faults", "adaptive_clipping", "benchmarks"),
            *("resume", "ceilings", "site_noise", "noise_schedule", "privacy_units", "workloads", "choosing"),
            *("sites", "keys"),
        )
    ),
)
STARTS = ("ray ", "scarcity-ray ", "python -m ", "pip install ", "export ", "chmod ")

MINUTES = "it takes minutes or more; that it starts is tested elsewhere"
PIP = "it installs from a package index: .ci/run does that in a fresh environment"
JOB = "the tutorial's folder: test_init_command.py runs it"
JOB_ON_A_CLUSTER = (
    "ray job submit --address http://127.0.0.1:8265 --working-dir . -- "
    "scarcity-ray run job.yaml --out '~/runs/first'"
)
MACHINES = "it needs machines reached over ssh; test_cluster_files.py reads the file as Ray does"
SITES = "tests/gateway/test_site_client.py runs it against a gateway"
NOT_RUN = {
    'pip install ./client ".[quickstart]" && scarcity-ray run configs/quickstart.yaml': PIP,
    'pip install ./client ".[test]" && python -m pytest': PIP,
    "python -m venv ~/scarcity && . ~/scarcity/bin/activate": PIP,
    'pip install ./client ".[quickstart]"': PIP,
    "pip install ./client .": PIP,
    "pip install ./client": PIP,
    'pip install ./client ".[fast]"': PIP,
    'pip install ./client ".[bench]"': PIP,
    'pip install "scarcity-ray[postgresql]"': PIP,
    "python -m benchmarks NAME [--format json]": "a form, not a command",
    "python -m benchmarks choosing": MINUTES,
    "python -m benchmarks choosing --seeds 3 --part back_doors --part many_attackers": MINUTES,
    "python -m benchmarks clipping": MINUTES,
    "python -m benchmarks journal": MINUTES,
    "python -m benchmarks optimizers": MINUTES,
    "python -m benchmarks deaths": MINUTES,
    "python -m benchmarks persons --part speed": MINUTES,
    "python -m benchmarks privacy": MINUTES,
    "python -m benchmarks schedule": MINUTES,
    "python -m benchmarks scale": MINUTES,
    "python -m benchmarks nodes": MINUTES,
    "scarcity-ray plan job.yaml --scale --cores 8": "test_plan_command.py",
    "python -m benchmarks layer2 --before DIR": MINUTES,
    "python -m benchmarks secagg --full": MINUTES,
    "python -m benchmarks simulation --programs 20000": MINUTES,
    "scarcity-ray run configs/decentralised.yaml": MINUTES,
    "scarcity-ray init wards --sites 3": "test_init_command.py",
    "scarcity-ray run --resume": "tests/cli/test_run_command.py",
    "ray start --address=127.0.0.1:6379 --temp-dir=/tmp/ray-second": "test_three_nodes.py has nodes",
    "ray status": "Ray's own",
    "scarcity-ray init wards --persons": "as without, below; test_init_command.py trains it",
    "scarcity-ray plan job.yaml --recommend --attackers 8 --clients-are mixed": "test_plan_command.py",
    "scarcity-ray run --resume runs/hospitals-20261130-101500": "tests/cli/test_run_command.py",
    "cd ~": JOB,
    "cd wards": JOB,
    "python make.py": JOB,
    "scarcity-ray plan job.yaml": JOB,
    "scarcity-ray plan job.yaml --rounds 10": JOB,
    "scarcity-ray plan job.yaml --recommend": "test_plan_command.py",
    "scarcity-ray run job.yaml": JOB,
    "scarcity-ray run job.yaml --runtime local": JOB,
    "cd wards && scarcity-ray run job.yaml --runtime local": JOB,
    "scarcity-ray export runs/RUN/model.npz --to torch": "RUN is a run's: test_export_command.py",
    JOB_ON_A_CLUSTER: "as the quickstart, which is run below",
    "ray start --address=HEAD:6379 --resources='{\"practice_17\": 1}'": "as without, below",
    "ray stop": "it ends all clusters of a machine, the tests' own too",
    "scarcity-ray ledger verify URL --head HASH": "URL is a database's: tests/privacy/test_postgres.py",
    "scarcity-ray plan FILE --clients 40 --baskets 4": "FILE is a driver's own: test_plan_command.py",
    "scarcity-ray doctor job.yaml": "tests/cli/test_doctor_command.py",
    "scarcity-ray ledger take-over URL --operator NAME": "URL is a database's: tests/privacy/test_holding.py",
    "scarcity-ray roster key operator.pem": "it asks for a password: tests/cli/test_roster_command.py",
    "scarcity-ray roster sign roster.json --key operator.pem --out signed.json": "as above",
    'pip install "scarcity-ray[otel]"': PIP,
    "scarcity-ray status hospitals --address HEAD:6379": "tests/runtime/test_ray_metrics.py",
    "scarcity-ray status hospitals --watch --every 10": "it ends when it is interrupted",
    "scarcity-ray status https://gateway.example.org:8443 --token-file token --ca server-ca.pem": (
        "tests/cli/test_status_command.py"
    ),
    "ray up cluster/machines.yaml": MACHINES,
    "ray dashboard cluster/machines.yaml": MACHINES,
    "ray down cluster/machines.yaml": MACHINES,
    "scarcity-ray client-kit list JOB": SITES,
    "scarcity-ray client-kit make JOB hospital_1 --domain hospitals": SITES,
    "scarcity-ray client-kit revoke JOB hospital_1": SITES,
    "scarcity-ray keys init": SITES,
    "scarcity-ray keys init keys --host gateway.example.org": SITES,
    "scarcity-ray keys renew KEYS": SITES,
    "scarcity-ray keys show keys": SITES,
    "scarcity-ray operators add NAME": "tests/gateway/test_operators.py",
    "scarcity-ray operators revoke NAME": "tests/gateway/test_operators.py",
    "scarcity-ray roster key FILE": "a form, not a command",
    "scarcity-ray-client rotate HOME": SITES,
    "scarcity-ray-client run hospital_1.zip workload.yaml": SITES,
}
"""Why a command is not run here."""

NAMES = {
    *(
        f"scarcity-ray {name}"
        for name in (
            "init",
            "run",
            "plan",
            "export",
            "ledger",
            "audit",
            "roster",
            "doctor",
            "serve",
            "status",
            "dashboard",
            "config",
            "keys",
            "client-kit",
            "operators",
        )
    ),
    *(
        "scarcity-ray --help",
        "scarcity-ray --version",
        "scarcity-ray ledger show",
        "scarcity-ray ledger export",
        "ray up",
        "ray stop",
        "ray list actors",
    ),
    *("ray dashboard", "ray job stop", "ray job submit"),
}
"""Commands spoken of by their name alone."""

WITHOUT_A_CLUSTER = {
    "scarcity-ray init wards",
    "scarcity-ray plan configs/quickstart.yaml",
    "scarcity-ray dashboard > scarcity_ray.json",
    "scarcity-ray config schema > job.schema.json",
    "scarcity-ray operators add 'Ann Berg' --role operate --file operators.json",
    "scarcity-ray operators list --file operators.json",
    "scarcity-ray operators revoke 'Ann Berg' --file operators.json",
    "scarcity-ray ledger show ledger.sqlite",
    "scarcity-ray ledger verify ledger.sqlite --head HASH",
    "scarcity-ray ledger verify FILE --head HASH",
    "scarcity-ray ledger export ledger.sqlite --out ledger.jsonl",
    "scarcity-ray ledger take-over ledger.sqlite --operator ann",
    "scarcity-ray ledger report ledger.sqlite --out report.md",
}
SUBMIT = (
    "ray job submit --address http://127.0.0.1:8265 --working-dir . -- "
    "scarcity-ray run configs/quickstart.yaml --out '~/runs/first'"
)
WITH_A_CLUSTER = [
    "ray get-auth-token --generate",
    "chmod 600 ~/.ray/auth_token",
    "export RAY_AUTH_MODE=token",
    "ray start --head",
    SUBMIT,
    "ray start --address=HEAD:6379",
]


def blocks(page: str) -> list[list[str]]:
    """The commands of each ``bash`` block of a page, without their comments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        [line for raw in block.splitlines() if (line := re.sub(r"\s+# .*", "", raw).strip())]
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    ]


def spoken_of(page: str) -> set[str]:
    """Commands within the sentences of a page."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    return {" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text) if code.startswith(STARTS)}


def test_every_command_is_run_or_says_why_not() -> None:
    printed = {line for page in PAGES for block in blocks(page) for line in block}
    spoken = set().union(*(spoken_of(page) for page in PAGES))
    known = set(NOT_RUN) | NAMES | WITHOUT_A_CLUSTER | set(WITH_A_CLUSTER)
    assert printed | spoken == known, "a command is new, has changed or has gone: mend the tables above"
    assert not set(NOT_RUN) & (WITHOUT_A_CLUSTER | set(WITH_A_CLUSTER))
    one_block = [*WITH_A_CLUSTER[: WITH_A_CLUSTER.index(SUBMIT)], JOB_ON_A_CLUSTER]
    assert one_block in blocks("docs/tutorial.md"), "run below with the quickstart in the job's place"
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"```(\w*)\n", text)) <= {"bash", "yaml", "python", ""}


def test_the_driver_of_the_readme_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert "HierarchicalFederation(config) as" in code
    code = code.replace("HierarchicalFederation(config)", 'HierarchicalFederation(config, runtime="local")')
    code = code.replace("rounds=10", "rounds=3")
    made: dict[str, Any] = {"__name__": "driver"}
    exec(compile(code, "README.md", "exec"), made)
    result = made["result"]
    assert result.history[-1].evaluation["accuracy"] > 0.8
    assert result.explanation == ""
    assert len(result.history) == 3


@dataclass(frozen=True)
class Sandbox:
    home: Path
    copy: Path
    environment: dict[str, str]

    def run(self, script: str, seconds: float = 60.0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run lines in a plain shell, as somebody who reads the page would, one after the other."""
        return subprocess.run(
            ["bash", "-ec", script],
            cwd=self.copy,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def works(self, script: str, seconds: float = 60.0, **environment: str) -> str:
        done = self.run(script, seconds, **environment)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def processes(self) -> list[int]:
        """All that was started in here, also what has detached itself."""
        mark = f"SANDBOX={self.environment['SANDBOX']}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    folder = Path(tempfile.mkdtemp(prefix="sr_", dir="/tmp"))
    home, copy = folder / "home", folder / "copy"
    home.mkdir()
    shutil.copytree(ROOT / "configs", copy / "configs")
    quickstart = copy / "configs" / "quickstart.yaml"
    content = yaml.safe_load(quickstart.read_text(encoding="utf-8"))
    content["training"] |= {"rounds": 2}
    content["lab"] |= {"compare_attacks": []}
    quickstart.write_text(yaml.safe_dump(content), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k in ("LANG", "PYTHONPATH", "PATH")}
    environment |= {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SANDBOX": uuid.uuid4().hex,
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    made = Sandbox(home, copy, environment)
    yield made
    deadline = time.monotonic() + 20.0
    while (left := made.processes()) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_commands_that_need_no_cluster_work_as_printed(sandbox: Sandbox) -> None:
    config = HierarchicalFederationConfig(ledger_path=str(sandbox.copy / "ledger.sqlite"))
    with HierarchicalFederation(config, runtime="local") as federation:
        head = federation.get_stats()["ledger_head"]
    filled = {printed.replace("HASH", head).replace("FILE", "ledger.sqlite") for printed in WITHOUT_A_CLUSTER}
    for command in sorted(
        filled, key=lambda command: ("take-over" in command or "revoke" in command, command)
    ):
        sandbox.works(command)
    assert json.loads((sandbox.copy / "ledger.jsonl").read_text().splitlines()[0])


@pytest.fixture(scope="module")
def cluster(sandbox: Sandbox) -> str:
    """The tutorial's block from token to job (of the quickstart), run in a plain shell; what it said."""
    pytest.importorskip("sklearn")
    for port in (6379, 8265, 10001, 52365):
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"something listens at port {port}, which `ray start --head` takes by default")
    printed = sandbox.run("umask 022\n" + "\n".join(WITH_A_CLUSTER[:-1]), 240.0)
    for _ in range(30):
        if "No available agent" not in printed.stderr:  # a head that has just begun says to try again later
            break
        time.sleep(1.0)
        printed = sandbox.run(f"export RAY_AUTH_MODE=token\n{SUBMIT}", 240.0)
    assert printed.returncode == 0, printed.stdout + printed.stderr
    return printed.stdout + printed.stderr


@pytest.mark.ray
def test_a_cluster_is_started_and_a_job_submitted_as_printed(sandbox: Sandbox, cluster: str) -> None:
    assert re.search(r"Job '.*' succeeded", cluster), cluster
    results = sandbox.home / "runs" / "first"
    assert f"Written to {results}/" in cluster
    assert "cache of submitted jobs" not in cluster
    assert json.loads((results / "summary.json").read_text())["rounds"] == 2
    token = sandbox.home / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    joined = WITH_A_CLUSTER[-1].replace("HEAD", "127.0.0.1")
    assert "Ray runtime started" in sandbox.works(f"export RAY_AUTH_MODE=token\n{joined}")


FEDERATION = """
import sys, time, ray
from scarcity_ray import HierarchicalFederation, UsageError
while sys.argv[1] == "client" and not ray.is_initialized():
    try:
        ray.init("ray://127.0.0.1:10001", logging_level="ERROR")
    except ConnectionError as not_yet:  # the proxy's server for this client died: 45 s, then another
        print(not_yet, file=sys.stderr)
        time.sleep(1.0)
try:
    HierarchicalFederation(address=None if sys.argv[1] == "client" else sys.argv[1])
except UsageError as refused:
    print(refused)
"""


@pytest.mark.ray
def test_who_is_refused_is_told_why(sandbox: Sandbox, cluster: str) -> None:
    driver = sandbox.copy / "driver.py"
    driver.write_text(FEDERATION)
    refused: dict[str, tuple[str, dict[str, str]]] = {
        "RAY_AUTH_MODE is ''": ("127.0.0.1:6379", {}),
        "refuses that in the variable RAY_AUTH_TOKEN": (
            "127.0.0.1:6379",
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64},
        ),
        "ray job submit": ("client", {"RAY_AUTH_MODE": "token"}),
    }
    for words, (address, environment) in refused.items():
        said = sandbox.works(f"python driver.py {address}", 240.0, **environment)
        assert words in said
