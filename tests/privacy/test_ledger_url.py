"""A ledger's URL never shows its password."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.ledger_url import LedgerUrl, is_ledger_url, without_password

SECRET = "qZ7"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:qZ7@h:1/d", "postgresql://u@h:1/d"),
        (
            "postgres://u:qZ7%40@h1:1,h2:2/d?sslmode=verify-full",
            "postgresql://u@h1:1,h2:2/d?sslmode=verify-full",
        ),
        ("postgresql:///d?host=/run/pg&password=qZ7", "postgresql:///d?host=/run/pg"),
        ("postgresql://:qZ7@h", "postgresql://h"),
        ("postgresql://u@h/d?sslpassword=qZ7&passfile=/etc/x", "postgresql://u@h/d"),
        ("postgresql://u:qZ7@[::1]:5/d?federation=a", "postgresql://u@[::1]:5/d?federation=a"),
    ],
)
def test_a_url_never_shows_its_password(text, shown):
    url = LedgerUrl(text)
    for seen in (str(url), f"{url}", f"{url!r}", "%s" % url, repr([url]), f"{url:>200}", str({"a": url})):  # noqa: UP031
        assert SECRET not in seen
        assert shown in seen
    for twin in (pickle.loads(pickle.dumps(url)), copy.deepcopy(url), LedgerUrl(url)):
        assert twin == url == text
        assert str(twin) == shown
    assert SECRET in url.conninfo
    assert "federation" not in url.conninfo
    assert url.hidden_in(f"so {SECRET} it is").count(SECRET) == (1 if "%40" in text else 0)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:p@qZ7@h/d",
        "postgresql://u:p/qZ7@h/d",
        "postgresql://u:p?qZ7@h/d",
        "postgresql://u:p#qZ7@h/d",
        "postgresql://u:p qZ7@h/d",
        "postgresql:u:qZ7@h/d",
        "postgresql://u:qZ7@h/d?federation=../up",
        "postgresql://u:qZ7@h/d?federation=",
    ],
)
def test_what_it_refuses_is_not_repeated(text):
    assert is_ledger_url(text)
    with pytest.raises(UsageError) as caught:
        LedgerUrl(text)
    assert SECRET not in str(caught.value)
    assert SECRET not in without_password(f"got {text!r}")


@given(st.text(min_size=1).filter(lambda p: any(c.isalnum() for c in p)))
def test_any_password_is_hidden_or_refused(password):
    marked = f"Aq{password}Zk"
    try:
        url = LedgerUrl(f"postgresql://user:{marked}@host.example/database?federation=f")
    except UsageError as error:
        told = str(error)
    else:
        told = f"{url} {url!r}"
        assert str(url) == "postgresql://user@host.example/database?federation=f"
        assert "host.example" in url.conninfo
    assert marked not in told


def test_a_url_belongs_to_one_federation():
    url = LedgerUrl("postgresql://h/budgets?sslmode=require")
    assert (url.federation, url.database) == (None, "budgets")
    assert url.of("a").federation == "a"
    assert url.of("a").of("a") == url.of("a")
    assert url.of("a").conninfo == url.conninfo == "postgresql://h/budgets?sslmode=require"
    with pytest.raises(UsageError, match="names federation 'a', the federation is 'b'"):
        url.of("a").of("b")
    assert LedgerUrl("postgresql:///?dbname=x").database == "x"
    assert LedgerUrl("postgresql://h").database is None


def test_files_are_no_urls():
    for path in ("ledger.sqlite", "/var/postgresql", "./postgresql", "postgresql.sqlite", "C:/x"):
        assert not is_ledger_url(path)
