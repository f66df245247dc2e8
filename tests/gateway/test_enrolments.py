"""Who is invited, enrolled, renewed and revoked."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from scarcity_ray.errors import UsageError
from scarcity_ray.gateway.certificates import Certificates, facts_of
from scarcity_ray.gateway.enrolments import REGISTER_FILE, Enrolment, Enrolments, Invitation
from scarcity_ray_client import IdentityKeyPair
from scarcity_ray_client.wire import EnrolRequest, ErrorAnswer, ErrorCode
from tests.gateway.test_certificates import a_csr

KEY, OTHER = IdentityKeyPair.generate(), IdentityKeyPair.generate()
DAY = 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1.8e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Certificates.make(tmp_path_factory.mktemp("keys") / "keys", ["localhost"])


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def issue(authority, clock):
    return lambda csr, client: authority.issue(csr, client, now=datetime.fromtimestamp(clock.now, UTC))


@pytest.fixture
def sites(tmp_path, clock):
    with Enrolments.opened(tmp_path / "register", clock) as opened:
        yield opened


def asked(token, client_id="ann", key=KEY, csr=None, **told):
    return EnrolRequest.signed(key, token, client_id, csr or a_csr()[0], **told)


def shown(pem):
    return facts_of("client", pem).fingerprint


def code(answer):
    assert isinstance(answer, ErrorAnswer), answer
    return answer.code


def test_a_token_enrols_its_client_once(sites, issue):
    token = sites.invite("ann", "hospitals", [1.0, 2.0])
    assert [(one.client_id, one.domain_id) for one in sites.invited()] == [("ann", "hospitals")]
    assert code(sites.enrol(asked(token, "bob"), issue)) is ErrorCode.BAD_TOKEN
    assert code(sites.enrol(asked(token + "x"), issue)) is ErrorCode.BAD_TOKEN
    request = asked(token, num_examples=30, policy="its policy")
    assert sites.invitation(request) == Invitation("ann", "hospitals", (1.0, 2.0))
    pem = sites.enrol(request, issue)
    known = sites.admit("ann", shown(pem))
    assert isinstance(known, Enrolment)
    assert (known.public_key, known.num_examples, known.policy) == (KEY.public_bytes, 30, "its policy")
    assert sites.enrolled() == [known]
    assert sites.invited() == []
    assert code(sites.enrol(asked(token, key=OTHER), issue)) is ErrorCode.BAD_TOKEN
    assert code(sites.enrol(asked(token), issue)) is ErrorCode.BAD_TOKEN  # another CSR


def test_the_same_enrolment_is_answered_again(sites, issue):
    request = asked(sites.invite("ann", "hospitals"))
    pem = sites.enrol(request, issue)
    assert sites.enrol(request, issue) == pem
    sites.revoke("ann")
    assert code(sites.enrol(request, issue)) is ErrorCode.BAD_TOKEN


def test_an_enrolment_that_its_key_did_not_sign_is_refused(sites, issue):
    request = asked(sites.invite("ann", "hospitals"))
    forged = replace(request, public_key=OTHER.public_bytes)
    assert code(sites.enrol(forged, issue)) is ErrorCode.WRONG_SIGNATURE
    assert sites.enrolled() == []


def test_a_csr_that_is_none_uses_up_no_token(sites, issue):
    token = sites.invite("ann", "hospitals")
    with pytest.raises(UsageError, match="CSR"):
        sites.enrol(asked(token, csr="none"), issue)
    assert sites.enrolled() == []
    assert isinstance(sites.enrol(asked(token), issue), str)


def test_a_token_expires_and_a_newer_one_voids_it(sites, issue, clock):
    first = sites.invite("ann", "hospitals")
    second = sites.invite("ann", "hospitals", valid_seconds=DAY)
    assert code(sites.enrol(asked(first), issue)) is ErrorCode.BAD_TOKEN
    clock.now += DAY + 1
    refused = sites.enrol(asked(second), issue)
    assert code(refused) is ErrorCode.BAD_TOKEN
    assert "expired" in refused.message
    assert sites.invited() == []


def test_no_token_is_in_the_file(sites, tmp_path):
    token = sites.invite("ann", "hospitals")
    for path in (tmp_path / "register").iterdir():
        assert token.encode() not in path.read_bytes()


def test_a_token_that_two_keys_show_is_the_first_ones(sites, issue):
    """Both were told that they may enrol before either had: federation and register kept different keys."""
    token = sites.invite("ann", "hospitals")
    thief, site = asked(token, key=OTHER), asked(token)
    assert isinstance(sites.invitation(site), Invitation)
    assert code(sites.invitation(thief)) is ErrorCode.BAD_TOKEN
    assert code(sites.enrol(thief, issue)) is ErrorCode.BAD_TOKEN
    assert isinstance(sites.enrol(site, issue), str)


def test_a_revocation_counts_at_the_next_request(sites, issue, tmp_path):
    pem = sites.enrol(asked(sites.invite("ann", "hospitals")), issue)
    before = sites.version
    with Enrolments.opened(tmp_path / "register") as command:
        assert command.revoke("ann")
    assert sites.version > before
    assert code(sites.admit("ann", shown(pem))) is ErrorCode.REVOKED
    assert code(sites.renew("ann", a_csr()[0], issue)) is ErrorCode.REVOKED
    assert not sites.change_key("ann", KEY.public_bytes, OTHER.public_bytes)
    assert not sites.revoke("ann")


def test_a_revoked_client_enrols_again_only_if_the_operator_says_so(sites, issue):
    pem = sites.enrol(asked(sites.invite("ann", "hospitals")), issue)
    sites.revoke("ann")
    with pytest.raises(UsageError, match="--again"):
        sites.invite("ann", "hospitals")
    request = asked(sites.invite("ann", "hospitals", again=True), key=OTHER)
    assert sites.invitation(request) == Invitation("ann", "hospitals", replaces=True)
    new = sites.enrol(request, issue)
    assert isinstance(sites.admit("ann", shown(new)), Enrolment)
    assert code(sites.admit("ann", shown(pem))) is ErrorCode.WRONG_CERTIFICATE


def test_a_revocation_voids_an_open_invitation(sites, issue):
    token = sites.invite("ann", "hospitals")
    assert sites.revoke("ann")
    assert code(sites.enrol(asked(token), issue)) is ErrorCode.BAD_TOKEN


def test_a_certificate_of_another_client_is_refused(sites, issue):
    sites.enrol(asked(sites.invite("ann", "hospitals")), issue)
    bobs = sites.enrol(asked(sites.invite("bob", "hospitals"), "bob", OTHER), issue)
    assert code(sites.admit("ann", shown(bobs))) is ErrorCode.WRONG_CERTIFICATE
    assert code(sites.admit("ann", None)) is ErrorCode.NO_CERTIFICATE
    assert code(sites.admit("carl", shown(bobs))) is ErrorCode.WRONG_CERTIFICATE
    sites.revoke("ann")
    assert code(sites.admit("ann", shown(bobs))) is ErrorCode.WRONG_CERTIFICATE
    assert code(sites.admit("carl", None, is_mutual=False)) is ErrorCode.FORBIDDEN
    assert isinstance(sites.admit("bob", None, is_mutual=False), Enrolment)


def test_a_certificate_that_no_enrolment_holds_is_refused_whoever_signed_it(sites, issue):
    sites.enrol(asked(sites.invite("ann", "hospitals")), issue)
    forged = issue(a_csr()[0], "ann")  # with the authority's stolen key
    assert code(sites.admit("ann", shown(forged))) is ErrorCode.WRONG_CERTIFICATE


def test_a_renewed_certificate_holds_at_once_and_the_old_one_for_the_overlap(sites, issue, clock):
    old = sites.enrol(asked(sites.invite("ann", "hospitals")), issue)
    csr = a_csr()[0]
    new = sites.renew("ann", csr, issue, overlap_seconds=DAY)
    assert sites.renew("ann", csr, issue, overlap_seconds=DAY) == new
    for pem in (old, new):
        assert isinstance(sites.admit("ann", shown(pem)), Enrolment)
    clock.now += DAY
    assert code(sites.admit("ann", shown(old))) is ErrorCode.EXPIRED_CERTIFICATE
    assert isinstance(sites.admit("ann", shown(new)), Enrolment)
    clock.now += 90 * DAY
    assert code(sites.admit("ann", shown(new))) is ErrorCode.EXPIRED_CERTIFICATE


def test_a_client_has_few_certificates(sites, issue):
    """One that renews again and again makes neither the file nor everybody's requests slow."""
    pems = [sites.enrol(asked(sites.invite("ann", "hospitals")), issue)]
    pems += [sites.renew("ann", a_csr()[0], issue) for _ in range(5)]
    found = [sites.admit("ann", shown(pem)) for pem in pems]
    assert [isinstance(one, Enrolment) for one in found] == [False] * 2 + [True] * 4
    assert len(sites.find("ann").certificates) == 4


def test_a_key_is_changed_with_the_old_one_alone(sites, issue):
    sites.enrol(asked(sites.invite("ann", "hospitals")), issue)
    assert not sites.change_key("ann", OTHER.public_bytes, OTHER.public_bytes)
    assert sites.change_key("ann", KEY.public_bytes, OTHER.public_bytes)
    assert sites.change_key("ann", KEY.public_bytes, OTHER.public_bytes)  # asked again
    assert sites.find("ann").public_key == OTHER.public_bytes
    assert not sites.change_key("bob", KEY.public_bytes, OTHER.public_bytes)


def test_another_federation_does_not_take_over_enrolled_sites(sites, issue):
    sites.serve("one")
    sites.serve("two")  # nobody has enrolled yet
    assert sites.federation_id == "two"
    sites.enrol(asked(sites.invite("ann", "hospitals")), issue)
    with pytest.raises(UsageError, match="a folder of its own"):
        sites.serve("one")


def test_the_answer_key_is_made_once(sites, tmp_path):
    seed = sites.answer_seed()
    assert (len(seed), sites.answer_seed()) == (32, seed)
    for number in range(2):
        with Enrolments.opened(tmp_path / str(number)) as others:
            assert others.answer_seed() != seed
    path = tmp_path / "0" / REGISTER_FILE
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_file_that_is_no_register_is_refused(tmp_path):
    (tmp_path / REGISTER_FILE).write_bytes(b"no database" * 100)
    with pytest.raises(UsageError, match="register"), Enrolments.opened(tmp_path):
        pass


@pytest.mark.parametrize("features", ["x", [float("nan")], [None]])
def test_features_that_are_no_numbers_are_refused(sites, features):
    with pytest.raises(UsageError, match="features"):
        sites.invite("ann", "hospitals", features)


def test_a_change_is_on_the_disk_before_it_is_answered(sites, issue):
    connection, said = sites._connection, []
    connection.execute("PRAGMA synchronous=NORMAL")  # the register's, for slots and nonces
    token = sites.invite("ann", "hospitals")
    connection.set_trace_callback(said.append)
    sites.enrol(asked(token), issue)
    connection.set_trace_callback(None)
    assert said.index("PRAGMA synchronous=FULL") < said.index("BEGIN IMMEDIATE") < said.index("COMMIT")
    assert connection.execute("PRAGMA synchronous").fetchone() == (1,)
