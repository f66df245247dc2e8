"""Sites that speak to a gateway byte by byte, and a served job to speak to."""

from __future__ import annotations

import hashlib
import http.client
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scarcity_ray.gateway.certificates import Certificates
from scarcity_ray.gateway.enrolments import Enrolments
from scarcity_ray.gateway.serving import Listening, serve_job
from scarcity_ray.workloads.config import load_job
from scarcity_ray.workloads.records import Outcome
from scarcity_ray.workloads.run_folder import RunFolder
from scarcity_ray_client import IdentityKeyPair, sign_update
from scarcity_ray_client.wire import (
    EnrolAnswer,
    EnrolRequest,
    RoundAnswer,
    SignedRequest,
    UpdateHeader,
    digest_of,
    update_body,
    update_name,
)

WORKLOAD = '''
import numpy as np
from scarcity_ray_client import Workload, Trained

class Towards(Workload):
    """Sites move the model towards a target of their own."""
    def __init__(self, dimension=2):
        self.dimension = dimension
    def clients(self):
        return []
    def initial_model(self):
        return {"w": np.zeros(self.dimension, np.float32)}
    def train(self, model, client, round_id):
        return Trained(delta={"w": np.ones(self.dimension, np.float32)})
    def evaluate(self, model):
        return {"mean": float(np.mean(model["w"]))}
'''
FEDERATION: dict[str, Any] = {
    "total_epsilon": float("inf"),
    "gossip_budget_share": 0.0,
    "basket": {"min_clients": 1, "max_clients": 8},
    "layer1": {"aggregation_method": "mean", "min_updates": 1, "clip_norm": 10.0},
    "layer2": {
        "central_dp_epsilon": float("inf"),
        "use_secure_aggregation": False,
        "clip_norm": 10.0,
        "min_baskets": 2,
    },
}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Site:
    """One site, with keys in this process."""

    client_id: str
    port: int
    trust: ssl.SSLContext
    identity: IdentityKeyPair = field(default_factory=IdentityKeyPair.generate)
    federation_id: str = ""
    chain: Path | None = None
    connection: http.client.HTTPConnection | None = None
    occasion: str = ""
    address: str = ""

    def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        signed: bool = True,
        digest: str | None = None,
        **headers: str,
    ) -> Answer:
        """One request over the kept connection; `digest` is signed for the body, or its SHA-256."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if signed:
            made = SignedRequest.signed(
                self.identity,
                self.federation_id,
                method,
                target,
                self.client_id,
                time.time(),
                digest or digest_of(body),
            )
            self.occasion = made.occasion(self.federation_id, method, target)
            given = {**made.headers(), **given}
        if self.connection is None:
            source = (self.address, 0) if self.address else None
            self.connection = http.client.HTTPSConnection(
                "localhost", self.port, context=self.context(), timeout=20, source_address=source
            )
        try:
            self.connection.request(method, target, body or None, given)
            reply = self.connection.getresponse()
            return Answer(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        except (OSError, http.client.HTTPException):
            self.hang_up()
            raise

    def hang_up(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.load_verify_locations(cadata=self.authority)
        if self.chain is not None:
            context.load_cert_chain(self.chain)
        return context

    authority: str = ""

    def enrol(self, token: str, folder: Path, **more: Any) -> Answer:
        """Make a TLS key, enrol, and use what was issued."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site")])
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        pem = csr.public_bytes(serialization.Encoding.PEM).decode()
        asked = EnrolRequest.signed(self.identity, token, self.client_id, pem, **more)
        answer = self.ask("POST", "/v1/enrol", asked.to_json(), signed=False)
        if answer.status == 201:
            made = EnrolAnswer.from_json(answer.body)
            self.federation_id = made.federation_id
            private = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode()
            self.chain = folder / f"{self.client_id}.pem"
            self.chain.write_text(private + made.certificate)
            self.hang_up()
        return answer

    def round(self, after: int | None = None, wait_seconds: float = 10.0) -> RoundAnswer:
        query = f"wait_seconds={wait_seconds}" + ("" if after is None else f"&after={after}")
        answer = self.ask("GET", f"/v1/round?{query}")
        assert answer.status == 200, answer
        return RoundAnswer.from_json(answer.body)

    def update(self, told: RoundAnswer, row: Any, sequence: int = 0, **more: Any) -> bytes:
        """The body of an upload."""
        vector = np.asarray(row, np.float32)
        given = {"num_examples": 1, "meta": None, **more}
        signature = sign_update(
            self.identity.sign, told.scope, self.client_id, told.round_id, vector, sequence=sequence,
            num_examples=given["num_examples"], meta=given["meta"],
        )  # fmt: skip
        header = UpdateHeader(self.client_id, told.round_id, sequence, signature=signature, **given)
        return update_body(header, vector)

    def send(self, told: RoundAnswer, row: Any, sequence: int = 0, **more: Any) -> Answer:
        body = self.update(told, row, sequence, **more)
        name = update_name(body)
        return self.ask("PUT", f"/v1/updates/{told.round_id}/{name}", body, digest=name)


def target_of(round_id: int, body: bytes) -> str:
    return f"/v1/updates/{round_id}/{hashlib.sha256(body).hexdigest()}"


class Watching:
    """Keeps what a served job tells."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.is_listening = threading.Event()
        self.url = ""

    def phase(self, name: str) -> None:
        self.told.append(name)

    progress = round = waiting = phase

    def listening(self, listening: Listening) -> None:
        self.url = listening.url
        self.is_listening.set()


class Served:
    """A job that is served by a thread of this process, on the local runtime."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        (folder / "towards.py").write_text(WORKLOAD)
        self.keys = folder / "keys"
        if not self.keys.exists():
            Certificates.make(self.keys, ["localhost"])
        self.file = folder / "job.yaml"
        self.file.write_text(yaml.safe_dump(config))
        self.run = folder / "run"
        self.outcome: Outcome | BaseException | None = None
        self.watching = Watching()
        self._thread: threading.Thread | None = None

    @property
    def register(self) -> Path:
        return self.run / "state" / "gateway"

    def start(self, *, resume: bool = False, seconds: float = 20.0) -> None:
        job = load_job(self.file, is_served=True)
        from datetime import UTC, datetime

        now = datetime.now(UTC)
        folder = (
            RunFolder.resumed(job.config, self.run, now)
            if resume
            else RunFolder.new(job.config, str(self.run), now)
        )
        self.watching = Watching()

        def serve() -> None:
            try:
                self.outcome = serve_job(job, folder, self.watching, resume=resume)
            except BaseException as error:
                self.outcome = error

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        until = time.monotonic() + seconds
        while not self.watching.is_listening.wait(0.05):
            assert time.monotonic() < until
            if not self._thread.is_alive():
                raise AssertionError(self.outcome) from (
                    self.outcome if isinstance(self.outcome, BaseException) else None
                )

    def join(self, seconds: float = 20.0) -> Outcome:
        assert self._thread is not None
        self._thread.join(seconds)
        assert not self._thread.is_alive()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        assert self.outcome is not None
        return self.outcome

    @property
    def port(self) -> int:
        return int(self.watching.url.rsplit(":", 1)[1])

    def token(self, client_id: str, domain_id: str) -> str:
        with Enrolments.opened(self.register) as enrolments:
            return enrolments.invite(client_id, domain_id)

    def site(self, client_id: str, domain_id: str, **more: Any) -> Site:
        """An enrolled site."""
        trust = ssl.create_default_context()
        site = Site(client_id, self.port, trust, authority=Certificates(self.keys).server_authority())
        answer = site.enrol(self.token(client_id, domain_id), self.folder, **more)
        assert answer.status == 201, answer
        return site


def job(
    folder: Path, *, dimension: int = 2, rounds: int = 2, federation: Any = None, **gateway: Any
) -> dict[str, Any]:
    return {
        "name": "served",
        "workload": {"class": "towards:Towards", "args": {"dimension": dimension}},
        "federation": {**FEDERATION, **(federation or {})},
        "training": {"rounds": rounds},
        "run": {"runtime": "local"},
        "gateway": {
            "host": "127.0.0.1", "port": 0, "keys": str(folder / "keys"), "url": None, **gateway,
        },
    }  # fmt: skip
