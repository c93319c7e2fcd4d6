"""Providers in clouds that have ways of their own to sign in, through their SDKs.

The SDKs are an extra of this service (`pip install synod-llm-gateway[clouds]`), imported only when a cloud is configured.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from llm_gateway.errors import CloudSdkMissing
from llm_gateway.providers import catalog
from llm_gateway.providers.anthropic_messages import AnthropicMessagesDialect
from llm_gateway.providers.bedrock import BedrockMessagesDialect
from llm_gateway.providers.catalog import Now
from llm_gateway.providers.http import Endpoint, HttpProvider
from llm_gateway.providers.openai_chat import OpenAiChatDialect
from llm_gateway.providers.sdk_transport import SdkTransport
from llm_gateway.providers.transport import TransportLimits

if TYPE_CHECKING:
    from anthropic import OpenTelemetryOptions

_QUIET: Final[OpenTelemetryOptions] = {"traces": False, "propagation": False}
"""A span of ours is told already, and no provider has to know its id."""


@asynccontextmanager
async def azure_openai(
    now: Now, *, endpoint: str, api_key: str, api_version: str, limits: TransportLimits | None = None
) -> AsyncIterator[HttpProvider]:
    """Azure OpenAI; its models are named by their deployments there. Raises CloudSdkMissing."""
    try:
        import openai
    except ImportError:
        raise CloudSdkMissing("azure", "openai") from None
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=endpoint, api_key=api_key, api_version=api_version, max_retries=0
    ) as client:
        place = Endpoint("azure", "", api_key, catalog.OPENAI, catalog.OPENAI_FAMILIES)
        yield HttpProvider(place, OpenAiChatDialect(), SdkTransport(client, openai, limits), now)


@asynccontextmanager
async def anthropic_vertex(
    now: Now,
    *,
    project_id: str,
    region: str,
    access_token: str = "",
    base_url: str = "",
    limits: TransportLimits | None = None,
) -> AsyncIterator[HttpProvider]:
    """Claude on Google's Vertex AI. Without a token the SDK finds and renews the machine's own. Raises CloudSdkMissing."""
    try:
        import anthropic
    except ImportError:
        raise CloudSdkMissing("vertex", "anthropic[vertex]") from None
    async with anthropic.AsyncAnthropicVertex(
        project_id=project_id,
        region=region,
        access_token=access_token or None,
        base_url=base_url or None,
        max_retries=0,
        open_telemetry=_QUIET,
    ) as client:
        place = Endpoint("vertex", "", access_token, catalog.ANTHROPIC)
        yield HttpProvider(place, AnthropicMessagesDialect(), SdkTransport(client, anthropic, limits), now)


@asynccontextmanager
async def anthropic_bedrock(
    now: Now,
    *,
    region: str,
    api_key: str = "",
    base_url: str = "",
    control_url: str = "",
    limits: TransportLimits | None = None,
) -> AsyncIterator[HttpProvider]:
    """Claude on Amazon Bedrock; models have the names of inference profiles there, as eu.anthropic.claude-opus-5.

    Without a key the SDK signs as the machine, by whatever AWS finds there. `control_url` is where models are listed.
    Raises CloudSdkMissing.
    """
    try:
        import anthropic
    except ImportError:
        raise CloudSdkMissing("aws", "anthropic[bedrock]") from None
    if not api_key and importlib.util.find_spec("boto3") is None:
        raise CloudSdkMissing("aws", "anthropic[bedrock]")
    async with anthropic.AsyncAnthropicBedrock(
        aws_region=region,
        api_key=api_key or None,
        base_url=base_url or None,
        max_retries=0,
        open_telemetry=_QUIET,
    ) as client:
        place = Endpoint("aws", "", api_key, catalog.ANTHROPIC)
        dialect = BedrockMessagesDialect(control_url or f"https://bedrock.{region}.amazonaws.com")
        yield HttpProvider(place, dialect, SdkTransport(client, anthropic, limits), now)
