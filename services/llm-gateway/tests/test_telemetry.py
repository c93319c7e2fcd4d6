"""What is told of a call: a span by the GenAI conventions, metrics with bounded labels, and no content."""

from dataclasses import replace

import pytest
from llm_gateway.domain import Answer, Message, ModelRequest, OutputFormat, Text, Usage, UsageLine
from llm_gateway.errors import CallFailed
from llm_gateway.telemetry import Telemetry
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from servicekit.telemetry import Logger
from synod.common.values import Attribution, Failure

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


def test_the_time_for_each_token_after_the_first_is_measured(telemetry: Telemetry, registry: CollectorRegistry) -> None:
    with telemetry.call("fake/m", REQUEST, OWNER, stream=True) as span:
        telemetry.answered(span, ANSWER, 0.5, 0.1)
    labels = {"provider": "fake", "model": "fake/m"}
    each_s = registry.get_sample_value("gen_ai_server_time_per_output_token_seconds_sum", labels)
    assert each_s == pytest.approx(0.2)
