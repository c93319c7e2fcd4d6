"""gRPC in: translate, call, translate."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import grpc
from eventlog.clock import Clock
from servicekit.context import current_principal, event_context
from servicekit.errors import PermissionDenied
from servicekit.paging import next_page_token, page_key, page_size
from synod.consensus.v1 import consensus_pb2 as pb
from synod.consensus.v1 import consensus_pb2_grpc

from consensus import translate
from consensus.application import Consensus
from consensus.domain import Proposal
from consensus.projections import Queries

PERMISSIONS: Final = {
    "Propose": "proposals.create",
    "Vote": "proposals.vote",
    "CastVotes": "proposals.vote",
    "GetProposal": "proposals.read",
    "ListProposals": "proposals.read",
    "WatchProposal": "proposals.read",
    "DeclareVariable": "variables.create",
    "GetVariable": "variables.read",
    "ListVariables": "variables.read",
    "WatchVariable": "variables.read",
}
VOTE_FOR_OTHERS: Final = "proposals.vote_for_others"
NAMES_COMPARED: Final = 1000

Context = grpc.aio.ServicerContext[object, object]


@dataclass(frozen=True, slots=True)
class ConsensusRpc(consensus_pb2_grpc.ConsensusServicer):
    consensus: Consensus
    queries: Queries
    clock: Clock

    async def Propose(self, request: pb.ProposeRequest, context: Context) -> pb.Proposal:
        principal = current_principal()
        command = translate.to_propose(request, principal.tenant, principal.actor, self.clock.now())
        state = await self.consensus.propose(command, event_context(correlation=request.run_id))
        return await self._proposal(state)

    async def Vote(self, request: pb.VoteRequest, context: Context) -> pb.Proposal:
        _check_voter(request.voter_id)
        state = await self.consensus.vote(request.proposal_id, (translate.to_cast(request),), event_context())
        return await self._proposal(state)

    async def CastVotes(self, request: pb.CastVotesRequest, context: Context) -> pb.Proposal:
        votes = translate.to_casts(request)
        for vote in votes:
            _check_voter(vote.voter_id)
        return await self._proposal(await self.consensus.vote(request.proposal_id, votes, event_context()))

    async def GetProposal(self, request: pb.GetProposalRequest, context: Context) -> pb.Proposal:
        return await self._proposal(await self.consensus.proposal(current_principal().tenant, request.id))

    async def ListProposals(self, request: pb.ListProposalsRequest, context: Context) -> pb.ListProposalsResponse:
        size = page_size(request.page_size)
        wanted = translate.STATE_NAMES.get(request.state, "")
        before = page_key(request.page_token)
        tenant = current_principal().tenant
        rows = await self.queries.proposals(tenant, wanted, request.run_id, before, size)
        states = [(row, await self.consensus.proposal(tenant, row.id)) for row in rows]
        found = [translate.with_times(translate.from_proposal(state), row) for row, state in states]
        return pb.ListProposalsResponse(
            proposals=found, next_page_token=next_page_token([row.id for row in rows], size)
        )

    async def WatchProposal(self, request: pb.WatchProposalRequest, context: Context) -> AsyncIterator[pb.Proposal]:
        async for state in self.consensus.watch_proposal(current_principal().tenant, request.id):
            yield await self._proposal(state)

    async def DeclareVariable(self, request: pb.DeclareVariableRequest, context: Context) -> pb.Variable:
        return translate.from_variable(await self.consensus.declare(translate.to_declared(request), event_context()))

    async def GetVariable(self, request: pb.GetVariableRequest, context: Context) -> pb.Variable:
        tenant = current_principal().tenant
        known = [row.name for row in await self.queries.variables(tenant, "", NAMES_COMPARED)]
        return translate.from_variable(await self.consensus.variable(tenant, request.name, known))

    async def ListVariables(self, request: pb.ListVariablesRequest, context: Context) -> pb.ListVariablesResponse:
        tenant, size = current_principal().tenant, page_size(request.page_size)
        rows = await self.queries.variables(tenant, page_key(request.page_token), size)
        states = [(row, await self.consensus.variable(tenant, row.name)) for row in rows]
        found = [translate.with_change_time(translate.from_variable(state), row) for row, state in states]
        return pb.ListVariablesResponse(
            variables=found, next_page_token=next_page_token([row.name for row in rows], size)
        )

    async def WatchVariable(self, request: pb.WatchVariableRequest, context: Context) -> AsyncIterator[pb.Variable]:
        async for state in self.consensus.watch_variable(current_principal().tenant, request.name):
            yield translate.from_variable(state)

    async def _proposal(self, state: Proposal) -> pb.Proposal:
        message = translate.from_proposal(state)
        return translate.with_times(message, await self.queries.proposal(message.id))


def _check_voter(voter_id: str) -> None:
    """People vote for themselves. A service votes for the agents it runs, an administrator for whom he must."""
    principal = current_principal()
    if principal.kind != "service" and voter_id != principal.id and not principal.may(VOTE_FOR_OTHERS):
        raise PermissionDenied(VOTE_FOR_OTHERS, principal.id, message=f"{principal.id} may not vote as '{voter_id}'")
