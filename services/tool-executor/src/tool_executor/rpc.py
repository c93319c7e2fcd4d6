"""gRPC in: translate, call, translate."""

import asyncio
from dataclasses import dataclass
from typing import Final

import grpc
from eventlog.log import EventLog
from eventlog.projections import Projector
from servicekit.clock import Clock
from servicekit.context import current_call, current_principal, event_context
from servicekit.errors import PermissionDenied
from synod.tool_executor.v1 import tool_executor_pb2 as pb
from synod.tool_executor.v1 import tool_executor_pb2_grpc

from tool_executor import translate
from tool_executor.application import ToolExecutor
from tool_executor.domain import EVERY
from tool_executor.errors import GrantUnknown, ToolUnknown
from tool_executor.grants import Grants
from tool_executor.manifests import Catalogue
from tool_executor.projections import Queries
from tool_executor.workspaces import Workspaces

PERMISSIONS: Final = {
    "ListTools": "tools.read",
    "GetTool": "tools.read",
    "GrantTool": "tools.grant",
    "RevokeGrant": "tools.grant",
    "ListGrants": "tools.read",
    "Execute": "tools.execute",
    "GetToolCall": "tools.read",
    "CancelToolCall": "tools.execute",
    "ReconcileToolCall": "tools.reconcile",
    "PutFile": "tools.execute",
    "GetFile": "tools.read",
    "ListFiles": "tools.read",
}
EXECUTE: Final = "tools.execute"
VIEW_WAIT_S: Final = 5.0

Context = grpc.aio.ServicerContext[object, object]


@dataclass(frozen=True, slots=True)
class ToolExecutorRpc(tool_executor_pb2_grpc.ToolExecutorServicer):
    executor: ToolExecutor
    grants: Grants
    catalogue: Catalogue
    workspaces: Workspaces
    queries: Queries
    grants_view: Projector
    log: EventLog
    clock: Clock

    async def ListTools(self, request: pb.ListToolsRequest, context: Context) -> pb.ListToolsResponse:
        return translate.from_catalogue(self.catalogue)

    async def GetTool(self, request: pb.GetToolRequest, context: Context) -> pb.Tool:
        try:
            return translate.from_manifest(self.catalogue.find(request.reference).manifest)
        except ToolUnknown:
            registered = await self.queries.manifest(*_versioned(request.reference))
            if registered is None:
                raise
            return translate.from_manifest(registered)

    async def GrantTool(self, request: pb.GrantToolRequest, context: Context) -> pb.Grant:
        agent, tool = translate.name("agent", request.agent), translate.name("tool", request.tool)
        if tool != EVERY:
            self.catalogue.find(tool)
        return await self._grant(await self.grants.grant(agent, tool, request.request_id, event_context()))

    async def RevokeGrant(self, request: pb.RevokeGrantRequest, context: Context) -> pb.Grant:
        await self.grants.revoke(translate.name("id", request.id), event_context())
        return await self._grant(request.id)

    async def ListGrants(self, request: pb.ListGrantsRequest, context: Context) -> pb.ListGrantsResponse:
        await self._view_is_current()
        rows = await self.queries.grants(current_principal().tenant, request.agent)
        return pb.ListGrantsResponse(grants=[translate.from_grant(row) for row in rows])

    async def Execute(self, request: pb.ExecuteRequest, context: Context) -> pb.ToolCall:
        _check_agent(request.agent)
        order = translate.to_order(request, current_principal().tenant, self._time_left_s())
        run = order.attribution.root_run_id or order.attribution.run_id
        return translate.from_answer(await self.executor.execute(order, event_context(correlation=run)))

    async def GetToolCall(self, request: pb.GetToolCallRequest, context: Context) -> pb.ToolCall:
        return translate.from_call(await self.executor.call(request.call_id, event_context()))

    async def CancelToolCall(self, request: pb.CancelToolCallRequest, context: Context) -> pb.ToolCall:
        return translate.from_call(await self.executor.cancel(request.call_id, event_context()))

    async def ReconcileToolCall(self, request: pb.ReconcileToolCallRequest, context: Context) -> pb.ToolCall:
        command = translate.to_reconcile(request, current_principal().actor)
        return translate.from_call(await self.executor.reconcile(request.call_id, command, event_context()))

    async def PutFile(self, request: pb.PutFileRequest, context: Context) -> pb.WorkspaceFile:
        tenant = event_context().tenant
        put = self.workspaces.put
        return translate.from_file(
            await asyncio.to_thread(put, tenant, request.workspace_id, request.path, request.content)
        )

    async def GetFile(self, request: pb.GetFileRequest, context: Context) -> pb.GetFileResponse:
        tenant = event_context().tenant
        file, content = await asyncio.to_thread(self.workspaces.get, tenant, request.workspace_id, request.path)
        return pb.GetFileResponse(file=translate.from_file(file), content=content)

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:
        tenant = event_context().tenant
        files = await asyncio.to_thread(self.workspaces.files, tenant, request.workspace_id)
        return pb.ListFilesResponse(files=[translate.from_file(file) for file in files])

    async def _grant(self, id: str) -> pb.Grant:
        await self._view_is_current()
        row = await self.queries.grant(id)
        if row is None:
            raise GrantUnknown(id)
        return translate.from_grant(row)

    async def _view_is_current(self) -> None:
        """Whoever granted something finds it in what he reads next."""
        await self.grants_view.wait_for(await self.log.head(), VIEW_WAIT_S)

    def _time_left_s(self) -> float | None:
        deadline = current_call().deadline
        return None if deadline is None else deadline - self.clock.monotonic()


def _check_agent(agent: str) -> None:
    """A service executes for the agents it runs, a person as any of his tenant's; an agent only as itself."""
    principal = current_principal()
    if principal.kind == "agent" and agent != principal.id:
        raise PermissionDenied(EXECUTE, principal.id, message=f"{principal.id} may not use tools as '{agent}'")


def _versioned(reference: str) -> tuple[str, str]:
    name, _, version = reference.partition("@")
    return name, version
