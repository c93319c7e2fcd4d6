"""Between protobuf and the domain: the only file that knows both."""

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, get_args

from eventlog.records import Context
from google.protobuf.duration_pb2 import Duration
from servicekit import numbers
from servicekit.errors import (
    AlreadyExists,
    ErrorMap,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    refusal_of,
)
from servicekit.tags import tags_of, values_of
from synod.common.values import Attribution
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from llm_gateway import billing, errors
from llm_gateway.balancing import Strategy
from llm_gateway.caching import Cacheable, CacheMode, CachePolicy, may_serve
from llm_gateway.catalogue import ModelCard
from llm_gateway.domain import (
    Answer,
    Audio,
    Cache,
    CacheTtl,
    CacheUse,
    File,
    FinishReason,
    Image,
    JsonObject,
    Message,
    Modality,
    ModelRequest,
    Opaque,
    OutputFormat,
    Part,
    PromptCacheTtl,
    Reasoning,
    ReasoningDelta,
    ReasoningDisplay,
    ReasoningDone,
    ReasoningMode,
    Refusal,
    RefusalDelta,
    Role,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolResult,
    ToolSpec,
    ToolUnits,
    Usage,
    UsageLine,
    UsageSource,
    Vector,
)
from llm_gateway.embedding import EmbeddingTerms, request_of
from llm_gateway.execution import Asked
from llm_gateway.flight import Began, Broken, CallEvent
from llm_gateway.inspection import DeploymentState, KeyState
from llm_gateway.limits import Priority
from llm_gateway.ports import Reservation
from llm_gateway.providers import opaque
from llm_gateway.routing import ANY, Policy

REQUEST_ID_MAX: Final = 128
FALLBACKS_MAX: Final = 5
OUTPUT_TOKENS_MAX: Final = 1_000_000
MESSAGES_MAX: Final = 10_000
PARTS_MAX: Final = 10_000
TEXTS_MAX: Final = 2_048
DIMENSIONS_MAX: Final = 65_536
TOOLS_MAX: Final = 256

_ROLES: Final[dict["pb.Role.ValueType", Role]] = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
    pb.ROLE_DEVELOPER: "developer",
}
_ALL_ROLES: Final[tuple[Role, ...]] = get_args(Role)
_SAID_BY: Final[Mapping[str, tuple[Role, ...]]] = {
    "text": ("system", "developer", "user", "assistant"),
    "refusal": ("system", "developer", "user", "assistant"),
    "tool_call": ("assistant",),
    "reasoning": ("assistant",),
    "tool_result": ("tool", "user"),
    "image": ("user",),
    "audio": ("user",),
    "file": ("user",),
}
"""What a message of a role can hold in every dialect: what stands elsewhere would be lost, or refused by the provider."""
_ROLE_VALUES: Final = {name: value for value, name in _ROLES.items()}
_FINISH_REASONS: Final[dict[str, FinishReason]] = {name: name for name in get_args(FinishReason)}
_USAGE_SOURCES: Final[dict[str, UsageSource]] = {name: name for name in get_args(UsageSource)}
_MODALITIES: Final[dict[str, Modality]] = {name: name for name in get_args(Modality)}
_CACHES: Final[dict[str, Cache]] = {name: name for name in get_args(Cache)}
_TTLS: Final[dict[str, CacheTtl]] = {name: name for name in get_args(CacheTtl)}
_CACHE_TTLS: Final[dict[str, PromptCacheTtl]] = {name: name for name in get_args(PromptCacheTtl)}
_REASONING_MODES: Final[dict[str, ReasoningMode]] = {name: name for name in get_args(ReasoningMode)}
_REASONING_DISPLAYS: Final[dict[str, ReasoningDisplay]] = {name: name for name in get_args(ReasoningDisplay)}
_PRIORITIES: Final[dict["pb.Priority.ValueType", Priority]] = {pb.PRIORITY_HIGH: "high", pb.PRIORITY_LOW: "low"}
_CACHE_MODES: Final[dict["pb.CacheMode.ValueType", CacheMode]] = {pb.CACHE_MODE_ON: "on", pb.CACHE_MODE_OFF: "off"}
_CACHE_USES: Final[dict[str, CacheUse]] = {name: name for name in get_args(CacheUse)}
_NO_CONTENT: Final = (
    "request_id",
    "model",
    "fallback_models",
    "attribution",
    "priority",
    "cache",
    "routing",
    "prompt_cache_ttl",
)
_KEY_STATES: Final[Mapping[KeyState, "pb.KeyState.ValueType"]] = {
    "unasked": pb.KEY_STATE_UNSPECIFIED,
    "works": pb.KEY_STATE_WORKS,
    "refused": pb.KEY_STATE_REFUSED,
    "unknown": pb.KEY_STATE_UNKNOWN,
}
_STRATEGIES: Final[Mapping[str, Strategy]] = {name: name for name in get_args(Strategy)}
_CHOICES: Final = ("auto", "none", "required")
_ANY_CHOICE: Final = ToolChoice()
_PLAIN_TEXT: Final = OutputFormat()
_FORMATS: Final = ("text", "json_object", "json_schema")


# --- errors ---


def _unknown_model(error: errors.UnknownModel) -> ServiceError:
    near = f"did you mean {', '.join(error.near)}? " if error.near else ""
    return NotFound("model", error.model, remedy=f"{near}ListModels has all names", reason="UNKNOWN_MODEL")


def _failed(error: errors.CallFailed) -> ServiceError:
    failure, after_s = error.failure, error.retry_after_s
    match failure.reason:
        case "RATE_LIMITED":
            return ResourceExhausted(failure.message, after_s, reason=failure.reason)
        case "PROVIDER_UNAVAILABLE":
            return Unavailable(failure.message, after_s, reason=failure.reason)
        case reason:
            # A budget that did not cover a further attempt refuses the call's repeats as it refused the call.
            return refusal_of(reason, failure.message) or FailedPrecondition(failure.message, reason=reason)


def _suspended(error: errors.ModelSuspended) -> ServiceError:
    if error.limited:
        return ResourceExhausted(str(error), error.retry_after_s, reason="RATE_LIMITED")
    return Unavailable(str(error), error.retry_after_s, reason="PROVIDER_UNAVAILABLE")


def _ledger_answer(error: errors.LedgerRefused) -> ServiceError:
    if isinstance(error.answer, ServiceError):
        return error.answer
    return FailedPrecondition(str(error), reason=error.reason)


ERRORS: Final = (
    ErrorMap()
    .add(errors.UnknownModel, _unknown_model)
    .add(
        errors.ModelUnavailable,
        lambda error: FailedPrecondition(str(error), reason="MODEL_UNAVAILABLE", metadata={"model": error.model}),
    )
    .add(errors.NoEligibleModel, lambda error: FailedPrecondition(str(error), reason="NO_ELIGIBLE_MODEL"))
    .add(
        errors.RequestIdReused,
        lambda error: AlreadyExists("model call", error.request_id, remedy=str(error), reason="REQUEST_ID_REUSED"),
    )
    .add(errors.AnswerExpired, lambda error: FailedPrecondition(str(error), reason="ANSWER_EXPIRED"))
    .add(errors.TooManyCalls, lambda error: ResourceExhausted(str(error), 1.0, reason="TOO_MANY_CALLS"))
    .add(errors.GatewayStopping, lambda error: Unavailable(str(error), 1.0, reason="STOPPING"))
    .add(errors.ModelSuspended, _suspended)
    .add(errors.RateLimited, lambda error: ResourceExhausted(str(error), error.retry_after_s, reason="RATE_LIMITED"))
    .add(errors.CallElsewhere, lambda error: Unavailable(str(error), 1.0, reason="CALL_ELSEWHERE"))
    .add(errors.LedgerRefused, _ledger_answer)
    .add(errors.LedgerUnavailable, lambda error: Unavailable(str(error), 1.0, reason="LEDGER_UNAVAILABLE"))
    .add(errors.StoreUnavailable, lambda error: Unavailable(str(error), 1.0, reason="STORE_UNAVAILABLE"))
    .add(errors.CallFailed, _failed)
    .add(errors.CallCancelled, lambda error: FailedPrecondition(str(error), reason="CALL_CANCELLED"))
)


# --- in ---


def to_asked(request: pb.GenerateRequest, tenant: str) -> Asked:
    """Raises InvalidArgument naming field, value and remedy."""
    _check_request(request)
    model_request = to_model_request(request)
    return Asked(
        request_id=request.request_id,
        model=request.model,
        fallback_models=tuple(request.fallback_models),
        request=model_request,
        attribution=to_attribution(request.attribution, tenant),
        sha256=_sha256(request),
        priority=_PRIORITIES.get(request.priority, "normal"),
        cacheable=_cacheable(request, model_request),
        policy=_policy(request.routing) if request.HasField("routing") else ANY,
    )


def _cacheable(request: pb.GenerateRequest, asked: ModelRequest) -> Cacheable | None:
    policy = to_policy(request.cache)
    if not may_serve(policy, asked):
        return None
    said = _last_said(request) if policy.similar and policy.mode == "on" else ""
    return Cacheable(policy, content_sha256(request), said, _scope_sha256(request) if said else "")


def _last_said(request: pb.GenerateRequest) -> str:
    """The text that the user said last; empty if it is not text alone."""
    last = request.messages[-1]
    alone = last.role == pb.ROLE_USER and len(last.parts) == 1
    return last.parts[0].text if alone else ""


def _scope_sha256(request: pb.GenerateRequest) -> str:
    rest = pb.GenerateRequest()
    rest.CopyFrom(request)
    del rest.messages[-1]
    return content_sha256(rest)


def to_policy(policy: pb.CachePolicy) -> CachePolicy:
    if policy.ttl_s < 0:
        raise InvalidArgument("cache.ttl_s", policy.ttl_s, "must be 0 (for the default) or more")
    mode = _CACHE_MODES.get(policy.mode, "deterministic")
    return CachePolicy(mode, policy.ttl_s, policy.tool_calls, policy.reasoning, policy.similar)


def content_sha256(request: pb.GenerateRequest) -> str:
    """Of what the answer depends on: neither who asks nor how it is to be carried out, nor by which name the model."""
    content = pb.GenerateRequest()
    content.CopyFrom(request)
    for field in _NO_CONTENT:
        content.ClearField(field)
    return _sha256(content)


def _sha256(request: pb.GenerateRequest | pb.EmbedRequest) -> str:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()


def to_embedding(request: pb.EmbedRequest, tenant: str) -> Asked:
    """Raises InvalidArgument naming field, value and remedy."""
    _check_request_id(request.request_id)
    _check_texts(request.texts)
    if not 0 <= request.dimensions <= DIMENSIONS_MAX:
        raise InvalidArgument("dimensions", request.dimensions, f"must be 0 (for the model's own) to {DIMENSIONS_MAX}")
    texts = request_of(request.model, tuple(request.texts))
    policy = to_policy(request.cache)
    content = pb.EmbedRequest(texts=request.texts, dimensions=request.dimensions)
    cacheable = Cacheable(policy, _sha256(content)) if may_serve(policy, texts) else None
    return Asked(
        request_id=request.request_id,
        model=request.model,
        fallback_models=(),
        request=texts,
        attribution=to_attribution(request.attribution, tenant),
        sha256=_sha256(request),
        priority=_PRIORITIES.get(request.priority, "normal"),
        cacheable=cacheable,
        embedding=EmbeddingTerms(request.dimensions or None),
    )


def _policy(routing: pb.RoutingPolicy) -> Policy:
    if routing.balancing not in ("", *_STRATEGIES):
        raise InvalidArgument("routing.balancing", routing.balancing, f"must be one of {', '.join(_STRATEGIES)}")
    for field in ("max_cost_nano_usd", "max_first_content_ms"):
        if getattr(routing, field) < 0:
            raise InvalidArgument(f"routing.{field}", getattr(routing, field), "must be 0 (for no bound) or more")
    return Policy(
        required_capabilities=tuple(routing.required_capabilities),
        max_cost_nano=routing.max_cost_nano_usd,
        max_first_content_s=routing.max_first_content_ms / 1000,
        regions=tuple(routing.regions),
        cheapest=routing.cheapest,
        balancing=_STRATEGIES.get(routing.balancing),
    )


def to_model_request(request: pb.GenerateRequest) -> ModelRequest:
    tools = to_tools(request.tools)
    return ModelRequest(
        model=request.model,
        messages=to_messages(request.messages),
        tools=tools,
        tool_choice=_choice(request.tool_choice, tools),
        output_format=_format(request.output_format),
        max_output_tokens=request.max_output_tokens or None,
        stop=tuple(request.stop),
        temperature=request.temperature if request.HasField("temperature") else None,
        top_p=request.top_p if request.HasField("top_p") else None,
        top_k=request.top_k if request.HasField("top_k") else None,
        seed=request.seed if request.HasField("seed") else None,
        reasoning_effort=request.reasoning_effort or None,
        reasoning_tokens_max=request.reasoning_tokens_max if request.HasField("reasoning_tokens_max") else None,
        service_tier=request.service_tier or None,
        parallel_tool_calls=request.parallel_tool_calls if request.HasField("parallel_tool_calls") else None,
        cache_ttl=_cache_ttl(request, "") if request.prompt_cache_ttl else None,
        reasoning_mode=_reasoning_mode(request) if request.reasoning_mode else None,
        reasoning_display=_reasoning_display(request) if request.reasoning_display else None,
    )


def _reasoning_mode(request: pb.GenerateRequest) -> ReasoningMode:
    mode = _REASONING_MODES.get(request.reasoning_mode)
    if mode is None:
        remedy = f"must be empty or one of {', '.join(_REASONING_MODES)}"
        raise InvalidArgument("reasoning_mode", request.reasoning_mode, remedy)
    if request.HasField("reasoning_tokens_max"):
        remedy = "is for a model that is told no number; leave it or reasoning_tokens_max out"
        raise InvalidArgument("reasoning_mode", mode, remedy)
    return mode


def _reasoning_display(request: pb.GenerateRequest) -> ReasoningDisplay:
    """Anthropic's API has no place for it but beside what makes the model think."""
    display = _REASONING_DISPLAYS.get(request.reasoning_display)
    if display is None:
        remedy = f"must be empty or one of {', '.join(_REASONING_DISPLAYS)}"
        raise InvalidArgument("reasoning_display", request.reasoning_display, remedy)
    if request.reasoning_mode != "adaptive" and not request.reasoning_tokens_max:
        remedy = "needs reasoning_mode adaptive, or reasoning_tokens_max; give one of them, or leave it out"
        raise InvalidArgument("reasoning_display", display, remedy)
    return display


def to_countable(request: pb.CountTokensRequest) -> ModelRequest:
    return ModelRequest(request.model, to_messages(request.messages), to_tools(request.tools))


def to_messages(messages: Iterable[pb.Message]) -> tuple[Message, ...]:
    return tuple([_message(index, message) for index, message in enumerate(messages)])


def to_tools(tools: Iterable[pb.Tool]) -> tuple[ToolSpec, ...]:
    found = tuple([_tool(f"tools[{index}]", tool) for index, tool in enumerate(tools)])
    names = [tool.name for tool in found]
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgument("tools", name, "is there more than once; name each tool once")
    return found


def to_attribution(message: ledger_pb.Attribution, tenant: str) -> Attribution:
    """Always of the caller's tenant."""
    if message.tenant_id not in ("", tenant):
        raise InvalidArgument("attribution.tenant_id", message.tenant_id, f"must be empty or the caller's, {tenant}")
    return Attribution(
        tenant_id=tenant,
        project_id=message.project_id,
        agent=message.agent,
        conversation_id=message.conversation_id,
        run_id=message.run_id,
        root_run_id=message.root_run_id,
        user_id=message.user_id,
        model=message.model,
        tool=message.tool,
        tags=tags_of("attribution.tags", message.tags),
    )


def _check_request_id(request_id: str) -> None:
    if not 1 <= len(request_id) <= REQUEST_ID_MAX:
        raise InvalidArgument(
            "request_id",
            request_id,
            f"must have 1 to {REQUEST_ID_MAX} characters; it makes a repeat harmless, use any unique text",
        )


def _check_texts(texts: Sequence[str]) -> None:
    if not 1 <= len(texts) <= TEXTS_MAX:
        raise InvalidArgument("texts", len(texts), f"give 1 to {TEXTS_MAX} texts")
    if "" in texts:
        raise InvalidArgument(f"texts[{list(texts).index('')}]", "", "must not be empty")


def _check_request(request: pb.GenerateRequest) -> None:
    _check_request_id(request.request_id)
    if not 1 <= len(request.messages) <= MESSAGES_MAX:
        raise InvalidArgument("messages", len(request.messages), f"give 1 to {MESSAGES_MAX} messages")
    if (parts := sum([len(message.parts) for message in request.messages])) > PARTS_MAX:
        raise InvalidArgument("messages.parts", parts, f"give at most {PARTS_MAX} parts in all messages together")
    if len(request.tools) > TOOLS_MAX:
        raise InvalidArgument("tools", len(request.tools), f"give at most {TOOLS_MAX} tools")
    if not 0 <= request.max_output_tokens <= OUTPUT_TOKENS_MAX:
        raise InvalidArgument(
            "max_output_tokens", request.max_output_tokens, f"must be 0 (for the default) to {OUTPUT_TOKENS_MAX}"
        )
    if not 0 <= request.reasoning_tokens_max <= OUTPUT_TOKENS_MAX:
        most = request.reasoning_tokens_max
        raise InvalidArgument("reasoning_tokens_max", most, f"must be 0 (for none) to {OUTPUT_TOKENS_MAX}")
    if request.HasField("temperature") and not 0 <= request.temperature <= 2:
        raise InvalidArgument("temperature", request.temperature, "must be from 0 to 2")
    if request.HasField("top_p") and not 0 <= request.top_p <= 1:
        raise InvalidArgument("top_p", request.top_p, "must be from 0 to 1")
    if len(request.fallback_models) > FALLBACKS_MAX:
        raise InvalidArgument("fallback_models", len(request.fallback_models), f"give at most {FALLBACKS_MAX}")


def _message(index: int, message: pb.Message) -> Message:
    role = _ROLES.get(message.role)
    if role is None:
        remedy = "must be system, developer, user, assistant or tool"
        raise InvalidArgument(f"messages[{index}].role", message.role, remedy)
    return Message(role, tuple([_said(part, role, index, place) for place, part in enumerate(message.parts)]))


def _said(part: pb.Part, role: Role, message: int, place: int) -> Part:
    """The part at that place of that message, in a role that can say it in every dialect."""
    kind = part.WhichOneof("part") or ""
    roles = _SAID_BY.get(kind, _ALL_ROLES)
    if role not in roles:
        field = f"{_part_field(message, place)}.{kind}"
        raise InvalidArgument(field, f"role {role}", f"is said in the role {' or '.join(roles)} only")
    if kind == "reasoning":
        thought = part.reasoning
        if problem := opaque.problem(thought.provider, thought.signature):
            raise InvalidArgument(f"{_part_field(message, place)}.reasoning.signature", thought.signature, problem)
    return _part(part, message, place)


def _part(part: pb.Part, message: int = 0, place: int = 0) -> Part:
    """The part at that place of that message, which an error names."""
    ttl = _cache_ttl(part, f"{_part_field(message, place)}.") if part.prompt_cache_ttl else None
    match part.WhichOneof("part"):
        case "text":
            return Text(part.text, ttl)
        case "tool_call":
            return ToolCall(part.tool_call.id, part.tool_call.name, part.tool_call.arguments_json, ttl)
        case "tool_result":
            result = part.tool_result
            return ToolResult(result.tool_call_id, result.content, result.is_error, ttl)
        case "reasoning":
            return Reasoning(part.reasoning.text, part.reasoning.provider, part.reasoning.signature)
        case "refusal":
            return Refusal(part.refusal)
        case "image" | "audio" | "file":
            return _medium(part, _part_field(message, place), ttl)
        case _:
            remedy = "is empty; set text, tool_call, tool_result, reasoning, refusal, image, audio or file"
            raise InvalidArgument(_part_field(message, place), "", remedy)


def _part_field(message: int, place: int) -> str:
    return f"messages[{message}].parts[{place}]"


def _cache_ttl(place: pb.Part | pb.Tool | pb.GenerateRequest, path: str) -> PromptCacheTtl:
    found = _CACHE_TTLS.get(place.prompt_cache_ttl)
    if found is None:
        remedy = f"must be empty or one of {', '.join(_CACHE_TTLS)}"
        raise InvalidArgument(f"{path}prompt_cache_ttl", place.prompt_cache_ttl, remedy)
    return found


def _medium(part: pb.Part, field: str, ttl: PromptCacheTtl | None) -> Image | Audio | File:
    match part.WhichOneof("part"):
        case "image":
            image = part.image
            medium: Image | Audio | File = Image(image.media_type.lower(), image.data, image.url, ttl)
        case "audio":
            medium = Audio(part.audio.media_type.lower(), part.audio.data)
        case _:
            medium = File(part.file.media_type.lower(), part.file.name, part.file.data, ttl)
    if not medium.data and not (isinstance(medium, Image) and medium.url):
        raise InvalidArgument(f"{field}.data", b"", "must not be empty")
    if remedy := _mistaken(medium):
        raise InvalidArgument(f"{field}.media_type", medium.media_type, remedy)
    return medium


def _mistaken(medium: Image | Audio | File) -> str | None:
    """What is wrong with the type of a medium: it decides how many tokens are reserved, at most, for its bytes."""
    kind = medium.media_type.partition("/")[0]
    match medium:
        case Image():
            return None if kind == "image" or (medium.url and not kind) else "must be image/..., as image/png"
        case Audio():
            return None if kind == "audio" else "must be audio/..., as audio/wav"
        case File():
            other = kind in {"image", "audio", "video"}
            return f"give {kind} in a part of its own, if there is one; a file is text or a document" if other else None


def _tool(field: str, tool: pb.Tool) -> ToolSpec:
    if not tool.name:
        raise InvalidArgument(f"{field}.name", "", "must not be empty")
    parameters = _schema(f"{field}.parameters_json", tool.parameters_json)
    ttl = _cache_ttl(tool, f"{field}.") if tool.prompt_cache_ttl else None
    return ToolSpec(tool.name, tool.description, parameters, tool.strict, ttl)


def _schema(field: str, text: str) -> JsonObject:
    try:
        schema: object = numbers.loads(text or "{}")
    except ValueError as error:
        raise InvalidArgument(field, text, f"is not JSON: {error}") from None
    if not isinstance(schema, Mapping):
        raise InvalidArgument(field, text, "must be a JSON Schema, that is a JSON object")
    return schema


def _choice(text: str, tools: tuple[ToolSpec, ...]) -> ToolChoice:
    match text:
        case "" | "auto":
            return _ANY_CHOICE
        case "none":
            return ToolChoice("none")
        case "required":
            return ToolChoice("required")
        case _ if any(tool.name == text for tool in tools):
            return ToolChoice("tool", text)
        case _:
            names = ", ".join((*_CHOICES, *(tool.name for tool in tools)))
            raise InvalidArgument("tool_choice", text, f"must be one of {names}")


def _format(format: pb.OutputFormat) -> OutputFormat:
    match format.kind:
        case "" | "text":
            return _PLAIN_TEXT
        case "json_object":
            return OutputFormat("json_object")
        case "json_schema":
            schema = _schema("output_format.json_schema", format.json_schema)
            return OutputFormat("json_schema", format.name or "answer", schema, format.strict)
        case _:
            raise InvalidArgument("output_format.kind", format.kind, f"must be one of {', '.join(_FORMATS)}")


# --- out ---


def from_answer(answer: Answer) -> pb.GenerateResponse:
    response = pb.GenerateResponse(
        request_id=answer.request_id,
        finish_reason=answer.finish_reason,
        model=answer.model,
        provider_response_id=answer.provider_response_id,
        reservation_id=answer.reservation_id,
        replayed=answer.replayed,
        simulated=answer.simulated,
        warnings=answer.warnings,
        cache=answer.cache,
        provider_finish_reason=answer.raw_finish_reason,
    )
    # Filled in place: a message that is given to another as its part is serialized for that, and read again.
    _set_message(response.message, answer.message)
    _set_usage(response.usage, answer.usage, answer.usage_source)
    return response


def from_embeddings(answer: Answer) -> pb.EmbedResponse:
    vectors = (part.values for part in answer.message.parts if isinstance(part, Vector))
    response = pb.EmbedResponse(
        request_id=answer.request_id,
        embeddings=[pb.Embedding(values=struct.unpack(f"<{len(values) // 4}f", values)) for values in vectors],
        model=answer.model,
        reservation_id=answer.reservation_id,
        replayed=answer.replayed,
        simulated=answer.simulated,
        cache=answer.cache,
    )
    _set_usage(response.usage, answer.usage, answer.usage_source)
    return response


def from_event(sequence: int, event: CallEvent) -> pb.StreamEvent:
    match event:
        case Began():
            started = pb.StreamStarted(
                model=event.model,
                attempt=event.attempt,
                reservation_id=event.reservation_id,
                cache=event.cache,
                warnings=event.warnings,
            )
            return pb.StreamEvent(sequence=sequence, started=started)
        case TextDelta():
            return pb.StreamEvent(sequence=sequence, text_delta=event.text)
        case RefusalDelta():
            return pb.StreamEvent(sequence=sequence, refusal_delta=event.text)
        case ReasoningDelta():
            return pb.StreamEvent(sequence=sequence, reasoning_delta=event.text)
        case ReasoningDone():
            return pb.StreamEvent(sequence=sequence, reasoning_done=_reasoning(event.part))
        case ToolCallDelta():
            delta = pb.ToolCallDelta(index=event.index, id=event.id, name=event.name, arguments_delta=event.arguments)
            return pb.StreamEvent(sequence=sequence, tool_call_delta=delta)
        case Answer():
            return pb.StreamEvent(sequence=sequence, completed=from_answer(event))
        case Broken(failure):
            broken = pb.StreamError(reason=failure.reason, message=failure.message, retryable=failure.retryable)
            return pb.StreamEvent(sequence=sequence, error=broken)


def from_card(card: ModelCard, calls_waiting: int = 0) -> pb.Model:
    return pb.Model(
        id=card.id,
        provider=card.provider,
        dialect=card.dialect,
        context_tokens=card.context_tokens,
        capabilities=card.capabilities,
        available=not card.remedy,
        unavailable_reason=card.remedy,
        simulated=card.simulated,
        aliases=card.aliases,
        output_tokens_max=card.output_tokens_max,
        input_pico_usd=card.price.input_pico if card.price else 0,
        output_pico_usd=card.price.output_pico if card.price else 0,
        stage=card.stage,
        retires_on=card.retires_on.isoformat() if card.retires_on else "",
        replacement=card.replacement,
        calls_waiting=calls_waiting,
    )


def from_deployment(state: DeploymentState) -> pb.Deployment:
    deployment = state.deployment
    return pb.Deployment(
        name=deployment.name,
        provider=state.provider,
        region=deployment.region,
        weight=deployment.weight,
        models=deployment.models,
        key_id=deployment.key_id,
        key_state=_KEY_STATES[state.key_state],
        problem=state.problem,
        called=[
            pb.DeploymentModel(
                model=one.model,
                circuit=one.phase,
                closed_s=one.closed_s,
                in_flight=one.load.in_flight,
                first_content_s=one.load.first_content_s,
            )
            for one in state.called
        ],
    )


def from_renewal(reservation_id: str, ttl_s: float) -> ledger_pb.RenewReservationRequest:
    return ledger_pb.RenewReservationRequest(reservation_id=reservation_id, ttl=_duration(ttl_s))


def from_reservation(reservation: Reservation) -> ledger_pb.ReserveRequest:
    return ledger_pb.ReserveRequest(
        reservation_id=reservation.id,
        attribution=_from_attribution(reservation.attribution),
        model=reservation.model,
        input_tokens_max=reservation.input_tokens_max,
        output_tokens_max=reservation.output_tokens_max,
        ttl=_duration(reservation.ttl_s),
        price_context=reservation.terms or None,  # an empty map costs a message more than all its other fields
        modalities=reservation.modalities,
        holder=reservation.holder,
    )


def from_asked(reservation: Reservation, context: Context, traceparent: str) -> ledger_pb.ReserveManyRequest.Item:
    return ledger_pb.ReserveManyRequest.Item(
        reserve=from_reservation(reservation),
        actor=context.actor,
        correlation=context.correlation,
        traceparent=traceparent,
    )


def _from_attribution(attribution: Attribution) -> ledger_pb.Attribution:
    return ledger_pb.Attribution(
        tenant_id=attribution.tenant_id,
        project_id=attribution.project_id,
        agent=attribution.agent,
        conversation_id=attribution.conversation_id,
        run_id=attribution.run_id,
        root_run_id=attribution.root_run_id,
        user_id=attribution.user_id,
        model=attribution.model,
        tool=attribution.tool,
        tags=values_of(attribution.tags) or None,
    )


@lru_cache(maxsize=16)
def _duration(seconds: float) -> Duration:
    """Always one of few values; whoever puts it into a message has it copied."""
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration


class AnswerRecords:
    """Answers on record are GenerateResponse messages; the same answer gives the same bytes."""

    def dump(self, answer: Answer) -> bytes:
        return from_answer(answer).SerializeToString(deterministic=True)

    def load(self, data: bytes) -> Answer:
        return to_answer(pb.GenerateResponse.FromString(data))


def to_answer(response: pb.GenerateResponse) -> Answer:
    return Answer(
        request_id=response.request_id,
        message=_recorded(response.message),
        finish_reason=_FINISH_REASONS[response.finish_reason],
        usage=_to_usage(response.usage),
        usage_source=_USAGE_SOURCES[response.usage.source],
        model=response.model,
        provider_response_id=response.provider_response_id,
        reservation_id=response.reservation_id,
        warnings=tuple(response.warnings),
        simulated=response.simulated,
        replayed=response.replayed,
        cache=_CACHE_USES[response.cache],
        raw_finish_reason=response.provider_finish_reason,
    )


def _recorded(message: pb.Message) -> Message:
    """An answer's message may hold vectors, which no request can."""
    parts = (Vector(part.vector) if part.HasField("vector") else _part(part) for part in message.parts)
    return Message(_ROLES[message.role], tuple(parts))


def _set_message(message: pb.Message, said: Message) -> None:
    message.role = _ROLE_VALUES[said.role]
    for part in said.parts:
        _add_part(message, part)


def _add_part(message: pb.Message, part: Part) -> None:
    match part:
        case Text():
            message.parts.add(text=part.text)
        case ToolCall():
            call = pb.ToolCall(id=part.id, name=part.name, arguments_json=part.arguments)
            message.parts.add(tool_call=call)
        case ToolResult():
            result = pb.ToolResult(tool_call_id=part.call_id, content=part.text, is_error=part.is_error)
            message.parts.add(tool_result=result)
        case Refusal():
            message.parts.add(refusal=part.text)
        case Reasoning() | Opaque():
            message.parts.add(reasoning=_reasoning(part))
        case Vector():
            message.parts.add(vector=part.values)
        case _:
            raise TypeError(f"no model answers with {type(part).__name__}")


def _reasoning(part: Reasoning | Opaque) -> pb.Reasoning:
    """What is opaque only has to come back to its dialect byte for byte, which reasoning does too."""
    text = part.text if isinstance(part, Reasoning) else ""
    return pb.Reasoning(text=text, signature=part.payload, provider=part.dialect)


def _set_usage(message: pb.Usage, usage: Usage, source: UsageSource) -> None:
    message.input_tokens, message.output_tokens, message.source = usage.input_tokens, usage.output_tokens, source
    for line in usage.lines:
        message.lines.add(
            direction=line.direction,
            modality=line.modality,
            cache=line.cache,
            reasoning=line.reasoning,
            quantity=line.quantity,
            ttl=line.ttl or "",
            unit=billing.TOKENS,
        )
    for used in usage.tool_units:
        message.lines.add(
            direction="output", modality="text", cache="none", quantity=used.quantity, unit=billing.tool_unit(used)
        )


def _to_usage(usage: pb.Usage) -> Usage:
    tokens = (_to_usage_line(line) for line in usage.lines if line.unit in ("", billing.TOKENS))
    uses = (ToolUnits(line.unit, line.quantity) for line in usage.lines if line.unit not in ("", billing.TOKENS))
    return Usage.of(tokens, tuple(uses))


def _to_usage_line(line: ledger_pb.UsageLine) -> UsageLine:
    # Only this service writes what is read here, from the same closed sets of words.
    return UsageLine(
        direction="input" if line.direction == "input" else "output",
        quantity=line.quantity,
        modality=_MODALITIES[line.modality],
        cache=_CACHES[line.cache],
        ttl=_TTLS.get(line.ttl),
        reasoning=line.reasoning,
    )
