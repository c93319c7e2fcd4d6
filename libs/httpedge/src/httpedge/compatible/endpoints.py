"""The routes under /v1. Each request is authenticated, becomes one call of a model in the caller's name, and its
answer goes back in the form that it was asked in. Written to the connection itself, because every layer here is paid for
by every call.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from opentelemetry.trace import Span, SpanKind
from servicekit import numbers
from servicekit.clock import Clock
from servicekit.errors import InvalidArgument, NotFound, ServiceError, Unavailable
from servicekit.health import Health
from servicekit.meters import Counter
from servicekit.telemetry import TRACEPARENT, Logger, Tracing
from synod.common.ids import new_id
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge import http, problems
from httpedge.callers import Caller, Callers, require_credential
from httpedge.compatible import caching, failures, left_out, models, openai_embeddings, openai_responses
from httpedge.compatible.anthropic_messages import AnthropicMessages, parse_countable
from httpedge.compatible.dialect import Asked, CountAsked, Dialect
from httpedge.compatible.openai_chat import OpenAiChat
from httpedge.compatible.openai_responses import OpenAiResponses
from httpedge.mistakes import as_sent, cut, in_place, wrong
from httpedge.model_calls import ModelCalls
from httpedge.security import SECURITY
from httpedge.tags import to_tags

PREFIX: Final = "/v1/"
MODELS: Final = "/v1/models"
IDEMPOTENCY_KEY: Final = "idempotency-key"
KEY_CHARACTERS_MAX: Final = 128
"""It names the call at llm-gateway, whose ids are no longer."""
_KEY: Final = re.compile("[!-~]+")
"""It goes back in headers and ids, where a space or a tab would be lost or read as an end."""
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
"""No name has one: in a log or a table it would be read as something else, or as nothing."""
INLINE_BYTES_MAX: Final = 64 * 1024
"""A larger body is read beside the loop, which goes on meanwhile; for a smaller one that would take longer than reading it."""
ANTHROPIC_VERSION: Final = "anthropic-version"
PATIENCE: Final = ("x-stainless-read-timeout", "x-stainless-timeout")
"""Where SDKs say after how many seconds of silence they give up; the second is that of other languages than Python."""
_ENDS: Final = ("completed", "error")
"""The last event of every stream is one of these."""
_COMMON: Final = http.lines({"cache-control": "no-store", **SECURITY})
_JSON: Final = http.lines({"content-type": "application/json"}) + _COMMON
_EVENTS: Final = http.lines({"content-type": "text/event-stream; charset=utf-8"}) + _COMMON
T = TypeVar("T")
DIALECTS: Final[Mapping[str, Dialect]] = {
    "/v1/chat/completions": OpenAiChat(),
    "/v1/responses": OpenAiResponses(),
    "/v1/messages": AnthropicMessages(),
}
_OPENAI: Final = OpenAiChat()
_ANTHROPIC: Final = AnthropicMessages()


@dataclass(frozen=True, slots=True)
class Exchange:
    """One HTTP request and the way back. `request_id` names the call at the gateway and in the answer's headers.

    `told` is called with the status as an answer begins.
    """

    wire: http.Exchange
    request_id: str
    dialect: Dialect
    told: Callable[[http.Exchange, int], None]

    @classmethod
    def of(cls, wire: http.Exchange, told: Callable[[http.Exchange, int], None]) -> "Exchange":
        headers = wire.headers
        spoken = _ANTHROPIC if ANTHROPIC_VERSION in headers else _OPENAI
        return cls(wire, headers.get(IDEMPOTENCY_KEY) or new_id("req"), DIALECTS.get(wire.path, spoken), told)

    @property
    def headers(self) -> Mapping[str, str]:
        return self.wire.headers

    async def answer(self, body: Mapping[str, object], status: int = 200, **more: str) -> None:
        data = numbers.dumps(body)
        self.told(self.wire, status)
        await self.wire.whole(status, _JSON + self._named(more), data)

    async def begin(self, **more: str) -> None:
        self.told(self.wire, 200)
        await self.wire.begin(200, _EVENTS + self._named(more))

    def _named(self, more: dict[str, str]) -> bytes:
        """Each SDK looks for the request's id under a name of its own."""
        return http.lines({"x-request-id": self.request_id, "request-id": self.request_id, **more})


@dataclass(frozen=True, slots=True)
class CompatibleLimits:
    """The largest body in bytes, and how long a call may take in seconds; the SDKs wait for 600."""

    body_bytes_max: int
    call_s: float


@dataclass(frozen=True, slots=True)
class Stage:
    """What the endpoints stand on. `requests` counts answers by method and status."""

    service: str
    callers: Callers
    models: ModelCalls
    limits: CompatibleLimits
    health: Health
    tracing: Tracing
    log: Logger
    clock: Clock
    requests: Counter


class Compatible:
    """Answers what is under /v1. Each answer is a span, and counted."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._models = stage.models
        self._timeout_s = stage.limits.call_s

    async def __call__(self, wire: http.Exchange) -> None:
        span = self._stage.tracing.start(wire.method, SpanKind.SERVER, wire.headers.get(TRACEPARENT, ""))
        span.set_attribute("http.request.method", wire.method)
        exchange = Exchange.of(wire, partial(self._told, span))
        try:
            await self._answer(exchange)
        except http.BodyTooLarge:
            await wire.drain()
            wire.keep_alive = False
            await self._refuse(exchange, problems.TooLarge(self._stage.limits.body_bytes_max))
        finally:
            span.end()

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self._endpoint(exchange)(exchange)
        except Exception as error:  # noqa: BLE001 - the edge of the process: told to the client
            await self._refuse(exchange, self._refusal(error))

    async def _refuse(self, exchange: Exchange, error: ServiceError) -> None:
        status, body = exchange.dialect.failure(as_sent(error) if isinstance(error, InvalidArgument) else error)
        await exchange.answer(body, status, **failures.headers(error))

    def _told(self, span: Span, wire: http.Exchange, status: int) -> None:
        self._stage.requests.labels(wire.method, str(status)).inc()
        span.set_attribute("http.response.status_code", status)
        if self._stage.health.phase == "stopping":
            # A request that came by a connection as it is closed would be lost.
            wire.keep_alive = False

    def _endpoint(self, exchange: Exchange) -> Callable[[Exchange], Awaitable[None]]:
        match exchange.wire.method, exchange.wire.path:
            case "POST", path if path in DIALECTS:
                return self._generate
            case "POST", "/v1/embeddings":
                return self._embed
            case "POST", "/v1/messages/count_tokens":
                return self._count
            case "POST", "/v1/responses/input_tokens":
                return self._count_input
            case "GET", path if path == MODELS or path.startswith(f"{MODELS}/"):
                return self._list_models
            case _:
                return _unknown

    async def _generate(self, exchange: Exchange) -> None:
        caller = await self._caller(exchange)
        _require_key(exchange)
        created = int(self._stage.clock.now().timestamp())
        parse = partial(exchange.dialect.parse, request_id=exchange.request_id, created=created)
        asked = await self._read(exchange, parse)
        asked.request.attribution.CopyFrom(_attribution(exchange.headers, caller))
        if policy := caching.from_header(exchange.headers):
            asked.request.cache.CopyFrom(policy)
        _end_when_gone(exchange)
        try:
            await (self._stream if asked.stream else self._whole)(exchange, asked, caller)
        except InvalidArgument as error:
            raise in_place(error, asked.places) from None

    async def _whole(self, exchange: Exchange, asked: Asked, caller: Caller) -> None:
        answer = await self._models.generate(asked.request, caller, self._patience_s(exchange))
        more = caching.told(answer.cache) | left_out.told(answer.warnings)
        await exchange.answer(exchange.dialect.whole(answer, asked), 200, **more)

    async def _stream(self, exchange: Exchange, asked: Asked, caller: Caller) -> None:
        """Nothing is sent before the first event, so that a refusal has its own status. A client who leaves ends it."""
        writer, begun = exchange.dialect.writer(asked), False
        event: pb.StreamEvent | None = None
        try:
            async with aclosing(self._models.stream(asked.request, caller, self._timeout_s)) as events:
                async for event in events:
                    if not begun:
                        begun = True
                        await exchange.begin(
                            **caching.told(caching.used(event)), **left_out.told(left_out.named(event))
                        )
                    await exchange.wire.piece(writer.write(event))
            if event is None or event.WhichOneof("event") not in _ENDS:
                raise Unavailable("llm-gateway ended the stream before its answer was whole")
        except Exception as error:
            if not begun:
                raise
            await exchange.wire.piece(writer.write(_broken(self._refusal(error))))
        await exchange.wire.end()

    async def _embed(self, exchange: Exchange) -> None:
        caller = await self._caller(exchange)
        _require_key(exchange)
        asked = await self._read(exchange, partial(openai_embeddings.parse, request_id=exchange.request_id))
        asked.request.attribution.CopyFrom(_attribution(exchange.headers, caller))
        if policy := caching.from_header(exchange.headers):
            asked.request.cache.CopyFrom(policy)
        _end_when_gone(exchange)
        found = await self._models.embed(asked.request, caller, self._patience_s(exchange))
        await exchange.answer(openai_embeddings.answer(found, asked), 200, **caching.told(found.cache))

    async def _count(self, exchange: Exchange) -> None:
        await exchange.answer({"input_tokens": await self._counted(exchange, parse_countable)})

    async def _count_input(self, exchange: Exchange) -> None:
        counted = await self._counted(exchange, openai_responses.parse_countable)
        await exchange.answer({"object": "response.input_tokens", "input_tokens": counted})

    async def _counted(self, exchange: Exchange, parse: Callable[[bytes], CountAsked]) -> int:
        caller = await self._caller(exchange)
        asked = await self._read(exchange, parse)
        try:
            answer = await self._models.count_tokens(asked.request, caller)
        except InvalidArgument as error:
            raise in_place(error, asked.places) from None
        return answer.input_tokens

    async def _list_models(self, exchange: Exchange) -> None:
        found = await self._models.models(await self._caller(exchange))
        anthropic = ANTHROPIC_VERSION in exchange.headers
        name = exchange.wire.path.removeprefix(MODELS).removeprefix("/")
        answer = models.one(name, found, anthropic=anthropic) if name else models.listed(found, anthropic=anthropic)
        await exchange.answer(answer)

    def _patience_s(self, exchange: Exchange) -> float:
        """How long a whole answer is of use to the client, who hears nothing before it: a call that would wait longer for
        room within a rate limit is refused at once, with the time to come back.
        """
        headers = exchange.headers
        told = next((headers[name] for name in PATIENCE if name in headers), "")
        return min(self._timeout_s, _seconds(told) or self._timeout_s)

    async def _caller(self, exchange: Exchange) -> Caller:
        return await self._stage.callers.identify(require_credential(exchange.headers))

    def _refusal(self, error: Exception) -> ServiceError:
        """What is told to the client: what a service refused, or that nobody expected this."""
        return (
            error if isinstance(error, ServiceError) else problems.defect(error, self._stage.log, self._stage.service)
        )

    async def _read(self, exchange: Exchange, parse: Callable[[bytes], T]) -> T:
        body = await exchange.wire.read(self._stage.limits.body_bytes_max)
        return parse(body) if len(body) <= INLINE_BYTES_MAX else await asyncio.to_thread(parse, body)


def _require_key(exchange: Exchange) -> None:
    """Raises InvalidArgument in the caller's words: at llm-gateway the key is the id of a request."""
    key = exchange.request_id
    if len(key) > KEY_CHARACTERS_MAX:
        raise wrong(IDEMPOTENCY_KEY, key, f"must have at most {KEY_CHARACTERS_MAX} characters, not {len(key)}")
    if not _KEY.fullmatch(key):
        raise wrong(IDEMPOTENCY_KEY, key, "must be of visible ASCII characters, without spaces")


def _end_when_gone(exchange: Exchange) -> None:
    """A client who leaves ends the task that answers, and with it the call that it waits for."""
    task = asyncio.current_task()
    assert task is not None, "an exchange is answered by a task of its own"
    exchange.wire.when_gone(task.cancel)


def _seconds(text: str) -> float | None:
    """None for what says no time: SDKs write "None" and "NOT_GIVEN" too."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if seconds > 0 else None


async def _unknown(exchange: Exchange) -> None:
    raise NotFound(
        "path",
        cut(f"{exchange.wire.method} {exchange.wire.path}"),
        remedy="see the README of httpedge for what there is",
    )


def _attribution(headers: Mapping[str, str], caller: Caller) -> ledger_pb.Attribution:
    """Whose cost it is: the caller's, and what the headers name besides."""
    words = _text_of(headers, "synod-tags").split(",")
    return ledger_pb.Attribution(
        user_id=caller.principal.id,
        agent=_name(headers, "synod-agent"),
        project_id=_name(headers, "synod-project"),
        conversation_id=_name(headers, "synod-conversation"),
        tags=to_tags("synod-tags", [_without_controls("synod-tags", word.strip(" \t")) for word in words]),
    )


def _name(headers: Mapping[str, str], header: str) -> str:
    return _without_controls(header, _text_of(headers, header))


def _text_of(headers: Mapping[str, str], header: str) -> str:
    """The text of a header, which HTTP reads as Latin-1 and most clients write in UTF-8 (RFC 9110, section 5.5)."""
    value = headers.get(header, "")
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _without_controls(header: str, value: str) -> str:
    """Raises InvalidArgument."""
    if not value.isprintable() and (found := _CONTROL.search(value)):
        raise wrong(header, value, f"has the control character U+{ord(found[0]):04X}, which no name may have")
    return value


def _broken(error: ServiceError) -> pb.StreamEvent:
    broken = pb.StreamError(reason=error.reason, message=error.message, retryable=error.retryable)
    return pb.StreamEvent(error=broken)
