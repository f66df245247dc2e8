"""``scarcity-ray doctor``: what on this machine would break a federation, found before it is started.

Guarantees:
    what_would_break_is_exit_code_1_and_what_might_is_a_warning
    a_folder_is_probed_and_left_as_it_was: The probe's file is removed, and no folder is made.
    a_clock_behind_the_ledgers_newest_row_is_found
    a_certificate_is_found_before_it_expires
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from rich.console import Console

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.cli.plan import load_planned
from scarcity_ray.config import HierarchicalFederationConfig, load
from scarcity_ray.config.gateway import GatewayConfig
from scarcity_ray.errors import LedgerError, ScarcityError
from scarcity_ray.ledger_url import is_ledger_url
from scarcity_ray.privacy.ledger.holder import in_utc
from scarcity_ray.privacy.ledger.ledger import Ledger
from scarcity_ray.private_folder import why_not_private
from scarcity_ray.release import __version__
from scarcity_ray.storage.local_disk import network_file_system
from scarcity_ray.workloads.config import read_content

OLDEST_PYTHON = (3, 11)
OLDEST_RAY = (2, 50)
LEAST_FREE_MEMORY_BYTES = 2 << 30
"""Ray's own processes take 1.1 GB, an actor 60 MB."""
LEAST_FREE_DISK_BYTES = 1 << 30
FEW_OPEN_FILES = 4096
"""An idle actor has 42 open files; 200 of them and the driver's connections come near this limit."""
SLOW_SYNC_SECONDS = 0.05
"""Of a write of 4 KiB with fsync: each acknowledged call and each charge waits for one."""
PROBE_BYTES = 4096
SYNCS = 5
RAY_PORTS = {6379: "the head", 8265: "the dashboard", 10001: "Ray Client"}
SOON_DAYS = 30
CLOCK_SLACK_SECONDS = 1.0


class Level(StrEnum):
    """Whether a finding breaks something, might, or is as it should be."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked at.
        found: In one sentence.
        remedy: What to do; empty if nothing.
    """

    check: str
    level: Level
    found: str
    remedy: str = ""


def doctor_command(
    config: str | None,
    overrides: tuple[str, ...],
    form: str,
    address: str | None = None,
    certificates: str | None = None,
    port: int | None = None,
) -> ExitCode:
    """Print what was found; exit code 1 if something would break.

    Args:
        config: A job's file, or a driver's, whose folders are probed; None: the machine alone.
        overrides: ``path=value`` each.
        address: Of a Ray cluster that should answer.
        certificates: The folder of a gateway's certificates and keys; None: what the job's file says, if any.
        port: At which a gateway is to listen.
    """
    federation = None if config is None else load_planned(config, overrides).federation
    gateway = None
    if config is not None and (section := read_content(config, overrides).get("gateway")) is not None:
        gateway = load(GatewayConfig, section, "gateway").absolute()
        certificates = certificates or (None if gateway.tls == "off" else gateway.keys)
        port = port or gateway.port or None
    findings = list(examined(federation, address, certificates, port, is_served=gateway is not None))
    failures = [finding for finding in findings if finding.level is Level.FAILURE]
    if form == "json":
        for finding in findings:
            click.echo(json.dumps(asdict(finding)))
    else:
        _print(findings, Console(highlight=False, soft_wrap=True))
    return ExitCode.FAILED if failures else ExitCode.DONE


def examined(
    federation: HierarchicalFederationConfig | None,
    address: str | None = None,
    certificates: str | None = None,
    port: int | None = None,
    *,
    is_served: bool = False,
) -> Iterator[Finding]:
    """All findings, in the order in which they are printed."""
    yield from machine_findings()
    yield from version_findings()
    yield entropy_finding()
    yield synchronized_finding()
    yield from ray_port_findings() if address is None else [cluster_finding(address)]
    yield from token_findings()
    if port is not None:
        yield port_finding(port)
    if certificates is not None:
        yield from certificate_findings(Path(certificates), time.time())
    if federation is not None:
        yield from storage_findings(federation, is_served=is_served)
        yield from ledger_findings(federation, time.time())


def machine_findings() -> Iterator[Finding]:
    """Cores, free memory, shared memory for Ray's object store, and open files."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("machine", Level.OK, f"{platform.system()} {platform.machine()}, {cores} cores")
    if (free := _free_memory_bytes()) is not None:
        yield Finding(
            "memory",
            Level.WARNING if free < LEAST_FREE_MEMORY_BYTES else Level.OK,
            f"{free / 2**30:.1f} GiB are free",
            "Ray takes 1.1 GB and 60 MB an actor: free some, or run with --runtime local"
            if free < LEAST_FREE_MEMORY_BYTES
            else "",
        )
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        is_small = free < LEAST_FREE_DISK_BYTES
        yield Finding(
            "shared memory",
            Level.WARNING if is_small else Level.OK,
            f"{free / 2**30:.1f} GiB are free in /dev/shm",
            "Ray's object store goes to /tmp and is slow: give a container --shm-size=2g" if is_small else "",
        )
    limit = _open_files_limit()
    if limit is not None:
        is_low = limit < FEW_OPEN_FILES
        remedy = "a node with many actors needs more: ulimit -n 65536 before ray start" if is_low else ""
        yield Finding("open files", Level.WARNING if is_low else Level.OK, f"{limit} may be open", remedy)


def version_findings() -> Iterator[Finding]:
    """Python, Ray, and that both halves of this package are of one release."""
    here = sys.version_info[:3]
    yield _version("Python", ".".join(map(str, here)), here[:2] >= OLDEST_PYTHON, OLDEST_PYTHON)
    ray = version("ray")
    yield _version("Ray", ray, tuple(int(part) for part in ray.split(".")[:2]) >= OLDEST_RAY, OLDEST_RAY)
    client = version("scarcity-ray-client")
    is_same = client == __version__
    yield Finding(
        "release",
        Level.OK if is_same else Level.FAILURE,
        f"scarcity-ray {__version__}, scarcity-ray-client {client}",
        "" if is_same else "install both of one release",
    )


def entropy_finding() -> Finding:
    """Whether the operating system gives random numbers without waiting; noise and keys come from there."""
    try:
        drawn = os.getrandom(32, os.GRND_NONBLOCK) if hasattr(os, "getrandom") else os.urandom(32)
    except BlockingIOError:
        return Finding(
            "entropy",
            Level.FAILURE,
            "the system's random numbers are not seeded yet",
            "wait, or give a virtual machine virtio-rng: noise and keys would wait for it",
        )
    return Finding("entropy", Level.OK, f"{8 * len(drawn)} random bits were there at once")


def synchronized_finding() -> Finding:
    """Whether something sets this machine's clock, as far as systemd knows."""
    told = ""
    if program := shutil.which("timedatectl"):
        command = [program, "show", "--property=NTPSynchronized", "--value"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        told = done.stdout.strip()
    if told == "no":
        return Finding(
            "clock",
            Level.WARNING,
            "systemd says that no time server sets it",
            "signed messages are taken within 300 s: start systemd-timesyncd or chrony",
        )
    known = "a time server sets it" if told == "yes" else "nobody here knows whether a time server sets it"
    return Finding("clock", Level.OK, f"{in_utc(time.time())}; {known}")


def ray_port_findings() -> Iterator[Finding]:
    """Ports that ``ray start --head`` would take."""
    taken = [f"{port} ({what})" for port, what in RAY_PORTS.items() if _answers(port)]
    yield Finding(
        "Ray's ports",
        Level.WARNING if taken else Level.OK,
        f"something listens at {', '.join(taken)}" if taken else "6379, 8265 and 10001 are free",
        "if it is your cluster: --address 127.0.0.1:6379; if not, ray start needs other ports"
        if taken
        else "",
    )


def cluster_finding(address: str) -> Finding:
    """Whether a Ray cluster answers at an address and takes this process's token."""
    from scarcity_ray.runtime.connect import expect_cluster

    try:
        expect_cluster(address)
    except ScarcityError as error:
        return Finding("Ray cluster", Level.FAILURE, str(error), "see cluster/README.md")
    return Finding("Ray cluster", Level.OK, f"one answers at {address} and lets this user in")


def token_findings() -> Iterator[Finding]:
    """Whether others can read Ray's token, with which they could run code on each node of a cluster."""
    from scarcity_ray.runtime.connect import token_file

    path = token_file()
    if path is not None and path.exists():
        is_open = bool(path.stat().st_mode & 0o077)
        yield Finding(
            "Ray's token",
            Level.WARNING if is_open else Level.OK,
            f"others can read {path}" if is_open else f"{path} is this user's alone",
            f"chmod 600 {path}" if is_open else "",
        )


def port_finding(port: int) -> Finding:
    """Whether a gateway could listen at a port."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            return Finding(
                "gateway's port",
                Level.FAILURE,
                f"nothing of this user's can listen at {port}: {error.strerror}",
                "end what listens there, choose another port, or for one below 1024 give the process "
                "CAP_NET_BIND_SERVICE",
            )
    return Finding("gateway's port", Level.OK, f"{port} is free")


def certificate_findings(folder: Path, now: float) -> Iterator[Finding]:
    """Expired certificates, those that expire soon, and keys that others can read.

    Args:
        folder: With PEM files, also in folders below.
        now: Seconds since the epoch.
    """
    if not folder.is_dir():
        remedy = "make it, or name another with --certificates"
        yield Finding("certificates", Level.FAILURE, f"{folder} is no folder", remedy)
        return
    number = 0
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".pem", ".crt", ".key")):
        content = path.read_bytes()
        if b"PRIVATE KEY-----" in content and path.stat().st_mode & 0o077:
            found = f"others can read the private key in {path}"
            yield Finding("certificates", Level.FAILURE, found, f"chmod 600 {path}")
        if b"-----BEGIN CERTIFICATE-----" not in content:
            continue
        try:
            certificates = x509.load_pem_x509_certificates(content)
        except ValueError as error:
            yield Finding("certificates", Level.FAILURE, f"{path} cannot be read: {error}", "make it anew")
            continue
        number += len(certificates)
        for certificate in certificates:
            yield _certificate_finding(path, certificate, datetime.fromtimestamp(now, UTC))
    if not number:
        yield Finding(
            "certificates", Level.FAILURE, f"{folder} holds no certificate", "make one (docs/keys.md)"
        )


def storage_findings(
    federation: HierarchicalFederationConfig, *, is_served: bool = False
) -> Iterator[Finding]:
    """The folders that the configuration names: rights, disk, and a write with fsync."""
    if federation.storage_path is None and is_served:
        yield Finding("storage_path", Level.OK, "none is configured: the run's own folder has the state")
    elif federation.storage_path is None:
        yield Finding(
            "storage_path",
            Level.WARNING,
            "none is configured: a federation that stops cannot go on, only its budget is kept",
            "set federation.storage_path (docs/resume.md)",
        )
    elif "://" in federation.storage_path:
        yield _object_store_finding(federation.storage_path)
    else:
        yield from _folder_findings("storage_path", _absolute(federation.storage_path), is_local=False)
    journal = federation.journal_place
    if journal is not None and not is_ledger_url(journal):
        yield from _folder_findings("journal_path", Path(journal), is_local=True)


def ledger_findings(federation: HierarchicalFederationConfig, now: float) -> Iterator[Finding]:
    """Whether the ledger can be read, is older than this clock, and lies on a local disk."""
    place = federation.ledger_path
    if place is None:
        found = "none is configured: a run without a name makes a new one, and with it a new budget"
        yield Finding("ledger", Level.WARNING, found, "set federation.ledger_path (docs/ledger.md)")
        return
    if not is_ledger_url(place):
        path = _absolute(place)
        yield from _folder_findings("ledger_path", path.parent, is_local=True)
        if not path.exists():
            yield Finding("ledger", Level.OK, f"{path} is not there yet: a new budget begins with it")
            return
        place = str(path)
    try:
        with closing(Ledger.read(place)) as ledger:
            newest = max(row.at for row in ledger.checked())
            rows = ledger.head_seq + 1
    except LedgerError as error:
        yield Finding("ledger", Level.FAILURE, str(error), "docs/ledger.md says what to do")
        return
    yield Finding("ledger", Level.OK, f"its chain of {rows} rows holds, the newest of {in_utc(newest)}")
    if newest > now + CLOCK_SLACK_SECONDS:
        yield Finding(
            "clock",
            Level.FAILURE,
            f"it is {newest - now:.0f} s behind the ledger's newest row",
            "set the clock: what is dated would be out of order, and day limits would not end",
        )


def _version(what: str, found: str, is_new_enough: bool, oldest: tuple[int, int]) -> Finding:
    remedy = "" if is_new_enough else f"install {what} {oldest[0]}.{oldest[1]} or newer"
    return Finding(what, Level.OK if is_new_enough else Level.FAILURE, f"{what} {found}", remedy)


def _certificate_finding(path: Path, certificate: x509.Certificate, now: datetime) -> Finding:
    days = (certificate.not_valid_after_utc - now).total_seconds() / 86_400
    whose = f"{path}: {certificate.subject.rfc4514_string() or 'without a name'}"
    if days < 0:
        return Finding("certificates", Level.FAILURE, f"{whose}: expired {-days:.0f} days ago", "renew it")
    if now < certificate.not_valid_before_utc:
        when = certificate.not_valid_before_utc
        return Finding("certificates", Level.FAILURE, f"{whose}: not valid before {when}", "set the clock")
    level = Level.WARNING if days < SOON_DAYS else Level.OK
    remedy = "renew it" if days < SOON_DAYS else ""
    return Finding("certificates", level, f"{whose}: valid for {days:.0f} more days", remedy)


def _folder_findings(setting: str, folder: Path, *, is_local: bool) -> Iterator[Finding]:
    """What is wrong with a folder, or would be with one that is not there yet."""
    kind = network_file_system(folder)
    if is_local and kind is not None:
        yield Finding(
            setting,
            Level.FAILURE,
            f"{folder} is on {kind}, a network file system, whose locks and fsync keep no promise",
            f"set federation.{setting} to a disk of this machine",
        )
        return
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if setting == "journal_path" and folder.is_dir() and (why := why_not_private(folder, "the folder")):
        yield Finding(setting, Level.FAILURE, why)
        return
    free = shutil.disk_usage(there).free
    try:
        seconds = _synced_write_seconds(there)
    except OSError as error:
        found = f"{there} cannot be written: {error.strerror}"
        yield Finding(setting, Level.FAILURE, found, f"give this user the folder, or set another {setting}")
        return
    measured = f"{folder}: {free / 2**30:.1f} GiB free, a write with fsync takes {1000 * seconds:.1f} ms"
    if free < LEAST_FREE_DISK_BYTES:
        yield Finding(setting, Level.FAILURE, measured, "free space: a full disk refuses updates and charges")
    elif seconds > SLOW_SYNC_SECONDS:
        yield Finding(setting, Level.WARNING, measured, "a faster disk: each call waits for one such write")
    else:
        yield Finding(setting, Level.OK, measured)


def _synced_write_seconds(folder: Path) -> float:
    """The median of a few writes with fsync; the file is removed."""
    path = folder / f".scarcity_ray-doctor-{os.getpid()}"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        return sorted(_timed(lambda: _write(file)) for _ in range(SYNCS))[SYNCS // 2]
    finally:
        os.close(file)
        path.unlink()


def _write(file: int) -> None:
    os.write(file, bytes(PROBE_BYTES))
    os.fsync(file)


def _timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _object_store_finding(uri: str) -> Finding:
    from scarcity_ray.storage.snapshots import open_store

    name = f"doctor-{os.getpid()}"
    try:
        store = open_store(uri)
        seconds = _timed(lambda: store.write(name, [bytes(PROBE_BYTES)]))
        store.remove(name)
    except (OSError, ScarcityError) as error:
        found = f"{uri} cannot be written: {error}"
        return Finding("storage_path", Level.FAILURE, found, "check the name and the credentials")
    return Finding("storage_path", Level.OK, f"{uri}: an object was written in {1000 * seconds:.0f} ms")


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _answers(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_memory_bytes() -> int | None:
    """What the system could give now, or this container's limit leaves; None where nobody says."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found, default=None)


def _open_files_limit() -> int | None:
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _print(findings: list[Finding], console: Console) -> None:
    styles: dict[Level, Any] = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "bold red"}
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        console.print(f"{finding.level:<8}", style=styles[finding.level], end="")
        console.print(f"{finding.check:<{width}}  {finding.found}", markup=False)
        if finding.remedy:
            console.print(f"{'':<{width + 8}}  -> {finding.remedy}", markup=False)
    failures = sum(finding.level is Level.FAILURE for finding in findings)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    console.print(f"{failures} would break, {warnings} might")
