"""Which earlier answer a text is like."""

import pytest
from eventlog.records import Context
from llm_gateway.similar import LikenessIndex, SimilarAnswers, SimilarTerms
from llm_gateway.translate import to_asked
from synod.common.values import Attribution
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

CONTEXT = Context("local", "usr_ada")
NORTH, EAST = (0.0, 1.0), (1.0, 0.0)


def answers(vectors: dict[str, tuple[float, ...]], index: LikenessIndex | None = None) -> SimilarAnswers:
    observed: list[tuple[float, bool]] = []
    similar = SimilarAnswers(
        SimilarTerms("m", likeness_min=0.9), lambda *seen: observed.append(seen), index or LikenessIndex()
    )

    async def embed(call_id: str, text: str, context: Context, owner: Attribution) -> tuple[float, ...] | None:
        return vectors.get(text)

    similar.embed = embed
    similar.observed = observed  # type: ignore[attr-defined]
    return similar


async def test_the_nearest_text_counts_if_it_is_near_enough_and_each_look_is_measured() -> None:
    similar = answers({"north": (0.0, 5.0), "nearly": (0.3, 1.0), "east": EAST})
    first = await similar.look("c", "scope", "north", CONTEXT, Attribution())
    assert first is not None
    assert first.key == ""
    similar.remember(first, "key")

    nearly = await similar.look("c", "scope", "nearly", CONTEXT, Attribution())
    east = await similar.look("c", "scope", "east", CONTEXT, Attribution())
    assert nearly is not None
    assert east is not None
    assert (nearly.key, nearly.likeness) == ("key", pytest.approx(0.9578, abs=1e-4))
    assert east.key == ""
    assert [hit for _, hit in similar.observed] == [False, True, False]  # type: ignore[attr-defined]


async def test_group_21_what_lies_in_another_scope_is_not_found() -> None:
    similar = answers({"north": NORTH})
    look = await similar.look("c", "tenant a", "north", CONTEXT, Attribution())
    assert look is not None
    similar.remember(look, "key")
    other = await similar.look("c", "tenant b", "north", CONTEXT, Attribution())
    assert other is not None
    assert other.key == ""


@pytest.mark.parametrize("vectors", [{}, {"said": (0.0, 0.0)}])
async def test_a_text_without_a_vector_is_not_compared(vectors: dict[str, tuple[float, ...]]) -> None:
    assert await answers(vectors).look("c", "scope", "said", CONTEXT, Attribution()) is None


def test_the_newest_of_a_scope_and_the_scopes_used_last_are_kept() -> None:
    index = LikenessIndex(entries_max=2, scopes_max=2)
    for number in range(3):
        index.add("a", NORTH if number == 0 else EAST, str(number))
    assert index.look("a", NORTH).likeness == 0.0
    index.add("b", NORTH, "b")
    index.add("c", NORTH, "c")
    assert [index.look(scope, NORTH).key for scope in "abc"] == ["", "b", "c"]


def test_vectors_of_different_models_are_not_alike() -> None:
    index = LikenessIndex()
    index.add("a", NORTH, "key")
    assert index.look("a", (0.0, 1.0, 0.0)).likeness == 0.0


def asked(
    said: str, *, system: str = "Be brief.", similar: bool = True, mode: str = "CACHE_MODE_ON"
) -> pb.GenerateRequest:
    messages = [
        pb.Message(role=pb.ROLE_SYSTEM, parts=[pb.Part(text=system)]),
        pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text=said)]),
    ]
    policy = pb.CachePolicy(mode=pb.CacheMode.Value(mode), similar=similar)
    return pb.GenerateRequest(request_id="r", model="m", messages=messages, cache=policy)


def test_only_what_was_said_last_may_differ() -> None:
    one, two = (to_asked(asked(said), "local").cacheable for said in ("Hi", "Hello"))
    other = to_asked(asked("Hi", system="Be long."), "local").cacheable
    assert one is not None
    assert two is not None
    assert other is not None
    assert (one.said, two.said) == ("Hi", "Hello")
    assert one.scope_sha256 == two.scope_sha256 != other.scope_sha256
    assert one.content_sha256 != two.content_sha256


def test_nothing_is_compared_for_who_does_not_ask_for_it_or_says_more_than_text() -> None:
    exact = to_asked(asked("Hi", similar=False), "local").cacheable
    picture = asked("Look")
    picture.messages[1].parts.append(pb.Part(image=pb.Image(url="https://example.org/a.png")))
    seen = to_asked(picture, "local").cacheable
    assert exact is not None
    assert seen is not None
    assert (exact.said, exact.scope_sha256, seen.said) == ("", "", "")
