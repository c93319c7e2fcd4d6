"""What a kind of model can be asked for, and what happens to the rest. Pure.

Claude models of the API version 2026-10-21 refuse sampling parameters, reasoning models of OpenAI refuse
temperature, local servers know no service tiers. A request that goes from one to another must not fail for that
alone, so a profile drops what its model does not take, with a warning in the response. What the answer would be another
one without is not dropped: then the request is rejected before anything is sent, and goes to the next model if it names one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, Literal

from llm_gateway.domain import (
    Audio,
    File,
    Image,
    Message,
    ModelRequest,
    Opaque,
    OutputFormat,
    Part,
    Reasoning,
    ReasoningMode,
)
from llm_gateway.errors import UnsupportedParameter
from llm_gateway.providers.instructions import told_by_users

Parameter = Literal[
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "reasoning_effort",
    "reasoning_tokens_max",
    "reasoning_display",
    "service_tier",
    "parallel_tool_calls",
]
_OPTIONAL: Final = (
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "reasoning_effort",
    "reasoning_tokens_max",
    "reasoning_display",
    "service_tier",
    "parallel_tool_calls",
)


_OF_A_DIALECT: Final = (Reasoning, Opaque)
Unsupported = Literal["drop_hints", "drop", "reject"]


@dataclass(frozen=True, slots=True)
class CapabilityProfile:
    """`output_tokens_default` stands in for a limit the request does not have, for wire formats that demand one. `reasons`
    says that the model thinks, and bills it, unless it is told not to; "adaptive" among `reasoning_modes` may be what it does
    without being told. `system_turns` says that instructions may stand in the midst of a conversation.

    `unsupported` says what becomes of the rest: "drop" leaves it out with a warning, "reject" refuses the request, and
    "drop_hints" refuses what the answer would be another one without: where it stops, and its form.
    """

    parameters: frozenset[Parameter]
    output_formats: frozenset[str] = frozenset({"text", "json_object", "json_schema"})
    images: bool = True
    files: bool = True
    audio: bool = True
    reasoning_modes: frozenset[ReasoningMode] = frozenset({"adaptive"})
    unsupported: Unsupported = "drop_hints"
    output_tokens_default: int | None = None
    reasons: bool = False
    system_turns: bool = True


def profile_of(families: Mapping[str, CapabilityProfile], others: CapabilityProfile, model: str) -> CapabilityProfile:
    """That of the longest name with which the model's begins."""
    family = max((name for name in families if model.startswith(name)), key=len, default=None)
    return others if family is None else families[family]


@dataclass(frozen=True, slots=True)
class Adapted:
    """A request that holds only what the model takes, and one warning for each thing that was left out."""

    request: ModelRequest
    warnings: tuple[str, ...]


def adapt(request: ModelRequest, profile: CapabilityProfile, dialect: str) -> Adapted:
    """Leave out, or as `unsupported` says refuse, what the profile does not have. Raises UnsupportedParameter.

    Images, audio and files are content: they are never dropped, because the answer would be about something else. Reasoning
    and opaque parts of another dialect mean nothing to this one and are always dropped with a warning. Instructions that
    the model takes at the head of a conversation only are told by a user where they stand, with a warning.
    """
    missing = _unsupported_names(request, profile)
    if refused := _refused(request, profile, missing):
        remedy = "leave it out or ask another model"
        raise UnsupportedParameter(f"{request.model} does not support {', '.join(refused)}; {remedy}")
    _check_content(request, profile)
    messages, foreign = _without_foreign_parts(request.messages, dialect)
    if not profile.system_turns:
        messages, moved = _without_system_turns(messages, request.model)
        foreign = (*foreign, *moved)
    limit = request.max_output_tokens or profile.output_tokens_default
    warnings = (*(f"{name} is not supported by {request.model} and was left out" for name in missing), *foreign)
    if messages is not request.messages or limit != request.max_output_tokens:
        request = replace(request, messages=messages, max_output_tokens=limit)
    return Adapted(_without(request, missing), warnings)


def _unsupported_names(request: ModelRequest, profile: CapabilityProfile) -> tuple[str, ...]:
    names = [name for name in _not_taken(profile.parameters) if getattr(request, name) is not None]
    if request.stop and "stop" not in profile.parameters:
        names.append("stop")
    if request.output_format.kind not in profile.output_formats:
        names.append(_format_name(request))
    if request.reasoning_mode and request.reasoning_mode not in profile.reasoning_modes:
        names.append(_mode_name(request))
    return tuple(names)


def _refused(request: ModelRequest, profile: CapabilityProfile, missing: tuple[str, ...]) -> tuple[str, ...]:
    match profile.unsupported:
        case "drop":
            return ()
        case "reject":
            return missing
        case "drop_hints":
            return tuple([name for name in missing if name in ("stop", _format_name(request))])


@cache
def _not_taken(parameters: frozenset[Parameter]) -> tuple[str, ...]:
    """Of those that a request may leave out. There are as many sets of parameters as kinds of models."""
    return tuple(name for name in _OPTIONAL if name not in parameters)


def _without(request: ModelRequest, names: tuple[str, ...]) -> ModelRequest:
    if not names:
        return request
    return replace(
        request,
        temperature=None if "temperature" in names else request.temperature,
        top_p=None if "top_p" in names else request.top_p,
        top_k=None if "top_k" in names else request.top_k,
        seed=None if "seed" in names else request.seed,
        reasoning_effort=None if "reasoning_effort" in names else request.reasoning_effort,
        reasoning_tokens_max=None if "reasoning_tokens_max" in names else request.reasoning_tokens_max,
        reasoning_mode=None if _mode_name(request) in names else request.reasoning_mode,
        reasoning_display=None if "reasoning_display" in names else request.reasoning_display,
        service_tier=None if "service_tier" in names else request.service_tier,
        parallel_tool_calls=None if "parallel_tool_calls" in names else request.parallel_tool_calls,
        stop=() if "stop" in names else request.stop,
        output_format=OutputFormat() if _format_name(request) in names else request.output_format,
    )


def _format_name(request: ModelRequest) -> str:
    return f"output_format {request.output_format.kind}"


def _mode_name(request: ModelRequest) -> str:
    return f"reasoning_mode {request.reasoning_mode}"


def _check_content(request: ModelRequest, profile: CapabilityProfile) -> None:
    if profile.images and profile.audio and profile.files:
        return
    parts = [part for message in request.messages for part in message.parts]
    if not profile.images and any(isinstance(part, Image) for part in parts):
        raise UnsupportedParameter(f"{request.model} does not support images")
    if not profile.audio and any(isinstance(part, Audio) for part in parts):
        raise UnsupportedParameter(f"{request.model} does not support audio")
    if not profile.files and any(isinstance(part, File) for part in parts):
        raise UnsupportedParameter(f"{request.model} does not support files")


def _without_foreign_parts(messages: tuple[Message, ...], dialect: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    if not [part for message in messages for part in message.parts if _is_foreign(part, dialect)]:
        return messages, ()
    kept = (
        replace(message, parts=tuple(part for part in message.parts if not _is_foreign(part, dialect)))
        for message in messages
    )
    return tuple(message for message in kept if message.parts), (f"parts of another provider cannot go to {dialect}",)


def _without_system_turns(messages: tuple[Message, ...], model: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    told = told_by_users(messages)
    if told is messages:
        return messages, ()
    return told, (
        f"{model} takes system messages before all others only; a later one was sent as a user's, in <system>",
    )


def _is_foreign(part: Part, dialect: str) -> bool:
    return isinstance(part, _OF_A_DIALECT) and part.dialect != dialect
