import pytest
from llm_gateway.aims import aims_of
from llm_gateway.catalogue import Target
from llm_gateway.counting import IMAGE_TOKENS, TILED_IMAGE_TOKENS
from llm_gateway.domain import Image, Message, ModelRequest
from llm_gateway.providers.testing import FakeProvider
from synod.common.values import Attribution

SEEN = (Message("user", (Image("", url="https://example.org/a.png"),)),)
WHOSE = Attribution(tenant_id="local")


@pytest.mark.parametrize(
    ("asked", "known", "limit"), [(None, 0, 4096), (None, 1024, 1024), (None, 64_000, 4096), (2000, 1024, 2000)]
)
def test_a_limit_that_is_not_given_is_no_more_than_the_model_can_answer(
    asked: int | None, known: int, limit: int
) -> None:
    target = Target("fake/m", "m", FakeProvider(), output_tokens_max=known)
    (aim,) = aims_of((target,), ModelRequest("", SEEN, max_output_tokens=asked), WHOSE, 4096)
    assert (aim.need.output_tokens, aim.request.max_output_tokens) == (limit, limit)


def test_an_image_counts_for_each_target_what_its_model_may_take() -> None:
    targets = [Target(f"fake/{name}", name, FakeProvider()) for name in ("gpt-4o-mini", "claude-opus-5")]
    dear, cheap = aims_of(targets, ModelRequest("", SEEN), WHOSE, 4096)
    assert dear.need.input_tokens - cheap.need.input_tokens == TILED_IMAGE_TOKENS - IMAGE_TOKENS
