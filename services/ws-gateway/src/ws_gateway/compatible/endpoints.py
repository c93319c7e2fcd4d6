"""The routes under /v1. Each request is authenticated, becomes one call of llm-gateway in the caller's name, and its
answer goes back in the form that it was asked in. Plain ASGI, because every layer here is paid for by every call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import orjson
from servicekit.errors import NotFound, ServiceError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from synod.common.ids import new_id
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from ws_gateway.callers import Caller, require_credential
from ws_gateway.compatible import caching, failures, models, openai_embeddings, openai_responses
from ws_gateway.compatible.anthropic_messages import AnthropicMessages, parse_countable
from ws_gateway.compatible.dialect import Asked, Dialect
from ws_gateway.compatible.openai_chat import OpenAiChat
from ws_gateway.compatible.openai_responses import OpenAiResponses
from ws_gateway.dialogue import Backstage
from ws_gateway.rest.problems import defect, known

PREFIX: Final = "/v1/"
MODELS: Final = "/v1/models"
IDEMPOTENCY_KEY: Final = "idempotency-key"
ANTHROPIC_VERSION: Final = "anthropic-version"
_JSON: Final = b"application/json"
_EVENTS: Final = b"text/event-stream; charset=utf-8"
DIALECTS: Final[Mapping[str, Dialect]] = {
    "/v1/chat/completions": OpenAiChat(),
    "/v1/responses": OpenAiResponses(),
    "/v1/messages": AnthropicMessages(),
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One HTTP request and the way back. `request_id` names the call at the gateway and in the answer's headers."""

    path: str
    method: str
    headers: Headers
    receive: Receive
    send: Send
    request_id: str
    dialect: Dialect

    @classmethod
    def of(cls, scope: Scope, receive: Receive, send: Send) -> "Exchange":
        headers, path = Headers(scope=scope), scope["path"]
        request_id = headers.get(IDEMPOTENCY_KEY) or new_id("req")
        spoken = AnthropicMessages() if ANTHROPIC_VERSION in headers else OpenAiChat()
        return cls(path, scope["method"], headers, receive, send, request_id, DIALECTS.get(path, spoken))

    async def body(self) -> bytes:
        chunks: list[bytes] = []
        more = True
        while more:
            message = await self.receive()
            chunks.append(message.get("body", b""))
            more = bool(message.get("more_body", False))
        return b"".join(chunks)

    async def answer(self, body: Mapping[str, object], status: int = 200, **more: str) -> None:
        data = orjson.dumps(body)
        await self.begin(_JSON, status, **more, **{"content-length": str(len(data))})
        await self.send({"type": "http.response.body", "body": data})

    async def begin(self, media_type: bytes, status: int = 200, **more: str) -> None:
        """Each SDK looks for the request's id under a name of its own."""
        request_id = self.request_id.encode()
        headers = [
            (b"content-type", media_type),
            (b"cache-control", b"no-store"),
            (b"x-request-id", request_id),
            (b"request-id", request_id),
            *((name.encode(), value.encode()) for name, value in more.items()),
        ]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, data: bytes, *, more: bool = True) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def gone(self) -> None:
        """Returns when the client has left."""
        while (await self.receive())["type"] != "http.disconnect":
            continue


class Compatible:
    """Answers what is under /v1 and passes on the rest."""

    def __init__(self, app: ASGIApp, back: Backstage) -> None:
        self._app = app
        self._back = back
        self._stub = back.services.models
        self._timeout_s = back.limits.model_call_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        exchange = Exchange.of(scope, receive, send)
        try:
            await self._endpoint(exchange)(exchange)
        except Exception as error:  # noqa: BLE001 - the edge of the process: told to the client
            await self._refuse(exchange, known(error) or defect(error, self._back.log_))

    def _endpoint(self, exchange: Exchange) -> Callable[[Exchange], Awaitable[None]]:
        match exchange.method, exchange.path:
            case "POST", path if path in DIALECTS:
                return self._generate
            case "POST", "/v1/embeddings":
                return self._embed
            case "POST", "/v1/messages/count_tokens":
                return self._count
            case "POST", "/v1/responses/input_tokens":
                return self._count_input
            case "GET", path if path == MODELS or path.startswith(f"{MODELS}/"):
                return self._models
            case _:
                return _unknown

    async def _generate(self, exchange: Exchange) -> None:
        caller = await self._caller(exchange)
        asked = exchange.dialect.parse(
            await exchange.body(), exchange.request_id, int(self._back.clock.now().timestamp())
        )
        asked.request.attribution.CopyFrom(_attribution(exchange.headers, caller))
        if policy := caching.from_header(exchange.headers):
            asked.request.cache.CopyFrom(policy)
        if asked.stream:
            await self._stream(exchange, asked, caller)
            return
        answer = await self._stub.Generate(asked.request, metadata=_metadata(caller), timeout=self._timeout_s)
        await exchange.answer(exchange.dialect.whole(answer, asked), 200, **caching.told(answer.cache))

    async def _stream(self, exchange: Exchange, asked: Asked, caller: Caller) -> None:
        """Nothing is sent before the first event, so that a refusal has its own status. A client who leaves ends it."""
        events = self._stub.Stream(
            pb.StreamRequest(request=asked.request), metadata=_metadata(caller), timeout=self._timeout_s
        )
        gone = asyncio.create_task(exchange.gone())
        gone.add_done_callback(lambda _: events.cancel())
        writer, begun = exchange.dialect.writer(asked), False
        try:
            async for event in events:
                if not begun:
                    begun = True
                    await exchange.begin(_EVENTS, 200, **caching.told(caching.used(event)))
                await exchange.piece(writer.write(event))
            await exchange.piece(b"", more=False)
        except asyncio.CancelledError:
            if not gone.done():
                raise
        except Exception as error:
            if not begun:
                raise
            await exchange.piece(writer.write(_broken(known(error) or defect(error, self._back.log_))), more=False)
        finally:
            gone.cancel()

    async def _embed(self, exchange: Exchange) -> None:
        caller = await self._caller(exchange)
        asked = openai_embeddings.parse(await exchange.body(), exchange.request_id)
        asked.request.attribution.CopyFrom(_attribution(exchange.headers, caller))
        if policy := caching.from_header(exchange.headers):
            asked.request.cache.CopyFrom(policy)
        found = await self._stub.Embed(asked.request, metadata=_metadata(caller), timeout=self._timeout_s)
        await exchange.answer(openai_embeddings.answer(found, asked), 200, **caching.told(found.cache))

    async def _count(self, exchange: Exchange) -> None:
        caller = await self._caller(exchange)
        answer = await self._stub.CountTokens(parse_countable(await exchange.body()), metadata=_metadata(caller))
        await exchange.answer({"input_tokens": answer.input_tokens})

    async def _count_input(self, exchange: Exchange) -> None:
        caller = await self._caller(exchange)
        asked = openai_responses.parse_countable(await exchange.body())
        answer = await self._stub.CountTokens(asked, metadata=_metadata(caller))
        await exchange.answer({"object": "response.input_tokens", "input_tokens": answer.input_tokens})

    async def _models(self, exchange: Exchange) -> None:
        caller = await self._caller(exchange)
        found = (await self._stub.ListModels(pb.ListModelsRequest(), metadata=_metadata(caller))).models
        anthropic = ANTHROPIC_VERSION in exchange.headers
        name = exchange.path.removeprefix(MODELS).removeprefix("/")
        answer = models.one(name, found, anthropic=anthropic) if name else models.listed(found, anthropic=anthropic)
        await exchange.answer(answer)

    async def _caller(self, exchange: Exchange) -> Caller:
        return await self._back.callers.identify(require_credential(exchange.headers))

    async def _refuse(self, exchange: Exchange, error: ServiceError) -> None:
        status, body = exchange.dialect.failure(error)
        await exchange.answer(body, status, **failures.headers(error))


async def _unknown(exchange: Exchange) -> None:
    raise NotFound(
        "path", f"{exchange.method} {exchange.path}", remedy="see the README of ws-gateway for what there is"
    )


def _attribution(headers: Mapping[str, str], caller: Caller) -> ledger_pb.Attribution:
    """Whose cost it is: the caller's, and what the headers name besides."""
    principal = caller.principal
    return ledger_pb.Attribution(
        user_id=principal.id,
        agent=headers.get("synod-agent", ""),
        project_id=headers.get("synod-project", ""),
        conversation_id=headers.get("synod-conversation", ""),
    )


def _metadata(caller: Caller) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {caller.token}"),)


def _broken(error: ServiceError) -> pb.StreamEvent:
    broken = pb.StreamError(reason=error.reason, message=error.message, retryable=error.retryable)
    return pb.StreamEvent(error=broken)
