"""agent-registry, as far as an edge asks it who calls."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc
from servicekit.errors import from_rpc_error
from synod.agent_registry.v1 import agent_registry_pb2 as pb

if TYPE_CHECKING:  # the generated stubs know this class in their types only
    from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryAsyncStub


@dataclass(frozen=True, slots=True)
class RegistryKeys:
    """See callers.KeyExchange."""

    stub: "AgentRegistryAsyncStub"

    async def authenticate(self, api_key: str) -> tuple[str, datetime]:
        try:
            answer = await self.stub.Authenticate(pb.AuthenticateRequest(api_key=api_key))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return answer.token, answer.expires_at.ToDatetime(UTC)
