"""gRPC in: translate, call, translate."""

from dataclasses import dataclass
from typing import Final

import grpc
from servicekit.context import current_principal
from servicekit.paging import next_page_token, page_key, page_size
from synod.ws_gateway.v1 import ws_gateway_pb2 as pb
from synod.ws_gateway.v1 import ws_gateway_pb2_grpc

from ws_gateway import translate
from ws_gateway.errors import SessionUnknown
from ws_gateway.projections import Queries, SessionRow
from ws_gateway.sessions import Register

PERMISSIONS: Final = {"ListSessions": "sessions.read", "CloseSession": "sessions.close"}
CLOSED_BY_OPERATOR: Final = 4403

Context = grpc.aio.ServicerContext[object, object]


@dataclass(frozen=True, slots=True)
class WsGatewayRpc(ws_gateway_pb2_grpc.WsGatewayServicer):
    register: Register
    queries: Queries

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:
        size = page_size(request.page_size)
        tenant = current_principal().tenant
        rows = await self.queries.sessions(tenant, request.closed, page_key(request.page_token), size)
        token = next_page_token([row.id for row in rows], size)
        return pb.ListSessionsResponse(sessions=[self._session(row) for row in rows], next_page_token=token)

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Context) -> pb.Session:
        live = self.register.get(current_principal().tenant, request.id)
        if live is None:
            raise SessionUnknown(request.id)
        live.connection.end(CLOSED_BY_OPERATOR, request.reason or "closed by an operator")
        return pb.Session(
            id=live.id,
            tenant_id=live.caller.principal.tenant,
            principal_id=live.caller.principal.id,
            channels=live.connection.channels,
            frames_sent=live.frames_sent,
            frames_dropped=live.connection.frames_dropped,
        )

    def _session(self, row: SessionRow) -> pb.Session:
        live = self.register.get(row.tenant, row.id)
        if live is None:
            return translate.from_session(row, (), row.frames_sent, row.frames_dropped)
        connection = live.connection
        return translate.from_session(row, connection.channels, live.frames_sent, connection.frames_dropped)
