"""One site's HTTPS to its gateway: signed requests, retries, proxies, uploads and downloads that go on.

A request is repeated, signed anew, while the gateway cannot be reached or says that it is busy: after
exponentially growing waits with full jitter (Brooker 2015, "Exponential backoff and jitter"), never sooner
than ``Retry-After`` says. Every request of the protocol gives the same answer when it is repeated.

Where the kit names the federation's answer key, an answer counts that this has signed for this very request.
Any other, a proxy's own among them, is none: the request is repeated, a few times if it says no for good.

A proxy is taken from ``HTTPS_PROXY`` unless ``NO_PROXY`` names the gateway; TLS goes through it (CONNECT).

Guarantees:
    it_waits_as_long_as_the_gateway_says
    a_refusal_is_not_repeated
    a_large_upload_goes_on_where_it_broke_off
    a_large_download_goes_on_where_it_broke_off
    no_other_server_is_spoken_to: None that the kit's authority has not signed, and no redirect is followed.
    no_more_is_downloaded_than_was_named
    an_answer_that_the_federation_has_not_signed_is_not_believed: Where the kit names its answer key.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import ipaddress
import logging
import os
import random
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from scarcity_ray_client.errors import MessageRefused, ScarcityError, UsageError, shown
from scarcity_ray_client.wire import (
    ANSWER_SIGNATURE,
    EMPTY_DIGEST,
    MOST_JSON_BYTES,
    RESUMABLE_BYTES,
    UPLOAD_LENGTH,
    UPLOAD_OFFSET,
    ErrorAnswer,
    ErrorCode,
    digest_of,
    is_answer,
    update_name,
)

logger = logging.getLogger("scarcity_ray")

FIRST_WAIT_SECONDS = 0.5
MOST_WAIT_SECONDS = 60.0
MOST_RETRY_AFTER_SECONDS = 3600.0
TIMEOUT_SECONDS = 60.0
CHUNK = 2**18
_OTHER_HOST = (62, 64)
_OUT_OF_TIME = (9, 10)
"""OpenSSL's codes of verification: another name or address; not yet valid, expired."""
TOLD_ATTEMPT = 4
"""That tells the user, once, that it did not come through."""
MOST_UNSIGNED = 8
"""Answers in a row that say no for good, and that the federation has not signed, before that is an error."""
MOST_BROKEN_OFFSETS = 8
"""Times that an upload may be told another offset without getting further."""


class GatewayRefused(ScarcityError):
    """The gateway has refused a request for good.

    Attributes:
        answer: Its code and message.
    """

    def __init__(self, answer: ErrorAnswer) -> None:
        super().__init__(answer)
        self.answer = answer

    def __str__(self) -> str:
        return f"the gateway refuses ({self.answer.code}): {self.answer.message}"


class GatewayUnreachable(ScarcityError):
    """The gateway cannot be reached, or is not the one that the kit names."""


class Sign(Protocol):
    """Gives the headers that sign one request, and its occasion (`SignedRequest.occasion`)."""

    def __call__(self, method: str, target: str, body_digest: str) -> tuple[Mapping[str, str], str]:
        """Of method, path with query, and the body's SHA-256."""


@dataclass(frozen=True)
class Reply:
    """A gateway's answer: of a status from 200 to 299 where it is no refusal.

    Attributes:
        is_genuine: Whether the federation has given it; True where nothing tells.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_genuine: bool = True


@dataclass(frozen=True)
class Waits:
    """How long it tries, and how it waits; tests replace clock and sleep.

    Attributes:
        give_up_seconds: After which a request that never came through is an error.
    """

    give_up_seconds: float = 3600.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    def before(self, attempt: int, least: float | None) -> float:
        """Seconds before the next attempt, of which `attempt` have failed."""
        most = min(MOST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(attempt, 16))
        jittered = self.jitter() * most
        return jittered if least is None else min(max(least, 0.0), MOST_RETRY_AFTER_SECONDS) + jittered


class GatewayConnection:
    """A connection that is made when it is needed, and made again when it breaks; for one thread.

    Args:
        url: ``https://host[:port]``; ``http://`` on a loopback address alone.
        authority: PEM, of whoever signs the gateways' certificates.
        chain: File with the site's certificate and key, and its password; None: it has none yet.
        sign: None: requests are not signed (enrolment).
        environ: Where a proxy is named.
        answer_key: Ed25519, 32 bytes: signs the gateway's answers. Empty: they are believed as they come.

    Raises:
        UsageError: If `url` is none, or a proxy is not accepted.
    """

    def __init__(
        self,
        url: str,
        authority: str,
        chain: tuple[Path, bytes] | None = None,
        sign: Sign | None = None,
        waits: Waits | None = None,
        environ: Mapping[str, str] = os.environ,
        answer_key: bytes = b"",
    ) -> None:
        self._place = _place(url)
        self._answer_key, self._occasion = answer_key, ""
        self._sign, self._waits = sign, waits or Waits()
        self._proxy = _proxy(self._place, environ) if self._place.scheme == "https" else None
        self._context = self._trusting(authority, chain) if self._place.scheme == "https" else None
        self._open: http.client.HTTPConnection | None = None

    def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        digest: str | None = None,
    ) -> Reply:
        """One request, repeated until it is answered.

        Args:
            digest: What is signed for the body; None: its SHA-256.

        Raises:
            GatewayRefused: If it is refused for good.
            GatewayUnreachable: If it never came through, or another server answers.
        """

        def once() -> Reply:
            reply = self._sent(method, target, body, headers or {}, timeout_seconds, digest)
            data = reply.read(MOST_JSON_BYTES + 1)
            if reply.will_close or len(data) > MOST_JSON_BYTES:
                self.close()
            return self._judged(reply, data)

        return self._repeated(once)

    def download(self, target: str, etag: str, path: Path, num_bytes: int) -> None:
        """Fetch what is under an ETag into a file, going on with what the file has of it.

        Args:
            etag: SHA-256, hexadecimal, without quotes; the file's parts are named by it.
            path: Holds exactly that afterwards.
            num_bytes: That it has; no more is read.

        Raises:
            GatewayRefused: If it is refused, or is something else by now (``round_over``).
            GatewayUnreachable: As `ask`.
        """
        part = path.with_name(f"{etag}.part")

        def once() -> Reply:
            have = part.stat().st_size if part.exists() else 0
            asked = {"Range": f"bytes={have}-", "If-Range": f'"{etag}"'} if have else {}
            reply = self._sent("GET", target, b"", asked, TIMEOUT_SECONDS)
            headers = _headers(reply)
            if reply.status >= 300:
                data = reply.read(MOST_JSON_BYTES)
                self.close()
                if reply.status == 416:  # nothing is left to fetch
                    return Reply(200, headers, b"")
                return self._judged(reply, data)
            if headers.get("etag", "").strip('"') != etag:
                self.close()
                raise GatewayRefused(ErrorAnswer(ErrorCode.ROUND_OVER, "there is another model by now"))
            left = num_bytes - (have if reply.status == 206 else 0)
            with open(part, "ab" if reply.status == 206 else "wb") as file:
                while left > 0 and (chunk := reply.read(min(CHUNK, left))):
                    left -= file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if left > 0:
                raise http.client.IncompleteRead(b"", left)
            if not reply.isclosed() and reply.read(1):
                self.close()  # it goes on beyond what it said
            return Reply(reply.status, headers, b"")

        for _ in range(3):
            self._repeated(once)
            if _file_digest(part) == etag:
                part.replace(path)
                return
            part.unlink(missing_ok=True)
        raise GatewayUnreachable(f"{target}: what arrives is not what the gateway names, three times")

    def upload(self, folder: str, body: bytes) -> Reply:
        """Send an update's body under its name: at once, or above `RESUMABLE_BYTES` by offsets.

        A gateway of an older release knows it by the digest of all of it; so does the slot of an update that
        was sent by an older client, whose answer was lost.

        Args:
            folder: Path to which the name is appended.

        Raises:
            GatewayRefused: If it is judged and refused, or refused at all.
            GatewayUnreachable: As `ask`.
        """
        if len(body) <= RESUMABLE_BYTES:
            name = update_name(body)
            try:
                return self.ask("PUT", f"{folder}/{name}", body, digest=name)
            except GatewayRefused as refused:
                if refused.answer.code not in (ErrorCode.MALFORMED, ErrorCode.SLOT_TAKEN):
                    raise
                with suppress(GatewayRefused):
                    return self.ask("PUT", f"{folder}/{digest_of(body)}", body)
                raise
        target = f"{folder}/{digest_of(body)}"
        offset, stuck = self._offset(target), 0
        while True:
            part = body[offset : offset + RESUMABLE_BYTES]
            told = {UPLOAD_OFFSET: str(offset), UPLOAD_LENGTH: str(len(body))}
            try:
                reply = self.ask("PATCH", target, part, told)
            except GatewayRefused as refused:
                if refused.answer.code is not ErrorCode.WRONG_OFFSET:
                    raise
                before, offset = offset, self._offset(target)
                stuck = stuck + 1 if offset <= before else 0
                if stuck > MOST_BROKEN_OFFSETS:
                    raise
                continue
            offset += len(part)
            if offset >= len(body):
                return reply

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _offset(self, target: str) -> int:
        try:
            told = self.ask("HEAD", target).headers.get(UPLOAD_OFFSET.lower(), "0")
        except GatewayRefused as refused:
            if refused.answer.code is ErrorCode.NOT_FOUND:
                return 0
            raise
        return int(told) if told.isascii() and told.isdigit() else 0

    def _repeated(self, once: Callable[[], Reply]) -> Reply:
        begun, attempt, why, unsigned = self._waits.clock(), 0, "", 0
        while True:
            was_open, least = self._open is not None, None
            try:
                reply = once()
                if reply.is_genuine and 200 <= reply.status < 300:
                    return reply
                answer = _error_of(reply)
                is_last = answer.code.is_final or answer.code is ErrorCode.WRONG_OFFSET
                if reply.is_genuine and is_last:
                    raise GatewayRefused(answer)
                least, why = answer.retry_after_seconds, f"{answer.code}: {answer.message}"
                if not reply.is_genuine:
                    unsigned = unsigned + 1 if is_last else 0
                    why = (
                        f"the federation has not signed this answer of HTTP status {reply.status}: whoever "
                        "ends TLS on the way has made or changed it"
                    )
                    if unsigned >= MOST_UNSIGNED:
                        raise GatewayUnreachable(f"{self._place.netloc}: {why}")
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if final := _final_fault(error):
                    raise GatewayUnreachable(f"{self._place.netloc}: {final}") from error
                why = f"{type(error).__name__}: {error}"
                if was_open and attempt == 0:  # an idle connection that the other side has closed
                    attempt = 1
                    continue
            wait = self._waits.before(attempt, least)
            attempt += 1
            if self._waits.clock() + wait - begun > self._waits.give_up_seconds:
                raise GatewayUnreachable(f"{self._place.netloc}: no answer after {attempt} attempts: {why}")
            if attempt == TOLD_ATTEMPT:
                logger.warning("%s does not answer (%s): trying again and again", self._place.netloc, why)
            else:
                logger.info("%s: %s; again in %.1f s", self._place.netloc, why, wait)
            self._waits.sleep(wait)

    def _sent(
        self,
        method: str,
        target: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout_seconds: float,
        digest: str | None = None,
    ) -> http.client.HTTPResponse:
        if self._open is None:
            self._open = self._connected()
        self._open.timeout = timeout_seconds
        if self._open.sock is not None:
            self._open.sock.settimeout(timeout_seconds)
        said = digest or (digest_of(body) if body else EMPTY_DIGEST)
        signed, self._occasion = ({}, said) if self._sign is None else self._sign(method, target, said)
        length = {"Content-Length": str(len(body))} if method in ("PUT", "POST", "PATCH") else {}
        try:
            self._open.request(method, target, body or None, {**headers, **signed, **length})
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError) as broken:
            return self._last_words(self._open, broken)
        return self._open.getresponse()

    def _last_words(self, sent: http.client.HTTPConnection, broken: OSError) -> http.client.HTTPResponse:
        """What the other side said before it closed: TLS 1.3 refuses a certificate after the handshake."""
        try:
            return sent.getresponse()
        except ssl.SSLEOFError:
            raise broken from None
        except ssl.SSLError:
            raise
        except (OSError, http.client.HTTPException):
            raise broken from None

    def _judged(self, reply: http.client.HTTPResponse, body: bytes) -> Reply:
        headers = _headers(reply)
        told = headers.get(ANSWER_SIGNATURE.lower(), "")
        is_genuine = not self._answer_key or is_answer(
            self._answer_key, self._occasion, reply.status, body, told
        )
        return Reply(reply.status, headers, body, is_genuine)

    def _connected(self) -> http.client.HTTPConnection:
        host, port = self._place.hostname or "", self._place.port
        if self._context is None:
            return http.client.HTTPConnection(host, port or 80)
        if self._proxy is None:
            return http.client.HTTPSConnection(host, port or 443, context=self._context)
        tunnel = http.client.HTTPSConnection(
            self._proxy.hostname or "", self._proxy.port or 3128, context=self._context
        )
        told = {}
        if self._proxy.username is not None:
            user = f"{unquote(self._proxy.username)}:{unquote(self._proxy.password or '')}"
            told["Proxy-Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        tunnel.set_tunnel(host, port or 443, told)
        return tunnel

    def _trusting(self, authority: str, chain: tuple[Path, bytes] | None) -> ssl.SSLContext:
        if not authority.strip():  # ssl would trust all authorities of this machine then
            raise UsageError("the kit has no authority: ask the federation for a new kit")
        try:
            context = ssl.create_default_context(cadata=authority)
        except (ssl.SSLError, ValueError) as error:
            raise UsageError(f"the kit's authority is no certificate: {error}") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if chain is not None:
            try:
                context.load_cert_chain(chain[0], password=chain[1])
            except (OSError, ssl.SSLError) as error:
                raise UsageError(f"{chain[0]}: the site's certificate cannot be used: {error}") from None
        return context


def _place(url: str) -> SplitResult:
    try:
        place = urlsplit(url)
        place.port  # noqa: B018
    except ValueError:
        place = urlsplit("")
    is_alone = place.path in ("", "/") and not place.query and place.username is None
    if place.scheme in ("http", "https") and place.hostname and is_alone:
        if place.scheme == "https" or _is_loopback(place.hostname):
            return place
        raise UsageError(f"gateway: {shown(url)} is not accepted; http:// is for loopback addresses alone")
    raise UsageError(f"gateway: {shown(url)} is not accepted; https://host or https://host:port")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _proxy(place: SplitResult, environ: Mapping[str, str]) -> SplitResult | None:
    lower = {name.lower(): value for name, value in environ.items() if value}
    bypassed = {"no": lower.get("no_proxy", "")}
    host = place.hostname or ""
    if urllib.request.proxy_bypass_environment(f"{host}:{place.port or 443}", bypassed):  # type: ignore[attr-defined]
        return None
    given = lower.get("https_proxy") or lower.get("all_proxy")
    if given is None:
        return None
    proxy = urlsplit(given if "://" in given else f"http://{given}")
    if proxy.scheme != "http" or not proxy.hostname:
        # It may hold a password.
        raise UsageError("HTTPS_PROXY is not accepted; http://[user:password@]host:port")
    return proxy


def _error_of(reply: Reply) -> ErrorAnswer:
    """What a refusal says; a proxy's own is made one."""
    after = reply.headers.get("retry-after", "")
    least = float(after) if after.isascii() and after.isdigit() else None
    try:
        answer = ErrorAnswer.from_json(reply.body)
    except MessageRefused as error:
        if error.flaw == "newer":
            return ErrorAnswer(ErrorCode.NEWER_VERSION, str(error))
        said = f"HTTP status {reply.status}, not in the gateway's words"
        if reply.status in (408, 425, 429) or reply.status >= 500:
            return ErrorAnswer(ErrorCode.BUSY, said, least)
        by_status = {404: ErrorCode.NOT_FOUND, 409: ErrorCode.WRONG_OFFSET, 410: ErrorCode.ROUND_OVER}
        return ErrorAnswer(by_status.get(reply.status, ErrorCode.FORBIDDEN), said)
    if answer.retry_after_seconds is None and least is not None:
        return ErrorAnswer(answer.code, answer.message, least, answer.gateway_seconds)
    return answer


def _final_fault(error: Exception) -> str:
    """Why no other attempt would end better; "" if one may."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _OTHER_HOST:
            return (
                f"its certificate is for another host ({error.verify_message}): have the federation renew it "
                "for this one (scarcity-ray keys renew KEYS --host HOST), or send a kit with the right URL"
            )
        if error.verify_code in _OUT_OF_TIME:
            return (
                f"its certificate is not good now ({error.verify_message}): set this machine's clock if it "
                "is wrong, else have the federation renew it (scarcity-ray keys renew)"
            )
        return (
            f"its certificate is not one of this federation's ({error.verify_message}): either the kit is "
            "another federation's, or a proxy opens TLS on the way: have it let this host through"
        )
    reason = str(getattr(error, "reason", "") or "")
    if isinstance(error, ssl.SSLError) and "ALERT" in reason and ("CERT" in reason or "UNKNOWN_CA" in reason):
        return f"it does not take this site's certificate ({reason}): ask the federation for a new kit"
    if "Tunnel connection failed: 40" in str(error):
        return f"the proxy refuses: {error}"
    return ""


def _headers(reply: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in reply.getheaders()}


def _file_digest(path: Path) -> str:
    if not path.exists():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
