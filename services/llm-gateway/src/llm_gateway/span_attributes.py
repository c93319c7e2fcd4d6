"""What a span tells of a request and its answer beyond their names, by the GenAI conventions. Pure; no content."""

from collections import Counter
from typing import Final, TypeAlias

from llm_gateway import genai
from llm_gateway.domain import Answer, ModelRequest, Usage, UsageLine

Attributes: TypeAlias = dict[str, str | int | float | tuple[str, ...]]

_OUTPUT_TYPES: Final = {"json_object": "json", "json_schema": "json"}


def of_request(request: ModelRequest) -> Attributes:
    """The parameters that the request has."""
    given = {
        genai.REQUEST_MAX_TOKENS: request.max_output_tokens or 0,
        genai.REQUEST_TEMPERATURE: request.temperature,
        genai.REQUEST_TOP_P: request.top_p,
        genai.REQUEST_TOP_K: request.top_k,
        genai.REQUEST_SEED: request.seed,
        genai.REQUEST_REASONING_LEVEL: request.reasoning_effort,
        genai.REQUEST_STOP_SEQUENCES: request.stop or None,
        genai.OUTPUT_TYPE: _OUTPUT_TYPES.get(request.output_format.kind, "text"),
    }
    return {name: value for name, value in given.items() if value is not None}


def of_answer(answer: Answer, first_content_s: float | None) -> Attributes:
    """Identity, end and usage; counts of zero are left out, but for the totals."""
    attributes: Attributes = {
        genai.RESPONSE_ID: answer.provider_response_id,
        genai.RESPONSE_MODEL: answer.model,
        genai.RESPONSE_FINISH_REASONS: (answer.finish_reason,),
        genai.INPUT_TOKENS: answer.usage.input_tokens,
        genai.OUTPUT_TOKENS: answer.usage.output_tokens,
    }
    if first_content_s is not None:
        attributes[genai.RESPONSE_TIME_TO_FIRST_CHUNK] = first_content_s
    return {**attributes, **_parts(answer.usage)}


def _parts(usage: Usage) -> dict[str, int]:
    """The lines by what the conventions tell apart: cache, reasoning, modality."""
    counts: Counter[str] = Counter()
    for line in usage.lines:
        for name in _names(line):
            counts[name] += line.quantity
    return dict(counts)


def _names(line: UsageLine) -> tuple[str, ...]:
    has_counts = line.modality in genai.MODALITIES
    names = [genai.MODALITY_TOKENS.format(modality=line.modality, direction=line.direction)] if has_counts else []
    match line.cache:
        case "read":
            names.append(genai.CACHE_READ_INPUT_TOKENS)
            if has_counts:
                names.append(genai.MODALITY_CACHE_READ_INPUT_TOKENS.format(modality=line.modality))
        case "write":
            names.append(genai.CACHE_WRITE_INPUT_TOKENS)
    if line.reasoning:
        names.append(genai.REASONING_OUTPUT_TOKENS)
    return tuple(names)
