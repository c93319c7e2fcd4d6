"""One model request over HTTP: parse, apply the fault, answer whole or as a stream, count."""

import asyncio
import math
from dataclasses import dataclass, replace
from http.client import responses

import orjson
from aiohttp import web

from provider_simulator.access import api_key, is_refused
from provider_simulator.conversation import Ask, BadRequest, JsonObject, Reply
from provider_simulator.dialect import Dialect
from provider_simulator.faults import Fault, FaultPlan, fault_of_model
from provider_simulator.prompt_cache import CacheUse, PromptCache
from provider_simulator.quota import Quotas
from provider_simulator.reply import compose, count_input
from provider_simulator.script import MODEL, decide
from provider_simulator.usage import ASKED_CHARACTERS_MAX, Outcome, ServedRequest, UsageBook, counted

FAULT_HEADER = "x-simulator-fault"
SIMULATOR_HEADERS = {"x-synod-simulator": "true"}


def json_response(body: JsonObject, *, status: int = 200) -> web.Response:
    """A JSON answer that says where it comes from."""
    return web.Response(
        body=orjson.dumps(body), status=status, content_type="application/json", headers=SIMULATOR_HEADERS
    )


@dataclass(frozen=True, slots=True)
class Exchange:
    """The state of one request. `now` is in Unix seconds; `sequence` numbers the simulator's requests from 1."""

    dialect: Dialect
    faults: FaultPlan
    usage: UsageBook
    quotas: Quotas
    prompts: PromptCache
    sequence: int
    now: float

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if is_refused(request.headers):
            return self._refuse(401, f"Incorrect API key provided: {api_key(request.headers)}", None, model="")
        try:
            ask = self.dialect.parse(await request.read(), request.headers)
            fault = self.faults.take(request.headers.get(FAULT_HEADER), ask.model)
        except BadRequest as error:
            return self._refuse(400, str(error), None, model="")
        if not is_known(ask.model):
            return self._refuse(404, f"The model {ask.model!r} does not exist.", "model_not_found", model=ask.model)
        fault = self._metered(fault, ask, api_key(request.headers))
        await asyncio.sleep(fault.first_byte_delay_s)
        if fault.status is not None:
            return self._fail(fault, fault.status, ask)
        reply = self._reply(ask, fault)
        answer = self._stream if ask.stream else self._whole
        return await answer(request, ask, reply, fault)

    def _metered(self, fault: Fault, ask: Ask, key: str) -> Fault:
        """The fault with what the key's limits say, which may be that the request is one too many."""
        wait_s = self.quotas.take(key, count_input(ask.billable), self.now)
        told = {"headers": {**self.quotas.headers(key, self.now), **fault.headers}}
        if wait_s is None:
            return fault.model_copy(update=told)
        return fault.model_copy(update={**told, "status": 429, "retry_after": str(math.ceil(wait_s))})

    def _reply(self, ask: Ask, fault: Fault) -> Reply:
        return compose(
            ask,
            decide(ask.conversation),
            reply_id=f"{self.dialect.id_prefix}sim{self.sequence:08d}",
            created=int(self.now),
            cache=CacheUse(fault.cached_input_tokens) if fault.cached_input_tokens else self.prompts.use(ask.prefixes),
            reasoning=fault.reasoning_tokens,
        )

    def _refuse(self, status: int, message: str, code: str | None, *, model: str) -> web.Response:
        self.usage.record(ServedRequest(self.sequence, self.dialect.name, model, False, status, "failed"))
        return json_response(self.dialect.error(status, message, code), status=status)

    def _fail(self, fault: Fault, status: int, ask: Ask) -> web.Response:
        message = fault.message or f"{responses.get(status, 'Overloaded')} (simulated)"
        self._record(ask, status, "failed")
        if fault.raw_body is not None:
            return web.Response(text=fault.raw_body, status=status, content_type="text/html", headers=_headers(fault))
        response = json_response(self.dialect.error(status, message, fault.code), status=status)
        response.headers.update(_headers(fault))
        return response

    async def _whole(self, request: web.Request, ask: Ask, reply: Reply, fault: Fault) -> web.StreamResponse:
        if fault.error_after_frames is not None:
            self._record(ask, 200, "failed")
            return json_response(self.dialect.error(500, fault.message or "simulated error", fault.code))
        body = orjson.dumps(self.dialect.unary(_without_usage(reply) if fault.omit_usage else reply))
        if fault.cut_after_frames is not None or fault.omit_terminal:
            return await self._cut_body(request, ask, reply, body)
        self._record(ask, 200, "answered", reply)
        return web.Response(body=body, content_type="application/json", headers=self._answer_headers(fault))

    async def _cut_body(self, request: web.Request, ask: Ask, reply: Reply, body: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={**SIMULATOR_HEADERS, "content-type": "application/json"})
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        return self._cut(request, response, ask, reply)

    async def _stream(self, request: web.Request, ask: Ask, reply: Reply, fault: Fault) -> web.StreamResponse:
        response = web.StreamResponse(headers={**self._answer_headers(fault), "content-type": self.dialect.stream_type})
        try:
            await response.prepare(request)
            return await self._send_frames(request, response, ask, reply, fault)
        except ConnectionError:
            self._record(ask, 200, "disconnected", reply)
            return response

    async def _send_frames(
        self, request: web.Request, response: web.StreamResponse, ask: Ask, reply: Reply, fault: Fault
    ) -> web.StreamResponse:
        frames = self._frames(ask, reply, fault)
        for number, frame in enumerate(frames):
            if number == fault.error_after_frames:
                break
            if number == fault.cut_after_frames:
                return self._cut(request, response, ask, reply)
            await response.write(frame)
            await _pause(request, fault.frame_delay_s)
        if fault.error_after_frames is not None:
            await response.write(self.dialect.error_frame(fault.message or "simulated error", fault.code))
        await response.write_eof()
        failed = fault.error_after_frames is not None
        self._record(ask, 200, "failed" if failed else "answered", reply)
        return response

    def _frames(self, ask: Ask, reply: Reply, fault: Fault) -> list[bytes]:
        frames = self.dialect.stream(_without_usage(reply) if fault.omit_usage else reply, ask)
        return frames[:-1] if fault.omit_terminal else frames

    def _cut(self, request: web.Request, response: web.StreamResponse, ask: Ask, reply: Reply) -> web.StreamResponse:
        self._record(ask, 200, "cut", reply)
        if request.transport is not None:
            request.transport.close()
        return response

    def _record(self, ask: Ask, status: int, outcome: Outcome, reply: Reply | None = None) -> None:
        served = ServedRequest(
            self.sequence,
            self.dialect.name,
            ask.model,
            ask.stream,
            status,
            outcome,
            response_id=reply.id if reply else "",
            asked=ask.conversation.input[:ASKED_CHARACTERS_MAX],
        )
        self.usage.record(counted(served, reply.usage) if reply and reply.usage else served)

    def _answer_headers(self, fault: Fault) -> dict[str, str]:
        request_id = f"req_sim{self.sequence:08d}"
        return {**_headers(fault), "x-request-id": request_id, "request-id": request_id}


def is_known(model: str) -> bool:
    return model == MODEL or fault_of_model(model) is not None


def _headers(fault: Fault) -> dict[str, str]:
    retry_after = {"retry-after": fault.retry_after} if fault.retry_after is not None else {}
    return {**SIMULATOR_HEADERS, **retry_after, **fault.headers}


def _without_usage(reply: Reply) -> Reply:
    return replace(reply, usage=None)


async def _pause(request: web.Request, delay_s: float) -> None:
    """Wait between frames, and notice a client that has gone: writes alone would be buffered by the kernel."""
    await asyncio.sleep(delay_s)
    if request.transport is None or request.transport.is_closing():
        raise ConnectionResetError("the client went away")
