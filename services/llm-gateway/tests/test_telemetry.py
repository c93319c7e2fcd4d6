"""What is told of a call: a span by the GenAI conventions, metrics with bounded labels, and no content."""

from dataclasses import replace

import pytest
from llm_gateway.domain import Answer, Message, ModelRequest, Text, Usage, UsageLine
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
