"""The operators' side of a gateway: status, metrics, ledger, the acts of an operator, and the console page.

Whoever asks shows an operator's token: as ``Authorization: Bearer``, or once at the page's login, which
answers with a cookie that scripts cannot read and other sites cannot send. The cookie holds the operator's
name, an end, a number of its own and a code over them; the code depends on the token's hash, so that the
cookie ends with the token. This process refuses it once its operator has logged out here; another gateway of
the federation takes it until its end. Nothing in the page comes from elsewhere, and it writes what sites call
themselves as text.

Guarantees:
    nothing_is_told_without_a_token
    an_operator_who_reads_cannot_operate
    another_site_cannot_have_a_browser_operate
    a_cookie_ends_with_its_token_and_its_time
    a_cookie_ends_with_its_logout
    guesses_are_slowed
    no_answer_tells_of_the_inside: No traceback and no exception's text but a `UsageError`'s.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol

from aiohttp import web

from scarcity_ray.errors import ScarcityError, UsageError
from scarcity_ray.gateway.operators import Operator, Operators
from scarcity_ray.monitoring.exposition import CONTENT_TYPE, exposition
from scarcity_ray.monitoring.metrics import samples_of

logger = logging.getLogger("scarcity_ray")

ACTS = ("renew", "unregister", "pause", "resume")
COOKIE = "scarcity_ray_operator"
CONSOLE_HEADER = "Scarcity-Console"
"""What a request with a cookie must carry to act: no form and no image of another site can send it."""
SESSION_SECONDS = 8 * 3600.0
STATUS_SECONDS = 1.0
"""How long a status is told again before the federation is asked anew."""
MOST_BODY_BYTES = 16_384
BODY_SECONDS = 10.0
"""In which a body must have come."""
GUESSES = 10
GUESS_SECONDS = 6.0
"""A wrong token is forgotten after so long; an address with more than `GUESSES` of them is told to wait.

A right token is never refused for others' guesses, which may come from the same address: nobody guesses 256
bits, however often.
"""
MOST_ADDRESSES = 10_000
PAGE = {"": ("console.html", "text/html"), "console.js": ("console.js", "text/javascript")}
PAGE |= {"console.css": ("console.css", "text/css")}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Source(Protocol):
    """Where the console has it from. Calls may wait for roles: they are made in a thread."""

    def status(self) -> dict[str, Any]:
        """The federation's status (`monitoring.status.federation_status`)."""

    def operate(self, act: str, arguments: Mapping[str, Any], operator: str) -> dict[str, Any]:
        """Do one of `ACTS` in the name of an operator; what came of it.

        Raises:
            UsageError: If it cannot be done; its text is told to the operator.
        """

    def ledger_rows(self) -> Iterator[dict[str, Any]]:
        """Every row of the privacy ledger, checked, as plain data.

        Raises:
            UsageError: If the ledger cannot be read from here; the text says where it can.
        """


@dataclass
class _Guesses:
    """Wrong tokens of one address that are not forgotten yet."""

    count: float
    at: float


class Guard:
    """Who asks, and whether that address guesses.

    Args:
        session_key: Signs cookies; the gateways of one federation share one, so that a login holds at all.
        clock: Seconds since the epoch.
    """

    def __init__(
        self, operators: Operators, session_key: bytes | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.operators = operators
        self.clock = clock
        self._key = session_key or os.urandom(32)
        self._guesses: dict[str, _Guesses] = {}
        self._logged_out: dict[str, int] = {}

    def by_token(self, token: str, address: str) -> Operator | None:
        """The operator of a token; None for a wrong one, which is counted while its address need not wait."""
        operator = self.operators.who(token)
        if operator is None and not self.seconds_to_wait(address):
            self._count(address)
        return operator

    def seconds_to_wait(self, address: str) -> float:
        """How long an address must wait that has guessed too often; 0 if it need not."""
        known = self._guesses.get(address)
        left = 0.0 if known is None else self._left(known)
        return max(0.0, (left - GUESSES + 1.0) * GUESS_SECONDS) if left > GUESSES - 1.0 else 0.0

    def cookie(self, operator: Operator) -> str:
        """A cookie's value for an operator who has shown the token."""
        return self._signed(operator, int(self.clock() + SESSION_SECONDS), os.urandom(8).hex())

    def log_out(self, value: str) -> None:
        """Refuse a cookie from now on; one that was not made here is nothing."""
        now = self.clock()
        self._logged_out = {known: end for known, end in self._logged_out.items() if end > now}
        if self.by_cookie(value) is not None:
            self._logged_out[value] = int(value.split(".")[1])

    def by_cookie(self, value: str) -> Operator | None:
        """The operator of a cookie that was made here, has not ended, and whose token still holds."""
        name, _, rest = value.partition(".")
        ends, _, rest = rest.partition(".")
        number, _, _ = rest.partition(".")
        try:
            operator = self.operators.named(base64.urlsafe_b64decode(name.encode()).decode())
            end = int(ends)
        except (ValueError, binascii.Error):
            return None
        if operator is None or end <= self.clock() or value in self._logged_out:
            return None
        made = self._signed(operator, end, number)
        is_own = hmac.compare_digest(*(text.encode("utf-8", "surrogatepass") for text in (made, value)))
        return operator if is_own else None

    def _signed(self, operator: Operator, end: int, number: str) -> str:
        name = base64.urlsafe_b64encode(operator.name.encode()).decode()
        stated = ["scarcity_ray/console/2", operator.name, operator.token_sha256, end, number]
        message = json.dumps(stated).encode()
        return f"{name}.{end}.{number}.{hmac.new(self._key, message, hashlib.sha256).hexdigest()}"

    def _count(self, address: str) -> None:
        known = self._guesses.pop(address, None)
        left = 0.0 if known is None else self._left(known)
        while len(self._guesses) >= MOST_ADDRESSES:
            del self._guesses[next(iter(self._guesses))]
        self._guesses[address] = _Guesses(left + 1.0, self.clock())

    def _left(self, known: _Guesses) -> float:
        return max(0.0, known.count - (self.clock() - known.at) / GUESS_SECONDS)


class Console:
    """The handlers of the operators' paths; see `add_console`."""

    def __init__(self, source: Source, guard: Guard, *, secure: bool) -> None:
        self._source, self._guard, self._secure = source, guard, secure
        self._page = {
            name: ((files("scarcity_ray.gateway") / "page" / file).read_bytes(), kind)
            for name, (file, kind) in PAGE.items()
        }
        self._told: tuple[float, dict[str, Any]] | None = None
        self._asking = asyncio.Lock()

    async def page(self, request: web.Request) -> web.StreamResponse:
        """A file of the page; anybody may have it, since it tells nothing."""
        body, kind = self._page[request.match_info.get("file", "")]
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=HEADERS)

    async def login(self, request: web.Request) -> web.StreamResponse:
        """A cookie for a token."""
        if not _is_own_page(request):
            return _error(403, "foreign_page", "log in at this gateway's own page")
        given, slowed = await _body(request), self._slowed(request)
        token = given.get("token") if isinstance(given, dict) else None
        operator = self._guard.by_token(token, _address(request)) if isinstance(token, str) else None
        if operator is None:
            return slowed or _error(401, "unknown_token", "this token is no operator's")
        answer = _json({"name": operator.name, "role": operator.role.value})
        answer.set_cookie(
            COOKIE,
            self._guard.cookie(operator),
            max_age=int(SESSION_SECONDS),
            httponly=True,
            secure=self._secure,
            samesite="Strict",
            path="/",
        )
        return answer

    async def logout(self, request: web.Request) -> web.StreamResponse:
        """End the cookie here, and have the browser forget it."""
        if (cookie := request.cookies.get(COOKIE)) is not None and _is_own_page(request):
            self._guard.log_out(cookie)
        answer = _json({})
        answer.del_cookie(COOKIE, path="/", httponly=True, secure=self._secure, samesite="Strict")
        return answer

    async def status(self, request: web.Request, operator: Operator) -> web.StreamResponse:
        """The status, and who is asking."""
        told = await self._status()
        return _json({**told, "operator": {"name": operator.name, "role": operator.role.value}})

    async def metrics(self, request: web.Request, operator: Operator) -> web.StreamResponse:
        """The status in Prometheus's format."""
        told = exposition(samples_of(await self._status()))
        return web.Response(body=told, headers={**HEADERS, "Content-Type": CONTENT_TYPE})

    async def ledger(self, request: web.Request, operator: Operator) -> web.StreamResponse:
        """The privacy ledger, one JSON object a line."""
        rows = await asyncio.to_thread(self._source.ledger_rows)
        first = await asyncio.to_thread(_some, rows)
        answer = web.StreamResponse(
            headers={
                **HEADERS,
                "Content-Type": "application/x-ndjson",
                "Content-Disposition": 'attachment; filename="ledger.jsonl"',
            }
        )
        await answer.prepare(request)
        while first:
            await answer.write(first)
            first = await asyncio.to_thread(_some, rows)
        await answer.write_eof()
        return answer

    async def operate(self, request: web.Request, operator: Operator) -> web.StreamResponse:
        """Do what an operator decides."""
        act = request.match_info["act"]
        if act not in ACTS:
            return _error(404, "unknown_act", f"there is no {act[:40]!r}; {', '.join(ACTS)}")
        if not operator.may_operate:
            return _error(403, "only_reads", f"operator {operator.name!r} may read, not operate")
        given = await _body(request)
        if not isinstance(given, dict):
            return _error(400, "malformed", "the body must be a JSON object")
        done = await asyncio.to_thread(self._source.operate, act, given, operator.name)
        self._told = None
        logger.info("operator %s: %s", operator.name, act)
        return _json(done)

    def for_operators(
        self, handler: Callable[[web.Request, Operator], Awaitable[web.StreamResponse]]
    ) -> Handler:
        """The handler, for whoever shows a token or a cookie."""

        async def handled(request: web.Request) -> web.StreamResponse:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            cookie = request.cookies.get(COOKIE)
            if scheme.lower() == "bearer":
                slowed = self._slowed(request)
                operator = self._guard.by_token(token.strip(), _address(request))
                if operator is None and slowed is not None:
                    return slowed
            elif cookie is not None:
                operator = self._guard.by_cookie(cookie)
                if request.method != "GET" and not _is_own_page(request):
                    return _error(403, "foreign_page", "this request does not come from the console's page")
            else:
                operator = None
            if operator is None:
                return _error(401, "unknown_token", "log in, or send an operator's token as a bearer")
            return await self._answered(handler, request, operator)

        return handled

    async def _answered(
        self,
        handler: Callable[[web.Request, Operator], Awaitable[web.StreamResponse]],
        request: web.Request,
        operator: Operator,
    ) -> web.StreamResponse:
        try:
            return await handler(request, operator)
        except UsageError as error:
            return _error(400, "refused", str(error))
        except ScarcityError as error:
            logger.warning("the console has no answer: %s", error)
            return _error(503, "unavailable", "the federation does not answer; the gateway's log says why")
        except web.HTTPException:
            raise
        except Exception:
            logger.exception("the console failed")
            return _error(500, "failed", "the gateway failed at this; its log says why")

    async def _status(self) -> dict[str, Any]:
        async with self._asking:
            now = self._guard.clock()
            if self._told is None or not 0.0 <= now - self._told[0] < STATUS_SECONDS:
                self._told = now, await asyncio.to_thread(self._source.status)
            return self._told[1]

    def _slowed(self, request: web.Request) -> web.StreamResponse | None:
        seconds = self._guard.seconds_to_wait(_address(request))
        if seconds <= 0.0:
            return None
        answer = _error(429, "too_many_guesses", f"too many wrong tokens; wait {seconds:.0f} s")
        answer.headers["Retry-After"] = str(max(1, round(seconds)))
        return answer


def add_console(
    app: web.Application,
    source: Source,
    operators: Operators,
    *,
    secure: bool = True,
    session_key: bytes | None = None,
    clock: Callable[[], float] = time.time,
) -> None:
    """Add the operators' paths to a gateway.

    Args:
        secure: Whether the connection is encrypted, here or at a proxy: the cookie is then sent over such
            alone. False only on a loopback address.
        session_key: 32 random bytes that the gateways of one federation share; None: this one's own.
        clock: Seconds since the epoch.
    """
    console = Console(source, Guard(operators, session_key, clock), secure=secure)
    guarded = console.for_operators
    app.add_routes(
        [
            web.get("/console", console.page),
            web.get("/console/{file:console\\.(?:js|css)}", console.page),
            web.post("/console/login", console.login),
            web.post("/console/logout", console.logout),
            web.get("/v1/status", guarded(console.status)),
            web.get("/v1/ledger", guarded(console.ledger)),
            web.get("/metrics", guarded(console.metrics)),
            web.post("/v1/operate/{act}", guarded(console.operate)),
        ]
    )


def _is_own_page(request: web.Request) -> bool:
    """Whether a request can only come from the console's own page, or from no browser."""
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    return CONSOLE_HEADER in request.headers and site in ("same-origin", "none")


async def _body(request: web.Request) -> Any:
    """The body as JSON; None if it is none, too long or too slow."""
    if request.content_type != "application/json":
        return None
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.content.iter_chunked(4096):
                body += part
                if len(body) > MOST_BODY_BYTES:
                    return None
    except TimeoutError:
        return None
    try:
        return json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return None


def _address(request: web.Request) -> str:
    return request.remote or ""


def _some(rows: Iterator[dict[str, Any]], most: int = 200) -> bytes:
    lines = []
    for _ in range(most):
        row = next(rows, None)
        if row is None:
            break
        lines.append(json.dumps(row, allow_nan=False) + "\n")
    return "".join(lines).encode()


def _json(value: Mapping[str, Any]) -> web.Response:
    return web.Response(
        text=json.dumps(value, allow_nan=False), content_type="application/json", headers=HEADERS
    )


def _error(status: int, code: str, message: str) -> web.Response:
    text = json.dumps({"error": code, "message": message})
    headers = dict(HEADERS)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(status=status, text=text, content_type="application/json", headers=headers)


__all__ = ["ACTS", "Guard", "Source", "add_console"]
