"""``scarcity-ray doctor``: each thing that would break, made to be so."""

from __future__ import annotations

import json
import os
import socket
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from scarcity_ray.cli import doctor
from scarcity_ray.cli.main import main
from scarcity_ray.privacy import DurableBudget

NOW = datetime.now(UTC)


def findings(*arguments: str, code: int = 0) -> list[dict[str, str]]:
    result = CliRunner().invoke(main, ["doctor", *arguments, "--format", "json"])
    assert result.exit_code == code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def of(check: str, found: list[dict[str, str]]) -> dict[str, str]:
    """The worst finding of a check."""
    order = ("failure", "warning", "ok")
    return min((one for one in found if one["check"] == check), key=lambda one: order.index(one["level"]))


@pytest.fixture(autouse=True)
def calm_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine that the tests run on decides."""
    monkeypatch.setattr(doctor, "_free_memory_bytes", lambda: 8 << 30)
    monkeypatch.setattr(doctor, "_answers", lambda port: False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")


@pytest.fixture
def job(tmp_path: Path) -> Any:
    def written(**settings: object) -> str:
        path = tmp_path / "driver.yaml"
        path.write_text(yaml.safe_dump({"federation": {"vector_dim": 8, **settings}}))
        return str(path)

    return written


def test_a_machine_without_faults_is_exit_code_0() -> None:
    found = findings()
    assert {one["level"] for one in found} <= {"ok", "warning"}
    assert {"Python", "Ray", "release", "entropy", "clock", "Ray's ports"} <= {one["check"] for one in found}
    assert "0 would break" in CliRunner().invoke(main, ["doctor"]).stdout


def test_what_would_break_is_exit_code_1_and_what_might_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "_free_memory_bytes", lambda: 1 << 30)
    monkeypatch.setattr(doctor, "_answers", lambda port: port == 6379)
    found = findings()
    assert of("memory", found)["level"] == "warning"
    assert "6379" in of("Ray's ports", found)["found"]
    monkeypatch.setattr(doctor, "OLDEST_RAY", (99, 0))
    assert of("Ray", findings(code=1))["remedy"] == "install Ray 99.0 or newer"
    text = CliRunner().invoke(main, ["doctor"])
    assert text.exit_code == 1
    assert "-> install Ray 99.0 or newer" in text.stdout


def test_a_folder_is_probed_and_left_as_it_was(job: Any, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    storage.mkdir(mode=0o700)
    ledger = tmp_path / "not" / "there" / "ledger.sqlite"
    found = findings(job(storage_path=str(storage), ledger_path=str(ledger)))
    for setting in ("storage_path", "journal_path", "ledger_path"):
        assert "fsync takes" in of(setting, found)["found"]
    assert not list(storage.iterdir())
    assert not (tmp_path / "not").exists()
    assert "not there yet" in of("ledger", found)["found"]


def test_a_folder_that_cannot_be_used_is_found(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "journal"
    journal.mkdir(mode=0o755)
    config = job(storage_path=str(tmp_path), journal_path=str(journal))
    assert "chmod 700" in of("journal_path", findings(config, code=1))["found"]
    journal.chmod(0o700)
    monkeypatch.setattr(doctor, "network_file_system", lambda path: "nfs4" if path == journal else None)
    assert "nfs4" in of("journal_path", findings(config, code=1))["found"]
    monkeypatch.undo()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")

    def full(folder: Path) -> float:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor, "_synced_write_seconds", full)
    assert "No space left" in of("storage_path", findings(config, code=1))["found"]


def test_a_clock_behind_the_ledgers_newest_row_is_found(job: Any, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    later = (NOW + timedelta(hours=1)).timestamp()
    terms: Any = {"total_epsilon": 1.0, "total_delta": 1e-5, "gossip_share": 0.0, "must_exist": False}
    DurableBudget.open(str(path), now=later, **terms).close()
    found = findings(job(ledger_path=str(path)), code=1)
    assert of("clock", found)["level"] == "failure"
    assert "behind the ledger's newest row" in of("clock", found)["found"]
    assert of("ledger", found)["level"] == "ok"
    path.write_bytes(b"no ledger")
    assert of("ledger", findings(job(ledger_path=str(path)), code=1))["level"] == "failure"


def write_certificate(folder: Path, name: str, begins: datetime, days: float) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))
        .sign(key, None)
    )
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    file = folder / f"{name}.key"
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    file.chmod(0o600)


def test_a_certificate_is_found_before_it_expires(tmp_path: Path) -> None:
    write_certificate(tmp_path, "good", NOW - timedelta(days=1), 365)
    assert "valid for 364" in of("certificates", findings("--certificates", str(tmp_path)))["found"]
    write_certificate(tmp_path, "soon", NOW - timedelta(days=1), 10)
    assert of("certificates", findings("--certificates", str(tmp_path)))["remedy"] == "renew it"
    for name, begins, words in (
        ("old", NOW - timedelta(days=20), "expired 10 days ago"),
        ("early", NOW + timedelta(days=2), "not valid before"),
    ):
        write_certificate(tmp_path, name, begins, 10)
        assert words in of("certificates", findings("--certificates", str(tmp_path), code=1))["found"]
        (tmp_path / f"{name}.pem").unlink()
    (tmp_path / "good.key").chmod(0o644)
    assert "chmod 600" in of("certificates", findings("--certificates", str(tmp_path), code=1))["remedy"]
    empty = tmp_path / "empty"
    assert "no folder" in of("certificates", findings("--certificates", str(empty), code=1))["found"]
    empty.mkdir()
    assert "no certificate" in of("certificates", findings("--certificates", str(empty), code=1))["found"]


def test_a_taken_port_and_a_cluster_that_does_not_answer_are_found() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in of("gateway's port", findings("--port", str(port), code=1))["found"]
    assert of("gateway's port", findings("--port", str(port)))["level"] == "ok"
    assert "no Ray cluster" in of("Ray cluster", findings("--address", f"127.0.0.1:{port}", code=1))["found"]


def test_the_gateway_that_a_job_asks_for_is_looked_at(tmp_path: Path) -> None:
    home = Path(__file__).parents[2] / "cluster" / "home" / "job.yaml"
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = ("--set", f"gateway.port={port}", "--set", f"gateway.keys={tmp_path}")
    found = findings(str(home), *asked, code=1)
    assert of("gateway's port", found)["found"] == f"{port} is free"
    assert f"{tmp_path} holds no certificate" in of("certificates", found)["found"]


def test_a_token_that_others_read_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("t")
    token.chmod(0o644)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert of("Ray's token", findings())["remedy"] == f"chmod 600 {token}"
    os.chmod(token, 0o600)
    assert of("Ray's token", findings())["level"] == "ok"
