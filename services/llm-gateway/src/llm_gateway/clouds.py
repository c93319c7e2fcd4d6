"""The providers in clouds as entries of the catalogue. They are reached through SDKs, which are opened with the service."""

from __future__ import annotations

from contextlib import AsyncExitStack

from llm_gateway.catalogue import ANY_MODEL_IN_A_PATH, ProviderEntry
from llm_gateway.providers import catalog, clouds
from llm_gateway.providers.catalog import Now
from llm_gateway.providers.provider import Provider
from llm_gateway.settings import Settings


async def cloud_entries(stack: AsyncExitStack, settings: Settings, now: Now) -> tuple[ProviderEntry, ...]:
    """Each cloud that can be configured; its clients close with the stack. Raises CloudSdkMissing."""
    return (
        await _azure(stack, settings, now),
        await _vertex(stack, settings, now),
        await _bedrock(stack, settings, now),
    )


async def _azure(stack: AsyncExitStack, settings: Settings, now: Now) -> ProviderEntry:
    """Deployments have names of their own there, so any is passed on."""
    provider: Provider | None = None
    if settings.azure_openai_endpoint and settings.azure_openai_api_key:
        opening = clouds.azure_openai(
            now,
            endpoint=settings.azure_openai_endpoint,
            api_key=settings.azure_openai_api_key.get_secret_value(),
            api_version=settings.azure_openai_api_version,
        )
        provider = await stack.enter_async_context(opening)
    remedy = "set AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_API_KEY"
    return ProviderEntry(
        "azure",
        "openai-chat",
        catalog.OPENAI,
        provider,
        remedy,
        accepts=ANY_MODEL_IN_A_PATH,
        profiles=catalog.OPENAI_FAMILIES,
    )


async def _vertex(stack: AsyncExitStack, settings: Settings, now: Now) -> ProviderEntry:
    provider: Provider | None = None
    if settings.vertex_project_id:
        token = settings.vertex_access_token
        opening = clouds.anthropic_vertex(
            now,
            project_id=settings.vertex_project_id,
            region=settings.vertex_region,
            access_token=token.get_secret_value() if token else "",
            base_url=settings.vertex_base_url,
        )
        provider = await stack.enter_async_context(opening)
    remedy = "set ANTHROPIC_VERTEX_PROJECT_ID"
    return ProviderEntry(
        "vertex",
        "anthropic-messages",
        catalog.ANTHROPIC,
        provider,
        remedy,
        accepts=ANY_MODEL_IN_A_PATH,
        profiles=catalog.ANTHROPIC_CLOUD_FAMILIES,
    )


async def _bedrock(stack: AsyncExitStack, settings: Settings, now: Now) -> ProviderEntry:
    provider: Provider | None = None
    if settings.bedrock_region:
        key = settings.bedrock_api_key
        opening = clouds.anthropic_bedrock(
            now,
            region=settings.bedrock_region,
            api_key=key.get_secret_value() if key else "",
            base_url=settings.bedrock_base_url,
            control_url=settings.bedrock_control_url,
        )
        provider = await stack.enter_async_context(opening)
    return ProviderEntry(
        "aws",
        "anthropic-messages",
        catalog.ANTHROPIC,
        provider,
        "set SYNOD_BEDROCK_REGION",
        accepts=ANY_MODEL_IN_A_PATH,
    )
