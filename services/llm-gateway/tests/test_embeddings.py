"""Texts to vectors: what every adapter does, against the simulator, and what is read of each wire format."""

import asyncio
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import orjson
import pytest
from llm_gateway import errors
from llm_gateway.domain import EmbeddingRequest, Usage, UsageLine, Vector
from llm_gateway.providers import catalog
from llm_gateway.providers.gemini_embeddings import GeminiEmbeddings
from llm_gateway.providers.openai_embeddings import OpenAiEmbeddings
from llm_gateway.providers.provider import Embedder
from llm_gateway.providers.transport import Transport, open_session
from openai import AsyncOpenAI
from provider_simulator.embeddings import EMBEDDING_MODEL, embed
from provider_simulator.faults import Fault
from provider_simulator.testing import RunningSimulator

DEADLINE_S = 20.0


def now() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


def asked(*texts: str, model: str = EMBEDDING_MODEL, dimensions: int | None = None) -> EmbeddingRequest:
    return EmbeddingRequest(model, texts or ("Hello world",), dimensions)


def in_time(seconds: float = DEADLINE_S) -> float:
    return asyncio.get_running_loop().time() + seconds


def floats(vector: Vector) -> list[float]:
    return list(struct.unpack(f"<{len(vector.values) // 4}f", vector.values))


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with open_session() as session:
        yield Transport(session)


class EmbedderContract:
    """What holds for every Embedder whose wire format the simulator speaks. A subclass gives the fixture `embedder`."""

    async def test_each_text_has_its_vector_in_the_order_of_the_texts(self, embedder: Embedder) -> None:
        texts = ("one", "two words", "one")
        found = await embedder.embed(asked(*texts), in_time())

        assert [floats(vector) for vector in found.vectors] == [pytest.approx(embed(text), abs=1e-6) for text in texts]
        assert found.simulated

    async def test_the_length_of_the_vectors_is_passed_on(self, embedder: Embedder) -> None:
        found = await embedder.embed(asked("one", dimensions=8), in_time())
        assert len(floats(found.vectors[0])) == 8

    async def test_only_input_is_used_and_as_the_provider_counts_it(
        self, embedder: Embedder, simulator: RunningSimulator
    ) -> None:
        found = await embedder.embed(asked("one two three"), in_time())

        assert found.usage == Usage.of((UsageLine("input", simulator.usage.total().input_tokens),))
        assert found.usage.input_tokens > 0

    async def test_group_08_missing_usage_is_absent_and_not_zero(
        self, embedder: Embedder, simulator: RunningSimulator
    ) -> None:
        simulator.faults.plan(Fault(omit_usage=True))
        assert (await embedder.embed(asked(), in_time())).usage is None

    @pytest.mark.parametrize(
        ("status", "error"),
        [(400, errors.RequestRejected), (401, errors.AuthenticationRejected), (429, errors.ProviderRateLimited)],
    )
    async def test_group_09_each_status_is_a_typed_error(
        self, embedder: Embedder, status: int, error: type[errors.ProviderError]
    ) -> None:
        with pytest.raises(error) as caught:
            await embedder.embed(asked(model=f"sim-{status}"), in_time())
        assert (caught.value.status, caught.value.provider) == (status, embedder.name)

    async def test_a_model_that_is_not_there_is_told_so(self, embedder: Embedder) -> None:
        with pytest.raises(errors.ModelNotFound):
            await embedder.embed(asked(model="no-such-model"), in_time())

    async def test_more_texts_than_a_request_may_hold_are_refused_unsent(
        self, embedder: Embedder, simulator: RunningSimulator
    ) -> None:
        with pytest.raises(errors.RequestRejected, match="send at most") as caught:
            await embedder.embed(asked(*["one"] * 2049), in_time())
        assert not caught.value.dispatched
        assert simulator.usage.total().requests == 0


class TestOpenAiEmbeddings(EmbedderContract):
    @pytest.fixture
    def embedder(self, transport: Transport, simulator: RunningSimulator) -> Embedder:
        return catalog.openai_embedder(transport, now, name="openai", base_url=simulator.openai_base_url, api_key="k")

    async def test_the_sdk_reads_the_same_vectors(self, embedder: Embedder, openai_client: AsyncOpenAI) -> None:
        ours = await embedder.embed(asked("one", "two"), in_time())
        theirs = await openai_client.embeddings.create(model=EMBEDDING_MODEL, input=["one", "two"])

        assert [floats(vector) for vector in ours.vectors] == [one.embedding for one in theirs.data]
        assert ours.usage is not None
        assert ours.usage.input_tokens == theirs.usage.prompt_tokens

    def test_numbers_and_base64_are_read_alike_and_sorted(self) -> None:
        packed = "AACAPwAAAEA="  # 1.0, 2.0
        data = [{"index": 1, "embedding": [3.0, 4.0]}, {"index": 0, "embedding": packed}]
        found = OpenAiEmbeddings().decode(orjson.dumps({"data": data, "model": "m"}), "m")
        assert [floats(vector) for vector in found.vectors] == [[1.0, 2.0], [3.0, 4.0]]


class TestGeminiEmbeddings(EmbedderContract):
    @pytest.fixture
    def embedder(self, transport: Transport, simulator: RunningSimulator) -> Embedder:
        return catalog.google_embedder(transport, now, "k", simulator.origin)

    def test_each_text_is_a_request_of_its_own_in_one_batch(self) -> None:
        body = orjson.loads(GeminiEmbeddings().encode(asked("a", "b", model="m", dimensions=2)))
        assert body["requests"][1] == {
            "model": "models/m",
            "content": {"parts": [{"text": "b"}]},
            "outputDimensionality": 2,
        }


@pytest.mark.parametrize(
    "body",
    [
        {"data": [{"index": 0, "embedding": "!"}]},
        {"data": [{"index": 0, "embedding": "AAA="}]},
        {"data": [{"index": 0, "embedding": ["x"]}]},
        {"data": [{"index": 0, "embedding": [1e99]}]},
        {"data": [{"index": 0, "embedding": []}]},
        {"data": []},
        {},
    ],
)
async def test_group_08_vectors_that_cannot_be_read_are_a_malformed_answer(
    transport: Transport, simulator: RunningSimulator, body: object
) -> None:
    class Answering(OpenAiEmbeddings):
        def decode(self, _: bytes, model: str):  # type: ignore[no-untyped-def]
            return super().decode(orjson.dumps(body), model)

    endpoint = catalog.Endpoint("openai", simulator.openai_base_url, "k", catalog.OPENAI)
    with pytest.raises(errors.MalformedResponse):
        await catalog.HttpEmbedder(endpoint, Answering(), transport, now).embed(asked(), in_time())
