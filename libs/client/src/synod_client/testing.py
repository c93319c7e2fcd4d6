"""A Synod that answers as it is told, over real gRPC on free ports: for tests of programs that use the SDK.

>>> with FakeSystem() as fakes:
...     fakes.answer("agent-runtime", "StartRun", Run(id="run_1"))
...     async with Synod.connect(fakes.endpoints) as synod:
...         assert (await synod.start("helper", "hello")).id == "run_1"
...     assert fakes.requests("StartRun")[0].input == "hello"
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self, cast

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_runtime.v1 import agent_runtime_pb2 as runtime_pb
from synod.consensus.v1 import consensus_pb2 as consensus_pb
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.eventlog.v1 import eventlog_pb2 as eventlog_pb
from synod.llm_gateway.v1 import llm_gateway_pb2 as llm_pb
from synod.tool_executor.v1 import tool_executor_pb2 as tools_pb

from synod_client.endpoints import SERVICES, Endpoints

API_KEY: Final = "syn_test_key"
TOKEN_LIFE_S: Final = 900
_STREAMS_MAX: Final = 32
_CONTRACTS: Final = {
    "agent-registry": registry_pb,
    "agent-runtime": runtime_pb,
    "llm-gateway": llm_pb,
    "tool-executor": tools_pb,
    "cost-ledger": ledger_pb,
    "consensus": consensus_pb,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A call that fails, or a stream that breaks there."""

    code: grpc.StatusCode
    message: str = ""
    reason: str = ""
    retry_after_s: float | None = None

    def details(self) -> bytes:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        if self.reason:
            status.details.add().Pack(error_details_pb2.ErrorInfo(reason=self.reason))
        if self.retry_after_s is not None:
            delay = error_details_pb2.RetryInfo()
            delay.retry_delay.FromMilliseconds(int(self.retry_after_s * 1000))
            status.details.add().Pack(delay)
        return bytes(status.SerializeToString())


Reply = Message | Fault
Answer = Reply | Sequence[Reply] | Callable[[Any], Reply | Iterable[Reply]]
"""A sequence answers one call of a streaming method; a function is given the request."""


@dataclass
class FakeSystem:
    """Every service on a port of its own. A call that no answer is given for fails with UNIMPLEMENTED and says so."""

    addresses: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, Message]] = field(default_factory=list)
    """Service, method and request of every call, in order."""
    _answers: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    _servers: list[grpc.Server] = field(default_factory=list)
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_STREAMS_MAX))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self.answer("agent-registry", "Authenticate", _authenticated)
        for service in SERVICES:
            server = grpc.server(self._threads, handlers=[_Handler(self, service)])
            self.addresses[service] = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            server.start()
            self._servers.append(server)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stopped in [server.stop(None) for server in self._servers]:
            stopped.wait()
        self._threads.shutdown()

    def answer(self, service: str, method: str, *answers: Answer) -> None:
        """What calls of a method get: the first answer the first call, and so on; the last one every later call."""
        self._answers[service, method] = list(answers)

    def requests(self, method: str, service: str = "") -> list[Any]:
        """The requests of a method, of one service or of all."""
        return [request for name, called, request in self.asked if called == method and service in ("", name)]

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(self.addresses, "nats://127.0.0.1:1", "http://127.0.0.1:1", API_KEY)

    def write(self, data: Path) -> None:
        """What ``synod up`` writes to its data directory, for programs that find the system there."""
        (data / "keys").mkdir(parents=True)
        (data / "keys" / "dev.key").write_text(API_KEY)
        (data / "system.json").write_text(json.dumps({"endpoints": self.addresses}))

    def next_answer(self, service: str, method: str, request: Message) -> Reply | Iterable[Reply]:
        with self._lock:
            self.asked.append((service, method, request))
            answers = self._answers.get((service, method))
            if not answers:
                return Fault(grpc.StatusCode.UNIMPLEMENTED, f"the fake has no answer for {method} of {service}")
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer(request) if callable(answer) else answer


# grpc's stubs declare a generic class, grpc itself none.
class _Handler(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def __init__(self, system: FakeSystem, service: str) -> None:
        self._system = system
        self._service = service

    def service(self, handler_call_details: Any) -> Any:
        _, full_name, name = str(handler_call_details.method).split("/")
        method = _contract(self._service, full_name).methods_by_name[name]
        codec: dict[str, Any] = {
            "request_deserializer": message_factory.GetMessageClass(method.input_type).FromString,
            "response_serializer": _serialized,
        }
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(method), **codec)
        return grpc.unary_unary_rpc_method_handler(self._unary(method), **codec)

    def _unary(self, method: MethodDescriptor) -> Callable[[Any, Any], Message]:
        def call(request: Message, context: Any) -> Message:
            reply = self._system.next_answer(self._service, method.name, request)
            return _sent(cast(Reply, reply), context)

        return call

    def _stream(self, method: MethodDescriptor) -> Callable[[Any, Any], Iterator[Message]]:
        def call(request: Message, context: Any) -> Iterator[Message]:
            replies = self._system.next_answer(self._service, method.name, request)
            for reply in (replies,) if isinstance(replies, Message | Fault) else replies:
                yield _sent(reply, context)

        return call


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _sent(reply: Reply, context: Any) -> Message:
    return _abort(reply, context) if isinstance(reply, Fault) else reply


def _abort(fault: Fault, context: Any) -> NoReturn:
    context.set_trailing_metadata((("grpc-status-details-bin", fault.details()),))
    context.abort(fault.code, fault.message)
    raise AssertionError("unreachable: abort raises")


def _contract(service: str, full_name: str) -> ServiceDescriptor:
    files = [eventlog_pb.DESCRIPTOR, *([_CONTRACTS[service].DESCRIPTOR] if service in _CONTRACTS else [])]
    services: list[ServiceDescriptor] = [found for file in files for found in file.services_by_name.values()]
    return next(found for found in services if found.full_name == full_name)


def _authenticated(_request: Message) -> registry_pb.AuthenticateResponse:
    answer = registry_pb.AuthenticateResponse(token="token")
    answer.expires_at.FromSeconds(int(time.time()) + TOKEN_LIFE_S)
    answer.principal.id, answer.principal.tenant_id = "usr_test", "local"
    return answer
