"""The service as its clients see it: real gRPC, PostgreSQL and NATS."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from consensus.main import compose
from consensus.projections import Queries
from consensus.settings import Settings
from google.protobuf.timestamp_pb2 import Timestamp
from launcher.testing import RunningNats
from servicekit.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, from_rpc_error
from servicekit.testing import Served, serve_in_process, settings_for
from synod.consensus.v1 import consensus_pb2 as pb
from synod.consensus.v1.consensus_pb2_grpc import ConsensusStub
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub

WAIT_S = 30


@pytest.fixture
async def service(postgres_dsn: str, fresh_nats: RunningNats) -> AsyncIterator[Served[Settings]]:
    async with serve_in_process(compose, settings_for(Settings, postgres_dsn, fresh_nats.url)) as served:
        yield served


@pytest.fixture
def stub(service: Served[Settings]) -> ConsensusStub:
    return ConsensusStub(service.channel)


def proposal(request_id: str = "req", *, minutes: float = 10, **more: object) -> pb.ProposeRequest:
    deadline = Timestamp()
    deadline.FromDatetime(datetime.now(UTC) + timedelta(minutes=minutes))
    values: dict[str, object] = {
        "title": "Take it",
        "electorate": [pb.Voter(id=voter) for voter in ("a", "b", "c")],
        "deadline": deadline,
    }
    return pb.ProposeRequest(request_id=request_id, **(values | more))  # type: ignore[arg-type]


def ballot(id: str, voter: str, option: str = "approve") -> pb.VoteRequest:
    return pb.VoteRequest(proposal_id=id, voter_id=voter, option=option, reason=f"{voter} says so")


async def test_votes_decide_and_are_kept_with_their_reasons(stub: ConsensusStub) -> None:
    opened = await stub.Propose(proposal())
    await stub.Vote(ballot(opened.id, "a"))
    decided = await stub.Vote(ballot(opened.id, "c"))
    assert decided.state == pb.PROPOSAL_STATE_DECIDED
    assert decided.outcome == "approve"
    assert [(b.voter_id, b.reason) for b in decided.ballots] == [("a", "a says so"), ("c", "c says so")]
    late = await stub.Vote(ballot(opened.id, "b", "reject"))
    assert late.outcome == "approve"
    assert late.ballots[-1].late


async def test_votes_cast_together_keep_their_dissent_in_the_tally(stub: ConsensusStub) -> None:
    opened = await stub.Propose(proposal())
    votes = [ballot("", "a"), ballot("", "b"), ballot("", "c", "reject")]
    decided = await stub.CastVotes(pb.CastVotesRequest(proposal_id=opened.id, votes=votes))
    assert [(entry.option, entry.weight) for entry in decided.tally] == [("approve", 2), ("reject", 1)]
    assert not any(cast.late for cast in decided.ballots)
    again = await stub.CastVotes(pb.CastVotesRequest(proposal_id=opened.id, votes=votes))
    assert len(again.ballots) == 3


async def test_repeated_request_opens_one_proposal(stub: ConsensusStub) -> None:
    first, second = await stub.Propose(proposal("same")), await stub.Propose(proposal("same"))
    assert first.id == second.id


async def test_deadline_ends_the_voting(stub: ConsensusStub) -> None:
    opened = await with_a_near_deadline(stub)
    async with asyncio.timeout(WAIT_S):
        last = [state async for state in stub.WatchProposal(pb.WatchProposalRequest(id=opened.id))][-1]
    assert last.state == pb.PROPOSAL_STATE_UNDECIDED
    assert "deadline" in last.explanation


async def with_a_near_deadline(stub: ConsensusStub) -> pb.Proposal:
    """A proposal whose deadline is as near as this machine allows: one that has passed on the way is refused."""
    for seconds in (0.5, 5):
        try:
            return await stub.Propose(proposal(f"in {seconds} s", minutes=seconds / 60))
        except grpc.aio.AioRpcError as error:
            assert "deadline" in (error.details() or "")
    return await stub.Propose(proposal(minutes=0.5))


async def test_decision_changes_its_variable_and_watchers_see_every_version(stub: ConsensusStub) -> None:
    await stub.DeclareVariable(
        pb.DeclareVariableRequest(name="rate", float_range=pb.FloatRange(min=0, max=1), initial_value_json="0.5")
    )
    watch = stub.WatchVariable(pb.WatchVariableRequest(name="rate"))
    seen = [(await watch.read()).value_json]
    for number, value in enumerate(("0.25", "0.75")):
        opened = await stub.Propose(
            proposal(f"req{number}", change=pb.VariableChange(variable="rate", value_json=value))
        )
        for voter in ("a", "b"):
            await stub.Vote(ballot(opened.id, voter))
        async with asyncio.timeout(WAIT_S):
            seen.append((await watch.read()).value_json)
    watch.cancel()
    assert seen == ["0.5", "0.25", "0.75"]


async def test_rejected_proposal_leaves_its_variable(stub: ConsensusStub) -> None:
    choices = pb.Choices(options=["safe", "fast"])
    await stub.DeclareVariable(pb.DeclareVariableRequest(name="mode", choices=choices, initial_value_json='"safe"'))
    opened = await stub.Propose(proposal(change=pb.VariableChange(variable="mode", value_json='"fast"')))
    for voter in ("a", "b"):
        await stub.Vote(ballot(opened.id, voter, "reject"))
    assert (await stub.GetVariable(pb.GetVariableRequest(name="mode"))).value_json == '"safe"'


async def test_many_voters_at_once_are_all_counted(stub: ConsensusStub) -> None:
    voters = [f"v{number}" for number in range(50)]
    opened = await stub.Propose(
        proposal(electorate=[pb.Voter(id=voter) for voter in voters], rule=pb.Rule(kind=pb.RULE_KIND_UNANIMOUS))
    )
    await asyncio.gather(*(stub.Vote(ballot(opened.id, voter)) for voter in voters))
    found = await stub.GetProposal(pb.GetProposalRequest(id=opened.id))
    assert (found.outcome, len(found.ballots)) == ("approve", 50)


async def test_refusals_name_what_is_wrong(stub: ConsensusStub) -> None:
    opened = await stub.Propose(proposal())
    cases = [
        (lambda: stub.Propose(proposal("other", title="")), InvalidArgument, "title"),
        (lambda: stub.Vote(ballot(opened.id, "mallory")), FailedPrecondition, "its electorate is a, b, c"),
        (lambda: stub.Vote(ballot(opened.id, "a", "maybe")), InvalidArgument, "options are approve, reject"),
        (lambda: stub.GetProposal(pb.GetProposalRequest(id="prp_none")), NotFound, "prp_none"),
        (lambda: stub.ListProposals(pb.ListProposalsRequest(page_size=5000)), InvalidArgument, "page_size"),
        (lambda: stub.ListProposals(pb.ListProposalsRequest(page_token="?")), InvalidArgument, "page_token"),
        (
            lambda: stub.Propose(proposal("x", change=pb.VariableChange(variable="rat", value_json="1"))),
            NotFound,
            "there is no variable 'rat'",
        ),
    ]
    for call, kind, words in cases:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call()
        error = from_rpc_error(caught.value)
        assert isinstance(error, kind)
        assert words in error.message


async def test_people_vote_only_for_themselves(service: Served[Settings], stub: ConsensusStub) -> None:
    opened = await stub.Propose(proposal(electorate=[pb.Voter(id="usr_ada"), pb.Voter(id="usr_ben")]))
    ada = ConsensusStub(service.connect(service.token(["proposals.vote"], id="usr_ada")))
    await ada.Vote(ballot(opened.id, "usr_ada"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ada.Vote(ballot(opened.id, "usr_ben"))
    assert isinstance(from_rpc_error(caught.value), PermissionDenied)


async def test_tenants_do_not_see_each_other(service: Served[Settings], stub: ConsensusStub) -> None:
    opened = await stub.Propose(proposal())
    stranger = ConsensusStub(service.connect(service.token(tenant="other")))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stranger.GetProposal(pb.GetProposalRequest(id=opened.id))
    assert isinstance(from_rpc_error(caught.value), NotFound)
    assert not (await stranger.ListProposals(pb.ListProposalsRequest())).proposals


async def test_list_pages_newest_first(stub: ConsensusStub) -> None:
    made = [(await stub.Propose(proposal(f"req{number}"))).id for number in range(3)]
    async with asyncio.timeout(WAIT_S):
        while len((await stub.ListProposals(pb.ListProposalsRequest())).proposals) < len(made):
            continue
    first = await stub.ListProposals(pb.ListProposalsRequest(page_size=2))
    second = await stub.ListProposals(pb.ListProposalsRequest(page_size=2, page_token=first.next_page_token))
    assert [p.id for p in (*first.proposals, *second.proposals)] == sorted(made, reverse=True)


async def test_views_equal_views_rebuilt_from_the_log(service: Served[Settings], stub: ConsensusStub) -> None:
    opened = await stub.Propose(proposal())
    await stub.Vote(ballot(opened.id, "a"))
    await stub.Vote(ballot(opened.id, "b"))
    log = EventLogStub(service.channel)
    views = (await log.ListViews(log_pb.ListViewsRequest())).views
    assert {view.name for view in views} == {"proposals", "variables"}
    for view in views:
        assert (await log.VerifyView(log_pb.VerifyViewRequest(name=view.name))).equal
    assert (await log.Verify(log_pb.VerifyRequest())).ok


async def test_proposals_that_wait_are_a_metric(stub: ConsensusStub, service: Served[Settings]) -> None:
    registry = service.host.metrics.registry
    opened = await stub.Propose(proposal())
    async with asyncio.timeout(WAIT_S):
        while registry.get_sample_value("proposals_open") != 1:
            await service.host.history.measure_once()
        assert (registry.get_sample_value("proposals_open_oldest_seconds") or 0) > 0
        await stub.Vote(ballot(opened.id, "a"))
        await stub.Vote(ballot(opened.id, "b"))
        while registry.get_sample_value("proposals_open") != 0:
            await service.host.history.measure_once()
    assert registry.get_sample_value("proposals_open_oldest_seconds") == 0
    assert registry.get_sample_value("proposals_overdue") == 0


async def test_a_proposal_past_its_deadline_counts_as_overdue(stub: ConsensusStub, service: Served[Settings]) -> None:
    queries, later = Queries(service.host.pool), datetime.now(UTC) + timedelta(hours=1)
    await stub.Propose(proposal())
    async with asyncio.timeout(WAIT_S):
        while not (waiting := await queries.open_proposals(later)).count:
            await service.host.history.measure_once()
    assert (waiting.count, waiting.overdue) == (1, 1)
