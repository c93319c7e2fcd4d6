"""The adapter: a Provider over HTTP, for any dialect."""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from typing import TypeVar

from llm_gateway.domain import Completed, ModelRequest, ModelResponse, StreamPart, Warned, is_content
from llm_gateway.errors import MalformedResponse, ProviderError, RequestRejected, StreamInterrupted
from llm_gateway.providers.dialect import Assembler, Dialect
from llm_gateway.providers.failures import retry_after_s
from llm_gateway.providers.profile import Adapted, CapabilityProfile, adapt, profile_of
from llm_gateway.providers.quota import Quota, quotas
from llm_gateway.providers.soundness import require_sound, require_sound_answer
from llm_gateway.providers.sse import SseEvent, SseParser
from llm_gateway.providers.transport import HttpReply, Poster

T = TypeVar("T")
QuotaObserver = Callable[[str, tuple[Quota, ...]], None]
"""Told the model that was asked, and its limits."""
_SHAPE_ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a provider is and how to speak to it. `profiles` holds families that differ, by how their names begin."""

    name: str
    base_url: str
    api_key: str = field(repr=False)
    profile: CapabilityProfile
    profiles: Mapping[str, CapabilityProfile] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def profile_of(self, model: str) -> CapabilityProfile:
        return profile_of(self.profiles, self.profile, model)


class HttpProvider:
    """Implements Provider. It keeps no state between calls; `now` gives aware UTC times."""

    def __init__(
        self,
        endpoint: Endpoint,
        dialect: Dialect,
        transport: Poster,
        now: Callable[[], datetime],
        observe: QuotaObserver | None = None,
    ) -> None:
        self._observe = observe
        self._endpoint = endpoint
        self._dialect = dialect
        self._transport = transport
        self._now = now
        self._base_url = endpoint.base_url.rstrip("/")
        self._headers = {
            "content-type": "application/json",
            **dialect.headers(endpoint.api_key),
            **endpoint.headers,
        }

    @property
    def name(self) -> str:
        return self._endpoint.name

    def with_profiles(self, profiles: Mapping[str, CapabilityProfile]) -> "HttpProvider":
        """The same provider, of which some models take other parameters."""
        endpoint = replace(self._endpoint, profiles={**self._endpoint.profiles, **profiles})
        return HttpProvider(endpoint, self._dialect, self._transport, self._now, self._observe)

    def observed_by(self, observe: QuotaObserver) -> "HttpProvider":
        """The same provider, that tells what each answer's headers say about the limits of the key."""
        return HttpProvider(self._endpoint, self._dialect, self._transport, self._now, observe)

    async def generate(self, request: ModelRequest, deadline: float) -> ModelResponse:
        try:
            adapted, body = self._encoded(request, stream=False)
            async with self._transport.post(self._url(request, stream=False), self._headers, body, deadline) as reply:
                self._tell_quotas(request.model, reply)
                if reply.status != 200:
                    raise self._failure(reply, await reply.refusal())
                answer = await reply.body()
            return _with_warnings(self._decoded(answer), adapted)
        except ProviderError as error:
            error.provider = self.name
            raise

    async def check(self, deadline: float) -> None:
        try:
            url = self._base_url + self._dialect.models_path()
            async with self._transport.get(url, self._headers, deadline) as reply:
                if reply.status != 200:
                    raise self._failure(reply, await reply.refusal())
                await reply.body()
        except ProviderError as error:
            error.provider = self.name
            raise

    async def count_tokens(self, request: ModelRequest, deadline: float) -> int | None:
        path = self._dialect.count_path(request.model)
        if path is None:
            return None
        try:
            _, body = self._written(request, self._dialect.encode_count)
            async with self._transport.post(self._base_url + path, self._headers, body, deadline) as reply:
                if reply.status != 200:
                    raise self._failure(reply, await reply.refusal())
                answer = await reply.body()
            return readable(self._dialect.decode_count, answer)
        except ProviderError as error:
            error.provider = self.name
            raise

    async def stream(self, request: ModelRequest, deadline: float) -> AsyncGenerator[StreamPart, None]:
        delivered = False
        try:
            adapted, body = self._encoded(request, stream=True)
            async with self._transport.post(self._url(request, stream=True), self._headers, body, deadline) as reply:
                self._tell_quotas(request.model, reply)
                await self._check_is_stream(reply)
                if adapted.warnings:
                    yield Warned(adapted.warnings)
                parser, assembler = SseParser(), self._dialect.assembler()
                while chunk := await reply.read():
                    for part in _assembled(parser, assembler, chunk):
                        delivered = delivered or is_content(part)
                        if isinstance(part, Completed):
                            yield Completed(_with_warnings(part.response, adapted))
                            await reply.drain()
                            return
                        yield part
            raise StreamInterrupted("the stream ended without its terminal event")
        except ProviderError as error:
            error.provider = self.name
            error.content_delivered = delivered
            raise

    def _tell_quotas(self, model: str, reply: HttpReply) -> None:
        if self._observe is not None and (told := quotas(reply.headers, self._now())):
            self._observe(model, told)

    def _url(self, request: ModelRequest, *, stream: bool) -> str:
        return self._base_url + self._dialect.path(request.model, stream=stream)

    def _encoded(self, request: ModelRequest, *, stream: bool) -> tuple[Adapted, bytes]:
        return self._written(request, lambda adapted: self._dialect.encode(adapted, stream=stream))

    def _written(self, request: ModelRequest, encode: Callable[[ModelRequest], bytes]) -> tuple[Adapted, bytes]:
        """The request as this provider takes it, and its body. Whatever forbids it, nothing was sent."""
        try:
            adapted = adapt(request, self._endpoint.profile_of(request.model), self._dialect.name)
            return adapted, encode(adapted.request)
        except ProviderError as error:
            error.dispatched = False
            raise
        except _SHAPE_ERRORS as error:
            rejected = RequestRejected(f"the request cannot be written as {self._dialect.name}: {error}")
            rejected.dispatched = False
            raise rejected from error

    async def _check_is_stream(self, reply: HttpReply) -> None:
        """What was asked for as a stream may be answered by one body: an error, or a server that cannot stream."""
        if reply.status != 200:
            raise self._failure(reply, await reply.refusal())
        if "text/event-stream" not in reply.headers.get("content-type", ""):
            self._decoded(await reply.body())
            raise MalformedResponse("a stream was asked for and a whole answer came")

    def _decoded(self, body: bytes) -> ModelResponse:
        return readable(self._sound, body)

    def _sound(self, body: bytes) -> ModelResponse:
        response = self._dialect.decode(body)
        require_sound_answer(response)
        return response

    def _failure(self, reply: HttpReply, body: bytes) -> ProviderError:
        request_id = reply.headers.get("x-request-id") or reply.headers.get("request-id")
        after_s = retry_after_s(reply.headers, self._now())
        return self._dialect.failure(reply.status, self._without_key(body), request_id, after_s)

    def _without_key(self, body: bytes) -> bytes:
        """Some servers quote the key they refuse; messages of errors go into events and to callers."""
        key = self._endpoint.api_key.encode()
        return body.replace(key, b"***") if key else body


def readable(read: Callable[[bytes], T], body: bytes) -> T:
    """What `read` makes of an answer. Raises MalformedResponse for a shape that the wire format does not allow."""
    try:
        return read(body)
    except _SHAPE_ERRORS as error:
        raise MalformedResponse(f"the answer cannot be read: {error!r}", status=200) from error


def _assembled(parser: SseParser, assembler: Assembler, chunk: bytes) -> Iterable[StreamPart]:
    """One event to a chunk is the rule; of several, the parts before one that cannot be read are still delivered."""
    events = parser.feed(chunk)
    if len(events) == 1:
        return _parts(assembler, events[0])
    return chain.from_iterable(_parts(assembler, event) for event in events)


def _parts(assembler: Assembler, event: SseEvent) -> Sequence[StreamPart]:
    try:
        parts = assembler.feed(event)
        for part in parts:
            require_sound(part)
        return parts
    except _SHAPE_ERRORS as error:
        raise MalformedResponse(f"an event of the stream cannot be read: {error!r}", status=200) from error


def _with_warnings(response: ModelResponse, adapted: Adapted) -> ModelResponse:
    return replace(response, warnings=(*adapted.warnings, *response.warnings)) if adapted.warnings else response
