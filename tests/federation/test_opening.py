"""Opening a federation: names that are safe in paths, and ledgers where they can be found again."""

from __future__ import annotations

import getpass
import logging
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from scarcity_ray import (
    HierarchicalFederation,
    HierarchicalFederationConfig,
    LedgerError,
    LedgerWarning,
    UsageError,
)
from scarcity_ray.config import Layer2Config
from scarcity_ray.errors import ConfigError
from scarcity_ray.federation.opening import (
    configured_ledger,
    default_ledger,
    federation_name,
    open_runtime,
    tell_ledger,
)
from scarcity_ray.privacy import BudgetStatus
from scarcity_ray.runtime.local import LocalRuntime

CONFIG = HierarchicalFederationConfig()


@pytest.mark.parametrize("name", ["", "../escape", "a/b", ".hidden", "a b", "x" * 101, "ä", 3, "a\n"])
def test_a_name_that_could_leave_its_folder_is_refused(name) -> None:
    with pytest.raises(UsageError, match="name must be"):
        federation_name(CONFIG, name)
    with pytest.raises(UsageError, match="name must be"):
        HierarchicalFederation.attach(name)


def test_a_ledger_lies_where_it_is_configured_else_in_the_users_state_folder(state_folder: Path) -> None:
    kept = HierarchicalFederationConfig(ledger_path="/var/lib/banks.sqlite")
    assert configured_ledger(kept, None) == "/var/lib/banks.sqlite"
    assert configured_ledger(CONFIG, None) is None
    named = Path(default_ledger(CONFIG, "hospitals", 1))
    assert named == state_folder / "scarcity-ray" / "hospitals.sqlite"
    assert named.is_absolute()
    fresh = {default_ledger(CONFIG, None, 1) for _ in range(3)}
    assert len(fresh) == 3
    assert {Path(path).parent for path in fresh} == {named.parent}


def test_a_finite_budget_without_a_lasting_place_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"ledger_path: .*spans 3 machines.*fresh budget"):
        default_ledger(CONFIG, None, 3)
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no home folder"):
        default_ledger(CONFIG, "hospitals", 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Path(default_ledger(CONFIG, "hospitals", 1)).is_relative_to(tmp_path)
    boundless = HierarchicalFederationConfig(
        total_epsilon=math.inf, layer2=Layer2Config(central_dp_epsilon=math.inf)
    )
    assert Path(default_ledger(boundless, None, 3)).parent.stat().st_mode & 0o077 == 0


def test_the_ledger_of_an_earlier_version_is_not_left_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    earlier = tmp_path / f"scarcity_ray-{getpass.getuser()}" / "town" / "ledger.sqlite"
    earlier.parent.mkdir(parents=True, mode=0o700)
    earlier.touch(mode=0o600)
    with pytest.raises(ConfigError, match="what was spent still counts") as caught:
        default_ledger(CONFIG, "town", 1)
    assert str(earlier) in str(caught.value)
    assert default_ledger(CONFIG, "city", 1)


@pytest.mark.parametrize(
    "made", ["another's", "readable", "in a folder for all", "under a folder for all", "a link", "a folder"]
)
def test_what_others_may_have_put_there_is_not_heeded(
    made: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    earlier = tmp_path / f"scarcity_ray-{getpass.getuser()}" / "town" / "ledger.sqlite"
    earlier.parent.mkdir(parents=True, mode=0o700)
    earlier.touch(mode=0o600)
    with pytest.raises(ConfigError, match=r"scarcity-ray ledger show, and verify"):
        default_ledger(CONFIG, "town", 1)
    if made == "another's":
        monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    elif made == "readable":
        earlier.chmod(0o644)
    elif made == "in a folder for all":
        earlier.parent.chmod(0o777)
    elif made == "under a folder for all":
        earlier.parent.parent.chmod(0o777)
    else:
        earlier.rename(tmp_path / "elsewhere")
        earlier.symlink_to(tmp_path / "elsewhere") if made == "a link" else earlier.mkdir(mode=0o700)
    assert Path(default_ledger(CONFIG, "town", 1)).name == "town.sqlite"


class ThreeMachines(LocalRuntime):
    machines = 3


def test_a_refused_place_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    place = ThreeMachines()
    monkeypatch.setattr("scarcity_ray.federation.hierarchical.open_runtime", lambda *_: place)
    with pytest.raises(ConfigError, match="ledger_path"):
        HierarchicalFederation(CONFIG, runtime="local")
    assert place.names() == ()


@pytest.mark.parametrize("made", ["open to all", "a link", "another's", "in an open folder"])
def test_a_state_folder_that_others_prepared_is_refused(
    made: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    folder = state / "scarcity-ray"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    if made == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    else:
        folder.mkdir(mode=0o700)
    if made == "open to all":
        folder.chmod(0o777)
    if made == "another's":
        monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    if made == "in an open folder":
        state.chmod(0o777)
    with pytest.raises(LedgerError, match="ledger_path") as caught:
        HierarchicalFederation(CONFIG, runtime="local")
    assert str(state) in str(caught.value)
    assert list(folder.iterdir()) == []


def opened(config: HierarchicalFederationConfig = CONFIG) -> HierarchicalFederation:
    return HierarchicalFederation(config, runtime="local")


def test_an_unnamed_federation_has_a_budget_of_its_own_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = set()
    for _ in range(2):
        with (
            caplog.at_level(logging.INFO, "scarcity_ray"),
            pytest.warns(UserWarning, match="No other run shares this budget") as told,
            opened() as fed,
        ):
            facts = fed.get_stats()["ledger"]
        path = Path(facts["path"])
        assert path.is_absolute()
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert (facts["is_new"], facts["epsilon_left"], facts["epsilon_total"]) == (True, 10.0, 10.0)
        (warned,) = (w for w in told if issubclass(w.category, LedgerWarning))
        for text in (caplog.text, str(warned.message)):
            assert str(path) in text
            assert "epsilon 10 of 10 left" in text
        ids.add(facts["federation_id"])
    assert len(ids) == 2


def test_an_old_ledger_is_said_to_be_old_and_how_much_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = HierarchicalFederationConfig(ledger_path=str(tmp_path / "kept.sqlite"))
    caplog.set_level(logging.INFO, "scarcity_ray")
    for number in (1, 2, 3):
        with opened(config) as fed:
            facts = fed.get_stats()["ledger"]
            assert (facts["is_new"], facts["incarnation"]) == (number == 1, number)
            fed._runtime.peers.handle("accountant").call(
                "charge_release", f"r{number}", 0.3, 1.0, {}
            ).result()
            left = fed.get_privacy_budget()[0]
    assert f"opened 3 times): epsilon {facts['epsilon_left']:.4g} of 10 left" in caplog.text
    assert left < facts["epsilon_left"] < 10.0


def test_a_default_ledger_that_a_name_finds_again_is_told(recwarn: pytest.WarningsRecorder) -> None:
    new = BudgetStatus(3.0, 0.0, 7.0, 7.0, False, 10.0, 1e-5, 0, "", "/state/town.sqlite", is_new=True)
    tell_ledger(new, is_default=True, is_named=True)
    tell_ledger(replace(new, is_new=False), is_default=False, is_named=True)
    assert recwarn.list == []
    with pytest.warns(UserWarning, match="epsilon 3 of 10 left .*earlier federations of this name"):
        tell_ledger(replace(new, is_new=False), is_default=True, is_named=True)


def test_unknown_runtimes_and_names_without_a_cluster_are_refused() -> None:
    with pytest.raises(UsageError, match="runtime must be"):
        open_runtime("spark", None, None)
    with pytest.raises(UsageError, match="named federation"):
        open_runtime("local", "hospitals", None)


def test_a_ledger_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    config = HierarchicalFederationConfig(ledger_path=str(tmp_path / "file" / "ledger.sqlite"))
    with pytest.raises(LedgerError, match="another ledger_path"):
        HierarchicalFederation(config, runtime="local")
