"""Updates through a gateway, against a bare aiohttp server that takes the same bytes over mutual TLS.

``python -m benchmarks gateway [--format json] [--folder DIR] [--slow 1000] [--dimensions D ...] [--flower
PYTHON]``. The federation is served on the local runtime in a process of its own, by ``scarcity-ray serve``;
so is the bare server, which reads the body and answers 201; asked to, it also hashes the body and verifies
one Ed25519 signature (``verified``: what a server that knows who sent which bytes cannot be faster than).
Clients are threads of this process with a kept connection each; what they send (bodies, digests, signatures)
is made before the clock starts. All take turns, five times; ratios are of the medians, and goals are 0.8 at
d = 1e6 without fsync, 0.6 with, 0.4 at d = 1e3. DIR is to be on the disk whose fsync is to count. ``--slow``
holds so many connections that send a byte now and then, and reads the server's memory meanwhile.

``--flower`` is the Python of an environment with Flower 1.42, whose SuperLink then takes its turns too, over
TLS (of the server alone: its nodes sign instead), with replies of one array of the same length
(`_flower_superlink`). It keeps its state in memory, its default; with fsync in a file (SQLite). It is
measured with up to 8 clients. The goal is 1.5 times its updates.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from scarcity_ray.gateway.certificates import Certificates
from scarcity_ray.gateway.enrolments import Enrolments
from scarcity_ray_client import IdentityKeyPair, sign_update
from scarcity_ray_client.wire import (
    EnrolRequest,
    RoundAnswer,
    SignedRequest,
    UpdateHeader,
    update_body,
    update_name,
)

TURNS = 5
CLIENTS = (1, 32), (8, 16), (64, 8)
"""Clients, and updates of each in one turn; an eighth of these with d = 1e6. A basket averages a client's
updates of a round anew at each, so that many of one client would measure that."""
MOST_SUPERNODES = 8
"""With more, a SuperLink on SQLite takes minutes for one turn here."""
WORKLOAD = """
import numpy as np
from scarcity_ray_client import Workload

class Model(Workload):
    def __init__(self, dimension):
        self.dimension = dimension
    def clients(self):
        return []
    def initial_model(self):
        return {"w": np.zeros(self.dimension, np.float32)}
    def train(self, model, client, round_id):
        raise NotImplementedError
    def evaluate(self, model):
        return {"norm": float(np.abs(model["w"]).max())}
"""
BARE = """
import hashlib, ssl, sys
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
async def put(request):
    body = await request.read()
    if "Bench-Key" in request.headers:
        said = hashlib.sha256(body).digest() and request.raw_path.encode()
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(request.headers["Bench-Key"]))
        key.verify(bytes.fromhex(request.headers["Bench-Signature"]), said)
    return web.json_response({"bytes": len(body)}, status=201)
app = web.Application(client_max_size=2**30)
app.router.add_put("/{tail:.*}", put)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{sys.argv[1]}/server.pem", f"{sys.argv[1]}/server.key")
context.load_verify_locations(f"{sys.argv[1]}/client_ca.pem")
context.verify_mode = ssl.CERT_REQUIRED
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), ssl_context=context, print=None, access_log=None)
"""
SERVE = "from scarcity_ray.cli.main import main; main()"


@dataclass
class Client:
    """One site: its keys, and what it will send."""

    client_id: str
    identity: IdentityKeyPair
    chain: Path
    requests: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)

    def signed_for_bare(self, target: str) -> dict[str, str]:
        """What the bare server verifies."""
        signature = self.identity.sign(target.encode()).hex()
        return {"Bench-Key": self.identity.public_bytes.hex(), "Bench-Signature": signature}


class Bench:
    """A served federation and a bare server, each a process."""

    def __init__(
        self, folder: Path, dimension: int, num_clients: int, *, durable: bool, seconds: float = 60.0
    ) -> None:
        self.folder, self.dimension = folder, dimension
        folder.mkdir(parents=True)
        self.keys = folder / "keys"
        authorities = Certificates.make(self.keys, ["localhost"])
        self.authority = authorities.server_authority()
        (folder / "model.py").write_text(WORKLOAD)
        job = {
            "name": "bench",
            "workload": {"class": "model:Model", "args": {"dimension": dimension}},
            "federation": {
                "total_epsilon": float("inf"),
                "gossip_budget_share": 0.0,
                "basket": {"min_clients": 1, "max_clients": 2000},
                "buffer": {"participation_cap": 1_000_000},
                "layer1": {"aggregation_method": "mean", "min_updates": 1, "clip_norm": 10.0},
                # Released once the closer has sent, which is of another domain.
                "layer2": {
                    "central_dp_epsilon": float("inf"),
                    "use_secure_aggregation": False,
                    "clip_norm": 10.0,
                    "min_baskets": 2,
                },
                "durability": "update" if durable else "none",
                "journal_path": str(folder / "journal") if durable else None,
            },
            "run": {"runtime": "local"},
            "gateway": {
                "host": "127.0.0.1",
                "port": 0,
                "keys": str(self.keys),
                "requests_per_second": 1e6,
                "request_burst": 1_000_000,
                "open_requests": 5000,
                "open_requests_per_client": 5000,
                "max_connections": 5000,
                "header_seconds": seconds,
                "body_seconds": seconds,
                "least_bytes_per_second": 1.0,
            },
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(job))
        command = [
            sys.executable,
            "-c",
            SERVE,
            "serve",
            str(folder / "job.yaml"),
            "--out",
            str(folder / "run"),
        ]
        self.served = subprocess.Popen(
            [*command, "--format", "json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.port = int(self._event("listening")["url"].rsplit(":", 1)[1])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.bare_port = free.getsockname()[1]
        self.bare = subprocess.Popen([sys.executable, "-c", BARE, str(self.keys), str(self.bare_port)])
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.bare_port), timeout=5):
                break
            time.sleep(0.1)
        self.federation_id = ""
        self.clients = [self._enrolled(f"c{n:04d}", "one", authorities) for n in range(num_clients)]
        self.closer = self._enrolled("closer", "two", authorities)

    def close(self) -> None:
        for process in (self.served, self.bare):
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def connection(self, client: Client, port: int) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", port, context=self.context(client), timeout=300)

    def context(self, client: Client) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.load_verify_locations(cadata=self.authority)
        context.load_cert_chain(client.chain)
        return context

    def round(self, after: int = -1) -> RoundAnswer:
        """The round after `after`."""
        client = self.clients[0]
        target = "/v1/round?wait_seconds=20" + (f"&after={after}" if after >= 0 else "")
        connection = self.connection(client, self.port)
        until = time.monotonic() + 60
        while True:
            signed = SignedRequest.signed(
                client.identity, self.federation_id, "GET", target, client.client_id, time.time()
            )
            connection.request("GET", target, headers=signed.headers())
            reply = connection.getresponse()
            body = reply.read()
            if reply.status == 200:
                return RoundAnswer.from_json(body)
            if time.monotonic() > until:
                raise RuntimeError(body.decode())
            time.sleep(0.2)

    def next_round(self, told: RoundAnswer) -> RoundAnswer:
        """Close a round, which every client has sent in: what waited in its basket is gone then."""
        self.prepare(told, 1, [self.closer])
        self.turn(self.port, [self.closer])
        return self.round(told.round_id)

    def prepare(self, told: RoundAnswer, each: int, clients: Sequence[Client]) -> None:
        """What each client sends in one turn."""
        row = np.full(self.dimension, 1e-4, np.float32)
        for client in clients:
            client.requests.clear()
            for sequence in range(each):
                row[0] = sequence + 1
                signature = sign_update(
                    client.identity.sign, told.scope, client.client_id, told.round_id, row, sequence=sequence,
                    num_examples=1,
                )  # fmt: skip
                header = UpdateHeader(client.client_id, told.round_id, sequence, 1, None, signature)
                body = update_body(header, row)
                name = update_name(body)
                target = f"/v1/updates/{told.round_id}/{name}"
                signed = SignedRequest.signed(
                    client.identity, self.federation_id, "PUT", target, client.client_id, time.time(), name
                )
                client.requests.append((target, body, signed.headers()))

    def turn(self, port: int, clients: Sequence[Client], *, is_verified: bool = False) -> float:
        """Seconds in which all clients have sent all of theirs."""
        ready, failed = threading.Barrier(len(clients) + 1), list[str]()
        extra = {
            target: client.signed_for_bare(target)
            for client in clients
            for target, _, _ in client.requests
            if is_verified
        }

        def send(client: Client) -> None:
            connection = self.connection(client, port)
            connection.connect()
            ready.wait()
            for target, body, headers in client.requests:
                connection.request("PUT", target, body, {**headers, **extra.get(target, {})})
                reply = connection.getresponse()
                answer = reply.read()
                if reply.status != 201:
                    failed.append(answer.decode()[:200])
            connection.close()

        threads = [threading.Thread(target=send, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        ready.wait()
        begun = time.perf_counter()
        for thread in threads:
            thread.join()
        if failed:
            raise RuntimeError(failed[0])
        return time.perf_counter() - begun

    def cpu_seconds(self, process: subprocess.Popen[Any]) -> float:
        """CPU time that a process has taken, which tells more than the clock where others use the machine."""
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes of the served process that are in memory."""
        status = Path(f"/proc/{self.served.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) * 1024

    def _event(self, kind: str) -> Mapping[str, Any]:
        if self.served.stdout is None:
            raise RuntimeError("no output")
        for line in self.served.stdout:
            told: dict[str, Any] = json.loads(line)
            if told["event"] == kind:
                return told
        raise RuntimeError("the server has ended")

    def _enrolled(self, client_id: str, domain_id: str, authorities: Certificates) -> Client:
        """A client, enrolled beside the running gateway, which registers it at its first update."""
        key, identity = ec.generate_private_key(ec.SECP256R1()), IdentityKeyPair.generate()
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        pem = csr.public_bytes(serialization.Encoding.PEM).decode()
        with Enrolments.opened(self.folder / "run" / "state" / "gateway") as enrolments:
            self.federation_id = enrolments.federation_id
            token = enrolments.invite(client_id, domain_id)
            asked = EnrolRequest.signed(identity, token, client_id, pem)
            certificate = enrolments.enrol(asked, authorities.issue)
        if not isinstance(certificate, str):
            raise RuntimeError(str(certificate))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        chain = self.folder / f"{client_id}.pem"
        chain.write_text(private + certificate)
        return Client(client_id, identity, chain)


class SuperLink:
    """Flower's server and its nodes, each a process of its own Python."""

    def __init__(self, python: str, bench: Bench, dimension: int, num_clients: int, *, durable: bool) -> None:
        authority = bench.folder / "authority.pem"
        authority.write_text(bench.authority)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        database = str(bench.folder / "superlink.sqlite") if durable else "memory"
        pair = f"{bench.keys}/server.pem", f"{bench.keys}/server.key"
        self.server = self._started(python, "serve", *pair, port, database)
        until = time.monotonic() + 120
        while time.monotonic() < until and self.server.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), timeout=5):
                break
            time.sleep(0.2)
        self.nodes = self._started(python, "push", str(authority), port, str(dimension), str(num_clients))
        self._told(self.nodes)

    def turn(self, each: int) -> tuple[float, float]:
        """Seconds in which all nodes have sent `each` replies, and requests of one reply."""
        for process in (self.server, self.nodes):
            if process.stdin is not None:
                process.stdin.write(f"{each}\n")
                process.stdin.flush()
            told = self._told(process)
        return float(told["seconds"]), float(told["requests"])

    def close(self) -> None:
        for process in (self.server, self.nodes):
            process.kill()
            process.wait()

    @staticmethod
    def _started(python: str, *arguments: str) -> subprocess.Popen[str]:
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.Popen(
            [python, str(Path(__file__).with_name("_flower_superlink.py")), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ,
        )  # fmt: skip

    @staticmethod
    def _told(process: subprocess.Popen[str]) -> Mapping[str, Any]:
        line = "" if process.stdout is None else process.stdout.readline()
        if not line:
            raise RuntimeError("Flower's process has ended")
        told: dict[str, Any] = json.loads(line)
        return told


def measure(
    folder: Path, dimension: int, num_clients: int, each: int, flower: str | None, *, durable: bool
) -> dict[str, Any]:
    """One size: updates a second of ours, of the bare server, and of Flower's if there is one."""
    bench = Bench(folder / f"{dimension}-{num_clients}-{durable}", dimension, num_clients, durable=durable)
    superlink: SuperLink | None = None
    ours, bare, verified, peer, cpu = [], [], [], [], [0.0, 0.0]
    few, requests = max(1, each // 4), 0.0
    try:
        if flower is not None:
            superlink = SuperLink(flower, bench, dimension, num_clients, durable=durable)
            superlink.turn(1)
        told = bench.round()
        bench.prepare(told, 1, bench.clients)
        bench.turn(bench.port, bench.clients)  # registers the clients
        for _ in range(TURNS):
            told = bench.next_round(told)
            bench.prepare(told, each, bench.clients)
            before = bench.cpu_seconds(bench.bare), bench.cpu_seconds(bench.served)
            bare.append(bench.turn(bench.bare_port, bench.clients))
            cpu[0] += bench.cpu_seconds(bench.bare) - before[0]
            ours.append(bench.turn(bench.port, bench.clients))
            cpu[1] += bench.cpu_seconds(bench.served) - before[1]
            verified.append(bench.turn(bench.bare_port, bench.clients, is_verified=True))
            if superlink is not None:
                seconds, requests = superlink.turn(few)
                peer.append(seconds)
    finally:
        bench.close()
        if superlink is not None:
            superlink.close()
    count, seconds, against = each * num_clients, statistics.median(ours), statistics.median(bare)
    row = {
        "name": f"gateway, {'fsync' if durable else 'no fsync'}",
        "n": num_clients,
        "d": dimension,
        "seconds": seconds,
        "versus": "bare aiohttp over mutual TLS",
        "ratio": against / seconds,
        "ratio_to_verified": statistics.median(verified) / seconds,
        "updates_per_second": count / seconds,
        "megabytes_per_second": 4e-6 * dimension * count / seconds,
        "bare_updates_per_second": count / against,
        "cpu_milliseconds": 1e3 * cpu[1] / (TURNS * count),
        "bare_cpu_milliseconds": 1e3 * cpu[0] / (TURNS * count),
        "spread": [min(ours) / seconds, max(ours) / seconds],
    }
    if peer:
        rate = few * num_clients / statistics.median(peer)
        row["superlink_updates_per_second"] = rate
        row["ratio_to_superlink"] = count / seconds / rate
        row["superlink_requests_per_update"] = requests
        row["superlink_storage"] = "SQLite" if durable else "memory"
    return row


def slow_senders(folder: Path, count: int, dimension: int = 100_000, seconds: float = 15.0) -> dict[str, Any]:
    """The server's memory while many send a byte now and then, and what a prompt client sees."""
    bench = Bench(folder / "slow", dimension, 2, durable=False, seconds=120.0)
    held: list[ssl.SSLSocket] = []
    try:
        told = bench.round()
        bench.prepare(told, 8, bench.clients)
        prompt, slow = bench.clients
        context = bench.context(slow)
        connections = []
        for _ in range(count):
            raw = socket.create_connection(("127.0.0.1", bench.port), timeout=30)
            connections.append(context.wrap_socket(raw, server_hostname="localhost"))
        connected = bench.memory()
        statuses: dict[str, int] = {}
        for number, sent in enumerate(connections):
            target, body, _ = slow.requests[number % len(slow.requests)]
            signed = SignedRequest.signed(
                slow.identity,
                bench.federation_id,
                "PUT",
                target,
                slow.client_id,
                time.time(),
                update_name(body),
            )
            lines = [f"PUT {target} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
            lines += [f"{name}: {value}" for name, value in signed.headers().items()]
            sent.sendall("\r\n".join([*lines, "", ""]).encode() + body[:1024])
            held.append(sent)
        time.sleep(1.0)
        begun, peak = bench.memory(), 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for sent in held:
                with suppress(OSError):
                    sent.sendall(b"\0")
            peak = max(peak, bench.memory())
            time.sleep(0.2)
        for sent in held:
            sent.setblocking(False)
            with suppress(OSError):
                said = sent.recv(64).split(b" ")
                statuses[said[1].decode()] = statuses.get(said[1].decode(), 0) + 1
        connection = bench.connection(prompt, bench.port)
        asked = time.perf_counter()
        target, body, headers = prompt.requests[0]
        connection.request("PUT", target, body, headers)
        status = connection.getresponse().status
        return {
            "name": "slow senders",
            "n": count,
            "d": dimension,
            "seconds": time.perf_counter() - asked,
            "versus": "its memory once they were connected",
            "ratio": peak / connected,
            "megabytes_connected": connected / 1e6,
            "megabytes_sending": begun / 1e6,
            "megabytes_peak": peak / 1e6,
            "prompt_client_answered": status,
            "answered": statuses,
        }
    finally:
        for sent in held:
            sent.close()
        bench.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gateway", description=__doc__)
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument("--folder", default=None, help="on the disk whose fsync is to count")
    parser.add_argument("--slow", type=int, default=1000, help="slow senders; 0: none")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1_000, 1_000_000], metavar="D")
    parser.add_argument("--flower", metavar="PYTHON", help="of an environment with Flower, to measure beside")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=given.folder, prefix="gateway-"))
    rows: list[dict[str, Any]] = []
    try:
        for dimension, durable, (num_clients, each) in product(given.dimensions, (False, True), CLIENTS):
            count = max(1, each // (8 if dimension > 1_000 else 1))
            flower = given.flower if num_clients <= MOST_SUPERNODES else None
            rows.append(measure(folder, dimension, num_clients, count, flower, durable=durable))
            print_row(rows[-1], given.format)
        if given.slow:
            rows.append(slow_senders(folder, given.slow))
            print_row(rows[-1], given.format)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def print_row(row: Mapping[str, Any], form: str) -> None:
    if form == "json":
        print(json.dumps(row), flush=True)
        return
    figures = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
    ]
    print(", ".join(figures), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
