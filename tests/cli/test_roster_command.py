"""``scarcity-ray roster``: the operator's key never comes near the cluster."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from scarcity_ray.cli.main import main
from scarcity_ray.secagg import IdentityKeyPair, Party, Roster, RosterChain

PASSWORD = "sixteen letters!"


@pytest.fixture
def call(tmp_path):
    def run(*arguments, password=PASSWORD):
        return CliRunner().invoke(
            main, ["roster", *map(str, arguments)], env={"SCARCITY_RAY_OPERATOR_PASSWORD": password}
        )

    return run


@pytest.fixture
def roster(tmp_path):
    parties = tuple(Party(f"d_basket_{i}", IdentityKeyPair.generate().public_bytes) for i in range(3))
    made = Roster("hospitals", 1, bytes(32), parties)
    (tmp_path / "roster.json").write_text(made.to_json())
    return made


def test_a_key_is_made_and_signs_a_roster_that_a_chain_takes(call, roster, tmp_path):
    made = call("key", tmp_path / "operator.pem")
    assert made.exit_code == 0
    public = made.stdout.strip()
    signed = call(
        "sign", tmp_path / "roster.json", "--key", tmp_path / "operator.pem", "--out", tmp_path / "signed"
    )
    assert signed.exit_code == 0
    assert signed.stdout == ""
    assert "epoch 1 of 'hospitals', 3 baskets:" in signed.stderr
    assert roster.parties[2].identity_public.hex() in signed.stderr
    chain = RosterChain("hospitals", bytes.fromhex(public))
    assert chain.follow((Roster.from_json((tmp_path / "signed").read_text()),)) == ""
    printed = call("sign", tmp_path / "roster.json", "--key", tmp_path / "operator.pem")
    assert Roster.from_json(printed.stdout) == chain.newest


@pytest.mark.parametrize("fault", ["no roster", "no file", "no key", "wrong password", "there already"])
def test_what_cannot_be_signed_is_refused_by_name(call, roster, tmp_path, fault):
    call("key", tmp_path / "operator.pem")
    path, key, out, password = tmp_path / "roster.json", tmp_path / "operator.pem", tmp_path / "s", PASSWORD
    if fault == "no roster":
        path.write_text("[]")
    if fault == "no file":
        path = tmp_path / "nowhere"
    if fault == "no key":
        key = tmp_path / "nowhere"
    if fault == "wrong password":
        password = "another sixteen letters"
    if fault == "there already":
        out.write_text("")
    done = call("sign", path, "--key", key, "--out", out, password=password)
    assert done.exit_code == 2
    assert done.stderr.count("\n") >= 1
    assert PASSWORD not in done.output
