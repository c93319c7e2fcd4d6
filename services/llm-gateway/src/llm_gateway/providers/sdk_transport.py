"""The way to a provider through the SDK of its maker, for clouds whose addresses and credentials are an art of their own.

The SDK builds the address, signs the request and renews what has to be renewed; it repeats nothing and traces nothing.
What is said stays the dialect's matter, and the answer is read as raw bytes by the same parsers as everywhere, so that a
provider behind an SDK keeps the whole contract.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import httpx2
from servicekit import numbers

from llm_gateway.errors import DeadlineExceeded, ProviderTimedOut, ProviderUnreachable
from llm_gateway.providers import event_stream
from llm_gateway.providers.bedrock import BedrockStream
from llm_gateway.providers.coding import Unreadable
from llm_gateway.providers.transport import Body, HttpReply, TransportLimits, never_sent

if TYPE_CHECKING:
    from anthropic import AsyncAnthropicBedrock, AsyncAnthropicVertex
    from openai import AsyncOpenAI
    from openai._types import RequestOptions

    SdkClient: TypeAlias = AsyncOpenAI | AsyncAnthropicBedrock | AsyncAnthropicVertex

_RAW: Final = {"X-Stainless-Raw-Response": "stream"}
"""Keeps either SDK from reading the response."""


class SdkTransport:
    """Implements Poster. `sdk` is the module whose errors the client raises; the client's owner closes it."""

    def __init__(self, client: SdkClient, sdk: ModuleType, limits: TransportLimits | None = None) -> None:
        # Both SDKs come from one generator, and what is used of them is the same.
        self._client = cast("AsyncOpenAI", client)
        self._sdk = sdk
        self._limits = limits or TransportLimits()
        self._options: RequestOptions = {
            "headers": _RAW,
            "timeout": httpx2.Timeout(None, connect=self._limits.connect_s),
            # As `Transport`: a request goes where its key is for, or nowhere. Some of the keys httpx2 would take along.
            "follow_redirects": False,
        }

    @asynccontextmanager
    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> AsyncIterator[HttpReply]:
        """`url` is a path, to which the SDK knows the way; it has the headers too."""
        async with self._answer("post", url, numbers.loads(body), deadline) as reply:
            yield reply

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str], deadline: float) -> AsyncIterator[HttpReply]:
        async with self._answer("get", url, None, deadline) as reply:
            yield reply

    @asynccontextmanager
    async def _answer(self, method: str, path: str, body: object, deadline: float) -> AsyncIterator[HttpReply]:
        response = await self._send(method, path, body, deadline)
        try:
            yield _reply(response, deadline, self._limits)
        finally:
            await response.aclose()

    async def _send(self, method: str, path: str, body: object, deadline: float) -> httpx2.Response:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._ask(method, path, body)
        except self._sdk.APIStatusError as error:
            answered: httpx2.Response = error.response
            return answered
        except self._sdk.APITimeoutError:
            waited = f"no connection to {path} within {self._limits.connect_s} s"
            raise never_sent(ProviderTimedOut(waited)) from None
        except self._sdk.APIConnectionError as error:
            unreachable = ProviderUnreachable(f"{path}: {error.__cause__ or error}")
            raise (
                never_sent(unreachable) if isinstance(error.__cause__, httpx2.ConnectError) else unreachable
            ) from None
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the provider answered") from None

    async def _ask(self, method: str, path: str, body: object) -> httpx2.Response:
        if method == "get":
            return await self._client.get(path, cast_to=httpx2.Response, options=self._options)
        return await self._client.post(path, cast_to=httpx2.Response, body=body, options=self._options)


def _reply(response: httpx2.Response, deadline: float, limits: TransportLimits) -> HttpReply:
    """The stream of Bedrock is read as server-sent events, and says that it is."""
    body: Body = _SdkBody(response)
    if (coding := response.headers.get("content-encoding", "")) and not _understood(coding, response.request):
        body = Unreadable(body, coding)
    if not response.headers.get("content-type", "").startswith(event_stream.CONTENT_TYPE):
        return HttpReply(response.status_code, response.headers, body, deadline, limits)
    headers = httpx2.Headers({**response.headers, "content-type": "text/event-stream"})
    return HttpReply(response.status_code, headers, _BedrockBody(body), deadline, limits)


def _understood(coding: str, request: httpx2.Request) -> bool:
    """Whether httpx2 unpacks it: what it does not know it hands on as it came. What it knows it asks for."""
    known = {name.strip() for name in request.headers.get("accept-encoding", "").split(",")}
    return all(name.strip().lower() in known | {"identity"} for name in coding.split(","))


class _SdkBody:
    """Implements Body over a response of httpx2."""

    def __init__(self, response: httpx2.Response) -> None:
        self._chunks = response.aiter_bytes()

    async def read(self, until: float) -> bytes:
        try:
            async with asyncio.timeout_at(until):
                async for chunk in self._chunks:
                    if chunk:
                        return chunk
        except httpx2.HTTPError as error:
            raise ConnectionError(str(error) or type(error).__name__) from error
        return b""

    def close(self) -> None:
        """Closed by `SdkTransport`, which waits for it."""


class _BedrockBody:
    """The stream of Bedrock as server-sent events."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._stream = BedrockStream()

    async def read(self, until: float) -> bytes:
        while chunk := await self._body.read(until):
            if sent := self._stream.feed(chunk):
                return sent
        return b""

    def close(self) -> None:
        self._body.close()
