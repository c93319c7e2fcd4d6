"""gRPC in: translate, call, translate. Which permission a method needs is beside it."""

from collections.abc import Mapping
from typing import Any, Final

import grpc
from synod.agent_registry.v1 import agent_registry_pb2 as pb
from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryServicer

from agent_registry import translate
from agent_registry.application import Agents, Definitions, Identity

PERMISSIONS: Final[Mapping[str, str]] = {
    "Authenticate": "",
    "CreatePrincipal": "principals.create",
    "ListPrincipals": "principals.read",
    "CreateApiKey": "keys.create",
    "RevokeApiKey": "keys.revoke",
    "ListApiKeys": "keys.read",
    "Define": "definitions.create",
    "GetDefinition": "definitions.read",
    "ListDefinitions": "definitions.read",
    "CreateAgent": "agents.create",
    "GetAgent": "agents.read",
    "ListAgents": "agents.read",
    "DiscoverAgents": "agents.read",
    "RegisterExternalAgent": "agents.register",
    "Heartbeat": "agents.heartbeat",
    "ChangeAgentState": "agents.update",
}

Context = grpc.aio.ServicerContext[Any, Any]


class AgentRegistryRpc(AgentRegistryServicer):
    def __init__(self, identity: Identity, definitions: Definitions, agents: Agents) -> None:
        self._identity = identity
        self._definitions = definitions
        self._agents = agents

    async def Authenticate(self, request: pb.AuthenticateRequest, context: Context) -> pb.AuthenticateResponse:
        return translate.session(await self._identity.authenticate(request.api_key))

    async def CreatePrincipal(self, request: pb.CreatePrincipalRequest, context: Context) -> pb.Principal:
        kind = translate.kind(request.kind)
        record = await self._identity.create_principal(request.name, kind, tuple(request.roles), request.request_id)
        return translate.principal(record)

    async def ListPrincipals(self, request: pb.ListPrincipalsRequest, context: Context) -> pb.ListPrincipalsResponse:
        page = translate.page(request)
        records = await self._identity.list_principals(page)
        token = translate.next_page(records, page, lambda record: (record.id,))
        return pb.ListPrincipalsResponse(principals=map(translate.principal, records), next_page_token=token)

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: Context) -> pb.CreateApiKeyResponse:
        expires_at = translate.when(request)
        key = await self._identity.create_key(request.principal_id, request.label, expires_at, request.request_id)
        return translate.new_key(key)

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, context: Context) -> pb.ApiKey:
        return translate.key(await self._identity.revoke_key(request.id, request.reason))

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: Context) -> pb.ListApiKeysResponse:
        page = translate.page(request)
        records = await self._identity.list_keys(request.principal_id, page)
        token = translate.next_page(records, page, lambda record: (record.id,))
        return pb.ListApiKeysResponse(keys=map(translate.key, records), next_page_token=token)

    async def Define(self, request: pb.DefineRequest, context: Context) -> pb.DefineResponse:
        records = await self._definitions.define(request.yaml, validate_only=request.validate_only)
        return pb.DefineResponse(definitions=map(translate.definition, records))

    async def GetDefinition(self, request: pb.GetDefinitionRequest, context: Context) -> pb.Definition:
        return translate.definition(await self._definitions.get(request.reference))

    async def ListDefinitions(self, request: pb.ListDefinitionsRequest, context: Context) -> pb.ListDefinitionsResponse:
        page = translate.page(request, parts=2)
        records = await self._definitions.list_definitions(page, all_versions=request.all_versions)
        token = translate.next_page(records, page, lambda record: (record.name, str(record.version)))
        return pb.ListDefinitionsResponse(definitions=map(translate.definition, records), next_page_token=token)

    async def CreateAgent(self, request: pb.CreateAgentRequest, context: Context) -> pb.Agent:
        return translate.agent(await self._agents.create(request.definition, request.name, request.request_id))

    async def GetAgent(self, request: pb.GetAgentRequest, context: Context) -> pb.Agent:
        return translate.agent(await self._agents.get(request.agent))

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Context) -> pb.ListAgentsResponse:
        page = translate.page(request)
        records = await self._agents.list_agents(page, translate.filter_state(request.state))
        token = translate.next_page(records, page, lambda record: (record.id,))
        return pb.ListAgentsResponse(agents=map(translate.agent, records), next_page_token=token)

    async def DiscoverAgents(self, request: pb.DiscoverAgentsRequest, context: Context) -> pb.DiscoverAgentsResponse:
        found = self._agents.discover(request.capabilities, translate.discover_limit(request.limit))
        return pb.DiscoverAgentsResponse(agents=map(translate.agent, found))

    async def RegisterExternalAgent(self, request: pb.RegisterExternalAgentRequest, context: Context) -> pb.Agent:
        capabilities = tuple(request.capabilities)
        return translate.agent(await self._agents.register_external(request.name, capabilities, request.request_id))

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatResponse:
        state = await self._agents.heartbeat(request.agent_id, request.incarnation, translate.busy(request.busy))
        interval_ms = int(self._agents.heartbeat_interval.total_seconds() * 1000)
        return pb.HeartbeatResponse(interval_ms=interval_ms, state=translate.state(state))

    async def ChangeAgentState(self, request: pb.ChangeAgentStateRequest, context: Context) -> pb.Agent:
        target = translate.ordered_state(request.state)
        return translate.agent(await self._agents.change_state(request.agent_id, target, request.reason))
