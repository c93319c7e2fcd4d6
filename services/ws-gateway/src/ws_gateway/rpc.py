"""gRPC in: translate, call, translate."""

import base64
import binascii
from dataclasses import dataclass
from typing import Final

import grpc
from servicekit.context import current_principal
from servicekit.errors import InvalidArgument
from synod.ws_gateway.v1 import ws_gateway_pb2 as pb
from synod.ws_gateway.v1 import ws_gateway_pb2_grpc

from ws_gateway import translate
from ws_gateway.errors import SessionUnknown
from ws_gateway.projections import Queries, SessionRow
from ws_gateway.sessions import Register

PERMISSIONS: Final = {"ListSessions": "sessions.read", "CloseSession": "sessions.close"}
CLOSED_BY_OPERATOR: Final = 4403
PAGE_DEFAULT, PAGE_MAX = 100, 1000

Context = grpc.aio.ServicerContext[object, object]


@dataclass(frozen=True, slots=True)
class WsGatewayRpc(ws_gateway_pb2_grpc.WsGatewayServicer):
    register: Register
    queries: Queries

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:
        size = _page_size(request.page_size)
        tenant = current_principal().tenant
        rows = await self.queries.sessions(tenant, request.closed, _page_key(request.page_token), size)
        last = rows[-1].id if len(rows) == size else ""
        return pb.ListSessionsResponse(sessions=[self._session(row) for row in rows], next_page_token=_token(last))

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


def _page_size(asked: int) -> int:
    if not 0 <= asked <= PAGE_MAX:
        raise InvalidArgument("page_size", asked, f"must be 0 (for {PAGE_DEFAULT}) to {PAGE_MAX}")
    return asked or PAGE_DEFAULT


def _token(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


def _page_key(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidArgument("page_token", token, "is not one of ours; start without one") from None
