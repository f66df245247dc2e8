"""What a gateway answers over HTTP: the thin shell of aiohttp around the register, the intake and the board.

What is answered is JSON or the model's bytes. A fault of ours is logged here, and told as ``internal`` alone.

Guarantees:
    who_is_not_admitted_gets_nothing_but_a_reason: But on ``/v1/enrol`` and ``/healthz``.
    no_traceback_and_no_path_leaves_a_gateway
    a_slow_or_overlong_body_is_given_up_and_its_memory_free_again
    a_body_that_is_not_what_its_digest_says_is_refused_and_forgotten
    an_interrupted_upload_goes_on_where_it_was_cut
    a_model_is_sent_in_part_and_once
    an_answer_is_signed_for_its_request: All but the model's bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from scarcity_ray.config.gateway import GatewayConfig
from scarcity_ray.errors import StorageError, UsageError
from scarcity_ray.federation.served_round import Measured
from scarcity_ray.gateway.batches import Batches, at_once
from scarcity_ray.gateway.connections import Connection, Connections
from scarcity_ray.gateway.driver_thread import OnDriver
from scarcity_ray.gateway.enrolments import Enrolment
from scarcity_ray.gateway.intake import Accepted, Intake, Upload
from scarcity_ray.gateway.pressure import RETRY_SECONDS, Pressure, body_deadline
from scarcity_ray.gateway.register import Asked, Register
from scarcity_ray.gateway.register_client import RegisterClient
from scarcity_ray.gateway.round_board import RoundBoard
from scarcity_ray.gateway.site_desk import ServedTerms, SiteDesk
from scarcity_ray.gateway.uploads import Standing, UploadKey, Uploads
from scarcity_ray_client import checked_metrics
from scarcity_ray_client.errors import MessageRefused
from scarcity_ray_client.identity import IdentityKeyPair
from scarcity_ray_client.wire import (
    ANSWER_SIGNATURE,
    EMPTY_DIGEST,
    MODEL_ROUND,
    MODEL_VERSION,
    MOST_HEADER_BYTES,
    MOST_JSON_BYTES,
    RESUMABLE_BYTES,
    UPLOAD_LENGTH,
    UPLOAD_OFFSET,
    CertificateRequest,
    EnrolRequest,
    ErrorAnswer,
    ErrorCode,
    EvaluationRequest,
    KeyRequest,
    SignedRequest,
    digest_of,
    is_digest,
    is_named,
    read_update_body,
    sign_answer,
    update_name,
)

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = logging.getLogger("scarcity_ray")

PIECE_BYTES = 256 * 1024
"""Of a model, written at a time."""
ALIGNED_BYTES = 16
MOST_COUNT = 2**63 - 1
"""What the register's file and `ClientEvaluation` hold."""
CONNECTIONS_PER_REQUEST = 4
"""Connections of one client for each request that it may have open: some are left from broken ones."""
SERVER_NAME = "scarcity-ray"
ANSWER_SECONDS = 120.0
"""In which the roles behind a gateway must have answered; then the client is to ask again."""
WHO = web.RequestKey("who", str)
"""A request's key: as whose it is counted."""
OCCASION = web.RequestKey("occasion", str)
"""A request's key: what its answer names it by, once that is known."""
UNSIGNED_PATHS = ("/v1/enrol", "/healthz")
OPERATORS_PATHS = ("/console", "/metrics", "/v1/status", "/v1/ledger", "/v1/operate/")
"""Which have an authentication of their own (`console`)."""


class RefusedError(Exception):
    """A request that is refused with an answer."""

    def __init__(self, code: ErrorCode, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(code, message)
        self.answer = ErrorAnswer(code, message, retry_after_seconds)


@dataclass(frozen=True)
class Identified:
    """A request whose sender is known.

    Attributes:
        digest: SHA-256 of the body that was signed, hexadecimal.
    """

    site: Enrolment
    digest: str


class WebApp:
    """One gateway's paths.

    Args:
        terms: What the federation asks of sites.
        register: The gateways'.
        intake: Has updates judged.
        desk: What else is asked of the federation.
        uploads: Unfinished ones.
        on_driver: Runs a function where the driver may be called, and gives what it gives.
        answer_key: Signs answers.
        clock: Unix seconds.
    """

    def __init__(
        self,
        config: GatewayConfig,
        terms: ServedTerms,
        register: RegisterClient,
        intake: Intake,
        desk: SiteDesk,
        uploads: Uploads,
        on_driver: OnDriver,
        answer_key: IdentityKeyPair,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._terms, self._register, self._clock = config, terms, register, clock
        self._desk, self._uploads, self._on_driver = desk, uploads, on_driver
        self._answer_key = answer_key
        most_of_one = CONNECTIONS_PER_REQUEST * config.open_requests_per_client
        self.connections = Connections(
            config.header_seconds,
            config.max_connections,
            most_of_one if config.tls == "mutual" else None,
        )
        self.pressure = Pressure(config)
        self.board = RoundBoard(
            lambda number: register.call(Register.current, number), lambda: register.call(Register.model)
        )
        self.is_stopping = False
        self._answers: Counter[int] = Counter()
        self._num_received = self._num_sent = 0
        self._most_bytes = config.max_update_bytes or 4 + MOST_HEADER_BYTES + 4 * terms.vector_dim
        self._admit = ThreadPoolExecutor(1, thread_name_prefix="gateway-admit")
        self._admitting = Batches[Asked, Enrolment | ErrorAnswer](
            lambda asked: register.call(Register.admit, list(asked), clock()),
            at_once if register.is_here else self._admit.submit,
        )
        self._judging = Batches[Upload, Accepted | ErrorAnswer](
            intake.take, on_driver.start, lambda upload: upload.row.nbytes
        )
        self._asking = ThreadPoolExecutor(2, thread_name_prefix="gateway-ask")
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="gateway-disk")
        self.app = web.Application(middlewares=[self._guarded], client_max_size=MOST_JSON_BYTES)
        add = self.app.router.add_route
        add("GET", "/healthz", self._health, expect_handler=_no_interim)
        add("GET", "/v1/round", self._round)
        add("GET", "/v1/model", self._model)
        add("GET", "/v1/me", self._me)
        for method, handler in (("PUT", self._put), ("HEAD", self._head), ("PATCH", self._patch)):
            add(method, "/v1/updates/{round}/{digest}", handler, expect_handler=_no_interim)
        add("PUT", "/v1/evaluations/{round}", self._evaluation)
        add("POST", "/v1/enrol", self._enrol)
        add("POST", "/v1/certificate", self._certificate)
        add("POST", "/v1/key", self._key)
        self.app.on_response_prepare.append(_nameless)

    async def watch(self) -> None:
        """Follow the round, and drop uploads that do not grow, until cancelled."""
        looking = asyncio.create_task(self.board.run())
        try:
            while True:
                await asyncio.sleep(min(60.0, self._config.upload_seconds))
                await self._on_disk(lambda: self._uploads.sweep(time.time()))
        finally:
            looking.cancel()

    def close(self) -> None:
        """End the threads."""
        for threads in (self._admit, self._asking, self._disk):
            threads.shutdown(wait=False, cancel_futures=True)

    def counts(self) -> dict[str, Any]:
        """What this gateway has done, for operators."""
        return {
            "open_requests": self.pressure.open,
            "turned_away": self.connections.num_turned_away,
            "bytes_received": self._num_received,
            "bytes_sent": self._num_sent,
            "answers": {str(status): count for status, count in sorted(self._answers.items())},
        }

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Caps, and errors in words; operators' paths have their own."""
        connection = self.connections.of(request.transport)
        if connection is not None:
            connection.begun()
        response = await self._capped(request, handler, connection)
        self._answers[response.status] += 1
        if OCCASION in request and isinstance(response, web.Response) and not response.prepared:
            said = response.body if isinstance(response.body, bytes) else b""
            signed = sign_answer(self._answer_key, request[OCCASION], response.status, said)
            response.headers[ANSWER_SIGNATURE] = signed
        return response

    async def _capped(
        self, request: web.Request, handler: Handler, connection: Connection | None
    ) -> web.StreamResponse:
        who = request[WHO] = self._shown(request)
        try:
            if self.is_stopping:
                return _refusal(ErrorAnswer(ErrorCode.BUSY, "this gateway is stopping", RETRY_SECONDS))
            if wait := self.pressure.begin(who, self._clock(), is_known=not self._is_to_sign(request)):
                return _refusal(ErrorAnswer(ErrorCode.TOO_MANY, "too many requests", wait))
            try:
                return await handler(request)
            except RefusedError as refused:
                return _refusal(refused.answer)
            except MessageRefused as refused:
                code = ErrorCode.NEWER_VERSION if refused.flaw == "newer" else ErrorCode.MALFORMED
                return _refusal(ErrorAnswer(code, str(refused)))
            except web.HTTPException as error:
                if error.status < 400 or request.path.startswith(OPERATORS_PATHS):
                    raise
                return _refusal(_of_http(error))
            except (TimeoutError, StorageError):
                logger.warning("gateway: %s %s was not answered", request.method, request.path, exc_info=True)
                return _refusal(ErrorAnswer(ErrorCode.BUSY, "send it again", RETRY_SECONDS))
            except (ConnectionError, asyncio.CancelledError):
                raise
            except Exception:
                logger.exception("gateway: %s %s failed", request.method, request.path)
                return _refusal(ErrorAnswer(ErrorCode.INTERNAL, "a fault of the gateway", RETRY_SECONDS))
            finally:
                self.pressure.end(request[WHO])
        finally:
            if connection is not None:
                connection.ended()

    def _shown(self, request: web.Request) -> str:
        """Who is counted as one client, before it is known who asks: a certificate, or an address.

        What asks for no signature is counted by itself, since behind a proxy all come from one address.
        """
        connection = self.connections.of(request.transport)
        shown = None if connection is None else connection.fingerprint
        return shown or f"{request.remote} {_unsigned(request)}"

    def _is_to_sign(self, request: web.Request) -> bool:
        """Whether only a signature tells who asks."""
        return self._config.tls != "mutual" and not _unsigned(request)

    async def _identified(self, request: web.Request) -> Identified:
        """Who asks; the body that was signed is still to be read."""
        connection = self.connections.of(request.transport)
        fingerprint = None if connection is None else connection.fingerprint
        signed = SignedRequest.from_headers(request.headers)
        request[OCCASION] = signed.occasion(self._terms.federation_id, request.method, request.raw_path)
        if request.method in ("GET", "HEAD") and signed.body_digest != EMPTY_DIGEST:
            raise RefusedError(ErrorCode.MALFORMED, f"{request.method} has no body")
        asked = Asked(signed, request.method, request.raw_path, fingerprint)
        asking = self._admitting.ask(asked)
        found = await (asking if self._register.is_here else self._within(asking))
        if isinstance(found, ErrorAnswer):
            raise _refused(found)
        if self._is_to_sign(request):
            if wait := self.pressure.become(request[WHO], found.client_id, self._clock()):
                raise RefusedError(ErrorCode.TOO_MANY, "too many requests", wait)
            request[WHO] = found.client_id
        return Identified(found, signed.body_digest)

    async def _health(self, request: web.Request) -> web.StreamResponse:
        found = self.board.round
        state = "starting" if found is None else str(found.state)
        return web.json_response({"version": 1, "state": state})

    async def _round(self, request: web.Request) -> web.StreamResponse:
        asks = await self._identified(request)
        after, seconds = request.query.get("after"), request.query.get("wait_seconds", "0")
        if (after is not None and not _is_count(after)) or not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", seconds):
            raise RefusedError(ErrorCode.MALFORMED, "after is a whole number, wait_seconds a number")
        known = None if after is None else int(after)
        found = await self.board.wait(known, min(float(seconds), self._config.poll_seconds))
        if found is None:
            raise RefusedError(ErrorCode.BUSY, "no round has begun yet", RETRY_SECONDS)
        head = None
        if self._terms.noise is not None:
            head = await self._ask_driver(lambda: self._desk.site_head(asks.site.client_id))
        answer = self._terms.round_answer(found, len(self.board.model), known, head, self._clock())
        return _json(answer.to_json())

    async def _model(self, request: web.Request) -> web.StreamResponse:
        await self._identified(request)
        found, model, sha256 = self.board.round, memoryview(self.board.model), self.board.model_sha256
        if found is None or not sha256:
            raise RefusedError(ErrorCode.BUSY, "there is no model yet", RETRY_SECONDS)
        headers = {
            "ETag": f'"{sha256}"',
            "Accept-Ranges": "bytes",
            MODEL_VERSION: str(found.model_version),
            MODEL_ROUND: str(found.round_id),
        }
        if request.headers.get("If-None-Match") == f'"{sha256}"':
            return web.Response(status=304, headers=headers)
        span = _range(request.headers.get("Range"), len(model))
        if span is None:
            raise RefusedError(ErrorCode.WRONG_RANGE, f"the model has {len(model)} bytes")
        begin, end = span
        is_part = (
            "Range" in request.headers and request.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
        )
        if not is_part:
            begin, end = 0, len(model)
        else:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(model)}"
        response = web.StreamResponse(status=206 if is_part else 200, headers=headers)
        response.content_type, response.content_length = "application/octet-stream", end - begin
        await response.prepare(request)
        try:
            async with asyncio.timeout(body_deadline(self._config, end - begin)):
                for place in range(begin, end, PIECE_BYTES):
                    async with asyncio.timeout(self._config.body_seconds):
                        await response.write(model[place : min(end, place + PIECE_BYTES)])
                await response.write_eof()
        except TimeoutError:
            # An error's answer would be read as a part of the model.
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionError("the model was read too slowly") from None
        self._num_sent += end - begin
        return response

    async def _me(self, request: web.Request) -> web.StreamResponse:
        asks = await self._identified(request)
        return _json((await self._ask_driver(lambda: self._desk.me(asks.site))).to_json())

    async def _put(self, request: web.Request) -> web.StreamResponse:
        asks = await self._identified(request)
        key = _upload_key(request, asks.site.client_id)
        if not hmac.compare_digest(key.digest, asks.digest):
            raise RefusedError(ErrorCode.MALFORMED, "the path names another body than the one that is signed")
        if (known := await self._known(key)) is not None:
            return known
        async with self._body(request, self._most_bytes, None, 4 * self._terms.vector_dim) as body:
            if not is_named(body, key.digest):
                raise RefusedError(ErrorCode.MALFORMED, "the body is not what its digest says")
            return await self._judged(asks.site, key, body)

    async def _head(self, request: web.Request) -> web.StreamResponse:
        asks = await self._identified(request)
        key = _upload_key(request, asks.site.client_id)
        standing = await self._on_disk(lambda: self._uploads.standing(key))
        return web.Response(status=200, headers=_standing(standing))

    async def _patch(self, request: web.Request) -> web.StreamResponse:
        asks = await self._identified(request)
        key = _upload_key(request, asks.site.client_id)
        told, length = request.headers.get(UPLOAD_OFFSET, ""), request.headers.get(UPLOAD_LENGTH, "")
        if not (_is_count(told) and _is_count(length)):
            raise RefusedError(ErrorCode.MALFORMED, f"state {UPLOAD_OFFSET} and {UPLOAD_LENGTH}")
        offset, whole = int(told), int(length)
        if whole > self._most_bytes:
            raise self._too_big()
        if (known := await self._known(key)) is not None:
            return known
        async with self._body(request, RESUMABLE_BYTES, asks.digest) as part:
            standing = await self._on_disk(lambda: self._uploads.append(key, offset, part, whole))
            if standing is None:
                raise RefusedError(ErrorCode.TOO_MANY, "the disk for unfinished uploads is full", 10.0)
        if standing.offset != offset + len(part):
            return _refusal(
                ErrorAnswer(ErrorCode.WRONG_OFFSET, "the upload ends elsewhere"), _standing(standing)
            )
        if standing.offset < whole:
            return web.Response(status=204, headers=_standing(standing))
        return await self._whole(asks.site, key, whole, request[WHO])

    async def _whole(self, site: Enrolment, key: UploadKey, length: int, who: str) -> web.StreamResponse:
        """Have an upload judged of which all parts are here."""
        release = self.pressure.hold(who, length)
        if release is None:
            raise RefusedError(ErrorCode.TOO_MANY, "too many uploads at a time", RETRY_SECONDS)
        try:
            body = await self._on_disk(lambda: self._uploads.take(key))
            if body is None:
                raise RefusedError(ErrorCode.MALFORMED, "the upload is not what its digest says: begin again")
            response = await self._judged(site, key, body)
        finally:
            release()
        if response.status < 500:
            await self._on_disk(lambda: self._uploads.drop(key))
        return response

    async def _known(self, key: UploadKey) -> web.StreamResponse | None:
        """What an upload is answered by its round alone; None while the round is open."""
        found = self.board.round
        if found is None:
            raise RefusedError(ErrorCode.BUSY, "no round has begun yet", RETRY_SECONDS)
        if key.round_id == found.round_id:
            return None
        if key.round_id > found.round_id:
            raise RefusedError(ErrorCode.REFUSED, "future_round")
        answer = await self._ask(
            lambda: self._register.call(Register.standing, key.round_id, key.client_id, key.digest)
        )
        if answer is None:
            raise RefusedError(
                ErrorCode.ROUND_OVER, f"round {key.round_id} is over, {found.round_id} is open"
            )
        return _json(answer)

    async def _judged(self, site: Enrolment, key: UploadKey, body: bytes | memoryview) -> web.StreamResponse:
        header, row = read_update_body(body, self._terms.vector_dim)
        if header.client_id != site.client_id or header.round_id != key.round_id:
            raise RefusedError(ErrorCode.MALFORMED, "the update's header is of another client or round")
        _check_counts(sequence=header.sequence, num_examples=header.num_examples)
        _check_metrics(header.metrics)
        answer = await self._within(
            self._judging.ask(Upload(site, header, row, key.digest, update_name(body)))
        )
        if isinstance(answer, ErrorAnswer):
            return _refusal(answer)
        return _json(answer.answer, 201 if answer.is_new else 200)

    async def _evaluation(self, request: web.Request) -> web.StreamResponse:
        asks = await self._identified(request)
        given = request.match_info["round"]
        async with self._body(request, MOST_JSON_BYTES, asks.digest) as body:
            told = EvaluationRequest.from_json(bytes(body))
        _check_counts(num_examples=told.num_examples)
        _check_metrics(told.metrics)
        found = self.board.round
        if not _is_count(given) or found is None or int(given) != found.round_id:
            raise RefusedError(ErrorCode.ROUND_OVER, "this round is not open")
        said = Measured(asks.site.client_id, dict(told.metrics), told.num_examples)
        await self._ask(lambda: self._register.call(Register.note_evaluation, int(given), said))
        return web.Response(status=204)

    async def _enrol(self, request: web.Request) -> web.StreamResponse:
        async with self._body(request, MOST_JSON_BYTES, None) as body:
            request[OCCASION] = digest_of(body)
            asked = EnrolRequest.from_json(bytes(body))
        _check_counts(num_examples=asked.num_examples or 0)
        # Anybody may ask: who has no token does not get as far as the driver.
        invited = await self._ask(lambda: self._register.call(Register.invitation, asked))
        if isinstance(invited, ErrorAnswer):
            return _refusal(invited)
        answer = await self._ask_driver(lambda: self._desk.enrol(asked))
        return _refusal(answer) if isinstance(answer, ErrorAnswer) else _json(answer.to_json(), 201)

    async def _certificate(self, request: web.Request) -> web.StreamResponse:
        asks = await self._identified(request)
        async with self._body(request, MOST_JSON_BYTES, asks.digest) as body:
            asked = CertificateRequest.from_json(bytes(body))
        answer = await self._ask(lambda: self._register.call(Register.renew, asks.site.client_id, asked))
        return _refusal(answer) if isinstance(answer, ErrorAnswer) else _json(answer.to_json(), 201)

    async def _key(self, request: web.Request) -> web.StreamResponse:
        asks = await self._identified(request)
        async with self._body(request, MOST_JSON_BYTES, asks.digest) as body:
            asked = KeyRequest.from_json(bytes(body))
        answer = await self._ask_driver(lambda: self._desk.change_key(asks.site, asked))
        return web.Response(status=204) if answer is None else _refusal(answer)

    @asynccontextmanager
    async def _body(
        self, request: web.Request, most: int, digest: str | None, row_bytes: int = 0
    ) -> AsyncIterator[memoryview]:
        """A request's body, in memory that is counted while the block runs.

        Args:
            digest: That it must have, hexadecimal; None: it is judged by another.
            row_bytes: At its end, which are to lie aligned.
        """
        length = request.content_length
        if length is None:
            raise RefusedError(ErrorCode.MALFORMED, "state Content-Length")
        if length > most:
            raise self._too_big()
        release = self.pressure.hold(request[WHO], length)
        if release is None:
            raise RefusedError(ErrorCode.TOO_MANY, "too many uploads at a time", RETRY_SECONDS)
        try:
            hashed = None if digest is None else hashlib.sha256()
            body = await self._read(request, length, (row_bytes - length) % ALIGNED_BYTES, hashed)
            self._num_received += length
            if (
                hashed is not None
                and digest is not None
                and not hmac.compare_digest(hashed.hexdigest(), digest)
            ):
                raise RefusedError(ErrorCode.MALFORMED, "the body is not what its digest says")
            yield body
        finally:
            release()

    async def _read(
        self, request: web.Request, length: int, before: int, hashed: hashlib._Hash | None
    ) -> memoryview:
        """A body, hashed as it comes. Memory is reserved at once, and taken by the system as the bytes come.

        Args:
            before: Bytes that are left free before it.
        """
        body, config, end = np.empty(before + length, np.uint8), self._config, 0
        room = body[before:].data
        now = asyncio.get_running_loop().time
        last = now() + body_deadline(config, length)
        try:
            async with asyncio.timeout(None) as limit:
                while end < length:
                    piece = request.content.read_nowait(-1)
                    if not piece:
                        limit.reschedule(min(last, now() + config.body_seconds))
                        piece = await request.content.readany()
                    if not piece or end + len(piece) > length:
                        raise RefusedError(ErrorCode.MALFORMED, "the body ends elsewhere than it said")
                    room[end : end + len(piece)] = piece
                    if hashed is not None:
                        hashed.update(piece)
                    end += len(piece)
        except TimeoutError:
            raise RefusedError(ErrorCode.TIMED_OUT, "the body came too slowly", RETRY_SECONDS) from None
        body.setflags(write=False)
        return body[before:].data

    def _too_big(self) -> RefusedError:
        return RefusedError(ErrorCode.TOO_BIG, f"at most {self._most_bytes} bytes are taken")

    async def _within(self, answer: Awaitable[T]) -> T:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await answer

    async def _ask(self, question: Callable[[], T]) -> T:
        return await self._within(asyncio.get_running_loop().run_in_executor(self._asking, question))

    async def _ask_driver(self, question: Callable[[], T]) -> T:
        return await self._ask(lambda: self._on_driver(question))

    async def _on_disk(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)


def _unsigned(request: web.Request) -> str:
    """The path, if it asks for no signature of a site; "" if it does."""
    path = request.match_info.route.resource
    if path is None or path.canonical in UNSIGNED_PATHS or path.canonical.startswith(OPERATORS_PATHS):
        return "nothing" if path is None else path.canonical
    return ""


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def _refusal(answer: ErrorAnswer, headers: dict[str, str] | None = None) -> web.Response:
    headers = dict(headers or {})
    if answer.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(answer.retry_after_seconds)))
    return _json(answer.to_json(), answer.code.status, headers)


def _refused(answer: ErrorAnswer) -> RefusedError:
    error = RefusedError(answer.code, answer.message)
    error.answer = answer
    return error


def _of_http(error: web.HTTPException) -> ErrorAnswer:
    """Aiohttp's own refusals in our words."""
    codes = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.WRONG_METHOD, 413: ErrorCode.TOO_BIG}
    return ErrorAnswer(codes.get(error.status, ErrorCode.MALFORMED), error.reason)


def _upload_key(request: web.Request, client_id: str) -> UploadKey:
    given, digest = request.match_info["round"], request.match_info["digest"]
    if not (_is_count(given) and is_digest(digest)):
        raise RefusedError(ErrorCode.MALFORMED, "the path is /v1/updates/ROUND/SHA256")
    return UploadKey(client_id, int(given), digest)


def _standing(standing: Standing) -> dict[str, str]:
    return {UPLOAD_OFFSET: str(standing.offset), UPLOAD_LENGTH: str(standing.length)}


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count > MOST_COUNT:
            raise RefusedError(ErrorCode.MALFORMED, f"{name}: at most {MOST_COUNT}")


def _check_metrics(metrics: Mapping[str, float]) -> None:
    """That the server can hold what a site measured: there it is too late to refuse it."""
    try:
        checked_metrics(metrics)
    except UsageError as error:
        raise RefusedError(ErrorCode.MALFORMED, str(error)) from None


def _is_count(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,18}", text) is not None


def _range(given: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last of a Range header with one range; None if there is none such.

    >>> _range("bytes=2-3", 10), _range("bytes=-4", 10), _range("bytes=7-", 10), _range("bytes=10-", 10)
    ((2, 4), (6, 10), (7, 10), None)
    """
    if given is None:
        return 0, size
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", given)
    if found is None or found[0] == "bytes=-":
        return None
    first, last = found[1], found[2]
    if not first:
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(size, int(last) + 1 if last else size)
    return (begin, end) if begin < end else None


async def _no_interim(request: web.Request) -> None:
    """Answer ``Expect: 100-continue`` with nothing: the standard library's client takes 1xx for final."""


class Terse(RequestHandler):
    """HTTP/1.1, whose own refusals tell and log nothing of who made the server."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP is anybody's to send: it is not worth a line in the log."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun")
        if status >= 500:
            logger.error("gateway: a request failed", exc_info=exc)
        answer = ErrorAnswer(
            ErrorCode.MALFORMED if status < 500 else ErrorCode.INTERNAL, "this is no HTTP/1.1"
        )
        response = _refusal(answer)
        response.headers["Server"] = SERVER_NAME
        response.force_close()
        return response


async def _nameless(request: web.BaseRequest, response: web.StreamResponse) -> None:
    response.headers["Server"] = SERVER_NAME
    response.headers.setdefault("Cache-Control", "no-store")
