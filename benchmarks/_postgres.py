"""A PostgreSQL server of one's own, in a folder that goes with it; for tests and benchmarks.

The server listens on 127.0.0.1 and trusts nobody without the password. For root it runs as user ``postgres``
or ``nobody``: PostgreSQL refuses to run as root.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path


def server_folder() -> Path | None:
    """Where this machine has PostgreSQL's server programs, the newest ones; None if it has none."""
    found = [p for p in (shutil.which("postgres"), shutil.which("initdb")) if p]
    places = [Path(p).resolve().parent for p in found]
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    places += sorted(debian, key=lambda p: int(p.parent.name) if p.parent.name.isdigit() else 0, reverse=True)
    return next((p for p in places if (p / "postgres").exists() and (p / "initdb").exists()), None)


class PrivateServer:
    """A server that was just made, running; `remove` ends it.

    Args:
        programs: From `server_folder`.
        folder: Where to keep its files; None: in memory where that is possible.
    """

    user = "keeper"

    def __init__(self, programs: Path, *, folder: str | None = None) -> None:
        self._programs = programs
        memory = Path("/dev/shm")
        place = folder or (memory if os.access(memory, os.W_OK) else None)
        self.folder = Path(tempfile.mkdtemp(prefix="scarcity_pg_", dir=place))
        self._process: subprocess.Popen[bytes] | None = None
        self.password = f"s3cret-{secrets.token_hex(8)}"
        self._account = _account()
        try:
            if self._account is not None:
                os.chown(self.folder, self._account.pw_uid, self._account.pw_gid)
            word = self.folder / "word"
            word.write_text(self.password)
            word.chmod(0o644)
            arguments = ("--auth=scram-sha-256", f"--username={self.user}", f"--pwfile={word}", "--no-sync")
            self._run("initdb", f"--pgdata={self.data}", "--encoding=UTF8", "--no-locale", *arguments)
            word.unlink()
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port: int = probe.getsockname()[1]
            self.start()
        except BaseException:
            self.remove()
            raise

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self.folder / "data"

    def url(self, database: str = "postgres", *, user: str | None = None, password: str | None = None) -> str:
        """How to reach it."""
        who = f"{user or self.user}:{password or self.password}"
        return f"postgresql://{who}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = [
            "listen_addresses=127.0.0.1",
            f"port={self.port}",
            f"unix_socket_directories={self.folder}",
            "shared_buffers=16MB",
            "max_connections=100",
            "restart_after_crash=on",
        ]
        given = [part for option in options for part in ("-c", option)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._as_other([str(self._programs / "postgres"), "-D", str(self.data), *given]),
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        self.wait()

    def wait(self, seconds: float = 30.0) -> None:
        """Wait until it answers, e.g. after a crash that it recovers from."""
        deadline = time.monotonic() + seconds
        command = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(command, check=False, timeout=30).returncode != 0:
            if time.monotonic() > deadline or self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"PostgreSQL does not answer: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL every process of it."""
        if self._process is not None:
            others = _children(self._process.pid)
            self._process.kill()
            for pid in others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            deadline = time.monotonic() + 10
            while any(map(_is_running, others)) and time.monotonic() < deadline:
                time.sleep(0.005)
            self._process = None

    def stop(self) -> None:
        """Shut it down at once, cleanly."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def reload(self, **settings: str) -> None:
        """Change settings of the running server."""
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def remove(self) -> None:
        """End it, and remove what it kept."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def give(self, path: Path) -> None:
        """Make a file the server's own, and readable for nobody else."""
        path.chmod(0o600)
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _run(self, program: str, *arguments: str) -> None:
        command = self._as_other([str(self._programs / program), *arguments])
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")

    def _as_other(self, command: list[str]) -> list[str]:
        if self._account is None:
            return command
        who = (f"--reuid={self._account.pw_uid}", f"--regid={self._account.pw_gid}", "--clear-groups")
        return ["setpriv", *who, *command]


def _account() -> pwd.struct_passwd | None:
    """The user to run the server as, if not this one."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("this is root, and there is neither a user postgres nor nobody to run the server")


def _children(pid: int) -> list[int]:
    """Where the system tells; elsewhere they end by themselves once they see their parent gone."""
    told = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in told.read_text().split()] if told.exists() else []


def _is_running(pid: int) -> bool:
    """Whether a process has not ended. A zombie has; init may take seconds to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
