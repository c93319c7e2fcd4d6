import math

from hypothesis import given
from hypothesis import strategies as st
from llm_gateway.counting import PAGE_TEXT_TOKENS, delivered_bound, image_tokens_max, input_bound, output_bound
from llm_gateway.domain import File, Image, Message, Reasoning, Text, TextDelta, ToolCall, ToolCallDelta, ToolSpec
from llm_gateway.testing import a_pdf


@given(st.lists(st.text(), max_size=5))
def test_a_bound_counts_at_least_every_byte(texts: list[str]) -> None:
    messages = tuple(Message("user", (Text(text),)) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert input_bound(messages) > size
    assert output_bound(Message("assistant", tuple(Text(text) for text in texts))) >= size
    assert delivered_bound(TextDelta(text) for text in texts) == size


def test_tools_count_with_their_schemas() -> None:
    bare = input_bound((Message("user", (Text("hi"),)),))
    tool = ToolSpec("lookup", "Looks something up.", {"type": "object", "description": "x" * 500})
    assert input_bound((Message("user", (Text("hi"),)),), (tool,)) > bare + 500


def test_tool_calls_count_with_their_arguments() -> None:
    call = Message("assistant", (ToolCall("1", "lookup", '{"city": "Łódź"}'),))
    assert output_bound(call) >= len('1lookup{"city": "Łódź"}'.encode())
    assert delivered_bound([ToolCallDelta(0, "", "", "12"), ToolCallDelta(0, "", "", "345")]) == 5


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_an_image_counts_at_least_what_the_dearest_tiles_cost(width: int, height: int) -> None:
    scale = min(1.0, 2048 / max(width, height), 768 / min(width, height))
    tiles = math.ceil(width * scale / 512) * math.ceil(height * scale / 512)
    message = Message("user", (Image("", url="https://example.com/a.png"),))
    assert input_bound((message,), image_tokens=image_tokens_max("gpt-4o-mini")) >= 2833 + 5667 * tiles
    assert input_bound((message,), image_tokens=image_tokens_max("gpt-4o")) >= 85 + 170 * tiles


@given(st.integers(1, 100), st.booleans())
def test_every_page_of_a_document_counts_as_text_and_as_an_image(pages: int, packed: bool) -> None:
    message = Message("user", (File("application/pdf", "a.pdf", a_pdf(pages, packed=packed)),))
    assert input_bound((message,), image_tokens=5000) >= pages * (PAGE_TEXT_TOKENS + 5000)


def test_an_image_that_a_model_made_counts_as_one_that_a_caller_gives() -> None:
    made = Reasoning("", "gemini-generate", b'{"inlineData":{"mimeType":"image/png","data":"eA=="}}')
    given = Image("image/png", b"x")

    assert input_bound((Message("assistant", (made,)),)) > input_bound((Message("user", (given,)),))


def test_a_text_file_counts_by_its_bytes() -> None:
    assert 1000 < input_bound((Message("user", (File("text/plain", "a.txt", b"/Page" * 200),)),)) < 1200


def test_a_tool_without_parameters_counts_with_the_schema_that_providers_get() -> None:
    plain = ToolSpec("now", "Tells the time.", {})
    given = ToolSpec("now", "Tells the time.", {"type": "object", "properties": {}})
    assert input_bound((), (plain,)) == input_bound((), (given,))
