"""The Python SDK: everything that Synod offers, typed, async, with idempotency keys and cursors.

>>> async with Synod.connect() as synod:
...     await synod.define(Path("agents.yaml").read_text())
...     run = await synod.start("model-scout", "Which model is cheapest?")
...     finished = await synod.wait(run.id)
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_registry.v1 import agent_registry_pb2_grpc as registry_grpc
from synod.agent_runtime.v1 import agent_runtime_pb2 as runtime_pb
from synod.agent_runtime.v1 import agent_runtime_pb2_grpc as runtime_grpc
from synod.common.ids import new_id
from synod.consensus.v1 import consensus_pb2 as consensus_pb
from synod.consensus.v1 import consensus_pb2_grpc as consensus_grpc
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.cost_ledger.v1 import cost_ledger_pb2_grpc as ledger_grpc
from synod.eventlog.v1 import eventlog_pb2 as eventlog_pb
from synod.eventlog.v1 import eventlog_pb2_grpc as eventlog_grpc
from synod.llm_gateway.v1 import llm_gateway_pb2 as llm_pb
from synod.llm_gateway.v1 import llm_gateway_pb2_grpc as llm_grpc
from synod.tool_executor.v1 import tool_executor_pb2 as tools_pb
from synod.tool_executor.v1 import tool_executor_pb2_grpc as tools_grpc

from synod_client.causality import Logged, in_causal_order
from synod_client.connection import Connection, Limits
from synod_client.endpoints import Endpoints
from synod_client.errors import Refused
from synod_client.following import Recorded, follow
from synod_client.tasks import Tasks

_PAGE = 500
STORY_EVENTS_MAX = 50_000
_REBUILD_TIMEOUT_S = 600.0


class _Page(Protocol):
    next_page_token: str


P = TypeVar("P", bound=_Page)


@dataclass(frozen=True, slots=True)
class Synod:
    """A connection to a Synod system. Requests with an effect carry an idempotency key."""

    connection: Connection

    @classmethod
    @asynccontextmanager
    async def connect(cls, endpoints: Endpoints | None = None, limits: Limits | None = None) -> AsyncIterator["Synod"]:
        """Connects with what the environment or ``synod up`` says; closes on leaving."""
        connection = Connection(endpoints or Endpoints.discover(), limits or Limits())
        try:
            yield cls(connection)
        finally:
            await connection.close()

    # Definitions and agents

    async def define(self, yaml: str, *, validate_only: bool = False) -> list[registry_pb.Definition]:
        """Registers the agents and teams of a YAML text; the same content makes no new version."""
        request = registry_pb.DefineRequest(yaml=yaml, validate_only=validate_only)
        return list((await self.connection.call(self._registry.Define, request)).definitions)

    async def definitions(self) -> list[registry_pb.Definition]:
        request = registry_pb.ListDefinitionsRequest(page_size=_PAGE)
        return list((await self.connection.call(self._registry.ListDefinitions, request)).definitions)

    async def definition(self, reference: str) -> registry_pb.Definition:
        """A definition by name (the newest version), name@version or digest."""
        request = registry_pb.GetDefinitionRequest(reference=reference)
        return await self.connection.call(self._registry.GetDefinition, request)

    async def agents(self) -> list[registry_pb.Agent]:
        pages = self._pages(self._registry.ListAgents, registry_pb.ListAgentsRequest(page_size=_PAGE))
        return [agent async for page in pages for agent in page.agents]

    async def discover(self, *capabilities: str, limit: int = 10) -> list[registry_pb.Agent]:
        """Agents that offer all the capabilities, least busy first."""
        request = registry_pb.DiscoverAgentsRequest(capabilities=capabilities, limit=limit)
        return list((await self.connection.call(self._registry.DiscoverAgents, request)).agents)

    async def agent(self, name: str) -> registry_pb.Agent:
        """An agent by name or id."""
        return await self.connection.call(self._registry.GetAgent, registry_pb.GetAgentRequest(agent=name))

    async def register(self, name: str, capabilities: Iterable[str], request_id: str = "") -> registry_pb.Agent:
        """A new incarnation of an agent outside, the same one for the same request_id. See synod_client.agent."""
        request = registry_pb.RegisterExternalAgentRequest(
            name=name, capabilities=capabilities, request_id=request_id or new_id("req")
        )
        return await self.connection.call(self._registry.RegisterExternalAgent, request)

    async def beat(self, agent_id: str, incarnation: int, busy: int) -> registry_pb.HeartbeatResponse:
        """Says that an agent outside is alive and how many tasks it has in hand."""
        request = registry_pb.HeartbeatRequest(agent_id=agent_id, incarnation=incarnation, busy=busy)
        return await self.connection.call(self._registry.Heartbeat, request)

    async def ask(self, agent: str, text: str, *, timeout_s: float = 60.0, task_id: str = "") -> str:
        """The answer of an agent outside to a task. See synod_client.tasks for what is guaranteed.

        Repeat with the same task_id to wait on for the same task. Raises NotFound for a name that no agent has, TaskFailed
        with what the handler raised, and TryAgain (ANSWER_LATE) when the time is over; the task is then done all the same.
        """
        found = await self.agent(agent)
        if not found.external:
            raise Refused(f"'{agent}' runs inside Synod; start a run with it (start, or `synod run`)", "NOT_EXTERNAL")
        tasks = Tasks(await self.connection.nats("client"), self.connection.tenant)
        answer = await tasks.ask(found.name, text, task_id or new_id("tsk"), self.connection.principal, timeout_s)
        return answer.result()

    # Runs

    async def start(
        self,
        definition: str,
        text: str,
        *,
        budget_nano_usd: int = 0,
        workspace_id: str = "",
        request_id: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> runtime_pb.Run:
        """Starts a run of an agent or a team; repeat with the same request_id to get the same run.

        The `tags` are on every cost of the run and of the runs below it.
        """
        request = runtime_pb.StartRunRequest(
            request_id=request_id or new_id("req"),
            definition=definition,
            input=text,
            budget_nano_usd=budget_nano_usd,
            workspace_id=workspace_id,
            tags=tags,
        )
        return await self.connection.call(self._runtime.StartRun, request)

    async def run(self, run_id: str) -> runtime_pb.Run:
        return await self.connection.call(self._runtime.GetRun, runtime_pb.GetRunRequest(id=run_id))

    async def runs(self, *, roots_only: bool = True, limit: int = 100) -> list[runtime_pb.Run]:
        request = runtime_pb.ListRunsRequest(page_size=limit, roots_only=roots_only)
        return list((await self.connection.call(self._runtime.ListRuns, request)).runs)

    def watch(self, run_id: str, *, after: int = 0, tokens: bool = False) -> AsyncGenerator[runtime_pb.RunUpdate, None]:
        """What happens in a run and the runs below it until it has ended, after a cursor (RunUpdate.cursor).

        Resumes at its cursor when a connection breaks. Tokens have no cursor: those of that moment may be missing.
        """

        def open_after(cursor: int) -> AsyncGenerator[runtime_pb.RunUpdate, None]:
            request = runtime_pb.WatchRunRequest(id=run_id, after_cursor=cursor, tokens=tokens)
            return self.connection.stream(self._runtime.WatchRun, request)

        return self.connection.resumed(open_after, after, lambda update: update.cursor)

    async def wait(self, run_id: str) -> runtime_pb.Run:
        """The run when it has ended."""
        async for _ in self.watch(run_id):
            pass
        return await self.run(run_id)

    async def cancel(self, run_id: str, reason: str) -> runtime_pb.Run:
        return await self.connection.call(
            self._runtime.CancelRun, runtime_pb.CancelRunRequest(id=run_id, reason=reason)
        )

    async def replay(self, run_id: str) -> runtime_pb.ReplayRunResponse:
        """Folds the run again from its events, without any call outside, and compares."""
        request = runtime_pb.ReplayRunRequest(id=run_id)
        return await self.connection.call(self._runtime.ReplayRun, request, timeout_s=_REBUILD_TIMEOUT_S)

    # Conversations

    async def converse(self, definition: str) -> runtime_pb.Conversation:
        request = runtime_pb.CreateConversationRequest(request_id=new_id("req"), definition=definition)
        return await self.connection.call(self._runtime.CreateConversation, request)

    async def send(self, conversation_id: str, text: str) -> runtime_pb.Run:
        request = runtime_pb.SendMessageRequest(request_id=new_id("req"), conversation_id=conversation_id, text=text)
        return await self.connection.call(self._runtime.SendMessage, request)

    async def conversation(self, conversation_id: str) -> runtime_pb.Conversation:
        request = runtime_pb.GetConversationRequest(id=conversation_id)
        return await self.connection.call(self._runtime.GetConversation, request)

    # Tools and files

    async def tools(self) -> tools_pb.ListToolsResponse:
        return await self.connection.call(self._tools.ListTools, tools_pb.ListToolsRequest())

    async def grant(self, agent: str, tool: str) -> tools_pb.Grant:
        request = tools_pb.GrantToolRequest(agent=agent, tool=tool, request_id=new_id("req"))
        return await self.connection.call(self._tools.GrantTool, request)

    async def grants(self, agent: str = "") -> list[tools_pb.Grant]:
        return list(
            (await self.connection.call(self._tools.ListGrants, tools_pb.ListGrantsRequest(agent=agent))).grants
        )

    async def put_file(self, workspace_id: str, path: str, content: bytes) -> tools_pb.WorkspaceFile:
        request = tools_pb.PutFileRequest(workspace_id=workspace_id, path=path, content=content)
        return await self.connection.call(self._tools.PutFile, request)

    async def get_file(self, workspace_id: str, path: str) -> bytes:
        request = tools_pb.GetFileRequest(workspace_id=workspace_id, path=path)
        return (await self.connection.call(self._tools.GetFile, request)).content

    async def files(self, workspace_id: str) -> list[tools_pb.WorkspaceFile]:
        request = tools_pb.ListFilesRequest(workspace_id=workspace_id)
        return list((await self.connection.call(self._tools.ListFiles, request)).files)

    # Models and money

    async def models(self) -> list[llm_pb.Model]:
        return list((await self.connection.call(self._models.ListModels, llm_pb.ListModelsRequest())).models)

    async def set_price(
        self,
        provider: str,
        model: str,
        input_pico_usd: int,
        output_pico_usd: int,
        *,
        cache_read_pico_usd: int | None = None,
        cache_write_pico_usd: int | None = None,
        own_provider: bool = False,
    ) -> ledger_pb.Price:
        """A price of the tenant's own, pico-USD per token; of the prompt cache as of other input, unless it is given.

        `own_provider`: it is no slip of a known provider's name.
        """
        request = ledger_pb.SetPriceRequest(
            provider=provider,
            model=model,
            input_pico_usd=input_pico_usd,
            output_pico_usd=output_pico_usd,
            cache_read_pico_usd=cache_read_pico_usd,
            cache_write_pico_usd=cache_write_pico_usd,
            own_provider=own_provider,
        )
        return await self.connection.call(self._ledger.SetPrice, request)

    async def set_budget(
        self, budget_id: str, limit_nano_usd: int, *, scope: ledger_pb.Attribution | None = None, hard: bool = True,
        window: str = "lifetime",
    ) -> ledger_pb.Budget:  # fmt: skip
        request = ledger_pb.SetBudgetRequest(
            budget_id=budget_id, limit_nano_usd=limit_nano_usd, scope=scope, hard=hard, window=window
        )
        return await self.put_budget(request)

    async def put_budget(self, request: ledger_pb.SetBudgetRequest) -> ledger_pb.Budget:
        """Create a budget, or change its limit and hardness: quotas, shares, time zones, rolling windows."""
        return await self.connection.call(self._ledger.SetBudget, request)

    async def suspend_budget(self, budget_id: str, reason: str) -> ledger_pb.Budget:
        """Have the budget refuse every new reservation, until it is resumed; what is held may still be settled."""
        request = ledger_pb.SuspendBudgetRequest(budget_id=budget_id, reason=reason)
        return await self.connection.call(self._ledger.SuspendBudget, request)

    async def resume_budget(self, budget_id: str) -> ledger_pb.Budget:
        return await self.connection.call(self._ledger.ResumeBudget, ledger_pb.ResumeBudgetRequest(budget_id=budget_id))

    async def budget(self, budget_id: str, share: str = "") -> ledger_pb.Budget:
        request = ledger_pb.GetBudgetRequest(budget_id=budget_id, share=share)
        return await self.connection.call(self._ledger.GetBudget, request)

    async def forecast_budget(self, budget_id: str, share: str = "") -> ledger_pb.BudgetForecast:
        """When a budget runs out if spending goes on as it did."""
        request = ledger_pb.ForecastBudgetRequest(budget_id=budget_id, share=share)
        return await self.connection.call(self._ledger.ForecastBudget, request)

    async def budgets(self) -> list[ledger_pb.Budget]:
        request = ledger_pb.ListBudgetsRequest(page_size=_PAGE)
        return list((await self.connection.call(self._ledger.ListBudgets, request)).budgets)

    async def spend(self, *group_by: str, scope: ledger_pb.Attribution | None = None) -> ledger_pb.QuerySpendResponse:
        """What was spent, by any attribution: agent, model, run_id, root_run_id, tool, day, ..."""
        return await self.query_spend(ledger_pb.QuerySpendRequest(group_by=group_by, filter=scope))

    async def query_spend(self, request: ledger_pb.QuerySpendRequest) -> ledger_pb.QuerySpendResponse:
        return await self.connection.call(self._ledger.QuerySpend, request)

    async def export_spend(self, request: ledger_pb.ExportSpendRequest) -> AsyncIterator[ledger_pb.ExportedCharge]:
        """Every cost, the oldest first; a stream that breaks raises TryAgain."""
        async for page in self.connection.stream(self._ledger.ExportSpend, request):
            for charge in page.charges:
                yield charge

    async def compare_models(self, request: ledger_pb.CompareModelsRequest) -> ledger_pb.CompareModelsResponse:
        return await self.connection.call(self._ledger.CompareModels, request)

    async def price_usage_at(self, request: ledger_pb.PriceUsageAtRequest) -> ledger_pb.PriceUsageAtResponse:
        """What the same usage would have cost at another model."""
        return await self.connection.call(self._ledger.PriceUsageAt, request)

    async def rerate_charges(self, request: ledger_pb.RerateChargesRequest) -> ledger_pb.RerateChargesResponse:
        """Price settled costs anew; a repetition finds nothing to correct."""
        return await self.connection.call(self._ledger.RerateCharges, request)

    async def import_invoice(self, request: ledger_pb.ImportInvoiceRequest) -> ledger_pb.Reconciliation:
        """Compare an invoice with the ledger; posted once for each invoice_id."""
        return await self.connection.call(self._ledger.ImportInvoice, request)

    async def suspense(self) -> AsyncIterator[ledger_pb.Reservation]:
        """Holds for calls of which nobody knows the outcome, the oldest first."""
        async for page in self._pages(self._ledger.ListSuspense, ledger_pb.ListSuspenseRequest(page_size=_PAGE)):
            for reservation in page.reservations:
                yield reservation

    async def settle(self, request: ledger_pb.SettleRequest) -> ledger_pb.Reservation:
        """Post what was used; a repetition posts nothing."""
        return await self.connection.call(self._ledger.Settle, request)

    async def release(self, reservation_id: str, reason: str) -> ledger_pb.Reservation:
        """Free a hold. You vouch that nothing was billed; a bill that comes after all is posted."""
        request = ledger_pb.ReleaseRequest(reservation_id=reservation_id, reason=reason)
        return await self.connection.call(self._ledger.Release, request)

    async def prices(self, provider: str = "") -> AsyncIterator[ledger_pb.Price]:
        """Prices in force, by name."""
        request = ledger_pb.ListPricesRequest(provider=provider, page_size=_PAGE)
        async for page in self._pages(self._ledger.ListPrices, request):
            for price in page.prices:
                yield price

    # Decisions

    async def propose(self, request: consensus_pb.ProposeRequest) -> consensus_pb.Proposal:
        if not request.request_id:
            request.request_id = new_id("req")
        return await self.connection.call(self._consensus.Propose, request)

    async def vote(self, proposal_id: str, voter_id: str, option: str, reason: str) -> consensus_pb.Proposal:
        request = consensus_pb.VoteRequest(proposal_id=proposal_id, voter_id=voter_id, option=option, reason=reason)
        return await self.connection.call(self._consensus.Vote, request)

    async def proposal(self, proposal_id: str) -> consensus_pb.Proposal:
        return await self.connection.call(self._consensus.GetProposal, consensus_pb.GetProposalRequest(id=proposal_id))

    async def proposals(self, run_id: str = "") -> list[consensus_pb.Proposal]:
        request = consensus_pb.ListProposalsRequest(page_size=_PAGE, run_id=run_id)
        return list((await self.connection.call(self._consensus.ListProposals, request)).proposals)

    async def declare_variable(self, request: consensus_pb.DeclareVariableRequest) -> consensus_pb.Variable:
        """A variable that only decided proposals change; the same declaration again changes nothing."""
        return await self.connection.call(self._consensus.DeclareVariable, request)

    async def variables(self) -> list[consensus_pb.Variable]:
        request = consensus_pb.ListVariablesRequest(page_size=_PAGE)
        return list((await self.connection.call(self._consensus.ListVariables, request)).variables)

    # The log of any service

    async def read(
        self, service: str, *, after: int = 0, limit: int = 100, where: eventlog_pb.EventFilter | None = None,
        as_of: datetime | None = None,
    ) -> eventlog_pb.ReadResponse:  # fmt: skip
        """A page of a log, as it is or as it was at a moment."""
        request = eventlog_pb.ReadRequest(after_position=after, page_size=limit, filter=where)
        if as_of is not None:
            request.as_of.FromDatetime(as_of)
        return await self.connection.call(self._log(service).Read, request)

    async def story(self, where: eventlog_pb.EventFilter, *, as_of: datetime | None = None) -> list[Logged]:
        """The events of all services that match, as of a run across them, each after what caused it.

        Raises Refused (STORY_TOO_LONG) beyond STORY_EVENTS_MAX events of one service.
        """
        names = self.services
        logs = await asyncio.gather(*(self._read_whole(name, where, as_of) for name in names))
        return in_causal_order(dict(zip(names, logs, strict=True)))

    async def _read_whole(
        self, service: str, where: eventlog_pb.EventFilter, as_of: datetime | None
    ) -> list[eventlog_pb.Event]:
        events: list[eventlog_pb.Event] = []
        position = 0
        while True:
            page = await self.read(service, after=position, limit=_PAGE, where=where, as_of=as_of)
            events += page.events
            if len(events) > STORY_EVENTS_MAX:
                raise Refused(
                    f"{service} has more than {STORY_EVENTS_MAX} such events; ask for less time, or read one service",
                    "STORY_TOO_LONG",
                )
            if page.next_after_position in (position, page.head_position):
                return events
            position = page.next_after_position

    def subscribe(
        self, service: str, *, after: int = 0, where: eventlog_pb.EventFilter | None = None
    ) -> AsyncGenerator[eventlog_pb.Event, None]:
        """Events after a position, then every new one, without gap or duplicate also over broken connections."""

        def open_after(cursor: int) -> AsyncGenerator[eventlog_pb.Event, None]:
            request = eventlog_pb.SubscribeRequest(after_position=cursor, filter=where)
            return self.connection.stream(self._log(service).Subscribe, request)

        return self.connection.resumed(open_after, after, lambda event: event.position, endless=True)

    def follow(self, service: str, *, after: int = 0, types: Collection[str] = ()) -> AsyncGenerator[Recorded, None]:
        """The same over NATS, decoded: costs the service nothing however many follow. See synod_client.following."""
        return follow(self.connection, service, after, frozenset(types))

    async def verify_log(
        self, service: str, *, witnessed: Iterable[eventlog_pb.Checkpoint] = ()
    ) -> eventlog_pb.VerifyResponse:
        """Positions contiguous, hash chain unbroken, and the log what every signed checkpoint says, those `witnessed`
        elsewhere too.
        """
        request = eventlog_pb.VerifyRequest(witnessed=witnessed)
        return await self.connection.call(self._log(service).Verify, request, timeout_s=_REBUILD_TIMEOUT_S)

    async def checkpoints(self, service: str, *, after: int = 0, limit: int = _PAGE) -> list[eventlog_pb.Checkpoint]:
        """A page of the signed checkpoints of a log, with greater positions than `after`."""
        request = eventlog_pb.ListCheckpointsRequest(after_position=after, page_size=limit)
        return list((await self.connection.call(self._log(service).ListCheckpoints, request)).checkpoints)

    async def inclusion_proof(self, service: str, position: int) -> eventlog_pb.GetInclusionProofResponse:
        """An event with the proof that it is in the signed log."""
        request = eventlog_pb.GetInclusionProofRequest(position=position)
        return await self.connection.call(self._log(service).GetInclusionProof, request)

    async def verify_stream(self, service: str, stream: str) -> eventlog_pb.VerifyStreamResponse:
        """One stream complete and unchanged by its own hash chain, and covered by the newest signed checkpoint."""
        request = eventlog_pb.VerifyStreamRequest(stream=stream)
        return await self.connection.call(self._log(service).VerifyStream, request, timeout_s=_REBUILD_TIMEOUT_S)

    async def export_stream(self, service: str, stream: str) -> list[eventlog_pb.Event]:
        """All events of one stream as they are stored and hashed."""
        events: list[eventlog_pb.Event] = []
        while True:
            after = events[-1].version if events else 0
            request = eventlog_pb.ExportStreamRequest(stream=stream, after_version=after)
            page = (await self.connection.call(self._log(service).ExportStream, request)).events
            if not page:
                return events
            events += page

    async def erase_subject(self, service: str, subject: str, reason: str) -> eventlog_pb.EraseSubjectResponse:
        """Destroy the key of a person's data in one service, for ever. Safe to repeat."""
        request = eventlog_pb.EraseSubjectRequest(data_subject=subject, reason=reason)
        return await self.connection.call(self._log(service).EraseSubject, request, timeout_s=_REBUILD_TIMEOUT_S)

    async def erasures(self, service: str) -> list[eventlog_pb.Erasure]:
        """Erasures that were begun in one service and have not ended; the oldest first."""
        request = eventlog_pb.ListErasuresRequest()
        return list((await self.connection.call(self._log(service).ListErasures, request)).erasures)

    async def rotate_data_key(self, service: str) -> int:
        """Encrypt the payloads of a log from here on with a new key; its number."""
        request = eventlog_pb.RotateDataKeyRequest()
        return (await self.connection.call(self._log(service).RotateDataKey, request)).key_number

    async def views(self, service: str) -> list[eventlog_pb.View]:
        return list((await self.connection.call(self._log(service).ListViews, eventlog_pb.ListViewsRequest())).views)

    async def rebuild_view(self, service: str, name: str) -> eventlog_pb.RebuildViewResponse:
        request = eventlog_pb.RebuildViewRequest(name=name)
        return await self.connection.call(self._log(service).RebuildView, request, timeout_s=_REBUILD_TIMEOUT_S)

    async def rollback_view(self, service: str, name: str) -> eventlog_pb.RollbackViewResponse:
        """Goes back to the copy of the view that its last rebuild replaced, brought up to date first."""
        request = eventlog_pb.RollbackViewRequest(name=name)
        return await self.connection.call(self._log(service).RollbackView, request, timeout_s=_REBUILD_TIMEOUT_S)

    async def parked(self, service: str, view: str = "") -> list[eventlog_pb.ParkedEvent]:
        """Events of the caller's tenant that a view, or any view, could not fold."""
        request = eventlog_pb.ListParkedEventsRequest(view=view)
        return list((await self.connection.call(self._log(service).ListParkedEvents, request)).parked)

    async def redrive(self, service: str, view: str, position: int, *, skip: bool = False) -> None:
        """Folds a parked event again, or drops it from the list."""
        request = eventlog_pb.RedriveParkedEventRequest(view=view, position=position, skip=skip)
        await self.connection.call(self._log(service).RedriveParkedEvent, request)

    async def verify_view(self, service: str, name: str) -> eventlog_pb.VerifyViewResponse:
        """Builds the view aside from its events and compares it with the live one at the same position."""
        request = eventlog_pb.VerifyViewRequest(name=name)
        return await self.connection.call(self._log(service).VerifyView, request, timeout_s=_REBUILD_TIMEOUT_S)

    @property
    def services(self) -> tuple[str, ...]:
        return tuple(self.connection.endpoints.services)

    async def _pages(self, method: Callable[..., Awaitable[P]], request: Any) -> AsyncIterator[P]:
        """Every page of a list; `request` is for the first."""
        while True:
            page = await self.connection.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    @property
    def _registry(self) -> "registry_grpc.AgentRegistryAsyncStub":
        return registry_grpc.AgentRegistryStub(self.connection.channel("agent-registry"))

    @property
    def _runtime(self) -> "runtime_grpc.AgentRuntimeAsyncStub":
        return runtime_grpc.AgentRuntimeStub(self.connection.channel("agent-runtime"))

    @property
    def _models(self) -> "llm_grpc.LlmGatewayAsyncStub":
        return llm_grpc.LlmGatewayStub(self.connection.channel("llm-gateway"))

    @property
    def _tools(self) -> "tools_grpc.ToolExecutorAsyncStub":
        return tools_grpc.ToolExecutorStub(self.connection.channel("tool-executor"))

    @property
    def _ledger(self) -> "ledger_grpc.CostLedgerAsyncStub":
        return ledger_grpc.CostLedgerStub(self.connection.channel("cost-ledger"))

    @property
    def _consensus(self) -> "consensus_grpc.ConsensusAsyncStub":
        return consensus_grpc.ConsensusStub(self.connection.channel("consensus"))

    def _log(self, service: str) -> "eventlog_grpc.EventLogAsyncStub":
        return eventlog_grpc.EventLogStub(self.connection.channel(service))
