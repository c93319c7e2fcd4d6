"""The HTTP routes of the simulator: four dialects, models, embeddings, token counts, and its own administration."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

from aiohttp import web
from pydantic import ValidationError

from provider_simulator.access import is_refused
from provider_simulator.anthropic_messages import AnthropicMessages
from provider_simulator.clouds import (
    AZURE_PATH,
    BEDROCK_MODELS_PATH,
    BEDROCK_PATH,
    VERTEX_PATH,
    BedrockMessages,
    VertexMessages,
)
from provider_simulator.conversation import BadRequest, JsonObject
from provider_simulator.dialect import Dialect
from provider_simulator.embedding_wires import EmbeddingExchange, EmbeddingWire, GeminiEmbeddings, OpenAiEmbeddings
from provider_simulator.embeddings import EMBEDDING_MODEL
from provider_simulator.exchange import Exchange, json_response
from provider_simulator.faults import FAULT_MODELS, FaultPlan, PlannedFault
from provider_simulator.gemini_generate import METHODS, GeminiGenerate
from provider_simulator.openai_chat import OpenAiChat
from provider_simulator.openai_responses import OpenAiResponses
from provider_simulator.prompt_cache import PromptCache
from provider_simulator.quota import Quotas, QuotaTerms
from provider_simulator.reply import FINGERPRINT, count_input
from provider_simulator.script import MODEL
from provider_simulator.usage import UsageBook

REQUEST_BYTES_MAX = 64 * 1024 * 1024
MODELS_SINCE = 1_767_225_600  # 2026-01-01T00:00:00Z, in Unix seconds

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Simulator:
    """One simulator: planned faults, usage book, limits, prompt cache, and the routes over them.

    `now` gives aware UTC times.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.faults = FaultPlan()
        self.usage = UsageBook()
        self.quotas = Quotas()
        self.prompts = PromptCache()
        self._now = now
        self._sequence = 0

    def application(self) -> web.Application:
        application = web.Application(client_max_size=REQUEST_BYTES_MAX)
        application.add_routes(
            [
                web.post("/v1/chat/completions", self._completions(OpenAiChat())),
                web.post("/v1/responses", self._completions(OpenAiResponses())),
                web.post("/v1/responses/input_tokens", _count_responses),
                web.post("/v1/messages", self._completions(AnthropicMessages())),
                web.post("/v1/messages/count_tokens", _count_tokens),
                web.post(AZURE_PATH, self._completions(OpenAiChat())),
                web.post(VERTEX_PATH, self._vertex),
                web.post(BEDROCK_PATH, self._bedrock),
                web.get(BEDROCK_MODELS_PATH, _models),
                web.post("/v1beta/models/{model}:{method}", self._gemini),
                web.post("/v1/embeddings", self._embeddings(OpenAiEmbeddings())),
                web.get("/v1/models", _models),
                web.get("/openai/models", _models),
                web.get("/v1beta/models", _models),
                web.get("/ready", _ready),
                web.get("/simulator/usage", self._read_usage),
                web.delete("/simulator/usage", self._clear_usage),
                web.put("/simulator/quota", self._set_quota),
                web.get("/simulator/faults", self._read_faults),
                web.post("/simulator/faults", self._plan_fault),
                web.delete("/simulator/faults", self._clear_faults),
            ]
        )
        return application

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _completions(self, dialect: Dialect) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            now = self._now().timestamp()
            sequence = self._next_sequence()
            exchange = Exchange(dialect, self.faults, self.usage, self.quotas, self.prompts, sequence, now)
            self.usage.in_progress += 1
            try:
                return await exchange.serve(request)
            finally:
                self.usage.in_progress -= 1

        return handle

    async def _vertex(self, request: web.Request) -> web.StreamResponse:
        """Counting is a model of its own there."""
        dialect = VertexMessages(request.match_info["model"])
        if request.match_info["model"] != "count-tokens":
            return await self._completions(dialect)(request)
        try:
            texts = dialect.parse_countable(await request.read(), request.headers)
        except BadRequest as error:
            return json_response(dialect.error(400, str(error), None), status=400)
        return json_response({"input_tokens": count_input(texts)})

    async def _bedrock(self, request: web.Request) -> web.StreamResponse:
        stream = request.match_info["method"] != "invoke"
        return await self._completions(BedrockMessages(request.match_info["model"], stream=stream))(request)

    async def _gemini(self, request: web.Request) -> web.StreamResponse:
        """Model and streaming stand in the path."""
        model, method = request.match_info["model"], request.match_info["method"]
        if method == "countTokens":
            return await _count_gemini(request, model)
        if method == "batchEmbedContents":
            return await self._embeddings(GeminiEmbeddings(model))(request)
        if method not in METHODS:
            raise web.HTTPNotFound
        return await self._completions(GeminiGenerate(model, stream=METHODS[method]))(request)

    def _embeddings(self, wire: EmbeddingWire) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            exchange = EmbeddingExchange(wire, self.faults, self.usage, self._next_sequence())
            return await exchange.serve(request)

        return handle

    async def _read_usage(self, _request: web.Request) -> web.StreamResponse:
        return json_response(self.usage.as_json())

    async def _clear_usage(self, _request: web.Request) -> web.StreamResponse:
        self.usage.clear()
        return web.Response(status=204)

    async def _set_quota(self, request: web.Request) -> web.StreamResponse:
        try:
            terms = QuotaTerms.model_validate_json(await request.read())
        except ValidationError as error:
            first = error.errors()[0]
            return json_response({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, status=400)
        self.quotas.set(terms)
        return json_response(terms.model_dump())

    async def _read_faults(self, _request: web.Request) -> web.StreamResponse:
        planned = [one.model_dump(exclude_defaults=True) for one in self.faults.pending()]
        return json_response({"planned": planned})

    async def _plan_fault(self, request: web.Request) -> web.StreamResponse:
        try:
            planned = PlannedFault.model_validate_json(await request.read())
        except ValidationError as error:
            first = error.errors()[0]
            return json_response({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, status=400)
        self.faults.plan(planned.fault, planned.requests, planned.model)
        return json_response(planned.model_dump(exclude_defaults=True), status=201)

    async def _clear_faults(self, _request: web.Request) -> web.StreamResponse:
        self.faults.clear()
        return web.Response(status=204)


async def _count_tokens(request: web.Request) -> web.StreamResponse:
    dialect = AnthropicMessages()
    try:
        texts = dialect.parse_countable(await request.read(), request.headers)
    except BadRequest as error:
        return json_response(dialect.error(400, str(error), None), status=400)
    return json_response({"input_tokens": count_input(texts)})


async def _count_responses(request: web.Request) -> web.StreamResponse:
    dialect = OpenAiResponses()
    try:
        texts = dialect.parse(await request.read(), request.headers).billable
    except BadRequest as error:
        return json_response(dialect.error(400, str(error), None), status=400)
    return json_response({"object": "response.input_tokens", "input_tokens": count_input(texts)})


async def _count_gemini(request: web.Request, model: str) -> web.StreamResponse:
    dialect = GeminiGenerate(model, stream=False)
    try:
        texts = dialect.parse_countable(await request.read()).billable
    except BadRequest as error:
        return json_response(dialect.error(400, str(error), None), status=400)
    return json_response({"totalTokens": count_input(texts)})


async def _ready(_: web.Request) -> web.StreamResponse:
    """Who started the simulator learns here that it answers."""
    return json_response({"ready": True})


async def _models(request: web.Request) -> web.StreamResponse:
    if is_refused(request.headers):
        return json_response(OpenAiChat().error(401, "Incorrect API key provided", None), status=401)
    names = (MODEL, EMBEDDING_MODEL, *FAULT_MODELS)
    anthropic = "anthropic-version" in request.headers
    return json_response(_anthropic_models(names) if anthropic else _openai_models(names))


def _openai_models(names: Sequence[str]) -> JsonObject:
    entry: JsonObject = {"object": "model", "created": MODELS_SINCE, "owned_by": FINGERPRINT}
    return {"object": "list", "data": [{"id": name, **entry} for name in names]}


def _anthropic_models(names: Sequence[str]) -> JsonObject:
    entry: JsonObject = {"type": "model", "created_at": "2026-01-01T00:00:00Z", "lifecycle": "active"}
    data = [{"id": name, "display_name": f"{name} (simulator)", **entry} for name in names]
    return {"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]}
