"""gRPC in: translate, call, translate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import grpc
from servicekit import paging
from servicekit.context import current_principal, event_context
from servicekit.errors import InvalidArgument
from synod.agent_runtime.v1 import agent_runtime_pb2 as pb
from synod.agent_runtime.v1 import agent_runtime_pb2_grpc

from agent_runtime import translate
from agent_runtime.application import Runtime
from agent_runtime.projections import Queries, page_key
from agent_runtime.work.watch import Watcher

PERMISSIONS: Final = {
    "StartRun": "runs.start",
    "GetRun": "runs.read",
    "ListRuns": "runs.read",
    "WatchRun": "runs.read",
    "CancelRun": "runs.cancel",
    "ReplayRun": "runs.replay",
    "CreateConversation": "conversations.create",
    "SendMessage": "conversations.send",
    "GetConversation": "conversations.read",
}

Context = grpc.aio.ServicerContext[object, object]


@dataclass(frozen=True, slots=True)
class AgentRuntimeRpc(agent_runtime_pb2_grpc.AgentRuntimeServicer):
    runtime: Runtime
    watcher: Watcher
    queries: Queries

    async def StartRun(self, request: pb.StartRunRequest, context: Context) -> pb.Run:
        return translate.from_run(await self.runtime.start_run(event_context(), translate.to_start_run(request)))

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.Run:
        return translate.from_run(await self.runtime.get_run(current_principal().tenant, request.id))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        size, before = paging.page_size(request.page_size), _before(request.page_token)
        wanted = translate.STATE_NAMES.get(request.state, "")
        rows = await self.queries.runs(current_principal().tenant, wanted, request.roots_only, before, size)
        token = paging.next_page_token([page_key(row) for row in rows], size)
        return pb.ListRunsResponse(runs=[translate.from_row(row) for row in rows], next_page_token=token)

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[pb.RunUpdate]:
        tenant = current_principal().tenant
        async for seen in self.watcher.watch(tenant, request.id, request.after_cursor, request.tokens):
            yield translate.from_seen(seen)

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.Run:
        return translate.from_run(await self.runtime.cancel_run(event_context(), request.id, request.reason))

    async def ReplayRun(self, request: pb.ReplayRunRequest, context: Context) -> pb.ReplayRunResponse:
        return translate.from_replayed(await self.runtime.replay_run(current_principal().tenant, request.id))

    async def CreateConversation(self, request: pb.CreateConversationRequest, context: Context) -> pb.Conversation:
        state = await self.runtime.create_conversation(event_context(), request.request_id, request.definition)
        return translate.from_conversation(state)

    async def SendMessage(self, request: pb.SendMessageRequest, context: Context) -> pb.Run:
        sent = self.runtime.send_message(event_context(), request.request_id, request.conversation_id, request.text)
        return translate.from_run(await sent)

    async def GetConversation(self, request: pb.GetConversationRequest, context: Context) -> pb.Conversation:
        state = await self.runtime.get_conversation(current_principal().tenant, request.id)
        return translate.from_conversation(state)


def _before(token: str) -> str:
    key = paging.page_key(token)
    if key and len(key.split(" ")) != 2:
        raise InvalidArgument("page_token", token, "is not one of this method; pass none to begin")
    return key
