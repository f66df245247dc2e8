"""The certificates of a federation's TLS, in one folder: two authorities, and the gateways' own certificate.

``server_ca`` signs the gateways' certificate and is what each site trusts; its key is needed again only to
renew that certificate, so that it may be kept elsewhere. ``client_ca`` signs the sites' certificates, and its
key lies where the gateways issue them. There are two so that a client's certificate never passes for the
server's, whatever a library checks. All keys are of the curve P-256, which every TLS library has.

A site is known by the SHA-256 of its certificate, which its enrolment holds (`enrolments`), not by its name.

Guarantees:
    a_key_file_is_its_owners_alone
    a_client_certificate_is_no_server_certificate: And the other way round.
    a_csr_states_nothing_but_its_key: Names and extensions that it asks for are not taken over.
    nothing_is_overwritten
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scarcity_ray.errors import UsageError
from scarcity_ray.private_folder import why_not_private
from scarcity_ray_client.errors import shown

CA_DAYS = 3650
SERVER_DAYS = 365
CLIENT_DAYS = 90
EARLIER = timedelta(minutes=10)
"""A certificate is valid from so long before it is made, for clocks that are behind."""
SERVER_CA, CLIENT_CA, SERVER = "server_ca", "client_ca", "server"


@dataclass(frozen=True)
class CertificateFacts:
    """What is told of a certificate: times in unix seconds, its hosts, and its SHA-256 (hexadecimal)."""

    name: str
    begins: int
    expires: int
    hosts: tuple[str, ...]
    fingerprint: str


class Certificates:
    """The folder's authorities and certificate; read when they are asked for.

    Args:
        folder: Of this user alone; `make` makes it.

    Raises:
        UsageError: If it is not there, or others may read it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            why = why_not_private(self.folder, "the folder of keys")
        except OSError as error:
            why = f"{self.folder}: there are no keys: {error.strerror}; make them: scarcity-ray keys init"
        if why:
            raise UsageError(why)

    @classmethod
    def make(
        cls, folder: str | os.PathLike[str], hosts: Sequence[str], now: datetime | None = None
    ) -> Certificates:
        """Make both authorities and the gateways' certificate in a new folder.

        Args:
            hosts: Names and IP addresses under which sites reach the gateways.

        Raises:
            UsageError: If a host is none, or there are keys already.
        """
        names, place, begun = _names(hosts), Path(folder), _now(now)
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make {place}: {error.strerror}") from None
        made = cls(place)
        authorities = {}
        for name, title in ((SERVER_CA, "gateways"), (CLIENT_CA, "sites")):
            key = ec.generate_private_key(ec.SECP256R1())
            subject = _name(f"scarcity_ray authority of {title}")
            built = _built(subject, subject, key.public_key(), begun, CA_DAYS, is_authority=True)
            authorities[name] = key, built.sign(key, hashes.SHA256())
            made._put(name, *authorities[name])
        made._make_server(names, begun, *authorities[SERVER_CA])
        return made

    def renew_server(self, hosts: Sequence[str] = (), now: datetime | None = None) -> None:
        """Put a new key and certificate in place of the gateways', which take them when they start.

        Args:
            hosts: None of them: those of the one in place.
        """
        names = _names(hosts or self.facts(SERVER).hosts)
        self._make_server(names, _now(now), *self._authority(SERVER_CA), replaces=True)

    def issue(self, csr: str, client_id: str, days: float = CLIENT_DAYS, now: datetime | None = None) -> str:
        """A site's certificate (PEM) for the key of its CSR.

        Raises:
            UsageError: If the CSR is none, not signed by its key, or of a key that is not P-256.
        """
        public, (key, authority) = _key_of(csr), self._authority(CLIENT_CA)
        built = _built(_name("scarcity_ray site"), authority.subject, public, _now(now), days)
        built = _under(built, authority)
        uri = x509.UniformResourceIdentifier(f"scarcity-ray:client:{quote(client_id, safe='')}")
        built = built.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        signed = built.add_extension(usage, critical=True).sign(key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM).decode()

    def server_context(self, is_mutual: bool = True) -> ssl.SSLContext:
        """What gateways speak TLS with: sites' certificates are checked if they are shown.

        Whether one was shown, and is its client's own, is judged at each request (`Enrolments.admit`).
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.folder / f"{SERVER}.pem", self.folder / f"{SERVER}.key")
            if is_mutual:
                context.load_verify_locations(self.folder / f"{CLIENT_CA}.pem")
                context.verify_mode = ssl.CERT_OPTIONAL
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"{self.folder}: the gateways' certificate cannot be used: {error}") from None
        return context

    def server_authority(self) -> str:
        """What sites trust, PEM."""
        return self._read(SERVER_CA).public_bytes(serialization.Encoding.PEM).decode()

    def facts(self, name: str) -> CertificateFacts:
        """Of ``server_ca``, ``client_ca`` or ``server``."""
        return facts_of(name, self._read(name))

    def _make_server(
        self,
        names: Sequence[x509.GeneralName],
        begun: datetime,
        authority_key: ec.EllipticCurvePrivateKey,
        authority: x509.Certificate,
        replaces: bool = False,
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        built = _built(_name("scarcity_ray gateway"), authority.subject, key.public_key(), begun, SERVER_DAYS)
        built = _under(built, authority)
        built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        signed = built.add_extension(usage, critical=True).sign(authority_key, hashes.SHA256())
        self._put(SERVER, key, signed, replaces)

    def _authority(self, name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        path = self.folder / f"{name}.key"
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UsageError(f"{path}: the authority's key cannot be read: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise UsageError(f"{path}: this is another kind of key than P-256")
        return key, self._read(name)

    def _read(self, name: str) -> x509.Certificate:
        path = self.folder / f"{name}.pem"
        try:
            return x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: the certificate cannot be read: {error}") from None

    def _put(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
        replaces: bool = False,
    ) -> None:
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        public = certificate.public_bytes(serialization.Encoding.PEM)
        for end, content, mode in ((".key", private, 0o600), (".pem", public, 0o644)):
            path = self.folder / f"{name}{end}"
            draft = self.folder / f"{name}{end}.new" if replaces else path
            try:
                with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            except OSError as error:
                raise UsageError(f"cannot make {draft}: {error.strerror}") from None


def fingerprint_of(der: bytes) -> str:
    """SHA-256 of a certificate as TLS shows it (DER), hexadecimal: what an enrolment knows it by."""
    return hashlib.sha256(der).hexdigest()


def facts_of(name: str, certificate: x509.Certificate | str) -> CertificateFacts:
    """What is told of a certificate, which may be PEM."""
    if isinstance(certificate, str):
        certificate = x509.load_pem_x509_certificate(certificate.encode())
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [str(one.value) for one in names]
    except x509.ExtensionNotFound:
        hosts = []
    return CertificateFacts(
        name,
        int(certificate.not_valid_before_utc.timestamp()),
        int(certificate.not_valid_after_utc.timestamp()),
        tuple(hosts),
        fingerprint_of(certificate.public_bytes(serialization.Encoding.DER)),
    )


def _key_of(csr: str) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(csr.encode())
        public = request.public_key()
        is_signed = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise UsageError("the CSR cannot be read") from None
    if not is_signed:
        raise UsageError("the CSR is not signed by its key")
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise UsageError("the CSR's key is not of the curve P-256")
    return public


def _built(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    begun: datetime,
    days: float,
    is_authority: bool = False,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begun - EARLIER)
        .not_valid_after(begun + timedelta(days=days))
        .add_extension(
            x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not is_authority,
                key_cert_sign=is_authority,
                crl_sign=is_authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )


def _under(built: x509.CertificateBuilder, authority: x509.Certificate) -> x509.CertificateBuilder:
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    named = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    return built.add_extension(named, critical=False)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for host in hosts:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(host)))
            continue
        except ValueError:
            pass
        try:
            found.append(x509.DNSName(host.encode("idna").decode() if not host.isascii() else host))
        except (ValueError, TypeError):
            found = []
        if not found or not host or any(letter in host for letter in " /:@"):
            raise UsageError(f"host: {shown(host)} is not accepted; a host's name or IP address")
    if not found:
        raise UsageError("hosts: give at least one name or address under which sites reach the gateways")
    return found


def _now(now: datetime | None) -> datetime:
    return datetime.now(UTC) if now is None else now
