"""The composition root of agent-registry."""

import secrets
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial

from eventlog.projections import Projector
from eventlog.sources import StreamSource
from servicekit.app import run
from servicekit.host import Host
from synod.agent_registry.v1.agent_registry_pb2_grpc import add_AgentRegistryServicer_to_server

from agent_registry import keys, watch
from agent_registry.application import CODEC, Agents, Definitions, Identity, Terms
from agent_registry.directory import Directory
from agent_registry.domain import RestartIntensity
from agent_registry.errors import ViewBehind
from agent_registry.files import read_key, read_service_keys, read_signing_key
from agent_registry.projections import (
    AgentQueries,
    AgentsView,
    DefinitionQueries,
    DefinitionsView,
    PrincipalQueries,
    PrincipalsView,
    ToolQueries,
    ToolsView,
)
from agent_registry.rpc import PERMISSIONS, AgentRegistryRpc
from agent_registry.settings import Settings
from agent_registry.subscriptions import RuntimeOutcomes
from agent_registry.translate import ERRORS

VIEW_WAIT_S = 5.0


async def compose(host: Host[Settings]) -> None:
    settings, log, terms = host.settings, await host.open_log(), _terms(host.settings)
    directory = Directory(CODEC)
    principals_view = host.add_view(PrincipalsView(host.vault))
    principal_queries = PrincipalQueries(host.pool, _reached(principals_view))
    definition_queries = DefinitionQueries(host.pool, _reached(host.add_view(DefinitionsView())))
    agent_queries = AgentQueries(host.pool, _reached(host.add_view(AgentsView())))
    host.add_view(ToolsView(), StreamSource(host.nats, "tool-executor"))

    signing_key = read_signing_key(settings.signing_key_file)
    identity = Identity(log, principal_queries, host.clock, signing_key, _secret, terms, host.vault)
    definitions = Definitions(log, definition_queries, ToolQueries(host.pool), host.clock)
    agents = Agents(log, agent_queries, directory, definitions, host.clock, terms)
    host.add_view(RuntimeOutcomes(agents), StreamSource(host.nats, "agent-runtime"))

    host.add_rpc(
        add_AgentRegistryServicer_to_server, AgentRegistryRpc(identity, definitions, agents), PERMISSIONS, ERRORS
    )
    host.add_task("directory", partial(directory.follow, log))
    host.add_task("health", partial(watch.sweep_forever, agents, terms.heartbeat_interval / 5))
    position = await identity.establish(
        settings.tenant, read_key(settings.dev_key_file), read_service_keys(settings.service_keys_file)
    )
    # Whoever reaches a ready registry can authenticate, and finds the agents that there were before.
    host.on_ready(partial(principals_view.wait_for, position, settings.limits.startup_s))
    host.on_ready(partial(directory.reached, await log.head()))


def main() -> int:
    return run(Settings, compose)


def _terms(settings: Settings) -> Terms:
    return Terms(
        token_ttl=timedelta(seconds=settings.token_ttl_s),
        heartbeat_interval=timedelta(milliseconds=settings.heartbeat_interval_ms),
        suspect_after=settings.suspect_after_intervals,
        offline_after=settings.offline_after_intervals,
        intensity=RestartIntensity(settings.restarts_max, timedelta(seconds=settings.restarts_within_s)),
    )


def _secret() -> str:
    return secrets.token_urlsafe(keys.SECRET_BYTES)


def _reached(projector: Projector) -> Callable[[int], Awaitable[None]]:
    async def reached(position: int) -> None:
        if position and await projector.wait_for(position, VIEW_WAIT_S) < position:
            raise ViewBehind(projector.view.name, position)

    return reached
