"""For tests of and with providers: the fake, and the contract that every adapter passes."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from provider_simulator.faults import Fault
from provider_simulator.testing import RunningSimulator

from llm_gateway import errors
from llm_gateway.domain import (
    Completed,
    Message,
    ModelRequest,
    ModelResponse,
    OutputFormat,
    Refusal,
    Started,
    StreamPart,
    Text,
    TextDelta,
    ToolCallDelta,
    ToolResult,
    ToolSpec,
    UsageLine,
    UsageUpdated,
    Warned,
    is_content,
)
from llm_gateway.providers.provider import Provider

DEADLINE_S = 20.0

Outcome = ModelResponse | errors.ProviderError


class FakeProvider:
    """A Provider that plays the given outcomes in order and remembers the requests; IndexError when they run out.

    A streamed response arrives as Started, one delta per text part and tool call, and Completed.
    """

    def __init__(self, outcomes: Iterable[Outcome] = (), name: str = "fake") -> None:
        self.outcomes = deque(outcomes)
        self.requests: list[ModelRequest] = []
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    async def generate(self, request: ModelRequest, deadline: float) -> ModelResponse:
        self.requests.append(request)
        outcome = self.outcomes.popleft()
        if isinstance(outcome, errors.ProviderError):
            raise outcome
        return outcome

    async def check(self, deadline: float) -> None:
        if self.outcomes and isinstance(self.outcomes[0], errors.ProviderError):
            raise self.outcomes[0]

    async def count_tokens(self, request: ModelRequest, deadline: float) -> int | None:
        return None

    async def stream(self, request: ModelRequest, deadline: float) -> AsyncGenerator[StreamPart, None]:
        response = await self.generate(request, deadline)
        if response.warnings:
            yield Warned(response.warnings)
        yield Started(response.provider_response_id, response.model)
        for part in response.message.parts:
            if isinstance(part, Text):
                yield TextDelta(part.text)
        for index, call in enumerate(response.message.tool_calls):
            yield ToolCallDelta(index, call.id, call.name, call.arguments)
        yield Completed(response)


LOOKUP = ToolSpec(
    "lookup", "The temperature in a city.", {"type": "object", "properties": {"city": {"type": "string"}}}
)
SCRIPT = """1. call lookup with {"city": "Zürich"} and call lookup with {"city": "Łódź"}
answer: {{1.degrees}} degrees, and {{1#2}}"""


def asked(script: str = SCRIPT, model: str = "sim-1") -> ModelRequest:
    """A request that the simulator answers by the script."""
    messages = (Message("system", (Text(script),)), Message("user", (Text("How warm is it?"),)))
    return ModelRequest(model, messages, tools=(LOOKUP,))


def in_time(seconds: float = DEADLINE_S) -> float:
    return asyncio.get_running_loop().time() + seconds


async def collect(provider: Provider, request: ModelRequest) -> list[StreamPart]:
    async with aclosing(provider.stream(request, in_time())) as stream:
        return [part async for part in stream]


class ProviderContract:
    """What holds for every Provider whose dialect the simulator speaks. A subclass gives the fixture `provider`.

    `stops` is False for a wire format that has no stop sequences; `counts` for one whose provider counts no
    tokens; `not_taken` is a parameter that it does not have.
    """

    stops: ClassVar[bool] = True
    counts: ClassVar[bool] = True
    not_taken: ClassVar[dict[str, Any]] = {"top_k": 5}

    async def test_an_answer_has_text_usage_and_identity(self, provider: Provider) -> None:
        response = await provider.generate(asked("answer: {{input}}!"), in_time())

        assert response.message == Message("assistant", (Text("How warm is it?!"),))
        assert response.finish_reason == "stop"
        assert response.model == "sim-1"
        assert response.provider_response_id
        assert response.simulated
        assert response.warnings == ()
        assert response.usage is not None
        assert response.usage.output_tokens == 4

    async def test_a_key_that_works_is_told_for_free(self, provider: Provider, simulator: RunningSimulator) -> None:
        await provider.check(in_time())
        assert simulator.usage.total().requests == 0

    async def test_a_stream_starts_delivers_and_completes(self, provider: Provider) -> None:
        parts = await collect(provider, asked("answer: one two three"))

        assert isinstance(parts[0], Started)
        assert [part.text for part in parts if isinstance(part, TextDelta)] == ["one ", "two ", "three"]
        assert isinstance(parts[-1], Completed)
        assert sum(isinstance(part, Completed) for part in parts) == 1
        assert parts[-1].response.message.text == "one two three"

    async def test_a_stream_ends_in_the_same_response_as_a_whole_answer(self, provider: Provider) -> None:
        for script in (SCRIPT, "answer: one two three", "answer: {{nothing}}"):
            whole = await provider.generate(asked(script), in_time())
            completed = (await collect(provider, asked(script)))[-1]

            assert isinstance(completed, Completed)
            assert replace(completed.response, provider_response_id="") == replace(whole, provider_response_id="")

    async def test_usage_updates_end_at_the_usage_of_the_response(self, provider: Provider) -> None:
        parts = await collect(provider, asked("answer: one two three"))
        updates = [part.usage for part in parts if isinstance(part, UsageUpdated)]

        assert isinstance(parts[-1], Completed)
        assert updates[-1] == parts[-1].response.usage

    async def test_parallel_tool_calls_arrive_in_pieces_that_make_up_the_whole(self, provider: Provider) -> None:
        parts = await collect(provider, asked())
        completed = parts[-1]
        assert isinstance(completed, Completed)
        calls = completed.response.message.tool_calls

        assert completed.response.finish_reason == "tool_calls"
        assert [call.parsed() for call in calls] == [{"city": "Zürich"}, {"city": "Łódź"}]
        for index, call in enumerate(calls):
            deltas = [part for part in parts if isinstance(part, ToolCallDelta) and part.index == index]
            assert (deltas[0].id, deltas[0].name) == (call.id, "lookup")
            assert "".join(delta.arguments for delta in deltas) == call.arguments

    async def test_tool_results_and_tool_errors_reach_the_model(self, provider: Provider) -> None:
        request = asked()
        first = await provider.generate(request, in_time())
        warm, failed = first.message.tool_calls
        results = (
            Message("tool", (ToolResult(warm.id, '{"degrees": 12}'),)),
            Message("tool", (ToolResult(failed.id, "no station", is_error=True),)),
        )
        second = await provider.generate(
            replace(request, messages=(*request.messages, first.message, *results)), in_time()
        )

        assert second.message.text == "12 degrees, and no station"

    async def test_a_refusal_is_its_own_finish_reason_and_part(self, provider: Provider) -> None:
        response = await provider.generate(asked("answer: {{nothing}}"), in_time())

        assert response.finish_reason == "refusal"
        assert [type(part) for part in response.message.parts] == [Refusal]
        assert "{{nothing}}" in response.message.parts[0].text  # type: ignore[union-attr]

    async def test_tokens_are_counted_as_they_would_be_billed(self, provider: Provider) -> None:
        counted = await provider.count_tokens(asked("answer: ok"), in_time())
        billed = (await provider.generate(asked("answer: ok"), in_time())).usage

        assert billed is not None
        assert counted == (billed.input_tokens if self.counts else None)

    async def test_limits_are_passed_on(self, provider: Provider) -> None:
        request = replace(asked("answer: one two three four"), max_output_tokens=2)
        short = await provider.generate(request, in_time())

        assert (short.finish_reason, short.message.text) == ("length", "one two ")

    async def test_stop_sequences_are_passed_on_or_refused_by_name(
        self, provider: Provider, simulator: RunningSimulator
    ) -> None:
        request = replace(asked("answer: one two three four"), stop=(" three",))
        if not self.stops:
            with pytest.raises(errors.UnsupportedParameter, match="sim-1 does not support stop"):
                await provider.generate(request, in_time())
            assert simulator.usage.total().requests == 0
            return
        stopped = await provider.generate(request, in_time())

        assert (stopped.finish_reason, stopped.warnings, stopped.message.text) == ("stop", (), "one two")

    async def test_a_json_schema_is_passed_on(self, provider: Provider) -> None:
        wanted = OutputFormat("json_schema", schema={"type": "object", "properties": {"a": {"type": "integer"}}})
        good = await provider.generate(replace(asked('answer: {"a": 1}'), output_format=wanted), in_time())
        bad = await provider.generate(replace(asked("answer: no json"), output_format=wanted), in_time())

        assert good.message.text == '{"a": 1}'
        assert bad.finish_reason == "refusal"

    async def test_forbidden_tools_are_not_called(self, provider: Provider) -> None:
        response = await provider.generate(replace(asked(), tools=()), in_time())

        assert response.finish_reason == "refusal"

    async def test_cached_and_reasoning_tokens_are_lines_inside_the_totals(
        self, provider: Provider, simulator: RunningSimulator
    ) -> None:
        simulator.faults.plan(Fault(cached_input_tokens=10, reasoning_tokens=7), requests=2)
        whole = await provider.generate(asked("answer: done"), in_time())
        completed = (await collect(provider, asked("answer: done")))[-1]

        assert whole.usage is not None
        assert isinstance(completed, Completed)
        assert completed.response.usage == whole.usage
        assert UsageLine("input", 10, cache="read") in whole.usage.lines
        assert UsageLine("output", 7, reasoning=True) in whole.usage.lines
        assert whole.usage.output_tokens == 8
        served = simulator.usage.total()
        assert (served.input_tokens, served.output_tokens) == (2 * whole.usage.input_tokens, 16)

    async def test_group_08_missing_usage_is_absent_and_not_zero(self, provider: Provider) -> None:
        whole = await provider.generate(asked("answer: done", "sim-no-usage"), in_time())
        completed = (await collect(provider, asked("answer: done", "sim-no-usage")))[-1]

        assert isinstance(completed, Completed)
        for response in (whole, completed.response):
            assert response.usage is None
            assert response.warnings == ("the provider reported no usage",)

    @pytest.mark.parametrize(
        ("status", "error", "retryable"),
        [
            (400, errors.RequestRejected, False),
            (401, errors.AuthenticationRejected, False),
            (402, errors.PaymentRequired, False),
            (403, errors.PermissionRejected, False),
            (404, errors.ModelNotFound, False),
            (408, errors.ProviderTimedOut, True),
            (409, errors.ProviderConflict, True),
            (413, errors.RequestRejected, False),
            (422, errors.RequestRejected, False),
            (429, errors.ProviderRateLimited, True),
            (500, errors.ProviderFailed, True),
            (503, errors.ProviderOverloaded, True),
            (529, errors.ProviderOverloaded, True),
        ],
    )
    async def test_group_09_each_status_is_a_typed_error(
        self, provider: Provider, status: int, error: type[errors.ProviderError], retryable: bool
    ) -> None:
        with pytest.raises(errors.ProviderError) as whole:
            await provider.generate(asked(model=f"sim-{status}"), in_time())
        with pytest.raises(errors.ProviderError) as streamed:
            await collect(provider, asked(model=f"sim-{status}"))

        for caught in (whole, streamed):
            assert type(caught.value) is error
            assert caught.value.retryable is retryable
            assert (caught.value.status, caught.value.provider) == (status, provider.name)
            assert not caught.value.content_delivered

    async def test_group_09_the_wait_a_provider_asks_for_is_kept(
        self, provider: Provider, simulator: RunningSimulator
    ) -> None:
        simulator.faults.plan(Fault(status=429, headers={"retry-after-ms": "1500", "retry-after": "9"}))
        simulator.faults.plan(Fault(status=429, retry_after="Thu, 01 Jan 2026 00:00:07 GMT"))
        waits = []
        for _ in range(2):
            with pytest.raises(errors.ProviderRateLimited) as caught:
                await provider.generate(asked(), in_time())
            waits.append(caught.value.retry_after_s)

        assert waits == [1.5, 7.0]

    async def test_an_exhausted_quota_is_not_retried(self, provider: Provider, simulator: RunningSimulator) -> None:
        simulator.faults.plan(Fault(status=429, code="insufficient_quota"))

        with pytest.raises(errors.PaymentRequired, match="insufficient_quota"):
            await provider.generate(asked(), in_time())

    async def test_group_09_an_html_error_page_is_a_failed_provider(self, provider: Provider) -> None:
        with pytest.raises(errors.ProviderFailed, match="502 Bad Gateway"):
            await provider.generate(asked(model="sim-html"), in_time())

    async def test_group_09_an_error_inside_an_answer_with_status_200_is_raised(self, provider: Provider) -> None:
        with pytest.raises(errors.ProviderFailed, match="simulated error"):
            await provider.generate(asked(model="sim-error-event"), in_time())

    async def test_group_08_an_error_before_content_may_be_retried_silently(self, provider: Provider) -> None:
        with pytest.raises(errors.RetryableProviderError, match="simulated error") as caught:
            await collect(provider, asked(model="sim-error-event"))

        assert not caught.value.content_delivered

    async def test_an_error_after_content_says_that_content_was_delivered(
        self, provider: Provider, simulator: RunningSimulator
    ) -> None:
        simulator.faults.plan(Fault(error_after_frames=6))

        with pytest.raises(errors.RetryableProviderError) as caught:
            await collect(provider, asked("answer: one two three four five"))
        assert caught.value.content_delivered

    async def test_group_08_a_cut_connection_is_an_interrupted_stream(self, provider: Provider) -> None:
        with pytest.raises(errors.StreamInterrupted):
            await collect(provider, asked("answer: one two three four", "sim-cut"))
        with pytest.raises(errors.StreamInterrupted):
            await provider.generate(asked("answer: one two three four", "sim-cut"), in_time())

    async def test_group_08_a_clean_end_without_terminal_event_is_an_interrupted_stream(
        self, provider: Provider
    ) -> None:
        with pytest.raises(errors.StreamInterrupted, match="without its terminal event") as caught:
            await collect(provider, asked("answer: one two three four", "sim-no-end"))

        assert caught.value.content_delivered

    async def test_a_passed_deadline_ends_the_call(self, provider: Provider) -> None:
        with pytest.raises(errors.DeadlineExceeded):
            await provider.generate(asked(model="sim-slow"), in_time(0.02))
        with pytest.raises(errors.DeadlineExceeded):
            async with aclosing(provider.stream(asked(model="sim-slow"), in_time(0.02))) as stream:
                async for _ in stream:
                    pass

    async def test_a_silent_provider_times_out_before_the_deadline(
        self, impatient_provider: Provider, simulator: RunningSimulator
    ) -> None:
        simulator.faults.plan(Fault(frame_delay_s=30.0))

        with pytest.raises(errors.ProviderTimedOut, match="sent nothing for"):
            await collect(impatient_provider, asked("answer: one two"))

    async def test_leaving_a_stream_closes_the_connection(
        self, provider: Provider, simulator: RunningSimulator
    ) -> None:
        simulator.faults.plan(Fault(frame_delay_s=0.005))
        async with aclosing(provider.stream(asked("answer: " + "word " * 2000), in_time())) as stream:
            async for part in stream:
                if is_content(part):
                    break

        async with asyncio.timeout(DEADLINE_S):
            while not simulator.usage.total().disconnected:  # noqa: ASYNC110 - the simulator offers no event
                await asyncio.sleep(0.001)
        assert simulator.usage.total().answered == 0

    async def test_a_closed_port_is_unreachable(self, unreachable_provider: Provider) -> None:
        with pytest.raises(errors.ProviderUnreachable):
            await unreachable_provider.generate(asked(), in_time())

    async def test_parameters_a_model_does_not_take_are_left_out_with_a_warning(self, provider: Provider) -> None:
        request = replace(asked("answer: ok"), **self.not_taken)
        response = await provider.generate(request, in_time())

        assert response.message.text == "ok"
        assert response.warnings == (f"{next(iter(self.not_taken))} is not supported by sim-1 and was left out",)

        first, *_, completed = await collect(provider, request)
        assert first == Warned(response.warnings)
        assert isinstance(completed, Completed)
        assert completed.response.warnings == response.warnings

    async def test_many_calls_at_once_do_not_mix(self, provider: Provider) -> None:
        requests = [asked(f"answer: number {number}") for number in range(20)]
        streams = await asyncio.gather(*(collect(provider, request) for request in requests))

        texts = [parts[-1].response.message.text for parts in streams if isinstance(parts[-1], Completed)]
        assert texts == [f"number {number}" for number in range(20)]
