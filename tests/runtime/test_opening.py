"""Opening a federation: names that are safe in paths, and ledgers where they can be found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig, LedgerError, UsageError
from scarcity_ray.runtime.opening import federation_id_of, ledger_path_of, open_runtime

CONFIG = HierarchicalFederationConfig()


@pytest.mark.parametrize("name", ["", "../escape", "a/b", ".hidden", "a b", "x" * 101, "ä", 3, "a\n"])
def test_a_name_that_could_leave_its_folder_is_refused(name) -> None:
    with pytest.raises(UsageError, match="name must be"):
        federation_id_of(CONFIG, name)
    with pytest.raises(UsageError, match="name must be"):
        HierarchicalFederation.attach(name)


def test_ids_follow_the_name_or_the_ledger_or_nothing() -> None:
    assert federation_id_of(CONFIG, "hospitals") == "hospitals"
    kept = HierarchicalFederationConfig(ledger_path="/var/lib/banks.sqlite")
    assert federation_id_of(kept, None) == "banks"
    assert federation_id_of(CONFIG, None) != federation_id_of(CONFIG, None)
    assert ledger_path_of(kept, "banks") == "/var/lib/banks.sqlite"
    assert Path(ledger_path_of(CONFIG, "hospitals")).parts[-2:] == ("hospitals", "ledger.sqlite")


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
