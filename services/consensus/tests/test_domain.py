"""Given events, when command, then events."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import reduce

import pytest
from consensus.domain import (
    INITIAL,
    RULES,
    Cast,
    Proposal,
    Propose,
    close,
    evolve,
    needed_weight,
    propose,
    vote,
)
from consensus.errors import AlreadyVoted, ConsensusError, InvalidProposal, NotAVoter, OptionUnknown, RequestReused
from hypothesis import given
from hypothesis import strategies as st
from synod.common.event import Event
from synod.consensus.events import (
    LateVoteRecorded,
    ProposalDecided,
    ProposalOpened,
    ProposalUndecided,
    Rule,
    RuleKind,
    VoteCast,
    Voter,
    VotingClosed,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=10)


def proposal(*voters: Voter | str, rule: RuleKind = "majority", threshold: int = 0) -> ProposalOpened:
    electorate = tuple(voter if isinstance(voter, Voter) else Voter(id=voter) for voter in voters)
    (opened,) = propose(INITIAL, command(electorate, Rule(kind=rule, threshold=threshold)))
    assert isinstance(opened, ProposalOpened)
    return opened


def command(electorate: tuple[Voter, ...], rule: Rule, **changed: object) -> Propose:
    values = {
        "request_id": "req", "tenant_id": "t", "proposal_id": "prp_1", "title": "Take it", "body": "", "options": (), "change": None, "run_id": "",
        "opened_by": "usr_1", "now": NOW, "deadline": LATER, "electorate": electorate, "rule": rule,
    }  # fmt: skip
    return Propose(**(values | changed))  # type: ignore[arg-type]


def fold(*events: Event) -> Proposal:
    return reduce(evolve, events, INITIAL)


def cast(state: Proposal, voter: str, option: str = "approve", reason: str = "") -> Proposal:
    return reduce(evolve, vote(state, [Cast(voter, option, reason)]), state)


def test_two_of_three_decide_by_majority_and_dissent_is_named() -> None:
    state = cast(cast(fold(proposal("a", "b", "c")), "a"), "b", "reject")
    cast_, decided = vote(state, [Cast("c", "approve", "checked")])
    assert isinstance(cast_, VoteCast)
    assert isinstance(decided, ProposalDecided)
    assert decided.outcome == "approve"
    assert "against: b" in decided.explanation


def test_votes_cast_together_are_all_counted_before_the_end() -> None:
    *_, decided = vote(
        fold(proposal("a", "b", "c")), [Cast("a", "approve", ""), Cast("b", "approve", ""), Cast("c", "reject", "")]
    )
    assert isinstance(decided, ProposalDecided)
    assert [entry.weight for entry in decided.tally] == [2, 1]


def test_half_is_no_majority() -> None:
    state = cast(fold(proposal("a", "b")), "a")
    assert state.state == "open"
    assert cast(state, "b", "reject").state == "undecided"


@pytest.mark.parametrize(
    ("rule", "total", "needed"),
    [
        ("majority", 3, 2),
        ("majority", 4, 3),
        ("two_thirds", 3, 2),
        ("two_thirds", 4, 3),
        ("unanimous", 5, 5),
        ("veto", 5, 3),
    ],
)
def test_weight_that_a_rule_needs(rule: RuleKind, total: int, needed: int) -> None:
    assert needed_weight(Rule(kind=rule), total) == needed


def test_unanimity_ends_at_the_first_dissent() -> None:
    state = cast(fold(proposal("a", "b", "c", rule="unanimous")), "a", "reject")
    assert state.state == "open"
    assert cast(state, "b").state == "undecided"


def test_threshold_counts_weight() -> None:
    state = cast(fold(proposal(Voter(id="a", weight=3), "b", "c", rule="threshold", threshold=3)), "a")
    assert (state.state, state.outcome) == ("decided", "approve")


def test_veto_ends_the_proposal_and_keeps_its_reason() -> None:
    state = cast(fold(proposal("a", Voter(id="v", veto=True), rule="veto")), "v", "reject", "unsafe")
    assert state.state == "undecided"
    assert "v vetoed: unsafe" in state.explanation


def test_majority_waits_for_a_voter_who_could_still_veto() -> None:
    state = cast(cast(fold(proposal("a", "b", Voter(id="v", veto=True), rule="veto")), "a"), "b")
    assert state.state == "open"
    assert cast(state, "v").outcome == "approve"


def test_late_vote_is_recorded_and_not_counted() -> None:
    state = cast(fold(proposal("a", "b", rule="threshold", threshold=1)), "a")
    (late,) = vote(state, [Cast("b", "reject", "too late")])
    assert isinstance(late, LateVoteRecorded)
    assert len(evolve(state, late).counted) == 1


def test_deadline_closes_only_when_it_has_come() -> None:
    state = fold(proposal("a", "b", "c"))
    assert close(state, LATER - timedelta(seconds=1)) == ()
    closed, undecided = close(state, LATER)
    assert isinstance(closed, VotingClosed)
    assert isinstance(undecided, ProposalUndecided)
    assert undecided.reason == "deadline"
    assert close(fold(proposal("a"), closed, undecided), LATER) == ()


def test_same_vote_again_is_no_event_and_another_is_refused() -> None:
    state = cast(fold(proposal("a", "b", "c")), "a")
    assert vote(state, [Cast("a", "approve", "")]) == []
    with pytest.raises(AlreadyVoted, match="'a' has voted 'approve'"):
        vote(state, [Cast("a", "reject", "")])


def test_stranger_and_strange_option_are_refused() -> None:
    state = fold(proposal("a", "b"))
    with pytest.raises(NotAVoter, match="its electorate is a, b"):
        vote(state, [Cast("mallory", "approve", "")])
    with pytest.raises(OptionUnknown, match="options are approve, reject"):
        vote(state, [Cast("a", "maybe", "")])


def test_same_proposal_again_is_no_event_and_other_content_is_refused() -> None:
    state = fold(proposal("a", "b"))
    electorate = (Voter(id="a"), Voter(id="b"))
    assert propose(state, command(electorate, Rule(kind="majority"), deadline=LATER + timedelta(seconds=9))) == ()
    with pytest.raises(RequestReused):
        propose(state, command(electorate, Rule(kind="unanimous")))


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"title": " "}, "title"),
        ({"options": ("one",)}, "options"),
        ({"options": ("x", "x")}, "options"),
        ({"electorate": ()}, "electorate"),
        ({"electorate": (Voter(id="a"), Voter(id="a"))}, "electorate"),
        ({"electorate": (Voter(id="a", weight=0),)}, "electorate.a.weight"),
        ({"rule": Rule(kind="threshold", threshold=2)}, "rule.threshold"),
        ({"rule": Rule(kind="veto")}, "rule"),
        ({"deadline": NOW}, "deadline"),
        ({"body": "x" * 70_000}, "body"),
    ],
)
def test_senseless_proposal_names_its_field(changed: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidProposal) as caught:
        propose(INITIAL, replace(command((Voter(id="a"),), Rule(kind="majority")), **changed))  # type: ignore[arg-type]
    assert caught.value.field == field


VOTERS = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@given(VOTERS, st.sampled_from(RULES), st.data())
def test_one_decision_whatever_the_order_of_votes(weights: list[int], rule: RuleKind, data: st.DataObject) -> None:
    """Never two ends; a decision always has the weight its rule needs; late votes change nothing."""
    voters = tuple(Voter(id=f"v{i}", weight=weight, veto=i == 0) for i, weight in enumerate(weights))
    threshold = data.draw(st.integers(1, sum(weights)))
    state = fold(proposal(*voters, rule=rule, threshold=threshold))
    ends = 0
    for voter in data.draw(st.permutations(voters)):
        option = data.draw(st.sampled_from(("approve", "reject")))
        events = vote(state, [Cast(voter.id, option, "")])
        ends += sum(isinstance(event, ProposalDecided | ProposalUndecided) for event in events)
        state = reduce(evolve, events, state)
    assert ends <= 1
    if state.state == "decided":
        won = sum(ballot.voter.weight for ballot in state.counted if ballot.option == state.outcome)
        assert won >= needed_weight(Rule(kind=rule, threshold=threshold), sum(weights))


@given(st.permutations(["a", "b", "c", "d", "a", "zz"]))
def test_no_sequence_of_votes_breaks_anything_but_its_own_caller(order: list[str]) -> None:
    state = fold(proposal("a", "b", "c", "d", rule="two_thirds"))
    for voter in order:
        try:
            state = cast(state, voter)
        except ConsensusError as error:
            assert voter in {"zz", "a"}
            assert error.message
    assert (state.state, state.outcome) == ("decided", "approve")
