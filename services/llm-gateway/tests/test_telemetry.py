"""What is told of a call: a span by the GenAI conventions, metrics with bounded labels, and no content."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from llm_gateway.calls import Lost
from llm_gateway.domain import Answer, Message, ModelRequest, OutputFormat, Text, Usage, UsageLine
from llm_gateway.errors import CallFailed
from llm_gateway.telemetry import Telemetry
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from servicekit.telemetry import Logger
from synod.common.values import Attribution, Failure
from synod.llm_gateway.events import ModelCallAttemptStarted

OWNER = Attribution(agent="scout", conversation_id="cnv_1")
REQUEST = ModelRequest("m", (Message("user", (Text("a secret word"),)),), max_output_tokens=100)
USAGE = Usage.of((UsageLine("input", 7), UsageLine("output", 3)))
ANSWER = Answer(
    "req", Message("assistant", (Text("another"),)), "stop", USAGE, "provider_final", "fake/m", "r1", "mc:1"
)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def telemetry(spans: InMemorySpanExporter, registry: CollectorRegistry) -> Telemetry:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return Telemetry(provider.get_tracer("test"), registry, Logger("test"), frozenset({"fake/m"}))


def test_a_span_names_the_model_and_its_usage_but_no_content(telemetry: Telemetry, spans: InMemorySpanExporter) -> None:
    with telemetry.call("fake/m", REQUEST, OWNER, stream=True) as span:
        telemetry.answered(span, ANSWER, 0.5, 0.1)

    (finished,) = spans.get_finished_spans()
    attributes = dict(finished.attributes or {})
    assert finished.name == "chat fake/m"
    assert attributes["gen_ai.provider.name"] == "fake"
    assert attributes["gen_ai.usage.input_tokens"] == 7
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert attributes["gen_ai.agent.name"] == "scout"
    assert "secret" not in finished.to_json()


def test_a_failed_call_is_a_span_in_error(telemetry: Telemetry, spans: InMemorySpanExporter) -> None:
    with pytest.raises(CallFailed), telemetry.call("fake/m", REQUEST, OWNER, stream=False):
        raise CallFailed(Failure(reason="RATE_LIMITED", message="slow down"))

    (finished,) = spans.get_finished_spans()
    assert not finished.status.is_ok
    assert dict(finished.attributes or {})["error.type"] == "CallFailed"


def test_labels_are_listed_models_only(telemetry: Telemetry, registry: CollectorRegistry) -> None:
    for model in ("fake/m", "ollama/whatever"):
        with telemetry.call(model, REQUEST, OWNER, stream=False) as span:
            telemetry.answered(span, replace(ANSWER, model=model), 0.5, None)

    def tokens(provider: str, model: str) -> float | None:
        labels = {"provider": provider, "model": model, "type": "input"}
        return registry.get_sample_value("gen_ai_client_token_usage_sum", labels)

    assert tokens("fake", "fake/m") == 7
    assert tokens("ollama", "other") == 7
    assert tokens("ollama", "ollama/whatever") is None


def test_a_span_tells_parameters_and_parts_of_the_usage_by_the_conventions(
    telemetry: Telemetry, spans: InMemorySpanExporter
) -> None:
    request = replace(
        REQUEST,
        temperature=0.5,
        seed=7,
        stop=("END",),
        reasoning_effort="low",
        output_format=OutputFormat("json_schema"),
    )
    usage = Usage.of(
        (
            UsageLine("input", 5),
            UsageLine("input", 3, cache="read"),
            UsageLine("input", 2, cache="write"),
            UsageLine("input", 4, modality="image"),
            UsageLine("output", 6),
            UsageLine("output", 1, reasoning=True),
        )
    )
    with telemetry.call("google/g", request, OWNER, stream=True) as span:
        telemetry.answered(span, replace(ANSWER, usage=usage), 0.5, 0.1)

    (finished,) = spans.get_finished_spans()
    told = dict(finished.attributes or {})
    assert told["gen_ai.provider.name"] == "gcp.gemini"
    assert {name.removeprefix("gen_ai.request."): told[name] for name in told if "request" in name} == {
        "model": "google/g",
        "max_tokens": 100,
        "stream": True,
        "temperature": 0.5,
        "seed": 7,
        "stop_sequences": ("END",),
        "reasoning.level": "low",
    }
    assert (told["gen_ai.output.type"], told["gen_ai.response.time_to_first_chunk"]) == ("json", 0.1)
    assert {name.removeprefix("gen_ai.usage."): told[name] for name in told if "usage" in name} == {
        "input_tokens": 14,
        "output_tokens": 7,
        "cache_read.input_tokens": 3,
        "cache_write.input_tokens": 2,
        "reasoning.output_tokens": 1,
        "text.input_tokens": 10,
        "text.output_tokens": 7,
        "text.cache_read.input_tokens": 3,
        "image.input_tokens": 4,
    }


@pytest.fixture
def used(registry: CollectorRegistry) -> Callable[[str, str], float | None]:
    """What a counter of usage of fake/m says of a modality."""

    def read(name: str, modality: str = "text") -> float | None:
        labels = {"provider": "fake", "model": "fake/m", "modality": modality}
        return registry.get_sample_value(f"gen_ai_client_inference_usage_{name}_tokens_total", labels)

    return read


def test_tokens_are_counted_by_direction_cache_reasoning_and_modality(
    telemetry: Telemetry, used: Callable[..., float | None]
) -> None:
    usage = Usage.of(
        (
            UsageLine("input", 5),
            UsageLine("input", 3, cache="read"),
            UsageLine("input", 2, cache="write", ttl="1h"),
            UsageLine("input", 4, modality="image"),
            UsageLine("input", 9, modality="video", cache="read"),
            UsageLine("output", 6),
            UsageLine("output", 1, reasoning=True),
        )
    )
    for _ in range(2):
        with telemetry.call("fake/m", REQUEST, OWNER, stream=False) as span:
            telemetry.answered(span, replace(ANSWER, usage=usage), 0.5, None)

    assert [used("input", modality) for modality in ("text", "image", "unknown", "audio")] == [20, 8, 18, None]
    assert (used("output"), used("reasoning_output")) == (14, 2)
    assert (used("cache_read_input"), used("cache_write_input"), used("cache_read_input", "unknown")) == (6, 4, 18)


def test_an_inference_that_failed_is_counted_as_none_of_an_unknown_modality(
    telemetry: Telemetry, used: Callable[..., float | None]
) -> None:
    started = ModelCallAttemptStarted(
        request_id="req", attempt=1, model="fake/m", provider="fake", reservation_id="mc:1", attribution=OWNER
    )
    telemetry.attempt_lost("mc", Lost(started, Failure(reason="RATE_LIMITED", message="slow down"), "no"))

    assert (used("input", "unknown"), used("output", "unknown")) == (0, 0)
    assert (used("input"), used("output")) == (None, None)


def test_the_time_between_the_pieces_of_an_answer_is_measured(
    telemetry: Telemetry, registry: CollectorRegistry
) -> None:
    pace = telemetry.pace("fake/m", 10.0)
    for now in (10.25, 11.25):
        pace.piece(now)

    name, labels = "gen_ai_client_operation_time_per_output_chunk_seconds", {"provider": "fake", "model": "fake/m"}
    assert registry.get_sample_value(f"{name}_count", labels) == 2
    assert registry.get_sample_value(f"{name}_sum", labels) == 1.25
    assert registry.get_sample_value(f"{name}_bucket", {**labels, "le": "0.32"}) == 1


def test_the_time_for_each_token_after_the_first_is_measured(telemetry: Telemetry, registry: CollectorRegistry) -> None:
    with telemetry.call("fake/m", REQUEST, OWNER, stream=True) as span:
        telemetry.answered(span, ANSWER, 0.5, 0.1)
    labels = {"provider": "fake", "model": "fake/m"}
    each_s = registry.get_sample_value("gen_ai_server_time_per_output_token_seconds_sum", labels)
    assert each_s == pytest.approx(0.2)
