"""The URL of a ledger in a PostgreSQL database, and how to print it without its password.

``postgresql://user:password@host:port/database?federation=hospitals&sslmode=verify-full``: libpq's own form
with one more parameter, ``federation``, which says whose rows are meant. The rest goes to libpq unchanged.

Guarantees:
    a_url_never_shows_its_password: Not as text, not as representation, not in what it refuses.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, unquote, urlencode

from scarcity_ray.errors import UsageError

_SCHEME = re.compile(r"postgres(?:ql)?:", re.IGNORECASE)
_URL = re.compile(
    r"postgres(?:ql)?://"
    r"(?:(?P<user>[^:@/?#\s]*)(?::(?P<password>[^:@/?#\s]*))?@)?"
    r"(?P<hosts>[^@/?#\s]*)(?:/(?P<database>[^@/?#\s]*))?(?:\?(?P<query>[^?#@\s]*))?"
)
_FEDERATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHOWN = ("host", "port", "dbname", "user", "service", "sslmode", "federation")
_LOGIN = re.compile(r"(postgres(?:ql)?:).*@", re.IGNORECASE | re.DOTALL)
_PASSWORD = re.compile(r"(password=)[^\s'\"&]*", re.IGNORECASE)


class LedgerUrl(str):
    """A PostgreSQL ledger's URL; as text and in every message it appears without its password.

    It is a string that holds the whole URL, so it is pickled and compared as one. Only `conninfo` reveals the
    password, to libpq.

    Raises:
        UsageError: If it is no such URL. The message does not repeat it.

    >>> url = LedgerUrl("postgresql://ann:secret@db.example/budgets?federation=hospitals")
    >>> print(url, url.federation)
    postgresql://ann@db.example/budgets?federation=hospitals hospitals
    """

    __slots__ = ()

    def __new__(cls, text: str) -> LedgerUrl:  # noqa: D102
        made = super().__new__(cls, str.__str__(text))
        if _URL.fullmatch(str.__str__(made)) is None:
            raise UsageError(
                "a ledger's URL must read postgresql://USER:PASSWORD@HOST:PORT/DATABASE?NAME=VALUE, with "
                "what is special in its parts percent-encoded ('@' is %40, '/' is %2F, '?' is %3F)"
            )
        federation = made.federation
        if federation is not None and not _FEDERATION.fullmatch(federation):
            raise UsageError(
                "a ledger's URL must name its federation with 1 to 100 letters, digits, '.', '-' and '_', "
                f"the first a letter or digit, got federation={federation[:80]!r}"
            )
        return made

    @property
    def federation(self) -> str | None:
        """Whose rows, if the URL says so."""
        return dict(self._parameters()).get("federation")

    @property
    def database(self) -> str | None:
        """The database's name, if the URL says it."""
        return dict(self._parameters()).get("dbname") or unquote(self._part("database")) or None

    @property
    def conninfo(self) -> str:
        """The URL for libpq, password and all."""
        rest = [(name, value) for name, value in self._parameters() if name != "federation"]
        return self._joined(str.__str__(self).partition("?")[0], rest)

    def of(self, federation: str) -> LedgerUrl:
        """The same database, the rows of `federation`.

        Raises:
            UsageError: If the URL names another one already.
        """
        if self.federation == federation:
            return self
        if self.federation is not None:
            raise UsageError(
                f"{self}: the URL names federation {self.federation!r}, the federation is {federation!r}; "
                "give each its own"
            )
        parameters = [*self._parameters(), ("federation", federation)]
        return LedgerUrl(self._joined(str.__str__(self).partition("?")[0], parameters))

    def hidden_in(self, text: str) -> str:
        """`text` with this URL's password struck out, should it be there."""
        given = dict(self._parameters())
        secrets = [self._part("password"), *(given[n] for n in given if "password" in n)]
        for secret in sorted({s for one in secrets for s in (one, unquote(one)) if s}, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def __str__(self) -> str:
        user = self._part("user")
        head = f"postgresql://{user}@" if user else "postgresql://"
        database = self._part("database")
        place = f"{head}{self._part('hosts')}" + (f"/{database}" if database else "")
        return self._joined(place, [(n, v) for n, v in self._parameters() if n in _SHOWN])

    def __repr__(self) -> str:
        return repr(str(self))

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __reduce__(self) -> tuple[type[LedgerUrl], tuple[str]]:
        return LedgerUrl, (str.__str__(self),)

    def _part(self, name: str) -> str:
        match = _URL.fullmatch(str.__str__(self))
        return "" if match is None else match[name] or ""

    def _parameters(self) -> list[tuple[str, str]]:
        return parse_qsl(self._part("query"), keep_blank_values=True)

    @staticmethod
    def _joined(place: str, parameters: list[tuple[str, str]]) -> str:
        return f"{place}?{urlencode(parameters, quote_via=quote, safe='/')}" if parameters else place


def is_ledger_url(text: object) -> bool:
    """Whether this is meant as a database's URL, well-formed or not, and not as a file.

    >>> is_ledger_url("postgresql://db/budgets"), is_ledger_url("ledger.sqlite")
    (True, False)
    """
    return isinstance(text, str) and _SCHEME.match(text) is not None


def without_password(text: str) -> str:
    """The text without what may be a password in a ledger's URL; it may strike out more than that.

    >>> without_password("no file postgresql://ann:secret@db/x?sslpassword=abc&a=b here")
    'no file postgresql://***@db/x?sslpassword=***&a=b here'
    """
    return _PASSWORD.sub(r"\1***", _LOGIN.sub(r"\1//***@", text))
