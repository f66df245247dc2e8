"""A kit and the folder that it makes: whole, private, of one site, and in use by one process."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import replace

import pytest

from scarcity_ray_client import UsageError
from scarcity_ray_client.site_home import MOST_KIT_BYTES, PASSWORD, Kit, SiteHome, write_whole

KIT = Kit("https://gateway.example:8443", "federation", "ann", "hospitals", "PEM", "token")


@pytest.fixture
def kit(tmp_path):
    KIT.write(tmp_path / "ann.zip")
    return tmp_path / "ann.zip"


def test_a_kit_is_read_back(kit):
    assert Kit.read(kit) == KIT
    assert "token'" not in repr(KIT)
    with pytest.raises(UsageError, match="exists"):
        KIT.write(kit)


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_cut_kit_is_refused(kit, size):
    kit.write_bytes(kit.read_bytes()[:size])
    with pytest.raises(UsageError, match="is no kit, or was cut"):
        Kit.read(kit)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ("{", "this is no scarcity_ray kit"),
        ("[]", "this is no scarcity_ray kit"),
        ('{"kind": "scarcity_ray kit", "version": 2}', "version 2, and this release reads 1 to 1"),
        ('{"kind": "scarcity_ray kit", "version": 1}', "gateway: None is not accepted"),
        ("x" * (MOST_KIT_BYTES + 1), "longer than"),
    ],
)
def test_a_kit_that_is_cut_changed_or_newer_is_refused(kit, facts, said):
    with zipfile.ZipFile(kit, "w") as made:
        for name, text in (("kit.json", facts), ("authority.pem", ""), ("token", "")):
            made.writestr(name, text)
    with pytest.raises(UsageError, match=said):
        Kit.read(kit)


def test_a_kit_with_any_byte_changed_is_read_or_refused(kit):
    whole = kit.read_bytes()
    for place in range(0, len(whole)):
        for value in (8, 12, 14) if place % 3 else (whole[place] ^ 1,):
            kit.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            with suppress(UsageError):
                Kit.read(kit)


def test_a_kit_of_an_older_release_names_no_answer_key(kit, tmp_path):
    old = tmp_path / "old.zip"
    with zipfile.ZipFile(kit) as held, zipfile.ZipFile(old, "w") as made:
        for name in ("kit.json", "authority.pem", "token", "README.txt"):
            made.writestr(name, held.read(name))
    with SiteHome.made(old, environ={}) as home:
        assert home.kit.answer_key == ""
        (home.folder / "answers.key").unlink()
    with SiteHome(home.folder, {}) as home:
        assert home.kit.answer_key == ""
    newer = replace(KIT, token="another", answer_key="ab" * 32)
    newer.write(tmp_path / "newer.zip")
    with SiteHome.made(tmp_path / "newer.zip", home.folder, environ={}) as home:
        assert home.kit.answer_key == "ab" * 32
    with SiteHome(home.folder, {}) as home:
        assert home.kit.answer_key == "ab" * 32
    replace(KIT, answer_key="no key").write(tmp_path / "bad.zip")
    with pytest.raises(UsageError, match=r"answers\.key: 'no key' is no key"):
        Kit.read(tmp_path / "bad.zip")


def test_a_kit_that_is_not_there_says_so(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        SiteHome.made(tmp_path / "none.zip", environ={})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="give the kit"):
        SiteHome(tmp_path / "empty", {})


def test_a_file_is_its_owners_alone_and_holds_no_plain_key(kit):
    with SiteHome.made(kit, environ={}) as home:
        home.identity()
        home.csr()
        assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
        for path in home.folder.iterdir():
            if not path.name.startswith("lock.sqlite"):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
            assert b"BEGIN PRIVATE KEY" not in path.read_bytes()


def test_keys_are_made_once_and_need_the_password(kit):
    with SiteHome.made(kit, environ={}) as home:
        key, csr = home.identity().public_bytes, home.csr()
    with SiteHome.made(kit, environ={}) as home:
        assert (home.identity().public_bytes, home.csr()) == (key, csr)
    (home.folder / "password").unlink()
    with SiteHome(home.folder, {}) as home, pytest.raises(UsageError, match="password is wrong"):
        home.identity()


def test_a_password_of_the_environment_is_written_nowhere(kit):
    with SiteHome.made(kit, environ={PASSWORD: "a-password-of-the-site"}) as home:
        home.identity()
        assert not (home.folder / "password").exists()
    with SiteHome(home.folder, {PASSWORD: "another-one-of-16-bytes"}) as home, pytest.raises(UsageError):
        home.identity()


def test_another_sites_kit_does_not_take_a_folder(kit, tmp_path):
    SiteHome.made(kit, environ={}).close()
    other = Kit("https://gateway.example:8443", "federation", "bob", "hospitals", "PEM", "token")
    other.write(tmp_path / "bob.zip")
    with pytest.raises(UsageError, match="is of site 'ann'"):
        SiteHome.made(tmp_path / "bob.zip", kit.with_suffix(""), environ={})
    with SiteHome.made(kit, environ={}) as home:  # and the folder is free again
        assert home.kit.client_id == "ann"


def test_a_later_kit_of_the_site_has_it_enrol_again(kit, tmp_path):
    with SiteHome.made(kit, environ={}) as home:
        key = home.identity().public_bytes
        (home.folder / "tls.pem").write_text("certificate")
        write_whole(home.folder / "spent_token", hashlib.sha256(b"token").hexdigest().encode())
        (home.folder / "token").unlink()
    with SiteHome.made(kit, environ={}) as home:  # the spent one changes nothing
        assert home.is_enrolled
    later = replace(KIT, federation_id="", token="another", authority="other PEM")
    later.write(tmp_path / "later.zip")
    with SiteHome.made(tmp_path / "later.zip", kit.with_suffix(""), environ={}) as home:
        assert (home.is_enrolled, home.kit.token, home.kit.federation_id) == (False, "another", "federation")
        assert home.identity().public_bytes == key


def test_two_processes_never_share_a_folder(kit):
    with SiteHome.made(kit, environ={}) as home:
        with pytest.raises(UsageError, match="another process"):
            SiteHome(home.folder, {})
        code = f"from scarcity_ray_client.site_home import SiteHome; SiteHome({str(home.folder)!r}, {{}})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "another process of this site uses it" in done.stderr
        with SiteHome(home.folder, {}, beside=True) as beside:  # who asks for the status
            assert beside.kit == home.kit


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(descriptor):
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_federation_than_the_kits_is_refused(kit):
    with SiteHome.made(kit, environ={}) as home, pytest.raises(UsageError, match="the kit is of federation"):
        home.note_federation("another")


def test_a_kit_without_a_federation_takes_the_one_that_it_enrols_with(tmp_path):
    Kit("https://gateway.example", "", "ann", "hospitals", "PEM", "token").write(tmp_path / "ann.zip")
    with SiteHome.made(tmp_path / "ann.zip", environ={}) as home:
        home.note_federation("federation")
    with SiteHome(home.folder, {}) as home:
        assert home.kit.federation_id == "federation"
        with pytest.raises(UsageError, match="kit is of federation"):
            home.note_federation("another")
