"""Further processes of llm-gateway beside the one of a running system, on the same database."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import grpc
from launcher.layout import MODELS
from launcher.processes import Command, free_port, kill_group, start
from launcher.programs import ask_ready, environment
from launcher.system import System
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryStub
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod.llm_gateway.v1.llm_gateway_pb2_grpc import LlmGatewayStub

READY_S: Final = 60
LOOK_AGAIN_S: Final = 0.05


@dataclass(frozen=True)
class Replica:
    address: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """As kill -9 does."""
        kill_group(self.process.pid)
        self.process.wait()


@dataclass
class Gateways:
    """All replicas by number, the system's own first. Calls are made as the person at this machine."""

    system: System
    token: str
    replicas: list[Replica]
    _stack: AsyncExitStack
    _stubs: list[LlmGatewayStub] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._stubs)

    async def generate(self, number: int, request: pb.GenerateRequest) -> pb.GenerateResponse:
        metadata = (("authorization", f"Bearer {self.token}"),)
        return await self._stubs[number].Generate(request, metadata=metadata, timeout=READY_S)

    async def kill(self, number: int) -> None:
        """The system's own is started again by the launcher; any other is gone until `restore`."""
        if number == 0:
            self.system.kill(MODELS)
        else:
            await asyncio.to_thread(self.replicas[number - 1].kill)

    async def restore(self) -> None:
        """As many replicas as at the beginning, all ready."""
        for number, replica in enumerate(self.replicas):
            if replica.process.poll() is not None:
                self.replicas[number] = await started(self.system)
        await self.connect()

    async def connect(self) -> None:
        addresses = (self.system.endpoints[MODELS], *(replica.address for replica in self.replicas))
        channels = [grpc.aio.insecure_channel(address) for address in addresses]
        self._stubs = [LlmGatewayStub(await self._stack.enter_async_context(channel)) for channel in channels]
        async with asyncio.timeout(READY_S):
            for channel in channels:
                await channel.channel_ready()

    def end(self) -> None:
        for replica in self.replicas:
            replica.kill()


@asynccontextmanager
async def gateways(system: System, count: int) -> AsyncIterator[Gateways]:
    """The system's gateway and as many others as make `count`; the others are gone at the end."""
    async with AsyncExitStack() as stack, grpc.aio.insecure_channel(system.endpoints["agent-registry"]) as registry:
        asked = registry_pb.AuthenticateRequest(api_key=system.dev_key)
        token = (await AgentRegistryStub(registry).Authenticate(asked)).token
        others = [await started(system) for _ in range(count - 1)]
        found = Gateways(system, token, others, stack)
        try:
            await found.connect()
            yield found
        finally:
            found.end()


async def started(system: System) -> Replica:
    """A gateway with the settings of the system's own but for its ports, once it is ready."""
    layout = system.layout
    service = next(each for each in layout.services if each.name == MODELS)
    port, http_port, edge_port = free_port(), free_port(), free_port()
    ports = {"SYNOD_GRPC_PORT": str(port), "SYNOD_HTTP_PORT": str(http_port), "SYNOD_EDGE_PORT": str(edge_port)}
    variables = {**environment(layout, system.credentials, service), **ports}
    command = Command((layout.python, "-m", service.module), variables, layout.state(service))
    replica = Replica(f"127.0.0.1:{port}", start(command, layout.logs / f"{MODELS}-{port}.log"))
    async with asyncio.timeout(READY_S):
        while True:
            if (await ask_ready(http_port)).is_ready:
                return replica
            await asyncio.sleep(LOOK_AGAIN_S)
