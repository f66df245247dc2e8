"""The folder of TLS keys: who may read it, and what each certificate is good for."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from scarcity_ray.errors import UsageError
from scarcity_ray.gateway.certificates import Certificates, facts_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Certificates.make(tmp_path_factory.mktemp("keys") / "keys", ["localhost", "127.0.0.1"])


def a_csr(key=None, common="somebody"):
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    asks = x509.BasicConstraints(ca=True, path_length=None)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).add_extension(asks, critical=True)
    pem = csr.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()
    return pem, key


def a_site(made, folder, **issued):
    csr, key = a_csr()
    pem = made.issue(csr, "ann", **issued)
    (folder / "site.pem").write_text(pem)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "site.key").write_bytes(private)
    return pem, (folder / "site.pem", folder / "site.key")


def shaken(server: ssl.SSLContext, client: ssl.SSLContext, host="localhost"):
    """What the server reads of the client's certificate once both have sent a byte."""
    ours, theirs = socket.socketpair()
    seen: list[bytes | None] = []

    def serve() -> None:
        try:
            with server.wrap_socket(ours, server_side=True) as tls:
                tls.recv(1)
                seen.append(tls.getpeercert(binary_form=True))
                tls.send(b"y")
        except OSError:
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(theirs, server_hostname=host) as tls:
            tls.send(b"x")
            if tls.recv(1) != b"y":
                raise ssl.SSLError("refused by the server")
    finally:
        theirs.close()
        thread.join()
    return seen[0]


def trusting(made, chain=None):
    context = ssl.create_default_context(cadata=made.server_authority())
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    if chain:
        context.load_cert_chain(*chain)
    return context


def test_a_key_file_is_its_owners_alone(made):
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    for name in ("server_ca.key", "client_ca.key", "server.key"):
        assert stat.S_IMODE((made.folder / name).stat().st_mode) == 0o600


def test_a_folder_that_others_may_read_is_refused(tmp_path):
    (tmp_path / "keys").mkdir(mode=0o700)
    os.chmod(tmp_path / "keys", 0o755)
    with pytest.raises(UsageError, match="chmod 700"):
        Certificates(tmp_path / "keys")
    with pytest.raises(UsageError, match="scarcity-ray keys init"):
        Certificates(tmp_path / "nowhere")


def test_nothing_is_overwritten(made):
    before = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    with pytest.raises(UsageError, match="exists"):
        Certificates.make(made.folder, ["localhost"])
    assert {path.name: path.read_bytes() for path in made.folder.iterdir()} == before


@pytest.mark.parametrize("hosts", [[], [""], ["http://here"], ["a b"]])
def test_what_is_no_host_is_refused(tmp_path, hosts):
    with pytest.raises(UsageError, match="host"):
        Certificates.make(tmp_path / "keys", hosts)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_site_and_a_gateway_know_each_other(made, tmp_path, host):
    pem, chain = a_site(made, tmp_path)
    shown = shaken(made.server_context(), trusting(made, chain), host)
    assert shown == ssl.PEM_cert_to_DER_cert(pem)
    assert shaken(made.server_context(), trusting(made)) is None  # judged at the request


def test_another_host_is_not_trusted(made):
    with pytest.raises(ssl.SSLError, match="match"):
        shaken(made.server_context(), trusting(made), "example.org")


def test_a_foreign_or_expired_certificate_does_not_get_through_the_handshake(made, tmp_path):
    other = Certificates.make(tmp_path / "other", ["localhost"])
    _, foreign = a_site(other, tmp_path)
    with pytest.raises(OSError):
        shaken(made.server_context(), trusting(made, foreign))
    _, expired = a_site(made, tmp_path, days=1, now=datetime.now(UTC) - timedelta(days=2))
    with pytest.raises(OSError):
        shaken(made.server_context(), trusting(made, expired))


def test_a_client_certificate_is_no_server_certificate(made, tmp_path):
    _, chain = a_site(made, tmp_path)
    posing = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    posing.load_cert_chain(*chain)
    for authority in ("server_ca", "client_ca"):
        context = ssl.create_default_context(cadata=(made.folder / f"{authority}.pem").read_text())
        context.check_hostname = False
        with pytest.raises(ssl.SSLError):
            shaken(posing, context)
    server = made.folder / "server.pem", made.folder / "server.key"
    with pytest.raises(OSError):
        shaken(made.server_context(), trusting(made, server))


def test_a_csr_states_nothing_but_its_key(made):
    pem = made.issue(a_csr(common="server")[0], "ann ä")
    issued = x509.load_pem_x509_certificate(pem.encode())
    assert issued.subject.rfc4514_string() == "CN=scarcity_ray site"
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert facts_of("client", pem).hosts == ("scarcity-ray:client:ann%20%C3%A4",)


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()]
)
def test_a_key_of_another_kind_is_refused(made, key):
    with pytest.raises(UsageError, match="P-256"):
        made.issue(a_csr(key)[0], "ann")


def test_a_csr_that_is_none_or_changed_is_refused(made):
    with pytest.raises(UsageError, match="cannot be read"):
        made.issue("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "ann")
    der = bytearray(x509.load_pem_x509_csr(a_csr()[0].encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    changed = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    with pytest.raises(UsageError):
        made.issue(changed, "ann")


def test_a_renewed_server_certificate_is_trusted_by_the_same_sites(tmp_path):
    made = Certificates.make(tmp_path / "keys", ["localhost"])
    before, stolen = made.facts("server"), made.server_context()
    made.renew_server()
    assert made.facts("server").fingerprint != before.fingerprint
    assert made.facts("server").hosts == ("localhost",)
    assert shaken(made.server_context(), trusting(made)) is None
    assert shaken(stolen, trusting(made)) is None  # sites ask nobody whether it was revoked
    made.renew_server(["gateway.example"])
    assert made.facts("server").hosts == ("gateway.example",)


def test_without_an_authoritys_key_nothing_is_made_and_the_rest_goes_on(tmp_path):
    made = Certificates.make(tmp_path / "keys", ["localhost"])
    for name in ("server_ca", "client_ca"):
        (made.folder / f"{name}.key").unlink()
    with pytest.raises(UsageError, match=r"server_ca.key: the authority's key cannot be read"):
        made.renew_server()
    with pytest.raises(UsageError, match=r"client_ca.key: the authority's key cannot be read"):
        made.issue(a_csr()[0], "ann")
    assert shaken(made.server_context(), trusting(made)) is None
