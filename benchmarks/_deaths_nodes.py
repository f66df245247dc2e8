"""The machines of `benchmarks.deaths`: a head and two more nodes, whose processes can be found and signalled.

`Nodes` has them share this machine's network. `Machines` gives each a network of its own (Linux's network
namespaces, joined by a bridge), and folders of its own for Ray, so that one can be cut off from the others.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

OFTEN = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 4,
    "gcs_rpc_server_reconnect_timeout_s": 10,
}
"""Ray finds a dead node in about 3 s, not in 15; without a head the others end after 10 s, not 60."""
STORE_BYTES = 100_000_000
ROLES = {
    "basket": ("BasketHost", "basket."),
    "accountant": ("Accountant", "accountant."),
    "directory": ("Directory", "directory."),
    "global": ("GlobalAggregator", "global."),
    "worker": ("_run", "train", "IDLE"),
}
"""How Ray titles their processes, idle and at work."""
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and these, and so on."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found: list[int] = []
    with suppress(OSError):
        for child in children.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def title(pid: int) -> str:
    """A Ray worker's title without its prefix: its class, or the call that it is in; empty for others."""
    with suppress(OSError):
        said = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        return said.removeprefix("ray::") if said.startswith("ray::") else ""
    return ""


def program(pid: int) -> str:
    """The file that a process runs."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    return ""


def signalled(pids: Iterable[int], how: signal.Signals) -> None:
    """Send a signal to those that are there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, how)


def roles_among(pids: Iterable[int], kind: str) -> list[int]:
    """The processes of one kind of role."""
    return [pid for pid in pids if title(pid).startswith(ROLES[kind])]


class Nodes:
    """Three nodes that share this machine's network: `ray.cluster_utils`.

    Attributes:
        address: The head's.
    """

    def __init__(self) -> None:
        os.environ |= ENVIRONMENT
        self._dead: list[Any] = []
        self._begin()

    def _begin(self) -> None:
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
        head = {**node, "include_dashboard": False, "_system_config": OFTEN}
        self._node = node
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        for _ in range(2):
            self._cluster.add_node(wait=False, **node)

    def inside(self) -> Sequence[str]:
        """What to put before a driver's command, so that it runs on the head."""
        return ()

    def others(self) -> list[Any]:
        """The living nodes beside the head."""
        return list(self._cluster.worker_nodes)

    def head(self) -> list[int]:
        """The head's processes."""
        return self.processes(self._cluster.head_node)

    def processes(self, node: Any) -> list[int]:
        """A node's processes, with all that they started."""
        roots = [info.process.pid for infos in node.all_processes.values() for info in infos]
        return [pid for root in roots for pid in (root, *descendants(root))]

    def everything(self) -> list[int]:
        """All nodes' processes, those of dead nodes included."""
        return [pid for node in self._all() for pid in self.processes(node)]

    def replace(self, node: Any) -> None:
        """Another node in the place of one whose processes were killed."""
        self._cluster.worker_nodes.discard(node)
        self._dead.append(node)
        self._cluster.add_node(wait=False, **self._node)

    def begin_anew(self) -> None:
        """Another cluster; what is left of this one ends."""
        with suppress(Exception):
            self._cluster.shutdown()
        self._dead.clear()
        self._begin()

    def reap(self) -> None:
        """Workers of a raylet that is a zombie take it for alive."""
        for node in self._all():
            for infos in node.all_processes.values():
                for info in infos:
                    info.process.poll()

    def end(self) -> None:
        """Leave no process behind."""
        with suppress(Exception):
            signalled(self.everything(), signal.SIGKILL)
            self._cluster.shutdown()

    def _all(self) -> list[Any]:
        return [*self._dead, *self._cluster.list_all_nodes()]


class Machines:
    """Three nodes, each in a network of its own; needs root.

    Their files are this machine's, but for Ray's own. Drivers run on the head: Ray 2.60 moves no object of
    more than 100 KB out of the two other networks. Methods and attributes are those of `Nodes`.

    Args:
        redis: Where Redis listens on this machine; with it the cluster outlives its head.
    """

    PORT = 6379

    def __init__(self, redis: int | None = None) -> None:
        self._redis = {} if redis is None else {"RAY_REDIS_ADDRESS": f"{self._ip(99)}:{redis}"}
        self._folder = Path(tempfile.mkdtemp(prefix="dn-", dir="/tmp"))
        self.address = f"{self._ip(0)}:{self.PORT}"
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._ray = str(Path(sys.executable).with_name("ray"))
        _run("ip", "link", "add", "dn-bridge", "type", "bridge")
        _run("ip", "link", "set", "dn-bridge", "up")
        _run("ip", "addr", "add", f"{self._ip(99)}/24", "dev", "dn-bridge")
        for node in range(3):
            name = self._name(node)
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "set", name, "master", "dn-bridge", "up")
            _run("ip", "-n", name, "addr", "add", f"{self._ip(node)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", device, "up")
            # Ray asks by which address this machine would reach the world, and takes that for its node's.
            _run("ip", "-n", name, "route", "add", "default", "via", self._ip(99))
        self._begin()

    def _ip(self, node: int) -> str:
        return f"10.231.7.{node + 1}"

    def _name(self, node: int) -> str:
        return f"dn{node}"

    def inside(self) -> Sequence[str]:
        """The head's network and folders."""
        return ("nsenter", "-t", str(self._processes[0].pid), "-n", "-m", "--")

    def _begin(self) -> None:
        self._start(0)
        deadline = time.time() + 60.0
        while b"Ray runtime started" not in (self._folder / "0.log").read_bytes():
            if time.time() > deadline or self._processes[0].poll() is not None:
                raise RuntimeError((self._folder / "0.log").read_text())
            time.sleep(0.1)
        for node in (1, 2):
            self._start(node)

    def _start(self, node: int) -> None:
        own, shared = self._folder / str(node), self._folder / "ray"
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        shared.mkdir(exist_ok=True)
        words = [self._ray, "start", "--block", f"--node-ip-address={self._ip(node)}", "--num-cpus=1"]
        words += [f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats"]
        if node:
            words += [f"--address={self.address}"]
        else:
            words += ["--head", f"--port={self.PORT}", "--include-dashboard=false", f"--temp-dir={shared}"]
            words += [f"--system-config={json.dumps(OFTEN)}"]
        # Each in a view of the file system in which Ray's folder is its own, as on a machine of its own.
        script = f'mount --bind "{own}" "{shared}" && exec "$@"'
        with (self._folder / f"{node}.log").open("wb") as log:
            self._processes[node] = subprocess.Popen(
                ["ip", "netns", "exec", self._name(node), "unshare", "-m", "sh", "-c", script, "sh", *words],
                env={**os.environ, **ENVIRONMENT, **self._redis},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def others(self) -> list[Any]:
        return [node for node in (1, 2) if self._processes[node].poll() is None]

    def head(self) -> list[int]:
        return self.processes(0)

    def processes(self, node: Any) -> list[int]:
        said = subprocess.run(["ip", "netns", "pids", self._name(node)], capture_output=True, check=False)
        return [int(pid) for pid in said.stdout.split()]

    def everything(self) -> list[int]:
        return [pid for node in range(3) for pid in self.processes(node)]

    def replace(self, node: Any) -> None:
        signalled(self.processes(node), signal.SIGKILL)
        self._processes[node].wait()
        self._start(node)

    def begin_anew(self) -> None:
        signalled(self.everything(), signal.SIGKILL)
        for process in self._processes.values():
            process.wait()
        self._begin()

    def cut(self, node: Any, *, off: bool) -> None:
        """Cut a node off from the others, or join it to them again."""
        _run("ip", "link", "set", self._name(node), "down" if off else "up")

    def reap(self) -> None:
        for process in self._processes.values():
            process.poll()

    def end(self) -> None:
        for _ in range(3):
            signalled(self.everything(), signal.SIGKILL)
            time.sleep(0.2)
        for node in range(3):
            subprocess.run(["ip", "netns", "del", self._name(node)], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", "dn-bridge"], check=False, capture_output=True)
        shutil.rmtree(self._folder, ignore_errors=True)


Place = Nodes | Machines


def _run(*words: str) -> None:
    subprocess.run(words, check=True)
