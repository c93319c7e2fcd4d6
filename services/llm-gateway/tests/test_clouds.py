"""Providers behind the SDKs of clouds keep the same contract, against the simulator at the addresses these SDKs build."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from llm_gateway.catalogue import Catalogue
from llm_gateway.clouds import cloud_entries
from llm_gateway.errors import CloudSdkMissing, ModelUnavailable, RequestRejected
from llm_gateway.providers import clouds
from llm_gateway.providers.provider import Provider
from llm_gateway.providers.testing import ProviderContract, asked, in_time
from llm_gateway.providers.transport import TransportLimits
from llm_gateway.settings import Settings
from provider_simulator.faults import Fault
from provider_simulator.testing import FIXED_NOW, RunningSimulator

CLOSED_PORT_ORIGIN = "http://127.0.0.1:9"
Make = Callable[[str, TransportLimits], AbstractAsyncContextManager[Provider]]


def azure(origin: str, limits: TransportLimits) -> AbstractAsyncContextManager[Provider]:
    return clouds.azure_openai(
        lambda: FIXED_NOW, endpoint=origin, api_key="key", api_version="2026-10-01", limits=limits
    )


def vertex(origin: str, limits: TransportLimits) -> AbstractAsyncContextManager[Provider]:
    return clouds.anthropic_vertex(
        lambda: FIXED_NOW, project_id="p", region="eu", access_token="token", base_url=origin, limits=limits
    )


def bedrock(origin: str, limits: TransportLimits) -> AbstractAsyncContextManager[Provider]:
    return clouds.anthropic_bedrock(
        lambda: FIXED_NOW, region="eu-central-1", api_key="key", base_url=origin, control_url=origin, limits=limits
    )


class _CloudContract(ProviderContract):
    """`make` opens the adapter under test for an origin."""

    make: Make

    @pytest.fixture
    async def stack(self) -> AsyncIterator[AsyncExitStack]:
        async with AsyncExitStack() as stack:
            yield stack

    async def opened(self, stack: AsyncExitStack, origin: str, limits: TransportLimits) -> Provider:
        return await stack.enter_async_context(type(self).make(origin, limits))

    @pytest.fixture
    async def provider(self, stack: AsyncExitStack, simulator: RunningSimulator) -> Provider:
        return await self.opened(stack, simulator.origin, TransportLimits())

    @pytest.fixture
    async def impatient_provider(self, stack: AsyncExitStack, simulator: RunningSimulator) -> Provider:
        return await self.opened(stack, simulator.origin, TransportLimits(idle_s=0.05))

    @pytest.fixture
    async def unreachable_provider(self, stack: AsyncExitStack) -> Provider:
        return await self.opened(stack, CLOSED_PORT_ORIGIN, TransportLimits())


class TestAzureOpenAi(_CloudContract):
    counts = False
    make = staticmethod(azure)


class TestAnthropicOnVertex(_CloudContract):
    make = staticmethod(vertex)


class TestAnthropicOnBedrock(_CloudContract):
    counts = False
    make = staticmethod(bedrock)


@pytest.mark.parametrize("make", [azure, vertex, bedrock])
async def test_an_sdk_repeats_nothing_by_itself(make: Make, simulator: RunningSimulator) -> None:
    simulator.faults.plan(Fault(status=503), requests=3)
    async with make(simulator.origin, TransportLimits()) as provider:
        with pytest.raises(Exception, match="503"):
            await provider.generate(asked("answer: ok"), in_time())
    assert simulator.usage.total().requests == 1


@pytest.mark.parametrize("make", [azure, vertex, bedrock])
async def test_an_sdk_goes_nowhere_with_its_key_but_where_the_key_is_for(
    make: Make, simulator: RunningSimulator
) -> None:
    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{simulator.origin}{request.path_qs}"})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", redirect)
    async with TestServer(application) as elsewhere, make(str(elsewhere.make_url("")), TransportLimits()) as provider:
        with pytest.raises(RequestRejected) as refused:
            await provider.generate(asked("answer: ok"), in_time())
    assert refused.value.status == 307
    assert simulator.usage.total().requests == 0


@pytest.mark.parametrize(("make", "module"), [(azure, "openai"), (vertex, "anthropic"), (bedrock, "anthropic")])
async def test_a_missing_sdk_is_named_with_what_to_install(
    make: Make, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CloudSdkMissing, match=r"install synod-llm-gateway\[clouds\]"):
        async with make(CLOSED_PORT_ORIGIN, TransportLimits()):
            pass


async def test_a_service_opens_the_clouds_that_are_configured_and_names_what_the_others_need(
    simulator: RunningSimulator,
) -> None:
    settings = Settings(
        postgres_dsn="unused",
        nats_url="unused",
        auth_public_key_file="unused",
        azure_openai_endpoint=simulator.origin,
        azure_openai_api_key="key",
        vertex_project_id="",
        bedrock_region="eu-central-1",
        bedrock_api_key="key",
        bedrock_base_url=simulator.origin,
        bedrock_control_url=simulator.origin,
    )
    async with AsyncExitStack() as stack:
        catalogue = Catalogue(await cloud_entries(stack, settings, lambda: FIXED_NOW))
        answer = await catalogue.target("azure/sim-1").provider.generate(asked("answer: ok"), in_time())
        assert answer.message.text == "ok"
        answer = await catalogue.target("aws/sim-1").provider.generate(asked("answer: ok"), in_time())
        assert answer.message.text == "ok"
        with pytest.raises(ModelUnavailable, match="set ANTHROPIC_VERTEX_PROJECT_ID"):
            catalogue.target("vertex/claude-opus-5")
