"""Operators: tokens as hashes, in a file of this user's alone that is read as it is now."""

from __future__ import annotations

import hmac
import json
import os
from pathlib import Path

import pytest

from scarcity_ray import UsageError
from scarcity_ray.gateway.operators import OperatorRole, Operators


def test_no_token_is_in_the_file(tmp_path: Path) -> None:
    operators = Operators(tmp_path / "made" / "operators.json")
    assert operators.all() == ()
    token = operators.add("Ann", OperatorRole.OPERATE)
    text = operators.path.read_text()
    assert token not in text
    assert token.removeprefix("srop_") not in text
    assert operators.path.stat().st_mode & 0o777 == 0o600
    assert operators.path.parent.stat().st_mode & 0o777 == 0o700
    found = Operators(operators.path).who(token)
    assert found is not None
    assert (found.name, found.may_operate) == ("Ann", True)
    for wrong in ("", token[:-1], token + "x", token.upper(), "\ud800", found.token_sha256):
        assert operators.who(wrong) is None


def test_a_revoked_token_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "operators.json"
    at_the_gateway, at_the_command = Operators(path), Operators(path)
    token = at_the_command.add("Ann", OperatorRole.READ)
    other = at_the_command.add("Bo", OperatorRole.READ)
    assert at_the_gateway.who(token) is not None
    at_the_command.revoke("Ann")
    assert at_the_gateway.who(token) is None
    assert at_the_gateway.who(other) is not None
    path.unlink()
    assert at_the_gateway.who(other) is None


def test_a_name_is_taken_once_and_revoked_by_name(tmp_path: Path) -> None:
    operators = Operators(tmp_path / "operators.json")
    operators.add("Ann", OperatorRole.READ)
    with pytest.raises(UsageError, match="revoke it first"):
        operators.add("Ann", OperatorRole.OPERATE)
    with pytest.raises(UsageError, match="there is Ann"):
        operators.revoke("Bo")
    with pytest.raises(UsageError, match="printable"):
        operators.add("a\nb", OperatorRole.READ)


def test_a_file_that_others_can_write_is_refused(tmp_path: Path) -> None:
    operators = Operators(tmp_path / "operators.json")
    token = operators.add("Ann", OperatorRole.READ)
    os.chmod(operators.path, 0o620)
    os.utime(operators.path, (1, 1))
    with pytest.raises(UsageError, match="chmod 600"):
        operators.who(token)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"operators": [{"name": "a"}]},
        {"operators": [{"name": "a", "role": "root", "token_sha256": "0" * 64, "added": 1}]},
        {"operators": [{"name": "a", "role": "read", "token_sha256": "x", "added": 1}]},
        {"operators": [{"name": "a", "role": "read", "token_sha256": "0" * 64, "added": 1}] * 2},
        {"operators": 3},
    ],
)
def test_what_is_no_file_of_operators_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "operators.json"
    path.write_text(json.dumps({"format_version": 1, "operators": []} | change))
    path.chmod(0o600)
    with pytest.raises(UsageError, match="operators: "):
        Operators(path)


def test_every_entry_is_compared_whatever_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the time that an answer takes tells where in the file the token stands."""
    operators, compared, compare = Operators(tmp_path / "operators.json"), list[str](), hmac.compare_digest
    tokens = [operators.add(name, OperatorRole.READ) for name in "abc"]

    def counting(kept: str, given: str) -> bool:
        compared.append(kept)
        return compare(kept, given)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    for token in (*tokens, "wrong"):
        operators.who(token)
    assert len(compared) == 12
