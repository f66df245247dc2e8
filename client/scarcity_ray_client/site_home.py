"""A site's folder: what its kit said, the keys that it made, and what it keeps between two requests.

::

    site.json      the kit without its token
    authority.pem  whom the site trusts to be a gateway
    token          until it has enrolled; then its hash is in spent_token
    password       32 random bytes (hexadecimal) that encrypt the keys, unless the environment gives one
    identity.pem   its Ed25519 key, encrypted
    tls.pem        its TLS key, encrypted, and its certificate
    ledger.sqlite  its own ledger, with a policy
    outbox/        the update that the gateway has not acknowledged yet
    receipts/      what the gateway acknowledged
    progress.json  the last round that it took part in

Files are written whole or not at all, and are their owner's alone where the system has modes; on Windows the
folder's own access list decides. One process uses the folder at a time.

Guarantees:
    a_file_is_its_owners_alone_and_holds_no_plain_key
    a_file_is_whole_or_not_there
    two_processes_never_share_a_folder
    a_kit_that_is_cut_changed_or_newer_is_refused
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import secrets
import sqlite3
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scarcity_ray_client.errors import UsageError, shown
from scarcity_ray_client.formats import why_not_read
from scarcity_ray_client.identity import IdentityKeyPair

KIND = "scarcity_ray kit"
FORMAT = 1
ANSWER_KEY = "answers.key"
"""The file, in a kit and in a site's folder, with the public key that signs gateways' answers."""
MOST_KIT_BYTES = 64 * 1024
"""Of each file in a kit."""
_NO_KIT = (zipfile.BadZipFile, KeyError, ValueError, RuntimeError, EOFError, zlib.error, lzma.LZMAError)
PASSWORD = "SCARCITY_RAY_CLIENT_PASSWORD"
"""Of the environment: encrypts the site's keys, which then need it at every start."""
_README = """This kit invites one site to a federation. On the site's machine:

    pip install FILE        (scarcity_ray_client, as the federation gives it to you)
    scarcity-ray-client run {name} WORKLOAD.yaml

It holds a token that can be used once, until it expires: send it as you would send a password. The site makes
its private keys itself; none is in here.
"""


@dataclass(frozen=True)
class Kit:
    """What a federation's operator gives to one site, as one zip file.

    Attributes:
        gateway: ``https://host[:port]``.
        federation_id: Empty if it was not known yet.
        authority: PEM, of whoever signs the gateways' certificates.
        token: For one enrolment; empty once it has enrolled.
        answer_key: Ed25519, hexadecimal: signs all that gateways answer (`wire`). Empty: of an older release,
            and answers are believed as TLS brings them.
    """

    gateway: str
    federation_id: str
    client_id: str
    domain_id: str
    authority: str
    token: str = field(default="", repr=False)
    answer_key: str = ""

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a new zip file, its owner's alone.

        Raises:
            UsageError: If it exists or cannot be made.
        """
        target = Path(path)
        files = {
            "kit.json": self.facts(),
            "authority.pem": self.authority,
            "token": self.token,
            ANSWER_KEY: self.answer_key,
            "README.txt": _README.format(name=target.name),
        }
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w") as made:
                for name, text in files.items():
                    made.writestr(name, text)
        except OSError as error:
            raise UsageError(f"cannot make the kit {target}: {error.strerror}") from None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Kit:
        """Read what `write` wrote.

        Raises:
            UsageError: If it is none, cut, or of a newer version.
        """
        texts: dict[str, str] = {}
        try:
            with zipfile.ZipFile(path) as made:
                names = set(made.namelist())
                for name in ("kit.json", "authority.pem", "token", ANSWER_KEY):
                    if name == ANSWER_KEY and name not in names:  # of an older release
                        continue
                    with made.open(name) as file:
                        data = file.read(MOST_KIT_BYTES + 1)
                    if len(data) > MOST_KIT_BYTES:
                        raise UsageError(
                            f"{os.fspath(path)}: its {name} is longer than {MOST_KIT_BYTES} bytes"
                        )
                    texts[name] = data.decode()
        except OSError as error:
            raise UsageError(f"cannot read the kit {os.fspath(path)}: {error.strerror or error}") from None
        except _NO_KIT as error:
            raise UsageError(f"{os.fspath(path)} is no kit, or was cut: {error}") from None
        named = texts.get(ANSWER_KEY, "")
        return cls.of_facts(os.fspath(path), texts["kit.json"], texts["authority.pem"], texts["token"], named)

    def facts(self) -> str:
        """All but authority and token, as JSON."""
        content = {
            "kind": KIND,
            "version": FORMAT,
            "gateway": self.gateway,
            "federation_id": self.federation_id,
            "client_id": self.client_id,
            "domain_id": self.domain_id,
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def of_facts(cls, where: str, facts: str, authority: str, token: str, answer_key: str = "") -> Kit:
        """The kit of which `facts` tells; `where` it was read."""
        try:
            given = json.loads(facts)
            said = (given.get("kind"), given.get("version")) if isinstance(given, dict) else (None, None)
        except (ValueError, RecursionError):
            said = (None, None)
        if why := why_not_read(KIND, FORMAT, *said):
            raise UsageError(f"{where}: {why}")
        texts: dict[str, str] = {}
        for name in ("gateway", "federation_id", "client_id", "domain_id"):
            value = given.get(name)
            is_text = isinstance(value, str) and value.isprintable()
            if not is_text or not (value or name == "federation_id"):
                raise UsageError(f"{where}: {name}: {shown(value)} is not accepted; a text")
            texts[name] = value
        answer_key = answer_key.strip()
        if answer_key and re.fullmatch("[0-9a-f]{64}", answer_key) is None:
            raise UsageError(f"{where}: {ANSWER_KEY}: {shown(answer_key)} is no key; ask for a new kit")
        return cls(authority=authority, token=token, answer_key=answer_key, **texts)


class SiteHome:
    """The folder, in use by this process until `close`.

    Args:
        folder: That `SiteHome.made` has made.
        environ: Where a password may be.
        beside: Whether another process may use it: for who asks, and changes nothing.

    Raises:
        UsageError: If it is no site's folder, or another process uses it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        environ: Mapping[str, str] = os.environ,
        *,
        beside: bool = False,
    ) -> None:
        self.folder = Path(folder)
        try:
            facts = (self.folder / "site.json").read_text("utf-8")
            authority = (self.folder / "authority.pem").read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            raise UsageError(f"{self.folder} is no site's folder; give the kit (a zip file) first") from None
        token, named = self._text("token"), self._text(ANSWER_KEY)
        self.kit = Kit.of_facts(str(self.folder), facts, authority, token, named)
        self._password = environ.get(PASSWORD, "").encode()
        self._lock = None if beside else self._locked()

    @classmethod
    def made(
        cls,
        kit_path: str | os.PathLike[str],
        folder: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> SiteHome:
        """The folder of a kit, made if it is not there yet.

        A later kit of the same site has it enrol again; signing key, ledger and receipts stay.

        Args:
            folder: None: beside the kit, with its name without ``.zip``.

        Raises:
            UsageError: If the kit is none, or the folder is of another site.
        """
        kit, source = Kit.read(kit_path), Path(kit_path)
        place = source.with_suffix("") if folder is None else Path(folder)
        if place == source:
            raise UsageError(f"{source}: a kit's name ends in .zip; or name the site's folder (--home)")
        if not (place / "site.json").exists():
            try:
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_whole(place / "authority.pem", kit.authority.encode())
                write_whole(place / "token", kit.token.encode())
                write_whole(place / ANSWER_KEY, kit.answer_key.encode())
                write_whole(place / "site.json", kit.facts().encode())  # last: it makes the folder a site's
            except OSError as error:
                raise UsageError(f"cannot make the site's folder {place}: {error.strerror}") from None
        home = cls(place, environ)
        known = home.kit
        is_same = known.client_id == kit.client_id and kit.federation_id in ("", known.federation_id)
        if not is_same:
            home.close()
            raise UsageError(
                f"{place} is of site {known.client_id!r} in federation {known.federation_id}; this "
                f"kit is of {kit.client_id!r} in {kit.federation_id}: name another folder (--home)"
            )
        home._take_kit(kit)
        return home

    @property
    def is_enrolled(self) -> bool:
        """Whether it has a certificate."""
        return (self.folder / "tls.pem").exists()

    @property
    def chain(self) -> tuple[Path, bytes]:
        """The file with certificate and key, and its password."""
        return self.folder / "tls.pem", self.password()

    @property
    def certificate_life(self) -> tuple[float, float]:
        """From when until when the certificate is good, unix seconds.

        Raises:
            UsageError: If there is no certificate.
        """
        try:
            held = x509.load_pem_x509_certificates((self.folder / "tls.pem").read_bytes())
        except (OSError, ValueError):
            raise UsageError(f"{self.folder}: there is no certificate; enrol first") from None
        return held[0].not_valid_before_utc.timestamp(), held[0].not_valid_after_utc.timestamp()

    def password(self) -> bytes:
        """What encrypts the keys; made if there is none."""
        if self._password:
            return self._password
        path = self.folder / "password"
        if not path.exists():
            write_whole(path, secrets.token_hex(32).encode())
        self._password = path.read_bytes()
        return self._password

    def identity(self, name: str = "identity") -> IdentityKeyPair:
        """The site's Ed25519 key, made if there is none; ``identity_new`` is the one to come."""
        path = self.folder / f"{name}.pem"
        if not path.exists():
            draft = self.folder / f"{name}.{secrets.token_hex(4)}.draft"
            IdentityKeyPair.generate().save(draft, self.password())
            draft.replace(path)
        return IdentityKeyPair.load(path, self.password())

    def forget_identity(self) -> None:
        """Have another Ed25519 key made, where the one that is there was lost or stolen."""
        for name in ("identity.pem", "identity_new.pem"):
            (self.folder / name).unlink(missing_ok=True)

    def has_new_identity(self) -> bool:
        """Whether a change of the key was begun and not ended."""
        return (self.folder / "identity_new.pem").exists()

    def take_new_identity(self) -> None:
        """Put the new key in the old one's place."""
        (self.folder / "identity_new.pem").replace(self.folder / "identity.pem")

    def csr(self) -> str:
        """A CSR (PEM) of the TLS key that is to be certified: the same until `take_certificate`."""
        path = self.folder / "tls_new.pem"
        if not path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "scarcity_ray site")])
            asked = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
            private = key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(self.password()),
            )
            write_whole(path, private + asked.public_bytes(serialization.Encoding.PEM))
        text = path.read_text("ascii")
        return text[text.index("-----BEGIN CERTIFICATE REQUEST-----") :]

    def take_certificate(self, pem: str) -> None:
        """Keep the certificate of the key that `csr` made; the token is spent then.

        Raises:
            UsageError: If it is of another key.
        """
        path = self.folder / "tls_new.pem"
        private = path.read_bytes()
        try:
            key = serialization.load_pem_private_key(private, self.password())
            fits = x509.load_pem_x509_certificate(pem.encode()).public_key() == key.public_key()
        except (ValueError, TypeError) as error:
            raise UsageError(f"the gateway's certificate for this site cannot be used: {error}") from None
        if not fits:
            raise UsageError("the gateway's certificate for this site is of another key")
        private = private[: private.index(b"-----BEGIN CERTIFICATE REQUEST-----")]
        write_whole(self.folder / "tls.pem", private + pem.encode())
        path.unlink()
        token = self.folder / "token"
        if token.exists():
            write_whole(self.folder / "spent_token", _hashed(token.read_text("utf-8")))
            token.unlink()

    def note_federation(self, federation_id: str) -> None:
        """Pin the federation that it has enrolled with.

        Raises:
            UsageError: If the kit named another.
        """
        if self.kit.federation_id == federation_id:
            return
        if self.kit.federation_id:
            raise UsageError(
                f"the gateway serves {shown(federation_id)}, and the kit is of {self.kit.federation_id}"
            )
        self.kit = replace(self.kit, federation_id=federation_id)
        write_whole(self.folder / "site.json", self.kit.facts().encode())

    def close(self) -> None:
        """Let another process use the folder."""
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> SiteHome:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _take_kit(self, kit: Kit) -> None:
        spent, token = self.folder / "spent_token", self.folder / "token"
        is_spent = spent.exists() and spent.read_bytes() == _hashed(kit.token)
        if is_spent or not kit.token or (token.exists() and token.read_text("utf-8") == kit.token):
            return
        federation_id = kit.federation_id or self.kit.federation_id
        self.kit = replace(kit, federation_id=federation_id)
        write_whole(self.folder / "authority.pem", kit.authority.encode())
        write_whole(self.folder / ANSWER_KEY, kit.answer_key.encode())
        write_whole(self.folder / "site.json", self.kit.facts().encode())
        write_whole(token, kit.token.encode())
        (self.folder / "tls.pem").unlink(missing_ok=True)  # last: without it the site enrols

    def _text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text("utf-8") if path.exists() else ""

    def _locked(self) -> sqlite3.Connection:
        """SQLite's lock: the same on every system, and gone with the process."""
        lock = sqlite3.connect(
            self.folder / "lock.sqlite", timeout=0.0, isolation_level=None, check_same_thread=False
        )
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            lock.close()
            why = "another process of this site uses it: end that" if "locked" in str(error) else str(error)
            raise UsageError(f"{self.folder}: {why}") from None
        return lock


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode()).hexdigest().encode()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, its owner's alone, so that after a crash it is whole, old or new."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.draft")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
