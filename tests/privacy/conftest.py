"""The places that a ledger can be in, for tests that must hold in each."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest


class FilePlace:
    """A SQLite file."""

    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.sqlite"

    def tamper(self, *statements) -> None:
        """Change rows behind the ledger's back; a statement, or one with parameters."""
        connection = sqlite3.connect(self.path)
        for statement in statements:
            connection.execute(*statement) if isinstance(statement, tuple) else connection.execute(statement)
        connection.commit()
        connection.close()

    def records(self) -> dict[int, str]:
        with sqlite3.connect(self.path) as connection:
            return dict(connection.execute("SELECT seq, record FROM ledger").fetchall())


class DatabasePlace:
    """A database of a PostgreSQL server."""

    kind = "postgresql"

    def __init__(self, url: str) -> None:
        self.path = f"{url}?federation=hospital"
        self.url = url

    def tamper(self, *statements) -> None:
        """As above, in SQLite's words; only an owner who takes the trigger away can do it."""
        import psycopg

        with psycopg.connect(self.url) as connection:
            connection.execute("ALTER TABLE scarcity_ray.ledger DISABLE TRIGGER append_only")
            for statement in statements:
                text, parameters = statement if isinstance(statement, tuple) else (statement, None)
                for sqlites, theirs in (
                    (" ledger", " scarcity_ray.ledger"),
                    ("?", "%s"),
                    ("x'09'", "'\\x09'"),
                    ("zeroblob(32)", f"'\\x{'00' * 32}'"),
                ):
                    text = text.replace(sqlites, theirs)
                connection.execute(text, parameters)
            if connection.execute("SELECT to_regclass('scarcity_ray.ledger')").fetchone() != (None,):
                connection.execute("ALTER TABLE scarcity_ray.ledger ENABLE ALWAYS TRIGGER append_only")

    def records(self) -> dict[int, str]:
        import psycopg

        with psycopg.connect(self.url) as connection:
            return dict(connection.execute("SELECT seq, record FROM scarcity_ray.ledger").fetchall())


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    """Each kind of place in turn, empty."""
    if request.param == "sqlite":
        return FilePlace(tmp_path)
    return DatabasePlace(request.getfixturevalue("postgres_url"))


@pytest.fixture
def path(place) -> str | os.PathLike[str]:
    return place.path
