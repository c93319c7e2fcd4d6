"""What the ledger is told of a request and of its answer."""

from dataclasses import replace

import orjson
import pytest
from llm_gateway import billing
from llm_gateway.domain import (
    Answer,
    Audio,
    File,
    Image,
    Message,
    ModelRequest,
    ModelResponse,
    Part,
    Text,
    ToolUnits,
    Usage,
    UsageLine,
)
from llm_gateway.providers.anthropic_messages import AnthropicMessagesDialect
from llm_gateway.providers.dialect import Dialect
from llm_gateway.providers.openai_chat import OpenAiChatDialect
from llm_gateway.providers.openai_responses import OpenAiResponsesDialect
from llm_gateway.translate import AnswerRecords
from synod.common.values import UsageLine as Line

REQUEST = ModelRequest("m", (Message("user", (Text("Hi"),)),))
RESPONSE = ModelResponse(Message("assistant", ()), "stop", "", None, "", "m")


def test_lines_keep_how_long_a_cache_entry_lives_and_what_was_used_beside_tokens() -> None:
    usage = Usage.of(
        (UsageLine("input", 5, cache="write", ttl="1h"), UsageLine("input", 3, modality="video")),
        (ToolUnits("web_search", 2), ToolUnits("code_execution", 1)),
    )
    assert billing.usage_lines(usage) == (
        Line(direction="input", cache="write", ttl="1h", quantity=5),
        Line(direction="input", modality="video", quantity=3),
        Line(direction="output", unit="web_searches", quantity=2),
        Line(direction="output", unit="code_execution", quantity=1),
    )


@pytest.mark.parametrize(
    ("part", "modalities"),
    [
        (Image("image/png", b"x"), ("image",)),
        (File("application/pdf", "a", b"x"), ("image",)),
        (Audio("audio/wav", b"x"), ("audio",)),
        (Text("x"), ()),
    ],
)
def test_the_ledger_is_told_what_the_input_holds_besides_text(part: Part, modalities: tuple[str, ...]) -> None:
    assert billing.modalities(replace(REQUEST, messages=(Message("user", (part,)),))) == modalities


def test_a_service_tier_is_part_of_the_terms_that_are_reserved() -> None:
    assert billing.price_terms(replace(REQUEST, service_tier="flex")) == {"service_tier": "flex"}
    assert billing.price_terms(REQUEST) == {}


@pytest.mark.parametrize(
    ("asked", "served", "billed"),
    [
        (None, "default", ""),
        ("auto", "standard", ""),
        ("priority", "default", "default"),
        ("priority", "priority", "priority"),
        ("priority", "", ""),
        (None, "priority", "priority"),
    ],
)
def test_group_14_the_tier_that_was_served_is_billed_where_it_is_not_the_standard_one(
    asked: str | None, served: str, billed: str
) -> None:
    request, response = replace(REQUEST, service_tier=asked), replace(RESPONSE, service_tier=served)
    assert billing.served_tier(request, response) == billed


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (
            OpenAiChatDialect(),
            {"id": "1", "model": "m", "choices": [{"message": {}, "finish_reason": "stop"}], "service_tier": "flex"},
        ),
        (
            OpenAiResponsesDialect(),
            {"id": "1", "model": "m", "status": "completed", "output": [], "service_tier": "flex"},
        ),
        (
            AnthropicMessagesDialect(),
            {
                "id": "1",
                "model": "m",
                "content": [],
                "stop_reason": "end_turn",
                "usage": {"input_tokens": 1, "service_tier": "flex"},
            },
        ),
    ],
)
def test_the_tier_that_was_served_is_read_from_the_answer(dialect: Dialect, body: object) -> None:
    assert dialect.decode(orjson.dumps(body)).service_tier == "flex"


def test_an_answer_on_record_keeps_all_of_its_usage() -> None:
    usage = Usage.of((UsageLine("input", 5, cache="write", ttl="5m"),), (ToolUnits("web_searches", 2),))
    kept = Answer("req", Message("assistant", (Text("a"),)), "stop", usage, "provider_final", "p/m", "r", "c:1")
    codec = AnswerRecords()
    assert codec.load(codec.dump(kept)).usage == usage
